"""Which windows of tokens a document or a concatenation of documents has, and in which order they are sampled.

Pure arithmetic: lengths in, numbers out. Windows of a file are numbered from 0 in the order of their first token. The
documents of a split in a file share one axis of *indices*: a document has an index for each of its windows (windows
inside documents) or for each of its tokens (windows over the concatenation). So one search in the cumulative sums of
these numbers finds the document of any window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cepe_data import hashing

INSIDE_DOCUMENTS, OVER_CONCATENATION = "inside documents", "over concatenation"  # the kinds of windows, on disk
_ROUNDS = 8
_MIN_HALF_BITS = 4


@dataclass(frozen=True)
class Windows:
    """Windows of `total_length` tokens, each starting `step` tokens after the one before. Arrays are int64 [n].

    Either inside one document, in every document that holds one. Windows of 4 tokens, one every 2, in documents of 10,
    3 and 8 tokens: four begin at tokens 0, 2, 4 and 6 of the first, the second is too short, three are in the last.
    With step = total_length, they are the full chunks of a document.

    >>> windows = Windows(total_length=4, step=2, is_inside=True)
    >>> windows.num_indices(np.array([10, 3, 8])).tolist()
    [4, 0, 3]
    >>> windows.offset(np.arange(4)).tolist()
    [0, 2, 4, 6]

    Or over the concatenation of the documents of a file; the tail that fills none is dropped. Documents of 5 and 4
    tokens are 9 in a row, which hold three windows: tokens 0–3, 2–5 and 4–7. The second and the third end in the second
    document; token 8 is in none.

    >>> windows = Windows(total_length=4, step=2, is_inside=False)
    >>> windows.available(windows.num_indices(np.array([5, 4])).sum()).item()
    3
    >>> windows.first_index(np.arange(3)).tolist(), windows.last_index(np.arange(3)).tolist()
    ([0, 2, 4], [3, 5, 7])
    """

    total_length: int
    step: int
    is_inside: bool

    @property
    def kind(self) -> str:
        """The name of the kind in provenance."""
        return INSIDE_DOCUMENTS if self.is_inside else OVER_CONCATENATION

    @property
    def _stride(self) -> int:
        """Indices from the start of a window to that of the next."""
        return 1 if self.is_inside else self.step

    @property
    def _span(self) -> int:
        """Indices of a window."""
        return 1 if self.is_inside else self.total_length

    def num_indices(self, lengths: np.ndarray) -> np.ndarray:
        """The number of indices of documents of these lengths."""
        return np.maximum((lengths - self.total_length) // self.step + 1, 0) if self.is_inside else lengths

    def available(self, num_indices: int) -> int:
        """The number of windows of a file whose documents have so many indices."""
        return max(0, (num_indices - self._span) // self._stride + 1)

    def first_index(self, windows: np.ndarray) -> np.ndarray:
        """The index at which each window starts."""
        return windows * self._stride

    def last_index(self, windows: np.ndarray) -> np.ndarray:
        """The last index of each window, which is one of the document in which the window ends."""
        return windows * self._stride + self._span - 1

    def offset(self, indices: np.ndarray) -> np.ndarray:
        """Tokens from the start of a document to a window; `indices` are counted from the document's first index."""
        return indices * (self.step // self._stride)


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
