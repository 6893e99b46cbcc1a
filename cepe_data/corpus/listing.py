"""The list of a corpus' files: what they are, which domain each belongs to, where a token file goes.

`all_jsonl.txt` has one path per line, relative to the data folder, sorted by code point. `all_jsonl.json` beside it:

    {"root": absolute path, "files": [{"path", "domain", "bytes"}, …],     in the same order
     "domain_key": "meta.redpajama_set_name", "domain_map": {value: domain}}     only where records say their domain

with a hash of its own as meta files have. The first is what a person may edit; the second says where the files are, how
large they were when listed, and which domain each belongs to: null where every record says so itself.
"""

from __future__ import annotations

import itertools
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cepe_data import shards
from cepe_data.corpus.domains import KNOWN_NAMES, RecordDomains, domain_of
from cepe_data.errors import ArgumentError
from cepe_data.storage import provenance

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst", ".parquet")


@dataclass(frozen=True)
class ListedFile:
    """A file of the list: its path relative to the data folder; its domain, None where its records say it; and its size
    when it was listed, None where nothing tells."""

    path: str
    domain: str | None
    num_bytes: int | None

    @property
    def token_file(self) -> str:
        """The path of its token file, relative to the folder of token files."""
        return token_path(self.path)


@dataclass(frozen=True)
class FileList:
    """What a list and its .json say: the files, sorted by path; the data folder; and how records say their domain."""

    files: Sequence[ListedFile]
    root: Path | None = None
    record_domains: RecordDomains | None = None

    @property
    def domain_map(self) -> dict[str, str]:
        """A `--domain_map` that gives the files their domains. The list has that of get_all_jsonl.py only with a
        `--domain_key`; without it, of each path's folders the first is mapped that has files of one domain only."""
        if self.record_domains:
            return dict(self.record_domains.domain_map)
        below: dict[str, set[str | None]] = defaultdict(set)
        for file in self.files:
            for folder in PurePosixPath(file.path).parts[:-1]:
                below[folder].add(file.domain)
        domain_map: dict[str, str] = {}
        for file in self.files:
            if file.domain and domain_of(file.path, {**KNOWN_NAMES, **domain_map}) != file.domain:
                folders = PurePosixPath(file.path).parts[:-1]
                own = (folder for folder in folders if below[folder] == {file.domain})
                domain_map |= {folder: file.domain for folder in itertools.islice(own, 1)}
        return domain_map

    def require_sizes(self) -> None:
        """Raise ArgumentError if the size of a file is not known, by which files are assigned to shards."""
        for file in self.files:
            if file.num_bytes is None:
                raise ArgumentError(
                    f"the size of {file.path} is not listed, and the file is not in the data folder ({self.root}). "
                    f"List it with get_all_jsonl.py; a part of a list needs a copy of the whole list's .json under its "
                    f"own name"
                )

    def by_shard(self, num_shards: int) -> list[list[ListedFile]]:
        """The files of each shard, sorted by path; see `shards.assign_files`."""
        files = {file.path: file for file in self.files}
        assigned = shards.assign_files([(path, file.num_bytes or 0) for path, file in files.items()], num_shards)
        return [[files[path] for path in paths] for paths in assigned]

    def require_root(self, files: Sequence[ListedFile]) -> None:
        """Raise ArgumentError if there are files to read and no data folder, or most of them are not in it: it is not
        the one that was listed. (Of some that are gone, each is an error of its own.)"""
        if not files:
            return
        if self.root is None:
            raise ArgumentError("no data folder: pass --data_dir, set REDPAJAMA_DIR, or run get_all_jsonl.py first")
        if not self.root.is_dir():
            raise ArgumentError(
                f"the data folder {self.root} does not exist (from --data_dir, REDPAJAMA_DIR or the file list)"
            )
        absent = [file.path for file in files if not (self.root / file.path).exists()]
        if 2 * len(absent) > len(files):
            raise ArgumentError(
                f"{len(absent)} of {len(files)} listed files are not in the data folder {self.root}, such as "
                f"{absent[0]}: is it the one that was listed?"
            )


def token_path(path: str) -> str:
    """`a/b.jsonl.gz`, say, or another of SUFFIXES → `a/b.npy`.

    Raises:
        ArgumentError: for another ending.
    """
    for suffix in SUFFIXES:
        if path.endswith(suffix):
            return path.removesuffix(suffix) + ".npy"
    raise ArgumentError(f"{path} ends in none of {', '.join(SUFFIXES)}")


def read_file_list(file_list: Path, root: Path | None = None) -> FileList:
    """`all_jsonl.txt` and its .json; `root` is the data folder, if it is not the one that the .json names. For a path
    that is not in the .json, the domain comes from its folders, the size from the file itself.

    Raises:
        ArgumentError: if the list is missing or empty, names a file twice, leaves the data folder, or has a path whose
            domain nothing tells, or two paths have the same token file.
    """
    try:
        lines = file_list.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{file_list} is not UTF-8 text ({error}): run get_all_jsonl.py again") from None
    except FileNotFoundError:
        raise ArgumentError(
            f"{file_list} is missing: make it with `python get_all_jsonl.py DATA_DIR`, or name another with --file_list"
        ) from None
    json_path = file_list.with_suffix(".json")
    content = provenance.read_signed(json_path, "run get_all_jsonl.py again") if json_path.exists() else {}
    known = {file["path"]: file for file in content.get("files", [])}
    if root is None and content.get("root"):
        root = Path(content["root"])
    files = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            path = str(PurePosixPath(line.strip()))  # without `./` and `//`
            files.append(_listed_file(path, known.get(path), root, f"{file_list} line {number}: {path}"))
    if not files:
        raise ArgumentError(f"{file_list} names no file: run `python get_all_jsonl.py DATA_DIR` again")
    check_targets_differ([file.path for file in files])
    return FileList(sorted(files, key=lambda file: file.path), root, RecordDomains.recorded(content))


def _listed_file(path: str, known: Mapping[str, Any] | None, root: Path | None, where: str) -> ListedFile:
    parts = PurePosixPath(path).parts
    if PurePosixPath(path).is_absolute() or ".." in parts:
        raise ArgumentError(f"{where} leaves the data folder: paths are relative to it, without `..`")
    if known is not None:
        return ListedFile(path, known["domain"], known["bytes"])
    domain = domain_of(path, KNOWN_NAMES)
    if domain is None:
        mapped = shlex.quote(f"{parts[0]}=DOMAIN")
        raise ArgumentError(f"{where}: no domain; list it with `get_all_jsonl.py --domain_map {mapped}`")
    source = root / path if root else None
    return ListedFile(path, domain, source.stat().st_size if source and source.exists() else None)


def check_targets_differ(paths: list[str]) -> None:
    """Raise ArgumentError if two inputs would write the same output: `a.jsonl` and `a.jsonl.gz`, or one path twice."""
    writers = defaultdict(list)
    for path in paths:
        stem = token_path(path).removesuffix(".npy")
        for target in (f"{stem}.npy", f"{stem}.hash.npy", f"{stem}.domain.npy", f"{stem}.duplicates.npy"):
            writers[target].append(path)
    for target, sources in writers.items():
        if len(sources) > 1:
            raise ArgumentError(f"{' and '.join(sources)} would both write {target}: keep one, or rename one")
