#!/usr/bin/env bash
# Write the retrieved passages as MDS.
#
#     sbatch slurm/write_mds.sh --hits HITS …
#
#SBATCH --job-name=cepe-write_mds
#SBATCH --cpus-per-task=1
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
export PYTHONPATH="${CEPE_DATA_HOME:-$SLURM_SUBMIT_DIR}${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m retrieval.write_mds "$@"
