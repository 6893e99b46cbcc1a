"""Check that the outputs of embed_passages and search are complete: meta files, sizes, and with `--deep` hashes.
check.py compares the content of hits with the passages that were written from them.
"""

from __future__ import annotations

from pathlib import Path

from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.retrieval import embeddings
from cepe_data.storage import parts, provenance, verify
from cepe_data.storage.report import Report

HIT_FILES = ("keys.npy", "scores.npy")


def hit_folders(folder: Path) -> list[Path]:
    """The folders of the hits of all domains."""
    return [one for one in sorted(folder.glob("*")) if is_hit_folder(one)]


def is_hit_folder(path: Path) -> bool:
    """Whether a folder has the hits of a domain, complete or not."""
    return verify.is_domain_folder(path) and any((path / name).exists() for name in (*HIT_FILES, provenance.META))


def check_embedded(report: Report, effort: verify.Effort, folder: Path) -> None:
    """Check that all parts of an embedded corpus are there, and belong together.

    Raises:
        ArgumentError: if there is not one part.
    """
    if not (folder / embeddings.MANIFEST).exists() and not any(folder.glob("*/*/part-*/neighbor_offsets.npy")):
        raise ArgumentError(
            f"{folder} holds no embeddings: no {embeddings.MANIFEST} is in it. Pass the output of embed_passages"
        )
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
    """Check the hits of all domains, the parts that they were joined from, and the embedded queries.

    Raises:
        ArgumentError: if there are no hits.
    """
    if not any((one / name).exists() for one in hit_folders(folder) for name in HIT_FILES):
        raise ArgumentError(
            f"{folder} holds no hits: no domain folder with {' and '.join(HIT_FILES)} is in it. Pass the output of "
            f"search"
        )
    paths: list[Path] = []
    for hits in hit_folders(folder):
        queries = query_vectors_path(hits).parent  # --delete_parts removes them
        paths += [hits, *([queries] if queries.exists() else []), *parts.paths_there(hits)]
    verify.check_files(report, effort, paths)


def query_vectors_path(hits: Path) -> Path:
    """The embedded queries of hits: `HITS/wiki` → `HITS/wiki.queries/embeddings.npy`."""
    return hits.with_name(f"{hits.name}.queries") / "embeddings.npy"
