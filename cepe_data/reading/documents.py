"""The documents of a token file by number. The file is never loaded as a whole: a document takes two reads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from cepe_data.errors import DamagedFileError
from cepe_data.tokens.token_file import DOCUMENTS_PER_BLOCK, TokenFile, read_tokenizer
from cepe_data.tokens.tokenizers import TokenizerIdentity

_DOCUMENTS_PER_START = 1 << 10  # one position is kept per 1,024 documents: 8 KB for a million


class Documents:
    """The documents of the token file `path`, `tokenized/**/X.npy`. Any number of processes may read, and it can be
    sent to other processes. Use as a context manager, or `close` it.

        with Documents("tokenized/arxiv/arxiv_0.npy") as documents:
            print(len(documents), documents.num_tokens, documents[3])

    Raises:
        DamagedFileError: if the arrays are damaged, or do not fit each other.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = TokenFile(self.path)

    def __enter__(self) -> Documents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Documents], tuple[Path]]:
        return Documents, (self.path,)

    def close(self) -> None:
        """Close the file."""
        self._file.__exit__()

    @property
    def num_tokens(self) -> int:
        """The tokens of all documents, BOS and EOS included."""
        return self._file.num_tokens

    @property
    def tokenizer(self) -> TokenizerIdentity | None:
        """Fingerprint, vocabulary size, BOS and EOS of the tokenizer; None for a file of another program."""
        return read_tokenizer(self.path, self._file.meta) if self._file.meta else None

    def __len__(self) -> int:
        return self._file.num_documents

    def __getitem__(self, number: int) -> np.ndarray:
        """The ids of a document with BOS and EOS, int32 [tokens] (of a file of another program, in its dtype)."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.path} has {len(self):,} documents: there is no number {number}")
        first = number % len(self)
        start = self._start_of(first)
        return self._file.tokens(start, start + int(self._file.lengths(first, first + 1)[0]))

    def __iter__(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self), _DOCUMENTS_PER_START):
            start = self._start_of(first)
            for length in self.lengths(first, first + _DOCUMENTS_PER_START).tolist():
                yield self._file.tokens(start, start + length)
                start += length

    def lengths(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """int64 [documents]: the tokens of documents [start, stop), all by default, BOS and EOS included."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return self._file.lengths(start, max(start, stop))

    def hashes(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint64 [documents]: xxh3_64 of the UTF-8 text of documents [start, stop), all by default. For a file of
        another program it is of the ids as int32, which are read."""
        lengths = self.lengths(start, stop)
        start, _, _ = slice(start, stop).indices(len(self))
        return self._file.hashes(start, self._start_of(start) if len(lengths) else 0, lengths)

    @cached_property
    def _starts(self) -> np.ndarray:
        """int64: the positions at which documents 0, 1024, 2048, … begin."""
        starts, position = [], self._file.tokens_start
        for first in range(0, len(self), DOCUMENTS_PER_BLOCK):
            lengths = self._file.lengths(first, min(first + DOCUMENTS_PER_BLOCK, len(self)))
            sums = np.add.reduceat(lengths, np.arange(0, len(lengths), _DOCUMENTS_PER_START))
            ends = position + np.cumsum(sums)
            starts.append(ends - sums)
            position = int(ends[-1])
        if position != self._file.tokens_start + self.num_tokens:
            raise DamagedFileError(
                f"{self.path} is damaged: the lengths of its documents do not add up to {self.num_tokens:,} tokens. "
                f"Remove it and make it again"
            )
        return np.concatenate([np.empty(0, np.int64), *starts])

    def _start_of(self, number: int) -> int:
        """The position of the first token of a document."""
        block = number // _DOCUMENTS_PER_START
        return int(self._starts[block] + self._file.lengths(block * _DOCUMENTS_PER_START, number).sum())
