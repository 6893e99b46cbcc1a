#!/usr/bin/env bash
# Run a script of this project, or a module, as a slurm job; submit it from the project's folder.
#
#     sbatch --array=0-99 slurm/step.sh tokenize_jsonl.py --num_shards 100
#     sbatch --array=0-99 --gpus=1 --cpus-per-task=16 slurm/step.sh retrieval.embed_passages --num_shards 100 …
#
# `+1000` before the script adds 1000 to the task id, where a site allows only short arrays.
#
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
home=${CEPE_DATA_HOME:-$SLURM_SUBMIT_DIR}
if [[ $1 == +* ]]; then
    export SLURM_ARRAY_TASK_ID=$((SLURM_ARRAY_TASK_ID + ${1#+}))
    shift
fi
script=$1
shift
if [[ $script == *.py ]]; then
    exec "${PYTHON:-python3}" "$home/$script" "$@"
fi
export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m "$script" "$@"
