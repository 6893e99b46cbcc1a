"""Spans of tokens and their hashes.    pytest tests/test_spans.py"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cepe_data.errors import DamagedFileError
from cepe_data.samples.passage_lines import lines_of, read_ids
from cepe_data.samples.spans import SpanIndex, SpanSampler


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=8), st.integers(1, 5), st.sampled_from(["i2", "i4"]))
def test_two_spans_have_the_same_hash_if_they_are_the_same(texts: list[list[int]], span: int, dtype: str) -> None:
    ids = np.array([number for text in texts for number in text], dtype)
    hashes, numbers = SpanSampler(span).sample(ids, np.cumsum([0, *map(len, texts)])[1:])
    spans = [
        (number, tuple(text[start : start + span]))
        for number, text in enumerate(texts)
        for start in range(len(text) - span + 1)
    ]
    assert numbers.tolist() == [number for number, _ in spans]
    pairs = {(one, int(hash)) for (_, one), hash in zip(spans, hashes, strict=True)}
    assert len(pairs) == len({one for one, _ in pairs}) == len({hash for _, hash in pairs})


def test_hashes_do_not_depend_on_the_dtype_the_place_or_the_texts_around() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 32_000, 100_000)  # several blocks
    ends = np.array([70_000, 100_000])
    whole = SpanSampler(50).sample(ids.astype(np.int16), ends)[0]
    assert len(np.unique(whole)) == len(whole) == 100_000 - 2 * 49
    for dtype in (np.int32, np.int64):
        assert np.array_equal(SpanSampler(50).sample(ids.astype(dtype), ends)[0], whole)
    alone = SpanSampler(50).sample(ids[33_000:33_200], np.array([200]))[0]
    assert np.array_equal(alone, whole[33_000:33_151])
    large = ids + 100_000  # above the table
    assert len(np.unique(SpanSampler(50).sample(large, ends)[0])) == len(whole)
    assert not np.isin(SpanSampler(50).sample(large, ends)[0], whole).any()


@pytest.mark.parametrize("sampling", [2, 7, 64])
def test_a_sample_is_fair_and_the_same_spans_everywhere(sampling: int) -> None:
    ids, ends = np.random.default_rng(sampling).integers(0, 900, 60_000), np.array([60_000])
    whole, sample = SpanSampler(20).sample(ids, ends)[0], SpanSampler(20, sampling).sample(ids, ends)[0]
    expected = len(whole) / sampling
    assert abs(len(sample) - expected) < 5 * np.sqrt(expected)
    assert set(sample.tolist()) == {hash for hash in whole.tolist() if hash < 2**64 // sampling}


@pytest.mark.parametrize(("number", "sampling"), [(0, 8), (1, 1), (1000, 1), (100_000, 3)])
def test_an_index_finds_what_is_in_it_and_nothing_else(number: int, sampling: int) -> None:
    rng = np.random.default_rng(number)
    hashes = rng.integers(0, 2**64 // sampling, 2 * number, np.uint64)
    index = SpanIndex(np.concatenate([hashes[:number], hashes[: number // 2]]), sampling)
    assert len(index) == number
    asked = rng.permutation(hashes)
    assert sorted(index.hashes[index.find(asked)].tolist()) == sorted(hashes[:number].tolist())


def test_ids_of_passages_are_read_as_a_json_parser_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    records = [
        {
            "contents": 'a "contents_token_ids":[1,2] b\n' * int(rng.integers(0, 90)),
            "neighbor": "é \\",
            "contents_token_ids": (10 ** rng.uniform(0, 7.9, 300)).astype(int).tolist(),
            "neighbor_token_ids": rng.integers(0, 10, int(rng.integers(0, 3))).tolist(),
            "file": 0,
        }
        for _ in range(400)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)[:-1])
    size = path.stat().st_size
    lines = path.read_bytes().splitlines(keepends=True)
    boundaries = sorted({0, size, 1, *rng.integers(0, size, 20).tolist(), len(lines[0]), len(lines[0]) + 1})
    found, position = [], 0
    for start, stop in pairwise(boundaries):
        for place, line in lines_of(path, start, stop):
            assert place == position and start <= place < stop
            position += len(line)
        for ids, ends in read_ids(path, start, stop):
            found += [part.tolist() for part in np.split(ids, ends[:-1])]
    assert position == size
    assert found == [record["contents_token_ids"] + record["neighbor_token_ids"] for record in records]


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        '{"contents_token_ids":[1,2]}',
        '{"contents_token_ids":[1,2',
        *(
            '{"contents_token_ids":[' + numbers + '],"neighbor_token_ids":[]}'
            for numbers in ("1,x", "1,-2", "1,,2", "123456789", "[1]", "1, 2")
        ),
    ],
)
def test_a_line_that_is_no_passage_is_an_error_with_its_place(tmp_path: Path, line: str) -> None:
    good = '{"contents_token_ids":[1,2],"neighbor_token_ids":[]}\n'
    (tmp_path / "a.jsonl").write_text(good + line + "\n" + good)
    with pytest.raises(DamagedFileError, match=r"a\.jsonl: what begins at byte \d+ is not a passage"):
        list(read_ids(tmp_path / "a.jsonl", 0, 1000))
