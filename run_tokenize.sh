#!/usr/bin/env bash
# Tokenize the listed jsonl files: by hand, or as a slurm array that partitions the files by size.
#
#     bash run_tokenize.sh [DATA_DIR] [flags of tokenize_jsonl.py]
#     sbatch --array=0-99 run_tokenize.sh DATA_DIR --num_shards 100
#
#SBATCH --job-name=tokenize
#SBATCH --cpus-per-task=1
#SBATCH --mem=8G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# slurm runs a copy of this file from its spool folder: there, the scripts are where the job was submitted.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ! -e $here/tokenize_jsonl.py ]]; then
    here=${CEPE_DATA_HOME:-${SLURM_SUBMIT_DIR:-.}}
fi
if [[ ! -e $here/tokenize_jsonl.py ]]; then
    echo "run_tokenize.sh: error: no tokenize_jsonl.py in $here: submit from its folder, or set CEPE_DATA_HOME to it" >&2
    exit 2
fi

if [[ $# -gt 0 && $1 != -* ]]; then
    set -- --data_dir "$@"
fi
exec "${PYTHON:-python3}" "$here/tokenize_jsonl.py" "$@"
