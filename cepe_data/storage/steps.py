"""What a step says of itself: its outputs (files, sets, parts) in the tasks that make them, and what the rest will
take.

Read are meta files and manifests, and an output's files are looked up by their size. That is cheap, and does not see a
changed byte in a file that kept its size, nor another teacher or encoder of the same name (their weights would have to
be read). Where an input is gone that an output was made from (token files after sampling, say), the output is compared
with the arguments alone, and a sampled set with the list of files. What a process has in flight has a temporary name,
and counts as missing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from cepe_data.errors import DamagedFileError, PipelineError
from cepe_data.storage import mds, parts, provenance
from cepe_data.storage.inputs import Input, describe_part, describe_set
from cepe_data.storage.verify import compare_records

DONE, PART_DONE, MISSING, OTHER, DAMAGED = "done", "part done", "missing", "other arguments", "damaged"
OTHERWISE = "was made with other arguments or inputs"
# Of what is not there to be looked at: LLaMA-2's vocabulary, and the tokens of a passage.
USUAL_VOCABULARY, USUAL_CHUNK = 32_000, 256


@dataclass(frozen=True)
class OutputStatus:
    """A file, a set or a part of one: `done` of its `total` rows (of some steps: bytes) are there; 0 where that is not
    known. `num_bytes`: what it takes on the disk, or will take. An output of the state OTHER or DAMAGED says in `what`
    why it is not right. A manifest is not counted, nor what stands for outputs that are not known yet. Whatever is not
    a result is there for later steps only."""

    path: Path
    state: str = MISSING
    total: int = 0
    done: int = 0
    what: str = ""
    num_bytes: float = 0
    is_counted: bool = True
    is_result: bool = False
    meta: provenance.Meta = field(default_factory=provenance.Meta, repr=False)

    def made_with(self, name: str) -> Any:
        """What the provenance says of an argument; None without a meta file."""
        return self.meta.made_with.get(name)


class Counts(NamedTuple):
    """How many outputs are done, and how many rows or bytes of all there will be."""

    outputs_done: int
    outputs: int
    done: int
    total: int


@dataclass(frozen=True)
class Task:
    """What one task of a job makes; nothing at all is done at once."""

    outputs: Sequence[OutputStatus]

    @property
    def state(self) -> str:
        """Of its outputs the worst: DAMAGED, OTHER, then whether all, some or none of them are DONE."""
        states = {output.state for output in self.outputs}
        for worst in (DAMAGED, OTHER):
            if worst in states:
                return worst
        if states <= {DONE}:
            return DONE
        return PART_DONE if any(output.done or output.state == DONE for output in self.outputs) else MISSING

    @property
    def counts(self) -> Counts:
        """How much of it is there."""
        counted = [output for output in self.outputs if output.is_counted]
        outputs_done = sum(output.state == DONE for output in counted)
        return Counts(
            outputs_done, len(counted), sum(output.done for output in counted), sum(output.total for output in counted)
        )


@dataclass(frozen=True)
class Takes:
    """What all of a step takes, whatever is there of it: seconds of one core, which cores of a task share; seconds of
    one process, which they do not; operations of a GPU; bytes that are there only while it runs."""

    core_seconds: float = 0
    serial_seconds: float = 0
    flops: float = 0
    scratch_bytes: float = 0


@dataclass(frozen=True)
class Step:
    """What a job writes, and what there is of each of its tasks.

    `counted` and `measure` are what is counted: parts and rows, say. Where `ranges_move`, another input that comes
    gives every task other outputs, so that nothing can be said of a single task before all inputs are there. `reads`
    are the files and folders that it needs; `intermediates` those of its own that may go once all who read them are
    done.
    """

    folder: Path
    counted: str
    measure: str
    tasks: Sequence[Task]
    ranges_move: bool = False
    reads: Sequence[Path] = ()
    intermediates: Sequence[Path] = ()
    takes: Takes = Takes()

    @property
    def outputs(self) -> list[OutputStatus]:
        return [output for task in self.tasks for output in task.outputs]

    @property
    def is_done(self) -> bool:
        return all(task.state == DONE for task in self.tasks)

    @property
    def counts(self) -> Counts:
        """How much of all tasks is there."""
        return Task(self.outputs).counts


@dataclass(frozen=True)
class Script:
    """A script that is a step: its file, or module; its arguments; what looks at its output, given these and the
    outputs of the steps before it. Arguments in `positionals` have no flag."""

    name: str
    options: type
    look: Callable[[Any, Sequence[OutputStatus]], Step]
    positionals: Sequence[str] = ()

    @property
    def arguments(self) -> list[str]:
        """The names of all its arguments."""
        return [field.name for field in fields(self.options)]


def unknown_tasks(output: Path, num_tasks: int, num_bytes: float = 0, found: OutputStatus | None = None) -> list[Task]:
    """The tasks of a step of whose outputs nothing is known but how many bytes they will take, because an input is not
    there yet; `found` is what is at the place of all."""
    share = replace(found or OutputStatus(output), path=output, num_bytes=num_bytes / num_tasks, is_counted=False)
    return [Task([replace(share, total=0, done=0)])] * num_tasks


def below(outputs: Iterable[OutputStatus], folder: Path) -> list[OutputStatus]:
    """The outputs in a folder, or the one that it is."""
    return [output for output in outputs if output.path.is_relative_to(folder)]


def rows_of_sets(before: Iterable[OutputStatus], folder: Path, domains: str) -> dict[str, int]:
    """The rows of the sets in a folder that `--domain` names, by domain; of a set that is not there, those that it will
    have, as the step `before` says that makes it.

    Raises:
        ArgumentError: if a name in `domains` cannot be that of a folder.
    """
    rows = {output.path.name: output.total for output in before if output.path.parent == folder and output.total}
    names = list(rows)
    if domains != "all":
        names = mds.find_domains(folder, domains)
    else:
        with contextlib.suppress(PipelineError):
            names = list(dict.fromkeys([*mds.find_domains(folder, domains), *rows]))
    for name in names:
        with contextlib.suppress(PipelineError):
            rows[name] = mds.num_rows(folder / name)
    return {name: rows.get(name, 0) for name in names}


def look(
    path: Path, known: provenance.Provenance, total: int = 0, num_bytes: float = 0, is_result: bool = False
) -> OutputStatus:
    """Look at an output of `total` rows; `known` is as much of its provenance as is known without it, `num_bytes` what
    it will take."""
    output = OutputStatus(path, total=total, num_bytes=num_bytes, is_result=is_result)
    if not path.exists():
        return output
    try:
        meta = provenance.read_meta(path)
    except DamagedFileError as error:
        return replace(output, state=DAMAGED, what=str(error))
    if not meta:
        return replace(output, state=OTHER, what="nothing says what made it")
    output = replace(output, meta=meta)
    if differences := compare_records(meta.made_with, known):
        return replace(output, state=OTHER, what=f"{OTHERWISE}: {differences}")
    if lost := provenance.lost_files(path, meta.files):
        return replace(output, state=DAMAGED, what=f"its {lost[0].name} is gone or has another size")
    return replace(output, state=DONE, done=total, num_bytes=sum(metadata["bytes"] for metadata in meta.files.values()))


def look_at_manifest(path: Path) -> tuple[OutputStatus, dict[str, Any]]:
    """The manifest of a run as an output without rows, and its content."""
    output = OutputStatus(path, is_counted=False, is_result=True)
    empty: dict[str, Any] = {"arguments": {}, "sets": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["arguments"], dict) or not isinstance(content["sets"], dict):
            raise TypeError("arguments and sets are not objects")
    except FileNotFoundError:
        return output, empty
    except (ValueError, KeyError, TypeError) as error:
        return replace(output, state=DAMAGED, what=f"is damaged ({error})"), empty
    return replace(output, state=DONE), content


def look_at_set(
    folder: Path,
    known: provenance.Provenance,
    requested: int,
    num_bytes: float,
    inputs: Mapping[str, Input] | None = None,
) -> OutputStatus:
    """A set that one task makes: the set, or before it is joined, its parts that are there.

    `requested` rows are expected; fewer are right where the meta file says that no more windows were available.
    """
    output = look(folder, {**known, **describe_set(inputs or {})}, requested, num_bytes, is_result=True)
    if output.state == DONE and output.meta:
        rows, expected = output.made_with("rows"), min(requested, output.meta.get("windows_available", requested))
        if rows != expected:
            return replace(output, state=OTHER, done=0, what=f"{OTHERWISE}: rows: was {rows}, now {expected}")
        return replace(output, total=rows, done=rows)
    if output.state == MISSING:
        for path in parts.paths_there(folder):
            part = look(path, known)
            if part.state == DONE and inputs:
                rows = part.made_with("first_row"), part.made_with("stop_row")
                part = look(path, {**known, **describe_part(inputs, path, *rows)})
            if part.state != DONE:
                return replace(output, path=path, state=part.state, done=0, what=part.what)
            num_rows = part.made_with("stop_row") - part.made_with("first_row")
            # Parts of a larger run may be there, too.
            output = replace(output, done=min(output.total, output.done + num_rows))
    return output


def look_at_part(
    of_set: parts.Parts, number: int, num_rows: int, num_bytes: float, joined: OutputStatus
) -> OutputStatus:
    """A part of the set `joined`: once that is there all of them are done, and none is looked at. What a damaged set
    has no part of any more can only be made with --overwrite, and so it is damaged, too."""
    if joined.state in {DONE, OTHER}:
        done = num_rows if joined.state == DONE else 0
        return replace(joined, total=num_rows, done=done, num_bytes=num_bytes, meta=provenance.Meta())
    path = of_set.paths[number]
    # Describing a part may read its input rows: not for one that is missing.
    known = of_set[number].made_with if path.exists() else {}
    part = look(path, known, num_rows, num_bytes, joined.is_result)
    if part.state == MISSING and joined.state == DAMAGED:
        return replace(part, path=joined.path, state=DAMAGED, what=joined.what)
    return part
