"""Show leaks: the test windows that share a span of tokens with training windows or with the retrieval corpus.

A text is never in two splits, but what it quotes, or a slightly different version of it, can be. Spans of 50 tokens are
compared by hashes, one of 8 of them. A window that shares a long stretch is almost certainly found, one that shares a
single span only by chance; the report has the probabilities. OUT/overlap.json has the numbers of the rows. Shared spans
are not damage: the exit status is 0.

    python sanity_check.py overlap 8k_ab --corpus 8k_concat/retrieval
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli, workers
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.samples.passage_lines import read_ids
from cepe_data.samples.spans import SpanIndex, SpanSampler
from cepe_data.samples.writer import clean_list_path
from cepe_data.storage import mds, outputs, provenance, verify
from cepe_data.storage.npy import NpyRows
from cepe_data.storage.parts import part_ranges
from cepe_data.storage.report import Report, add_report_arguments

WRITE_AGAIN = "run sanity_check.py overlap --write_clean_list again"
HELP = "show test windows that share spans of tokens with training windows and with the retrieval corpus"
MIN_SAMPLING = 8
MAX_HASHES = 48_000_000  # of the test set: about 1 GB while they are sorted
PIECE_BYTES = 8 << 20
ROWS_AT_ONCE = 16
LONGER_TOKENS = (0, 10, 25, 50, 100, 200)  # stretches so much longer than a span, of which the report speaks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUT", help="what the sampler was given: OUT/test is looked at")
    parser.add_argument("--train", type=Path, default=None, help="training windows (default: OUT/train)")
    parser.add_argument("--corpus", type=Path, default=None, help="the retrieval corpus (default: OUT/retrieval)")
    parser.add_argument("--span_tokens", type=cli.positive_count, default=50, help="tokens of a span")
    parser.add_argument(
        "--sampling",
        type=cli.positive_count,
        default=None,
        help=f"compare one of so many spans (default: {MIN_SAMPLING}, doubled until the test set has at most "
        f"{MAX_HASHES:,} of them)",
    )
    parser.add_argument(
        "--write_clean_list",
        action="store_true",
        help="write OUT/test/DOMAIN.clean.npy, int64: the rows that share nothing, to evaluate on these",
    )
    parser.add_argument(
        "--num_workers", type=cli.positive_count, default=workers.default_num_workers(), help="processes that read"
    )
    add_report_arguments(parser)


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of an MDS set, or the passages whose lines begin at bytes [start, stop) of a jsonl file."""

    path: Path
    start: int
    stop: int
    num_bytes: int
    with_rows: bool = False

    def texts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Their ids, int [tokens], and where each window or passage ends, int64 [texts], some at a time."""
        if self.path.suffix == ".jsonl":
            yield from read_ids(self.path, self.start, self.stop)
            return
        rows = verify.open_rows(self.path)
        for start in range(self.start, self.stop, ROWS_AT_ONCE):
            windows = [rows[number] for number in range(start, min(start + ROWS_AT_ONCE, self.stop))]
            ids = np.stack([np.concatenate([row["prev_token_ids"], row["token_ids"]]) for row in windows])
            yield ids.ravel(), np.arange(1, len(ids) + 1) * ids.shape[1]


@dataclass(frozen=True)
class Sampled:
    """The hashes of a piece, uint64 [n]; with the number of each one's row, int64 [n], if they are asked for."""

    num_tokens: int
    hashes: np.ndarray
    rows: np.ndarray | None


def sample_piece(sampler: SpanSampler, piece: Piece) -> Sampled:
    """Sample the spans of a piece."""
    hashes, rows, num_tokens, first = [], [], 0, piece.start
    for ids, ends in piece.texts():
        of_texts, texts = sampler.sample(ids, ends)
        hashes.append(of_texts)
        rows.append(texts + first)
        num_tokens, first = num_tokens + len(ids), first + len(ends)
    together = np.concatenate([np.empty(0, np.uint64), *hashes])
    if not piece.with_rows:
        return Sampled(num_tokens, together, None)
    return Sampled(num_tokens, together, np.concatenate([np.empty(0, np.int64), *rows]))


@dataclass
class Side:
    """Training windows or the retrieval corpus: its pieces; bool [hashes], which hashes of the index are in it; and how
    many tokens and hashes were read."""

    name: str
    path: Path
    pieces: list[Piece]
    found: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    num_tokens: int = 0
    num_hashes: int = 0

    def as_json(self, output: Path) -> dict[str, object]:
        """The side in overlap.json, with its path from the folder of that."""
        return {"path": os.path.relpath(self.path.resolve(), output.resolve()), "tokens": self.num_tokens}


class Shared:
    """Of the rows of a test set: int64 [rows] sampled spans, and by side how many of these are found in it."""

    def __init__(self, folder: Path, sides: Sequence[Side]) -> None:
        self.folder, num_rows = folder, mds.num_rows(folder)
        self.sampled = np.zeros(num_rows, np.int64)
        self.by_side = {side.name: np.zeros(num_rows, np.int64) for side in sides}

    def add(self, sampled: Sampled, index: SpanIndex, sides: Sequence[Side]) -> None:
        """Count the spans of some rows; all of them are in the index."""
        assert sampled.rows is not None
        places = index.find(sampled.hashes)
        self.sampled += np.bincount(sampled.rows, minlength=len(self.sampled))
        for side in sides:
            of_side = sampled.rows[side.found[places]]
            self.by_side[side.name] += np.bincount(of_side, minlength=len(self.sampled))

    @property
    def is_clean(self) -> np.ndarray:
        """bool [rows]: whether a row shares nothing with any side."""
        return np.logical_and.reduce([count == 0 for count in self.by_side.values()])

    def as_json(self) -> dict[str, Any]:
        """The rows that share something, with the share of their spans, side by side."""
        sides = {}
        for name, count in self.by_side.items():
            rows = np.flatnonzero(count)
            shares = (count[rows] / self.sampled[rows]).round(4)
            sides[name] = {"rows": len(rows), "row_numbers": rows.tolist(), "shares": shares.tolist()}
        return {"windows": len(self.sampled), "clean": int(np.count_nonzero(self.is_clean)), **sides}


def run(args: argparse.Namespace) -> int:
    """Compare the test windows of OUT with training windows and the retrieval corpus."""
    report, start_time = Report("overlap", args.json), time.monotonic()
    verify.open_rows.cache_clear()  # a set of the same name may be another one by now
    test = verify.find_sets(args.output / "test")
    sides = find_sides(args.output, args.train, args.corpus)
    side_pieces = [piece for side in sides for piece in side.pieces]
    require_one_tokenizer([*test, *(piece.path for piece in side_pieces)])
    roots = {"test": args.output / "test", **{side.name: side.path for side in sides}}
    # Before their rows are read: a set that is replaced meanwhile must not count as compared.
    report.results["fingerprints"] = {name: fingerprints(name, root) for name, root in roots.items()}
    test_pieces = [piece for folder in test for piece in window_pieces(folder, with_rows=True)]
    sampling = args.sampling or default_sampling(sum(window_tokens(folder) * mds.num_rows(folder) for folder in test))
    if args.span_tokens > (longest := max(map(window_tokens, test))):
        raise ArgumentError(f"--span_tokens {args.span_tokens}: the longest test windows have {longest} tokens")
    outputs.remove_stale_temporaries(args.output / "test")
    num_bytes = sum(piece.num_bytes for piece in [*test_pieces, *test_pieces, *side_pieces])
    sampler = SpanSampler(args.span_tokens, sampling)
    with (
        workers.Workers(args.num_workers, functools.partial(sample_piece, sampler)) as pool,
        cli.progress_bar(num_bytes, "B", "overlap", unit_scale=True) as bar,
    ):

        def scan(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Sampled]]:
            for piece, sampled in pool.map_in_order(pieces, lambda _: 1, pool.num_workers + 2):
                yield piece, sampled
                bar.update(piece.num_bytes)

        index = SpanIndex(np.concatenate([sampled.hashes for _, sampled in scan(test_pieces)]), sampling)
        for side in sides:
            side.found = np.zeros(len(index), bool)
            for _, sampled in scan(side.pieces):
                side.found[index.find(sampled.hashes)] = True
                side.num_tokens += sampled.num_tokens
                side.num_hashes += len(sampled.hashes)
        shared = {folder: Shared(folder, sides) for folder in test}
        for piece, sampled in scan(test_pieces):
            shared[piece.path].add(sampled, index, sides)
    print_report(report, sampler, list(shared.values()), sides, index)
    lists = {clean_list_path(one.folder): np.flatnonzero(one.is_clean) for one in shared.values()}
    if args.write_clean_list:
        for path, rows in lists.items():
            content = io.BytesIO()
            np.save(content, rows)
            outputs.write_bytes(path, content.getvalue())
            report.say(f"{path}: {len(rows):,} rows")
    elif there := [str(path) for path in lists if path.exists()]:
        cli.warn(f"{', '.join(there)} are of an earlier run: --write_clean_list replaces them")
    report.results["compared_with"] = {side.name: side.as_json(args.output) for side in sides}
    path = report_path(args.output)
    outputs.write_json(path, provenance.signed(report.results))
    num_tokens = sum(side.num_tokens for side in sides)
    rate = num_tokens / max(1e-9, time.monotonic() - start_time) / 1e6
    return report.finish(f"{num_tokens:,} tokens compared, {rate:.2g} million a second", path)


def find_sides(output: Path, named_train: Path | None, named_corpus: Path | None) -> list[Side]:
    """Training windows and passages, as far as they are there.

    Raises:
        ArgumentError: if neither is, or one that was named is not.
    """
    train, corpus = named_train or output / "train", named_corpus or output / "retrieval"
    sides = []
    if named_train or verify.is_domain_folder(train):
        folders = verify.find_sets(train)
        sides.append(Side("train", train, [piece for folder in folders for piece in window_pieces(folder)]))
    if files := sorted(corpus.glob("*/*.jsonl")):
        sides.append(Side("retrieval", corpus, [piece for path in files for piece in passage_pieces(path)]))
    elif named_corpus:
        raise ArgumentError(f"--corpus {corpus} holds no passages: pass OUT/retrieval")
    if not sides:
        raise ArgumentError(f"neither {train} nor {corpus} is there to compare with: pass --train or --corpus")
    for flag, path in (("--train", train), ("--corpus", corpus)):
        if path not in {side.path for side in sides}:
            cli.warn(f"{path} is not there: nothing is compared with it (pass {flag} for another place)")
    return sides


def window_pieces(folder: Path, with_rows: bool = False) -> list[Piece]:
    """The rows of a set of windows in pieces.

    Raises:
        ArgumentError: if it is not a set of windows.
        DamagedFileError: if its index is damaged.
    """
    row_bytes = window_tokens(folder) * mds.column_array(mds.read_columns(folder)["token_ids"])[0].itemsize
    ranges = part_ranges(mds.num_rows(folder), max(1, PIECE_BYTES // row_bytes))
    return [Piece(folder, start, stop, (stop - start) * row_bytes, with_rows) for start, stop in ranges]


def window_tokens(folder: Path) -> int:
    """Tokens of a window of a set. Raises as `window_pieces`."""
    columns = mds.read_columns(folder)
    try:
        return sum(mds.column_array(columns[name])[1][0] for name in ("prev_token_ids", "token_ids"))
    except (KeyError, ValueError, IndexError):
        raise ArgumentError(f"{folder} holds no windows: its columns are {', '.join(columns)}") from None


def passage_pieces(path: Path) -> list[Piece]:
    """The lines of a file of passages in pieces."""
    size = path.stat().st_size
    boundaries = [*range(0, size, PIECE_BYTES), size]
    return [Piece(path, start, stop, stop - start) for start, stop in pairwise(boundaries)]


def require_one_tokenizer(paths: Sequence[Path]) -> None:
    """Raise ArgumentError if ids of some of these sets and files are of another tokenizer than those of others."""
    known: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        meta = provenance.read_meta(path)
        if fingerprint := meta.get("tokenizer") or meta.made_with.get("tokenizer"):
            known.setdefault(fingerprint, path)
    if len(known) > 1:
        one, other, *_ = known.values()
        raise ArgumentError(f"{one} and {other} were made with different tokenizers: their ids cannot be compared")


def default_sampling(num_tokens: int) -> int:
    """One of how many spans is compared, so that those of so many tokens in the test sets fit in memory."""
    sampling = MIN_SAMPLING
    while num_tokens > sampling * MAX_HASHES:
        sampling *= 2
    return sampling


def print_report(
    report: Report, sampler: SpanSampler, shared: Sequence[Shared], sides: Sequence[Side], index: SpanIndex
) -> None:
    """The table of the windows that share something, and what the comparison can miss or take for shared."""
    span_tokens, sampling = sampler.span, sampler.sampling
    domains = {one.folder.name: one.as_json() for one in shared}
    names = [side.name for side in sides]
    rows: list[tuple[object, ...]] = [
        (domain, one["windows"], *(one[name]["rows"] for name in names), one["clean"])
        for domain, one in domains.items()
    ]
    rows.append(("total", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))))
    header = ("domain", "test windows", *(f"share with {name}" for name in names), "share with none")
    report.say(cli.table(header, rows))
    missed = {str(span_tokens + longer): (1 - 1 / sampling) ** (longer + 1) for longer in LONGER_TOKENS}
    chance = sum(side.num_hashes for side in sides) * len(index) * sampling / 2.0**64
    if unseen := sum(int(np.count_nonzero(one.sampled == 0)) for one in shared):
        cli.warn(f"{unseen:,} test windows have no span among those that are compared: lower --sampling")
    report.say(
        f"spans of {span_tokens} tokens, one of {sampling} compared ({len(index):,} different ones in the test "
        f"set)\nthe chance of missing a shared stretch of n tokens, if it does not repeat itself: "
        + ", ".join(f"n = {length}: {probability:.2g}" for length, probability in missed.items())
        + f"\nmatches of different spans by the same hash: {chance:.1g} are expected in all"
    )
    report.results |= {
        "span_tokens": span_tokens,
        "sampling": sampling,
        "test_hashes": len(index),
        "chance_of_missing": missed,
        "expected_false_matches": chance,
        "domains": domains,
    }


def report_path(output: Path) -> Path:
    """Where the rows are listed that share something."""
    return output / "overlap.json"


def fingerprints(name: str, root: Path) -> dict[str, str]:
    """The fingerprint of every set, or for `retrieval` of every file of passages, in the folder `root`. Reads only meta
    files, where there are any."""
    if name == "retrieval":
        files = {path: provenance.read_meta(path).files for path in sorted(root.glob("*/*.jsonl"))}
        return {
            path.relative_to(root).as_posix(): provenance.fingerprint(of_meta or provenance.file_metadata(path))
            for path, of_meta in files.items()
        }
    folders = [one for one in (root, *sorted(root.glob("*"))) if verify.is_domain_folder(one) and verify.has_set(one)]
    return {folder.name: mds.fingerprint(folder) for folder in folders}


def read_report(output: Path) -> dict[str, Any]:
    """The content of overlap.json. Sets that were compared may be gone; none may be new or replaced.

    Raises:
        DamagedFileError: if it is damaged, or a set that is there now was not compared.
    """
    path = report_path(output)
    content = provenance.read_signed(path, WRITE_AGAIN)
    for name in ("test", "train", "retrieval"):
        root = output / content["compared_with"].get(name, {"path": name})["path"]
        compared = content.get("fingerprints", {}).get(name, {})
        for one, fingerprint in fingerprints(name, root).items():
            if compared.get(one) != fingerprint:
                raise DamagedFileError(f"{path} was made without {root / one} as it is now: {WRITE_AGAIN}")
    return content


def check_clean_lists(report: Report, output: Path) -> None:
    """That overlap.json and the lists of clean rows, where they are there, are what was written, of one run, and
    of the sets that are there."""
    domains = {}
    try:
        if report_path(output).exists():
            domains = read_report(output)["domains"]
    except verify.FAILURES as error:
        report.found(report_path(output), verify.describe(error))
        return
    for path in sorted(output.glob("test/*.clean.npy")):
        found = domains.get(path.name.removesuffix(".clean.npy"), {"windows": 0})
        of_sides = [np.array(side["row_numbers"], np.int64) for side in found.values() if isinstance(side, dict)]
        clean = np.setdiff1d(np.arange(found["windows"]), np.concatenate([np.empty(0, np.int64), *of_sides]))
        try:
            with NpyRows(path) as rows:
                is_right = rows.size == len(clean) and np.array_equal(rows.read(0, rows.size), clean)
        except (DamagedFileError, OSError) as error:
            report.found(path, f"{verify.describe(error).removeprefix(f'{path} ')} ({WRITE_AGAIN})")
            continue
        if not is_right:
            report.found(path, f"lists other rows than {report_path(output)} has as clean: {WRITE_AGAIN}")
