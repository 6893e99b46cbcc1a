"""Faults of a cluster, for every step that writes: full disks, read-only folders, inputs that are missing, empty or
changed, two processes at the same work.    pytest tests/test_faults.py

Kills are in test_kills.py, test_signals.py and benchmarks/faults.py. Faults of one step are tested with the step:
sources that change, damaged archives (test_tokenize_jsonl.py), damaged token files (test_samplers.py), models that are
broken or changed (test_calculate_logits.py, test_retrieval.py).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import reference
from tests.conftest import PROJECT, STEPS, Run, World, make_texts, run_at_once, write_jsonl

OUTPUTS = ("tokenized", "AB", "CONCAT", "EMB", "HITS", "RET")
# Files that a step reads.
INPUTS = [
    ("tokenize", "all_jsonl.txt"),
    ("tokenize", "redpajama/book/book.jsonl"),
    ("duplicates", "tokenized/book/book.npy"),
    ("duplicates", "tokenized/book/book.hash.npy"),
    ("sample_ab", "tokenized/book/book.npy"),
    ("sample_concat", "tokenized/tokenizer/tokenizer.json"),
    ("sample_concat", "tokenized/book/book.hash.npy"),
    ("annotate", "AB/train/book/index.json"),
    ("annotate", "AB/train/book/shard.00000.mds"),
    ("annotate", "teacher/model.safetensors"),
    ("annotate", "teacher/config.json"),
    ("embed", "CONCAT/retrieval/0/book.jsonl"),
    ("embed", "encoder/model.safetensors"),
    ("embed", "encoder/tokenizer.json"),
    ("search", "CONCAT/test/book/shard.00000.mds"),
    ("search", "EMB/embeddings.json"),
    ("search", "EMB/0/book/part-00000/embeddings.npy"),
    ("search", "tokenized/tokenizer/tokenizer.json"),
    ("write_mds", "CONCAT/test/book/index.json"),
    ("write_mds", "EMB/0/book/part-00000/passages.npy"),
    ("write_mds", "HITS/book/keys.npy"),
]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that a test can fill or make read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if (done := subprocess.run(mount, check=False, capture_output=True, text=True)).returncode:
        pytest.skip(f"not run: no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def free_bytes(place: Path) -> int:
    return shutil.disk_usage(place).free


def remount(place: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", place], check=True)


def fill(place: Path, num_free: int) -> None:
    """Leave so many bytes free."""
    (place / "filler").unlink(missing_ok=True)
    with (place / "filler").open("wb") as filler:
        filler.write(bytes(free_bytes(place) - num_free))


def check_message(error: str, what: str) -> None:
    """A message names the output that could not be written."""
    named = re.findall(rf"(\S+): {what}", error)
    assert named and all(Path(name).parts[0] in OUTPUTS for name in named) and "Traceback" not in error, error


def check_whole(place: Path, whole: dict[str, bytes]) -> None:
    """A file with a final name is what an undisturbed run makes, or a part that it does not keep."""
    for name, content in reference.tree_bytes(place).items():
        if ".tmp-" not in name and name != "filler" and not (name not in whole and ".parts/part-" in name):
            assert content == whole[name], name


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_a_message_and_a_rerun_goes_on(
    run: Run, stages: dict[str, tuple[Path, Path]], small_disk: Path, step: str
) -> None:
    before, after = stages[step]
    whole = reference.tree_bytes(after)
    shutil.copytree(after, small_disk, dirs_exist_ok=True)
    num_bytes = -free_bytes(small_disk)
    for path in small_disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(before, small_disk, dirs_exist_ok=True)
    num_bytes += free_bytes(small_disk)  # what the step takes
    flags = []
    if step != "duplicates":
        fill(small_disk, 0)
        assert "are to be written, and 0 are free" in run(*STEPS[step], cwd=small_disk, status=1).stderr
        flags = ["--ignore_disk_space"]
    for share in (0.6, 0.0):
        fill(small_disk, round(share * num_bytes))
        done = run(*STEPS[step], *flags, cwd=small_disk, status=1)
        check_message(done.stderr, "No space left on device")
        check_whole(small_disk, whole)
        assert not list(small_disk.rglob(".tmp-*"))
    (small_disk / "filler").unlink()
    run(*STEPS[step], cwd=small_disk)
    assert reference.tree_bytes(small_disk) == whole


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (("get_all_jsonl.py", "redpajama"), "all_jsonl.json"),
        (("sanity_check.py", "--plot", "tokens.png"), "tokens.png"),
        (("tokenize_jsonl.py", "--output_dir", "other", "--tokenizer", "tokenizer.model"), "other/tokenizer"),
    ],
    ids=["list", "plot", "tokenizer"],
)
def test_a_full_disk_names_a_small_output_too(
    run: Run, stages: dict[str, tuple[Path, Path]], small_disk: Path, command: tuple[str, ...], output: str
) -> None:
    shutil.copytree(stages["duplicates"][0], small_disk, dirs_exist_ok=True)
    if command[0] == "get_all_jsonl.py":  # it does not write a list again that has not changed
        (small_disk / "all_jsonl.json").unlink()
    fill(small_disk, 0)
    error = run(*command, cwd=small_disk, status=1).stderr
    assert re.search(rf"error: \S*{output}: No space left on device", error) and "Traceback" not in error, error


@pytest.mark.parametrize("options", ["size=4k", "ro"])
def test_shared_memory_that_is_full_or_read_only_is_said_to_be_that(world: World, tmp_path: Path, options: str) -> None:
    """In a mount namespace, so that nothing else sees it."""
    flags = f"--file_list {world.folder}/all_jsonl.txt --tokenizer {world.tokenizer}"
    script = (
        f"mount -t tmpfs -o {options} tmpfs /dev/shm || exit 77; head -c 4096 /dev/zero > /dev/shm/filler; "
        f"exec {sys.executable} {PROJECT}/tokenize_jsonl.py {flags}"
    )
    command = ["unshare", "--mount", "bash", "-c", script]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("not run: there is no unshare here")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"not run: no tmpfs can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "no worker process can be started" in done.stderr and "`df /dev/shm`" in done.stderr


@pytest.mark.parametrize("step", STEPS)
def test_on_a_read_only_disk_a_run_says_so_and_a_finished_one_is_skipped(
    run: Run, stages: dict[str, tuple[Path, Path]], small_disk: Path, step: str
) -> None:
    before, after = stages[step]
    shutil.copytree(before, small_disk, dirs_exist_ok=True)
    remount(small_disk, "ro")
    done = run(*STEPS[step], cwd=small_disk, status=1)
    check_message(done.stderr, "Read-only file system")
    remount(small_disk, "rw")
    run(*STEPS[step], cwd=small_disk)
    assert reference.tree_bytes(small_disk) == reference.tree_bytes(after)
    remount(small_disk, "ro")
    assert "skipped" in run(*STEPS[step], cwd=small_disk).stdout


@pytest.mark.parametrize(("step", "name"), INPUTS)
def test_an_input_that_is_missing_or_empty_is_named(
    run: Run, stages: dict[str, tuple[Path, Path]], tmp_path: Path, step: str, name: str
) -> None:
    before, after = stages[step]
    whole = reference.tree_bytes(after)
    place = tmp_path / "place"
    shutil.copytree(before, place)
    for damage in ("missing", "empty"):
        (place / name).unlink()
        if damage == "empty":
            (place / name).touch()
        done = run(*STEPS[step], cwd=place, status=None)
        assert done.returncode in {1, 2} and "Traceback" not in done.stderr, f"{done.returncode} {done.stderr}"
        source = name.removeprefix("tokenized/").replace(".npy", ".jsonl")  # a message may name it for its token file
        assert any(text in done.stderr for text in (name, str(Path(name).parent), source)), f"{damage}: {done.stderr}"
        shutil.copy(before / name, place / name)
        check_whole(place, whole)
    run(*STEPS[step], cwd=place)
    assert reference.tree_bytes(place) == whole


def test_inputs_that_change_between_runs_are_noticed_by_every_step(
    run: Run, stages: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """A source changes; then each step in turn stops until it is run with --overwrite."""
    _, everything = stages["write_mds"]
    place = tmp_path / "place"
    shutil.copytree(everything, place)
    write_jsonl(place / "redpajama/book/book.jsonl", make_texts(77, 40, 900))
    run("get_all_jsonl.py", "redpajama", cwd=place)
    errors = {}
    for step, command in STEPS.items():
        before = reference.tree_bytes(place)
        done = run(*command, cwd=place, status=None)
        assert done.returncode in {1, 2} and "Traceback" not in done.stderr, f"{step}: {done.returncode} {done.stderr}"
        assert reference.tree_bytes(place) == before, step
        errors[step] = done.stderr
        run(*command, "--overwrite", cwd=place)
    for step, message in {
        "tokenize": "tokenized/book/book.npy was made with other arguments or inputs: source_bytes: was",
        "duplicates": "tokenized/book/book.duplicates.npy was made with other arguments or inputs: token_files: was",
        "sample_ab": "AB/test/book was made with other",
        "sample_concat": "CONCAT/test/book was made with other",
        "sample_passages": "CONCAT/retrieval/1/book.jsonl was made with other",
        "annotate": "AB/train-logits-enc40-dec24-teacher/book was made with other arguments or inputs: input: was",
        "embed": "EMB/0/book/part-00000 was made with other arguments or inputs: source: was",
        "search": "HITS/book was made with other arguments or inputs: embeddings: was",
        "write_mds": "RET/test/book was made with other",
    }.items():
        assert message in errors[step], f"{step}: {errors[step]}"
    for command in STEPS.values():
        assert "skipped" in run(*command, cwd=place).stdout


@pytest.mark.parametrize("step", STEPS)
def test_two_processes_at_the_same_work_make_what_one_makes(
    stages: dict[str, tuple[Path, Path]], tmp_path: Path, step: str
) -> None:
    before, after = stages[step]
    whole = reference.tree_bytes(after)
    for number, delay in enumerate((0.0, 0.0, 0.1)):
        place = tmp_path / f"{number}"
        shutil.copytree(before, place)
        for done in run_at_once([STEPS[step], STEPS[step]], cwd=place, delay=delay):
            assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert reference.tree_bytes(place) == whole
        assert not list(place.rglob(".tmp-*"))
