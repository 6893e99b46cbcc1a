"""Test and train sets: sampled windows of documents, written as MDS in parts by many processes, and joined."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli, workers
from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.samples import options
from cepe_data.samples.options import SampleOptions
from cepe_data.samples.reader import Inventory, Tokens, WindowSource
from cepe_data.samples.summary import SetSummary
from cepe_data.storage import mds, outputs, provenance
from cepe_data.storage.npy import write_npy
from cepe_data.storage.outputs import Output
from cepe_data.storage.parts import PartedSet

SHARD_BYTES = 64 << 20
MEASURED_BYTES = 16 << 20
METADATA = ("documents", "windows_available", "vocab_size", "tokenizer", "source_files")

Requests = Mapping[str, Mapping[str, int]]  # split → domain → rows


@dataclass(frozen=True)
class PlannedSet:
    """A set of which rows are requested; `is_made` if nothing is left to do."""

    split: str
    domain: str
    of_set: PartedSet
    summary: SetSummary
    is_made: bool

    @property
    def folder(self) -> Path:
        return self.of_set.folder


@dataclass(frozen=True)
class Part:
    """A part of a set on its way to a worker; `plan` is a PLAN [rows]."""

    output: Output
    split: str
    domain: str
    plan: np.ndarray


@dataclass(frozen=True)
class WindowSampler:
    """Writes the test and train sets of one run."""

    args: SampleOptions
    tokens: Tokens
    inventories: Mapping[str, Inventory]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the token columns. Raises ArgumentError if `--token_dtype` cannot hold the vocabulary."""
        requested, vocab_size = self.args.token_dtype, self.tokens.vocab_size
        if vocab_size is None:
            return np.dtype(requested or np.int32)
        smallest = mds.token_dtype(vocab_size)
        if requested and np.dtype(requested).itemsize < smallest.itemsize:
            raise ArgumentError(f"--token_dtype {requested} cannot hold ids up to {vocab_size - 1}: use {smallest}")
        return np.dtype(requested or smallest)

    @property
    def columns(self) -> dict[str, str]:
        decoder_length = self.args.decoder_length
        return {
            "token_ids": mds.array_column(self.dtype, decoder_length),
            "prev_token_ids": mds.array_column(self.dtype, self.args.windows.total_length - decoder_length),
            "domain": "str",
        }

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, with its place in `{domain}.rows.npy`."""
        return mds.row_bytes(self.columns) + 16

    def count_bytes(self, planned: Sequence[PlannedSet]) -> int:
        """Bytes of the parts that are to be written."""
        sets = [one.of_set for one in planned if not one.is_made]
        left = [(of_set, [n for n, path in enumerate(of_set.parts.paths) if not path.exists()]) for of_set in sets]
        return self.row_bytes * sum(of_set.count_rows(numbers) for of_set, numbers in left)

    @property
    def part_rows(self) -> int:
        """Rows of a part, but for the last."""
        return self.args.rows_per_part or mds.rows_per_shard(self.columns, SHARD_BYTES)

    def split_rule(self, split: str) -> provenance.Provenance:
        """The provenance that all sets of an output share: else a text could be in two splits. Without an inventory,
        what of it the arguments determine."""
        rule = next((one.rule for one in self.inventories.values()), {})  # a run has one for all domains
        return {**rule, **self.args.splits.made_with(split)}

    def window_rule(self, split: str) -> provenance.Provenance:
        """The provenance that all sets of windows of an output share."""
        return {
            "kind": self.args.windows.kind,
            "total_length": self.args.windows.total_length,
            "decoder_length": self.args.decoder_length,
            **self.split_rule(split),
        }

    def made_with(self, split: str, domain: str) -> provenance.Provenance:
        """The provenance of a set, but for the numbers of its rows."""
        return {
            "domain": domain,
            "split": split,
            "token_dtype": self.dtype.name,
            **self.inventories[domain].inputs,
            **self.window_rule(split),
        }

    def plan(self, requests: Requests) -> list[PlannedSet]:
        """Every set of which any row is requested.

        Raises:
            ArgumentError: if ids or parts do not fit what they are to be stored in, or a set is there that was made
                with something else.
            DamagedFileError: if one is there and damaged.
        """
        columns = self.columns
        if self.args.output.exists() and not self.args.output.is_dir():
            raise ArgumentError(f"{self.args.output} is not a folder: choose another OUT")
        return [
            self._plan_set(split, domain, requested, columns)
            for split, by_domain in requests.items()
            for domain, requested in by_domain.items()
            if requested
        ]

    def _plan_set(self, split: str, domain: str, requested: int, columns: mds.Columns) -> PlannedSet:
        inventory, folder = self.inventories[domain], self.args.output / split / domain
        available = inventory.available(split)
        num_rows = min(requested, available)
        summary = SetSummary(f"{split}/{domain}", inventory.documents[split], requested, available, num_rows)
        # Row n is the same whatever the number of rows, so parts of a smaller set serve a larger one.
        of_set = PartedSet(folder, columns, num_rows, self.part_rows, self.made_with(split, domain), self.args)
        return PlannedSet(split, domain, of_set, summary, of_set.joined.is_done())

    def check_other_sets(self, replaced: Collection[Path]) -> None:
        """Check that sets that are there follow the same rules: else a text could be in two splits, or the manifest
        would be wrong.

        Raises:
            ArgumentError: naming such a set, unless it is among those `replaced`; a warning where sets may be replaced.
        """
        tokenizer = {"tokenizer": self.tokens.fingerprint} if self.tokens.fingerprint else {}
        for path in sorted(self.args.output.glob("*/[!.]*/meta.json")):
            split, output = path.parent.parent.name, path.parent
            if split in {"test", "train"} and output not in replaced:
                options.check_differences(output, {**self.window_rule(split), **tokenizer}, self.args.overwrite)
        for path in sorted(self.args.output.glob("retrieval/*/*.meta.json")):
            output = path.with_name(path.name.replace(".meta.json", ".jsonl"))
            if output.exists() and output not in replaced:
                rule = {**self.split_rule("retrieval"), **tokenizer}
                options.check_differences(output, rule, self.args.overwrite)

    def dry_run(self, planned: PlannedSet) -> SetSummary:
        """What writing a set takes; a measured sample of it is written, and removed."""
        split, domain, num_rows = planned.split, planned.domain, planned.summary.written
        if planned.is_made or not num_rows:
            return planned.summary
        row_bytes = self.args.windows.total_length * self.dtype.itemsize
        num_measured = min(num_rows, -(-MEASURED_BYTES // row_bytes))
        plan = self._source(split, domain).sample(0, num_measured)
        with tempfile.TemporaryDirectory() as scratch:
            start_time = time.perf_counter()
            self.write_part(Part(Output(Path(scratch) / "part", {}), split, domain, plan))
            seconds = (time.perf_counter() - start_time) * num_rows / num_measured
        num_files = len(planned.of_set.part_ranges)
        return replace(planned.summary, files=num_files, num_bytes=num_rows * row_bytes, seconds=seconds)

    def write_all(self, pool: workers.Workers, planned: Sequence[PlannedSet], check: Callable[[], None]) -> None:
        """Write the sets that are not made, and the manifest. `check` is called before a set is published: another
        process may be at work in the same output. The workers of `pool` call `write_part`."""
        outputs.remove_stale_temporaries(self.args.output)
        for one in planned:
            outputs.remove_stale_temporaries(one.folder.parent)
            if one.is_made:
                cli.say(f"{one.folder}: skipped, made before with the same arguments")
            elif one.summary.written:
                self._write_or_find(pool, one, check)
            else:  # --overwrite: what is there was made with something else, of which there is nothing now
                outputs.retract(one.folder)
                outputs.remove(rows_path(one.folder))
            outputs.remove(one.of_set.parts.directory)
        self._write_manifest(planned)

    def _write_or_find(self, pool: workers.Workers, planned: PlannedSet, check: Callable[[], None]) -> None:
        try:
            self._write_set(pool, planned, check)
        except (PipelineError, FileNotFoundError):
            # Another process made the same set and removed the parts under our hands: then all is well.
            if not Output(planned.folder, planned.of_set.set_made_with).is_done():
                raise

    def _write_set(self, pool: workers.Workers, planned: PlannedSet, check: Callable[[], None]) -> None:
        start_time = time.monotonic()
        split, domain, num_rows, folder = planned.split, planned.domain, planned.summary.written, planned.folder
        of_set, plan = planned.of_set, self._source(split, domain).sample(0, num_rows)
        of_set.remove_stale_temporaries()
        todo = of_set.todo(0, 1)
        parts = [Part(of_set.parts[n], split, domain, plan[slice(*of_set.part_ranges[n])]) for n in todo]
        with cli.progress_bar(num_rows, "row", f"{split}/{domain}") as bar:
            bar.update(num_rows - of_set.count_rows(todo))
            for part, _ in pool.map_in_order(parts):
                bar.update(len(part.plan))

        def prepare(draft: outputs.Draft) -> None:
            write_npy(draft.sidecar(rows_path(folder)), np.stack([plan["file"], plan["position"]], axis=1))
            check()
            outputs.remove(clean_list_path(folder))  # that of the set that is replaced

        of_set.publish(self.metadata(split, domain), prepare)
        cli.say(f"{folder}: {num_rows:,} rows, {cli.seconds_since(start_time)}")

    def _source(self, split: str, domain: str) -> WindowSource:
        args = self.args
        return WindowSource(self.tokens, domain, split, args.splits, args.windows, self.inventories[domain])

    def write_part(self, part: Part) -> None:
        """Write and publish a part: the task of the workers."""
        rows = mds.window_rows(self.columns, {"domain": part.domain}, len(part.plan))
        self._source(part.split, part.domain).read(part.plan, [rows["prev_token_ids"], rows["token_ids"]])
        mds.write_shard(part.output, self.columns, len(rows), rows)

    def _write_manifest(self, planned: Sequence[PlannedSet]) -> None:
        """Arguments, versions, and the metadata of every set that is there, those of earlier runs too."""
        sets: dict[str, dict[str, Any]] = {"test": {}, "train": {}}
        for one in planned:
            rows = {"requested": one.summary.requested, "written": one.summary.written}
            listed = metadata_of(one.folder) if one.summary.written else self.metadata(one.split, one.domain)
            sets[one.split][one.domain] = {**rows, **listed}
        for split, of_split in sets.items():
            for folder in sorted(self.args.output.glob(f"{split}/[!.]*")):
                is_other = folder.name not in of_split and (folder / mds.INDEX_NAME).exists()
                if is_other and (meta := provenance.read_meta(folder)):
                    rows = {"requested": 0, "written": meta.made_with["rows"]}
                    of_split[folder.name] = {**rows, **metadata_of(folder)}
                    cli.say(f"{folder}: not asked for, and left as it is")
        content = {**options.describe_run(self.args), "sets": sets}
        outputs.write_json(self.args.output / "manifest.json", provenance.signed(content))

    def metadata(self, split: str, domain: str) -> dict[str, Any]:
        """What the meta file and the manifest say of the content of a set."""
        one = self.inventories[domain]
        return {
            "documents": one.documents[split],
            "windows_available": one.available(split),
            "vocab_size": self.tokens.vocab_size,
            "tokenizer": self.tokens.fingerprint,
            "source_files": [file.path for file in self.tokens.files[domain]],
        }


def metadata_of(folder: Path) -> dict[str, Any]:
    """What the manifest says of the content of a set that exists."""
    meta = provenance.read_meta(folder)
    return {name: meta.get(name) for name in METADATA}


def rows_path(folder: Path) -> Path:
    """Where the provenance of a set is, int64 [rows, 2] of file number and position: `arxiv` → `arxiv.rows.npy`."""
    return folder.with_name(f"{folder.name}.rows.npy")


def clean_list_path(folder: Path) -> Path:
    """Where the rows of a test set are that share nothing with others: `arxiv` → `arxiv.clean.npy`."""
    return folder.with_name(f"{folder.name}.clean.npy")
