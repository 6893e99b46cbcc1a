"""Check one token file: its meta file, lengths and ids, and some of its texts, tokenized again."""

from __future__ import annotations

import io
import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cepe_data import hashing
from cepe_data.corpus import listing, readers
from cepe_data.corpus.domains import RecordDomains, RecordKeys, has_other_domains
from cepe_data.corpus.parquet import is_parquet, parquet_blocks
from cepe_data.storage import provenance, verify
from cepe_data.tokens import backends, tokenizers
from cepe_data.tokens.encoding import hash_text
from cepe_data.tokens.token_file import TOKEN_DTYPE, Place, TokenFile, add_bos_eos, hash_path, read_tokenizer

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_TOKENS = 4096
LONG_DOCUMENT_TOKENS = (8192, 32768, 131072)
WINDOW_STEP = 4096  # the DECODER_LENGTH of the README's sample_mds_ab.py
NUM_LENGTH_BINS = 64
READ_TOKENS = 1 << 18  # what is read stays in a core's cache while it is hashed and looked at
SAMPLED_BYTES = 4 << 20
MAX_TEXT_CHARACTERS = 1 << 20  # the slowest reference takes a second for it


@dataclass
class DomainCounts:
    """The counts of a domain for the table and the figure. `windows`: by length, the windows inside single documents,
    one every WINDOW_STEP tokens, in all splits. `lengths`: int64 [NUM_LENGTH_BINS], documents by `length_bins`."""

    files: int = 0
    documents: int = 0
    tokens: int = 0
    chunks: int = 0
    long_documents: np.ndarray = field(default_factory=lambda: np.zeros(len(LONG_DOCUMENT_TOKENS), np.int64))
    windows: np.ndarray = field(default_factory=lambda: np.zeros(len(LONG_DOCUMENT_TOKENS), np.int64))
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(NUM_LENGTH_BINS, np.int64))

    def add(self, other: DomainCounts) -> None:
        """Count what `other` has, too."""
        for name, number in vars(other).items():
            setattr(self, name, getattr(self, name) + number)

    def add_lengths(self, lengths: np.ndarray) -> None:
        """Count documents of these lengths, int64 [n]."""
        self.documents += len(lengths)
        self.tokens += int(lengths.sum())
        self.lengths = self.lengths + np.bincount(length_bins(lengths), minlength=NUM_LENGTH_BINS)
        for index, threshold in enumerate(LONG_DOCUMENT_TOKENS):
            lengths = lengths[lengths >= threshold]
            self.long_documents[index] += len(lengths)
            self.windows[index] += int(((lengths - threshold) // WINDOW_STEP + 1).sum())


def length_bins(lengths: np.ndarray) -> np.ndarray:
    """int [n]: the half octave of each length, int64 [n]: bin i begins at 2^(i / 2) tokens, so that every power of two
    begins one. An empty document counts as one of 1 token, and the last bin has all that is longer, too."""
    # ⌊2 log₂ length⌋ is the exponent of length², in the bits from 52 on: exact, where a logarithm need not be.
    squares = np.square(np.maximum(lengths, 1).astype(np.float64))
    return np.minimum((squares.view(np.int64) >> 52) - 1023, NUM_LENGTH_BINS - 1)


def lowest_length(length_bin: int) -> int:
    """The smallest number of tokens in a bin: ⌈2^(i / 2)⌉."""
    return math.isqrt((1 << length_bin) - 1) + 1


@dataclass
class FileResult:
    """The result of the check of one token file; `counts` are by domain; a finding is a path and what is wrong with it.
    `tokenizer` is the fingerprint, if known."""

    counts: dict[str, DomainCounts] = field(default_factory=dict)
    findings: list[verify.Finding] = field(default_factory=list)
    tokenizer: str = ""
    warnings: list[str] = field(default_factory=list)
    num_texts: int = 0


@dataclass(frozen=True)
class TokenCheck(verify.Effort):
    """The options. `texts`: how many of a corpus file are tokenized again."""

    file_list: Path
    tokenized_dir: Path
    texts: int = 4
    num_shards: int | None = None
    plot: Path | None = None


@dataclass(frozen=True)
class FileChecker:
    """The task that checks a token file. `saved`: the tokenizer beside the token files, if it is there and whole."""

    options: TokenCheck
    root: Path | None
    record_domains: RecordDomains | None
    saved: tokenizers.TokenizerIdentity | None

    @cached_property
    def _encode(self) -> backends.Encoder:
        """The reference, which defines the ids."""
        tokenizer = tokenizers.read_saved(self.options.tokenized_dir / "tokenizer")
        return backends.make_encoder(backends.reference_backend(tokenizer), tokenizer)

    def __call__(self, file: listing.ListedFile) -> FileResult:
        path, result = self.options.tokenized_dir / file.token_file, FileResult()
        if provenance.meta_path(path).exists() or hash_path(path).exists():
            result.findings += verify.output_findings(path)
        else:
            result.warnings.append(f"{path} was made elsewhere: its BOS, EOS and vocabulary are not checked")
        try:
            with TokenFile(path) as tokens:
                if file.domain is None and not tokens.domain_names:
                    what = "does not say the domains of its documents, the list says that records do"
                    result.findings.append((path, what))
                if tokens.meta:
                    self._check_meta(tokens, tokens.meta, file, result)
                self._check_documents(tokens, file.domain, result)
                if not result.findings:
                    self._compare_texts(tokens, file, result)
        except verify.FAILURES as error:
            result.findings = result.findings or [(path, verify.describe(error).removeprefix(f"{path} "))]
        return result

    def _check_meta(
        self, tokens: TokenFile, meta: provenance.Meta, file: listing.ListedFile, result: FileResult
    ) -> None:
        """What the meta file says otherwise than headers, list and saved tokenizer."""
        found = []
        for name, value in (("documents", tokens.num_documents), ("tokens", tokens.num_tokens)):
            if meta.get(name) != value:
                found.append(f"has {value:,} {name}, its meta file says {meta.get(name)}")
        if tokens.dtype != TOKEN_DTYPE:
            found.append(f"has dtype {tokens.dtype}, not {TOKEN_DTYPE}")
        source = (meta.made_with.get("source"), meta.made_with.get("source_bytes"))
        if file.num_bytes is None:
            source = source[0], None
        if source != (file.path, file.num_bytes):
            listed = f"the list says {file.path} with {file.num_bytes}"
            found.append(f"was made from {source[0]} with {source[1]} bytes, {listed}")
        if has_other_domains(meta.made_with, file.domain, self.record_domains):
            found.append("was made when the list had another --domain_key or --domain_map")
        identity = read_tokenizer(tokens.path, meta)
        for name, number in (("BOS", identity.bos_id), ("EOS", identity.eos_id)):
            if number is not None and not 0 <= number < identity.vocab_size:
                found.append(f"has the {name} {number} of a vocabulary of {identity.vocab_size:,}")
        made_by = result.tokenizer = identity.fingerprint
        if self.saved is not None and made_by != self.saved.fingerprint:
            found.append(f"was made with another tokenizer ({made_by}) than the saved one ({self.saved.fingerprint})")
        result.findings += [(tokens.path, what) for what in found]

    def _check_documents(self, tokens: TokenFile, domain: str | None, result: FileResult) -> None:
        """Lengths and domains; BOS and EOS at the boundaries of documents, and their ids: of all, or of a sample."""
        ids = DocumentIds(tokens, tokens.tokenizer, self.options.deep)
        sample = verify.sample(tokens.num_documents, self.options.rows, self.options.seed, tokens.path.name)
        counts: dict[str, DomainCounts] = defaultdict(DomainCounts)
        for first, position, lengths in tokens.document_blocks():
            ends = position + np.cumsum(lengths)
            is_here = (sample >= first) & (sample < first + len(lengths))
            chosen = slice(None) if self.options.deep else sample[is_here] - first
            ids.check(np.arange(first, first + len(lengths))[chosen], (ends - lengths)[chosen], ends[chosen])
            for name, of_domain in lengths_by_domain(tokens, domain, first, lengths):
                counts[name].add_lengths(of_domain)
        for of_file in counts.values():
            of_file.files, of_file.chunks = 1, of_file.tokens // CHUNK_TOKENS
        result.findings += [(tokens.path, f"document {document} {what}") for what, document in ids.first_wrong.items()]
        if self.options.deep and tokens.meta:
            others = dict(tokens.meta.files)
            if ids.digest != others.pop(tokens.path.name)["xxh3_64"]:
                result.findings.append((tokens.path, verify.OTHER_HASH))
            result.findings += verify.hash_findings((tokens.path, others))
        if tokens.meta and tokens.domain_names:
            of_meta, names = tokens.meta["domains"], tokens.domain_names
            for what in ("documents", "tokens"):
                if of_meta[what] != [getattr(counts[name], what) for name in names]:
                    result.findings.append((tokens.path, f"has other {what} by domain than its meta file says"))
        result.counts = {name: one for name, one in counts.items() if one.documents}

    def _compare_texts(self, tokens: TokenFile, file: listing.ListedFile, result: FileResult) -> None:
        """Tokenize some documents of the corpus file again."""
        source = self.root / file.path if self.root else None
        if source is None or not source.exists() or not tokens.meta or self.saved is None or not self.options.texts:
            return
        if source.stat().st_size != file.num_bytes:
            result.warnings.append(f"{source} is not the file that was listed: its texts are not compared")
            return
        rng = np.random.default_rng([self.options.seed, int(hashing.key(file.path))])
        made_with = tokens.meta.made_with
        keys = RecordKeys(made_with["text_key"], RecordDomains.recorded(made_with))
        texts: dict[tuple[int, int], tuple[str, str]] = {}
        for where, block in sample_blocks(source, self.options.texts, rng, keys):
            parsed = readers.parse_block(1, block, keys)
            for text, domain in zip(parsed.texts, parsed.domains or [0] * len(parsed.texts), strict=True):
                if len(text) <= MAX_TEXT_CHARACTERS:
                    texts[hash_text(text), domain] = where, text
        for key, found in find_documents(tokens, texts.keys()).items():
            where, text = texts.pop(key)
            ids = add_bos_eos(*self._encode([text]), self.saved.bos_id, self.saved.eos_id)[0]
            result.num_texts += 1
            if not np.array_equal(tokens.tokens(found.start, found.stop), ids):
                what = f"document {found.document} has not the ids of its text, at {where} of {source}"
                result.findings.append((tokens.path, what))
        of_domain = " in its domain" if keys.domains else ""
        for where, _ in texts.values():
            result.findings.append((tokens.path, f"the text at {where} of {source} is not in it{of_domain}"))


def lengths_by_domain(
    tokens: TokenFile, domain: str | None, first: int, lengths: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Lengths of documents from number `first` on, int64 [n], those of each domain together."""
    if domain is not None or not tokens.domain_names:
        yield domain or "(unknown)", lengths
        return
    numbers = tokens.domain_numbers(first, first + len(lengths))
    for number, name in enumerate(tokens.domain_names):
        yield name, lengths[numbers == number]


class DocumentIds:
    """Checks the ids of documents; `first_wrong` has the first document of each kind of finding. Of a file that was
    made elsewhere, it is known only that ids are not negative."""

    def __init__(self, tokens: TokenFile, identity: tokenizers.TokenizerIdentity | None, with_digest: bool) -> None:
        self._tokens, self._identity = tokens, identity
        self._highest = identity.vocab_size - 1 if identity else int(np.iinfo(np.int32).max)
        self._digest = tokens.digest_to(tokens.tokens_start) if with_digest else None
        self.first_wrong: dict[str, int] = {}

    @property
    def digest(self) -> str | None:
        """The hash of the file, once all its documents were looked at, in order."""
        return self._digest and self._digest.hexdigest()

    def check(self, documents: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Look at documents, by number, that stand at positions [starts, ends): int64 [documents] each, ascending."""
        bos = self._identity.bos_id if self._identity else None
        shortest = 0 if self._identity is None else 1 if bos is None else 2
        self._note(f"is shorter than {shortest} tokens", documents, ends - starts < shortest)
        is_text = ends > starts
        documents, starts, ends = documents[is_text], starts[is_text], ends[is_text]
        gaps = np.flatnonzero(starts[1:] != ends[:-1]) + 1
        for run in np.split(np.arange(len(documents)), gaps):
            if len(run):
                self._check_run(documents[run], starts[run], ends[run])

    def _check_run(self, documents: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Look at documents that follow each other without a gap: they are read together, in pieces."""
        for start in range(int(starts[0]), int(ends[-1]), READ_TOKENS):
            stop = min(start + READ_TOKENS, int(ends[-1]))
            ids = self._tokens.tokens(start, stop)
            if self._digest:
                self._digest.update(ids.data)
            if ids.min() < 0 or ids.max() > self._highest:
                wrong = start + int(np.argmax((ids < 0) | (ids > self._highest)))
                which = np.searchsorted(ends, [wrong], "right")
                self._note(f"has ids outside of 0 … {self._highest}", documents[which], np.ones(1, bool))
            if self._identity is None:
                continue
            bos, eos = self._identity.bos_id, self._identity.eos_id
            begun = slice(*np.searchsorted(starts, [start, stop]))
            ended = slice(*np.searchsorted(ends, [start, stop], "right"))
            if bos is not None:
                self._note(f"does not begin with BOS ({bos})", documents[begun], ids[starts[begun] - start] != bos)
            self._note(f"does not end with EOS ({eos})", documents[ended], ids[ends[ended] - 1 - start] != eos)

    def _note(self, what: str, documents: np.ndarray, is_wrong: np.ndarray) -> None:
        if is_wrong.any():
            self.first_wrong.setdefault(what, int(documents[np.argmax(is_wrong)]))


def sample_blocks(
    path: Path, number: int, rng: np.random.Generator, keys: RecordKeys
) -> Iterator[tuple[str, bytes | pa.RecordBatch]]:
    """Lines of a corpus file, or rows of a parquet file's beginning, and where each is."""
    if not is_parquet(path):
        for start, line in sample_lines(path, number, rng):
            yield f"byte {start}", line
        return
    for first, rows, _ in itertools.islice(parquet_blocks(path, keys, SAMPLED_BYTES), 1):
        for row in rng.permutation(len(rows))[:number].tolist():
            yield f"row {first + row}", rows.slice(row, 1)


def sample_lines(path: Path, number: int, rng: np.random.Generator) -> list[tuple[int, bytes]]:
    """Lines of a jsonl file with the byte each starts at: of a plain one the first, and some that follow random bytes;
    of a compressed one, whose bytes are counted decompressed, from its beginning."""
    if readers.is_compressed(path):
        lines = list(io.BytesIO(next((block for _, block, _ in readers.line_blocks(path)), b"")))  # split at LF only
        starts = np.cumsum([0, *map(len, lines)]).tolist()
        return [(starts[index], lines[index]) for index in rng.permutation(len(lines))[:number].tolist()]
    sample = []
    with path.open("rb") as file:
        for offset in [0, *rng.integers(1, max(2, path.stat().st_size), number - 1).tolist()]:
            file.seek(max(0, offset - 1))
            if offset:
                file.readline()
            start, line = file.tell(), file.readline()
            sample.append((start, line if start else line.removeprefix(b"\xef\xbb\xbf")))
    return sample


def find_documents(tokens: TokenFile, keys: Collection[tuple[int, int]]) -> dict[tuple[int, int], Place]:
    """The first document with each of these pairs of a hash and the number of a domain (0 where documents do not say
    their domain); a pair without a document is left out."""
    hashes = np.array(sorted(text_hash for text_hash, _ in keys), np.uint64)
    found: dict[tuple[int, int], Place] = {}
    for first, position, lengths in tokens.document_blocks():
        of_block = tokens.hashes(first, first + len(lengths))
        for index in np.flatnonzero(np.isin(of_block, hashes)).tolist():
            document, start = first + index, position + int(lengths[:index].sum())
            domain = int(tokens.domain_numbers(document, document + 1)[0]) if tokens.domain_names else 0
            if (key := (int(of_block[index]), domain)) in keys:
                found.setdefault(key, Place(start, document, start, start + int(lengths[index])))
    return found
