"""All checks: of the token files, and of every set that is in some folders or two levels below them. Sets belong
together by their fingerprints: passages are checked against the queries, the hits and the embeddings that they were
found with, and those against the corpus that was embedded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cepe_data import cli
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.inspect import overlap, plots
from cepe_data.retrieval import check as retrieval_check
from cepe_data.retrieval import check_hits, embeddings
from cepe_data.samples import check as samples_check
from cepe_data.samples.splits import SPLITS
from cepe_data.storage import mds, provenance, verify
from cepe_data.storage.report import Report, add_source_arguments
from cepe_data.teacher import check as teacher_check
from cepe_data.tokens import check as tokens_check

HELP = "all of these checks, of the token files and of every set below some folders"
WINDOWS, ANNOTATED, RETRIEVED, PART = "windows", "annotated", "retrieved", "part"
KINDS_BY_COLUMN = {"token_ids": WINDOWS, "target_prob": ANNOTATED, "retrieved_token_ids": RETRIEVED}
KINDS_BY_RECORD = {"part_bytes": PART, "first_row": PART, "split": WINDOWS, "num_decoder_tokens": ANNOTATED,
                   "hits": RETRIEVED}  # fmt: skip
KINDS_BY_NAME = {"-logits-": ANNOTATED, "-ret_k": ANNOTATED}
CHECKS = {"tokens": tokens_check, "samples": samples_check, "teacher": teacher_check, "retrieval": retrieval_check}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", type=Path, nargs="*", default=None, metavar="FOLDER", help="where sets are, or two levels below (.)"
    )
    add_source_arguments(parser)
    verify.add_arguments(parser)


def run_check(name: str, args: argparse.Namespace, report: Report, checked: set[Path]) -> int:
    """Run the check of a stage, with what other modules of this folder add to it. Embeddings and hits that are in
    `checked` are not looked at again."""
    if name == "tokens":
        return tokens_check.run(args, report, plots.draw_tokens)
    if name == "samples":
        return samples_check.run(args, report, overlap.check_clean_lists)
    if name == "teacher":
        return teacher_check.run(args, report, plots.draw_teacher)
    return retrieval_check.run(args, report, checked)


@dataclass
class Found:
    """What is there: outputs of samplers; folders of teachers' sets; folders of retrieved passages; the windows, by
    their fingerprint; folders of embeddings, and of hits; sets of which nothing says what they are."""

    outputs: list[Path] = field(default_factory=list)
    teachers: list[Path] = field(default_factory=list)
    retrieved: list[Path] = field(default_factory=list)
    windows: dict[str, Path] = field(default_factory=dict)
    embedded: list[Path] = field(default_factory=list)
    hits: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)


@dataclass
class CheckSummary:
    """What the checks say: their exit statuses, and with `--json` their objects."""

    statuses: list[int] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Damage is worse than what could not be checked."""
        return cli.EXIT_FAILED if cli.EXIT_FAILED in self.statuses else max(self.statuses)


def run(args: argparse.Namespace) -> int:
    """Run every check that there is something for; the exit status is the worst of all checks."""
    args.folders = args.folders or [Path()]
    found, summary, units_checked = find(args.folders), CheckSummary(), set[Path]()
    for name, arguments in checks_of(args, found):
        parser = argparse.ArgumentParser()
        CHECKS[name].add_arguments(parser)
        of_module = parser.parse_args([*arguments, *shared_flags(args)])
        report = Report(name, args.json, collected=summary.reports if args.json else None)
        if not args.json:
            cli.say(f"== {name} {' '.join(arguments)}")
        try:
            summary.statuses.append(run_check(name, of_module, report, units_checked))
        except PipelineError as error:
            summary.reports.append({"check": name, "ok": False, "error": str(error)})
            cli.warn(f"{name} {' '.join(arguments)}: {error}")
            summary.statuses.append(error.exit_status)
    check_others(args, found, units_checked, summary)
    if not summary.statuses:
        raise ArgumentError(f"neither {args.file_list} nor any set below {', '.join(map(str, args.folders))} is there")
    if args.json:
        whole = {"check": "all", "ok": not summary.status, "checks": summary.reports}
        cli.say(json.dumps(whole, indent=1, ensure_ascii=False))
    return summary.status


def check_others(args: argparse.Namespace, found: Found, checked: set[Path], summary: CheckSummary) -> None:
    """What no set of passages was compared with, embeddings and hits; and what is left of sets of no known kind."""
    embedded, found_hits = ([path for path in paths if path not in checked] for paths in (found.embedded, found.hits))
    if not embedded and not found_hits and not found.unknown:
        return
    report = Report("others", args.json, collected=summary.reports)
    effort = cli.typed(verify.Effort, args)
    report.say(f"== others {' '.join(map(str, [*embedded, *found_hits, *found.unknown]))}")
    for path in embedded:
        check_hits.check_embedded(report, effort, path)
    for path in found_hits:
        check_hits.check_hits(report, effort, path)
    for path in found.unknown:
        report.found(path, "has shards or an index, and neither its columns nor a meta file say what it is")
    if found.retrieved and not report.findings:
        for path in [*embedded, *found_hits]:
            cli.warn(f"{path}: none of the passages in {', '.join(map(str, found.retrieved))} were found with it")
    summary.statuses.append(report.finish(f"{len(report.findings)} findings", args.folders[0]))


def shared_flags(args: argparse.Namespace) -> list[str]:
    """The flags that every check has."""
    flags = ["--num_workers", str(args.num_workers), "--seed", str(args.seed)]
    return flags + ["--deep"] * args.deep + ["--json"] * args.json


def checks_of(args: argparse.Namespace, found: Found) -> Iterator[tuple[str, list[str]]]:
    """Every check by its name, with its own arguments."""
    rows, tokenized = ["--rows", str(args.rows)], ["--tokenized_dir", str(args.tokenized_dir)]
    if args.file_list.exists():
        yield "tokens", ["--file_list", str(args.file_list), *tokenized]
    for output in found.outputs:
        yield "samples", [str(output), *tokenized, *rows]
    for folder in found.teachers:
        yield "teacher", [str(folder), *rows, *teacher_flags(folder, found)]
    for folder in found.retrieved:
        yield "retrieval", [str(folder), *rows, *retrieval_flags(folder, found)]


def find(folders: list[Path]) -> Found:
    """What is in these folders, and two levels below."""
    found = Found()
    for base in folders:
        for folder in [base, *sorted(base.glob("*")), *sorted(base.glob("*/*"))]:
            if not folder.is_dir() or (folder != base and not verify.is_domain_folder(folder)):
                continue
            if check_hits.is_embedded(folder):
                found.embedded.append(folder)
            elif check_hits.is_hits(folder):
                found.hits.append(folder)
            elif is_output(folder):
                found.outputs.append(folder)
            _add_sets(found, folder)
    return found


def is_output(folder: Path) -> bool:
    """Whether a sampler was given this folder: it has its manifests, or sets of windows where they belong."""
    if verify.with_parents(folder, 2).parent.name == "retrieval":
        return False
    candidates = (one for split in SPLITS for one in folder.glob(f"{split}/*"))
    return bool(samples_check.find_manifests(folder)) or any(kind_of(one) == WINDOWS for one in candidates)


def _add_sets(found: Found, folder: Path) -> None:
    """Look at the domain folders in a folder."""
    for one in sorted(folder.glob("*")):
        kind = kind_of(one)
        is_of_output = folder.parent in found.outputs and folder.name in SPLITS
        if kind == WINDOWS:
            with contextlib.suppress(*verify.FAILURES):  # its own check says so
                if provenance.meta_path(one, True).exists():
                    found.windows[mds.fingerprint(one)] = folder
        elif kind in {ANNOTATED, RETRIEVED} and not is_of_output:
            of_kind = found.teachers if kind == ANNOTATED else found.retrieved
            if folder not in of_kind:
                of_kind.append(folder)
        elif kind is None and not is_of_output and is_left_of_set(one):
            found.unknown.append(one)


def kind_of(folder: Path) -> str | None:
    """What a domain folder holds, from its columns, or else from its record or the name of the folder around it; None
    if nothing says so, or it is not a set."""
    if not verify.is_domain_folder(folder) or not (verify.has_set(folder) or is_left_of_set(folder)):
        return None
    made_with: provenance.Meta = {}
    with contextlib.suppress(DamagedFileError, OSError):
        made_with = (provenance.read_meta(folder) or {"made_with": {}})["made_with"]
    columns: dict[str, str] = {}
    with contextlib.suppress(*verify.FAILURES):
        columns = mds.read_columns(folder)
    around = verify.with_parents(folder, 2).parent.name
    for names, kinds in ((columns, KINDS_BY_COLUMN), (made_with, KINDS_BY_RECORD)):
        if kind := next((kind for name, kind in kinds.items() if name in names), None):
            return kind
    return next((kind for name, kind in KINDS_BY_NAME.items() if name in around), None)


def is_left_of_set(folder: Path) -> bool:
    """Whether a folder has shards or an index."""
    if not verify.is_domain_folder(folder):
        return False
    return (folder / mds.INDEX_NAME).exists() or next(folder.glob("*.mds"), None) is not None


def teacher_flags(folder: Path, found: Found) -> list[str]:
    """The rows that were annotated in a folder, where they are not beside it but are there."""
    made = [meta for one in sorted(folder.glob("*")) if (meta := _meta_of(one)) and not meta.get("input_name")]
    inputs = (found.windows.get(meta["made_with"].get("input")) for meta in made)
    return next((["--input_dir", str(path)] for path in inputs if path), [])


def retrieval_flags(folder: Path, found: Found) -> list[str]:
    """The queries, the embeddings with their corpus, and the hits that the passages in a folder were found with, where
    they are there."""
    made = list(_records(folder))
    flags = []
    queries = [found.windows[record["input"]] for record in made if record.get("input") in found.windows]
    if queries:
        flags += ["--queries", str(queries[0])]
    for path in found.embedded:
        try:
            corpus = embeddings.Embeddings(path)
        except PipelineError:  # said where nothing was found with them
            continue
        fingerprint = corpus.fingerprint(corpus.parts)
        if any(record.get("embeddings") == fingerprint for record in made):
            flags += ["--embeddings", str(path)]
            if output := corpus_of(corpus, found.outputs):
                flags += ["--corpus", str(output / "retrieval")]
            break
    expected = {(record.get("input"), record.get("embeddings")) for record in made}
    for path in found.hits:
        if expected & {(record.get("input"), record.get("embeddings")) for record in _records(path)}:
            return [*flags, "--hits", str(path)]
    return flags


def _records(folder: Path) -> Iterator[provenance.Meta]:
    """What made the sets or the hits in a folder, as far as it can be read."""
    for one in sorted(folder.glob("*")):
        if meta := _meta_of(one):
            yield meta["made_with"]


def _meta_of(folder: Path) -> provenance.Meta | None:
    """The meta file of a domain folder, if it can be read."""
    with contextlib.suppress(DamagedFileError, OSError):
        return provenance.read_meta(folder) if verify.is_domain_folder(folder) else None
    return None


def corpus_of(embedded: embeddings.Embeddings, outputs: list[Path]) -> Path | None:
    """The output of the sampler that wrote the most of the files that were embedded; None if it wrote none of them."""
    num_files = {output: _count_files(embedded, output) for output in outputs}
    best = max(num_files, key=lambda output: num_files[output], default=None)
    return best if best is not None and num_files[best] else None


def _count_files(embedded: embeddings.Embeddings, output: Path) -> int:
    """How many parts of an embedded corpus are of a file of this output."""
    number = 0
    for part in embedded.parts:
        path = output / "retrieval" / str(part.shard) / f"{embedded.files[part.file_number].domain}.jsonl"
        with contextlib.suppress(DamagedFileError, OSError):
            meta = provenance.read_meta(path)
            number += meta is not None and meta["files"].get(path.name) == part.meta["made_with"].get("source")
    return number
