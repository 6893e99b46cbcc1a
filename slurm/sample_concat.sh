#!/usr/bin/env bash
# Sample windows of all domains (task 0) and the retrieval corpus; an array of its shards.
#
#     sbatch --array=0-99 slurm/sample_concat.sh 8k_concat 4096 4096 35000 2500000 2e6
#
#SBATCH --job-name=cepe-sample_concat
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
exec "${PYTHON:-python3}" "${CEPE_DATA_HOME:-$SLURM_SUBMIT_DIR}/sample_mds_concat.py" "$@"
