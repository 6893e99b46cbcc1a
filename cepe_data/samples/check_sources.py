"""Where windows and passages come from: the documents of a token file, and which of them belong to a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cepe_data.corpus import listing
from cepe_data.samples.reader import SampledFile
from cepe_data.samples.splits import SPLITS, Splits
from cepe_data.storage import provenance, verify
from cepe_data.tokens import duplicates
from cepe_data.tokens.token_file import Place

DOCUMENTS_AT_ONCE = 64


class SourceDocuments(SampledFile):
    """A token file, and which of its documents belong to a split."""

    def __init__(self, path: Path, mark_command: str | None, made_with: provenance.Provenance) -> None:
        super().__init__(path, mark_command, made_with["domain"])
        self.split = made_with.get("split", "retrieval")
        self._splits = Splits(made_with["seed"], made_with["test_fraction"], made_with.get("train_fraction", 0.0))

    @classmethod
    def open(cls, folder: Path, meta: provenance.Meta, source: str, result: verify.Result) -> SourceDocuments | None:
        """The documents of the token file of `source`; None, and why, if it is not there or not the one it was."""
        path = folder / listing.token_path(source)
        if not path.exists():
            result.warnings.append(f"{path} is not there: rows from it are not compared (--tokenized_dir)")
            return None
        command = None
        if "drop_duplicates" in meta.made_with:
            command = "python sanity_check.py duplicates"
            sources = tuple(folder / listing.token_path(one) for one in meta["source_files"])
            if duplicates.present_fingerprint(sources) != meta.made_with["duplicates"]:
                what = f"duplicates are not marked in {path.parent} as they were when rows were sampled from there"
                result.warnings.append(f"{what}: these are not compared")
                return None
        source_file = cls(path, command, meta.made_with)
        made_by = source_file.tokenizer.fingerprint if source_file.tokenizer else None
        if None not in {made_by, meta.get("tokenizer")} and made_by != meta["tokenizer"]:
            source_file.close()
            what = f"comes from {path}, which another tokenizer has made since ({made_by}, not {meta['tokenizer']})"
            result.findings.append((None, what))
            return None
        return source_file

    def describe_difference(self, place: Place, ids: np.ndarray, is_inside: bool) -> str:
        """What is wrong with a window that is said to start there; empty if nothing."""
        if what := self.describe_wrong_place(place):
            return what
        expected = self.inside(place, len(ids)) if is_inside else self.concatenated(place, len(ids))
        where = f"position {place.position:,} of {self.path}"
        if len(expected) < len(ids):
            return f"has {len(ids)} tokens, only {len(expected)} are there from {where} on"
        if not np.array_equal(expected, ids):
            first = int(np.argmax(expected != ids))
            return f"is not what stands at {where}: they differ from token {first} on"
        return ""

    def describe_wrong_place(self, place: Place) -> str:
        """Why nothing of the split can start there; empty if it can."""
        if place.document is None:
            return f"comes from position {place.position:,} of {self.path}, where no document is"
        if (split := self.split_of(place)) != self.split:
            what = f"comes from document {place.document} of {self.path}"
            return f"{what}, which is of {split or 'another domain, or a duplicate'}"
        return ""

    def split_of(self, place: Place) -> str:
        """The split of the document; empty for one of another domain, and for a dropped duplicate."""
        assert place.document is not None
        hashes = self.hashes(place.document, place.document + 1)
        dropped = self.dropped([place.document], [place.document + 1])
        if dropped is not None and dropped[0]:
            return ""
        return SPLITS[int(self._splits.assign(hashes)[0])]

    def inside(self, place: Place, length: int) -> np.ndarray:
        """At most `length` ids of the document from the place on."""
        return self.tokens(place.position, min(place.position + length, place.stop))

    def concatenated(self, place: Place, length: int) -> np.ndarray:
        """At most `length` ids from the place on, of documents of the split."""
        pieces = [self.inside(place, length)]
        missing = length - len(pieces[0])
        assert place.document is not None
        document, position = place.document + 1, place.stop
        while missing and document < self.num_documents:
            stop = min(document + DOCUMENTS_AT_ONCE, self.num_documents)
            lengths = self.lengths(document, stop)
            dropped = self.dropped([document], [stop])
            hashes = self.hashes(document, stop)
            is_in_split = self._splits.contains(self.split, hashes, dropped).tolist()
            for length_of_document, is_next in zip(lengths.tolist(), is_in_split, strict=True):
                if is_next and missing:
                    pieces.append(self.tokens(position, position + min(length_of_document, missing)))
                    missing -= len(pieces[-1])
                position += length_of_document
            document = stop
        return np.concatenate(pieces)
