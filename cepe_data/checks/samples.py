"""Check what a sampler wrote: test and train sets, where their rows come from, and the retrieval corpus.

Quick by default: files, sizes, indexes, columns, and a seeded sample of rows and passages, each found again at its
place in the token files, in documents that the hash gives to the split. `--deep` does so with every row, and compares
the hashes of all files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import atomic, cli, corpus, keyed, mds, tokenizers
from cepe_data.checks import sets
from cepe_data.checks.report import Report
from cepe_data.checks.tokens import sample_lines
from cepe_data.drawing import SampledFile
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.npy import NpyRows
from cepe_data.sampling import FACTS, rows_path
from cepe_data.splits import SPLITS, Splits
from cepe_data.token_file import read_tokenizer

HELP = "check what a sampler wrote: rows against the token files, splits, the retrieval corpus"
DOCUMENTS_AT_ONCE = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUT", help="what the sampler was given")
    parser.add_argument("--tokenized_dir", type=Path, default=Path("tokenized"), help="the folder of token files")
    sets.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check every set of OUT, and its retrieval corpus."""
    report = Report.of("samples", args)
    folders = [one for split in ("test", "train") for one in sorted(args.output.glob(f"{split}/*"))]
    folders = [one for one in folders if sets.is_domain_folder(one)]
    passages = sorted(args.output.glob("retrieval/*/*.jsonl"))
    check_manifests(report, args.output)
    if not folders and not passages and not report.findings:
        raise ArgumentError(f"{args.output} holds no sets: pass the OUT of a sampler")
    num_compared = sets.check_sets(report, args, folders, WindowChecker(args.tokenized_dir))
    num_passages = check_passages(report, args, passages)
    report.facts |= {"sets": len(folders), "rows_compared": num_compared}
    report.facts |= {"passage_files": len(passages), "passages_compared": num_passages}
    return report.finish(
        f"{len(folders)} sets, {num_compared:,} rows compared with the token files; {len(passages)} files of passages, "
        f"{num_passages:,} compared: {len(report.findings)} findings",
        args.output,
    )


def find_manifests(output: Path) -> list[Path]:
    """The manifests of what a sampler wrote: of its sets, and of each shard of the retrieval corpus."""
    paths = [output / "manifest.json", *sorted(output.glob("retrieval/*/manifest.json"))]
    return [path for path in paths if path.exists()]


def check_manifests(report: Report, output: Path) -> None:
    """That everything is there of which a manifest says that it was written, and is what it says."""
    for path in find_manifests(output):
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))["sets"]
            if path.parent != output:
                for domain, facts in listed.items():
                    _compare_with_manifest(report, path, path.with_name(f"{domain}.jsonl"), facts, ())
                continue
            for split, of_split in listed.items():
                for domain, facts in of_split.items():
                    _compare_with_manifest(report, path, output / split / domain, facts, FACTS)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            report.found(path, f"is damaged ({error!r}): run the sampler again")


def _compare_with_manifest(
    report: Report, manifest: Path, unit: Path, facts: Mapping[str, Any], names: Iterable[str]
) -> None:
    """That a unit is there if it has rows, and that its meta file says the same of it."""
    if not unit.exists():
        if facts["written"]:
            report.found(unit, f"is missing, and {manifest} says that it has {facts['written']:,} rows")
        return
    try:
        meta = atomic.read_meta(unit)
    except DamagedFileError:  # the check of the unit says so
        return
    if meta is not None:
        num_rows = meta.get("rows", meta["made_with"].get("rows"))
        wanted = {"written": num_rows, **{name: meta.get(name) for name in names}}
        if differences := sets.compare_records(facts, wanted):
            report.found(manifest, f"says of {unit} otherwise than its meta file: {differences}")


@dataclass(frozen=True)
class WindowChecker:
    """Looks at sets of windows."""

    tokenized_dir: Path

    def check_set(self, report: Report, folder: Path) -> bool:
        """Columns, names, and the numbers in `{domain}.rows.npy`."""
        before = len(report.findings)
        meta = atomic.read_meta(folder) or {"made_with": {}}
        made_with = meta["made_with"]
        if wrong := sets.compare_records(made_with, {"domain": folder.name, "split": folder.parent.name}):
            report.found(folder, f"is not where it was written: {wrong}")
        columns = mds.read_columns(folder)
        total, decoder, dtype = (made_with.get(name) for name in ("total_length", "decoder_length", "token_dtype"))
        if total and columns != {
            "domain": "str",
            "prev_token_ids": f"ndarray:{dtype}:{total - decoder}",
            "token_ids": f"ndarray:{dtype}:{decoder}",
        }:
            report.found(folder, f"has other columns than its meta file says: {columns}")
        try:
            with NpyRows(rows_path(folder), num_axes=2) as sources:
                numbers = sources.read(0, sources.size)
            if numbers.shape != (mds.num_rows(folder), 2):
                report.found(rows_path(folder), f"has the shape {list(numbers.shape)}, not two numbers for every row")
            elif len(numbers) and not 0 <= numbers[:, 0].min() <= numbers[:, 0].max() < len(meta["source_files"]):
                report.found(rows_path(folder), f"names files beyond the {len(meta['source_files'])} of the meta file")
            elif len(same := _same_as_before(numbers)):
                report.found(folder, "comes from the same place as another row", int(same[0]))
        except (DamagedFileError, FileNotFoundError) as error:
            report.found(rows_path(folder), str(error))
        return len(report.findings) == before

    def groups(self, folder: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Rows of the same token file, in the order of their positions."""
        with NpyRows(rows_path(folder), num_axes=2) as sources:
            numbers = sources.read(0, sources.size)[rows]
        order = np.lexsort((numbers[:, 1], numbers[:, 0]))
        for group in np.split(order, np.flatnonzero(np.diff(numbers[order, 0])) + 1) if len(order) else ():
            yield from sets.groups_in_order(rows[group])

    def check_rows(self, folder: Path, rows: np.ndarray) -> sets.Result:
        """Look at rows of one token file, in the order of their positions."""
        meta, result = atomic.read_meta(folder), sets.Result()
        assert meta is not None
        with NpyRows(rows_path(folder), num_axes=2) as sources:
            file_number = int(sources.read(int(rows[0]), int(rows[0]) + 1)[0, 0])
            positions = np.array([sources.read(row, row + 1)[0, 1] for row in rows.tolist()])
        source = SourceDocuments.open(self.tokenized_dir, meta, meta["source_files"][file_number], result)
        if source is None:
            return result
        is_inside = meta["made_with"]["kind"] == "inside documents"
        windows = mds.Rows(folder)
        with source:
            places = dict(zip(rows.tolist(), source.find(positions), strict=True))
            for number, row in sets.read_ids(windows, rows.tolist(), result):
                place, ids = places[number], np.concatenate([row["prev_token_ids"], row["token_ids"]])
                if row["domain"] != folder.name:
                    result.findings.append((number, f"says that its domain is {row['domain']!r}"))
                what = source.describe_difference(place, ids, is_inside)
                if what:
                    result.findings.append((number, what))
                result.num_compared += 1
        return result


def _same_as_before(numbers: np.ndarray) -> np.ndarray:
    """The rows, int64 [n], whose file number and position, int64 [rows, 2], a row before them has too."""
    order = np.lexsort((numbers[:, 1], numbers[:, 0]))
    is_same = (numbers[order][1:] == numbers[order][:-1]).all(axis=1)
    return np.sort(order[1:][is_same])


@dataclass(frozen=True)
class Place:
    """Where a window starts: a position, its document, and the position at which that ends. No document: nowhere."""

    position: int
    document: int | None = None
    document_stop: int = 0


class SourceDocuments:
    """The documents of one token file, and which of them are of a split; use as a context manager."""

    def __init__(self, tokens: SampledFile, made_with: atomic.Meta) -> None:
        self._tokens, self.split = tokens, made_with.get("split", "retrieval")
        self._splits = Splits(made_with["seed"], made_with["test_fraction"], made_with.get("train_fraction", 0.0))

    @classmethod
    def open(cls, folder: Path, meta: atomic.Meta, source: str, result: sets.Result) -> SourceDocuments | None:
        """The documents of the token file of `source`; None, and why, if it is not there or not the one it was."""
        path = folder / corpus.token_path(source)
        if not path.exists():
            result.warnings.append(f"{path} is not there: rows from it are not compared (--tokenized_dir)")
            return None
        command = "python sanity_check.py duplicates" if "drop_duplicates" in meta["made_with"] else None
        tokens = SampledFile(path, command)
        made_by = read_tokenizer(path, tokens.meta).fingerprint if tokens.meta else None
        if None not in {made_by, meta.get("tokenizer")} and made_by != meta["tokenizer"]:
            tokens.__exit__()
            what = f"comes from {path}, which another tokenizer has made since ({made_by}, not {meta['tokenizer']})"
            result.findings.append((None, what))
            return None
        return cls(tokens, meta["made_with"])

    def __enter__(self) -> SourceDocuments:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.__exit__()

    def find(self, positions: np.ndarray) -> list[Place]:
        """The documents at positions, int64 [n], ascending."""
        places, done = [Place(int(position)) for position in positions], 0
        done = int(np.searchsorted(positions, self._tokens.tokens_start))
        for first, start, lengths, _ in self._tokens.document_blocks():
            ends = start + np.cumsum(lengths)
            until = int(np.searchsorted(positions, ends[-1])) if len(ends) else done
            for index in range(done, until):
                document = int(np.searchsorted(ends, positions[index], "right"))
                places[index] = Place(int(positions[index]), first + document, int(ends[document]))
            done = max(done, until)
        return places

    def describe_difference(self, place: Place, ids: np.ndarray, is_inside: bool) -> str:
        """What is wrong with a window that is said to start there; empty if nothing."""
        path = self._tokens.path
        if place.document is None:
            return f"comes from position {place.position:,} of {path}, where no document is"
        if (split := self.split_of(place)) != self.split:
            return f"comes from document {place.document} of {path}, which is of {split or 'no split, a copy'}"
        wanted = self.inside(place, len(ids)) if is_inside else self.concatenated(place, len(ids))
        if len(wanted) < len(ids):
            return f"has {len(ids)} tokens, only {len(wanted)} are there from position {place.position:,} of {path} on"
        if not np.array_equal(wanted, ids):
            first = int(np.argmax(wanted != ids))
            return f"is not what stands at position {place.position:,} of {path}: they differ from token {first} on"
        return ""

    def split_of(self, place: Place) -> str:
        """The split of the document; empty for a copy that was to be dropped."""
        assert place.document is not None
        length = self._tokens.lengths(place.document, place.document + 1)
        hashes = self._tokens.hashes(place.document, place.document_stop - int(length[0]), length)
        dropped = self._tokens.dropped([place.document], [place.document + 1])
        if dropped is not None and dropped[0]:
            return ""
        return SPLITS[int(self._splits.assign(hashes)[0])]

    def inside(self, place: Place, length: int) -> np.ndarray:
        """At most `length` ids of the document from the place on."""
        return self._tokens.tokens(place.position, min(place.position + length, place.document_stop))

    def concatenated(self, place: Place, length: int) -> np.ndarray:
        """At most `length` ids from the place on, of documents of the split."""
        pieces = [self.inside(place, length)]
        missing = length - len(pieces[0])
        assert place.document is not None
        document, position = place.document + 1, place.document_stop
        while missing and document < self._tokens.num_documents:
            stop = min(document + DOCUMENTS_AT_ONCE, self._tokens.num_documents)
            lengths = self._tokens.lengths(document, stop)
            dropped = self._tokens.dropped([document], [stop])
            hashes = self._tokens.hashes(document, position, lengths)
            is_mine = self._splits.contains(self.split, hashes, dropped).tolist()
            for start, end, mine in zip(*_borders(position, lengths), is_mine, strict=True):
                if mine and missing:
                    pieces.append(self._tokens.tokens(start, min(end, start + missing)))
                    missing -= len(pieces[-1])
            document, position = stop, position + int(lengths.sum())
        return np.concatenate(pieces)


def _borders(position: int, lengths: np.ndarray) -> tuple[list[int], list[int]]:
    ends = (position + np.cumsum(lengths)).tolist()
    return [position, *ends[:-1]], ends


def check_passages(report: Report, args: argparse.Namespace, paths: list[Path]) -> int:
    """Check the files of the retrieval corpus; returns how many passages were compared with the token files."""
    saved = args.tokenized_dir / "tokenizer"
    identity = tokenizers.saved_identity(saved)
    decode = tokenizers.make_decoder((saved / "tokenizer.json").read_text(encoding="utf-8")) if identity else None
    num_compared = 0
    with cli.progress_bar(len(paths), "file", "checking passages") as bar:
        for path in paths:
            try:
                num_compared += PassageFileCheck(report, args, path, identity, decode).run()
            except (DamagedFileError, FileNotFoundError) as error:
                report.found(path, str(error))
            bar.update()
    return num_compared


class PassageFileCheck:
    """The check of one file of the retrieval corpus."""

    def __init__(
        self,
        report: Report,
        args: argparse.Namespace,
        path: Path,
        identity: tokenizers.TokenizerIdentity | None,
        decode: tokenizers.Decoder | None,
    ) -> None:
        self._report, self._args, self._path, self._identity, self._decode = report, args, path, identity, decode
        self._num_findings = 0

    def run(self) -> int:
        """Check it; returns how many passages were compared with the token files."""
        path, deep = self._path, self._args.deep
        meta = atomic.read_meta(path)
        if meta is None:
            self._report.found(path, f"has no {atomic.meta_path(path).name}: nothing says what made it")
            return 0
        if lost := atomic.lost_files(path, meta):
            self._report.found(lost[0], "is gone, or has not the size that it was written with")
            return 0
        if deep and not atomic.is_intact(path, meta):
            self._report.found(path, "is not what was written: its hash differs from the meta file")
        manifest = json.loads(path.with_name("manifest.json").read_text(encoding="utf-8"))
        source_files = manifest["sets"][path.stem]["source_files"]
        num_lines, num_compared = 0, 0
        for first, records in self._records(deep):
            num_lines += len(records)
            num_compared += self._check_records(first, records, meta, source_files)
        if deep and num_lines != meta["rows"]:
            self._report.found(path, f"has {num_lines:,} lines, its meta file says {meta['rows']:,}")
        return num_compared

    def _records(self, deep: bool) -> Iterator[tuple[int | None, list[tuple[str, Any]]]]:
        """Passages with where they stand, all of them (with the number of the first) or a sample."""
        import orjson

        def parse(line: bytes) -> Any:
            try:
                return orjson.loads(line)
            except ValueError:
                return None

        if not deep:
            name = f"{self._path.parent.name}/{self._path.name}"
            draw = np.random.default_rng([self._args.seed, int(keyed.key(name))])
            if self._args.rows:
                sample = dict(sample_lines(self._path, self._args.rows, draw))
                yield None, [(f"at byte {start}", parse(line)) for start, line in sample.items() if line]
            return
        with self._path.open("rb") as file:
            number = 0
            while lines := file.readlines(16 << 20):
                yield number, [(f"in line {number + n + 1}", parse(line)) for n, line in enumerate(lines)]
                number += len(lines)

    def _found(self, where: str, what: str) -> None:
        self._num_findings += 1
        if self._num_findings <= sets.MAX_FINDINGS:
            self._report.found(self._path, f"the passage {where} {what}")

    def _check_records(
        self, first: int | None, records: list[tuple[str, Any]], meta: atomic.Meta, source_files: list[str]
    ) -> int:
        """Ids, shapes and texts of passages, and that they stand where they say; how many were found there."""
        prefix, chunk_size = f"{self._path.stem}_{meta['made_with']['shard_id']}_", meta["made_with"]["chunk_size"]
        by_file: dict[int, list[tuple[str, Mapping[str, Any]]]] = {}
        for row, (where, record) in enumerate(records):
            try:
                number = record["id"].removeprefix(prefix)
                if not record["id"].startswith(prefix) or not 0 <= int(number) < meta["rows"]:
                    raise ValueError(f"has the id {record['id']}")
                if first is not None and int(number) != first + row:
                    raise ValueError(f"has the id {record['id']}, not {prefix}{first + row}")
                if len(record["contents_token_ids"]) != chunk_size:
                    raise ValueError(f"has {len(record['contents_token_ids'])} ids, not {chunk_size}")
                by_file.setdefault(int(record["file"]), []).append((where, record))
                self._check_texts(record, meta)
            except (TypeError, KeyError, AttributeError) as error:
                self._found(where, f"is no record of a passage ({error!r})")
            except ValueError as error:
                self._found(where, str(error))
        num_compared = 0
        for file_number, of_file in sorted(by_file.items()):
            result = sets.Result()
            if not 0 <= file_number < len(source_files):
                self._found(of_file[0][0], f"names file {file_number}, of {len(source_files)}")
                continue
            described = {**meta, "tokenizer": meta["made_with"].get("tokenizer")}
            source = SourceDocuments.open(self._args.tokenized_dir, described, source_files[file_number], result)
            for warning in result.warnings:
                cli.warn(warning)
            for _, what in result.findings:
                self._found(of_file[0][0], what)
            if source is not None:
                with source:
                    num_compared += self._compare(source, of_file, chunk_size)
        return num_compared

    def _check_texts(self, record: Mapping[str, Any], meta: atomic.Meta) -> None:
        """Raise ValueError unless the ids are of the vocabulary, and the texts are theirs."""
        ids = [np.asarray(record[f"{name}_token_ids"], np.int64) for name in ("contents", "neighbor")]
        together, vocab_size = np.concatenate(ids), meta.get("vocab_size") or 1 << 31
        if together.min() < 0 or together.max() >= vocab_size:
            raise ValueError(f"has ids outside of 0 … {vocab_size - 1}")
        if self._decode and self._identity and self._identity.fingerprint == meta["made_with"].get("tokenizer"):
            texts = self._decode(together.astype(np.int32), np.array(list(map(len, ids))))
            for name, text in zip(("contents", "neighbor"), texts, strict=True):
                if record[name] != text:
                    raise ValueError(f"has a {name!r} that is not the text of its ids")

    def _compare(self, source: SourceDocuments, records: list[tuple[str, Mapping[str, Any]]], chunk_size: int) -> int:
        records = sorted(records, key=lambda one: one[1]["position"])
        places = source.find(np.array([record["position"] for _, record in records]))
        for (where, record), place in zip(records, places, strict=True):
            ids = np.array(record["contents_token_ids"])
            if what := source.describe_difference(place, ids, is_inside=True):
                self._found(where, what)
            elif not np.array_equal(source.inside(place, 2 * chunk_size)[chunk_size:], record["neighbor_token_ids"]):
                self._found(where, "has a neighbor that does not follow it in its document")
        return len(records)
