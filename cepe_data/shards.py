"""The items of shard i of N, and where i and N come from. A shard is one of N tasks that partition the work of a step.

Rows go to shards as contiguous balanced ranges; files go, largest first, to the shard with the fewest bytes so far.
The id may come from slurm (`SLURM_ARRAY_TASK_ID`); the count never does: `sbatch --array=3,17` would re-partition.
"""

from __future__ import annotations

import argparse
import heapq
import os
from collections.abc import Iterable, Sequence

from cepe_data import cli
from cepe_data.errors import ArgumentError

SLURM_TASK_ID = "SLURM_ARRAY_TASK_ID"


def add_shard_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--shard_id` and `--num_shards`."""
    group = parser.add_argument_group("shards")
    group.add_argument(
        "--shard_id", type=cli.count, default=None, help=f"which shard this process makes (default: ${SLURM_TASK_ID})"
    )
    group.add_argument(
        "--num_shards", type=cli.positive_count, default=None, help="how many shards there are (default: 1)"
    )


def resolve_shard(shard_id: int | None, num_shards: int | None, dry_run: bool = False) -> tuple[int, int]:
    """The shard id and count, from the arguments and the slurm task. A dry run covers all shards.

    Raises:
        ArgumentError: for an id without a count, a count without an id, or an id that is not below the count.
    """
    task = slurm_task_id()
    if dry_run:
        _require_below(shard_id or 0, num_shards or 1)
        return 0, 1
    if num_shards is None:
        if task is not None:
            tasks = os.environ.get("SLURM_ARRAY_TASK_COUNT", "N")
            raise ArgumentError(
                f"this is task {task} of a slurm array, but --num_shards is missing (it is not read from slurm: a "
                f"resubmission of a few tasks would partition the work anew). This line works, with the number of "
                f"shards of the first submission:\n  {cli.this_command('--num_shards', tasks)}"
            )
        if shard_id:
            raise ArgumentError(f"--shard_id {shard_id} needs --num_shards, the number of shards")
        return 0, 1
    if shard_id is None:
        shard_id = task if task is not None else (0 if num_shards == 1 else None)
    if shard_id is None:
        raise ArgumentError(f"--num_shards {num_shards} needs --shard_id, a number below {num_shards}")
    _require_below(shard_id, num_shards)
    return shard_id, num_shards


def _require_below(shard_id: int, num_shards: int) -> None:
    if shard_id >= num_shards:
        raise ArgumentError(f"--shard_id {shard_id} is not below --num_shards {num_shards}: ids start at 0")


def slurm_task_id() -> int | None:
    """The id of this task of a slurm array, None outside of one."""
    task = os.environ.get(SLURM_TASK_ID, "")
    return int(task) if task.isdecimal() else None


def row_range(shard_id: int, num_shards: int, num_rows: int) -> tuple[int, int]:
    """[start, stop) of the rows of a shard: contiguous, sizes differ by at most one."""
    return shard_id * num_rows // num_shards, (shard_id + 1) * num_rows // num_shards


def assign_files(files: Sequence[tuple[str, int]], num_shards: int) -> list[list[str]]:
    """The paths of each shard, sorted, from pairs (path, bytes): the largest file first to the least loaded shard,
    ties by path and by shard id. Shards may be empty."""
    loads = [(0, shard) for shard in range(num_shards)]
    assigned: list[list[str]] = [[] for _ in range(num_shards)]
    for path, num_bytes in sorted(files, key=lambda file: (-file[1], file[0])):
        load, shard = heapq.heappop(loads)
        assigned[shard].append(path)
        heapq.heappush(loads, (load + num_bytes, shard))
    return [sorted(paths) for paths in assigned]


def array_ids(shard_ids: Iterable[int]) -> str:
    """Ids in the syntax of `sbatch --array`: `0-3,7`."""
    runs: list[list[int]] = []
    for shard in sorted(set(shard_ids)):
        if runs and runs[-1][1] == shard - 1:
            runs[-1][1] = shard
        else:
            runs.append([shard, shard])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
