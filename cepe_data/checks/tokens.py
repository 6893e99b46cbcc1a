"""Check the token files: that they are there, whole, made from the listed jsonl files with one tokenizer, and right.

Quick by default: headers, sizes, lengths, and a seeded sample of documents. `--deep` reads every number and compares
hashes. Where a jsonl file still exists, some of its documents are tokenized once more and compared. `--plot` draws how
long the documents are, which windows they hold, and tokens by domain beside RedPajama's own.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import xxhash

from cepe_data import cli, corpus, duplicates, jsonl, keyed, records, shards, tokenizers, workers
from cepe_data.checks import plots
from cepe_data.checks.report import Report, add_report_arguments, add_source_arguments
from cepe_data.errors import DamagedFileError
from cepe_data.token_file import TOKEN_DTYPE, TokenFile, add_bos_eos, hash_path, read_tokenizer
from cepe_data.windows import DocumentWindows

HELP = "check the token files (what happens without a command)"
CHUNK_TOKENS = 4096
LONG_DOCUMENT_TOKENS = (8192, 32768, 131072)
WINDOW_STEP = 4096  # the DECODER_LENGTH of the README's sample_mds_ab.py
NUM_LENGTH_BINS = 64
READ_TOKENS = 1 << 18  # what is read stays in a core's cache while it is hashed and looked at
MARK_AGAIN = "sanity_check.py duplicates --overwrite marks copies again"
MAX_TEXT_CHARACTERS = 1 << 20  # transformers takes a second for it


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
    plots.add_argument(parser)
    add_report_arguments(parser)


def check_tokenizer(report: Report, folder: Path) -> tokenizers.TokenizerIdentity | None:
    """The identity of the saved tokenizer, if it is there and whole."""
    try:
        meta = records.read_meta(folder)
        for path in records.damaged_files(folder, meta) if meta else ():
            report.found(path, "is not what was written: remove its folder, and name the tokenizer again")
            return None
        return tokenizers.saved_identity(folder)
    except DamagedFileError as error:
        report.found(folder, str(error))
    return None


@dataclass
class DomainCounts:
    """What the table and the picture have of a domain. `windows`: those of so many tokens inside one document, each
    WINDOW_STEP after the last, whatever its split. `lengths`: int64 [NUM_LENGTH_BINS], documents by `length_bins`."""

    files: int = 0
    documents: int = 0
    tokens: int = 0
    chunks: int = 0
    long_documents: list[int] = field(default_factory=lambda: [0] * len(LONG_DOCUMENT_TOKENS))
    windows: list[int] = field(default_factory=lambda: [0] * len(LONG_DOCUMENT_TOKENS))
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(NUM_LENGTH_BINS, np.int64))

    def add(self, other: DomainCounts) -> None:
        """Count what `other` has, too."""
        self.files += other.files
        self.documents += other.documents
        self.tokens += other.tokens
        self.chunks += other.chunks
        self.long_documents = [sum(pair) for pair in zip(self.long_documents, other.long_documents, strict=True)]
        self.windows = [sum(pair) for pair in zip(self.windows, other.windows, strict=True)]
        self.lengths = self.lengths + other.lengths

    def add_lengths(self, lengths: np.ndarray) -> None:
        """Count documents of these lengths, int64 [n], but not their tokens."""
        self.lengths = self.lengths + np.bincount(length_bins(lengths), minlength=NUM_LENGTH_BINS)
        for index, threshold in enumerate(LONG_DOCUMENT_TOKENS):
            lengths = lengths[lengths >= threshold]
            self.long_documents[index] += len(lengths)
            self.windows[index] += int(DocumentWindows(threshold, WINDOW_STEP).units(lengths).sum())


def length_bins(lengths: np.ndarray) -> np.ndarray:
    """int [n]: the half octave of each length, int64 [n]: bin i begins at 2^(i / 2) tokens, so that every power of two
    begins one. An empty document counts as one of 1 token, and the last bin has all that is longer, too."""
    # ⌊2 log₂ length⌋ is the exponent of length², in the bits from 52 on: exact, where a logarithm need not be.
    squares = np.square(np.maximum(lengths, 1).astype(np.float64))
    return np.minimum((squares.view(np.int64) >> 52) - 1023, NUM_LENGTH_BINS - 1)


def lowest_length(length_bin: int) -> int:
    """The smallest number of tokens in a bin: ⌈2^(i / 2)⌉."""
    return math.isqrt((1 << length_bin) - 1) + 1


def run(args: argparse.Namespace) -> int:
    """Check every token file of the list; print what is wrong, what to run again, and a table per domain."""
    plots.refuse_bad_path(args.plot)
    report = Report.of("tokens", args)
    files = corpus.read_file_list(args.file_list)
    saved = check_tokenizer(report, args.tokenized_dir / "tokenizer")
    root = corpus.read_root(args.file_list)
    checker = FileChecker(args.tokenized_dir, root, saved, args.deep, args.documents, args.texts, args.seed)
    counts: dict[str, DomainCounts] = defaultdict(DomainCounts)
    present = [file for file in files if (args.tokenized_dir / file.token_file).exists()]
    missing, damaged = [file.path for file in files if file not in present], []
    for jsonl_path in missing:
        report.found(args.tokenized_dir / corpus.token_path(jsonl_path), "is missing")
    num_texts, made_by = 0, dict[str, Path]()
    with (
        cli.progress_bar(sum(file.num_bytes for file in present), "B", "checking", unit_scale=True) as bar,
        workers.Workers(min(args.num_workers, len(present) or 1), FileChecker.prepare, checker) as pool,
    ):
        for file, result in pool.map_in_order(FileChecker.check, present, lambda _: 1, 2 * pool.num_workers):
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
        plots.draw_tokens(report, args.plot, counts, len(files), LONG_DOCUMENT_TOKENS, WINDOW_STEP)
    report.facts |= {"files": len(files), "missing": missing, "damaged": damaged, "texts_compared": num_texts}
    return report.finish(
        f"{len(files)} token files: {len(missing)} missing, {len(damaged)} damaged, {num_texts} texts tokenized again",
        args.tokenized_dir,
    )


@dataclass
class FileResult:
    """What came of the check of one token file; a finding is a path and what is wrong with it. Those of its bits, which
    mark copies, stand apart: they are not made again with it. `tokenizer` is the fingerprint, where it is known."""

    counts: DomainCounts = field(default_factory=DomainCounts)
    findings: list[tuple[Path, str]] = field(default_factory=list)
    of_bits: list[tuple[Path, str]] = field(default_factory=list)
    tokenizer: str = ""
    warnings: list[str] = field(default_factory=list)
    num_texts: int = 0


@dataclass(frozen=True)
class FileChecker:
    """Checks one token file after the other, in any process."""

    folder: Path
    root: Path | None
    saved: tokenizers.TokenizerIdentity | None
    is_deep: bool
    num_documents: int
    num_texts: int
    seed: int
    current: ClassVar[FileChecker]

    @classmethod
    def prepare(cls, checker: FileChecker) -> None:
        """Make `checker` that of this process."""
        cls.current = checker

    @staticmethod
    def check(file: corpus.ListedFile) -> FileResult:
        """Check a token file with the checker of this process."""
        return FileChecker.current._check(file)

    def _check(self, file: corpus.ListedFile) -> FileResult:
        path, result = self.folder / file.token_file, FileResult()
        try:
            with TokenFile(path) as tokens:
                if tokens.meta is not None:
                    self._check_meta(tokens, tokens.meta, file, result)
                elif hash_path(path).exists():
                    result.findings.append(
                        (path, f"has no {records.meta_path(path).name}: remove it and make it again")
                    )
                else:
                    result.warnings.append(f"{path} was made elsewhere: its BOS, EOS and vocabulary are not checked")
                self._check_duplicates(tokens.path, result)
                self._check_documents(tokens, result)
                if not result.findings:
                    self._compare_texts(tokens, file, result)
        except DamagedFileError as error:
            result.findings.append((path, str(error).removeprefix(f"{path} ")))
        except FileNotFoundError as error:
            result.findings.append((Path(error.filename), "is missing"))
        return result

    def _check_meta(self, tokens: TokenFile, meta: records.Meta, file: corpus.ListedFile, result: FileResult) -> None:
        """What the meta file says otherwise than sizes, headers, list and saved tokenizer."""
        found = [(path, "has not the size that it was written with") for path in records.lost_files(tokens.path, meta)]
        for name, value in (("documents", tokens.num_documents), ("tokens", tokens.num_tokens)):
            if meta.get(name) != value:
                found.append((tokens.path, f"has {value:,} {name}, its meta file says {meta.get(name)}"))
        if tokens.dtype != TOKEN_DTYPE:
            found.append((tokens.path, f"has dtype {tokens.dtype}, not {TOKEN_DTYPE}"))
        source = (meta["made_with"].get("source"), meta["made_with"].get("source_bytes"))
        if source != (file.path, file.num_bytes):
            what = f"was made from {source[0]} with {source[1]} bytes, the list says {file.path} with {file.num_bytes}"
            found.append((tokens.path, what))
        made_by = result.tokenizer = read_tokenizer(tokens.path, meta).fingerprint
        if self.saved is not None and made_by != self.saved.fingerprint:
            what = f"was made with another tokenizer ({made_by}) than the saved one ({self.saved.fingerprint})"
            found.append((tokens.path, what))
        result.findings += found

    def _check_duplicates(self, path: Path, result: FileResult) -> None:
        """The bits that mark copies, where there are any."""
        bits = duplicates.bits_path(path)
        try:
            if bits.exists():
                meta = records.read_meta(bits) or {"files": {bits.name: {"bytes": -1}}}
                damaged = (records.damaged_files if self.is_deep else records.lost_files)(bits, meta)
                result.of_bits += [(one, f"is not what was written: {MARK_AGAIN}") for one in damaged]
        except DamagedFileError as error:
            result.of_bits.append((bits, f"{error} ({MARK_AGAIN})"))

    def _check_documents(self, tokens: TokenFile, result: FileResult) -> None:
        """Lengths; BOS and EOS at the borders of documents, and their ids: of all of them, or of a sample."""
        identity = read_tokenizer(tokens.path, tokens.meta) if tokens.meta else None
        ids = DocumentIds(tokens, identity, self.is_deep)
        sample, counts = self._sample(tokens), DomainCounts(1, tokens.num_documents, tokens.num_tokens)
        counts.chunks = tokens.num_tokens // CHUNK_TOKENS
        for first, position, lengths, _ in tokens.document_blocks():
            ends = position + np.cumsum(lengths)
            chosen = (
                slice(None) if self.is_deep else sample[(sample >= first) & (sample < first + len(lengths))] - first
            )
            ids.check(np.arange(first, first + len(lengths))[chosen], (ends - lengths)[chosen], ends[chosen])
            counts.add_lengths(lengths)
        result.findings += [(tokens.path, f"document {document} {what}") for what, document in ids.first_wrong.items()]
        if self.is_deep and tokens.meta is not None:
            hashes = hash_path(tokens.path)
            for path, digest in ((tokens.path, ids.digest), (hashes, records.file_facts(hashes)["xxh3_64"])):
                if digest != tokens.meta["files"].get(path.name, {}).get("xxh3_64"):
                    result.findings.append((path, "is not what was written: its hash differs from the meta file"))
        result.counts = counts

    def _sample(self, tokens: TokenFile) -> np.ndarray:
        """int64 [documents]: numbers of some documents of a file, ascending; the first and the last are among them."""
        if not tokens.num_documents or not self.num_documents:
            return np.empty(0, np.int64)
        draw = np.random.default_rng([self.seed, int(keyed.key(tokens.path.name))])
        sample = draw.integers(0, tokens.num_documents, self.num_documents)
        return np.unique(np.append(sample, [0, tokens.num_documents - 1]))

    def _compare_texts(self, tokens: TokenFile, file: corpus.ListedFile, result: FileResult) -> None:
        """Tokenize some documents of the jsonl file once more."""
        source = self.root / file.path if self.root else None
        if source is None or not source.exists() or tokens.meta is None or self.saved is None or not self.num_texts:
            return
        if source.stat().st_size != file.num_bytes:
            result.warnings.append(f"{source} is not the file that was listed: its texts are not compared")
            return
        draw = np.random.default_rng([self.seed, int(keyed.key(file.path))])
        encode = _load_encoder(self.folder / "tokenizer")
        texts: dict[int, tuple[int, str]] = {}
        for start, line in sample_lines(source, self.num_texts, draw):
            for text in jsonl.parse_documents(1, line, tokens.meta["made_with"]["text_key"])[0]:
                if len(text) <= MAX_TEXT_CHARACTERS:
                    texts[xxhash.xxh3_64_intdigest(text)] = start, text
        for found in find_documents(tokens, np.array(sorted(texts), np.uint64)):
            start, text = texts.pop(found.hash)
            ids = add_bos_eos(*encode([text]), self.saved.bos_id, self.saved.eos_id)[0]
            result.num_texts += 1
            if not np.array_equal(tokens.tokens(found.start, found.stop), ids):
                what = f"document {found.number} has not the ids of its text, at byte {start} of {source}"
                result.findings.append((tokens.path, what))
        for start, _ in texts.values():
            result.findings.append((tokens.path, f"the text at byte {start} of {source} is not in it"))


class DocumentIds:
    """Looks at the ids of documents; `first_wrong` has the first document of each kind of finding. Of a file made
    elsewhere, nothing is known but that ids are not negative."""

    def __init__(self, tokens: TokenFile, identity: tokenizers.TokenizerIdentity | None, with_digest: bool) -> None:
        self._tokens, self._identity = tokens, identity
        self._highest = identity.vocab_size - 1 if identity else int(np.iinfo(np.int32).max)
        self._digest = tokens.digest_to(tokens.tokens_start) if with_digest else None
        self._position = tokens.tokens_start
        self.first_wrong: dict[str, int] = {}

    @property
    def digest(self) -> str | None:
        """The hash of the file, once all documents were looked at."""
        return self._digest and self._digest.hexdigest()

    def check(self, documents: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Look at documents, by number, that stand at positions [starts, ends): int64 [documents] each, ascending."""
        bos = self._identity.bos_id if self._identity else None
        shortest = 0 if self._identity is None else 1 if bos is None else 2
        self._note(f"is shorter than {shortest} tokens", documents, ends - starts < shortest)
        first = 0
        while first < len(documents):
            # Neighbours are read together, a long document in pieces.
            last = first + int(np.searchsorted(ends[first:], starts[first] + READ_TOKENS, "right"))
            last = max(first + 1, first + _run_length(starts[first:last], ends[first:last]))
            self._check_run(documents[first:last], starts[first:last], ends[first:last], bos)
            first = last

    def _check_run(self, documents: np.ndarray, starts: np.ndarray, ends: np.ndarray, bos: int | None) -> None:
        """Look at documents that follow each other without a gap."""
        for start in range(int(starts[0]), int(ends[-1]), READ_TOKENS):
            stop = min(start + READ_TOKENS, int(ends[-1]))
            ids = self._tokens.tokens(start, stop)
            if self._digest and start == self._position:
                self._digest.update(ids.data)
                self._position = stop
            if ids.min() < 0 or ids.max() > self._highest:
                wrong = start + int(np.argmax((ids < 0) | (ids > self._highest)))
                which = np.searchsorted(ends, [wrong], "right")
                self._note(f"has ids outside of 0 … {self._highest}", documents[which], np.ones(1, bool))
            if self._identity is not None:
                is_begun = (starts >= start) & (starts < np.minimum(stop, ends))
                is_ended = (ends > np.maximum(start, starts)) & (ends <= stop)
                if bos is not None:
                    is_wrong = ids[starts[is_begun] - start] != bos
                    self._note(f"does not begin with BOS ({bos})", documents[is_begun], is_wrong)
                is_wrong = ids[ends[is_ended] - 1 - start] != self._identity.eos_id
                self._note(f"does not end with EOS ({self._identity.eos_id})", documents[is_ended], is_wrong)

    def _note(self, what: str, documents: np.ndarray, is_wrong: np.ndarray) -> None:
        if is_wrong.any():
            self.first_wrong.setdefault(what, int(documents[np.argmax(is_wrong)]))


def _run_length(starts: np.ndarray, ends: np.ndarray) -> int:
    """How many of these documents follow each other without a gap."""
    gaps = np.flatnonzero(starts[1:] != ends[:-1])
    return int(gaps[0]) + 1 if len(gaps) else len(starts)


@cache
def _load_encoder(folder: Path) -> tokenizers.Encoder:
    return tokenizers.make_encoder("transformers", folder)


def sample_lines(path: Path, number: int, draw: np.random.Generator) -> list[tuple[int, bytes]]:
    """Lines of a jsonl file with the byte each starts at: of a plain one the first, and some that follow random bytes;
    of a compressed one, whose bytes are counted decompressed, from its beginning."""
    if jsonl.is_compressed(path):
        block = next(iter(jsonl.LineBlocks(path)), (1, b""))[1]
        lines = block.splitlines(keepends=True)
        starts = np.cumsum([0, *map(len, lines)]).tolist()
        return [(starts[index], lines[index]) for index in draw.permutation(len(lines))[:number].tolist()]
    sample = []
    with path.open("rb") as file:
        for offset in [0, *draw.integers(1, max(2, path.stat().st_size), number - 1).tolist()]:
            file.seek(max(0, offset - 1))
            if offset:
                file.readline()
            sample.append((file.tell(), file.readline().removeprefix(b"\xef\xbb\xbf")))
    return sample


@dataclass(frozen=True)
class FoundDocument:
    """A document at positions [start, stop)."""

    hash: int
    number: int
    start: int
    stop: int


def find_documents(tokens: TokenFile, hashes: np.ndarray) -> list[FoundDocument]:
    """The first document with each of these hashes (uint64 [n], sorted), where there is one."""
    found: dict[int, FoundDocument] = {}
    for first, position, lengths, of_block in tokens.document_blocks():
        for index in np.flatnonzero(np.isin(of_block, hashes)).tolist():
            start = position + int(lengths[:index].sum())
            one = FoundDocument(int(of_block[index]), first + index, start, start + int(lengths[index]))
            found.setdefault(one.hash, one)
    return list(found.values())


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
    report: Report, args: argparse.Namespace, files: Sequence[corpus.ListedFile], broken: set[str], overwrite: bool
) -> None:
    """The command that makes what is missing or damaged."""
    flags = f" --file_list {args.file_list}" if args.file_list != Path("all_jsonl.txt") else ""
    flags += f" --output_dir {args.tokenized_dir}" if args.tokenized_dir != Path("tokenized") else ""
    if (text_key := used_text_key(args, files)) != "text":
        flags += f" --text_key {text_key}"
    flags += " --overwrite" if overwrite else ""
    if args.num_shards is None:
        report.say(f"make them: python tokenize_jsonl.py{flags}   (pass --num_shards for the array ids)")
        return
    assigned = shards.assign_files([(file.path, file.num_bytes) for file in files], args.num_shards)
    ids = shards.array_ids(shard for shard, paths in enumerate(assigned) if broken.intersection(paths))
    data_dir = corpus.read_root(args.file_list) or "DATA_DIR"
    line = f"sbatch --array={ids} run_tokenize.sh {data_dir} --num_shards {args.num_shards}{flags}"
    report.facts["run"] = line
    report.say(f"make them: {line}")


def used_text_key(args: argparse.Namespace, files: Sequence[corpus.ListedFile]) -> str:
    """The --text_key that made the first token file that tells."""
    for file in files:
        path = args.tokenized_dir / file.token_file
        with contextlib.suppress(DamagedFileError):
            if path.exists() and (meta := records.read_meta(path)) and "text_key" in meta["made_with"]:
                return str(meta["made_with"]["text_key"])
    return "text"
