#!/usr/bin/env bash
# Check the token files: damage or gaps end the chain of jobs behind it.
#
#     sbatch slurm/check.sh --deep --num_shards 100
#
#SBATCH --job-name=cepe-check
#SBATCH --cpus-per-task=1
#SBATCH --mem=8G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
exec "${PYTHON:-python3}" "${CEPE_DATA_HOME:-$SLURM_SUBMIT_DIR}/sanity_check.py" "$@"
