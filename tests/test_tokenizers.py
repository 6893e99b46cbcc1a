"""All backends give the same ids, and text is text.    pytest tests/test_tokenizers.py"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from cepe_data import tokenizers
from cepe_data.errors import ArgumentError
from tests.conftest import HARD_TEXTS, PROJECT, World

PIECES = st.sampled_from(
    ["  ", "\n\n", "<s>", "</s>", "<unk>", "\u2581", "日本", "e\u0301", "👩‍👩‍👧", "\0", "ab", "\ufeff"]
)
HARD = st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=12).map("".join)


def split(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    assert ids.dtype == np.int32
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def test_backends_give_the_same_ids_and_the_text_comes_back(world: World) -> None:
    name = str(world.tokenizer)
    tokenizer = tokenizers.load_pretrained(name)
    saved = world.tokenized / "tokenizer"
    encoders = [tokenizers.make_encoder(backend, saved) for backend in tokenizers.BACKENDS]
    plain = SentencePieceProcessor(model_file=name)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(HARD, min_size=1, max_size=4))
    def check(texts: list[str]) -> None:
        wanted = [plain.encode(text) for text in texts]
        for encode in encoders:
            assert split(*encode(texts)) == wanted
        for text, ids in zip(texts, wanted, strict=True):
            decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert decoded == text.replace("\u2581", " ")

    check()
    tokenizers.refuse_other_ids("gigatoken", saved, [*tokenizers.HARD_TEXTS, *HARD_TEXTS])


def test_decoding_is_that_of_transformers_at_every_split_of_every_character(world: World, tmp_path: Path) -> None:
    make_byte_level(tmp_path)
    text = "a 日本語 b👩‍👩‍👧 \u2581\u2581 é\0 \U0010ffff<s> ﬁn"
    for folder in (world.tokenized / "tokenizer", tmp_path):
        tokenizer = tokenizers.load_pretrained(str(folder))
        decode = tokenizers.make_decoder((folder / "tokenizer.json").read_text())
        [ids], draw = [tokenizers.make_encoder("transformers", folder)([text])[0]], np.random.default_rng(0)
        slices = [ids[start:stop] for start in range(len(ids)) for stop in range(start, len(ids) + 1)]
        assert len(ids) > 30 and any("\ufffd" in tokenizer.decode(part) for part in slices)
        # Bytes, special tokens and pieces in any order: runs of bytes that are UTF-8 in part, or over a special token.
        highest = min(len(tokenizer), 400)
        slices += [draw.integers(0, highest, draw.integers(0, 12)).astype(np.int32) for _ in range(2000)]
        texts = decode(np.concatenate(slices), np.array([len(part) for part in slices]))
        for part, found in zip(slices, texts, strict=True):
            assert found == tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_a_saved_tokenizer_is_the_same_one(world: World) -> None:
    from_model = tokenizers.identify(tokenizers.load_pretrained(str(world.tokenizer)), "model")
    saved = world.tokenized / "tokenizer"
    reloaded = tokenizers.load_pretrained(str(saved))
    assert tokenizers.identify(reloaded, "saved") == from_model == tokenizers.saved_identity(saved)
    assert (from_model.bos_id, from_model.eos_id, from_model.vocab_size) == (1, 2, 800)


def make_byte_level(folder: Path, with_eos: bool = True) -> None:
    """A byte-level BPE with more than 65,536 words and no BOS; words that no merge makes fill the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {piece: number for number, piece in enumerate([*sorted(alphabet), *(f"filler{n}" for n in range(69_000))])}
    vocab["he"], vocab["hel"] = len(vocab), len(vocab) + 1
    core = Tokenizer(models.BPE(vocab, [("h", "e"), ("he", "l")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    eos = {"eos_token": "<|endoftext|>"} if with_eos else {}
    PreTrainedTokenizerFast(tokenizer_object=core, **eos).save_pretrained(folder)


def test_a_byte_level_tokenizer_with_a_large_vocabulary_and_no_bos_works(tmp_path: Path) -> None:
    make_byte_level(tmp_path)
    tokenizer = tokenizers.load_pretrained(str(tmp_path))
    identity = tokenizers.identify(tokenizer, "byte level")
    assert identity.bos_id is None and identity.vocab_size > 65_536 and identity.eos_id == identity.vocab_size - 1
    for backend in ("transformers", "gigatoken"):
        [ids] = split(*tokenizers.make_encoder(backend, tmp_path)(["hello <|endoftext|>"]))
        assert identity.eos_id not in ids and max(ids) > 65_536
        assert tokenizer.decode(ids) == "hello <|endoftext|>"
    with pytest.raises(ArgumentError, match="needs a SentencePiece model"):
        tokenizers.make_encoder("sentencepiece", tmp_path)


def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path: Path) -> None:
    make_byte_level(tmp_path / "no_eos", with_eos=False)
    with pytest.raises(ArgumentError, match="no EOS"):
        tokenizers.identify(tokenizers.load_pretrained(str(tmp_path / "no_eos")), "no_eos")
    with pytest.raises(ArgumentError, match="no tokenizer 'none/such'"):
        tokenizers.load_pretrained("none/such")
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(ArgumentError, match="no SentencePiece model"):
        tokenizers.load_pretrained(str(tmp_path / "text.model"))
    SentencePieceTrainer.train(
        sentence_iterator=iter(["some text to train on, once and again"] * 9),
        model_prefix=str(tmp_path / "unigram"),
        vocab_size=20,
        minloglevel=2,
    )
    with pytest.raises(ArgumentError, match="without model_type BPE, byte_fallback"):
        tokenizers.load_pretrained(str(tmp_path / "unigram.model"))


def test_a_backend_that_differs_is_refused_with_the_text(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = world.tokenized / "tokenizer"
    right = tokenizers.make_encoder("gigatoken", saved)

    def wrong(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = right(texts)
        return (ids + ("needle" in texts[0]) * (np.arange(len(ids)) == 2)).astype(np.int32), lengths

    monkeypatch.setattr(tokenizers, "make_encoder", lambda *_: wrong)
    tokenizers.refuse_other_ids("gigatoken", saved, ["no difference here"])
    with pytest.raises(ArgumentError, match=r"other ids .* from token 2 on, for the text 'a needle in it'"):
        tokenizers.refuse_other_ids("gigatoken", saved, ["fine", "a needle in it"])


def test_backends_agree_on_twenty_thousand_generated_strings_and_a_megabyte_without_a_space(world: World) -> None:
    saved = world.tokenized / "tokenizer"
    encoders = [tokenizers.make_encoder(backend, saved) for backend in tokenizers.BACKENDS]
    draw = random.Random(7)
    alphabet = [
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\0",
        "\u0301",
        "\u200d",
        "\u2581",
        "<s>",
        "</s>",
        "<unk>",
        "<0x41>",
        "\ufeff",
    ]
    alphabet += [
        "日",
        "本",
        "한",
        "ع",
        "😀",
        "👩‍👩‍👧",
        "é",
        "ß",
        "a",
        "e",
        "th",
        "ing",
        "0",
        "42",
        ".",
        "'s",
        "\x85",
        "\u2028",
    ]
    texts = ["".join(draw.choices(alphabet, k=draw.randrange(40))) for _ in range(20_000)]
    texts += ["".join(draw.choices("abcdefgh日", k=1_000_000))]
    reference_ids, reference_lengths = encoders[1](texts)
    for encode in encoders:
        for batch in (texts, texts[:1], []):
            ids, lengths = encode(batch)
            assert ids.dtype == np.int32 and len(lengths) == len(batch)
            assert np.array_equal(lengths, reference_lengths[: len(batch)])
            assert np.array_equal(ids, reference_ids[: int(lengths.sum())])


def test_a_signal_while_gigatoken_encodes_stops_the_run(world: World, tmp_path: Path) -> None:
    script = tmp_path / "encode.py"
    script.write_text(
        "import os, signal, sys, threading\n"
        "from pathlib import Path\n"
        "from cepe_data import cli, tokenizers\n"
        "def main():\n"
        "    encode = tokenizers.make_encoder('gigatoken', Path(sys.argv[1]))\n"
        "    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    for number in range(1000):\n"
        "        encode([f'some {other} words {number * other} {other * other}' for other in range(20_000)])\n"
        "cli.run(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(script), str(world.tokenized / "tokenizer")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 128 + signal.SIGTERM and "Traceback" not in done.stderr, done.stderr
