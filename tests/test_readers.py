"""Blocks of whole lines, and what is not a document.    pytest tests/test_readers.py"""

from __future__ import annotations

import gzip
import json
import lzma
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from cepe_data.corpus import readers
from cepe_data.corpus.domains import RecordKeys
from cepe_data.errors import DamagedFileError

LINES = [json.dumps({"text": "line " * random.Random(n).randrange(400), "n": n}).encode() for n in range(500)]
CONTENT = b"\n".join(LINES) + b"\n"
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def blocks(path: Path, block_bytes: int) -> list[tuple[int, bytes]]:
    return [(number, block) for number, block, _ in readers.line_blocks(path, block_bytes)]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("block_bytes", [1, 1000, 100_000, 1 << 30])
def test_blocks_hold_whole_lines_with_their_numbers_however_the_file_is_packed(
    tmp_path: Path, ending: str, block_bytes: int
) -> None:
    pack = PACKERS[ending]
    path = tmp_path / f"x.jsonl{ending}"
    cut = len(CONTENT) // 3
    path.write_bytes(pack(CONTENT[:cut]) + pack(CONTENT[cut:-1]))
    found = blocks(path, block_bytes)
    assert b"".join(block for _, block in found) == CONTENT[:-1]
    next_line = 1
    for number, block in found:
        assert number == next_line
        assert block.endswith(b"\n") or block is found[-1][1]
        next_line += block.count(b"\n")


def test_a_byte_order_mark_is_dropped_at_the_start_only(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n')
    [(number, block)] = blocks(tmp_path / "x.jsonl", 1 << 20)
    parsed = readers.parse_documents(number, block, RecordKeys("text"))
    assert parsed.texts == ["a"] and parsed.skipped.counts == {"not JSON": 1} and parsed.num_lines == 2


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "rubbish behind", "flipped", "cut in its header"])
def test_a_damaged_archive_is_an_error_that_names_it(tmp_path: Path, ending: str, damage: str) -> None:
    pack = gzip.compress if ending == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    packed = pack(CONTENT)
    middle = len(packed) // 2
    damaged = {
        "truncated": packed[:-9],
        "rubbish behind": packed + b"rubbish",
        "flipped": packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :],
        "cut in its header": packed[:9],
    }[damage]
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(damaged)
    with pytest.raises(DamagedFileError, match=r"x\.jsonl.*download it again"):
        blocks(path, 1 << 20)


WRONG_ARCHIVES: dict[str, tuple[Any, str]] = {
    "plain text": (CONTENT, "it is plain text: remove {0} from its name"),
    "the other archive": (
        {".gz": zstandard.compress(CONTENT), ".zst": gzip.compress(CONTENT)},
        "it contains {1} data: end its name in {2}",
    ),
    "xz": (lzma.compress(CONTENT), "it contains xz data: unpack it first"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run `git lfs pull`"),
    "an error page": (b"<!DOCTYPE html><html>404", "it is an HTML page"),
}


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("case", WRONG_ARCHIVES)
def test_a_file_that_is_not_what_its_suffix_says_is_named_as_what_it_is(tmp_path: Path, ending: str, case: str) -> None:
    content, message = WRONG_ARCHIVES[case]
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(content[ending] if isinstance(content, dict) else content)
    other = ("zstandard", ".zst") if ending == ".gz" else ("gzip", ".gz")
    with pytest.raises(DamagedFileError, match=re.escape(message.format(ending, *other))) as caught:
        blocks(path, 1 << 20)
    assert "x.jsonl" in str(caught.value) and ("download it again" in str(caught.value)) == (case == "an error page")


def test_an_archive_that_needs_a_dictionary_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    dictionary = zstandard.train_dictionary(4096, [LINES[number % 500][: 50 + number] for number in range(2000)])
    path.write_bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(CONTENT))
    with pytest.raises(DamagedFileError, match=r"dictionary \d+, which is not in it: decompress it with `zstd -d -D"):
        blocks(path, 1 << 20)


def test_an_archive_of_skippable_and_other_frames_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zstandard.compress(CONTENT))
    assert b"".join(block for _, block in blocks(path, 1000)) == CONTENT


def test_an_archive_that_grows_ten_thousandfold_comes_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor(level=19).compress((b"x" * 999 + b"\n") * 300_000))
    assert path.stat().st_size < 100_000
    sizes = [len(block) for _, block, _ in readers.line_blocks(path)]
    assert sum(sizes) == 300_000_000 and max(sizes) < 150_000_000


def test_lines_are_skipped_and_repaired_by_reason_and_number() -> None:
    block = b"\n".join(
        [
            b'{"text": "good"}',
            b"",
            b"   ",
            b"[1]",
            b'{"other": 1}',
            b'{"text": 7}',
            b'{"text": "cut',
            b'{"text": "\xff"}',
            b'{"text": "lone \\ud83d here"}',
            b'{"text": "pair \\ud83d\\ude00", "score": NaN}',
            b'{"text": ""}',
            b'{"text": "nul \\u0000"}\r',
            b"[" * 100_000,
            b'{"text": ' + b"[" * 2000 + b"]" * 2000 + b"}",
            b'{"text": "\0' + bytes(100) + b'"}',
            b'{"text": "the file ends he',
        ]
    )
    parsed = readers.parse_documents(11, block, RecordKeys("text"))
    assert parsed.texts == ["good", "lone \ufffd here", "pair 😀", "", "nul \0"]
    assert parsed.skipped.lines == {
        "no JSON object": [14],
        "no key 'text'": [15],
        "'text' is no string": [16],
        "not JSON": [17, 23, 24],
        "not UTF-8": [18],
        "a run of NUL bytes": [25],
        "cut off at the end of the file": [26],
    }
    assert parsed.repaired.as_json() == {"lone surrogate": {"count": 1, "first_lines": [19]}}


def test_reports_keep_the_first_lines_and_all_counts() -> None:
    whole = readers.LineReport()
    for start in (0, 15, 30):
        part = readers.LineReport()
        for line in range(1, 16):
            part.add("bad", line)
        whole.merge(part, start)
    assert whole.as_json() == {"bad": {"count": 45, "first_lines": list(range(1, 21))}}


@pytest.mark.parametrize("range_bytes", [1, 7, 1000, 100_000, 1 << 30])
@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n", b"x" * 200_000, b"x" * 200_000 + b"\n"])
def test_ranges_of_lines_are_whole_lines_and_all_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_bytes: int, ending: bytes
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + CONTENT + ending)
    ranges = list(readers.line_ranges(path, range_bytes))
    found = [readers.read_range(path, start, stop) for start, stop in ranges]
    assert b"".join(found) == CONTENT + ending
    assert all(block.endswith(b"\n") for block in found[:-1])
    assert all(stop - start >= range_bytes for start, stop in ranges[:-1])
    (tmp_path / "empty.jsonl").touch()
    assert list(readers.line_ranges(tmp_path / "empty.jsonl", range_bytes)) == []
    with pytest.raises(DamagedFileError, match="truncated while"):
        readers.read_range(path, 0, path.stat().st_size + 1)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_line_that_does_not_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """As the rest of a file of which a download set aside the space."""
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(PACKERS[ending](CONTENT) + 4 * PACKERS[ending](bytes(1 << 20)))
    message = r"x.jsonl\S* has a line of more than 0.001 GB, after (line|byte)"
    with pytest.raises(DamagedFileError, match=message):
        blocks(path, 1000)
    if not ending:
        with pytest.raises(DamagedFileError, match=message):
            list(readers.line_ranges(path, 1000))
