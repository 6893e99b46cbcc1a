#!/usr/bin/env bash
# Tokenize the listed files; an array of shards.
#
#     sbatch --array=0-99 slurm/tokenize.sh --num_shards 100
#
#SBATCH --job-name=cepe-tokenize
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
exec "${PYTHON:-python3}" "${CEPE_DATA_HOME:-$SLURM_SUBMIT_DIR}/tokenize_jsonl.py" "$@"
