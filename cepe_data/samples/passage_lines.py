"""Reading the retrieval corpus: lines of JSON, or only the token ids in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cepe_data.errors import DamagedFileError

_BLOCK_BYTES = 1 << 18  # the arrays of a block stay in a core's cache
_ID_KEYS = (b'"contents_token_ids":[', b'"neighbor_token_ids":[')  # in a text, its quotes would be escaped
_MAX_DIGITS = 8
_POWERS_OF_TEN = np.array([10**number for number in range(_MAX_DIGITS + 1)], np.uint32)


def lines_of(path: Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin at bytes [start, stop), each with the byte at which it begins."""
    for first, lines in _blocks_of_lines(path, start, stop):
        yield from zip(itertools.accumulate(map(len, lines), initial=first), lines, strict=False)


def _blocks_of_lines(path: Path, start: int, stop: int) -> Iterator[tuple[int, list[bytes]]]:
    """The same lines in blocks, each with the byte at which its first line begins."""
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        while (position := file.tell()) < stop:
            block = file.read(min(_BLOCK_BYTES, stop - position))
            if not block:
                return
            yield position, (block + file.readline() if block[-1:] != b"\n" else block).splitlines(keepends=True)


def read_ids(path: Path, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The token ids of the passages whose lines begin at bytes [start, stop), each with those of its neighbor.

    Yields for each block: ids, int32 [total], and where each passage ends, int64 [passages]. The rest of a line is not
    parsed, and no Python number is made, which would take twice the time.

    Raises:
        DamagedFileError: naming the file and the byte, for a line that is not a passage.
    """
    for position, lines in _blocks_of_lines(path, start, stop):
        # The first number makes room to the left of the second: see _parse_numbers.
        texts, text_bytes = [b"0" * _MAX_DIGITS], [_MAX_DIGITS + 1]
        for number, line in enumerate(lines):
            num_bytes = 0
            for key in _ID_KEYS:
                first = line.find(key) + len(key)
                last = line.find(b"]", first)
                if first < len(key) or last < first:
                    raise _no_passage(path, position + sum(map(len, lines[:number])))
                if first < last:
                    texts.append(line[first:last])
                    num_bytes += last - first + 1
            text_bytes.append(num_bytes)
        text = np.frombuffer(b",".join([*texts, b""]), np.uint8)
        commas = np.flatnonzero(text == ord(","))
        try:
            ids = _parse_numbers(text, commas)
        except ValueError:
            raise _no_passage(path, position) from None
        yield ids, np.searchsorted(commas, np.cumsum(text_bytes)[1:]) - 1


def _no_passage(path: Path, position: int) -> DamagedFileError:
    return DamagedFileError(f"{path}: what begins at byte {position:,} is not a passage: make the file again")


def _parse_numbers(text: np.ndarray, commas: np.ndarray) -> np.ndarray:
    """int32 [n]: the numbers behind the first in a text, uint8 [bytes], with a comma behind each, at `commas`.

    Raises:
        ValueError: if anything else is in it, or a number has no digits or more than 8.
    """
    digits = text - np.uint8(ord("0"))
    is_digit = digits < 10
    num_digits = np.diff(commas) - 1
    if not len(num_digits):
        return np.empty(0, np.int32)
    if np.count_nonzero(is_digit) + len(commas) != len(text) or not 1 <= num_digits.min() <= num_digits.max() <= 8:
        raise ValueError("not numbers of 1 to 8 digits and commas")
    # The last 2, 4 and 8 characters before a place as one number; then modulo the power of ten, to drop earlier digits.
    digits *= is_digit
    pairs = digits[:-1] * np.uint8(10) + digits[1:]
    fours = pairs[:-2] * np.uint16(100) + pairs[2:]
    ends = commas[1:]
    eights = fours.take(ends - 8) * np.uint32(10_000) + fours.take(ends - 4)
    return (eights % _POWERS_OF_TEN.take(num_digits)).astype(np.int32)
