"""MDS sets: types, parts, joins; nothing unsafe is decoded.    pytest tests/test_mds.py"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.storage import mds, outputs, provenance
from cepe_data.storage.parts import PartedSet
from tests import reference

COLUMNS = {"ids": "ndarray:int16:4", "name": "str", "lists": "json"}


def row(number: int) -> dict:
    return {"ids": np.full(4, number, np.int16), "name": f"row {number}", "lists": [[number], []]}


def write_set(folder: Path, num_rows: int, rows: Iterable[dict] | None = None) -> None:
    rows = map(row, range(num_rows)) if rows is None else rows
    mds.write_shard(outputs.Output(folder, {}), COLUMNS, num_rows, rows)


def parted(folder: Path, num_rows: int) -> PartedSet:
    return PartedSet(folder, COLUMNS, num_rows, 4, {}, outputs.REPLACE_NOTHING)


def write_parts(of_set: PartedSet) -> None:
    for part, (start, stop) in enumerate(of_set.part_ranges):
        of_set.write_part(part, map(row, range(start, stop)))


def join(of_set: PartedSet) -> None:
    of_set.publish({}, lambda draft: None)


def test_joined_parts_are_one_set_in_order_and_no_byte_is_copied(tmp_path: Path) -> None:
    of_set = parted(tmp_path / "set", 11)
    assert of_set.part_ranges == [(0, 4), (4, 8), (8, 11)]
    write_parts(of_set)
    join(of_set)
    rows = mds.Rows(tmp_path / "set")
    assert len(rows) == mds.num_rows(tmp_path / "set") == 11
    for number in range(11):
        assert rows[number]["ids"].tolist() == [number] * 4 and rows[number]["name"] == f"row {number}"
    assert mds.read_columns(tmp_path / "set") == dict(sorted(COLUMNS.items()))
    for number in range(3):
        assert (tmp_path / f"set/shard.{number:05d}.mds").stat().st_nlink == 2
    meta = provenance.read_meta(tmp_path / "set")
    assert provenance.is_intact(tmp_path / "set", meta)


def test_a_part_has_the_bytes_that_mdswriter_writes(tmp_path: Path) -> None:
    columns = {**COLUMNS, "half": "ndarray:float16:2,3", "umlaut": "str"}
    rows = [{**row(number), "half": np.full((2, 3), number, np.float16), "umlaut": "ü" * number} for number in range(5)]
    windows = {"token_ids": "ndarray:int16:5", "prev_token_ids": "ndarray:int16:3", "domain": "str"}
    filled = mds.window_rows(windows, {"domain": "größe"}, 4)
    ids = np.arange(32, dtype=np.int32).reshape(4, 8)
    filled["prev_token_ids"], filled["token_ids"] = ids[:, :3], ids[:, 3:]
    as_rows = [{"prev_token_ids": one[:3], "token_ids": one[3:], "domain": "größe"} for one in ids.astype(np.int16)]
    for name, types, given, expected in (("rows", columns, rows, rows), ("windows", windows, filled, as_rows)):
        mds.write_shard(outputs.Output(tmp_path / name, {}), types, len(expected), given)
        folder = tmp_path / "streaming" / name
        with mds.import_streaming().MDSWriter(columns=types, out=str(folder), size_limit=mds.MAX_SHARD_BYTES) as writer:
            for one in expected:
                writer.write(one)
        for path in folder.iterdir():
            assert path.read_bytes() == (tmp_path / name / path.name).read_bytes(), path.name


def test_rows_are_read_as_localdataset_reads_them(tmp_path: Path) -> None:
    streaming = mds.import_streaming()
    columns = {**COLUMNS, "half": "ndarray:float16:2,3", "count": "int", "share": "float32", "small": "uint8"}
    rng = np.random.default_rng(0)
    with streaming.MDSWriter(columns=columns, out=str(tmp_path / "set"), size_limit=400) as writer:
        for number in range(23):
            scalars = {"count": -number, "share": number / 3, "small": number}
            half = rng.random((2, 3)).astype(np.float16)
            writer.write({**row(number), **scalars, "half": half, "name": "ü" * (number % 3)})
    rows, expected = mds.Rows(tmp_path / "set"), streaming.LocalDataset(str(tmp_path / "set"))
    assert len(rows.shards) > 3 and len(rows) == len(expected) == 23
    for number in [*range(23), 0]:
        one = rows[number]
        assert one.keys() == expected[number].keys()
        for name, value in expected[number].items():
            if name in {"ids", "half"}:
                assert one[name].dtype == value.dtype and (one[name] == value).all() and one[name].flags.writeable
            else:
                assert one[name] == value
    for number in (23, -1):
        with pytest.raises(IndexError, match=f"there is no row {number}"):
            rows[number]


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (0, "does not begin with the offsets of its 4 rows"),
        (8, "cannot be read|offsets"),
        (-1, "row 3 of .* cannot be read"),
    ],
)
def test_a_damaged_shard_is_an_error_that_names_it(tmp_path: Path, position: int, message: str) -> None:
    write_set(tmp_path / "set", 4)
    shard = tmp_path / "set/shard.00000.mds"
    damaged = bytearray(shard.read_bytes())
    damaged[position] = 0xFF
    shard.write_bytes(damaged)
    with pytest.raises(DamagedFileError, match=message):
        list(mds.Rows(tmp_path / "set"))


def test_without_hard_links_shards_are_copied_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parts(parted(tmp_path / "linked", 8))
    shutil.copytree(tmp_path / "linked.parts", tmp_path / "copied.parts")
    join(parted(tmp_path / "linked", 8))

    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "this file system has no hard links")

    monkeypatch.setattr(os, "link", fail)
    join(parted(tmp_path / "copied", 8))
    assert "2 shards were copied" in capsys.readouterr().err
    assert reference.tree_bytes(tmp_path / "copied") == reference.tree_bytes(tmp_path / "linked")


def test_parts_that_are_not_what_they_should_be_are_not_joined(tmp_path: Path) -> None:
    write_parts(parted(tmp_path / "set", 8))
    with pytest.raises(DamagedFileError, match="part-00001 does not have its 3 rows"):
        join(parted(tmp_path / "set", 7))
    shard = tmp_path / "set.parts/part-00000/shard.00000.mds"
    shard.write_bytes(shard.read_bytes() + b"more")
    with pytest.raises(DamagedFileError, match="not there with its"):
        join(parted(tmp_path / "set", 8))
    assert not (tmp_path / "set").exists()


def test_an_exception_while_writing_leaves_no_part(tmp_path: Path) -> None:
    def rows() -> Iterator[dict]:
        yield row(0)
        raise RuntimeError("the teacher fell ill")

    with pytest.raises(RuntimeError):
        write_set(tmp_path / "set", 2, rows())
    for expected, given in ((0, 0), (2, 1), (2, 3)):
        with pytest.raises(PipelineError, match=f"{given} rows of {expected}"):
            write_set(tmp_path / "set", expected, map(row, range(given)))
    with pytest.raises(ValueError, match="ids is int16"):
        write_set(tmp_path / "set", 1, [{**row(0), "ids": np.zeros(5, np.int16)}])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column_encodings": ["pkl", "json", "str"]}, "could run code"),
        ({"raw_data": {"basename": "../shard.00000.mds", "bytes": 1}}, "names the file"),
        ({"samples": 0}, "has 0 samples"),
        ({"column_encodings": ["ndarray:int16", "json", "str"]}, "is not right"),
        ({"raw_data": None}, "is not right"),
    ],
)
def test_an_index_is_checked_before_anything_is_decoded(tmp_path: Path, change: dict, message: str) -> None:
    write_set(tmp_path / "set", 1)
    index = json.loads((tmp_path / "set/index.json").read_text())
    index["shards"][0].update(change)
    (tmp_path / "set/index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedFileError, match=message):
        mds.Rows(tmp_path / "set")
    with pytest.raises(ArgumentError, match="holds no MDS set"):
        mds.Rows(tmp_path)


def test_dtypes_are_the_smallest_signed_ones_and_shards_have_their_size() -> None:
    sizes = {1: np.int16, 32_768: np.int16, 32_769: np.int32, 128_256: np.int32}
    assert {size: mds.token_dtype(size) for size in sizes} == sizes
    column = mds.array_column(np.dtype(np.float16), 2048, 51)
    assert column == "ndarray:float16:2048,51" and mds.column_array(column) == (np.float16, (2048, 51))
    assert mds.rows_per_shard({"target_prob": column, "target_index": "ndarray:int16:2048,50"}, 128 << 20) == 324
    assert mds.rows_per_shard({"x": "ndarray:int64:100"}, 10) == 1


def test_sets_of_other_programs_are_identified_by_their_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for number, folder in enumerate(folders):
        mds.write_shard(outputs.Output(folder, {}), COLUMNS, 1, [row(number)])
        provenance.meta_path(folder, True).unlink()
    assert mds.fingerprint(folders[0]) != mds.fingerprint(folders[1])
    with pytest.raises(ArgumentError, match="holds no MDS set"):
        mds.fingerprint(tmp_path / "absent")
