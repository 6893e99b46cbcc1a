#!/usr/bin/env bash
# Sample windows inside long documents.
#
#     sbatch slurm/sample_ab.sh 8k_ab 8192 4096 1000 5000000
#
#SBATCH --job-name=cepe-sample_ab
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
exec "${PYTHON:-python3}" "${CEPE_DATA_HOME:-$SLURM_SUBMIT_DIR}/sample_mds_ab.py" "$@"
