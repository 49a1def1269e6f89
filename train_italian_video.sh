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
#   RECIPE=tiny bash train_italian_video.sh              six clips, to see that everything is in place
#   EXP_ID=1 DATA_PATH=clips.json LEARNING_RATE=1e-3 sbatch train_italian_video.sh
#   sbatch --nodes=2 train_italian_video.sh              on a file system that the nodes share
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash train_italian_video.sh     without SLURM, on each node
#
# SIGUSR1, SIGTERM and Ctrl-C end training at its next step with a checkpoint and status 85; the same command goes on.
# A second Ctrl-C ends everything at once, with status 130.
# Under SLURM the signal comes 2 minutes before the time limit, and the job puts itself back into the queue.
#
# Settings stand in recipes/. Every flag of the trainer is set by a variable of its name in capitals or by an argument:
# `bash train_italian_video.sh --help` lists all. An argument beats a variable, which beats the recipe.

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

for word in "$@"; do
    [[ "$word" != --help && "$word" != -h ]] || exec python scripts/launch.py --help
done

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

# What there is to do: DATA, MAKE, TRAIN, SCORE and GROUND are the arguments of the steps below, and empty where there is none.
PLAN="$(NODE_RANK="$NODE_RANK" python scripts/launch.py "$@")" || {
    [[ -z "$STOP_SIGNAL" ]] || _leave
    exit 1
}
eval "$PLAN"
NUM_GPUS="${NUM_GPUS:-$(( GPUS > 0 ? GPUS : 1 ))}"
CPUS="${SLURM_CPUS_PER_TASK:-$(nproc)}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(( CPUS > NUM_GPUS ? CPUS / NUM_GPUS : 1 ))}"

# One process would split its batches over all GPUs that it sees.
ONE_PROCESS=(python)
if ((GPUS > 1)); then
    VISIBLE="${CUDA_VISIBLE_DEVICES:-0}"
    ONE_PROCESS=(env "CUDA_VISIBLE_DEVICES=${VISIBLE%%,*}" python)
fi
if ((NODE_RANK == 0)); then
    # All flags are looked at before something is made for them.
    if [[ -n "$UNMADE" ]] && ((!NEEDS_TORCHRUN)); then
        run_or_stop "${ONE_PROCESS[@]}" -m llava.train.check_flags --pending "$UNMADE" "${TRAIN[@]}"
    fi
    ((${#DATA[@]} == 0)) || run_or_stop python scripts/make_demo_data.py "${DATA[@]}"
    ((${#MAKE[@]} == 0)) || run_or_stop python scripts/make_model.py --exist_ok "${MAKE[@]}"
fi

# DeepSpeed and FSDP want a launcher for one process too.
if ((NNODES == 1 && NUM_GPUS == 1 && !NEEDS_TORCHRUN)); then
    TRAINER=("${ONE_PROCESS[@]}")
else
    TRAINER=(python llava/train/torchrun.py --nproc_per_node "$NUM_GPUS")
    if ((NNODES == 1)); then
        TRAINER+=(--standalone)
    else
        TRAINER+=(--nnodes "$NNODES" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
        if [[ -n "${SLURM_JOB_ID:-}" ]]; then
            # shellcheck disable=SC2016  # Each node's own number, known there.
            TRAINER=(srun --nodes "$NNODES" --ntasks "$NNODES" --ntasks-per-node 1 --cpus-per-task "$CPUS"
                --kill-on-bad-exit=1 bash -c 'exec python llava/train/torchrun.py --node_rank "$SLURM_NODEID" "$@"' _
                "${TRAINER[@]:2}")
        else
            TRAINER+=(--node_rank "$NODE_RANK")
        fi
    fi
fi

echo "Experiment $EXPERIMENT, seed $SEED, $NNODES node(s) of $NUM_GPUS process(es), $PRECISION:" \
    "$DATA_PATH -> $OUTPUT_DIR"
# A run that fails says why in its last lines.
train_or_stop "$OUTPUT_DIR" "${TRAINER[@]}" llava/train/train.py "${TRAIN[@]}" || exit 1
((NODE_RANK == 0)) || exit 0

((${#GROUND[@]} == 0)) || run_or_stop "${ONE_PROCESS[@]}" -m llava.eval.grounding "${GROUND[@]}"
# What the run held out by itself, in place of what it was given.
if ((${#SCORE[@]} && HOLDS_OUT)) && [[ -f "$OUTPUT_DIR/held_out.json" ]]; then
    SCORE[${#SCORE[@]}-1]="$OUTPUT_DIR/held_out.json"
fi
run_or_stop python -m llava.commands.finish "$OUTPUT_DIR" ${SCORE[@]+"${SCORE[@]}"}
echo "Model, logs and scores: $OUTPUT_DIR; open $OUTPUT_DIR/report.html in a browser"
