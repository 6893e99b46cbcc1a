"""Tokenizers of all families, made on the spot by the trainers of tokenizers and sentencepiece."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.conftest import make_texts

EOS = "<|endoftext|>"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ALPHABET = """
日 本 한 ع 😀 é ß ﬁ Ⅷ ▁ <s> </s> <unk> <0x41> <|endoftext|> [UNK] a e th ing The Newton 0 42 1234567 . 's f():
""".split()
ALPHABET += [" ", "  ", "        ", "\n", "\n\n", "\t", "\r\n", "\0", "\x85", "\u2028", "\u0301", "\u200d", "\ufeff"]
ALPHABET += ["x = 1", "e\u0301", "\u1df8", "\u1df9", "\N{WOMAN}\u200d\N{WOMAN}\u200d\N{GIRL}"]


def texts_to_train_on() -> list[str]:
    """Words, code with indentation, numbers and some characters of other scripts."""
    code = "def f(x):\n        return x + 1  # 42\n\n\nclass Newton:\n    pass\n" * 20
    return [*make_texts(3, 60, 200), code, "The quick Newton, the 日本語 text; é and e\u0301. " * 20, *"日本한ع😀" * 4]


def generated_texts(number: int, extra: Sequence[str] = ()) -> list[str]:
    """Strings of words, hard pieces and `extra`, the same in every run."""
    rng = random.Random(7)
    words = sorted({word for text in texts_to_train_on() for word in text.split(" ")})
    sources = [words, ALPHABET, extra or ALPHABET]
    return ["".join(rng.choice(rng.choice(sources)) for _ in range(rng.randrange(25))) for _ in range(number)]


@dataclass(frozen=True)
class Kind:
    """A tokenizer in a folder, and what the library that defines it says: ids of a text with special tokens as plain
    text, BOS, EOS and vocabulary size. `added` are its added tokens or symbols, of which `special` are plain text."""

    path: Path
    encode: Callable[[str], list[int]]
    bos_id: int | None
    eos_id: int
    vocab_size: int
    added: list[str]
    special: list[str]


# -- SentencePiece -----------------------------------------------------------------------------------------------------

LLAMA_OPTIONS: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
}
SENTENCEPIECE_KINDS: dict[str, dict[str, Any]] = {
    "llama": LLAMA_OPTIONS,
    "llama with other names of BOS and EOS": {**LLAMA_OPTIONS, "bos_piece": "<|startoftext|>", "eos_piece": EOS},
    "llama without BOS": {**LLAMA_OPTIONS, "bos_id": -1},
    "llama with control symbols": {**LLAMA_OPTIONS, "control_symbols": ["<sep>", "[UNK]"]},
    "llama with user-defined symbols": {**LLAMA_OPTIONS, "user_defined_symbols": ["Newton", "the", "        "]},
    "llama with ▁ as suffix": {**LLAMA_OPTIONS, "treat_whitespace_as_suffix": True},
    "llama without ▁ before the text": {**LLAMA_OPTIONS, "add_dummy_prefix": False},
    "bpe with NFKC": {"model_type": "bpe", "byte_fallback": True},
    "unigram": {"model_type": "unigram"},
    "unigram with byte fallback": {**LLAMA_OPTIONS, "model_type": "unigram"},
}


def train_sentencepiece(path: Path, **options: Any) -> None:
    """Train a SentencePiece model of 600 pieces."""
    model = io.BytesIO()
    lines = (line for text in texts_to_train_on() for line in text.splitlines())
    settings = {"vocab_size": 600, "minloglevel": 2, "hard_vocab_limit": False, **options}
    SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def make_sentencepiece(folder: Path, name: str) -> Kind:
    path = folder / "x.model"
    options = SENTENCEPIECE_KINDS[name]
    train_sentencepiece(path, **options)
    library = SentencePieceProcessor(model_file=str(path))
    bos_id = None if library.bos_id() < 0 else library.bos_id()
    special = [*options.get("control_symbols", []), "<s>", "</s>"]
    added = [*options.get("user_defined_symbols", []), *special]
    return Kind(path, library.encode, bos_id, library.eos_id(), library.vocab_size(), added, special)


# -- tokenizer.json ----------------------------------------------------------------------------------------------------


def byte_level(split: bool = True, prefix: bool = False) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split)


def llama3_split() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), byte_level(split=False)])


def digits_split() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()])


def metaspace_bpe() -> dict[str, Any]:
    model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return {"model": model, "split": pre_tokenizers.Metaspace(prepend_scheme="first", split=False), "unk": "<unk>"}


RUNS_OF_SPACES = [AddedToken(" " * number, special=False, normalized=True) for number in range(24, 1, -1)]
JSON_KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"split": byte_level()},
    "llama3": {"split": llama3_split(), "bos": "<|begin_of_text|>"},
    "qwen, NFC": {"split": llama3_split(), "normalizer": normalizers.NFC()},
    "neox, NFC and runs of spaces": {"split": byte_level(), "normalizer": normalizers.NFC(), "added": RUNS_OF_SPACES},
    "phi, runs of spaces": {"split": byte_level(), "added": RUNS_OF_SPACES},
    "added words": {
        "split": byte_level(),
        "added": [
            AddedToken("Newton", special=False, single_word=True),
            AddedToken("x = ", special=False, rstrip=True, normalized=False),
            AddedToken("日", special=False, lstrip=True),
        ],
    },
    "smollm, digits": {"split": digits_split()},
    "prefix space": {"split": byte_level(prefix=True)},
    "bpe with unk": {"model": models.BPE(unk_token="[UNK]"), "split": pre_tokenizers.Whitespace(), "unk": "[UNK]"},
    "wordpiece": {
        "model": models.WordPiece(unk_token="[UNK]"),
        "split": pre_tokenizers.BertPreTokenizer(),
        "normalizer": normalizers.BertNormalizer(lowercase=True),
        "trainer": trainers.WordPieceTrainer,
        "unk": "[UNK]",
    },
    "unigram json": {
        "model": models.Unigram(),
        "split": pre_tokenizers.Metaspace(),
        "trainer": trainers.UnigramTrainer,
        "unk": "<unk>",
    },
    "wordlevel": {
        "model": models.WordLevel(unk_token="[UNK]"),
        "split": pre_tokenizers.WhitespaceSplit(),
        "trainer": trainers.WordLevelTrainer,
        "unk": "[UNK]",
    },
    "metaspace bpe": {**metaspace_bpe(), "bytes": True},
    "metaspace bpe, special bytes": {**metaspace_bpe(), "special bytes": True},
    "a special character": {"split": byte_level(), "special": ["!", "\n"]},
    "ignore_merges": {"model": models.BPE(ignore_merges=True), "split": llama3_split()},
    "end-of-word suffix": {
        "model": models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"),
        "split": pre_tokenizers.Whitespace(),
        "suffix": "</w>",
        "unk": "[UNK]",
    },
}


def make_json(folder: Path, name: str) -> Kind:
    """A folder with tokenizer.json and tokenizer_config.json."""
    recipe = JSON_KINDS[name]
    library = Tokenizer(recipe.get("model") or models.BPE())
    library.pre_tokenizer = recipe["split"]
    if "normalizer" in recipe:
        library.normalizer = recipe["normalizer"]
    library.decoder = decoders.ByteLevel()
    special = [token for token in (recipe.get("unk"), recipe.get("bos"), EOS) if token]
    special += recipe.get("special", [])
    special += [f"<0x{byte:02X}>" for byte in range(256)] if {"bytes", "special bytes"} & {*recipe} else []
    options: dict[str, Any] = {"vocab_size": 700, "special_tokens": special, "show_progress": False}
    kind = recipe.get("trainer", trainers.BpeTrainer)
    if kind is trainers.BpeTrainer and "unk" not in recipe:
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    if kind is trainers.UnigramTrainer:
        options["unk_token"] = "<unk>"
    if "suffix" in recipe:
        options["end_of_word_suffix"] = recipe["suffix"]
    library.train_from_iterator(texts_to_train_on(), kind(**options))
    if recipe.get("bytes"):
        library = with_ordinary_bytes(library)
    library.add_tokens(recipe.get("added", []))
    if "bos" in recipe:
        number = library.token_to_id(recipe["bos"])
        library.post_processor = processors.TemplateProcessing(
            single=f"{recipe['bos']} $A", special_tokens=[(recipe["bos"], number)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    config = {"bos_token": recipe.get("bos"), "eos_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    added = [token.content for token in recipe.get("added", [])]
    vocab_size = max(library.get_vocab(with_added_tokens=True).values()) + 1
    bos_id = library.token_to_id(recipe["bos"]) if "bos" in recipe else None
    encode, eos_id = reference_of(library), library.token_to_id(EOS)
    return Kind(folder, encode, bos_id, eos_id, vocab_size, [*added, *special[:3]], special)


def with_ordinary_bytes(library: Tokenizer) -> Tokenizer:
    """The same tokenizer whose byte pieces are pieces of the model, as LLaMA's are, and not special tokens."""
    content = json.loads(library.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(content))


def reference_of(library: Tokenizer) -> Callable[[str], list[int]]:
    """The library's own ids of a text in which special tokens are ordinary text. It looks for added tokens before the
    model sees the text, so special ones are hidden from it by `encode_special_tokens`; pieces of the model that are
    special tokens it would still find, and texts with these are compared in a test of their own."""
    plain = Tokenizer.from_str(library.to_str())
    plain.encode_special_tokens = True
    return lambda text: plain.encode(text, add_special_tokens=False).ids


def make_kind(folder: Path, name: str) -> Kind:
    """The tokenizer of this name, made in `folder`."""
    return make_sentencepiece(folder, name) if name in SENTENCEPIECE_KINDS else make_json(folder, name)


KINDS = [*SENTENCEPIECE_KINDS, *JSON_KINDS]
