#!/usr/bin/env bash
# Does seeing help? Experiment 1 (text) and 2 (video and text) from the same GPT-2, over seeds, on the same captions.
#
#   bash scripts/experiments/text_vs_video.sh                        the demo; about 20 minutes on two CPU cores
#   DATA_PATH=train.json EVAL_DATA_PATH=heldout.json VIDEO_FOLDER=clips bash scripts/experiments/text_vs_video.sh
#
# Runs that are finished are kept. Settings of train_italian_video.sh can be set as there; writes text_vs_video.md,
# text_vs_video.json and report.html into OUTPUT.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/env.sh

SEEDS="${SEEDS:-0 1 2}"
STEPS="${STEPS:-1400}"
OUTPUT="${OUTPUT:-output/text_vs_video}"
EVERY=$((STEPS < 14 ? 1 : STEPS / 14))
if [[ -n "${DATA_PATH:-}" && -z "${EVAL_DATA_PATH:-}" ]]; then
    echo "ERROR: set EVAL_DATA_PATH too: captions that neither experiment trains on." >&2
    exit 1
fi

if [[ -n "${DATA_PATH:-}" && -n "${MODEL_PATH:-}" ]]; then
    python scripts/experiments/text_vs_video.py --check "$MODEL_PATH" "$DATA_PATH" "$EVAL_DATA_PATH"
fi

FOLDERS=()
for seed in $SEEDS; do
    for experiment in 1 2; do
        folder="$OUTPUT/exp${experiment}_seed$seed"
        if [[ ! -f "$folder/eval_results.json" ]]; then
            OUTPUT_DIR="$folder" SEED="$seed" EXP_ID="$experiment" MAX_STEPS="$STEPS" SAVE_STEPS="$STEPS" \
                LOGGING_STEPS=20 bash train_italian_video.sh --eval_strategy steps --eval_steps "$EVERY" "$@"
        fi
        FOLDERS+=("$folder")
    done
done
python scripts/experiments/text_vs_video.py --output "$OUTPUT" ${TARGET_LOSS:+--target "$TARGET_LOSS"} "${FOLDERS[@]}"
python -m llava.eval.report "${FOLDERS[@]}" --output "$OUTPUT/report.html"
