"""Embed the passages of a retrieval corpus.

reads   CORPUS/{shard}/{domain}.jsonl, as sample_mds_concat.py writes them; a text encoder
writes  EMB/{shard}/{domain}/part-00000/ (cepe_data/retrieval/embeddings.py says what is in it), EMB/embeddings.json

    python -m retrieval.embed_passages --corpus 8k_concat/retrieval --output EMB --model_dir facebook/contriever \\
        --shard_id 0 --num_shards 100
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli, shards, workers
from cepe_data.errors import DamagedFileError
from cepe_data.retrieval import embeddings
from cepe_data.retrieval.encoder import (
    GPU_DTYPE,
    Encoder,
    EncoderModel,
    WordPieces,
    add_encoder_arguments,
    word_piece_json,
)
from cepe_data.retrieval.plan_embedding import CHUNK_BYTES, Chunk, EmbeddingOptions, PlannedPart, list_corpus
from cepe_data.samples.passage_lines import lines_of
from cepe_data.storage import outputs
from cepe_data.storage.npy import write_npy
from cepe_data.storage.parts import Parts
from cepe_data.teacher import devices

PART_BYTES = 256_000_000
MEASURED_BYTES = 1 << 20


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="the folder of the corpus: OUT/retrieval")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    add_encoder_arguments(parser)
    parser.add_argument(
        "--normalize",
        action="store_true",
        help="scale vectors to length 1, for cosine similarity; an encoder with a Normalize module always does",
    )
    parser.add_argument(
        "--passage_prefix", default="", help="put before every passage for the encoder, such as 'passage: ' for E5"
    )
    parser.add_argument(
        "--part_bytes",
        type=cli.positive_count,
        default=PART_BYTES,
        help="bytes of a corpus file in a part; a killed run repeats at most one",
    )
    parser.add_argument(
        "--num_workers", type=cli.positive_count, default=workers.default_num_workers(), help="processes that tokenize"
    )
    cli.add_overwrite_argument(parser)
    cli.add_disk_argument(parser)
    parser.add_argument("--dry_run", action="store_true", help="say what all shards would take, and write nothing")
    shards.add_shard_arguments(parser)
    return parser.parse_args(arguments)


def main() -> int:
    args = cli.typed(EmbeddingOptions, parse_args())
    start = time.monotonic()
    shard_id, num_shards = shards.resolve_shard(args.shard_id, args.num_shards, args.dry_run)
    files = list_corpus(args.corpus, args.part_bytes)
    model = EncoderModel.find(args.model_dir)
    [device] = devices.choose_devices(args.device, 1)
    args = replace(args, dtype=devices.resolve_dtype(args.dtype, device, GPU_DTYPE))
    planned = [PlannedPart.of(args, model, file, part) for file in files for part in range(file.num_parts)]
    parts = Parts.of(args.output, [part.output for part in planned])
    todo = [planned[part] for part in parts.todo(shard_id, num_shards)]
    num_rows = 0
    if todo:
        model.check_prefix(args.passage_prefix, "--passage_prefix", ("passage", "document", "corpus"))
        if not args.dry_run:
            args.require_disk(args.output, sum(one.num_bytes for one in todo if not one.output.path.exists()))
        core = workers.run_in_child(word_piece_json, model)
        encoder = Encoder(model, args.dtype, device, args.normalize, args.batch_size)
        if args.dry_run:
            return report_dry_run(todo, encoder, PassageReader(core, args.passage_prefix), args)
        for folder in {part.output.path.parent for part in todo}:
            outputs.remove_stale_temporaries(folder)
        num_rows = embed(todo, encoder, core, args)
    elif args.dry_run:
        cli.say("nothing is left to do")
        return cli.EXIT_OK
    outputs.remove_stale_temporaries(args.output)
    embeddings.write_manifest(args.output, files)
    cli.say(
        f"shard {shard_id} of {num_shards}: {num_rows:,} passages in {len(todo)} parts, {cli.seconds_since(start)} → "
        f"{args.output}"
    )
    return cli.EXIT_OK


@dataclass(frozen=True)
class Passages:
    """The passages of a chunk: numbers in their file, int64 [n]; token ids, int [n, chunk size]; token ids of their
    neighbors, and word pieces, each concatenated, with lengths."""

    numbers: np.ndarray
    ids: np.ndarray
    neighbors: np.ndarray
    neighbor_lengths: np.ndarray
    word_pieces: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class PassageReader:
    """The task that parses and tokenizes the lines of a chunk.

    Raises (when called):
        DamagedFileError: if a line is not a passage; names the file and the line.
    """

    tokenizer_json: str
    prefix: str

    @cached_property
    def _word_pieces(self) -> WordPieces:
        return WordPieces(self.tokenizer_json, self.prefix)

    def __call__(self, chunk: Chunk) -> Passages:
        import orjson

        part, name = chunk.part, f"{chunk.part.file.name}_"
        numbers, contents, ids, neighbors = [], [], [], []
        for position, line in lines_of(part.source, chunk.start, chunk.stop):
            try:
                record = orjson.loads(line)
                domain_and_shard, number = record["id"][: len(name)], int(record["id"][len(name) :])
                if domain_and_shard != name:
                    raise ValueError(f"its id is {record['id']}, not {name}…")
                if not isinstance(record["contents"], str):
                    raise ValueError("its contents are not text")
                ids.append(token_ids(record["contents_token_ids"], part.token_dtype))
                neighbors.append(token_ids(record["neighbor_token_ids"], part.token_dtype))
                if ids[-1].shape != ids[0].shape or ids[-1].ndim != 1:
                    raise ValueError(f"it has {ids[-1].shape} tokens, others have {ids[0].shape}")
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise DamagedFileError(
                    f"{part.source}: the line at byte {position:,} is not a passage ({error}): make the file again"
                ) from None
            numbers.append(number)
            contents.append(record["contents"])
        word_pieces, lengths = self._word_pieces.encode(contents)
        empty = np.empty(0, part.token_dtype)
        return Passages(
            np.array(numbers, np.int64),
            np.stack(ids) if ids else np.empty((0, 0), part.token_dtype),
            np.concatenate([empty, *neighbors]),
            np.fromiter(map(len, neighbors), np.int64, len(neighbors)),
            word_pieces,
            lengths,
        )


def report_dry_run(todo: Sequence[PlannedPart], encoder: Encoder, read: PassageReader, args: EmbeddingOptions) -> int:
    """Print what embedding these parts takes, from some timed passages."""
    part = todo[0]
    passages = read(Chunk(part, part.start, min(part.start + MEASURED_BYTES, part.stop)))
    num_rows, num_bytes = (sum(getattr(part, name) for part in todo) for name in ("num_passages", "num_bytes"))
    left = f"{len(todo)} parts are left, about {int(num_rows):,} passages and as many vectors"
    encoder.report_time(passages.word_pieces, passages.lengths, left, num_rows)
    cli.report_disk(args.output, int(num_bytes))
    return cli.EXIT_OK


def token_ids(ids: object, dtype: np.dtype) -> np.ndarray:
    """A list of ids as an array. Raises ValueError if one does not fit."""
    array = np.array(ids, np.int64)
    if array.size and not 0 <= array.min() <= array.max() <= np.iinfo(dtype).max:
        raise ValueError(f"it has ids from {array.min()} to {array.max()}")
    return array.astype(dtype)


def embed(todo: Sequence[PlannedPart], encoder: Encoder, core: str, args: EmbeddingOptions) -> int:
    """Write these parts; workers read and tokenize the next while one is embedded. Returns the number of passages."""
    num_rows = 0
    chunks = (chunk for part in todo for chunk in part.chunks())
    num_bytes = sum(part.stop - part.start for part in todo)
    with (
        workers.Workers(args.num_workers, PassageReader(core, args.passage_prefix)) as pool,
        cli.progress_bar(num_bytes, "B", "embed", unit_scale=True) as bar,
    ):
        read = pool.map_in_order(chunks, lambda chunk: chunk.stop - chunk.start, args.part_bytes + CHUNK_BYTES)
        collected: list[Passages] = []
        for chunk, passages in read:
            collected.append(passages)
            if chunk.stop == chunk.part.stop:
                num_rows += write_embeddings(chunk.part, collected, encoder)
                bar.update(chunk.part.stop - chunk.part.start)
                collected = []
    return num_rows


def write_embeddings(part: PlannedPart, collected: Sequence[Passages], encoder: Encoder) -> int:
    """Embed the passages of a part and publish it. Returns their number.

    Raises:
        DamagedFileError: if their numbers are not consecutive, their lengths differ, or a vector is too large.
    """
    kept = [passages for passages in collected if len(passages.numbers)]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(passages, name) for passages in kept]) if kept else np.empty(0, np.int64)

    numbers = joined("numbers")
    if (np.diff(numbers) != 1).any():
        raise DamagedFileError(f"{part.source}: its passages are not numbered one after the other: make it again")
    if len({passages.ids.shape[1] for passages in kept}) > 1:
        raise DamagedFileError(f"{part.source}: its passages have different lengths: make it again")
    vectors = encoder.embed(joined("word_pieces"), joined("lengths")).astype(np.float16)
    if not np.isfinite(vectors).all():
        raise DamagedFileError(f"{part.source}: vectors are too large for float16: use --normalize")
    arrays: dict[str, Any] = {
        "embeddings": vectors,
        "passages": joined("ids"),
        "neighbors": joined("neighbors"),
        "neighbor_offsets": np.concatenate([np.zeros(1, np.int64), np.cumsum(joined("neighbor_lengths"))]),
    }
    with part.output.draft(is_folder=True) as draft:
        for name, array in arrays.items():
            write_npy(draft.path / f"{name}.npy", array)
        first_number = int(numbers[0]) if len(numbers) else 0
        draft.publish({"rows": len(numbers), "first_number": first_number, "vocab_size": part.vocab_size})
    return len(numbers)


if __name__ == "__main__":
    cli.run(main)
