"""Spans of tokens that a passage shares with the row it was retrieved for.

Spans are compared by a polynomial hash: with x_i = mix(id_i + 1) and an odd B, the span at i has Σ x_{i+j} B^j modulo
2⁶⁴, from prefix sums of x_i B^i times B^−i. Two different spans have the same one with a probability of about 2⁻⁶⁴.
"""

from __future__ import annotations

import numpy as np

from cepe_data import keyed

_BASE = 0x9E3779B97F4A7C15
_MODULUS = 1 << 64


def span_hashes(ids: np.ndarray, span: int) -> np.ndarray:
    """uint64 [rows, tokens − span + 1]: a hash of every span of `span` tokens, from ids, int [rows, tokens]."""
    num_tokens = ids.shape[1]
    if num_tokens < span:
        return np.empty((len(ids), 0), np.uint64)
    powers = _powers(_BASE, num_tokens)
    inverse = _powers(pow(_BASE, -1, _MODULUS), num_tokens)
    prefix = np.zeros((len(ids), num_tokens + 1), np.uint64)
    np.cumsum(keyed.mix(ids.astype(np.uint64) + np.uint64(1)) * powers, axis=1, out=prefix[:, 1:])
    return (prefix[:, span:] - prefix[:, : num_tokens + 1 - span]) * inverse[: num_tokens + 1 - span]


def _powers(base: int, number: int) -> np.ndarray:
    factors = np.full(number, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors)


def shares_span(row: np.ndarray, passages: np.ndarray, span: int) -> np.ndarray:
    """bool [passages]: whether a passage, int [passages, tokens], has `span` consecutive tokens that `row`, int
    [tokens], has as well."""
    wanted = span_hashes(row[None], span)[0]
    return np.isin(span_hashes(passages, span), wanted).any(axis=1)
