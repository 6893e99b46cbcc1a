"""Write the retrieved passages of every row as an MDS set, row i for row i of the queries.

reads   HITS/{domain}/ (of search), EMB (of embed_passages), QUERIES/{domain}/
writes  OUTPUT/{domain}/ (MDS: retrieved_token_ids, retrieved_neighbor_token_ids, retrieval_scores), {domain}.keys.npy;
        before they are joined, its parts are in {domain}.parts/

    python -m retrieval.write_mds --hits HITS --embeddings EMB --queries 8k_concat/test --output RET/test
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.retrieval.embeddings import NO_KEY, Embeddings, keys_path
from cepe_data.retrieval.plan_search import RetrievedSetOptions, find_inputs
from cepe_data.storage import mds, outputs, provenance
from cepe_data.storage.npy import NpyRows, write_header
from cepe_data.storage.parts import PartedSet, add_parted_set_arguments, part_ranges

SHARD_BYTES = 64 << 20
KEYS_AT_ONCE = 1 << 16
MEASURED_ROWS = 16


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--hits", type=Path, required=True, help="what search wrote")
    parser.add_argument("--embeddings", type=Path, required=True, help="what embed_passages wrote")
    parser.add_argument("--queries", type=Path, required=True, help="the folder of the domain folders: OUT/test")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write: RET/test")
    parser.add_argument(
        "--domain", default="all", help="all that the queries have, or domains with commas between them"
    )
    parser.add_argument("--topk", type=cli.positive_count, default=None, help="passages of a row (default: all found)")
    add_parted_set_arguments(parser, SHARD_BYTES)
    return parser.parse_args(arguments)


def main() -> int:
    args = cli.typed(RetrievedSetOptions, parse_args())
    start = time.monotonic()
    shard_id, num_shards = args.resolve_shard()
    corpus = Embeddings(args.embeddings)
    sets = [RetrievedSet(args, corpus, domain) for domain in mds.find_domains(args.queries, args.domain)]
    todo = [one for one in sets if not args.merge and not one.of_set.joined.is_done()]
    if args.dry_run:
        return report_dry_run(args, todo)
    for one in todo:
        one.of_set.restore_parts(shard_id, num_shards)
    missing = [(one, one.of_set.todo(shard_id, num_shards)) for one in todo]
    args.require_disk(args.output, sum(one.of_set.count_rows(numbers) * one.row_bytes for one, numbers in missing))
    for one, numbers in missing:
        one.write(numbers)
    if not args.merge and num_shards > 1:
        cli.say(f"shard {shard_id} of {num_shards}: {cli.seconds_since(start)} → {args.output}")
        return cli.EXIT_OK
    for one in sets:
        one.of_set.join(num_shards, args.delete_parts, one.metadata, start, one.write_keys)
    return cli.EXIT_OK


def report_dry_run(args: RetrievedSetOptions, todo: Sequence[RetrievedSet]) -> int:
    """Print what is left of all shards, and what it takes, from the time of some rows of each set."""
    num_left, num_hits, num_bytes, seconds = 0, 0, 0.0, 0.0
    for one in todo:
        num_rows = one.of_set.count_rows(one.of_set.todo(0, 1))
        start = time.perf_counter()
        num_measured = len(list(one.rows(0, min(MEASURED_ROWS, one.of_set.num_rows))))
        seconds += (time.perf_counter() - start) * num_rows / num_measured
        num_left, num_hits = num_left + num_rows, num_hits + num_rows * one.topk
        num_bytes += num_rows * one.row_bytes
    cli.say(
        f"of all shards, {num_left:,} rows of {len(todo)} sets are left, {num_hits:,} hits\n"
        f"about {seconds / 3600:,.2f} hours of one process, beside reading"
    )
    cli.report_disk(args.output, int(num_bytes))
    return cli.EXIT_OK


class RetrievedSet:
    """The retrieved passages of the rows of one domain.

    Raises:
        ArgumentError: if the hits are not those of these queries and embeddings, or a row has too few.
    """

    def __init__(self, args: RetrievedSetOptions, corpus: Embeddings, domain: str) -> None:
        self._corpus, self._hits, queries = corpus, args.hits / domain, args.queries / domain
        meta = provenance.read_meta(self._hits) if self._hits.exists() else provenance.Meta()
        if not meta:
            raise ArgumentError(f"{self._hits} holds no hits: run search, and its --merge")
        if lost := provenance.lost_files(self._hits, meta.files):
            raise DamagedFileError(f"{lost[0]} is gone or has another size: remove {self._hits} and make it again")
        searched = {"input": mds.fingerprint(queries), "embeddings": corpus.fingerprint(corpus.parts)}
        of_hits = {name: meta.made_with.get(name) for name in searched}
        if differences := provenance.describe_differences(of_hits, searched):
            raise ArgumentError(
                f"{self._hits} was found for other rows than those of {queries}, or in other passages than those in "
                f"{corpus.folder}: {differences}"
            )
        found = int(meta.made_with["topk"])
        self.topk = args.topk or found
        if self.topk > found:
            raise ArgumentError(f"--topk {self.topk} is more than the {found} that {self._hits} has for a row")
        num_rows = mds.num_rows(queries)
        if meta["short_rows"]:
            self._require_hits()
        passages, _ = corpus.passages(np.array([corpus.parts[0].first_key]))
        columns = {
            "retrieved_token_ids": mds.array_column(passages.dtype, self.topk, passages.shape[1]),
            "retrieved_neighbor_token_ids": "json",
            "retrieval_scores": mds.array_column(np.dtype(np.float32), self.topk),
        }
        made_with = {"domain": domain, "topk": self.topk, "embeddings": searched["embeddings"]}
        # An id of a neighbour takes about six bytes as JSON, and most neighbours are as long as a passage.
        self.row_bytes = row_bytes = mds.row_bytes(columns) + 6 * passages.size * self.topk
        folder, inputs = args.output / domain, find_inputs(args, domain)
        part_rows = args.part_rows(folder, max(1, SHARD_BYTES // row_bytes))
        self.of_set = PartedSet(folder, columns, num_rows, part_rows, made_with, args, inputs)
        self.metadata = {
            "corpus_files": [file.name for file in corpus.files],
            "query_tokens": meta.made_with["query_tokens"],
            "tokenizer": corpus.kind["tokenizer"],
            "vocab_size": corpus.parts[0].meta.get("vocab_size"),
        }

    def _key_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The keys of all rows, some at a time, int64 [rows, topk], each block with the number of its first row."""
        with NpyRows(self._hits / "keys.npy", num_axes=2) as keys:
            for start, stop in part_ranges(keys.size, KEYS_AT_ONCE):
                yield start, keys.read(start, stop)[:, : self.topk]

    def _require_hits(self) -> None:
        for start, keys in self._key_blocks():
            short = keys[:, -1] == NO_KEY
            if short.any():
                row = start + int(short.argmax())
                raise ArgumentError(
                    f"row {row} of {self._hits} has fewer than {self.topk} passages: lower --topk, or search again "
                    f"with a larger --overfetch"
                )

    def write(self, parts: Sequence[int]) -> None:
        """Write parts, by their numbers."""
        self.of_set.remove_stale_temporaries()
        with cli.progress_bar(self.of_set.count_rows(parts), "row", self.of_set.folder.name) as bar:
            for part in parts:
                self.of_set.write_part(part, self.rows(*self.of_set.part_ranges[part]))
                bar.update(self.of_set.count_rows([part]))

    def rows(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        with (
            NpyRows(self._hits / "keys.npy", num_axes=2) as all_keys,
            NpyRows(self._hits / "scores.npy", "f", 2) as all_scores,
        ):
            keys, scores = all_keys.read(start, stop)[:, : self.topk], all_scores.read(start, stop)[:, : self.topk]
        distinct, place = np.unique(keys, return_inverse=True)
        passages, neighbors = self._corpus.passages(distinct)
        places = place.reshape(keys.shape)
        for row in range(stop - start):
            yield {
                "retrieved_token_ids": passages[places[row]],
                "retrieved_neighbor_token_ids": [neighbors[number].tolist() for number in places[row]],
                "retrieval_scores": scores[row],
            }

    def write_keys(self, draft: outputs.Draft) -> None:
        """Write the keys of the passages of all rows, int64 [rows, topk], beside the set."""
        with draft.sidecar(keys_path(draft.final)).open("wb") as file:
            write_header(file, np.dtype(np.int64), self.of_set.num_rows, self.topk)
            for _, keys in self._key_blocks():
                file.write(np.ascontiguousarray(keys).data)


if __name__ == "__main__":
    cli.run(main)
