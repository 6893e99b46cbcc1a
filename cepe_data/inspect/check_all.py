"""All checks: of the token files, and of every set that is in some folders or below them. Sets are found and told apart
by the provenance in meta files and manifests. Fingerprints say which sets belong together: passages are checked against
the queries, the hits and the embeddings that they were found with, and those against the corpus that was embedded.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cepe_data import cli
from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.inspect import overlap, plots
from cepe_data.retrieval import check as retrieval_check
from cepe_data.retrieval import check_hits, check_scores, embeddings
from cepe_data.retrieval.check import RetrievalCheck
from cepe_data.retrieval.check_scores import ScoreCheck
from cepe_data.samples import check as samples_check
from cepe_data.samples.check import SampleCheck
from cepe_data.storage import mds, provenance, verify
from cepe_data.storage.report import Report, add_source_arguments
from cepe_data.teacher import check as teacher_check
from cepe_data.teacher.check import TeacherCheck
from cepe_data.tokens import check as tokens_check
from cepe_data.tokens.check_file import TokenCheck

HELP = "all of these checks, of the token files and of every set below some folders"
# The module of each check, and its options.
CHECKS: dict[str, tuple[Any, type[verify.Effort]]] = {
    "tokens": (tokens_check, TokenCheck),
    "samples": (samples_check, SampleCheck),
    "teacher": (teacher_check, TeacherCheck),
    "retrieval": (retrieval_check, RetrievalCheck),
    "scores": (check_scores, ScoreCheck),
}
# What other modules of this folder add to a check.
ADDED: dict[str, dict[str, Any]] = {
    "tokens": {"draw": plots.draw_tokens},
    "samples": {"check_more": overlap.check_clean_lists},
    "teacher": {"draw": plots.draw_teacher},
}
# Kinds of folders. OUTPUT is the OUT of a sampler; there is nothing to compare the rows of converted sets with.
OUTPUT, WINDOWS, ANNOTATED, RETRIEVED, HITS, EMBEDDED = "output", "windows", "teacher", "retrieved", "hits", "embedded"
SCORED, CONVERTED = "scored", "converted"
# The kind of an output, by an argument in its provenance that no other kind has.
KINDS = {"split": WINDOWS, "num_decoder_tokens": ANNOTATED, "hits": RETRIEVED, "chunk_tokens": SCORED,
         "query_tokens": HITS, "part_bytes": EMBEDDED, "converted_from": CONVERTED}  # fmt: skip
MAX_DEPTH = 4  # of outputs, below a folder that was named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", type=Path, nargs="*", default=None, metavar="FOLDER", help="where sets are, or two levels below (.)"
    )
    add_source_arguments(parser)
    verify.add_arguments(parser)


@dataclass(frozen=True)
class AllChecks(verify.Effort):
    """The options."""

    folders: Sequence[Path]
    file_list: Path
    tokenized_dir: Path
    json: bool


def run_one(args: argparse.Namespace) -> int:
    """Run the check of one stage, with what is added to it here."""
    module, options = CHECKS[args.command]
    return int(module.check(Report(args.command, args.json), cli.typed(options, args), **ADDED.get(args.command, {})))


def run(args: argparse.Namespace) -> int:
    """Run every check that there is something for. The exit status is the worst of all checks: damage is worse than
    what could not be checked."""
    options = cli.typed(AllChecks, args)
    folders = options.folders or [Path()]
    found, inputs_checked = find(folders), set[Path]()
    added = {**ADDED, "retrieval": {"checked": inputs_checked}}
    statuses: list[int] = []
    reports: list[dict[str, Any]] = []
    for name, of_stage in options_of_checks(options, found):
        title, report = f"{name} {describe(of_stage)}", Report(name, options.json, collected=reports)
        report.say(f"== {title}")
        try:
            module, _ = CHECKS[name]
            statuses.append(module.check(report, of_stage, **added.get(name, {})))
        except PipelineError as error:
            reports.append({"check": name, "ok": False, "error": str(error)})
            cli.warn(f"{title}: {error}")
            statuses.append(error.exit_status)
    report = Report("others", options.json, collected=reports)
    if others := check_others(report, options, found, inputs_checked):
        statuses.append(report.finish(f"{len(report.findings)} findings in {others} others", folders[0]))
    if not statuses:
        raise ArgumentError(f"neither {options.file_list} nor any set below {', '.join(map(str, folders))} is there")
    status = cli.EXIT_FAILED if cli.EXIT_FAILED in statuses else max(statuses)
    if options.json:
        cli.say(json.dumps({"check": "all", "ok": not status, "checks": reports}, indent=1, ensure_ascii=False))
    return status


def check_others(report: Report, options: AllChecks, found: Found, checked: set[Path]) -> int:
    """What no set of passages was compared with, embeddings and hits; and what has no meta file; returns how many."""
    embedded, found_hits = ([path for path in found.folders[kind] if path not in checked] for kind in (EMBEDDED, HITS))
    others = [*embedded, *found_hits, *found.converted, *found.unknown]
    if others:
        report.say(f"== others {' '.join(map(str, others))}")
    for path in embedded:
        check_hits.check_embedded(report, options, path)
    for path in found_hits:
        check_hits.check_hits(report, options, path)
    verify.check_files(report, options, found.converted)
    for output in verify.check_files(report, options, found.unknown):
        report.found(output, "has rows or hits, and its meta file does not say what they are")
    if found.folders[RETRIEVED] and not report.findings:
        for path in [*embedded, *found_hits]:
            cli.warn(
                f"{path}: none of the passages in {', '.join(map(str, found.folders[RETRIEVED]))} were found with it"
            )
    return len(others)


def describe(options: verify.Effort) -> str:
    """The folders and files that a check is about, as on its command line."""
    paths = {name: value for name, value in vars(options).items() if isinstance(value, Path)}
    return " ".join(f"{path}" if name in {"folder", "output"} else f"--{name} {path}" for name, path in paths.items())


@dataclass
class Found:
    """What is there. `folders`: by kind, each folder that a check is given, with the provenance of the outputs in it.
    `windows`: the folder of a set of windows, by the fingerprint of the set. `converted`: sets of another pipeline.
    `unknown`: outputs without a meta file that can be read."""

    folders: dict[str, dict[Path, list[provenance.Provenance]]] = field(default_factory=lambda: defaultdict(dict))
    windows: dict[str, Path] = field(default_factory=dict)
    converted: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)

    def add(self, kind: str, folder: Path, *made_with: provenance.Provenance) -> None:
        """Add a folder, and the provenance of what is in it."""
        self.folders[kind].setdefault(folder, []).extend(made_with)

    def links(self, kind: str, folder: Path, *names: str) -> set[tuple[Any, ...]]:
        """These fingerprints of what the outputs in a folder were made from."""
        return {tuple(made_with.get(name) for name in names) for made_with in self.folders[kind][folder]}


def find(bases: Sequence[Path]) -> Found:
    """What the manifests and meta files in these folders and below say."""
    found = Found()
    for base in bases:
        for name, folders, files in os.walk(base, followlinks=True):
            folder = Path(name)
            output = verify.with_parents(folder, 2)
            content = [one for one in files if one.endswith(".mds") or one in check_hits.HIT_FILES]
            is_output = bool(content) or provenance.META in files
            if is_output and folder != base:
                add_output(found, output, bool(content))
            if samples_check.MANIFEST in files:
                found.add(OUTPUT, output.parent.parent if output.parent.name == "retrieval" else folder)
            if is_embedded := embeddings.MANIFEST in files:
                found.add(EMBEDDED, folder)
            is_last = is_output or is_embedded or len(folder.relative_to(base).parts) == MAX_DEPTH
            folders[:] = sorted(one for one in folders if not is_last and verify.is_domain_folder(folder / one))
    known = {folder for folders in found.folders.values() for folder in folders}
    found.unknown = [output for output in found.unknown if output.parent not in known or not verify.has_set(output)]
    for output in [one for one in found.folders[OUTPUT] if not any(is_near(one, base) for base in bases)]:
        del found.folders[OUTPUT][output]
    return found


def is_near(output: Path, base: Path) -> bool:
    """Whether an output of a sampler is in a folder that was named, so that its sets are not deeper than MAX_DEPTH."""
    return output.is_relative_to(base) and len(output.relative_to(base).parts) <= MAX_DEPTH - 2


def add_output(found: Found, output: Path, has_content: bool) -> None:
    """Put an output where its check finds it. `has_content`: there are files of a set or of hits, so it must be one."""
    meta = verify.readable_metas([output]).get(output, provenance.Meta())
    made_with = meta.made_with
    kind = next((kind for name, kind in KINDS.items() if name in made_with), None)
    if kind == EMBEDDED:  # without its manifest
        found.add(kind, output.parents[2])
    elif kind == CONVERTED:
        found.converted.append(output)
    elif kind:
        is_beside_input = meta.get("input_name")  # where its check finds it
        found.add(kind, output.parent, {} if is_beside_input else made_with)
    elif has_content:
        found.unknown.append(output)
    if kind == WINDOWS:
        with contextlib.suppress(*verify.FAILURES):  # the check of samples says so
            found.windows[mds.fingerprint(output)] = output.parent
        if output.parent.name == made_with["split"]:
            found.add(OUTPUT, output.parent.parent)


def options_of_checks(options: AllChecks, found: Found) -> Iterator[tuple[str, verify.Effort]]:
    """Every check by its name, with its options."""
    effort = {one.name: getattr(options, one.name) for one in dataclasses.fields(verify.Effort)}
    tokenized_dir = options.tokenized_dir
    if options.file_list.exists() or tokenized_dir.is_dir():  # without a list, the check says so
        of_documents = {**effort, "rows": verify.NUM_SAMPLED}
        yield "tokens", TokenCheck(**of_documents, file_list=options.file_list, tokenized_dir=tokenized_dir)
    for output in found.folders[OUTPUT]:
        yield "samples", SampleCheck(**effort, output=output, tokenized_dir=tokenized_dir)
    for folder in found.folders[ANNOTATED]:
        yield "teacher", TeacherCheck(**effort, folder=folder, input_dir=input_of(ANNOTATED, folder, found))
    for folder in found.folders[SCORED]:
        yield "scores", ScoreCheck(**effort, folder=folder, input_dir=input_of(SCORED, folder, found))
    for folder in found.folders[RETRIEVED]:
        embedded, corpus = embeddings_of(folder, found)
        hits = next(iter(hits_of(folder, found)), None)
        queries = input_of(RETRIEVED, folder, found)
        yield (
            "retrieval",
            RetrievalCheck(**effort, folder=folder, queries=queries, embeddings=embedded, corpus=corpus, hits=hits),
        )


def input_of(kind: str, folder: Path, found: Found) -> Path | None:
    """The folder of the windows that the sets in a folder belong to, if it is there."""
    return next((found.windows[one] for (one,) in found.links(kind, folder, "input") if one in found.windows), None)


def hits_of(folder: Path, found: Found) -> list[Path]:
    """The hits that the passages in a folder were written from, as far as they are there."""
    links = ("input", "embeddings")
    made_from = found.links(RETRIEVED, folder, *links)
    return [path for path in found.folders[HITS] if made_from & found.links(HITS, path, *links)]


def embeddings_of(folder: Path, found: Found) -> tuple[Path | None, Path | None]:
    """The embeddings that the passages in a folder were found with, and their corpus, where they are there."""
    for path in found.folders[EMBEDDED]:
        with contextlib.suppress(PipelineError):  # said where nothing was found with them
            embedded = embeddings.Embeddings(path)
            if (embedded.fingerprint(embedded.parts),) in found.links(RETRIEVED, folder, "embeddings"):
                return path, corpus_of(embedded, found.folders[OUTPUT])
    return None, None


def corpus_of(embedded: embeddings.Embeddings, outputs: Iterable[Path]) -> Path | None:
    """The retrieval corpus that has files that were embedded, if it is there."""
    sources = [part.meta.made_with.get("source") for part in embedded.parts]
    for output in outputs:
        metas = verify.readable_metas(output.glob("retrieval/*/*.jsonl"))
        if any(meta.files.get(path.name) in sources for path, meta in metas.items()):
            return output / "retrieval"
    return None
