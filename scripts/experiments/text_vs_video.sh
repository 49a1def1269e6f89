#!/usr/bin/env bash
# Does seeing help? The older name of `python -m llava.study` (docs/study.md), with its older variables.
#
#   bash scripts/experiments/text_vs_video.sh                        the demo
#   DATA_PATH=train.json VIDEO_FOLDER=clips SEEDS="0 1 2 3 4" STEPS=1400 bash scripts/experiments/text_vs_video.sh
#
# Settings of train_italian_video.sh can be set as there, and arguments are those of llava.study.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/env.sh

read -r -a LISTED <<<"${SEEDS:-0 1 2}"
if [[ "${LISTED[*]}" != "$(seq -s ' ' 0 $((${#LISTED[@]} - 1)))" ]]; then
    echo "ERROR: SEEDS=\"$SEEDS\": a study counts its seeds from 0: \"0 1 2\", or --seeds 3" >&2
    exit 1
fi
[[ -z "${TARGET_LOSS:-}" ]] || echo "TARGET_LOSS is not used: steps to a loss were the least certain measure" >&2
exec python -m llava.study --output "${OUTPUT:-output/text_vs_video}" --seeds "${#LISTED[@]}" \
    ${STEPS:+--max_steps "$STEPS"} "$@"
