"""What the checks of MDS sets share: is a set whole, which rows are looked at, and looking at them on all cores."""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cepe_data import cli, workers
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.storage import mds, provenance
from cepe_data.storage.report import Report, add_report_arguments

# What reading a damaged file may raise: a finding, so that the rest is looked at, too.
FAILURES = (PipelineError, OSError, ValueError, KeyError, IndexError, TypeError)
MAX_FINDINGS = 20  # of a set; the others are counted
ROWS_AT_ONCE = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much is looked at, and how."""
    parser.add_argument("--deep", action="store_true", help="look at every row, and compare the hashes of all files")
    parser.add_argument("--rows", type=cli.count, default=64, help="without --deep: looked at in every set")
    parser.add_argument("--seed", type=cli.count, default=0, help="another seed looks at other rows")
    parser.add_argument(
        "--num_workers", type=cli.positive_count, default=workers.default_num_workers(), help="processes that read"
    )
    add_report_arguments(parser)


@dataclass(frozen=True)
class Effort:
    """How much a check looks at: all rows and hashes, or a seeded sample of rows of every set; and with how many
    processes."""

    deep: bool
    rows: int
    seed: int
    num_workers: int


@dataclass
class Result:
    """The result of looking at some rows: findings (row, what is wrong), how many were compared with what they were
    made from, and why others were not."""

    findings: list[tuple[int | None, str]] = field(default_factory=list)
    num_compared: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass
class Collected:
    """Findings on their way into a report, MAX_FINDINGS of a set, and warnings, each once."""

    report: Report
    num_findings: Counter[Path] = field(default_factory=Counter)
    said: set[str] = field(default_factory=set)

    def add(self, path: Path, result: Result) -> None:
        """Report the result for some rows of a set, or of a file of passages."""
        for row, what in result.findings:
            self.num_findings[path] += 1
            if self.num_findings[path] <= MAX_FINDINGS:
                self.report.found(path, what, row)
        for warning in result.warnings:
            if warning not in self.said:
                cli.warn(warning)
            self.said.add(warning)

    def finish(self) -> None:
        """Say how many findings were left out."""
        for path, number in self.num_findings.items():
            if number > MAX_FINDINGS:
                self.report.found(path, f"has {number - MAX_FINDINGS:,} more such findings")


class Checker(Protocol):
    """What a kind of sets is checked for. It is sent to other processes."""

    def check_set(self, report: Report, folder: Path) -> bool:
        """Look at everything but rows; whether these can be looked at."""
        ...

    def groups(self, folder: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
        """These rows, int64 [n], in groups that are best looked at together."""
        ...

    def check_rows(self, folder: Path, rows: np.ndarray) -> Result:
        """Look at rows, int64 [n]."""
        ...


def find_sets(folder: Path) -> list[Path]:
    """The sets in a folder of domain folders, or `folder` itself if it is one.

    Raises:
        ArgumentError: if there is none.
    """
    if has_set(folder):
        return [with_parents(folder, 1)]
    sets = [one for one in sorted(folder.glob("*")) if is_domain_folder(one) and has_set(one)]
    if not sets:
        what = "holds no MDS sets" if folder.is_dir() else "does not exist, or is not a folder"
        raise ArgumentError(f"{folder} {what}: pass the folder of the domain folders")
    return sets


def with_parents(path: Path, number: int) -> Path:
    """The same path, with so many names at its end that are names of folders, which `.` and `..` are not."""
    if len(path.parts) >= number and ".." not in path.parts[-number:]:
        return path
    return path.resolve() if ".." in path.parts else path.absolute()


def has_set(folder: Path) -> bool:
    """Whether there is a set in a folder, or what is left of one."""
    return (folder / mds.INDEX_NAME).exists() or provenance.meta_path(folder, True).exists()


def is_domain_folder(path: Path) -> bool:
    """Whether it may hold a set: no pool of parts, nothing temporary."""
    return path.is_dir() and not path.name.endswith((".parts", ".queries")) and not path.name.startswith(".")


def check_sets(
    report: Report,
    effort: Effort,
    folders: Sequence[Path],
    checker: Checker,
    collect: Callable[[Path, Result], object] = lambda folder, result: None,
) -> int:
    """Check sets and their rows; returns how many rows were compared with what they were made from. `collect` is called
    with every result and its set, in an order that does not depend on the number of workers."""
    open_rows.cache_clear()  # a set of the same name may be another one by now
    jobs: list[_Job] = []
    for folder in folders:
        try:
            jobs += _jobs_of(report, effort, folder, checker)
        except FAILURES as error:
            report.found(folder, describe(error))
    num_compared, collected = 0, Collected(report)
    with (
        cli.progress_bar(sum(len(job.rows) for job in jobs), "row", f"checking {report.check}") as bar,
        workers.Workers(min(effort.num_workers, len(jobs) or 1), functools.partial(_run_job, checker)) as pool,
    ):
        for job, result in pool.map_in_order(jobs, lambda _: 1, 2 * pool.num_workers):
            num_compared += result.num_compared
            collect(job.folder, result)
            collected.add(job.folder, result)
            bar.update(len(job.rows))
    collected.finish()
    return num_compared


def _jobs_of(report: Report, effort: Effort, folder: Path, checker: Checker) -> list[_Job]:
    """What is to be done for a set, once everything but its rows was looked at; nothing if that is not right."""
    if not _is_whole_set(report, folder) or not checker.check_set(report, folder):
        return []
    meta, num_rows = provenance.read_meta(folder), mds.num_rows(folder)
    rows = np.arange(num_rows) if effort.deep else sample(num_rows, effort.rows, effort.seed, folder.name)
    jobs = [_Job(folder, group) for group in checker.groups(folder, rows)]
    if effort.deep and meta is not None:
        jobs += [_Job(folder, np.empty(0, np.int64), name) for name in sorted(meta["files"])]
    return jobs


def _is_whole_set(report: Report, folder: Path) -> bool:
    """Whether a set has its files with the sizes it was written with, and an index that fits them."""
    before = len(report.findings)
    for path, what in unit_findings(folder):
        report.found(path, what)
    if len(report.findings) > before:
        return False
    try:
        num_rows = len(mds.Rows(folder))
        meta = provenance.read_meta(folder)
        if meta is not None and (recorded := recorded_rows(meta["made_with"], num_rows)) != num_rows:
            report.found(folder, f"has {num_rows:,} rows, its meta file says {recorded:,}")
    except FAILURES as error:
        report.found(folder, describe(error))
    return len(report.findings) == before


def is_whole(unit: Path) -> bool:
    """Whether a unit has its files with their sizes."""
    return not unit_findings(unit)


def unit_findings(unit: Path, is_deep: bool = False) -> list[tuple[Path, str]]:
    """The files of a unit that are not what its meta file says, by their size, or with `is_deep` by their hash; and
    what is wrong with each."""
    if not unit.exists():
        return [(unit, "is missing")]
    try:
        meta = provenance.read_meta(unit)
        if meta is None:
            return [(unit, f"has no {provenance.meta_path(unit, unit.is_dir()).name}: nothing says what made it")]
        if lost := provenance.lost_files(unit, meta):
            return [(path, "is gone, or has not the size that it was written with") for path in lost]
        damaged = provenance.damaged_files(unit, meta) if is_deep else []
    except FAILURES as error:
        return [(unit, describe(error))]
    return [(path, "is not what was written: its hash differs from the meta file") for path in damaged]


def recorded_rows(made_with: Mapping[str, Any], otherwise: int) -> int:
    """How many rows a record says that a set has, or a part of one; `otherwise` if it does not say so."""
    if {"first_row", "stop_row"} <= made_with.keys():
        return int(made_with["stop_row"]) - int(made_with["first_row"])
    return int(made_with.get("rows", otherwise))


def describe(error: Exception) -> str:
    """What FAILURES say, for a finding."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be read: {error.strerror or error}"
    return str(error) if isinstance(error, PipelineError) else f"cannot be read ({type(error).__name__}: {error})"


def count_rows(folders: Iterable[Path]) -> int:
    """The rows of those sets that have a whole index; of the others there is a finding."""
    num_rows = 0
    for folder in folders:
        with contextlib.suppress(*FAILURES):
            num_rows += mds.num_rows(folder)
    return num_rows


def compare_with_source(report: Report, folder: Path, source: Path, how: str) -> None:
    """That a set was made from the rows that are in `source` now, row for row; `how`: "made from", say."""
    made_with = (provenance.read_meta(folder) or {"made_with": {}})["made_with"]
    try:
        fingerprint, num_rows = mds.fingerprint(source), mds.num_rows(source)
    except FAILURES as error:
        report.found(source, f"is what {folder} was {how}, and is damaged: {describe(error)}")
        return
    if made_with.get("input") != fingerprint:
        report.found(folder, f"was {how} other rows than those that are in {source} now")
    elif num_rows != mds.num_rows(folder):
        report.found(folder, f"has {mds.num_rows(folder):,} rows, {source} has {num_rows:,}")


def sample(total: int, number: int, seed: int, name: str) -> np.ndarray:
    """int64 [number, or total if that is less]: some of so many rows or documents of what is called `name`, ascending;
    the first and the last are among them, if there is more than one."""
    if number >= total:
        return np.arange(total)
    ends = [0, total - 1][:number]
    inside = random.Random(f"{seed} {name}").sample(range(1, total - 1), number - len(ends))
    return np.array(sorted([*ends, *inside]), np.int64)


def groups_in_order(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows, int64 [n], in groups of neighbours."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]


def compare_records(found: Mapping[str, object], expected: Mapping[str, object]) -> str:
    """What of `expected` a record says otherwise, as text; empty if nothing."""
    return provenance.describe_differences({name: found.get(name) for name in expected}, dict(expected))


@functools.lru_cache(maxsize=1)
def open_rows(folder: Path) -> mds.Rows:
    """The rows of a set, opened once for all jobs of a process that look at it: each opening would parse its index and
    leave some files open."""
    return mds.Rows(folder)


def read_ids(rows: mds.Rows, numbers: Iterable[int], result: Result) -> Iterator[tuple[int, dict]]:
    """Rows by number; one that cannot be read is a finding."""
    for number in numbers:
        try:
            row = rows[number]
        except DamagedFileError as error:
            result.findings.append((number, str(error)))
            continue
        yield number, row


def _run_job(checker: Checker, job: _Job) -> Result:
    """The task of the workers."""
    try:
        return job.look(checker)
    except FAILURES as error:
        return Result([(None, describe(error))])


@dataclass(frozen=True)
class _Job:
    """Rows of a set to look at, or the name of a file of it to hash."""

    folder: Path
    rows: np.ndarray
    file: str | None = None

    def look(self, checker: Checker) -> Result:
        """Do it. Raises one of FAILURES if the set cannot be read."""
        if self.file is None:
            return checker.check_rows(self.folder, self.rows)
        meta, path = provenance.read_meta(self.folder), self.folder / self.file
        if meta is None or provenance.file_facts(path) == meta["files"][self.file]:
            return Result()
        return Result([(None, f"{path.resolve().name} is not what was written: its hash differs from the meta file")])
