"""Mark exact copies: a bit per document beside each token file, set where the same text stood before in its domain.

A domain's files stand in sorted order of their path, so the first of several copies is the one that is not marked. The
samplers leave marked documents out with --drop_duplicates. Copies are not damage: the exit status is 0.

    python sanity_check.py duplicates
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cepe_data import cli, shards, workers
from cepe_data.corpus import listing
from cepe_data.errors import ArgumentError
from cepe_data.samples import options, reader
from cepe_data.samples.splits import Splits
from cepe_data.storage import outputs, provenance
from cepe_data.storage.outputs import Output
from cepe_data.storage.report import Report, add_report_arguments, add_source_arguments
from cepe_data.tokens import duplicates

HELP = "mark exact copies of documents, for the samplers' --drop_duplicates"
DOCUMENTS_AT_ONCE = 1 << 20


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
class DomainBits:
    """The bits of a domain that are to be written: those of its files `todo`, by path."""

    tokens: reader.Tokens
    domain: str
    todo: Mapping[str, Output]
    partition_documents: int

    @property
    def files(self) -> list[listing.ListedFile]:
        return self.tokens.files[self.domain]

    @classmethod
    def of_domain(
        cls,
        tokens: reader.Tokens,
        domain: str,
        write: outputs.WriteOptions = outputs.REPLACE_NOTHING,
        partition_documents: int = duplicates.PARTITION_DOCUMENTS,
    ) -> DomainBits:
        """What is left to write for a domain.

        Raises:
            ArgumentError: if some of its token files have hashes of texts and others have not, or bits are there that
                were made from other token files.
            DamagedFileError: if a token file, or bits that are there, are damaged.
        """
        alone = replace(tokens, files={domain: tokens.files[domain]})
        inventory = reader.inventory(alone, Splits(0, 0.0, 0.0), {})[domain]  # what identifies the files, no split
        made_with = duplicates.made_with(inventory.fingerprint, inventory.document_hash)
        todo = {}
        for file in tokens.files[domain]:
            bits = write.output_at(duplicates.bits_path(tokens.folder / file.token_file), made_with)
            if not duplicates.is_made(bits):
                todo[file.path] = bits
        return cls(alone, domain, todo, partition_documents)

    def num_documents(self) -> int:
        """Documents of the domain."""
        return sum(self._num_documents_of(file) for file in self.files)

    def _num_documents_of(self, file: listing.ListedFile) -> int:
        with self.tokens.open(file) as token_file:
            return token_file.num_documents

    def write(self, progress: Callable[[int], object] = lambda _: None) -> None:
        """Write them. Every document is told to `progress` twice: when its hash was read, and when it was compared."""
        folder = self.tokens.folder
        with duplicates.CopyFinder(self.num_documents(), folder, self.partition_documents) as finder:
            for file in self.files:
                with self.tokens.open(file) as token_file:
                    for _, _, _, hashes in token_file.document_blocks():
                        finder.add(hashes)
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

    def count(self) -> tuple[int, int, int]:
        """Files, documents and copies of the domain, when all bits are there."""
        metas = [
            provenance.read_meta(duplicates.bits_path(self.tokens.folder / file.token_file)) for file in self.files
        ]
        return len(metas), *(sum(meta[name] for meta in metas if meta) for name in ("documents", "copies"))


def take_blocks(finder: duplicates.CopyFinder, num_documents: int) -> Iterator:
    """What the finder says of the next documents, a block at a time."""
    for start in range(0, num_documents, DOCUMENTS_AT_ONCE):
        yield finder.take(min(DOCUMENTS_AT_ONCE, num_documents - start))


def run(args: argparse.Namespace) -> int:
    """Mark the copies of every domain that is not marked yet, and print how many there are."""
    report = Report("duplicates", args.json)
    files = choose_domains(args.file_list, args.domains)
    tokens = options.find_tokens(files, args.tokenized_dir)
    domains = [
        DomainBits.of_domain(tokens, domain, cli.typed(outputs.WriteOptions, args), args.partition_documents)
        for domain in sorted(files)
    ]
    todo = {one.domain: one for one in domains if one.todo}
    for one in domains:
        if not one.todo:
            report.say(f"{one.domain}: skipped, marked before among the same {len(one.files)} token files")
    for folder in {(args.tokenized_dir / file.token_file).parent for one in domains for file in one.files}:
        outputs.remove_stale_temporaries(folder)
    num_documents = {domain: one.num_documents() for domain, one in todo.items()}
    assigned = shards.assign_files(list(num_documents.items()), min(args.num_workers, max(1, len(todo))))
    shares = [([todo[domain] for domain in share],) for share in assigned]
    with cli.progress_bar(2 * sum(num_documents.values()), "hash", "read and compared", unit_scale=True) as bar:
        workers.run_shares(write_all, shares, bar.update)
    print_table(report, domains)
    num_files, num_all, num_copies = (sum(column) for column in zip(*(one.count() for one in domains), strict=True))
    report.facts |= {"files": num_files, "documents": num_all, "copies": num_copies}
    what = f"{num_files} token files: {num_all:,} documents, {num_copies:,} copies"
    return report.finish(what, args.tokenized_dir)


def choose_domains(file_list: Path, domains: str | None) -> dict[str, list[listing.ListedFile]]:
    """The listed files of the domains that are asked for."""
    files: dict[str, list[listing.ListedFile]] = {}
    for file in listing.read_file_list(file_list):
        files.setdefault(file.domain, []).append(file)
    if domains is None:
        return files
    expected = [name.strip() for name in domains.split(",")]
    if unknown := [name for name in expected if name not in files]:
        raise ArgumentError(
            f"--domains {domains}: {file_list} lists no files of {', '.join(unknown)}; it has "
            f"{', '.join(sorted(files))}"
        )
    return {name: files[name] for name in expected}


def write_all(domains: Sequence[DomainBits], progress: Callable[[int], object]) -> None:
    """Write the bits of some domains."""
    for one in domains:
        one.write(progress)


def print_table(report: Report, domains: Sequence[DomainBits]) -> None:
    """Files, documents and copies by domain."""
    header = ("domain", "files", "documents", "copies", "share")
    rows = []
    for one in domains:
        num_files, num_documents, num_copies = one.count()
        counts = {"files": num_files, "documents": num_documents, "copies": num_copies}
        report.facts.setdefault("domains", {})[one.domain] = counts
        rows.append((one.domain, *counts.values(), f"{num_copies / max(1, num_documents):.3%}"))
    report.say(cli.table(header, rows))
