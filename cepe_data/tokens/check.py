"""Check the token files: that they are there, whole, made from the listed corpus files with one tokenizer, and right.

Quick by default: headers, sizes, lengths, and a seeded sample of documents. `--deep` reads every number and compares
hashes. Where a corpus file still exists, some of its documents are tokenized again and compared. `--plot` draws how
long the documents are, which windows they hold, and tokens by domain beside RedPajama's own.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cepe_data import cli, shards
from cepe_data.corpus import listing
from cepe_data.errors import DamagedFileError
from cepe_data.storage import provenance, verify
from cepe_data.storage.report import Report, add_plot_argument, add_source_arguments, check_plot_path
from cepe_data.tokens import duplicates, tokenizers
from cepe_data.tokens.check_file import (
    CHUNK_TOKENS,
    LONG_DOCUMENT_TOKENS,
    DomainCounts,
    FileChecker,
    TokenCheck,
    lowest_length,
)

HELP = "check the token files (what happens without a command)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument(
        "--num_shards",
        type=cli.positive_count,
        default=None,
        help="as given to tokenize_jsonl.py: then the array ids to run again are printed",
    )
    parser.add_argument(
        "--texts",
        type=cli.count,
        default=TokenCheck.texts,
        help="of every jsonl file that is there, tokenized again and compared",
    )
    add_plot_argument(parser)
    verify.add_arguments(parser, "documents", "file")


def check_tokenizer(report: Report, options: TokenCheck) -> tokenizers.TokenizerIdentity | None:
    """The identity of the saved tokenizer, if it is there and whole."""
    folder = options.tokenized_dir / "tokenizer"
    before = len(report.findings)
    if provenance.meta_path(folder, True).exists():
        remedy = f"remove {folder}, and name the tokenizer again"
        verify.check_files(report, replace(options, deep=True), [folder], remedy)
    if len(report.findings) == before:
        try:
            return tokenizers.saved_identity(folder)
        except DamagedFileError as error:
            report.found(folder, str(error).removeprefix(f"{folder} "))
    return None


def check_duplicates(report: Report, options: TokenCheck, files: Sequence[listing.ListedFile]) -> None:
    """The bits that mark duplicates, where there are any: these are not made again with a token file."""
    paths = [duplicates.bits_path(options.tokenized_dir / file.token_file) for file in files]
    paths = [path for path in paths if path.exists() or provenance.meta_path(path).exists()]
    verify.check_files(report, options, paths, "sanity_check.py duplicates --overwrite marks duplicates again")


def check(report: Report, options: TokenCheck, draw: Callable[..., None] | None = None) -> int:
    """Check every token file of the list; print what is wrong, what to run again, and a table per domain. `draw` makes
    the file of `--plot`."""
    check_plot_path(options.plot)
    folder = options.tokenized_dir
    listed = listing.read_file_list(options.file_list)
    files = listed.files
    saved = check_tokenizer(report, options)
    checker = FileChecker(options, listed.root, listed.record_domains, saved)
    counts: dict[str, DomainCounts] = defaultdict(DomainCounts)
    present = [file for file in files if (folder / file.token_file).exists()]
    damaged: list[str] = []
    missing = sorted({file.path for file in files} - {file.path for file in present})
    for jsonl_path in missing:
        report.found(folder / listing.token_path(jsonl_path), "is missing")
    num_texts, made_by = 0, dict[str, Path]()
    sizes = [file.num_bytes or 0 for file in present]
    for file, result in verify.on_all_cores(checker, present, options.num_workers, sizes, "B", "checking"):
        for domain, of_domain in result.counts.items():
            counts[domain].add(of_domain)
        num_texts += result.num_texts
        report.found_all(result.findings)
        made_by.setdefault(result.tokenizer, folder / file.token_file)
        for warning in result.warnings:
            cli.warn(warning)
        damaged += [file.path] if result.findings else []
    check_duplicates(report, options, present)
    made_by.pop("", None)
    if saved is None and made_by:
        cli.warn(f"{folder / 'tokenizer'} is not there: texts are not compared")
        first, *others = made_by.values()
        for path in others:
            report.found(path, f"was made with another tokenizer than {first}")
    print_domain_table(report, counts)
    if missing or damaged:
        print_remedy(report, options, listed, {*missing, *damaged}, bool(damaged))
    if options.plot and draw:
        draw(report, options.plot, counts, len(files))
    report.results |= {"files": len(files), "missing": missing, "damaged": damaged, "texts_compared": num_texts}
    return report.finish(
        f"{len(files)} token files: {len(missing)} missing, {len(damaged)} damaged, {num_texts} texts tokenized again",
        folder,
    )


def print_domain_table(report: Report, counts: dict[str, DomainCounts]) -> None:
    """Files, documents, tokens and long documents by domain."""
    header = ["domain", "files", "documents", "tokens", f"chunks of {CHUNK_TOKENS}"]
    header += [f"documents ≥ {threshold}" for threshold in LONG_DOCUMENT_TOKENS]
    rows = [
        [domain, one.files, one.documents, one.tokens, one.chunks, *one.long_documents.tolist()]
        for domain, one in sorted(counts.items())
    ]
    report.results["domains"] = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    for domain, one in counts.items():
        windows = {
            f"windows of {total}": num for total, num in zip(LONG_DOCUMENT_TOKENS, one.windows.tolist(), strict=True)
        }
        by_length = {lowest_length(place): int(one.lengths[place]) for place in np.flatnonzero(one.lengths).tolist()}
        report.results["domains"][domain] |= {**windows, "documents by length": by_length}
    if not rows:
        return
    rows.append(["total", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))])
    report.say(cli.table(header, rows))


def print_remedy(
    report: Report, options: TokenCheck, listed: listing.FileList, broken: set[str], overwrite: bool
) -> None:
    """The command that makes what is missing or damaged."""
    flags = ["--file_list", str(options.file_list)] if options.file_list != Path("all_jsonl.txt") else []
    flags += ["--output_dir", str(options.tokenized_dir)] if options.tokenized_dir != Path("tokenized") else []
    if (text_key := used_text_key(options, listed.files)) != "text":
        flags += ["--text_key", text_key]
    flags += ["--overwrite"] if overwrite else []
    home = Path(sys.argv[0]).parent
    if options.num_shards is None:
        line = shlex.join(["python", str(home / "tokenize_jsonl.py"), *flags])
        report.say(f"make them: {line}   (pass --num_shards for the array ids)")
        return
    by_shard = [{file.path for file in files} for files in listed.by_shard(options.num_shards)]
    ids = shards.array_ids(shard for shard, paths in enumerate(by_shard) if broken & paths)
    words = ["sbatch", f"--array={ids}", str(home / "run_tokenize.sh"), str(listed.root or "DATA_DIR")]
    line = shlex.join([*words, "--num_shards", str(options.num_shards), *flags])
    if home != Path():  # slurm runs a copy of the batch file
        line = f"CEPE_DATA_HOME={shlex.quote(str(home.absolute()))} {line}"
    report.results["run"] = line
    report.say(f"make them: {line}")


def used_text_key(options: TokenCheck, files: Sequence[listing.ListedFile]) -> str:
    """The --text_key that made the first token file that tells."""
    for file in files:
        path = options.tokenized_dir / file.token_file
        with contextlib.suppress(DamagedFileError):
            if text_key := provenance.read_meta(path).made_with.get("text_key"):
                return str(text_key)
    return "text"
