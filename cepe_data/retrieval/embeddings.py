"""The embeddings of a retrieval corpus: `EMB/{shard}/{domain}/part-00000/`, a part for a byte range of a jsonl file.

embeddings.npy        float16 [rows, dimension]
passages.npy          int16 or int32 [rows, chunk size], the ids of the passages
neighbors.npy         int16 or int32 [total], the ids of the neighbors of all passages, concatenated
neighbor_offsets.npy  int64 [rows + 1], where each neighbor begins in neighbors.npy
meta.json             storage/provenance.py; metadata: rows, first_number (of the first passage in its jsonl file)

The manifest `EMB/embeddings.json` lists all corpus files, sorted by domain and shard, and the number of their parts.
The key of a passage `{domain}_{shard}_{n}` is file << 40 | n, where file is the number of its corpus file in the
manifest: keys have the order of (domain, shard, n).
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.storage import outputs, parts, provenance
from cepe_data.storage.npy import NpyRows
from cepe_data.storage.parts import part_ranges

KEY_SHIFT = 40
NO_KEY = -1
MANIFEST = "embeddings.json"


@dataclass(frozen=True)
class CorpusFile:
    """One jsonl file of the retrieval corpus, and how many parts it has."""

    domain: str
    shard: int
    num_parts: int

    @property
    def name(self) -> str:
        """`{domain}_{shard}`, the prefix of the ids of its passages."""
        return f"{self.domain}_{self.shard}"


def part_path(folder: Path, file: CorpusFile, part: int) -> Path:
    """The folder of a part."""
    return parts.part_path(folder / str(file.shard) / file.domain, part)


@dataclass(frozen=True)
class Part:
    """A part on the disk."""

    path: Path
    file_number: int
    shard: int
    meta: provenance.Meta

    @property
    def num_rows(self) -> int:
        return int(self.meta["rows"])

    @property
    def first_key(self) -> int:
        """The key of its first passage; the next passages have the next keys."""
        return self.file_number << KEY_SHIFT | int(self.meta["first_number"])


class Embeddings:
    """All parts of an embedded corpus, in the order of their keys.

    Raises:
        ArgumentError: if the folder does not exist, or parts are missing.
        DamagedFileError: if parts were made by different encoders, or lack files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = read_manifest(folder)
        found: list[Part] = []
        missing: list[Path] = []
        for number, file in enumerate(self.files):
            for part in range(file.num_parts):
                path = part_path(folder, file, part)
                meta = provenance.read_meta(path) if path.exists() else provenance.Meta()
                if not meta:
                    missing.append(path)
                elif lost := provenance.lost_files(path, meta.files):
                    raise DamagedFileError(f"{lost[0]} is gone or has another size: remove {path} and make it again")
                else:
                    found.append(Part(path, number, file.shard, meta))
        if missing:
            num_parts = sum(file.num_parts for file in self.files)
            raise ArgumentError(
                f"{len(missing)} of {num_parts} parts are missing in {folder}, such as {missing[0]}: run "
                f"embed_passages for all shards"
            )
        for _, of_file in itertools.groupby(found, lambda part: part.file_number):
            _check_no_gaps([*of_file])
        self.parts = [part for part in found if part.num_rows]
        kinds = {json.dumps(self._kind(part.meta), sort_keys=True): part.path for part in self.parts}
        if len(kinds) > 1:
            (one, path), (other, other_path) = list(kinds.items())[:2]
            difference = provenance.describe_differences(json.loads(one), json.loads(other))
            raise DamagedFileError(f"{path} and {other_path} were not made by the same encoder: {difference}")
        if not self.parts:
            raise ArgumentError(f"{folder} holds no passages")
        self.kind = self._kind(self.parts[0].meta)

    @staticmethod
    def _kind(meta: provenance.Meta) -> provenance.Provenance:
        names = (
            "model", "dtype", "pooling", "normalize", "passage_prefix", "max_word_pieces", "dimension", "chunk_size",
            "tokenizer",
        )  # fmt: skip
        return {name: meta.made_with.get(name) for name in names}

    @property
    def num_passages(self) -> int:
        return sum(part.num_rows for part in self.parts)

    @property
    def shards(self) -> list[int]:
        """The shards of the corpus that have passages."""
        return sorted({part.shard for part in self.parts})

    def parts_of(self, shard: int) -> list[Part]:
        """The parts of a shard of the corpus."""
        return [part for part in self.parts if part.shard == shard]

    def fingerprint(self, parts: Sequence[Part]) -> str:
        """A hash of the content of these parts, and of the file names that keys stand for."""
        names = [file.name for file in self.files]
        return provenance.fingerprint([names, [[part.first_key, part.meta.files] for part in parts]])

    def blocks(self, parts: Sequence[Part], rows_at_once: int) -> Iterator[tuple[int, np.ndarray]]:
        """The embeddings of these parts in blocks, each with its first key: float16 [rows, dimension]. The next block
        is read while one is used."""
        pending: deque[Future[tuple[int, np.ndarray]]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for part in parts:
                for start, stop in part_ranges(part.num_rows, rows_at_once):
                    pending.append(reader.submit(_read_block, part, start, stop))
                    if len(pending) == 2:
                        yield pending.popleft().result()
            if pending:
                yield pending.popleft().result()

    def vectors(self, keys: np.ndarray) -> np.ndarray:
        """The embeddings of passages by their keys, int64 [n]: float16 [n, dimension]. Raises as `passages`."""
        out = np.empty((len(keys), int(self.kind["dimension"])), np.float16)
        for part, places, rows in self._find(keys):
            with NpyRows(part.path / "embeddings.npy", "f", 2) as vectors:
                for place, row in zip(places, rows, strict=True):
                    out[place] = vectors.read(row, row + 1)[0]
        return out

    def _find(self, keys: np.ndarray) -> Iterator[tuple[Part, list[int], list[int]]]:
        """The parts that have the passages of keys, int64 [n], each with the places of its keys in `keys`, and their
        rows in the part.

        Raises:
            DamagedFileError: if no passage here has a key.
        """
        first_keys = np.array([part.first_key for part in self.parts])
        number = np.searchsorted(first_keys, keys, "right") - 1
        order = np.argsort(keys, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else ():
            part = self.parts[number[group[0]]]
            rows = keys[group] - part.first_key
            if number[group[0]] < 0 or rows[-1] >= part.num_rows:
                raise DamagedFileError(
                    f"{self.folder} has no passage with the key {keys[group[-1]]}: the hits are of other embeddings"
                )
            yield part, group.tolist(), rows.tolist()

    def passages(self, keys: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The token ids of passages, int16 or int32 [n, chunk size], and of their neighbors, by keys, int64 [n].

        Raises:
            DamagedFileError: if no passage here has a key.
        """
        found: np.ndarray | None = None
        neighbors: list[np.ndarray] = [np.empty(0)] * len(keys)
        for part, places, rows in self._find(keys):
            with (
                NpyRows(part.path / "passages.npy", num_axes=2) as passages,
                NpyRows(part.path / "neighbor_offsets.npy") as offsets,
                NpyRows(part.path / "neighbors.npy") as following,
            ):
                if found is None:
                    found = np.empty((len(keys), *passages.row_shape), passages.dtype)
                for row in rows:
                    passages.will_need(row, row + 1)
                    offsets.will_need(row, row + 2)
                for place, row in zip(places, rows, strict=True):
                    found[place] = passages.read(row, row + 1)[0]
                    start, stop = offsets.read(row, row + 2).tolist()
                    if not 0 <= start <= stop <= following.size:
                        raise DamagedFileError(
                            f"{offsets.path} is damaged at row {row}: remove {part.path} and make it again"
                        )
                    neighbors[place] = following.read(start, stop)
        return (np.empty((0, 0), np.int16) if found is None else found), neighbors


def _check_no_gaps(parts: Sequence[Part]) -> None:
    """Raise DamagedFileError unless these parts were made from the same version of a file, and follow each other."""
    for before, part in itertools.pairwise(parts):
        one, other = ({name: meta.made_with.get(name) for name in ("source", "part_bytes")}
                      for meta in (before.meta, part.meta))  # fmt: skip
        if differences := provenance.describe_differences(one, other):
            raise DamagedFileError(
                f"{before.path} and {part.path} are parts of two versions of a file: {differences}. Run embed_passages "
                f"--overwrite for all shards"
            )
    filled = [part for part in parts if part.num_rows]
    for before, part in itertools.pairwise(filled):
        if before.first_key + before.num_rows != part.first_key:
            raise DamagedFileError(f"{part.path} does not follow {before.path}: make them again, with --overwrite")


def _read_block(part: Part, start: int, stop: int) -> tuple[int, np.ndarray]:
    with NpyRows(part.path / "embeddings.npy", "f", 2) as rows:
        return part.first_key + start, rows.read(start, stop)


def keys_path(folder: Path) -> Path:
    """The keys of the passages of a set: `RET/test/wiki` → `RET/test/wiki.keys.npy`."""
    return folder.with_name(f"{folder.name}.keys.npy")


def passage_ids(names: Sequence[str], keys: np.ndarray) -> list[str]:
    """The ids `{domain}_{shard}_{n}` of keys, int64 [n]. `names` are those of the corpus files, `{domain}_{shard}`.

    Raises:
        DamagedFileError: if a key is of none of these files.
    """
    for key in keys.tolist():
        if not 0 <= key >> KEY_SHIFT < len(names):
            raise DamagedFileError(f"{key} is not a key of a passage: there are {len(names)} corpus files")
    return [f"{names[key >> KEY_SHIFT]}_{key & (1 << KEY_SHIFT) - 1}" for key in keys.tolist()]


def read_manifest(folder: Path) -> list[CorpusFile]:
    """The corpus files of the embeddings in `folder`, sorted by domain and shard.

    Raises:
        ArgumentError: if there is no manifest.
        DamagedFileError: if it is damaged.
    """
    path = folder / MANIFEST
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        files = [CorpusFile(str(one["domain"]), int(one["shard"]), int(one["parts"])) for one in content["files"]]
    except (FileNotFoundError, NotADirectoryError):
        raise ArgumentError(f"{folder} holds no embeddings: no {MANIFEST} is in it. Run embed_passages") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): run embed_passages again") from None
    return files


def write_manifest(folder: Path, files: Sequence[CorpusFile]) -> None:
    """Write the manifest, unless one with the same content exists."""
    listed = [{"domain": file.domain, "shard": file.shard, "parts": file.num_parts} for file in files]
    outputs.write_json(folder / MANIFEST, {"files": listed})
