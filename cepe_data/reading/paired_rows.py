"""Windows, each with its teacher's targets and its retrieved passages, as tensors; and batches of them.

Columns have the names of docs/formats.md. Ids become int64, probabilities and scores float32: embeddings and losses do
not take the read-only int16 and float16 of the disk.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from cepe_data import cli
from cepe_data.errors import ArgumentError
from cepe_data.storage import mds, provenance, verify

TARGETS = ("target_prob", "target_index")
PASSAGES, NEIGHBORS, SCORES = "retrieved_token_ids", "retrieved_neighbor_token_ids", "retrieval_scores"
MAX_OPEN_FILES = 256  # of a process; most systems allow 1,024
EXPECTED_FOLDER = "the folder of the domain folders is expected, such as 8k_ab/train"


class PairedRows(Dataset[dict[str, Any]]):
    """Rows by number, those of the first domain first. Any number of processes may read, workers of a DataLoader among
    them, and memory does not grow with the number of rows.

    Args:
        rows_dir: the folder of the domain folders of a sampler: `8k_ab/train`.
        domains: one domain or several, in this order; all that `rows_dir` has by default.
        teacher_dir: adds `target_prob` and `target_index`: `8k_ab/train-logits-enc2048-dec2048-MODEL`.
        passages_dir: adds `retrieved_token_ids` and `retrieval_scores`: `RET/train`.
        num_contexts: how many contexts the end of `prev_token_ids` is cut into; by default all that fit, and 0 leaves
            the column out.
        context_size: tokens of a context; by default, `prev_token_ids` is not cut.
        num_decoder_tokens: the first of `token_ids` and of the targets; by default as many as there are targets for.
        num_passages: the best of the passages; all by default.
        with_neighbors: adds `retrieved_neighbor_token_ids`, whose parsing takes longer than all of the rest.

    An item has, with D = num_decoder_tokens, C = num_contexts, S = context_size, P = num_passages and K of `--topk`:
        token_ids                     int64 [D]
        prev_token_ids                int64 [C, S], or [tokens] where it is not cut
        target_prob, target_index     float32 [D, K + 1], int64 [D, K]
        retrieved_token_ids           int64 [P, chunk size]
        retrieved_neighbor_token_ids  P tensors int64 [tokens], of different lengths, which may be 0
        retrieval_scores              float32 [P]
        domain                        str; and what other columns the rows have

    Raises:
        ArgumentError: if a set is missing, belongs to other rows, or has fewer tokens or passages than asked for.
        DamagedFileError: if a set is damaged.
    """

    def __init__(
        self,
        rows_dir: str | Path,
        domains: str | Sequence[str] | None = None,
        *,
        teacher_dir: str | Path | None = None,
        passages_dir: str | Path | None = None,
        num_contexts: int | None = None,
        context_size: int | None = None,
        num_decoder_tokens: int | None = None,
        num_passages: int | None = None,
        with_neighbors: bool = False,
    ) -> None:
        if num_contexts and not context_size:
            raise ArgumentError(f"num_contexts={num_contexts} contexts of how many tokens? Pass context_size, too")
        if passages_dir is None and (num_passages is not None or with_neighbors):
            raise ArgumentError("num_passages and with_neighbors are of passages: pass passages_dir, too")
        self.domains = _chosen_domains(Path(rows_dir), domains)
        folders = [Path(one) for one in (rows_dir, teacher_dir, passages_dir) if one is not None]
        for folder in folders[1:]:
            _require_domains(folder, self.domains)
        max_open = max(1, MAX_OPEN_FILES // (len(folders) * len(self.domains)))
        self._sets = [
            _PairedSets.open(
                Path(rows_dir) / domain,
                Path(teacher_dir) / domain if teacher_dir is not None else None,
                Path(passages_dir) / domain if passages_dir is not None else None,
                _Cut(num_contexts, context_size, num_decoder_tokens, num_passages, with_neighbors),
                max_open,
            )
            for domain in self.domains
        ]
        self._ends = list(accumulate(len(one.rows) for one in self._sets))

    @property
    def folders(self) -> list[Path]:
        """The folders of the sets of windows, in the order of the domains."""
        return [one.rows.folder for one in self._sets]

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of every domain."""
        return {domain: len(one.rows) for domain, one in zip(self.domains, self._sets, strict=True)}

    @property
    def vocab_size(self) -> int | None:
        """The vocabulary size of the tokenizer; None if the meta files do not have it."""
        return next((size for one in self._sets if (size := one.meta.get("vocab_size"))), None)

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, index: int) -> tuple[str, int]:
        """The domain of a row, and its number there."""
        of_set, row = self._find(index)
        return self.domains[of_set], row

    def __getitem__(self, index: int) -> dict[str, Any]:
        of_set, row = self._find(index)
        return self._sets[of_set].item(row)

    def _find(self, index: int) -> tuple[int, int]:
        """The number of the domain of a row, and the number of the row there."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self):,} rows, and none has the number {index}")
        number = index % len(self)
        of_set = bisect_right(self._ends, number)
        return of_set, number - (self._ends[of_set - 1] if of_set else 0)


@dataclass(frozen=True)
class _Cut:
    """The selected part of the columns; see `PairedRows`."""

    num_contexts: int | None
    context_size: int | None
    num_decoder_tokens: int | None
    num_passages: int | None
    with_neighbors: bool


@dataclass(frozen=True)
class _PairedSets:
    """The sets of one domain. `slices` selects a part of a column, along its first axis."""

    meta: provenance.Meta
    rows: mds.Rows
    others: tuple[mds.Rows, ...]
    slices: Mapping[str, slice]
    context_size: int | None

    @classmethod
    def open(
        cls, rows_dir: Path, teacher_dir: Path | None, passages_dir: Path | None, cut: _Cut, max_open: int
    ) -> _PairedSets:
        """Open the sets of one domain. Raises as `PairedRows`."""
        columns = mds.read_columns(rows_dir)
        left_out = {"prev_token_ids"} if cut.num_contexts == 0 else set()
        rows = mds.Rows(rows_dir, columns.keys() - left_out, max_open)
        slices: dict[str, slice] = {}
        num_tokens = cut.num_decoder_tokens
        if cut.num_contexts != 0 and cut.context_size:
            slices |= _context_slices(rows_dir, columns, cut.num_contexts, cut.context_size)
        others = []
        if teacher_dir is not None:
            _check_pair(rows_dir, teacher_dir, len(rows), passages_dir)
            num_targets = _length(teacher_dir, mds.read_columns(teacher_dir), "target_index")
            num_tokens = _at_most(num_targets, num_tokens, "num_decoder_tokens", f"targets in {teacher_dir}")
            slices |= dict.fromkeys(TARGETS, slice(num_tokens))
            others.append(mds.Rows(teacher_dir, TARGETS, max_open))
        if passages_dir is not None:
            _check_pair(rows_dir, passages_dir, len(rows), None)
            num_found = _length(passages_dir, mds.read_columns(passages_dir), PASSAGES)
            number = _at_most(num_found, cut.num_passages, "num_passages", f"passages of a row in {passages_dir}")
            names = (PASSAGES, SCORES, *[NEIGHBORS] * cut.with_neighbors)
            slices |= dict.fromkeys(names, slice(number))
            others.append(mds.Rows(passages_dir, names, max_open))
        length = _length(rows_dir, columns, "token_ids")
        slices["token_ids"] = slice(_at_most(length, num_tokens, "num_decoder_tokens", f"token_ids in {rows_dir}"))
        return cls(provenance.read_meta(rows_dir), rows, tuple(others), slices, cut.context_size)

    def item(self, number: int) -> dict[str, Any]:
        """Row `number` as tensors."""
        row = self.rows[number]
        for one in self.others:
            row |= one[number]
        item = {name: _as_tensors(value[self.slices[name]] if name in self.slices else value)
                for name, value in row.items()}  # fmt: skip
        if "prev_token_ids" in self.slices:
            item["prev_token_ids"] = item["prev_token_ids"].view(-1, self.context_size)
        return item


def collate(rows: Sequence[Mapping[str, Any]], pad_id: int = 0) -> dict[str, Any]:
    """A batch of rows of PairedRows or of a StreamingDataset: arrays and tensors are stacked, ids as int64 and other
    numbers as float32; lists of lists of ids, of different lengths, are padded.

    Returns:
        For lists of lists such as `retrieved_neighbor_token_ids`: int64 [batch, lists, longest], and
        `retrieved_neighbor_mask`, bool of the same shape, True for ids and False for padding. Other values are lists
        [batch].
    """
    batch: dict[str, Any] = {}
    for name in rows[0]:
        values = [_as_tensors(row[name]) for row in rows]
        if isinstance(values[0], torch.Tensor):
            batch[name] = torch.stack(values)
        elif _are_lists_of_ids(values):
            batch[name], batch[f"{name.removesuffix('_token_ids')}_mask"] = _padded(values, pad_id)
        else:
            batch[name] = values
    return batch


def _padded(rows: Sequence[Sequence[torch.Tensor]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 and bool [rows, lists, longest]: ids padded with `pad_id`, and which of them are not padding."""
    num_lists, longest = max(map(len, rows)), max((len(ids) for row in rows for ids in row), default=0)
    padded = torch.full((len(rows), num_lists, longest), pad_id)
    mask = torch.zeros(padded.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        for place, ids in enumerate(row):
            padded[number, place, : len(ids)] = ids
            mask[number, place, : len(ids)] = True
    return padded, mask


def _as_tensors(value: Any) -> Any:
    """Arrays and lists of lists of ids as writable tensors, int64 or float32; other values unchanged."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.float32 if value.dtype.kind == "f" else np.int64))
    if isinstance(value, list) and all(isinstance(ids, list) and {int}.issuperset(map(type, ids)) for ids in value):
        return [torch.tensor(ids, dtype=torch.int64) for ids in value]
    return value


def _are_lists_of_ids(values: Sequence[Any]) -> bool:
    """Whether values of `_as_tensors` were lists of lists of ids, of which some may be empty."""
    tensors = [ids for value in values for ids in (value if isinstance(value, list) else [value])]
    return bool(tensors) and all(isinstance(one, torch.Tensor) for one in tensors)


def _chosen_domains(rows_dir: Path, domains: str | Sequence[str] | None) -> list[str]:
    """The requested domains. Raises ArgumentError if one is missing."""
    if (rows_dir / mds.INDEX_NAME).exists():
        raise ArgumentError(f"{rows_dir} is the folder of one domain: {EXPECTED_FOLDER}")
    if domains is None:
        return [folder.name for folder in verify.find_sets(rows_dir)]
    chosen = [domains] if isinstance(domains, str) else list(domains)
    if not chosen or len({*chosen}) < len(chosen):
        raise ArgumentError(f"domains={chosen}: at least one is expected, and each once")
    _require_domains(rows_dir, chosen)
    return chosen


def _require_domains(folder: Path, domains: Sequence[str]) -> None:
    """Raise ArgumentError if a domain has no set in a folder. It names the domains that have one."""
    there = [one.name for one in verify.find_sets(folder)]
    if missing := [domain for domain in domains if domain not in there]:
        common = [domain for domain in domains if domain in there]
        remedy = f"make it, or read the others with domains={common}" if common else f"it has {', '.join(there)}"
        raise ArgumentError(
            f"{folder} has no set of {', '.join(missing)} (where a share is less than a row, none is written): {remedy}"
        )


def _check_pair(rows_dir: Path, other: Path, num_rows: int, passages_dir: Path | None) -> None:
    """Raise ArgumentError unless, by its provenance, row i of `other` was made from row i of `rows_dir`, and, if a
    teacher read passages, from those of `passages_dir`. Without meta files only the numbers of rows are compared."""
    if (number := mds.num_rows(other)) != num_rows:
        raise ArgumentError(f"{other} has {number:,} rows, {rows_dir} has {num_rows:,}: they do not belong together")
    of_rows, of_other = provenance.read_meta(rows_dir), provenance.read_meta(other)
    if not of_rows or not of_other:
        cli.warn(f"nothing says whether {other} was made from the rows of {rows_dir}: their numbers agree")
        return
    made_with = of_other.made_with
    if made_with.get("input") != mds.fingerprint(rows_dir):
        raise ArgumentError(
            f"{other} was made from other rows than those of {rows_dir}: pass the folder it was made from, or make it "
            f"again"
        )
    of_passages = made_with.get("retrieval_input")
    if passages_dir is not None and of_passages is not None and of_passages != mds.fingerprint(passages_dir):
        raise ArgumentError(f"the teacher of {other} read other passages than those of {passages_dir}")


def _context_slices(
    folder: Path, columns: Mapping[str, str], num_contexts: int | None, context_size: int
) -> dict[str, slice]:
    """Slices of the end of `prev_token_ids` that is cut into contexts, and of their scores, if there are any."""
    num_there = _length(folder, columns, "prev_token_ids") // context_size
    if not num_there or (num_contexts or 0) > num_there:
        raise ArgumentError(
            f"num_contexts={num_contexts} of context_size={context_size} tokens are more than the "
            f"{_length(folder, columns, 'prev_token_ids'):,} of prev_token_ids in {folder}"
        )
    number = num_contexts or num_there
    slices = {"prev_token_ids": slice(-number * context_size, None)}
    if "context_scores" in columns:
        if (num_scores := _length(folder, columns, "context_scores")) != num_there:
            raise ArgumentError(
                f"{folder} has the scores of {num_scores} contexts of a row, and context_size={context_size} makes "
                f"{num_there}: pass the context_size that was scored"
            )
        slices["context_scores"] = slice(-number, None)
    return slices


def _length(folder: Path, columns: Mapping[str, str], name: str) -> int:
    """The first axis of a column of arrays."""
    try:
        return mds.column_array(columns[name])[1][0]
    except (KeyError, ValueError):
        raise ArgumentError(f"{folder} has no arrays {name}, only {', '.join(columns)}: {EXPECTED_FOLDER}") from None


def _at_most(available: int, requested: int | None, argument: str, what: str) -> int:
    if requested is not None and not 1 <= requested <= available:
        raise ArgumentError(f"{argument}={requested}: there are {available} {what}")
    return available if requested is None else requested
