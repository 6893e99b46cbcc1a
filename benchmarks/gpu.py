"""Teacher, encoder and search on a GPU, as rates of operations beside a bare matrix product of the same run.

    python benchmarks/gpu.py               # under 9 minutes, 30 GB of disk and 32 GB of memory

Needs torch, transformers, safetensors, numpy, xxhash and tqdm, and no network: models and inputs are random, which take
as long as real ones. Rates include writing to the disk, but not start-up. The last line is the path of a JSON file with
all results. `--tiny` does the same in seconds on a CPU, where the ratios mean nothing.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("benchmarks/")[0] or "."  # this folder has modules that are named as the library's

import argparse
import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from benchmarks import teacher
from benchmarks.common import Bars, best_seconds
from cepe_data import cli, hub
from cepe_data.retrieval.encoder import GPU_DTYPE, Encoder, EncoderModel
from cepe_data.retrieval.topk import TopK, block_rows
from cepe_data.teacher import model as teacher_model

HITS = 100


@dataclass(frozen=True)
class Sizes:
    """What is measured, and where."""

    device: str
    dtype: torch.dtype
    product: int
    teacher: Mapping[str, int]
    num_tokens: int  # of a sequence, half of which is annotated
    num_sequences: int
    encoder: Mapping[str, int]
    num_texts: int  # of `text_tokens` word pieces
    text_tokens: int
    num_queries: int
    num_passages: int


FULL = Sizes(
    device="cuda:0",
    dtype=torch.bfloat16,
    product=8192,
    teacher={"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    num_tokens=4096,
    num_sequences=64,
    encoder={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    num_texts=32_768,
    text_tokens=256,
    num_queries=65_536,
    num_passages=160 << 16,
)
TINY_MODEL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY = Sizes(
    device="cpu",
    dtype=torch.float32,
    product=64,
    teacher=TINY_MODEL,
    num_tokens=32,
    num_sequences=3,
    encoder=TINY_MODEL,
    num_texts=20,
    text_tokens=16,
    num_queries=40,
    num_passages=2000,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, on a CPU")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="the file to write")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if not args.tiny and not torch.cuda.is_available():
        print("not run: torch sees no GPU here")
        return 0
    hub.silence_transformers()
    sizes, bars, start = TINY if args.tiny else FULL, Bars(), time.perf_counter()
    peak = product_flops(sizes)
    with tempfile.TemporaryDirectory() as scratch:
        for measure in (measure_teacher, measure_encoder, measure_search):
            measure(bars, Path(scratch), sizes, peak)
            free_memory()
    name = torch.cuda.get_device_name() if sizes.device != "cpu" else "cpu"
    seconds = time.perf_counter() - start
    print(
        f"\n{name}, product of {sizes.product}³: {peak / 1e12:,.3g} TFLOP/s, {seconds:.0f} s, {bars.num_missed} missed"
    )
    rows = [(one["what"], f"{one['ratio']:.2f}", f"{one['bar']:g}", one["details"]) for one in bars.results]
    print(cli.table(("what", "ratio", "bar", "details"), rows))
    versions = {package: version(package) for package in ("torch", "transformers", "numpy")}
    found = {"device": name, "versions": versions, "product_flops": peak, "seconds": seconds, "results": bars.results}
    args.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(args.output)
    return 0 if args.tiny else int(bars.num_missed > 0)


def product_flops(sizes: Sizes) -> float:
    """Operations a second of a square matrix product."""
    left, right = (torch.randn(sizes.product, sizes.product, device=sizes.device, dtype=sizes.dtype) for _ in range(2))

    def product() -> None:
        for _ in range(20):
            torch.mm(left, right)
        wait(sizes)

    product()
    return 20 * 2 * sizes.product**3 / best_seconds(product)


def measure_teacher(bars: Bars, folder: Path, sizes: Sizes, peak: float) -> None:
    """The whole step, as it is and compiled, against the product and one sequence at a time."""
    model = teacher.make_model(folder / "teacher", dict(sizes.teacher), sizes.dtype)
    teacher.make_rows(folder / "rows", sizes.num_sequences, sizes.num_tokens)
    os.sync()  # else the first part to be published waits for the model to be written
    half, runs = sizes.num_tokens // 2, {}
    for kind, flags in (
        ("top-k", ()),
        ("sampled", ("--target", "sampled")),
        ("warm-up", ("--compile",)),
        ("compiled", ("--compile",)),
    ):
        where = ("--device", sizes.device, "--output_dir", str(folder / kind))
        annotation = teacher.plan(folder / "rows", model, sizes.num_tokens, *flags, *where)
        runs[kind] = run = teacher.run_step(annotation, sizes.device)
        free_memory()
        if kind == "warm-up":
            continue
        achieved = run.num_flops * sizes.num_sequences / run.seconds
        num_bytes = sum(path.stat().st_size for path in (folder / kind).rglob("*.mds")) / sizes.num_sequences / half
        details = f"{achieved / 1e12:,.3g} TFLOP/s, {sizes.num_sequences / run.seconds:.2f} sequences/s, "
        details += f"batches of {run.batch_size}, {num_bytes:.0f} bytes a token"
        bar = 0.65 if kind == "compiled" else 0.5
        bars.report(f"teacher, {half:,} + {half:,} tokens, {kind}, of the product", achieved / peak, bar, details)
    bars.report("sampled targets against top-k", runs["top-k"].seconds / runs["sampled"].seconds, 0.9, "rates")
    usual = teacher.usual_seconds(folder / "rows", model, sizes.num_tokens, sizes.device, sizes.dtype)
    details = f"{sizes.num_sequences / usual:.2f} sequences/s"
    bars.report("teacher, compiled, against one sequence at a time", usual / runs["compiled"].seconds, 1.3, details)
    shutil.rmtree(model)


def measure_encoder(bars: Bars, folder: Path, sizes: Sizes, peak: float) -> None:
    """Vectors of texts that are word pieces already."""
    from transformers import BertConfig, BertModel

    config = BertConfig(**sizes.encoder)
    model = BertModel(config, add_pooling_layer=False)
    model.save_pretrained(folder / "encoder")
    dtype = "float32" if sizes.device == "cpu" else GPU_DTYPE
    encoder = Encoder(EncoderModel.find(str(folder / "encoder")), dtype, sizes.device, False)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, sizes.num_texts * sizes.text_tokens, np.int32)
    lengths = np.full(sizes.num_texts, sizes.text_tokens)
    seconds = best_seconds(lambda: encoder.embed(ids, lengths), 2)
    achieved = teacher_model.count_flops(model, sizes.text_tokens) * sizes.num_texts / seconds
    details = (
        f"{achieved / 1e12:,.3g} TFLOP/s, {sizes.num_texts / seconds:,.0f} texts of {sizes.text_tokens} tokens a second"
    )
    bars.report("embedding, of the product", achieved / peak, 0.5, details)


def measure_search(bars: Bars, folder: Path, sizes: Sizes, peak: float) -> None:
    """Exact search over passages in main memory."""
    dimension = sizes.encoder["hidden_size"]
    generator = torch.Generator(sizes.device).manual_seed(0)

    def vectors(number: int) -> torch.Tensor:
        return torch.randn(number, dimension, device=sizes.device, generator=generator)

    queries = vectors(sizes.num_queries).cpu().numpy()
    rows_at_once = min(sizes.num_passages, block_rows(dimension, sizes.device))
    blocks = [vectors(rows_at_once).half().cpu().numpy() for _ in range(sizes.num_passages // rows_at_once)]

    def search() -> None:
        best = TopK(queries, HITS, sizes.device)
        for number, block in enumerate(blocks):
            best.add(block, number * rows_at_once)
        best.best()
        best.close()

    seconds = best_seconds(search, 2)
    achieved = 2 * sizes.num_queries * sizes.num_passages * dimension / seconds
    what = f"{sizes.num_queries:,} queries, {sizes.num_passages:,} × {dimension}"
    bars.report(
        "search, of the product", achieved / peak, 0.5, f"{achieved / 1e12:,.3g} TFLOP/s, {seconds:.1f} s, {what}"
    )


def wait(sizes: Sizes) -> None:
    """Wait until the device is idle."""
    if sizes.device != "cpu":
        torch.cuda.synchronize()


def free_memory() -> None:
    """Return unused memory to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
