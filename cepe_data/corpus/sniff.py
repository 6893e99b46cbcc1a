"""What a file contains, told from its first bytes: for messages about files that are not what their names say."""

from __future__ import annotations

import codecs

HEAD_BYTES = 4096
_MAGIC = {  # the signature that a file of a format begins with
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
}
_SUFFIXES = {"gzip": ".gz", "zstandard": ".zst", "parquet": ".parquet"}
_SKIPPABLE_FRAME = b"\x2a\x4d\x18"  # of zstandard, behind a first byte from 0x50 to 0x5f (RFC 8878, section 3.1.2)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark begins it
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def binary_format(head: bytes) -> str | None:
    """The compression or container format of a file that begins with `head`, such as `gzip`; None for none of these."""
    if head[1:4] == _SKIPPABLE_FRAME and 0x50 <= head[0] <= 0x5F:
        return "zstandard"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file that begins with `head` is what git has in place of a file that git-lfs did not fetch."""
    return head.startswith(_LFS_POINTER)


def describe_not_json_lines(head: bytes) -> str:
    """What a file is that begins with `head` and does not hold JSON lines in UTF-8, and the remedy; empty if its first
    bytes do not tell.

    >>> describe_not_json_lines('{"text": "ä"}'.encode("utf-16"))
    'it is UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`'
    """
    if is_lfs_pointer(head):
        return "it is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder"
    if found := binary_format(head):
        remedy = f"end its name in {_SUFFIXES[found]}" if found in _SUFFIXES else "unpack it first"
        return f"it contains {found} data: {remedy}"
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, such as the error message of a server: download it again"
    if encoding := _wide_encoding(head):
        return f"it is {encoding} text: convert it with `iconv -f {encoding} -t UTF-8`"
    if b"\r" in head and b"\n" not in head:
        return "its lines end in CR alone: convert them with `tr '\\r' '\\n'`"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return (
            "it is not UTF-8, most likely Latin-1 or Windows-1252 text: convert it with "
            "`iconv -f WINDOWS-1252 -t UTF-8`"
        )
    return ""


def _wide_encoding(head: bytes) -> str | None:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    for start, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):  # JSON is ASCII for the most part
        half = head[start : start + 256 : 2]
        if len(half) > 8 and half.count(0) > len(half) // 2 and head[1 - start : 256 : 2].count(0) == 0:
            return encoding
    return None
