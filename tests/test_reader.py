"""Plans and windows, against brute force over small token files.    pytest tests/test_reader.py"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cepe_data.corpus.listing import ListedFile
from cepe_data.errors import DamagedFileError
from cepe_data.samples import reader
from cepe_data.samples.splits import Splits
from cepe_data.samples.windows import Windows
from cepe_data.storage import outputs
from cepe_data.tokens import token_file
from tests import reference


def make_tokens(folder: Path, files: list[list[int]], vocab_size: int | None = None) -> reader.Tokens:
    """Token files of one domain with documents of these lengths; every token of the domain is another number."""
    listed, next_id = [], 0
    for number, lengths in enumerate(files):
        listed.append(ListedFile(f"{number:02d}.jsonl", "any", 1))
        writer = token_file.TokenFileWriter(outputs.Output(folder / listed[-1].token_file, {}))
        ids = np.arange(next_id, next_id + sum(lengths), dtype=np.int32)
        hashes = [reference.key(f"{number}/{document}") for document in range(len(lengths))]
        writer.append(ids, np.array(lengths, np.int64), np.array(hashes, np.uint64))
        writer.publish({})
        writer.close()
        next_id += len(ids)
    return reader.Tokens({"any": listed}, folder, vocab_size, None)


def source_of(
    tokens: reader.Tokens, windows: Windows, split: str = "train", splits: Splits | None = None
) -> reader.WindowSource:
    splits = splits or Splits(42, 0.2, 0.4)
    inventory = reader.inventory(tokens, splits, {split: windows})["any"]
    return reader.WindowSource(tokens, "any", split, splits, windows, inventory)


def expected_windows(folder: Path, files: list[list[int]], windows: Windows, split: str) -> list[tuple[int, ...]]:
    """All windows in their order, by brute force."""
    found: list[tuple[int, ...]] = []
    for number in range(len(files)):
        documents = [
            document
            for index, document in enumerate(reference.documents_of(folder / f"{number:02d}.npy"))
            if reference.split_of(f"{number}/{index}", 42, 0.2, 0.4) == split
        ]
        rows = documents if windows.is_inside else [np.concatenate([[], *documents])]
        for row in rows:
            found += reference.windows_in(row, windows.total_length, windows.step)
    return found


def read(source: reader.WindowSource, plan: np.ndarray, dtype: type = np.int32) -> np.ndarray:
    """The windows of a plan, read into two columns."""
    rows: np.ndarray = np.empty((len(plan), source.windows.total_length), dtype)
    source.read(plan, [rows[:, :3], rows[:, 3:]])
    return rows


@pytest.mark.parametrize(
    "windows", [Windows(20, 7, is_inside=True), Windows(20, 7, is_inside=False), Windows(1, 1, is_inside=False)]
)
@pytest.mark.parametrize("split", ["test", "train", "retrieval"])
@pytest.mark.parametrize(("per_block", "at_once", "bridged"), [(1 << 16, 1 << 18, 1 << 14), (3, 5, 0), (1, 1, 8)])
def test_every_window_is_sampled_once_in_the_documented_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: Windows, split: str,
    per_block: int, at_once: int, bridged: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(token_file, "DOCUMENTS_PER_BLOCK", per_block)
    monkeypatch.setattr(reader, "_DOCUMENTS_AT_ONCE", at_once)
    monkeypatch.setattr(reader, "_ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(reader, "_BRIDGED_TOKENS", bridged)
    rng = np.random.default_rng(0)
    files = [rng.integers(0, 60, 30).tolist(), [], [5] * 40, [0, 0, 200, 0, 3, 1]]
    source = source_of(make_tokens(tmp_path, files), windows, split)
    ordered = expected_windows(tmp_path, files, windows, split)
    assert int(source.counts.sum()) == len(ordered) > 5
    expected = [ordered[reference.permutation(f"42/any/{split}", len(ordered), row)] for row in range(len(ordered))]
    plan = source.sample(0, len(ordered))
    assert [tuple(row) for row in read(source, plan).tolist()] == expected
    middle = read(source, source.sample(2, len(ordered) - 1))
    assert [tuple(row) for row in middle.tolist()] == expected[2:-1]


@pytest.mark.parametrize("windows", [Windows(8, 4, is_inside=True), Windows(8, 4, is_inside=False)])
def test_every_window_is_equally_likely_over_seeds(tmp_path: Path, windows: Windows) -> None:
    tokens = make_tokens(tmp_path, [[20, 9, 3], [12], [8, 7, 30]])
    num_seeds, num_sampled = 1500, 3
    counts: Counter[int] = Counter()
    everything = Splits(0, 1.0, 0.0)
    inventory = reader.inventory(tokens, everything, {"test": windows})["any"]
    for seed in range(num_seeds):
        source = reader.WindowSource(tokens, "any", "test", Splits(seed, 1.0, 0.0), windows, inventory)
        counts.update(read(source, source.sample(0, num_sampled))[:, 0].tolist())
    num_windows = inventory.available("test")
    assert len(counts) == num_windows > 10
    expected = num_seeds * num_sampled / num_windows
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    # Drawing without replacement makes it smaller. Above mean + 4 standard deviations less than once in 3,000 times.
    degrees = num_windows - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


def test_a_file_that_changes_and_an_id_outside_of_the_vocabulary_are_errors(tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path, [[10] * 20], vocab_size=100)
    with pytest.raises(DamagedFileError, match="outside of 0 … 99"):
        source = source_of(tokens, Windows(20, 20, is_inside=False))
        read(source, source.sample(0, int(source.counts.sum())), np.int16)
    source = source_of(make_tokens(tmp_path / "other", [[10] * 20]), Windows(20, 20, is_inside=False))
    plan = source.sample(0, int(source.counts.sum()))
    path = tmp_path / "other/00.npy"
    array = np.load(path)
    array[1:21] = [1, 19] * 10
    np.save(path, array)
    with pytest.raises(DamagedFileError, match="was replaced while this run read it"):
        read(source, plan, np.int16)
    with pytest.raises(DamagedFileError, match="outside of 0 … 32767"):
        wide = source_of(make_tokens(tmp_path / "wide", [[70_000]]), Windows(20, 20, is_inside=True), "test",
                         Splits(42, 1.0, 0.0))  # fmt: skip
        read(wide, wide.sample(0, 3000), np.int16)
