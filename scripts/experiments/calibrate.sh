#!/usr/bin/env bash
# Is the instrument right? Trains tiny models in worlds of which it is known whether seeing helps, and counts how often
# the interval of a study is right about it (docs/does_seeing_help.md).
#
#   bash scripts/experiments/calibrate.sh                   600 runs of about 15 CPU-seconds; goes on where it stopped
#   bash scripts/experiments/calibrate.sh --seeds 24        a fifth of it
#   bash scripts/experiments/calibrate.sh --table           the table of what is there
#
# Two processes of one thread each divide the runs.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/env.sh

export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false
COMMAND=(python scripts/experiments/calibrate.py --output "${OUTPUT:-output/calibration}")
for word in "$@"; do
    [[ "$word" != --table && "$word" != --broken && "$word" != --help ]] || exec "${COMMAND[@]}" "$@"
done
# The first run of a world makes what the others use.
"${COMMAND[@]}" --seeds 1 --arms V "$@" >/dev/null
"${COMMAND[@]}" --seeds 120 --share 1/2 "$@" &
"${COMMAND[@]}" --seeds 120 --share 2/2 "$@"
wait
exec "${COMMAND[@]}" --table
