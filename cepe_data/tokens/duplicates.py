"""Duplicates: one bit per document beside each token file, set where the same text stood before in its domain.

`X.duplicates.npy`       uint8 [⌈documents / 8⌉]: bit d mod 8 (the lowest is 0) of byte ⌊d / 8⌋ belongs to document d of
                         `X.npy`. It is 1 if a document before it, in an earlier file of the domain or earlier in this
                         one, has the same hash; files are sorted by their jsonl path. Unused bits are 0
`X.duplicates.meta.json` see storage/provenance.py; `made_with` names all token files of the domain (by a fingerprint),
                         on which the bits depend, and the `document_hash`; further `documents` and `copies`

Hashes are those of tokens/token_file.py, 64 bits: among a billion different texts, the probability that one is taken
for the duplicate of another is 3 %.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.storage import outputs, provenance
from cepe_data.storage.npy import NpyRows, write_header

PARTITION_DOCUMENTS = 1 << 18  # their hashes are sorted in a core's cache
MAX_PARTITIONS = 1 << 8  # the number of a partition is one byte, and each is an open file
_HASH_DTYPE = np.dtype("<u8")
_BUFFER_BYTES = 1 << 16


def bits_path(path: Path) -> Path:
    """`X.npy` → `X.duplicates.npy`."""
    return path.with_name(f"{path.stem}.duplicates.npy")


def made_with(token_files: str, document_hash: str) -> provenance.Provenance:
    """The provenance of the bits of a domain: `token_files` is the fingerprint of all its token files."""
    return {"kind": "duplicates", "token_files": token_files, "document_hash": document_hash}


def is_made(bits: outputs.Output) -> bool:
    """Whether the bits of a token file are there. Reads them. Raises as `Output.is_done`, and DamagedFileError if they
    are not what was written."""
    if not bits.is_done():
        return False
    if damaged := provenance.damaged_files(bits.path, provenance.read_meta(bits.path).files):
        raise DamagedFileError(f"{damaged[0]} is not what was written: --overwrite makes it again")
    return True


def write_bits(bits: outputs.Output, num_documents: int, blocks: Iterable[np.ndarray]) -> None:
    """Write the bits of a token file.

    Args:
        blocks: bool [documents] each, in order: whether each document is a duplicate. All blocks but the last have a
            multiple of 8 documents.
    """
    num_duplicates = 0
    with bits.draft() as draft:
        with draft.path.open("wb") as file:
            write_header(file, np.dtype(np.uint8), num_bytes(num_documents))
            for is_duplicate in blocks:
                file.write(np.packbits(is_duplicate, bitorder="little").data)
                num_duplicates += int(np.count_nonzero(is_duplicate))
        draft.publish({"documents": num_documents, "copies": num_duplicates})


def num_bytes(num_documents: int) -> int:
    """The bytes that hold a bit for each of so many documents."""
    return -(-num_documents // 8)


class DuplicateBits:
    """Reads the bits beside the token file `path`, which has so many documents.

    Raises:
        ArgumentError: if there are none, or they are those of another file. It ends with `remedy`, the command that
            makes them.
        DamagedFileError: if they are not such an array.
    """

    def __init__(self, path: Path, num_documents: int, remedy: str) -> None:
        bits = bits_path(path)
        if not bits.exists():
            raise ArgumentError(f"{bits} is missing, which marks the duplicates in {path}. Make it with\n  {remedy}")
        self._bytes = NpyRows(bits)
        self.version = self._bytes.version
        if self._bytes.dtype != np.uint8:
            raise DamagedFileError(
                f"{bits} holds {self._bytes.dtype}, not bits: remove it, and make it with\n  {remedy}"
            )
        if self._bytes.size != num_bytes(num_documents):
            raise _outdated(bits, f"it has {self._bytes.size:,} bytes for {num_documents:,} documents", remedy)

    def close(self) -> None:
        """Close the file; reading is then over."""
        self._bytes.close()

    def read(self, start: int, stop: int) -> np.ndarray:
        """bool [stop - start]: whether each of these documents is a duplicate of one before it."""
        first = start // 8
        bits = np.unpackbits(self._bytes.read(first, num_bytes(stop)), bitorder="little")
        return bits[start - 8 * first : stop - 8 * first].view(bool)


def fingerprint(paths: Sequence[Path], expected: provenance.Provenance, remedy: str) -> str:
    """The fingerprint of the bits beside all token files of a domain; `expected` is their provenance.

    Raises:
        ArgumentError: if some were made from other token files. It ends with `remedy`, the command that makes them.
        DamagedFileError: if a file is not what was written.
    """
    metadata = []
    for path in paths:
        bits = bits_path(path)
        meta = provenance.read_meta(bits)
        if not meta:
            raise _outdated(bits, "nothing says what made it", remedy)
        if differences := provenance.describe_differences(meta.made_with, expected):
            raise _outdated(bits, differences, remedy)
        if damaged := provenance.damaged_files(bits, meta.files):  # a bit a document: reading them takes no time
            raise DamagedFileError(f"{damaged[0]} is not what was written. Make it again with\n  {remedy}")
        metadata.append(meta.files)
    return provenance.fingerprint(metadata)


@cache
def present_fingerprint(paths: tuple[Path, ...]) -> str | None:
    """The same fingerprint from the meta files alone; None if some are missing or damaged."""
    try:
        metas = [provenance.read_meta(bits_path(path)) for path in paths]
    except DamagedFileError:
        return None
    return provenance.fingerprint([meta.files for meta in metas if meta]) if all(metas) else None


def _outdated(bits: Path, why: str, remedy: str) -> ArgumentError:
    return ArgumentError(
        f"{bits} was made from other token files than its domain has now ({why}). Make it again with\n  {remedy}"
    )


class DuplicateFinder:
    """Finds the documents whose hash occurred before, in bounded memory; a context manager.

        with DuplicateFinder(num_documents, folder) as finder:
            finder.add(hashes)          for all documents, in order, in blocks of any size
            finder.compare()
            finder.take(number)         the same documents in the same order: is each a duplicate?

    The lowest bits of a hash choose one of at most 256 spool files, in which documents keep their order. Each spool is
    sorted alone; its hashes are then replaced by a byte per document: is it a duplicate. One more spool has the number
    of the spool of every document, by which `take` restores the order. So 28 bytes a document are moved (8 to read, 9
    to spool, 8 to compare, 3 for the results). A spool of pairs of hash and document would move 40; reading all hashes
    again for every partition, 8 each time. The disk needs 9 bytes a document. Spools have no names: no kill leaves one
    behind.

    Args:
        folder: where the spools are.
        partition_documents: how many documents a spool is meant for. With 256 spools it gets more: of a billion
            documents, 4 million, sorted in 0.2 GB.
    """

    def __init__(self, num_documents: int, folder: Path, partition_documents: int = PARTITION_DOCUMENTS) -> None:
        self._folder, self._num_partitions = folder, 1
        while self._num_partitions < MAX_PARTITIONS and num_documents > self._num_partitions * partition_documents:
            self._num_partitions *= 2
        # Many duplicates of a few texts make a spool long, though it has no more different hashes than others.
        self._piece = 2 * max(1, -(-num_documents // self._num_partitions))
        self._files = contextlib.ExitStack()
        self._spools: list[IO[bytes]] = []

    def __enter__(self) -> DuplicateFinder:
        try:
            for _ in range(1 + self._num_partitions):
                spool = tempfile.TemporaryFile(dir=self._folder, buffering=_BUFFER_BYTES)
                self._spools.append(self._files.enter_context(spool))
        except OSError as error:  # it names the nameless file
            error.filename = str(self._folder)
            raise
        self._numbers = self._spools.pop()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and error.errno and error.filename is None:  # a full disk: it is not named
            error.filename = str(self._folder)
        with contextlib.suppress(OSError):  # what a full disk did not take is tried once more
            self._files.close()

    def add(self, hashes: np.ndarray) -> None:
        """Add the next documents, by their hashes, uint64 [documents]."""
        numbers = (hashes & np.uint64(self._num_partitions - 1)).astype(np.uint8)
        order, counts = self._by_spool(numbers)
        self._numbers.write(numbers.data)
        for spool, of_spool in zip(self._spools, np.split(hashes[order], np.cumsum(counts)[:-1]), strict=True):
            spool.write(of_spool.data)

    def compare(self, progress: Callable[[int], object] = lambda _: None) -> None:
        """Find the duplicates among all documents; `progress` is told the number of documents at a time."""
        for spool in (self._numbers, *self._spools):
            spool.seek(0)
        for spool in self._spools:
            size = os.fstat(spool.fileno()).st_size // _HASH_DTYPE.itemsize
            seen = np.empty(0, _HASH_DTYPE)
            for start in range(0, size, self._piece):
                spool.seek(start * _HASH_DTYPE.itemsize)
                hashes = np.frombuffer(spool.read(self._piece * _HASH_DTYPE.itemsize), _HASH_DTYPE)
                is_duplicate = find_repeated(hashes)
                if start:
                    is_duplicate |= seen[np.searchsorted(seen, hashes) % len(seen)] == hashes
                if start + len(hashes) < size:
                    seen = np.union1d(seen, hashes)
                spool.seek(start)  # what was there has been read
                spool.write(is_duplicate.data)
                progress(len(hashes))
            spool.truncate(size)
            spool.seek(0)

    def take(self, number: int) -> np.ndarray:
        """bool [number]: whether each of the next documents is a duplicate of one before it."""
        order, counts = self._by_spool(np.frombuffer(self._numbers.read(number), np.uint8))
        of_spools = (spool.read(count) for spool, count in zip(self._spools, counts.tolist(), strict=True))
        is_duplicate = np.empty(number, bool)
        is_duplicate[order] = np.frombuffer(b"".join(of_spools), bool)
        return is_duplicate

    def _by_spool(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The order of documents that puts those of a spool together, and how many each spool has."""
        return np.argsort(numbers, kind="stable"), np.bincount(numbers, minlength=self._num_partitions)


def find_repeated(hashes: np.ndarray) -> np.ndarray:
    """bool [n]: whether each hash, uint64 [n], occurred before in the array."""
    # The index replaces the lowest bits, so that one fast sort of numbers orders both. Neighbours whose other bits are
    # the same are then compared by all bits, still in their first order.
    lowest = np.uint64((1 << len(hashes).bit_length()) - 1)
    keys = np.arange(len(hashes), dtype=_HASH_DTYPE)
    keys |= hashes & ~lowest
    keys.sort()
    is_like_next = np.zeros(len(keys) + 1, bool)
    is_like_next[1:-1] = (keys[1:] ^ keys[:-1]) <= lowest
    index = (keys[is_like_next[1:] | is_like_next[:-1]] & lowest).astype(np.int64)
    alike = hashes[index]
    order = np.argsort(alike, kind="stable")
    is_repeated = np.zeros(len(hashes), bool)
    is_repeated[index[order[1:]]] = alike[order[1:]] == alike[order[:-1]]
    return is_repeated
