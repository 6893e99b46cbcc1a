"""From token files to sampled windows: count documents and windows, sample rows, read them.

The inventory reads headers, lengths and hashes only. Row n of (domain, split) is window π(n), π a keyed permutation of
the windows available, so a smaller request is a prefix of a larger one. Windows are read in file order. Of each row,
only the 24 bytes of its PLAN are kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import xxhash

from cepe_data import cli
from cepe_data.corpus import listing
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.samples.splits import SPLITS, Splits
from cepe_data.samples.windows import KeyedPermutation, Windows
from cepe_data.storage import provenance
from cepe_data.tokens import duplicates
from cepe_data.tokens.token_file import TokenFile

_ROWS_AT_ONCE = 1 << 18
_DOCUMENTS_AT_ONCE = 1 << 18
_BRIDGED_TOKENS = 1 << 14
# A plan is an array of this dtype: where each row's window is. `file` is the number of the file in the domain,
# `document` that in which the window starts, `last_document` that in which it ends; `offset` counts tokens from the
# start of `document`, `position` is that of the first token in the file's array.
PLAN = np.dtype(
    [("file", "i4"), ("document", "i4"), ("last_document", "i4"), ("offset", "i4"), ("position", "i8")],
)


class SampledFile(TokenFile):
    """A token file as a domain sees it. No split has documents of other domains, where documents say theirs, and none
    has duplicates of earlier documents if `mark_command` is given, the command that marks them. Raises as `TokenFile`
    and `duplicates.DuplicateBits`."""

    def __init__(self, path: Path, mark_command: str | None, domain: str | None = None) -> None:
        super().__init__(path)
        self._bits = duplicates.DuplicateBits(path, self.num_documents, mark_command) if mark_command else None
        self._number = self.domain_names.index(domain) if domain and self.domain_names else None

    def __enter__(self) -> SampledFile:
        return self

    def close(self) -> None:
        super().close()
        if self._bits is not None:
            self._bits.close()

    @property
    def version(self) -> object:
        return super().version, self._bits and self._bits.version

    def dropped(self, starts: Iterable[int], stops: Iterable[int]) -> np.ndarray | None:
        """bool [documents]: which documents of the ranges [start, stop), one after the other, belong to no split; None
        if all belong to one."""
        ranges = list(zip(starts, stops, strict=True))
        dropped = None
        if self._number is not None:
            dropped = np.concatenate([self.domain_numbers(*one) for one in ranges]) != self._number
        if self._bits is not None:
            is_duplicate = np.concatenate([self._bits.read(*one) for one in ranges])
            dropped = is_duplicate if dropped is None else is_duplicate | dropped
        return dropped


@dataclass(frozen=True)
class Tokens:
    """The token files of a run.

    files:        by domain, in sorted order of their source's path; a file of several domains under each
    vocab_size, fingerprint: of their tokenizer; None if they were made elsewhere
    mark_command: the command that marks duplicates of documents, if these are to be dropped
    num_tokens:   by domain, where meta files tell
    mixed:        the files among which duplicates of all domains that stand in files of several domains are marked;
                  those of other domains are marked among the files of the domain
    """

    files: Mapping[str, list[listing.ListedFile]]
    folder: Path
    vocab_size: int | None
    fingerprint: str | None
    mark_command: str | None = None
    num_tokens: Mapping[str, int] = field(default_factory=dict)
    mixed: Sequence[listing.ListedFile] = ()
    _versions: dict[str, object] = field(default_factory=dict)

    def marked_with(self, domain: str) -> Sequence[listing.ListedFile]:
        """The files among which the duplicates of a domain are marked."""
        files = self.files[domain]
        return self.mixed if files and files[0] in self.mixed else files

    def open(self, file: listing.ListedFile, domain: str | None = None) -> SampledFile:
        """Open a token file, as `domain` sees it.

        Raises:
            DamagedFileError: as `SampledFile`, and if it is not the file that this run opened before.
            ArgumentError: if duplicates are to be dropped, and are not marked.
        """
        token_file = SampledFile(self.folder / file.token_file, self.mark_command, domain)
        if self._versions.setdefault(file.path, token_file.version) != token_file.version:
            raise DamagedFileError(f"{token_file.path} was replaced while this run read it: run the same command again")
        return token_file


@dataclass(frozen=True)
class Inventory:
    """The documents and windows of a domain.

    fingerprint:   changes with any byte of any token file, and with their paths
    document_hash: splits go by the hash of a document's `text`, or of its `tokens` if token files were made elsewhere
    documents:     by split, their number
    windows:       by split, int64 [files]: the number of windows of each file
    duplicates:    a fingerprint of what marks the duplicates that were left out; None if none were
    """

    fingerprint: str
    document_hash: str
    documents: Mapping[str, int]
    windows: Mapping[str, np.ndarray]
    duplicates: str | None = None

    def available(self, split: str) -> int:
        """Windows of the split."""
        return int(self.windows[split].sum())

    @property
    def rule(self) -> dict[str, object]:
        """For provenance: how documents come to their splits, but for the arguments of `Splits`."""
        return {"document_hash": self.document_hash, **({"drop_duplicates": True} if self.duplicates else {})}

    @property
    def inputs(self) -> dict[str, object]:
        """For provenance: the fingerprints of what is read."""
        return {"token_files": self.fingerprint, **({"duplicates": self.duplicates} if self.duplicates else {})}


def inventory(tokens: Tokens, splits: Splits, windows: Mapping[str, Windows]) -> dict[str, Inventory]:
    """Count documents and windows of every domain, for each split of `windows`.

    Raises:
        DamagedFileError: if a token file is damaged.
        ArgumentError: if only some of them have hashes of texts: duplicates of a text could be in two splits; or if
            duplicates are to be dropped, and are not marked, or were marked when the domain had other token files.
    """
    by_path: dict[str, tuple[listing.ListedFile, list[str]]] = {}
    for domain, files in tokens.files.items():
        for file in files:
            by_path.setdefault(file.path, (file, []))[1].append(domain)
    without_hashes: list[Path] = []
    digests = {domain: xxhash.xxh3_64() for domain in tokens.files}
    counts: dict[str, list[FileCounts]] = {domain: [] for domain in tokens.files}
    with cli.progress_bar(len(by_path), "file", "inventory") as bar:
        for path, (file, domains) in sorted(by_path.items()):  # each once, however many domains it has
            by_domain: Mapping[str, FileCounts] = {}
            meta = provenance.Meta() if windows else provenance.read_meta(tokens.folder / file.token_file)
            fingerprint: object = meta.files
            if not meta:  # else nothing is counted, and the meta file identifies the token file
                with tokens.open(file) as token_file:
                    if not token_file.has_text_hashes:
                        without_hashes.append(token_file.path)
                    fingerprint, by_domain = _count_file(token_file, splits, windows, domains)
            for domain in domains:
                digests[domain].update(json.dumps([path, fingerprint], sort_keys=True).encode())
                counts[domain].append(by_domain.get(domain, {}))
            bar.update()
    document_hash = "tokens" if without_hashes else "text"
    inventories = {}
    for domain, files_of in counts.items():
        documents = {split: sum(of_file[split][0] for of_file in files_of) for split in windows}
        num_windows = {split: np.array([of_file[split][1] for of_file in files_of], np.int64) for split in windows}
        inventories[domain] = Inventory(digests[domain].hexdigest(), document_hash, documents, num_windows)
    if without_hashes:
        what = f"{len(without_hashes)} of {len(by_path)} token files have no hashes of texts (made elsewhere?), such as"
        if len(without_hashes) < len(by_path):
            raise ArgumentError(
                f"{what} {without_hashes[0]}: duplicates of a text could be in test and in train. Make these with "
                f"tokenize_jsonl.py"
            )
        cli.warn(f"{what} {without_hashes[0]}: their documents go to splits by the hash of the tokens")
    if not tokens.mark_command:
        return inventories
    bits = {domain: duplicates.made_with(one.fingerprint, one.document_hash) for domain, one in inventories.items()}
    if mixed := [domain for domain, files in tokens.files.items() if tokens.marked_with(domain) is not files]:
        bits |= dict.fromkeys(mixed, bits_made_with(tokens, mixed[0]))
    for domain, one in inventories.items():
        paths = [tokens.folder / file.token_file for file in tokens.files[domain]]
        marks = duplicates.fingerprint(paths, bits[domain], tokens.mark_command)
        inventories[domain] = replace(one, duplicates=marks)
    return inventories


def bits_made_with(tokens: Tokens, domain: str) -> provenance.Provenance:
    """The provenance of the bits that mark the duplicates of a domain: all files among which they are marked."""
    whole = replace(tokens, files={domain: list(tokens.marked_with(domain))}, mark_command=None, _versions={})
    one = inventory(whole, Splits(0, 0.0, 0.0), {})[domain]  # what identifies the files, no split
    return duplicates.made_with(one.fingerprint, one.document_hash)


FileCounts = Mapping[str, tuple[int, int]]  # split → documents, windows


def _count_file(
    token_file: SampledFile, splits: Splits, windows: Mapping[str, Windows], domains: Sequence[str]
) -> tuple[object, dict[str, FileCounts]]:
    """What identifies the content of a token file; and by domain, the documents and windows of each split."""
    content = xxhash.xxh3_64()
    documents, indices = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    blocks = token_file.document_blocks() if windows or not token_file.meta else ()
    for first_document, _, lengths in blocks:
        stop = first_document + len(lengths)
        hashes = token_file.hashes(first_document, stop)
        if not token_file.meta:
            content.update(lengths.data)
            content.update(hashes.data)
        assigned = splits.assign(hashes, token_file.dropped([first_document], [stop]))
        names = token_file.domain_names
        numbers = token_file.domain_numbers(first_document, stop) if names else None
        for split, cut in windows.items():
            of_split = assigned == SPLITS.index(split)
            for domain in domains:
                chosen = lengths[of_split if numbers is None else of_split & (numbers == names.index(domain))]
                documents[split, domain] += len(chosen)
                indices[split, domain] += int(cut.num_indices(chosen).sum())
    fingerprint = token_file.meta.files if token_file.meta else content.hexdigest()
    return fingerprint, {
        domain: {
            split: (documents[split, domain], cut.available(indices[split, domain])) for split, cut in windows.items()
        }
        for domain in domains
    }


@dataclass(frozen=True)
class WindowSource:
    """The windows of one (domain, split); `inventory` is that of the domain."""

    tokens: Tokens
    domain: str
    split: str
    splits: Splits
    windows: Windows
    inventory: Inventory

    @property
    def counts(self) -> np.ndarray:
        """int64 [files]: the number of windows of each file."""
        return self.inventory.windows[self.split]

    def _open(self, number: int) -> SampledFile:
        """A file of the domain by its number."""
        return self.tokens.open(self.tokens.files[self.domain][number], self.domain)

    def sample(self, start: int, stop: int) -> np.ndarray:
        """PLAN [stop - start]: rows [start, stop) in sampling order."""
        plan = np.empty(stop - start, PLAN)
        permutation = KeyedPermutation(f"{self.splits.seed}/{self.domain}/{self.split}", int(self.counts.sum()))
        windows = np.empty(len(plan), np.int64)
        for first in range(0, len(plan), _ROWS_AT_ONCE):
            rows = np.arange(start + first, min(start + first + _ROWS_AT_ONCE, stop))
            windows[first : first + len(rows)] = permutation(rows)
        order = np.argsort(windows)  # windows are numbered file by file
        windows = windows[order]
        first = 0
        for number, end in enumerate(np.cumsum(self.counts)):
            until = int(np.searchsorted(windows, end))
            if until > first:
                rows = order[first:until]
                plan["file"][rows] = number
                with self._open(number) as token_file:
                    self._locate(token_file, windows[first:until] - (end - self.counts[number]), rows, plan)
            first = until
        return plan

    def _locate(self, token_file: SampledFile, windows: np.ndarray, rows: np.ndarray, plan: np.ndarray) -> None:
        """Write into these rows of the plan where the windows of a file are; `windows`, int64 [rows], are sorted."""
        first_indices, last_indices = self.windows.first_index(windows), self.windows.last_index(windows)
        indices_before = starts_found = ends_found = 0
        for first_document, first_position, lengths in token_file.document_blocks():
            stop_document = first_document + len(lengths)
            hashes = token_file.hashes(first_document, stop_document)
            dropped = token_file.dropped([first_document], [stop_document])
            num_indices = self.windows.num_indices(lengths) * self.splits.contains(self.split, hashes, dropped)
            ends = np.cumsum(num_indices)
            ends += indices_before
            until = int(np.searchsorted(first_indices, ends[-1]))
            if until > starts_found:
                found = slice(starts_found, until)
                document = np.searchsorted(ends, first_indices[found], "right")
                offset = self.windows.offset(first_indices[found] - (ends[document] - num_indices[document]))
                document_start = first_position + np.cumsum(lengths)[document] - lengths[document]
                plan["document"][rows[found]] = first_document + document
                plan["offset"][rows[found]] = offset
                plan["position"][rows[found]] = document_start + offset
                starts_found = until
            until = int(np.searchsorted(last_indices, ends[-1]))
            if until > ends_found:
                found = slice(ends_found, until)
                document = np.searchsorted(ends, last_indices[found], "right")
                plan["last_document"][rows[found]] = first_document + document
                ends_found = until
            if ends_found == len(rows):
                return
            indices_before = int(ends[-1])
        raise _changed(token_file)

    def by_file(self, plan: np.ndarray) -> Iterator[tuple[SampledFile, np.ndarray]]:
        """Each file that the plan needs, opened, with the plan's rows in it by position."""
        order = np.lexsort((plan["position"], plan["file"]))
        for rows in np.split(order, np.flatnonzero(np.diff(plan["file"][order])) + 1):
            if len(rows):
                with self._open(int(plan["file"][rows[0]])) as token_file:
                    yield token_file, rows

    def read(self, plan: np.ndarray, columns: Sequence[np.ndarray]) -> None:
        """Write the windows of a plan, in its order, into `columns`, integers [rows, tokens] each: the first has the
        first tokens of each window, the next those that follow.

        Raises:
            DamagedFileError: if an id is outside of the vocabulary, or does not fit the columns.
        """
        highest = min(int(np.iinfo(column.dtype).max) for column in columns)
        boundaries = np.cumsum([0, *(column.shape[1] for column in columns)]).tolist()
        pieces = [(column, slice(*boundary)) for column, boundary in zip(columns, pairwise(boundaries), strict=True)]
        for token_file, rows in self.by_file(plan):
            is_split = plan["document"][rows] != plan["last_document"][rows]
            whole = self._whole(token_file, plan, rows[~is_split])
            for row, ids in chain(whole, self._joined(token_file, plan, rows[is_split])):
                self.check(token_file, ids, highest)
                for column, piece in pieces:
                    column[row] = ids[piece]

    def _whole(self, token_file: TokenFile, plan: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Rows with their ids, for windows inside one document."""
        starts, length = plan["position"][rows], self.windows.total_length
        token_file.will_need_tokens(starts, starts + length)
        for row, start in zip(rows.tolist(), starts.tolist(), strict=True):
            yield row, token_file.tokens(start, start + length)

    def check(self, token_file: TokenFile, ids: np.ndarray, highest: int) -> None:
        """Check ids that were read from a file.

        Raises:
            DamagedFileError: if one is outside of the vocabulary (where that is known), or above `highest`.
        """
        if self.tokens.vocab_size is not None:
            highest = min(highest, self.tokens.vocab_size - 1)
        # As unsigned numbers, so that negative ones are high: one pass instead of two.
        if (ids.view(ids.dtype.str.replace("i", "u")) if ids.dtype.kind == "i" else ids).max() > highest:
            wrong = int(ids[(ids < 0) | (ids > highest)][0])
            raise DamagedFileError(
                f"{token_file.path} has the id {wrong}, outside of 0 … {highest}: see sanity_check.py, or choose a "
                f"larger --token_dtype"
            )

    def _joined(self, token_file: SampledFile, plan: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Rows, sorted by position, with their ids, for windows over several documents. The array is used again."""
        if not len(rows):
            return
        window = np.empty(self.windows.total_length, token_file.dtype)
        num_documents = plan["last_document"][rows].astype(np.int64) - plan["document"][rows] + 1
        batch = np.cumsum(num_documents) // _DOCUMENTS_AT_ONCE
        for group in np.split(rows, np.flatnonzero(np.diff(batch)) + 1):
            row, start, length, target = self._pieces(token_file, plan, group)
            is_new_window = np.diff(row, prepend=-1) != 0
            is_new_read = is_new_window | (np.diff(start, prepend=0) - np.roll(length, 1) > _BRIDGED_TOKENS)
            # Documents of other splits are read along where they are short: one call of the system costs more.
            first_of_read = np.flatnonzero(is_new_read)
            last_of_read = np.append(first_of_read[1:], len(row)) - 1
            read_starts, read_stops = start[first_of_read], (start + length)[last_of_read]
            token_file.will_need_tokens(read_starts, read_stops)
            reads = zip(read_starts.tolist(), read_stops.tolist(), strict=True)
            pieces = zip(row.tolist(), start.tolist(), length.tolist(), target.tolist(), is_new_read, strict=True)
            for in_window, piece_start, piece_length, piece_target, is_first in pieces:
                if is_first:
                    read_start, read_stop = next(reads)
                    ids = token_file.tokens(read_start, read_stop)
                position = piece_start - read_start
                window[piece_target : piece_target + piece_length] = ids[position : position + piece_length]
                if piece_target + piece_length == len(window):
                    yield in_window, window

    def _pieces(
        self, token_file: SampledFile, plan: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The pieces of documents that make up windows over several documents: row, position in the file, length, and
        place in the window of each, int64 [pieces], in the order of `rows` and in the windows' order."""
        lengths_of, hashes_of = [], []
        first_documents, stop_documents = plan["document"][rows], plan["last_document"][rows] + 1
        offsets = plan["offset"][rows].astype(np.int64)
        first_positions = plan["position"][rows] - offsets  # of the first document of each window
        token_file.will_need_documents(first_documents, stop_documents)
        for first, stop, position in zip(
            first_documents.tolist(), stop_documents.tolist(), first_positions.tolist(), strict=True
        ):
            lengths_of.append(token_file.lengths(first, stop))
            hashes_of.append(token_file.hashes(first, stop, position))
        num_documents = np.fromiter(map(len, lengths_of), np.int64, len(rows))
        windows = np.repeat(np.arange(len(rows)), num_documents)
        dropped = token_file.dropped(first_documents.tolist(), stop_documents.tolist())
        is_in_split = self.splits.contains(self.split, np.concatenate(hashes_of), dropped)
        window, start, length, target = cut_pieces(
            windows, np.concatenate(lengths_of), is_in_split, offsets, self.windows.total_length
        )
        if (np.bincount(window, length, len(rows)) != self.windows.total_length).any():
            raise _changed(token_file)
        return rows[window], first_positions[window] + start, length, target


def cut_pieces(
    windows: np.ndarray, lengths: np.ndarray, is_in_split: np.ndarray, offsets: np.ndarray, total_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut windows from the concatenation of documents, of which those of other splits are skipped.

    Args:
        windows: int64 [documents], ascending: the window of each document.
        lengths: int64 [documents]; is_in_split: bool [documents].
        offsets: int64 [windows], tokens from the start of its first document to each window.

    Returns the window of each piece; its start, counted from the start of the window's first document; its length; and
    its place in the window: int64 [pieces] each.

    Documents of 5, 3 and 4 tokens, the second of another split: the window of 6 tokens from token 2 on has 3 tokens of
    the first document and, from token 8 on, 3 of the third.

    >>> in_split = np.array([True, False, True])
    >>> pieces = cut_pieces(np.array([0, 0, 0]), np.array([5, 3, 4]), in_split, np.array([2]), total_length=6)
    >>> [numbers.tolist() for numbers in pieces]
    [[0, 0], [2, 8], [3, 3], [0, 3]]
    """
    first_of_window = np.flatnonzero(np.diff(windows, prepend=-1))

    def before(numbers: np.ndarray) -> np.ndarray:
        """Of each document: the sum over the documents before it in its window."""
        sums = np.cumsum(numbers) - numbers
        return sums - sums[first_of_window][windows]

    kept = lengths * is_in_split
    kept_before = before(kept) - offsets[windows]  # so that 0 is the first token of the window
    target = np.maximum(kept_before, 0)
    length = np.minimum(kept_before + kept, total_length) - target
    start = before(lengths) + target - kept_before
    is_piece = length > 0
    return windows[is_piece], start[is_piece], length[is_piece], target[is_piece]


def _changed(token_file: TokenFile) -> DamagedFileError:
    return DamagedFileError(f"{token_file.path} changed while it was being sampled: run the same command again")
