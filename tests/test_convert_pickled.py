"""Pickled sets of the original become typed ones; what a pickle asks for beyond values is not run.

pytest tests/test_convert_pickled.py
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cepe_data.errors import PipelineError
from cepe_data.storage import convert_pickled, mds
from tests.conftest import Run

COLUMNS = {"token_ids": "pkl", "prev_token_ids": "pkl", "domain": "str", "scores": "pkl", "extra": "pkl"}
COMMAND = ("cepe_data.storage.convert_pickled", "original/test", "typed/test")


class Asks:
    """Pickled, it asks for a call."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def row(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "token_ids": rng.integers(0, 32_000, 64).astype(np.int32),
        "prev_token_ids": rng.integers(0, 32_000, (128, 2)).astype(">u2")[:, 0],
        "domain": "wiki",
        "scores": np.asfortranarray(rng.random((3, 2)).astype(np.float16)),
        "extra": [[1, number], (2.5, "ä"), np.arange(number)],
    }


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    with mds.import_streaming().MDSWriter(columns=COLUMNS, out=str(folder), size_limit=3000) as writer:
        for one in rows:
            writer.write(one)


def test_a_pickled_set_becomes_a_typed_one_of_the_same_rows(run: Run, tmp_path: Path) -> None:
    for domain, number in (("arxiv", 7), ("wiki", 3)):
        write(tmp_path / "original/test" / domain, [row(one) for one in range(number)])
    run("sanity_check.py", "show", "original/test/wiki", 0, cwd=tmp_path, status=1)
    assert "2 sets, 10 rows" in run(*COMMAND, cwd=tmp_path).stdout
    assert run(*COMMAND, cwd=tmp_path).stdout.count("skipped") == 2
    assert mds.read_columns(tmp_path / "typed/test/arxiv") == {
        "token_ids": "ndarray:int32:64",
        "prev_token_ids": "ndarray:uint16:128",
        "domain": "str",
        "scores": "ndarray:float16:3,2",
        "extra": "json",
    }
    rows = mds.import_streaming().LocalDataset(str(tmp_path / "typed/test/arxiv"))
    assert len(rows) == 7
    for number in range(7):
        expected = row(number)
        assert rows[number]["domain"] == "wiki"
        assert rows[number]["extra"] == [[1, number], [2.5, "ä"], list(range(number))]
        for name in ("token_ids", "prev_token_ids", "scores"):
            assert np.array_equal(rows[number][name], expected[name]), name
    assert "0 findings" in run("sanity_check.py", "all", "typed", "--deep", cwd=tmp_path).stdout
    shard = next((tmp_path / "typed/test/wiki").glob("*.mds"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert "is not what was written" in run("sanity_check.py", "all", "typed", "--deep", cwd=tmp_path, status=1).stdout
    write(tmp_path / "original/test/book", [row(0), {**row(1), "token_ids": np.zeros(5, np.int32)}])
    assert "not all alike" in run(*COMMAND, cwd=tmp_path, status=1).stderr


@pytest.mark.parametrize(
    "values",
    [
        (1, 0.75),
        (1, "12"),
        (0.5, 2**53 + 1),
        ("a", 5),
        (np.arange(3), [1, 2, 3]),
        (np.arange(3), np.array([1, 2, 3], object)),
        ([1, 2], np.arange(3)),
        (1, 2**70),
        ("a", "\ud800"),
    ],
    ids=str,
)
def test_rows_that_one_type_cannot_hold_are_an_error(tmp_path: Path, values: tuple[Any, Any]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    write(source, [{**row(number), "extra": value} for number, value in enumerate(values)])
    options = convert_pickled.ConvertOptions(source=source, output=target, overwrite=False)
    with pytest.raises(PipelineError, match=r"row 1 of .*extra|cannot be converted"):
        convert_pickled.convert(source, target, options, 0.0)
    assert not target.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_values_of_every_protocol_are_those_that_pickle_loads(protocol: int) -> None:
    values: list[Any] = ["text", 3, 2.5, [1, [2, "x"]], np.float32(1.5).item()]
    values += [np.zeros((0, 2), np.int8), np.arange(6, dtype=">i8").reshape(2, 3)[:, ::2], np.array([True, False])]
    for value in values:
        found = convert_pickled.load_values(pickle.dumps(value, protocol))
        assert type(found) is type(value)
        assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value
    ragged = np.empty(2, object)
    ragged[:] = [np.arange(2), np.arange(3)]
    assert convert_pickled.load_values(pickle.dumps(ragged, protocol)) == [[0, 1], [0, 1, 2]]
    assert convert_pickled.load_values(pickle.dumps([np.int64(7)], protocol)) == [7]


def evil(call: tuple[Any, ...]) -> dict[str, bytes]:
    """Pickles that would make that call."""
    asked = Asks(*call)
    array = np.empty(1, object)
    array[0] = asked
    values = {"alone": asked, "in a list": [1, asked], "in an array": array, "in a dict": {"x": asked}}
    return {name: pickle.dumps(value) for name, value in values.items()}


def test_nothing_that_a_pickle_asks_for_is_run(run: Run, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    pickles = evil((os.mkdir, (str(seen),))) | {
        f"{name} of eval": one for name, one in evil((eval, (f"__import__('os').mkdir({str(seen)!r})",))).items()
    }
    pickles["old style"] = f"(S'{seen}'\nios\nmkdir\n.".encode()
    pickles["by a dotted name"] = b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__new__.im\x93."
    pickles["an object of a class"] = pickle.dumps(tmp_path)
    pickles["a dtype of a class"] = pickle.dumps(np.zeros(1, [("a", "i4")]))
    pickles["a persistent object"] = b"Pseen\n."
    pickles["no pickle"] = b"token_ids"
    pickles["a set"] = pickle.dumps({1, 2})
    pickles["nothing"] = pickle.dumps(None)
    for name, one in pickles.items():
        with pytest.raises(convert_pickled.RejectedPickleError):
            convert_pickled.load_values(one)
        assert not seen.exists(), name
    pickle.loads(pickles["alone"])
    assert seen.exists(), "it is what it is taken for"
    seen.rmdir()
    write(tmp_path / "original/test/wiki", [row(0), {**row(1), "extra": Asks(os.mkdir, (str(seen),))}])
    done = run(*COMMAND, cwd=tmp_path, status=1)
    assert "row 1 of original/test/wiki: its pickle asks for posix.mkdir" in done.stderr and not seen.exists()
    assert not list((tmp_path / "typed").rglob("index.json"))
    write(tmp_path / "typed only/wiki", [row(0)])
    index = json.loads((tmp_path / "typed only/wiki/index.json").read_text())
    index["shards"][0]["column_encodings"] = ["str", *["int"] * 4]
    (tmp_path / "typed only/wiki/index.json").write_text(json.dumps(index))
    assert "no pickled columns" in run(COMMAND[0], "typed only", "out", cwd=tmp_path, status=2).stderr
