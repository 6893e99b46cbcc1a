#!/usr/bin/env bash
# Search passages for every row; an array of shards, then once with --merge.
#
#     sbatch --array=0-19 --gpus=1 slurm/search.sh --queries 8k_concat/test … --num_shards 20
#
#SBATCH --job-name=cepe-search
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
export PYTHONPATH="${CEPE_DATA_HOME:-$SLURM_SUBMIT_DIR}${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m retrieval.search "$@"
