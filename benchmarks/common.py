"""What the benchmarks share: bars, times, processes pinned to cores, peak memory of a process tree.

Texts and token files are in benchmarks/generated.py. benchmarks/gpu.py runs where orjson, gigatoken and streaming are
missing, so nothing here imports them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cepe_data import workers

PROJECT = Path(__file__).resolve().parent.parent


class Bars:
    """Prints and keeps each measurement, with its bar and whether it is met."""

    def __init__(self) -> None:
        self.num_missed = 0
        self.results: list[dict[str, Any]] = []

    def report(self, what: str, ratio: float, bar: float, details: str, at_most: bool = False) -> None:
        """Report a ratio that must be at least (or at most) `bar`."""
        met = ratio <= bar if at_most else ratio >= bar
        self.num_missed += not met
        self.results.append({"what": what, "ratio": ratio, "bar": bar, "met": met, "details": details})
        print(
            f"{'met   ' if met else 'MISSED'} {what}: {ratio:.2f}, bar {'≤' if at_most else '≥'} {bar:g}   ({details})",
            flush=True,
        )


def parse_scale(description: str | None) -> int:
    """What the amounts of data are divided by: 1, and with `--quick` 10."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a tenth of the data")
    return 10 if parser.parse_args().quick else 1


def run_benchmark(measure: Callable[..., None], *arguments: object) -> int:
    """Call `measure` with bars, a temporary folder and the arguments. Returns the exit status: 1 if a bar is missed."""
    bars = Bars()
    with tempfile.TemporaryDirectory() as folder:
        measure(bars, Path(folder), *arguments)
    print(f"{bars.num_missed} bars missed")
    return int(bars.num_missed > 0)


def best_seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def on_cores(num_cores: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a child process whose tree runs on the first cores only."""
    return workers.run_in_child(_pinned, num_cores, function, arguments)


def best_on_cores(repeats: int, num_cores: int, function: Callable[..., float], *arguments: Any) -> float:
    """The least of some measurements, each in a child process of its own."""
    return min(on_cores(num_cores, function, *arguments) for _ in range(repeats))


def _pinned(num_cores: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.sched_setaffinity(0, range(num_cores))
    return function(*arguments)


def peak_tree_bytes(command: Sequence[object], cwd: Path) -> int:
    """Peak of the memory of a process and all its descendants, shared pages counted once (proportional set size)."""
    process = subprocess.Popen([*map(str, command)], cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, sum(map(_proportional_bytes, _tree(process.pid))))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    done.set()
    watcher.join()
    if status:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with exit status {status}")
    return peak


def _tree(pid: int) -> list[int]:
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                pids += _tree(int(child))
        except OSError:
            continue
    return pids


def _proportional_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0
