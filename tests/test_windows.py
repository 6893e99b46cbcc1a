"""Windows and their sampling order, against brute force.    pytest tests/test_windows.py"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cepe_data.samples.windows import KeyedPermutation, Windows
from tests import reference

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=20)


@given(LENGTHS, st.integers(1, 20), st.integers(1, 12))
def test_windows_inside_documents_are_those_of_brute_force(lengths: list[int], total: int, step: int) -> None:
    windows = Windows(total, step, is_inside=True)
    num_indices = windows.num_indices(np.array(lengths))
    expected = [len(range(0, length - total + 1, step)) for length in lengths]
    assert num_indices.tolist() == expected
    assert windows.available(int(num_indices.sum())) == sum(expected)
    assert windows.offset(np.arange(3)).tolist() == [0, step, 2 * step]


@given(LENGTHS, st.integers(1, 20), st.integers(1, 12))
def test_windows_over_the_concatenation_are_those_of_brute_force(lengths: list[int], total: int, step: int) -> None:
    windows = Windows(total, step, is_inside=False)
    available = windows.available(int(windows.num_indices(np.array(lengths)).sum()))
    assert windows.first_index(np.arange(available)).tolist() == list(range(0, sum(lengths) - total + 1, step))


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 1000, 4096, 4097])
def test_the_permutation_is_one_and_is_the_documented_one(size: int) -> None:
    sampled = KeyedPermutation("42/arxiv/test", size)(np.arange(size))
    assert sorted(sampled.tolist()) == list(range(size))
    some = range(0, size, max(1, size // 20))
    assert [sampled[number] for number in some] == [reference.permutation("42/arxiv/test", size, n) for n in some]


def test_the_documented_test_vectors_hold() -> None:
    vectors = {
        10: [9, 6, 8, 2, 4, 0, 3, 5],
        1000: [314, 638, 508, 521, 212, 175, 558, 791],
        10**9: [850219026, 503023631, 727637399, 334694649, 353588500, 748908231, 943056273, 217705575],
    }
    for size, expected in vectors.items():
        assert KeyedPermutation("42/arxiv/test", size)(np.arange(8)).tolist() == expected
        assert [reference.permutation("42/arxiv/test", size, number) for number in range(8)] == expected


def test_every_pair_of_first_windows_is_equally_likely_over_seeds() -> None:
    size, num_seeds = 7, 2100
    pairs = Counter(
        tuple(KeyedPermutation(f"{seed}/arxiv/test", size)(np.arange(2)).tolist()) for seed in range(num_seeds)
    )
    expected = num_seeds / (size * (size - 1))
    chi_square = sum((count - expected) ** 2 / expected for count in pairs.values())
    assert len(pairs) == size * (size - 1)
    # 41 degrees of freedom: above 80 once in 4,000 truly random draws; the seeds are fixed.
    assert chi_square < 80
