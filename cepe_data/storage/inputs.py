"""The inputs of parted sets: they have a row for every row of the set, and a part depends on its own rows only.

A part stays done while the content of these rows is the same: an input may grow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from cepe_data.errors import DamagedFileError
from cepe_data.storage import mds, provenance

FILES = "input_files"  # the key of a part's meta file for the fingerprints of the files that have its input rows


class Input(Protocol):
    """An input of a parted set: row i of the set is made from row i of it."""

    @property
    def fingerprint(self) -> str:
        """A hash of the whole input. No row is read."""
        ...

    def rows_fingerprint(self, start: int, stop: int) -> str:
        """A hash of the content of rows [start, stop), as far as they exist. They are read."""
        ...

    def files_fingerprint(self, start: int, stop: int) -> str | None:
        """A hash of the known metadata of the files that have rows [start, stop): while it is the same, so is the
        content of the rows. No row is read. None if no metadata are known."""
        ...


@dataclass(frozen=True)
class SetInput:
    """An MDS set as an input."""

    folder: Path

    @property
    def fingerprint(self) -> str:
        return mds.fingerprint(self.folder)

    def rows_fingerprint(self, start: int, stop: int) -> str:
        return self._rows.fingerprint(start, stop)

    def files_fingerprint(self, start: int, stop: int) -> str | None:
        files = self._meta.files
        names = [shard["raw_data"]["basename"] for shard in self._rows.shards]
        places = [(files.get(names[number]), *rows) for number, *rows in self._rows.places(start, stop)]
        return provenance.fingerprint(places) if all(metadata for metadata, *_ in places) else None

    @cached_property
    def _rows(self) -> mds.Rows:
        return mds.Rows(self.folder)

    @cached_property
    def _meta(self) -> provenance.Meta:
        return provenance.read_meta(self.folder)

    def __getstate__(self) -> dict[str, Path]:
        """For another process, without the open files of this one."""
        return {"folder": self.folder}


def describe_set(inputs: Mapping[str, Input]) -> provenance.Provenance:
    """The inputs in the provenance of a set: their fingerprints."""
    return {name: one.fingerprint for name, one in inputs.items()}


def describe_part(inputs: Mapping[str, Input], part: Path, start: int, stop: int) -> provenance.Provenance:
    """The inputs in the provenance of the part that has rows [start, stop): hashes of their rows. If the part exists,
    made from the present files, the hashes are those of its meta file, and no row is read."""
    meta = provenance.Meta()
    with contextlib.suppress(DamagedFileError):  # Output.is_done raises it again
        meta = provenance.read_meta(part) if part.exists() else meta
    found, files = {}, describe_files(inputs, start, stop)
    for name, one in inputs.items():
        is_known = name in files and meta.get(FILES, {}).get(name) == files[name]
        found[name] = meta.made_with[name] if is_known else one.rows_fingerprint(start, stop)
    return found


def describe_files(inputs: Mapping[str, Input], start: int, stop: int) -> provenance.Provenance:
    """The fingerprints of the files that have rows [start, stop), by input, as far as they are known."""
    found = {name: one.files_fingerprint(start, stop) for name, one in inputs.items()}
    return {name: files for name, files in found.items() if files is not None}
