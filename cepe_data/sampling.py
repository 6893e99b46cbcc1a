"""What both samplers do: read their arguments, write drawn windows as MDS sets, account for all of it."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cepe_data import atomic, cli, corpus, duplicates, mds, workers
from cepe_data.drawing import Plan, Survey, Tokens, WindowSource
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.npy import write_npy
from cepe_data.splits import Splits
from cepe_data.token_file import read_tokenizer
from cepe_data.windows import Windows

SHARD_BYTES = 64 << 20
MEASURED_BYTES = 16 << 20
FACTS = ("documents", "windows_available", "vocab_size", "tokenizer", "source_files")
PASSAGE_METAS = "retrieval/*/*.meta.json"


@dataclass(frozen=True)
class SetOutcome:
    """What was asked for and what came of it, for one set; documents of its split, the rest in rows."""

    name: str
    documents: int
    requested: int
    available: int
    written: int

    def as_json(self) -> dict[str, int]:
        """The numbers, for a manifest."""
        return {
            "documents": self.documents,
            "requested": self.requested,
            "available": self.available,
            "written": self.written,
        }


@dataclass(frozen=True)
class Estimate:
    """What writing a set takes: files (MDS shards, or one jsonl), their bytes, seconds on one core."""

    files: int
    num_bytes: int
    seconds: float


def format_minutes(minutes: float) -> str:
    """`12.3`, or two digits of less than one."""
    return f"{minutes:,.1f}" if minutes >= 1 or not minutes else f"{minutes:.2g}"


@dataclass
class Outcome:
    """What came of a run, set by set; in a dry run, with what each would take."""

    sets: list[SetOutcome] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)

    def report_dry_run(self, args: argparse.Namespace) -> None:
        """Print what a run would write, the time it would take, and the space that is free for it."""
        header = ("set", "documents", "requested", "available", "rows", "files", "bytes", "minutes")
        minutes = [takes.seconds / 60 / args.num_workers for takes in self.estimates]
        rows = [
            (one.name, *one.as_json().values(), takes.files, takes.num_bytes, format_minutes(expected))
            for one, takes, expected in zip(self.sets, self.estimates, minutes, strict=True)
        ]
        cli.say(cli.table(header, rows))
        is_made = [one.written and not takes.files for one, takes in zip(self.sets, self.estimates, strict=True)]
        if made := sum(map(bool, is_made)):
            cli.say(f"{made} of these sets are there already, made with the same arguments")
        taken = format_minutes(sum(minutes))
        cli.say(f"about {taken} minutes with {args.num_workers} workers, from a measured sample of each set")
        cli.report_disk(args.output, sum(takes.num_bytes for takes in self.estimates))

    def finish(self, args: argparse.Namespace, start: float) -> int:
        """Print the last lines, the shortage among them if there is one; return the exit status."""
        written = [one.written for one in self.sets if one.written]
        what = "would be there" if args.dry_run else "are there"
        cli.say(f"{sum(written):,} rows in {len(written)} sets {what}, {cli.seconds_since(start)} → {args.output}")
        short = [one for one in self.sets if one.written < one.requested]
        if not short:
            return cli.EXIT_OK
        if empty := [one.name for one in short if not one.written]:
            cli.warn(
                f"{', '.join(empty)}: nothing is available, so there is no folder. Give its split more documents "
                f"(--test_fraction, --train_fraction), or ask for shorter lengths"
            )
        cli.say(f"shortage, all that is available {'would be' if args.dry_run else 'was'} taken:")
        rows = [(one.name, one.requested, one.available, one.written) for one in short]
        cli.say(cli.table(("set", "requested", "available", "written"), rows))
        return cli.EXIT_OK if args.allow_shortage else cli.EXIT_SHORTAGE


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """The first positional argument of both samplers."""
    parser.add_argument("output", type=Path, metavar="OUT", help="the folder to write")


def add_arguments(parser: argparse.ArgumentParser, weights: Mapping[str, float]) -> None:
    """The arguments that both samplers have behind the lengths."""
    parser.add_argument("eval_samples", type=cli.count, metavar="EVAL_SAMPLES", help="windows for test")
    parser.add_argument("train_samples", type=cli.count, metavar="TRAIN_SAMPLES", help="windows for train")
    source = parser.add_argument_group("source")
    source.add_argument("--file_list", type=Path, default=Path("all_jsonl.txt"), help="what get_all_jsonl.py wrote")
    source.add_argument("--tokenized_dir", type=Path, default=Path("tokenized"), help="the folder of token files")
    draw = parser.add_argument_group("draw")
    draw.add_argument(
        "--domains",
        default=corpus.format_weights(weights),
        metavar="DOMAIN=WEIGHT,…",
        help="the domains to sample and their weights, which add up to 1",
    )
    draw.add_argument("--seed", type=int, default=42, help="another seed gives other splits and another draw")
    draw.add_argument("--test_fraction", type=cli.fraction, default=0.01, help="share of documents for test")
    draw.add_argument(
        "--train_fraction", type=cli.fraction, default=0.49, help="share for train; the rest is retrieval"
    )
    draw.add_argument(
        "--drop_duplicates",
        action="store_true",
        help="leave out copies of an earlier text of their domain, as sanity_check.py duplicates has marked them",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--token_dtype",
        choices=("int16", "int32", "int64"),
        default=None,
        help="of the token columns (default: the smallest that holds the vocabulary)",
    )
    output.add_argument(
        "--rows_per_part",
        type=cli.positive_count,
        default=None,
        help="rows of a part; a killed run repeats at most one a worker (default: what fills an MDS shard of 64 MiB)",
    )
    output.add_argument("--allow_shortage", action="store_true", help="fewer windows than requested is no failure")
    output.add_argument(
        "--overwrite", action="store_true", help="replace what other arguments made, and what is damaged"
    )
    output.add_argument("--dry_run", action="store_true", help="say what would be written, and write nothing")
    output.add_argument(
        "--num_workers", type=cli.positive_count, default=workers.default_num_workers(), help="processes that write"
    )


def make_splits(args: argparse.Namespace) -> Splits:
    """The rule that gives documents to splits. Raises as `Splits`."""
    return Splits(args.seed, args.test_fraction, args.train_fraction)


Requests = Mapping[str, Mapping[str, int]]  # split → domain → rows


def open_tokens(args: argparse.Namespace) -> tuple[Tokens, dict[str, float]]:
    """The token files of the domains that `args` asks for, and the weights of these.

    Raises:
        ArgumentError: if a domain has no files (with the `--domains` line without it), or token files are missing.
        DamagedFileError: if they were made by two tokenizers.
    """
    weights = corpus.parse_weights(args.domains)
    files: dict[str, list[corpus.ListedFile]] = {domain: [] for domain in weights}
    listed = corpus.read_file_list(args.file_list)
    for file in listed:
        if file.domain in files:
            files[file.domain].append(file)
    if absent := [domain for domain in weights if not files[domain]]:
        rest = {domain: weight for domain, weight in weights.items() if files[domain]}
        known = f"it has {', '.join(sorted({file.domain for file in listed}))}"
        remedy = f"without them:\n  --domains {corpus.format_weights(rest)}" if rest else known
        raise ArgumentError(f"{args.file_list} lists no files of {', '.join(absent)}; {remedy}")
    return find_tokens(files, args.tokenized_dir, mark_command(files, args) if args.drop_duplicates else None), weights


def mark_command(files: Mapping[str, list[corpus.ListedFile]], args: argparse.Namespace) -> str:
    """The command that marks copies in the domains of `files`."""
    command = ["python", str(Path(sys.argv[0]).with_name("sanity_check.py")), "duplicates"]
    command += ["--file_list", str(args.file_list), "--tokenized_dir", str(args.tokenized_dir)]
    command += ["--domains", ",".join(files)]
    paths = (args.tokenized_dir / file.token_file for domain_files in files.values() for file in domain_files)
    overwrite = ["--overwrite"] if any(duplicates.bits_path(path).exists() for path in paths) else []
    return shlex.join([*command, *overwrite])


def find_tokens(files: Mapping[str, list[corpus.ListedFile]], folder: Path, mark_command: str | None = None) -> Tokens:
    """The token files of these domains; with `mark_command` copies of documents are dropped, see `Tokens`.

    Raises:
        ArgumentError: if some are missing.
        DamagedFileError: if one is damaged, or they were made by two tokenizers.
    """
    all_files = [file for domain_files in files.values() for file in domain_files]
    if missing := [file.path for file in all_files if not (folder / file.token_file).exists()]:
        raise ArgumentError(
            f"{len(missing)} of {len(all_files)} token files are missing in {folder}, such as that of "
            f"{missing[0]}: run tokenize_jsonl.py; sanity_check.py names all of them"
        )
    identities: dict[str, tuple[str, int]] = {}
    for file in all_files:
        path = folder / file.token_file
        if meta := atomic.read_meta(path):
            if lost := atomic.lost_files(path, meta):
                raise DamagedFileError(
                    f"{path} is damaged: {lost[0]} is gone or has not the size it was written with. tokenize_jsonl.py "
                    f"--overwrite makes it again"
                )
            tokenizer = read_tokenizer(path, meta)
            identities.setdefault(tokenizer.fingerprint, (file.path, tokenizer.vocab_size))
            if meta["made_with"].get("source_bytes") != file.num_bytes:
                raise DamagedFileError(
                    f"{path} was made when {file.path} had another size than the list says: run tokenize_jsonl.py "
                    f"--overwrite"
                )
    if len(identities) > 1:
        examples = ", ".join(f"{path} by {fingerprint}" for fingerprint, (path, _) in identities.items())
        raise DamagedFileError(
            f"{folder} has token files of several tokenizers: {examples}. Make them anew "
            f"with one (tokenize_jsonl.py --overwrite)"
        )
    fingerprint, (_, vocab_size) = next(iter(identities.items()), (None, ("", None)))
    return Tokens(files, folder, vocab_size, fingerprint, mark_command)


def window_requests(weights: Mapping[str, float], args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Rows per split and domain, test and train, by largest remainder."""
    return {
        "test": domain_counts("test", weights, args.eval_samples),
        "train": domain_counts("train", weights, args.train_samples),
    }


def domain_counts(split: str, weights: Mapping[str, float], number: int) -> dict[str, int]:
    """Rows per domain by largest remainder; says so where a domain gets none."""
    counts = corpus.largest_remainder(weights, number)
    if number and (empty := [domain for domain, count in counts.items() if not count]):
        cli.warn(f"{split}: {number} rows leave none for {', '.join(empty)}, whose share is less than one")
    return counts


def choose_token_dtype(requested: str | None, tokens: Tokens) -> np.dtype:
    """The dtype of the token columns.

    Raises:
        ArgumentError: if the requested one cannot hold the vocabulary.
    """
    if tokens.vocab_size is None:
        return np.dtype(requested or np.int32)
    smallest = mds.token_dtype(tokens.vocab_size)
    if requested and np.dtype(requested).itemsize < smallest.itemsize:
        raise ArgumentError(f"--token_dtype {requested} cannot hold ids up to {tokens.vocab_size - 1}: use {smallest}")
    return np.dtype(requested) if requested else smallest


def refuse_differences(unit: Path, rule: atomic.Meta, overwrite: bool) -> None:
    """Raise ArgumentError, or with `overwrite` warn, if a neighbouring set that is there was made by another rule."""
    try:
        meta = atomic.read_meta(unit)
    except DamagedFileError as error:
        if not overwrite:
            raise
        cli.warn(str(error))
        return
    names = {*rule, "drop_duplicates"}  # which only a record has that says so
    old = {name: value for name, value in meta["made_with"].items() if name in names} if meta else rule
    if differences := atomic.describe_differences(old, rule):
        message = f"{unit} is in the same output, and was made with other arguments or inputs: {differences}"
        if not overwrite:
            raise ArgumentError(
                f"{message}. Use the same, or another OUT; --overwrite goes on and replaces sets it makes"
            )
        cli.warn(f"{message}. Make it again too, or remove it")


@dataclass(frozen=True)
class PlannedSet:
    """A set of which rows are requested; `is_made` if nothing is left to do."""

    split: str
    domain: str
    folder: Path
    made_with: atomic.Meta
    outcome: SetOutcome
    is_made: bool


@dataclass(frozen=True)
class Part:
    """A part of a set on its way to a worker."""

    path: Path
    split: str
    domain: str
    plan: Plan
    made_with: atomic.Meta


@dataclass(frozen=True)
class WindowSampler:
    """Writes the test and train sets of one run."""

    tokens: Tokens
    splits: Splits
    windows: Windows
    kind: str
    decoder_length: int
    dtype: np.dtype
    surveys: Mapping[str, Survey]
    output: Path
    rows_per_part: int | None
    overwrite: bool
    current: ClassVar[WindowSampler]

    @property
    def columns(self) -> dict[str, str]:
        return {
            "token_ids": mds.array_column(self.dtype, self.decoder_length),
            "prev_token_ids": mds.array_column(self.dtype, self.windows.total_length - self.decoder_length),
            "domain": "str",
        }

    @property
    def part_rows(self) -> int:
        """Rows of a part, but for the last."""
        return self.rows_per_part or mds.rows_per_shard(self.columns, SHARD_BYTES)

    def split_rule(self, split: str) -> atomic.Meta:
        """What all sets of an output share: else a text could be in two splits. Without a survey, what is known of it
        from the arguments."""
        rule = next((one.rule for one in self.surveys.values()), {})  # a run has one for all domains
        return {**rule, **self.splits.made_with(split)}

    def window_rule(self, split: str) -> atomic.Meta:
        """What all sets of windows of an output share."""
        return {
            "kind": self.kind,
            "total_length": self.windows.total_length,
            "decoder_length": self.decoder_length,
            **self.split_rule(split),
        }

    def made_with(self, split: str, domain: str) -> atomic.Meta:
        """What determines the bytes of a set, but for the numbers of its rows."""
        return {
            "domain": domain,
            "split": split,
            "token_dtype": self.dtype.name,
            **self.surveys[domain].inputs,
            **self.window_rule(split),
        }

    @classmethod
    def of_run(
        cls,
        kind: str,
        args: argparse.Namespace,
        tokens: Tokens,
        splits: Splits,
        windows: Windows,
        surveys: Mapping[str, Survey],
    ) -> WindowSampler:
        """The sampler that `args` ask for.

        Raises:
            ArgumentError: if ids or parts do not fit what they are to be stored in.
        """
        sampler = cls(
            tokens,
            splits,
            windows,
            kind,
            args.decoder_length,
            choose_token_dtype(args.token_dtype, tokens),
            surveys,
            args.output,
            args.rows_per_part,
            args.overwrite,
        )
        mds.refuse_large_parts(sampler.columns, sampler.part_rows)
        return sampler

    def plan(self, requests: Requests) -> list[PlannedSet]:
        """Every set of which any row is requested.

        Raises:
            ArgumentError: if one is there that was made with something else.
            DamagedFileError: if one is there and damaged.
        """
        if self.output.exists() and not self.output.is_dir():
            raise ArgumentError(f"{self.output} is no folder: choose another OUT")
        return [
            self._plan_set(split, domain, requested)
            for split, by_domain in requests.items()
            for domain, requested in by_domain.items()
            if requested
        ]

    def _plan_set(self, split: str, domain: str, requested: int) -> PlannedSet:
        survey = self.surveys[domain]
        available = survey.available(split)
        num_rows = min(requested, available)
        outcome = SetOutcome(f"{split}/{domain}", survey.documents[split], requested, available, num_rows)
        folder = self.output / split / domain
        made_with = {**self.made_with(split, domain), "rows": num_rows, "rows_per_part": self.part_rows}
        is_made = atomic.is_made(folder, made_with, self.overwrite)
        return PlannedSet(split, domain, folder, made_with, outcome, is_made)

    def refuse_other_sets(self, replaced: Collection[Path]) -> None:
        """Refuse to add to sets that follow other rules: a text could be on both sides, or the manifest would be wrong.

        Raises:
            ArgumentError: naming such a set; with `overwrite` this is a warning, unless it is among those `replaced`.
        """
        for path in sorted(self.output.glob("*/[!.]*/meta.json")):
            split, unit = path.parent.parent.name, path.parent
            if split in {"test", "train"} and unit not in replaced:
                refuse_differences(unit, self.window_rule(split), self.overwrite)
        for path in sorted(self.output.glob(PASSAGE_METAS)):
            unit = path.with_name(path.name.replace(".meta.json", ".jsonl"))
            if unit.exists() and unit not in replaced:
                refuse_differences(unit, self.split_rule("retrieval"), self.overwrite)

    def dry_run(self, planned: Sequence[PlannedSet], outcome: Outcome) -> None:
        """Account for every set that is asked for, and write nothing but a measured sample, which is removed."""
        for one in planned:
            outcome.sets.append(one.outcome)
            outcome.estimates.append(self._estimate(one))

    def _estimate(self, planned: PlannedSet) -> Estimate:
        split, domain, num_rows = planned.split, planned.domain, planned.outcome.written
        if planned.is_made or not num_rows:
            return Estimate(0, 0, 0.0)
        row_bytes = self.windows.total_length * self.dtype.itemsize
        num_measured = min(num_rows, -(-MEASURED_BYTES // row_bytes))
        plan = self._source(split, domain).draw(0, num_measured)
        with tempfile.TemporaryDirectory() as scratch:
            start_time = time.perf_counter()
            self._write_part(Part(Path(scratch) / "part", split, domain, plan, {}))
            seconds = (time.perf_counter() - start_time) * num_rows / num_measured
        return Estimate(len(self._borders(num_rows)), num_rows * row_bytes, seconds)

    def start_workers(self, num_workers: int) -> workers.Workers:
        """A pool of processes that write parts of this sampler's sets."""
        return workers.Workers(num_workers, WindowSampler.prepare, self)

    def write_all(
        self,
        pool: workers.Workers,
        planned: Sequence[PlannedSet],
        args: argparse.Namespace,
        outcome: Outcome,
        check: Callable[[], None],
    ) -> None:
        """Write every set that is asked for, or find it written, and the manifest. `check` is called before a set is
        published: another process may be at work in the same output."""
        atomic.remove_stale_temporaries(self.output)
        for one in planned:
            outcome.sets.append(one.outcome)
            atomic.remove_stale_temporaries(one.folder.parent)
            if one.is_made:
                cli.say(f"{one.folder}: skipped, made before with the same arguments")
            elif one.outcome.written:
                self._write_or_find(pool, one, check)
            else:  # --overwrite: what is there was made with something else, of which there is nothing now
                atomic.retract(one.folder)
                atomic.remove(rows_path(one.folder))
            atomic.remove(mds.pool_path(one.folder))
        self._write_manifest(planned, args)

    def _write_or_find(self, pool: workers.Workers, planned: PlannedSet, check: Callable[[], None]) -> None:
        try:
            self._write_set(pool, planned, check)
        except (PipelineError, FileNotFoundError):
            # Another process made the same set and removed the parts under our hands: then all is well.
            if not atomic.is_made(planned.folder, planned.made_with):
                raise

    def _write_set(self, pool: workers.Workers, planned: PlannedSet, check: Callable[[], None]) -> None:
        start_time = time.monotonic()
        split, domain, num_rows, folder = planned.split, planned.domain, planned.outcome.written, planned.folder
        parts = mds.pool_path(folder)
        atomic.remove_stale_temporaries(parts)
        plan = self._source(split, domain).draw(0, num_rows)
        borders = self._borders(num_rows)
        with cli.progress_bar(num_rows, "row", f"{split}/{domain}") as bar:
            missing = []
            for number, (start, stop) in enumerate(borders):
                numbers = {"first_row": start, "stop_row": stop, "rows_per_part": self.part_rows}
                made_with = {**self.made_with(split, domain), **numbers}
                part = Part(mds.part_path(parts, number), split, domain, plan.rows(start, stop), made_with)
                if self._is_part_made(part):
                    bar.update(len(part.plan))
                else:
                    missing.append(part)
            for part, _ in pool.map_in_order(WindowSampler.write_part, missing, lambda _: 1, 2 * pool.num_workers):
                bar.update(len(part.plan))
        with atomic.Draft(folder, planned.made_with, is_folder=True, overwrite=self.overwrite) as draft:
            mds.join_parts(draft, parts, borders)
            write_npy(draft.companion(rows_path(folder)), np.stack([plan.file.astype(np.int64), plan.position], axis=1))
            check()
            draft.publish(self.facts(split, domain))
        cli.say(f"{folder}: {num_rows:,} rows, {cli.seconds_since(start_time)}")

    def _is_part_made(self, part: Part) -> bool:
        try:
            return atomic.is_made(part.path, part.made_with, self.overwrite)
        except ArgumentError as error:
            raise ArgumentError(
                f"{part.path.parent} is what a run that did not come to its end has left: finish that run, or remove "
                f"the folder. {error}"
            ) from None

    def _source(self, split: str, domain: str) -> WindowSource:
        return WindowSource.of(self.tokens, domain, split, self.splits, self.windows, self.surveys[domain])

    def _borders(self, num_rows: int) -> list[tuple[int, int]]:
        return mds.part_borders(num_rows, self.part_rows)

    @classmethod
    def prepare(cls, sampler: WindowSampler) -> None:
        """Make `sampler` that of this process."""
        cls.current = sampler

    @staticmethod
    def write_part(part: Part) -> None:
        """Write a part with the sampler of this process."""
        WindowSampler.current._write_part(part)

    def _write_part(self, part: Part) -> None:
        rows = mds.window_rows(self.columns, {"domain": part.domain}, len(part.plan))
        self._source(part.split, part.domain).read(part.plan, [rows["prev_token_ids"], rows["token_ids"]])
        mds.write_part(part.path, self.columns, len(rows), rows, part.made_with, self.overwrite)

    def _write_manifest(self, planned: Sequence[PlannedSet], args: argparse.Namespace) -> None:
        """Arguments, versions, and what every set that is there was made from: one of an earlier run says so itself."""
        sets: dict[str, dict[str, Any]] = {"test": {}, "train": {}}
        for one in planned:
            facts = self.facts(one.split, one.domain)
            sets[one.split][one.domain] = {"requested": one.outcome.requested, "written": 0, **facts}
        for split, of_split in sets.items():
            for folder in sorted(self.output.glob(f"{split}/[!.]*")):
                meta = atomic.read_meta(folder) if (folder / mds.INDEX_NAME).exists() else None
                if meta is not None:
                    of_set = of_split.setdefault(folder.name, {"requested": 0})
                    of_set.update({name: meta.get(name) for name in FACTS})
                    of_set["written"] = meta["made_with"]["rows"]
        atomic.write_json(self.output / "manifest.json", atomic.signed({**describe_run(args), "sets": sets}))

    def facts(self, split: str, domain: str) -> dict[str, Any]:
        """What the meta file and the manifest say of the content of a set."""
        one = self.surveys[domain]
        return {
            "documents": one.documents[split],
            "windows_available": one.available(split),
            "vocab_size": self.tokens.vocab_size,
            "tokenizer": self.tokens.fingerprint,
            "source_files": [file.path for file in self.tokens.files[domain]],
        }


def rows_path(folder: Path) -> Path:
    """Where the provenance of a set is, int64 [rows, 2] of file number and position: `arxiv` → `arxiv.rows.npy`."""
    return folder.with_name(f"{folder.name}.rows.npy")


def describe_run(args: argparse.Namespace) -> dict[str, Any]:
    """Script, arguments and versions, for a manifest: what determines the draw, not where things are or how it ran."""
    return {
        "script": Path(sys.argv[0]).name,
        "arguments": described_arguments(args),
        "versions": {package: version(package) for package in ("mosaicml-streaming", "numpy", "xxhash")},
    }


def described_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that a manifest has."""
    where = {"output", "file_list", "tokenized_dir", "tokenizer"}
    how = {"overwrite", "allow_shortage", "dry_run", "num_workers", "shard_id"}
    how |= set() if args.drop_duplicates else {"drop_duplicates"}  # manifests say so where copies are left out
    return {name: value for name, value in vars(args).items() if name not in where | how}
