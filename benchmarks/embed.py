"""Embedding a corpus against the bare forward pass on the same batches.

    python benchmarks/embed.py             # about 3 minutes on 2 cores

Rates leave start-up (imports, processes, loading the encoder) out on both sides; both have all cores. The step reads
json lines, tokenizes, sorts by length, pools, hashes and flushes; the reference has its batches in memory and drops
what it computes.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("benchmarks/")[0] or "."  # this folder has modules that are named as the library's

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Bars, run_benchmark
from benchmarks.generated import corpus_texts, find_corpus
from cepe_data import cli, workers
from cepe_data.retrieval import plan_embedding
from cepe_data.retrieval.encoder import GPU_DTYPE, Encoder, EncoderModel, word_piece_json
from cepe_data.teacher import devices
from demo.models import find_encoder
from retrieval import embed_passages

WORDS = 170  # about 256 tokens of LLaMA-2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1500)
    return parser.parse_args()


def passages(folder: Path) -> Iterator[str]:
    """Passages from all over the corpus."""
    data, _ = find_corpus(folder)
    for texts in corpus_texts(data):
        for text in texts[::3]:
            words = text.split(" ")
            for start in range(0, len(words) - WORDS, 5 * WORDS):
                yield " ".join(words[start : start + WORDS])


def write_corpus(folder: Path, texts: list[str]) -> None:
    """A retrieval corpus of one file."""
    ids = list(range(3, 259))
    (folder / "0").mkdir(parents=True)
    with (folder / "0/some.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            line = {"id": f"some_0_{number}", "contents": text, "neighbor": text}
            file.write(json.dumps({**line, "contents_token_ids": ids, "neighbor_token_ids": ids}) + "\n")


def measure(bars: Bars, folder: Path, number: int) -> None:
    """Passages a second, of the whole step and of the forward pass."""
    write_corpus(folder / "corpus", list(itertools.islice(passages(folder), number)))
    sys.argv = ["embed_passages", "--corpus", str(folder / "corpus"), "--output", str(folder / "EMB"), "--part_bytes",
                "1e6", "--model_dir", str(find_encoder())]  # fmt: skip
    args = cli.typed(plan_embedding.EmbeddingOptions, embed_passages.parse_args())
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    args = replace(args, dtype=devices.resolve_dtype(args.dtype, device, GPU_DTYPE))
    model = EncoderModel.find(args.model_dir)
    [file] = plan_embedding.list_corpus(args.corpus, args.part_bytes)
    todo = [plan_embedding.PlannedPart.of(args, model, file, part) for part in range(file.num_parts)]
    core = workers.run_in_child(word_piece_json, model)
    encoder = Encoder(model, args.dtype, device, False)
    read_chunk = embed_passages.PassageReader(core, args.passage_prefix)
    batches = []
    for part in todo:
        read = [read_chunk(chunk) for chunk in part.chunks()]
        ids, lengths = (np.concatenate([getattr(one, name) for one in read]) for name in ("word_pieces", "lengths"))
        batches += [
            [torch.from_numpy(array).to(device) for array in batch]
            for batch in encoder.batches(ids, np.cumsum(lengths) - lengths, lengths)
        ]
    torch.set_num_threads(workers.default_num_workers())
    encoder.compute(*batches[0])
    start = time.perf_counter()
    for batch in batches:
        encoder.compute(*batch)
    if device != "cpu":
        torch.cuda.synchronize()
    forward_pass = time.perf_counter() - start
    start = time.perf_counter()
    assert embed_passages.embed(todo, encoder, core, args) == number
    step = time.perf_counter() - start
    details = f"{number / step:.0f} and {number / forward_pass:.0f} passages/s in {len(todo)} parts, {device}"
    bars.report("embedding against the forward pass", forward_pass / step, 0.85, details)


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, parse_args().passages))
