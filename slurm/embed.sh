#!/usr/bin/env bash
# Embed the retrieval corpus; an array of shards.
#
#     sbatch --array=0-99 --gpus=1 slurm/embed.sh --corpus 8k_concat/retrieval … --num_shards 100
#
#SBATCH --job-name=cepe-embed
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
export PYTHONPATH="${CEPE_DATA_HOME:-$SLURM_SUBMIT_DIR}${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m retrieval.embed_passages "$@"
