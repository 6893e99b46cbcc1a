#!/usr/bin/env bash
# Annotate train rows with a teacher; an array of shards, then once with --merge.
#
#     sbatch --array=0-99 --gpus=1 slurm/annotate.sh --input_dir 8k_ab/train … --num_shards 100
#
#SBATCH --job-name=cepe-annotate
#SBATCH --cpus-per-task=4
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
exec "${PYTHON:-python3}" "${CEPE_DATA_HOME:-$SLURM_SUBMIT_DIR}/calculate_logits.py" "$@"
