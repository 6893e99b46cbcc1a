"""Annotate training rows with a teacher's next-token probabilities: the top-k, or samples.

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

from cepe_data import cli, workers
from cepe_data.storage.parts import add_parted_set_arguments
from cepe_data.teacher import devices, vocabulary
from cepe_data.teacher import model as teacher_model
from cepe_data.teacher.checkpoint import transformers_version
from cepe_data.teacher.inputs import check_ids, read_batches
from cepe_data.teacher.plan import SHARD_BYTES, Annotation, AnnotationOptions, plan_annotations

if TYPE_CHECKING:
    import numpy as np

SetPart = tuple[Annotation, int]  # a part, by its number in a set


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="the folder that holds the domain folders")
    parser.add_argument("--model_dir", required=True, help="the teacher: a folder or a hub name")
    parser.add_argument("--domain", required=True, help="what to annotate: all, or domains with commas between them")
    parser.add_argument(
        "--num_encoder_tokens", type=cli.positive_count, default=2048, help="context: the last of prev_token_ids"
    )
    parser.add_argument(
        "--num_decoder_tokens", type=cli.positive_count, default=2048, help="annotated: the first of token_ids"
    )
    parser.add_argument(
        "--target",
        choices=("topk", "sampled"),
        default="topk",
        help="what is kept per position: the largest probabilities; or samples, unbiased and a third as large",
    )
    parser.add_argument("--topk", type=cli.positive_count, default=50, help="probabilities kept per position")
    parser.add_argument(
        "--num_samples", type=cli.positive_count, default=16, help="with --target sampled: draws per position"
    )
    parser.add_argument("--seed", type=cli.count, default=42, help="with --target sampled: another seed, other draws")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=None,
        help="the folder of domain folders to write (default: beside the input, named after it and the teacher)",
    )
    parser.add_argument(
        "--num_words",
        type=vocabulary.num_words,
        default=None,
        metavar="N|tokenizer",
        help="the first N ids share the probability; tokenizer: those of the input's tokenizer (default: all that the "
        "model has, which may be padded)",
    )
    parser.add_argument(
        "--retrieval_input_dir",
        type=Path,
        default=None,
        help="holds domain folders of retrieved passages, to be the context instead of prev_token_ids",
    )
    parser.add_argument("--retrieval_k", type=cli.positive_count, default=8, help="how many passages are the context")
    add_parted_set_arguments(parser, SHARD_BYTES)
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
        "--attn_implementation",
        default=None,
        help="such as flash_attention_2 (default: what transformers prefers if it gives the same as eager, else eager)",
    )
    model.add_argument(
        "--allow_other_tokenizer",
        action="store_true",
        help="go on where the tokenizer beside the model is not the one that made the input",
    )
    model.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers: 10 seconds more to start, then 1.3 times as fast on an H100",
    )
    return parser.parse_args(arguments)


def main() -> int:
    args = cli.typed(AnnotationOptions, parse_args())
    start = time.monotonic()
    shard_id, num_shards = args.resolve_shard()
    todo: list[tuple[Annotation, list[int]]] = []  # sets that are not joined, and the parts of them to make
    for annotation in plan_annotations(args):
        of_set = annotation.of_set
        if not args.merge and not of_set.joined.is_done():
            if not args.dry_run:
                of_set.restore_parts(shard_id, num_shards)
            todo.append((annotation, of_set.todo(shard_id, num_shards)))
        elif not args.dry_run:
            of_set.join(num_shards, args.delete_parts, annotation.metadata, start)
    num_rows = sum(annotation.of_set.count_rows(parts) for annotation, parts in todo)
    if args.dry_run and not num_rows:
        cli.say("nothing is left to do")
        return cli.EXIT_OK
    if not todo:
        return cli.EXIT_OK
    folder = todo[0][0].of_set.folder
    num_bytes = sum(annotation.of_set.count_bytes(parts) for annotation, parts in todo)
    chosen = devices.choose_devices(args.device, args.num_gpus) if num_rows else []
    if args.dry_run:
        report_dry_run(next(annotation for annotation, parts in todo if parts), num_rows, chosen)
        cli.report_disk(folder, num_bytes)
        return cli.EXIT_OK
    args.require_disk(folder, num_bytes)
    for annotation, parts in todo:
        annotation.of_set.remove_stale_temporaries()
        check_ids(annotation, [annotation.of_set.part_ranges[part] for part in parts])
    set_parts = [(annotation, part) for annotation, parts in todo for part in parts]
    if set_parts:
        shares = [(set_parts[number :: len(chosen)], device) for number, device in enumerate(chosen[: len(set_parts)])]
        names = ",".join(annotation.of_set.folder.name for annotation, _ in todo)
        with cli.progress_bar(num_rows, "row", names) as bar:
            workers.run_shares(annotate, shares, bar.update)
    where = folder.parent if len(todo) > 1 else todo[0][0].of_set.parts.directory
    made = f"{num_rows:,} rows in {len(set_parts)} parts"
    cli.say(f"shard {shard_id} of {num_shards}: {made}, {cli.seconds_since(start)} → {where}")
    if num_shards == 1:
        for annotation, _ in todo:
            annotation.of_set.join(num_shards, args.delete_parts, annotation.metadata, start)
    return cli.EXIT_OK


def annotate(set_parts: Sequence[SetPart], device: str, progress: Callable[[int], object]) -> None:
    """Make parts on one device. The teacher is loaded once for all domains with the same settings."""
    for settings, of_settings in itertools.groupby(set_parts, lambda job: job[0].settings):
        annotate_with(settings, list(of_settings), device, progress)


def annotate_with(
    settings: teacher_model.Settings, set_parts: Sequence[SetPart], device: str, progress: Callable[[int], object]
) -> None:
    """Make parts with one teacher, which is gone from the device afterwards."""
    model = teacher_model.Teacher(set_parts[0][0].model.checkpoint, settings, device)
    versions = {"transformers": transformers_version()}
    for annotation, of_domain in itertools.groupby(set_parts, lambda job: job[0]):
        parts = [part for _, part in of_domain]
        ranges = [annotation.of_set.part_ranges[part] for part in parts]
        rows = model.annotate(read_batches(annotation, ranges, model.batch_size))
        unknown = vocabulary.UnknownWords(vocabulary.tokenizer_size(annotation.input_folder))
        for part, (start, stop) in zip(parts, ranges, strict=True):
            of_part = counted(itertools.islice(rows, stop - start), unknown, progress)
            annotation.of_set.write_part(part, of_part, versions)
        unknown.report()


def counted(
    rows: Iterator[dict[str, np.ndarray]], unknown: vocabulary.UnknownWords, progress: Callable[[int], object]
) -> Iterator[dict[str, np.ndarray]]:
    """The same rows. Ids beyond the tokenizer's are counted; `progress` is called after each row that was written."""
    for row in rows:
        unknown.add(row["target_prob"], row["target_index"])
        yield row
        progress(1)


def report_dry_run(annotation: Annotation, num_rows: int, chosen: Sequence[str]) -> None:
    """Print what annotating so many rows takes: operations, and the time from a timed batch."""
    settings = annotation.settings
    model = teacher_model.Teacher(annotation.model.checkpoint, settings, chosen[0])
    batch = next(read_batches(annotation, annotation.of_set.part_ranges[:1], model.batch_size))
    if chosen[0] != "cpu":  # the first batch chooses kernels
        list(model.annotate([batch]))
    start = time.perf_counter()
    list(model.annotate([batch]))
    seconds = (time.perf_counter() - start) / len(batch)
    flops = model.num_flops()
    num_devices = 1 if chosen[0] == "cpu" else len(chosen)  # one process already has all cores
    where = f"{num_devices} GPUs" if num_devices > 1 else chosen[0]
    cli.say(
        f"of all shards, {num_rows:,} sequences of {settings.num_tokens:,} tokens, {flops / 1e12:,.3g} TFLOP each; a "
        f"batch of {len(batch)} took {seconds * len(batch):.2f} s, {flops / seconds / 1e12:,.3g} TFLOP/s\n"
        f"about {num_rows * seconds / 3600 / num_devices:,.1f} hours on {where} ({settings.dtype})"
    )


if __name__ == "__main__":
    cli.run(main)
