"""pipeline.py progress: what it says of a pipeline that was interrupted anywhere, and that its lines complete it.

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

from cepe_data import shards
from cepe_data.corpus import listing
from cepe_data.errors import ArgumentError
from cepe_data.retrieval.plan_embedding import list_corpus
from cepe_data.storage import mds, outputs, parts, provenance
from cepe_data.storage.steps import rows_of_sets
from tests import reference
from tests.conftest import Run, World, make_encoder, make_once

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
FAILING_SBATCH = """#!/usr/bin/env bash
# Records its arguments, answers as sites with several clusters do, and fails at the fifth call.
echo "$*" >> calls
number=$(wc -l < calls)
((number < 5)) && echo "$((100 + number));big"
"""
SETTINGS = """
work_dir = {folder}
python = {python}
[corpus]
data_dir = {data}
[tokenize]
tokenizer = {tokenizer}
shards = 3
[samplers]
test_fraction = 0.2
allow_shortage = true
[[ab]]
output = "ab"
total_length = 128
decoder_length = 64
eval_samples = 8
train_samples = 24
[concat]
output = "concat"
encoder_length = 64
decoder_length = 64
eval_samples = 20
train_samples = 20
retrieval_samples = 120
shards = 2
retrieval_chunk_size = 32
[[teacher]]
model_dir = {teacher}
input_dir = "ab/train"
domain = "book"
shards = 2
gpus = 1
num_encoder_tokens = 64
num_decoder_tokens = 64
topk = 5
rows_per_part = 4
device = "cpu"
[embed]
model_dir = "encoder"
shards = 2
part_bytes = 20000
[[search]]
topk = 5
shards = 2
"""
SECOND_TEACHER = """[[teacher]]
model_dir = "teacher"
input_dir = "ab/train"
num_encoder_tokens = 64
num_decoder_tokens = 64
"""


def write_settings(folder: Path, world: World, *changes: tuple[str, str], work_dir: Path | None = None) -> None:
    """Settings of a run in `folder`, with changes: pairs of an old and a new text."""
    paths = {"folder": work_dir or folder, "python": sys.executable, "data": world.data}
    paths |= {"tokenizer": world.tokenizer, "teacher": world.folder / "teacher"}
    text = SETTINGS.format(**{name: json.dumps(str(path)) for name, path in paths.items()})
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "settings.toml").write_text(text)


def progress(run: Run, folder: Path, *flags: str, status: int = 0) -> str:
    """What progress prints."""
    return run("pipeline.py", "settings.toml", "progress", *flags, cwd=folder, status=status).stdout


def ask(run: Run, folder: Path, *flags: str, status: int = 0) -> dict[str, Any]:
    """What progress prints with --json; `by_job` has the steps by their job."""
    said = json.loads(progress(run, folder, "--json", *flags, status=status))
    assert said["ok"] == (status == 0)
    return {**said, "by_job": {step["job"]: step for step in said["steps"]}}


def lines_to_submit(text: str) -> str:
    """The part of what progress prints that is to be pasted into a shell."""
    return text.split("to submit:\n")[1].rpartition("\n\n")[0]


def states(step: dict[str, Any]) -> list[str]:
    return [task["state"] for task in step["tasks"]]


def all_lines(said: dict[str, Any]) -> list[str]:
    return [line for step in said["steps"] for line in step["lines"]]


def undone(said: dict[str, Any]) -> list[str]:
    return [step["job"] for step in said["steps"] if not step["done"]]


def array_of(line: str) -> str | None:
    return next((word.removeprefix("--array=") for word in shlex.split(line) if word.startswith("--array=")), None)


def run_line(run: Run, folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a plain line in a process that has made the imports, which is faster than in a shell."""
    words = shlex.split(line)
    where = words.index(sys.executable) + 1
    script, *arguments = words[where + 1 :] if words[where] == "-m" else words[where:]
    assert words[:3] == ["cd", str(folder), "&&"]
    return run(Path(script).name if script.endswith(".py") else script, *arguments, cwd=folder)


def add_tokens(folder: Path, world: World) -> None:
    """Add the list of files and the token files that the pipeline would make."""
    for name in ("all_jsonl.txt", "all_jsonl.json"):
        shutil.copy(world.folder / name, folder / name)
    shutil.copytree(world.tokenized, folder / "tokenized")


def change_provenance(output: Path, **made_with: object) -> None:
    """Let the meta file of an output say that these arguments made it, too."""
    path, meta = provenance.meta_path(output, output.is_dir()), provenance.read_meta(output)
    outputs.write_json(path, provenance.signed({**meta, "made_with": {**meta.made_with, **made_with}}))


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a signed file."""
    content = json.loads(path.read_text())
    change(content)
    outputs.write_json(path, provenance.signed(content))


def make_executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="session")
def finished(run: Run, world: World) -> Path:
    """A pipeline that is complete, by the lines that progress gave."""

    def make_pipeline(folder: Path) -> None:
        folder.mkdir()
        add_tokens(folder, world)
        make_encoder(folder / "encoder")
        write_settings(folder, world)
        for line in all_lines(ask(run, folder, "--plain")):
            run_line(run, folder, line)

    return make_once(world.folder.parent / "pipeline", make_pipeline)


@pytest.fixture
def pipeline(finished: Path, world: World, tmp_path: Path) -> Path:
    """A complete pipeline that a test may damage."""
    folder = tmp_path / "pipeline"
    shutil.copytree(finished, folder)
    write_settings(folder, world)
    return folder


def test_nothing_is_there(run: Run, world: World, tmp_path: Path) -> None:
    """All tasks are missing, and the lines are those that `print` gives for the whole run."""
    write_settings(tmp_path, world, work_dir=tmp_path / "it's new")
    said = ask(run, tmp_path)
    assert all(state == "missing" for step in said["steps"] for state in states(step))
    shown = run("pipeline.py", "settings.toml", "print", cwd=tmp_path).stdout.splitlines()
    printed = [shlex.split(line)[3:] for line in shown if line.startswith("cd ") and "--dry_run" not in line]
    plain = [shlex.split(line)[3:] for line in all_lines(ask(run, tmp_path, "--plain"))]
    assert [words for words in printed if "--deep" not in words] == plain
    with_arrays = sum(len(step["tasks"]) for step in said["steps"])
    assert len(plain) == with_arrays > len(all_lines(said)) == len(said["steps"])
    assert [step["waits_for"] for step in said["steps"][:3]] == [[], ["tokenize tokenized"], ["tokenize tokenized"]]
    assert said["by_job"]["write_mds"]["waits_for"] == ["search_merge hits/test"]
    assert not (tmp_path / "it's new").exists()
    text = progress(run, tmp_path)
    assert "tokenize tokenized: missing\n" in text and "# once tokenize tokenized is done:\nsbatch " in text
    command = ["bash", "-euc", f"sbatch() {{ :; }}\n{lines_to_submit(text)}\npwd; ls"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-4:] == [str(tmp_path / "it's new"), "all_jsonl.json", "all_jsonl.txt", "logs"]


def test_after_tokenizing(run: Run, world: World, tmp_path: Path) -> None:
    add_tokens(tmp_path, world)
    write_settings(tmp_path, world)
    said = ask(run, tmp_path)
    tokenize, sample = said["by_job"]["tokenize"], said["by_job"]["sample_concat"]
    num_bytes = sum(file["bytes"] for file in world.listed())
    assert tokenize["done"] and not tokenize["lines"]
    assert [sum(task[name] for task in tokenize["tasks"]) for name in ("done", "total")] == [num_bytes] * 2
    assert sample["waits_for"] == [] and array_of(sample["lines"][0]) == "0-1"
    assert said["by_job"]["annotate"]["waits_for"] == ["sample_ab ab"]


def test_duplicates_are_marked_before_they_are_dropped(run: Run, world: World, tmp_path: Path) -> None:
    """The line is there, whichever table of a sampler asks for it; what is sampled by it is done."""
    add_tokens(tmp_path, world)
    write_settings(tmp_path, world, ("total_length", "drop_duplicates = true\ntotal_length"))
    steps = ask(run, tmp_path, "--plain")["by_job"]
    assert steps["sample_ab"]["waits_for"] == ["mark_duplicates"] and not steps["mark_duplicates"]["waits_for"]
    text = progress(run, tmp_path)
    assert text.index(" duplicates\n") < text.index("# once mark_duplicates is done:\nsbatch ")
    for line in (*steps["mark_duplicates"]["lines"], *steps["sample_ab"]["lines"]):
        run_line(run, tmp_path, line)
    assert "sample_ab" not in undone(ask(run, tmp_path))
    write_settings(tmp_path, world)
    wrong = ask(run, tmp_path)["by_job"]["sample_ab"]["wrong"]
    assert all("drop_duplicates: was true, now absent" in one["what"] for one in wrong) and len(wrong) == 4


def test_a_finished_pipeline(run: Run, pipeline: Path) -> None:
    said = ask(run, pipeline)
    assert not undone(said) and not all_lines(said)
    assert all(task["done"] == task["total"] for step in said["steps"] for task in step["tasks"])
    text = progress(run, pipeline)
    assert "9 of 9 steps done, 0 lines to submit" in text and "to submit:" not in text


def test_what_no_later_step_reads_may_be_deleted(run: Run, pipeline: Path) -> None:
    """Parts after joining, embeddings and hits after writing: what was made from them stays done."""
    expected: list[str] = []
    for names, jobs in (
        ([PARTS, *(f"hits/test/{path.name}" for path in pipeline.glob("hits/test/*.parts"))], []),
        (["concat/retrieval"], ["sample_concat"]),
        (["embeddings"], ["embed"]),
        (["hits"], ["search", "search_merge"]),
    ):
        for name in names:
            shutil.rmtree(pipeline / name)
        expected += jobs
        assert undone(ask(run, pipeline)) == expected


def test_a_token_file_is_missing(run: Run, pipeline: Path, world: World) -> None:
    """Only its shard is in the line, and what was made from it before is done."""
    sizes = {file["path"]: file["bytes"] for file in world.listed()}
    missing = "wikipedia/wiki.jsonl"
    (pipeline / "tokenized" / listing.token_path(missing)).unlink()
    assigned = shards.assign_files([*sizes.items()], 3)
    [shard] = [number for number, paths in enumerate(assigned) if missing in paths]
    said = ask(run, pipeline)
    assert undone(said) == ["tokenize"] and [array_of(line) for line in all_lines(said)] == [str(shard)]
    task = said["by_job"]["tokenize"]["tasks"][shard]
    assert task["state"] == "part done" and task["total"] == sum(sizes[path] for path in assigned[shard])
    assert task["total"] - task["done"] == sizes[missing]


def test_an_interrupted_teacher(run: Run, pipeline: Path) -> None:
    """A part of either shard is missing; rows are counted, and the merge waits."""
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
    assert merge["waits_for"] == [f"annotate {SET}"] and " --merge " in merge["lines"][0]
    shutil.rmtree(parts[2])
    said = ask(run, pipeline)
    assert states(said["by_job"]["annotate"]) == ["missing", "part done"]
    of_set = f"annotate {SET}: 0 of 2 tasks done, 1 of 3 parts, 4 of 12 rows\n"
    assert f"{of_set}  part done 1: 1 of 2 parts, 4 of 8 rows\n" in progress(run, pipeline)


def test_a_teacher_whose_input_has_changed(run: Run, pipeline: Path) -> None:
    """Parts of unchanged rows are done, whatever files these are in; the other part is not, and its task in no line."""
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


def test_a_step_waits_for_nothing_but_its_inputs(run: Run, pipeline: Path) -> None:
    """What another sampler needs is not waited for."""
    for folder in (SET, PARTS, "concat", "tokenized/book"):
        shutil.rmtree(pipeline / folder)
    said = ask(run, pipeline)
    assert {"tokenize", "sample_concat", "annotate"} <= {*undone(said)}
    assert said["by_job"]["sample_concat"]["waits_for"] == ["tokenize tokenized"]
    assert said["by_job"]["annotate"]["waits_for"] == [] and said["by_job"]["annotate"]["lines"]


def test_a_domain_that_is_still_to_be_sampled_is_still_to_be_annotated(run: Run, world: World, pipeline: Path) -> None:
    write_settings(pipeline, world, ('domain = "book"', 'domain = "all"'))
    shutil.rmtree(pipeline / "ab/train/arxiv")
    said = ask(run, pipeline)
    assert undone(said)[:1] == ["sample_ab"] and {"annotate", "annotate_merge"} <= {*undone(said)}
    assert said["by_job"]["annotate"]["waits_for"] == ["sample_ab ab"] and said["by_job"]["annotate"]["lines"]


def test_an_interrupted_sampler(run: Run, pipeline: Path) -> None:
    """A set that is not joined is not done, though it has all its parts; their rows are counted."""
    folder = pipeline / "ab/train/book"
    rows, meta = mds.Rows(folder), provenance.read_meta(folder)
    made_with = {name: value for name, value in meta["made_with"].items() if name != "rows"}
    part, made_with = pipeline / "part", {**made_with, "first_row": 0, "stop_row": len(rows)}
    mds.write_shard(outputs.Output(part, made_with), mds.read_columns(folder), len(rows), rows)
    shutil.rmtree(pipeline / "ab")
    for number, expected in enumerate((len(rows), 12, 12)):  # of a larger run there are more
        shutil.copytree(part, parts.part_path(parts.parts_dir(folder), number))
        [task] = ask(run, pipeline)["by_job"]["sample_ab"]["tasks"]
        assert (task["state"], task["outputs_done"], task["done"], task["total"]) == ("part done", 0, expected, 32)


@pytest.mark.parametrize(
    ("name", "job", "expected", "array"),
    [
        ("tokenized/book/book.npy", "tokenize", "damaged", "0"),
        ("tokenized/book/book.meta.json", "tokenize", "damaged", "0"),
        ("ab/test/book/*.mds", "sample_ab", "damaged", None),
        ("ab/manifest.json", "sample_ab", "damaged", None),
        ("concat/retrieval/1/cc.jsonl", "sample_concat", "damaged", "1"),
        (f"{PARTS}/part-00000/meta.json", "annotate", "done", None),  # the set is joined
        (f"{SET}/*.mds", "annotate_merge", "damaged", None),
        ("embeddings/0/arxiv/part-00000/passages.npy", "embed", "damaged", "0"),
        ("hits/test/cc/keys.npy", "search_merge", "damaged", None),
        ("retrieved/test/cc/index.json", "write_mds", "damaged", None),
    ],
)
def test_damage(run: Run, pipeline: Path, name: str, job: str, expected: str, array: str | None) -> None:
    """A file that lost its end is reported, its task is not done, and its line has --overwrite."""
    path = sorted(pipeline.glob(name))[0]
    content = path.read_bytes()
    path.unlink()  # other links to its bytes keep them
    path.write_bytes(content[:-3])
    said = ask(run, pipeline, status=int(expected == "damaged"))
    step = said["by_job"][job]
    assert expected in states(step)
    if expected == "damaged":
        assert said["findings"] and step["lines"][0].endswith(" --overwrite")
        assert array_of(step["lines"][0]) == array


@pytest.mark.parametrize(
    ("old", "new", "jobs", "what"),
    [
        ("test_fraction = 0.2", "test_fraction = 0.3", ["sample_ab", "sample_concat"], "test_fraction: was 0.2"),
        ("retrieval_samples = 120", "retrieval_samples = 100", ["sample_concat"], "requested: was"),
        (
            "allow_shortage",
            "drop_duplicates = true\nallow_shortage",
            ["sample_ab", "sample_concat"],
            "drop_duplicates: was absent, now true",
        ),
        ("topk = 5\nrows_per_part", "topk = 4\nrows_per_part", ["annotate", "annotate_merge"], "topk: was 5, now 4"),
        ("part_bytes = 20000", "part_bytes = 20000\nnormalize = true", ["embed"], "normalize: was false, now true"),
        ("topk = 5\nshards", "topk = 4\nshards", ["search", "search_merge"], "topk: was 5, now 4"),
    ],
    ids=["split", "passages", "duplicates", "teacher", "encoder", "search"],
)
def test_other_arguments(
    run: Run, world: World, pipeline: Path, old: str, new: str, jobs: list[str], what: str
) -> None:
    """They are named, never done, and in no line: a person must decide what to do with the old outputs."""
    write_settings(pipeline, world, (old, new))
    said = ask(run, pipeline)
    assert undone(said) == jobs
    for job in jobs:
        step = said["by_job"][job]
        assert "other arguments" in states(step) and not step["lines"]
        assert any(what in one["what"] for one in step["wrong"])
    text = progress(run, pipeline)
    assert what in text and "run it with --overwrite" in text


def test_an_argument_that_is_given_no_more(run: Run, world: World, pipeline: Path) -> None:
    """What only some outputs have in their provenance is missed where it is absent, and seen where it is too much."""
    for path in (pipeline / "ab/test/book", pipeline / "concat/retrieval/0/cc.jsonl"):
        change_provenance(path, drop_duplicates=True)
    change_provenance(pipeline / "tokenized/book/book.npy", domain_key="meta.set")
    change_provenance(pipeline / "embeddings/0/arxiv/part-00000", passage_prefix="passage: ")
    wrong = [one["what"] for step in ask(run, pipeline)["steps"] for one in step["wrong"]]
    for name, value in (("domain_key", '"meta.set"'), ("drop_duplicates", "true"), ("passage_prefix", '"passage: "')):
        assert any(f"{name}: was {value}, now absent" in what for what in wrong)


def test_what_is_left_to_retrieve(run: Run, pipeline: Path) -> None:
    """Dry runs of the retrieval steps count what is left of all shards, and write nothing."""
    shutil.rmtree(pipeline / "embeddings/0")
    lines = [line for line in all_lines(ask(run, pipeline, "--plain")) if "embed_passages" in line]
    num_passages = sum(1 for path in (pipeline / "concat/retrieval/0").glob("*.jsonl") for _ in path.open())
    before = reference.tree_bytes(pipeline)
    text = run_line(run, pipeline, f"{lines[0]} --dry_run").stdout
    assert f"about {num_passages} passages" in text and "bytes to write" in text
    assert reference.tree_bytes(pipeline) == before
    for line in lines:
        run_line(run, pipeline, line)
    shutil.rmtree(pipeline / "hits")
    shutil.rmtree(pipeline / "retrieved")
    before = reference.tree_bytes(pipeline)
    lines = [line for line in all_lines(ask(run, pipeline, "--plain")) if "retrieval.search" in line]
    num_rows = sum(mds.num_rows(folder.parent) for folder in (pipeline / "concat/test").glob("*/index.json"))
    text = run_line(run, pipeline, f"{lines[0]} --dry_run").stdout
    assert f"{num_rows} rows" in text and f"{5 * num_rows} hits" in text
    assert reference.tree_bytes(pipeline) == before


def test_clean(run: Run, world: World, pipeline: Path) -> None:
    """Only --delete deletes; what is left is enough, until a setting asks for more."""
    said = run("pipeline.py", "settings.toml", "clean", cwd=pipeline).stdout
    before = set(reference.tree_bytes(pipeline))
    assert "embeddings" in said and "tokenized/book" in said and set(reference.tree_bytes(pipeline)) == before
    run("pipeline.py", "settings.toml", "clean", "--delete", cwd=pipeline)
    deleted = {path.split("/")[0] for path in before - set(reference.tree_bytes(pipeline))}
    assert deleted == {"ab", "tokenized", "concat", "embeddings", "hits"}  # of ab, parts of the teacher
    assert (pipeline / "tokenized/tokenizer").exists() and not (pipeline / "concat/retrieval").exists()
    left = ask(run, pipeline)
    assert not all_lines(left) and not any(step["needed"] for step in left["steps"])
    write_settings(pipeline, world, ("train_samples = 24", "train_samples = 25"))
    assert "tokenize" in [step["job"] for step in ask(run, pipeline)["steps"] if step["lines"]]


def test_a_list_that_has_grown(run: Run, pipeline: Path) -> None:
    """Sets of fewer files are not done, before the new file has tokens either, and their tokens are not deleted."""
    shutil.rmtree(pipeline / "ab/test/book")
    change_json(pipeline / "ab/manifest.json", lambda content: content["sets"]["test"]["book"].update(written=0))
    assert not undone(ask(run, pipeline))  # as if nothing had been available
    listed, new = pipeline / "all_jsonl.txt", "book/new.jsonl"
    listed.write_text("\n".join(sorted([*listed.read_text().split(), new])))
    file = {"path": new, "domain": "book", "bytes": 1}
    change_json(pipeline / "all_jsonl.json", lambda content: content["files"].append(file))
    said = ask(run, pipeline)
    assert undone(said) == ["tokenize", "sample_ab", "sample_concat"]
    wrong = {one["path"] for step in said["steps"] for one in step["wrong"]}
    assert {Path(path).stem for path in wrong} == {"book"} and str(pipeline / "ab/train/book") in wrong
    assert said["by_job"]["sample_ab"]["tasks"][0]["outputs"] == 4  # the empty one is counted
    assert "tokenized" not in run("pipeline.py", "settings.toml", "clean", cwd=pipeline).stdout


def test_a_corpus_that_has_changed_since_duplicates_were_marked(run: Run, world: World, pipeline: Path) -> None:
    """That the marks are not right does not hide it."""
    write_settings(pipeline, world, ("allow_shortage", "drop_duplicates = true\nallow_shortage"))
    for path in pipeline.glob("ab/*/*/"):
        change_provenance(path, drop_duplicates=True, duplicates="", token_files="old")
    [first, *_] = ask(run, pipeline)["by_job"]["sample_ab"]["wrong"]
    assert 'token_files: was "old"' in first["what"]


@pytest.mark.parametrize(
    ("new", "what"),
    [("token_dtype = 'int64'", "token_dtype: was"), ("rows_per_part = 5", "rows_per_part: was")],
    ids=["dtype", "parts"],
)
def test_other_arguments_after_token_files_are_deleted(
    run: Run, world: World, pipeline: Path, new: str, what: str
) -> None:
    for folder in pipeline.glob("tokenized/*/"):
        if folder.name != "tokenizer":
            shutil.rmtree(folder)
    assert "sample_ab" not in undone(ask(run, pipeline))
    write_settings(pipeline, world, ("allow_shortage", f"{new}\nallow_shortage"))
    assert what in ask(run, pipeline)["by_job"]["sample_ab"]["wrong"][0]["what"]


def test_passages_of_other_token_files(run: Run, world: World, pipeline: Path) -> None:
    """Their fingerprint is compared where it is not known how texts are decoded, too."""
    tokenizer = f"tokenizer = {json.dumps(str(world.tokenizer))}\nretrieval_samples"
    write_settings(pipeline, world, ("retrieval_samples", tokenizer))
    assert not undone(ask(run, pipeline))
    change_provenance(pipeline / "concat/retrieval/0/cc.jsonl", token_files="old")
    [wrong] = ask(run, pipeline)["by_job"]["sample_concat"]["wrong"]
    assert 'token_files: was "old"' in wrong["what"]


def test_a_sampler_that_was_killed_before_its_manifest(run: Run, pipeline: Path) -> None:
    change_json(pipeline / "ab/manifest.json", lambda content: content["sets"]["test"]["book"].update(written=1))
    said = ask(run, pipeline)
    assert undone(said) == ["sample_ab"] and len(all_lines(said)) == 1


def test_retrieval_shards_of_an_earlier_run(run: Run, pipeline: Path) -> None:
    """Shards beyond the number of them are seen, and embedding refuses them."""
    shutil.copytree(pipeline / "concat/retrieval/1", pipeline / "concat/retrieval/2")
    change_provenance(pipeline / "concat/retrieval/2/cc.jsonl", retrieval_shards=3, shard_id=2)
    said = ask(run, pipeline)
    [wrong] = said["by_job"]["sample_concat"]["wrong"]
    assert wrong["path"].endswith("retrieval/2") and "is not one of the 2 retrieval shards" in wrong["what"]
    with pytest.raises(ArgumentError, match="files of \\[2, 3\\] retrieval shards"):
        list_corpus(pipeline / "concat/retrieval", 20_000)


def test_a_step_that_does_not_fit(run: Run, world: World, tmp_path: Path) -> None:
    """It stops before it writes anything, with both numbers."""
    (tmp_path / "sitecustomize.py").write_text(
        "import shutil\nusage = shutil.disk_usage('/')\nshutil.disk_usage = lambda path: usage._replace(free=1000)\n"
    )
    environment = {"PYTHONPATH": str(tmp_path)}
    command = ("sample_mds_ab.py", "OUT", 128, 64, 0, 24, "--domains", "book=1", *world.source_flags)
    failed = run(*command, cwd=tmp_path, status=1, environment=environment)
    assert "about 6,624 bytes" in failed.stderr and "1,000 are free" in failed.stderr
    assert not (tmp_path / "OUT").exists()
    run(*command, "--ignore_disk_space", cwd=tmp_path, environment=environment)
    tokenize = ("tokenize_jsonl.py", "--file_list", world.folder / "all_jsonl.txt", "--tokenizer", world.tokenizer)
    failed = run(*tokenize, cwd=tmp_path, status=1, environment=environment)
    assert "1,000 are free" in failed.stderr and not list((tmp_path / "tokenized").glob("*/*.npy"))


def test_a_submission_that_fails(run: Run, world: World, tmp_path: Path) -> None:
    """What is queued is printed; arrays are as long as slurm allows, and wait for ids without the cluster's name."""
    shutil.copytree(world.tokenized / "tokenizer", tmp_path / "tokenized/tokenizer")
    write_settings(tmp_path, world, ("shards = 3", "shards = 12"))
    make_executable(tmp_path / "bin/scontrol", "#!/bin/sh\necho 'MaxArraySize            = 5'\n")
    make_executable(tmp_path / "bin/sbatch", FAILING_SBATCH)
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    failed = run("pipeline.py", "settings.toml", "submit", cwd=tmp_path, status=1, environment=path)
    assert "queued: 101;big 102;big 103;big 104;big\n" in failed.stdout and "sbatch failed" in failed.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [array_of(line) for line in calls] == ["0-4", "0-4", "0-1", None, None]
    assert [" +5 " in line for line in calls[:3]] == [False, True, False] and " +10 " in calls[2]
    assert "--dependency afterok:101:102:103 " in calls[3] and "--dependency afterok:104 " in calls[4]


def test_the_lines_complete_the_pipeline(run: Run, pipeline: Path) -> None:
    """They are pasted into a shell whose sbatch runs the batch files."""
    shutil.rmtree(pipeline / SET)
    shutil.rmtree(pipeline / PARTS / "part-00001")
    (pipeline / "concat/retrieval/1/cc.jsonl").unlink()
    shutil.rmtree(pipeline / "retrieved")
    snippet = lines_to_submit(progress(run, pipeline))
    make_executable(pipeline / "bin/sbatch", FAKE_SBATCH)
    (pipeline / "paste.sh").write_text(snippet)
    environment = {"PATH": f"{pipeline / 'bin'}:{os.environ['PATH']}"}
    assert snippet.count("\nsbatch ") == 4
    run(pipeline / "paste.sh", cwd=pipeline.parent, shell="bash", environment=environment)
    assert not undone(ask(run, pipeline))


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("shards = 3", "shard = 3", 8, "no key shard: did you mean shards?"),
        ("[embed]", "[embde]", 38, "no key embde: did you mean embed?"),
        ("topk = 5\nrows", 'topk = "five"\nrows', 35, "'five' is not a count"),
        ('"ab/train"', '"abc/train"', 29, "nothing in these settings makes abc/train"),
        ("part_bytes = 20000", "part_bytes =", 41, "not TOML"),
        ('output = "concat"', 'output = "ab"', 19, "sample_concat and sample_ab would both write ab"),
        ("[embed]", f"{SECOND_TEACHER}[embed]", 38, "annotate and annotate would both write ab/train-logits-enc64"),
        ("shards = 3", "shards = true", 8, "shards = True: a number from 1 on is expected"),
        ("gpus = 1", "slurm = [1]", 32, "slurm = [1]: a list of texts is expected"),
        ("shards = 2\npart_bytes", "gpus = 2\npart_bytes", 40, "uses one GPU"),
        ("total_length = 128\n", "", 12, "[ab] has no total_length"),
        ("[[ab]]", "[ab]", 12, "begin it with [[ab]]"),
        ("shards = 3", '"shards(" = 3', 8, "no key shards(: did you mean shards?"),
        ("shards = 3", "shards-x = 3", 8, "no key shards-x"),
        ("shards = 3", '"schärds" = 3', 8, "no key schärds"),
        ("shards = 3", "backend.x = 3", 8, "backend = {'x': 3}: a text, a number"),
        ("shards = 3", 'text_key = """\nshards = 0\n[[ab]]"""\nshards = 0', 11, "shards = 0"),
        ("[tokenize]", '["tokenize"]\nshard = 3', 7, "no key shard"),
        ("[embed]", "[embed.sub]\n[embed]", 38, "no key sub"),
        ("[corpus]\ndata_dir", "corpus.num_bytes = nan\ncorpus.data_dir", 4, "num_bytes = nan"),
        ("test_fraction = 0.2", "test_fraction = nan", 10, "'nan' is not a share"),
        ("data_dir", "num_bytes = inf\ndata_dir", 5, "num_bytes = inf"),
        ("train_samples = 24", "train_samples = inf", 17, "'inf' is not a count"),
        ("topk = 5\nshards", "exclude_overlap = 5\noverfetch = inf\nshards", 44, "'inf' is not a number from 1 on"),
        ("topk = 5\nshards", "overfetch = nan\nshards", 43, "'nan' is not a number from 1 on"),
        ("data_dir", 'domain_key = "a\\u0000"\ndata_dir', 5, "a printable text"),
    ],
    ids=[
        *(
            "key",
            "table",
            "value",
            "input",
            "syntax",
            "outputs",
            "teachers",
            "bool",
            "list",
            "gpus",
            "missing",
            "array",
        ),
        *("regex", "prefix", "not ASCII", "dotted", "lines of a text", "quoted table", "table in a table"),
        *("dotted table", "nan", "inf", "infinite count", "overfetch inf", "overfetch nan"),
        "NUL",
    ],
)
def test_wrong_settings(run: Run, world: World, tmp_path: Path, old: str, new: str, line: int, what: str) -> None:
    """They are named with their line, however the table and the key are written."""
    write_settings(tmp_path, world, (old, new))
    wrong = run("pipeline.py", "settings.toml", "plan", cwd=tmp_path, status=2)
    assert what in wrong.stderr and f"line {line}" in wrong.stderr


def test_a_name_that_no_domain_has_is_an_error_before_a_set_is_there(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="'' is not a name of a domain folder"):
        rows_of_sets([], tmp_path, "book,,arxiv")
    assert rows_of_sets([], tmp_path, "book,arxiv") == {"book": 0, "arxiv": 0}
    assert rows_of_sets([], tmp_path, "all") == {}
