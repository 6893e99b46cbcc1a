"""Spans of tokens that two texts share, found by hashes: of all spans, or of the same sample in both texts.

With x_i = mix(id_i + 1) and an odd B, the span at i has the polynomial hash Σ x_{i+j} B^j modulo 2⁶⁴ (Karp and Rabin
1987), from prefix sums of x_i B^i times B^−i. Two different spans have the same hash with a probability of about 2⁻⁶⁴.
One in M spans is sampled, those whose hash is below 2⁶⁴ / M: a span is in the samples of all texts that have it, or of
none (Broder, "On the resemblance and containment of documents", 1997).
"""

from __future__ import annotations

import numpy as np

from cepe_data import hashing

_BASE = 0x9E3779B97F4A7C15
_MODULUS = 1 << 64
_BLOCK = 1 << 15  # spans whose hashes are made together: the arrays stay in a core's cache
_TABLE_IDS = 1 << 16
_FILTER_BITS = 3  # a filter has 2³ to 2⁴ bits a hash
_HASHES_AT_ONCE = 1 << 22


class SpanSampler:
    """Hashes of the spans of `span` consecutive tokens, one of `sampling` of them."""

    def __init__(self, span: int, sampling: int = 1) -> None:
        self.span, self.sampling = span, sampling
        self._highest = np.uint64(_MODULUS // sampling - 1)
        size = _BLOCK + span - 1
        self._powers, self._inverse = _powers(_BASE, size), _powers(pow(_BASE, -1, _MODULUS), size)
        self._table = hashing.mix(np.arange(1, _TABLE_IDS + 1, dtype=np.uint64))
        self._prefix, self._hashes = np.zeros(size + 1, np.uint64), np.empty(_BLOCK, np.uint64)

    def sample(self, ids: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of the sampled spans inside of texts, and which text each is of: uint64 and int64 [spans].

        Args:
            ids: int [tokens], of texts one after the other.
            ends: int64 [texts], where each ends.
        """
        hashes, texts = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for start in range(0, len(ids) - self.span + 1, _BLOCK):
            of_block = self._hash(ids[start : start + _BLOCK + self.span - 1])
            chosen = np.flatnonzero(of_block <= self._highest)
            places = chosen + start
            text = np.searchsorted(ends, places, "right")
            is_inside = places + self.span <= ends[text]
            hashes.append(of_block[chosen[is_inside]])
            texts.append(text[is_inside])
        return np.concatenate(hashes), np.concatenate(texts)

    def _hash(self, ids: np.ndarray) -> np.ndarray:
        """uint64 [tokens − span + 1], valid until the next call."""
        number = len(ids) - self.span + 1
        prefix, hashes = self._prefix[: len(ids) + 1], self._hashes[:number]
        values = self._values(ids)
        values *= self._powers[: len(ids)]
        np.cumsum(values, out=prefix[1:])
        np.subtract(prefix[self.span :], prefix[:number], out=hashes)
        hashes *= self._inverse[:number]
        return hashes

    def _values(self, ids: np.ndarray) -> np.ndarray:
        if ids.dtype == np.int16:
            return self._table.take(ids.view(np.uint16))
        if ids.min() >= 0 and ids.max() < _TABLE_IDS:
            return self._table.take(ids.astype(np.uint16))
        return hashing.mix(ids.astype(np.uint64) + np.uint64(1))


def _powers(base: int, number: int) -> np.ndarray:
    factors = np.full(number, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors)


def shares_span(row: np.ndarray, passages: np.ndarray, span: int) -> np.ndarray:
    """bool [passages]: whether a passage, int [passages, tokens], has `span` consecutive tokens that `row`, int
    [tokens], has as well."""
    sampler = SpanSampler(span)
    expected, _ = sampler.sample(row, np.array([len(row)]))
    num_passages, num_tokens = passages.shape
    hashes, numbers = sampler.sample(passages.ravel(), np.arange(1, num_passages + 1) * num_tokens)
    shares = np.zeros(num_passages, bool)
    shares[numbers[np.isin(hashes, expected)]] = True
    return shares


class SpanIndex:
    """Finds hashes in a set of sampled ones. Takes 8 bytes a hash, and a filter of 1 to 2 bytes a hash, which one in 8
    to 16 of the hashes that are not in the set passes.

    Args:
        hashes: uint64 [n], in any order, of a `SpanSampler` with this `sampling`.
    """

    def __init__(self, hashes: np.ndarray, sampling: int) -> None:
        self.hashes = np.unique(hashes)
        self._sampling = np.uint64(sampling)
        num_bits = max(3, len(self.hashes).bit_length() + _FILTER_BITS)
        self._shift = np.uint64(64 - num_bits)
        self._filter = np.zeros(1 << (num_bits - 3), np.uint8)
        for first in range(0, len(self.hashes), _HASHES_AT_ONCE):
            keys = self._keys(self.hashes[first : first + _HASHES_AT_ONCE])  # ascending, as the hashes are
            places, firsts = np.unique(keys >> np.uint64(3), return_index=True)
            self._filter[places] |= np.bitwise_or.reduceat(_bit_of(keys), firsts)

    def __len__(self) -> int:
        return len(self.hashes)

    def _keys(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes * self._sampling) >> self._shift

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """int64 [found]: the places in the index of those hashes, uint64 [n], that are in it."""
        keys = self._keys(hashes)
        candidates = hashes[(self._filter[keys >> np.uint64(3)] & _bit_of(keys)) != 0]
        places = np.searchsorted(self.hashes, candidates)
        places[places == len(self.hashes)] = 0
        return places[self.hashes[places] == candidates]


def _bit_of(keys: np.ndarray) -> np.ndarray:
    """uint8 [n]: the bit of each key in its byte of the filter."""
    return np.uint8(1) << (keys & np.uint64(7)).astype(np.uint8)
