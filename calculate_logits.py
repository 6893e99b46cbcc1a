"""Annotate training rows with a teacher's top-k next-token probabilities.

reads   INPUT_DIR/{domain}/ (MDS of a sampler), a causal language model; RET_DIR/{domain}/ with --retrieval_input_dir
writes  INPUT_DIR-logits-enc2048-dec2048-MODEL/{domain}/ (MDS: target_prob, target_index); row i belongs to row i of the
        input. Before they are joined, its parts are in {domain}.parts/

    python calculate_logits.py --input_dir 8k_ab/train --model_dir meta-llama/Llama-2-7b-chat-hf --domain arxiv \\
        --shard_id 0 --num_shards 100
    python calculate_logits.py … --num_shards 100 --merge --delete_parts
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cepe_data import cli, shards, workers
from cepe_data.errors import ArgumentError
from cepe_data.storage import mds
from cepe_data.teacher import devices
from cepe_data.teacher import model as teacher_model
from cepe_data.teacher.inputs import InputRows
from cepe_data.teacher.plan import Annotation, AnnotationOptions, plan_annotation

if TYPE_CHECKING:
    import numpy as np


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="the folder that holds the domain folders")
    parser.add_argument("--model_dir", required=True, help="the teacher: a folder or a hub name")
    parser.add_argument("--domain", required=True, type=cli.folder_name, help="the domain to annotate")
    parser.add_argument(
        "--num_encoder_tokens", type=cli.positive_count, default=2048, help="context: the last of prev_token_ids"
    )
    parser.add_argument(
        "--num_decoder_tokens", type=cli.positive_count, default=2048, help="annotated: the first of token_ids"
    )
    parser.add_argument("--topk", type=cli.positive_count, default=50, help="probabilities kept per position")
    parser.add_argument(
        "--retrieval_input_dir",
        type=Path,
        default=None,
        help="holds domain folders of retrieved passages, to be the context instead of prev_token_ids",
    )
    parser.add_argument("--retrieval_k", type=cli.positive_count, default=8, help="how many passages are the context")
    parser.add_argument("--merge", action="store_true", help="join the parts of all shards, and compute nothing")
    parser.add_argument("--delete_parts", action="store_true", help="remove the parts once they are joined")
    cli.add_overwrite_argument(parser)
    parser.add_argument(
        "--dry_run", action="store_true", help="time a batch, say what the run would take, and write nothing"
    )
    shards.add_shard_arguments(parser)
    parser.add_argument(
        "--rows_per_part",
        type=cli.positive_count,
        default=None,
        help="rows of a part; a killed run repeats at most one (default: what fills an MDS shard of 128 MiB)",
    )
    model = parser.add_argument_group("teacher")
    model.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of weights and activations; auto is bfloat16 on a GPU and float32 on a CPU",
    )
    model.add_argument("--device", default=None, help="default: cuda where there is one, else cpu")
    model.add_argument(
        "--num_gpus", type=cli.positive_count, default=1, help="GPUs of this machine to use, one process each"
    )
    model.add_argument(
        "--batch_size", type=cli.positive_count, default=None, help="sequences at once (default: what the memory holds)"
    )
    model.add_argument(
        "--attn_implementation", default=None, help="such as flash_attention_2 (default: what transformers prefers)"
    )
    model.add_argument("--compile", action="store_true", help="compile the layers: a minute of start-up, then faster")
    return parser.parse_args(arguments)


def main() -> int:
    args = cli.typed(AnnotationOptions, parse_args())
    start = time.monotonic()
    shard_id, num_shards = shards.resolve_shard_or_merge(args.merge, args.shard_id, args.num_shards)
    if args.delete_parts and not args.merge and num_shards > 1:
        raise ArgumentError("--delete_parts goes with --merge: other shards may still be at work")
    if args.dry_run and args.merge:
        raise ArgumentError("--merge has no dry run: it computes nothing and copies nothing")
    annotation = plan_annotation(args)
    of_set = annotation.of_set
    if args.merge or of_set.joined.is_done():
        of_set.join(num_shards, args.delete_parts and not args.dry_run, annotation.facts, start)
        return cli.EXIT_OK
    todo = of_set.todo(shard_id, num_shards)
    num_rows = of_set.count_rows(todo)
    chosen = devices.choose_devices(args.device, args.num_gpus) if todo else []
    if args.dry_run:
        report_dry_run(annotation, num_rows, chosen)
        return cli.EXIT_OK
    of_set.remove_stale_temporaries()
    if todo:
        InputRows(annotation).check_ids([of_set.part_ranges[part] for part in todo])
        shares = [(annotation, todo[number :: len(chosen)], device) for number, device in enumerate(chosen)]
        with cli.progress_bar(num_rows, "row", of_set.folder.name) as bar:
            workers.run_shares(annotate, [share for share in shares if share[1]], bar.update)
    cli.say(
        f"shard {shard_id} of {num_shards}: {num_rows:,} rows in {len(todo)} parts, {cli.seconds_since(start)} → "
        f"{of_set.parts.directory}"
    )
    if num_shards == 1:
        of_set.join(num_shards, args.delete_parts, annotation.facts, start)
    return cli.EXIT_OK


def annotate(annotation: Annotation, parts: list[int], device: str, progress: Callable[[int], object]) -> None:
    """Make these parts on one device."""
    rows = InputRows(annotation)
    model = teacher_model.Teacher(annotation.model.folder, annotation.settings(device))
    part_ranges = [annotation.of_set.part_ranges[part] for part in parts]
    annotated = model.annotate(rows.batches(part_ranges, model.batch_size))

    def of_part(num_rows: int) -> Iterator[dict[str, np.ndarray]]:
        for row in itertools.islice(annotated, num_rows):
            yield row
            progress(1)

    for part, (start, stop) in zip(parts, part_ranges, strict=True):
        annotation.of_set.write_part(part, of_part(stop - start))


def report_dry_run(annotation: Annotation, num_rows: int, chosen: Sequence[str]) -> None:
    """Print what annotating so many rows takes: operations, time from a timed batch, disk."""
    if not num_rows:
        cli.say("nothing is left to do")
        return
    rows = InputRows(annotation)
    model = teacher_model.Teacher(annotation.model.folder, annotation.settings(chosen[0]))
    batch = next(rows.batches(annotation.of_set.part_ranges[:1], model.batch_size))
    if not chosen[0].startswith("cpu"):  # the first batch chooses kernels
        list(model.annotate([batch]))
    start = time.perf_counter()
    list(model.annotate([batch]))
    seconds = (time.perf_counter() - start) / len(batch)
    flops = model.num_flops()
    num_devices = 1 if chosen[0] == "cpu" else len(chosen)  # one process already has all cores
    where = f"{num_devices} GPUs" if num_devices > 1 else chosen[0]
    cli.say(
        f"{num_rows:,} sequences of {annotation.num_tokens:,} tokens, {flops / 1e12:,.3g} TFLOP each; a batch of "
        f"{len(batch)} took {seconds * len(batch):.2f} s, {flops / seconds / 1e12:,.3g} TFLOP/s\n"
        f"about {num_rows * seconds / 3600 / num_devices:,.1f} hours on {where} ({annotation.dtype})"
    )
    cli.report_disk(annotation.of_set.folder, num_rows * mds.row_bytes(annotation.of_set.columns))


if __name__ == "__main__":
    cli.run(main)
