"""All checks: of the token files, and of every set that is in some folders or two levels below them. Sets belong
together by their fingerprints: passages are checked against the queries and the embeddings that they were found with.
"""

from __future__ import annotations

import argparse
import json
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cepe_data import atomic, cli, embeddings, mds
from cepe_data.checks import retrieval, samples, sets, teacher, tokens
from cepe_data.checks.report import add_source_arguments
from cepe_data.errors import ArgumentError, PipelineError

HELP = "all of these checks, of the token files and of every set below some folders"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="*", default=[Path()], metavar="FOLDER", help="where sets are")
    add_source_arguments(parser)
    sets.add_arguments(parser)


@dataclass
class Found:
    """What is there: outputs of samplers; folders of teachers' sets; folders of retrieved passages; the windows, by
    their fingerprint, and the folders of embeddings."""

    outputs: list[Path] = field(default_factory=list)
    teachers: list[Path] = field(default_factory=list)
    retrieved: list[Path] = field(default_factory=list)
    windows: dict[str, Path] = field(default_factory=dict)
    embedded: list[Path] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """Run every check that there is something for; the exit status is the worst of theirs."""
    found = find(args.folders)
    reports: list[dict[str, Any]] = []
    statuses = [cli.EXIT_OK]
    for module, arguments in checks_of(args, found):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        of_module = parser.parse_args([*arguments, *shared_flags(args)])
        of_module.collected = reports if args.json else None
        if not args.json:
            cli.say(f"== {module.__name__.rpartition('.')[2]} {' '.join(arguments)}")
        try:
            statuses.append(module.run(of_module))
        except PipelineError as error:
            name = module.__name__.rpartition(".")[2]
            reports.append({"check": name, "ok": False, "error": str(error)})
            cli.warn(f"{name} {' '.join(arguments)}: {error}")
            statuses.append(error.exit_status)
    if len(statuses) == 1:
        raise ArgumentError(f"neither {args.file_list} nor any set below {', '.join(map(str, args.folders))} is there")
    if args.json:
        whole = {"check": "all", "ok": not max(statuses), "checks": reports}
        cli.say(json.dumps(whole, indent=1, ensure_ascii=False))
    return max(statuses)


def shared_flags(args: argparse.Namespace) -> list[str]:
    """The flags that every check has."""
    flags = ["--num_workers", str(args.num_workers), "--seed", str(args.seed)]
    return flags + ["--deep"] * args.deep + ["--json"] * args.json


def checks_of(args: argparse.Namespace, found: Found) -> Iterator[tuple[types.ModuleType, list[str]]]:
    """Every check with its own arguments."""
    rows, tokenized = ["--rows", str(args.rows)], ["--tokenized_dir", str(args.tokenized_dir)]
    if args.file_list.exists():
        yield tokens, ["--file_list", str(args.file_list), *tokenized]
    for output in found.outputs:
        yield samples, [str(output), *tokenized, *rows]
    for folder in found.teachers:
        yield teacher, [str(folder), *rows]
    for folder in found.retrieved:
        yield retrieval, [str(folder), *rows, *retrieval_flags(folder, found)]


def find(folders: list[Path]) -> Found:
    """What is in these folders, and two levels below."""
    found = Found()
    for base in folders:
        for folder in [base, *sorted(base.glob("*")), *sorted(base.glob("*/*"))]:
            if not folder.is_dir() or folder.name.startswith("."):
                continue
            if (folder / embeddings.MANIFEST).exists():
                found.embedded.append(folder)
            elif folder.parent.name != "retrieval" and samples.find_manifests(folder):
                found.outputs.append(folder)
            _add_sets(found, folder)
    return found


def _add_sets(found: Found, folder: Path) -> None:
    """Look at the domain folders in a folder."""
    for one in sorted(folder.glob(f"*/{mds.INDEX_NAME}")):
        if not sets.is_domain_folder(one.parent):
            continue
        meta = atomic.meta_path(one.parent, True)
        try:
            columns = mds.read_columns(one.parent)
            fingerprint = mds.fingerprint(one.parent) if "token_ids" in columns and meta.exists() else None
        except PipelineError:  # its own check says so
            continue
        if fingerprint:
            found.windows[fingerprint] = folder
        elif "target_prob" in columns and folder not in found.teachers:
            found.teachers.append(folder)
        elif "retrieved_token_ids" in columns and folder not in found.retrieved:
            found.retrieved.append(folder)


def retrieval_flags(folder: Path, found: Found) -> list[str]:
    """The queries and the embeddings that the passages in a folder were found with, where they are there."""
    made_with: atomic.Meta = {}
    for one in sets.find_sets(folder):
        made_with = (atomic.read_meta(one) or {"made_with": {}})["made_with"]
    flags = []
    if queries := found.windows.get(made_with.get("input", "")):
        flags += ["--queries", str(queries)]
    for path in found.embedded:
        try:
            corpus = embeddings.Embeddings(path)
        except PipelineError as error:
            cli.warn(str(error))
            continue
        if corpus.fingerprint(corpus.parts) == made_with.get("embeddings"):
            flags += ["--embeddings", str(path)]
            break
    return flags
