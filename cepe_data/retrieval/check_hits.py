"""Is what embed_passages and search wrote whole: every unit with its meta file, and its files with their sizes, with
`--deep` their hashes, too. What is in hits is compared with the passages written from them, in check.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from cepe_data import cli, workers
from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.retrieval import embeddings
from cepe_data.storage import parts, verify
from cepe_data.storage.report import Report

HIT_FILES = ("keys.npy", "scores.npy")


def is_embedded(folder: Path) -> bool:
    """Whether a folder is an embedded corpus, or what is left of one."""
    is_listed = (folder / embeddings.MANIFEST).exists()
    return is_listed or next(folder.glob("*/*/part-*/neighbor_offsets.npy"), None) is not None


def is_hits(folder: Path) -> bool:
    """Whether a folder holds the hits of some domains, or what is left of them."""
    return any((one / name).exists() for one in hit_folders(folder) for name in HIT_FILES)


def hit_folders(folder: Path) -> list[Path]:
    """The hits of every domain."""
    return [one for one in sorted(folder.glob("*")) if is_hit_folder(one)]


def is_hit_folder(path: Path) -> bool:
    """Whether there are the hits of a domain, or what is left of them."""
    return verify.is_domain_folder(path) and any((path / name).exists() for name in (*HIT_FILES, "meta.json"))


def check_embedded(report: Report, effort: verify.Effort, folder: Path) -> None:
    """That all parts of an embedded corpus are there, and fit each other.

    Raises:
        ArgumentError: if no embedded corpus is there at all.
    """
    if not is_embedded(folder):
        what = f"no {embeddings.MANIFEST} is in it"
        raise ArgumentError(f"{folder} holds no embeddings: {what}. Pass what embed_passages wrote")
    before = len(report.findings)
    try:
        files = embeddings.read_manifest(folder)
    except (PipelineError, OSError) as error:
        report.found(folder / embeddings.MANIFEST, verify.describe(error))
        return
    parts = [embeddings.part_path(folder, file, part) for file in files for part in range(file.num_parts)]
    check_units(report, effort, parts)
    if len(report.findings) == before:
        try:
            embeddings.Embeddings(folder)
        except PipelineError as error:
            report.found(folder, str(error))


def check_hits(report: Report, effort: verify.Effort, folder: Path) -> None:
    """That the hits of all domains that are there are whole; what is left of the search, too.

    Raises:
        ArgumentError: if there are none at all.
    """
    if not is_hits(folder):
        what = f"no domain folder with {' and '.join(HIT_FILES)} is in it"
        raise ArgumentError(f"{folder} holds no hits: {what}. Pass what search wrote")
    check_units(report, effort, list(_units_of_search(folder)))


def _units_of_search(folder: Path) -> Iterator[Path]:
    for hits in hit_folders(folder):
        yield hits
        queries = hits.with_name(f"{hits.name}.queries")
        if queries.exists():  # --delete_parts removes them, and the parts
            yield queries
        yield from parts.paths_there(hits)


def check_units(report: Report, effort: verify.Effort, units: Sequence[Path]) -> None:
    """Look at units, folders each, on all cores."""
    look = functools.partial(verify.unit_findings, is_deep=effort.deep)
    with (
        cli.progress_bar(len(units), "unit", "looking at units") as bar,
        workers.Workers(min(effort.num_workers, len(units) or 1) if effort.deep else 1, look) as pool,
    ):
        for _, findings in pool.map_in_order(units, lambda _: 1, 2 * pool.num_workers):
            for path, what in findings:
                report.found(path, what)
            bar.update()
