"""Check scores of the chunks before a query: the rows are those of the input, and the scores are finite numbers. With
`--model_dir`, the scores of some rows are recomputed.

Quick by default: files, sizes, indexes, columns, the input, and a seeded sample of rows. `--deep` checks every row, and
the hashes of all files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cepe_data import cli
from cepe_data.errors import ArgumentError
from cepe_data.retrieval.context_scores import COLUMN, scores_of, texts_of
from cepe_data.retrieval.encoder import Encoder, EncoderModel, word_piece_json
from cepe_data.storage import mds, provenance, verify
from cepe_data.storage.report import Report
from cepe_data.teacher import devices
from cepe_data.teacher.check import input_folder
from cepe_data.tokens import tokenizers

HELP = "check scores of previous chunks"
TOLERANCE, HALF_TOLERANCE = 1e-3, 3e-2  # of the largest score of a row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="what score_contexts wrote, or one domain in it")
    parser.add_argument("--input_dir", type=Path, default=None, help="the rows that were scored (default: beside DIR)")
    parser.add_argument("--model_dir", default=None, help="the encoder, to recompute some rows")
    parser.add_argument(
        "--recomputed_rows", type=cli.count, default=ScoreCheck.recomputed_rows, help="with --model_dir, of every set"
    )
    parser.add_argument("--tokenized_dir", type=Path, default=Path("tokenized"), help="with --model_dir, its tokenizer")
    parser.add_argument("--tokenizer", default=None, help="for the texts (default: TOKENIZED_DIR/tokenizer)")
    verify.add_arguments(parser)


def check(report: Report, options: ScoreCheck) -> int:
    """Check every set of DIR."""
    folders = verify.find_sets(options.folder)
    num_compared = verify.check_sets(report, options, folders)
    num_recomputed = 0
    if options.model_dir and not report.findings:
        num_recomputed = recompute(report, options, options.model_dir, folders)
    num_rows = verify.count_rows(folders)
    report.results |= {"sets": len(folders), "rows": num_rows, "rows_compared": num_compared}
    report.results["rows_recomputed"] = num_recomputed
    return report.finish(
        f"{len(folders)} sets, {num_rows:,} rows, {num_compared:,} compared with the input, {num_recomputed} "
        f"recomputed: {len(report.findings)} findings",
        options.folder,
    )


@dataclass(frozen=True)
class ScoreCheck(verify.SetCheck):
    """The options: the encoder, how many rows of every set it recomputes, and from what; and the check of a set and its
    rows."""

    folder: Path
    input_dir: Path | None = None
    model_dir: str | None = None
    recomputed_rows: int = 2
    tokenized_dir: Path = Path("tokenized")
    tokenizer: str | None = None

    def check_set(self, report: Report, folder: Path) -> bool:
        """Check the columns, and that the set was made from its input."""
        before, columns = len(report.findings), mds.read_columns(folder)
        source = input_folder(folder, self.input_dir)
        if not verify.has_set(source):
            raise ArgumentError(f"the rows that {folder} has scores of are not in {source}: pass --input_dir")
        verify.compare_with_source(report, folder, source, "made from")
        made_with = provenance.read_meta(folder).made_with
        expected = mds.read_columns(source)
        _, (num_tokens,) = mds.column_array(expected["prev_token_ids"])
        num_chunks = num_tokens // made_with.get("chunk_tokens", 256)
        if columns != {**expected, COLUMN: mds.array_column(np.dtype(np.float32), num_chunks)}:
            what = f"does not have the columns of {source} and the scores of {num_chunks} chunks, but {columns}"
            report.found(folder, what)
        return len(report.findings) == before

    def check_rows(self, folder: Path, rows: np.ndarray) -> verify.Result:
        """Check that rows are those of the input, and scores finite numbers."""
        result, windows = verify.Result(), mds.Rows(input_folder(folder, self.input_dir))
        for number, row in verify.read_ids(verify.open_rows(folder), rows.tolist(), result):
            if not np.isfinite(row[COLUMN]).all():
                result.findings.append((number, "has scores that are not numbers"))
            if other := [name for name, value in windows[number].items() if not np.array_equal(value, row[name])]:
                result.findings.append((number, f"has other {', '.join(other)} than the row of {windows.folder}"))
            result.num_compared += 1
        return result


def recompute(report: Report, options: ScoreCheck, model_dir: str, folders: Sequence[Path]) -> int:
    """Recompute the scores of some rows of every set, and report those that differ. Returns how many rows."""
    model, num_recomputed = EncoderModel.find(model_dir), 0
    [device] = devices.choose_devices(None, 1)
    encoder, word_pieces = Encoder(model, "float32", device, normalize=False), word_piece_json(model)
    for folder in folders:
        meta, rows = provenance.read_meta(folder), mds.Rows(folder)
        made_with = meta.made_with
        if made_with.get("model") != model.fingerprint:
            report.found(folder, f"was made with another encoder than {model_dir}")
            continue
        tokenizer = tokenizers.find(options.tokenizer, options.tokenized_dir, meta.get("tokenizer"))
        read = texts_of(input_folder(folder, options.input_dir), tokenizer, word_pieces, made_with)
        tolerance = TOLERANCE if made_with["dtype"] == "float32" else HALF_TOLERANCE
        for number in verify.sample(len(rows), options.recomputed_rows, options.seed, folder.name).tolist():
            stored = rows[number][COLUMN]
            expected = scores_of(encoder.embed(*read((number, number + 1))), len(stored))[0]
            wrong = np.abs(expected - stored) > tolerance * np.abs(expected).max()
            if wrong.any():
                chunk = int(np.argmax(wrong))
                what = f"has the score {stored[chunk]:.6g} for chunk {chunk}; the encoder gives {expected[chunk]:.6g}"
                report.found(folder, what, number)
            num_recomputed += 1
    return num_recomputed
