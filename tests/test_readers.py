"""Blocks of whole lines, and what is not a document.    pytest tests/test_readers.py"""

from __future__ import annotations

import gzip
import json
import lzma
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cepe_data.corpus import readers
from cepe_data.corpus.domains import RecordDomains, RecordKeys
from cepe_data.corpus.parquet import parquet_blocks
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


@pytest.mark.parametrize("damage", [readers.CUT_OFF, readers.HOLE])
def test_damage_is_reported_by_name_after_any_number_of_other_reasons(damage: str) -> None:
    whole, last = readers.LineReport(), readers.LineReport()
    for line in range(1, 31):
        whole.add(f"unknown domain {line}", line)
    last.add(damage, 1)
    whole.merge(last, 30)
    assert whole.lines[damage] == [31] and whole.total == 31 and len(whole.counts) == readers.MAX_REASONS + 2


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


def parse_file(path: Path, keys: RecordKeys) -> tuple[list[str], list[int], dict[str, list[int]]]:
    """The texts of a file, the numbers of their domains, and the lines or rows that are skipped, by reason."""
    texts, domains, skipped = [], [], readers.LineReport()
    for first, block, _ in readers.read_blocks(path, keys, 100):
        parsed = readers.parse_block(first, block, keys)
        texts += parsed.texts
        domains += parsed.domains
        skipped.merge(parsed.skipped, 0)
    return texts, domains, skipped.lines


def parse_both(folder: Path, records: list[dict[str, Any]], text: str, domain: str = "") -> list[Any]:
    """The same records as JSON lines and as parquet, parsed."""
    keys = RecordKeys(text, RecordDomains(domain) if domain else None)
    (folder / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    names = {name: None for record in records for name in record}  # from_pylist takes those of the first record
    rows = [{**names, **record} for record in records]
    pq.write_table(pa.Table.from_pylist(rows), folder / "x.parquet", row_group_size=3)
    return [parse_file(folder / name, keys) for name in ("x.jsonl", "x.parquet")]


BOOK, WIKI = 1, 6  # in the sorted names of the seven domains
BODIES = ['{"content": "hello", "set": "book"}', '{"content": 7}', "no JSON", "[]", "", "[" * 100_000, None]
LENIENT = ['{"content": "a \\ud800", "set": "book"}', '{"content": "b", "set": "wiki", "score": NaN}']
CASES: dict[str, tuple[list[dict[str, Any]], tuple[str, ...], Any]] = {
    "columns": (
        [{"text": text, "set": name} for text in ("a", "", None) for name in ("RedPajamaBook", "wiki", "x", None)],
        ("text", "set"),
        (
            ["a", "a", "", ""],
            [BOOK, WIKI, BOOK, WIKI],
            {
                "unknown domain 'x' in 'set'": [3, 7],
                "no domain in 'set'": [4, 8],
                "'text' is no string": [9, 10, 11, 12],
            },
        ),
    ),
    "nested structs": (
        [
            {"body": {"part": {"content": "a"}, "n": 1}, "meta": {"set": "book"}},
            {"body": {"part": {"content": None}, "n": 1}, "meta": {"set": "book"}},
            {"body": {"part": None, "n": 1}, "meta": {"set": "book"}},
            {"body": None, "meta": {"set": "book"}},
            {"body": {"part": {"content": "b"}, "n": 1}, "meta": None},
            {"body": {"part": {"content": "c"}, "n": 1}, "meta": {"set": "wiki"}},
        ],
        ("body.part.content", "meta.set"),
        (
            ["a", "c"],
            [BOOK, WIKI],
            {
                "'body.part.content' is no string": [2],
                "no key 'body.part.content'": [3, 4],
                "no domain in 'meta.set'": [5],
            },
        ),
    ),
    "strings of JSON": (
        [{"body": body} for body in BODIES],
        ("body.content",),
        (["hello"], [], {"'body.content' is no string": [2], "no key 'body.content'": [3, 4, 5, 6, 7]}),
    ),
    "strings that only the standard library reads": (
        [{"body": body} for body in LENIENT],
        ("body.content", "body.set"),
        (["a \ufffd", "b"], [BOOK, WIKI], {}),
    ),
    "text and domain in one string": (
        [{"body": body} for body in BODIES[:2]],
        ("body.content", "body.set"),
        (["hello"], [BOOK], {"'body.content' is no string": [2]}),
    ),
    "strings of JSON in a struct": (
        [{"body": {"json": body}} for body in BODIES],
        ("body.json.content",),
        (["hello"], [], {"'body.json.content' is no string": [2], "no key 'body.json.content'": [3, 4, 5, 6, 7]}),
    ),
    "JSON domains": (
        [
            {"text": "a", "meta": meta}
            for meta in ('{"set": "book"}', '{"set": 7}', "{}", "no JSON", '{"set": "\\ud800"}', '{"set": null}', None)
        ],
        ("text", "meta.set"),
        (
            ["a"],
            [BOOK],
            {
                "no domain in 'meta.set'": [2, 3, 6, 7],
                "a string on the way to 'meta.set' is not JSON": [4],
                "unknown domain '\\ud800' in 'meta.set'": [5],
            },
        ),
    ),
    "a key into a text": ([{"text": "a"}], ("text.typo",), ([], [], {"no key 'text.typo'": [1]})),
    "a key that ends in a dot": ([{"text": "a"}], ("text.",), ([], [], {"no key 'text.'": [1]})),
    "names with dots": (
        [{"a": {"b": {"c": "in structs"}, "b.c": "in a field", "b.c.d": "other"}, "a.b": "other"}],
        ("a.b.c",),
        (["in a field"], [], {}),
    ),
    "a column with a dot": ([{"a": {"b": "in a struct"}, "a.b": "in a column"}], ("a.b",), (["in a column"], [], {})),
}


@pytest.mark.parametrize("case", CASES)
def test_a_row_of_parquet_is_parsed_as_the_same_record_in_a_line(tmp_path: Path, case: str) -> None:
    records, keys, expected = CASES[case]
    assert parse_both(tmp_path, records, *keys) == [expected, expected]


def test_a_missing_key_is_a_null_in_parquet(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"text": "a", "meta": {"set": "book"}},
        {"meta": {"set": "book"}},
        {"text": "b"},
        {"text": "c", "meta": {}},
    ]
    of_lines, of_rows = parse_both(tmp_path, records, "text", "meta.set")
    domains = {"no domain in 'meta.set'": [3, 4]}
    assert of_lines == (["a"], [BOOK], {"no key 'text'": [2], **domains})
    assert of_rows == (["a"], [BOOK], {"'text' is no string": [2], **domains})


def test_bytes_that_are_not_utf8_are_skipped_in_lines_and_in_rows(tmp_path: Path) -> None:
    """Among them a lone surrogate as three bytes, which is as much as parquet can have of one."""
    texts = [b"a", b"\xed\xa0\x80", b"\xff", "é".encode()]
    (tmp_path / "x.jsonl").write_bytes(b"".join(b'{"text": "%b"}\n' % text for text in texts))
    column = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.parquet"):
        assert parse_file(tmp_path / name, RecordKeys("text")) == (["a", "é"], [], {"not UTF-8": [2, 3]})


@pytest.mark.parametrize("key", ["text", "body.text"])
def test_blocks_of_categories_are_as_small_as_those_of_strings(tmp_path: Path, key: str) -> None:
    texts = [f"{number} " * 100 for number in range(1000)]
    column = pa.array([*texts, None]).dictionary_encode()
    table = pa.table({"text": column, "body": pa.StructArray.from_arrays([column], ["text"])})
    pq.write_table(table, tmp_path / "x.parquet")
    keys = RecordKeys(key)
    assert parse_file(tmp_path / "x.parquet", keys) == (texts, [], {f"{key!r} is no string": [1001]})
    blocks = [rows for _, rows, _ in parquet_blocks(tmp_path / "x.parquet", keys, 10_000)]
    assert max(len(pickle.dumps(rows)) for rows in blocks) < 20_000 < sum(rows.nbytes for rows in blocks)


def test_a_key_of_no_column_of_strings_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"body": {"n": 1, "text": "a"}, "id": 1}]), tmp_path / "x.parquet")
    for key, message in {
        "text": "has no column 'text', but body, id: pass one with --text_key",
        "body.title": "has no field 'title' in 'body', but n, text: pass one with --text_key",
        "body.n": "the column 'body.n' of .* holds int64, not strings",
        "body": "the column 'body' of .* holds struct<n: int64, text: string>, not strings",
    }.items():
        with pytest.raises(DamagedFileError, match=message):
            next(parquet_blocks(tmp_path / "x.parquet", RecordKeys(key), 1))


def test_a_domain_is_shown_so_that_it_can_be_printed_and_written() -> None:
    keys = RecordKeys("text", RecordDomains("set"))
    values = [r'"\ud800"', r'"\u001b[31m"', '"' + "é" * 100 + '"', "[" * 1000 + "]" * 1000]
    block = "".join(f'{{"text": "a", "set": {value}}}\n' for value in values).encode()
    assert list(readers.parse_documents(1, block, keys).skipped.counts) == [
        r"unknown domain '\ud800' in 'set'",
        r"unknown domain '\x1b[31m' in 'set'",
        f"unknown domain '{'é' * 60}' in 'set'",
        "no domain in 'set'",
    ]
