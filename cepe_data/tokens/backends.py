"""The tokenizer backends: libraries that encode, and the check that one gives a tokenizer's own ids.

The reference of a tokenizer is the library that defines it: sentencepiece where it has a SentencePiece model, else
tokenizers. Any other backend is used only if it equals the reference at the start of a run, so the backend never
changes a byte.

Text is text: special tokens (`special: true` in tokenizer.json, control symbols of SentencePiece, BOS and EOS) are not
looked for, so a literal `<s>` in a document is three characters. Added tokens that are ordinary text are found.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cepe_data import cli
from cepe_data.errors import ArgumentError
from cepe_data.tokens.sentencepiece_models import BYTE_PIECE, LLAMA_DECODER, SPACE
from cepe_data.tokens.tokenizers import TokenizerFiles, hidden_pieces, read_content, read_library

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

BACKENDS = ("gigatoken", "tokenizers", "sentencepiece")  # fastest first
HARD_TEXTS = (
    "",
    " ",
    "  leading, trailing and   many     spaces  ",
    "\n\n\ttabs\r\n and lines\u2028\u0085",
    "<s> </s> <unk> <|endoftext|> [INST] <0x0A>",
    "nul \0, bell \a, escape \x1b, delete \x7f",
    "\u2581 \u2581\u2581low\u2581er\u2581",
    "e\u0301 a\u0308\u0323 \u200d \ufeff \ufffd \ufb01 Ⅷ ½",
    "日本語 中文 한국어 العربية हिन्दी ไทย",
    "😀 👩‍👩‍👧 🇫🇷 \U0010ffff",
    "3.14159 1234567890 0xdeadbeef",
    "".join(chr(code) for code in range(1, 0x250)),
    "a" * 5000,
    " " * 5000 + "\n" * 5000,
    "".join(chr(0x4E00 + 7 * number % 20000) for number in range(3000)),
)
_NUM_GENERATED_TEXTS = 500
_COMPARED_TEXTS = 128  # at once
_CODE_POINTS_PER_TEXT = 256
_ASSIGNED = (range(0x40000), range(0xE0000, 0xE0200))  # the other planes are private or empty
_SURROGATES = range(0xD800, 0xE000)
_TABLE_FREE_NORMALIZERS = {"Prepend", "Replace"}
_UNREACHABLE = "\U0010fffd" * 32  # a character without a meaning, as often as no text has it
_SOURCE_LOCATION = re.compile(r"\s+Location:\s.*", re.DOTALL)  # what the report of a Rust error ends with


class Encoder(Protocol):
    """What a backend does: texts → (ids int32 [total], number of ids of each text int64 [texts]). Ids count from 0; BOS
    and EOS are not added."""

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]: ...


class Decoder(Protocol):
    """Back to text: (ids int32 [total], number of ids of each text int64 [texts]) → texts."""

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> list[str]: ...


# -- choosing a backend ------------------------------------------------------------------------------------------------


def reference_backend(tokenizer: TokenizerFiles) -> str:
    """The backend whose ids are right by definition."""
    return "tokenizers" if tokenizer.sentencepiece_model is None else "sentencepiece"


def choose_backend(tokenizer: TokenizerFiles, requested: str | None, documents: Sequence[str]) -> str:
    """The fastest backend that gives the tokenizer's own ids, or the requested one.

    Each candidate is compared with the reference on hard and generated texts, on all assigned characters where Unicode
    tables have a say, and on `documents`. What one cannot do is left to the next, and one line says why.

    Raises:
        ArgumentError: if the requested one cannot be used.
    """
    reference = reference_backend(tokenizer)
    is_installed = importlib.util.find_spec("gigatoken") is not None
    candidates = [requested] if requested else [name for name in BACKENDS if name != "gigatoken" or is_installed]
    texts: list[str] = []
    reasons: list[str] = []
    for backend in candidates:
        try:
            encode = make_encoder(backend, tokenizer)
            if backend != reference:
                texts = texts or [*HARD_TEXTS, *generated_texts(tokenizer), *documents]
                check_same_ids(backend, encode, make_encoder(reference, tokenizer), texts)
        except ArgumentError as error:
            if requested:
                raise
            reasons.append(str(error))
            continue
        check_boundaries_unambiguous(tokenizer, encode)
        if reasons:
            cli.say(f"the backend is {backend}: {'; '.join(reasons)}")
        return backend
    raise AssertionError("the reference can always be used")


def check_boundaries_unambiguous(tokenizer: TokenizerFiles, encode: Encoder) -> None:
    """Raise ArgumentError if a document may get the id of BOS or EOS: in some vocabularies pieces make its text, it is
    an ordinary piece, or it is the id of unknown characters."""
    identity, decode = tokenizer.identity, make_decoder(tokenizer, keep_special_tokens=True)
    for key, name, number in (
        ("bos_token", tokenizer.bos, identity.bos_id),
        ("eos_token", tokenizer.eos, identity.eos_id),
    ):
        if name is None or number is None:
            continue
        texts = [*HARD_TEXTS, *map(chr, range(1, 0x250))]
        for text in (name, *decode(np.array([number]), np.array([1]))):
            texts = [text, f" {text} ", f"a{text}a", f"a {text} a", *texts]
        for text, ids in zip(texts, _split(*encode(texts)), strict=True):
            if number in ids:
                raise ArgumentError(
                    f"the text {text[:40]!r} in a document gets the id {number} of {key}, so that it cannot be told "
                    f"from the boundary of a document: name another {key} in tokenizer_config.json"
                )


def check_same_ids(backend: str, encode: Encoder, reference: Encoder, texts: Sequence[str]) -> None:
    """Raise ArgumentError, with the text, if a backend gives other ids than the reference for any text."""
    for start in range(0, len(texts), _COMPARED_TEXTS):
        batch = texts[start : start + _COMPARED_TEXTS]
        of_batch = (_split(*encode(batch)), _split(*reference(batch)))
        for text, ids, expected in zip(batch, *of_batch, strict=True):
            if ids != expected:
                pairs = zip(ids, expected, strict=False)
                differing = (index for index, (one, other) in enumerate(pairs) if one != other)
                first = next(differing, min(len(ids), len(expected)))
                raise ArgumentError(
                    f"{backend} gives other ids than the library that defines this tokenizer, from token {first} on, "
                    f"for the text {text[:200]!r}{'…' if len(text) > 200 else ''}"
                )


def generated_texts(tokenizer: TokenizerFiles) -> list[str]:
    """Texts that a tokenizer's own pieces and added tokens make, in seeded random order; and, if it splits text by
    classes of characters, every assigned character beside letters, digits and spaces."""
    rng = random.Random(0)
    content = read_content(tokenizer.tokenizer_json or "{}")
    names = map(make_piece_names(tokenizer), range(tokenizer.identity.vocab_size))
    pieces = [name.replace(SPACE, " ") for name in names if name]
    added = [token["content"] for token in content.get("added_tokens", ())]
    texts = []
    for _ in range(_NUM_GENERATED_TEXTS):
        parts = rng.choices(pieces, k=rng.randrange(1, 12)) + rng.choices(added or [" "], k=rng.randrange(3))
        rng.shuffle(parts)
        texts.append("".join(parts))
    if content.get("pre_tokenizer") or (content.get("normalizer") and not _is_table_free(content["normalizer"])):
        characters = [chr(code) for code in itertools.chain(*_ASSIGNED) if code not in _SURROGATES]
        for start in range(0, len(characters), _CODE_POINTS_PER_TEXT):
            block = characters[start : start + _CODE_POINTS_PER_TEXT]
            texts.append("\n".join(f"a{one}1{one} {one}" for one in block))
    return texts


def _is_table_free(normalizer: Mapping[str, Any]) -> bool:
    """Whether a normaliser changes text without tables of Unicode, whose versions differ between libraries."""
    if normalizer["type"] == "Sequence":
        return all(_is_table_free(one) for one in normalizer["normalizers"])
    return normalizer["type"] in _TABLE_FREE_NORMALIZERS and "Regex" not in normalizer.get("pattern", {})


# -- encoders ----------------------------------------------------------------------------------------------------------


def make_encoder(backend: str, tokenizer: TokenizerFiles) -> Encoder:
    """The encoder of a backend, on one core. Imports its backend only.

    Raises:
        ArgumentError: if the backend is not installed, or cannot take this tokenizer.
    """
    makers: Mapping[str, Callable[[TokenizerFiles], Encoder]] = {
        "gigatoken": _gigatoken_encoder,
        "tokenizers": _tokenizers_encoder,
        "sentencepiece": _sentencepiece_encoder,
    }
    return makers[backend](tokenizer)


def _require_tokenizer_json(backend: str, tokenizer: TokenizerFiles) -> dict[str, Any]:
    if tokenizer.tokenizer_json is None:
        raise ArgumentError(
            f"{backend} cannot take this SentencePiece model, which no tokenizer.json describes exactly"
        )
    return read_content(tokenizer.tokenizer_json, {tokenizer.bos, tokenizer.eos})


def _gigatoken_encoder(tokenizer: TokenizerFiles) -> Encoder:
    try:
        from gigatoken.gigatoken_rs import load_hf_json
    except ImportError:
        raise ArgumentError("gigatoken is not installed: `pip install gigatoken`") from None
    content = _require_tokenizer_json("gigatoken", tokenizer)
    if not all(token["special"] for token in content["added_tokens"]):
        raise ArgumentError("gigatoken cannot take this tokenizer: it has added tokens that are ordinary text")
    if content["normalizer"] and not _is_table_free(content["normalizer"]):
        raise ArgumentError("gigatoken cannot take this tokenizer: it normalises with other Unicode tables")
    content.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    try:
        library = load_hf_json(json.dumps(content))
    except (ValueError, RuntimeError, OSError) as error:
        raise ArgumentError(f"gigatoken cannot take this tokenizer: {_SOURCE_LOCATION.sub('', str(error))}") from None

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if not texts:
            return _flatten([])
        with cli.Stopped.deferred():  # gigatoken takes what a signal raises for a want of awkward, and gives lists then
            encoded = library.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(encoded.offsets.data)
        ids = np.asarray(encoded.content.data)[offsets[0] : offsets[-1]]
        return ids.view(np.int32) if ids.dtype == np.uint32 else ids.astype(np.int32), np.diff(offsets)

    return encode


def _tokenizers_encoder(tokenizer: TokenizerFiles) -> Encoder:
    content = _require_tokenizer_json("tokenizers", tokenizer)
    _hide_special_pieces(content, hidden_pieces(content))
    content.update(post_processor=None, truncation=None, padding=None)
    library = read_library(json.dumps(content))
    library.encode_special_tokens = True  # as the ordinary text that they are in a document
    assert all(library.token_to_id(token["content"]) == token["id"] for token in content["added_tokens"])

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _flatten([encoding.ids for encoding in library.encode_batch_fast(list(texts), add_special_tokens=False)])

    return encode


def _hide_special_pieces(content: dict[str, Any], pieces: set[str]) -> None:
    """Rename these special tokens in the vocabulary of a tokenizer.json, so that no text reaches them. Their ids stay
    taken."""
    model, hidden = content["model"], {piece: _UNREACHABLE + piece for piece in pieces}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [(hidden.get(piece, piece), score) for piece, score in model["vocab"]]
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in hidden]


def _sentencepiece_encoder(tokenizer: TokenizerFiles) -> Encoder:
    if tokenizer.sentencepiece_model is None:
        raise ArgumentError("sentencepiece needs a SentencePiece model, and this tokenizer has none")
    processor = _processor(tokenizer)

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _flatten(processor.encode(list(texts), num_threads=1))

    return encode


def _processor(tokenizer: TokenizerFiles) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=tokenizer.sentencepiece_model)


def _flatten(id_lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, id_lists), np.int64, len(id_lists))
    parts = [np.asarray(ids, np.int32) for ids in id_lists]
    return (np.concatenate(parts) if parts else np.empty(0, np.int32)), lengths


def _split(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """The reverse of `_flatten`."""
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


# -- decoders ----------------------------------------------------------------------------------------------------------


def make_piece_names(tokenizer: TokenizerFiles) -> Callable[[int], str | None]:
    """id → the piece as the vocabulary has it; None for an id that it does not have."""
    if tokenizer.tokenizer_json is None:
        return _processor(tokenizer).id_to_piece
    return read_library(tokenizer.tokenizer_json).id_to_token


def make_decoder(tokenizer: TokenizerFiles, keep_special_tokens: bool = False) -> Decoder:
    """What gives the same texts as transformers' `decode` with `skip_special_tokens=True` and
    `clean_up_tokenization_spaces=False`; LLaMA's way by a table, which is faster. Without a tokenizer.json, what
    sentencepiece's `decode` gives."""
    if tokenizer.tokenizer_json is None:
        processor = _processor(tokenizer)
        decode = functools.partial(_decode_kept, processor) if keep_special_tokens else processor.decode
        return lambda ids, lengths: [decode(text) for text in _split(ids, lengths)]
    content = read_content(tokenizer.tokenizer_json)
    if content["decoder"] == LLAMA_DECODER and not keep_special_tokens:
        return _PieceTable(content)
    library = read_library(tokenizer.tokenizer_json)
    return lambda ids, lengths: library.decode_batch(_split(ids, lengths), skip_special_tokens=not keep_special_tokens)


def _decode_kept(processor: SentencePieceProcessor, ids: list[int]) -> str:
    """The text of ids with its special tokens, which sentencepiece leaves out."""
    runs = itertools.groupby(ids, processor.is_control)
    return "".join(
        "".join(map(processor.id_to_piece, run)) if is_control else processor.decode(list(run))
        for is_control, run in runs
    )


class _PieceTable:
    """LLaMA's decoder: ▁ is a space, byte pieces are bytes, special tokens are nothing, and a leading space goes.

    A run of byte pieces that is not UTF-8 becomes one U+FFFD per piece. All other pieces are whole characters, so the
    joined bytes are UTF-8 exactly if every run is, and only where they are not must the runs be looked at.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        pieces = {number: piece for piece, number in content["model"]["vocab"].items()}
        pieces |= {token["id"]: token["content"] for token in content["added_tokens"]}
        special = {token["id"] for token in content["added_tokens"] if token["special"]}
        self._bytes = np.full(max(pieces) + 1, b"", object)  # numpy gathers from it faster than a list comprehension
        self._is_byte = np.zeros(len(self._bytes), bool)
        self._is_nothing = np.ones(len(self._bytes), bool)
        for number, piece in pieces.items():
            if number in special:
                continue
            byte = BYTE_PIECE.fullmatch(piece)
            self._is_byte[number], self._is_nothing[number] = byte is not None, False
            self._bytes[number] = bytes.fromhex(byte[1]) if byte else piece.replace(SPACE, " ").encode()

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> list[str]:
        pieces, texts, start = self._bytes[ids].tolist(), [], 0
        for stop in np.cumsum(lengths).tolist():
            of_text = pieces[start:stop]
            try:
                text = b"".join(of_text).decode()
            except UnicodeDecodeError:
                text = self._decode_runs(ids[start:stop])
            texts.append(text.removeprefix(" "))
            start = stop
        return texts

    def _decode_runs(self, ids: np.ndarray) -> str:
        ids = ids[~self._is_nothing[ids]]
        pieces, texts, start = self._bytes[ids].tolist(), [], 0
        for stop in [*(np.flatnonzero(np.diff(self._is_byte[ids])) + 1).tolist(), len(pieces)]:
            try:
                texts.append(b"".join(pieces[start:stop]).decode())
            except UnicodeDecodeError:
                texts.append("\ufffd" * (stop - start))
            start = stop
        return "".join(texts)
