"""Independent references: the formulas of docs/formats.md in plain Python, one number at a time, and brute force.

Nothing here imports the project.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

MASK = (1 << 64) - 1


def key(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def uniform(text: str, seed: int) -> float:
    return (mix((key(text) + key(f"{seed}/split")) & MASK) >> 11) * 2.0**-53


def split_of(text: str, seed: int = 42, test: float = 0.01, train: float = 0.49) -> str:
    u = uniform(text, seed)
    return "test" if u < test else "train" if u < test + train else "retrieval"


def permutation(name: str, size: int, number: int) -> int:
    half = max(4, -(-(size - 1).bit_length() // 2))
    while True:
        left, right = number >> half, number & ((1 << half) - 1)
        for i in range(8):
            left, right = right, left ^ (mix((right + key(f"{name}/{i}")) & MASK) >> (64 - half))
        number = (left << half) | right
        if number < size:
            return number


def texts_of(path: Path, text_key: str = "text") -> list[str]:
    """The texts of an uncompressed jsonl file without bad lines."""
    return [json.loads(line)[text_key] for line in path.read_text(encoding="utf-8").splitlines()]


def documents_of(path: Path) -> list[np.ndarray]:
    """The documents of a token file, read as its format says."""
    array = np.load(path)
    n = int(array[0])
    ends = 1 + n + np.cumsum(array[1 : 1 + n])
    return [array[end - length : end] for end, length in zip(ends, array[1 : 1 + n], strict=True)]


def windows_in(tokens: np.ndarray, total: int, step: int) -> Iterator[tuple[int, ...]]:
    """All windows of one row of tokens."""
    for start in range(0, len(tokens) - total + 1, step):
        yield tuple(tokens[start : start + total].tolist())


def stands_in(window: np.ndarray, tokens: np.ndarray) -> bool:
    """Whether a window is a contiguous slice of a row of tokens, by searching for its bytes."""
    needle, hay = window.astype("<i4").tobytes(), tokens.astype("<i4").tobytes()
    found = hay.find(needle)
    while found >= 0 and found % 4:
        found = hay.find(needle, found + 1)
    return found >= 0


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def names_below(folder: Path) -> set[str]:
    """The paths of all files and folders below a folder, also while a process adds and removes some of them.

    `Path.rglob` raises an error for a folder that is removed before it is read.
    """
    return {f"{path}/{name}" for path, folders, files in os.walk(folder) for name in (*folders, *files)}
