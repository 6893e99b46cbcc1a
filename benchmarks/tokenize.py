"""Tokenizing against the usual loop, against the backend alone, and its scaling and memory.

    python benchmarks/tokenize.py            # about 5 minutes on 2 cores, 6 GB of disk

Text is the corpus once, in order (../shared/corpus where it is, else the demo's), since repeated text would favor a
backend's cache of words; it is repeated for scaling and memory only. A corpus of less than MIN_MEGABYTES is filled up
with texts of its own words. Rates are MB of UTF-8 text a second. They leave start-up out on both sides; that of the
project is measured separately. "One worker" is a whole process tree pinned to one core.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("benchmarks/")[0] or "."  # the standard library has a tokenize.py, too

import itertools
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import AnyStr

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from benchmarks import common, generated
from benchmarks.common import PROJECT, Bars, best_on_cores, on_cores, peak_tree_bytes
from cepe_data import workers
from cepe_data.corpus import listing, readers
from cepe_data.corpus.domains import KNOWN_NAMES, RecordDomains, RecordKeys, domain_of
from cepe_data.tokens import backends, encoding, tokenizers

Text = list[bytes]  # json lines
SLIMPAJAMA_KEY = "meta.redpajama_set_name"
SLIMPAJAMA_NAMES = [name for name in KNOWN_NAMES if name.startswith("RedPajama")]
ROW_GROUP_BYTES = 500_000_000
SHORT_DOMAINS = ("c4-rp", "stackexchange", "wiki", "github", "cc")
MIN_MEGABYTES = 24


def measure(bars: Bars, folder: Path, scale: int) -> None:
    megabytes = 200 if scale == 1 else 60  # fewer take less time than start-up
    tokenizer_folder, books, short = prepare(folder)
    for name, lines, bar in (("short documents", short, 8), ("books", books, 30)):
        compare_rates(bars, folder / name, tokenizer_folder, name, lines, bar)
    compare_scaling(bars, folder, tokenizer_folder, [*books, *short], megabytes)
    compare_formats(bars, folder / "formats", tokenizer_folder, [*books, *short], megabytes)
    compare_memory(bars, folder, tokenizer_folder, [*books, *short], megabytes)


def prepare(folder: Path) -> tuple[Path, Text, Text]:
    """The saved tokenizer, the lines of the books, and the lines of the domains of short documents."""
    data, model = generated.find_corpus(folder)
    start = time.perf_counter()
    workers.run_in_child(generated.save_tokenizer, model, folder / "tokenizer")
    print(f"start-up, reading and saving the tokenizer: {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    chosen = on_cores(1, choose_backend, folder / "tokenizer")
    print(f"start-up, comparing {chosen} with the reference: {time.perf_counter() - start:.1f} s")
    for num_workers in (1, 2):
        seconds = on_cores(num_workers, startup_seconds, folder / "tokenizer", num_workers)
        print(f"start-up, {num_workers} workers with gigatoken: {seconds:.2f} s")
    return folder / "tokenizer", fill_up(read_lines(data, ("book",))), fill_up(read_lines(data, SHORT_DOMAINS))


def choose_backend(tokenizer_folder: Path) -> str:
    """The backend that a run would use."""
    return backends.choose_backend(tokenizers.read_saved(tokenizer_folder), None, [])


def fill_up(lines: Text) -> Text:
    """The lines, and texts of their words up to MIN_MEGABYTES: of the same lengths, the words in random order and as
    frequent as in the lines, one in fifty with its letters shuffled, since a corpus always has new words."""
    rng, texts = random.Random(0), texts_of(lines)
    num_bytes = sum(len(text.encode()) for text in texts)
    words = [word for text in texts for word in text.split(" ")]
    lines = list(lines)
    while num_bytes < MIN_MEGABYTES * 1_000_000:
        length = rng.choice(texts).count(" ") + 1
        chosen = rng.choices(words, k=length)
        for place in rng.choices(range(length), k=length // 50):
            chosen[place] = "".join(rng.sample(chosen[place], len(chosen[place])))
        text = " ".join(chosen)
        lines.append(json.dumps({"text": text}).encode() + b"\n")
        num_bytes += len(text.encode())
    return lines


def read_lines(data: Path, domains: tuple[str, ...]) -> Text:
    lines: Text = []
    for path in sorted(data.rglob("*.jsonl*")):
        if domain_of(str(path.relative_to(data)), KNOWN_NAMES) in domains:
            for _, block, _ in readers.line_blocks(path):
                lines += block.splitlines(keepends=True)
    return lines


def texts_of(lines: Text) -> list[str]:
    return generated.parse_texts(b"".join(lines))


def text_megabytes(lines: Text) -> float:
    return sum(len(text.encode()) for text in texts_of(lines)) / 1e6


def chunks(texts: Iterable[AnyStr], size: int) -> Iterator[list[AnyStr]]:
    """Lists of texts of about this size together."""
    chunk: list[AnyStr] = []
    num_bytes = 0
    for text in texts:
        chunk.append(text)
        num_bytes += len(text)
        if num_bytes >= size:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def repeated(lines: Text, megabytes: int) -> Text:
    """The lines over and over, up to so many MB."""
    return next(chunks(itertools.cycle(lines), megabytes * 1_000_000))


def write_files(folder: Path, lines: Text, bytes_per_file: int = 1 << 62) -> list[listing.ListedFile]:
    """The lines as jsonl files of about this size."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    files = []
    for number, chunk in enumerate(chunks(lines, bytes_per_file)):
        path = folder / f"data/{number:05d}.jsonl"
        path.write_bytes(b"".join(chunk))
        files.append(listing.ListedFile(path.name, "any", path.stat().st_size))
    return files


def startup_seconds(tokenizer_folder: Path, num_workers: int) -> float:
    """Seconds until each of a pool of workers has encoded a first text, for which gigatoken makes tables; the best of
    three."""
    identity = generated.saved_identity(tokenizer_folder)
    encoder = encoding.SegmentEncoder("gigatoken", tokenizer_folder, identity, generated.TEXT_KEY)
    file = listing.ListedFile("a.jsonl", "any", 0)
    segment = encoding.Segment(file, Path("a.jsonl"), 0, 0, b'{"text": "a"}\n')

    def start_workers() -> None:
        with workers.Workers(num_workers, encoder) as pool:
            for _ in pool.map_in_order([[segment]] * num_workers, len, num_workers):
                pass

    return common.best_seconds(start_workers)


def project_seconds(
    folder: Path,
    files: list[listing.ListedFile],
    tokenizer_folder: Path,
    num_workers: int,
    keys: RecordKeys = generated.TEXT_KEY,
) -> float:
    """Seconds to make the token files, without those of start-up."""
    # A new folder each time: ext4 creates files slowly where thousands were deleted in the last seconds.
    output = Path(tempfile.mkdtemp(dir=folder))
    (output / "tokenizer").symlink_to(tokenizer_folder)
    job = encoding.Tokenization(folder / "data", output, keys, 0.001, generated.saved_identity(tokenizer_folder))
    startup = startup_seconds(tokenizer_folder, num_workers)
    totals, start = encoding.Totals(), time.perf_counter()
    job.tokenize(files, "gigatoken", num_workers, "", totals)
    seconds = time.perf_counter() - start
    assert totals.files == len(files) and not totals.failures
    assert startup < seconds / 2, f"start-up takes {startup:.2f} of {seconds:.2f} s: too little text to tell a rate"
    return seconds - startup


def usual_seconds(folder: Path, lines: Text, tokenizer_folder: Path) -> float:
    """Seconds of the usual loop: LlamaTokenizerFast in batches of 10, Python lists, `np.save`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    start = time.perf_counter()
    documents: list[list[int]] = []
    for first in range(0, len(lines), 10):
        batch = [json.loads(line)["text"] for line in lines[first : first + 10]]
        documents += [[*ids, tokenizer.eos_token_id] for ids in tokenizer(batch)["input_ids"]]
    lengths = [len(document) for document in documents]
    np.save(folder / "usual.npy", np.array([len(lengths), *lengths, *itertools.chain.from_iterable(documents)]))
    return time.perf_counter() - start


def backend_seconds(lines: Text, tokenizer_folder: Path) -> float:
    """Seconds of gigatoken's own `encode_batch` on the parsed texts in memory, in batches of the same size."""
    encode = backends.make_encoder("gigatoken", tokenizers.read_saved(tokenizer_folder))
    batches = list(chunks(texts_of(lines), encoding.BATCH_BYTES))
    encode(["the first call makes tables: start-up"])
    start = time.perf_counter()
    for batch in batches:
        encode(batch)
    return time.perf_counter() - start


def compare_rates(bars: Bars, folder: Path, tokenizer_folder: Path, name: str, lines: Text, bar: float) -> None:
    """One worker against the usual loop and against the backend alone; the best of three."""
    files, megabytes = write_files(folder, lines), text_megabytes(lines)
    worker = best_on_cores(3, 1, project_seconds, folder, files, tokenizer_folder, 1)
    backend = best_on_cores(3, 1, backend_seconds, lines, tokenizer_folder)
    usual = on_cores(1, usual_seconds, folder, lines, tokenizer_folder)
    for what, seconds, least in (("the usual loop", usual, bar), ("encode_batch alone", backend, 0.7)):
        rates = f"{megabytes / worker:.1f} MB/s against {megabytes / seconds:.1f}, {megabytes:.0f} MB"
        bars.report(f"{name}: one worker against {what}", seconds / worker, least, rates)


def compare_scaling(bars: Bars, folder: Path, tokenizer_folder: Path, lines: Text, megabytes: int) -> None:
    """Two workers against one, and many small files against one large."""
    large = repeated(lines, megabytes)
    files = write_files(folder / "large", large)
    one, two = (
        best_on_cores(2, number, project_seconds, folder / "large", files, tokenizer_folder, number)
        for number in (1, 2)
    )
    bars.report("two workers on two cores against one on one", one / two, 1.6, f"{one:.1f} s and {two:.1f} s")
    short = repeated([line for line in lines if len(line) < 20_000], megabytes // 2)
    small_files = write_files(folder / "small", short, 50_000)
    one_file = write_files(folder / "one", short)
    for num_workers in (1, 2):
        many, single = (
            best_on_cores(2, num_workers, project_seconds, folder / name, files, tokenizer_folder, num_workers)
            for name, files in (("small", small_files), ("one", one_file))
        )
        flushing = on_cores(num_workers, flush_seconds, folder, len(small_files))
        what = f"{len(small_files)} files of 50 KB against one, {num_workers} workers"
        details = f"{many:.1f} s and {single:.1f} s; creating, flushing and renaming as many files: {flushing:.1f} s"
        bars.report(what, single / many, 0.8, details)


def compare_formats(bars: Bars, folder: Path, tokenizer_folder: Path, lines: Text, megabytes: int) -> None:
    """The same documents as parquet and as JSON lines; and in one file of seven domains and in seven files of one."""
    [plain] = write_files(folder, lines)
    table = pa.table({"text": texts_of(lines)})
    pq.write_table(table, folder / "data/all.parquet", compression="zstd", row_group_size=1000)
    mixed = [
        json.dumps({"text": text, "meta": {"redpajama_set_name": SLIMPAJAMA_NAMES[number % 7]}}).encode() + b"\n"
        for number, text in enumerate(texts_of(lines))
    ]
    write_archive(folder / "data/mixed.jsonl.zst", mixed)
    for number in range(7):
        write_archive(folder / f"data/pure{number}.jsonl.zst", mixed[number::7])

    def best_of_three(num_workers: int, domain: str | None, *names: str) -> float:
        files = [listing.ListedFile(name, domain, (folder / "data" / name).stat().st_size) for name in names]
        keys = RecordKeys("text", RecordDomains(SLIMPAJAMA_KEY))
        return best_on_cores(3, num_workers, project_seconds, folder, files, tokenizer_folder, num_workers, keys)

    jsonl, parquet = best_of_three(1, "any", plain.path), best_of_three(1, "any", "all.parquet")
    bars.report("parquet (zstd) against plain jsonl, one worker", jsonl / parquet, 0.9, f"{parquet:.1f}, {jsonl:.1f} s")
    large = pa.table({"text": texts_of(repeated(lines, megabytes))})
    pq.write_table(large, folder / "data/large.parquet", compression="zstd", row_group_size=1000)
    one, two = (best_of_three(num_workers, "any", "large.parquet") for num_workers in (1, 2))
    bars.report("two workers against one on one parquet file", one / two, 1.6, f"{one:.1f} s and {two:.1f} s")
    one_file = best_of_three(1, None, "mixed.jsonl.zst")
    seven_files = best_of_three(1, "any", *(f"pure{number}.jsonl.zst" for number in range(7)))
    what = "a file of seven domains (.jsonl.zst) against seven files of one"
    bars.report(what, seven_files / one_file, 0.85, f"{one_file:.1f} s and {seven_files:.1f} s")


def write_archive(path: Path, lines: Text) -> None:
    path.write_bytes(zstandard.compress(b"".join(lines)))


def script_peak_bytes(folder: Path, tokenizer_folder: Path) -> int:
    """Peak memory of the whole script on `folder`/data, with two workers; `folder` is removed."""
    peak_tree_bytes([sys.executable, PROJECT / "get_all_jsonl.py", "data"], folder)
    shutil.copytree(tokenizer_folder, folder / "tokenized/tokenizer")
    peak = peak_tree_bytes([sys.executable, PROJECT / "tokenize_jsonl.py", "--num_workers", 2], folder)
    shutil.rmtree(folder)
    return peak


def compare_parquet_memory(bars: Bars, folder: Path, tokenizer_folder: Path, lines: Text, megabytes: int) -> None:
    """Peak memory of the whole script on a parquet file with row groups of 500 MB."""
    (folder / "data/book").mkdir(parents=True)
    texts = texts_of(repeated(lines, ROW_GROUP_BYTES // 1_000_000))
    group = pa.table({"text": texts})
    with pq.ParquetWriter(folder / "data/book/book.parquet", group.schema, compression="zstd") as writer:
        for _ in range(megabytes * 1_000_000 // ROW_GROUP_BYTES):
            writer.write_table(group, row_group_size=len(group))
    del texts, group
    peak = script_peak_bytes(folder, tokenizer_folder)
    details = f"{megabytes} MB of text in row groups of {ROW_GROUP_BYTES // 1_000_000} MB, two workers"
    bars.report("peak memory of the tree, parquet, GB", peak / 1e9, 1.5, details, at_most=True)


def flush_seconds(folder: Path, num_outputs: int) -> float:
    """Seconds to create, flush and rename the files of so many small outputs in 8 threads: what the disk needs."""

    def write_output(number: int) -> None:
        for name, size in (("npy", 50_000), ("hash.npy", 300), ("meta.json", 600)):
            path = output / f".tmp-{number}.{name}"
            with path.open("wb") as file:
                file.write(b"x" * size)
                file.flush()
                os.fsync(file.fileno())
            path.rename(output / f"{number}.{name}")

    output = Path(tempfile.mkdtemp(dir=folder))
    start = time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write_output, range(num_outputs)))
    return time.perf_counter() - start


def compare_memory(bars: Bars, folder: Path, tokenizer_folder: Path, lines: Text, megabytes: int) -> None:
    """Peak memory of the whole script on a large file and on one ten times as large."""
    peaks = []
    for factor in (1, 10):
        place = folder / f"memory{factor}"
        (place / "data/book").mkdir(parents=True)
        block = b"".join(repeated(lines, megabytes))
        with (place / "data/book/book.jsonl").open("wb") as file:
            for _ in range(factor):
                file.write(block)
        peaks.append(script_peak_bytes(place, tokenizer_folder))
    details = f"{peaks[1] >> 20} MiB for {10 * megabytes} MB, {peaks[0] >> 20} MiB for {megabytes} MB"
    bars.report("peak memory of the tree, ten times the file", peaks[1] / peaks[0], 1.1, details, at_most=True)
    bars.report("peak memory of the tree, GB", peaks[1] / 1e9, 1.0, details, at_most=True)
    compare_parquet_memory(bars, folder / "parquet", tokenizer_folder, lines, 10 * megabytes)


if __name__ == "__main__":
    sys.exit(common.run_benchmark(measure, common.parse_scale(__doc__)))
