"""Tokenizers: one interface over the backends, the same ids from each, and a fingerprint that later steps compare.

Text is text: the added tokens of a tokenizer are taken out before encoding, so a literal `<s>` in a document is three
characters, never a control token. Ids count from 0; BOS and EOS are not added here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cepe_data import atomic, cli, hub, records
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BACKENDS = ("gigatoken", "transformers", "sentencepiece")
DEFAULT_TOKENIZER = "meta-llama/Llama-2-7b-hf"
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
_SENTENCEPIECE_NAME = "tokenizer.model"
_LLAMA_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Encoder(Protocol):
    """What a backend does: texts → (ids int32 [total], number of ids of each text int64 [texts])."""

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]: ...


class Decoder(Protocol):
    """Back to text: (ids int32 [total], number of ids of each text int64 [texts]) → texts."""

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> list[str]: ...


@dataclass(frozen=True)
class TokenizerIdentity:
    """What a token file says of its tokenizer. `vocab_size` is the highest id plus one, added tokens included; `bos_id`
    is None for a tokenizer without BOS."""

    fingerprint: str
    vocab_size: int
    bos_id: int | None
    eos_id: int

    def as_json(self) -> dict[str, Any]:
        """The identity as it stands in a meta file."""
        return {
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
        }


def load_pretrained(name: str) -> PreTrainedTokenizerFast:
    """The fast transformers tokenizer called `name`: a hub name, a folder with `tokenizer.json` or `tokenizer.model`,
    or a SentencePiece `.model` file.

    Raises:
        ArgumentError: if there is none, or its SentencePiece model is of a kind whose backends would differ.
    """
    from transformers import AutoTokenizer, LlamaTokenizerFast, PreTrainedTokenizerFast

    model = sentencepiece_model(name)
    if model and not (Path(name) / "tokenizer.json").exists():
        refuse_other_sentencepiece(model)
        # These two flags give the ids of the hub's LLaMA tokenizer: one ▁ before the text, no special case after it.
        return LlamaTokenizerFast(vocab_file=str(model), legacy=True, add_prefix_space=True)
    if not Path(name).exists():
        if name.endswith(".model") or name.startswith(("/", ".", "~")):
            raise ArgumentError(f"the tokenizer {name} is no file and no folder")
        hub.announce(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    except Exception as error:  # the tokenizers library raises nothing narrower for a damaged file
        raise ArgumentError(
            f"no tokenizer {name!r}: {str(error).splitlines()[0]} Pass a hub name (`hf auth login` first if it is "
            f"gated), a folder with tokenizer.json, or a SentencePiece .model file"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ArgumentError(f"the tokenizer {name!r} has no tokenizer.json, and none can be made from its files")
    return tokenizer


def sentencepiece_model(name: str) -> Path | None:
    """The SentencePiece model that `name` is or holds, None if there is none."""
    path = Path(name)
    if path.is_file():
        return path
    return path / _SENTENCEPIECE_NAME if (path / _SENTENCEPIECE_NAME).is_file() else None


def refuse_other_sentencepiece(path: Path) -> None:
    """Raise ArgumentError unless the model is LLaMA-style: BPE with byte fallback, text taken as it is."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as protocol

    model = protocol.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ArgumentError(f"{path} is no SentencePiece model") from None
    wanted = {
        "model_type BPE": model.trainer_spec.model_type == 2,
        "byte_fallback": model.trainer_spec.byte_fallback,
        "normalization_rule_name=identity": model.normalizer_spec.name == "identity",
        "remove_extra_whitespaces=False": not model.normalizer_spec.remove_extra_whitespaces,
        "add_dummy_prefix": model.normalizer_spec.add_dummy_prefix,
    }
    if lacking := [name for name, there in wanted.items() if not there]:
        raise ArgumentError(f"{path} was trained without {', '.join(lacking)}: its ids would depend on the backend")


def identify(tokenizer: PreTrainedTokenizerFast, name: str) -> TokenizerIdentity:
    """The identity of a tokenizer. The fingerprint covers what determines ids (vocabulary, merges, normaliser,
    pre-tokenizer, BOS and EOS), not added tokens or decoding.

    Raises:
        ArgumentError: if it has no EOS.
    """
    if tokenizer.eos_token_id is None:
        raise ArgumentError(f"the tokenizer {name!r} has no EOS token: set eos_token in its tokenizer_config.json")
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    model = {key: value for key, value in core["model"].items() if value not in (None, False, "")}
    model["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    determining = {
        "model": model,
        "normalizer": core["normalizer"],
        "pre_tokenizer": core["pre_tokenizer"],
        "bos_id": tokenizer.bos_token_id,
        "eos_id": tokenizer.eos_token_id,
    }
    canonical = json.dumps(determining, sort_keys=True, ensure_ascii=False).encode()
    return TokenizerIdentity(
        fingerprint=hashlib.sha256(canonical).hexdigest()[:16],
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
    )


def default_backend() -> str:
    """gigatoken where it is installed, else transformers."""
    return "gigatoken" if importlib.util.find_spec("gigatoken") else "transformers"


def make_encoder(backend: str, folder: Path) -> Encoder:
    """The encoder of a backend, on one core, for the tokenizer that `save` put into `folder`. Imports its backend only.

    Raises:
        ArgumentError: if the backend is not installed, or cannot take this tokenizer.
    """
    return {
        "gigatoken": _gigatoken_encoder,
        "transformers": _transformers_encoder,
        "sentencepiece": _sentencepiece_encoder,
    }[backend](folder)


def _without_added_tokens(folder: Path) -> str:
    core = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    core.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return json.dumps(core)


def _gigatoken_encoder(folder: Path) -> Encoder:
    try:
        from gigatoken.gigatoken_rs import load_hf_json
    except ImportError:
        raise ArgumentError("gigatoken is not installed: `pip install gigatoken`, or --backend transformers") from None
    try:
        tokenizer = load_hf_json(_without_added_tokens(folder))
    except (ValueError, RuntimeError, OSError) as error:
        raise ArgumentError(f"gigatoken cannot take this tokenizer ({error}): use --backend transformers") from None

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if not texts:
            return _flatten([])
        with cli.Stopped.held():  # gigatoken takes what a signal raises for a want of awkward, and gives lists then
            encoded = tokenizer.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(encoded.offsets.data)
        ids = np.asarray(encoded.content.data)[offsets[0] : offsets[-1]]
        return ids.view(np.int32) if ids.dtype == np.uint32 else ids.astype(np.int32), np.diff(offsets)

    return encode


def _transformers_encoder(folder: Path) -> Encoder:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(_without_added_tokens(folder))

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return _flatten([encoding.ids for encoding in encodings])

    return encode


def _sentencepiece_encoder(folder: Path) -> Encoder:
    from sentencepiece import SentencePieceProcessor

    model = folder / _SENTENCEPIECE_NAME
    if not model.exists():
        raise ArgumentError("--backend sentencepiece needs a SentencePiece model, and this tokenizer has none")
    processor = SentencePieceProcessor(model_file=str(model))

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _flatten(processor.encode(list(texts), num_threads=1))

    return encode


def _flatten(id_lists: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, id_lists), np.int64, len(id_lists))
    parts = [np.asarray(ids, np.int32) for ids in id_lists]
    return (np.concatenate(parts) if parts else np.empty(0, np.int32)), lengths


def make_decoder(tokenizer_json: str) -> Decoder:
    """What gives the same texts as transformers' `decode` with `skip_special_tokens=True` and
    `clean_up_tokenization_spaces=False`, from the text of a tokenizer.json; LLaMA's way by a table, which is faster."""
    core = json.loads(tokenizer_json)
    if core["decoder"] == _LLAMA_DECODER:
        return _PieceTable(core)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)

    def decode(ids: np.ndarray, lengths: np.ndarray) -> list[str]:
        texts = [text.tolist() for text in np.split(ids, np.cumsum(lengths)[:-1])]
        return tokenizer.decode_batch(texts, skip_special_tokens=True)

    return decode


class _PieceTable:
    """LLaMA's decoder: ▁ is a space, byte pieces are bytes, special tokens are nothing, and a leading space goes.

    A run of byte pieces that is no UTF-8 becomes one U+FFFD per piece. All other pieces are whole characters, so the
    joined bytes are UTF-8 exactly if every run is, and only where they are not must the runs be looked at.
    """

    def __init__(self, core: Mapping[str, Any]) -> None:
        pieces = {number: piece for piece, number in core["model"]["vocab"].items()}
        pieces |= {token["id"]: token["content"] for token in core["added_tokens"]}
        special = {token["id"] for token in core["added_tokens"] if token["special"]}
        self._bytes = np.full(max(pieces) + 1, b"", object)  # numpy gathers from it faster than a list comprehension
        self._is_byte = np.zeros(len(self._bytes), bool)
        self._is_nothing = np.ones(len(self._bytes), bool)
        for number, piece in pieces.items():
            if number in special:
                continue
            byte = _BYTE_PIECE.fullmatch(piece)
            self._is_byte[number], self._is_nothing[number] = byte is not None, False
            self._bytes[number] = bytes.fromhex(byte[1]) if byte else piece.replace("\u2581", " ").encode()

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


def refuse_other_ids(backend: str, folder: Path, texts: Sequence[str]) -> None:
    """Raise ArgumentError, with the text, if the backend gives other ids than the tokenizers library for any text."""
    reference, encode = _transformers_encoder(folder), make_encoder(backend, folder)
    for text in texts:
        wanted, _ = reference([text])
        ids, _ = encode([text])
        if not np.array_equal(ids, wanted):
            pairs = zip(ids.tolist(), wanted.tolist(), strict=False)
            same = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(wanted)))
            raise ArgumentError(
                f"--backend {backend} gives other ids than the tokenizers library, from token {same} on, for the text "
                f"{text[:200]!r}{'…' if len(text) > 200 else ''}: use --backend transformers"
            )


def save(
    tokenizer: PreTrainedTokenizerFast, identity: TokenizerIdentity, folder: Path, overwrite: bool = False
) -> None:
    """Save the tokenizer of a folder of token files, once; later steps read it from there.

    Raises:
        ArgumentError: if another tokenizer is saved there, and `overwrite` is off.
        DamagedFileError: if that one is damaged.
        PipelineError: if it cannot be written.
    """
    if refuse_other_saved(identity, folder, overwrite):
        saved_identity(folder)
        return
    with atomic.Draft(folder, _made_with(identity), is_folder=True, overwrite=overwrite) as draft:
        try:
            tokenizer.save_pretrained(draft.path)
        except Exception as error:  # the tokenizers library raises nothing narrower where the disk is full
            raise PipelineError(f"the tokenizer cannot be saved in {folder}: {error}") from None
        draft.publish()


def refuse_other_saved(identity: TokenizerIdentity, folder: Path, overwrite: bool = False) -> bool:
    """Whether this tokenizer is saved there already.

    Raises:
        ArgumentError, DamagedFileError: as `save`.
    """
    return records.is_made(folder, _made_with(identity), overwrite)


def _made_with(identity: TokenizerIdentity) -> records.Meta:
    return {"tokenizer": identity.as_json()}


def decoding_fingerprint(tokenizer_json: str) -> str:
    """A hash of what determines the text of ids and is not in the fingerprint: decoder and added tokens, from the text
    of a tokenizer.json."""
    core = json.loads(tokenizer_json)
    return records.fingerprint([core["decoder"], core["added_tokens"]])


def saved_identity(folder: Path) -> TokenizerIdentity | None:
    """The identity of the tokenizer that `save` put there, None if there is none.

    Raises:
        DamagedFileError: if a file of it is not what was saved: ids would be others than the fingerprint says.
    """
    meta = records.read_meta(folder) if folder.is_dir() else None
    if meta is None:
        return None
    try:
        identity = TokenizerIdentity(**meta["made_with"]["tokenizer"])
    except (KeyError, TypeError):
        identity = None
    if identity is None or not records.is_intact(folder, meta):
        raise DamagedFileError(f"{folder} is damaged: remove it, and name the tokenizer again with --tokenizer")
    return identity
