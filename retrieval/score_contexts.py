"""Score the chunks before every row against its query, as CEPE's RePlug mode reads them.

reads   INPUT_DIR/{domain}/ (MDS of a sampler), a text encoder, TOKENIZED_DIR/tokenizer
writes  OUTPUT/{domain}/ (MDS: the columns of the input, and context_scores); before they are joined, its parts are in
        {domain}.parts/

    python -m retrieval.score_contexts --input_dir 32k_ab/test --model_dir facebook/contriever \\
        --output 32k_ab/test_contriever_scores
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli, workers
from cepe_data.retrieval.context_scores import (
    COLUMN,
    SHARD_BYTES,
    ScoredSet,
    ScoreOptions,
    plan_scores,
    scores_of,
    texts_of,
)
from cepe_data.retrieval.encoder import Encoder, EncoderModel, word_piece_json
from cepe_data.retrieval.row_texts import RowTexts, add_query_arguments
from cepe_data.storage import mds
from cepe_data.storage.parts import add_parted_set_arguments
from cepe_data.teacher import devices
from cepe_data.tokens import tokenizers

TEXTS_AT_ONCE = 4096


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--input_dir", type=Path, required=True, help="the folder of the domain folders: OUT/test")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--domain", default="all", help="a domain, a list with commas, or all")
    parser.add_argument(
        "--chunk_tokens", type=cli.positive_count, default=256, help="tokens of a chunk; CEPE's --context_size"
    )
    parser.add_argument("--passage_prefix", default="", help="put before every chunk, as in embed_passages")
    add_query_arguments(parser)
    add_parted_set_arguments(parser, SHARD_BYTES)
    return parser.parse_args(arguments)


def main() -> int:
    args = cli.typed(ScoreOptions, parse_args())
    start = time.monotonic()
    shard_id, num_shards = args.resolve_shard()
    domains = mds.find_domains(args.input_dir, args.domain)
    model = EncoderModel.find(args.model_dir)
    sets = [plan_scores(args, domain, model) for domain in domains]
    if not args.merge:
        missing = [one for one in sets if not one.of_set.joined.is_done()]
        for one in missing:
            if not args.dry_run:
                one.of_set.restore_parts(shard_id, num_shards)
        todo = [(one, parts) for one in missing if (parts := one.of_set.todo(shard_id, num_shards))]
        if args.dry_run:
            return report_dry_run(args, model, todo)
        args.require_disk(args.output, count_bytes(todo))
        if todo:
            write(args, model, todo)
        if num_shards > 1:
            cli.say(f"shard {shard_id} of {num_shards}: {cli.seconds_since(start)} → {args.output}")
            return cli.EXIT_OK
    for one in sets:
        one.of_set.join(num_shards, args.delete_parts, one.metadata, start)
    return cli.EXIT_OK


def report_dry_run(args: ScoreOptions, model: EncoderModel, todo: Sequence[tuple[ScoredSet, list[int]]]) -> int:
    """Print what is left of all shards, and what it takes, from the time of a block of rows."""
    if not todo:
        cli.say("nothing is left to do")
        return cli.EXIT_OK
    one, (part, *_) = todo[0]
    [(encoder, reader)] = open_encoders(args, model, [one])
    num_rows = sum(one.of_set.count_rows(parts) for one, parts in todo)
    num_texts = sum(one.of_set.count_rows(parts) * (1 + one.num_chunks) for one, parts in todo)
    left = f"{num_rows:,} rows of {len(todo)} sets are left, {num_texts:,} texts to embed"
    encoder.report_time(*reader(blocks_of(one, part)[0]), left, num_texts)
    cli.report_disk(args.output, count_bytes(todo))
    return cli.EXIT_OK


def count_bytes(todo: Sequence[tuple[ScoredSet, list[int]]]) -> int:
    """The bytes of parts."""
    return sum(one.of_set.count_bytes(parts) for one, parts in todo)


def write(args: ScoreOptions, model: EncoderModel, todo: Sequence[tuple[ScoredSet, list[int]]]) -> None:
    """Write these parts; workers read and tokenize the next rows while some are embedded."""
    opened = open_encoders(args, model, [one for one, _ in todo])
    for (one, parts), (encoder, reader) in zip(todo, opened, strict=True):
        one.of_set.remove_stale_temporaries()
        # A block is of one part: the bytes of a part do not depend on which parts the same run makes.
        blocks = [block for part in parts for block in blocks_of(one, part)]
        with (
            workers.Workers(min(args.num_workers, len(blocks)), reader) as pool,
            cli.progress_bar(one.of_set.count_rows(parts), "row", f"score {one.source.name}") as bar,
        ):
            read = pool.map_in_order(blocks)
            scores = (scores_of(encoder.embed(*texts), one.num_chunks) for _, texts in read)
            for part in parts:
                one.of_set.write_part(part, scored_rows(one, part, scores))
                bar.update(one.of_set.count_rows([part]))


def open_encoders(
    args: ScoreOptions, model: EncoderModel, sets: Sequence[ScoredSet]
) -> Iterator[tuple[Encoder, RowTexts]]:
    """The encoder for each set, loaded once for all sets of a dtype, and the task that reads its texts."""
    [device] = devices.choose_devices(args.device, 1)
    model.check_prefix(args.query_prefix, "--query_prefix", ("query",))
    model.check_prefix(args.passage_prefix, "--passage_prefix", ("passage", "document", "corpus"))
    word_pieces = workers.run_in_child(word_piece_json, model)
    load = functools.cache(lambda dtype: Encoder(model, dtype, device, normalize=False, batch_size=args.batch_size))
    for one in sets:
        tokenizer = tokenizers.find(args.tokenizer, args.tokenized_dir, one.metadata["tokenizer"])
        yield load(one.dtype), texts_of(one.source, tokenizer, word_pieces, one.of_set.made_with)


def blocks_of(one: ScoredSet, part: int) -> list[tuple[int, int]]:
    """The rows of a part in blocks: first row, and the row after the last."""
    start, stop = one.of_set.part_ranges[part]
    step = max(1, TEXTS_AT_ONCE // (1 + one.num_chunks))
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]


def scored_rows(one: ScoredSet, part: int, scores: Iterator[np.ndarray]) -> Iterator[dict[str, Any]]:
    """The rows of a part; `scores` has an array for each of its blocks."""
    rows = mds.Rows(one.source)
    for first, stop in blocks_of(one, part):
        of_block = next(scores)
        for number in range(first, stop):
            yield {**rows[number], COLUMN: of_block[number - first]}


if __name__ == "__main__":
    cli.run(main)
