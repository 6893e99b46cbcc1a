"""What `pipeline.py plan` says before a run against what the run writes, step by step and at its peak; and how quick
`plan` and `progress` are on a run of RedPajama's size.

    python benchmarks/plan.py          3 minutes on two cores, 2 GB of disk

The corpus is the real one in ../shared, else the demo's; the teacher has random weights. The lines of `print` are run
one after the other, while the bytes in the folder are added up ten times a second.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("benchmarks/")[0] or "."  # this folder has modules that are named as the library's

import contextlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import PROJECT, Bars, best_seconds, run_benchmark
from benchmarks.generated import find_corpus, new_token_file, prepare, write_list
from cepe_data.corpus import listing
from demo import models

NUM_FILES = 7000
SETTINGS = """
work_dir = "run"
python = {python}
[corpus]
data_dir = {data}
num_bytes = {num_bytes}
[tokenize]
tokenizer = {tokenizer}
[samplers]
test_fraction = 0.1
domains = "arxiv=0.5,book=0.5"
[[ab]]
output = "ab"
total_length = 2048
decoder_length = 512
eval_samples = 20
train_samples = 200
[concat]
output = "concat"
encoder_length = 1536
decoder_length = 512
eval_samples = 80
train_samples = 500
retrieval_samples = 800
shards = 2
[[teacher]]
model_dir = "teacher"
input_dir = "ab/train"
num_encoder_tokens = 1024
num_decoder_tokens = 512
device = "cpu"
[embed]
model_dir = {encoder}
device = "cpu"
[[search]]
topk = 100
shards = 2
device = "cpu"
"""
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def tool(folder: Path, *arguments: str, status: int = 0) -> str:
    """What the tool prints; it must end with this exit status."""
    command = [sys.executable, str(PROJECT / "pipeline.py"), "settings.toml", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


def num_bytes(text: str) -> float:
    """`4.84 TB` as a number."""
    number, _, unit = text.partition(" ")
    return float(number) * UNITS[unit] if unit else 0.0


def bytes_below(folder: Path) -> int:
    """Bytes of all files, each counted once whatever its links."""
    found: dict[int, int] = {}
    for name, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(Path(name) / file)
                found[status.st_ino] = status.st_size
    return sum(found.values())


def peak_while_running(lines: Sequence[str], folder: Path) -> int:
    """The most bytes in a folder while lines of bash run."""
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, bytes_below(folder))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for line in lines:
        subprocess.run(["bash", "-c", line], check=True, capture_output=True, timeout=600)
    done.set()
    watcher.join()
    return max(peak, bytes_below(folder))


def report_bytes(bars: Bars, what: str, planned: float, real: int) -> None:
    ratio = min(planned, real) / max(planned, real)
    bars.report(f"bytes of {what}, planned against real", ratio, 0.9, f"{planned:,.0f} and {real:,}")


def compare_bytes(bars: Bars, folder: Path) -> None:
    """The bytes that the plan gives for each step, at the peak and at the end against the real ones."""
    data, tokenizer = find_corpus(folder)
    run = folder / "run"
    models.make_teacher(run / "teacher", vocab_size=32_000, tokenizer=Path(tokenizer))
    values = {"python": sys.executable, "data": data, "tokenizer": tokenizer, "encoder": models.find_encoder()}
    quoted = {name: json.dumps(str(value)) for name, value in values.items()}
    (folder / "settings.toml").write_text(SETTINGS.format(num_bytes=bytes_below(data), **quoted))
    before, peak = bytes_below(run), 0
    for name in re.findall(r"^# (\w+): ", tool(folder, "print"), re.MULTILINE):
        if name in {"list", "tokenize", "check"}:  # what is there of these tells the rest
            planned = tool(folder, "plan")
            written = planned_bytes(planned)
        start = bytes_below(run)
        peak = max(peak, peak_while_running(tool(folder, "print", name).splitlines(), run))
        if written.get(name):
            report_bytes(bars, name, written[name], bytes_below(run) - start)
    planned_peak, planned_end = re.findall(r"at the (?:peak|end) ([\d.]+ \w+)", planned)[:2]
    report_bytes(bars, "the peak", num_bytes(planned_peak), peak - before)
    report_bytes(bars, "the end", num_bytes(planned_end), bytes_below(run) - before)


def planned_bytes(text: str) -> dict[str, float]:
    """What each step writes, as `plan` prints it."""
    found = (re.match(r"([a-z_]+) \S+ +\d+ +(?:-|\S+ \w+) +(-|\S+ \w+) ", line) for line in text.splitlines())
    return {match[1]: num_bytes(match[2]) for match in found if match}


def time_large_run(bars: Bars, folder: Path) -> None:
    """Seconds of `plan` for the example, and of `progress` for NUM_FILES token files."""
    (folder / "large").mkdir()
    prepare(folder / "large")
    text = (PROJECT / "settings.example.toml").read_text()
    (folder / "settings.toml").write_text(text.replace('"/data/cepe"', '"large"'))
    seconds = best_seconds(lambda: tool(folder, "plan", status=1))
    bars.report("seconds of plan, for RedPajama", seconds, 2, "nothing is there", at_most=True)
    files = [listing.ListedFile(f"c4/{number}.jsonl", "c4-rp", 1) for number in range(NUM_FILES)]
    for file in files:
        with new_token_file(folder / "large", file) as writer:
            writer.append(np.arange(1, 3), np.array([2]), np.zeros(1, np.uint64))
    write_list(folder / "large", "all_jsonl", files)
    seconds = best_seconds(lambda: tool(folder, "progress", status=0))
    bars.report("seconds of progress", seconds, 3, f"{NUM_FILES:,} token files", at_most=True)


def measure(bars: Bars, folder: Path) -> None:
    compare_bytes(bars, folder)
    time_large_run(bars, folder)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure))
