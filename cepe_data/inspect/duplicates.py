"""Mark exact copies: a bit per document beside each token file, set where the same text stood before in its domain.

A domain's files stand in sorted order of their path, so the first of several copies is the one that is not marked. The
samplers leave marked documents out with --drop_duplicates. Copies are not damage: the exit status is 0.

    python sanity_check.py duplicates
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cepe_data import cli, hashing, shards, workers
from cepe_data.corpus import listing
from cepe_data.errors import ArgumentError
from cepe_data.samples import options, reader
from cepe_data.storage import outputs, provenance
from cepe_data.storage.outputs import Output
from cepe_data.storage.report import Report, add_report_arguments, add_source_arguments
from cepe_data.tokens import duplicates

HELP = "mark exact copies of documents, for the samplers' --drop_duplicates"
DOCUMENTS_AT_ONCE = 1 << 20
MIXED = "(files of several domains)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("--domains", default=None, metavar="DOMAIN,…", help="the domains (default: all of the list)")
    cli.add_overwrite_argument(parser)
    parser.add_argument(
        "--partition_documents",
        type=cli.positive_count,
        default=duplicates.PARTITION_DOCUMENTS,
        help=f"compared at a time, while that makes no more than {duplicates.MAX_PARTITIONS} spool files",
    )
    parser.add_argument(
        "--num_workers",
        type=cli.positive_count,
        default=workers.default_num_workers(),
        help="processes; each takes whole domains",
    )
    add_report_arguments(parser)


@dataclass(frozen=True)
class BitsOfDomains:
    """The bits of a domain that are to be written, or of all domains that stand in files of several: those of `todo`,
    by path. `files` are all that are compared. Copies are looked for in a domain's own documents."""

    tokens: reader.Tokens
    name: str
    files: Sequence[listing.ListedFile]
    todo: Mapping[str, Output]
    partition_documents: int

    @classmethod
    def of_domain(
        cls,
        tokens: reader.Tokens,
        domain: str,
        write: outputs.WriteOptions = outputs.REPLACE_NOTHING,
        partition_documents: int = duplicates.PARTITION_DOCUMENTS,
    ) -> BitsOfDomains:
        """What is left to write for a domain, and those that share files with it.

        Raises:
            ArgumentError: if some of its token files have hashes of texts and others have not, or bits are there that
                were made from other token files.
            DamagedFileError: if a token file, or bits that are there, are damaged.
        """
        files = tokens.marked_with(domain)
        made_with = reader.bits_made_with(tokens, domain)
        todo = {}
        for file in files:
            bits = write.output_at(duplicates.bits_path(tokens.folder / file.token_file), made_with)
            if not duplicates.is_made(bits):
                todo[file.path] = bits
        name = domain if files is tokens.files[domain] else MIXED
        return cls(tokens, name, files, todo, partition_documents)

    def num_documents(self) -> int:
        """Documents of all files."""
        return sum(self._num_documents_of(file) for file in self.files)

    def _num_documents_of(self, file: listing.ListedFile) -> int:
        with self.tokens.open(file) as token_file:
            return token_file.num_documents

    def write(self, progress: Callable[[int], object] = lambda _: None) -> None:
        """Write them. Every document is told to `progress` twice: when its hash was read, and when it was compared."""
        folder = self.tokens.folder
        with duplicates.DuplicateFinder(self.num_documents(), folder, self.partition_documents) as finder:
            for file in self.files:
                with self.tokens.open(file) as token_file:
                    for first, _, _, hashes in token_file.document_blocks():
                        finder.add(hashes ^ self._domain_keys(file, token_file, first, len(hashes)))
                        progress(len(hashes))
            finder.compare(progress)
            for file in self.files:
                num_documents = self._num_documents_of(file)
                copies = take_blocks(finder, num_documents)
                if file.path in self.todo:
                    duplicates.write_bits(self.todo[file.path], num_documents, copies)
                else:
                    for _ in copies:
                        pass

    def _domain_keys(
        self, file: listing.ListedFile, token_file: reader.SampledFile, first: int, number: int
    ) -> np.ndarray | np.uint64:
        """uint64 [number], or one for all: what makes hashes of the same text differ between domains."""
        if self.name != MIXED:
            return np.uint64(0)
        if file.domain is not None:
            return hashing.key(file.domain)
        keys = np.array([hashing.key(name) for name in token_file.domain_names], np.uint64)
        return keys[token_file.domain_numbers(first, first + number)]

    def count(self) -> tuple[int, int, int]:
        """Files, documents and copies, when all bits are there."""
        metas = [
            provenance.read_meta(duplicates.bits_path(self.tokens.folder / file.token_file)) for file in self.files
        ]
        return len(metas), *(sum(meta[name] for meta in metas if meta) for name in ("documents", "copies"))


def take_blocks(finder: duplicates.DuplicateFinder, num_documents: int) -> Iterator:
    """What the finder says of the next documents, a block at a time."""
    for start in range(0, num_documents, DOCUMENTS_AT_ONCE):
        yield finder.take(min(DOCUMENTS_AT_ONCE, num_documents - start))


def run(args: argparse.Namespace) -> int:
    """Mark the copies of every domain that is not marked yet, and print how many there are."""
    report = Report("duplicates", args.json)
    tokens = choose_domains(args.file_list, args.tokenized_dir, args.domains)
    write = cli.typed(outputs.WriteOptions, args)
    groups: dict[str, BitsOfDomains] = {}
    for domain in sorted(tokens.files):
        if MIXED not in groups or tokens.marked_with(domain) is tokens.files[domain]:
            one = BitsOfDomains.of_domain(tokens, domain, write, args.partition_documents)
            groups[one.name] = one
    domains = list(groups.values())
    todo = {one.name: one for one in domains if one.todo}
    for one in domains:
        if not one.todo:
            report.say(f"{one.name}: skipped, marked before among the same {len(one.files)} token files")
    for folder in {(args.tokenized_dir / file.token_file).parent for one in domains for file in one.files}:
        outputs.remove_stale_temporaries(folder)
    num_documents = {domain: one.num_documents() for domain, one in todo.items()}
    assigned = shards.assign_files(list(num_documents.items()), min(args.num_workers, max(1, len(todo))))
    shares = [([todo[domain] for domain in share],) for share in assigned]
    with cli.progress_bar(2 * sum(num_documents.values()), "hash", "read and compared", unit_scale=True) as bar:
        workers.run_shares(write_all, shares, bar.update)
    print_table(report, domains)
    num_files, num_all, num_copies = (sum(column) for column in zip(*(one.count() for one in domains), strict=True))
    report.results |= {"files": num_files, "documents": num_all, "copies": num_copies}
    what = f"{num_files} token files: {num_all:,} documents, {num_copies:,} copies"
    return report.finish(what, args.tokenized_dir)


def choose_domains(file_list: Path, tokenized_dir: Path, domains: str | None) -> reader.Tokens:
    """The token files of the domains that are asked for."""
    listed = listing.read_file_list(file_list).files
    if domains is None:
        return options.find_tokens(listed, tokenized_dir)
    expected = [name.strip() for name in domains.split(",")]
    there = {file.domain for file in listed}
    tokens = options.find_tokens(listed, tokenized_dir, expected)
    if unknown := [name for name in expected if not tokens.files.get(name)]:
        raise ArgumentError(
            f"--domains {domains}: {file_list} lists no files of {', '.join(unknown)}; it has "
            f"{', '.join(sorted(filter(None, there | tokens.num_tokens.keys())))}"
        )
    return tokens


def write_all(domains: Sequence[BitsOfDomains], progress: Callable[[int], object]) -> None:
    """Write the bits of some domains."""
    for one in domains:
        one.write(progress)


def print_table(report: Report, domains: Sequence[BitsOfDomains]) -> None:
    """Files, documents and copies by domain."""
    header = ("domain", "files", "documents", "copies", "share")
    rows = []
    for one in domains:
        num_files, num_documents, num_copies = one.count()
        counts = {"files": num_files, "documents": num_documents, "copies": num_copies}
        report.results.setdefault("domains", {})[one.name] = counts
        rows.append((one.name, *counts.values(), f"{num_copies / max(1, num_documents):.3%}"))
    report.say(cli.table(header, rows))
