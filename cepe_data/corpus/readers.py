"""Reading corpus files in blocks: JSON lines, plain, gzip or zstandard, and the rows of parquet files (parquet.py).

A block is parsed into documents; lines or rows that are not documents are counted by reason. A byte-order mark at the
start of a file is dropped. A blank line is neither a document nor an error.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cepe_data.corpus import sniff
from cepe_data.corpus.domains import DomainError, RecordKeys, find_value, parse_json
from cepe_data.corpus.parquet import column_names, is_parquet, parquet_blocks
from cepe_data.errors import DamagedFileError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_LISTED_LINES = 20
MAX_REASONS = 20  # a domain key may be one with another value in every record
OTHER_REASONS = "for other reasons"
CUT_OFF = "cut off at the end of the file"
HOLE = "a run of NUL bytes"  # which a download leaves where it set space aside and wrote nothing
_HOLE_BYTES = b"\0" * 64
MAX_LINE_BYTES = 1 << 30  # no document is longer; a run of NUL bytes may be
_COMPRESSED_READ_BYTES = 4 << 10  # of zstandard, which makes up to 30,000 times as much of them at once
_MIN_READ_BYTES = 64 << 10
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class LineReport:
    """Counts and first line numbers, by reason, of lines that were skipped or repaired."""

    counts: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[int]] = field(default_factory=dict)

    def add(self, reason: str, line: int) -> None:
        """Count one line, numbered from 1."""
        reason = self._counted(reason)
        self.counts[reason] = self.counts.get(reason, 0) + 1
        first_lines = self.lines.setdefault(reason, [])
        if len(first_lines) < MAX_LISTED_LINES:
            first_lines.append(line)

    def merge(self, later: LineReport, lines_before: int) -> None:
        """Add the counts of later lines of the same file, whose numbers start after `lines_before` lines."""
        for later_reason, number in later.counts.items():
            reason = self._counted(later_reason)
            numbers = [line + lines_before for line in later.lines[later_reason]]
            self.counts[reason] = self.counts.get(reason, 0) + number
            self.lines[reason] = (self.lines.get(reason, []) + numbers)[:MAX_LISTED_LINES]

    def _counted(self, reason: str) -> str:
        is_named = reason in self.counts or reason in {CUT_OFF, HOLE} or len(self.counts) < MAX_REASONS
        return reason if is_named else OTHER_REASONS

    @property
    def total(self) -> int:
        """All lines counted."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        return "; ".join(
            f"{self.counts[reason]:,} {reason}, first in lines {', '.join(map(str, self.lines[reason]))}"
            for reason in self.counts
        )

    def as_json(self) -> dict[str, dict[str, object]]:
        """`{reason: {"count": int, "first_lines": [int, …]}}`."""
        return {reason: {"count": self.counts[reason], "first_lines": self.lines[reason]} for reason in self.counts}


def is_compressed(path: Path) -> bool:
    """Whether the lines of a file cannot be read from its middle."""
    return path.suffix in {".gz", ".zst"}


def line_ranges(path: Path, range_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges [start, stop) of whole lines of a plain file, each of at least `range_bytes` but for the last. Only the
    surroundings of their boundaries are read. Raises DamagedFileError if a line is longer than MAX_LINE_BYTES."""
    size, start = path.stat().st_size, 0
    with path.open("rb") as file:
        _check_not_array(path, file.read(sniff.HEAD_BYTES).removeprefix(_BYTE_ORDER_MARK))
        while start < size:
            stop = min(start + range_bytes, size)
            file.seek(stop - 1)
            while stop < size and (piece := file.read(_MIN_READ_BYTES)):
                stop = file.tell()
                if (end := piece.find(b"\n")) >= 0:
                    stop += end + 1 - len(piece)
                    break
                if stop - start > range_bytes + MAX_LINE_BYTES:
                    raise _no_line_end(path, f"byte {start + range_bytes:,}")
            yield start, min(stop, size)
            start = stop


def read_range(path: Path, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a plain file, without the byte-order mark that it may start with.

    Raises:
        DamagedFileError: if it ends before.
    """
    with path.open("rb") as file:
        file.seek(start)
        block = file.read(stop - start)
    if len(block) < stop - start:
        raise DamagedFileError(f"{path} was truncated while it was being read: once it is whole, list it again")
    return block if start else block.removeprefix(_BYTE_ORDER_MARK)


def line_blocks(path: Path, block_bytes: int = 4 << 20) -> Iterator[tuple[int, bytes, int]]:
    """Blocks of whole lines of a file of JSON lines, plain, gzip or zstandard (several members or frames are one
    stream): number of the first line, lines, and how many bytes of the file on disk were read so far.

    Each block ends at a line end or at the end of the file, and all but the last have at least `block_bytes` bytes.

    Raises:
        DamagedFileError: if a compressed file is truncated, damaged, or has something else behind it; if a line is
            longer than MAX_LINE_BYTES.
    """
    pieces = _decompressed(path, max(block_bytes, _MIN_READ_BYTES))
    head, head_read = next(pieces, (b"", 0))
    head = head.removeprefix(_BYTE_ORDER_MARK)
    _check_not_array(path, head)
    pending: list[bytes] = []
    pending_bytes, next_line = 0, 1
    for piece, bytes_read in itertools.chain([(head, head_read)], pieces):
        pending.append(piece)
        pending_bytes += len(piece)
        end = piece.rfind(b"\n") + 1
        if pending_bytes >= block_bytes and end:
            block = b"".join([*pending[:-1], piece[:end]])
            yield next_line, block, bytes_read
            next_line += block.count(b"\n")
            pending, pending_bytes = [piece[end:]], len(piece) - end
        elif pending_bytes > block_bytes + MAX_LINE_BYTES:
            raise _no_line_end(path, f"line {next_line:,}")
    if pending_bytes:
        yield next_line, b"".join(pending), bytes_read


def _no_line_end(path: Path, where: str) -> DamagedFileError:
    """The error for a file that has no line end from `where` on, as far as it was read."""
    size = f"{MAX_LINE_BYTES / 1e9:.2g} GB"
    return DamagedFileError(f"{path} has a line of more than {size}, after {where}: download it again")


def _decompressed(path: Path, piece_bytes: int) -> Iterator[tuple[bytes, int]]:
    """The content of a file in pieces, each with the bytes on disk that were read so far."""
    with path.open("rb") as file:
        if is_compressed(path):
            _check_is_archive(path, file.read(sniff.HEAD_BYTES))
            file.seek(0)
        if path.suffix == ".zst":
            yield from _decompressed_zstandard(path, file)
            return
        decompressed = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        try:
            while piece := decompressed.read(piece_bytes):
                yield piece, file.tell()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DamagedFileError(f"{path} is a damaged gzip file ({error}): download it again") from None


def _decompressed_zstandard(path: Path, file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    import zstandard

    # The stream reader of this library takes a truncated file for the end; frame by frame the end is certain.
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame, frame_bytes = decompressor.decompressobj(), 0
    try:
        while compressed := file.read(_COMPRESSED_READ_BYTES):
            while compressed:
                frame_bytes += len(compressed)
                if piece := frame.decompress(compressed):
                    yield piece, file.tell()
                compressed = b""
                if frame.eof:
                    compressed = frame.unused_data
                    frame, frame_bytes = decompressor.decompressobj(), 0
    except zstandard.ZstdError as error:
        raise DamagedFileError(f"{path} is a damaged zstandard file ({error}): download it again") from None
    if frame_bytes:
        raise DamagedFileError(f"{path} is truncated in the middle of a zstandard frame: download it again")


def _check_not_array(path: Path, head: bytes) -> None:
    """Raise DamagedFileError if a file called `.json` begins as one JSON array, which may be a single endless line."""
    if head.lstrip()[:1] == b"[" and ".json" in path.suffixes[-2:]:
        raise DamagedFileError(
            f"{path} is one JSON array, not JSON lines: convert it with `jq -c '.[]'`, and list the files again"
        )


def _check_is_archive(path: Path, head: bytes) -> None:
    """Raise DamagedFileError unless a file that begins with `head` is the archive that its name says."""
    if not head:
        raise DamagedFileError(f"{path} is empty, which no archive is: download it again")
    expected = "gzip" if path.name.endswith(".gz") else "zstandard"
    found = sniff.binary_format(head)
    if found != expected:
        what = sniff.describe_not_json_lines(head) or f"it is plain text: remove {path.suffix} from its name"
        raise DamagedFileError(f"{path} is not a {expected} file: {what}. Then list the files again")
    if found == "zstandard":
        import zstandard

        # A frame in the middle of a file that is cut in its header is found when it is read.
        with contextlib.suppress(zstandard.ZstdError):
            if dictionary := zstandard.get_frame_parameters(head).dict_id:
                raise DamagedFileError(
                    f"{path} was compressed with the zstandard dictionary {dictionary}, which is not in it: decompress "
                    f"it with `zstd -d -D DICTIONARY`, and list the files again"
                )


def read_blocks(path: Path, keys: RecordKeys, block_bytes: int) -> Iterator[tuple[int, bytes | pa.RecordBatch, int]]:
    """`line_blocks`, or `parquet_blocks`, of a file, for `parse_block`."""
    return parquet_blocks(path, keys, block_bytes) if is_parquet(path) else line_blocks(path, block_bytes)


def parse_block(first: int, block: bytes | pa.RecordBatch, keys: RecordKeys) -> ParsedLines:
    """The documents of a block, whose first line or row has the number `first`."""
    return parse_documents(first, block, keys) if isinstance(block, bytes) else _parse_rows(first, block, keys)


def read_beginning(path: Path) -> bytes:
    """The first lines of a file of JSON lines, decompressed; nothing of a parquet file."""
    return b"" if is_parquet(path) else next((block for _, block, _ in line_blocks(path, 1)), b"")


def first_record_keys(path: Path) -> list[str]:
    """The keys of the first JSON object of a file, nothing if its first lines hold none; of parquet, the columns."""
    import orjson

    if is_parquet(path):
        return column_names(path)
    for line in read_beginning(path).splitlines():
        with contextlib.suppress(orjson.JSONDecodeError):
            if isinstance(record := orjson.loads(line), dict):
                return list(record)
    return []


def _reason_to_skip(line: bytes, error: ValueError, is_last: bool) -> str:
    """Why a line that raised `error` is skipped. JSON that is too deep, or has too large a number, is not cut off."""
    if _HOLE_BYTES in line:
        return HOLE
    if is_last and isinstance(error, (UnicodeDecodeError, json.JSONDecodeError)):
        return CUT_OFF
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"


@dataclass
class ParsedLines:
    """The texts of a block, in order, and the numbers of their domains where records say them; the number of line ends,
    or of rows; lines skipped, and lines repaired."""

    num_lines: int
    texts: list[str] = field(default_factory=list)
    domains: list[int] = field(default_factory=list)
    skipped: LineReport = field(default_factory=LineReport)
    repaired: LineReport = field(default_factory=LineReport)

    def add(self, record: object, number: int, keys: RecordKeys, may_have_surrogates: bool = False) -> None:
        """Add the text and the domain of a record, which is line or row `number`.

        Skipped: what is not an object, whose text is missing or not a string, or that does not say its domain where it
        must. Repaired: a lone surrogate becomes U+FFFD.
        """
        if not isinstance(record, dict):
            self.skipped.add("no JSON object", number)
            return
        try:
            text = find_value(record, keys.text)
            if not isinstance(text, str):
                self.skipped.add(f"{keys.text!r} is no string", number)
                return
            if keys.domains is not None:
                self.domains.append(keys.domains.number_of_record(record))
        except DomainError as error:
            self.skipped.add(str(error), number)
            return
        except (KeyError, ValueError):
            self.skipped.add(keys.no_text, number)
            return
        # With a dot in the key, it may come from a string of JSON.
        if (may_have_surrogates or "." in keys.text) and _SURROGATE.search(text):
            text = _SURROGATE.sub("\ufffd", text)
            self.repaired.add("lone surrogate", number)
        self.texts.append(text)


def parse_documents(first_line: int, block: bytes, keys: RecordKeys) -> ParsedLines:
    """Parse a block of json lines. A line that is not JSON is skipped; a blank line is neither skipped nor repaired.

    A line without its end can only be the last of a file; if it is not JSON, it is counted as `CUT_OFF`.
    """
    lines = block.split(b"\n")
    parsed = ParsedLines(len(lines) - 1)
    last = first_line + len(lines) - 1
    for number, line in enumerate(lines, first_line):
        try:
            record, may_have_surrogates = parse_json(line)
        except ValueError as error:
            if line.strip():
                parsed.skipped.add(_reason_to_skip(line, error, number == last), number)
            continue
        parsed.add(record, number, keys, may_have_surrogates)
    return parsed


def _parse_rows(first_row: int, rows: pa.RecordBatch, keys: RecordKeys) -> ParsedLines:
    """Parse rows of a parquet file. A row that is not UTF-8 is skipped; a null is what it is in JSON."""
    parsed = ParsedLines(len(rows))
    columns = list(zip(rows.schema.names, rows.columns, strict=True))
    for row in range(len(rows)):
        try:
            record = {name: column[row].as_py() for name, column in columns}
        except UnicodeDecodeError:
            parsed.skipped.add("not UTF-8", first_row + row)
            continue
        parsed.add(record, first_row + row, keys)
    return parsed
