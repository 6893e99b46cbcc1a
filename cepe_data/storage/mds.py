"""MDS sets: column types, writing a shard, reading rows. The only place that imports streaming.

    index.json           {"shards": [{"column_names", "column_encodings", "samples", "raw_data": {"basename"}, …}, …]}
    shard.00000.mds …    uint32 [1 + rows + 1]: the number of rows, the offset of each, the end; the same as JSON; rows

Columns are typed, never pickled: `ndarray:int16:4096`, `str`, `json`. Sets are joined from parts: storage/parts.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import types
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.storage import outputs, provenance

INDEX_NAME = "index.json"
_OPEN_SHARDS = 4
_HASHED_ROWS = 256  # read at a time
SHARD_NAME = "shard.00000.mds"
MAX_SHARD_BYTES = (1 << 32) - 1  # offsets inside a shard are uint32
_NUMBERS = {"int", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"}
_NUMBERS |= {"float16", "float32", "float64"}

Columns = Mapping[str, str]
Decoders = Mapping[str, Callable[[bytes], Any]]  # column type → what decodes a cell
_NO_DECODERS: Decoders = {}


def import_streaming() -> types.ModuleType:
    """mosaicml-streaming, without its vision datasets.

    They import torchvision, which fails where it was built for another torch; nothing here needs them, so an empty
    module takes their place. This also saves a second.
    """
    sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))
    import streaming

    return streaming


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest signed integer dtype, int16 or more, that holds every id below `vocab_size`. (Signed, because torch
    before 2.3 refuses uint16.)"""
    return np.dtype(np.int16 if vocab_size <= 1 << 15 else np.int32)


def array_column(dtype: np.dtype, *shape: int) -> str:
    """The column type of an array of this dtype and shape: `ndarray:int16:4096`."""
    return f"ndarray:{dtype.name}:{','.join(map(str, shape))}"


def column_array(column: str) -> tuple[np.dtype, tuple[int, ...]]:
    """dtype and shape of a column type that `array_column` made.

    Raises:
        ValueError: for another column type.
    """
    kind, _, rest = column.partition(":")
    dtype, _, shape = rest.partition(":")
    if kind != "ndarray" or not shape:
        raise ValueError(f"the column type {column} is not an array of a known dtype and shape")
    return np.dtype(dtype), tuple(int(size) for size in shape.split(","))


def rows_per_shard(columns: Columns, shard_bytes: int) -> int:
    """How many rows of these columns fill a shard of about `shard_bytes`."""
    return max(1, shard_bytes // row_bytes(columns))


def row_bytes(columns: Columns) -> int:
    """Bytes of a row in a shard; columns of variable size count nothing."""
    return 4 + sum(_column_bytes(column) or 0 for column in columns.values())


def check_shard_size(columns: Columns, num_rows: int, flag: str) -> None:
    """Raise ArgumentError, naming `flag`, if an MDS shard cannot hold so many rows."""
    if num_rows > (most := rows_per_shard(columns, MAX_SHARD_BYTES)):
        raise ArgumentError(f"{flag} {num_rows}: an MDS shard holds at most {most} such rows")


def window_rows(columns: Columns, texts: Mapping[str, str], num_rows: int) -> np.ndarray:
    """Encoded rows to be filled, a structured array [num_rows] with a field for every column: arrays are empty, a `str`
    has the same text, from `texts`, in every row. See `_encode_row` for the layout."""
    encoded = {name: texts[name].encode() for name, column in columns.items() if column == "str"}
    head, names = np.array([len(encoded[name]) for name in sorted(encoded)], "<u4"), sorted(columns)
    fields: list[Any] = [("(sizes)", head.dtype, head.shape)]
    for name in names:
        fields.append((name, f"S{len(encoded[name])}") if name in encoded else (name, *column_array(columns[name])))
    rows = np.empty(num_rows, fields)
    rows["(sizes)"] = head
    for name, text in encoded.items():
        rows[name] = text
    return rows


def _encode_row(columns: Columns, row: Mapping[str, Any]) -> bytes:
    """A row as it stands in a shard: the bytes of its columns in the order of their names, and before them the sizes of
    texts and JSON, uint32 (streaming/base/format/mds/writer.py of mosaicml-streaming).

    Raises:
        ValueError: if an array is not of its column's dtype and shape.
    """
    sizes, values = [], []
    for name in sorted(columns):
        column, value = columns[name], row[name]
        if column.startswith("ndarray:"):
            if (value.dtype, value.shape) != column_array(column):
                raise ValueError(f"{name} is {value.dtype} {value.shape}, the column is {column}")
            values.append(value.tobytes())
        elif column in _NUMBERS:
            values.append(np.array(value, column).tobytes())
        else:
            values.append((value if column == "str" else json.dumps(value)).encode())
            sizes.append(len(values[-1]))
    return b"".join([np.array(sizes, "<u4").tobytes(), *values])


def write_shard(
    output: outputs.Output,
    columns: Columns,
    num_rows: int,
    rows: np.ndarray | Iterable[Mapping[str, Any]],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write and publish a set of one MDS shard. Its bytes are those that MDSWriter writes, which
    copies them three times, holds the shard in memory, and takes seconds to import.

    Args:
        rows: what `window_rows` made; or one value for every column each.
        metadata: what the meta file says beside the number of rows.

    Raises:
        PipelineError: if there are not `num_rows` rows, or more than a shard can hold.
    """
    config = _shard_config(columns)
    text = json.dumps(config, sort_keys=True).encode()
    offsets = np.zeros(num_rows + 1, np.int64)
    offsets[0], done = 4 + 4 * len(offsets) + len(text), 0
    with output.draft(is_folder=True) as draft:
        with (draft.path / SHARD_NAME).open("wb") as file:
            file.seek(offsets[0])
            if isinstance(rows, np.ndarray):
                offsets[1:], done = rows.itemsize, len(rows)
                file.write(rows.view(np.uint8).data)
            else:
                for done, row in enumerate(rows, 1):
                    encoded = _encode_row(columns, row)
                    offsets[min(done, num_rows)] = len(encoded)
                    file.write(encoded)
            ends = np.cumsum(offsets)
            if done != num_rows or not num_rows or ends[-1] > MAX_SHARD_BYTES:
                raise PipelineError(
                    f"{output.path}: {done} rows of {num_rows}, {ends[-1]:,} bytes; lower --rows_per_part"
                )
            file.seek(0)
            file.write(np.uint32(num_rows).tobytes() + ends.astype("<u4").tobytes() + text)
        raw_data = {"basename": SHARD_NAME, "bytes": int(ends[-1]), "hashes": {}}
        write_index(draft.path, [{**config, "raw_data": raw_data, "samples": num_rows, "zip_data": None}])
        draft.publish({**(metadata or {}), "rows": num_rows})


def _shard_config(columns: Columns) -> dict[str, Any]:
    """What a shard and the index say of a shard's format."""
    names = sorted(columns)
    return {
        "column_encodings": [columns[name] for name in names],
        "column_names": names,
        "column_sizes": [_column_bytes(columns[name]) for name in names],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": MAX_SHARD_BYTES,
        "version": 2,
    }


def write_index(folder: Path, shards: Sequence[Mapping[str, Any]]) -> None:
    """Write the index of a set, from what it says of every shard."""
    index = json.dumps({"shards": shards, "version": 2}, sort_keys=True)
    (folder / INDEX_NAME).write_text(index, encoding="utf-8")


def read_index(folder: Path, decoded_types: Collection[str] = ()) -> list[dict[str, Any]]:
    """The shards of an MDS set, from its index, checked before anything is decoded. Columns of `decoded_types` are
    allowed too, because the caller decodes them.

    Raises:
        ArgumentError: if there is no set.
        DamagedFileError: if the index is damaged, names files elsewhere, or has a column that would be unpickled.
    """
    path = folder / INDEX_NAME
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["shards"]
        if not shards:
            raise ValueError("it names no shard")
        for shard in shards:
            _check_shard(folder, shard, decoded_types)
            if any(shard[name] != shards[0][name] for name in ("column_names", "column_encodings")):
                raise ValueError(f"{shard['raw_data']['basename']} has other columns than the first shard")
    except (FileNotFoundError, NotADirectoryError):
        sets = sorted(path.parent.name for path in folder.glob(f"*/{INDEX_NAME}")) if folder.is_dir() else []
        hint = f"; there is one in its {', '.join(sets)}" if sets else ""
        raise ArgumentError(f"{folder} holds no MDS set: no {INDEX_NAME} is in it{hint}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} is not right: {error}") from None
    return shards


def _check_shard(folder: Path, shard: dict[str, Any], decoded_types: Collection[str]) -> None:
    name, num_bytes, num_samples = shard["raw_data"]["basename"], shard["raw_data"]["bytes"], shard["samples"]
    if Path(name).name != name:
        raise ValueError(f"it names the file {name}")
    if not (folder / name).is_file() or (folder / name).stat().st_size != num_bytes:
        raise ValueError(f"{name} is not there with its {num_bytes} bytes")
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"{name} has {num_samples} samples")
    if len(shard["column_names"]) != len(shard["column_encodings"]):
        raise ValueError("it has not one type for every column")
    for column in shard["column_encodings"]:
        if column.startswith("ndarray"):
            column_array(column)
        elif column not in {"str", "json", *_NUMBERS, *decoded_types}:
            raise ValueError(f"it has a column of type {column}, which is not read: it could run code")


def read_columns(folder: Path) -> dict[str, str]:
    """Column names and types of an MDS set. Raises as `read_index`."""
    first = read_index(folder)[0]
    return dict(zip(first["column_names"], first["column_encodings"], strict=True))


def num_rows(folder: Path) -> int:
    """The number of rows of an MDS set, from its index. Raises as `read_index`."""
    return sum(shard["samples"] for shard in read_index(folder))


def find_domains(folder: Path, domains: str) -> list[str]:
    """The domains of the sets in a folder, for `all`; else the names in a list with commas.

    Raises:
        ArgumentError: if there is none, or a name is not one.
        DamagedFileError: if a set has lost its index.
    """
    if domains != "all":
        names = [name.strip("/") for name in domains.split(",")]
        for name in names:
            if not name or Path(name).name != name or name.startswith("."):
                raise ArgumentError(f"--domain {domains}: {name!r} is not a name of a domain folder in {folder}")
        return list(dict.fromkeys(names))
    folders = [path for path in sorted(folder.glob("[!.]*/")) if path.suffix not in {".parts", ".queries"}]
    for path in folders:
        if not (path / INDEX_NAME).exists() and next(path.glob("*.mds"), None):
            raise DamagedFileError(f"{path} has shards and no {INDEX_NAME}: make the set again")
    if found := [path.name for path in folders if (path / INDEX_NAME).exists()]:
        return found
    raise ArgumentError(f"{folder} holds no domain folders with an MDS set")


def fingerprint(folder: Path, decoded_types: Collection[str] = ()) -> str:
    """A hash of an MDS set's index and shards: from its meta file, or where it was made elsewhere, of their bytes.
    `decoded_types` as in `read_index`.

    Raises:
        DamagedFileError: if they are not what the meta file says.
    """
    meta = provenance.read_meta(folder)
    if meta is not None:
        if lost := provenance.lost_files(folder, meta):
            raise DamagedFileError(f"{lost[0]} is gone or has not the size it was written with: make {folder} again")
        return provenance.fingerprint(
            {name: metadata for name, metadata in meta["files"].items() if not name.startswith("../")}
        )
    names = [INDEX_NAME, *(shard["raw_data"]["basename"] for shard in read_index(folder, decoded_types))]
    return provenance.fingerprint({name: provenance.file_metadata(folder / name) for name in names})


class Rows:
    """The rows of an MDS set by number, as LocalDataset gives them, without the seconds that importing streaming takes;
    and many rows at once. Nothing is unpickled. Any number of processes may read. Memory does not grow with the set but
    for its index; `max_open_shards` file descriptors are kept open. Where many sets are read, use it as a context
    manager, which closes them.

    Args:
        columns: the columns to decode; all by default.
        decoders: how columns of other types than those of this pipeline are decoded; else a set that has them is
            refused.

    Raises:
        as `read_index`; and while reading, DamagedFileError if a shard is damaged.
    """

    def __init__(
        self,
        folder: Path,
        columns: Collection[str] | None = None,
        max_open_shards: int = _OPEN_SHARDS,
        decoders: Decoders = _NO_DECODERS,
    ) -> None:
        self.folder = folder
        self.shards = read_index(folder, decoders)
        self._columns, self._max_open_shards, self._decoders = columns, max_open_shards, decoders
        self._ends = list(accumulate(shard["samples"] for shard in self.shards))
        self._open: dict[int, _ShardRows] = {}

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        """A file descriptor means nothing in the process that a DataLoader spawns."""
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> dict[str, Any]:
        shard, first = self._shard_of(row, row + 1)
        return shard.row(row - first, first)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def read(self, start: int, stop: int) -> dict[str, Any]:
        """The columns of rows [start, stop), which must be of one shard (see `blocks`): arrays [rows, *shape] of those
        that are arrays, lists of the others."""
        shard, first = self._shard_of(start, stop)
        return shard.read(start - first, stop - first, first)

    def _shard_of(self, start: int, stop: int) -> tuple[_ShardRows, int]:
        """The shard that has row `start`, and the number of its first row."""
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"{self.folder} has {len(self)} rows: there are no rows {start} to {stop}")
        number = bisect_right(self._ends, start)
        return self._shard(number), self._first_row(number)

    def blocks(self, rows_at_once: int) -> Iterator[tuple[int, int]]:
        """Ranges of at most so many rows, each in one shard, that cover the set."""
        for end, shard in zip(self._ends, self.shards, strict=True):
            for start in range(end - shard["samples"], end, rows_at_once):
                yield start, min(start + rows_at_once, end)

    def places(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Where rows [start, stop) are, as far as there are such rows: numbers of shards, each with a range of its
        rows."""
        for number in range(bisect_right(self._ends, start), len(self.shards)):
            first = self._first_row(number)
            if first >= stop:
                return
            yield number, max(start - first, 0), min(stop - first, self.shards[number]["samples"])

    def fingerprint(self, start: int, stop: int) -> str:
        """A hash of the columns, and of the content of rows [start, stop), as far as there are such rows. It does not
        depend on where shards begin."""
        columns = [self.shards[0][name] for name in ("column_names", "column_encodings")]
        sizes, content = xxhash.xxh3_64(), xxhash.xxh3_64()
        for number, first, last in self.places(start, stop):
            for row in range(first, last, _HASHED_ROWS):
                of_rows, encoded = self._shard(number).encoded(row, min(row + _HASHED_ROWS, last))
                sizes.update(of_rows.tobytes())
                content.update(encoded)
        return provenance.fingerprint([columns, sizes.hexdigest(), content.hexdigest()])

    def _first_row(self, number: int) -> int:
        return self._ends[number] - int(self.shards[number]["samples"])

    def _shard(self, number: int) -> _ShardRows:
        if number not in self._open:
            if len(self._open) == self._max_open_shards:
                self._open.pop(next(iter(self._open))).close()
            self._open[number] = _ShardRows(self.folder, self.shards[number], self._columns, self._decoders)
        return self._open[number]


class _ShardRows:
    """The rows of one shard. See `_encode_row` for the layout. Offsets are read with the rows that they are of: a table
    of all would be more bytes than a row that is asked for at random."""

    def __init__(
        self, folder: Path, shard: Mapping[str, Any], columns: Collection[str] | None, decoders: Decoders
    ) -> None:
        self.path = folder / shard["raw_data"]["basename"]
        names_and_types = zip(shard["column_names"], shard["column_encodings"], strict=True)
        self._columns = [_Column(name, of_type, columns is None or name in columns, decoders)
                         for name, of_type in names_and_types]  # fmt: skip
        self._num_sizes = sum(column.num_bytes is None for column in self._columns)
        self._sizes = struct.Struct(f"<{self._num_sizes}I")
        self._num_rows, self._num_bytes = shard["samples"], shard["raw_data"]["bytes"]
        self._descriptor = os.open(self.path, os.O_RDONLY)
        number, end = (struct.unpack("<I", self._read_bytes(4 * at, 4 * at + 4))[0] for at in (0, 1 + self._num_rows))
        if (number, end) != (self._num_rows, self._num_bytes):
            raise self._wrong_offsets()

    def close(self) -> None:
        os.close(self._descriptor)

    def _read_bytes(self, start: int, stop: int) -> bytes:
        pieces = []
        while start < stop and (piece := os.pread(self._descriptor, stop - start, start)):
            pieces.append(piece)
            start += len(piece)
        if start < stop:
            raise DamagedFileError(f"{self.path} was truncated while it was being read: make the set again")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _wrong_offsets(self) -> DamagedFileError:
        return DamagedFileError(f"{self.path} does not begin with the offsets of its {self._num_rows} rows")

    def row(self, number: int, first_row: int) -> dict[str, Any]:
        """Row `number` of the shard; `first_row` is the number of its first, for messages."""
        start, stop = struct.unpack("<II", self._read_bytes(4 * (1 + number), 4 * (3 + number)))
        if not start <= stop <= self._num_bytes:
            raise self._wrong_offsets()
        return self._decode_row(self._read_bytes(start, stop), first_row + number)

    def encoded(self, start: int, stop: int) -> tuple[np.ndarray, bytes]:
        """The sizes of rows [start, stop), int64 [rows], and their bytes, one row after the other."""
        offsets = np.frombuffer(self._read_bytes(4 * (1 + start), 4 * (2 + stop)), "<u4").astype(np.int64)
        sizes = np.diff(offsets)
        if sizes.min() < 0 or offsets[-1] > self._num_bytes:
            raise self._wrong_offsets()
        return sizes, self._read_bytes(int(offsets[0]), int(offsets[-1]))

    def read(self, start: int, stop: int, first_row: int) -> dict[str, Any]:
        """Rows [start, stop) of the shard; `first_row` is the number of its first, for messages."""
        sizes, block = self.encoded(start, stop)
        rows = np.frombuffer(block, np.uint8).reshape(len(sizes), -1) if (sizes == sizes[0]).all() else None
        if rows is not None and (rows[:, : self._sizes.size] == rows[0, : self._sizes.size]).all():
            with self._naming(first_row + start):
                cells = self._cells(rows[0, : self._sizes.size].tobytes(), rows.shape[1])
                return {column.name: column.decode_all(rows[:, first:last]) for column, first, last in cells}
        ends = [0, *np.cumsum(sizes).tolist()]
        decoded = [self._decode_row(block[ends[row] : ends[row + 1]], first_row + start + row)
                   for row in range(len(sizes))]  # fmt: skip
        columns = {name: [row[name] for row in decoded] for name in decoded[0]}
        return {
            name: np.stack(column) if isinstance(column[0], np.ndarray) else column for name, column in columns.items()
        }

    def _decode_row(self, cells: bytes, row: int) -> dict[str, Any]:
        with self._naming(row):
            return {column.name: column.decode(cells[first:last])
                    for column, first, last in self._cells(cells, len(cells))}  # fmt: skip

    def _cells(self, row: bytes, num_bytes: int) -> list[tuple[_Column, int, int]]:
        """The columns that are wanted, and where they begin and end in a row that begins with these bytes."""
        sizes, at, cells = iter(self._sizes.unpack_from(row)), self._sizes.size, []
        for column in self._columns:
            size = next(sizes) if column.num_bytes is None else column.num_bytes
            if column.is_wanted:
                cells.append((column, at, at + size))
            at += size
        if at != num_bytes:
            raise ValueError(f"its columns have {at} bytes, it has {num_bytes}")
        return cells

    @contextlib.contextmanager
    def _naming(self, row: int) -> Iterator[None]:
        """Name the row in what is wrong with its bytes."""
        try:
            yield
        except (ValueError, struct.error) as error:
            raise DamagedFileError(f"row {row} of {self.path} cannot be read ({error}): make the set again") from None


class _Column:
    """A column: how many bytes it has in every row (None where they vary), and how it is decoded."""

    def __init__(self, name: str, of_type: str, is_wanted: bool, decoders: Decoders) -> None:
        self.name, self.is_wanted = name, is_wanted
        self.num_bytes = _column_bytes(of_type)
        self._dtype, self._shape, self._decode_text = np.dtype(np.uint8), None, None
        if of_type.startswith("ndarray:"):
            self._dtype, self._shape = column_array(of_type)
        elif self.num_bytes is not None:
            self._dtype = np.dtype(of_type)
        else:
            known: Decoders = {"str": bytes.decode, "json": json.loads}
            self._decode_text = {**known, **decoders}[of_type]

    def decode(self, cell: bytes) -> Any:
        """The value of a cell."""
        if self._decode_text is not None:
            return self._decode_text(cell)
        numbers = np.frombuffer(cell, self._dtype)
        return numbers[0].item() if self._shape is None else numbers.reshape(self._shape).copy()

    def decode_all(self, cells: np.ndarray) -> Any:
        """The values of cells of the same size, uint8 [rows, bytes]."""
        if self._decode_text is not None:
            return [self._decode_text(cell.tobytes()) for cell in cells]
        numbers = np.array(cells).view(self._dtype)
        return numbers.ravel().tolist() if self._shape is None else numbers.reshape(len(cells), *self._shape)


def _column_bytes(column: str) -> int | None:
    """Bytes of a column in every row; None where it varies."""
    if column.startswith("ndarray:"):
        dtype, shape = column_array(column)
        return dtype.itemsize * int(np.prod(shape))
    return np.dtype(column).itemsize if column in _NUMBERS else None
