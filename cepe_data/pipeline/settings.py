"""The settings file of a run, in TOML: tables named after the steps, whose keys are the arguments of their scripts.

    work_dir = "/data/cepe"                   folders and files of all steps are below it
    [tokenize]
    tokenizer = "meta-llama/Llama-2-7b-hf"    an argument of tokenize_jsonl.py
    shards = 100                              the tool's own: into how many tasks the step is divided
    cores = 8                                 of a task

What joins the steps (folders, shard ids, --merge) is not for the file to say. settings.example.toml has all tables.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepe_data.errors import ArgumentError
from cepe_data.storage.steps import Script

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_JOINED = {"output_dir", "output", "file_list", "tokenized_dir", "shard_id", "num_shards", "retrieval_shards", "merge"}
_JOINED |= {"delete_parts", "dry_run", "overwrite", "ignore_disk_space", "num_workers", "num_gpus"}
OWN: Mapping[str, type] = {"shards": int, "cores": int, "gpus": int, "slurm": list}


@dataclass(frozen=True)
class Table:
    """A table of the file, and how to name a place in it."""

    file: Path
    name: str
    number: int  # of those with this name
    values: Mapping[str, Any]

    def error(self, key: str, what: str) -> ArgumentError:
        """An error about a key, or about the table."""
        return ArgumentError(f"{self.file}, line {self._line(key)}: {what}")

    def _line(self, key: str) -> int:
        """The line where a key is; else that of the table; counted from 1."""
        found, seen, current = 1, 0, ""
        for number, line in enumerate(self.file.read_text(encoding="utf-8").splitlines(), 1):
            if header := re.match(r"\s*\[+\s*([\w.-]+)", line):
                current = header[1]
                if not self.name and current == key:
                    return number
                seen += current == self.name
                found = number if current == self.name and seen <= self.number + 1 else found
            elif (
                key
                and current == self.name
                and seen in {0, self.number + 1}
                and re.match(rf"""\s*["']?{key}\b""", line)
            ):
                return number
        return found

    def check(self, expected: Mapping[str, type]) -> None:
        """Raise ArgumentError for a key that is not expected, or an own one of another type."""
        for key, value in self.values.items():
            if key not in expected:
                near = difflib.get_close_matches(key, expected, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else f"it may have {', '.join(sorted(expected))}"
                where = f"[{self.name}]" if self.name else "the file"
                raise self.error(key, f"{where} has no key {key}: {hint}")
            if not isinstance(value, expected[key]) or (isinstance(value, int) and value < 1 and key in OWN):
                kind = {int: "a number from 1 on", list: "a list of texts", dict: "a table"}
                what = kind.get(expected[key], "another value")
                raise self.error(key, f"{key} = {value!r}: {what} is expected")

    def arguments(self, script: Script, given: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """The positional arguments, and the others, of a script: those of the table, and those that join the steps."""
        values = {**self.values, **given}
        names = [name for name in script.arguments if name in values]
        flags = [name for name in names if name not in script.positionals]
        positionals = [as_word(values[name]) for name in script.positionals if name in values]
        return positionals, [word for name in flags for word in as_flag(name, values[name])]

    def keys(self, script: Script, joined: Sequence[str], own: Sequence[str]) -> dict[str, type]:
        """The keys that the table of a script may have, but for those that join it to others."""
        names = {*script.arguments} - _JOINED - {*joined}
        return {**dict.fromkeys(names, object), **{name: OWN[name] for name in own}}


def as_flag(name: str, value: object) -> list[str]:
    """`topk`, 5 → `--topk 5`; true is the flag alone, false nothing."""
    return [f"--{name}"] if value is True else [] if value is False else [f"--{name}", as_word(value)]


def as_word(value: object) -> str:
    """A value on a command line: 5e6 is 5000000."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read(file: Path, values: Mapping[str, type], tables: Mapping[str, type]) -> tuple[Table, dict[str, list[Table]]]:
    """What stands before all tables, and the tables by their name.

    Args:
        values: what may stand before all tables, and its types.
        tables: what tables there may be: dict for one of a name, list for several.

    Raises:
        ArgumentError: if the file cannot be read, or has something else in it.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"{file}: {error.strerror}. Copy settings.example.toml, and change it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{file} is not TOML: {error}") from None
    whole, found = Table(file, "", 0, content), {}
    whole.check({**values, **tables})
    for name, kind in tables.items():
        ones = content.get(name, []) if kind is list else [content[name]] if name in content else []
        found[name] = [Table(file, name, number, one) for number, one in enumerate(ones)]
    return whole, found
