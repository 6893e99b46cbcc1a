"""Which windows of tokens a document or a concatenation of documents has, and in which order they are drawn.

Pure arithmetic: lengths in, numbers out. Windows of a file are numbered from 0 in the order of their first token. Each
document of a split offers *units*: the windows themselves (windows inside documents) or its tokens (windows over the
concatenation), so that one search over running sums finds the document of any window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from cepe_data import hashing

_ROUNDS = 8
_MIN_HALF_BITS = 4


@dataclass(frozen=True)
class Windows(ABC):
    """A way of cutting windows of `total_length` tokens, each starting `step` tokens after the one before."""

    total_length: int
    step: int

    @abstractmethod
    def units(self, lengths: np.ndarray) -> np.ndarray:
        """int64 [documents]: the units that documents of these lengths (int64 [documents]) offer."""

    @abstractmethod
    def available(self, num_units: int) -> int:
        """The number of windows of one file whose documents offer so many units."""

    @abstractmethod
    def first_unit(self, windows: np.ndarray) -> np.ndarray:
        """int64 [windows]: the unit, counted over the file, at which each window starts."""

    @abstractmethod
    def last_unit(self, windows: np.ndarray) -> np.ndarray:
        """int64 [windows]: a unit that belongs to the document in which each window ends."""

    @abstractmethod
    def offset(self, units: np.ndarray) -> np.ndarray:
        """int64 [windows]: tokens from the start of a document to the window that starts so many units into it."""


class DocumentWindows(Windows):
    """Windows inside one document, in every document that holds one. With step = total_length: its full chunks.

    Windows of 4 tokens, one every 2, in documents of 10, 3 and 8 tokens: four begin at tokens 0, 2, 4 and 6 of the
    first, the second is too short, three are in the last.

    >>> windows = DocumentWindows(total_length=4, step=2)
    >>> windows.units(np.array([10, 3, 8])).tolist()
    [4, 0, 3]
    >>> windows.offset(np.arange(4)).tolist()
    [0, 2, 4, 6]
    """

    def units(self, lengths: np.ndarray) -> np.ndarray:
        return np.maximum((lengths - self.total_length) // self.step + 1, 0)

    def available(self, num_units: int) -> int:
        return num_units

    def first_unit(self, windows: np.ndarray) -> np.ndarray:
        return windows

    def last_unit(self, windows: np.ndarray) -> np.ndarray:
        return windows

    def offset(self, units: np.ndarray) -> np.ndarray:
        return units * self.step


class ConcatWindows(Windows):
    """The same windows over the concatenation of the documents of a file; the tail that fills none is dropped.

    Documents of 5 and 4 tokens are 9 in a row, which hold three windows of 4, one every 2: tokens 0–3, 2–5 and 4–7. The
    second and the third end in the second document; token 8 is in none.

    >>> windows = ConcatWindows(total_length=4, step=2)
    >>> windows.available(windows.units(np.array([5, 4])).sum()).item()
    3
    >>> windows.first_unit(np.arange(3)).tolist(), windows.last_unit(np.arange(3)).tolist()
    ([0, 2, 4], [3, 5, 7])
    """

    def units(self, lengths: np.ndarray) -> np.ndarray:
        return lengths

    def available(self, num_units: int) -> int:
        return max(0, (num_units - self.total_length) // self.step + 1)

    def first_unit(self, windows: np.ndarray) -> np.ndarray:
        return windows * self.step

    def last_unit(self, windows: np.ndarray) -> np.ndarray:
        return windows * self.step + self.total_length - 1

    def offset(self, units: np.ndarray) -> np.ndarray:
        return units


class KeyedPermutation:
    """A permutation π of [0, size) that needs no memory: a balanced Feistel network of 8 rounds (Luby and Rackoff 1988)
    over the next power of four, with cycle walking (Black and Rogaway 2002) back into [0, size).

    x = (L, R) of h bits each, h = max(4, ⌈bits(size − 1) / 2⌉); round i: (L, R) → (R, L ⊕ F_i(R)), where
    F_i(R) = mix(R + key("{name}/{i}")) >> (64 − h); repeated while the result is not below size. Test vectors stand in
    docs/formats.md.

    >>> KeyedPermutation("seed 42, arxiv", 5)(np.arange(5)).tolist()
    [2, 0, 4, 3, 1]
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        half_bits = max(_MIN_HALF_BITS, -(-(size - 1).bit_length() // 2))
        self._half_bits, self._mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
        self._drop_bits = np.uint64(64 - half_bits)
        self._keys = [hashing.key(f"{name}/{number}") for number in range(_ROUNDS)]

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """π of each number, int64 [n] → int64 [n]. All numbers must be in [0, size)."""
        out = self._encrypt(numbers.astype(np.uint64))
        outside = np.flatnonzero(out >= self.size)
        while len(outside):
            out[outside] = self._encrypt(out[outside])
            outside = outside[out[outside] >= self.size]
        return out.astype(np.int64)

    def _encrypt(self, numbers: np.ndarray) -> np.ndarray:
        left, right = numbers >> self._half_bits, numbers & self._mask
        for round_key in self._keys:
            left, right = right, left ^ (hashing.mix(right + round_key) >> self._drop_bits)
        return (left << self._half_bits) | right
