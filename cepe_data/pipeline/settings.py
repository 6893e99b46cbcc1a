"""The settings file of a run, in TOML: tables named after the steps, whose keys are the arguments of their scripts.

    work_dir = "/data/cepe"                   folders and files of all steps are below it
    [tokenize]
    tokenizer = "meta-llama/Llama-2-7b-hf"    an argument of tokenize_jsonl.py
    shards = 100                              the tool's own: into how many tasks the step is divided
    cores = 8                                 of a task

What joins the steps (folders, shard ids, --merge) is not in the file. settings.example.toml has all tables.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepe_data.errors import ArgumentError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _is_argument(text: str) -> bool:
    return text.isprintable() and not text.startswith("-")


# By the type of a key: what is expected, and whether a value is that.
EXPECTED: Mapping[type, tuple[str, Callable[[Any], bool]]] = {
    int: ("a number from 1 on", lambda value: type(value) is int and value >= 1),
    float: ("a number above 0, below 1e18", lambda value: type(value) in {int, float} and 0 < value < 1e18),
    str: ("a printable text without - before it", lambda value: isinstance(value, str) and _is_argument(value)),
    list: ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value)),
    object: ("a text, a number, true or false", lambda value: isinstance(value, (str, int, float))),
    dict: ("a table", lambda value: True),  # or several: `read` looks at that
}


@dataclass(frozen=True)
class Table:
    """A table of the file, the `number`-th of its name. What stands before all tables is a table without a name. Some
    of the values may be those of another table, named `shared`."""

    file: Path
    name: str
    number: int
    values: Mapping[str, Any]
    shared: str = ""

    def error(self, key: str, what: str) -> ArgumentError:
        """An error about a key, or about the table, with its line."""
        text = self.file.read_text(encoding="utf-8")
        line = find_line(text, self.name, self.number, key)
        if not line and self.shared:
            line = find_line(text, self.shared, 0, key)
        line = line or find_line(text, self.name, self.number, "")
        return ArgumentError(f"{self.file}, line {line}: {what}")

    @property
    def _title(self) -> str:
        return f"[{self.name}]" if self.name else "the file"

    def check(self, types: Mapping[str, type]) -> None:
        """Raise ArgumentError for a key that is not one of `types`, or has another type; see EXPECTED."""
        for key, value in self.values.items():
            if key not in types:
                near = difflib.get_close_matches(key, types, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else f"it may have {', '.join(sorted(types))}"
                raise self.error(key, f"{self._title} has no key {key}: {hint}")
            expected, is_right = EXPECTED[types[key]]
            if not is_right(value):
                raise self.error(key, f"{key} = {value!r}: {expected} is expected")

    def require(self, *keys: str) -> None:
        """Raise ArgumentError if one of these keys is missing."""
        for key in keys:
            if key not in self.values:
                raise self.error("", f"{self._title} has no {key}: settings.example.toml shows one")


def find_line(text: str, name: str, number: int, key: str) -> int | None:
    """The line, from 1, of a key of the `number`-th table of this name, or without a key, of the table; None if it is
    not there.

    The parser finds it, however it is written: more and more lines are parsed, until it is there. It begins behind the
    last lines without it that are TOML, which those that end inside an array are once that is closed.

        >>> find_line("ab = [\\n  {output = 'a'},\\n  {output = 'b'},\\n]", "ab", 1, "output")
        3
    """
    lines, first = text.split("\n"), 1
    for last in range(1, len(lines) + 1):
        for end in ("", "\n]"):
            with contextlib.suppress(ValueError):
                content = tomllib.loads("\n".join(lines[:last]) + end)
                tables = content.get(name, []) if name else content
                tables = tables if isinstance(tables, list) else [tables]
                if number < len(tables) and (not key or key in tables[number]):
                    return first
                first = last + 1
    return None


def as_flags(values: Mapping[str, object], names: Iterable[str]) -> list[str]:
    """Those of the values that have a name: topk = 5 is `--topk 5`; true is the flag alone, false nothing."""
    words: list[str] = []
    for name in names:
        if (value := values.get(name, False)) is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", as_word(value)]
    return words


def as_word(value: object) -> str:
    """A value on a command line: 5e6 is 5000000."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read(file: Path, values: Mapping[str, type], tables: Mapping[str, type]) -> tuple[Table, dict[str, list[Table]]]:
    """What stands before all tables, and the tables by their name.

    Args:
        values: the types of what may stand before all tables.
        tables: which tables there may be: dict for one of a name, list for several.

    Raises:
        ArgumentError: if the file cannot be read, or has something else in it.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"{file}: {error.strerror}. Copy settings.example.toml, and change it") from None
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{file} is not TOML: {error}") from None
    whole, found = Table(file, "", 0, content), {}
    whole.check({**values, **dict.fromkeys(tables, dict)})
    for name, kind in tables.items():
        ones = content.get(name, []) if kind is list else [content[name]] if name in content else []
        if not isinstance(ones, list) or not all(isinstance(one, dict) for one in ones):
            header = f"[[{name}]]" if kind is list else f"[{name}]"
            raise whole.error(name, f"{name} is not a table: begin it with {header}")
        found[name] = [Table(file, name, number, one) for number, one in enumerate(ones)]
    return whole, found
