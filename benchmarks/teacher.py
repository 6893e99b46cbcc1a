"""The teacher against the usual loop on a CPU: head and top-k, the whole step, joining, errors.

    python benchmarks/teacher.py           # about 5 minutes on 2 cores, 5 GB of disk

The usual loop takes one sequence at a time: all logits, softmax, a sort of the whole vocabulary, pickled columns. Both
sides have all cores. Rates leave start-up out. Models have random weights: they take as long as real ones.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("benchmarks/")[0] or "."  # this folder has modules that are named as the library's

import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import calculate_logits
from benchmarks.common import Bars, best_seconds, parse_scale, run_benchmark
from cepe_data import cli, workers
from cepe_data.storage import mds, outputs
from cepe_data.teacher import model as teacher_model
from cepe_data.teacher import plan as teacher_plan
from cepe_data.teacher.targets import TopK

TOPK = 50
SMALL = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 12, "num_attention_heads": 10}


def measure(bars: Bars, folder: Path, scale: int) -> None:
    for hidden_size in (256, 640):
        compare_heads(bars, 2048 if scale == 1 else 256, hidden_size)
    compare_errors(bars)
    compare_steps(bars, folder, 1024 if scale == 1 else 256)
    compare_joining(bars, folder, 2000 // scale << 20)


@torch.inference_mode()
def compare_heads(bars: Bars, num_positions: int, hidden_size: int) -> None:
    """Head and top-k of one sequence, on one core. The wider the model, the more of both is the head alone."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden, weight = torch.randn(num_positions, hidden_size), torch.randn(32_000, hidden_size) / hidden_size**0.5
    rows, none = teacher_model.HEAD_BYTES // (4 * len(weight)), torch.empty(num_positions, 0)

    def by_chunks() -> None:
        for chunk in (hidden @ weight.T).split(rows):
            TopK(TOPK).of_logits(chunk, none)

    def usual() -> None:
        prob, index = torch.softmax(hidden @ weight.T, -1).sort(-1, descending=True)
        prob[:, :TOPK].half(), index[:, :TOPK].int(), prob[:, TOPK:].sum(-1).half()

    chunked, whole = best_seconds(by_chunks), best_seconds(usual)
    head = best_seconds(lambda: hidden @ weight.T)
    what = f"head and top-k, {num_positions:,} × 32,000, hidden size {hidden_size}"
    if hidden_size == 256:
        details = f"{chunked:.2f} s and {whole:.2f} s, of which the head takes {head:.2f} s"
        bars.report(what, whole / chunked, 6, details)
    else:
        print(f"       {what}: {whole / chunked:.2f}, and with a top-k that takes no time {whole / head:.2f}")


def compare_errors(bars: Bars) -> None:
    """Errors of stored probabilities against float64, for logits with tails from nearly all to nearly nothing."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 1, (500, 32_000)))
    logits[:, :TOPK] += torch.from_numpy(rng.uniform(0, 25, (500, 1)))
    expected = torch.softmax(logits, -1)
    prob, index = TopK(TOPK).of_logits(logits.float(), torch.empty(500, 0))
    top, tail = expected.gather(-1, index), expected.scatter(-1, index, 0).sum(-1)
    normal = top > 2.0**-14
    top_error = ((prob[:, :TOPK].half().double() - top).abs() / top)[normal].max().item()
    bars.report("top-k probabilities, error in float16 roundings", top_error / 2.0**-11, 2, "1 is 4.9e-4", at_most=True)
    large = tail > 1e-6
    tail_error = ((prob[:, TOPK].double() - tail).abs() / tail)[large].max().item()
    stored = ((prob[:, TOPK].half().double() - tail).abs() / tail)[large].max().item()
    details = f"as float16, whose steps are 6e-8 there, {100 * stored:.1f} % at 1e-6"
    bars.report("tails down to 1e-6, error in percent", 100 * tail_error, 1, details, at_most=True)


def make_model(folder: Path, shape: dict[str, int], dtype: torch.dtype) -> Path:
    """Save a LLaMA of this shape with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32_000, max_position_embeddings=4096, **shape)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    return folder


def make_rows(folder: Path, num_rows: int, num_tokens: int) -> None:
    """A domain `some` of random tokens, half of them context."""
    rng = np.random.default_rng(0)
    columns = {name: mds.array_column(np.dtype(np.int16), num_tokens // 2) for name in ("token_ids", "prev_token_ids")}
    rows = ({name: rng.integers(3, 32_000, num_tokens // 2, np.int16) for name in columns} for _ in range(num_rows))
    mds.write_shard(outputs.Output(folder / "some", {}), columns, num_rows, rows)


def plan(folder: Path, model: Path, num_tokens: int, *flags: str) -> teacher_plan.Annotation:
    """What `calculate_logits.py` does with these rows."""
    half = str(num_tokens // 2)
    sys.argv = ["calculate_logits.py", "--input_dir", str(folder), "--model_dir", str(model), "--domain", "some",
                "--num_encoder_tokens", half, "--num_decoder_tokens", half, "--topk", str(TOPK), *flags]  # fmt: skip
    [annotation] = teacher_plan.plan_annotations(
        cli.typed(teacher_plan.AnnotationOptions, calculate_logits.parse_args())
    )
    return annotation


@dataclass
class Measured:
    """How long a run took, how many operations a sequence has, and how many sequences were in a batch."""

    seconds: float = 0.0
    num_flops: int = 0
    batch_size: int = 0


def run_step(annotation: teacher_plan.Annotation, device: str) -> Measured:
    """Run the step; seconds are from the first batch to the last published part, without start-up of the model."""
    found, annotate = Measured(), teacher_model.Teacher.annotate

    def from_here(self: teacher_model.Teacher, *arguments: Any) -> Iterator[Any]:
        found.num_flops, found.batch_size = self.num_flops(), self.batch_size
        found.seconds = -time.perf_counter()
        return annotate(self, *arguments)

    jobs = [(annotation, part) for part in range(len(annotation.of_set.part_ranges))]
    teacher_model.Teacher.annotate = from_here  # type: ignore[method-assign, assignment]
    calculate_logits.annotate(jobs, device, lambda _: None)
    teacher_model.Teacher.annotate = annotate  # type: ignore[method-assign]
    found.seconds += time.perf_counter()
    return found


@torch.inference_mode()
def usual_seconds(folder: Path, model_folder: Path, num_tokens: int, device: str, dtype: torch.dtype) -> float:
    """Seconds of the usual loop over the same rows."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).eval().to(device)
    rows = mds.Rows(folder / "some")
    half = num_tokens // 2
    warm_up = torch.zeros(1, num_tokens, dtype=torch.long, device=device)
    if device != "cpu":
        model(warm_up)
        torch.cuda.synchronize()
    start = time.perf_counter()
    with (folder / "usual.pickle").open("wb") as file:
        for number in range(len(rows)):
            row = rows[number]
            ids = torch.tensor(np.concatenate([row["prev_token_ids"], row["token_ids"]]), dtype=torch.long)
            logits = model(ids[None].to(device)).logits[0, -half:]
            prob, index = torch.softmax(logits.float(), -1).sort(-1, descending=True)
            kept = torch.cat([prob[:, :TOPK], prob[:, TOPK:].sum(-1, keepdim=True)], -1)
            pickle.dump((kept.half().cpu().numpy(), index[:, :TOPK].int().cpu().numpy()), file)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    (folder / "usual.pickle").unlink()
    return seconds


def compare_steps(bars: Bars, folder: Path, num_tokens: int) -> None:
    """The whole step with 100 million weights on the CPU."""
    model = make_model(folder / "small", SMALL, torch.float32)
    make_rows(folder / "rows", 8, num_tokens)
    num_cores = workers.default_num_workers()
    annotation = plan(folder / "rows", model, num_tokens, "--device", "cpu")
    step = run_step(annotation, "cpu").seconds
    torch.set_num_threads(num_cores)
    usual = usual_seconds(folder / "rows", model, num_tokens, "cpu", torch.float32)
    what = f"whole step, 100M weights, {num_tokens // 2:,} + {num_tokens // 2:,} tokens, CPU"
    bars.report(what, usual / step, 1.5, f"{step / 8:.2f} s and {usual / 8:.2f} s a sequence, {num_cores} cores")
    num_bytes = sum(path.stat().st_size for path in annotation.of_set.parts.directory.rglob("*.mds"))
    print(f"       {num_bytes / 8 / (num_tokens // 2):.0f} bytes a token on disk, the usual loop 302")


def compare_joining(bars: Bars, folder: Path, num_bytes: int) -> None:
    """Join the parts of 100 shards: bytes that the process writes, seconds."""
    num_rows = num_bytes // (2048 * 202) // 100 * 100
    make_rows(folder / "many", num_rows, 4096)
    annotation = plan(
        folder / "many", folder / "small", 4096, "--rows_per_part", str(num_rows // 100), "--device", "cpu"
    )
    rng = np.random.default_rng(0)
    row = {
        "target_prob": rng.random((2048, TOPK + 1)).astype(np.float16),
        "target_index": rng.integers(0, 32_000, (2048, TOPK), np.int16),
    }
    for part, (start, stop) in enumerate(annotation.of_set.part_ranges):
        annotation.of_set.write_part(part, (row for _ in range(start, stop)))
    before, start_time = written_bytes(), time.perf_counter()
    annotation.of_set.join(100, False, annotation.metadata, time.monotonic())
    seconds, written = time.perf_counter() - start_time, (written_bytes() - before) / 1e6
    size = sum(path.stat().st_size for path in annotation.of_set.folder.glob("*.mds")) / 1e9
    bars.report("joining 100 shards, MB written", written, 5, f"{size:.1f} GB joined", at_most=True)
    bars.report("joining 100 shards, seconds", seconds, 5, f"{size:.1f} GB joined", at_most=True)


def written_bytes() -> int:
    """What this process has passed to write calls so far, in bytes."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


if __name__ == "__main__":
    sys.exit(run_benchmark(measure, parse_scale(__doc__)))
