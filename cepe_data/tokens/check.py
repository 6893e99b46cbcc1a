"""Check the token files: that they are there, whole, made from the listed jsonl files with one tokenizer, and right.

Quick by default: headers, sizes, lengths, and a seeded sample of documents. `--deep` reads every number and compares
hashes. Where a jsonl file still exists, some of its documents are tokenized once more and compared. `--plot` draws how
long the documents are, which windows they hold, and tokens by domain beside RedPajama's own.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cepe_data import cli, shards, workers
from cepe_data.corpus import listing
from cepe_data.errors import DamagedFileError
from cepe_data.storage import provenance
from cepe_data.storage.report import (
    Report,
    add_plot_argument,
    add_report_arguments,
    add_source_arguments,
    check_plot_path,
)
from cepe_data.tokens import tokenizers
from cepe_data.tokens.check_file import (
    CHUNK_TOKENS,
    LONG_DOCUMENT_TOKENS,
    WINDOW_STEP,
    DomainCounts,
    FileChecker,
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
    parser.add_argument("--deep", action="store_true", help="read every id, and compare the hashes of all files")
    parser.add_argument("--documents", type=cli.count, default=64, help="without --deep: looked at in every file")
    parser.add_argument(
        "--texts", type=cli.count, default=4, help="of every jsonl file that is there, tokenized again and compared"
    )
    parser.add_argument("--seed", type=cli.count, default=0, help="another seed looks at other documents and texts")
    parser.add_argument(
        "--num_workers", type=cli.positive_count, default=workers.default_num_workers(), help="processes that read"
    )
    add_plot_argument(parser)
    add_report_arguments(parser)


def check_tokenizer(report: Report, folder: Path) -> tokenizers.TokenizerIdentity | None:
    """The identity of the saved tokenizer, if it is there and whole."""
    try:
        meta = provenance.read_meta(folder)
        for path in provenance.damaged_files(folder, meta) if meta else ():
            report.found(path, "is not what was written: remove its folder, and name the tokenizer again")
            return None
        identity = tokenizers.saved_identity(folder)
        if identity is not None:
            tokenizers.check_saved(folder, identity)
        return identity
    except DamagedFileError as error:
        report.found(folder, str(error).removeprefix(f"{folder} "))
    return None


def run(args: argparse.Namespace, report: Report, draw: Callable[..., None]) -> int:
    """Check every token file of the list; print what is wrong, what to run again, and a table per domain. `draw` makes
    the file of `--plot`."""
    check_plot_path(args.plot)
    files = listing.read_file_list(args.file_list)
    saved = check_tokenizer(report, args.tokenized_dir / "tokenizer")
    root = listing.read_root(args.file_list)
    checker = FileChecker(args.tokenized_dir, root, saved, args.deep, args.documents, args.texts, args.seed)
    counts: dict[str, DomainCounts] = defaultdict(DomainCounts)
    present = [file for file in files if (args.tokenized_dir / file.token_file).exists()]
    damaged: list[str] = []
    missing = sorted({file.path for file in files} - {file.path for file in present})
    for jsonl_path in missing:
        report.found(args.tokenized_dir / listing.token_path(jsonl_path), "is missing")
    num_texts, made_by = 0, dict[str, Path]()
    with (
        cli.progress_bar(sum(file.num_bytes for file in present), "B", "checking", unit_scale=True) as bar,
        workers.Workers(min(args.num_workers, len(present) or 1), checker) as pool,
    ):
        for file, result in pool.map_in_order(present, lambda _: 1, 2 * pool.num_workers):
            counts[file.domain].add(result.counts)
            num_texts += result.num_texts
            for path, what in (*result.findings, *result.of_bits):
                report.found(path, what)
            made_by.setdefault(result.tokenizer, args.tokenized_dir / file.token_file)
            for warning in result.warnings:
                cli.warn(warning)
            damaged += [file.path] if result.findings else []
            bar.update(file.num_bytes)
    made_by.pop("", None)
    if saved is None and made_by:
        cli.warn(f"{args.tokenized_dir / 'tokenizer'} is not there: texts are not compared")
        first, *others = made_by.values()
        for path in others:
            report.found(path, f"was made with another tokenizer than {first}")
    print_domain_table(report, counts)
    if missing or damaged:
        print_remedy(report, args, files, {*missing, *damaged}, bool(damaged))
    if args.plot:
        draw(report, args.plot, counts, len(files), LONG_DOCUMENT_TOKENS, WINDOW_STEP)
    report.facts |= {"files": len(files), "missing": missing, "damaged": damaged, "texts_compared": num_texts}
    return report.finish(
        f"{len(files)} token files: {len(missing)} missing, {len(damaged)} damaged, {num_texts} texts tokenized again",
        args.tokenized_dir,
    )


def print_domain_table(report: Report, counts: dict[str, DomainCounts]) -> None:
    """Files, documents, tokens and long documents by domain."""
    header = ["domain", "files", "documents", "tokens", f"chunks of {CHUNK_TOKENS}"]
    header += [f"documents ≥ {threshold}" for threshold in LONG_DOCUMENT_TOKENS]
    rows = [
        [domain, one.files, one.documents, one.tokens, one.chunks, *one.long_documents]
        for domain, one in sorted(counts.items())
    ]
    report.facts["domains"] = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    for domain, one in counts.items():
        windows = {f"windows of {total}": num for total, num in zip(LONG_DOCUMENT_TOKENS, one.windows, strict=True)}
        by_length = {lowest_length(place): int(one.lengths[place]) for place in np.flatnonzero(one.lengths).tolist()}
        report.facts["domains"][domain] |= {**windows, "documents by length": by_length}
    if not rows:
        return
    rows.append(["total", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))])
    report.say(cli.table(header, rows))


def print_remedy(
    report: Report, args: argparse.Namespace, files: Sequence[listing.ListedFile], broken: set[str], overwrite: bool
) -> None:
    """The command that makes what is missing or damaged."""
    flags = f" --file_list {args.file_list}" if args.file_list != Path("all_jsonl.txt") else ""
    flags += f" --output_dir {args.tokenized_dir}" if args.tokenized_dir != Path("tokenized") else ""
    if (text_key := used_text_key(args, files)) != "text":
        flags += f" --text_key {text_key}"
    flags += " --overwrite" if overwrite else ""
    home = Path(sys.argv[0]).parent
    if args.num_shards is None:
        report.say(f"make them: python {home / 'tokenize_jsonl.py'}{flags}   (pass --num_shards for the array ids)")
        return
    assigned = shards.assign_files([(file.path, file.num_bytes) for file in files], args.num_shards)
    ids = shards.array_ids(shard for shard, paths in enumerate(assigned) if broken.intersection(paths))
    data_dir = listing.read_root(args.file_list) or "DATA_DIR"
    where = "" if home == Path() else f"CEPE_DATA_HOME={home.absolute()} "  # slurm runs a copy of the batch file
    script = home / "run_tokenize.sh"
    line = f"{where}sbatch --array={ids} {script} {data_dir} --num_shards {args.num_shards}{flags}"
    report.facts["run"] = line
    report.say(f"make them: {line}")


def used_text_key(args: argparse.Namespace, files: Sequence[listing.ListedFile]) -> str:
    """The --text_key that made the first token file that tells."""
    for file in files:
        path = args.tokenized_dir / file.token_file
        with contextlib.suppress(DamagedFileError):
            if path.exists() and (meta := provenance.read_meta(path)) and "text_key" in meta["made_with"]:
                return str(meta["made_with"]["text_key"])
    return "text"
