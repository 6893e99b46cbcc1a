"""The sequences that a teacher reads: the context of a row, then the tokens to annotate. No BOS is inserted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.storage import mds, provenance
from cepe_data.teacher import vocabulary
from cepe_data.teacher.plan import Annotation

Ranges = Sequence[tuple[int, int]]  # first row, and the row after the last


def context_and_tokens(
    made_with: provenance.Provenance, window: Mapping[str, Any], retrieved: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The context of a row, and its tokens to annotate.

    The context is the end of `prev_token_ids`, or the first passages of the row of `retrieved`. How much of each there
    is, the provenance of the annotated set says: num_encoder_tokens or retrieval_k, and num_decoder_tokens.

    Returns:
        integer [context] and [num_decoder_tokens].
    """
    if retrieved is None:
        context = window["prev_token_ids"][-made_with["num_encoder_tokens"] :]
    else:
        context = retrieved["retrieved_token_ids"][: made_with["retrieval_k"]].reshape(-1)
    return context, window["token_ids"][: made_with["num_decoder_tokens"]]


def read_batches(
    annotation: Annotation, part_ranges: Ranges, batch_size: int
) -> Iterator[list[tuple[str, np.ndarray]]]:
    """The names, such as `arxiv/17`, and sequences of rows, int64 [num_tokens]; a batch never has rows of two ranges.

    Raises:
        ArgumentError: if there is an id that the model does not know.
        DamagedFileError: if a row cannot be read.
    """
    windows = mds.Rows(annotation.input_folder)
    passages = mds.Rows(annotation.retrieval_folder) if annotation.retrieval_folder else None

    def sequence(row: int) -> np.ndarray:
        retrieved = passages[row] if passages is not None else None
        context, tokens = context_and_tokens(annotation.of_set.made_with, windows[row], retrieved)
        if passages is not None:
            _check_ids(context, annotation, passages.folder, row)
        ids = np.concatenate([context, tokens]).astype(np.int64)
        _check_ids(ids, annotation, windows.folder, row)
        if len(ids) != annotation.settings.num_tokens:
            raise DamagedFileError(f"row {row} of {windows.folder} has {len(ids)} tokens: make the set again")
        return ids

    for start, stop in part_ranges:
        for first in range(start, stop, batch_size):
            rows = range(first, min(first + batch_size, stop))
            yield [(f"{windows.folder.name}/{row}", sequence(row)) for row in rows]


def check_ids(annotation: Annotation, part_ranges: Ranges) -> None:
    """Raise ArgumentError if one of these rows has an id that the model does not know. No row is read where the inputs
    say that their tokenizer has no more words than the model."""
    folders = filter(None, (annotation.input_folder, annotation.retrieval_folder))
    sizes = [vocabulary.tokenizer_size(folder) for folder in folders]
    if any(size is None or size > annotation.model.vocab_size for size in sizes):
        for _ in read_batches(annotation, part_ranges, 1):
            pass


def _check_ids(ids: np.ndarray, annotation: Annotation, folder: Path, row: int) -> None:
    known = annotation.model.vocab_size
    if ids.min() < 0 or ids.max() >= known:
        raise ArgumentError(
            f"row {row} of {folder} has ids from {ids.min()} to {ids.max()}, and the model knows only {known} words: "
            f"another tokenizer made the token files"
        )
