"""A small corpus in RedPajama's layout and schemas, from text that every Python installation has.

Sources of the standard library, the language reference in `pydoc_data`, and rendered help. All seven domains; one
CommonCrawl file is `.jsonl.zst`, one is `.jsonl.gz`; among the books and papers are documents of 8,192 tokens and more.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import inspect
import io
import itertools
import json
import pydoc
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

MODULES = """
    argparse ast asyncio base64 bisect calendar cmath cmd code codecs collections colorsys configparser
    contextlib copy csv ctypes dataclasses datetime dbm decimal difflib dis doctest email enum errno
    fileinput fnmatch fractions ftplib functools gc getopt getpass gettext glob graphlib gzip hashlib
    heapq hmac html http imaplib importlib inspect io ipaddress itertools json keyword linecache locale
    logging lzma mailbox math mimetypes mmap multiprocessing netrc numbers operator os pathlib pdb
    pickle pickletools pkgutil platform plistlib poplib posixpath pprint profile pstats queue quopri
    random re reprlib sched secrets selectors shelve shlex shutil signal smtplib socket socketserver
    sqlite3 ssl stat statistics string struct subprocess symtable sys sysconfig tarfile tempfile
    textwrap threading time timeit token tokenize trace traceback tracemalloc types typing unicodedata
    unittest urllib uuid warnings wave weakref webbrowser xml zipapp zipfile zipimport zlib
""".split()
BOOK_CHARACTERS = 48_000
PAPER_BYTES = 30_000
MAX_SOURCE_FILES = 420
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def build(folder: Path) -> None:
    """Write the corpus into `folder`, which must not exist."""
    topics, pages, sources = read_topics(), read_help_pages(), read_sources()
    papers = [(name, text) for name, text in sources if len(text) >= PAPER_BYTES]
    programs = [(name, text) for name, text in sources if len(text) < PAPER_BYTES]
    long_pages = [page for page in pages if len(page[1]) >= PAPER_BYTES]
    web_pages = [page for page in pages if len(page[1]) < PAPER_BYTES]
    for number, part in enumerate((papers[::2], papers[1::2])):
        write(folder / f"arxiv/arxiv_{number}.jsonl", (arxiv(*document) for document in part))
    write(folder / "book/book.jsonl", (book(*document) for document in [*bind(topics), *long_pages]))
    for number in range(2):
        documents = list(read_docstrings())[number::2]
        write(folder / f"c4/c4-train.{number:05d}-of-01024.jsonl", (c4(*document) for document in documents))
    third = len(web_pages) // 3
    for name, part in (
        ("2021-04/en_head_0000.json.gz.dedup.classifier.jsonl", web_pages[:third]),
        ("2022-05/en_middle_0000.json.gz.dedup.classifier.jsonl.gz", web_pages[third : 2 * third]),
        ("2023-06/en_middle_0000.json.gz.dedup.classifier.jsonl.zst", web_pages[2 * third :]),
    ):
        write(folder / "common_crawl" / name, (common_crawl(*document) for document in part))
    write(folder / "github/filtered_0.sampled.jsonl", (github(*document) for document in programs))
    write(folder / "stackexchange/stackexchange.jsonl", (stackexchange(*document) for document in read_questions()))
    write(folder / "wikipedia/wiki.jsonl", (wikipedia(*document) for document in topics))


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as json lines, compressed as the name says; a zstandard file gets two frames."""
    lines = [json.dumps(record).encode() + b"\n" for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = [b"".join(lines[: len(lines) // 2]), b"".join(lines[len(lines) // 2 :])]
    if path.suffix == ".zst":
        path.write_bytes(b"".join(map(zstandard.compress, halves)))
    elif path.suffix == ".gz":
        path.write_bytes(b"".join(gzip.compress(half, mtime=0) for half in halves))
    else:
        path.write_bytes(b"".join(halves))


def read_topics() -> list[tuple[str, str]]:
    """The articles of the language reference: (title, text)."""
    from pydoc_data.topics import topics

    return sorted(topics.items())


def read_help_pages() -> list[tuple[str, str]]:
    """What `help(module)` prints, for modules that can be imported here: (module, text)."""
    pages = []
    for name in MODULES:
        with contextlib.suppress(ImportError), contextlib.redirect_stdout(io.StringIO()):
            text = pydoc.plain(pydoc.render_doc(importlib.import_module(name)))
            # The last section of a page is the path of this installation.
            pages.append((name, _ADDRESS.sub("", text.partition("\nFILE\n")[0])))
    return pages


def read_sources() -> list[tuple[str, str]]:
    """Sources of the standard library: (path in the library, text)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [
        path
        for path in sorted(root.rglob("*.py"))
        if not {"test", "tests", "idle_test", "site-packages", "dist-packages"}.intersection(path.parts)
    ]
    return [
        (path.relative_to(root).as_posix(), text)
        for path in paths[:MAX_SOURCE_FILES]
        if (text := path.read_text(encoding="utf-8", errors="replace")).strip()
    ]


def read_docstrings() -> Iterator[tuple[str, str]]:
    """Docstrings of classes and functions of at least a few lines: (name, text)."""
    seen = set()
    for module_name, member_name, member in members():
        text = inspect.getdoc(member)
        if text and len(text) > 200 and text not in seen:
            seen.add(text)
            yield f"{module_name}.{member_name}", text


def read_questions() -> Iterator[tuple[str, str]]:
    """Threads of questions about the functions of a class or module, with short answers: (name, text)."""
    for name, group in itertools.groupby(members(), key=lambda member: (member[0], member[1].partition(".")[0][:3])):
        answers = [(member_name, inspect.getdoc(member)) for _, member_name, member in group if callable(member)]
        thread = [
            f"Q: What does {name[0]}.{what} do?\nA: {text}" for what, text in answers if text and len(text) <= 200
        ]
        if thread:
            yield ".".join(name), "\n".join(thread)


def members() -> Iterator[tuple[str, str, Any]]:
    """Public members of the modules, and of their classes: (module, name, object)."""
    for module_name in MODULES:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(module_name)
            for name, member in sorted(vars(module).items()):
                if name.startswith("_"):
                    continue
                yield module_name, name, member
                if inspect.isclass(member):
                    for method_name, method in sorted(vars(member).items()):
                        if not method_name.startswith("_"):
                            yield module_name, f"{name}.{method_name}", method


def bind(topics: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Books: runs of articles of at least BOOK_CHARACTERS: (title, text)."""
    lengths = itertools.accumulate(len(text) for _, text in topics)
    volumes = itertools.groupby(zip(lengths, topics, strict=True), key=lambda pair: pair[0] // BOOK_CHARACTERS)
    for _, volume in volumes:
        chapters = [topic for _, topic in volume]
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
    return {
        "text": text,
        "pred_label": "__label__wiki",
        "pred_label_prob": 0.5,
        "wiki_prob": 0.5,
        "source": f"cc/{name}",
    }


def github(name: str, text: str) -> dict[str, Any]:
    language = [{"name": "Python", "bytes": str(len(text))}]
    return {"text": text, "meta": {"source": "github", "repo_name": "cpython", "path": name, "language": language}}


def stackexchange(name: str, text: str) -> dict[str, Any]:
    return {"text": text, "meta": {"language": "en", "url": name, "source": "stackexchange", "question_score": "1"}}


def wikipedia(name: str, text: str) -> dict[str, Any]:
    return {"text": text, "meta": {"title": name, "url": name, "language": "en", "timestamp": "20230320"}}
