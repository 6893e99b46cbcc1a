"""Parquet files: the column of texts and that of domains, some rows at a time.

Texts are decoded from the bytes of a column only where they are used: in the workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cepe_data.corpus.domains import DomainError, RecordDomains, RecordKeys
from cepe_data.errors import DamagedFileError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_ROWS_AT_ONCE = 1 << 14
_BUFFER_BYTES = 1 << 20


def is_parquet(path: Path) -> bool:
    """Whether a file is read as parquet, by its name."""
    return path.suffix == ".parquet"


@dataclass(frozen=True)
class Strings:
    """A column of strings: their UTF-8 one after the other; where each begins, int64 [rows + 1]; and which are there,
    bool [rows]; others are None."""

    data: bytes
    offsets: np.ndarray
    is_valid: np.ndarray

    def __getitem__(self, row: int) -> str | None:
        """A string. Raises UnicodeDecodeError if it is not UTF-8."""
        return self.data[self.offsets[row] : self.offsets[row + 1]].decode() if self.is_valid[row] else None

    def row(self, row: int) -> Strings:
        """One of them."""
        data = self.data[self.offsets[row] : self.offsets[row + 1]]
        return Strings(data, np.array([0, len(data)]), self.is_valid[row : row + 1])

    @classmethod
    def of(cls, column: pa.Array) -> Strings:
        """The strings of an array of strings."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = column.cast(pa.large_string())
        offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
        data = column.buffers()[2]
        view = memoryview(data)[offsets[0] : offsets[-1]] if data is not None and len(column) else memoryview(b"")
        return cls(bytes(view), offsets - offsets[0], pc.is_valid(column).to_numpy(zero_copy_only=False))


@dataclass(frozen=True)
class TextRows:
    """Rows of a parquet file on their way to a worker. `domains` are the strings that say the domain of each row; where
    `domain_key` is not empty they are JSON, with the domain under that key."""

    texts: Strings
    domains: Strings | None = None
    domain_key: str = ""

    def __len__(self) -> int:
        return len(self.texts.is_valid)

    def row(self, row: int) -> TextRows:
        """One of them."""
        return TextRows(self.texts.row(row), self.domains and self.domains.row(row), self.domain_key)

    @property
    def num_bytes(self) -> int:
        """Bytes of texts."""
        return len(self.texts.data)

    def domain_number(self, row: int, domains: RecordDomains) -> int:
        """The number of the domain that a row names. Raises DomainError if it names none."""
        value = self.domains[row] if self.domains else None
        if value is None:
            raise DomainError(f"no domain in {domains.key!r}")
        return domains.number_of_record(value, self.domain_key) if self.domain_key else domains.number_of(value)


def parquet_blocks(path: Path, keys: RecordKeys, block_bytes: int) -> Iterator[tuple[int, TextRows, int]]:
    """Blocks of rows of a parquet file, of about `block_bytes` of text: number of the first row, from 1; rows; and an
    estimate of how many bytes of the file on disk were read so far.

    Row groups are decoded page by page, so that a row group of any size takes the memory of a block.

    Raises:
        DamagedFileError: if the file is damaged, or a column is missing or does not hold strings.
    """
    with _open_parquet(path) as file:
        text = find_column(file, keys.text, path, "--text_key")
        domain = find_column(file, keys.domains.key, path, "--domain_key") if keys.domains else None
        columns = [".".join(column.names) for column in (text, domain) if column]
        size, num_rows, row = path.stat().st_size, file.metadata.num_rows, 0
        for group in range(file.num_row_groups):
            at_once = _rows_at_once(file.metadata.row_group(group), columns[0], block_bytes)
            for batch in file.iter_batches(at_once, [group], columns, use_threads=False):
                values = (domain.strings(batch), domain.rest) if domain else ()
                bytes_read = size * (row + len(batch)) // max(1, num_rows)
                yield row + 1, TextRows(text.strings(batch), *values), bytes_read
                row += len(batch)


def _rows_at_once(group: pq.RowGroupMetaData, name: str, block_bytes: int) -> int:
    """Rows that hold about a block of text."""
    columns = (group.column(number) for number in range(group.num_columns))
    num_bytes = next(column.total_uncompressed_size for column in columns if column.path_in_schema == name)
    return min(MAX_ROWS_AT_ONCE, max(1, block_bytes * group.num_rows // max(1, num_bytes)))


@dataclass(frozen=True)
class StringColumn:
    """A column of strings, by the names of the structs it is in and its own; `rest` is what of a key is left to be
    looked up in the strings, which are then JSON."""

    names: Sequence[str]
    rest: str = ""

    def strings(self, batch: pa.RecordBatch) -> Strings:
        """The strings of a batch. A null struct has null fields."""
        import pyarrow.compute as pc

        first, *others = self.names
        column = batch.column(first)
        return Strings.of(pc.struct_field(column, others) if others else column)


def find_column(file: pq.ParquetFile, key: str, path: Path, flag: str) -> StringColumn:
    """The column of a key: of that very name, or `a.b`, the field b of the struct a, or b in the JSON that a holds.
    `flag` is what the user names the key with.

    Raises:
        DamagedFileError: if there is none, or it is not a column of strings.
    """
    import pyarrow as pa

    schema = file.schema_arrow
    names, rest = ([key], "") if key in schema.names else ([key.partition(".")[0]], key.partition(".")[2])
    if names[0] not in schema.names:
        raise DamagedFileError(f"{path} has no column {key!r}, but {', '.join(schema.names)}: pass one with {flag}")
    kind = schema.field(names[0]).type
    while pa.types.is_struct(kind) and rest:
        name, _, rest = rest.partition(".")
        fields = [kind.field(number).name for number in range(kind.num_fields)]
        if name not in fields:
            raise DamagedFileError(f"{path} has no field {name!r} in {'.'.join(names)!r}, but {', '.join(fields)}")
        names, kind = [*names, name], kind.field(name).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value)):
        raise DamagedFileError(f"the column {'.'.join(names)!r} of {path} holds {kind}, not strings")
    return StringColumn(names, rest)


def column_names(path: Path) -> list[str]:
    """The names of the columns of a parquet file. Raises DamagedFileError if it is damaged."""
    with _open_parquet(path) as file:
        return list(file.schema_arrow.names)


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A parquet file, to be read page by page. DamagedFileError replaces what pyarrow raises for a damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    options = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False, "page_checksum_verification": True}
    try:
        with pq.ParquetFile(path, **options) as file:
            yield file
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())
        raise DamagedFileError(f"{path} is a damaged parquet file ({what}): download it again") from None
