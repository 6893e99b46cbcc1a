"""Mark exact duplicates: a bit per document beside each token file, set where its domain has the same text before.

The files of a domain are sorted by path. The first of several equal documents is not marked. The samplers leave marked
documents out with --drop_duplicates. Duplicates are not damage: the exit status is 0.

    python sanity_check.py duplicates
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
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

HELP = "mark exact duplicates of documents, for the samplers' --drop_duplicates"
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
    """The bits of a domain, or of all domains that share files. `todo` are the outputs to write, by path of the file.
    `files` are all files that are compared. Duplicates are looked for among a domain's own documents."""

    tokens: reader.Tokens
    name: str
    files: Sequence[listing.ListedFile]
    todo: Mapping[str, Output]
    partition_documents: int

    @classmethod
    def of_domain(
        cls, tokens: reader.Tokens, domain: str, write: outputs.WriteOptions, partition_documents: int
    ) -> BitsOfDomains:
        """What is left to write for a domain, and those that share files with it.

        Raises:
            ArgumentError: if some of its token files have hashes of texts and others have not, or bits are there that
                were made from other token files.
            DamagedFileError: if a token file, or bits that are there, are damaged.
        """
        files = tokens.marked_with(domain)
        made_with = reader.bits_made_with(tokens, domain)
        bits = {
            file.path: write.output_at(duplicates.bits_path(tokens.folder / file.token_file), made_with)
            for file in files
        }
        todo = {path: of_file for path, of_file in bits.items() if not duplicates.is_made(of_file)}
        name = domain if files is tokens.files[domain] else MIXED
        return cls(tokens, name, files, todo, partition_documents)

    def num_documents(self) -> int:
        """Documents of all files."""
        return sum(map(self._num_documents_of, self.files))

    def _num_documents_of(self, file: listing.ListedFile) -> int:
        with self.tokens.open(file) as token_file:
            return token_file.num_documents

    def write(self, progress: Callable[[int], object]) -> None:
        """Write them. Every document is told to `progress` twice: when its hash was read, and when it was compared."""
        folder = self.tokens.folder
        with duplicates.DuplicateFinder(self.num_documents(), folder, self.partition_documents) as finder:
            for file in self.files:
                with self.tokens.open(file) as token_file:
                    for first, _, lengths in token_file.document_blocks():
                        hashes = token_file.hashes(first, first + len(lengths))
                        finder.add(hashes ^ self._domain_keys(file, token_file, first, len(hashes)))
                        progress(len(hashes))
            finder.compare(progress)
            for file in self.files:
                num_documents = self._num_documents_of(file)
                starts = range(0, num_documents, DOCUMENTS_AT_ONCE)
                blocks = (finder.take(min(DOCUMENTS_AT_ONCE, num_documents - start)) for start in starts)
                if file.path in self.todo:
                    duplicates.write_bits(self.todo[file.path], num_documents, blocks)
                else:
                    for _ in blocks:  # the finder gives the documents of all files in order
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

    def count(self) -> dict[str, int]:
        """Files, documents and duplicates, when all bits are there."""
        paths = (duplicates.bits_path(self.tokens.folder / file.token_file) for file in self.files)
        metas = [meta for path in paths if (meta := provenance.read_meta(path))]
        counts = {name: sum(meta[name] for meta in metas) for name in ("documents", "copies")}
        return {"files": len(self.files), **counts}


def run(args: argparse.Namespace) -> int:
    """Mark the duplicates of every domain that is not marked yet, and print how many there are."""
    report = Report("duplicates", args.json)
    tokens = choose_domains(args.file_list, args.tokenized_dir, args.domains)
    write = cli.typed(outputs.WriteOptions, args)
    groups: dict[str, BitsOfDomains] = {}
    for domain in sorted(tokens.files):
        if MIXED not in groups or tokens.marked_with(domain) is tokens.files[domain]:
            one = BitsOfDomains.of_domain(tokens, domain, write, args.partition_documents)
            groups[one.name] = one
    todo = {name: one for name, one in groups.items() if one.todo}
    for name, one in groups.items():
        if name not in todo:
            report.say(f"{name}: skipped, marked before among the same {len(one.files)} token files")
    for folder in {(args.tokenized_dir / file.token_file).parent for one in groups.values() for file in one.files}:
        outputs.remove_stale_temporaries(folder)
    num_documents = {name: one.num_documents() for name, one in todo.items()}
    assigned = shards.assign_files(list(num_documents.items()), min(args.num_workers, max(1, len(todo))))
    shares = [([todo[name] for name in share],) for share in assigned]
    with cli.progress_bar(2 * sum(num_documents.values()), "hash", "read and compared", unit_scale=True) as bar:
        workers.run_shares(write_all, shares, bar.update)
    counts = {name: one.count() for name, one in groups.items()}
    rows = [(name, *one.values(), f"{one['copies'] / max(1, one['documents']):.3%}") for name, one in counts.items()]
    report.say(cli.table(("domain", "files", "documents", "copies", "share"), rows))
    total = {name: sum(one[name] for one in counts.values()) for name in ("files", "documents", "copies")}
    report.results |= {"domains": counts, **total}
    what = f"{total['files']} token files: {total['documents']:,} documents, {total['copies']:,} copies"
    return report.finish(what, args.tokenized_dir)


def choose_domains(file_list: Path, tokenized_dir: Path, domains: str | None) -> reader.Tokens:
    """The token files of the domains that are asked for."""
    listed = listing.read_file_list(file_list)
    if domains is None:
        return options.find_tokens(listed, tokenized_dir)
    expected = [name.strip() for name in domains.split(",")]
    there = {file.domain for file in listed.files}
    tokens = options.find_tokens(listed, tokenized_dir, expected, with_marks=True)
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
