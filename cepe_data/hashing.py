"""64-bit hashing in numpy: the only source of randomness. No global state, the same numbers in every version.

`key(text)` is xxh3_64 of the UTF-8 text. `mix` is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), which is a bijection of 64-bit numbers.
"""

from __future__ import annotations

import numpy as np
import xxhash


def key(text: str) -> np.uint64:
    """The 64-bit key of a text."""
    return np.uint64(xxhash.xxh3_64_intdigest(text.encode()))


def mix(numbers: np.ndarray) -> np.ndarray:
    """uint64 array → uint64 array of the same shape: every bit depends on all bits of its number."""
    mixed = numbers ^ (numbers >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
