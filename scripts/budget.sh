#!/usr/bin/env bash
# Stages of a check with a budget of time each; sourced by .ci/run.
#
#   stage NAME MINUTES COMMAND...   runs a command and remembers how long it took
#   noted NAME MINUTES WHY          a stage that has nothing of its own to run
#   limited COMMAND...              a command (no function) that is ended when LIMIT_MINUTES of the whole are over
#   budget                          prints a line for each stage, and says loudly what took longer than it should
#
# A stage over its budget fails nothing; beyond LIMIT_MINUTES for the whole, `limited` ends what runs.

LIMIT_MINUTES="${LIMIT_MINUTES:-40}"
_STAGES=()

_clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# Within the command, `set -e` does not hold: a function says by its own status whether it failed.
stage() {
    local name="$1" minutes="$2" start=$SECONDS status=0 took
    shift 2
    printf '\n=== %s (budget %d minutes)\n' "$name" "$minutes"
    "$@" || status=$?
    took=$((SECONDS - start))
    _STAGES+=("$name|$minutes|$took|$([[ $status == 0 ]] || echo "FAILED ($status)")")
    return "$status"
}

noted() { _STAGES+=("$1|$2|0|$3"); }

limited() {
    local left=$((LIMIT_MINUTES * 60 - SECONDS))
    if ((left <= 0)); then
        echo "ERROR: $LIMIT_MINUTES minutes for the whole are over" >&2
        return 124
    fi
    timeout --kill-after=30 "${left}s" "$@" </dev/null
}

budget() {
    local line name minutes took note total=0 over=()
    printf '\n%-20s %8s %8s\n' stage took budget
    for line in ${_STAGES[@]+"${_STAGES[@]}"}; do
        IFS='|' read -r name minutes took note <<<"$line"
        total=$((total + took))
        if ((took > minutes * 60)); then
            over+=("$name took $(_clock "$took") of $minutes:00 minutes")
            note="OVER BUDGET${note:+, $note}"
        fi
        printf '%-20s %8s %8s  %s\n' "$name" "$(_clock "$took")" "$minutes:00" "$note"
    done
    printf '%-20s %8s %8s\n' whole "$(_clock "$total")" "$LIMIT_MINUTES:00"
    if ((total > LIMIT_MINUTES * 60)); then over+=("the whole took $(_clock "$total") of $LIMIT_MINUTES:00 minutes"); fi
    if ((${#over[@]})); then
        printf '\n!!! OVER BUDGET: %s' "${over[@]}"
        printf '\n!!! Make it quicker, or move what does not fit to scripts/test_versions.sh (see CONTRIBUTING.md).\n'
    fi
}
