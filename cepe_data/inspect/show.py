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
from typing import Any

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
from cepe_data.tokens.token_file import TokenFile
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
    parser.add_argument("--tokenized_dir", type=Path, default=Path("tokenized"), help="for its tokenizer and documents")
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


def row_range(text: str) -> range | None:
    """The rows that ROWS says, `7` or `0:5`; None for `random`.

    Raises:
        argparse.ArgumentTypeError: if it says none.
    """
    if text == "random":
        return None
    if bounds := re.fullmatch(r"(\d+):(\d+)", text):
        rows = range(*map(int, bounds.groups()))
        if not rows:
            raise argparse.ArgumentTypeError(f"{text} holds no row: the second number is the row after the last")
        return rows
    try:
        start = cli.count(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, a range such as 0:5, or random") from None
    return range(start, start + 1)


@dataclass(frozen=True)
class ShowOptions:
    """The arguments of this command; `rows` is None for a random one."""

    path: Path
    rows: range | None
    domain: str | None
    tokenized_dir: Path
    tokenizer: str | None
    input_dir: Path | None
    max_characters: int
    positions: int
    passages: int


def run(namespace: argparse.Namespace) -> int:
    """Print rows: where they come from, and what they hold as text."""
    args = cli.typed(ShowOptions, namespace)
    for path in find_paths(args):
        if path.suffix == ".npy":
            show_documents(replace(args, path=path))
        elif path.suffix == ".jsonl":
            show_passages(replace(args, path=path))
        else:
            show_set(replace(args, path=verify.with_parents(path, 1)))
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


def row_numbers(args: ShowOptions, num_rows: int) -> range:
    """The numbers of the rows to show, of `num_rows`. A range may end beyond the last one.

    Raises:
        ArgumentError: if the first of them is not there.
    """
    start = random.randrange(max(num_rows, 1)) if args.rows is None else args.rows.start
    if start >= num_rows:
        raise ArgumentError(f"{args.path} has {num_rows} rows, numbered from 0: there is no row {start}")
    return range(start, start + 1 if args.rows is None else min(args.rows.stop, num_rows))


def make_ids_printer(args: ShowOptions, tokenizer: TokenizerFiles) -> Callable[[str, np.ndarray], None]:
    """What prints a title and token ids as text."""
    decode = backends.make_decoder(tokenizer, keep_special_tokens=True)

    def print_ids(title: str, ids: np.ndarray) -> None:
        [text] = decode(ids.astype(np.int32), np.array([len(ids)]))
        print_text(args, f"{title}, {len(ids)} tokens", text)

    return print_ids


def print_text(args: ShowOptions, title: str, text: str) -> None:
    """Print a title and a text. The middle of a long text is left out."""
    if len(text) > args.max_characters:
        half = args.max_characters // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[len(text) - half :]}"
    cli.say(f"--- {title}\n{text}")


def show_documents(args: ShowOptions) -> None:
    """Print documents of a token file."""
    if not args.path.exists():
        raise ArgumentError(f"{args.path} is not there")
    with TokenFile(args.path) as tokens:
        fingerprint = tokens.tokenizer.fingerprint if tokens.tokenizer else None
        print_ids = make_ids_printer(args, tokenizers.find(args.tokenizer, args.tokenized_dir, fingerprint))
        source = f" of {tokens.meta.made_with['source']}" if tokens.meta else ""
        for row in row_numbers(args, len(tokens)):
            print_ids(f"{args.path} document {row} of {len(tokens)}{source}", tokens[row])


def show_passages(args: ShowOptions) -> None:
    """Print passages of the retrieval corpus, each with what follows it in its document.

    Raises:
        DamagedFileError: if a line is not a passage.
    """
    if not args.path.exists():
        raise ArgumentError(f"{args.path} is not there")
    with args.path.open("rb") as file:
        num_rows = sum(1 for _ in file)
        rows = row_numbers(args, num_rows)
        file.seek(0)
        for row, line in zip(rows, itertools.islice(file, rows.start, rows.stop), strict=True):
            try:
                passage = json.loads(line)
                texts = {f"passage {passage['id']}": passage["contents"], "neighbor": passage["neighbor"]}
            except (ValueError, KeyError, TypeError):
                raise DamagedFileError(f"{args.path}: line {row + 1} is not a passage: make the file again") from None
            cli.say(f"{args.path} line {row} of {num_rows}")
            for title, text in texts.items():
                print_text(args, title, text)


def show_set(args: ShowOptions) -> None:
    """Print rows of an MDS set: their source and their tokens as text, or what the teacher expects."""
    columns, rows = mds.read_columns(args.path), mds.Rows(args.path)
    if not {"target_index", "token_ids", "retrieved_token_ids"}.intersection(columns):
        raise ArgumentError(f"{args.path} has none of the columns of this pipeline: it was not made by this pipeline")
    numbers = row_numbers(args, len(rows))
    set_of_tokens = input_folder(args) if "target_index" in columns else args.path
    fingerprint = provenance.read_meta(set_of_tokens).get("tokenizer")
    tokenizer = tokenizers.find(args.tokenizer, args.tokenized_dir, fingerprint)
    print_ids = make_ids_printer(args, tokenizer)
    types = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    for number in numbers:
        cli.say(f"{args.path} row {number} of {len(rows)}: {types}")
        row = rows[number]
        if "retrieved_token_ids" in columns:
            if args.input_dir:
                print_ids("query, the beginning of token_ids", query_of(args, number))
            else:
                cli.say("pass --input_dir, the folder of the domain folders of the queries, to see the query")
            for title, ids in retrieved_passages(args.path, number, row, args.passages):
                print_ids(title, ids)
        elif "target_index" in columns:
            window, num_samples = input_row(args, number), teacher_check.num_samples_of(args.path)
            print_teacher_row(row, window["token_ids"], tokenizer, args.positions, num_samples)
        else:
            cli.say(describe_source(args.path, number, args.tokenized_dir))
            print_ids("prev_token_ids", row["prev_token_ids"])
            print_ids("token_ids", row["token_ids"])


def query_of(args: ShowOptions, row: int) -> np.ndarray:
    """The tokens for which the passages of a row were found.

    Raises:
        ArgumentError: if they were found for another set.
    """
    meta = provenance.read_meta(args.path)
    found_for, folder = meta.made_with.get("input"), input_folder(args)
    if found_for is not None and found_for != mds.fingerprint(folder):
        raise ArgumentError(f"the passages in {args.path} were found for other rows than those of {folder}")
    return input_row(args, row)["token_ids"][: meta.get("query_tokens")]


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
    """int64 [columns]: a row of a sidecar file of a set.

    Raises:
        DamagedFileError: if it has no such row.
    """
    with NpyRows(path, num_axes=2) as rows:
        if row >= rows.size or rows.row_shape != (num_columns,):
            raise DamagedFileError(
                f"{path} has the shape {[rows.size, *rows.row_shape]}, and no row {row} of {num_columns}"
            )
        return rows.read(row, row + 1)[0]


def describe_source(folder: Path, row: int, tokenized_dir: Path) -> str:
    """The jsonl file and the document that a row of windows starts in, as far as the files that name them are there."""
    meta = provenance.read_meta(folder)
    if not meta or not rows_path(folder).exists():
        return "source: unknown, no provenance is beside this set"
    number, position = read_row(rows_path(folder), row, 2).tolist()
    files = meta.get("source_files", [])
    if not 0 <= number < len(files) or position < 0:
        what = f"row {row} is at {position} in file {number} of {len(files)}"
        raise DamagedFileError(f"{rows_path(folder)} is not that of {folder} ({what}): make the set again")
    path = tokenized_dir / listing.token_path(files[number])
    without_document = f"source: {files[number]}, from position {position:,} of its token file"
    if not path.exists():
        return f"{without_document} ({path} is not there)"
    with TokenFile(path) as tokens:
        if tokens.tokenizer and meta.get("tokenizer") not in {None, tokens.tokenizer.fingerprint}:
            return f"{without_document} ({path} is of another tokenizer)"
        [place] = tokens.find(np.array([position]))
    if place.document is None:
        raise DamagedFileError(f"{path} has no position {position}: it is not the one that {folder} was sampled from")
    return (
        f"source: {files[number]}, document {place.document} (from 0) of {tokens.num_documents:,}, from its token "
        f"{position - place.start:,} of {place.stop - place.start:,} on"
    )


def input_folder(args: ShowOptions) -> Path:
    """The set that a teacher's set belongs to."""
    folder = teacher_check.input_folder(args.path, args.input_dir)
    if not (folder / mds.INDEX_NAME).exists() or "token_ids" not in mds.read_columns(folder):
        raise ArgumentError(
            f"the input of {args.path} is not {folder}: pass --input_dir, the folder of its domain folders"
        )
    return folder


def input_row(args: ShowOptions, row: int) -> dict:
    """The row that a teacher's row, or a row of passages, belongs to; its source is printed."""
    folder = input_folder(args)
    cli.say(describe_source(folder, row, args.tokenized_dir))
    return mds.Rows(folder)[row]


def print_teacher_row(
    row: dict, token_ids: np.ndarray, tokenizer: TokenizerFiles, num_positions: int, num_samples: int
) -> None:
    """Print what the teacher expects after some of the positions, beside the token that follows."""
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
