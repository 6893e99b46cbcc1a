"""The report of a check: findings as they come, tables, a last line; or with `--json` one object on stdout."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cepe_data import cli
from cepe_data.errors import ArgumentError

PLOT_SUFFIXES = (".png", ".pdf", ".svg")


def add_source_arguments(parser: argparse._ActionsContainer) -> None:
    """Where the list and the token files are."""
    parser.add_argument("--file_list", type=Path, default=Path("all_jsonl.txt"), help="what get_all_jsonl.py wrote")
    parser.add_argument("--tokenized_dir", type=Path, default=Path("tokenized"), help="the folder of token files")


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The flag `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object: check, ok, findings, and numbers")


def add_plot_argument(parser: argparse.ArgumentParser) -> None:
    """The flag `--plot`."""
    endings = ", ".join(PLOT_SUFFIXES)
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"draw a figure; a name that ends in {endings}")


def check_plot_path(path: Path | None) -> None:
    """Raise ArgumentError if no figure can be written there. Imports matplotlib: not only after the long check."""
    if path is None:
        return
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise ArgumentError(f"--plot {path}: a name that ends in {', '.join(PLOT_SUFFIXES)} is expected")
    if not path.parent.is_dir():
        raise ArgumentError(f"--plot {path}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ArgumentError(f"--plot {path}: no file can be written there")
    import matplotlib.figure  # noqa: F401


@dataclass
class Report:
    """The report of one check. A finding is a dict with the keys `path`, `row` (None if it is about a whole file) and
    `what`. `results` are the numbers that `--json` prints beside the findings; its object goes to the list `collected`,
    if there is one, instead of stdout."""

    check: str
    as_json: bool
    findings: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    collected: list[dict[str, Any]] | None = None
    start: float = field(default_factory=time.monotonic)

    def found(self, path: Path, what: str, row: int | None = None) -> None:
        """Add a finding about a file, or about a row of a set."""
        self.findings.append({"path": str(path), "row": row, "what": what})
        self.say(f"FOUND  {path}{'' if row is None else f' row {row}'}: {what}")

    def found_all(self, findings: Iterable[tuple[Path, str]], remedy: str = "") -> None:
        """Add findings about files."""
        for path, what in findings:
            self.found(path, f"{what} ({remedy})" if remedy else what)

    def say(self, text: str) -> None:
        """Print a text, unless the report is JSON."""
        if not self.as_json:
            cli.say(text)

    def finish(self, what: str, where: Path) -> int:
        """Print the last line, or the JSON object; returns the exit status."""
        if self.as_json:
            whole = {"check": self.check, "ok": not self.findings, "findings": self.findings, **self.results}
            if self.collected is None:
                cli.say(json.dumps(whole, indent=1, ensure_ascii=False))
            else:
                self.collected.append(whole)
        self.say(f"{what}, {cli.seconds_since(self.start)} → {where}")
        return cli.EXIT_FAILED if self.findings else cli.EXIT_OK
