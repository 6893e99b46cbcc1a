"""What both samplers do: read their arguments, write drawn windows as MDS sets, account for all of it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cepe_data import atomic, cli, corpus, mds, workers
from cepe_data.drawing import Plan, Survey, Tokens, WindowSource
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.splits import Splits
from cepe_data.token_file import read_tokenizer
from cepe_data.windows import Windows

SHARD_BYTES = 64 << 20
MEASURED_BYTES = 16 << 20
FACTS = ("documents", "windows_available", "vocab_size", "source_files")
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


@dataclass
class Outcome:
    """What came of a run, set by set; in a dry run, with what each would take."""

    sets: list[SetOutcome] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)

    def report_dry_run(self, args: argparse.Namespace) -> None:
        """Print what a run would write, the time it would take, and the space that is free for it."""
        header = ("set", "documents", "requested", "available", "to write", "files", "bytes", "minutes")
        minutes = [takes.seconds / 60 / args.num_workers for takes in self.estimates]
        rows = [
            (one.name, *one.as_json().values(), takes.files, takes.num_bytes, f"{expected:.1f}")
            for one, takes, expected in zip(self.sets, self.estimates, minutes, strict=True)
        ]
        cli.say(cli.table(header, rows))
        cli.say(f"about {sum(minutes):.1f} minutes with {args.num_workers} workers, from a measured sample of each set")
        cli.report_disk(args.output, sum(takes.num_bytes for takes in self.estimates))

    def finish(self, args: argparse.Namespace, start: float) -> int:
        """Print the last lines, the shortage among them if there is one; return the exit status."""
        written = [one.written for one in self.sets if one.written]
        what = "would be written" if args.dry_run else "are there"
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


Requests = Mapping[str, Mapping[str, int]]  # split → domain → rows


def open_tokens(args: argparse.Namespace) -> tuple[Tokens, dict[str, float]]:
    """The token files of the domains that `args` asks for, and the weights of these.

    Raises:
        ArgumentError: if a domain has no files (with the `--domains` line without it), or token files are missing.
        DamagedFileError: if they were made by two tokenizers.
    """
    weights = corpus.parse_weights(args.domains)
    files: dict[str, list[corpus.ListedFile]] = {domain: [] for domain in weights}
    for file in corpus.read_file_list(args.file_list):
        if file.domain in files:
            files[file.domain].append(file)
    if absent := [domain for domain in weights if not files[domain]]:
        rest = {domain: weight for domain, weight in weights.items() if files[domain]}
        remedy = f"without them:\n  --domains {corpus.format_weights(rest)}" if rest else "nothing else is asked for"
        raise ArgumentError(f"{args.file_list} lists no files of {', '.join(absent)}; {remedy}")
    all_files = [file for domain_files in files.values() for file in domain_files]
    if missing := [file.path for file in all_files if not (args.tokenized_dir / file.token_file).exists()]:
        raise ArgumentError(
            f"{len(missing)} of {len(all_files)} token files are missing in {args.tokenized_dir}, such as that of "
            f"{missing[0]}: run tokenize_jsonl.py; sanity_check.py names all of them"
        )
    identities: dict[str, tuple[str, int]] = {}
    for file in all_files:
        path = args.tokenized_dir / file.token_file
        if meta := atomic.read_meta(path):
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
            f"{args.tokenized_dir} has token files of several tokenizers: {examples}. Make them anew "
            f"with one (tokenize_jsonl.py --overwrite)"
        )
    fingerprint, (_, vocab_size) = next(iter(identities.items()), (None, ("", None)))
    return Tokens(files, args.tokenized_dir, vocab_size, fingerprint), weights


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


def refuse_other_sets(output: Path, splits: Splits, overwrite: bool) -> None:
    """Refuse to add to sets that follow another split rule: a text could then be on both sides.

    Raises:
        ArgumentError: naming such a set; with `overwrite`, which replaces only the sets of this run, it is a warning.
    """
    units = [(path, path.parent) for split in ("test", "train") for path in output.glob(f"{split}/*/meta.json")]
    units += [(path, path.with_name(path.name.replace(".meta.json", ".jsonl"))) for path in output.glob(PASSAGE_METAS)]
    for _, unit in sorted(units):
        meta = atomic.read_meta(unit) if unit.exists() else None
        if meta is None:
            continue
        rule = splits.made_with(meta["made_with"].get("split", "retrieval"))
        refuse_differences(unit, {name: meta["made_with"].get(name) for name in rule}, rule, overwrite)


def refuse_differences(unit: Path, old: atomic.Meta, new: atomic.Meta, overwrite: bool) -> None:
    """Raise ArgumentError, or with `overwrite` warn, if what a neighbouring set was made with differs."""
    if differences := atomic.describe_differences(old, new):
        message = f"{unit} is in the same output, and was made with other arguments or inputs: {differences}"
        if not overwrite:
            raise ArgumentError(
                f"{message}. Use the same, or another OUT; --overwrite goes on and replaces sets it makes"
            )
        cli.warn(f"{message}. Make it again too, or remove it")


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

    def made_with(self, split: str, domain: str) -> atomic.Meta:
        """What determines the bytes of a set, but for the numbers of its rows."""
        return {
            "kind": self.kind,
            "domain": domain,
            "split": split,
            "total_length": self.windows.total_length,
            "decoder_length": self.decoder_length,
            "token_dtype": self.dtype.name,
            "token_files": self.surveys[domain].fingerprint,
            **self.splits.made_with(split),
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
        """The sampler that `args` ask for."""
        return cls(
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

    def outcomes(self, requests: Requests) -> Iterator[tuple[str, str, SetOutcome]]:
        """Split, domain and outcome of every set of which any row is requested."""
        for split, by_domain in requests.items():
            for domain, requested in by_domain.items():
                if requested:
                    one = self.surveys[domain]
                    available = one.available(split)
                    name, written = f"{split}/{domain}", min(requested, available)
                    yield split, domain, SetOutcome(name, one.documents[split], requested, available, written)

    def dry_run(self, requests: Requests, outcome: Outcome) -> None:
        """Account for every set that is asked for, and write nothing but a measured sample, which is removed."""
        mds.import_streaming()  # start-up, not to be measured
        for split, domain, one in self.outcomes(requests):
            outcome.sets.append(one)
            outcome.estimates.append(self._estimate(split, domain, one.written))

    def _estimate(self, split: str, domain: str, num_rows: int) -> Estimate:
        if not num_rows:
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

    def write_all(self, pool: workers.Workers, requests: Requests, args: argparse.Namespace, outcome: Outcome) -> None:
        """Write every set that is asked for, or find it written, and the manifest."""
        atomic.remove_stale_temporaries(self.output)
        for split, domain, one in self.outcomes(requests):
            outcome.sets.append(one)
            self._write_or_skip(pool, split, domain, one.written)
        self._write_manifest(requests, args)

    def _write_or_skip(self, pool: workers.Workers, split: str, domain: str, num_rows: int) -> None:
        if not num_rows:
            return
        folder = self.output / split / domain
        atomic.remove_stale_temporaries(folder.parent)
        made_with = {**self.made_with(split, domain), "rows": num_rows, "rows_per_part": self.part_rows}
        if atomic.is_made(folder, made_with, self.overwrite):
            cli.say(f"{folder}: skipped, made before with the same arguments")
            atomic.remove(mds.pool_path(folder))
            return
        try:
            self._write_set(pool, folder, split, domain, num_rows, made_with)
        except (PipelineError, FileNotFoundError):
            # Another process made the same set and removed the parts under our hands: then all is well.
            if not atomic.is_made(folder, made_with):
                raise
        atomic.remove(mds.pool_path(folder))

    def _write_set(
        self, pool: workers.Workers, folder: Path, split: str, domain: str, num_rows: int, made_with: atomic.Meta
    ) -> None:
        start_time = time.monotonic()
        parts = mds.pool_path(folder)
        atomic.remove_stale_temporaries(parts)
        plan = self._source(split, domain).draw(0, num_rows)
        borders = self._borders(num_rows)
        with cli.progress_bar(num_rows, "row", f"{split}/{domain}") as bar:
            missing = []
            for number, (start, stop) in enumerate(borders):
                part_made_with = {**self.made_with(split, domain), "first_row": start, "stop_row": stop}
                part = Part(mds.part_path(parts, number), split, domain, plan.rows(start, stop), part_made_with)
                if atomic.is_made(part.path, part_made_with, self.overwrite):
                    bar.update(len(part.plan))
                else:
                    missing.append(part)
            for part, _ in pool.map_in_order(WindowSampler.write_part, missing, lambda _: 1, 2 * pool.num_workers):
                bar.update(len(part.plan))
        with atomic.Draft(folder, made_with, is_folder=True, overwrite=self.overwrite) as draft:
            mds.join_parts(draft, parts, borders)
            with draft.companion(rows_path(folder)).open("wb") as file:
                np.save(file, np.stack([plan.file.astype(np.int64), plan.position], axis=1), allow_pickle=False)
            draft.publish(self.facts(split, domain))
        cli.say(f"{folder}: {num_rows:,} rows, {cli.seconds_since(start_time)}")

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
        context_length = self.windows.total_length - self.decoder_length
        windows = self._source(part.split, part.domain).read(part.plan, self.dtype)
        rows = (
            {"token_ids": row[context_length:], "prev_token_ids": row[:context_length], "domain": part.domain}
            for row in windows
        )
        mds.write_part(part.path, self.columns, rows, part.made_with, self.overwrite)

    def _write_manifest(self, requests: Requests, args: argparse.Namespace) -> None:
        """Arguments, versions, and what every set that is there was made from: one of an earlier run says so itself."""
        sets: dict[str, dict[str, Any]] = {split: {} for split in requests}
        for split, by_domain in requests.items():
            for domain, requested in by_domain.items():
                sets[split][domain] = {"requested": requested, "written": 0, **self.facts(split, domain)}
            for folder in sorted(self.output.glob(f"{split}/*")):
                meta = atomic.read_meta(folder) if (folder / mds.INDEX_NAME).exists() else None
                if meta is not None:
                    of_set = sets[split].setdefault(folder.name, {"requested": 0})
                    of_set.update({name: meta[name] for name in FACTS})
                    of_set["written"] = meta["made_with"]["rows"]
        atomic.write_json(self.output / "manifest.json", {**describe_run(args), "sets": sets})

    def facts(self, split: str, domain: str) -> dict[str, Any]:
        """What the meta file and the manifest say of the content of a set."""
        one = self.surveys[domain]
        return {
            "documents": one.documents[split],
            "windows_available": one.available(split),
            "vocab_size": self.tokens.vocab_size,
            "source_files": [file.path for file in self.tokens.files[domain]],
        }


def rows_path(folder: Path) -> Path:
    """Where the provenance of a set is, int64 [rows, 2] of file number and position: `arxiv` → `arxiv.rows.npy`."""
    return folder.with_name(f"{folder.name}.rows.npy")


def describe_run(args: argparse.Namespace) -> dict[str, Any]:
    """Script, arguments and versions, for a manifest: what determines the draw, not where things are or how it ran."""
    where = {"output", "file_list", "tokenized_dir", "tokenizer"}
    how = {"overwrite", "allow_shortage", "dry_run", "num_workers", "shard_id"}
    return {
        "script": Path(sys.argv[0]).name,
        "arguments": {name: value for name, value in vars(args).items() if name not in where | how},
        "versions": {package: version(package) for package in ("mosaicml-streaming", "numpy", "xxhash")},
    }
