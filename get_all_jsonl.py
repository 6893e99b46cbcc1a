"""List the files of a corpus: RedPajama, SlimPajama, or your own.

reads   DATA_DIR/**/*.jsonl, .json (JSON lines too), either also as .gz or .zst, and .parquet. The domain of a file is
        that of a folder on its path, such as arxiv/ or common_crawl/; with --domain_key, files in other folders have
        records that say their domain
writes  all_jsonl.txt (one path per line, relative to DATA_DIR, sorted)
        all_jsonl.json (the root; bytes and domain of every file)

    python get_all_jsonl.py /data/redpajama
    python get_all_jsonl.py /data/slimpajama --domain_key meta.redpajama_set_name
"""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from cepe_data import cli
from cepe_data.corpus import domains, listing, readers
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.storage import outputs, provenance

MAX_NAME_BYTES = 160  # of the 255 of a file system: the token file has longer names while it is written
NUM_SAMPLED_FILES = 3
PARTIAL_SUFFIXES = {".aria2", ".crdownload", ".download", ".incomplete", ".part", ".partial", ".tmp"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR", help="the folder with one folder per domain")
    parser.add_argument("--output", type=Path, default=Path("all_jsonl.txt"), help="the list to write")
    parser.add_argument(
        "--domain_map",
        type=cli.utf8,
        default="",
        metavar="NAME=DOMAIN,…",
        help="domains of further folders, and of further values of --domain_key; or other domains for known ones",
    )
    parser.add_argument(
        "--domain_key",
        type=cli.utf8,
        metavar="KEY.KEY",
        help="where records say their domain, such as meta.redpajama_set_name, in files of no folder with a domain",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    start = time.monotonic()
    domain_map = domains.parse_domain_map(args.domain_map)
    names = {**domains.KNOWN_NAMES, **domain_map}
    record_domains = domains.RecordDomains(args.domain_key, domain_map) if args.domain_key else None
    if record_domains and len(record_domains.names) > domains.MAX_RECORD_DOMAINS:
        raise ArgumentError(f"--domain_map has more than the {domains.MAX_RECORD_DOMAINS} domains that records can say")
    if not args.data_dir.is_dir():
        raise ArgumentError(f"the data folder {args.data_dir} does not exist")
    if args.output.suffix != ".txt":
        raise ArgumentError(f"--output {args.output}: a name ending in .txt is expected, the json goes beside it")
    root = args.data_dir.resolve()
    if not str(root).isprintable():
        raise ArgumentError(f"the path of the data folder, {str(root)!r}, cannot stand in a text file: rename it")
    outputs.remove_stale_temporaries(args.output.absolute().parent)
    paths, ignored = find_files(root)
    beside = args.output.with_suffix(".json")
    if any(path.endswith(beside.name) and (root / path).resolve() == beside.resolve() for path in paths):
        raise ArgumentError(f"--output {args.output}: {beside} is a file of the corpus: take another name")
    check_map_is_used(root, paths, domain_map, record_domains)
    files = []
    for path in paths:
        domain = domains.domain_of(path, names)
        if domain or record_domains:
            files.append(listing.ListedFile(path, domain, (root / path).stat().st_size))
    report_left_out(set(paths) - {file.path for file in files}, ignored)
    if not files:
        raise ArgumentError(
            f"no file of a known domain in {root}: looked for *{', *'.join(listing.SUFFIXES)} below folders called "
            f"{', '.join(sorted(names))}. Name the folder that holds these, map yours with --domain_map, or name the "
            f"key of records that say their domain with --domain_key"
        )
    listing.check_targets_differ([file.path for file in files])
    before = None
    if args.output.exists():
        before = set(args.output.read_text(encoding="utf-8", errors="replace").splitlines())
    write_list(args.output, root, files, record_domains)
    report_files(files, args.domain_key)
    if record_domains:
        warn_of_unknown_domains(root, files, record_domains)
    if before is not None:
        after = {file.path for file in files}
        cli.say(f"against the list that was there: {len(after - before)} added, {len(before - after)} removed")
    cli.say(
        f"{len(files):,} files, {sum(file.num_bytes or 0 for file in files):,} bytes, "
        f"{cli.seconds_since(start)} → {args.output}"
    )
    return cli.EXIT_OK


def check_map_is_used(
    root: Path, paths: list[str], domain_map: dict[str, str], record_domains: domains.RecordDomains | None
) -> None:
    """Raise ArgumentError if a name of `--domain_map` is not a folder of any file, and no record can have it."""
    folders = {folder for path in paths for folder in PurePosixPath(path).parts[:-1]}
    if not record_domains and (absent := sorted(set(domain_map) - folders)):
        raise ArgumentError(f"--domain_map: {', '.join(absent)} is not a folder with files in {root}")


def find_files(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Sorted relative paths of all corpus files below `root`, and of all other files by the reason for which they are
    ignored. Symbolic links are followed, but not to a folder that they stand in.

    Raises:
        PipelineError: if a link leads to nothing, two paths are one file, or a name cannot stand in a text file.
    """
    found: list[str] = []
    ignored: dict[str, list[str]] = defaultdict(list)
    seen: dict[tuple[int, int], str] = {}
    problems: list[str] = []
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=raise_error):
        relative = Path(folder).relative_to(root)
        for name in [name for name in subfolders if is_loop(root, relative / name)]:
            ignored["links to a folder that they stand in"].append((relative / name).as_posix())
            subfolders.remove(name)
        for name in names:
            path = (relative / name).as_posix()
            reason = reason_to_ignore(root, relative / name)
            if reason != "hidden" and not (root / path).exists():
                real = os.path.realpath(root / path)  # Path.resolve raises for a link to itself
                problems.append(f"{path} is a link to nothing ({real}): mount that, or remove the link")
                continue
            if reason:
                ignored[reason].append(path)
                continue
            if path != path.strip() or not path.isprintable():
                problems.append(f"{path!r} cannot stand in a list of one path per line: rename it")
            status = (root / path).stat()
            same = seen.setdefault((status.st_dev, status.st_ino), path)
            if same != path:
                problems.append(f"{same} and {path} are one file: remove the link")
            if len(os.fsencode(name)) > MAX_NAME_BYTES:
                problems.append(f"{path} has a name of more than {MAX_NAME_BYTES} bytes: rename it")
            found.append(path)
    if problems:
        raise PipelineError("\n  ".join(["these cannot be listed:", *sorted(problems)]))
    return sorted(found), {reason: sorted(ignored[reason]) for reason in sorted(ignored)}


def reason_to_ignore(root: Path, relative: Path) -> str:
    """Why a file is not listed, empty if it is."""
    if any(part.startswith(".") for part in relative.parts):
        return "hidden"
    if not relative.name.endswith(listing.SUFFIXES):
        endings = relative.suffixes[-2:] if relative.suffix in PARTIAL_SUFFIXES else relative.suffixes[-1:]
        return "".join(endings) or "without a suffix"
    if not (root / relative).is_file():
        return "not a regular file"
    return "written by these scripts" if provenance.is_own_file(root / relative) else ""


def raise_error(error: OSError) -> None:
    raise error


def is_loop(root: Path, relative: Path) -> bool:
    """Whether a folder is a link to one that it stands in."""
    real = os.path.realpath(root / relative)
    return any(os.path.realpath(root / parent) == real for parent in relative.parents)


def report_left_out(without_domain: Collection[str], ignored: dict[str, list[str]]) -> None:
    """Warn of every file that is not listed: corpus files of no domain by folder, all others by the reason."""
    counts = Counter(parts[0] if len(parts := PurePosixPath(path).parts) > 1 else "" for path in without_domain)
    if num_outside := counts.pop("", 0):
        cli.warn(f"{num_outside} files outside of any folder left out: a domain is a folder")
    if counts:
        what = ", ".join(f"{folder}/ with {num_files} files" for folder, num_files in sorted(counts.items()))
        mapped = shlex.quote(",".join(f"{folder}={folder}" for folder in sorted(counts)))
        cli.warn(
            f"left out, because no folder on their path has a known domain: {what}. To add them as domains of their "
            f"own:\n  --domain_map {mapped}\nWhere records say their domain, as SlimPajama's do:\n"
            f"  --domain_key meta.redpajama_set_name"
        )
    if ignored:
        examples = [f"{len(names):,} {reason} ({names[0]})" for reason, names in ignored.items()]
        cli.warn(
            f"{sum(map(len, ignored.values())):,} other files left out: {', '.join(examples)}. Only the suffixes "
            f"{', '.join(listing.SUFFIXES)} are read"
        )


def warn_of_unknown_domains(root: Path, files: list[listing.ListedFile], record_domains: domains.RecordDomains) -> None:
    """Warn if no record at the beginning of the first files says a known domain: the key may be a wrong one."""
    keys = domains.RecordKeys(record_domains.key, record_domains)  # where texts are is not known here
    reasons: set[str] = set()
    for file in [file for file in files if file.domain is None][:NUM_SAMPLED_FILES]:
        try:
            first, block, _ = next(readers.read_blocks(root / file.path, keys, 1), (1, b"", 0))
            parsed = readers.parse_block(first, block, keys)
        except (DamagedFileError, OSError) as error:
            reasons.add(str(error))  # a file without the column, say
            continue
        if parsed.domains:
            return
        reasons |= parsed.skipped.counts.keys()
    if reasons:
        cli.warn(
            f"no record at the beginning of the files says a known domain: {'; '.join(sorted(reasons)[:3])}. Is "
            f"--domain_key right, or does --domain_map lack values?"
        )


def write_list(
    output: Path, root: Path, files: list[listing.ListedFile], record_domains: domains.RecordDomains | None
) -> None:
    listed = [{"path": file.path, "domain": file.domain, "bytes": file.num_bytes} for file in files]
    keys = record_domains.made_with if record_domains else {}
    # The json first: a list that names a file is then never without its size and domain.
    outputs.write_json(output.with_suffix(".json"), provenance.signed({"root": str(root), "files": listed, **keys}))
    outputs.write_bytes(output, "".join(f"{file.path}\n" for file in files).encode())


def report_files(files: list[listing.ListedFile], domain_key: str | None) -> None:
    """Print the table of domains; warn of domains without files, and of files of 0 bytes."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for file in files:
        sizes[file.domain or f"({domain_key})"].append(file.num_bytes or 0)
    rows = [(domain, len(sizes[domain]), sum(sizes[domain])) for domain in sorted(sizes)]
    cli.say(cli.table(("domain", "files", "bytes"), rows))
    missing = [domain for domain in domains.DOMAINS if domain not in sizes]
    if missing and not any(file.domain is None for file in files):
        cli.warn(f"no files of {', '.join(missing)}: the samplers need --domains without them")
    if empty := [file.path for file in files if not file.num_bytes]:
        cli.warn(f"{len(empty):,} listed files have 0 bytes, such as {empty[0]}: did their download fail?")


if __name__ == "__main__":
    cli.run(main)
