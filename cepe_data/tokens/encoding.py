"""From jsonl files to token files: a reader, worker processes that parse and encode, a writer in order.

A batch is a list of segments, whole lines of one file each. Small files share batches, because a backend may cache
words and starts each batch with an empty cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from cepe_data import cli, workers
from cepe_data.corpus import listing, readers, sniff
from cepe_data.corpus.domains import RecordKeys
from cepe_data.corpus.parquet import is_parquet
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.storage import outputs, provenance
from cepe_data.tokens import backends, token_file, tokenizers
from cepe_data.tokens.backends import Encoder
from cepe_data.tokens.tokenizers import TokenizerIdentity

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES = 16 << 20  # gigatoken's cache of words is empty when a batch begins: books take 7 % longer in 8 MB
MIN_BAD_LINES = 10
MAX_FILES_WITHOUT_KEY = 10
_SMALL_TOKENS = 1 << 20
_SMALL_FILES_TOGETHER = 64
_MAX_UNPUBLISHED_FILES = 64
_NUM_PUBLISHERS = 8
_MAX_BATCH_SEGMENTS = 1024


@dataclass(frozen=True)
class TokenizeOptions(outputs.WriteOptions):
    """The arguments of tokenize_jsonl.py."""

    data_dir: str | None
    file_list: Path
    output_dir: Path
    dry_run: bool
    tokenizer: str | None
    text_key: str
    backend: str | None
    verify_documents: int
    max_bad_lines: float
    num_workers: int
    shard_id: int | None
    num_shards: int | None


@dataclass(frozen=True)
class Segment:
    """Some lines or rows of a file, bytes [start, stop) of the source on disk.

    Of a plain file, `block` is None, and the worker reads it. Of other files, `block` was decompressed by the reader,
    and the range is for the progress bar. The last segment of a file is empty. It has the `failure` that ended the
    reading, and the `version` of the source when the reading began.
    """

    file: listing.ListedFile
    source: Path
    start: int
    stop: int
    block: bytes | pa.RecordBatch | None = None
    is_last: bool = False
    failure: str = ""
    version: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of lines, or of the columns of rows."""
        if self.block is None:
            return self.stop - self.start
        return len(self.block) if isinstance(self.block, bytes) else self.block.nbytes

    def read(self) -> bytes | pa.RecordBatch:
        """The lines or rows."""
        return readers.read_range(self.source, self.start, self.stop) if self.block is None else self.block


@dataclass(frozen=True)
class EncodedSegment:
    """The documents of a segment: ids with BOS and EOS (uint16 where they fit, half as much to send, else int32),
    lengths int64, hashes uint64; where records say their domain, its number, uint8. Lines in the reports count from 1
    in the segment."""

    ids: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    domains: np.ndarray | None
    num_lines: int
    skipped: readers.LineReport
    repaired: readers.LineReport
    failure: str = ""


EncodedSegments = Iterator[tuple[Segment, EncodedSegment]]


@dataclass(frozen=True)
class SegmentEncoder:
    """The task that encodes a batch of segments with the tokenizer that is saved in `folder`, one result a segment."""

    backend: str
    folder: Path
    identity: TokenizerIdentity
    keys: RecordKeys

    @cached_property
    def _encode_texts(self) -> Encoder:
        return backends.make_encoder(self.backend, tokenizers.read_saved(self.folder))

    def __call__(self, segments: Sequence[Segment]) -> list[EncodedSegment]:
        parsed, failures = [], []
        for segment in segments:
            try:
                block, failure = segment.read(), ""
            except (OSError, DamagedFileError) as error:
                block, failure = b"", _describe(segment.source, error)
            parsed.append(readers.parse_block(1, block, self.keys.of(segment.file.domain)))
            failures.append(failure)
        texts = [text for lines in parsed for text in lines.texts]
        hashes = np.fromiter(map(hash_text, texts), np.uint64, len(texts))
        ids, lengths = self._encode_texts(texts)
        ids, lengths = token_file.add_bos_eos(ids, lengths, self.identity.bos_id, self.identity.eos_id)
        if self.identity.vocab_size <= 1 << 16:
            ids = ids.astype(np.uint16)
        encoded, document, position = [], 0, 0
        for segment, lines, failure in zip(segments, parsed, failures, strict=True):
            stop = document + len(lines.texts)
            end = position + int(lengths[document:stop].sum())
            domains = np.array(lines.domains, np.uint8) if segment.file.domain is None else None
            arrays = ids[position:end], lengths[document:stop], hashes[document:stop], domains
            encoded.append(EncodedSegment(*arrays, lines.num_lines, lines.skipped, lines.repaired, failure))
            document, position = stop, end
        return encoded


def describe_missing_key(source: Path, text_key: str) -> str:
    """The message for a file in which no record has the key of the text."""
    keys = readers.first_record_keys(source)
    return (
        f"no record of {source} has the key {text_key!r}: its first one has {', '.join(map(repr, keys)) or 'no key'}. "
        f"Pass the one that holds the text with --text_key"
    )


def hash_text(text: str) -> int:
    """xxh3_64 of the UTF-8 text."""
    return xxhash.xxh3_64_intdigest(text.encode())


def _describe(source: Path, error: OSError | DamagedFileError) -> str:
    return str(error) if isinstance(error, DamagedFileError) else f"{source}: {error.strerror}"


def _version(source: Path) -> tuple[int, ...]:
    """What changes when a file is written to or replaced."""
    status = source.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def batch_segments(segments: Iterator[Segment]) -> Iterator[list[Segment]]:
    """Groups of consecutive segments of at least BATCH_BYTES, but for the last."""
    batch: list[Segment] = []
    num_bytes = 0
    for segment in segments:
        batch.append(segment)
        num_bytes += segment.num_bytes
        if num_bytes >= BATCH_BYTES or len(batch) >= _MAX_BATCH_SEGMENTS:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


@dataclass
class Totals:
    """Totals over the files of a run; every failure names its file."""

    files: int = 0
    documents: int = 0
    tokens: int = 0
    skipped: int = 0
    repaired: int = 0
    failures: list[str] = field(default_factory=list)
    without_key: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Tokenization:
    """What all files of a run share."""

    root: Path
    output_dir: Path
    keys: RecordKeys
    max_bad_lines: float
    identity: TokenizerIdentity
    options: outputs.WriteOptions = outputs.REPLACE_NOTHING

    def made_with(self, file: listing.ListedFile) -> provenance.Provenance:
        """What determines the bytes of a token file."""
        domains = self.keys.of(file.domain).domains
        return {
            "source": file.path,
            "source_bytes": file.num_bytes,
            "text_key": self.keys.text,
            **(domains.made_with if domains else {}),
            "tokenizer": self.identity.as_json(),
        }

    def output(self, file: listing.ListedFile) -> outputs.Output:
        """The token file of a listed file."""
        return self.options.output_at(self.output_dir / file.token_file, self.made_with(file))

    def is_done(self, file: listing.ListedFile, totals: Totals) -> bool:
        """Whether nothing is to be done for a file: its token file is there, and its source is gone or as it was
        listed; or one of them is damaged, which is added to the failures."""
        try:
            is_made = self.output(file).is_done()
            if is_made and (self.root / file.path).exists():
                self._check_size(file)
            return is_made
        except DamagedFileError as error:
            totals.failures.append(str(error))
            return True

    def tokenize(
        self, files: Sequence[listing.ListedFile], backend: str, num_workers: int, name: str, totals: Totals
    ) -> None:
        """Make the token files. A file that fails is named in `totals`; the others go on."""
        encoder = SegmentEncoder(backend, self.output_dir / "tokenizer", self.identity, self.keys)
        with (
            workers.Workers(num_workers, encoder) as pool,
            _Publisher() as publisher,
            cli.progress_bar(sum(file.num_bytes or 0 for file in files), "B", name, unit_scale=True) as bar,
        ):
            batches = batch_segments(segment for file in files for segment in self.read(file))
            max_bytes = (num_workers + 2) * BATCH_BYTES
            results = pool.map_in_order(batches, lambda batch: sum(one.num_bytes for one in batch), max_bytes)
            segments = _single_segments(results, bar.update)
            for file in files:
                self._write(file, segments, publisher, totals)
                if (number := len(totals.without_key)) >= MAX_FILES_WITHOUT_KEY:
                    message = describe_missing_key(totals.without_key[0], self.keys.text)
                    raise ArgumentError(f"{number} files failed alike: {message}")

    def _write(
        self, file: listing.ListedFile, segments: EncodedSegments, publisher: _Publisher, totals: Totals
    ) -> None:
        """Write the token file of the next segments, up to the last one of a file, and hand it to the publisher."""
        source, domains = self.root / file.path, self.keys.of(file.domain).domains
        writer = publisher.writer = token_file.TokenFileWriter(self.output(file), domains.names if domains else ())
        skipped, repaired = readers.LineReport(), readers.LineReport()
        num_lines, failure = 0, ""
        for segment, encoded in segments:
            writer.append(encoded.ids, encoded.lengths, encoded.hashes, encoded.domains)
            skipped.merge(encoded.skipped, num_lines)
            repaired.merge(encoded.repaired, num_lines)
            num_lines += encoded.num_lines
            failure = failure or segment.failure or encoded.failure
            if segment.is_last:
                failure = failure or _describe_change(segment)
                break
        failure = failure or self._describe_bad_content(source, skipped, writer.num_documents, totals)
        if failure:
            totals.failures.append(failure)
            cli.warn(failure)
            writer.close()
            return
        for what, report in (("skipped", skipped), ("repaired", repaired)):
            if report.total:
                cli.warn(f"{source}: {report.total:,} lines {what} ({report})")
        if not writer.num_documents:
            cli.warn(f"{source} has no document")
        totals.files += 1
        totals.documents += writer.num_documents
        totals.tokens += writer.num_tokens
        totals.skipped += skipped.total
        totals.repaired += repaired.total
        publisher.publish({"skipped_lines": skipped.as_json(), "mended_lines": repaired.as_json()})

    def _describe_bad_content(self, source: Path, skipped: readers.LineReport, num_good: int, totals: Totals) -> str:
        """Why a file fails for its lines: it was cut off, or it has more bad lines than are allowed."""
        num_bad, share = skipped.total, self.max_bad_lines
        damage = next((reason for reason in (readers.HOLE, readers.CUT_OFF) if reason in skipped.counts), None)
        if not damage and num_bad <= (max(MIN_BAD_LINES, share * (num_bad + num_good)) if share and num_good else 0):
            return ""
        what = f"{source} has {num_bad:,} bad lines and {num_good:,} good ones ({skipped})"
        if described := sniff.describe_not_json_lines(readers.read_beginning(source)[: sniff.HEAD_BYTES]):
            return f"{what}: {described}. Then list the files again"
        if damage:
            is_cut, line = damage == readers.CUT_OFF, skipped.lines[damage][0]
            where = "ends inside a record" if is_cut else f"has {damage}"
            return (
                f"{source} {where}, in line {line:,}: it {'was cut off' if is_cut else 'is damaged'}. Download it "
                f"again, or remove that line; then list the files again"
            )
        if self.keys.no_text in skipped.counts and not num_good:
            totals.without_key.append(source)
            if len(totals.without_key) > 1:
                return f"no record of {source} has the key {self.keys.text!r} either"
            return describe_missing_key(source, self.keys.text)
        if self.keys.domains and any(reason.startswith("unknown domain") for reason in skipped.counts):
            return f"{what}: get_all_jsonl.py --domain_map VALUE=DOMAIN,… adds domains, --max_bad_lines allows more"
        if self.keys.domains and any(reason.startswith("no domain") for reason in skipped.counts):
            names = ", ".join(readers.first_record_keys(source))
            return (
                f"{what}: its first record has {names}. get_all_jsonl.py --domain_key names the key of the domain, "
                f"--max_bad_lines allows more"
            )
        return f"{what}: is it the right file? --max_bad_lines allows more"

    def _check_size(self, file: listing.ListedFile) -> None:
        source = self.root / file.path
        if (size := source.stat().st_size) != file.num_bytes:
            raise DamagedFileError(
                f"{source} has {size:,} bytes, but had {file.num_bytes:,} when it was listed: once it is whole, run "
                f"get_all_jsonl.py again"
            )

    def read(self, file: listing.ListedFile) -> Iterator[Segment]:
        """The lines of a file in segments; the last one says if it could not be read to its end."""
        source = self.root / file.path
        position, failure = 0, ""
        version: tuple[int, ...] = ()
        try:
            version = _version(source)
            self._check_size(file)
            if readers.is_compressed(source) or is_parquet(source):
                blocks = readers.read_blocks(source, self.keys.of(file.domain), BATCH_BYTES)
                for _, block, stop in blocks:
                    yield Segment(file, source, position, stop, block)
                    position = stop
            else:
                for start, stop in readers.line_ranges(source, BATCH_BYTES):
                    yield Segment(file, source, start, stop)
                    position = stop
        except (DamagedFileError, OSError) as error:
            failure = _describe(source, error)
        yield Segment(file, source, position, file.num_bytes or 0, b"", is_last=True, failure=failure, version=version)


def _single_segments(
    results: Iterable[tuple[Sequence[Segment], Sequence[EncodedSegment]]], progress: Callable[[int], object]
) -> EncodedSegments:
    """The segments of batches one by one, each with its result; `progress` is told of their bytes."""
    for segments, encoded in results:
        for segment, result in zip(segments, encoded, strict=True):
            progress(segment.stop - segment.start)
            yield segment, result


def _describe_change(last: Segment) -> str:
    """The message if a source changed since its reading began; empty if not. All of it is read by now."""
    try:
        if _version(last.source) == last.version:
            return ""
    except OSError:
        pass
    return f"{last.source} changed while it was being read: run get_all_jsonl.py again"


class _Publisher:
    """Publishes token files: a large one in a thread, while the next is written; small ones many at a time, because
    threads that do little but call the system wait for each other.

    `writer` is the one in use. It is closed when no thread can be at work on its file any more.
    """

    def __init__(self) -> None:
        self.writer: token_file.TokenFileWriter | None = None
        self._threads = ThreadPoolExecutor(_NUM_PUBLISHERS)
        self._publishing: deque[Future[None]] = deque()
        self._sealed: list[token_file.TokenFileWriter] = []

    def __enter__(self) -> _Publisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or not issubclass(kind, KeyboardInterrupt):
                self._publish_sealed()  # these are whole, whatever failed after them
            if kind is None:
                while self._publishing:
                    self._publishing.popleft().result()
        except OSError:
            if kind is None:
                raise
        finally:
            self._threads.shutdown(wait=True, cancel_futures=True)
            for writer in [*self._sealed, *filter(None, [self.writer])]:
                writer.close()

    def publish(self, metadata: Mapping[str, object]) -> None:
        """Publish the token file of `writer`, at the latest on leaving, and close the writer."""
        writer = self.writer
        assert writer is not None
        if writer.num_tokens < _SMALL_TOKENS:
            writer.seal(metadata)
            self._sealed.append(writer)
            if len(self._sealed) >= _SMALL_FILES_TOGETHER:
                self._publish_sealed()
        else:
            while len(self._publishing) >= _MAX_UNPUBLISHED_FILES:
                self._publishing.popleft().result()
            self._publishing.append(self._threads.submit(_publish, writer, metadata))
        self.writer = None

    def _publish_sealed(self) -> None:
        outputs.publish_together([writer.draft for writer in self._sealed])
        for writer in self._sealed:
            writer.close()
        self._sealed = []


def _publish(writer: token_file.TokenFileWriter, metadata: Mapping[str, object]) -> None:
    """Publish a token file, in a thread."""
    try:
        writer.publish(metadata)
    finally:
        writer.close()
