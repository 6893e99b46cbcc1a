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
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli, shards, workers
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.storage import mds, provenance
from cepe_data.storage.parts import PartedSet
from cepe_data.teacher import devices
from cepe_data.teacher import model as teacher_model

SHARD_BYTES = 128 << 20


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="the folder that holds the domain folders")
    parser.add_argument("--model_dir", required=True, help="the teacher: a folder or a hub name")
    parser.add_argument("--domain", required=True, help="the domain to annotate")
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
    parser.add_argument("--delete_parts", action="store_true", help="remove the pool of parts once they are joined")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what other arguments made, and what is damaged"
    )
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
    args = parse_args()
    start = time.monotonic()
    args.domain = args.domain.strip("/")
    shard_id, num_shards = shards.resolve_shard_or_merge(args)
    if args.delete_parts and not args.merge and num_shards > 1:
        raise ArgumentError("--delete_parts goes with --merge: other shards may still be at work")
    if args.dry_run and args.merge:
        raise ArgumentError("--merge has no dry run: it computes nothing and copies nothing")
    annotation = plan_annotation(args)
    of_set = annotation.of_set
    if args.merge or of_set.is_joined():
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
        InputRows(annotation).refuse_foreign_ids([of_set.borders[part] for part in todo])
        shares = [(annotation, todo[number :: len(chosen)], device) for number, device in enumerate(chosen)]
        with cli.progress_bar(num_rows, "row", of_set.folder.name) as bar:
            workers.run_shares(annotate, [share for share in shares if share[1]], bar.update)
    cli.say(
        f"shard {shard_id} of {num_shards}: {num_rows:,} rows in {len(todo)} parts, {cli.seconds_since(start)} → "
        f"{of_set.pool}"
    )
    if num_shards == 1:
        of_set.join(num_shards, args.delete_parts, annotation.facts, start)
    return cli.EXIT_OK


@dataclass(frozen=True)
class Annotation:
    """What a run makes of which input."""

    of_set: PartedSet
    input_folder: Path
    retrieval_folder: Path | None
    retrieval_k: int
    model: teacher_model.Model
    num_encoder_tokens: int
    num_decoder_tokens: int
    num_tokens: int
    topk: int
    dtype: str
    running: dict[str, Any]

    @property
    def facts(self) -> provenance.Meta:
        """What the meta file of the set says beside what made it; the input has a name where it stands beside it."""
        beside = not self.retrieval_folder
        input_name = named(self.input_folder.parent).name if beside else None
        return {"input_name": input_name, "vocab_size": self.model.vocab_size}

    def settings(self, device: str) -> teacher_model.Settings:
        """What the teacher is asked for."""
        return teacher_model.Settings(
            self.num_tokens,
            self.num_decoder_tokens,
            self.topk,
            self.dtype,
            device,
            min(self.of_set.part_rows, self.of_set.num_rows),
            **self.running,
        )


def plan_annotation(args: argparse.Namespace) -> Annotation:
    """Check the arguments against the input, before any model is loaded.

    Raises:
        ArgumentError: if the input is missing, its rows are too short, or top-k is above the vocabulary.
    """
    input_folder = args.input_dir / args.domain
    retrieval_folder = args.retrieval_input_dir / args.domain if args.retrieval_input_dir else None
    num_rows = mds.num_rows(input_folder)
    refuse_short_column(input_folder, "token_ids", 1, args.num_decoder_tokens, "--num_decoder_tokens")
    num_context_tokens = check_context(args, input_folder, retrieval_folder)
    model = teacher_model.find_model(args.model_dir)
    if args.topk > model.vocab_size:
        raise ArgumentError(f"--topk {args.topk} is more than the {model.vocab_size} words of {args.model_dir}")
    num_tokens = num_context_tokens + args.num_decoder_tokens
    if model.max_positions is not None and num_tokens > model.max_positions:
        raise ArgumentError(
            f"{num_context_tokens} tokens of context and {args.num_decoder_tokens} to annotate are more than the "
            f"{model.max_positions} positions of {args.model_dir}"
        )
    folder = output_folder(args)
    dtype = choose_dtype(args, folder)
    columns = {
        "target_prob": mds.array_column(np.dtype(np.float16), args.num_decoder_tokens, args.topk + 1),
        "target_index": mds.array_column(mds.token_dtype(model.vocab_size), args.num_decoder_tokens, args.topk),
    }
    made_with = {**record_of_request(args), "dtype": dtype, "model": teacher_model.fingerprint(model.folder)}
    part_rows = args.rows_per_part or mds.rows_per_shard(columns, SHARD_BYTES)
    return Annotation(
        of_set=PartedSet(folder, columns, num_rows, part_rows, made_with, args.overwrite),
        input_folder=input_folder,
        retrieval_folder=retrieval_folder,
        retrieval_k=args.retrieval_k,
        model=model,
        num_encoder_tokens=args.num_encoder_tokens,
        num_decoder_tokens=args.num_decoder_tokens,
        num_tokens=num_tokens,
        topk=args.topk,
        dtype=dtype,
        running={name: getattr(args, name) for name in ("batch_size", "attn_implementation", "compile")},
    )


def choose_dtype(args: argparse.Namespace, folder: Path) -> str:
    """`--dtype`; where it is auto, that of the parts or the set that are there (a join may run on a machine without
    the GPU that made them), else what the device is best at."""
    for made in [folder, *sorted(mds.pool_path(folder).glob("part-*"))][:2]:
        meta = None
        with contextlib.suppress(*[DamagedFileError] if args.overwrite else []):
            meta = provenance.read_meta(made) if args.dtype == "auto" and made.is_dir() else None
        if meta is not None and "dtype" in meta["made_with"]:
            return str(meta["made_with"]["dtype"])
    return devices.resolve_dtype(args.dtype, args.device, "bfloat16")


def record_of_request(args: argparse.Namespace) -> provenance.Meta:
    """What determines the bytes of the set, but for the model, its dtype and numbers of rows. Reads meta files only.

    Raises:
        ArgumentError: if an input is missing.
        DamagedFileError: if an input is not what its meta file says.
    """
    context: provenance.Meta = {"num_encoder_tokens": args.num_encoder_tokens}
    if args.retrieval_input_dir is not None:
        retrieved = mds.fingerprint(args.retrieval_input_dir / args.domain)
        context = {"retrieval_input": retrieved, "retrieval_k": args.retrieval_k}
    return {
        "domain": args.domain,
        "input": mds.fingerprint(args.input_dir / args.domain),
        **context,
        "num_decoder_tokens": args.num_decoder_tokens,
        "topk": args.topk,
    }


def check_context(args: argparse.Namespace, input_folder: Path, retrieval_folder: Path | None) -> int:
    """The length of the context in tokens.

    Raises:
        ArgumentError: if it is shorter than asked for, or the retrieved rows are not those of the input.
    """
    if retrieval_folder is None:
        refuse_short_column(input_folder, "prev_token_ids", 1, args.num_encoder_tokens, "--num_encoder_tokens")
        return int(args.num_encoder_tokens)
    refuse_short_column(retrieval_folder, "retrieved_token_ids", 2, args.retrieval_k, "--retrieval_k")
    numbers = [mds.num_rows(folder) for folder in (retrieval_folder, input_folder)]
    if numbers[0] != numbers[1]:
        raise ArgumentError(f"{retrieval_folder} has {numbers[0]} rows, {input_folder} has {numbers[1]}: no pair")
    found_for = (provenance.read_meta(retrieval_folder) or {"made_with": {}})["made_with"].get("input")
    if found_for is not None and found_for != mds.fingerprint(input_folder):
        raise ArgumentError(f"the passages in {retrieval_folder} were found for other rows than {input_folder}'s")
    _, (_, chunk) = mds.column_array(mds.read_columns(retrieval_folder)["retrieved_token_ids"])
    return int(args.retrieval_k * chunk)


def refuse_short_column(folder: Path, name: str, num_axes: int, wanted: int, flag: str) -> None:
    """Raise ArgumentError unless the column is there, integers of so many axes, at least `wanted` along the first."""
    columns = mds.read_columns(folder)
    if name not in columns:
        raise ArgumentError(f"{folder} has no column {name}, only {', '.join(columns)}")
    dtype, shape = mds.column_array(columns[name]) if columns[name].startswith("ndarray:") else (np.dtype(object), ())
    if dtype.kind not in "iu" or len(shape) != num_axes:
        raise ArgumentError(f"the column {name} of {folder} is {columns[name]}, not ids in {num_axes} axes")
    if shape[0] < wanted:
        raise ArgumentError(f"{flag} {wanted} is more than the {shape[0]} that {name} has in {folder}")


def output_folder(args: argparse.Namespace) -> Path:
    """Where the annotated rows of a domain go."""
    model = named(Path(args.model_dir.rstrip("/"))).name
    if args.retrieval_input_dir:
        base, context = named(args.retrieval_input_dir), f"ret_k{args.retrieval_k}"
    else:
        base, context = named(args.input_dir), f"logits-enc{args.num_encoder_tokens}"
    return base.with_name(f"{base.name}-{context}-dec{args.num_decoder_tokens}-{model}") / args.domain


def named(folder: Path) -> Path:
    """The same folder, under a path that ends in its name: not in `.` or `..`."""
    return folder if folder.name not in {"", ".."} else folder.resolve()


def annotate(annotation: Annotation, parts: list[int], device: str, progress: Callable[[int], object]) -> None:
    """Make these parts on one device."""
    rows = InputRows(annotation)
    model = teacher_model.Teacher(annotation.model.folder, annotation.settings(device))
    borders = [annotation.of_set.borders[part] for part in parts]
    annotated = model.annotate(rows.batches(borders, model.batch_size))

    def of_part(num_rows: int) -> Iterator[dict[str, np.ndarray]]:
        for row in itertools.islice(annotated, num_rows):
            yield row
            progress(1)

    for part, (start, stop) in zip(parts, borders, strict=True):
        annotation.of_set.write_part(part, of_part(stop - start))


def report_dry_run(annotation: Annotation, num_rows: int, chosen: Sequence[str]) -> None:
    """Print what annotating so many rows takes: operations, time from a timed batch, disk."""
    if not num_rows:
        cli.say("nothing is left to do")
        return
    rows = InputRows(annotation)
    model = teacher_model.Teacher(annotation.model.folder, annotation.settings(chosen[0]))
    batch = next(rows.batches(annotation.of_set.borders[:1], model.batch_size))
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


class InputRows:
    """The rows that the teacher reads: context, then the tokens to annotate."""

    def __init__(self, annotation: Annotation) -> None:
        self._annotation = annotation
        self._windows = mds.Rows(annotation.input_folder)
        self._retrieved: mds.Rows | None = None
        if annotation.retrieval_folder:
            self._retrieved = mds.Rows(annotation.retrieval_folder)

    def input_ids(self, row: int) -> np.ndarray:
        """int64 [context + num_decoder_tokens]. No BOS is inserted.

        Raises:
            ArgumentError: if there is an id that the model does not know.
            DamagedFileError: if the row cannot be read.
        """
        annotation = self._annotation
        window = self._windows[row]
        if self._retrieved is not None and annotation.retrieval_folder is not None:
            passages = self._retrieved[row]["retrieved_token_ids"]
            context = passages[: annotation.retrieval_k].reshape(-1)
            self._refuse_foreign(context, annotation.retrieval_folder, row)
        else:
            context = window["prev_token_ids"][-annotation.num_encoder_tokens :]
        ids = np.concatenate([context, window["token_ids"][: annotation.num_decoder_tokens]]).astype(np.int64)
        self._refuse_foreign(ids, annotation.input_folder, row)
        if len(ids) != annotation.num_tokens:
            raise DamagedFileError(f"row {row} of {annotation.input_folder} has {len(ids)} tokens: make the set again")
        return ids

    def batches(self, borders: Sequence[tuple[int, int]], batch_size: int) -> Iterator[list[np.ndarray]]:
        """The rows of each range, some at a time; a batch never has rows of two ranges. Raises as `input_ids`."""
        for start, stop in borders:
            for first in range(start, stop, batch_size):
                yield [self.input_ids(row) for row in range(first, min(first + batch_size, stop))]

    def refuse_foreign_ids(self, borders: Sequence[tuple[int, int]]) -> None:
        """Raise ArgumentError if any of these rows has an id that the model does not know. Where the input says that
        its tokenizer knows no more words than the model, no row is read."""
        folders = [self._annotation.input_folder]
        if self._annotation.retrieval_folder:
            folders.append(self._annotation.retrieval_folder)
        known = self._annotation.model.vocab_size
        for folder in folders:
            vocab_size = (provenance.read_meta(folder) or {}).get("vocab_size")
            if vocab_size is not None and vocab_size != known:
                cli.warn(
                    f"{folder} was made with a tokenizer of {vocab_size:,} words, and the model knows {known:,}: make "
                    f"sure that it is the model's own"
                )
            if vocab_size is None or vocab_size > known:
                for _ in self.batches(borders, 1):
                    pass
                return

    def _refuse_foreign(self, ids: np.ndarray, folder: Path, row: int) -> None:
        known = self._annotation.model.vocab_size
        if ids.min() < 0 or ids.max() >= known:
            raise ArgumentError(
                f"row {row} of {folder} has ids from {ids.min()} to {ids.max()}, and the model knows only {known} "
                f"words: another tokenizer made the token files"
            )


if __name__ == "__main__":
    cli.run(main)
