"""MDS sets: column types, writing a shard, reading rows. The only place that imports streaming.

    index.json           {"shards": [{"column_names", "column_encodings", "samples", "raw_data": {"basename"}, …}, …]}
    shard.00000.mds …    uint32 [1 + rows + 1]: the number of rows, the offset of each, the end; the same as JSON; rows

Columns are typed, never pickled: `ndarray:int16:4096`, `str`, `json`. Sets are joined from parts: storage/parts.py.
"""

from __future__ import annotations

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
    """mosaicml-streaming, with an empty module in place of its vision datasets. They import torchvision, which fails if
    it was built for another torch. This also saves a second."""
    sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))
    import streaming

    return streaming


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest signed integer dtype, int16 or more, that holds every id below `vocab_size`. (Signed, because torch
    before 2.3 has no uint16.)"""
    return np.dtype(np.int16 if vocab_size <= 1 << 15 else np.int32)


def array_column(dtype: np.dtype, *shape: int) -> str:
    """The column type of an array of this dtype and shape: `ndarray:int16:4096`."""
    return f"ndarray:{dtype.name}:{','.join(map(str, shape))}"


def column_array(column: str) -> tuple[np.dtype, tuple[int, ...]]:
    """dtype and shape of a column type that `array_column` made. Raises ValueError for another one."""
    kind, _, rest = column.partition(":")
    dtype, _, shape = rest.partition(":")
    if kind != "ndarray" or not shape:
        raise ValueError(f"the column type {column} is not an array of a known dtype and shape")
    return np.dtype(dtype), tuple(int(size) for size in shape.split(","))


def rows_per_shard(columns: Columns, shard_bytes: int) -> int:
    """How many rows of these columns fill a shard of about `shard_bytes`."""
    return max(1, shard_bytes // row_bytes(columns))


def row_bytes(columns: Columns) -> int:
    """Bytes of a row in a shard, without columns of variable size."""
    return 4 + sum(_column_bytes(column) or 0 for column in columns.values())


def window_rows(columns: Columns, texts: Mapping[str, str], num_rows: int) -> np.ndarray:
    """Rows to be filled, a structured array [num_rows] with a field for every column in the layout of `_encode_row`:
    arrays are empty, a `str` column has its text from `texts` in every row."""
    encoded = {name: texts[name].encode() for name, column in columns.items() if column == "str"}
    sizes = np.array([len(encoded[name]) for name in sorted(encoded)], "<u4")
    fields: list[Any] = [("(sizes)", sizes.dtype, sizes.shape)]
    for name in sorted(columns):
        fields.append((name, f"S{len(encoded[name])}") if name in encoded else (name, *column_array(columns[name])))
    rows = np.empty(num_rows, fields)
    rows["(sizes)"] = sizes
    for name, text in encoded.items():
        rows[name] = text
    return rows


def _encode_row(columns: Columns, row: Mapping[str, Any]) -> bytes:
    """The bytes of a row in a shard: the sizes of texts and JSON, uint32, then the columns in the order of their names
    (streaming/base/format/mds/writer.py of mosaicml-streaming). Raises ValueError if an array does not fit its column.
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
    """Write and publish a set of one MDS shard, with the bytes of MDSWriter, which copies them three times, holds the
    shard in memory, and takes seconds to import.

    Args:
        rows: what `window_rows` made; or dicts with a value for every column.
        metadata: what the meta file has beside the number of rows.

    Raises:
        PipelineError: if there are not `num_rows` rows, or more than a shard can hold.
    """
    names = sorted(columns)
    config = {
        "column_encodings": [columns[name] for name in names],
        "column_names": names,
        "column_sizes": [_column_bytes(columns[name]) for name in names],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": MAX_SHARD_BYTES,
        "version": 2,
    }
    text = json.dumps(config, sort_keys=True).encode()
    sizes, done = np.zeros(num_rows + 1, np.int64), 0  # of what comes before the rows, and of each row
    sizes[0] = 4 + 4 * len(sizes) + len(text)
    with output.draft(is_folder=True) as draft:
        with (draft.path / SHARD_NAME).open("wb") as file:
            file.seek(sizes[0])
            if isinstance(rows, np.ndarray):
                sizes[1:], done = rows.itemsize, len(rows)
                file.write(rows.view(np.uint8).data)
            else:
                for done, row in enumerate(rows, 1):
                    encoded = _encode_row(columns, row)
                    sizes[min(done, num_rows)] = len(encoded)
                    file.write(encoded)
            ends = np.cumsum(sizes)
            if done != num_rows or not num_rows or ends[-1] > MAX_SHARD_BYTES:
                raise PipelineError(
                    f"{output.path}: {done} rows of {num_rows}, {ends[-1]:,} bytes; lower --rows_per_part"
                )
            file.seek(0)
            file.write(np.uint32(num_rows).tobytes() + ends.astype("<u4").tobytes() + text)
        raw_data = {"basename": SHARD_NAME, "bytes": int(ends[-1]), "hashes": {}}
        write_index(draft.path, [{**config, "raw_data": raw_data, "samples": num_rows, "zip_data": None}])
        draft.publish({**(metadata or {}), "rows": num_rows})


def write_index(folder: Path, shards: Sequence[Mapping[str, Any]]) -> None:
    """Write the index of a set from its entries, one for each shard."""
    index = json.dumps({"shards": shards, "version": 2}, sort_keys=True)
    (folder / INDEX_NAME).write_text(index, encoding="utf-8")


def read_index(folder: Path, decoded_types: Collection[str] = ()) -> list[dict[str, Any]]:
    """The entries of an MDS set's index, one for each shard, checked before anything is decoded. Columns of
    `decoded_types`, which the caller decodes, are allowed, too.

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
    """The domains of the sets in a folder, for `all`; else the names in a comma-separated list.

    Raises:
        ArgumentError: if there are none, or a name cannot be that of a folder.
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
    """A hash of an MDS set's index and shards, from its meta file; from their bytes if another program made the set.
    `decoded_types` as in `read_index`. Raises DamagedFileError if files differ in size from the meta file."""
    if meta := provenance.read_meta(folder):
        if lost := provenance.lost_files(folder, meta.files):
            raise DamagedFileError(f"{lost[0]} is gone or has not the size it was written with: make {folder} again")
        return provenance.fingerprint(
            {name: metadata for name, metadata in meta.files.items() if not name.startswith("../")}
        )
    names = [INDEX_NAME, *(shard["raw_data"]["basename"] for shard in read_index(folder, decoded_types))]
    return provenance.fingerprint({name: provenance.file_metadata(folder / name) for name in names})


class Rows:
    """The rows of an MDS set by number, as LocalDataset returns them, without the seconds of importing streaming.
    Nothing is unpickled. Any number of processes may read. Memory grows with the index only. At most `max_open_shards`
    files stay open; as a context manager, it closes them.

    Args:
        columns: the columns to decode; all by default.
        decoders: functions for column types that this pipeline does not write. Without one, such a set is rejected.

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
        """Without file descriptors, which a process that a DataLoader spawns does not share."""
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> dict[str, Any]:
        if not 0 <= row < len(self):
            raise IndexError(f"{self.folder} has {len(self)} rows: there is no row {row}")
        number = bisect_right(self._ends, row)
        return self._shard(number).row(row - self._first_row(number))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def places(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The shards that have rows [start, stop), as far as these exist: their numbers, and a row range of each."""
        for number in range(bisect_right(self._ends, start), len(self.shards)):
            first = self._first_row(number)
            if first >= stop:
                return
            yield number, max(start - first, 0), min(stop - first, self.shards[number]["samples"])

    def fingerprint(self, start: int, stop: int) -> str:
        """A hash of the columns, and of the content of rows [start, stop), as far as these exist. It does not depend on
        where shards begin."""
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
            first, entry = self._first_row(number), self.shards[number]
            self._open[number] = _ShardRows(self.folder, entry, first, self._columns, self._decoders)
        return self._open[number]


class _ShardRows:
    """The rows of one shard, in the layout of `_encode_row`. Row numbers begin anew in each shard; messages add
    `first_row`. Offsets are read together with their rows: a table of all of them would be larger than a row."""

    def __init__(
        self,
        folder: Path,
        entry: Mapping[str, Any],
        first_row: int,
        columns: Collection[str] | None,
        decoders: Decoders,
    ) -> None:
        self.path, self._first_row = folder / entry["raw_data"]["basename"], first_row
        self._columns = [
            _Column(name, of_type, columns is None or name in columns, decoders)
            for name, of_type in zip(entry["column_names"], entry["column_encodings"], strict=True)
        ]
        self._sizes = struct.Struct(f"<{sum(column.num_bytes is None for column in self._columns)}I")
        self._fixed_bytes = self._sizes.size + sum(column.num_bytes or 0 for column in self._columns)
        self._num_rows, self._num_bytes = entry["samples"], entry["raw_data"]["bytes"]
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

    def row(self, number: int) -> dict[str, Any]:
        start, stop = struct.unpack("<II", self._read_bytes(4 * (1 + number), 4 * (3 + number)))
        if not start <= stop <= self._num_bytes:
            raise self._wrong_offsets()
        try:
            return self._decode(self._read_bytes(start, stop))
        except (ValueError, struct.error) as error:
            row = self._first_row + number
            raise DamagedFileError(f"row {row} of {self.path} cannot be read ({error}): make the set again") from None

    def _decode(self, row: bytes) -> dict[str, Any]:
        """The values of the selected columns."""
        sizes = self._sizes.unpack_from(row)
        if (num_bytes := self._fixed_bytes + sum(sizes)) != len(row):
            raise ValueError(f"its columns have {num_bytes} bytes, it has {len(row)}")
        at, values, sizes_left = self._sizes.size, {}, iter(sizes)
        for column in self._columns:
            size = next(sizes_left) if column.num_bytes is None else column.num_bytes
            if column.is_selected:
                values[column.name] = column.decode(row[at : at + size])
            at += size
        return values

    def encoded(self, start: int, stop: int) -> tuple[np.ndarray, bytes]:
        """The sizes of rows [start, stop), int64 [rows], and the bytes of all of them."""
        offsets = np.frombuffer(self._read_bytes(4 * (1 + start), 4 * (2 + stop)), "<u4").astype(np.int64)
        sizes = np.diff(offsets)
        if sizes.min() < 0 or offsets[-1] > self._num_bytes:
            raise self._wrong_offsets()
        return sizes, self._read_bytes(int(offsets[0]), int(offsets[-1]))


class _Column:
    """A column: how many bytes it has in every row (None if they vary), and how it is decoded."""

    def __init__(self, name: str, of_type: str, is_selected: bool, decoders: Decoders) -> None:
        self.name, self.is_selected, self.num_bytes = name, is_selected, _column_bytes(of_type)
        self._dtype, self._shape, self._decode_text = np.dtype(np.uint8), None, None
        if of_type.startswith("ndarray:"):
            self._dtype, self._shape = column_array(of_type)
        elif self.num_bytes is not None:
            self._dtype = np.dtype(of_type)
        else:
            known: Decoders = {"str": bytes.decode, "json": json.loads, **decoders}
            self._decode_text = known[of_type]

    def decode(self, cell: bytes) -> Any:
        """The value of a cell."""
        if self._decode_text is not None:
            return self._decode_text(cell)
        numbers = np.frombuffer(cell, self._dtype)
        return numbers[0].item() if self._shape is None else numbers.reshape(self._shape).copy()


def _column_bytes(column: str) -> int | None:
    """Bytes of a column in every row; None if they vary."""
    if column.startswith("ndarray:"):
        dtype, shape = column_array(column)
        return dtype.itemsize * int(np.prod(shape))
    return np.dtype(column).itemsize if column in _NUMBERS else None
