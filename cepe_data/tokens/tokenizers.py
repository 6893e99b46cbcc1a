"""What a tokenizer is: its files, its identity, and the folder `tokenized/tokenizer/` that later steps read.

A tokenizer is what its files say. BOS, EOS and vocabulary size come from tokenizer.json and the configuration files
beside it, or from the SentencePiece model; transformers is not asked, because it adds special tokens by model type or
by the name of the folder, and its version 5 rebuilds LLaMA tokenizers with other ids.

    tokenized/tokenizer/
        tokenizer.json          as the source has it, or converted from the SentencePiece model where that is exact
        tokenizer_config.json   BOS and EOS, and the class with which transformers reads tokenizer.json unchanged
        tokenizer.model         the SentencePiece model of the same tokenizer, if there is one
        meta.json               provenance: the identity
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cepe_data import hub
from cepe_data.corpus import sniff
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.storage import outputs, provenance
from cepe_data.tokens.sentencepiece_models import BYTE_PIECE, SentencePieceModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_TOKENIZER = "meta-llama/Llama-2-7b-hf"
_JSON_NAME, _CONFIG_NAME, _MODEL_NAME = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
_CONFIG_NAMES = (_CONFIG_NAME, "special_tokens_map.json", "added_tokens.json")  # the first two may name BOS and EOS
_MAX_IDS = 1 << 31
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")  # of added tokens
_ACCEPTED = "a hub name, a folder with tokenizer.json or tokenizer.model, or a SentencePiece .model file"


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
        return asdict(self)


@dataclass(frozen=True)
class TokenizerFiles:
    """The files that encode and decode, in memory. At least one is there; where both are, they are one tokenizer.
    `bos` and `eos` are the texts of these tokens; `bos` is None for a tokenizer without BOS."""

    tokenizer_json: str | None = field(repr=False)
    sentencepiece_model: bytes | None = field(repr=False)
    bos: str | None
    eos: str

    @cached_property
    def identity(self) -> TokenizerIdentity:
        """The identity, computed from the files."""
        if self.tokenizer_json is not None:
            return _identify_json(self.tokenizer_json, self.bos, self.eos)
        assert self.sentencepiece_model is not None
        model = SentencePieceModel(self.sentencepiece_model, _MODEL_NAME)
        assert model.eos_id is not None
        return TokenizerIdentity(_fingerprint(model.determining), len(model.pieces), model.bos_id, model.eos_id)

    @property
    def decoding_fingerprint(self) -> str:
        """A hash of what determines the text of ids and is not in the fingerprint: decoder and added tokens."""
        content = read_content(self.tokenizer_json or '{"decoder": "sentencepiece"}')
        return provenance.fingerprint([content["decoder"], content["added_tokens"]])


def load(name: str) -> TokenizerFiles:
    """The tokenizer called `name`: a hub name, a folder, or a SentencePiece model.

    In a folder, tokenizer.json decides where it is there; a tokenizer.model beside it is kept only if it converts to
    the same fingerprint.

    Raises:
        ArgumentError: if there is none, or its files do not agree on BOS, EOS and added tokens.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix == ".json":
            raise ArgumentError(f"{path} is one file of a tokenizer: pass its folder, {path.parent}")
        return _from_sentencepiece(path)
    folder = path if path.is_dir() else _download(name)
    try:
        if (folder / _JSON_NAME).is_file():
            return _from_tokenizer_json(folder / _JSON_NAME)
        if (folder / _MODEL_NAME).is_file():
            return _from_sentencepiece(folder / _MODEL_NAME, configs=_read_configs(folder))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ArgumentError(
            f"the files of the tokenizer in {folder} are not what save_pretrained writes ({error!r}): download them "
            f"again"
        ) from None
    raise ArgumentError(
        f"the tokenizer {name!r} has neither tokenizer.json nor tokenizer.model in {folder}. Pass {_ACCEPTED}; "
        f"AutoTokenizer.from_pretrained(NAME, use_fast=True).save_pretrained(FOLDER) makes a tokenizer.json"
    )


def _download(name: str) -> Path:
    if name.endswith((".model", ".json")) or name.startswith(("/", ".", "~")):
        raise ArgumentError(f"the tokenizer {name} does not exist: pass {_ACCEPTED}")
    try:
        return hub.download(name, [_JSON_NAME, _MODEL_NAME, *_CONFIG_NAMES])
    except Exception as error:  # the hub's errors share no class: no such name, gated, offline, no network
        raise ArgumentError(
            f"no tokenizer {name!r}: {str(error).splitlines()[0]} Pass {_ACCEPTED}; `hf auth login` if it is gated"
        ) from None


def _read_configs(folder: Path) -> dict[Path, Mapping[str, Any]]:
    """The configuration files in a folder that may name BOS and EOS."""
    paths = [folder / name for name in _CONFIG_NAMES if (folder / name).exists()]
    return {path: _read_json(path)[1] for path in paths}


def _read_json(path: Path) -> tuple[str, dict[str, Any]]:
    """The text and the content of a JSON file of a tokenizer.

    Raises:
        ArgumentError: if it is not a JSON object.
    """
    raw = path.read_bytes()
    if sniff.is_lfs_pointer(raw):
        raise ArgumentError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder")
    try:
        text = raw.decode("utf-8")
        content = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"{path} is not a JSON file ({error}): download it again") from None
    if not isinstance(content, dict):
        raise ArgumentError(f"{path} is not a JSON object: download it again")
    return text, content


# -- tokenizer.json with its configuration files -----------------------------------------------------------------------


def _from_tokenizer_json(path: Path) -> TokenizerFiles:
    text, _ = _read_json(path)
    try:
        library = read_library(text)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ArgumentError(f"{path} cannot be read by the tokenizers library: {error}") from None
    content = read_content(text)
    _check_model(content["model"], path)
    configs = _read_configs(path.parent)
    for where, token, number in _named_added_tokens({path: content, **configs}):
        if (found := library.token_to_id(token)) != number:
            there = "does not exist" if found is None else f"has the id {found}"
            raise ArgumentError(
                f"{where} names the added token {token!r} with the id {number}, but in {path} it {there}: remove the "
                f"entry, or save the tokenizer again"
            )
    bos, eos = (_configured_token(key, configs, library.token_to_id, path) for key in ("bos_token", "eos_token"))
    if eos is None:
        raise ArgumentError(f'{path.parent} names no EOS token: set "eos_token" in {path.with_name(_CONFIG_NAME)}')
    _check_flags(path, content, configs, {bos, eos})
    library.no_padding()
    added = library.encode("").tokens
    is_without_bos = bos is None and any("bos_token" in config for config in configs.values())
    if added and added[0] not in {bos, eos} and not is_without_bos:
        raise ArgumentError(
            f"{path} puts {added[0]!r} before a text, but the BOS token that the configuration files name is {bos!r}: "
            f'set "bos_token" in {path.with_name(_CONFIG_NAME)} to what is right, or to null for documents without BOS'
        )
    alone = TokenizerFiles(text, None, bos, eos)
    if path.with_name(_MODEL_NAME).is_file():
        try:
            beside = _from_sentencepiece(path.with_name(_MODEL_NAME))
        except ArgumentError:  # such as a tiktoken file: tokenizer.json decides
            return alone
        if beside.identity == alone.identity:
            return TokenizerFiles(text, beside.sentencepiece_model, bos, eos)
    return alone


def _check_flags(
    path: Path,
    content: Mapping[str, Any],
    configs: Mapping[Path, Mapping[str, Any]],
    special_tokens: Collection[str | None],
) -> None:
    """Raise ArgumentError if a configuration file has other flags of an added token than a tokenizer.json: transformers
    would give other ids. Flags of tokens that are special in both, or among `special_tokens`, change none."""
    added = {token["content"]: token for token in content["added_tokens"]}
    for where, config in configs.items():
        for named in (config.get("added_tokens_decoder") or {}).values():
            token = added.get(named["content"], named)
            if named["content"] in special_tokens or (token.get("special") and named.get("special", True)):
                continue
            if wrong := [name for name in _FLAGS if name in named and token.get(name, named[name]) != named[name]]:
                raise ArgumentError(
                    f"{where} and {path} disagree on {', '.join(wrong)} of the added token {named['content']!r}: make "
                    f"them equal"
                )


def _check_model(model: Mapping[str, Any], path: Path) -> None:
    """Raise ArgumentError if the model of a tokenizer.json gives random ids, ids that a token file cannot hold, or no
    id for some characters."""
    vocab, unk = model["vocab"], model.get("unk_token")
    if model.get("dropout"):
        raise ArgumentError(f'{path}: "dropout" of its model makes ids random: set it to null')
    if isinstance(vocab, dict) and vocab and max(vocab.values()) >= _MAX_IDS:
        raise ArgumentError(f"{path} has the id {max(vocab.values())}: token files hold ids below {_MAX_IDS}")
    if unk is not None and unk not in vocab:
        raise ArgumentError(
            f'{path}: "unk_token" of its model is {unk!r}, which its vocabulary does not have: correct it'
        )
    if isinstance(vocab, list) and model.get("unk_id") is None and not model.get("byte_fallback"):
        raise ArgumentError(f'{path}: "unk_id" of its model is null: a text with another character has no ids')


def read_content(tokenizer_json: str, special_tokens: Collection[str | None] = ()) -> dict[str, Any]:
    """The content of a tokenizer.json, with what older ones leave out, and `special_tokens` marked as special, whatever
    the file says of them."""
    defaults = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"))
    content = {**defaults, **json.loads(tokenizer_json)}
    content["added_tokens"] = content.get("added_tokens") or []
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["content"] in special_tokens
    return content


def read_library(tokenizer_json: str) -> Tokenizer:
    """The library's own tokenizer. From here on, the library starts no threads in this process: workers share the
    cores, and each would start a thread for every core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # looked up at every call
    from tokenizers import Tokenizer

    return Tokenizer.from_str(tokenizer_json)


def hidden_pieces(content: Mapping[str, Any]) -> set[str]:
    """The special tokens that the model of a tokenizer.json would find in a text as pieces of its vocabulary, which an
    encoder must keep from it: it looks up whole pieces, as Unigram and WordPiece do, and BPE with `ignore_merges`.

    A character by itself stays, and so do the bytes of byte fallback, whatever the file calls them: they are needed.
    """
    model = content["model"]
    if model.get("type", "BPE") == "BPE" and not model.get("ignore_merges"):
        return set()
    special = {token["content"] for token in content["added_tokens"] if token["special"] and len(token["content"]) > 1}
    if model.get("byte_fallback"):
        special = {piece for piece in special if not BYTE_PIECE.fullmatch(piece)}
    for merge in model.get("merges") or ():  # a merge needs the pieces that it names
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        special -= {left, right, left + right.removeprefix(model.get("continuing_subword_prefix") or "")}
    pieces = model["vocab"] if isinstance(model["vocab"], dict) else {piece for piece, _ in model["vocab"]}
    return special & {*pieces}


def _named_added_tokens(contents: Mapping[Path, Mapping[str, Any]]) -> Iterator[tuple[Path, str, int]]:
    """The added tokens that these files name, each with its file and the id there. Of the configuration files, those
    that are ordinary text only: documents are encoded without special tokens, and some configurations name a padding
    token that tokenizer.json lacks."""
    special = {
        _text_of(token)
        for content in contents.values()
        for key, value in content.items()
        if key.endswith(("_token", "special_tokens"))
        for token in (value if isinstance(value, list) else [value])
    }
    for path, content in contents.items():
        if path.name == _CONFIG_NAMES[2]:
            yield from ((path, token, number) for token, number in content.items() if token not in special)
            continue
        for token in content.get("added_tokens") or ():
            yield path, token["content"], token["id"]
        for number, token in (content.get("added_tokens_decoder") or {}).items():
            if not token.get("special") and token["content"] not in special:
                yield path, token["content"], int(number)


def _configured_token(
    key: str, configs: Mapping[Path, Mapping[str, Any]], token_to_id: Any, vocabulary: Path
) -> str | None:
    """The text of BOS or EOS as the configuration files name it, None if they name none.

    Raises:
        ArgumentError: if they disagree, or name a token that the vocabulary does not have.
    """
    tokens = [(path, _text_of(config[key])) for path, config in configs.items() if key in config]
    for path, token in tokens:
        if token is not None and (not isinstance(token, str) or token_to_id(token) is None):
            raise ArgumentError(f'{path}: "{key}" is {token!r}, which {vocabulary} does not have: correct it')
        if token != tokens[0][1]:
            raise ArgumentError(
                f'{tokens[0][0]} and {path} disagree: "{key}" is {tokens[0][1]!r} and {token!r}. Make them equal'
            )
    return tokens[0][1] if tokens else None


def _text_of(token: Any) -> Any:
    """The text of a token, which a configuration file has as it is or with its flags."""
    return token.get("content") if isinstance(token, dict) else token


def _identify_json(tokenizer_json: str, bos: str | None, eos: str) -> TokenizerIdentity:
    """The identity of a tokenizer.json with these tokens for BOS and EOS.

    The fingerprint covers what determines ids: vocabulary, merges, normaliser, pre-tokenizer, BOS, EOS, and added
    tokens that are ordinary text; not special tokens, which never appear in a document, and not decoding.
    """
    library = read_library(tokenizer_json)
    content = read_content(library.to_str(), {bos, eos})  # with the library's defaults filled in
    model = {
        key: value for key, value in content["model"].items() if not (value is None or value is False or value == "")
    }
    model["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    bos_id, eos_id = None if bos is None else library.token_to_id(bos), library.token_to_id(eos)
    determining = {
        "model": model,
        "normalizer": content["normalizer"],
        "pre_tokenizer": content["pre_tokenizer"],
        "bos_id": bos_id,
        "eos_id": eos_id,
    }
    if of_text := [token for token in content["added_tokens"] if not token["special"]]:
        determining["added_tokens"] = of_text
    if hidden := hidden_pieces(content):
        determining["hidden"] = sorted(hidden)
    vocab_size = max(library.get_vocab(with_added_tokens=True).values()) + 1
    return TokenizerIdentity(_fingerprint(determining), vocab_size, bos_id, eos_id)


def _fingerprint(determining: Mapping[str, Any]) -> str:
    canonical = json.dumps(determining, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.sha256(canonical).hexdigest()[:16]


# -- SentencePiece models ----------------------------------------------------------------------------------------------


def _from_sentencepiece(path: Path, configs: Mapping[Path, Mapping[str, Any]] | None = None) -> TokenizerFiles:
    """The tokenizer of a SentencePiece model. What configuration files name must be its own.

    Raises:
        ArgumentError: if it is not a model, has no EOS, or is not what the configuration says.
    """
    model = SentencePieceModel(path.read_bytes(), str(path))
    if model.eos_id is None:
        raise ArgumentError(f"{path} has no EOS: it was trained with eos_id=-1. Train it with one")
    bos = None if model.bos_id is None else model.pieces[model.bos_id]
    eos = model.pieces[model.eos_id]
    configs = configs or {}
    for where, token, number in _named_added_tokens(configs):
        if model.ids.get(token) != number:
            raise ArgumentError(
                f"{where} adds the token {token!r} with the id {number} to {path}: save the tokenizer as "
                f"tokenizer.json, or remove the entry"
            )
    for key, own in (("bos_token", bos), ("eos_token", eos)):
        named = _configured_token(key, configs, model.ids.get, path)
        if any(key in config for config in configs.values()) and named != own:
            raise ArgumentError(f'the files beside {path} name {named!r} as "{key}", its own is {own!r}: correct them')
    tokenizer_json = model.tokenizer_json() if model.converts_exactly else None
    return TokenizerFiles(tokenizer_json, model.content, bos, eos)


# -- the saved tokenizer -----------------------------------------------------------------------------------------------


def save(tokenizer: TokenizerFiles, folder: Path, options: outputs.WriteOptions = outputs.REPLACE_NOTHING) -> None:
    """Save the tokenizer of a folder of token files, once; later steps read it from there.

    Raises as `Output.is_done`, and DamagedFileError if the one that is there is damaged.
    """
    output = options.output_at(folder, made_with(tokenizer.identity))
    if output.is_done():
        saved_identity(folder)
        return
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos,
        "eos_token": tokenizer.eos,
        "clean_up_tokenization_spaces": False,
    }
    with output.draft(is_folder=True) as draft:
        if tokenizer.tokenizer_json is not None:
            (draft.path / _JSON_NAME).write_text(tokenizer.tokenizer_json, encoding="utf-8", newline="")
        if tokenizer.sentencepiece_model is not None:
            (draft.path / _MODEL_NAME).write_bytes(tokenizer.sentencepiece_model)
        (draft.path / _CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
        draft.publish()


def made_with(identity: TokenizerIdentity) -> provenance.Provenance:
    """The provenance of a saved tokenizer."""
    return {"tokenizer": identity.as_json()}


def saved_identity(folder: Path) -> TokenizerIdentity | None:
    """The identity of the tokenizer that `save` put there, None if there is none.

    Raises:
        DamagedFileError: if a file of it is not what was saved: ids would be others than the fingerprint says.
    """
    meta = provenance.read_meta(folder) if folder.is_dir() else provenance.Meta()
    if not meta:
        return None
    try:
        identity = TokenizerIdentity(**meta.made_with["tokenizer"])
    except (KeyError, TypeError):
        identity = None
    if identity is None or not provenance.is_intact(folder, meta):
        raise DamagedFileError(f"{folder} is damaged: remove it, and name the tokenizer again with --tokenizer")
    return identity


def read_saved(folder: Path) -> TokenizerFiles:
    """The tokenizer that `save` put into a folder, read without a check.

    Raises:
        DamagedFileError: if its files are not there, or not a tokenizer.
    """
    paths = [folder / name for name in (_JSON_NAME, _MODEL_NAME)]
    try:
        raw_json, model = (path.read_bytes() if path.exists() else None for path in paths)
        config = json.loads((folder / _CONFIG_NAME).read_text(encoding="utf-8"))
        bos, eos = (_text_of(config.get(key)) for key in ("bos_token", "eos_token"))
        return TokenizerFiles(raw_json.decode("utf-8") if raw_json is not None else None, model, bos, eos)
    except (ValueError, OSError, AttributeError) as error:
        raise DamagedFileError(f"{folder} is damaged ({error}): remove it, and name the tokenizer again") from None


def find(name: str | None, tokenized_dir: Path, fingerprint: str | None) -> TokenizerFiles:
    """The tokenizer called `name`, else the one saved with the token files; `fingerprint` is that of the tokens, where
    it is known.

    Raises:
        ArgumentError: if none is saved and none is named, or it is not the one that made the tokens.
    """
    folder = tokenized_dir / "tokenizer"
    if name is not None:
        tokenizer = load(name)
        found = tokenizer.identity.fingerprint
    elif identity := saved_identity(folder):
        tokenizer, found = read_saved(folder), identity.fingerprint
    else:
        raise ArgumentError(
            f"{folder} is not there: pass --tokenized_dir, the folder of the token files, or name their tokenizer with "
            f"--tokenizer"
        )
    if fingerprint not in {None, found}:
        raise ArgumentError(
            f"the tokenizer {name or folder} ({found}) is not the one that made the tokens ({fingerprint}): pass "
            f"--tokenized_dir, the folder of their token files, or --tokenizer"
        )
    return tokenizer
