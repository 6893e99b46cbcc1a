"""From token files to drawn windows: survey what there is, draw rows, read them.

The survey reads headers, lengths and hashes only. Row n of (domain, split) is window π(n), π a keyed permutation of the
windows available, so a smaller request is a prefix of a larger one. Windows are read in file order. Only what a plan
says of its rows is kept: 20 bytes a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from cepe_data import cli, corpus
from cepe_data.errors import DamagedFileError
from cepe_data.splits import Splits
from cepe_data.token_file import TokenFile
from cepe_data.windows import KeyedPermutation, Windows

MAX_ID = (1 << 31) - 1
_DOCUMENTS_AT_ONCE = 64


@dataclass(frozen=True)
class Tokens:
    """The token files of a run: per domain, in sorted order of their jsonl path; and what their tokenizer was (None if
    they were made elsewhere)."""

    files: Mapping[str, list[corpus.ListedFile]]
    folder: Path
    vocab_size: int | None
    fingerprint: str | None

    def open(self, file: corpus.ListedFile) -> TokenFile:
        """Raises DamagedFileError as `TokenFile`."""
        return TokenFile(self.folder / file.token_file)


@dataclass(frozen=True)
class Survey:
    """What there is of a domain: per split the number of documents, and per file the number of windows (int64 [files]).
    The fingerprint changes with any byte of any token file, and with their paths."""

    fingerprint: str
    documents: Mapping[str, int]
    windows: Mapping[str, np.ndarray]

    def available(self, split: str) -> int:
        """Windows of the split."""
        return int(self.windows[split].sum())


def survey(tokens: Tokens, splits: Splits, windows: Mapping[str, Windows]) -> dict[str, Survey]:
    """Count documents and windows of every domain, for each split that `windows` has a way of cutting for.

    Raises:
        DamagedFileError: if a token file is damaged.
    """
    with cli.progress_bar(sum(map(len, tokens.files.values())), "file", "survey") as bar:
        surveys = {}
        for domain, files in tokens.files.items():
            digest, num_without_hashes = xxhash.xxh3_64(), 0
            documents = dict.fromkeys(windows, 0)
            counts = {split: np.zeros(len(files), np.int64) for split in windows}
            for number, file in enumerate(files):
                with tokens.open(file) as token_file:
                    num_without_hashes += not token_file.has_text_hashes
                    fingerprint, of_file = _survey_file(token_file, splits, windows)
                digest.update(json.dumps([file.path, fingerprint], sort_keys=True).encode())
                for split, (num_documents, num_windows) in of_file.items():
                    documents[split] += num_documents
                    counts[split][number] = num_windows
                bar.update()
            if num_without_hashes:
                cli.warn(
                    f"{domain}: {num_without_hashes} token files have no hashes of texts (made elsewhere): their "
                    f"documents go to splits by the hash of the tokens"
                )
            surveys[domain] = Survey(digest.hexdigest(), documents, counts)
    return surveys


def _survey_file(
    token_file: TokenFile, splits: Splits, windows: Mapping[str, Windows]
) -> tuple[object, dict[str, tuple[int, int]]]:
    """What identifies the content of a token file; per split its documents and windows."""
    content = xxhash.xxh3_64()
    documents, units = dict.fromkeys(windows, 0), dict.fromkeys(windows, 0)
    for _, _, lengths, hashes in token_file.document_blocks():
        if token_file.meta is None:
            content.update(lengths.data)
            content.update(hashes.data)
        for split, way in windows.items():
            of_split = lengths[splits.contains(split, hashes)]
            documents[split] += len(of_split)
            units[split] += int(way.units(of_split).sum())
    fingerprint = token_file.meta["files"] if token_file.meta else content.hexdigest()
    return fingerprint, {split: (documents[split], way.available(units[split])) for split, way in windows.items()}


@dataclass(frozen=True)
class Plan:
    """Where drawn windows are, row by row.

    file:      int32 [rows], number of the file in the domain
    document:  int32 [rows], number of the document in which the window starts
    offset:    int32 [rows], tokens from the start of that document
    position:  int64 [rows], of the first token in the file's array
    """

    file: np.ndarray
    document: np.ndarray
    offset: np.ndarray
    position: np.ndarray

    def __len__(self) -> int:
        return len(self.file)

    def rows(self, start: int, stop: int) -> Plan:
        """The plan of rows [start, stop)."""
        return Plan(
            self.file[start:stop], self.document[start:stop], self.offset[start:stop], self.position[start:stop]
        )


@dataclass(frozen=True)
class WindowSource:
    """The windows of one (domain, split); `counts` int64 [files] are those of each file."""

    tokens: Tokens
    files: Sequence[corpus.ListedFile]
    name: str
    split: str
    splits: Splits
    windows: Windows
    counts: np.ndarray

    @classmethod
    def of(cls, tokens: Tokens, domain: str, split: str, splits: Splits, windows: Windows, one: Survey) -> WindowSource:
        """The source of (domain, split), from the survey of the domain."""
        name = f"{splits.seed}/{domain}/{split}"
        return cls(tokens, tokens.files[domain], name, split, splits, windows, one.windows[split])

    def draw(self, start: int, stop: int) -> Plan:
        """The plan of rows [start, stop) in drawing order."""
        drawn = KeyedPermutation(self.name, int(self.counts.sum()))(np.arange(start, stop))
        ends = np.cumsum(self.counts)
        file = np.searchsorted(ends, drawn, "right").astype(np.int32)
        window = drawn - (ends - self.counts)[file]
        document, offset = np.empty(len(drawn), np.int32), np.empty(len(drawn), np.int32)
        position = np.empty(len(drawn), np.int64)
        by_file = np.lexsort((window, file))
        for rows in np.split(by_file, np.flatnonzero(np.diff(file[by_file])) + 1):
            if len(rows):
                with self.tokens.open(self.files[file[rows[0]]]) as token_file:
                    located = self._locate(token_file, self.windows.first_unit(window[rows]))
                document[rows], offset[rows], position[rows] = located
        return Plan(file, document, offset, position)

    def _locate(self, token_file: TokenFile, first_units: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Document, offset and position, each int64 [windows], of windows that start at these units (sorted)."""
        document, offset, position = (np.empty(len(first_units), np.int64) for _ in range(3))
        units_before = done = 0
        for first_document, first_position, lengths, hashes in token_file.document_blocks():
            units = self.windows.units(lengths) * self.splits.contains(self.split, hashes)
            ends = units_before + np.cumsum(units)
            until = int(np.searchsorted(first_units, ends[-1], "left"))
            mine = slice(done, until)
            index = np.searchsorted(ends, first_units[mine], "right")
            document[mine] = first_document + index
            offset[mine] = self.windows.offset(first_units[mine] - (ends - units)[index])
            position[mine] = first_position + (np.cumsum(lengths) - lengths)[index] + offset[mine]
            done, units_before = until, int(ends[-1])
            if done == len(first_units):
                return document, offset, position
        raise _changed(token_file)

    def by_file(self, plan: Plan) -> Iterator[tuple[TokenFile, np.ndarray]]:
        """Each file that the plan needs, opened, with the plan's rows in it by position."""
        order = np.lexsort((plan.position, plan.file))
        for rows in np.split(order, np.flatnonzero(np.diff(plan.file[order])) + 1):
            if len(rows):
                with self.tokens.open(self.files[plan.file[rows[0]]]) as token_file:
                    yield token_file, rows

    def read(self, plan: Plan, dtype: np.dtype) -> np.ndarray:
        """The windows of a plan in its order: [rows, total_length] of `dtype`.

        Raises:
            DamagedFileError: if an id is outside of the vocabulary, or does not fit `dtype`.
        """
        out = np.empty((len(plan), self.windows.total_length), dtype)
        for token_file, rows in self.by_file(plan):
            for row in rows:
                filled = 0
                for start, stop in self._pieces(token_file, plan, int(row)):
                    ids = self.checked(token_file, start, stop, int(np.iinfo(dtype).max))
                    out[row, filled : filled + len(ids)] = ids
                    filled += len(ids)
        return out

    def checked(self, token_file: TokenFile, start: int, stop: int, highest: int = MAX_ID) -> np.ndarray:
        """The ids at positions [start, stop), in the file's dtype.

        Raises:
            DamagedFileError: if one is outside of the vocabulary (where that is known), or above `highest`.
        """
        ids = token_file.tokens(start, stop)
        if self.tokens.vocab_size is not None:
            highest = min(highest, self.tokens.vocab_size - 1)
        if ids.min() < 0 or ids.max() > highest:
            raise DamagedFileError(
                f"{token_file.path}: an id at positions {start} to {stop} is outside of 0 … {highest}: see "
                f"sanity_check.py, or choose a larger --token_dtype"
            )
        return ids

    def _pieces(self, token_file: TokenFile, plan: Plan, row: int) -> Iterator[tuple[int, int]]:
        """The ranges of positions that make up a window: from its first token on, through documents of its split."""
        document, offset = int(plan.document[row]), int(plan.offset[row])
        position, num_missing = int(plan.position[row]) - offset, self.windows.total_length
        num_documents = 1  # the first alone is all that a window inside a document needs
        while document < token_file.num_documents:
            stop = min(document + num_documents, token_file.num_documents)
            lengths = token_file.lengths(document, stop)
            is_inside = self.splits.contains(self.split, token_file.hashes(document, position, lengths))
            for length, inside in zip(lengths.tolist(), is_inside.tolist(), strict=True):
                if inside and length > offset:
                    num_taken = min(length - offset, num_missing)
                    yield position + offset, position + offset + num_taken
                    num_missing -= num_taken
                    offset = 0
                    if not num_missing:
                        return
                position += length
            document, num_documents = stop, _DOCUMENTS_AT_ONCE
        raise _changed(token_file)


def _changed(token_file: TokenFile) -> DamagedFileError:
    return DamagedFileError(f"{token_file.path} changed while it was being sampled: run the same command again")
