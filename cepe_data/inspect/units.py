"""What there is of a unit of output, and of the tasks that make units: what progress.py counts.

Read are meta files and manifests, and a unit's files are looked up by their size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepe_data.errors import DamagedFileError
from cepe_data.storage import parts, provenance
from cepe_data.storage.inputs import Input, describe_part, describe_set
from cepe_data.storage.verify import compare_records

DONE, PART_DONE, MISSING, OTHER, DAMAGED = "done", "part done", "missing", "other arguments", "damaged"
OTHERWISE = "was made with other arguments or inputs"


@dataclass(frozen=True)
class Unit:
    """A file, a set or a part of one: `done` of its `total` rows (of some steps: bytes) are there; 0 where that is not
    known. A unit of the state OTHER or DAMAGED says in `what` why it is not right. A manifest is not counted, nor what
    stands for units that are not known yet."""

    path: Path
    state: str
    total: int
    done: int = 0
    what: str = ""
    is_counted: bool = True


@dataclass(frozen=True)
class Counts:
    """How many units are done, and how many rows or bytes of all there will be."""

    units_done: int
    units: int
    done: int
    total: int


@dataclass(frozen=True)
class Task:
    """What one task of a job makes; nothing at all is done at once."""

    units: Sequence[Unit]

    @property
    def state(self) -> str:
        """Of its units the worst: DAMAGED, OTHER, then whether all, some or none of them are DONE."""
        states = {unit.state for unit in self.units}
        for worst in (DAMAGED, OTHER):
            if worst in states:
                return worst
        if states <= {DONE}:
            return DONE
        return PART_DONE if any(unit.done or unit.state == DONE for unit in self.units) else MISSING

    @property
    def counts(self) -> Counts:
        """How much of it is there."""
        counted = [unit for unit in self.units if unit.is_counted]
        units_done = sum(unit.state == DONE for unit in counted)
        return Counts(units_done, len(counted), sum(unit.done for unit in counted), sum(unit.total for unit in counted))


@dataclass(frozen=True)
class Step:
    """What a job writes, and what there is of each of its tasks.

    `unit` and `measure` are what is counted: parts and rows, say. Where `borders_move`, another input that comes gives
    every task other units, so that nothing can be said of a single task before all inputs are there.
    """

    output: Path
    unit: str
    measure: str
    tasks: Sequence[Task]
    borders_move: bool = False

    @classmethod
    def unknown(cls, output: Path, num_tasks: int, state: str = MISSING, what: str = "") -> Step:
        """A step of whose units nothing is known, because its input is not there yet."""
        task = Task([Unit(output, state, 0, what=what, is_counted=False)])
        return cls(output, "", "", [task] * num_tasks, borders_move=True)

    @property
    def is_done(self) -> bool:
        return all(task.state == DONE for task in self.tasks)

    @property
    def counts(self) -> Counts:
        """How much of all tasks is there."""
        whole = [unit for task in self.tasks for unit in task.units]
        return Task(whole).counts


@dataclass(frozen=True)
class Found:
    """What is at the place of a unit: its state, why it is not right, and its meta file."""

    state: str
    what: str = ""
    meta: provenance.Meta | None = None

    def made_with(self, name: str) -> Any:
        """What the record says of an argument; None without a record."""
        return self.meta["made_with"].get(name) if self.meta else None


def look(path: Path, known: provenance.Meta) -> Found:
    """Look at a unit; `known` is as much of its record as is known without it."""
    if not path.exists():
        return Found(MISSING)
    try:
        meta = provenance.read_meta(path)
    except DamagedFileError as error:
        return Found(DAMAGED, str(error))
    if meta is None:
        return Found(OTHER, "nothing says what made it")
    if differences := compare_records(meta["made_with"], known):
        return Found(OTHER, f"{OTHERWISE}: {differences}", meta)
    if lost := provenance.lost_files(path, meta):
        return Found(DAMAGED, f"its {lost[0].name} is gone or has another size", meta)
    return Found(DONE, meta=meta)


def look_at_manifest(path: Path) -> tuple[Unit, dict[str, Any]]:
    """The manifest of a run as a unit without rows, and its content."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["arguments"], dict) or not isinstance(content["sets"], dict):
            raise TypeError("arguments and sets are not objects")
    except FileNotFoundError:
        return Unit(path, MISSING, 0, is_counted=False), {"arguments": {}, "sets": {}}
    except (ValueError, KeyError, TypeError) as error:
        return Unit(path, DAMAGED, 0, what=f"is damaged ({error})", is_counted=False), {"arguments": {}, "sets": {}}
    return Unit(path, DONE, 0, is_counted=False), content


def look_at_part(path: Path, known: provenance.Meta, inputs: Mapping[str, Input], start: int, stop: int) -> Found:
    """Look at a part that has rows [start, stop). They are read from the inputs only where these are other files than
    it was made from."""
    if not path.exists():
        return Found(MISSING)
    return look(path, {**known, **describe_part(inputs, path, start, stop), "first_row": start, "stop_row": stop})


def set_unit(folder: Path, known: provenance.Meta, requested: int, inputs: Mapping[str, Input]) -> Unit:
    """A set that one task makes: the set, or before it is joined, its parts that are there.

    `requested` rows are expected; fewer are right where the record says that no more windows were available.
    """
    found = look(folder, {**known, **describe_set(inputs)})
    if found.state == DONE and found.meta:
        rows, expected = found.made_with("rows"), min(requested, found.meta.get("windows_available", requested))
        if rows != expected:
            return Unit(folder, OTHER, expected, what=f"{OTHERWISE}: rows: was {rows}, now {expected}")
        return Unit(folder, DONE, rows, rows)
    if found.state == MISSING:
        rows = 0
        for path in part_paths(folder):
            part = look(path, known)
            if part.state == DONE:
                part = look_at_part(path, known, inputs, part.made_with("first_row"), part.made_with("stop_row"))
            if part.state != DONE:
                return Unit(path, part.state, requested, what=part.what)
            rows += part.made_with("stop_row") - part.made_with("first_row")
        return Unit(folder, MISSING, requested, rows)
    return Unit(folder, found.state, requested, what=found.what)


def part_paths(folder: Path) -> list[Path]:
    """The parts of a set that are there."""
    return parts.paths_there(folder)


def part_unit(path: Path, look_at_it: Callable[[], Found], num_rows: int, folder: Path, joined: Found) -> Unit:
    """A part of the set `folder`: with a joined set all of them are done, and none is looked at. What a damaged set has
    no part of any more can only be made with --overwrite, and so it is damaged, too."""
    if joined.state in {DONE, OTHER}:
        return Unit(folder, joined.state, num_rows, num_rows if joined.state == DONE else 0, joined.what)
    found = look_at_it()
    if found.state == MISSING and joined.state == DAMAGED:
        return Unit(folder, DAMAGED, num_rows, what=joined.what)
    return Unit(path, found.state, num_rows, num_rows if found.state == DONE else 0, found.what)


def joined_unit(folder: Path, joined: Found, num_rows: int) -> Unit:
    """The unit of a task that joins what others made."""
    return Unit(folder, joined.state, num_rows, num_rows if joined.state == DONE else 0, joined.what)
