"""Lists, weights and lines of the corpus.    pytest tests/test_corpus.py"""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cepe_data import corpus
from cepe_data.errors import ArgumentError, DamagedFileError

LINES = [json.dumps({"text": "line " * random.Random(n).randrange(400), "n": n}).encode() for n in range(500)]
CONTENT = b"\n".join(LINES) + b"\n"


def test_token_paths_and_their_collisions() -> None:
    assert corpus.token_path("c/en.json.gz.dedup.classifier.jsonl.zst") == "c/en.json.gz.dedup.classifier.npy"
    assert corpus.token_path("a.jsonl") == corpus.token_path("a.jsonl.gz") == "a.npy"
    with pytest.raises(ArgumentError, match="ends in none of"):
        corpus.token_path("a.json")
    corpus.refuse_shared_targets(["a/x.jsonl", "b/x.jsonl", "a/y.jsonl.gz"])
    for paths in (["x.jsonl", "x.jsonl.zst"], ["x.jsonl", "x.jsonl"], ["x.jsonl", "x.hash.jsonl"]):
        with pytest.raises(ArgumentError, match="both write x"):
            corpus.refuse_shared_targets(paths)


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=9), st.integers(0, 10**7))
def test_counts_by_largest_remainder_add_up_and_are_within_one(raw: list[float], total: int) -> None:
    weights = {f"d{index}": weight / math.fsum(raw) for index, weight in enumerate(raw)}
    counts = corpus.largest_remainder(weights, total)
    assert sum(counts.values()) == total
    assert all(abs(counts[domain] - weight * total) < 1 + 1e-6 for domain, weight in weights.items())


def test_weights_that_do_not_add_up_print_a_line_that_does() -> None:
    assert corpus.parse_weights("arxiv=0.25,book=0.75,cc=0") == {"arxiv": 0.25, "book": 0.75}
    with pytest.raises(ArgumentError, match=r"add up to 0\.9") as refusal:
        corpus.parse_weights("arxiv=0.3,book=0.3,cc=0.3")
    line = str(refusal.value).splitlines()[-1].removeprefix("  --domains ")
    assert corpus.parse_weights(line) == pytest.approx(dict.fromkeys(("arxiv", "book", "cc"), 1 / 3))
    for text in ("arxiv", "arxiv=", "arxiv=x", "arxiv=-1,book=2", "arxiv=nan", "arxiv=0.5,arxiv=0.5", "arxiv=0"):
        with pytest.raises(ArgumentError, match="--domains"):
            corpus.parse_weights(text)


def blocks(path: Path, block_bytes: int) -> list[tuple[int, bytes]]:
    return list(corpus.LineBlocks(path, block_bytes))


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("block_bytes", [1, 1000, 100_000, 1 << 30])
def test_blocks_hold_whole_lines_with_their_numbers_however_the_file_is_packed(
    tmp_path: Path, ending: str, block_bytes: int
) -> None:
    def pack(content: bytes) -> bytes:
        return gzip.compress(content) if ending == ".gz" else zstandard.compress(content) if ending else content

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
    texts, skipped, _ = corpus.parse_documents(number, block, "text")
    assert texts == ["a"] and skipped.counts == {"not JSON": 1}


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "rubbish behind", "flipped", "not an archive"])
def test_a_damaged_archive_is_an_error_that_names_it(tmp_path: Path, ending: str, damage: str) -> None:
    packed = (
        gzip.compress(CONTENT) if ending == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT)
    )
    middle = len(packed) // 2
    damaged = {
        "truncated": packed[:-9],
        "rubbish behind": packed + b"rubbish",
        "flipped": packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :],
        "not an archive": CONTENT,
    }[damage]
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(damaged)
    with pytest.raises(DamagedFileError, match=r"x\.jsonl.*download it again"):
        blocks(path, 1 << 20)


def test_lines_are_skipped_and_mended_by_reason_and_number() -> None:
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
        ]
    )
    texts, skipped, mended = corpus.parse_documents(11, block, "text")
    assert texts == ["good", "lone \ufffd here", "pair 😀", "", "nul \0"]
    assert skipped.lines == {
        "no JSON object": [14],
        "no key 'text'": [15],
        "'text' is no string": [16],
        "not JSON": [17, 23],
        "not UTF-8": [18],
    }
    assert mended.as_json() == {"lone surrogate": {"count": 1, "first_lines": [19]}}


def test_reports_keep_the_first_lines_and_all_counts() -> None:
    whole = corpus.LineReport()
    for start in (0, 15, 30):
        part = corpus.LineReport()
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
    ranges = list(corpus.line_ranges(path, range_bytes))
    found = [corpus.read_range(path, start, stop) for start, stop in ranges]
    assert b"".join(found) == CONTENT + ending
    assert all(block.endswith(b"\n") for block in found[:-1])
    assert all(stop - start >= range_bytes for start, stop in ranges[:-1])
    (tmp_path / "empty.jsonl").touch()
    assert list(corpus.line_ranges(tmp_path / "empty.jsonl", range_bytes)) == []
    with pytest.raises(DamagedFileError, match="truncated while"):
        corpus.read_range(path, 0, path.stat().st_size + 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../x.jsonl", "leaves the data folder"),
        ("/etc/x.jsonl", "leaves the data folder"),
        ("unknown/x.jsonl", "no domain"),
        ("arxiv/gone.jsonl", "no such file"),
        ("", "names no file"),
    ],
)
def test_a_list_edited_by_hand_is_checked(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "all_jsonl.txt").write_text(f"{line}\n")
    with pytest.raises(ArgumentError, match=message):
        corpus.read_file_list(tmp_path / "all_jsonl.txt", tmp_path)
    with pytest.raises(ArgumentError, match="get_all_jsonl"):
        corpus.read_file_list(tmp_path / "none.txt")
