"""sanity_check.py progress: what it says of a pipeline that stands still anywhere, and that its lines finish it.

pytest tests/test_progress.py
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cepe_data import shards
from cepe_data.corpus import listing
from cepe_data.storage import mds, outputs, parts, provenance
from tests.conftest import PROJECT, Run, World, make_encoder

SUBMIT = PROJECT / "slurm/submit_pipeline.sh"
SCRIPTS = {
    "sample_ab.sh": "sample_mds_ab.py",
    "sample_concat.sh": "sample_mds_concat.py",
    "annotate.sh": "calculate_logits.py",
    "embed.sh": "retrieval.embed_passages",
    "search.sh": "retrieval.search",
    "write_mds.sh": "retrieval.write_mds",
}
SET = "ab/train-logits-enc64-dec64-teacher/book"
PARTS = f"{SET}.parts"
FAKE_SBATCH = """#!/usr/bin/env bash
# Runs a batch file for every id of --array, one after the other.
set -euo pipefail
ids=""
while [[ $1 != *.sh ]]; do
    [[ $1 != --array=* ]] || ids=${1#--array=}
    shift
done
if [[ -z $ids ]]; then bash "$@" >&2; exit; fi
for range in ${ids//,/ }; do
    for id in $(seq "${range%-*}" "${range#*-}"); do SLURM_ARRAY_TASK_ID=$id bash "$@" >&2; done
done
"""


def write_settings(folder: Path, world: World, **changes: str) -> None:
    settings = {
        "DATA_DIR": str(world.data),
        "WORK_DIR": str(folder),
        "PYTHON": sys.executable,
        "SBATCH_FLAGS": "",
        "GPU_FLAGS": "--gpus=1",
        "TOKENIZER": str(world.tokenizer),
        "TOKENIZE_SHARDS": "3",
        "SAMPLER_FLAGS": "--test_fraction 0.2 --allow_shortage",
        "CONCAT_SET": "concat 64 64 20 20 120",
        "RETRIEVAL_SHARDS": "2",
        "CONCAT_FLAGS": "--retrieval_chunk_size 32",
        "TEACHER": str(world.folder / "teacher"),
        "TEACHER_SHARDS": "2",
        "TEACHER_FLAGS": "--num_encoder_tokens 64 --num_decoder_tokens 64 --topk 5 --rows_per_part 4 --device cpu",
        "ENCODER": str(folder / "encoder"),
        "EMBED_SHARDS": "2",
        "EMBED_FLAGS": "--part_bytes 20000",
        "SEARCH_SPLIT": "test",
        "SEARCH_SHARDS": "2",
        "SEARCH_FLAGS": "--topk 5",
        **changes,
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    lines += ['AB_SETS=("ab 128 64 8 24")', 'TEACHER_INPUTS=("ab/train book")']
    (folder / "settings.sh").write_text("\n".join(lines) + "\n")


def ask(run: Run, folder: Path, status: int = 0) -> dict[str, Any]:
    """What progress says with --json; `by_job` has the steps by their job."""
    said = json.loads(run("sanity_check.py", "progress", "settings.sh", "--json", cwd=folder, status=status).stdout)
    assert said["ok"] == (status == 0)
    return {**said, "by_job": {step["job"]: step for step in said["steps"]}}


def states(step: dict[str, Any]) -> list[str]:
    return [task["state"] for task in step["tasks"]]


def all_lines(said: dict[str, Any]) -> list[str]:
    return [line for step in said["steps"] for line in step["lines"]]


def undone(said: dict[str, Any]) -> list[str]:
    return [step["job"] for step in said["steps"] if not step["done"]]


def array_of(line: str) -> str | None:
    return next((word.removeprefix("--array=") for word in shlex.split(line) if word.startswith("--array=")), None)


def run_line(run: Run, folder: Path, line: str) -> None:
    """What slurm would run for a line, with the ids of the tasks as arguments: that is quicker."""
    words = shlex.split(line)
    place = next(number for number, word in enumerate(words) if word.endswith(".sh"))
    script, arguments, array = SCRIPTS[Path(words[place]).name], words[place + 1 :], array_of(line)
    if array is None:
        run(script, *arguments, cwd=folder)
        return
    for ids in array.split(","):
        first, _, last = ids.partition("-")
        for task in range(int(first), int(last or first) + 1):
            if script == "sample_mds_concat.py":
                run(script, *arguments[:6], task, *arguments[6:], cwd=folder)
            else:
                run(script, *arguments, "--shard_id", task, cwd=folder)


def add_tokens(folder: Path, world: World) -> None:
    """The list of files, and the token files, as the pipeline would make them."""
    for name in ("all_jsonl.txt", "all_jsonl.json"):
        shutil.copy(world.folder / name, folder / name)
    shutil.copytree(world.tokenized, folder / "tokenized")


@pytest.fixture(scope="session")
def finished(run: Run, world: World) -> Path:
    """A pipeline that ran to its end, by the lines that progress gave; made once for all workers of a run."""
    folder = world.folder.parent / "pipeline"
    with FileLock(folder.with_suffix(".lock")):
        if (folder / "complete").exists():
            return folder
        folder.mkdir()
        add_tokens(folder, world)
        make_encoder(folder / "encoder")
        write_settings(folder, world)
        for line in all_lines(ask(run, folder)):
            run_line(run, folder, line)
        (folder / "complete").touch()
    return folder


@pytest.fixture
def pipeline(finished: Path, world: World, tmp_path: Path) -> Path:
    """A finished pipeline that a test may harm."""
    folder = tmp_path / "pipeline"
    shutil.copytree(finished, folder)
    write_settings(folder, world)
    return folder


def test_nothing_is_there(run: Run, world: World, tmp_path: Path) -> None:
    """All is missing, and the lines are those of the script that submits them."""
    write_settings(tmp_path, world, WORK_DIR=str(tmp_path / "it's new"))
    said = ask(run, tmp_path)
    assert all(state == "missing" for step in said["steps"] for state in states(step))
    shown = subprocess.run(
        ["bash", SUBMIT, "settings.sh", "--lines"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    jobs = [shlex.split(line.split("\t")[2]) for line in shown.stdout.splitlines() if "\t" in line]
    with_output = [words for words in jobs if words[words.index("--job-name") + 1] not in {"check", "count"}]
    assert [shlex.split(line) for line in all_lines(said)] == with_output
    assert [step["waits_for"] for step in said["steps"][:3]] == [[], ["tokenize tokenized"], ["tokenize tokenized"]]
    assert said["by_job"]["write_mds"]["waits_for"] == ["search_merge hits/test"]
    assert not (tmp_path / "it's new").exists()
    text = run("sanity_check.py", "progress", "settings.sh", cwd=tmp_path).stdout
    assert "tokenize tokenized: missing\n" in text and "# once tokenize tokenized is done:\nsbatch " in text
    snippet = text.split("to submit:\n")[1].rpartition("\n\n")[0]
    done = subprocess.run(
        ["bash", "-euc", f"sbatch() {{ :; }}\n{snippet}\npwd; ls"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-4:] == [str(tmp_path / "it's new"), "all_jsonl.json", "all_jsonl.txt", "logs"]


def test_after_tokenizing(run: Run, world: World, tmp_path: Path) -> None:
    add_tokens(tmp_path, world)
    write_settings(tmp_path, world)
    said = ask(run, tmp_path)
    tokenize, sample = said["by_job"]["tokenize"], said["by_job"]["sample_concat"]
    num_bytes = sum(file["bytes"] for file in world.listed())
    assert tokenize["done"] and not tokenize["lines"]
    assert (
        sum(task["done"] for task in tokenize["tasks"]) == sum(task["total"] for task in tokenize["tasks"]) == num_bytes
    )
    assert sample["waits_for"] == [] and array_of(sample["lines"][0]) == "0-1"
    assert said["by_job"]["annotate"]["waits_for"] == ["sample_ab ab"]


def test_a_finished_pipeline(run: Run, pipeline: Path) -> None:
    said = ask(run, pipeline)
    assert not undone(said) and not all_lines(said)
    assert all(task["done"] == task["total"] for step in said["steps"] for task in step["tasks"])
    text = run("sanity_check.py", "progress", "settings.sh", cwd=pipeline).stdout
    assert "9 of 9 steps done, 0 lines to submit" in text and "to submit:" not in text


def test_what_no_later_step_reads_may_go(run: Run, pipeline: Path) -> None:
    """Parts after joining, embeddings and hits after writing: what was made from them stays done."""
    shutil.rmtree(pipeline / PARTS)
    for pool in (pipeline / "hits/test").glob("*.parts"):
        shutil.rmtree(pool)
    assert not undone(ask(run, pipeline))
    shutil.rmtree(pipeline / "concat/retrieval")
    assert undone(ask(run, pipeline)) == ["sample_concat"]
    shutil.rmtree(pipeline / "embeddings")
    assert undone(ask(run, pipeline)) == ["sample_concat", "embed"]
    shutil.rmtree(pipeline / "hits")
    assert undone(ask(run, pipeline)) == ["sample_concat", "embed", "search", "search_merge"]


def test_a_token_file_is_gone(run: Run, pipeline: Path, world: World) -> None:
    """Only its shard is in the line, and what was made from it before is done."""
    files = [(file["path"], file["bytes"]) for file in world.listed()]
    gone = "wikipedia/wiki.jsonl"
    (pipeline / "tokenized" / listing.token_path(gone)).unlink()
    [shard] = [number for number, paths in enumerate(shards.assign_files(files, 3)) if gone in paths]
    said = ask(run, pipeline)
    tokenize = said["by_job"]["tokenize"]
    assert undone(said) == ["tokenize"] and [array_of(line) for line in all_lines(said)] == [str(shard)]
    sizes = dict(files)
    mine = sum(sizes[path] for path in shards.assign_files(files, 3)[shard])
    assert tokenize["tasks"][shard]["total"] - tokenize["tasks"][shard]["done"] == sizes[gone] < mine
    assert tokenize["tasks"][shard]["state"] == "part done"


def test_an_interrupted_teacher(run: Run, pipeline: Path) -> None:
    """Shard 0 has made nothing, then one of its parts; rows are counted, and the merge waits."""
    shutil.rmtree(pipeline / SET)
    parts = sorted((pipeline / PARTS).iterdir())
    assert len(parts) == 3
    shutil.rmtree(parts[0])
    said = ask(run, pipeline)
    annotate, merge = said["by_job"]["annotate"], said["by_job"]["annotate_merge"]
    assert undone(said) == ["annotate", "annotate_merge"]
    assert [(task["state"], task["done"], task["total"]) for task in annotate["tasks"]] == [
        ("missing", 0, 4), ("done", 8, 8)]  # fmt: skip
    assert [array_of(line) for line in annotate["lines"]] == ["0"]
    assert merge["waits_for"] == [f"annotate {SET}"] and merge["lines"][0].endswith(" --merge")
    shutil.rmtree(parts[2])
    said = ask(run, pipeline)
    assert states(said["by_job"]["annotate"]) == ["missing", "part done"]
    text = run("sanity_check.py", "progress", "settings.sh", cwd=pipeline).stdout
    assert (
        f"annotate {SET}: 0 of 2 tasks done, 1 of 3 parts, 4 of 12 rows\n  part done 1: 1 of 2 parts, 4 of 8 rows\n"
        in text
    )


def test_a_teacher_whose_input_has_other_rows_now(run: Run, pipeline: Path) -> None:
    """Parts of rows that are the same are done, whatever files these are in; another part is not, and its task in no
    line."""
    shutil.rmtree(pipeline / SET)
    folder = pipeline / "ab/train/book"
    columns, rows = mds.read_columns(folder), list(mds.Rows(folder))
    rows[-1] = rows[0]
    shutil.rmtree(folder)
    mds.write_shard(outputs.Output(folder, {}), columns, len(rows), rows)
    annotate = ask(run, pipeline)["by_job"]["annotate"]
    assert states(annotate) == ["done", "other arguments"] and not annotate["lines"]
    [wrong] = annotate["wrong"]
    assert wrong["path"].endswith(f"{PARTS}/part-00002") and "input: was" in wrong["what"]


def test_an_interrupted_sampler(run: Run, pipeline: Path) -> None:
    """A set that was not joined is not done, though all its parts are there; their rows are counted."""
    folder = pipeline / "ab/train/book"
    rows, meta = mds.Rows(folder), provenance.read_meta(folder)
    assert meta is not None
    made_with = {name: value for name, value in meta["made_with"].items() if name != "rows"}
    part, record = pipeline / "part", {**made_with, "first_row": 0, "stop_row": len(rows)}
    mds.write_shard(outputs.Output(part, record), mds.read_columns(folder), len(rows), rows)
    shutil.rmtree(pipeline / "ab")
    shutil.copytree(part, parts.part_path(parts.parts_dir(folder), 0))
    [task] = ask(run, pipeline)["by_job"]["sample_ab"]["tasks"]
    assert (task["state"], task["units_done"], task["done"], task["total"]) == ("part done", 0, len(rows), 32)


Harm = Callable[[Path], object]


def cut(name: str) -> Harm:
    """The file with this name, or the first such one, loses its end; not what shares its bytes by a link."""

    def harm(folder: Path) -> None:
        path = sorted(folder.glob(name))[0]
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-3])

    return harm


@pytest.mark.parametrize(
    ("harm", "job", "expected", "array"),
    [
        (cut("tokenized/book/book.npy"), "tokenize", "damaged", "0"),
        (cut("tokenized/book/book.meta.json"), "tokenize", "damaged", "0"),
        (cut("ab/test/book/*.mds"), "sample_ab", "damaged", None),
        (cut("ab/manifest.json"), "sample_ab", "damaged", None),
        (cut("concat/retrieval/1/cc.jsonl"), "sample_concat", "damaged", "1"),
        (cut(f"{PARTS}/part-00000/meta.json"), "annotate", "done", None),  # the set is joined
        (cut(f"{SET}/*.mds"), "annotate_merge", "damaged", None),
        (cut("embeddings/0/arxiv/part-00000/passages.npy"), "embed", "damaged", "0"),
        (cut("hits/test/cc/keys.npy"), "search_merge", "damaged", None),
        (cut("retrieved/test/cc/index.json"), "write_mds", "damaged", None),
    ],
)
def test_damage(run: Run, pipeline: Path, harm: Harm, job: str, expected: str, array: str | None) -> None:
    """Damage is named, never done, and its line has --overwrite."""
    harm(pipeline)
    said = ask(run, pipeline, status=int(expected == "damaged"))
    step = said["by_job"][job]
    assert expected in states(step)
    if expected == "damaged":
        assert said["findings"] and step["lines"][0].endswith(" --overwrite")
        assert array_of(step["lines"][0]) == array


@pytest.mark.parametrize(
    ("setting", "value", "jobs", "what"),
    [
        ("SAMPLER_FLAGS", "--test_fraction 0.3 --allow_shortage", ["sample_ab", "sample_concat"],
         "test_fraction: was 0.2"),
        ("CONCAT_SET", "concat 64 64 20 20 100", ["sample_concat"], "requested: was"),
        ("TEACHER_FLAGS", "--num_encoder_tokens 64 --num_decoder_tokens 64 --topk 4 --rows_per_part 4",
         ["annotate", "annotate_merge"], "topk: was 5, now 4"),
        ("EMBED_FLAGS", "--part_bytes 20000 --normalize", ["embed"], "normalize: was false, now true"),
        ("SEARCH_FLAGS", "--topk 4", ["search", "search_merge"], "topk: was 5, now 4"),
    ],
)  # fmt: skip
def test_other_arguments(
    run: Run, world: World, pipeline: Path, setting: str, value: str, jobs: list[str], what: str
) -> None:
    """They are named, never done, and in no line: what is to become of what is there is for a person to say."""
    write_settings(pipeline, world, **{setting: value})
    said = ask(run, pipeline)
    assert undone(said) == jobs
    for job in jobs:
        step = said["by_job"][job]
        assert "other arguments" in states(step) and not step["lines"]
        assert any(what in one["what"] for one in step["wrong"])
    text = run("sanity_check.py", "progress", "settings.sh", cwd=pipeline).stdout
    assert what in text and "submit with --overwrite" in text


def test_the_lines_finish_the_pipeline(run: Run, pipeline: Path) -> None:
    """What is printed is pasted into a shell whose sbatch runs the batch files."""
    shutil.rmtree(pipeline / SET)
    shutil.rmtree(pipeline / PARTS / "part-00001")
    (pipeline / "concat/retrieval/1/cc.jsonl").unlink()
    shutil.rmtree(pipeline / "retrieved")
    text = run("sanity_check.py", "progress", "settings.sh", cwd=pipeline).stdout
    snippet = text.split("to submit:\n")[1].rpartition("\n\n")[0]
    (pipeline / "bin").mkdir()
    (pipeline / "bin/sbatch").write_text(FAKE_SBATCH)
    (pipeline / "bin/sbatch").chmod(0o755)
    (pipeline / "paste.sh").write_text(snippet)
    environment = {"PATH": f"{pipeline / 'bin'}:{os.environ['PATH']}"}
    assert snippet.count("\nsbatch ") == 4
    run(pipeline / "paste.sh", cwd=pipeline.parent, shell="bash", environment=environment)
    assert not undone(ask(run, pipeline))


def test_wrong_settings(run: Run, world: World, tmp_path: Path) -> None:
    missing = run("sanity_check.py", "progress", "other.sh", cwd=tmp_path, status=2)
    assert "other.sh" in missing.stderr and "settings.example.sh" in missing.stderr
    write_settings(tmp_path, world, TEACHER_FLAGS="--no_such_flag")
    wrong = run("sanity_check.py", "progress", "settings.sh", cwd=tmp_path, status=2)
    assert "annotate.sh does not take what SETTINGS has for it" in wrong.stderr
