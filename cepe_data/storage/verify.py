"""What all checks share: comparing files with their meta files, sampling rows, and checking them on all cores."""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from cepe_data import cli, workers
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.storage import mds, provenance
from cepe_data.storage.report import Report, add_report_arguments

# What reading a damaged file may raise. It becomes a finding, and the check goes on.
FAILURES = (PipelineError, OSError, ValueError, KeyError, IndexError, TypeError)
MAX_FINDINGS = 20  # reported of a set; the others are counted
NUM_SAMPLED = 64
OUTPUTS_OF_WORKER = 1000  # fewer are checked before another process has started
OTHER_HASH = "is not what was written: its hash differs from the meta file"

Finding = tuple[Path, str]
Job = TypeVar("Job")
JobResult = TypeVar("JobResult")


def add_arguments(parser: argparse.ArgumentParser, sampled: str = "rows", unit: str = "set") -> None:
    """The arguments of an Effort. `sampled` items of every `unit` are checked: rows of every set, say."""
    parser.add_argument(
        "--deep", action="store_true", help=f"look at all {sampled}, and compare the hashes of all files"
    )
    parser.add_argument(
        f"--{sampled}",
        type=cli.count,
        dest="rows",
        metavar=sampled.upper(),
        default=NUM_SAMPLED,
        help=f"without --deep: looked at in every {unit}",
    )
    parser.add_argument("--seed", type=cli.count, default=0, help=f"another seed looks at other {sampled}")
    parser.add_argument(
        "--num_workers", type=cli.positive_count, default=workers.default_num_workers(), help="processes that read"
    )
    add_report_arguments(parser)


@dataclass(frozen=True)
class Effort:
    """How much is checked: all rows and hashes, or a seeded sample of rows of every set; and by how many processes. The
    options of every check extend it."""

    deep: bool
    rows: int
    seed: int
    num_workers: int


@dataclass
class Result:
    """The result of checking some rows: findings (row, what is wrong), how many rows were compared with their sources,
    and why others were not."""

    findings: list[tuple[int | None, str]] = field(default_factory=list)
    num_compared: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SetCheck(Effort):
    """The check of a kind of sets, with its options. It is sent to other processes."""

    rows_at_once: ClassVar[int] = 256

    def check_set(self, report: Report, folder: Path) -> bool:
        """Check everything but rows; returns whether rows can be checked."""
        raise NotImplementedError

    def groups(self, folder: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
        """These rows, int64 [n], in groups that are best read together."""
        yield from np.array_split(rows, -(-len(rows) // self.rows_at_once) or 1)

    def check_rows(self, folder: Path, rows: np.ndarray) -> Result:
        """Check rows, int64 [n]. May raise one of FAILURES."""
        raise NotImplementedError


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
    """The same path, ending in at least `number` names of folders, which `.` and `..` are not."""
    if len(path.parts) >= number and ".." not in path.parts[-number:]:
        return path
    return path.resolve() if ".." in path.parts else path.absolute()


def has_set(folder: Path) -> bool:
    """Whether a folder has a set, or the rest of one."""
    return (folder / mds.INDEX_NAME).exists() or provenance.meta_path(folder, True).exists()


def is_domain_folder(path: Path) -> bool:
    """Whether a folder may hold a set: neither parts nor embedded queries nor a temporary."""
    return path.is_dir() and not path.name.endswith((".parts", ".queries")) and not path.name.startswith(".")


def check_sets(
    report: Report,
    check: SetCheck,
    folders: Sequence[Path],
    collect: Callable[[Path, Result], object] = lambda folder, result: None,
) -> int:
    """Check sets and their rows; returns how many rows were compared with their sources. `collect` is called with every
    set and result, in an order that does not depend on the number of workers."""
    open_rows.cache_clear()  # another set may have the same path by now
    jobs: list[tuple[Path, np.ndarray]] = []
    for folder in check_files(report, check, folders):
        try:
            jobs += ((folder, rows) for rows in _groups_to_check(report, check, folder))
        except FAILURES as error:
            report.found(folder, describe(error))
    return check_on_all_cores(report, check, check.check_rows, jobs, "row", collect)


def _groups_to_check(report: Report, check: SetCheck, folder: Path) -> Iterator[np.ndarray]:
    """The rows of a set to check, in groups; none if the set itself is damaged."""
    num_rows = len(mds.Rows(folder))
    if (recorded := recorded_rows(provenance.read_meta(folder).made_with, num_rows)) != num_rows:
        report.found(folder, f"has {num_rows:,} rows, its meta file says {recorded:,}")
    elif check.check_set(report, folder):
        rows = np.arange(num_rows) if check.deep else sample(num_rows, check.rows, check.seed, folder.name)
        yield from check.groups(folder, rows)


def check_on_all_cores(
    report: Report,
    effort: Effort,
    look: Callable[[Path, np.ndarray], Result],
    jobs: Sequence[tuple[Path, np.ndarray]],
    unit: str,
    collect: Callable[[Path, Result], object] = lambda path, result: None,
) -> int:
    """Check rows of sets or files on all cores; report MAX_FINDINGS of each, and each warning once. Returns how many
    rows were compared. An empty array of rows stands for a whole file."""
    num_compared, num_findings, warnings = 0, Counter[Path](), set[str]()
    task = functools.partial(_look, look)
    sizes = [len(rows) or 1 for _, rows in jobs]
    for (path, _), result in on_all_cores(task, jobs, effort.num_workers, sizes, unit, f"checking {report.check}"):
        num_compared += result.num_compared
        collect(path, result)
        for row, what in result.findings:
            num_findings[path] += 1
            if num_findings[path] <= MAX_FINDINGS:
                report.found(path, what, row)
        for warning in result.warnings:
            if warning not in warnings:
                cli.warn(warning)
            warnings.add(warning)
    for path, number in num_findings.items():
        if number > MAX_FINDINGS:
            report.found(path, f"has {number - MAX_FINDINGS:,} more such findings")
    return num_compared


def _look(look: Callable[[Path, np.ndarray], Result], job: tuple[Path, np.ndarray]) -> Result:
    """The task of the workers: an error is a finding."""
    try:
        return look(*job)
    except FAILURES as error:
        return Result([(None, describe(error))])


def on_all_cores(
    task: Callable[[Job], JobResult],
    jobs: Sequence[Job],
    num_workers: int,
    sizes: Sequence[int],
    unit: str,
    description: str,
) -> Iterator[tuple[Job, JobResult]]:
    """Each job with its result, in order; the progress bar counts their `sizes`."""
    with (
        cli.progress_bar(sum(sizes), unit, description, unit_scale=unit == "B") as bar,
        workers.Workers(min(num_workers, len(jobs) or 1), task) as pool,
    ):
        for size, done in zip(sizes, pool.map_in_order(jobs), strict=True):
            yield done
            bar.update(size)


def check_files(report: Report, effort: Effort, paths: Sequence[Path], remedy: str = "") -> list[Path]:
    """Compare the sizes of the files of outputs, and with `deep` their hashes, with the meta files, on all cores.
    Returns the outputs that have all their files."""
    whole: list[Path] = []
    num_workers = min(effort.num_workers, 1 + len(paths) // OUTPUTS_OF_WORKER)
    for output, findings in on_all_cores(
        output_findings, paths, num_workers, [1] * len(paths), "output", "looking at sizes"
    ):
        report.found_all(findings, remedy)
        whole += [] if findings else [output]
    metas = readable_metas(whole if effort.deep else [])
    files = [(output, {name: metadata}) for output, meta in metas.items() for name, metadata in meta.files.items()]
    sizes = [metadata["bytes"] for _, named in files for metadata in named.values()]
    for _, findings in on_all_cores(hash_findings, files, effort.num_workers, sizes, "B", "comparing hashes"):
        report.found_all(findings, remedy)
    return whole


def output_findings(output: Path) -> list[Finding]:
    """The files of an output that are missing or have another size than in its meta file, each with a text."""
    if not output.exists():
        return [(output, "is missing")]
    try:
        meta = provenance.read_meta(output)
        if not meta:
            return [(output, f"has no {provenance.meta_path(output, output.is_dir()).name}: nothing says what made it")]
        what = "is gone, or has not the size that it was written with"
        return [(path, what) for path in provenance.lost_files(output, meta.files)]
    except FAILURES as error:
        return [(output, describe(error))]


def hash_findings(files: tuple[Path, provenance.Files]) -> list[Finding]:
    """The files of an output, given as their metadata by name, that have another hash."""
    output, metadata_of_files = files
    try:
        return [(path, OTHER_HASH) for path in provenance.damaged_files(output, metadata_of_files)]
    except FAILURES as error:
        return [(output, describe(error))]


def readable_metas(outputs: Iterable[Path]) -> dict[Path, provenance.Meta]:
    """The readable meta files of outputs; `check_files` reports the others."""
    metas = {}
    for output in outputs:
        with contextlib.suppress(DamagedFileError, OSError):
            if meta := provenance.read_meta(output):
                metas[output] = meta
    return metas


def recorded_rows(made_with: Mapping[str, Any], otherwise: int) -> int:
    """The number of rows of a set, or of a part of one, in its provenance; `otherwise` if it is not there."""
    if {"first_row", "stop_row"} <= made_with.keys():
        return int(made_with["stop_row"]) - int(made_with["first_row"])
    return int(made_with.get("rows", otherwise))


def describe(error: Exception) -> str:
    """The text of a finding for one of FAILURES."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be read: {error.strerror or error}"
    return str(error) if isinstance(error, PipelineError) else f"cannot be read ({type(error).__name__}: {error})"


def count_rows(folders: Iterable[Path]) -> int:
    """The number of rows of these sets in their meta files; `check_files` reports a set without one."""
    return sum(recorded_rows(meta.made_with, 0) for meta in readable_metas(folders).values())


def compare_with_source(report: Report, folder: Path, source: Path, how: str) -> None:
    """Report a set that was not made from the present rows of `source`, row by row; `how`: "made from", say."""
    made_with = provenance.read_meta(folder).made_with
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
    """int64 [min(number, total)], ascending: a sample of `total` rows or documents of the set or file `name`, with the
    first and, if `number` > 1, the last of them."""
    if number >= total:
        return np.arange(total)
    ends = [0, total - 1][:number]
    inside = random.Random(f"{seed} {name}").sample(range(1, total - 1), number - len(ends))
    return np.array(sorted([*ends, *inside]), np.int64)


def compare_records(found: Mapping[str, object], expected: Mapping[str, object]) -> str:
    """The differences of a provenance from `expected`, as text, for the names in `expected`; empty if none. What is
    expected to be None should be absent."""
    there = {name: found[name] for name in expected if found.get(name) is not None}
    return provenance.describe_differences(there, {name: one for name, one in expected.items() if one is not None})


@functools.lru_cache(maxsize=1)
def open_rows(folder: Path) -> mds.Rows:
    """The rows of a set, opened once for all jobs of a process: each opening parses the index and leaves files open."""
    return mds.Rows(folder)


def read_ids(rows: mds.Rows, numbers: Iterable[int], result: Result) -> Iterator[tuple[int, dict]]:
    """Numbers and rows; a row that cannot be read is a finding."""
    for number in numbers:
        try:
            row = rows[number]
        except DamagedFileError as error:
            result.findings.append((number, str(error)))
            continue
        yield number, row
