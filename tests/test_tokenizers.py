"""What a tokenizer is, and that every backend gives its ids.    pytest tests/test_tokenizers.py"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from cepe_data.errors import ArgumentError
from cepe_data.tokens import backends, tokenizers
from cepe_data.tokens.piece_texts import make_piece_texts
from cepe_data.tokens.tokenizers import TokenizerFiles
from tests import tokenizer_kinds as kinds
from tests.conftest import HARD_TEXTS, PROJECT, Run, World, write_jsonl

PIECES = st.sampled_from(
    ["  ", "\n\n", "<s>", "</s>", "<unk>", "\u2581", "日本", "e\u0301", "👩‍👩‍👧", "\0", "ab", "\ufeff"]
)
HARD = st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=12).map("".join)


def split(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    assert ids.dtype == np.int32
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


# -- the ids of every family -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen, NFC", "phi, runs of spaces", "unigram", "wordpiece"])
def test_each_backend_gives_the_ids_of_the_library_or_is_rejected(tmp_path: Path, name: str) -> None:
    kind = kinds.make_kind(tmp_path, name)
    loaded = tokenizers.load(str(kind.path))
    texts = kinds.generated_texts(300, kind.added)
    for backend in backends.BACKENDS:
        try:
            assert backends.choose_backend(loaded, backend, []) == backend
        except ArgumentError:
            assert backend != backends.reference_backend(loaded)
            continue
        assert split(*backends.make_encoder(backend, loaded)(texts)) == [kind.encode(text) for text in texts]


@pytest.mark.parametrize("name", kinds.KINDS)
def test_ids_bos_eos_and_vocabulary_are_those_of_the_library(tmp_path: Path, name: str) -> None:
    kind = kinds.make_kind(tmp_path / "source", name)
    loaded = tokenizers.load(str(kind.path))
    identity = loaded.identity
    assert (identity.bos_id, identity.eos_id, identity.vocab_size) == (kind.bos_id, kind.eos_id, kind.vocab_size)
    tokenizers.save(loaded, tmp_path / "saved")
    saved = tokenizers.read_saved(tmp_path / "saved")
    assert tokenizers.load(str(tmp_path / "saved")) == saved and saved.identity == identity
    texts = kinds.generated_texts(2000, kind.added)
    # A model that is not BPE has its special tokens as pieces, which tokenizers cannot be told not to find.
    finds_special = name in {"unigram json", "wordlevel", "ignore_merges"}
    plain = [re.sub("|".join(map(re.escape, kind.special)), " ", text) if finds_special else text for text in texts]
    expected = [kind.encode(text) for text in plain]
    assert len({*itertools.chain(*expected)}) > kind.vocab_size // 3, "most pieces occur"
    for backend in (backends.choose_backend(saved, None, []), backends.reference_backend(saved)):
        encode = backends.make_encoder(backend, saved)
        assert split(*encode(plain)) == expected
        special = {saved.identity.bos_id, saved.identity.eos_id}
        assert not special & {*encode(texts)[0].tolist()}, "special tokens in a text are plain text"


@pytest.mark.parametrize("name", ["llama", "qwen, NFC", "unigram json"])
def test_the_default_backend_is_used_for_what_it_can_do_and_the_next_one_says_why(
    run: Run, tmp_path: Path, name: str
) -> None:
    kind = kinds.make_kind(tmp_path / "tokenizer", name)
    write_jsonl(tmp_path / "data/arxiv/a.jsonl", kinds.generated_texts(50))
    run("get_all_jsonl.py", "data", cwd=tmp_path)
    done = run("tokenize_jsonl.py", "--tokenizer", kind.path, cwd=tmp_path)
    is_default = name == "llama"
    assert ("the backend is tokenizers: gigatoken cannot take this tokenizer" in done.stdout) == (not is_default)
    assert "Location" not in done.stdout + done.stderr
    run("sanity_check.py", "--deep", "--texts", 100, cwd=tmp_path)
    flags = ("--tokenizer", kind.path, "--output_dir", "explicit", "--backend", "gigatoken")
    done = run("tokenize_jsonl.py", *flags, cwd=tmp_path, status=0 if is_default else 2)
    assert is_default or "gigatoken cannot take this tokenizer" in done.stderr


def test_unicode_tables_that_differ_change_no_byte(tmp_path: Path) -> None:
    kind = kinds.make_kind(tmp_path, "qwen, NFC")
    loaded = tokenizers.load(str(kind.path))
    text = "a\u1df8\u1df9"  # marks that are ordered otherwise since Unicode 9
    for backend in (backends.choose_backend(loaded, None, [text]), "tokenizers"):
        assert split(*backends.make_encoder(backend, loaded)([text])) == [kind.encode(text)]


# -- what the files say ------------------------------------------------------------------------------------------------


def test_the_fingerprint_of_llama_2_stays(shared: Path, tmp_path: Path) -> None:
    loaded = tokenizers.load(str(shared / "tokenizer/tokenizer.model"))
    assert loaded.identity == tokenizers.TokenizerIdentity("14b2fa24889c6b2e", 32000, 1, 2)
    from transformers import LlamaTokenizerFast

    fast = LlamaTokenizerFast(vocab_file=str(shared / "tokenizer/tokenizer.model"), legacy=True, add_prefix_space=True)
    fast.save_pretrained(tmp_path)
    both = tokenizers.load(str(tmp_path))
    assert both.identity == loaded.identity and both.sentencepiece_model == loaded.sentencepiece_model
    assert json.loads(both.tokenizer_json or "") == json.loads(loaded.tokenizer_json or "")
    assert both.decoding_fingerprint == loaded.decoding_fingerprint


def test_added_tokens_that_are_text_count_in_the_fingerprint_and_special_ones_do_not(tmp_path: Path) -> None:
    kind = kinds.make_kind(tmp_path / "plain", "gpt2")
    fingerprints = [tokenizers.load(str(kind.path)).identity.fingerprint]
    for name, is_special in (("special", True), ("text", False)):
        shutil.copytree(kind.path, tmp_path / name)
        content = json.loads((kind.path / "tokenizer.json").read_text())
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": is_special}
        content["added_tokens"].append({"id": 700, "content": "        ", **flags})
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
        fingerprints.append(tokenizers.load(str(tmp_path / name)).identity.fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    models = [kinds.make_kind(tmp_path / name, name) for name in ("llama", "llama with user-defined symbols")]
    assert len({tokenizers.load(str(model.path)).identity.fingerprint for model in models}) == 2


def test_the_model_beside_a_tokenizer_json_is_kept_only_if_it_is_the_same_tokenizer(tmp_path: Path) -> None:
    one, other = (kinds.make_kind(tmp_path / name, name) for name in ("llama", "llama with control symbols"))
    tokenizers.save(tokenizers.load(str(one.path)), tmp_path / "saved")
    assert tokenizers.load(str(tmp_path / "saved")).sentencepiece_model == one.path.read_bytes()
    for content in (other.path.read_bytes(), b"IQ== 0\nIg== 1\n"):
        (tmp_path / "saved/tokenizer.model").write_bytes(content)
        loaded = tokenizers.load(str(tmp_path / "saved"))
        assert loaded.sentencepiece_model is None and loaded.identity.vocab_size == 600


Change = Callable[[Path], object]


def edit(name: str, **values: Any) -> Change:
    """Change a JSON file in the folder of a tokenizer; `...` removes a key."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        content = {key: value for key, value in {**content, **values}.items() if value is not ...}
        (folder / name).write_text(json.dumps(content))

    return change


def edit_model(**values: Any) -> Change:
    """Change the model in a tokenizer.json."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"] |= values
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return change


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
CONFIG, JSON = "tokenizer_config.json", "tokenizer.json"
WRONG_FILES: dict[str, tuple[Change, str]] = {
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), f'set "eos_token" in .*{CONFIG}'),
    "no EOS named": (edit(CONFIG, eos_token=...), f'set "eos_token" in .*{CONFIG}'),
    "EOS is null": (edit(CONFIG, eos_token=None), f'set "eos_token" in .*{CONFIG}'),
    "EOS not in the vocabulary": (edit(CONFIG, eos_token="</s>"), "\"eos_token\" is '</s>', which .*json does not"),
    "BOS not in the vocabulary": (edit(CONFIG, bos_token={"content": "<s>"}), "\"bos_token\" is '<s>'"),
    "BOS is empty": (edit(CONFIG, bos_token=""), "\"bos_token\" is ''"),
    "BOS not named, but put before a text": (edit(CONFIG, bos_token=...), "name is None: set .* or to null"),
    "another BOS than what is put before a text": (edit(CONFIG, bos_token="e"), "names? is 'e': set \"bos_token\""),
    "no list of added tokens is a list": (edit(CONFIG, added_tokens_decoder=[1]), "not what save_pretrained writes"),
    "an added token in a file of its own": (edit("added_tokens.json", **{"<tool>": 700}), "the added token '<tool>'"),
    "an id beyond int32": (
        edit_model(vocab={"<|begin_of_text|>": 0, "<|endoftext|>": 1 << 31}, merges=[]),
        "the id 2147",
    ),
    "an unknown token that is unknown": (edit_model(unk_token="[UNK]"), "\"unk_token\" of its model is '\\[UNK\\]'"),
    "two files disagree": (edit("special_tokens_map.json", eos_token="e"), 'disagree: "eos_token" is'),
    "an added token of the configuration only": (
        edit(CONFIG, added_tokens_decoder={"700": {"content": "<tool>", "special": False}}),
        "added token '<tool>' with the id 700, but in .* it does not exist",
    ),
    "random merges": (edit_model(dropout=0.1), '"dropout" of its model makes ids random'),
    "a git-lfs pointer": (lambda folder: (folder / JSON).write_text(POINTER), "git lfs pull"),
    "half of a tokenizer.json": (lambda folder: (folder / JSON).write_text('{"model'), "is not a JSON file"),
    "an older tokenizer.json": (lambda folder: (folder / JSON).write_text('{"v": 1}'), "cannot be read by"),
    "neither file": (lambda folder: (folder / JSON).unlink(), "neither tokenizer.json nor tokenizer.model"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_files_that_do_not_say_what_the_tokenizer_is_are_an_error_that_names_the_key(tmp_path: Path, case: str) -> None:
    change, message = WRONG_FILES[case]
    kind = kinds.make_kind(tmp_path / "llama", "llama3")
    edit("config.json", model_type="llama")(kind.path)  # which transformers takes for a LLaMA-2 tokenizer
    change(kind.path)
    with pytest.raises(ArgumentError, match=message):
        tokenizers.load(str(kind.path))


@pytest.mark.parametrize("flag", ["special", "lstrip", "rstrip", "single_word", "normalized"])
def test_files_that_disagree_on_the_flags_of_an_added_token_are_an_error(tmp_path: Path, flag: str) -> None:
    kind = kinds.make_kind(tmp_path, "added words")
    named = {str(one["id"]): one for one in json.loads((tmp_path / JSON).read_text())["added_tokens"]}
    edit(CONFIG, added_tokens_decoder=named)(tmp_path)
    identity = tokenizers.load(str(kind.path)).identity
    for one in named.values():
        one[flag] ^= one["content"] == kinds.EOS  # not looked for in texts, whatever its flags are
    edit(CONFIG, added_tokens_decoder=named)(tmp_path)
    assert tokenizers.load(str(kind.path)).identity == identity
    for one in named.values():
        one[flag] ^= one["content"] == "Newton"
    edit(CONFIG, added_tokens_decoder=named)(tmp_path)
    with pytest.raises(ArgumentError, match=f"disagree on {flag} of the added token 'Newton'"):
        tokenizers.load(str(kind.path))


def test_a_configuration_may_say_that_there_is_no_bos(tmp_path: Path) -> None:
    kind = kinds.make_kind(tmp_path, "llama3")
    edit(CONFIG, bos_token=None)(kind.path)
    edit("special_tokens_map.json", eos_token={"content": kinds.EOS})(kind.path)
    assert tokenizers.load(str(kind.path)).identity.bos_id is None


def test_a_sentencepiece_model_and_the_configuration_beside_it_must_agree(tmp_path: Path) -> None:
    kind = kinds.make_kind(tmp_path, "llama")
    kind.path.rename(tmp_path / "tokenizer.model")
    edit(CONFIG, bos_token="<s>", eos_token="</s>")(tmp_path)
    assert tokenizers.load(str(tmp_path)).identity.eos_id == 2
    edit(CONFIG, eos_token="e")(tmp_path)
    with pytest.raises(ArgumentError, match="name 'e' as \"eos_token\", its own is '</s>'"):
        tokenizers.load(str(tmp_path))
    edit(CONFIG, eos_token="</s>", added_tokens_decoder={"600": {"content": "    ", "special": False}})(tmp_path)
    with pytest.raises(ArgumentError, match="adds the token '    ' with the id 600"):
        tokenizers.load(str(tmp_path))


def write_without_normalizer(path: Path, target: Path) -> None:
    """A SentencePiece model that was cut off between two fields, which protobuf reads without an error."""
    from sentencepiece import sentencepiece_model_pb2 as protocol

    model = protocol.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(path.read_bytes())
    model.ClearField("normalizer_spec")
    target.write_bytes(model.SerializeToString())


def test_pieces_of_equal_score_are_left_to_sentencepiece(tmp_path: Path) -> None:
    """It merges the leftmost of them; a list of merges has an order of its own."""
    from sentencepiece import sentencepiece_model_pb2 as protocol

    kind = kinds.make_kind(tmp_path, "llama")
    model = protocol.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(kind.path.read_bytes())
    for piece, score in (("q", -1e4), ("z", -1e4), ("k", -1e4), ("zk", 0.0), ("qz", 0.0)):
        if piece not in {one.piece for one in model.pieces}:
            model.pieces.add(piece=piece, score=score, type=1)
    kind.path.write_bytes(model.SerializeToString())
    loaded = tokenizers.load(str(kind.path))
    assert backends.choose_backend(loaded, None, []) == "sentencepiece"
    expected = SentencePieceProcessor(model_file=str(kind.path)).encode("a qzk")
    assert split(*backends.make_encoder("sentencepiece", loaded)(["a qzk"])) == [expected]


@pytest.mark.parametrize(
    ("name", "eos"),
    [("gpt2", "e"), ("gpt2", "\u010a"), ("gpt2", "\u0120t"), ("unigram json", "<unk>")],
    ids=["a letter", "a line feed", "a letter after a space", "unknown characters"],
)
def test_a_tokenizer_whose_pieces_make_eos_is_rejected(run: Run, tmp_path: Path, name: str, eos: str) -> None:
    kind = kinds.make_kind(tmp_path / "tokenizer", name)
    edit(CONFIG, eos_token=eos)(kind.path)
    write_jsonl(tmp_path / "data/arxiv/a.jsonl", ["the text"])
    run("get_all_jsonl.py", "data", cwd=tmp_path)
    error = run("tokenize_jsonl.py", "--tokenizer", kind.path, cwd=tmp_path, status=2).stderr
    assert "in a document gets the id" in error and "eos_token" in error
    assert not (tmp_path / "tokenized/tokenizer").exists()


def test_what_is_hidden_from_a_text_counts_in_the_fingerprint(tmp_path: Path) -> None:
    kind = kinds.make_kind(tmp_path / "one", "unigram json")
    shutil.copytree(kind.path, tmp_path / "other")
    content = json.loads((kind.path / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<unk>"]
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(content))
    one, other = (tokenizers.load(str(tmp_path / name)) for name in ("one", "other"))
    encoded = [backends.make_encoder("tokenizers", loaded)(["a <unk>"])[0].tolist() for loaded in (one, other)]
    assert encoded[0] != encoded[1] and one.identity.fingerprint != other.identity.fingerprint


def test_a_name_that_is_not_a_tokenizer_gets_its_own_sentence(tmp_path: Path) -> None:
    kind = kinds.make_kind(tmp_path / "json", "gpt2")
    kinds.train_sentencepiece(tmp_path / "no_eos.model", **{**kinds.LLAMA_OPTIONS, "eos_id": -1})
    (tmp_path / "text.model").write_text("no model")
    (tmp_path / "pointer.model").write_text(POINTER)
    (tmp_path / "empty.model").touch()
    write_without_normalizer(tmp_path / "no_eos.model", tmp_path / "cut.model")
    (tmp_path / "llama3.model").write_text("IQ== 0\nIg== 1\n")
    for name, message in (
        (kind.path / "tokenizer.json", f"pass its folder, {kind.path}"),
        (tmp_path / "no_eos.model", "no EOS: it was trained with eos_id=-1"),
        (tmp_path / "text.model", "is not a SentencePiece model: download it again"),
        (tmp_path / "cut.model", "is empty or was cut off: download it again"),
        (tmp_path / "empty.model", "is empty or was cut off: download it again"),
        (tmp_path / "pointer.model", "git-lfs pointer to one: run `git lfs pull`"),
        (tmp_path / "llama3.model", "a tiktoken vocabulary .* pass the folder of the Hugging Face release"),
        (tmp_path / "gone.model", "does not exist: pass a hub name"),
        ("none/such", "no tokenizer 'none/such'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            tokenizers.load(str(name))


def test_a_hub_name_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--some--name/snapshots/0123"
    kind = kinds.make_kind(snapshot, "gpt2")
    (tmp_path / "models--some--name/refs").mkdir()
    (tmp_path / "models--some--name/refs/main").write_text("0123")
    script = "from cepe_data.tokens import tokenizers; print(tokenizers.load('some/name').identity.vocab_size)"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == kind.vocab_size and "looking for it on the Hugging Face hub" in done.stderr


USES = {
    "decode": "backends.make_decoder(tokenizer)(np.full(20_000, 7, np.int32), np.full(2000, 10))",
    "encode": "backends.make_encoder('tokenizers', tokenizer)(['some text'] * 2000)",
    "embed": "WordPieces(tokenizer.tokenizer_json).encode(['some text'] * 2000)",
}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
@pytest.mark.parametrize("use", USES)
def test_the_library_starts_no_threads_for_what_workers_do(tmp_path: Path, use: str) -> None:
    """Each of N workers would start as many as there are cores."""
    kind = kinds.make_kind(tmp_path, "gpt2")
    script = (
        "import os\nfrom pathlib import Path\nimport numpy as np\n"
        "from cepe_data.retrieval.encoder import WordPieces\n"
        "from cepe_data.tokens import backends, tokenizers\n"
        f"tokenizer = tokenizers.read_saved(Path({str(kind.path)!r}))\n"
        "before = os.listdir('/proc/self/task')\n"
        f"{USES[use]}\n"
        "assert os.listdir('/proc/self/task') == before"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment |= {"RAYON_NUM_THREADS": "4", "PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


# -- the world's tokenizer ---------------------------------------------------------------------------------------------


def saved_of(world: World) -> TokenizerFiles:
    return tokenizers.read_saved(world.tokenized / "tokenizer")


def test_backends_give_the_same_ids_and_the_text_comes_back(world: World) -> None:
    saved = saved_of(world)
    encoders = [backends.make_encoder(backend, saved) for backend in backends.BACKENDS]
    decode = backends.make_decoder(saved)
    plain = SentencePieceProcessor(model_file=str(world.tokenizer))

    @settings(max_examples=300, deadline=None)
    @given(st.lists(HARD, min_size=1, max_size=4))
    def check(texts: list[str]) -> None:
        expected = [plain.encode(text) for text in texts]
        for encode in encoders:
            assert split(*encode(texts)) == expected
        assert decode(*encoders[0](texts)) == [text.replace("\u2581", " ") for text in texts]

    check()
    backends.choose_backend(saved, "gigatoken", HARD_TEXTS)


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama with user-defined symbols", "unigram"])
def test_decoding_is_that_of_the_library_at_every_split_of_every_character(tmp_path: Path, name: str) -> None:
    kind = kinds.make_kind(tmp_path / "source", name)
    loaded = tokenizers.load(str(kind.path))
    tokenizers.save(loaded, tmp_path / "saved")
    text = "a 日本語 b👩‍👩‍👧 \u2581\u2581 é\0 \U0010ffff<s> ﬁn Newton"
    decode = backends.make_decoder(loaded)
    ids = np.array(kind.encode(text), np.int32)
    rng = np.random.default_rng(0)
    slices = [ids[start:stop] for start in range(len(ids)) for stop in range(start, len(ids) + 1)]
    # Bytes, special tokens and pieces in any order: runs of bytes that are UTF-8 in part, or over a special token.
    slices += [rng.integers(0, kind.vocab_size, rng.integers(0, 12)).astype(np.int32) for _ in range(2000)]
    if loaded.tokenizer_json is None:
        library = SentencePieceProcessor(model_file=str(kind.path))
        expected = [library.decode(part.tolist()) for part in slices]
    else:
        from transformers import AutoTokenizer

        reader = AutoTokenizer.from_pretrained(tmp_path / "saved")
        flags = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        expected = [reader.decode(part, **flags) for part in slices]
        assert any("\ufffd" in one for one in expected)
    assert decode(np.concatenate(slices), np.array([len(part) for part in slices])) == expected
    pieces = make_piece_texts(loaded)(ids.tolist())
    together = "".join(pieces).removeprefix(" ").replace("<unk>", " ⁇ ")
    assert len(pieces) == len(ids) and together == decode(ids, np.array([len(ids)]))[0]


def test_a_vocabulary_above_65536_and_no_bos_work(tmp_path: Path) -> None:
    kind = kinds.make_kind(tmp_path, "gpt2")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {f"filler{number}": 700 + number for number in range(69_000)}
    content["model"]["vocab"]["!!"] = 69_700
    content["model"]["merges"].append(["!", "!"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    loaded = tokenizers.load(str(kind.path))
    assert loaded.identity.bos_id is None and loaded.identity.vocab_size == 69_701
    for backend in ("tokenizers", "gigatoken"):
        ids = backends.make_encoder(backend, loaded)([f"hello!! {kinds.EOS}"])[0]
        assert loaded.identity.eos_id not in ids and max(ids) == 69_700
        assert backends.make_decoder(loaded)(ids, np.array([len(ids)])) == [f"hello!! {kinds.EOS}"]
    with pytest.raises(ArgumentError, match="needs a SentencePiece model"):
        backends.make_encoder("sentencepiece", loaded)


def test_a_backend_that_differs_is_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, make = saved_of(world), backends.make_encoder

    def make_wrong(backend: str, tokenizer: TokenizerFiles) -> backends.Encoder:
        right = make(backend, tokenizer)

        def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            ids, lengths = right(texts)
            starts = np.cumsum(lengths) - lengths
            for text, start in zip(texts, starts.tolist(), strict=True):
                if "needle" in text:
                    ids[start + 2] += 1
            return ids, lengths

        return encode if backend == "gigatoken" else right

    monkeypatch.setattr(backends, "make_encoder", make_wrong)
    assert backends.choose_backend(saved, None, ["no difference here"]) == "gigatoken"
    assert backends.choose_backend(saved, None, ["fine", "a needle in it"]) == "tokenizers"
    assert "the backend is tokenizers: gigatoken gives other ids than" in capsys.readouterr().out
    with pytest.raises(ArgumentError, match=r"other ids .* from token 2 on, for the text 'a needle in it'"):
        backends.choose_backend(saved, "gigatoken", ["fine", "a needle in it"])


def test_backends_agree_on_twenty_thousand_generated_strings_and_a_megabyte_without_a_space(world: World) -> None:
    encoders = [backends.make_encoder(backend, saved_of(world)) for backend in backends.BACKENDS]
    texts = kinds.generated_texts(20_000)
    texts += ["".join(random.Random(7).choices("abcdefgh日", k=1_000_000))]
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
        "from cepe_data import cli\n"
        "from cepe_data.tokens import backends, tokenizers\n"
        "def main():\n"
        "    encode = backends.make_encoder('gigatoken', tokenizers.read_saved(Path(sys.argv[1])))\n"
        "    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    for number in range(1000):\n"
        "        encode([f'some {other} words {number * other} {other * other}' for other in range(20_000)])\n"
        "cli.run(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(script), str(world.tokenized / "tokenizer")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 128 + signal.SIGTERM and "Traceback" not in done.stderr, done.stderr
