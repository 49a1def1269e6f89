#!/usr/bin/env bash
# Lets a job be stopped without losing work; sourced by train_italian_video.sh.
#
# bash looks at a signal only when its command in the foreground ends, so every long command runs in the background.
# torchrun is never sent SIGUSR1, which ends it and orphans its workers: training is stopped by the file that it watches.

STOPPED_STATUS=85
STOP_SIGNAL=""
trap 'STOP_SIGNAL=USR1' USR1
trap 'STOP_SIGNAL=TERM' TERM
trap 'STOP_SIGNAL=INT' INT

# Runs a command whose work is repeated after a stop, or complete already, and ends it on a signal.
run_or_stop() {
    [[ -z "$STOP_SIGNAL" ]] || _leave
    "$@" &
    local child=$!
    while kill -0 "$child" 2>/dev/null; do
        wait "$child" || true
        [[ -z "$STOP_SIGNAL" ]] || kill -TERM "$child" 2>/dev/null || true
    done
    [[ -z "$STOP_SIGNAL" ]] || _leave
    wait "$child"
}

# $1 = output folder, then the command. Returns 1 when training failed.
train_or_stop() {
    local output_dir="$1" child
    shift
    [[ -z "$STOP_SIGNAL" ]] || _leave
    rm -f "$output_dir/stopped.json"
    "$@" &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        if [[ -z "$STOP_SIGNAL" ]]; then
            wait "$child" || true
        else
            # Again and again: a run that is just starting removes what an earlier stop left.
            mkdir -p "$output_dir" && touch "$output_dir/STOP" || true
            sleep 1 &
            wait $! || true
        fi
    done
    rm -f "$output_dir/STOP"
    if [[ -f "$output_dir/stopped.json" ]]; then _leave; fi
    wait "$child" || return 1
}

# SIGUSR1 is the warning before the time limit, which SLURM lets pass by: the job asks to be run again. On SIGTERM SLURM
# knows whether it cancels or requeues, and a job that the user cancelled must not come back.
_leave() {
    if [[ "$STOP_SIGNAL" == USR1 && -n "${SLURM_JOB_ID:-}" ]]; then
        if scontrol requeue "$SLURM_JOB_ID"; then
            echo "Stopped before the time limit; job $SLURM_JOB_ID is back in the queue and goes on from here."
        else
            echo "ERROR: stopped, but SLURM did not requeue job $SLURM_JOB_ID: submit it again, and it goes on." >&2
        fi
    else
        echo "Stopped${STOP_SIGNAL:+ on SIG$STOP_SIGNAL}; the same command goes on from here."
    fi
    exit "$STOPPED_STATUS"
}
