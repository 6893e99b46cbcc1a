"""Convert MDS sets with pickled columns, which the original pipeline writes and its authors published, to the typed
columns that all other commands read.

reads   SRC/{domain}/, or the one set SRC: MDS with columns of type pkl
writes  OUT/{domain}/: the same rows and columns, typed

    python -m cepe_data.storage.convert_pickled original/ab_32k/test 32k_original/test

A pickle is a program that the reader runs. The unpickler here makes numpy arrays, texts, numbers, and lists of these.
For anything else a pickle is rejected: what it names is neither imported nor called.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli
from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.storage import mds, verify
from cepe_data.storage.outputs import WriteOptions
from cepe_data.storage.parts import PartedSet

PICKLED = "pkl"
SHARD_BYTES = 64 << 20
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # of numpy 1 and 2
_NUMERIC_MODULES = ("numpy.core.numeric", "numpy._core.numeric")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(WriteOptions):
    """The arguments of this command."""

    source: Path
    output: Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC", help="the folder of the domain folders, or one of them")
    parser.add_argument("output", type=Path, metavar="OUT", help="the folder to write, or the one domain folder")
    cli.add_overwrite_argument(parser)
    return parser.parse_args()


def main() -> int:
    args = cli.typed(ConvertOptions, parse_args())
    start, num_rows = time.monotonic(), 0
    sources = verify.find_sets(args.source)
    for source in sources:
        target = args.output if verify.has_set(args.source) else args.output / source.name
        num_rows += convert(source, target, args, start)
    cli.say(f"{len(sources)} sets, {num_rows:,} rows, {cli.seconds_since(start)} → {args.output}")
    return cli.EXIT_OK


def convert(source: Path, target: Path, args: ConvertOptions, start_time: float) -> int:
    """Convert one set. Returns the number of its rows.

    Raises:
        PipelineError: if a pickle is rejected, or rows differ in types or shapes.
    """
    rows = mds.Rows(source, decoders={PICKLED: load_values})
    types = dict(zip(rows.shards[0]["column_names"], rows.shards[0]["column_encodings"], strict=True))
    if PICKLED not in types.values():
        raise ArgumentError(f"{source} has no pickled columns: use it as it is")
    first = next(read_rows(rows, 0, 1))
    columns = {name: column_of(f"row 0 of {source}", name, first[name]) if of_type == PICKLED else of_type
               for name, of_type in types.items()}  # fmt: skip
    pickled = {name: column for name, column in columns.items() if types[name] == PICKLED}
    made_with = {"converted_from": mds.fingerprint(source, {PICKLED})}
    of_set = PartedSet(target, columns, len(rows), mds.rows_per_shard(columns, SHARD_BYTES), made_with, args)
    of_set.remove_stale_temporaries()
    if not of_set.joined.is_done():
        for part in of_set.todo(0, 1):
            try:
                of_set.write_part(part, read_rows(rows, *of_set.part_ranges[part], pickled))
            except ValueError as error:
                raise PipelineError(f"{source} cannot be converted: {error}") from None
    of_set.join(1, True, {}, start_time)
    return len(rows)


def read_rows(rows: mds.Rows, start: int, stop: int, columns: mds.Columns | None = None) -> Iterator[dict[str, Any]]:
    """Rows [start, stop). Raises PipelineError, naming the row, if a pickle is rejected, or its values are not those of
    `columns`."""
    for number in range(start, stop):
        where = f"row {number} of {rows.folder}"
        try:
            row = rows[number]
        except RejectedPickleError as error:
            raise PipelineError(f"{where}: {error}") from None
        for name, column in (columns or {}).items():
            if (found := column_of(where, name, row[name])) != column:
                raise PipelineError(f"{where}: {name} is {found}, but {column} in row 0: rows are not all alike")
        yield row


def column_of(where: str, name: str, value: Any) -> str:
    """The column type for such values. Raises PipelineError, which names the row `where`, if there is none."""
    if isinstance(value, np.ndarray):
        if value.shape:
            return mds.array_column(value.dtype, *value.shape)
        raise PipelineError(f"{where}: the column {name} has an array without axes")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise PipelineError(f"{where}: the column {name} has {value}, which int64 cannot hold")
    return {str: "str", int: "int64", float: "float64", list: "json"}[type(value)]


class RejectedPickleError(PipelineError):
    """A pickle asks for more than arrays, texts, numbers and lists of them, or it is damaged."""


def load_values(pickled: bytes) -> Any:
    """The value of a pickle: an array of numbers, a str, an int, a float, or a list of such values. Arrays inside a
    list, and those of Python objects, become lists.

    Raises:
        RejectedPickleError: if it asks for anything else.
    """
    try:
        return _plain(_ValueUnpickler(io.BytesIO(pickled)).load())
    except RejectedPickleError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise RejectedPickleError(f"its pickle cannot be read ({type(error).__name__}: {error})") from None


class _Dtype:
    """Stands for numpy.dtype in a pickle: of numbers, or of Python objects."""

    def __init__(self, name: str, *_: object) -> None:
        if not (isinstance(name, str) and re.fullmatch(r"b1|[iu][1248]|f[248]|O8?", name)):
            raise RejectedPickleError(f"its pickle asks for arrays of dtype {name!r}")
        self._name, self._order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = ">" if state[1] == ">" else "<"

    @property
    def of_objects(self) -> bool:
        return self._name.startswith("O")

    def read(self, data: bytes) -> np.ndarray:
        """The numbers in these bytes, little-endian."""
        return np.frombuffer(data, f"{self._order}{self._name}").astype(f"<{self._name}")


class _Array:
    """Stands for numpy.ndarray in a pickle: its content comes in the state."""

    value: np.ndarray | list[Any] | None = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        if dtype.of_objects:
            if len(shape) != 1:
                raise RejectedPickleError(f"its pickle has an array of Python objects of shape {shape}")
            self.value = list(content)
        else:
            self.value = dtype.read(content).reshape(shape, order="F" if is_fortran else "C")


def _array_from_buffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(content)))
    return array


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    return dtype.read(content)[0].item()


def _bytes_of_text(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`: protocols before 3 write bytes as text."""
    if encoding != "latin1":
        raise RejectedPickleError(f"its pickle asks for the encoding {encoding!r}")
    return text.encode("latin1")


# What pickles of values name, and what they get instead: numpy is not called with the arguments of a pickle.
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _bytes_of_text,
    ("__builtin__", "bytes"): lambda: b"",
    **{(module, "_reconstruct"): _Array for module in _ARRAY_MODULES},
    **{(module, "scalar"): _scalar for module in _ARRAY_MODULES},
    **{(module, "_frombuffer"): _array_from_buffer for module in _NUMERIC_MODULES},
}


class _ValueUnpickler(pickle.Unpickler):
    """Finds the classes and functions in _KNOWN, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise RejectedPickleError(
                f"its pickle asks for {module}.{name}, which is neither array, text nor number: it was not run. Do not "
                f"load this set with anything that allows unsafe types"
            )
        return _KNOWN[module, name]


def _plain(value: Any, inside_list: bool = False) -> Any:
    """The value of a pickle, without the classes that stand for numpy's."""
    if isinstance(value, _Array):
        value = value.value
    if isinstance(value, np.ndarray):
        return value.tolist() if inside_list else value
    if isinstance(value, (list, tuple)):
        return [_plain(one, inside_list=True) for one in value]
    if type(value) in {str, int, float}:
        return value
    raise RejectedPickleError(f"its pickle holds a {type(value).__name__}, which is neither array, text nor number")


if __name__ == "__main__":
    cli.run(main)
