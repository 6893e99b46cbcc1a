"""Show one row of any MDS set as text: of windows, of a teacher, or of retrieved passages."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli
from cepe_data.corpus import listing
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.retrieval.embeddings import passage_ids
from cepe_data.samples.writer import rows_path
from cepe_data.storage import mds, provenance, verify
from cepe_data.storage.npy import NpyRows
from cepe_data.teacher import check as teacher_check
from cepe_data.tokens import backends, tokenizers
from cepe_data.tokens.token_file import TokenFile, read_tokenizer
from cepe_data.tokens.tokenizers import TokenizerFiles

HELP = "show one row as text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="the folder of an MDS set, such as 8k_ab/test/arxiv")
    parser.add_argument("row", type=cli.count, metavar="ROW", help="the number of the row, from 0")
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
class ShowOptions:
    """The arguments of this command."""

    path: Path
    row: int
    tokenized_dir: Path
    tokenizer: str | None
    input_dir: Path | None
    max_characters: int
    positions: int
    passages: int


def run(namespace: argparse.Namespace) -> int:
    """Print one row of an MDS set: where it comes from, and its tokens as text."""
    args = cli.typed(ShowOptions, namespace)
    args = replace(args, path=verify.with_parents(args.path, 1))
    columns = mds.read_columns(args.path)
    rows = mds.Rows(args.path)
    if args.row >= len(rows):
        raise ArgumentError(f"{args.path} has {len(rows)} rows, numbered from 0: there is no row {args.row}")
    set_of_tokens = input_folder(args) if "target_index" in columns else args.path
    fingerprint = (provenance.read_meta(set_of_tokens) or {}).get("tokenizer")
    tokenizer = tokenizers.find(args.tokenizer, args.tokenized_dir, fingerprint)
    decode = backends.make_decoder(tokenizer, keep_special_tokens=True)
    row = rows[args.row]
    cli.say(
        f"{args.path} row {args.row} of {len(rows)}: " + ", ".join(f"{name} {kind}" for name, kind in columns.items())
    )

    def print_text(title: str, ids: np.ndarray) -> None:
        [text] = decode(ids.astype(np.int32), np.array([len(ids)]))
        cli.say(f"--- {title}, {len(ids)} tokens\n{cut_middle(text, args.max_characters)}")

    if not {"target_index", "token_ids", "retrieved_token_ids"}.intersection(columns):
        raise ArgumentError(f"{args.path} has none of the columns of this pipeline: it was not made by this pipeline")
    if "retrieved_token_ids" in columns:
        if args.input_dir:
            num_tokens = (provenance.read_meta(args.path) or {}).get("query_tokens")
            found_for = provenance.made_with(args.path).get("input")
            if found_for is not None and found_for != mds.fingerprint(input_folder(args)):
                raise ArgumentError(
                    f"the passages in {args.path} were found for other rows than {input_folder(args)}'s"
                )
            print_text("query, the beginning of token_ids", input_row(args)["token_ids"][:num_tokens])
        else:
            cli.say("pass --input_dir, the folder of the domain folders of the queries, to see the query")
        for title, ids in retrieved_passages(args.path, args.row, row, args.passages):
            print_text(title, ids)
    elif "target_index" in columns:
        window, num_samples = input_row(args), teacher_check.num_samples_of(args.path)
        print_teacher_row(row, window["token_ids"], tokenizer, args.positions, num_samples)
    else:
        for line in describe_source(args.path, args.row, args.tokenized_dir):
            cli.say(line)
        print_text("prev_token_ids", row["prev_token_ids"])
        print_text("token_ids", row["token_ids"])
    return cli.EXIT_OK


def retrieved_passages(
    folder: Path, number: int, row: Mapping[str, Any], num_passages: int
) -> Iterator[tuple[str, np.ndarray]]:
    """A title with score and id, and the token ids, of the best passages of a row of a set."""
    keys_path, meta = folder.with_name(f"{folder.name}.keys.npy"), provenance.read_meta(folder)
    names = [""] * len(row["retrieval_scores"])
    if meta and keys_path.exists():
        names = passage_ids(meta["corpus_files"], read_row(keys_path, number, len(names)))
    best = zip(names, row["retrieval_scores"].tolist(), row["retrieved_token_ids"], strict=True)
    for place, (name, score, ids) in enumerate(itertools.islice(best, num_passages)):
        yield f"passage {place} {name}, score {score:.4f}", ids


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


def input_row(args: ShowOptions) -> dict:
    """The row that a teacher's row belongs to."""
    folder = input_folder(args)
    for line in describe_source(folder, args.row, args.tokenized_dir):
        cli.say(line)
    return mds.Rows(folder)[args.row]


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
