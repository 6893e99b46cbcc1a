"""Is what embed_passages and search wrote whole: every output with its meta file, and its files with their sizes, with
`--deep` their hashes, too. What is in hits is compared with the passages written from them, in check.py.
"""

from __future__ import annotations

from pathlib import Path

from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.retrieval import embeddings
from cepe_data.storage import parts, verify
from cepe_data.storage.report import Report

HIT_FILES = ("keys.npy", "scores.npy")


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
    if not (folder / embeddings.MANIFEST).exists() and not any(folder.glob("*/*/part-*/neighbor_offsets.npy")):
        what = f"no {embeddings.MANIFEST} is in it"
        raise ArgumentError(f"{folder} holds no embeddings: {what}. Pass what embed_passages wrote")
    before = len(report.findings)
    try:
        files = embeddings.read_manifest(folder)
    except (PipelineError, OSError) as error:
        report.found(folder / embeddings.MANIFEST, verify.describe(error))
        return
    parts = [embeddings.part_path(folder, file, part) for file in files for part in range(file.num_parts)]
    verify.check_files(report, effort, parts)
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
    if not any((one / name).exists() for one in hit_folders(folder) for name in HIT_FILES):
        what = f"no domain folder with {' and '.join(HIT_FILES)} is in it"
        raise ArgumentError(f"{folder} holds no hits: {what}. Pass what search wrote")
    paths: list[Path] = []
    for hits in hit_folders(folder):
        queries = [path for path in [query_vectors_path(hits).parent] if path.exists()]  # --delete_parts removes them
        paths += [hits, *queries, *parts.paths_there(hits)]
    verify.check_files(report, effort, paths)


def query_vectors_path(hits: Path) -> Path:
    """The embedded queries of hits: `HITS/wiki` → `HITS/wiki.queries/embeddings.npy`."""
    return hits.with_name(f"{hits.name}.queries") / "embeddings.npy"
