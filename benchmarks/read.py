"""Reading sets for training: PairedRows against LocalDataset on the same folder, and its memory over a million rows.

    python benchmarks/read.py            # about a minute on 2 cores, 2 GB of disk

Rows are read in a random order, from the page cache, by one process on one core; opening the sets is left out of rates.
LocalDataset gives read-only int16 arrays; PairedRows gives tensors of int64. The memory is what a process has
resident after reading, beyond what it had when its libraries were imported.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("benchmarks/")[0] or "."  # this folder has a tokenize.py, and so has the library

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Bars, on_cores, parse_scale, run_benchmark
from cepe_data.storage import mds, outputs
from cepe_data.storage.parts import PartedSet

SHARD_BYTES = 64 << 20


def measure(bars: Bars, folder: Path, scale: int) -> None:
    write_windows(folder / "rows/book", 40_000 // scale, 4096)
    compare_rates(bars, folder / "rows/book")
    write_windows(folder / "many/book", 1_000_000, 64)
    compare_memory(bars, folder / "many", 200_000 // scale)


def write_windows(folder: Path, num_rows: int, num_tokens: int) -> None:
    """A set of windows of random ids, half of `num_tokens` in either column."""
    column = mds.array_column(np.dtype(np.int16), num_tokens)
    columns = {"token_ids": column, "prev_token_ids": column, "domain": "str"}
    of_set = PartedSet(folder, columns, num_rows, mds.rows_per_shard(columns, SHARD_BYTES), {}, outputs.REPLACE_NOTHING)
    ids = np.random.default_rng(0).integers(0, 32_000, (1 << 12, num_tokens), np.int16)
    for part, (start, stop) in enumerate(of_set.part_ranges):
        rows = mds.window_rows(columns, {"domain": folder.name}, stop - start)
        numbers = np.arange(start, stop)
        rows["token_ids"], rows["prev_token_ids"] = ids[numbers % len(ids)], ids[numbers // len(ids) % len(ids)]
        mds.write_shard(of_set.parts[part], columns, len(rows), rows)
    of_set.publish({}, lambda draft: None)
    outputs.remove(of_set.parts.directory)


def read_seconds(rows: Any, numbers: Sequence[int]) -> float:
    """Seconds that reading these rows takes."""
    start = time.perf_counter()
    for number in numbers:
        rows[number]
    return time.perf_counter() - start


def rates(folder: Path) -> dict[str, float]:
    """Rows a second of every reader, the best of five rounds in which they take turns. For a child process."""
    from cepe_data.reading import PairedRows

    readers: dict[str, Callable[[], Any]] = {
        "LocalDataset": lambda: mds.import_streaming().LocalDataset(str(folder)),
        "PairedRows": lambda: PairedRows(folder.parent, num_contexts=16, context_size=256),
    }
    opened = {name: reader() for name, reader in readers.items()}
    numbers = np.random.default_rng(1).permutation(mds.num_rows(folder))[:10_000].tolist()
    for one in opened.values():
        read_seconds(one, numbers[:1000])
    rounds = [{name: read_seconds(one, numbers) for name, one in opened.items()} for _ in range(5)]
    return {name: len(numbers) / min(one[name] for one in rounds) for name in opened}


def compare_rates(bars: Bars, folder: Path) -> None:
    found = on_cores(1, rates, folder)
    details = ", ".join(f"{name} {rate:,.0f} rows/s" for name, rate in found.items())
    bars.report("PairedRows, rows a second", found["PairedRows"] / found["LocalDataset"], 0.9, details)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def memory(folder: Path, num_reads: int) -> int:
    """Bytes that random access adds. For a child process."""
    from cepe_data.reading import PairedRows

    before = resident_bytes()
    rows = PairedRows(folder)
    read_seconds(rows, np.random.default_rng(1).integers(0, len(rows), num_reads).tolist())
    return resident_bytes() - before


def compare_memory(bars: Bars, folder: Path, num_reads: int) -> None:
    num_bytes = on_cores(1, memory, folder, num_reads)
    num_shards = len(json.loads((folder / "book" / mds.INDEX_NAME).read_text())["shards"])
    details = f"{num_reads:,} rows at random of 1,000,000 in {num_shards} shards"
    bars.report("memory of random access, MB", num_bytes / 1e6, 200, details, at_most=True)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, parse_scale(__doc__)))
