"""Parquet files: the columns of the text and of the domain, some rows at a time.

A row is a record, as a JSON line is: a struct is an object. Values become Python objects in the workers only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cepe_data.corpus.domains import RecordKeys
from cepe_data.errors import DamagedFileError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_ROWS_AT_ONCE = 1 << 14
_BUFFER_BYTES = 1 << 20


def is_parquet(path: Path) -> bool:
    """Whether a file is read as parquet, by its name."""
    return path.suffix == ".parquet"


def parquet_blocks(path: Path, keys: RecordKeys, block_bytes: int) -> Iterator[tuple[int, pa.RecordBatch, int]]:
    """Blocks of rows of a parquet file, of about `block_bytes` of text: number of the first row, from 1; rows, with the
    columns that the keys are in; and an estimate of how many bytes of the file on disk were read so far.

    Row groups are decoded page by page, so that a row group of any size takes the memory of a block.

    Raises:
        DamagedFileError: if the file is damaged, or a column is missing or does not hold strings.
    """
    with _open_parquet(path) as file:
        text = find_column(file, keys.text, path, "--text_key")
        columns = [text, *([find_column(file, keys.domains.key, path, "--domain_key")] if keys.domains else [])]
        size, num_rows, row = path.stat().st_size, file.metadata.num_rows, 0
        for group in range(file.num_row_groups):
            at_once = _rows_at_once(file.metadata.row_group(group), text, block_bytes)
            for batch in file.iter_batches(at_once, [group], columns, use_threads=False):
                bytes_read = size * (row + len(batch)) // max(1, num_rows)
                yield row + 1, _without_dictionaries(batch), bytes_read
                row += len(batch)


def _without_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with strings instead of categories: each batch would bring the categories of the whole row group."""
    import pyarrow as pa

    def plain(field: pa.Field) -> pa.Field:
        if pa.types.is_struct(field.type):
            return field.with_type(pa.struct([plain(inner) for inner in field.type]))
        return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field

    return batch.cast(pa.schema([plain(field) for field in batch.schema]))


def _rows_at_once(group: pq.RowGroupMetaData, name: str, block_bytes: int) -> int:
    """Rows that hold about a block of text."""
    columns = (group.column(number) for number in range(group.num_columns))
    num_bytes = next(column.total_uncompressed_size for column in columns if column.path_in_schema == name)
    return min(MAX_ROWS_AT_ONCE, max(1, block_bytes * group.num_rows // max(1, num_bytes)))


def find_column(file: pq.ParquetFile, key: str, path: Path, flag: str) -> str:
    """The dotted path of the column that holds the value of a key, found as `domains.find_value` finds it: the column
    of that very name, or for `a.b` the field b of the struct a, or a itself where it holds strings, which are then
    JSON. `flag` is what the user names the key with.

    Raises:
        DamagedFileError: if there is none, or it is not a column of strings.
    """
    import pyarrow as pa

    names: list[str] = []
    kind = pa.struct(list(file.schema_arrow))
    while key and pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        name, _, key = (key, "", "") if key in fields else key.partition(".")
        if name not in fields:
            place = f"field {name!r} in {'.'.join(names)!r}" if names else f"column {name!r}"
            raise DamagedFileError(f"{path} has no {place}, but {', '.join(fields)}: pass one with {flag}")
        names, kind = [*names, name], fields[name]
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value)):
        raise DamagedFileError(f"the column {'.'.join(names)!r} of {path} holds {kind}, not strings")
    return ".".join(names)


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
