#!/usr/bin/env bash
# What a missing label mask and a frozen vocabulary do: four runs of the demo for each seed (docs/masking.md).
#
#   bash scripts/experiments/masking.sh                 about 50 minutes on two CPU cores
#   SEEDS="0 1" STEPS=1400 bash scripts/experiments/masking.sh
#
# Runs that are finished are kept. Writes masking.md and masking.svg into OUTPUT.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/env.sh

SEEDS="${SEEDS:-0 1 2}"
STEPS="${STEPS:-2800}"
OUTPUT="${OUTPUT:-output/masking}"
EVERY=$((STEPS / 7))
export DEMO_CLIPS="${DEMO_CLIPS:-4500}" DEMO_DIR="${DEMO_DIR:-output/masking_demo}"
# The recipe that the page's table was measured with.
AS_MEASURED=(--optim adamw_torch_fused --learning_rate 2e-3 --per_device_train_batch_size 16 --mm_perceiver_latents 16
    --group_by_modality_length True)

run() { # $1 = name, $2 = seed, the rest = flags
    local folder="$OUTPUT/$1_seed$2" seed="$2"
    shift 2
    if [[ ! -f "$folder/captions.json" ]]; then
        OUTPUT_DIR="$folder" SEED="$seed" EXP_ID=2 MAX_STEPS="$STEPS" SAVE_STEPS=$((2 * EVERY)) SAVE_TOTAL_LIMIT=10 \
            LOGGING_STEPS=20 bash train_italian_video.sh --eval_strategy steps --eval_steps "$EVERY" \
            --controls False --preflight off "${AS_MEASURED[@]}" "$@"
    fi
    for checkpoint in "$folder"/checkpoint-*; do
        if [[ ! -f "$checkpoint/captions.json" ]]; then
            python -m llava.eval.captioning --model-path "$checkpoint" --feature_cache "${OUTPUT_ROOT:-output}/feature_cache" \
                --data_path "$DEMO_DIR/data/heldout_combinations_vi_it.json" --video_folder "$DEMO_DIR/data/clips" \
                --attributes "$DEMO_DIR/data/attributes.json" --examples 0 --output "$checkpoint/captions.json"
        fi
    done
}

FAULTS=(--experiment_faults_confirmed True --experiment_faults)
for seed in $SEEDS; do
    run masked_trainable "$seed"
    run unmasked_trainable "$seed" "${FAULTS[@]}" unmasked_labels
    run masked_frozen "$seed" "${FAULTS[@]}" frozen_vocabulary
    run unmasked_frozen "$seed" "${FAULTS[@]}" unmasked_labels,frozen_vocabulary
done
python scripts/experiments/masking.py "$OUTPUT"
