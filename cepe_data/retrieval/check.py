"""Check retrieved passages: each row belongs to its query, the passages are those of their keys, the scores descend.

Quick by default: files, sizes, indexes, columns, the queries that the passages were found for, and a seeded sample of
rows. `--deep` checks every row, and the hashes of all files. `--corpus` compares the best passages of a row with the
retrieval corpus; `--embeddings` compares all of them with the embedded corpus, whose parts are checked, too. `--hits`
compares keys and scores with the hits; with `--embeddings` as well, the scores are recomputed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.retrieval import check_hits
from cepe_data.retrieval.embeddings import Embeddings, keys_path, passage_ids
from cepe_data.storage import mds, provenance, verify
from cepe_data.storage.npy import NpyRows
from cepe_data.storage.report import Report

HELP = "check retrieved passages"
SCORE_TOLERANCE = 1e-5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RET", help="such as RET/test, or one domain in it")
    parser.add_argument("--queries", type=Path, default=None, help="the rows they were found for: OUT/test")
    parser.add_argument("--corpus", type=Path, default=None, help="the retrieval corpus: OUT/retrieval")
    parser.add_argument("--embeddings", type=Path, default=None, help="what embed_passages wrote")
    parser.add_argument("--hits", type=Path, default=None, help="what search wrote")
    parser.add_argument(
        "--passages",
        type=cli.count,
        default=RetrievalCheck.passages,
        help="with --corpus: looked up for a row, the best",
    )
    verify.add_arguments(parser)


def check(report: Report, options: RetrievalCheck, checked: set[Path] | None = None) -> int:
    """Check every set of RET. Embeddings and hits in `checked` are not checked again; those that are checked here are
    added to it.

    Raises:
        ArgumentError: if a folder of the options is not what it should be.
    """
    checked = set() if checked is None else checked
    for flag, folder in (("--queries", options.queries), ("--corpus", options.corpus)):
        if folder is not None and not folder.is_dir():
            raise ArgumentError(f"{flag} {folder} does not exist, or is not a folder")
    folders = verify.find_sets(options.folder)
    find_missing_sets(report, options, folders)
    warn_of_what_is_not_checked(options)
    num_compared = verify.check_sets(report, usable_inputs(report, options, checked), folders)
    num_rows = verify.count_rows(folders)
    report.results |= {"sets": len(folders), "rows": num_rows, "passages_compared": num_compared}
    return report.finish(
        f"{len(folders)} sets, {num_rows:,} rows, {num_compared:,} passages compared: {len(report.findings)} findings",
        options.folder,
    )


def find_missing_sets(report: Report, options: RetrievalCheck, folders: Sequence[Path]) -> None:
    """Report the domains of the queries that have no passages, unless RET is a single domain."""
    if options.queries is None or verify.has_set(options.folder):
        return
    there = {folder.name for folder in folders}
    for queries in sorted(options.queries.glob("*")):
        if queries.name in there or not verify.is_domain_folder(queries) or not verify.has_set(queries):
            continue
        if options.hits is not None and options.hits.is_dir() and not (options.hits / queries.name).exists():
            cli.warn(f"nothing was searched for {queries}: there are neither hits nor passages")
        else:
            report.found(options.folder / queries.name, f"is missing: {queries} has rows, and no passages were written")


def warn_of_what_is_not_checked(options: RetrievalCheck) -> None:
    """Warn of the checks that need another flag."""
    if options.queries is None:
        cli.warn("without --queries, the rows are not compared with those of the queries")
    if options.corpus is None and options.embeddings is None:
        cli.warn("without --corpus or --embeddings, the passages are not compared with their source")
    if options.hits is not None and options.embeddings is None:
        cli.warn("without --embeddings, the scores are compared with those in --hits, and not recomputed")


def usable_inputs(report: Report, options: RetrievalCheck, checked: set[Path]) -> RetrievalCheck:
    """Check the embeddings and the hits. Returns the options, without embeddings that rows cannot be compared with.

    Raises:
        ArgumentError: if a folder holds no embeddings or no hits.
    """
    inputs = ((options.embeddings, check_hits.check_embedded), (options.hits, check_hits.check_hits))
    for folder, check_input in inputs:
        if folder is not None and folder not in checked:
            check_input(report, options, folder)
            checked.add(folder)
    if options.embeddings is not None:
        try:
            Embeddings(options.embeddings)
        except PipelineError as error:
            cli.warn(f"no passage is compared with {options.embeddings}: {error}")
            return replace(options, embeddings=None)
    return options


@dataclass(frozen=True)
class RetrievalCheck(verify.SetCheck):
    """The options: the folders that passages are compared with; and the check of a set and its rows."""

    folder: Path
    queries: Path | None = None
    embeddings: Path | None = None
    corpus: Path | None = None
    hits: Path | None = None
    passages: int = 2

    @cached_property
    def embedded(self) -> Embeddings | None:
        """The embedded corpus, opened once in each process."""
        return Embeddings(self.embeddings) if self.embeddings else None

    def check_set(self, report: Report, folder: Path) -> bool:
        """Columns, keys, queries, corpus."""
        before = len(report.findings)
        columns = mds.read_columns(folder)
        made_with = provenance.read_meta(folder).made_with
        try:
            _, (topk, _) = mds.column_array(columns["retrieved_token_ids"])
            if mds.column_array(columns["retrieval_scores"])[1] != (topk,):
                raise ValueError
            if columns["retrieved_neighbor_token_ids"] != "json":
                raise ValueError
        except (KeyError, ValueError):
            report.found(folder, f"does not have the columns of retrieved passages, but {columns}")
            return False
        with NpyRows(keys_path(folder), num_axes=2) as keys:
            if (shape := [keys.size, *keys.row_shape]) != [mds.num_rows(folder), topk]:
                report.found(keys_path(folder), f"has the shape {shape}, not {topk} keys for every row")
        if self.queries is not None:
            if verify.has_set(queries := self.queries / folder.name):
                verify.compare_with_source(report, folder, queries, "found for")
            else:
                report.found(folder, f"has no queries: {queries} is not there")
        if self.embedded and made_with.get("embeddings") != self.embedded.fingerprint(self.embedded.parts):
            report.found(folder, f"was found in other passages than those that are in {self.embeddings} now")
        if self.hits is not None:
            self._check_hits(report, folder, self.hits / folder.name, made_with.get("hits"))
        return len(report.findings) == before

    def _check_hits(self, report: Report, folder: Path, found: Path, fingerprint: str | None) -> None:
        """Check that a set was written from the hits that are there."""
        metas = verify.readable_metas([found]).values()
        if not check_hits.is_hit_folder(found):
            report.found(folder, f"has no hits: {found} is not there")
        elif self.hits_of(folder) is None:
            return  # they are damaged: reported before
        elif [fingerprint] != [provenance.fingerprint(meta.files) for meta in metas]:
            report.found(folder, f"was written from other hits than those that are in {found} now")
        elif not (vectors := check_hits.query_vectors_path(found)).exists():
            cli.warn(f"{vectors} does not exist: the scores of {folder} are not recomputed")

    def hits_of(self, folder: Path) -> Path | None:
        """The hits of a set; None if there are none, or they are damaged."""
        hits = self.hits / folder.name if self.hits else None
        return hits if hits and not verify.output_findings(hits) else None

    def check_rows(self, folder: Path, rows: np.ndarray) -> verify.Result:
        """Check that the scores descend, and that the passages differ and are those of their keys."""
        meta, result = provenance.read_meta(folder), verify.Result()
        vocab_size = meta.get("vocab_size") or 1 << 31
        found = self.hits_of(folder)
        vectors = check_hits.query_vectors_path(found) if found else None
        if vectors and verify.output_findings(vectors.parent):
            vectors = None
        with NpyRows(keys_path(folder), num_axes=2) as all_keys:
            for number, row in verify.read_ids(verify.open_rows(folder), rows.tolist(), result):
                keys = all_keys.read(number, number + 1)[0]
                try:
                    names = passage_ids(meta["corpus_files"], keys)
                except DamagedFileError as error:
                    result.findings.append((number, f"has in {keys_path(folder)} what is not a key: {error}"))
                    continue
                what = describe_wrong(row, keys, vocab_size)
                if not what and self.embedded is not None:
                    what = compare_with_embedded(self.embedded, row, keys, names)
                    result.num_compared += len(keys)
                if not what and self.corpus is not None:
                    what = compare_with_corpus(self.corpus, row, names[: self.passages])
                    result.num_compared += len(names[: self.passages])
                if not what and found is not None:
                    what = compare_with_hits(found, number, row, keys)
                if not what and self.embedded is not None and vectors is not None:
                    what = compare_scores(self.embedded, vectors, number, row, keys)
                if what:
                    result.findings.append((number, what))
        return result


# What is wrong with a row, compared with what it was made from; empty if nothing.


def compare_with_embedded(embedded: Embeddings, row: dict[str, Any], keys: np.ndarray, names: list[str]) -> str:
    """Compare passages and neighbors with those that have these keys in the embedded corpus."""
    passages, neighbors = embedded.passages(keys)
    for place, name in enumerate(names):
        is_same = np.array_equal(passages[place], row["retrieved_token_ids"][place])
        if not is_same or neighbors[place].tolist() != row["retrieved_neighbor_token_ids"][place]:
            return f"has at place {place} not the passage {name} of {embedded.folder}, whose key is there"
    return ""


def compare_with_corpus(corpus: Path, row: dict[str, Any], names: list[str]) -> str:
    """Compare passages and neighbors with those that have these names in the retrieval corpus."""
    for place, name in enumerate(names):
        domain, shard, number = name.rsplit("_", 2)
        path = corpus / shard / f"{domain}.jsonl"
        record = find_passage(path, int(number)) if path.exists() else None
        if record is None or record["id"] != name:
            return f"has at place {place} the passage {name}, which is not in {path}"
        expected = [row["retrieved_token_ids"][place].tolist(), row["retrieved_neighbor_token_ids"][place]]
        if [record.get("contents_token_ids"), record.get("neighbor_token_ids")] != expected:
            return f"has at place {place} not the passage {name} of {path}, whose key is there"
    return ""


def compare_scores(embedded: Embeddings, vectors: Path, number: int, row: dict[str, Any], keys: np.ndarray) -> str:
    """Compare scores with the inner products of the query, row `number` of the file `vectors`, and the passages."""
    with NpyRows(vectors, "f", 2) as queries:
        query = queries.read(number, number + 1)[0].astype(np.float64)
    expected = embedded.vectors(keys).astype(np.float64) @ query
    wrong = np.abs(expected - row["retrieval_scores"]) > SCORE_TOLERANCE * np.maximum(1, np.abs(expected))
    if not wrong.any():
        return ""
    place = int(np.argmax(wrong))
    stored = row["retrieval_scores"][place]
    return f"has at place {place} the score {stored:.6g}; query and passage give {expected[place]:.6g}"


def compare_with_hits(found: Path, number: int, row: dict[str, Any], keys: np.ndarray) -> str:
    """Compare keys and scores with the best hits of row `number`."""
    for name, kind, values in (("keys", "iu", keys), ("scores", "f", row["retrieval_scores"])):
        with NpyRows(found / f"{name}.npy", kind, 2) as rows:
            if number >= rows.size or rows.row_shape[0] < len(values):
                return f"has {len(values)} {name}, {rows.path} has the shape {[rows.size, *rows.row_shape]}"
            is_other = rows.read(number, number + 1)[0][: len(values)] != values
        if is_other.any():
            return f"has at place {int(np.argmax(is_other))} not what {found / name}.npy has there"
    return ""


def describe_wrong(row: dict[str, Any], keys: np.ndarray, vocab_size: int) -> str:
    """Check a row by itself."""
    scores, ids, neighbors = row["retrieval_scores"], row["retrieved_token_ids"], row["retrieved_neighbor_token_ids"]
    if not np.isfinite(scores).all():
        return "has scores that are not numbers"
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
    """The passage with this number in a file of the retrieval corpus; None if it is not there. Passages are in order
    of their numbers: the line is found by bisection over the bytes of the file."""
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
