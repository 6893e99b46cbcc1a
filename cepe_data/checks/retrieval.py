"""Check retrieved passages: rows that belong to the queries', passages that are those of their keys, scores.

Quick by default: files, sizes, indexes, columns, the queries they were found for, and a seeded sample of rows. `--deep`
looks at every row, and compares the hashes of all files. With `--corpus` the best passages of a row are looked up in
the retrieval corpus; with `--embeddings` all of them in the embedded one, and with `--hits` their scores are computed
once more.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import atomic, cli, mds
from cepe_data.checks import sets
from cepe_data.checks.report import Report
from cepe_data.embeddings import Embeddings, passage_ids
from cepe_data.errors import DamagedFileError
from cepe_data.npy import NpyRows

HELP = "check retrieved passages"
SCORE_TOLERANCE = 1e-5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RET", help="such as RET/test, or one domain in it")
    parser.add_argument("--queries", type=Path, default=None, help="the rows they were found for: OUT/test")
    parser.add_argument("--corpus", type=Path, default=None, help="the retrieval corpus: OUT/retrieval")
    parser.add_argument("--embeddings", type=Path, default=None, help="what embed_passages wrote")
    parser.add_argument("--hits", type=Path, default=None, help="what search wrote, for the vectors of the queries")
    parser.add_argument("--passages", type=cli.count, default=2, help="with --corpus: looked up for a row, the best")
    sets.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check every set of RET."""
    report = Report.of("retrieval", args)
    folders = sets.find_sets(args.folder)
    checker = RetrievalChecker(args.queries, args.corpus, args.embeddings, args.hits, args.passages)
    for flag, why in (("queries", "that the rows are those of the queries"), ("corpus", "the texts of passages")):
        if getattr(args, flag) is None and (flag != "corpus" or args.embeddings is None):
            cli.warn(f"{why} is not checked without --{flag}")
    num_compared = sets.check_sets(report, args, folders, checker)
    num_rows = sum(mds.num_rows(folder) for folder in folders if (folder / mds.INDEX_NAME).exists())
    report.facts |= {"sets": len(folders), "rows": num_rows, "passages_compared": num_compared}
    return report.finish(
        f"{len(folders)} sets, {num_rows:,} rows, {num_compared:,} passages compared: {len(report.findings)} findings",
        args.folder,
    )


def keys_path(folder: Path) -> Path:
    """`RET/test/wiki` → `RET/test/wiki.keys.npy`."""
    return folder.with_name(f"{folder.name}.keys.npy")


@dataclass(frozen=True)
class RetrievalChecker:
    """Looks at sets of retrieved passages."""

    queries: Path | None
    corpus: Path | None
    embeddings: Path | None
    hits: Path | None
    num_passages: int

    @cached_property
    def embedded(self) -> Embeddings | None:
        """The embedded corpus, opened once in each process."""
        return Embeddings(self.embeddings) if self.embeddings else None

    def check_set(self, report: Report, folder: Path) -> bool:
        """Columns, keys, queries, corpus."""
        before = len(report.findings)
        columns = mds.read_columns(folder)
        made_with = (atomic.read_meta(folder) or {"made_with": {}})["made_with"]
        try:
            _, (topk, _) = mds.column_array(columns["retrieved_token_ids"])
            if mds.column_array(columns["retrieval_scores"])[1] != (topk,):
                raise ValueError
            if columns["retrieved_neighbor_token_ids"] != "json":
                raise ValueError
        except (KeyError, ValueError):
            report.found(folder, f"has not the columns of retrieved passages, but {columns}")
            return False
        try:
            with NpyRows(keys_path(folder), num_axes=2) as keys:
                if (keys.size, *keys.row_shape) != (mds.num_rows(folder), topk):
                    what = f"has the shape {[keys.size, *keys.row_shape]}, not {topk} keys for every row"
                    report.found(keys_path(folder), what)
        except (DamagedFileError, FileNotFoundError) as error:
            report.found(keys_path(folder), str(error))
        if self.queries is not None:
            queries = self.queries / folder.name
            if not (queries / mds.INDEX_NAME).exists():
                report.found(folder, f"has no queries: {queries} is not there")
            elif made_with.get("input") != mds.fingerprint(queries):
                report.found(folder, f"was found for other rows than those that are in {queries} now")
            elif mds.num_rows(queries) != mds.num_rows(folder):
                report.found(folder, f"has {mds.num_rows(folder):,} rows, {queries} has {mds.num_rows(queries):,}")
        if self.embedded and made_with.get("embeddings") != self.embedded.fingerprint(self.embedded.parts):
            report.found(folder, f"was found in other passages than those that are in {self.embeddings} now")
        return len(report.findings) == before

    def groups(self, folder: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Rows as they come."""
        yield from np.array_split(rows, max(1, len(rows) // 256))

    def check_rows(self, folder: Path, rows: np.ndarray) -> sets.Result:
        """Scores that descend, passages that differ and are what their keys say."""
        meta, result = atomic.read_meta(folder), sets.Result()
        assert meta is not None
        vocab_size = meta.get("vocab_size") or 1 << 31
        with NpyRows(keys_path(folder), num_axes=2) as all_keys:
            for number, row in sets.read_ids(mds.Rows(folder), rows.tolist(), result):
                keys = all_keys.read(number, number + 1)[0]
                names = passage_ids(meta["corpus_files"], keys)
                what = describe_wrong(row, keys, vocab_size)
                if not what and self.embedded is not None:
                    what = self._compare_with_embedded(row, keys, names)
                    result.num_compared += len(keys)
                if not what and self.corpus is not None:
                    what = self._compare_with_corpus(row, names[: self.num_passages])
                    result.num_compared += len(names[: self.num_passages])
                if not what and self.embedded is not None and self.hits is not None:
                    what = self._compare_scores(folder.name, number, row, keys)
                if what:
                    result.findings.append((number, what))
        return result

    def _compare_with_embedded(self, row: dict[str, Any], keys: np.ndarray, names: list[str]) -> str:
        assert self.embedded is not None
        passages, neighbors = self.embedded.passages(keys)
        for place, name in enumerate(names):
            is_same = np.array_equal(passages[place], row["retrieved_token_ids"][place])
            if not is_same or neighbors[place].tolist() != row["retrieved_neighbor_token_ids"][place]:
                return f"has at place {place} not the passage {name} of {self.embeddings}, whose key is there"
        return ""

    def _compare_with_corpus(self, row: dict[str, Any], names: list[str]) -> str:
        assert self.corpus is not None
        for place, name in enumerate(names):
            domain, shard, number = name.rsplit("_", 2)
            path = self.corpus / shard / f"{domain}.jsonl"
            record = find_passage(path, int(number)) if path.exists() else None
            if record is None or record["id"] != name:
                return f"has at place {place} the passage {name}, which is not in {path}"
            if (
                record["contents_token_ids"] != row["retrieved_token_ids"][place].tolist()
                or record["neighbor_token_ids"] != row["retrieved_neighbor_token_ids"][place]
            ):
                return f"has at place {place} not the passage {name} of {path}, whose key is there"
        return ""

    def _compare_scores(self, domain: str, number: int, row: dict[str, Any], keys: np.ndarray) -> str:
        assert self.embedded is not None and self.hits is not None
        path = self.hits / f"{domain}.queries/embeddings.npy"
        with NpyRows(path, "f", 2) as queries:
            query = queries.read(number, number + 1)[0].astype(np.float64)
        expected = self.embedded.vectors(keys).astype(np.float64) @ query
        wrong = np.abs(expected - row["retrieval_scores"]) > SCORE_TOLERANCE * np.maximum(1, np.abs(expected))
        if not wrong.any():
            return ""
        place = int(np.argmax(wrong))
        stored = row["retrieval_scores"][place]
        return f"has at place {place} the score {stored:.6g}; query and passage give {expected[place]:.6g}"


def describe_wrong(row: dict[str, Any], keys: np.ndarray, vocab_size: int) -> str:
    """What cannot be right about a row; empty if nothing."""
    scores, ids, neighbors = row["retrieval_scores"], row["retrieved_token_ids"], row["retrieved_neighbor_token_ids"]
    if not np.isfinite(scores).all():
        return "has scores that are no numbers"
    if (scores[1:] > scores[:-1]).any():
        return f"has scores that do not descend, at place {1 + int(np.argmax(scores[1:] > scores[:-1]))}"
    if len(np.unique(keys)) < len(keys):
        return "has the same passage twice"
    if ids.min() < 0 or ids.max() >= vocab_size:
        return f"has ids outside of 0 … {vocab_size - 1}"
    if len(neighbors) != len(keys):
        return f"has {len(neighbors)} neighbors for {len(keys)} passages"
    return ""


def find_passage(path: Path, number: int) -> dict[str, Any] | None:
    """The passage with this number in a file of the retrieval corpus, in which they stand in order; None if it is not
    there. By bisection over the bytes of the file."""
    with path.open("rb") as file:
        low, high = 0, path.stat().st_size
        while low < high:  # the line begins in [low, high)
            middle = (low + high) // 2
            file.seek(max(0, middle - 1))
            if middle:
                file.readline()
            start, line = file.tell(), file.readline()
            try:
                record = json.loads(line) if start < high and line else None
                found = int(record["id"].rpartition("_")[2]) if record else number + 1
            except (ValueError, KeyError, TypeError, AttributeError):
                return None
            if found == number:
                return record
            if found < number:
                low = start + len(line)
            else:
                high = middle
    return None
