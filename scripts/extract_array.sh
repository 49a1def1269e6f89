#!/usr/bin/env bash
#SBATCH --job-name=features
#SBATCH --array=0-15
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

# Extracts vision features by any number of jobs that share the clips through a folder (--work).
#
#   sbatch scripts/extract_array.sh --data_path clips.json --video_folder clips --vision_tower facebook/dinov2-large \
#       --feature_cache output/feature_cache --work output/work
#   sbatch --array=0-63 scripts/extract_array.sh ... --shards s3://bucket/features --work output/work
#   python -m llava.data.extract --status output/work
#
# A job that ends early, in whatever way, leaves its part to the others; more jobs may come at any time. Under SLURM the
# signal comes 2 minutes before the time limit, and the job puts itself back into the queue. Status 1 says that clips
# could not be read: the log names them.

set -euo pipefail

# SLURM runs a copy of the script; the repository is then where sbatch was called.
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ -f "$REPO/llava/data/extract.py" ]] || REPO="${SLURM_SUBMIT_DIR:-$REPO}"
if [[ ! -f "$REPO/llava/data/extract.py" ]]; then
    echo "ERROR: $REPO is not the repository; call sbatch from its folder." >&2
    exit 1
fi
cd "$REPO"
source scripts/env.sh
source scripts/stop.sh
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-$(nproc)}}"

run_or_stop python -m llava.data.extract "$@"
