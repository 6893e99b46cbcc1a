"""`.npy` files. They are read by rows with `preadv`, never by memory map: a truncated file is then an error message,
not a bus error. They are written by plain writes: np.save leaves the last bytes to C, where a full disk goes unnoticed.
Nothing is pickled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import numpy as np
import xxhash

from cepe_data import system
from cepe_data.errors import DamagedFileError

_ROWS_AT_ONCE = 1 << 18


class NpyRows:
    """Reads a `.npy` file along its first axis.

    Args:
        kinds: the allowed kinds of dtype, as numpy abbreviates them: `iu` for integers, `f` for floats.
        num_axes: the number of axes of the array.

    Raises:
        DamagedFileError: if the file is not such an array, or its size is not what its header says.
    """

    def __init__(self, path: Path, kinds: str = "iu", num_axes: int = 1) -> None:
        self.path = path
        with path.open("rb") as file:
            try:
                version = np.lib.format.read_magic(file)
                read_header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, in_columns, self.dtype = read_header(file)
            except Exception as error:  # numpy parses the header as Python, which fails in many ways
                raise DamagedFileError(f"{path} is not an .npy file ({error}): remove it and make it again") from None
            self._offset = file.tell()
            status = os.fstat(file.fileno())
            num_bytes = status.st_size - self._offset
            self.version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if len(shape) != num_axes or self.dtype.kind not in kinds or (in_columns and num_axes > 1):
            raise DamagedFileError(
                f"{path} holds {self.dtype} of shape {shape}, not what belongs there: remove it and make it again"
            )
        self.size, self.row_shape = int(shape[0]), tuple(int(size) for size in shape[1:])
        self._row_bytes = self.dtype.itemsize * int(np.prod(self.row_shape, dtype=np.int64))
        if num_bytes != self.size * self._row_bytes:
            raise DamagedFileError(
                f"{path} is damaged: its header says {self.size:,} rows, {self.size * self._row_bytes:,} bytes, and "
                f"{num_bytes:,} bytes are there. Remove it and make it again"
            )
        self._descriptor = os.open(path, os.O_RDONLY)

    def __enter__(self) -> NpyRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def will_need(self, start: int, stop: int) -> None:
        """Ask the system to fetch rows [start, stop), without waiting."""
        size = self._row_bytes
        system.will_need(self._descriptor, self._offset + start * size, (stop - start) * size)

    def digest_to(self, row: int) -> xxhash.xxh3_64:
        """The hash of the file's bytes up to a row, to be updated with the rows from there on."""
        digest = xxhash.xxh3_64(os.pread(self._descriptor, self._offset, 0))
        for start in range(0, row, _ROWS_AT_ONCE):
            digest.update(self.read(start, min(start + _ROWS_AT_ONCE, row)).data)
        return digest

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) in the file's dtype."""
        out = np.empty((stop - start, *self.row_shape), self.dtype)
        view, done = out.data.cast("B") if out.size else memoryview(b""), 0
        while done < len(view):
            num_read = os.preadv(self._descriptor, [view[done:]], self._offset + start * self._row_bytes + done)
            if not num_read:
                raise DamagedFileError(f"{self.path} ends before row {stop:,}: it was truncated while being read")
            done += num_read
        return out


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write an array of numbers."""
    with path.open("wb") as file:
        write_header(file, array.dtype, *array.shape)
        file.write(np.ascontiguousarray(array).data)


def write_header(file: IO[bytes], dtype: np.dtype, *shape: int) -> None:
    """Write the header of an array, format 1.0."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
