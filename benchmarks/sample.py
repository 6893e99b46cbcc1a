"""Sampling against a bare MDSWriter and against the usual script; its scaling, planning, memory, and passages.

    python benchmarks/sample.py            # about 6 minutes on 2 cores, 14 GB of disk

Token files are generated: lognormal document lengths, tokens of the real corpus (../shared/corpus where it is, else the
demo's) over and over. Rates leave start-up (imports, processes) out on both sides. "One worker" is one process on one
core. Both sides write into memory (/dev/shm, where it is there), because a shared disk took from 0.3 to 1.8 seconds for
the same 640 MiB. Both read from the page cache; but the usual script, and the sampler beside it, find their token files
on the disk, as they are at 5 TB. The sampler also hashes and flushes what it writes, the references do not.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("benchmarks/")[0] or "."  # this folder has a tokenize.py, and so has the library

import functools
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import sample_mds_ab
import sample_mds_concat
from benchmarks.common import PROJECT, Bars, best_on_cores, on_cores, parse_scale, peak_tree_bytes, run_benchmark
from benchmarks.generated import open_domain, prepare, write_headers, write_mixed, write_tokens
from cepe_data import cli, workers
from cepe_data.samples import options, passages, reader
from cepe_data.samples.splits import Splits
from cepe_data.samples.windows import Windows
from cepe_data.samples.writer import SHARD_BYTES, Part, WindowSampler
from cepe_data.storage import mds
from cepe_data.tokens import tokenizers

TOTAL, DECODER = 8192, 4096
SPLITS = Splits(42, 0.01, 0.49)
INSIDE = Windows(TOTAL, DECODER, is_inside=True)
CONCATENATED = Windows(TOTAL, DECODER, is_inside=False)
PASSAGES = Windows(256, 256, is_inside=True)


def measure(bars: Bars, folder: Path, scale: int) -> None:
    text = prepare(folder)
    write_tokens(folder, "long", text, 1_000_000_000 // scale, 60_000)
    write_tokens(folder, "usual", text, 325_000_000 // scale, 60_000)
    write_tokens(folder, "short", text, 400_000_000 // scale, 600)
    compare_writing(bars, folder, "long", "ab", INSIDE, 40_000 // scale, 0.6)
    compare_writing(bars, folder, "short", "concat", CONCATENATED, 40_000 // scale, 0.4)
    compare_usual(bars, folder, 8_000 // scale)
    compare_passages(bars, folder, 60_000 // scale)
    compare_mixed(bars, folder, text, 40_000_000 // scale, 4_000 // scale)
    compare_memory(bars, folder, 40_000 // scale)
    compare_planning(bars, folder, 100_000_000 // scale)


def new_output(folder: Path) -> Path:
    """A folder for what is written, in memory where that can be had."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else folder))


def sample_options(windows: Windows, output: Path) -> Any:
    """The options of the sampler that has such windows, with one worker and one retrieval shard."""
    common = [str(DECODER), "0", "0", "--num_workers", "1"]
    if windows is INSIDE:
        return cli.typed(options.InsideOptions, sample_mds_ab.parse_args([str(output), str(TOTAL), *common]))
    arguments = [str(output), str(TOTAL - DECODER), *common, "0", "--retrieval_shards", "1"]
    return cli.typed(options.ConcatOptions, sample_mds_concat.parse_args(arguments))


def write_or_wait(sampler: WindowSampler, part: Part | None) -> None:
    """Write a part; without one, leave the next item to the next worker, so that all of them start."""
    if part is None:
        time.sleep(1)
    else:
        sampler.write_part(part)


def sampler_seconds(
    folder: Path, tokens: reader.Tokens, windows: Windows, num_rows: dict[str, int], num_workers: int
) -> float:
    """Seconds to inventory, sample, write and join train sets of so many rows by domain."""
    output = new_output(folder)
    start = time.perf_counter()
    inventories = reader.inventory(tokens, SPLITS, {"test": windows, "train": windows})
    sampler = WindowSampler(sample_options(windows, output), tokens, inventories)
    seconds = time.perf_counter() - start
    with workers.Workers(num_workers, functools.partial(write_or_wait, sampler)) as pool:
        list(pool.map_in_order([None] * num_workers, lambda _: 1, num_workers))
        start = time.perf_counter()
        planned = sampler.plan({"train": num_rows})
        sampler.write_all(pool, planned, lambda: sampler.check_other_sets([]))
        seconds += time.perf_counter() - start
    written = [one.summary.written for one in planned]
    assert written == [*num_rows.values()] or len(num_rows) > 1, written  # of several domains, rare ones have fewer
    shutil.rmtree(output)
    return seconds


def read_windows(tokens: reader.Tokens, split: str, windows: Windows, num_rows: int, dtype: np.dtype) -> np.ndarray:
    """dtype [num_rows, tokens]: the first windows that are sampled from the only domain."""
    [name] = tokens.files
    inventory = reader.inventory(tokens, SPLITS, {split: windows})[name]
    source = reader.WindowSource(tokens, name, split, SPLITS, windows, inventory)
    rows = np.empty((num_rows, windows.total_length), dtype)
    source.read(source.sample(0, num_rows), [rows])
    return rows


def writer_seconds(folder: Path, name: str, windows: Windows, num_rows: int) -> float:
    """Seconds of an MDSWriter loop that is fed the same windows from memory, in shards of the same size."""
    streaming = mds.import_streaming()
    tokens = open_domain(folder, name)
    rows = read_windows(tokens, "train", windows, num_rows, mds.token_dtype(tokens.vocab_size or 1 << 31))
    columns = {
        "token_ids": mds.array_column(rows.dtype, DECODER),
        "prev_token_ids": mds.array_column(rows.dtype, TOTAL - DECODER),
        "domain": "str",
    }
    output = new_output(folder)
    start = time.perf_counter()
    with streaming.MDSWriter(columns=columns, out=str(output), size_limit=SHARD_BYTES) as writer:
        for row in rows:
            writer.write({"token_ids": row[-DECODER:], "prev_token_ids": row[:-DECODER], "domain": name})
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return seconds


def compare_mixed(bars: Bars, folder: Path, text: np.ndarray, num_tokens: int, num_rows: int) -> None:
    """Seven domains in one token file against the same documents in a file a domain."""
    for script, windows, mean in (("ab", INSIDE, 12_000), ("concat", CONCATENATED, 700)):
        mixed, pure = write_mixed(folder, script, text, num_tokens, mean)
        rows = dict.fromkeys(mixed.files, num_rows // len(mixed.files))
        of_mixed = best_on_cores(3, 1, sampler_seconds, folder, mixed, windows, rows, 1)
        of_pure = best_on_cores(3, 1, sampler_seconds, folder, pure, windows, rows, 1)
        details = f"{of_mixed:.2f} s and {of_pure:.2f} s, {num_rows} windows of 7 domains"
        bars.report(f"{script} from a mixed token file against pure ones", of_pure / of_mixed, 0.8, details)


def compare_writing(
    bars: Bars, folder: Path, name: str, script: str, windows: Windows, num_rows: int, bar: float
) -> None:
    """One worker against the writer alone; for ab also two workers against one."""
    job = (sampler_seconds, folder, open_domain(folder, name), windows, {name: num_rows})
    one = best_on_cores(3, 1, *job, 1)
    writer = best_on_cores(3, 1, writer_seconds, folder, name, windows, num_rows)
    rates = f"{num_rows * TOTAL / one / 1e6:.0f} M tokens/s against {num_rows * TOTAL / writer / 1e6:.0f}"
    bars.report(f"{script}, {num_rows} windows: one worker against MDSWriter from memory", writer / one, bar, rates)
    two = best_on_cores(3, 2, *job, 2)
    bars.report(f"{script}: two workers against one", one / two, 1.6, f"{one:.2f} s and {two:.2f} s")


def usual_seconds(folder: Path, num_rows: int) -> float:
    """Seconds of the usual script: slices of every long document in a Python list, a permutation of all of them, and
    pickled int64 columns."""
    streaming = mds.import_streaming()
    output = new_output(folder)
    start = time.perf_counter()
    array = np.load(folder / "usual_int64.npy")
    lengths = array[1 : 1 + array[0]]
    position, slices = 1 + array[0], []
    for length in lengths:
        for first in range(position, position + length - TOTAL + 1, DECODER):
            slices.append(array[first : first + TOTAL])
        position += length
    columns = {"token_ids": "pkl", "prev_token_ids": "pkl", "domain": "str"}
    with streaming.MDSWriter(columns=columns, out=str(output), size_limit=256 << 20) as writer:
        for index in np.random.default_rng(42).permutation(len(slices))[:num_rows]:
            row = slices[index]
            writer.write({"token_ids": row[-DECODER:], "prev_token_ids": row[:-DECODER], "domain": "usual"})
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return seconds


def write_int64(folder: Path) -> None:
    """The token file that the usual script reads."""
    np.save(folder / "usual_int64.npy", np.load(folder / "tokenized/usual/usual.npy").astype(np.int64))


def seconds_from_disk(folder: Path, function: Callable[..., float], *arguments: Any) -> float:
    """The best of two measurements; before each, the page cache forgets the token files."""
    seconds = []
    for _ in range(2):
        os.sync()
        for path in (*folder.glob("tokenized/usual/*.npy"), folder / "usual_int64.npy"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        seconds.append(on_cores(1, function, folder, *arguments))
    return min(seconds)


def compare_usual(bars: Bars, folder: Path, num_rows: int) -> None:
    on_cores(1, write_int64, folder)
    sampler = seconds_from_disk(folder, sampler_seconds, open_domain(folder, "usual"), INSIDE, {"usual": num_rows}, 1)
    usual = seconds_from_disk(folder, usual_seconds, num_rows)
    what = f"ab, {num_rows} windows from the disk: one worker against the usual script"
    bars.report(what, usual / sampler, 10, f"{sampler:.2f} s and {usual:.1f} s")


def passage_seconds(folder: Path, num_rows: int) -> float:
    """Seconds to write a file of passages."""
    tokens, output = open_domain(folder, "short"), new_output(folder)
    tokenizer = tokenizers.find(None, folder / "tokenized", tokens.fingerprint)
    inventories = reader.inventory(tokens, SPLITS, {"retrieval": PASSAGES})
    shard = passages.PassageShard(sample_options(CONCATENATED, output), 0, tokens, inventories)
    start = time.perf_counter()
    planned = shard.plan({"short": num_rows}, tokenizer)
    shard.write_all(planned, tokenizer, lambda: None)
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return seconds


def one_by_one_seconds(folder: Path, num_rows: int) -> float:
    """Seconds of `tokenizer.decode` and `json.dumps`, one passage at a time, on ids in memory."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenized/tokenizer")
    rows = read_windows(open_domain(folder, "short"), "retrieval", PASSAGES, num_rows, np.dtype(np.int32))
    neighbors = np.roll(rows, 1, axis=0)
    flags = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    output = new_output(folder)
    start = time.perf_counter()
    with (output / "one_by_one.jsonl").open("w") as file:
        for number, (ids, neighbor) in enumerate(zip(rows, neighbors, strict=True)):
            record = {
                "id": f"short_0_{number}",
                "contents": tokenizer.decode(ids, **flags),
                "neighbor": tokenizer.decode(neighbor, **flags),
                "contents_token_ids": ids.tolist(),
                "neighbor_token_ids": neighbor.tolist(),
            }
            file.write(json.dumps(record) + "\n")
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return seconds


def compare_passages(bars: Bars, folder: Path, num_rows: int) -> None:
    worker = best_on_cores(2, 1, passage_seconds, folder, num_rows)
    reference = on_cores(1, one_by_one_seconds, folder, num_rows // 6) * 6
    rates = f"{num_rows / worker:,.0f} passages/s against {num_rows / reference:,.0f}"
    bars.report("passages: one worker against decode and json.dumps one by one", reference / worker, 5, rates)


def compare_memory(bars: Bars, folder: Path, num_rows: int) -> None:
    """Peak of the whole script with one worker, for many rows and for one; and with two workers."""
    peaks: list[int] = []
    for rows, num_workers in ((1, 1), (num_rows, 1), (num_rows, 2)):
        source = ("--file_list", "long.txt", "--domains", "long=1", "--num_workers", num_workers)
        output = f"memory{len(peaks)}"
        peaks.append(peak_tree_bytes((sys.executable, PROJECT / "sample_mds_ab.py", output, TOTAL, DECODER, 0, rows,
                                      *source), folder))  # fmt: skip
        shutil.rmtree(folder / output)
    details = f"{peaks[1] >> 20} MiB, {peaks[0] >> 20} MiB of it start-up; {peaks[2] >> 20} MiB with two workers"
    bars.report("memory of a worker beyond start-up, MB", (peaks[1] - peaks[0]) / 1e6, 350, details, at_most=True)


def planning_seconds(folder: Path, num_rows: int) -> tuple[float, int]:
    """Seconds to inventory and to sample test and train rows; peak memory of the process in bytes."""
    tokens = open_domain(folder, "headers")
    start = time.perf_counter()
    inventory = reader.inventory(tokens, SPLITS, {"test": CONCATENATED, "train": CONCATENATED})["headers"]
    for split, number in (("test", num_rows // 70), ("train", num_rows)):
        plan = reader.WindowSource(tokens, "headers", split, SPLITS, CONCATENATED, inventory).sample(0, number)
        assert len(plan) == number
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def compare_planning(bars: Bars, folder: Path, num_documents: int) -> None:
    write_headers(folder, "headers", num_documents)
    results = [on_cores(1, planning_seconds, folder, num_documents // 40) for _ in range(2)]
    seconds, peak = min(results)
    details = (
        f"{seconds:.1f} s on one core for {num_documents / 1e6:.0f} M documents, inventory and sampling of two sets"
    )
    bars.report("planning, million documents a second", num_documents / seconds / 1e6, 10, details)
    bars.report("planning, peak memory in GB", peak / 1e9, 1.0, f"{peak >> 20} MiB", at_most=True)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, parse_scale(__doc__)))
