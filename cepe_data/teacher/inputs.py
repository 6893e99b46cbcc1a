"""The rows that a teacher reads: the context, then the tokens to annotate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.storage import mds
from cepe_data.teacher import vocabulary
from cepe_data.teacher.plan import Annotation


class InputRows:
    """The rows that the teacher reads: context, then the tokens to annotate."""

    def __init__(self, annotation: Annotation) -> None:
        self._annotation = annotation
        self._windows = mds.Rows(annotation.input_folder)
        self._retrieved: mds.Rows | None = None
        if annotation.retrieval_folder:
            self._retrieved = mds.Rows(annotation.retrieval_folder)

    def input_ids(self, row: int) -> np.ndarray:
        """int64 [context + num_decoder_tokens]. No BOS is inserted.

        Raises:
            ArgumentError: if there is an id that the model does not know.
            DamagedFileError: if the row cannot be read.
        """
        annotation = self._annotation
        window = self._windows[row]
        if self._retrieved is not None and annotation.retrieval_folder is not None:
            passages = self._retrieved[row]["retrieved_token_ids"]
            context = passages[: annotation.retrieval_k].reshape(-1)
            self._check_row(context, annotation.retrieval_folder, row)
        else:
            context = window["prev_token_ids"][-annotation.num_encoder_tokens :]
        ids = np.concatenate([context, window["token_ids"][: annotation.num_decoder_tokens]]).astype(np.int64)
        self._check_row(ids, annotation.input_folder, row)
        if len(ids) != annotation.num_tokens:
            raise DamagedFileError(f"row {row} of {annotation.input_folder} has {len(ids)} tokens: make the set again")
        return ids

    def batches(self, part_ranges: Sequence[tuple[int, int]], batch_size: int) -> Iterator[list[np.ndarray]]:
        """The rows of each range, some at a time; a batch never has rows of two ranges. Raises as `input_ids`."""
        for start, stop in part_ranges:
            for first in range(start, stop, batch_size):
                yield [self.input_ids(row) for row in range(first, min(first + batch_size, stop))]

    def check_ids(self, part_ranges: Sequence[tuple[int, int]]) -> None:
        """Raise ArgumentError if any of these rows has an id that the model does not know. Where the input says that
        its tokenizer knows no more words than the model, no row is read."""
        folders = [self._annotation.input_folder]
        if self._annotation.retrieval_folder:
            folders.append(self._annotation.retrieval_folder)
        sizes = [vocabulary.tokenizer_size(folder) for folder in folders]
        if any(size is None or size > self._annotation.model.vocab_size for size in sizes):
            for _ in self.batches(part_ranges, 1):
                pass

    def _check_row(self, ids: np.ndarray, folder: Path, row: int) -> None:
        known = self._annotation.model.vocab_size
        if ids.min() < 0 or ids.max() >= known:
            raise ArgumentError(
                f"row {row} of {folder} has ids from {ids.min()} to {ids.max()}, and the model knows only {known} "
                f"words: another tokenizer made the token files"
            )
