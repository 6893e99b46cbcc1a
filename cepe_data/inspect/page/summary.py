"""What there is of a run, and what made it: from manifests, meta files and indexes, and from nothing else."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cepe_data.corpus import listing
from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.inspect import check_all, overlap
from cepe_data.inspect.check_all import ANNOTATED, HITS, OUTPUT, RETRIEVED, WINDOWS
from cepe_data.retrieval.embeddings import Embeddings
from cepe_data.retrieval.steps import EMBED, SEARCH, WRITE
from cepe_data.samples.check import MANIFEST
from cepe_data.samples.steps import CONCAT, INSIDE
from cepe_data.storage import mds, provenance, verify
from cepe_data.storage.report import Report
from cepe_data.storage.steps import Script
from cepe_data.teacher import check as teacher_check
from cepe_data.teacher.steps import ANNOTATE
from cepe_data.tokens.check_file import DomainCounts
from cepe_data.tokens.steps import TOKENIZE
from cepe_data.tokens.token_file import TokenFile

MAX_FINDINGS = 200  # that are shown, of the page and of the checks each


@dataclass(frozen=True)
class ShownSet:
    """A set, and the folder of the windows that its rows belong to, where that is another one that is there."""

    folder: Path
    kind: str
    meta: provenance.Meta
    columns: Mapping[str, str]
    num_rows: int
    source: Path | None

    @property
    def made_with(self) -> provenance.Provenance:
        return self.meta.made_with

    @property
    def domain(self) -> str:
        return str(self.made_with.get("domain", self.folder.name))

    @property
    def group(self) -> str:
        """What the page filters by: `test`, `train`, `teacher` or `retrieved`."""
        return str(self.made_with["split"]) if self.kind == WINDOWS else self.kind

    @property
    def num_samples(self) -> int:
        """How many draws a position of a teacher's set has; 0 where its targets are not samples."""
        return int(self.made_with.get("num_samples", 0))

    @property
    def tokens_of(self) -> Path | None:
        """The set whose tokens are those of the rows."""
        return self.folder if self.kind == WINDOWS else self.source


@dataclass(frozen=True)
class Table:
    """A table of the page. Numbers stand to the right; a row whose first cell is `total` is the sum of the others."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass
class Corpus:
    """The token files of the list that are there and can be opened, and what their headers and meta files say.
    `made_with` is the provenance of the first that has one."""

    file_list: Path
    tokenized_dir: Path
    listed: listing.FileList = field(default_factory=lambda: listing.FileList([]))
    files: list[listing.ListedFile] = field(default_factory=list)
    made_with: provenance.Provenance = field(default_factory=dict)
    totals: dict[str, DomainCounts] = field(default_factory=dict)

    @classmethod
    def read(cls, report: Report, file_list: Path, tokenized_dir: Path) -> Corpus:
        """Look at the header and the meta file of every token file; those that are missing or damaged are findings."""
        corpus = cls(file_list, tokenized_dir)
        if file_list.exists() and tokenized_dir.is_dir():
            with failure_found(report, file_list):
                corpus.listed = listing.read_file_list(file_list)
        for file in corpus.listed.files:
            path = tokenized_dir / file.token_file
            if not path.exists():
                report.found(path, "is missing")
            elif findings := verify.output_findings(path) if provenance.meta_path(path).exists() else []:
                report.found_all(findings)
            else:
                with failure_found(report, path), TokenFile(path) as tokens:
                    corpus._add(file, tokens)
        corpus.totals = dict(sorted(corpus.totals.items()))
        return corpus

    def _add(self, file: listing.ListedFile, tokens: TokenFile) -> None:
        meta = tokens.meta
        numbers = {file.domain or "(unknown)": (tokens.num_documents, tokens.num_tokens)}
        if "domains" in meta:
            of_domains = zip(*(meta["domains"][name] for name in ("names", "documents", "tokens")), strict=True)
            numbers = {domain: (documents, num_tokens) for domain, documents, num_tokens in of_domains if documents}
        for domain, (documents, num_tokens) in numbers.items():
            self.totals.setdefault(domain, DomainCounts()).add(DomainCounts(1, documents, num_tokens))
        self.files.append(file)
        self.made_with = self.made_with or meta.made_with


@dataclass
class Run:
    """What there is below some folders, and the token files. `manifests` are those of windows, by the output of the
    sampler; `passages` are those of the retrieval corpus, by the folder of the shard."""

    found: check_all.Found
    corpus: Corpus
    sets: list[ShownSet]
    manifests: dict[Path, Mapping[str, Any]]
    passages: dict[Path, Mapping[str, Any]]

    @classmethod
    def read(cls, report: Report, folders: Sequence[Path], file_list: Path, tokenized_dir: Path) -> Run:
        """Find everything; what is damaged is a finding, and left out.

        Raises:
            ArgumentError: if nothing of this pipeline is there.
        """
        found = check_all.find(folders)
        sets = list(_sets(report, found))
        for output in found.unknown:
            report.found_all(verify.output_findings(output))
        samplers = found.folders[OUTPUT]
        manifests = _manifests(report, samplers)
        passages = _manifests(
            report, (path.parent for out in samplers for path in sorted(out.glob(f"retrieval/*/{MANIFEST}")))
        )
        if not (sets or manifests or passages or report.findings):
            raise ArgumentError(f"no set of this pipeline is in {', '.join(map(str, folders))}: pass OUT of a sampler")
        return cls(found, Corpus.read(report, file_list, tokenized_dir), sets, manifests, passages)

    def of_kind(self, kind: str) -> list[ShownSet]:
        """The sets of a kind."""
        return [one for one in self.sets if one.kind == kind]

    @cached_property
    def outputs(self) -> list[Path]:
        """The outputs of samplers."""
        return sorted({*self.manifests, *(path.parent.parent for path in self.passages)})

    # -- numbers -------------------------------------------------------------------------------------------------------

    def tables(self) -> Iterator[Table]:
        """All tables that there is something for."""
        yield from filter(None, (self.token_table(), self.window_table(), self.passage_table()))
        yield from filter(None, (self.teacher_table(), self.retrieved_table()))

    def token_table(self) -> Table | None:
        """Files, documents and tokens by domain."""
        whole = max(1, sum(one.tokens for one in self.corpus.totals.values()))
        rows = [
            [domain, one.files, one.documents, one.tokens, f"{100 * one.tokens / whole:.1f} %"]
            for domain, one in self.corpus.totals.items()
        ]
        note = ""
        if (present := len(self.corpus.files)) < (num_listed := len(self.corpus.listed.files)):
            note = f"{present:,} of the {num_listed:,} listed files could be opened."
        header = ("domain", "files", "documents", "tokens", "share")
        return _table("Token files", header, rows, (1, 2, 3), note)

    def window_table(self) -> Table | None:
        """What was requested, available and taken of every set of windows."""
        rows, lengths = [], {one.folder: overlap.window_tokens(one.folder) for one in self.of_kind(WINDOWS)}
        for out, manifest in self.manifests.items():
            for split, of_split in sorted(manifest["sets"].items()):
                for domain, one in sorted(of_split.items()):
                    length = lengths.get(out / split / domain)  # of a set that can be read
                    num_tokens = one["written"] * length if length else None
                    numbers = [one.get(name) for name in ("documents", "windows_available", "requested", "written")]
                    rows.append([f"{out / split / domain}", *numbers, num_tokens])
        header = ("set", "documents", "windows available", "requested", "taken", "tokens")
        return _table("Windows", header, rows, (3, 4, 5))

    def passage_table(self) -> Table | None:
        """The same of the retrieval corpus, all shards together."""
        rows: dict[str, list[Any]] = {}
        for folder, manifest in self.passages.items():
            for domain, one in sorted(manifest["sets"].items()):
                name = f"{folder.parent}/*/{domain}"
                row = rows.setdefault(name, [name, 0, one["documents"] or 0, one["passages_available"] or 0, 0, 0])
                for column, number in ((1, 1), (4, one["requested"]), (5, one["written"])):
                    row[column] += number
        header = ("passages", "shards", "documents", "passages available", "requested", "taken")
        return _table("Retrieval corpus", header, list(rows.values()), (4, 5))

    def teacher_table(self) -> Table | None:
        """What was annotated, by which teacher."""
        rows = []
        for one in self.of_kind(ANNOTATED):
            made_with = one.made_with
            context = made_with.get("num_encoder_tokens", f"{made_with.get('retrieval_k')} passages")
            positions, topk = mds.column_array(one.columns["target_index"])[1]
            targets = f"{one.num_samples} samples" if one.num_samples else f"top {topk}"
            rows.append(
                [str(one.folder), one.num_rows, context, positions, targets, model_name(one), made_with["dtype"]]
            )
        header = ("set", "rows", "context tokens", "positions", "targets", "teacher", "dtype")
        return _table("Teacher", header, rows, (1,))

    def retrieved_table(self) -> Table | None:
        """Retrieved passages."""
        rows = [
            [str(one.folder), one.num_rows, one.made_with["topk"], f"{one.source or 'not here'}"]
            for one in self.of_kind(RETRIEVED)
        ]
        return _table("Retrieved passages", ("set", "rows", "passages a row", "queries"), rows, (1,))

    def shortages(self) -> list[tuple[str, int, int]]:
        """(set, requested, taken) where fewer were taken than requested."""
        short = []
        for table in filter(None, (self.window_table(), self.passage_table())):
            numbers = [table.header.index(name) for name in ("requested", "taken")]
            rows = ((row[0], *(row[column] for column in numbers)) for row in table.rows if row[0] != "total")
            short += [(name, requested, taken) for name, requested, taken in rows if taken < requested]
        return short

    # -- how it was made -----------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, str]:
        """Seed, splits, tokenizer, teachers and versions: each name with all values that there are."""
        values: dict[str, dict[str, None]] = defaultdict(dict)
        for manifest in [*self.manifests.values(), *self.passages.values()]:
            arguments = manifest["arguments"]
            values["seed"][str(arguments["seed"])] = None
            test, train = arguments["test_fraction"], arguments["train_fraction"]
            splits = f"test {100 * test:.4g} %, train {100 * train:.4g} %, retrieval {100 * (1 - test - train):.4g} %"
            values["splits of the documents"][splits] = None
            for library, version in manifest["versions"].items():
                values["versions"][f"{library} {version}"] = None
        if tokenizer := self.corpus.made_with.get("tokenizer"):
            of = f"{tokenizer['vocab_size']:,} ids, BOS {tokenizer['bos_id']}, EOS {tokenizer['eos_id']}"
            values["tokenizer"][f"{tokenizer['fingerprint']} ({of})"] = None
        for one in self.sets:
            if one.kind == WINDOWS and one.meta.get("tokenizer") and not tokenizer:
                values["tokenizer"][str(one.meta["tokenizer"])] = None
            if one.kind == ANNOTATED:
                values["teacher"][f"{model_name(one)} ({one.made_with['model']})"] = None
        for of_folder in self.found.folders[HITS].values():
            values["text encoder"] |= {str(made_with["model"]): None for made_with in of_folder}
        return {name: "; ".join(of_name) for name, of_name in values.items()}

    def commands(self) -> list[str]:
        """The commands that give these outputs, as far as their meta files say; flags that change no byte are left
        out, and so are other names of the same model."""
        lines, corpus = [], self.corpus
        listed, source = corpus.listed, {}
        if listed.files:
            lines.append(
                _command(
                    "get_all_jsonl.py",
                    listed.root or "DATA_DIR",
                    output=corpus.file_list,
                    domain_key=listed.record_domains.key if listed.record_domains else None,
                    domain_map=",".join(map("=".join, listed.domain_map.items())) or None,
                )
            )
        if corpus.files:
            source = {"file_list": corpus.file_list, "tokenized_dir": corpus.tokenized_dir}
            places = {"file_list": corpus.file_list, "output_dir": corpus.tokenized_dir}
            tokenizer = corpus.tokenized_dir / "tokenizer"
            lines.append(_step_command(TOKENIZE, [corpus.made_with], **places, tokenizer=tokenizer))
        if any("drop_duplicates" in one["arguments"] for one in [*self.manifests.values(), *self.passages.values()]):
            lines.append(_command("sanity_check.py", "duplicates", **source))
        lines += [_sampler_command(out, manifest, **source) for out, manifest in self.manifests.items()]
        for folder, manifest in sorted(self.passages.items(), key=lambda one: one[0].parent.parent):
            out, shard = folder.parent.parent, manifest["shard_id"]
            if shard or out not in self.manifests:  # else the command above writes this shard, too
                lines.append(_sampler_command(out, manifest, **source, shard_id=shard))
        lines += self._retrieval_commands()  # whose sets may be the context of a teacher
        return [*lines, *(_teacher_command(one) for one in self.of_kind(ANNOTATED))]

    def _retrieval_commands(self) -> Iterator[str]:
        for folder, made_with in self.found.folders[RETRIEVED].items():
            embedded, corpus = check_all.embeddings_of(folder, self.found)
            hits = check_all.hits_of(folder, self.found)
            if embedded:
                of_parts = [part.meta.made_with for part in Embeddings(embedded).parts]
                of_corpus = {"corpus": corpus or "CORPUS", "output": embedded, "model_dir": "ENCODER"}
                yield _step_command(EMBED, of_parts, **of_corpus)
            queries = check_all.input_of(RETRIEVED, folder, self.found) or "QUERIES"
            places = {"queries": queries, "embeddings": embedded or "EMB"}
            tokenized_dir = self.corpus.tokenized_dir if self.corpus.files else None
            for path in hits:
                found = {**places, "output": path, "model_dir": "ENCODER", "tokenized_dir": tokenized_dir}
                yield _step_command(SEARCH, self.found.folders[HITS][path], **found)
            yield _step_command(WRITE, made_with, **places, hits=next(iter(hits), "HITS"), output=folder)


@contextlib.contextmanager
def failure_found(report: Report, path: Path) -> Iterator[None]:
    """What cannot be read in this block is a finding, unless there is one of the same path."""
    try:
        yield
    except verify.FAILURES as error:
        if str(path) not in {finding["path"] for finding in report.findings}:
            report.found(path, verify.describe(error).removeprefix(f"{path} "))


def model_name(one: ShownSet) -> str:
    """The teacher's name, which ends the name of the folder of a teacher's sets."""
    _, separator, name = one.folder.parent.name.partition(f"-dec{one.made_with['num_decoder_tokens']}-")
    return name if separator else one.folder.parent.name


def read_checks(path: Path) -> dict[str, Any]:
    """What a check printed with `--json`: `all`, or one of the others.

    Raises:
        ArgumentError: if it is not that.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["check"], str) or not isinstance(content["ok"], bool):
            raise TypeError("check is not a name, or ok neither true nor false")
        checks = content.get("checks", [content])
        findings = [{"check": one["check"], **finding} for one in checks for finding in one.get("findings", [])]
        errors = [{"check": one["check"], "path": "", "what": one["error"]} for one in checks if "error" in one]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(f"--checks {path} is not what `sanity_check.py all --json` prints: {error}") from None
    checked = list(dict.fromkeys(str(one["check"]) for one in checks))
    return {"path": str(path), "ok": content["ok"], "checked": checked, "findings": [*findings, *errors]}


def _sets(report: Report, found: check_all.Found) -> Iterator[ShownSet]:
    for kind in (WINDOWS, ANNOTATED, RETRIEVED):
        for parent in sorted(found.folders[kind]):
            source = check_all.input_of(kind, parent, found) if kind != WINDOWS else None
            for folder in verify.find_sets(parent):
                if findings := verify.output_findings(folder):
                    report.found_all(findings)
                    continue
                with failure_found(report, folder):
                    yield _read_set(folder, kind, source)


def _read_set(folder: Path, kind: str, source: Path | None) -> ShownSet:
    meta = provenance.read_meta(folder)
    own = teacher_check.input_folder(folder, source) if kind == ANNOTATED else (source or Path()) / folder.name
    is_there = False
    if kind != WINDOWS:
        with contextlib.suppress(*verify.FAILURES):  # it is a finding of its own
            is_there = verify.has_set(own) and mds.fingerprint(own) == meta.made_with["input"]
    return ShownSet(folder, kind, meta, mds.read_columns(folder), mds.num_rows(folder), own if is_there else None)


def _manifests(report: Report, folders: Iterable[Path]) -> dict[Path, Mapping[str, Any]]:
    """The manifests in these folders that are there and whole."""
    manifests: dict[Path, Mapping[str, Any]] = {}
    for folder in folders:
        path = folder / MANIFEST
        if path.exists():
            try:
                content = provenance.read_signed(path, "run the sampler again")
                if isinstance(content["sets"], dict) and isinstance(content["arguments"], dict):
                    manifests[folder] = content
            except (PipelineError, KeyError) as error:
                report.found(path, str(error))
    return manifests


def _table(
    title: str, header: Sequence[str], rows: list[list[Any]], summed: Sequence[int], note: str = ""
) -> Table | None:
    """A table with a last line of sums, if there is more than one row."""
    if not rows:
        return None
    if len(rows) > 1:
        sums = [sum(row[column] or 0 for row in rows) if column in summed else "" for column in range(len(header))]
        rows = [*rows, ["total", *sums[1:]]]
    return Table(title, header, rows, note)


def _command(script: str, *positional: object, **flags: object) -> str:
    words = [str(one) for one in positional]
    for name, value in flags.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    return f"python {script} {shlex.join(words)}"


def _step_command(script: Script, made_with: Sequence[provenance.Provenance], **places: object) -> str:
    """The command of a step: `places`, and every other argument of its script that the provenance of its outputs has,
    with the same value in all of them; their domains."""
    first, *others = made_with
    shared = {name: value for name, value in first.items() if all(one.get(name) == value for one in others)}
    if "domain" in first:
        shared["domain"] = ",".join(dict.fromkeys(one["domain"] for one in made_with))
    values = {**shared, **places}
    flags = {name: values.get(name) for name in script.arguments if name not in script.positionals}
    positional = [values[name] for name in script.positionals if name in values]
    module = script.name if script.name.endswith(".py") else f"-m {script.name}"
    return _command(module, *positional, **flags)


def _sampler_command(out: Path, manifest: Mapping[str, Any], **places: object) -> str:
    arguments = manifest["arguments"]
    return _step_command(CONCAT if "encoder_length" in arguments else INSIDE, [arguments], output=out, **places)


def _teacher_command(one: ShownSet) -> str:
    folder = one.folder.parent
    places: dict[str, object] = {"model_dir": model_name(one)}
    if places["model_dir"] == folder.name:  # it was named with --output_dir
        places = {"model_dir": "TEACHER", "output_dir": folder}
    if "retrieval_k" in one.made_with:
        name, separator, _ = folder.name.partition("-ret_k")
        places["retrieval_input_dir"] = folder.with_name(name) if separator else "RETRIEVED"
    source = one.source.parent if one.source else "INPUT_DIR"
    return _step_command(ANNOTATE, [one.made_with], input_dir=source, **places)
