"""Json lines → documents of ids, in worker processes: what travels to a worker, what comes back.

A batch is a list of segments, whole lines of one file each. Small files share batches, because a backend may cache
words and starts each batch with an empty cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from cepe_data import corpus, token_file, tokenizers
from cepe_data.tokenizers import Encoder, TokenizerIdentity

BATCH_BYTES = 8 << 20
_MAX_BATCH_SEGMENTS = 1024


@dataclass(frozen=True)
class Segment:
    """Some lines of a file on their way to a worker; the last one of a file is empty and may say why it ends there."""

    file: corpus.ListedFile
    first_line: int
    lines: bytes
    bytes_read: int
    is_last: bool = False
    failure: str = ""


@dataclass(frozen=True)
class EncodedSegment:
    """What a worker makes of a segment: ids int32 with BOS and EOS, lengths int64, hashes uint64, and the reports."""

    ids: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    skipped: corpus.LineReport
    mended: corpus.LineReport


class SegmentEncoder:
    """Encodes batches of segments in a worker. Small files share a batch: a backend's cache of words starts empty."""

    current: SegmentEncoder

    def __init__(self, encode: Encoder, identity: TokenizerIdentity, text_key: str) -> None:
        self._encode_texts, self._identity, self._text_key = encode, identity, text_key

    @classmethod
    def prepare(cls, backend: str, folder: Path, identity: TokenizerIdentity, text_key: str) -> None:
        """Make the encoder of this process."""
        cls.current = cls(tokenizers.make_encoder(backend, folder), identity, text_key)

    @staticmethod
    def encode(segments: Sequence[Segment]) -> list[EncodedSegment]:
        """Encode with the encoder of this process, one result a segment."""
        return SegmentEncoder.current._encode(segments)

    def _encode(self, segments: Sequence[Segment]) -> list[EncodedSegment]:
        parsed = [corpus.parse_documents(one.first_line, one.lines, self._text_key) for one in segments]
        texts = [text for of_segment, _, _ in parsed for text in of_segment]
        hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, texts), np.uint64, len(texts))
        ids, lengths = self._encode_texts(texts)
        ids, lengths = token_file.add_bos_eos(ids, lengths, self._identity.bos_id, self._identity.eos_id)
        encoded, document, position = [], 0, 0
        for of_segment, skipped, mended in parsed:
            stop = document + len(of_segment)
            end = position + int(lengths[document:stop].sum())
            encoded.append(
                EncodedSegment(ids[position:end], lengths[document:stop], hashes[document:stop], skipped, mended)
            )
            document, position = stop, end
        return encoded


def batch_segments(segments: Iterator[Segment]) -> Iterator[list[Segment]]:
    """Groups of consecutive segments of at least BATCH_BYTES, but for the last."""
    batch: list[Segment] = []
    for segment in segments:
        batch.append(segment)
        if count_bytes(batch) >= BATCH_BYTES or len(batch) >= _MAX_BATCH_SEGMENTS:
            yield batch
            batch = []
    if batch:
        yield batch


def count_bytes(segments: Sequence[Segment]) -> int:
    """Bytes of json lines."""
    return sum(len(segment.lines) for segment in segments)
