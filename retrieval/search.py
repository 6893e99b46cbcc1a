"""Find the best passages for every row of a set, exactly.

reads   QUERIES/{domain}/ (MDS of a sampler), EMB (of embed_passages), the same text encoder, TOKENIZED_DIR/tokenizer
writes  HITS/{domain}/: keys.npy, scores.npy; before the merge, the hits in each shard of the corpus are in
        {domain}.parts/, and the embedded queries in {domain}.queries/

    python -m retrieval.search --queries 8k_concat/test --domain all --embeddings EMB --output HITS \\
        --model_dir facebook/contriever --topk 100 --shard_id 0 --num_shards 20
    python -m retrieval.search … --num_shards 20 --merge
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli, shards, workers
from cepe_data.retrieval.embeddings import NO_KEY, Embeddings
from cepe_data.retrieval.encoder import Encoder, EncoderModel, word_piece_json
from cepe_data.retrieval.plan_search import HIT_BYTES, Search, SearchOptions, find_encoder, plan_search
from cepe_data.retrieval.row_texts import RowTexts, add_query_arguments
from cepe_data.retrieval.topk import TopK, block_rows
from cepe_data.samples.spans import shares_span
from cepe_data.storage import mds, outputs, provenance
from cepe_data.storage.npy import NpyRows, write_header, write_npy
from cepe_data.storage.parts import part_ranges
from cepe_data.teacher import devices
from cepe_data.tokens import tokenizers

QUERIES_AT_ONCE = 1024
MEASURED_QUERIES = 8192
ROWS_AT_ONCE = 64


def overfetch(text: str) -> float:
    """A value of `--overfetch`. Raises argparse.ArgumentTypeError if it is not a number from 1 on."""
    with suppress(ValueError):
        if 1 <= (number := float(text)) <= cli.MAX_COUNT:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--queries", type=Path, required=True, help="the folder of the domain folders: OUT/test")
    parser.add_argument(
        "--domain", default="all", help="whose rows are the queries: all, or domains with commas between them"
    )
    parser.add_argument("--embeddings", type=Path, required=True, help="what embed_passages wrote")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--topk", type=cli.positive_count, default=100, help="passages for every row")
    parser.add_argument(
        "--exclude_overlap",
        type=cli.positive_count,
        default=None,
        metavar="TOKENS",
        help="drop passages that share so many tokens in a row with the row they are retrieved for",
    )
    parser.add_argument(
        "--overfetch", type=overfetch, default=2.0, help="with --exclude_overlap, find so many times --topk first"
    )
    add_query_arguments(parser)
    parser.add_argument("--merge", action="store_true", help="join what all shards found, and search nothing")
    parser.add_argument("--delete_parts", action="store_true", help="remove what the shards found once it is joined")
    parser.add_argument("--allow_shortage", action="store_true", help="exit 0 where rows have fewer than --topk")
    cli.add_overwrite_argument(parser)
    cli.add_disk_argument(parser)
    parser.add_argument("--dry_run", action="store_true", help="say what all shards would take, and write nothing")
    shards.add_shard_arguments(parser)
    return parser.parse_args(arguments)


def main() -> int:
    args = cli.typed(SearchOptions, parse_args())
    start = time.monotonic()
    shard_id, num_shards = args.resolve_shard()
    corpus = Embeddings(args.embeddings)
    model = find_encoder(args, corpus)
    sets = [plan_search(args, corpus, domain) for domain in mds.find_domains(args.queries, args.domain)]
    todo = [one for one in sets if not one.hits.is_done()]
    for one in sets:
        if one not in todo:
            cli.say(f"{one.hits.path}: skipped, made before with the same arguments")
    if todo and not args.merge:
        missing = [(one, one.parts.todo(shard_id, num_shards)) for one in todo]
        num_bytes = sum(len(numbers) * one.num_rows * one.fetch * HIT_BYTES for one, numbers in missing)
        num_bytes += sum(
            4 * model.dimension * one.num_rows
            for one, numbers in missing
            if numbers and not one.embedded_queries.is_done()
        )
        if args.dry_run:
            return report_dry_run(args, corpus, missing, num_bytes)
        args.require_disk(args.output, num_bytes)
        search(args, corpus, [(one, numbers) for one, numbers in missing if numbers], model)
        num_queries = sum(one.num_rows for one in todo)
        num_searched = len({number for _, numbers in missing for number in numbers})
        cli.say(
            f"shard {shard_id} of {num_shards}: {num_queries:,} queries, {num_searched} shards of the corpus, "
            f"{cli.seconds_since(start)} → {args.output}"
        )
    if args.dry_run:
        cli.say("nothing is left to do")
        return cli.EXIT_OK
    if not args.merge and num_shards > 1:
        return cli.EXIT_OK
    for one in todo:
        one.parts.require_all(num_shards)
    for one in todo:
        merge(args, corpus, one, start)
    if args.delete_parts:
        for one in sets:
            outputs.remove(one.parts.directory)
            outputs.remove(one.embedded_queries.path)
    return report_shortage(args, sets)


def report_dry_run(
    args: SearchOptions, corpus: Embeddings, todo: Sequence[tuple[Search, Sequence[int]]], num_bytes: int
) -> int:
    """Print what searching takes, from the time of one block of passages and random queries."""
    num_pairs = 0
    for one, numbers in todo:
        of_shards = [part for number in numbers for part in corpus.parts_of(corpus.shards[number])]
        num_pairs += one.num_rows * sum(part.num_rows for part in of_shards)
    num_rows = sum(one.num_rows for one, _ in todo)
    [device] = devices.choose_devices(args.device, 1)
    first_key, block = next(corpus.blocks(corpus.parts, block_rows(int(corpus.kind["dimension"]), device)))
    queries = np.random.default_rng(0).standard_normal((min(num_rows, MEASURED_QUERIES), block.shape[1]), np.float32)
    for _ in range(2):  # the first one chooses kernels
        start = time.perf_counter()
        with closing(TopK(queries, todo[0][0].fetch, device)) as best:
            best.add(block, first_key)
            best.best()
        seconds = (time.perf_counter() - start) / len(queries) / len(block)
    num_parts = sum(len(numbers) for _, numbers in todo)
    cli.say(
        f"of all shards, {num_parts} parts are left: {num_rows:,} rows, {corpus.num_passages:,} passages, "
        f"{num_rows * args.topk:,} hits; {num_pairs:,} products\n"
        f"about {num_pairs * seconds / 3600:,.2f} hours on {device}, beside reading"
    )
    cli.report_disk(args.output, num_bytes)
    return cli.EXIT_OK


def search(
    args: SearchOptions,
    corpus: Embeddings,
    todo: Sequence[tuple[Search, Sequence[int]]],
    model: EncoderModel,
) -> None:
    """Write these parts of each search. A shard of the corpus is read once for the rows of all sets."""
    if not todo:
        return
    sets = [one for one, _ in todo]
    [device] = devices.choose_devices(args.device, 1)
    for one in sets:
        for folder in (one.hits.path.parent, one.parts.directory):
            outputs.remove_stale_temporaries(folder)
    embed_queries(args, corpus, sets, model, device)
    vectors = np.concatenate([read_queries(one) for one in sets])
    boundaries = np.cumsum([0, *(one.num_rows for one in sets)])
    rows_at_once = block_rows(vectors.shape[1], device)
    numbers = sorted(set().union(*(missing for _, missing in todo)))
    of_todo = {number: corpus.parts_of(corpus.shards[number]) for number in numbers}
    num_passages = sum(part.num_rows for of_shard in of_todo.values() for part in of_shard)
    with cli.progress_bar(num_passages, "passage", "search", unit_scale=True) as bar:
        for number, of_shard in of_todo.items():
            with closing(TopK(vectors, sets[0].fetch, device)) as best:
                for first_key, block in corpus.blocks(of_shard, rows_at_once):
                    best.add(block, first_key)
                    bar.update(len(block))
                keys, scores = best.best()
            for (one, missing), start, stop in zip(todo, boundaries[:-1], boundaries[1:], strict=True):
                if number in missing:
                    with one.parts[number].draft(is_folder=True) as draft:
                        write_npy(draft.path / "keys.npy", keys[start:stop])
                        write_npy(draft.path / "scores.npy", scores[start:stop])
                        draft.publish({"rows": one.num_rows})


def embed_queries(
    args: SearchOptions, corpus: Embeddings, sets: Sequence[Search], model: EncoderModel, device: str
) -> None:
    """Embed the queries of every set, once for all shards."""
    todo = [one for one in sets if not one.embedded_queries.is_done()]
    if not todo:
        return
    model.check_prefix(args.query_prefix, "--query_prefix", ("query",))
    word_pieces = workers.run_in_child(word_piece_json, model)
    dtype = todo[0].embedded_queries.made_with["dtype"]  # that of the passages, unless --dtype is another
    encoder = Encoder(model, dtype, device, corpus.kind["normalize"], args.batch_size)
    for one in todo:
        fingerprint = provenance.read_meta(one.queries).get("tokenizer") or corpus.kind["tokenizer"]
        tokenizer = tokenizers.find(args.tokenizer, args.tokenized_dir, fingerprint)
        vectors = np.empty((one.num_rows, model.dimension), np.float32)
        ranges = part_ranges(one.num_rows, QUERIES_AT_ONCE)
        read = RowTexts(one.queries, tokenizer, word_pieces, args.query_tokens, args.query_prefix)
        with (
            workers.Workers(min(args.num_workers, len(ranges)), read) as pool,
            cli.progress_bar(one.num_rows, "query", f"embed {one.domain}") as bar,
        ):
            for (start, stop), (ids, lengths) in pool.map_in_order(ranges):
                vectors[start:stop] = encoder.embed(ids, lengths)
                bar.update(stop - start)
        with one.embedded_queries.draft(is_folder=True) as draft:
            write_npy(draft.path / "embeddings.npy", vectors)
            draft.publish({"rows": one.num_rows})


def read_queries(one: Search) -> np.ndarray:
    """float32 [rows, dimension]: the embedded queries, as the first process to make them published them."""
    with NpyRows(one.embedded_queries.path / "embeddings.npy", "f", 2) as vectors:
        return vectors.read(0, vectors.size)


def merge(args: SearchOptions, corpus: Embeddings, one: Search, start_time: float) -> None:
    """Merge the hits of all shards of the corpus, drop passages that overlap their row, and publish the rest."""
    rows = mds.Rows(one.queries) if args.exclude_overlap else None
    num_dropped, num_short = 0, 0
    outputs.remove_stale_temporaries(one.hits.path.parent)
    with (
        ExitStack() as opened,
        one.hits.draft(is_folder=True) as draft,
        cli.progress_bar(one.num_rows, "row", f"merge {one.domain}") as bar,
    ):
        found = [
            (
                opened.enter_context(NpyRows(part.path / "keys.npy", num_axes=2)),
                opened.enter_context(NpyRows(part.path / "scores.npy", "f", 2)),
            )
            for part in one.parts
        ]
        keys_file, scores_file = (
            opened.enter_context((draft.path / name).open("wb")) for name in ("keys.npy", "scores.npy")
        )
        for file, dtype in ((keys_file, np.int64), (scores_file, np.float32)):
            write_header(file, np.dtype(dtype), one.num_rows, args.topk)
        for start in range(0, one.num_rows, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, one.num_rows)
            keys, scores = best_of_all(found, start, stop, one.fetch)
            if rows is not None and args.exclude_overlap:
                dropped = overlapping(corpus, rows, start, keys, args.exclude_overlap)
                num_dropped += int(dropped.sum())
                keys, scores = without(dropped, keys, scores)
            keys, scores = keys[:, : args.topk], scores[:, : args.topk]
            num_short += int((keys[:, -1] == NO_KEY).sum())
            keys_file.write(np.ascontiguousarray(keys).data)
            scores_file.write(np.ascontiguousarray(scores).data)
            bar.update(stop - start)
        keys_file.flush()
        scores_file.flush()
        names = [file.name for file in corpus.files]
        metadata = {"rows": one.num_rows, "dropped": num_dropped, "short_rows": num_short, "corpus_files": names}
        draft.publish(metadata)
    dropped_text = f", {num_dropped:,} passages dropped that overlap their row" if args.exclude_overlap else ""
    cli.say(f"{one.num_rows:,} rows{dropped_text}, {cli.seconds_since(start_time)} → {one.hits.path}")


def best_of_all(
    found: Sequence[tuple[NpyRows, NpyRows]], start: int, stop: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best hits of all shards for rows [start, stop): int64 keys and float32 scores, [rows, number]."""
    keys = np.concatenate([of_shard.read(start, stop) for of_shard, _ in found], axis=1)
    scores = np.concatenate([of_shard.read(start, stop) for _, of_shard in found], axis=1)
    order = np.lexsort((keys, -scores), axis=1)[:, :number]
    return np.take_along_axis(keys, order, 1), np.take_along_axis(scores, order, 1)


def overlapping(corpus: Embeddings, rows: Any, start: int, keys: np.ndarray, span: int) -> np.ndarray:
    """bool [rows, found]: which passages share a span of tokens with their row. `start` is the number of the first."""
    dropped = np.zeros(keys.shape, bool)
    there = keys != NO_KEY
    distinct, place = np.unique(keys[there], return_inverse=True)
    passages, _ = corpus.passages(distinct)
    places = np.zeros(keys.shape, np.int64)
    places[there] = place
    for number in range(len(keys)):
        row = rows[start + number]
        ids = np.concatenate([row["prev_token_ids"], row["token_ids"]])
        of_row = passages[places[number, there[number]]]
        dropped[number, there[number]] = shares_span(ids, of_row, span)
    return dropped


def without(dropped: np.ndarray, keys: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hits that are not dropped, in their order, padded with −1 and −inf."""
    order = np.argsort(dropped, axis=1, kind="stable")
    gone = np.take_along_axis(dropped, order, 1)
    keys, scores = np.take_along_axis(keys, order, 1), np.take_along_axis(scores, order, 1)
    keys[gone], scores[gone] = NO_KEY, -np.inf
    return keys, scores


def report_shortage(args: SearchOptions, sets: Sequence[Search]) -> int:
    """Print which sets have rows with fewer passages than asked for; return the exit status."""
    lines = []
    for one in sets:
        meta = provenance.read_meta(one.hits.path)
        if meta and meta["short_rows"]:
            lines.append((one.domain, one.num_rows, meta["short_rows"], meta["dropped"]))
    if not lines:
        return cli.EXIT_OK
    cli.say(f"shortage: rows with fewer than {args.topk} passages, because --exclude_overlap dropped too many. Pass a "
            f"larger --overfetch, or a smaller --topk to write_mds:")  # fmt: skip
    cli.say(cli.table(("domain", "rows", "short rows", "dropped passages"), lines))
    return cli.EXIT_OK if args.allow_shortage else cli.EXIT_SHORTAGE


if __name__ == "__main__":
    cli.run(main)
