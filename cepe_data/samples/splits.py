"""Which split a document belongs to: test, train or retrieval, by its content alone.

u = (mix(hash + key("{seed}/split")) >> 11) · 2⁻⁵³ is uniform in [0, 1); test below `test_fraction`, train below
`test_fraction + train_fraction`, retrieval from there. The split of a document therefore does not depend on its
place or on other documents, and exact duplicates are always in the same split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cepe_data import hashing
from cepe_data.errors import ArgumentError

SPLITS = ("test", "train", "retrieval")


@dataclass(frozen=True)
class Splits:
    """The rule that assigns documents to splits.

    Raises:
        ArgumentError: if the two shares add up to more than 1.
    """

    seed: int
    test_fraction: float
    train_fraction: float

    def __post_init__(self) -> None:
        if self.test_fraction + self.train_fraction > 1:
            raise ArgumentError(
                f"--test_fraction {self.test_fraction} and --train_fraction {self.train_fraction} add up to more than 1"
            )

    def assign(self, hashes: np.ndarray, dropped: np.ndarray | None = None) -> np.ndarray:
        """uint8 [documents]: the split of each document, by its hash (uint64 [documents]), as an index into SPLITS.
        Documents that are `dropped` (bool [documents]) have the index len(SPLITS).

        >>> Splits(42, test_fraction=0.5, train_fraction=0.25).assign(np.arange(8, dtype=np.uint64)).tolist()
        [2, 0, 0, 2, 0, 0, 1, 0]
        """
        numbers = hashing.mix(hashes + hashing.key(f"{self.seed}/split"))
        numbers >>= np.uint64(11)
        # u < bound, in whole numbers: u is a multiple of 2⁻⁵³, and scaling a float by a power of two is exact.
        test_end, train_end = (
            np.uint64(math.ceil(bound * 2.0**53))
            for bound in (self.test_fraction, self.test_fraction + self.train_fraction)
        )
        assigned = (numbers >= test_end).view(np.uint8) + (numbers >= train_end).view(np.uint8)
        if dropped is not None:
            assigned[dropped] = len(SPLITS)
        return assigned

    def contains(self, split: str, hashes: np.ndarray, dropped: np.ndarray | None = None) -> np.ndarray:
        """bool [documents]: whether each document is in the split; arguments as for `assign`."""
        return self.assign(hashes, dropped) == SPLITS.index(split)

    def made_with(self, split: str) -> dict[str, object]:
        """The arguments that determine which documents are in the split; the test set does not depend on
        `train_fraction`."""
        arguments: dict[str, object] = {"seed": self.seed, "test_fraction": self.test_fraction}
        return arguments if split == "test" else {**arguments, "train_fraction": self.train_fraction}
