"""A small corpus in RedPajama's layout and schemas, from text that every Python installation has.

Sources of the standard library, what a reference manual would say of them, and the language reference in `pydoc_data`.
All seven domains; one CommonCrawl file is `.jsonl.zst`, one is `.jsonl.gz`; among the books and papers are documents of
8,192 tokens and more. Sources are parsed, not imported, and only modules are taken that are written in Python and that
distributions leave as they are: the same version of Python gives the same bytes on every machine.
"""

from __future__ import annotations

import ast
import itertools
import json
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

MODULES = """
    _collections_abc _pydecimal _pyio abc aifc ast asyncio base64 bdb bisect bz2 calendar cmd code codecs codeop
    collections colorsys compileall concurrent configparser contextlib contextvars copy copyreg csv dataclasses
    datetime dbm difflib dis doctest email encodings enum filecmp fileinput fnmatch fractions ftplib functools
    genericpath getopt glob graphlib gzip hashlib heapq hmac html http imaplib inspect io ipaddress json keyword
    linecache logging lzma mailbox mimetypes modulefinder multiprocessing netrc nntplib ntpath nturl2path numbers
    opcode operator optparse pathlib pdb pickle pickletools pkgutil plistlib poplib posixpath pprint profile
    pstats py_compile pyclbr queue quopri random re reprlib rlcompleter runpy sched secrets selectors shelve shlex
    shutil smtplib socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable
    tabnanny tarfile tempfile textwrap threading timeit token tokenize trace traceback tracemalloc turtle types
    typing unittest urllib uuid warnings wave weakref wsgiref xml xmlrpc zipapp zipfile zipimport
""".split()
BOOK_CHARACTERS = 36_000
PAPER_BYTES = 30_000
LONG_DOCSTRING = 200


class Definition(NamedTuple):
    """A public class or function: its name in the library, how it is called, what its docstring says."""

    name: str
    signature: str
    docstring: str


class Source:
    """A file of the standard library."""

    def __init__(self, path: Path, name: str) -> None:
        self.name, self.text = name, path.read_text(encoding="utf-8")
        self.module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def definitions(self) -> list[Definition]:
        """Its public classes and functions, and those of its classes."""
        return list(self._definitions_in(self._tree, self.module))

    @cached_property
    def page(self) -> str:
        """The page of a manual: every docstring under the line that it explains."""
        parts = [self.module, ast.get_docstring(self._tree) or ""]
        for _, signature, docstring in self.definitions:
            parts += [signature, "\n".join(f"    {line}".rstrip() for line in docstring.splitlines())]
        return "\n\n".join(filter(None, parts))

    @cached_property
    def _tree(self) -> ast.Module:
        return ast.parse(self.text)

    def _definitions_in(self, node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Definition]:
        for child in node.body:
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name[0] == "_":
                continue
            name, docstring = f"{prefix}.{child.name}", ast.get_docstring(child) or ""
            if isinstance(child, ast.ClassDef):
                yield Definition(name, f"class {name}({', '.join(map(ast.unparse, child.bases))})", docstring)
                yield from self._definitions_in(child, name)
            else:
                yield Definition(name, f"{name}({ast.unparse(child.args)})", docstring)


def build(folder: Path) -> None:
    """Write the corpus into `folder`, which must not exist."""
    topics, sources = read_topics(), read_sources()
    papers = [source for source in sources if len(source.text) >= PAPER_BYTES]
    programs = [source for source in sources if len(source.text) < PAPER_BYTES]
    pages = [(source.module, source.page) for source in sources if len(source.page) > LONG_DOCSTRING]
    long_pages = [page for page in pages if len(page[1]) >= PAPER_BYTES]
    short_pages = [page for page in pages if len(page[1]) < PAPER_BYTES]
    bound_pages = short_pages[::3]
    web_pages = [page for number, page in enumerate(short_pages) if number % 3]
    for number, half in enumerate((papers[::2], papers[1::2])):
        write(folder / f"arxiv/arxiv_{number}.jsonl", (arxiv(paper.name, paper.text) for paper in half))
    books = [*bind(topics), *bind(bound_pages), *long_pages]
    write(folder / "book/book.jsonl", (book(*document) for document in books))
    docstrings = list(read_docstrings(sources))
    for number in range(2):
        name = f"c4/c4-train.{number:05d}-of-01024.jsonl"
        write(folder / name, (c4(*document) for document in docstrings[number::2]))
    third = len(web_pages) // 3
    for name, part in (
        ("2021-04/en_head_0000.json.gz.dedup.classifier.jsonl", web_pages[:third]),
        ("2022-05/en_middle_0000.json.gz.dedup.classifier.jsonl.gz", web_pages[third : 2 * third]),
        ("2023-06/en_middle_0000.json.gz.dedup.classifier.jsonl.zst", web_pages[2 * third :]),
    ):
        write(folder / "common_crawl" / name, (common_crawl(*document) for document in part))
    write(folder / "github/filtered_0.sampled.jsonl", (github(program.name, program.text) for program in programs))
    write(folder / "stackexchange/stackexchange.jsonl", (stackexchange(*one) for one in read_questions(sources)))
    write(folder / "wikipedia/wiki.jsonl", (wikipedia(*document) for document in topics))


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as json lines, compressed as the name says; a zstandard file gets two frames."""
    lines = [json.dumps(record).encode() + b"\n" for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = [b"".join(lines[: len(lines) // 2]), b"".join(lines[len(lines) // 2 :])]
    if path.suffix == ".zst":
        path.write_bytes(b"".join(map(zstandard.compress, halves)))
    elif path.suffix == ".gz":
        path.write_bytes(b"".join(map(stored_gzip, halves)))
    else:
        path.write_bytes(b"".join(halves))


def stored_gzip(content: bytes) -> bytes:
    """A gzip member that holds the content as it is (RFC 1951, 3.2.4; RFC 1952): what zlib makes of it depends on whose
    zlib a Python has."""
    blocks = [content[start : start + 0xFFFF] for start in range(0, len(content), 0xFFFF)] or [b""]
    member = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    for number, block in enumerate(blocks):
        size = len(block).to_bytes(2, "little")
        member += bytes([number == len(blocks) - 1]) + size + bytes(byte ^ 0xFF for byte in size) + block
    return member + zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")


def read_topics() -> list[tuple[str, str]]:
    """The articles of the language reference: (title, text)."""
    from pydoc_data.topics import topics

    return sorted(topics.items())


def read_sources() -> list[Source]:
    """The files of MODULES, as far as this version of Python has them, sorted by name."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = [library / f"{name}.py" for name in MODULES]
    paths += [path for name in MODULES for path in (library / name).rglob("*.py")]
    names = {path.relative_to(library).as_posix(): path for path in paths if path.exists() and "test" not in path.parts}
    sources = [Source(path, name) for name, path in sorted(names.items())]
    return [source for source in sources if source.text.strip()]


def read_docstrings(sources: Iterable[Source]) -> Iterator[tuple[str, str]]:
    """Docstrings of classes and functions of at least a few lines, each once: (name, text)."""
    seen = set()
    for name, _, docstring in itertools.chain.from_iterable(source.definitions for source in sources):
        if len(docstring) > LONG_DOCSTRING and docstring not in seen:
            seen.add(docstring)
            yield name, docstring


def read_questions(sources: Iterable[Source]) -> Iterator[tuple[str, str]]:
    """Threads of questions about the definitions of a class or module, with short answers: (name, text)."""
    for source in sources:
        for name, group in itertools.groupby(source.definitions, key=lambda one: one.name.rpartition(".")[0]):
            answers = [one for one in group if 0 < len(one.docstring) <= LONG_DOCSTRING]
            if answers:
                thread = [f"Q: What does {signature} do?\nA: {docstring}" for _, signature, docstring in answers]
                yield name, "\n".join(thread)


def bind(articles: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Books: runs of articles of at least BOOK_CHARACTERS: (title, text)."""
    lengths = itertools.accumulate(len(text) for _, text in articles)
    volumes = itertools.groupby(zip(lengths, articles, strict=True), key=lambda pair: pair[0] // BOOK_CHARACTERS)
    for _, volume in volumes:
        chapters = [article for _, article in volume]
        text = "\n\n\n".join(f"{title.upper()}\n\n{chapter}" for title, chapter in chapters)
        yield f"From {chapters[0][0]} to {chapters[-1][0]}", text


def arxiv(name: str, text: str) -> dict[str, Any]:
    meta = {"timestamp": "2023-01-01T00:00:00", "yymm": "2301", "arxiv_id": name, "language": "en", "url": name}
    return {"text": text, "meta": {**meta, "source": "arxiv"}}


def book(name: str, text: str) -> dict[str, Any]:
    return {"meta": {"short_book_title": name, "publication_date": 1991, "url": name}, "text": text}


def c4(name: str, text: str) -> dict[str, Any]:
    return {"text": text, "meta": {"timestamp": "2019-04-24T11:23:34Z", "url": name, "language": "en", "source": "c4"}}


def common_crawl(name: str, text: str) -> dict[str, Any]:
    labels = {"pred_label": "__label__wiki", "pred_label_prob": 0.5, "wiki_prob": 0.5}
    return {"text": text, **labels, "source": f"cc/{name}"}


def github(name: str, text: str) -> dict[str, Any]:
    language = [{"name": "Python", "bytes": str(len(text))}]
    return {"text": text, "meta": {"source": "github", "repo_name": "cpython", "path": name, "language": language}}


def stackexchange(name: str, text: str) -> dict[str, Any]:
    return {"text": text, "meta": {"language": "en", "url": name, "source": "stackexchange", "question_score": "1"}}


def wikipedia(name: str, text: str) -> dict[str, Any]:
    return {"text": text, "meta": {"title": name, "url": name, "language": "en", "timestamp": "20230320"}}
