"""Provenance: the meta file of each output, and how a later run compares it with its own arguments.

The meta file of an output is `X.meta.json` beside a file `X.ext`, and `meta.json` inside a folder:

    {"made_with": {argument or input: value},        what determines the bytes of the output, and only that
     "files": {name: {"bytes": int, "xxh3_64": hex}}, every file of the output but the meta file itself; the names of
                                                     sidecar files beside a folder begin with ../
     ...,                                            metadata about the content
     "meta_xxh3_64": hex}                            of all this, as JSON with sorted keys

The same `made_with` means that the output is done; a difference is an error that names it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from cepe_data.errors import ArgumentError, DamagedFileError

META = "meta.json"  # of a folder
_OWN_HASH = "meta_xxh3_64"
_MAX_SIGNED_BYTES = 256 << 20  # a list of a million files has less
_DERIVED = {"rows", "first_row", "stop_row", "rows_per_part"}
_READ_BYTES = 8 << 20

Files = dict[str, dict[str, Any]]  # size and hash of every file of an output, by name
Provenance = dict[str, Any]  # what determines the bytes of an output: arguments and fingerprints of inputs, by name


class Meta(dict[str, Any]):
    """The content of a meta file. That of an output without one, which another program made, is empty."""

    @property
    def made_with(self) -> Provenance:
        """The provenance of the output."""
        return self.get("made_with", {})

    @property
    def files(self) -> Files:
        """The size and hash of every file of the output, by name."""
        return self.get("files", {})


def file_metadata(path: Path) -> dict[str, object]:
    """`{"bytes": size, "xxh3_64": hex digest of the whole file}`."""
    digest, size = xxhash.xxh3_64(), 0
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(min(_READ_BYTES, os.fstat(file.fileno()).st_size + 1))
        while num_read := file.readinto(buffer):
            digest.update(memoryview(buffer)[:num_read])
            size += num_read
    return {"bytes": size, "xxh3_64": digest.hexdigest()}


def fingerprint(content: object) -> str:
    """xxh3_64 of a JSON-able object, as hex."""
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def signed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file, with its own hash."""
    content = {name: value for name, value in content.items() if name != _OWN_HASH}
    return {**content, _OWN_HASH: fingerprint(content)}


def read_signed(path: Path, remedy: str) -> dict[str, Any]:
    """The content of a JSON file that was written signed, without its hash.

    Raises:
        DamagedFileError: if it is not what was written; the message ends with `remedy`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        own_hash = content.pop(_OWN_HASH)
        if own_hash != fingerprint(content):
            raise ValueError("its content is not what was written")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {remedy}") from None
    return content


def meta_path(output: Path, is_folder: bool = False) -> Path:
    """The path of the meta file of an output: inside a folder, beside a file."""
    return output / META if is_folder else output.with_name(f"{output.name.rpartition('.')[0]}.meta.json")


def read_meta(output: Path) -> Meta:
    """The content of an output's meta file.

    Raises:
        DamagedFileError: if it is not a meta file.
    """
    path, remedy = meta_path(output, output.is_dir()), f"remove {output} and make it again"
    try:
        meta = Meta(read_signed(path, remedy))
    except FileNotFoundError:
        return Meta()
    if not isinstance(meta.get("made_with"), dict) or not isinstance(meta.get("files"), dict):
        raise DamagedFileError(f"{path} is damaged (made_with and files are not objects): {remedy}")
    return meta


def is_own_file(path: Path) -> bool:
    """Whether these scripts wrote a file: a signed JSON file, or one that a meta file names, beside it or in its
    folder."""
    if path.suffix == ".json" and _read_if_signed(path):
        return True
    return any(path.name in _read_if_signed(meta).get("files", {}) for meta in (meta_path(path), path.with_name(META)))


@functools.lru_cache(8)  # a folder's meta file is looked at for every file in it
def _read_if_signed(path: Path) -> dict[str, Any]:
    """The content of a file if it is a signed one; else nothing."""
    with contextlib.suppress(DamagedFileError, OSError, RecursionError):
        with path.open("rb") as file:  # JSON lines, which may be large, begin otherwise
            is_indented = file.read(2) == b"{\n"
        if is_indented and path.stat().st_size < _MAX_SIGNED_BYTES:
            return read_signed(path, "")
    return {}


def is_intact(output: Path, meta: Meta) -> bool:
    """Whether every file of the output has the size and hash in its meta file. Reads all of it."""
    return not lost_files(output, meta.files) and not damaged_files(output, meta.files)


def damaged_files(output: Path, files: Files) -> list[Path]:
    """Those of an output's `files` that are missing, or have another size or hash. Reads all of them."""
    listed = _files_of(output, files)
    return [path for path, metadata in listed if not path.is_file() or file_metadata(path) != metadata]


def lost_files(output: Path, files: Files) -> list[Path]:
    """Those of an output's `files` that are missing, or have another size. Reads none."""
    listed = _files_of(output, files)
    return [path for path, metadata in listed if not path.is_file() or path.stat().st_size != metadata["bytes"]]


def _files_of(output: Path, files: Files) -> list[tuple[Path, dict[str, Any]]]:
    folder = output if output.is_dir() else output.parent
    return [
        (folder.parent / name[3:] if name.startswith("../") else folder / name, metadata)
        for name, metadata in files.items()
    ]


def is_made_and_intact(output: Path, made_with: Provenance) -> bool:
    """Whether `output` exists, was made with `made_with`, and every file of it has its hash. Reads all of it."""
    try:
        meta = read_meta(output) if output.exists() else Meta()
    except DamagedFileError:
        return False
    return bool(meta) and meta.made_with == made_with and is_intact(output, meta)


def is_made(output: Path, made_with: Provenance) -> bool:
    """Whether `output` exists. Reads its meta file only.

    Raises:
        ArgumentError: if it exists, but was not made with `made_with`.
        DamagedFileError: if one of its files is gone or has another size, or its meta file is damaged.
    """
    if not output.exists():
        return False
    meta = read_meta(output)
    if not meta:
        raise ArgumentError(f"{output} is there, but nothing says what made it: move it away, or pass --overwrite")
    if differences := describe_differences(meta.made_with, made_with):
        raise ArgumentError(
            f"{output} was made with other arguments or inputs: {differences}. Use the same, remove it, or replace it "
            f"with --overwrite"
        )
    if lost := lost_files(output, meta.files):
        raise DamagedFileError(
            f"{output} is damaged: {lost[0]} is gone or has another size. --overwrite makes it again"
        )
    return True


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The differences of two provenances, as `seed: was 42, now 43; …`; empty if they are equal. Numbers of rows, which
    may follow from other differences, are named only if nothing else differs."""

    def shown(record: Mapping[str, Any], name: str) -> str:
        return json.dumps(record[name], ensure_ascii=False) if name in record else "absent"

    missing = object()
    names = {name for name in {*old, *new} if old.get(name, missing) != new.get(name, missing)}
    names = names - _DERIVED or names
    return "; ".join(f"{name}: was {shown(old, name)}, now {shown(new, name)}" for name in sorted(names))
