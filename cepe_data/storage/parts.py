"""Numbered parts: outputs that many processes make in any order, and that are joined when all of them exist.

    arxiv.parts/part-00000/  arxiv.parts/part-00001/  …        beside the joined set `arxiv`

Shard i of N makes a contiguous range of the parts: a run that was stopped may go on with another N.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cepe_data import cli, shards
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.storage import mds, outputs, provenance
from cepe_data.storage.inputs import FILES, Input, describe_files, describe_part, describe_set
from cepe_data.storage.outputs import Output

PARTS = "parts"  # the key of the meta file of a set for the fingerprints of its parts' inputs


def parts_dir(folder: Path) -> Path:
    """The parts directory of a set: `arxiv` → `arxiv.parts`."""
    return folder.with_name(f"{folder.name}.parts")


def part_path(directory: Path, number: int) -> Path:
    """The folder of a part."""
    return directory / f"part-{number:05d}"


def paths_there(folder: Path) -> list[Path]:
    """The existing parts of the set `folder`, whatever their provenance."""
    return sorted(parts_dir(folder).glob("part-*"))


def part_ranges(num_rows: int, rows_per_part: int) -> list[tuple[int, int]]:
    """[start, stop) of the rows of every part."""
    return [(start, min(start + rows_per_part, num_rows)) for start in range(0, num_rows, rows_per_part)]


class Parts(Sequence[Output]):
    """All parts of an output, below one directory. `describe` is called for a part when it is needed first: that may
    read the inputs of the part."""

    def __init__(self, directory: Path, paths: Sequence[Path], describe: Callable[[int], Output]) -> None:
        self.directory, self.paths, self._describe = directory, paths, describe
        self._described: dict[int, Output] = {}

    @classmethod
    def of(cls, directory: Path, described: Sequence[Output]) -> Parts:
        """Parts that are described already."""
        return cls(directory, [output.path for output in described], described.__getitem__)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: Any) -> Any:
        if number not in self._described:
            self._described[number] = self._describe(number)
        return self._described[number]

    def todo(self, shard_id: int, num_shards: int) -> list[int]:
        """The parts of a shard that are still to be made. Prints how many are skipped."""
        first, stop = shards.row_range(shard_id, num_shards, len(self))
        todo = [part for part in range(first, stop) if not self._is_done(part)]
        if skipped := stop - first - len(todo):
            cli.say(f"{self.directory}: skipped {skipped} of {stop - first} parts: made before with the same arguments")
        return todo

    def require_all(self, num_shards: int) -> None:
        """Raise PipelineError if parts are missing, with the shards to run again."""
        missing = [number for number in range(len(self)) if not self._is_done(number)]
        if not missing:
            return
        ranges = [shards.row_range(shard, num_shards, len(self)) for shard in range(num_shards)]
        ids = shards.array_ids(
            shard for shard, (first, stop) in enumerate(ranges) if any(first <= part < stop for part in missing)
        )
        what, flag = "missing", "without --merge"
        if self[missing[0]].overwrite:
            what, flag = "missing or not right", "--overwrite, no --merge"
        raise PipelineError(
            f"{len(missing)} of {len(self)} parts are {what} in {self.directory}: run shard ids {ids} of "
            f"--num_shards {num_shards} ({flag}; sbatch --array={ids})"
        )

    def _is_done(self, number: int) -> bool:
        return self.paths[number].exists() and self[number].is_done()  # a missing part need not be described


def add_parted_set_arguments(parser: argparse.ArgumentParser, shard_bytes: int) -> None:
    """The arguments of PartedSetOptions, for a step whose parts by default fill MDS shards of `shard_bytes`."""
    parser.add_argument("--merge", action="store_true", help="join the parts of all shards, and compute nothing")
    parser.add_argument("--delete_parts", action="store_true", help="remove the parts once they are joined")
    parser.add_argument(
        "--rows_per_part",
        type=cli.positive_count,
        default=None,
        help=f"rows of a part; a killed run repeats at most one (default: what fills an MDS shard of "
        f"{shard_bytes >> 20} MiB; with --merge, those of the parts that are there)",
    )
    cli.add_overwrite_argument(parser)
    cli.add_disk_argument(parser)
    parser.add_argument("--dry_run", action="store_true", help="say what all shards would take, and write nothing")
    shards.add_shard_arguments(parser)


@dataclass(frozen=True, kw_only=True)
class MergeOptions(outputs.WriteOptions):
    """The options of a step whose shards write parts, which `--merge` then joins."""

    merge: bool
    delete_parts: bool
    dry_run: bool
    shard_id: int | None
    num_shards: int | None

    def resolve_shard(self) -> tuple[int, int]:
        """The shard id and count, as `shards.resolve_shard`; a merge is of all shards.

        Raises:
            ArgumentError: as `shards.resolve_shard`; for a dry run of a merge; for a shard that would delete parts.
        """
        if not self.merge:
            if self.delete_parts and (self.num_shards or 1) > 1:
                raise ArgumentError("--delete_parts goes with --merge: other shards may still be at work")
            return shards.resolve_shard(self.shard_id, self.num_shards, self.dry_run)
        if self.dry_run:
            raise ArgumentError("--merge has no dry run: it computes nothing and copies nothing")
        return 0, self.num_shards or 1


@dataclass(frozen=True, kw_only=True)
class PartedSetOptions(MergeOptions):
    """The options of a step that writes MDS sets in parts."""

    rows_per_part: int | None

    def recorded(self, folder: Path, name: str) -> Any:
        """An argument in the provenance of the set `folder`, or else of the first of its parts that has it; None if
        none does. Where these may be replaced, the parts come first. Damaged meta files are passed over."""
        there = paths_there(folder)
        for made in [*there, folder] if self.overwrite else [folder, *there]:
            with contextlib.suppress(DamagedFileError):
                if name in (made_with := provenance.read_meta(made).made_with):
                    return made_with[name]
        return None

    def part_rows(self, folder: Path, default: int) -> int:
        """The rows of a part of the set `folder`: the argument's; for a merge, by default, those of the parts."""
        there = self.recorded(folder, "rows_per_part") if self.merge else None
        return int(self.rows_per_part or there or default)


@dataclass(frozen=True)
class PartedSet:
    """An MDS set `folder` of `num_rows` rows, made in parts of `part_rows`.

    `made_with` is what the provenance of the set and of every part have in common. Numbers of rows and `inputs` are
    added here: for the set the fingerprint of each whole input, for a part a hash of its own rows. So a part stays done
    while its rows are the same, however many rows are added to the set.
    """

    folder: Path
    columns: mds.Columns
    num_rows: int
    part_rows: int
    made_with: provenance.Provenance
    options: outputs.WriteOptions
    inputs: Mapping[str, Input] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.part_rows > (most := mds.rows_per_shard(self.columns, mds.MAX_SHARD_BYTES)):
            raise ArgumentError(f"--rows_per_part {self.part_rows}: an MDS shard holds at most {most} such rows")

    @cached_property
    def joined(self) -> Output:
        """The joined set."""
        return self.options.output_at(self.folder, self.set_made_with)

    @cached_property
    def parts(self) -> Parts:
        directory = parts_dir(self.folder)
        paths = [part_path(directory, part) for part in range(len(self.part_ranges))]
        return Parts(directory, paths, self._describe_part)

    @cached_property
    def part_ranges(self) -> list[tuple[int, int]]:
        return part_ranges(self.num_rows, self.part_rows)

    @property
    def shared_made_with(self) -> provenance.Provenance:
        """The provenance that the set and all its parts have in common."""
        return {**self.made_with, "rows_per_part": self.part_rows}

    @property
    def set_made_with(self) -> provenance.Provenance:
        return {**self.shared_made_with, **describe_set(self.inputs), "rows": self.num_rows}

    def _describe_part(self, part: int) -> Output:
        """A part. Its rows of the inputs are read, unless it exists and was made from the same files."""
        (start, stop), path = self.part_ranges[part], self.parts.paths[part]
        of_inputs = describe_part(self.inputs, path, start, stop)
        made_with = {**self.shared_made_with, **of_inputs, "first_row": start, "stop_row": stop}
        return self.options.output_at(path, made_with)

    def todo(self, shard_id: int, num_shards: int) -> list[int]:
        """The parts of a shard that are still to be made.

        Raises:
            ArgumentError: if the first part that exists, of whatever run, was made with other arguments.
        """
        for path in [] if self.options.overwrite else paths_there(self.folder)[:1]:
            meta, own = provenance.read_meta(path), {"first_row", "stop_row", *self.inputs}
            shared = {name: value for name, value in meta.made_with.items() if name not in own}
            if meta and (differences := provenance.describe_differences(shared, self.shared_made_with)):
                raise ArgumentError(
                    f"{path} was made with other arguments or inputs: {differences}. All parts of {self.folder} are "
                    f"made with the same: use those, remove {self.parts.directory}, or replace what is in it with "
                    f"--overwrite"
                )
        return self.parts.todo(shard_id, num_shards)

    def restore_parts(self, shard_id: int, num_shards: int) -> None:
        """Before a set is replaced, by one of more rows, say: link those of a shard's parts that were removed from the
        parts directory back into it. Damaged ones are made again."""
        if not self.options.overwrite or not self.folder.exists():
            return
        try:
            meta, index = provenance.read_meta(self.folder), mds.read_index(self.folder)
        except PipelineError:
            return
        shared, of_parts = self.shared_made_with, meta.get(PARTS, [])
        if not meta or any(meta.made_with.get(name) != value for name, value in shared.items()):
            return
        first, stop = shards.row_range(shard_id, num_shards, len(self.part_ranges))
        for number in range(first, min(stop, len(of_parts))):
            rows = dict(zip(("first_row", "stop_row"), self.part_ranges[number], strict=True))
            if self.parts.paths[number].exists():
                continue
            if self.parts[number].made_with == {**shared, **of_parts[number], **rows}:
                name = _shard_name(number)
                with self.parts[number].draft(is_folder=True) as draft:
                    draft.link(mds.SHARD_NAME, self.folder / name, meta.files[name])
                    mds.write_index(draft.path, [_renamed(index[number], mds.SHARD_NAME)])
                    draft.publish(self._part_metadata(number))

    def count_rows(self, numbers: Iterable[int]) -> int:
        """The number of rows of these parts."""
        return sum(stop - start for start, stop in (self.part_ranges[part] for part in numbers))

    def count_bytes(self, numbers: Iterable[int]) -> int:
        """Bytes of these parts, without columns of variable size."""
        return self.count_rows(numbers) * mds.row_bytes(self.columns)

    def write_part(
        self, part: int, rows: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Write one part and publish it. Raises as `mds.write_shard`."""
        metadata = {**self._part_metadata(part), **(metadata or {})}
        mds.write_shard(self.parts[part], self.columns, self.count_rows([part]), rows, metadata)

    def _part_metadata(self, part: int) -> dict[str, Any]:
        start, stop = self.part_ranges[part]
        files = describe_files(self.inputs, start, stop)
        return {"rows": stop - start, **({FILES: files} if files else {})}

    def remove_stale_temporaries(self) -> None:
        """Remove what dead processes left, beside the set and in its parts directory."""
        for folder in (self.folder.parent, self.parts.directory):
            outputs.remove_stale_temporaries(folder)

    def join(
        self,
        num_shards: int,
        delete_parts: bool,
        metadata: Mapping[str, Any],
        start_time: float,
        prepare: Callable[[outputs.Draft], object] = lambda draft: None,
    ) -> None:
        """Publish the set from its parts, unless it is done; with `delete_parts`, remove these.

        Raises:
            PipelineError: if parts are missing, with the shards to run again.
        """
        self.remove_stale_temporaries()
        if self.joined.is_done():
            cli.say(f"{self.folder}: skipped, made before with the same arguments")
        else:
            self.parts.require_all(num_shards)
            self.publish(metadata, prepare)
            taken = cli.seconds_since(start_time)
            cli.say(f"{self.num_rows:,} rows of {len(self.part_ranges)} parts joined, {taken} → {self.folder}")
        if delete_parts and self.parts.directory.exists():
            outputs.remove(self.parts.directory)
            cli.say(f"{self.parts.directory}: removed")

    def publish(self, metadata: Mapping[str, Any], prepare: Callable[[outputs.Draft], object]) -> None:
        """Link the MDS files of all parts into the folder of the set, write its index, and publish it: no row is read.
        Before that, `prepare` writes sidecar files. Warns if MDS files have to be copied.

        Raises:
            DamagedFileError: if a part has other rows than its range, or another size than it was written with.
        """
        entries, parts_of_set, num_copied = [], [], 0
        with self.joined.draft(is_folder=True) as draft:
            for number, (part, (start, stop)) in enumerate(zip(self.parts, self.part_ranges, strict=True)):
                index, meta = mds.read_index(part.path), provenance.read_meta(part.path)
                if len(index) != 1 or index[0]["samples"] != stop - start or not meta:
                    raise DamagedFileError(
                        f"{part.path} does not have its {stop - start} rows: remove it and make it again"
                    )
                source, name = part.path / index[0]["raw_data"]["basename"], _shard_name(number)
                num_copied += not draft.link(name, source, meta.files[source.name])
                entries.append(_renamed(index[0], name))
                parts_of_set.append({name: meta.made_with[name] for name in self.inputs})
            mds.write_index(draft.path, entries)
            prepare(draft)
            draft.publish({**metadata, **({PARTS: parts_of_set} if self.inputs else {})})
        if num_copied:
            cli.warn(f"{self.folder}: this file system has no hard links, so {num_copied} shards were copied")


def _shard_name(number: int) -> str:
    """The MDS file of a part in the joined set."""
    return f"shard.{number:05d}.mds"


def _renamed(entry: dict[str, Any], name: str) -> dict[str, Any]:
    """The index entry of an MDS file under another name."""
    return {**entry, "raw_data": {**entry["raw_data"], "basename": name}}
