"""The split of a document depends on its text and the seed alone.    pytest tests/test_splits.py"""

from __future__ import annotations

import numpy as np
import pytest

from cepe_data.errors import ArgumentError
from cepe_data.samples.splits import SPLITS, Splits
from tests import reference


def hashes(texts: list[str]) -> np.ndarray:
    return np.array([reference.key(text) for text in texts], np.uint64)


def test_the_documented_test_vectors_hold() -> None:
    assert reference.key("42/split") == 0x6C9B26166BACA620
    assert reference.mix(1) == 0x5692161D100B05E5
    texts = ["", "a", "Call me Ishmael.", "日本"]
    expected = [0.8763777908654485, 0.4945961637585592, 0.9584411701984471, 0.45120776805280527]
    assert [reference.uniform(text, 42) for text in texts] == expected


@pytest.mark.parametrize(("seed", "test", "train"), [(42, 0.01, 0.49), (7, 0.2, 0.3), (0, 0.5, 0.5), (1, 0.0, 0.0)])
def test_splits_follow_the_formula_and_are_disjoint_and_complete(seed: int, test: float, train: float) -> None:
    texts = [f"document {number}" for number in range(3000)]
    splits = Splits(seed, test, train)
    member = {split: splits.contains(split, hashes(texts)) for split in SPLITS}
    expected = [reference.split_of(text, seed, test, train) for text in texts]
    for split in SPLITS:
        assert member[split].tolist() == [one == split for one in expected]
    shares = {split: float(member[split].mean()) for split in SPLITS}
    assert shares == pytest.approx({"test": test, "train": train, "retrieval": 1 - test - train}, abs=0.03)


def test_shares_above_one_are_an_error() -> None:
    with pytest.raises(ArgumentError, match="more than 1"):
        Splits(42, 0.6, 0.5)
