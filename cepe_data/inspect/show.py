"""Show as text rows of any MDS set (windows, a teacher's, retrieved passages), documents of a token file, or passages
of the retrieval corpus."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cepe_data import cli
from cepe_data.corpus import listing
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.retrieval.embeddings import keys_path, passage_ids
from cepe_data.samples.writer import rows_path
from cepe_data.storage import mds, provenance, verify
from cepe_data.storage.npy import NpyRows
from cepe_data.teacher import check as teacher_check
from cepe_data.tokens import backends, tokenizers
from cepe_data.tokens.token_file import TokenFile, read_tokenizer
from cepe_data.tokens.tokenizers import TokenizerFiles

HELP = "show rows, documents or passages as text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="an MDS set such as 8k_ab/test/arxiv, a token file (.npy), or a file of the retrieval corpus (.jsonl); "
        "with --domain, the folder that these are in",
    )
    parser.add_argument(
        "rows", type=row_range, metavar="ROWS", help="a number, from 0; a range such as 0:5; or random, for any one"
    )
    parser.add_argument("--domain", default=None, help="of those in the folder PATH, or all")
    parser.add_argument(
        "--tokenized_dir",
        type=Path,
        default=Path("tokenized"),
        help="for its tokenizer and documents",
    )
    parser.add_argument("--tokenizer", default=None, help="hub name, folder or .model file (default: the saved one)")
    parser.add_argument(
        "--input_dir",
        type=Path,
        default=None,
        help="the folder of a teacher's input (default: beside it), or of the queries of retrieved passages",
    )
    parser.add_argument(
        "--max_characters",
        type=cli.positive_count,
        default=1500,
        help="of each text; the middle of a longer one is cut",
    )
    parser.add_argument("--positions", type=cli.positive_count, default=10, help="of a teacher's row, evenly spaced")
    parser.add_argument(
        "--passages", type=cli.positive_count, default=3, help="of a row of retrieved passages, the best"
    )


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop), or a random one."""

    start: int
    stop: int
    is_random: bool = False

    def numbers_of(self, path: Path, num_rows: int) -> range:
        """The numbers of these rows, of which there are `num_rows` in `path`. A range may end beyond the last one.

        Raises:
            ArgumentError: if its first row is not there.
        """
        start = random.randrange(max(num_rows, 1)) if self.is_random else self.start
        if start >= num_rows:
            raise ArgumentError(f"{path} has {num_rows} rows, numbered from 0: there is no row {start}")
        return range(start, start + 1 if self.is_random else min(self.stop, num_rows))


def row_range(text: str) -> RowRange:
    """The rows that ROWS says: `7`, `0:5` or `random`.

    Raises:
        argparse.ArgumentTypeError: if it says none.
    """
    if text == "random":
        return RowRange(0, 0, is_random=True)
    if bounds := re.fullmatch(r"(\d+):(\d+)", text):
        start, stop = map(int, bounds.groups())
        if start >= stop:
            raise argparse.ArgumentTypeError(f"{text} holds no row: the second number is the row after the last")
        return RowRange(start, stop)
    try:
        start = cli.count(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, a range such as 0:5, or random") from None
    return RowRange(start, start + 1)


@dataclass(frozen=True)
class ShowOptions:
    """The arguments of this command."""

    path: Path
    rows: RowRange
    domain: str | None
    tokenized_dir: Path
    tokenizer: str | None
    input_dir: Path | None
    max_characters: int
    positions: int
    passages: int


class Rows(Protocol):
    """What is shown of one path."""

    num_rows: int

    def show(self, row: int) -> None:
        """Print a row."""
        ...


def run(namespace: argparse.Namespace) -> int:
    """Print rows: where they come from, and what they hold as text."""
    args = cli.typed(ShowOptions, namespace)
    for path in find_paths(args):
        rows = open_rows(replace(args, path=path))
        for row in args.rows.numbers_of(path, rows.num_rows):
            rows.show(row)
    return cli.EXIT_OK


def find_paths(args: ShowOptions) -> list[Path]:
    """What is shown: PATH, or the sets or files of its domains.

    Raises:
        ArgumentError: if there are none.
    """
    if args.domain is None:
        return [args.path]
    domain = args.domain.strip("/")
    sets, passages = args.path.glob(f"*/{mds.INDEX_NAME}"), args.path.glob("*.jsonl")
    domains = {path.parent.name: path.parent for path in sorted(sets)} | {path.stem: path for path in sorted(passages)}
    if not domains or domain not in {"all", *domains}:
        there = ", ".join(domains) or "nothing"
        raise ArgumentError(f"--domain {args.domain}: in {args.path} there is {there}")
    return [*domains.values()] if domain == "all" else [domains[domain]]


def open_rows(args: ShowOptions) -> Rows:
    """The rows of a path, by what it is. Raises as `mds.read_index`, `TokenFile`."""
    if args.path.suffix == ".npy":
        return Documents(args)
    if args.path.suffix == ".jsonl":
        return Passages(args)
    return SetRows(replace(args, path=verify.with_parents(args.path, 1)))


def make_ids_printer(args: ShowOptions, tokenizer: TokenizerFiles) -> Callable[[str, np.ndarray], None]:
    """What prints a title and token ids as text."""
    decode = backends.make_decoder(tokenizer, keep_special_tokens=True)

    def print_ids(title: str, ids: np.ndarray) -> None:
        [text] = decode(ids.astype(np.int32), np.array([len(ids)]))
        print_text(args, f"{title}, {len(ids)} tokens", text)

    return print_ids


def print_text(args: ShowOptions, title: str, text: str) -> None:
    cli.say(f"--- {title}\n{cut_middle(text, args.max_characters)}")


class Documents:
    """The documents of a token file."""

    def __init__(self, args: ShowOptions) -> None:
        if not args.path.exists():
            raise ArgumentError(f"{args.path} is not there")
        with TokenFile(args.path) as tokens:
            self.num_rows = tokens.num_documents
            self._lengths = tokens.lengths(0, tokens.num_documents)
            self._first_position = tokens.tokens_start
            meta = tokens.meta
        fingerprint = read_tokenizer(args.path, meta).fingerprint if meta else None
        self._print_ids = make_ids_printer(args, tokenizers.find(args.tokenizer, args.tokenized_dir, fingerprint))
        self._path, self._source = args.path, f" of {meta['made_with']['source']}" if meta else ""

    def show(self, row: int) -> None:
        """Print a document."""
        start = self._first_position + int(self._lengths[:row].sum())
        with TokenFile(self._path) as tokens:
            ids = tokens.tokens(start, start + int(self._lengths[row]))
        self._print_ids(f"{self._path} document {row} of {self.num_rows}{self._source}", ids)


class Passages:
    """The lines of a file of the retrieval corpus."""

    def __init__(self, args: ShowOptions) -> None:
        try:
            with args.path.open("rb") as file:
                self.num_rows = sum(1 for _ in file)
        except FileNotFoundError:
            raise ArgumentError(f"{args.path} is not there") from None
        self._args = args

    def show(self, row: int) -> None:
        """Print a passage, and what follows it in its document.

        Raises:
            DamagedFileError: if the line is not a passage.
        """
        with self._args.path.open("rb") as file:
            line = next(itertools.islice(file, row, None))
        try:
            passage = json.loads(line)
            texts = {f"passage {passage['id']}": passage["contents"], "neighbor": passage["neighbor"]}
        except (ValueError, KeyError, TypeError):
            raise DamagedFileError(f"{self._args.path}: line {row + 1} is not a passage: make the file again") from None
        cli.say(f"{self._args.path} line {row} of {self.num_rows}")
        for title, text in texts.items():
            print_text(self._args, title, text)


class SetRows:
    """The rows of an MDS set."""

    def __init__(self, args: ShowOptions) -> None:
        self._args = args
        self._columns = mds.read_columns(args.path)
        self._rows = mds.Rows(args.path)
        self.num_rows = len(self._rows)
        if not {"target_index", "token_ids", "retrieved_token_ids"}.intersection(self._columns):
            raise ArgumentError(
                f"{args.path} has none of the columns of this pipeline: it was not made by this pipeline"
            )

    def show(self, row: int) -> None:
        """Print a row: its source and its tokens as text, or what the teacher expects."""
        args, columns = self._args, self._columns
        set_of_tokens = input_folder(args) if "target_index" in columns else args.path
        fingerprint = (provenance.read_meta(set_of_tokens) or {}).get("tokenizer")
        tokenizer = tokenizers.find(args.tokenizer, args.tokenized_dir, fingerprint)
        print_ids = make_ids_printer(args, tokenizer)
        types = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        cli.say(f"{args.path} row {row} of {self.num_rows}: {types}")
        content = self._rows[row]
        if "retrieved_token_ids" in columns:
            if args.input_dir:
                print_ids("query, the beginning of token_ids", self._query(row))
            else:
                cli.say("pass --input_dir, the folder of the domain folders of the queries, to see the query")
            for title, ids in retrieved_passages(args.path, row, content, args.passages):
                print_ids(title, ids)
        elif "target_index" in columns:
            window, num_samples = input_row(args, row), teacher_check.num_samples_of(args.path)
            print_teacher_row(content, window["token_ids"], tokenizer, args.positions, num_samples)
        else:
            for line in describe_source(args.path, row, args.tokenized_dir):
                cli.say(line)
            print_ids("prev_token_ids", content["prev_token_ids"])
            print_ids("token_ids", content["token_ids"])

    def _query(self, row: int) -> np.ndarray:
        """The tokens for which the passages of a row were found.

        Raises:
            ArgumentError: if they were found for another set.
        """
        meta = provenance.read_meta(self._args.path) or {"made_with": {}}
        found_for, folder = meta["made_with"].get("input"), input_folder(self._args)
        if found_for is not None and found_for != mds.fingerprint(folder):
            raise ArgumentError(f"the passages in {self._args.path} were found for other rows than {folder}'s")
        return input_row(self._args, row)["token_ids"][: meta.get("query_tokens")]


def retrieved_passages(
    folder: Path, row: int, content: Mapping[str, Any], num_passages: int
) -> Iterator[tuple[str, np.ndarray]]:
    """A title with score and id, and the token ids, of the best passages of a row of a set."""
    keys, meta = keys_path(folder), provenance.read_meta(folder)
    names = [""] * len(content["retrieval_scores"])
    if meta and keys.exists():
        names = passage_ids(meta["corpus_files"], read_row(keys, row, len(names)))
    best = zip(names, content["retrieval_scores"].tolist(), content["retrieved_token_ids"], strict=True)
    for number, (name, score, ids) in enumerate(itertools.islice(best, num_passages)):
        yield f"passage {number} {name}, score {score:.4f}", ids


def read_row(path: Path, row: int, num_columns: int) -> np.ndarray:
    """int64 [columns]: a row of what is beside a set.

    Raises:
        DamagedFileError: if it has no such row.
    """
    with NpyRows(path, num_axes=2) as rows:
        if row >= rows.size or rows.row_shape != (num_columns,):
            raise DamagedFileError(
                f"{path} has the shape {[rows.size, *rows.row_shape]}, and no row {row} of {num_columns}"
            )
        return rows.read(row, row + 1)[0]


def cut_middle(text: str, max_characters: int) -> str:
    if len(text) <= max_characters:
        return text
    half = max_characters // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[len(text) - half :]}"


def describe_source(folder: Path, row: int, tokenized_dir: Path) -> list[str]:
    """The jsonl file and the document that a row of windows starts in, as far as the files that say so are there."""
    meta = provenance.read_meta(folder)
    if meta is None or not rows_path(folder).exists():
        return ["source: unknown, no provenance is beside this set"]
    number, position = read_row(rows_path(folder), row, 2).tolist()
    files = meta.get("source_files", [])
    if not 0 <= number < len(files) or position < 0:
        what = f"row {row} is at {position} in file {number} of {len(files)}"
        raise DamagedFileError(f"{rows_path(folder)} is not that of {folder} ({what}): make the set again")
    source = files[number]
    path = tokenized_dir / listing.token_path(source)
    if not path.exists():
        return [f"source: {source}, from position {position:,} of its token file ({path} is not there)"]
    with TokenFile(path) as tokens:
        if tokens.meta and meta.get("tokenizer") not in {None, read_tokenizer(path, tokens.meta).fingerprint}:
            return [f"source: {source}, from position {position:,} of its token file ({path} is of another tokenizer)"]
        [place] = tokens.find(np.array([position]))
    if place.document is None:
        raise DamagedFileError(f"{path} has no position {position}: it is not the one that {folder} was sampled from")
    return [
        f"source: {source}, document {place.document} (from 0) of {tokens.num_documents:,}, from its token "
        f"{position - place.start:,} of {place.stop - place.start:,} on"
    ]


def input_folder(args: ShowOptions) -> Path:
    """The set that a teacher's set belongs to."""
    folder = teacher_check.input_folder(args.path, args.input_dir)
    if not (folder / mds.INDEX_NAME).exists() or "token_ids" not in mds.read_columns(folder):
        raise ArgumentError(
            f"the input of {args.path} is not {folder}: pass --input_dir, the folder of its domain folders"
        )
    return folder


def input_row(args: ShowOptions, row: int) -> dict:
    """The row that a teacher's row, or a row of passages, belongs to."""
    folder = input_folder(args)
    for line in describe_source(folder, row, args.tokenized_dir):
        cli.say(line)
    return mds.Rows(folder)[row]


def print_teacher_row(
    row: dict, token_ids: np.ndarray, tokenizer: TokenizerFiles, num_positions: int, num_samples: int
) -> None:
    """What the teacher expects after some of the positions, beside what comes."""
    probabilities, indices = row["target_prob"], row["target_index"]
    piece_of = backends.make_piece_names(tokenizer)
    pieces = [piece_of(number) for number in token_ids.tolist()]
    what = f"the shares of {num_samples} draws" if num_samples else "and the mass of all it does not name"
    cli.say(f"position  token → next token: what the teacher expects, {what}")
    for position in np.linspace(0, len(indices) - 1, num_positions).astype(int).tolist():
        best = zip(indices[position, :5].tolist(), probabilities[position, :5], strict=True)
        expected = "  ".join(f"{piece_of(index)} {prob:.3f}" for index, prob in best if prob > 0 or not num_samples)
        following = pieces[position + 1] if position + 1 < len(pieces) else "(end of the row)"
        cli.say(
            f"{position:>8}  {pieces[position]} → {following}: {expected}  (rest {probabilities[position, -1]:.3g})"
        )
