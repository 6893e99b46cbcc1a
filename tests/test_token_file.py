"""Token files, read by numpy as their format says.    pytest tests/test_token_file.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from cepe_data.errors import DamagedFileError
from cepe_data.storage import outputs
from cepe_data.tokens import token_file
from tests import reference

DOCUMENTS = [[1, 5, 6, 2], [1, 2], [1, 9, 9, 9, 9, 2]]


def flat(documents: list[list[int]]) -> list[int]:
    return [token for document in documents for token in document]


def write(path: Path, documents: list[list[int]] = DOCUMENTS) -> None:
    writer = token_file.TokenFileWriter(outputs.Output(path, {"source": "x"}))
    for first in range(0, len(documents), 2):
        batch = documents[first : first + 2]
        writer.append(
            np.array(flat(batch), np.int32),
            np.array([len(document) for document in batch], np.int64),
            np.array([1000 + first + index for index in range(len(batch))], np.uint64),
        )
    assert writer.publish({})
    writer.close()


@given(st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=8), st.sampled_from([None, 1]))
def test_bos_and_eos_are_at_every_boundary(documents: list[list[int]], bos: int | None) -> None:
    ids, lengths = token_file.add_bos_eos(
        np.array(flat(documents), np.int32), np.array([len(d) for d in documents], np.int64), bos, 2
    )
    expected = [([] if bos is None else [bos]) + document + [2] for document in documents]
    assert ids.tolist() == flat(expected) and lengths.tolist() == [len(document) for document in expected]


@pytest.mark.parametrize("spool_bytes", [1, 20, 1 << 20])
def test_the_arrays_are_what_the_format_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spool_bytes: int) -> None:
    monkeypatch.setattr(token_file, "_SPOOL_BYTES", spool_bytes)
    write(tmp_path / "x.npy")
    array = np.load(tmp_path / "x.npy")
    assert array.dtype == np.dtype("<i4") and array.tolist() == [3, 4, 2, 6, *flat(DOCUMENTS)]
    hashes = np.load(tmp_path / "x.hash.npy")
    assert hashes.dtype == np.dtype("<u8") and hashes.tolist() == [1000, 1001, 1002]
    write(tmp_path / "none.npy", [])
    assert np.load(tmp_path / "none.npy").tolist() == [0] and len(np.load(tmp_path / "none.hash.npy")) == 0


def test_blocks_of_documents_are_the_same_for_every_block_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.npy")
    for size in (1, 2, 100):
        monkeypatch.setattr(token_file, "DOCUMENTS_PER_BLOCK", size)
        with token_file.TokenFile(tmp_path / "x.npy") as tokens:
            found = []
            for first, position, lengths in tokens.document_blocks():
                hashes = tokens.hashes(first, first + len(lengths))
                for index, stop in enumerate(position + np.cumsum(lengths)):
                    document = tokens.tokens(int(stop - lengths[index]), int(stop)).tolist()
                    found.append((first + index, document, int(hashes[index])))
        assert found == [(number, document, 1000 + number) for number, document in enumerate(DOCUMENTS)]


def test_ranges_and_positions_are_those_of_the_documents_whatever_their_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = np.where(np.arange(5000) // 1100 == 1, 0, rng.integers(0, 5, 5000))  # a whole block of empty ones
    ids = rng.integers(0, 99, int(lengths.sum()))
    np.save(tmp_path / "x.npy", np.concatenate([[5000], lengths, ids]))
    expected = [xxhash.xxh3_64_intdigest(one.astype("<i4").tobytes()) for one in np.split(ids, np.cumsum(lengths)[:-1])]
    owner = np.repeat(np.arange(5000), lengths)
    with token_file.TokenFile(tmp_path / "x.npy") as tokens:
        for start, stop in ((0, None), (-2, None), (4999, 9999), (1023, 1025), (7, 3), (5000, None)):
            assert tokens.lengths(start, stop).tolist() == lengths[start:stop].tolist()
            assert tokens.hashes(start, stop).tolist() == expected[start:stop]
        positions = rng.permutation(np.arange(-1, 5001 + len(ids) + 2))
        for place in tokens.find(positions):
            index = place.position - 5001
            if not 0 <= index < len(ids):
                assert place.document is None
                continue
            assert place.document == owner[index]
            assert place.start <= place.position < place.stop == place.start + lengths[owner[index]]
            assert index == 0 or (place.start == place.position) == (owner[index - 1] != owner[index])


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, ">i4"])
def test_a_lone_file_from_elsewhere_is_read_and_hashed_by_its_tokens(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "x.npy", np.array([3, 4, 2, 6, *flat(DOCUMENTS)], dtype))
    with token_file.TokenFile(tmp_path / "x.npy") as tokens:
        assert not tokens.has_text_hashes
        assert tokens.lengths().tolist() == [4, 2, 6]
        hashes, second = tokens.hashes(), tokens.hashes(1, 2)
    expected = [xxhash.xxh3_64_intdigest(np.array(document, "<i4").tobytes()) for document in DOCUMENTS]
    assert hashes.tolist() == expected and second.tolist() == expected[1:2]


def damage_nothing_but_size(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def pickle_it(path: Path) -> None:
    np.save(path, np.array([{"code": "runs"}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_nothing_but_size, "its header says"),
        (pickle_it, "not what belongs there"),
        (lambda path: path.write_bytes(b"text"), r"not an \.npy file"),
        (lambda path: path.write_bytes(b""), r"not an \.npy file"),
        (lambda path: np.save(path, np.zeros((2, 2), np.int32)), "not what belongs there"),
        (lambda path: np.save(path, np.zeros(3)), "not what belongs there"),
        (lambda path: np.save(path, np.array([9, 1], np.int32)), "9 documents in 2 numbers"),
        (lambda path: np.save(path, np.array([], np.int32)), "documents in 0 numbers"),
        (lambda path: np.save(path, np.array([3, 4, 2, 7, *flat(DOCUMENTS)], np.int32)), "do not add up"),
        (lambda path: np.save(path, np.array([3, 4, -2, 6, *range(8)], np.int32)), "negative length"),
        (lambda path: np.save(path.with_name("x.hash.npy"), np.zeros(2, np.uint64)), "2 numbers"),
    ],
)
def test_damage_is_an_error_that_names_the_file(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path / "x.npy")
    damage(tmp_path / "x.npy")
    with pytest.raises(DamagedFileError, match=message) as error, token_file.TokenFile(tmp_path / "x.npy") as tokens:
        list(tokens.document_blocks())
    assert str(tmp_path) in str(error.value)


def test_a_file_truncated_while_it_is_read_is_a_message(tmp_path: Path) -> None:
    write(tmp_path / "x.npy")
    with token_file.TokenFile(tmp_path / "x.npy") as tokens:
        assert reference.documents_of(tmp_path / "x.npy")[0].tolist() == tokens.tokens(4, 8).tolist()
        damage_nothing_but_size(tmp_path / "x.npy")
        with pytest.raises(DamagedFileError, match="truncated while being read"):
            tokens.tokens(4, 16)
