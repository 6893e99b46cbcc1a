"""List the jsonl files of a RedPajama download.

reads   DATA_DIR/{arxiv,book,c4,common_crawl,github,stackexchange,wikipedia}/**/*.jsonl, .jsonl.gz, .jsonl.zst
writes  all_jsonl.txt (one path per line, relative to DATA_DIR, sorted)
        all_jsonl.json (the root; bytes and domain of every file)

    python get_all_jsonl.py /data/redpajama
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from pathlib import Path, PurePosixPath

from cepe_data import cli
from cepe_data.corpus import listing
from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.storage import outputs, provenance

MAX_NAME_BYTES = 160  # of the 255 of a file system: the token file has longer names while it is written
PARTIAL_SUFFIXES = {".aria2", ".crdownload", ".download", ".incomplete", ".part", ".partial", ".tmp"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR", help="the folder with one folder per domain")
    parser.add_argument("--output", type=Path, default=Path("all_jsonl.txt"), help="the list to write")
    parser.add_argument(
        "--domain_map",
        default="",
        metavar="FOLDER=DOMAIN,…",
        help="domains of further top-level folders, or other domains for known ones",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    start = time.monotonic()
    folder_domains = dict(listing.FOLDER_DOMAINS)
    if args.domain_map:
        mapped = listing.parse_assignments(args.domain_map, "--domain_map")
        folder_domains.update(mapped)
        check_names(folder_domains)
    if not args.data_dir.is_dir():
        raise ArgumentError(f"the data folder {args.data_dir} does not exist")
    if args.output.suffix != ".txt":
        raise ArgumentError(f"--output {args.output}: a name ending in .txt is expected, the json goes beside it")
    root = args.data_dir.resolve()
    if args.domain_map and (absent := [name for name in mapped if not (root / name).is_dir()]):
        raise ArgumentError(f"--domain_map: {', '.join(absent)} is not a folder in {root}")
    if not str(root).isprintable():
        raise ArgumentError(f"the path of the data folder, {str(root)!r}, cannot stand in a text file: rename it")
    outputs.remove_stale_temporaries(args.output.absolute().parent)
    paths, ignored = find_jsonl(root)
    files = [
        listing.ListedFile(path, domain, (root / path).stat().st_size)
        for path in paths
        if (domain := listing.domain_of(path, folder_domains))
    ]
    report_left_out(paths, ignored, folder_domains)
    if not files:
        raise ArgumentError(
            f"no jsonl file in {root}: looked for *{', *'.join(listing.SUFFIXES)} below the folders "
            f"{', '.join(sorted(folder_domains))}. Name the folder that holds these, or map yours with --domain_map"
        )
    listing.check_targets_differ([file.path for file in files])
    before = (
        set(args.output.read_text(encoding="utf-8", errors="replace").splitlines()) if args.output.exists() else None
    )
    write_list(args.output, root, files)
    report_files(files)
    report_empty(files)
    if before is not None:
        after = {file.path for file in files}
        cli.say(f"against the list that was there: {len(after - before)} added, {len(before - after)} removed")
    cli.say(
        f"{len(files):,} files, {sum(file.num_bytes for file in files):,} bytes, "
        f"{cli.seconds_since(start)} → {args.output}"
    )
    return cli.EXIT_OK


def check_names(folder_domains: dict[str, str]) -> None:
    for folder, domain in folder_domains.items():
        if "/" in folder or domain != PurePosixPath(domain).name or domain.startswith(".") or "," in domain:
            raise ArgumentError(
                f"--domain_map {folder}={domain}: folder and domain are plain names, without `/` and `,`"
            )


def find_jsonl(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Sorted relative paths of all jsonl files below `root`, and of all other files by the reason for which they are
    ignored. Symbolic links are followed.

    Raises:
        PipelineError: if a link leaves `root` or goes in a circle, if two paths are one file, or if a name cannot stand
            in a text file.
    """
    found: list[str] = []
    ignored: dict[str, list[str]] = defaultdict(list)
    seen: dict[tuple[int, int], str] = {}
    problems: list[str] = []
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=raise_error):
        relative = Path(folder).relative_to(root)
        for name in [*subfolders, *names]:
            if not name.startswith(".") and (root / relative / name).is_symlink():
                problems += link_problems(root, relative / name)
        if any(Path(folder).resolve() == parent for parent in Path(folder).parents):
            problems.append(f"{relative} is a link to a folder that it stands in: remove it")
            subfolders.clear()
            continue
        for name in names:
            path = (relative / name).as_posix()
            if reason := reason_to_ignore(root, relative / name):
                ignored[reason].append(path)
                continue
            if "\n" in path or "\r" in path or path != path.strip() or not path.isprintable():
                problems.append(f"{path!r} cannot stand in a list of one path per line: rename it")
            if not (root / path).exists():
                continue  # a link to nothing, which is among the problems
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
    path = root / relative
    return "not a regular file" if path.exists() and not path.is_file() else ""


def raise_error(error: OSError) -> None:
    raise error


def link_problems(root: Path, relative: Path) -> list[str]:
    """What is wrong with a link: it leads nowhere, whatever its name, or leads to data outside of `root`."""
    path = root / relative
    real = Path(os.path.realpath(path))  # Path.resolve raises for a link to itself
    if not path.exists():
        return [f"{relative} is a link to nothing ({real}): mount what it leads to, or remove it"]
    is_read = path.is_dir() or path.name.endswith(listing.SUFFIXES)
    if is_read and not real.is_relative_to(root):
        return [f"{relative} leaves the data folder: it is a link to {real}. Move the data in, or bind-mount it there"]
    return []


def report_left_out(paths: list[str], ignored: dict[str, list[str]], folder_domains: dict[str, str]) -> None:
    """Warn of every file that is not listed: jsonl files of no domain by folder, all others by the reason."""
    unknown: dict[str, int] = defaultdict(int)
    for path in paths:
        if listing.domain_of(path, folder_domains) is None:
            parts = PurePosixPath(path).parts
            unknown[parts[0] if len(parts) > 1 else ""] += 1
    for folder, num_files in sorted(unknown.items()):
        if folder:
            cli.warn(
                f"{folder}/ left out, {num_files} jsonl files: no known domain; --domain_map {folder}=DOMAIN adds it"
            )
        else:
            cli.warn(f"{num_files} jsonl files outside of any folder left out: a domain is a folder")
    if ignored:
        examples = [f"{len(names):,} {reason} ({names[0]})" for reason, names in ignored.items()]
        cli.warn(
            f"{sum(map(len, ignored.values())):,} other files left out: {', '.join(examples)}. Only the suffixes "
            f"{', '.join(listing.SUFFIXES)} are read"
        )


def report_empty(files: list[listing.ListedFile]) -> None:
    """Warn of files of 0 bytes."""
    if empty := [file.path for file in files if not file.num_bytes]:
        cli.warn(f"{len(empty):,} listed files have 0 bytes, such as {empty[0]}: did their download fail?")


def write_list(output: Path, root: Path, files: list[listing.ListedFile]) -> None:
    listed = [{"path": file.path, "domain": file.domain, "bytes": file.num_bytes} for file in files]
    # The json first: a list that names a file is then never without its size and domain.
    outputs.write_json(listing.list_json_path(output), provenance.signed({"root": str(root), "files": listed}))
    outputs.write_text(output, "".join(f"{file.path}\n" for file in files))


def report_files(files: list[listing.ListedFile]) -> None:
    sizes: dict[str, list[int]] = defaultdict(list)
    for file in files:
        sizes[file.domain].append(file.num_bytes)
    rows = [(domain, len(sizes[domain]), sum(sizes[domain])) for domain in sorted(sizes)]
    cli.say(cli.table(("domain", "files", "bytes"), rows))
    if missing := [domain for domain in listing.DOMAINS if domain not in sizes]:
        cli.warn(f"no files of {', '.join(missing)}: the samplers will want --domains without them")


if __name__ == "__main__":
    cli.run(main)
