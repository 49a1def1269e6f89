#!/usr/bin/env bash
# The whole check: lint, format, types, tests. With arguments: pytest alone, with those arguments.
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/data -k prompt -x
#
# Makes its own environment (see scripts/env.sh); every step runs even when one before it failed.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export LLAVA_EXTRAS="${LLAVA_EXTRAS:-dev,docs}"
# shellcheck source=scripts/env.sh
source scripts/env.sh

# Tests download nothing and compile nothing. Idle OpenMP threads that spin slow a shared machine down several times.
export HF_HUB_OFFLINE=1 DS_BUILD_OPS=0 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

if (($#)); then
    exec python -m pytest "$@"
fi

FAILED=()
step() { # $1 = name, the rest = command
    local name="$1" start=$SECONDS
    shift
    printf '\n=== %s: %s\n' "$name" "$*"
    if "$@"; then
        printf '=== %s passed (%d s)\n' "$name" $((SECONDS - start))
    else
        printf '=== %s FAILED (%d s)\n' "$name" $((SECONDS - start))
        FAILED+=("$name")
    fi
}

step lint python -m ruff check .
step format python -m ruff format --check .
step types python -m mypy
# Two files of tests at a time; more processes than cores only make the time limits of tests tight.
step tests python -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder

echo
if ((${#FAILED[@]})); then
    echo "FAILED: ${FAILED[*]}  (lint and format mend themselves: ruff check --fix . ; ruff format .)"
    exit 1
fi
echo "All steps passed: lint, format, types, tests."
