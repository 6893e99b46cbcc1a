"""The text of each single token, where a decoder gives the text of many at once."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cepe_data.tokens import backends
from cepe_data.tokens.sentencepiece_models import BYTE_PIECE, SPACE
from cepe_data.tokens.tokenizers import TokenizerFiles, read_content

PieceTexts = Callable[[Sequence[int]], list[str]]


def make_piece_texts(tokenizer: TokenizerFiles) -> PieceTexts:
    """Token ids → the text that each adds. A character of several tokens is the text of the last of them; bytes that
    are not UTF-8 are U+FFFD. Joined, they are what the decoder gives but for a space at the beginning, where the
    vocabulary has one, for the number of U+FFFD, and for unknown tokens, which have their names here."""
    kinds = set(_decoder_kinds(read_content(tokenizer.tokenizer_json)["decoder"] if tokenizer.tokenizer_json else None))
    if tokenizer.tokenizer_json and not kinds & {"ByteFallback", "ByteLevel"}:
        return _texts_of_pairs(tokenizer)
    bytes_of = _bytes_of_byte_level if "ByteLevel" in kinds else _bytes_of_byte_fallback
    name_of = backends.make_piece_names(tokenizer)

    def texts(ids: Sequence[int]) -> list[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces = [name_of(number) for number in ids]
        of_pieces = [decoder.decode(bytes_of(piece or f"[id {id}]")) for id, piece in zip(ids, pieces, strict=True)]
        return of_pieces[:-1] + [one + decoder.decode(b"", final=True) for one in of_pieces[-1:]]

    return texts


def _decoder_kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    for one in (decoder or {}).get("decoders", [decoder] if decoder else []):
        yield one["type"]


def _bytes_of_byte_fallback(piece: str) -> bytes:
    byte = BYTE_PIECE.fullmatch(piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(SPACE, " ").encode()


def _byte_level_table() -> dict[str, int]:
    """The character that stands for each byte in a vocabulary of byte-level BPE (`bytes_to_unicode` in encoder.py of
    https://github.com/openai/gpt-2): itself where it can be seen, else one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + place): byte for place, byte in enumerate(hidden)}


_BYTE_LEVEL = _byte_level_table()


def _bytes_of_byte_level(piece: str) -> bytes:
    if not all(character in _BYTE_LEVEL for character in piece):
        return piece.encode()  # an added token
    return bytes(_BYTE_LEVEL[character] for character in piece)


def _texts_of_pairs(tokenizer: TokenizerFiles) -> PieceTexts:
    """What each token adds to the one before it: the decoders of WordPiece and Unigram look at no more."""
    decode = backends.make_decoder(tokenizer, keep_special_tokens=True)

    def texts(ids: Sequence[int]) -> list[str]:
        if not ids:
            return []
        before = decode(np.array(ids, np.int32), np.ones(len(ids), np.int64))
        pairs = np.stack([ids[:-1], ids[1:]], axis=1).astype(np.int32).ravel()
        after = decode(pairs, np.full(len(ids) - 1, 2)) if len(ids) > 1 else []
        return [before[0], *(both.removeprefix(one) for one, both in zip(before, after, strict=False))]

    return texts
