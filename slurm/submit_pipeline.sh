#!/usr/bin/env bash
# Submit the whole pipeline to slurm: arrays, each of which starts when those that it needs have succeeded.
#
#     bash slurm/submit_pipeline.sh my_settings.sh --dry_run      print the sbatch lines
#     bash slurm/submit_pipeline.sh my_settings.sh                submit them
#     bash slurm/submit_pipeline.sh my_settings.sh --lines        for `sanity_check.py progress`: write and ask nothing
#
# Run it again after anything went wrong: every step skips what is there. Before it submits anything, it asks the steps
# whose inputs are there what they would do: a shortage, other arguments than before, or a damaged input end it here.
# (Windows can only be counted once there are token files; before that, a job between tokenizing and sampling does it.)
set -euo pipefail

mode=${2:-}
if [[ $# -lt 1 || $# -gt 2 || ! $mode =~ ^(|--dry_run|--lines)$ ]]; then
    echo "usage: bash slurm/submit_pipeline.sh SETTINGS [--dry_run|--lines]   (slurm/settings.example.sh is one to copy)" >&2
    exit 2
fi
# shellcheck source=settings.example.sh
source "$1" >&2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CEPE_DATA_HOME=$here PYTHON
if [[ $mode == --lines ]]; then
    # What the lines below want, as bash; after it, a job a line: its number, those of the jobs it waits for, its line.
    folder=$(realpath -m "$WORK_DIR")
    echo "mkdir -p ${folder@Q}/logs && cd ${folder@Q}"
    echo "export CEPE_DATA_HOME=${here@Q} PYTHON=${PYTHON@Q}"
    [[ -e $folder/all_jsonl.txt ]] || echo "${PYTHON@Q} ${here@Q}/get_all_jsonl.py ${DATA_DIR@Q}"
else
    mkdir -p "$WORK_DIR/logs"
    cd "$WORK_DIR"
    [[ -e all_jsonl.txt ]] || "$PYTHON" "$here/get_all_jsonl.py" "$DATA_DIR"
fi

# submit NAME DEPENDENCIES BATCH_FLAGS SCRIPT ARGUMENTS…: sets `job` to the job's id. DEPENDENCIES are ids, joined by `:`.
number=0
submit() {
    local name=$1 after=$2 flags=$3 script=$4 line
    shift 4
    line=(sbatch --parsable --job-name "$name" --output "logs/%x-%A_%a.log" ${SBATCH_FLAGS:-} $flags)
    [[ -z $after || $mode == --lines ]] || line+=(--dependency "afterok:$after" --kill-on-invalid-dep yes)
    line+=("$here/slurm/$script" "$@")
    if [[ $mode == --lines ]]; then
        job=$((number += 1))
        printf '%s\t%s\t%s\n' "$job" "$after" "${line[*]@Q}"
        return
    fi
    echo "${line[*]}" >&2
    if [[ $mode == --dry_run ]]; then job=ID_OF_${name}_$((number += 1)); else job=$("${line[@]}"); fi
}

array() { echo "--array=0-$(($1 - 1))"; }

# The commands, as both the dry run and the jobs have them.
concat_flags=(--retrieval_shards "$RETRIEVAL_SHARDS" ${CONCAT_FLAGS:-} ${SAMPLER_FLAGS:-})

tokenize_flags=(--data_dir "$DATA_DIR" --tokenizer "$TOKENIZER" --num_shards "$TOKENIZE_SHARDS")

# ask: what the steps whose inputs are there would do.
ask() {
    echo "asking the steps what they would do:"
    "$PYTHON" "$here/tokenize_jsonl.py" "${tokenize_flags[@]}" --dry_run
    if "$PYTHON" "$here/sanity_check.py" > /dev/null 2>&1; then
        for set in "${AB_SETS[@]}"; do
            "$PYTHON" "$here/sample_mds_ab.py" $set ${SAMPLER_FLAGS:-} --dry_run
        done
        [[ -z $CONCAT_SET ]] || "$PYTHON" "$here/sample_mds_concat.py" $CONCAT_SET 0 "${concat_flags[@]}" --dry_run
    fi
    echo "submitting:"
}
[[ $mode == --lines ]] || ask

submit tokenize "" "$(array "$TOKENIZE_SHARDS")" tokenize.sh "${tokenize_flags[@]}"
submit check "$job" "" check.sh --deep --num_shards "$TOKENIZE_SHARDS"
if [[ " ${SAMPLER_FLAGS:-} " == *" --drop_duplicates "* ]]; then
    submit mark_duplicates "$job" "" check.sh duplicates
fi
checked=$job
counted=$job
for set in "${AB_SETS[@]}"; do
    submit count "$checked" "" sample_ab.sh $set ${SAMPLER_FLAGS:-} --dry_run
    counted+=":$job"
done
if [[ -n $CONCAT_SET ]]; then
    submit count "$checked" "" sample_concat.sh $CONCAT_SET 0 "${concat_flags[@]}" --dry_run
    counted+=":$job"
fi

declare -A sampled=()
for set in "${AB_SETS[@]}"; do
    submit sample_ab "$counted" "" sample_ab.sh $set ${SAMPLER_FLAGS:-}
    sampled[${set%% *}]=$job
done
if [[ -n $CONCAT_SET ]]; then
    out=${CONCAT_SET%% *}
    submit sample_concat "$counted" "$(array "$RETRIEVAL_SHARDS")" sample_concat.sh $CONCAT_SET "${concat_flags[@]}"
    sampled[$out]=$job
fi

if [[ -n $TEACHER ]]; then
    for input in "${TEACHER_INPUTS[@]}"; do
        read -r folder domain <<< "$input"
        flags=(--input_dir "$folder" --domain "$domain" --model_dir "$TEACHER" --num_shards "$TEACHER_SHARDS")
        submit annotate "${sampled[${folder%%/*}]}" "${GPU_FLAGS:-} $(array "$TEACHER_SHARDS")" annotate.sh \
            "${flags[@]}" ${TEACHER_FLAGS:-}
        submit annotate_merge "$job" "" annotate.sh "${flags[@]}" ${TEACHER_FLAGS:-} --merge
    done
fi

if [[ -n $CONCAT_SET && -n $ENCODER ]]; then
    flags=(--model_dir "$ENCODER")
    submit embed "${sampled[$out]}" "${GPU_FLAGS:-} $(array "$EMBED_SHARDS")" embed.sh \
        --corpus "$out/retrieval" --output embeddings "${flags[@]}" --num_shards "$EMBED_SHARDS" ${EMBED_FLAGS:-}
    flags+=(--queries "$out/$SEARCH_SPLIT" --embeddings embeddings --output "hits/$SEARCH_SPLIT" ${SEARCH_FLAGS:-})
    flags+=(--num_shards "$SEARCH_SHARDS")
    submit search "$job" "${GPU_FLAGS:-} $(array "$SEARCH_SHARDS")" search.sh "${flags[@]}"
    submit search_merge "$job" "" search.sh "${flags[@]}" --merge
    submit write_mds "$job" "" write_mds.sh --hits "hits/$SEARCH_SPLIT" --embeddings embeddings \
        --queries "$out/$SEARCH_SPLIT" --output "retrieved/$SEARCH_SPLIT"
fi
