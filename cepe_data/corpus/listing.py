"""The list of a corpus' files: what they are, which domain each belongs to, where a token file goes.

`all_jsonl.txt` has one path per line, relative to the data folder, sorted by code point. `all_jsonl.json` beside it:

    {"root": absolute path, "files": [{"path", "domain", "bytes"}, …],     in the same order
     "domain_key": "meta.redpajama_set_name", "domain_map": {value: domain}}     only where records say their domain

with a hash of its own as meta files have. The first is what a person may edit; the second says where the files are, how
large they were when listed, and which domain each belongs to: null where every record says so itself.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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

    def require_sizes(self) -> None:
        """Raise ArgumentError if the size of a file is not known, by which files are assigned to shards."""
        for file in self.files:
            if file.num_bytes is None:
                raise ArgumentError(
                    f"the size of {file.path} is not listed, and the file is not in the data folder ({self.root}). "
                    f"List it with get_all_jsonl.py; a part of a list needs a copy of the whole list's .json under its "
                    f"own name"
                )

    def require_root(self, argument: Path | None) -> Path:
        """The data folder: `argument`, else the one of the list.

        Raises:
            ArgumentError: if there is none, or it is not a folder.
        """
        root = argument or self.root
        if root is None:
            raise ArgumentError("no data folder: pass --data_dir, set REDPAJAMA_DIR, or run get_all_jsonl.py first")
        if not root.is_dir():
            raise ArgumentError(
                f"the data folder {root} does not exist (from --data_dir, REDPAJAMA_DIR or the file list)"
            )
        return root


def token_path(path: str) -> str:
    """`a/b.jsonl.gz`, say, or another of SUFFIXES → `a/b.npy`.

    Raises:
        ArgumentError: for another ending.
    """
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if path.endswith(suffix):
            return path.removesuffix(suffix) + ".npy"
    raise ArgumentError(f"{path} ends in none of {', '.join(SUFFIXES)}")


def list_json_path(file_list: Path) -> Path:
    """`all_jsonl.txt` → `all_jsonl.json`."""
    return file_list.with_suffix(".json")


def choose_data_dir(argument: str | None) -> Path | None:
    """The data folder that the user names: the argument, else `REDPAJAMA_DIR`; None if neither does."""
    name = argument or os.environ.get("REDPAJAMA_DIR")
    return Path(name) if name else None


def read_file_list(file_list: Path, root: Path | None = None) -> FileList:
    """`all_jsonl.txt` and its .json. For a path that is not in the .json, the domain comes from its folders, the size
    from the file itself below `root`, or else below the root of the list.

    Raises:
        ArgumentError: if the list is missing or empty, names a file twice, leaves the data folder, or has a path whose
            domain nothing tells, or two paths have the same token file.
    """
    try:
        lines = file_list.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{file_list} is not UTF-8 text ({error}): run get_all_jsonl.py again") from None
    except FileNotFoundError:
        raise ArgumentError(f"{file_list} is missing: make it with `python get_all_jsonl.py DATA_DIR`") from None
    json_path = list_json_path(file_list)
    content = provenance.read_signed(json_path, "run get_all_jsonl.py again") if json_path.exists() else {}
    known = {file["path"]: file for file in content.get("files", [])}
    listed_root = Path(content["root"]) if content.get("root") else None
    files = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            path = str(PurePosixPath(line.strip()))  # without `./` and `//`
            where = f"{file_list} line {number}: {path}"
            files.append(_listed_file(path, known.get(path), root or listed_root, where))
    if not files:
        raise ArgumentError(f"{file_list} names no file: run `python get_all_jsonl.py DATA_DIR` again")
    check_targets_differ([file.path for file in files])
    return FileList(sorted(files, key=lambda file: file.path), listed_root, RecordDomains.recorded(content))


def _listed_file(path: str, known: Mapping[str, object] | None, root: Path | None, where: str) -> ListedFile:
    parts = PurePosixPath(path).parts
    if PurePosixPath(path).is_absolute() or ".." in parts:
        raise ArgumentError(f"{where} leaves the data folder: paths are relative to it, without `..`")
    if known is not None:
        domain = known["domain"]
        return ListedFile(path, None if domain is None else str(domain), int(str(known["bytes"])))
    domain = domain_of(path, KNOWN_NAMES)
    if domain is None:
        raise ArgumentError(f"{where}: no domain; list it with `get_all_jsonl.py --domain_map {parts[0]}=DOMAIN`")
    source = root / path if root is not None else None
    return ListedFile(path, domain, source.stat().st_size if source is not None and source.exists() else None)


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
