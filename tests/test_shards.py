"""Items go to shards in one way only.    pytest tests/test_shards.py"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cepe_data import shards
from cepe_data.errors import ArgumentError


@given(st.integers(0, 1000), st.integers(1, 50))
def test_row_ranges_are_contiguous_balanced_and_complete(num_rows: int, num_shards: int) -> None:
    ranges = [shards.row_range(shard, num_shards, num_rows) for shard in range(num_shards)]
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(num_rows))
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(1, 8))
def test_files_go_largest_first_to_the_least_loaded_shard(sizes: list[int], num_shards: int) -> None:
    files = [(f"{index:03d}", size) for index, size in enumerate(sizes)]
    loads, expected = [0] * num_shards, [[] for _ in range(num_shards)]  # type: ignore[var-annotated]
    for path, size in sorted(files, key=lambda file: (-file[1], file[0])):
        shard = loads.index(min(loads))
        loads[shard] += size
        expected[shard].append(path)
    assert shards.assign_files(files, num_shards) == [sorted(paths) for paths in expected]
    assert shards.assign_files(files[::-1], num_shards) == shards.assign_files(files, num_shards)


@pytest.mark.parametrize(("ids", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 7, 9, 8, 3], "0-3,7-9"), ([5, 3], "3,5")])
def test_array_ids_are_what_sbatch_wants(ids: list[int], text: str) -> None:
    assert shards.array_ids(ids) == text


def test_the_id_may_come_from_slurm_and_the_count_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(shards.SLURM_TASK_ID, raising=False)
    assert shards.resolve_shard(None, None) == (0, 1)
    assert shards.resolve_shard(2, 3) == (2, 3)
    for arguments, message in (
        ((1, None), "needs --num_shards"),
        ((None, 4), "needs --shard_id"),
        ((4, 4), "not below"),
    ):
        with pytest.raises(ArgumentError, match=message):
            shards.resolve_shard(*arguments)
    monkeypatch.setenv(shards.SLURM_TASK_ID, "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert shards.resolve_shard(None, 10) == (3, 10)
    assert shards.resolve_shard(1, 10) == (1, 10)
    with pytest.raises(ArgumentError, match="--num_shards 2"):
        shards.resolve_shard(None, None)
