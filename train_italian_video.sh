#!/usr/bin/env bash
#SBATCH --job-name=italian-video
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=48:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

# Trains a GPT-2 on Italian captions: EXP_ID=1 on their text alone, EXP_ID=2 on video and text.
#
#   bash train_italian_video.sh                          the built-in demo
#   DATA_PATH=clips.json VIDEO_FOLDER=clips bash train_italian_video.sh
#   EXP_ID=1 DATA_PATH=clips.json sbatch train_italian_video.sh
#   sbatch --nodes=2 train_italian_video.sh              on a file system that the nodes share
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash train_italian_video.sh     without SLURM, on each node
#
# SIGUSR1, SIGTERM and Ctrl-C end training at its next step with a checkpoint and status 85; the same command goes on.
# A second Ctrl-C ends everything at once, with status 130.
# Under SLURM the signal comes 2 minutes before the time limit, and the job puts itself back into the queue.
#
# Every setting below is a variable that the environment can override; arguments of this script go to the trainer.

set -euo pipefail

# SLURM runs a copy of the script; the repository is then where sbatch was called.
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -f "$REPO/llava/train/train.py" ]] || REPO="${SLURM_SUBMIT_DIR:-$REPO}"
if [[ ! -f "$REPO/llava/train/train.py" ]]; then
    echo "ERROR: $REPO is not the repository; call sbatch from its folder." >&2
    exit 1
fi
cd "$REPO"
source scripts/env.sh
source scripts/stop.sh

EXP_ID="${EXP_ID:-2}"
case "$EXP_ID" in
    1) SUFFIX=t_it ;;
    2) SUFFIX=vi_it ;;
    *) echo "ERROR: EXP_ID=$EXP_ID; use 1 (text only) or 2 (video and text)." >&2; exit 1 ;;
esac
if [[ "${USE_PLAIN_LM:-1}" != 1 && " $*" != *" --version"* ]]; then
    echo "ERROR: USE_PLAIN_LM=$USE_PLAIN_LM; 1 is the only mode without a chat format: add --version NAME." >&2
    exit 1
fi
SEED="${SEED:-0}"
OUTPUT_ROOT="${OUTPUT_ROOT:-output}"

# torch's threads on CPU: waiting passively is several times faster when the machine is shared.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export DS_BUILD_OPS="${DS_BUILD_OPS:-0}"

# Without SLURM every node calls this script; with it, the script runs on the first node and srun starts the others.
NNODES="${NNODES:-${SLURM_NNODES:-1}}"
NODE_RANK="${NODE_RANK:-0}"
if ((NNODES > 1)) && [[ -n "${SLURM_JOB_ID:-}" ]]; then
    MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
    MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
elif ((NNODES > 1)) && [[ -z "${MASTER_ADDR:-}" ]]; then
    echo "ERROR: NNODES=$NNODES needs MASTER_ADDR, the address of node 0, and NODE_RANK, this node's number from 0." >&2
    exit 1
fi
if ((NODE_RANK < 0 || NODE_RANK >= NNODES)); then
    echo "ERROR: NODE_RANK=$NODE_RANK; with NNODES=$NNODES it is 0 to $((NNODES - 1))." >&2
    exit 1
fi

# One word for each: GPUs, and the precision that the hardware is fast in.
read -r GPUS FAST_PRECISION < <(python - <<'PYTHON'
import torch

gpus = torch.cuda.device_count()
if gpus:
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
else:
    flags = open("/proc/cpuinfo").read() if __import__("os").path.exists("/proc/cpuinfo") else ""
    precision = "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"
print(gpus, precision)
PYTHON
) || {
    [[ -z "$STOP_SIGNAL" ]] || _leave
    echo "ERROR: the environment's python or its torch does not run; the reason stands above." >&2
    exit 1
}
NUM_GPUS="${NUM_GPUS:-$(( GPUS > 0 ? GPUS : 1 ))}"
PRECISION="${PRECISION:-$FAST_PRECISION}"
CPUS="${SLURM_CPUS_PER_TASK:-$(nproc)}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(( CPUS > NUM_GPUS ? CPUS / NUM_GPUS : 1 ))}"

if [[ -z "${DATA_PATH:-}" ]]; then
    echo "DATA_PATH is not set: running the built-in demo (clips and models are made here, nothing is downloaded)."
    DEMO=1
    DEMO_DIR="${DEMO_DIR:-demo}"
    ((NODE_RANK)) || run_or_stop python scripts/make_demo_data.py --output_dir "$DEMO_DIR/data" \
        --num_train "${DEMO_CLIPS:-4500}"
    DATA_PATH="$DEMO_DIR/data/train_$SUFFIX.json"
    VIDEO_FOLDER="${VIDEO_FOLDER:-$DEMO_DIR/data/clips}"
    EVAL_DATA_PATH="${EVAL_DATA_PATH:-$DEMO_DIR/data/heldout_combinations_$SUFFIX.json}"
    OUTPUT_DIR="${OUTPUT_DIR:-$OUTPUT_ROOT/demo_exp${EXP_ID}_seed$SEED}"
    if [[ -z "${VISION_MODEL:-}" ]]; then
        VISION_MODEL="$DEMO_DIR/tower"
        TOWER=(--make_vision_tower "$VISION_MODEL" --vision_hidden_size 192 --vision_layers 1 --vision_heads 3
            --image_size 126)
    fi
    N_LAYER="${N_LAYER:-4}"
    N_EMBD="${N_EMBD:-128}"
    N_HEAD="${N_HEAD:-4}"
    N_POSITIONS="${N_POSITIONS:-128}"
    VOCAB_SIZE="${VOCAB_SIZE:-1000}"
    MM_VISION_SELECT_LAYER="${MM_VISION_SELECT_LAYER:--1}"
    MM_PERCEIVER_LATENTS="${MM_PERCEIVER_LATENTS:-16}"
    MM_PERCEIVER_LATENTS_FAST="${MM_PERCEIVER_LATENTS_FAST:-1}"
    MM_PERCEIVER_DEPTH="${MM_PERCEIVER_DEPTH:-0}"
    FORCE_SAMPLE="${FORCE_SAMPLE:-True}"
    # On 84 positions torch's fused attention is slower on CPU than the plain one (117 against 73 ms a step).
    ATTN_IMPLEMENTATION="${ATTN_IMPLEMENTATION:-eager}"
    BATCH_SIZE="${BATCH_SIZE:-16}"
    GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-1}"
    LEARNING_RATE="${LEARNING_RATE:-2e-3}"
    WARMUP_STEPS="${WARMUP_STEPS:-0.05}"
    ADAM_BETA2="${ADAM_BETA2:-0.98}"
    MAX_STEPS="${MAX_STEPS:-$([[ "$EXP_ID" == 2 ]] && echo 2800 || echo 300)}"
    LOGGING_STEPS="${LOGGING_STEPS:-100}"
    SAVE_STEPS="${SAVE_STEPS:-500}"
    NUM_WORKERS="${NUM_WORKERS:-0}"
else
    DEMO=0
    NAME="$(basename "${DATA_PATH%.*}")"
    # Several files: a name of all of them.
    [[ "$DATA_PATH" == *[,{]* ]] && NAME="$(printf %s "${DATA_PATH%.*}" | tr -cs '[:alnum:]._-' _)"
    OUTPUT_DIR="${OUTPUT_DIR:-$OUTPUT_ROOT/${NAME}_exp${EXP_ID}_seed$SEED}"
fi

# The recipe for real data: GPT-2 small from scratch, DINOv2-large, 36 + 324 visual positions a clip.
VISION_MODEL="${VISION_MODEL:-facebook/dinov2-large}"
VIDEO_FOLDER="${VIDEO_FOLDER:-}"
IMAGE_FOLDER="${IMAGE_FOLDER:-}"
EVAL_DATA_PATH="${EVAL_DATA_PATH:-}"
MODEL_PATH="${MODEL_PATH:-}"
FROM_SCRATCH="${FROM_SCRATCH:-0}"
N_LAYER="${N_LAYER:-12}"
N_EMBD="${N_EMBD:-768}"
N_HEAD="${N_HEAD:-12}"
N_POSITIONS="${N_POSITIONS:-1024}"
VOCAB_SIZE="${VOCAB_SIZE:-30000}"
MODEL_MAX_LENGTH="${MODEL_MAX_LENGTH:-}"
MM_VISION_SELECT_LAYER="${MM_VISION_SELECT_LAYER:--2}"
MM_PROJECTOR_TYPE="${MM_PROJECTOR_TYPE:-mlp2x_gelu}"
MM_RESAMPLER_TYPE="${MM_RESAMPLER_TYPE:-fast_slow_resampler}"
MM_PERCEIVER_LATENTS="${MM_PERCEIVER_LATENTS:-81}"
MM_PERCEIVER_LATENTS_FAST="${MM_PERCEIVER_LATENTS_FAST:-9}"
MM_PERCEIVER_DEPTH="${MM_PERCEIVER_DEPTH:-1}"
MM_TUNABLE_PARTS="${MM_TUNABLE_PARTS:-mm_language_model,mm_mlp_adapter,mm_vision_resampler}"
NUM_FRAMES="${NUM_FRAMES:-4}"
VIDEO_FPS="${VIDEO_FPS:-1}"
FRAMES_UPBOUND="${FRAMES_UPBOUND:-0}"
ATTN_IMPLEMENTATION="${ATTN_IMPLEMENTATION:-sdpa}"
FORCE_SAMPLE="${FORCE_SAMPLE:-False}"
IMAGE_ASPECT_RATIO="${IMAGE_ASPECT_RATIO:-pad}"
BATCH_SIZE="${BATCH_SIZE:-16}"
GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-1}"
NUM_TRAIN_EPOCHS="${NUM_TRAIN_EPOCHS:-80}"
MAX_STEPS="${MAX_STEPS:--1}"
LEARNING_RATE="${LEARNING_RATE:-5e-4}"
WARMUP_STEPS="${WARMUP_STEPS:-0.1}"
LR_SCHEDULER_TYPE="${LR_SCHEDULER_TYPE:-cosine}"
WEIGHT_DECAY="${WEIGHT_DECAY:-0.0}"
ADAM_BETA2="${ADAM_BETA2:-0.999}"
LOGGING_STEPS="${LOGGING_STEPS:-10}"
SAVE_STEPS="${SAVE_STEPS:-500}"
SAVE_TOTAL_LIMIT="${SAVE_TOTAL_LIMIT:-2}"
NUM_WORKERS="${NUM_WORKERS:-4}"
REPORT_TO="${REPORT_TO:-tensorboard}"
FEATURE_CACHE="${FEATURE_CACHE:-$OUTPUT_ROOT/feature_cache}"
CAPTION_LIMIT="${CAPTION_LIMIT:-200}"
ON_BAD_SAMPLE="${ON_BAD_SAMPLE:-stop}"
ALLOW_ABSOLUTE_PATHS="${ALLOW_ABSOLUTE_PATHS:-0}"
RESUME="${RESUME:-auto}"

if ((NODE_RANK == 0)) && [[ "$DATA_PATH" != *[,{]* && ! -f "$DATA_PATH" ]]; then
    echo "ERROR: DATA_PATH=$DATA_PATH: no such file. It is a LLaVA JSON or JSONL file, or a mixture; unset it to run the demo." >&2
    exit 1
fi

MAKE=("${TOWER[@]+"${TOWER[@]}"}")
if [[ -z "$MODEL_PATH" ]]; then
    MODEL_PATH="$OUTPUT_ROOT/$( ((DEMO)) && echo demo || echo "$NAME")_gpt2_${N_LAYER}x${N_EMBD}_seed$SEED"
    MAKE+=(--data_path "$DATA_PATH" --output_dir "$MODEL_PATH" --seed "$SEED" --vocab_size "$VOCAB_SIZE"
        --on_bad_sample "$ON_BAD_SAMPLE" --n_layer "$N_LAYER" --n_embd "$N_EMBD" --n_head "$N_HEAD" --n_positions "$N_POSITIONS")
fi
if ((NODE_RANK == 0 && ${#MAKE[@]})); then
    run_or_stop python scripts/make_model.py --exist_ok "${MAKE[@]}"
fi

FLAGS=(
    --model_name_or_path "$MODEL_PATH" --from_scratch "$( ((FROM_SCRATCH)) && echo True || echo False)"
    --attn_implementation "$ATTN_IMPLEMENTATION"
    --data_path "$DATA_PATH" --output_dir "$OUTPUT_DIR" --seed "$SEED" --resume_from_checkpoint "$RESUME"
    --model_max_length "${MODEL_MAX_LENGTH:-$N_POSITIONS}"
    --per_device_train_batch_size "$BATCH_SIZE" --gradient_accumulation_steps "$GRADIENT_ACCUMULATION_STEPS"
    --num_train_epochs "$NUM_TRAIN_EPOCHS" --max_steps "$MAX_STEPS" --learning_rate "$LEARNING_RATE"
    --warmup_steps "$WARMUP_STEPS" --lr_scheduler_type "$LR_SCHEDULER_TYPE" --weight_decay "$WEIGHT_DECAY"
    --adam_beta2 "$ADAM_BETA2"
    --logging_steps "$LOGGING_STEPS" --save_steps "$SAVE_STEPS" --save_total_limit "$SAVE_TOTAL_LIMIT"
    --dataloader_num_workers "$NUM_WORKERS" --report_to "$REPORT_TO" --on_bad_sample "$ON_BAD_SAMPLE"
)
((GPUS)) || FLAGS+=(--use_cpu True)
case "$PRECISION" in
    bf16) FLAGS+=(--bf16 True) ;;
    fp16) FLAGS+=(--fp16 True) ;;
    fp32) ;;
    *) echo "ERROR: PRECISION=$PRECISION; use bf16, fp16 or fp32." >&2; exit 1 ;;
esac
((ALLOW_ABSOLUTE_PATHS)) && FLAGS+=(--allow_absolute_paths True)
[[ -n "$EVAL_DATA_PATH" ]] && FLAGS+=(--eval_data_path "$EVAL_DATA_PATH")
if [[ "$EXP_ID" == 1 ]]; then
    # Clips are not seen, but copies of one are not held out from the other: both experiments hold out the same.
    FLAGS+=(--text_only True --feature_cache "$FEATURE_CACHE")
    [[ -d "$VIDEO_FOLDER" ]] && FLAGS+=(--video_folder "$VIDEO_FOLDER")
    [[ -d "$IMAGE_FOLDER" ]] && FLAGS+=(--image_folder "$IMAGE_FOLDER")
else
    FLAGS+=(
        --vision_tower "$VISION_MODEL" --mm_tunable_parts "$MM_TUNABLE_PARTS" --feature_cache "$FEATURE_CACHE"
        --mm_vision_select_layer "$MM_VISION_SELECT_LAYER" --mm_projector_type "$MM_PROJECTOR_TYPE"
        --mm_resampler_type "$MM_RESAMPLER_TYPE" --mm_perceiver_latents "$MM_PERCEIVER_LATENTS"
        --mm_perceiver_latents_fast "$MM_PERCEIVER_LATENTS_FAST" --mm_perceiver_depth "$MM_PERCEIVER_DEPTH"
        --num_frames "$NUM_FRAMES" --video_fps "$VIDEO_FPS" --frames_upbound "$FRAMES_UPBOUND"
        --force_sample "$FORCE_SAMPLE" --image_aspect_ratio "$IMAGE_ASPECT_RATIO"
    )
    [[ -n "$VIDEO_FOLDER" ]] && FLAGS+=(--video_folder "$VIDEO_FOLDER")
    [[ -n "$IMAGE_FOLDER" ]] && FLAGS+=(--image_folder "$IMAGE_FOLDER")
fi

TORCHRUN=(torchrun --nproc_per_node "$NUM_GPUS")
if ((NNODES == 1)); then
    TORCHRUN+=(--standalone)
else
    TORCHRUN+=(--nnodes "$NNODES" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
    if [[ -n "${SLURM_JOB_ID:-}" ]]; then
        # shellcheck disable=SC2016  # Each node's own number, known there.
        TORCHRUN=(srun --nodes "$NNODES" --ntasks "$NNODES" --ntasks-per-node 1 --cpus-per-task "$CPUS"
            --kill-on-bad-exit=1 bash -c 'exec torchrun --node_rank "$SLURM_NODEID" "$@"' _ "${TORCHRUN[@]:1}")
    else
        TORCHRUN+=(--node_rank "$NODE_RANK")
    fi
fi

echo "Experiment $EXP_ID ($([[ "$EXP_ID" == 1 ]] && echo "text only" || echo "video and text")), seed $SEED," \
    "$NNODES node(s) of $NUM_GPUS process(es), $PRECISION: $DATA_PATH -> $OUTPUT_DIR"
if ! train_or_stop "$OUTPUT_DIR" "${TORCHRUN[@]}" llava/train/train.py "${FLAGS[@]}" "$@"; then
    echo "ERROR: training stopped; the reason stands in the last error above." >&2
    exit 1
fi
((NODE_RANK == 0)) || exit 0

if [[ "$EXP_ID" == 2 ]]; then
    SCORED=("${EVAL_DATA_PATH:-$DATA_PATH}")
    # What the run held out by itself.
    [[ -z "$EVAL_DATA_PATH" && -f "$OUTPUT_DIR/held_out.json" ]] && SCORED=("$OUTPUT_DIR/held_out.json")
    SCORE_FLAGS=(--limit "$CAPTION_LIMIT" --seed "$SEED")
    ((ALLOW_ABSOLUTE_PATHS)) && SCORE_FLAGS+=(--allow_absolute_paths)
    if ((DEMO)); then
        SCORED=("$DEMO_DIR/data/heldout_clips_vi_it.json" "$DEMO_DIR/data/heldout_combinations_vi_it.json")
        SCORE_FLAGS=(--attributes "$DEMO_DIR/data/attributes.json")
    fi
    [[ -n "$VIDEO_FOLDER" ]] && SCORE_FLAGS+=(--video_folder "$VIDEO_FOLDER")
    [[ -n "$IMAGE_FOLDER" ]] && SCORE_FLAGS+=(--image_folder "$IMAGE_FOLDER")
    run_or_stop python -m llava.eval.captioning --model-path "$OUTPUT_DIR" --data_path "${SCORED[@]}" --control \
        --feature_cache "$FEATURE_CACHE" --on_bad_sample "$ON_BAD_SAMPLE" --output "$OUTPUT_DIR/captions.json" \
        "${SCORE_FLAGS[@]}"
fi
run_or_stop python -m llava.eval.report "$OUTPUT_DIR" >/dev/null
echo "Model, logs and scores: $OUTPUT_DIR; open $OUTPUT_DIR/report.html in a browser"
