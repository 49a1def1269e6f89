#!/usr/bin/env bash
#SBATCH --job-name=study
#SBATCH --array=0-14
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120

# Trains a study, one run a job: five seeds of three arms by default.
#
#   DATA_PATH=clips.json VIDEO_FOLDER=clips sbatch scripts/study_array.sh --output output/study
#   sbatch --array=0-23 scripts/study_array.sh --output output/study --seeds 8 --data_path clips.json ...
#   python -m llava.study --output output/study --status
#
# The job that finishes last writes the answer; the same command in one process does so too. Under SLURM the signal comes
# 2 minutes before the time limit, and the job puts itself back into the queue and goes on from its checkpoint.

set -euo pipefail

# SLURM runs a copy of the script; the repository is then where sbatch was called.
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ -f "$REPO/llava/study/__main__.py" ]] || REPO="${SLURM_SUBMIT_DIR:-$REPO}"
if [[ ! -f "$REPO/llava/study/__main__.py" ]]; then
    echo "ERROR: $REPO is not the repository; call sbatch from its folder." >&2
    exit 1
fi
cd "$REPO"
source scripts/env.sh
source scripts/stop.sh

run_or_stop python -m llava.study "$@"
