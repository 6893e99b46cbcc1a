"""The checks: `tokens --deep` against reading the same bytes, tokens a second of `overlap`, documents of `duplicates`.

    python benchmarks/checks.py            # about 3 minutes on 2 cores, 12 GB of disk

Token files are generated as in benchmarks/sample.py. Everything runs on one core, in one process, and finds its files
in the page cache; start-up (imports) is left out. `cat` reads into the void, so its rate is that of copying out of the
page cache.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("benchmarks/")[0] or "."  # this folder has a tokenize.py, and so has the library

import contextlib
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import sanity_check
from benchmarks.common import PROJECT, Bars, best_seconds, on_cores, parse_scale, run_benchmark
from benchmarks.generated import prepare, write_headers, write_tokens


def measure(bars: Bars, folder: Path, scale: int) -> None:
    text = prepare(folder)
    for name, mean in (("long", 60_000), ("short", 600)):
        write_tokens(folder, name, text, 400_000_000 // scale, mean)
        compare_tokens(bars, folder, name)
    compare_overlap(bars, folder, scale)
    compare_duplicates(bars, folder, 50_000_000 // scale)


def check_seconds(folder: Path, check: str, arguments: Sequence[object]) -> tuple[float, dict]:
    """Seconds of a check in this process, and what it prints with --json. For a child process."""
    os.chdir(folder)
    sys.argv[1:] = [check, *map(str, arguments), "--json", "--num_workers", "1"]
    printed = io.StringIO()
    start = time.perf_counter()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        sanity_check.main()
    return time.perf_counter() - start, json.loads(printed.getvalue())


def cat_seconds(paths: Sequence[Path]) -> float:
    """Seconds that `cat` takes for files in the page cache."""
    return best_seconds(lambda: subprocess.run(["cat", *paths], stdout=subprocess.DEVNULL, check=True), 4)


def compare_tokens(bars: Bars, folder: Path, name: str) -> None:
    """All ids, boundaries and hashes of a token file, against `cat` of the same files."""
    paths = sorted(folder.glob(f"tokenized/{name}/*.npy"))
    num_bytes = sum(path.stat().st_size for path in paths)
    source = ("--file_list", f"{name}.txt", "--deep", "--texts", 0)
    cat = on_cores(1, cat_seconds, paths)
    measured = [on_cores(1, check_seconds, folder, "tokens", source) for _ in range(3)]
    assert all(found["ok"] for _, found in measured), measured
    ours = min(seconds for seconds, _ in measured)
    details = f"{num_bytes / ours / 1e9:.2f} GB/s against {num_bytes / cat / 1e9:.2f}, {name} documents"
    bars.report("tokens --deep, without texts, against cat", cat / ours, 0.25, details)


def compare_overlap(bars: Bars, folder: Path, scale: int) -> None:
    """Test windows against training windows, and against the retrieval corpus."""
    counts = (900 // scale, 40_000 // scale, 300_000 // scale, 0)
    source = ("--file_list", "short.txt", "--domains", "short=1", "--retrieval_shards", 1)
    command = (sys.executable, PROJECT / "sample_mds_concat.py", "OUT", 4096, 4096, *counts, *source)
    subprocess.run([*map(str, command)], cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for name, side in (("train", "training windows"), ("retrieval", "the retrieval corpus")):
        alone = folder / f"against_{name}"
        alone.mkdir()
        (alone / "test").symlink_to(folder / "OUT/test")
        (alone / name).symlink_to(folder / "OUT" / name)
        measured = [on_cores(1, check_seconds, folder, "overlap", [alone]) for _ in range(3)]
        seconds, found = min(measured, key=lambda one: one[0])
        # The test windows are looked at twice.
        num_windows = found["domains"]["short"]["windows"]
        num_tokens = found["compared_with"][name]["tokens"] + 2 * 8192 * num_windows
        details = f"{num_tokens / 1e6:.0f} M tokens in {seconds:.1f} s, one of {found['sampling']} spans"
        bars.report(f"overlap, against {side}: million tokens a second", num_tokens / seconds / 1e6, 30, details)
    shutil.rmtree(folder / "OUT")


def compare_duplicates(bars: Bars, folder: Path, num_documents: int) -> None:
    """The duplicates in ten files of a domain; nothing but hashes and lengths is read."""
    write_headers(folder, "headers", num_documents)
    measured = []
    for _ in range(2):
        for path in folder.glob("tokenized/headers/*.duplicates.*"):  # else the second run is skipped
            path.unlink()
        measured.append(on_cores(1, check_seconds, folder, "duplicates", ("--file_list", "headers.txt"))[0])
    details = f"{min(measured):.1f} s for {num_documents / 1e6:.0f} M documents"
    bars.report("duplicates, million documents a second", num_documents / min(measured) / 1e6, 3, details)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, parse_scale(__doc__)))
