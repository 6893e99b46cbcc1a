"""The jsonl corpus: domains, the list of files, where a token file goes; and how weights of domains are parsed.

`all_jsonl.txt` has one path per line, relative to the data folder, sorted by code point. `all_jsonl.json` beside it:
`{"root": absolute path, "files": [{"path", "domain", "bytes"}, …]}` in the same order, with a hash of its own as meta
files have. The first is what a person may edit; the second says where the files are, how large they were when listed,
and which domain each belongs to.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

from cepe_data.errors import ArgumentError
from cepe_data.storage import provenance

DOMAINS = ("arxiv", "book", "c4-rp", "cc", "github", "stackexchange", "wiki")
FOLDER_DOMAINS = {
    "c4": "c4-rp",
    "common_crawl": "cc",
    "wikipedia": "wiki",
    **{domain: domain for domain in DOMAINS},
}
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class ListedFile:
    """One jsonl file of the list: its path relative to the data folder, its domain, and its size when it was listed."""

    path: str
    domain: str
    num_bytes: int

    @property
    def token_file(self) -> str:
        """The path of its token file, relative to the folder of token files."""
        return token_path(self.path)


def token_path(jsonl_path: str) -> str:
    """`a/b.jsonl`, `a/b.jsonl.gz` or `a/b.jsonl.zst` → `a/b.npy`.

    Raises:
        ArgumentError: for another ending.
    """
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if jsonl_path.endswith(suffix):
            return jsonl_path.removesuffix(suffix) + ".npy"
    raise ArgumentError(f"{jsonl_path} ends in none of {', '.join(SUFFIXES)}")


def domain_of(path: str, folder_domains: Mapping[str, str]) -> str | None:
    """The domain of a relative path, by its top-level folder; None if the folder has none."""
    parts = PurePosixPath(path).parts
    return folder_domains.get(parts[0]) if len(parts) > 1 else None


def list_json_path(file_list: Path) -> Path:
    """`all_jsonl.txt` → `all_jsonl.json`."""
    return file_list.with_suffix(".json")


def read_root(file_list: Path) -> Path | None:
    """The data folder that the list was made from, if the list says so."""
    return Path(root) if (root := _read_list_json(file_list).get("root")) else None


def _read_list_json(file_list: Path) -> dict:
    path = list_json_path(file_list)
    return provenance.read_signed(path, "run get_all_jsonl.py again") if path.exists() else {}


def read_file_list(file_list: Path, root: Path | None = None) -> list[ListedFile]:
    """The files of `all_jsonl.txt`, sorted by path. Domains and sizes come from `all_jsonl.json`; for a path that is
    not there, from its top-level folder and from the file itself below `root`.

    Raises:
        ArgumentError: if the list is missing or empty, names a file twice, leaves the data folder, or has a path whose
            domain or size nothing tells, or two paths have the same token file.
    """
    try:
        lines = file_list.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{file_list} is not UTF-8 text ({error}): run get_all_jsonl.py again") from None
    except FileNotFoundError:
        raise ArgumentError(f"{file_list} is missing: make it with `python get_all_jsonl.py DATA_DIR`") from None
    content = _read_list_json(file_list)
    known = {file["path"]: file for file in content.get("files", [])}
    if root is None and content.get("root"):
        root = Path(content["root"])
    files = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path = str(PurePosixPath(line.strip()))  # without `./` and `//`
        where = f"{file_list} line {number}: {path}"
        parts = PurePosixPath(path).parts
        if PurePosixPath(path).is_absolute() or ".." in parts:
            raise ArgumentError(f"{where} leaves the data folder: paths are relative to it, without `..`")
        domain = known[path]["domain"] if path in known else domain_of(path, FOLDER_DOMAINS)
        if domain is None:
            raise ArgumentError(f"{where}: no domain; list it with `get_all_jsonl.py --domain_map {parts[0]}=DOMAIN`")
        files.append(ListedFile(path, domain, _listed_bytes(path, known, root, where)))
    if not files:
        raise ArgumentError(f"{file_list} names no file: run `python get_all_jsonl.py DATA_DIR` again")
    check_targets_differ([file.path for file in files])
    return sorted(files, key=lambda file: file.path)


def _listed_bytes(path: str, known: Mapping[str, dict], root: Path | None, where: str) -> int:
    if path in known:
        return int(known[path]["bytes"])
    try:
        if root is not None:
            return (root / path).stat().st_size
    except FileNotFoundError:
        pass
    raise ArgumentError(
        f"{where}: its size is neither listed nor to be seen in the data folder. List it with get_all_jsonl.py; a "
        f"part of a list wants a copy of the whole list's .json under its own name"
    )


def check_targets_differ(paths: list[str]) -> None:
    """Raise ArgumentError if two inputs would write the same output: `a.jsonl` and `a.jsonl.gz`, or one path twice."""
    writers = defaultdict(list)
    for path in paths:
        stem = token_path(path).removesuffix(".npy")
        for target in (f"{stem}.npy", f"{stem}.hash.npy", f"{stem}.duplicates.npy"):
            writers[target].append(path)
    for target, sources in writers.items():
        if len(sources) > 1:
            raise ArgumentError(f"{' and '.join(sources)} would both write {target}: keep one, or rename one")


def parse_assignments(text: str, flag: str) -> dict[str, str]:
    """`a=x,b=y` → {"a": "x", "b": "y"}.

    Raises:
        ArgumentError: naming `flag`, for anything else.
    """
    assignments: dict[str, str] = {}
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (name and equals and value) or name in assignments:
            raise ArgumentError(f"{flag} {text}: {item!r} is not NAME=VALUE, or its name stands there twice")
        assignments[name] = value
    return assignments


def parse_weights(text: str) -> dict[str, float]:
    """`arxiv=0.5,book=0.5` → weights that add up to 1; domains of weight 0 are left out.

    Raises:
        ArgumentError: for anything else; for another sum, with the normalised line.
    """
    weights = {}
    for domain, value in parse_assignments(text, "--domains").items():
        try:
            weights[domain] = float(value)
        except ValueError:
            weights[domain] = math.nan
        if not 0 <= weights[domain] < math.inf:
            raise ArgumentError(f"--domains {text}: {value!r} is not a weight; a number of at least 0 is expected")
    total = math.fsum(weights.values())
    if total == 0:
        raise ArgumentError(f"--domains {text}: every weight is 0")
    if abs(total - 1) > 1e-9:
        raise ArgumentError(
            f"--domains {text}: the weights add up to {total:g}, not 1. Normalised:\n"
            f"  --domains {format_weights(weights)}"
        )
    return {domain: weight for domain, weight in weights.items() if weight > 0}


def format_weights(weights: Mapping[str, float]) -> str:
    """The value of `--domains` for these weights, normalised, digits enough to add up to 1."""
    total = math.fsum(weights.values())
    return ",".join(f"{domain}={weight / total:.12g}" for domain, weight in weights.items())


def largest_remainder(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Counts per domain that add up to `total`: the floor of each share, then one more for the largest remainders
    (Hamilton's method), ties by the order of the domains."""
    exact = {domain: Fraction(weight) for domain, weight in weights.items()}
    shares = {domain: weight * total / sum(exact.values()) for domain, weight in exact.items()}
    counts = {domain: math.floor(share) for domain, share in shares.items()}
    by_remainder = sorted(shares, key=lambda domain: counts[domain] - shares[domain])
    for domain in by_remainder[: total - sum(counts.values())]:
        counts[domain] += 1
    return counts


def require_data_dir(argument: str | None, file_list: Path) -> Path:
    """The data folder: the argument, else `REDPAJAMA_DIR`, else the root in the list.

    Raises:
        ArgumentError: if none of them names a folder.
    """
    environment = os.environ.get("REDPAJAMA_DIR")
    root = Path(argument) if argument else Path(environment) if environment else read_root(file_list)
    if root is None:
        raise ArgumentError("no data folder: pass --data_dir, set REDPAJAMA_DIR, or run get_all_jsonl.py first")
    if not root.is_dir():
        raise ArgumentError(f"the data folder {root} does not exist (from --data_dir, REDPAJAMA_DIR or the file list)")
    return root
