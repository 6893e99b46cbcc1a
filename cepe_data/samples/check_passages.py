"""The check of the retrieval corpus: ids, texts, and that passages are in the token files where they say.

40 bytes a passage of a file are kept until all of its lines are read; then each token file is read once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cepe_data import hashing
from cepe_data.errors import DamagedFileError
from cepe_data.samples.check_sources import SourceDocuments
from cepe_data.storage import provenance, verify
from cepe_data.storage.report import Report
from cepe_data.tokens import backends, tokenizers
from cepe_data.tokens.check_file import sample_lines

LINES_BYTES = 16 << 20
# What of a passage is compared with the token files: file number and position, hashes of its ids and of its neighbor's.
# `where` names it in a finding: the number of its line, or the byte at which that begins.
PASSAGE = np.dtype([("where", "i8"), ("file", "i8"), ("position", "i8"), ("hash", "u8"), ("neighbor_hash", "u8")])


def check_passages(report: Report, effort: verify.Effort, tokenized_dir: Path, paths: list[Path]) -> int:
    """Check the files of the retrieval corpus; returns how many passages were compared with the token files."""
    jobs = [(path, np.empty(0, np.int64)) for path in verify.check_files(report, effort, paths)]
    return verify.check_on_all_cores(report, effort, PassageChecker(effort, tokenized_dir).check, jobs, "file")


@dataclass(frozen=True)
class PassageChecker:
    """Checks a file of the retrieval corpus."""

    effort: verify.Effort
    tokenized_dir: Path

    @cached_property
    def _decoder(self) -> tuple[str, backends.Decoder] | None:
        """The fingerprint of the saved tokenizer, and its decoder."""
        saved = self.tokenized_dir / "tokenizer"
        with contextlib.suppress(DamagedFileError):  # reported by the check of the token files
            if identity := tokenizers.saved_identity(saved):
                return identity.fingerprint, backends.make_decoder(tokenizers.read_saved(saved))
        return None

    def check(self, path: Path, _: np.ndarray) -> verify.Result:
        """Check its lines, or a sample of them."""
        meta, result = provenance.read_meta(path), verify.Result()
        blocks, num_lines = [], 0
        for lines in self._lines(path, meta["rows"]):
            blocks.append(self._check_lines(path, lines, meta, result))
            num_lines += len(lines)
        if self.effort.deep and num_lines != meta["rows"]:
            result.findings.append((None, f"has {num_lines:,} lines, its meta file says {meta['rows']:,}"))
        if blocks:
            self._compare(np.concatenate(blocks), meta, result)
        return result

    def _lines(self, path: Path, num_rows: int) -> Iterator[list[tuple[int, bytes]]]:
        """All lines, each with its number; or a sample of them, each with the byte at which it begins."""
        if self.effort.deep:
            with path.open("rb") as file:
                number = 1
                while lines := file.readlines(LINES_BYTES):
                    yield list(enumerate(lines, number))
                    number += len(lines)
        elif sample_size := min(self.effort.rows, num_rows):
            rng = np.random.default_rng([self.effort.seed, int(hashing.key(f"{path.parent.name}/{path.name}"))])
            sample = dict(sample_lines(path, sample_size, rng))  # each line once
            yield [(start, line) for start, line in sample.items() if line]

    def _describe_place(self, where: int) -> str:
        return f"the passage {'in line' if self.effort.deep else 'at byte'} {where}"

    def _check_lines(
        self, path: Path, lines: list[tuple[int, bytes]], meta: provenance.Meta, result: verify.Result
    ) -> np.ndarray:
        """Check ids, shapes and texts of passages; returns those without a finding, PASSAGE [n]."""
        import orjson

        prefix, right = f"{path.stem}_{meta['made_with']['shard_id']}_", []
        for where, line in lines:
            try:
                record = orjson.loads(line)
                number = int(record["id"].removeprefix(prefix))
                if not record["id"].startswith(prefix) or not 0 <= number < meta["rows"]:
                    raise ValueError(f"has the id {record['id']}")
                if self.effort.deep and number != where - 1:
                    raise ValueError(f"has the id {record['id']}, not {prefix}{where - 1}")
                right.append((where, *self._check_record(record, meta)))
            except (TypeError, KeyError, AttributeError, orjson.JSONDecodeError) as error:
                what = f"is not a record of a passage ({error!r})"
                result.findings.append((None, f"{self._describe_place(where)} {what}"))
            except ValueError as error:
                result.findings.append((None, f"{self._describe_place(where)} {error}"))
        return np.array(right, PASSAGE)

    def _check_record(self, record: Mapping[str, Any], meta: provenance.Meta) -> tuple[int, int, int, int]:
        """File number, position and hashes of a passage.

        Raises:
            ValueError: if its ids cannot be right, its texts are not those of the ids, or its file does not exist.
        """
        ids = [np.array(record[f"{name}_token_ids"], np.int64) for name in ("contents", "neighbor")]
        chunk_size, vocab_size = meta.made_with["chunk_size"], meta.get("vocab_size") or 1 << 31
        if len(ids[0]) != chunk_size or len(ids[1]) > chunk_size:
            raise ValueError(f"has {len(ids[0])} ids and {len(ids[1])} behind them, not {chunk_size} and at most that")
        together = np.concatenate(ids)
        if together.min() < 0 or together.max() >= vocab_size:
            raise ValueError(f"has ids outside of 0 … {vocab_size - 1}")
        if self._decoder and self._decoder[0] == meta.made_with.get("tokenizer"):
            texts = self._decoder[1](together.astype(np.int32), np.array(list(map(len, ids))))
            for name, text in zip(("contents", "neighbor"), texts, strict=True):
                if record[name] != text:
                    raise ValueError(f"has a {name!r} that is not the text of its ids")
        file, position = int(record["file"]), int(record["position"])
        if not 0 <= file < len(meta["source_files"]) or not 0 <= position < 1 << 62:
            raise ValueError(f"comes from file {file} of {len(meta['source_files'])}, position {position}")
        return file, position, hash_ids(ids[0]), hash_ids(ids[1])

    def _compare(self, passages: np.ndarray, meta: provenance.Meta, result: verify.Result) -> None:
        """Compare passages, PASSAGE [n], with the token files, each of which is read once, in order of positions."""
        described = provenance.Meta(meta, tokenizer=meta.made_with.get("tokenizer"))
        chunk_size, passages = meta.made_with["chunk_size"], np.sort(passages, order=("file", "position"))
        for group in np.split(passages, np.flatnonzero(np.diff(passages["file"])) + 1) if len(passages) else ():
            name = meta["source_files"][int(group["file"][0])]
            source = SourceDocuments.open(self.tokenized_dir, described, name, result)
            if source is None:
                continue
            with source:
                for passage, place in zip(group, source.find(group["position"]), strict=True):
                    what = source.describe_wrong_place(place)
                    if not what:
                        ids = source.inside(place, 2 * chunk_size)
                        if hash_ids(ids[:chunk_size]) != passage["hash"]:
                            what = f"is not what stands at position {place.position:,} of {name}"
                        elif hash_ids(ids[chunk_size:]) != passage["neighbor_hash"]:
                            what = "has a neighbor that does not follow it in its document"
                    if what:
                        result.findings.append((None, f"{self._describe_place(passage['where'])} {what}"))
            result.num_compared += len(group)


def hash_ids(ids: np.ndarray) -> int:
    """xxh3_64 of ids, int [n], as int32."""
    return xxhash.xxh3_64_intdigest(ids.astype(np.int32).data)
