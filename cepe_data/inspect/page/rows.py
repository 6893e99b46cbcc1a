"""Some rows of every set as text, as page.js shows them:

    {"set": 3, "row": 17, "source": ["source: …"], "texts": [{"title": "prev_token_ids", "tokens": 512,
     "segments": [["", "plain text"], ["border", "</s>"], ["cut", 312], ["shared", "…"], ["token", " the", 4]]}, …],
     "expected": [{"p": 0.31, "rank": 2, "rest": 0.05, "best": [[" a", 0.4], …]}, …]}

A `border` is the BOS or EOS of a document. A `cut` stands for so many tokens that are left out. `shared` is a part of a
passage that the row has, too. A `token` has the number of what the teacher expects after it. The text of the corpus is
data here, never markup: the page gets it as JSON, and puts it into text nodes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli
from cepe_data.errors import ArgumentError
from cepe_data.inspect import show
from cepe_data.inspect.check_all import ANNOTATED, RETRIEVED
from cepe_data.inspect.page.summary import ShownSet, failure_found
from cepe_data.samples.spans import SpanSampler
from cepe_data.storage import mds, provenance, verify
from cepe_data.storage.report import Report
from cepe_data.teacher.inputs import context_and_tokens
from cepe_data.tokens import backends, tokenizers
from cepe_data.tokens.piece_texts import PieceTexts, make_piece_texts

MAX_ROWS = 600  # of all sets
MAX_BYTES = 6 << 20  # of all rows as JSON, so that the page stays below 10 MB
EDGE_TOKENS = 384  # shown on both sides of the boundary between context and decoder, and of what is annotated
FAR_TOKENS = 96  # shown at the other end of a text that is cut
BEST = 5
SHARED_TOKENS = 8  # the length of a span that is marked in a passage

Segment = tuple[str, Any] | tuple[str, str, int]


@dataclass(frozen=True)
class Texts:
    """What a tokenizer makes of ids."""

    pieces: PieceTexts
    name_of: Callable[[int], str | None]
    markers: Mapping[int | None, str]  # BOS and EOS

    @classmethod
    def of(cls, name: str | None, tokenized_dir: Path, fingerprint: str | None) -> Texts:
        """Those of the tokenizer that made the tokens of a set. Raises as `tokenizers.find`."""
        tokenizer = tokenizers.find(name, tokenized_dir, fingerprint)
        identity = tokenizer.identity
        markers = {identity.bos_id: tokenizer.bos or "", identity.eos_id: tokenizer.eos}
        return cls(make_piece_texts(tokenizer), backends.make_piece_names(tokenizer), markers)

    def segments(self, ids: Sequence[int], shared: np.ndarray | None = None) -> Iterator[Segment]:
        """Ids as segments. `shared`: bool [tokens], which of them are marked."""
        kinds = ["border" if one in self.markers else "" for one in ids]
        if shared is not None:
            kinds = [kind or ("shared" if is_shared else "") for kind, is_shared in zip(kinds, shared, strict=True)]
        for kind, group in groupby(zip(kinds, self.of_documents(ids), strict=True), itemgetter(0)):
            pieces = [piece for _, piece in group]
            for whole in pieces if kind == "border" else ["".join(pieces)]:
                if whole:
                    yield kind, whole

    def of_documents(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; a character never goes on in another document."""
        texts: list[str] = []
        start = 0
        for stop, one in enumerate([*ids, None]):
            if one is None or one in self.markers:
                texts += self.pieces(ids[start:stop])
                texts += [] if one is None else [self.markers[one]]
                start = stop + 1
        return texts

    def of_token(self, one: int) -> str:
        """The text of a single token; of a part of a character, its name in the vocabulary."""
        [alone] = self.of_documents([one])
        return alone if alone and "\ufffd" not in alone else self.name_of(one) or alone


@dataclass
class Rows:
    """The rows that are shown, and where and how they are looked for."""

    tokenized_dir: Path
    tokenizer: str | None
    rows_of_set: int
    num_passages: int
    seed: int
    shown: list[dict[str, Any]] = field(default_factory=list)
    num_left_out: int = 0
    notes: list[str] = field(default_factory=list)  # why there are none of some sets
    _texts: dict[str | None, Texts | None] = field(default_factory=dict)  # by the fingerprint of the tokenizer

    def read(self, report: Report, sets: Sequence[ShownSet]) -> None:
        """Sample rows of every set, or of so many sets as the page has room for. What cannot be read is a finding."""
        numbers = verify.sample(len(sets), MAX_ROWS, self.seed, "sets").tolist()
        of_set = max(1, min(self.rows_of_set, MAX_ROWS // max(1, len(numbers)))) if self.rows_of_set else 0
        room = MAX_BYTES
        with cli.progress_bar(len(numbers), "set", "rows") as bar:
            for place, number in enumerate(numbers):
                with failure_found(report, sets[number].folder):
                    room -= self._read_set(number, sets[number], of_set, room // (len(numbers) - place))
                bar.update(1)

    def _read_set(self, number: int, one: ShownSet, num_rows: int, room: int) -> int:
        """Show some rows of a set, as many as have room; returns how many bytes they take as JSON."""
        texts, taken = self._texts_of(one), 0
        if texts is None:
            return 0
        with mds.Rows(one.folder) as rows, mds.Rows(one.source) if one.source else contextlib.nullcontext() as windows:
            for row in verify.sample(len(rows), num_rows, self.seed, str(one.folder)).tolist():
                content = self._row(one, row, rows[row], windows[row] if windows else {}, texts)
                size = size_on_page(content)
                if taken + size > room:
                    self.num_left_out += 1
                elif content:
                    taken += size
                    self.shown.append({"set": number, **content})
        return taken

    def _texts_of(self, one: ShownSet) -> Texts | None:
        """The tokenizer of a set; None, said once, where it is not there."""
        fingerprint = one.meta.get("tokenizer")
        if fingerprint is None and one.source is not None:
            fingerprint = provenance.read_meta(one.source).get("tokenizer")
        if fingerprint not in self._texts:
            self._texts[fingerprint] = None
            try:
                self._texts[fingerprint] = Texts.of(self.tokenizer, self.tokenized_dir, fingerprint)
            except ArgumentError as error:
                self.notes.append(f"No rows of {one.folder} and sets with the same tokenizer are shown: {error}.")
        return self._texts[fingerprint]

    def _row(
        self, one: ShownSet, number: int, row: Mapping[str, Any], window: Mapping[str, Any], texts: Texts
    ) -> dict[str, Any] | None:
        """A row; `window` is the one that it belongs to, where that is there. None without what a teacher read."""
        if one.kind == ANNOTATED and not window:
            return None
        source = [show.describe_source(one.tokens_of, number, self.tokenized_dir)] if one.tokens_of else []
        if one.kind == ANNOTATED:
            return {"row": number, "source": source, **annotated(one, row, window, texts)}
        if one.kind == RETRIEVED:
            return {"row": number, "source": source, "texts": list(self._retrieved(one, number, row, window, texts))}
        prev, ids = row["prev_token_ids"].tolist(), row["token_ids"].tolist()
        both = [
            text("context: prev_token_ids", prev, texts, FAR_TOKENS, EDGE_TOKENS),
            text("decoder: token_ids", ids, texts, EDGE_TOKENS, FAR_TOKENS),
        ]
        return {"row": number, "source": source, "texts": both}

    def _retrieved(
        self, one: ShownSet, number: int, row: Mapping[str, Any], window: Mapping[str, Any], texts: Texts
    ) -> Iterator[dict[str, Any]]:
        """The query, and the best passages of a row."""
        spans = np.empty(0, np.uint64)
        sampler = SpanSampler(SHARED_TOKENS)
        if window:
            query = window["token_ids"][: one.meta.get("query_tokens")]
            yield text("query: the beginning of token_ids", query.tolist(), texts, EDGE_TOKENS, FAR_TOKENS)
            whole = np.concatenate([window["prev_token_ids"], window["token_ids"]])
            spans, _ = sampler.sample(whole.astype(np.int32), np.array([len(whole)]))
        for title, ids in show.retrieved_passages(one.folder, number, row, self.num_passages):
            hashes, _ = sampler.sample(ids.astype(np.int32), np.array([len(ids)]))
            marked = np.zeros(len(ids), bool)
            for start in np.flatnonzero(np.isin(hashes, spans)).tolist():
                marked[start : start + SHARED_TOKENS] = True
            num_shared = np.count_nonzero(marked)
            yield {
                "title": f"{title}, {num_shared} of its tokens in spans of {SHARED_TOKENS} that the row has",
                "tokens": len(ids),
                "segments": list(texts.segments(ids.tolist(), marked)),
            }


def size_on_page(content: object) -> int:
    """Bytes of something as JSON in HTML, where a character that could be markup is an escape of 6."""
    whole = json.dumps(content, ensure_ascii=False)
    return len(whole.encode("utf-8", "replace")) + 5 * sum(map(whole.count, "<>&'"))


def text(title: str, ids: Sequence[int], texts: Texts, first: int, last: int) -> dict[str, Any]:
    """A text, of which the first and the last tokens are shown if it is long."""
    segments = list(texts.segments(ids[:first] if len(ids) > first + last else ids))
    if len(ids) > first + last:
        segments += [("cut", len(ids) - first - last), *texts.segments(ids[-last:])]
    return {"title": title, "tokens": len(ids), "segments": segments}


def annotated(one: ShownSet, row: Mapping[str, Any], window: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
    """The end of the context, and annotated tokens with what the teacher expects after each. Passages as context are in
    a set of their own."""
    ids, indices, prob = window["token_ids"].tolist(), row["target_index"], row["target_prob"].astype(np.float64)
    num_shown = min(len(indices), EDGE_TOKENS, len(ids))
    pieces = texts.of_documents(ids)
    segments: list[Segment] = [("token", piece, place) for place, piece in enumerate(pieces[:num_shown])]
    if num_left := len(ids) - num_shown:
        segments.append(("cut", num_left))
    following = [*ids[1:], None][:num_shown]
    expected = [
        expectation(*of_position, texts, one.num_samples > 0)
        for of_position in zip(following, indices, prob, strict=False)
    ]
    title = f"decoder: the first {num_shown:,} of {len(indices):,} annotated tokens of token_ids"
    shown: list[dict[str, Any]] = [{"title": title, "tokens": len(ids), "segments": segments}]
    if "num_encoder_tokens" in one.made_with:
        context, _ = context_and_tokens(one.made_with, window)
        shown.insert(0, text("context: the end of prev_token_ids", context.tolist(), texts, 0, FAR_TOKENS))
    else:
        shown[0]["title"] += f", behind {one.made_with.get('retrieval_k')} retrieved passages as context"
    return {"texts": shown, "expected": expected, "topk": indices.shape[1], "samples": one.num_samples}


def expectation(
    following: int | None, index: np.ndarray, prob: np.ndarray, texts: Texts, is_sampled: bool
) -> dict[str, Any]:
    """What the teacher expects after a token. Probabilities of samples are shares of the draws; a word without a share
    was not sampled.

    Args:
        following: the next id; None at the end of the row.
        index: int [topk], ids.
        prob: float64 [topk + 1], their probabilities, and the mass of the rest.
    """
    words = [(word, p) for word, p in zip(index.tolist(), prob.tolist(), strict=False) if p > 0 or not is_sampled]
    rank = next((place for place, (word, _) in enumerate(words) if word == following), None)
    return {
        "true": "" if following is None else texts.of_token(following),
        "rank": rank,
        "p": None if rank is None else rounded(words[rank][1]),
        "rest": rounded(prob[-1]),
        "best": [[texts.of_token(word), rounded(p)] for word, p in words[:BEST]],
    }


def rounded(probability: float) -> float | None:
    """With as many digits as float16 has; None for what is not a number, which JSON does not have."""
    return float(f"{probability:.4g}") if np.isfinite(probability) else None
