"""Token files: the documents of one jsonl file as token ids.

`X.npy`       one-dimensional little-endian int32 .npy: [n] [len(d1) … len(dn)] [d1] … [dn]; a document is BOS (if the
              tokenizer has one), its tokens, EOS, and its length counts all of them
`X.hash.npy`  uint64 [n]: xxh3_64 of each document's UTF-8 text
`X.domain.npy` uint8 [n], where records say their domain: the number of each document's domain in `domains.names` of
              X.meta.json
`X.meta.json` see storage/provenance.py; `made_with` names source, source bytes, text key and tokenizer; further
              documents, tokens, `skipped_lines` and `mended_lines`; and with X.domain.npy,
              `domains`: {"names": [str], "documents": [int], "tokens": [int]}, these by domain

The reader also takes `X.npy` alone, with any integer dtype: token files that another pipeline made. The hash of a
document is then xxh3_64 of its tokens as little-endian int32.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import numpy as np
import xxhash

from cepe_data.corpus.domains import count_by_domain
from cepe_data.errors import DamagedFileError
from cepe_data.storage import outputs, provenance
from cepe_data.storage.npy import NpyRows, write_header
from cepe_data.tokens.tokenizers import TokenizerIdentity

DOCUMENTS_PER_BLOCK = 1 << 16  # arrays of so many numbers stay in a core's cache
TOKEN_DTYPE = np.dtype("<i4")
DOMAIN_DTYPE = np.dtype("u1")
HASH_DTYPE = np.dtype("<u8")
_DOCUMENTS_PER_START = 1 << 10  # one position is kept per 1,024 documents: 8 KB for a million
_DOCUMENTS_AT_ONCE = _DOCUMENTS_PER_START << 6  # a read for each start would be four times slower
_BRIDGED_DOCUMENTS = 1 << 10  # reading 4 KB along is cheaper than a call of the system
_SPOOL_BYTES = 1 << 20  # in memory
_COPY_BYTES = 256 << 10  # stays in a core's cache: pieces of 8 MB take three times as long


def hash_path(path: Path) -> Path:
    """`X.npy` → `X.hash.npy`."""
    return path.with_name(f"{path.stem}.hash.npy")


def domain_path(path: Path) -> Path:
    """`X.npy` → `X.domain.npy`."""
    return path.with_name(f"{path.stem}.domain.npy")


def add_bos_eos(ids: np.ndarray, lengths: np.ndarray, bos_id: int | None, eos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Put BOS (if there is one) before and EOS behind each document.

    Args:
        ids: int32 [total], the documents one after the other.
        lengths: int64 [documents].

    Returns:
        The same two arrays, with the added ids counted.
    """
    num_added = 1 if bos_id is None else 2
    new_lengths = lengths + num_added
    ends = np.cumsum(new_lengths)
    out = np.empty(int(ends[-1]) if len(ends) else 0, TOKEN_DTYPE)
    is_text = np.ones(len(out), bool)
    out[ends - 1] = eos_id
    is_text[ends - 1] = False
    if bos_id is not None:
        starts = ends - new_lengths
        out[starts] = bos_id
        is_text[starts] = False
    out[is_text] = ids
    return out, new_lengths


class TokenFileWriter:
    """Writes one token file as a stream; memory does not grow with the file, and nothing has its final name before
    `publish`. Call `close` in the end, whatever happened. An OSError such as a full disk names the file.

    The header and the lengths stand before the tokens but are known last, so all arrays are spooled.

    Args:
        domain_names: all domains there can be, where documents say their domain.
    """

    def __init__(self, output: outputs.Output, domain_names: Sequence[str] = ()) -> None:
        self.path = output.path
        self.draft = output.draft().__enter__()
        # In memory while they are small, then in nameless files, which no kill can leave behind.
        folder = str(self.path.parent)
        self._spools = [SpooledTemporaryFile(_SPOOL_BYTES, dir=folder) for _ in range(4)]  # noqa: SIM115
        self._lengths, self._tokens, self._hashes, self._domains = self._spools
        self.num_documents = self.num_tokens = 0
        self._domain_names = domain_names
        self._by_domain = np.zeros((2, len(domain_names)), np.int64)  # documents, tokens

    def append(
        self, ids: np.ndarray, lengths: np.ndarray, hashes: np.ndarray, domains: np.ndarray | None = None
    ) -> None:
        """Append documents: ids int32 [total] with BOS and EOS; lengths int64, hashes uint64, both [documents]; and
        where documents say their domain, its number, uint8 [documents]."""
        with outputs.naming(self.path):
            self._lengths.write(lengths.astype(TOKEN_DTYPE).data)
            self._tokens.write(ids.astype(TOKEN_DTYPE, copy=False).data)
            self._hashes.write(hashes.astype(HASH_DTYPE, copy=False).data)
            if domains is not None:
                self._domains.write(domains.data)
                self._by_domain += count_by_domain(domains, lengths, len(self._domain_names))
        self.num_documents += len(lengths)
        self.num_tokens += len(ids)

    def publish(self, metadata: Mapping[str, Any]) -> bool:
        """Assemble the files and give them their names; see `outputs.Draft.publish`."""
        self.seal(metadata)
        return outputs.publish_together([self.draft])[0]

    def seal(self, metadata: Mapping[str, Any]) -> None:
        """Assemble the files; see `outputs.Draft.seal`."""
        with outputs.naming(self.path):
            with self.draft.path.open("wb") as file:
                write_header(file, TOKEN_DTYPE, 1 + self.num_documents + self.num_tokens)
                file.write(np.array([self.num_documents], TOKEN_DTYPE).data)
                _append_spool(self._lengths, file)
                _append_spool(self._tokens, file)
            with self.draft.sidecar(hash_path(self.path)).open("wb") as file:
                write_header(file, HASH_DTYPE, self.num_documents)
                _append_spool(self._hashes, file)
            counts = {"documents": self.num_documents, "tokens": self.num_tokens}
            if self._domain_names:
                with self.draft.sidecar(domain_path(self.path)).open("wb") as file:
                    write_header(file, DOMAIN_DTYPE, self.num_documents)
                    _append_spool(self._domains, file)
                documents, tokens = self._by_domain.tolist()
                by_domain = {"names": list(self._domain_names), "documents": documents, "tokens": tokens}
                metadata = {**metadata, "domains": by_domain}
            self._close_spools()
            self.draft.seal({**counts, **metadata})

    def close(self) -> None:
        """Remove everything that was not published."""
        self._close_spools()
        self.draft.__exit__(None, None, None)

    def _close_spools(self) -> None:
        for spool in self._spools:
            with contextlib.suppress(OSError):  # what a full disk did not take is tried once more
                spool.close()


def _append_spool(spool: IO[bytes], target: IO[bytes]) -> None:
    """Append all of a spool to a file."""
    spool.seek(0)
    shutil.copyfileobj(spool, target, _COPY_BYTES)


def read_tokenizer(path: Path, meta: provenance.Meta) -> TokenizerIdentity:
    """What the meta file of the token file `path` says of its tokenizer.

    Raises:
        DamagedFileError: if it does not.
    """
    try:
        return TokenizerIdentity(**meta.made_with["tokenizer"])
    except (KeyError, TypeError) as error:
        raise DamagedFileError(
            f"{provenance.meta_path(path)} is damaged, it names no tokenizer ({error}): remove {path} and make it again"
        ) from None


@dataclass(frozen=True)
class Place:
    """A position, and the document that is there, at positions [start, stop); no document: nowhere."""

    position: int
    document: int | None = None
    start: int = 0
    stop: int = 0


class TokenFile:
    """The documents of the token file `path`, by number; a document takes three reads, the file is never loaded as a
    whole. Any number of processes may read, and it can be sent to other processes. Use as a context manager, or
    `close` it.

        with TokenFile("tokenized/arxiv/arxiv_0.npy") as documents:
            print(len(documents), documents.num_tokens, documents[3])

    Positions count from the start of the array, so that `np.load(path)[position]` is the token, and the first token of
    the first document is at position 1 + documents.

    Raises:
        DamagedFileError: if the arrays are damaged, or do not fit each other.
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.meta = provenance.read_meta(path)
        self._array = NpyRows(path)
        self._hashes: NpyRows | None = None
        self._domains: NpyRows | None = None
        self.domain_names: list[str] = []  # where documents say their domain
        self.dtype = self._array.dtype
        self.num_documents = int(self._array.read(0, 1)[0]) if self._array.size else -1
        if not 0 <= self.num_documents < self._array.size:
            raise DamagedFileError(
                f"{path} is damaged: {self.num_documents:,} documents in {self._array.size:,} numbers. Make it again"
            )
        self.num_tokens = self._array.size - 1 - self.num_documents
        if not self.meta and hash_path(path).exists():
            raise DamagedFileError(f"{provenance.meta_path(path)} is missing, the meta file of {path}: make it again")
        if self.meta:
            self._hashes = self._open_sidecar(hash_path(path), HASH_DTYPE)
            if "domains" in self.meta:
                self._domains = self._open_sidecar(domain_path(path), DOMAIN_DTYPE)
                self.domain_names = self.meta["domains"]["names"]

    def _open_sidecar(self, path: Path, dtype: np.dtype) -> NpyRows:
        rows = NpyRows(path)
        if rows.size != self.num_documents or rows.dtype != dtype:
            raise DamagedFileError(
                f"{path} has {rows.size:,} numbers of {rows.dtype} for {self.num_documents:,} documents: remove "
                f"{self.path} and make it again"
            )
        return rows

    def __enter__(self) -> TokenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[TokenFile], tuple[Path]]:
        return type(self), (self.path,)

    def close(self) -> None:
        """Close the file and its sidecars."""
        for rows in filter(None, (self._array, self._hashes, self._domains)):
            rows.close()

    def __len__(self) -> int:
        return self.num_documents

    def __getitem__(self, number: int) -> np.ndarray:
        """The ids of a document with BOS and EOS, int32 [tokens] (of a file of another program, in its dtype)."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.path} has {len(self):,} documents: there is no number {number}")
        number %= len(self)
        return self.tokens(self._start_of(number), self._start_of(number + 1))

    def __iter__(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self), _DOCUMENTS_PER_START):
            start = self._start_of(first)
            for length in self.lengths(first, first + _DOCUMENTS_PER_START).tolist():
                yield self.tokens(start, start + length)
                start += length

    @property
    def tokenizer(self) -> TokenizerIdentity | None:
        """Fingerprint, vocabulary size, BOS and EOS of the tokenizer; None for a file of another program."""
        return read_tokenizer(self.path, self.meta) if self.meta else None

    @property
    def version(self) -> object:
        """Something else once the file, or a sidecar of it, was replaced or changed."""
        return [rows and rows.version for rows in (self._array, self._hashes, self._domains)]

    @property
    def has_text_hashes(self) -> bool:
        """Whether the hashes are of the texts; else (a file from elsewhere) they are of the tokens."""
        return self._hashes is not None

    @property
    def tokens_start(self) -> int:
        """The position of the first token of the first document."""
        return 1 + self.num_documents

    def lengths(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """int64 [documents]: the tokens of documents [start, stop), all by default, BOS and EOS included.

        Raises:
            DamagedFileError: if one is negative.
        """
        start, stop, _ = slice(start, stop).indices(len(self))
        lengths = self._array.read(1 + start, 1 + max(start, stop)).astype(np.int64)
        if len(lengths) and lengths.min() < 0:
            raise DamagedFileError(f"{self.path} is damaged: a document has a negative length. Make it again")
        return lengths

    def domain_numbers(self, start: int, stop: int) -> np.ndarray:
        """uint8 [stop - start]: of these documents of a file whose documents say their domain, its number.

        Raises:
            DamagedFileError: if one is the number of no domain.
        """
        assert self._domains is not None
        numbers = self._domains.read(start, stop)
        if len(numbers) and numbers.max() >= len(self.domain_names):
            raise DamagedFileError(f"{self._domains.path} is damaged: it has {numbers.max()}, the number of no domain")
        return numbers

    def will_need_tokens(self, starts: np.ndarray, stops: np.ndarray) -> None:
        """Ask the system to fetch the ids at positions [start, stop), int64 [n] each."""
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            self._array.will_need(start, stop)

    def will_need_documents(self, starts: np.ndarray, stops: np.ndarray) -> None:
        """Ask the system to fetch lengths and hashes of documents [start, stop), int [n] each."""
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            self._array.will_need(1 + start, 1 + stop)
            for sidecar in filter(None, (self._hashes, self._domains)):
                sidecar.will_need(start, stop)

    def lengths_of(self, documents: np.ndarray) -> np.ndarray:
        """int64 [n]: the lengths of these documents, int [n] in ascending order. Raises as `lengths`."""
        boundaries = np.flatnonzero(np.diff(documents) > _BRIDGED_DOCUMENTS) + 1
        lengths = [np.empty(0, np.int64)]
        for group in np.split(documents, boundaries) if len(documents) else ():
            first = int(group[0])
            lengths.append(self.lengths(first, int(group[-1]) + 1)[group - first])
        return np.concatenate(lengths)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """The ids at positions [start, stop), in the file's dtype."""
        return self._array.read(start, stop)

    def digest_to(self, position: int) -> xxhash.xxh3_64:
        """The hash of the file's bytes before a position, to be continued with the ids from there on."""
        return self._array.digest_to(position)

    @cached_property
    def _starts(self) -> np.ndarray:
        """int64: the positions at which documents 0, 1024, 2048, … begin, and at which the last one ends."""
        sums = [np.array([self.tokens_start])]
        for first in range(0, len(self), _DOCUMENTS_AT_ONCE):
            lengths = self.lengths(first, first + _DOCUMENTS_AT_ONCE)
            sums.append(np.add.reduceat(lengths, np.arange(0, len(lengths), _DOCUMENTS_PER_START)))
        starts = np.cumsum(np.concatenate(sums))
        self._check_end(int(starts[-1]))
        return starts

    def _start_of(self, number: int) -> int:
        """The position of the first token of a document; of the number of documents, where the last one ends."""
        block = number // _DOCUMENTS_PER_START
        return int(self._starts[block] + self.lengths(block * _DOCUMENTS_PER_START, number).sum())

    def _check_end(self, position: int) -> None:
        """Raise DamagedFileError if the last document does not end where the file does."""
        if position != self._array.size:
            raise DamagedFileError(
                f"{self.path} is damaged: the lengths of its documents do not add up to {self.num_tokens:,} tokens. "
                f"Remove it and make it again"
            )

    def document_blocks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Blocks of documents in order: (first document, position of its first token, lengths int64).

        Raises:
            DamagedFileError: if the lengths do not add up to the number of tokens.
        """
        position = self.tokens_start
        for first in range(0, len(self), DOCUMENTS_PER_BLOCK):
            lengths = self.lengths(first, first + DOCUMENTS_PER_BLOCK)
            stop = position + int(lengths.sum())
            if stop > self._array.size:
                break
            yield first, position, lengths
            position = stop
        self._check_end(position)

    def find(self, positions: np.ndarray) -> list[Place]:
        """The documents at positions, int64 [n], in any order."""
        return [self._find(position) for position in positions.tolist()]

    def _find(self, position: int) -> Place:
        if not self.tokens_start <= position < self._array.size:
            return Place(position)
        block = int(np.searchsorted(self._starts, position, "right")) - 1
        first = block * _DOCUMENTS_PER_START
        lengths = self.lengths(first, first + _DOCUMENTS_PER_START)
        ends = self._starts[block] + np.cumsum(lengths)
        index = int(np.searchsorted(ends, position, "right"))
        return Place(position, first + index, int(ends[index] - lengths[index]), int(ends[index]))

    def hashes(self, start: int = 0, stop: int | None = None, position: int | None = None) -> np.ndarray:
        """uint64 [documents]: xxh3_64 of the UTF-8 text of documents [start, stop), all by default. For a file of
        another program it is of the ids as int32, which are read: from `position` on if the caller knows where the
        first of them begins, else all lengths are read once to find it."""
        start, stop, _ = slice(start, stop).indices(len(self))
        if self._hashes is not None:
            return self._hashes.read(start, max(start, stop))
        lengths = self.lengths(start, stop)
        out = np.empty(len(lengths), HASH_DTYPE)
        position = self._start_of(start) if position is None else position
        for index, length in enumerate(lengths.tolist()):
            tokens = self.tokens(position, position + length).astype(TOKEN_DTYPE)
            out[index] = xxhash.xxh3_64_intdigest(tokens.data)
            position += length
        return out
