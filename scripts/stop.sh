#!/usr/bin/env bash
# Lets a job be stopped without losing work; sourced by train_italian_video.sh.
#
# bash looks at a signal only when its command in the foreground ends, so every long command runs in the background. It
# has a session of its own: Ctrl-C in a terminal goes to every process of the foreground, and torchrun would pass it on
# and kill its workers 30 s later. torchrun is never sent SIGUSR1 either, which ends it and orphans its workers: training
# is stopped by the file that it watches. A second Ctrl-C ends everything at once.

STOPPED_STATUS=85
INTERRUPTED_STATUS=130
STOP_SIGNAL=""
INTERRUPTS=0
trap '_note USR1' USR1
trap '_note TERM' TERM
trap '_note HUP' HUP
trap '_note INT' INT

_note() {
    STOP_SIGNAL="${STOP_SIGNAL:-$1}"
    if [[ "$1" == INT ]]; then
        INTERRUPTS=$((INTERRUPTS + 1))
        ((INTERRUPTS > 1)) || echo "Ctrl-C: stopping without loss; once more ends everything at once." >&2
    fi
}

# Starts a command in a session of its own, as CHILD. bash has its background commands ignore SIGINT.
_start() {
    python -c 'if True:
        import os, signal, sys
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.setsid()
        os.execvp(sys.argv[1], sys.argv[1:])' "$@" </dev/null &
    CHILD=$!
}

# Runs a command whose work is repeated after a stop, or complete already, and ends it on a signal.
run_or_stop() {
    [[ -z "$STOP_SIGNAL" ]] || _leave
    _start "$@"
    while kill -0 "$CHILD" 2>/dev/null; do
        ((INTERRUPTS < 2)) || _end_now
        [[ -z "$STOP_SIGNAL" ]] || kill -TERM "$CHILD" 2>/dev/null || true
        wait "$CHILD" || true
    done
    [[ -z "$STOP_SIGNAL" ]] || _leave
    wait "$CHILD"
}

# $1 = output folder, then the command. Returns 1 when training failed.
train_or_stop() {
    local output_dir="$1"
    shift
    [[ -z "$STOP_SIGNAL" ]] || _leave
    rm -f "$output_dir/stopped.json"
    _start "$@"
    while kill -0 "$CHILD" 2>/dev/null; do
        if [[ -z "$STOP_SIGNAL" ]]; then
            wait "$CHILD" || true
        elif ((INTERRUPTS < 2)); then
            # Again and again: a run that is just starting removes what an earlier stop left.
            mkdir -p "$output_dir" && printf 'SIG%s\n' "$STOP_SIGNAL" >"$output_dir/STOP" || true
            sleep 1 &
            wait $! || true
        else
            rm -f "$output_dir/STOP"
            _end_now
        fi
    done
    rm -f "$output_dir/STOP"
    if [[ -f "$output_dir/stopped.json" ]]; then _leave; fi
    wait "$CHILD" || return 1
}

# torchrun passes the first on to its workers, which have sessions of their own, and on the second ends them; srun needs
# two as well.
_end_now() {
    local tries=0
    while kill -0 "$CHILD" 2>/dev/null; do
        kill "-$( ((tries++ < 20)) && echo INT || echo KILL)" "$CHILD" 2>/dev/null || true
        sleep 0.2 &
        wait $! || true
    done
    echo "Ended at once on the second Ctrl-C; the same command goes on from the newest checkpoint, if there is one." >&2
    exit "$INTERRUPTED_STATUS"
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
