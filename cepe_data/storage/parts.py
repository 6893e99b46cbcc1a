"""A set that many processes make together: numbered parts of fixed ranges of rows in one directory, joined when all are
there.

Shard i of N makes a contiguous range of the parts, whatever N is: a run that was stopped may go on with another number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cepe_data import cli, shards
from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.storage import mds, outputs, provenance


@dataclass(frozen=True)
class PartedSet:
    """An MDS set `folder` of `num_rows` rows, made in parts of `part_rows`.

    `made_with` is the provenance of the set but for the numbers of rows: those are added here. Where a part is the same
    in a larger set, as rows that are a prefix of more rows are, `parts_depend_on_rows` is off.
    """

    folder: Path
    columns: mds.Columns
    num_rows: int
    part_rows: int
    made_with: provenance.Meta
    overwrite: bool
    parts_depend_on_rows: bool = True

    def __post_init__(self) -> None:
        mds.check_part_size(self.columns, self.part_rows)

    @property
    def parts_dir(self) -> Path:
        return mds.parts_dir(self.folder)

    @cached_property
    def joined(self) -> outputs.Output:
        """The set, once its parts are joined."""
        return outputs.Output(self.folder, self.set_made_with, self.overwrite)

    def part(self, number: int) -> outputs.Output:
        """One of its parts."""
        path = mds.part_path(self.parts_dir, number)
        return outputs.Output(path, self.part_made_with(number), self.overwrite)

    @cached_property
    def part_ranges(self) -> list[tuple[int, int]]:
        return mds.part_ranges(self.num_rows, self.part_rows)

    @property
    def set_made_with(self) -> provenance.Meta:
        return {**self.made_with, "rows": self.num_rows, "rows_per_part": self.part_rows}

    def part_made_with(self, part: int) -> provenance.Meta:
        """The provenance of a part."""
        start, stop = self.part_ranges[part]
        rows = {"rows": self.num_rows} if self.parts_depend_on_rows else {}
        return {**self.made_with, **rows, "rows_per_part": self.part_rows, "first_row": start, "stop_row": stop}

    def todo(self, shard_id: int, num_shards: int) -> list[int]:
        """The parts of a shard that are still to be made; says how many are not."""
        self._check_other_parts()
        first, stop = shards.row_range(shard_id, num_shards, len(self.part_ranges))
        todo = [part for part in range(first, stop) if not self.part(part).is_done()]
        if skipped := stop - first - len(todo):
            cli.say(f"skipped {skipped} of {stop - first} parts: made before with the same arguments")
        return todo

    def _check_other_parts(self) -> None:
        """Raise ArgumentError if the first part that is there, whatever run wrote it, was made with other arguments."""
        there = next(iter(sorted(self.parts_dir.glob("part-*"))), None)
        meta = provenance.read_meta(there) if there and not self.overwrite else None
        made_with = meta["made_with"] if meta else self.set_made_with
        of_part = {name: value for name, value in made_with.items() if name not in {"first_row", "stop_row"}}
        if differences := provenance.describe_differences(of_part, self.set_made_with):
            raise ArgumentError(
                f"{there} was made with other arguments or inputs: {differences}. All parts of {self.folder} are made "
                f"with the same: use those, remove {self.parts_dir}, or replace what is in it with --overwrite"
            )

    def count_rows(self, parts: Iterable[int]) -> int:
        """Rows of these parts."""
        return sum(stop - start for start, stop in (self.part_ranges[part] for part in parts))

    def write_part(self, part: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one part and publish it. Raises as `mds.write_part`."""
        start, stop = self.part_ranges[part]
        mds.write_part(self.part(part), self.columns, stop - start, rows)

    def remove_stale_temporaries(self) -> None:
        """What dead processes left, beside the set and in its parts directory."""
        for folder in (self.folder.parent, self.parts_dir):
            outputs.remove_stale_temporaries(folder)

    def join(
        self,
        num_shards: int,
        delete_parts: bool,
        facts: provenance.Meta,
        start_time: float,
        write_sidecars: Callable[[outputs.Draft], None] | None = None,
    ) -> None:
        """Join all parts into the final folder, or find it joined; then the parts may go.

        Raises:
            PipelineError: if parts are missing, with the shards to run again.
        """
        self.remove_stale_temporaries()
        if self.joined.is_done():
            cli.say(f"{self.folder}: skipped, made before with the same arguments")
        else:
            missing = [part for part in range(len(self.part_ranges)) if not self.part(part).is_done()]
            require_parts(missing, len(self.part_ranges), num_shards, self.parts_dir, self.overwrite)
            with self.joined.draft(is_folder=True) as draft:
                mds.join_parts(draft, self.parts_dir, self.part_ranges)
                if write_sidecars is not None:
                    write_sidecars(draft)
                draft.publish(facts)
            taken = cli.seconds_since(start_time)
            cli.say(f"{self.num_rows:,} rows of {len(self.part_ranges)} parts joined, {taken} → {self.folder}")
        if delete_parts and self.parts_dir.exists():
            outputs.remove(self.parts_dir)
            cli.say(f"{self.parts_dir}: removed")


def require_parts(missing: list[int], num_parts: int, num_shards: int, parts_dir: Path, overwrite: bool) -> None:
    """Raise PipelineError if parts are missing, with the shards to run again."""
    if not missing:
        return
    ranges = [shards.row_range(shard, num_shards, num_parts) for shard in range(num_shards)]
    ids = shards.array_ids(
        shard for shard, (first, stop) in enumerate(ranges) if any(first <= part < stop for part in missing)
    )
    what, flag = (
        ("missing", "without --merge") if not overwrite else ("missing or not right", "--overwrite, no --merge")
    )
    raise PipelineError(
        f"{len(missing)} of {num_parts} parts are {what} in {parts_dir}: run shard ids {ids} of --num_shards "
        f"{num_shards} ({flag}; sbatch --array={ids})"
    )
