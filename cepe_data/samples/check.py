"""Check what a sampler wrote: test and train sets, where their rows come from, and the retrieval corpus.

Quick by default: files, sizes, indexes, columns, and a seeded sample of rows and passages. Each is compared with its
place in the token files, and the document there must belong to the split. `--deep` does so with every row, and compares
the hashes of all files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cepe_data import shards
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.samples.check_passages import check_passages
from cepe_data.samples.check_sources import SourceDocuments
from cepe_data.samples.passages import METADATA as PASSAGE_METADATA
from cepe_data.samples.windows import INSIDE_DOCUMENTS
from cepe_data.samples.writer import METADATA, rows_path
from cepe_data.storage import mds, provenance, verify
from cepe_data.storage.npy import NpyRows
from cepe_data.storage.report import Report

MANIFEST = "manifest.json"
HELP = "check what a sampler wrote: rows against the token files, splits, the retrieval corpus"
OF_ALL = ("seed", "test_fraction", "document_hash", "drop_duplicates")
OF_ALL_WINDOWS = ("kind", "total_length", "decoder_length")
OF_ALL_SHARDS = ("requested", "retrieval_shards", "chunk_size", "token_files", "duplicates")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUT", help="what the sampler was given")
    parser.add_argument("--tokenized_dir", type=Path, default=Path("tokenized"), help="the folder of token files")
    verify.add_arguments(parser)


def check(report: Report, options: SampleCheck, check_more: Callable[[Report, Path], None] | None = None) -> int:
    """Check every set of OUT, and its retrieval corpus; with `check_more`, what else is in OUT."""
    output = options.output
    folders = [one for split in ("test", "train") for one in sorted(output.glob(f"{split}/*"))]
    folders = [one for one in folders if verify.is_domain_folder(one) and verify.has_set(one)]
    passages = sorted(output.glob("retrieval/*/*.jsonl"))
    check_manifests(report, output, folders, passages)
    if not folders and not passages and not report.findings:
        raise ArgumentError(f"{output} holds no sets: pass the OUT of a sampler")
    check_agreement(report, [*folders, *passages])
    check_shards(report, output, passages)
    if check_more:
        check_more(report, output)
    num_compared = verify.check_sets(report, options, folders)
    num_passages = check_passages(report, options, options.tokenized_dir, passages)
    report.results |= {"sets": len(folders), "rows_compared": num_compared}
    report.results |= {"passage_files": len(passages), "passages_compared": num_passages}
    return report.finish(
        f"{len(folders)} sets, {num_compared:,} rows compared with the token files; {len(passages)} files of passages, "
        f"{num_passages:,} compared: {len(report.findings)} findings",
        output,
    )


def check_manifests(report: Report, output: Path, folders: Sequence[Path], passages: Sequence[Path]) -> None:
    """That every output has a manifest; and that what a manifest lists is there, and agrees with its meta file."""
    expected = {one.parent for one in passages} | ({output} if folders else set())
    for folder in sorted(expected):
        if not (folder / MANIFEST).exists():
            report.found(folder / MANIFEST, "is missing: run the sampler again")
    for path in [output / MANIFEST, *sorted(output.glob(f"retrieval/*/{MANIFEST}"))]:
        if not path.exists():
            continue
        try:
            listed = provenance.read_signed(path, "run the sampler again")["sets"]
        except DamagedFileError as error:
            report.found(path, str(error))
            continue
        if path.parent == output:
            for split, of_split in listed.items():
                for domain, metadata in of_split.items():
                    _compare_with_manifest(report, path, output / split / domain, metadata, METADATA)
        else:
            for domain, metadata in listed.items():
                _compare_with_manifest(report, path, path.with_name(f"{domain}.jsonl"), metadata, PASSAGE_METADATA)


def check_agreement(report: Report, paths: Sequence[Path]) -> None:
    """That sets and passages of one output were made with the same rule: else a text could be in two splits."""
    known: dict[tuple[str, str], tuple[Path, Any]] = {}
    for output, meta in verify.readable_metas(paths).items():
        made_with = meta.made_with
        is_passages = made_with.get("kind") == "passages"
        scopes = dict.fromkeys(OF_ALL, "")  # "" if all outputs agree, or the domain whose shards agree
        scopes |= {"train_fraction": ""} if "train_fraction" in made_with else {}
        scopes |= dict.fromkeys(OF_ALL_SHARDS, output.stem) if is_passages else dict.fromkeys(OF_ALL_WINDOWS, "")
        for name, scope in scopes.items():
            value = made_with.get(name)
            first, expected = known.setdefault((name, scope), (output, value))
            if value != expected:
                report.found(output, f"was made with {name} {value}, but {first} with {expected}")


def check_shards(report: Report, output: Path, passages: Sequence[Path]) -> None:
    """That files of passages are in the folder of their shard, and that all shards are there."""
    num_shards = 0
    for path, meta in verify.readable_metas(passages).items():
        made_with = meta.made_with
        num_shards = max(num_shards, made_with.get("retrieval_shards") or 0)
        place = {"shard_id": int(path.parent.name) if path.parent.name.isdecimal() else -1, "domain": path.stem}
        if wrong := verify.compare_records(made_with, place):
            report.found(path, f"is not where it was written: {wrong}")
    missing = [one for one in range(num_shards) if not (output / f"retrieval/{one}/{MANIFEST}").exists()]
    if missing:
        ids = shards.array_ids(missing)
        report.found(output / "retrieval", f"has not all of its {num_shards} shards: run the sampler for {ids}")


def _compare_with_manifest(
    report: Report, manifest: Path, output: Path, metadata: Mapping[str, Any], names: Iterable[str]
) -> None:
    """That an output is there if it has rows, and that its meta file agrees with the manifest."""
    if not output.exists():
        if metadata["written"]:
            report.found(output, f"is missing, and {manifest} says that it has {metadata['written']:,} rows")
        return
    for meta in verify.readable_metas([output]).values():
        num_rows = meta.get("rows", meta.made_with.get("rows"))
        expected = {"written": num_rows, **{name: meta.get(name) for name in names}}
        if differences := verify.compare_records(metadata, expected):
            report.found(manifest, f"says of {output} otherwise than its meta file: {differences}")


@dataclass(frozen=True)
class SampleCheck(verify.SetCheck):
    """The options, and the check of a set of windows and its rows."""

    output: Path
    tokenized_dir: Path
    rows_at_once: ClassVar[int] = 4096  # for each group, all documents before its first row are read

    def check_set(self, report: Report, folder: Path) -> bool:
        """Columns, names, and the numbers in `{domain}.rows.npy`."""
        before = len(report.findings)
        meta = provenance.read_meta(folder)
        made_with = meta.made_with
        if wrong := verify.compare_records(made_with, {"domain": folder.name, "split": folder.parent.name}):
            report.found(folder, f"is not where it was written: {wrong}")
        columns = mds.read_columns(folder)
        total, decoder, dtype = (made_with.get(name) for name in ("total_length", "decoder_length", "token_dtype"))
        if total and columns != {
            "domain": "str",
            "prev_token_ids": f"ndarray:{dtype}:{total - decoder}",
            "token_ids": f"ndarray:{dtype}:{decoder}",
        }:
            report.found(folder, f"has other columns than its meta file says: {columns}")
        with NpyRows(rows_path(folder), num_axes=2) as sources:
            numbers = sources.read(0, sources.size)
        if numbers.shape != (mds.num_rows(folder), 2):
            report.found(rows_path(folder), f"has the shape {list(numbers.shape)}, not two numbers for every row")
        elif len(numbers) and not 0 <= numbers[:, 0].min() <= numbers[:, 0].max() < len(meta["source_files"]):
            report.found(rows_path(folder), f"names files beyond the {len(meta['source_files'])} of the meta file")
        else:
            order = np.lexsort((numbers[:, 1], numbers[:, 0]))
            is_same = (numbers[order][1:] == numbers[order][:-1]).all(axis=1)
            if is_same.any():
                report.found(folder, "comes from the same place as another row", int(order[1:][is_same].min()))
        return len(report.findings) == before

    def groups(self, folder: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Rows of the same token file, in the order of their positions."""
        with NpyRows(rows_path(folder), num_axes=2) as sources:
            numbers = sources.read(0, sources.size)[rows]
        order = np.lexsort((numbers[:, 1], numbers[:, 0]))
        for group in np.split(order, np.flatnonzero(np.diff(numbers[order, 0])) + 1) if len(order) else ():
            yield from super().groups(folder, rows[group])

    def check_rows(self, folder: Path, rows: np.ndarray) -> verify.Result:
        """Check rows of one token file, in the order of their positions."""
        meta, result = provenance.read_meta(folder), verify.Result()
        with NpyRows(rows_path(folder), num_axes=2) as sources:
            file_number = int(sources.read(int(rows[0]), int(rows[0]) + 1)[0, 0])
            positions = np.array([sources.read(row, row + 1)[0, 1] for row in rows.tolist()])
        source = SourceDocuments.open(self.tokenized_dir, meta, meta["source_files"][file_number], result)
        if source is None:
            return result
        is_inside = meta.made_with["kind"] == INSIDE_DOCUMENTS
        windows = verify.open_rows(folder)
        with source:
            places = dict(zip(rows.tolist(), source.find(positions), strict=True))
            for number, row in verify.read_ids(windows, rows.tolist(), result):
                place, ids = places[number], np.concatenate([row["prev_token_ids"], row["token_ids"]])
                if row["domain"] != folder.name:
                    result.findings.append((number, f"says that its domain is {row['domain']!r}"))
                if what := source.describe_difference(place, ids, is_inside):
                    result.findings.append((number, what))
                result.num_compared += 1
        return result
