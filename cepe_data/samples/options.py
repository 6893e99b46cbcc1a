"""What both samplers share: their arguments, finding token files, rows per domain, the description of a run."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cepe_data import cli, workers
from cepe_data.corpus import domains, listing
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.samples.reader import Tokens
from cepe_data.samples.splits import Splits
from cepe_data.samples.windows import Windows
from cepe_data.storage import provenance
from cepe_data.storage.outputs import WriteOptions
from cepe_data.storage.report import add_source_arguments
from cepe_data.tokens import duplicates
from cepe_data.tokens.token_file import read_tokenizer

EQUAL = "equal"


@dataclass(frozen=True, kw_only=True)
class SampleOptions(WriteOptions):
    """The arguments that both samplers have."""

    output: Path
    decoder_length: int
    eval_samples: int
    train_samples: int
    file_list: Path
    tokenized_dir: Path
    domains: str
    test_domains: str | None
    seed: int
    test_fraction: float
    train_fraction: float
    drop_duplicates: bool
    token_dtype: str | None
    rows_per_part: int | None
    allow_shortage: bool
    dry_run: bool
    num_workers: int

    @property
    def windows(self) -> Windows:
        """The windows of the test and train sets. Raises ArgumentError if the lengths leave no context."""
        raise NotImplementedError

    @property
    def splits(self) -> Splits:
        """The rule that gives documents to splits. Raises as `Splits`."""
        return Splits(self.seed, self.test_fraction, self.train_fraction)


@dataclass(frozen=True, kw_only=True)
class InsideOptions(SampleOptions):
    """The arguments of sample_mds_ab.py."""

    total_length: int

    @property
    def windows(self) -> Windows:
        if self.total_length <= self.decoder_length:
            raise ArgumentError(
                f"TOTAL_LENGTH {self.total_length} must be more than DECODER_LENGTH {self.decoder_length}"
            )
        return Windows(self.total_length, self.decoder_length, is_inside=True)


@dataclass(frozen=True, kw_only=True)
class ConcatOptions(SampleOptions):
    """The arguments of sample_mds_concat.py."""

    encoder_length: int
    retrieval_samples: int
    shard_id: int | None
    retrieval_shards: int
    retrieval_chunk_size: int
    tokenizer: str | None

    @property
    def windows(self) -> Windows:
        return Windows(self.encoder_length + self.decoder_length, self.decoder_length, is_inside=False)

    @property
    def passages(self) -> Windows:
        """The passages of the retrieval corpus."""
        return Windows(self.retrieval_chunk_size, self.retrieval_chunk_size, is_inside=True)


def add_arguments(parser: argparse.ArgumentParser, weights: Mapping[str, float], **lengths: str) -> None:
    """The arguments that both samplers have; `lengths` are the help texts of the lengths, which come second."""
    parser.add_argument("output", type=Path, metavar="OUT", help="the folder to write")
    for name, description in lengths.items():
        parser.add_argument(name, type=cli.positive_count, metavar=name.upper(), help=description)
    parser.add_argument("eval_samples", type=cli.count, metavar="EVAL_SAMPLES", help="windows for test")
    parser.add_argument("train_samples", type=cli.count, metavar="TRAIN_SAMPLES", help="windows for train")
    add_source_arguments(parser.add_argument_group("source"))
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--domains",
        default=domains.format_weights(weights),
        metavar="DOMAIN=WEIGHT,…",
        help="the domains to sample and their weights, which add up to 1",
    )
    sampling.add_argument(
        "--test_domains",
        default=None,
        metavar="DOMAIN=WEIGHT,…",
        help=f"those of test, in the same way, or {EQUAL}: all of --domains with the same weight (default: --domains)",
    )
    sampling.add_argument("--seed", type=cli.count, default=42, help="another seed gives other splits and rows")
    sampling.add_argument("--test_fraction", type=cli.fraction, default=0.01, help="share of documents for test")
    sampling.add_argument(
        "--train_fraction", type=cli.fraction, default=0.49, help="share for train; the rest is retrieval"
    )
    sampling.add_argument(
        "--drop_duplicates",
        action="store_true",
        help="leave out duplicates within a domain, as marked by sanity_check.py duplicates",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--token_dtype",
        choices=("int16", "int32", "int64"),
        default=None,
        help="of the token columns (default: the smallest that holds the vocabulary)",
    )
    output.add_argument(
        "--rows_per_part",
        type=cli.positive_count,
        default=None,
        help="a killed run repeats at most one part a worker (default: what fills an MDS shard of 64 MiB)",
    )
    output.add_argument("--allow_shortage", action="store_true", help="exit 0 with fewer windows than requested")
    cli.add_overwrite_argument(output)
    cli.add_disk_argument(output)
    output.add_argument("--dry_run", action="store_true", help="say what would be written, and write nothing")
    output.add_argument(
        "--num_workers", type=cli.positive_count, default=workers.default_num_workers(), help="processes that write"
    )


def split_weights(args: SampleOptions) -> dict[str, dict[str, float]]:
    """Weights per split and domain: of test those of `--test_domains`, of train and retrieval those of `--domains`.

    Raises:
        ArgumentError: naming the flag, if they are not weights.
    """
    weights = domains.parse_weights(args.domains)
    test = weights
    if args.test_domains == EQUAL:
        test = dict.fromkeys(weights, 1 / len(weights))
    elif args.test_domains is not None:
        test = domains.parse_weights(args.test_domains, "--test_domains")
    return {"test": test, "train": weights, "retrieval": weights}


def open_tokens(args: SampleOptions) -> Tokens:
    """The token files of the domains that `args` asks for.

    Raises:
        ArgumentError: if a domain has no files (with the flag without it), or token files are missing.
        DamagedFileError: if they were made by two tokenizers.
    """
    weights = split_weights(args)
    flags = {"--domains": weights["train"]}
    if args.test_domains not in {None, EQUAL}:
        flags["--test_domains"] = weights["test"]
    listed = listing.read_file_list(args.file_list)
    is_mixed = any(file.domain is None for file in listed.files)
    if not is_mixed:
        num_bytes = Counter[str]()
        for file in listed.files:
            num_bytes[str(file.domain)] += file.num_bytes or 1  # where it is not known
        require_domains(args.file_list, flags, num_bytes)
    names = list({**weights["train"], **weights["test"]})
    tokens = find_tokens(listed, args.tokenized_dir, names, with_marks=args.drop_duplicates)
    if is_mixed:
        require_domains(args.file_list, flags, tokens.num_tokens)
    return replace(tokens, mark_command=mark_command(tokens, args) if args.drop_duplicates else None)


def require_domains(file_list: Path, flags: Mapping[str, Mapping[str, float]], sizes: Mapping[str, float]) -> None:
    """Raise ArgumentError, with the flags that work, if a domain with a weight has no size (in bytes or tokens)."""
    there = {domain: size for domain, size in sizes.items() if size}
    for flag, weights in flags.items():
        absent = [domain for domain in weights if domain not in there]
        if not absent:
            continue
        lines = [f"{file_list} lists no files of {', '.join(absent)}, only of {', '.join(sorted(there))}."]
        rest = {domain: weight for domain, weight in weights.items() if domain in there}
        if set(there) != set(rest):
            by_size = {domain: round(there[domain] / sum(there.values()), 3) or 0.001 for domain in sorted(there)}
            lines.append(
                f"All domains there are, by their size:\n  {flag} {shlex.quote(domains.format_weights(by_size))}"
            )
        if rest:
            lines.append(f"Without them:\n  {flag} {shlex.quote(domains.format_weights(rest))}")
        raise ArgumentError("\n".join(lines))


def mark_command(tokens: Tokens, args: SampleOptions) -> str:
    """The command that marks duplicates in the domains of `tokens`."""
    command = ["python", str(Path(sys.argv[0]).with_name("sanity_check.py")), "duplicates"]
    command += ["--file_list", str(args.file_list), "--tokenized_dir", str(args.tokenized_dir)]
    command += ["--domains", ",".join(tokens.files)]
    paths = (args.tokenized_dir / file.token_file for files in tokens.files.values() for file in files)
    is_there = any(duplicates.bits_path(path).exists() for path in paths)
    return shlex.join([*command, *["--overwrite"] * is_there])


def require_token_files(files: Sequence[listing.ListedFile], folder: Path) -> None:
    """Raise ArgumentError if the token files of some of these are missing."""
    if missing := [file.path for file in files if not (folder / file.token_file).exists()]:
        raise ArgumentError(
            f"{len(missing)} of {len(files)} token files are missing in {folder}, such as that of {missing[0]}: run "
            f"tokenize_jsonl.py; sanity_check.py names all of them"
        )


def find_tokens(
    listed: listing.FileList, folder: Path, names: Sequence[str] | None = None, with_marks: bool = False
) -> Tokens:
    """The token files of these domains of a list, or of all of them; `with_marks`: their duplicates are to be marked or
    dropped, for which all files must be there among which they are marked, of whichever domain.

    Raises:
        ArgumentError: if some are missing.
        DamagedFileError: if one is damaged, or was made for another list, or they were made by two tokenizers.
    """
    all_files = [file for file in listed.files if names is None or file.domain is None or file.domain in names]
    require_token_files(all_files, folder)
    identities: dict[str, tuple[str, int]] = {}
    files: dict[str, list[listing.ListedFile]] = {name: [] for name in names or ()}
    num_tokens: Counter[str] = Counter()
    mixed_domains: set[str] = set()
    for file in all_files:
        path = folder / file.token_file
        meta = provenance.read_meta(path)
        for domain, number in tokens_by_domain(file, path, meta).items():
            num_tokens[domain] += number
            if file.domain is None:
                mixed_domains.add(domain)
            if names is None or domain in names:
                files.setdefault(domain, []).append(file)
        if meta:
            if lost := provenance.lost_files(path, meta.files):
                raise DamagedFileError(
                    f"{path} is damaged: {lost[0]} is gone or has not the size it was written with. tokenize_jsonl.py "
                    f"--overwrite makes it again"
                )
            tokenizer = read_tokenizer(path, meta)
            identities.setdefault(tokenizer.fingerprint, (file.path, tokenizer.vocab_size))
            if file.num_bytes is not None and meta.made_with.get("source_bytes") != file.num_bytes:
                raise DamagedFileError(
                    f"{path} was made when {file.path} had another size than the list says: run tokenize_jsonl.py "
                    f"--overwrite"
                )
            if domains.has_other_domains(meta.made_with, file.domain, listed.record_domains):
                raise DamagedFileError(
                    f"{path} was made when the list had another --domain_key or --domain_map: run tokenize_jsonl.py "
                    f"--overwrite"
                )
    if len(identities) > 1:
        examples = ", ".join(f"{path} by {fingerprint}" for fingerprint, (path, _) in identities.items())
        raise DamagedFileError(
            f"{folder} has token files of several tokenizers: {examples}. Make them anew "
            f"with one (tokenize_jsonl.py --overwrite)"
        )
    fingerprint, (_, vocab_size) = next(iter(identities.items()), (None, ("", None)))
    mixed = [file for file in listed.files if file.domain is None or file.domain in mixed_domains]
    tokens = Tokens(files, folder, vocab_size, fingerprint, num_tokens=num_tokens, mixed=mixed)
    if with_marks:
        checked = {file.path for file in all_files}  # their paths are not looked up again
        marked = {file.path: file for domain in files for file in tokens.marked_with(domain)}
        require_token_files([file for path, file in marked.items() if path not in checked], folder)
    return tokens


def tokens_by_domain(file: listing.ListedFile, path: Path, meta: provenance.Meta) -> dict[str, int]:
    """The number of tokens of every domain in a token file; 0 if the file was made elsewhere.

    Raises:
        DamagedFileError: if its records should say their domain, and do not.
    """
    if file.domain is not None:
        return {file.domain: meta.get("tokens", 0)}
    try:
        of_file = meta["domains"]
        counts = zip(of_file["names"], of_file["documents"], of_file["tokens"], strict=True)
        return {name: num_tokens for name, num_documents, num_tokens in counts if num_documents}
    except (KeyError, TypeError):
        raise DamagedFileError(f"{path} does not say the domains of its documents: make it again") from None


def window_requests(args: SampleOptions) -> dict[str, dict[str, int]]:
    """Rows per split and domain, test and train, by largest remainder."""
    numbers = {"test": args.eval_samples, "train": args.train_samples}
    return {split: domain_counts(split, args, number) for split, number in numbers.items()}


def domain_counts(split: str, args: SampleOptions, number: int) -> dict[str, int]:
    """Rows per domain by largest remainder; warns if a domain gets none."""
    counts = domains.largest_remainder(split_weights(args)[split], number)
    if number and (empty := [domain for domain, count in counts.items() if not count]):
        what = "file" if split == "retrieval" else "folder"
        cli.warn(
            f"{split}: {number} rows leave none for {', '.join(empty)}, whose share is less than one: there will be no "
            f"{what} of that name, and a reader of all domains stops there"
        )
    return counts


def check_differences(output: Path, rule: provenance.Provenance, only_warn: bool) -> None:
    """Raise ArgumentError, or warn, if another set of the same output was made with another rule."""
    try:
        meta = provenance.read_meta(output)
    except DamagedFileError as error:
        if not only_warn:
            raise
        cli.warn(str(error))
        return
    # Windows have the tokenizer in their metadata, passages in their provenance; it may be unknown.
    tokenizer = meta.get("tokenizer") or meta.made_with.get("tokenizer") or rule.get("tokenizer")
    names = {*rule, "drop_duplicates"}  # the latter is only in the provenance of sets without duplicates
    made_with = {**meta.made_with, "tokenizer": tokenizer}
    old = {name: value for name, value in made_with.items() if name in names} if meta else rule
    if differences := provenance.describe_differences(old, rule):
        message = f"{output} is in the same output, and was made with other arguments or inputs: {differences}"
        if not only_warn:
            raise ArgumentError(
                f"{message}. Use the same, or another OUT; --overwrite goes on and replaces sets it makes"
            )
        cli.warn(f"{message}. Make it again too, or remove it")


def describe_run(args: SampleOptions) -> dict[str, Any]:
    """Script, arguments and versions, for a manifest: what determines the rows, but no paths and run-time flags."""
    versions = {}
    for package in ("mosaicml-streaming", "numpy", "xxhash"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"script": Path(sys.argv[0]).name, "arguments": described_arguments(args), "versions": versions}


def described_arguments(args: SampleOptions) -> dict[str, Any]:
    """The arguments that a manifest has."""
    where = {"output", "file_list", "tokenized_dir", "tokenizer"}
    how = {"overwrite", "ignore_disk_space", "allow_shortage", "dry_run", "num_workers", "shard_id"}
    how |= set() if args.drop_duplicates else {"drop_duplicates"}  # manifests say so where duplicates are left out
    how |= {"test_domains"} if args.test_domains is None else set()
    return {name: value for name, value in vars(args).items() if name not in where | how}
