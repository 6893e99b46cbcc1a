"""SIGTERM and SIGINT in the middle of every step's work: gone in seconds with its workers, and a rerun goes on.

pytest tests/test_signals.py
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import reference
from tests.conftest import PROJECT, Run, World, make_encoder

AB = ("sample_mds_ab.py", "OUT", 64, 4, 0, 400, "--domains", "book=1", "--train_fraction", 0.9, "--allow_shortage")
ANNOTATE = ("calculate_logits.py", "--input_dir", "OUT/train", "--model_dir", "teacher", "--domain", "book",
            "--num_encoder_tokens", 60, "--num_decoder_tokens", 4, "--topk", 5, "--rows_per_part", 25)  # fmt: skip
STEPS: dict[str, tuple[Any, ...]] = {
    "tokenize": ("tokenize_jsonl.py", "--output_dir", "MADE", "--tokenizer", "tokenizer.model"),
    "sample": (*AB[:1], "MADE", *AB[2:5], 2500, *AB[6:], "--rows_per_part", 20),
    "annotate": ANNOTATE,
    "annotate on two": (*ANNOTATE, "--num_gpus", 2, "--device", "cpu"),
    "embed": ("retrieval.embed_passages", "--corpus", "OUT/retrieval", "--output", "MADE", "--model_dir", "encoder",
              "--part_bytes", 5000),
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the steps read."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("redpajama", "tokenizer.model", "all_jsonl.txt", "all_jsonl.json", "tokenized", "teacher"):
        (folder / name).symlink_to(world.folder / name)
    make_encoder(folder / "encoder")
    run(*AB, cwd=folder)
    passages = ("--domains", "cc=1", "--retrieval_shards", 1, "--retrieval_chunk_size", 16, "--allow_shortage")
    run("sample_mds_concat.py", "CONCAT", 32, 32, 0, 0, 300, *passages, cwd=folder)
    (folder / "OUT/retrieval").symlink_to(folder / "CONCAT/retrieval")
    return folder


def command(script: str, *arguments: object) -> list[str]:
    """The command that starts a script, or a module such as retrieval.search, as a process."""
    what = ["-m", script] if script.startswith("retrieval.") else [str(PROJECT / script)]
    return [sys.executable, *what, *map(str, arguments)]


def lay_out(folder: Path, inputs: Path) -> None:
    for path in inputs.iterdir():
        if path.name == "OUT":
            (folder / "OUT").mkdir()
            for inner in path.iterdir():
                (folder / "OUT" / inner.name).symlink_to(inner)
        elif path.name != "CONCAT":
            (folder / path.name).symlink_to(path)


@pytest.mark.parametrize(("step", "number"), [*((step, signal.SIGTERM) for step in STEPS), ("sample", signal.SIGINT)])
def test_a_signal_ends_a_step_in_seconds_and_a_rerun_goes_on(
    run: Run, inputs: Path, tmp_path: Path, step: str, number: signal.Signals
) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        lay_out(tmp_path / name, inputs)
    whole = STEPS[step.removesuffix(" on two")]  # any number of workers makes the same bytes
    run(*whole, cwd=tmp_path / "whole")
    out = "OUT/train-logits-enc60-dec4-teacher" if step.startswith("annotate") else "MADE"
    environment = {**os.environ, "SLURM_CPUS_PER_TASK": "2", "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        command(*STEPS[step]), cwd=tmp_path / "stopped", env=environment, start_new_session=True, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    is_at_work = "*/.tmp-*" if step != "tokenize" else "*.npy"
    while process.poll() is None and not fnmatch.filter(reference.names_below(tmp_path / "stopped" / out), is_at_work):
        time.sleep(0.002)
    start = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number and time.monotonic() - start < 10, error
    assert (
        f"stopped by {number.name}" in error
        and "goes on from here:\n  python " in error
        and not re.search("Traceback|leaked", error)
    )
    with pytest.raises(ProcessLookupError):  # no process of its group is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    to_paste = error.rpartition("  python ")[2].strip()
    shown = STEPS[step][0] if step != "embed" else f"-m {STEPS[step][0]}"
    assert to_paste.startswith(shown) or f"/{shown} " in to_paste
    for path in (tmp_path / "stopped" / out).rglob("*"):
        if path.is_file() and not any(part.startswith(".tmp-") for part in path.parts) and ".parts" not in str(path):
            relative = path.relative_to(tmp_path / "stopped")
            assert path.read_bytes() == (tmp_path / "whole" / relative).read_bytes(), relative
    run(*whole, cwd=tmp_path / "stopped")
    assert reference.tree_bytes(tmp_path / "stopped" / out) == reference.tree_bytes(tmp_path / "whole" / out)
    shutil.rmtree(tmp_path / "stopped" / out)


IN_DESTRUCTOR = """
import os, signal, time
from cepe_data import cli
class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)
def main():
    Held()
    time.sleep(2)
    return 0
cli.run(main)
"""


def test_a_signal_in_a_destructor_ends_a_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_DESTRUCTOR], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + signal.SIGTERM and "Exception ignored" not in done.stderr, done.stderr


@pytest.mark.parametrize("script", ["tokenize_jsonl.py", "calculate_logits.py", "retrieval.search"])
def test_ctrl_c_during_the_imports_ends_without_a_traceback(tmp_path: Path, script: str) -> None:
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        command(script), env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"},
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
