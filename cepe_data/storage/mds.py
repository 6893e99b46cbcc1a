"""MDS sets: column types, writing a shard, reading rows. The only place that imports streaming.

    index.json           {"shards": [{"column_names", "column_encodings", "samples", "raw_data": {"basename"}, …}, …]}
    shard.00000.mds …    uint32 [1 + rows + 1]: the number of rows, the offset of each, the end; the same as JSON; rows

Columns are typed, never pickled: `ndarray:int16:4096`, `str`, `json`. Sets are joined from parts: storage/parts.py.
"""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.storage import outputs, provenance

INDEX_NAME = "index.json"
_OPEN_SHARDS = 4
SHARD_NAME = "shard.00000.mds"
MAX_SHARD_BYTES = (1 << 32) - 1  # offsets inside a shard are uint32
_SAFE_SCALARS = {"str", "json", "int", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"}
_SAFE_SCALARS |= {"float16", "float32", "float64"}

Columns = Mapping[str, str]


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
    those that are not arrays, uint32 (streaming/base/format/mds/writer.py of mosaicml-streaming).

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
        else:
            values.append((value if column == "str" else json.dumps(value)).encode())
            sizes.append(len(values[-1]))
    return b"".join([np.array(sizes, "<u4").tobytes(), *values])


def write_shard(
    output: outputs.Output, columns: Columns, num_rows: int, rows: np.ndarray | Iterable[Mapping[str, Any]]
) -> None:
    """Write and publish a set of one MDS shard. Its bytes are those that MDSWriter writes, which
    copies them three times, holds the shard in memory, and takes seconds to import.

    Args:
        rows: what `window_rows` made; or one value for every column each.

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
        draft.publish({"rows": num_rows})


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


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The shards of an MDS set, from its index, checked before anything is decoded.

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
            _check_shard(folder, shard)
            if any(shard[name] != shards[0][name] for name in ("column_names", "column_encodings")):
                raise ValueError(f"{shard['raw_data']['basename']} has other columns than the first shard")
    except (FileNotFoundError, NotADirectoryError):
        sets = sorted(path.parent.name for path in folder.glob(f"*/{INDEX_NAME}")) if folder.is_dir() else []
        hint = f"; there is one in its {', '.join(sets)}" if sets else ""
        raise ArgumentError(f"{folder} holds no MDS set: no {INDEX_NAME} is in it{hint}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} is not right: {error}") from None
    return shards


def _check_shard(folder: Path, shard: dict[str, Any]) -> None:
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
        elif column not in _SAFE_SCALARS:
            raise ValueError(f"it has a column of type {column}, which is not read: it could run code")


def read_columns(folder: Path) -> dict[str, str]:
    """Column names and types of an MDS set. Raises as `read_index`."""
    first = read_index(folder)[0]
    return dict(zip(first["column_names"], first["column_encodings"], strict=True))


def num_rows(folder: Path) -> int:
    """The number of rows of an MDS set, from its index. Raises as `read_index`."""
    return sum(shard["samples"] for shard in read_index(folder))


def fingerprint(folder: Path) -> str:
    """A hash of an MDS set's index and shards: from its meta file, or where it was made elsewhere, of their bytes.

    Raises:
        DamagedFileError: if they are not what the meta file says.
    """
    meta = provenance.read_meta(folder)
    if meta is not None:
        if lost := provenance.lost_files(folder, meta):
            raise DamagedFileError(f"{lost[0]} is gone or has not the size it was written with: make {folder} again")
        return provenance.fingerprint(
            {name: facts for name, facts in meta["files"].items() if not name.startswith("../")}
        )
    names = [INDEX_NAME, *(shard["raw_data"]["basename"] for shard in read_index(folder))]
    return provenance.fingerprint({name: provenance.file_facts(folder / name) for name in names})


class Rows:
    """The rows of an MDS set by number, as LocalDataset gives them, without the seconds that importing streaming takes;
    and many rows at once. Nothing is unpickled. Any number of processes may read. It keeps some shards open; where many
    sets are read, use it as a context manager.

    Raises:
        as `read_index`; and while reading, DamagedFileError if a shard is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = read_index(folder)
        self._ends = np.cumsum([shard["samples"] for shard in self.shards])
        self._open: dict[int, _ShardRows] = {}

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.read(row, row + 1).items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def read(self, start: int, stop: int) -> dict[str, Any]:
        """The columns of rows [start, stop), which must be of one shard (see `blocks`): arrays [rows, *shape] of those
        that are arrays, lists of the others."""
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"{self.folder} has {len(self)} rows: there are no rows {start} to {stop}")
        shard = int(np.searchsorted(self._ends, start, "right"))
        first = int(self._ends[shard]) - self.shards[shard]["samples"]
        if shard not in self._open:
            if len(self._open) == _OPEN_SHARDS:
                self._open.pop(next(iter(self._open))).close()
            self._open[shard] = _ShardRows(self.folder, self.shards[shard])
        return self._open[shard].read(start - first, stop - first, first)

    def blocks(self, rows_at_once: int) -> Iterator[tuple[int, int]]:
        """Ranges of at most so many rows, each in one shard, that cover the set."""
        for end, shard in zip(self._ends.tolist(), self.shards, strict=True):
            for start in range(end - shard["samples"], end, rows_at_once):
                yield start, min(start + rows_at_once, end)


class _ShardRows:
    """The rows of one shard. See `_encode_row` for the layout."""

    def __init__(self, folder: Path, shard: Mapping[str, Any]) -> None:
        self.path = folder / shard["raw_data"]["basename"]
        self._columns = list(zip(shard["column_names"], shard["column_encodings"], strict=True))
        self._descriptor = os.open(self.path, os.O_RDONLY)
        head = np.frombuffer(self._read_bytes(0, 4 * (shard["samples"] + 2)), "<u4").astype(np.int64)
        self._offsets = head[1:]
        is_whole = head[0] == shard["samples"] and self._offsets[-1] == shard["raw_data"]["bytes"]
        if not is_whole or (np.diff(self._offsets) < 0).any():
            raise DamagedFileError(f"{self.path} does not begin with the offsets of its {shard['samples']} rows")

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

    def read(self, start: int, stop: int, first_row: int) -> dict[str, Any]:
        """Rows [start, stop) of the shard; `first_row` is the number of its first, for messages."""
        block = np.frombuffer(self._read_bytes(*self._offsets[[start, stop]].tolist()), np.uint8)
        sizes = np.diff(self._offsets[start : stop + 1])
        num_sizes = sum(_column_bytes(column) is None for _, column in self._columns)
        rows = block.reshape(len(sizes), -1) if (sizes == sizes[0]).all() else None
        if rows is not None and (rows[:, : 4 * num_sizes] == rows[0, : 4 * num_sizes]).all():
            return self._decode(rows, num_sizes, first_row + start)
        part_ranges = (self._offsets[start : stop + 1] - self._offsets[start]).tolist()
        decoded = [
            self._decode(block[None, first:last], num_sizes, first_row + start + row)
            for row, (first, last) in enumerate(pairwise(part_ranges))
        ]
        columns = {name: [row[name][0] for row in decoded] for name, _ in self._columns}
        return {
            name: np.stack(column) if isinstance(column[0], np.ndarray) else column for name, column in columns.items()
        }

    def _decode(self, rows: np.ndarray, num_sizes: int, row: int) -> dict[str, Any]:
        """The columns of rows of the same sizes, uint8 [rows, bytes]; the first has the number `row`."""
        values: dict[str, Any] = {}
        at, sizes = 4 * num_sizes, iter(np.frombuffer(rows[0, : 4 * num_sizes].tobytes(), "<u4").tolist())
        try:
            for name, column in self._columns:
                fixed = _column_bytes(column)
                size = next(sizes) if fixed is None else fixed
                values[name] = _decode_column(column, rows[:, at : at + size])
                at += size
            if at != rows.shape[1]:
                raise ValueError(f"its columns have {at} bytes, it has {rows.shape[1]}")
        except (ValueError, StopIteration) as error:
            raise DamagedFileError(f"row {row} of {self.path} cannot be read ({error}): make the set again") from None
        return values


def _column_bytes(column: str) -> int | None:
    """Bytes of a column in every row; None where it varies."""
    if column in {"str", "json"}:
        return None
    dtype, shape = column_array(column) if column.startswith("ndarray:") else (np.dtype(column), ())
    return dtype.itemsize * int(np.prod(shape))


def _decode_column(column: str, cells: np.ndarray) -> Any:
    """A column from its bytes, uint8 [rows, bytes]."""
    if column.startswith("ndarray:"):
        dtype, shape = column_array(column)
        return np.array(cells).view(dtype).reshape(len(cells), *shape)
    if column not in {"str", "json"}:
        return np.array(cells).view(column).ravel().tolist()
    texts = [cell.tobytes().decode() for cell in cells]
    return texts if column == "str" else [json.loads(text) for text in texts]
