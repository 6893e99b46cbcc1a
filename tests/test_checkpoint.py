"""Models' folders, and whether the installed transformers reads them as meant.    pytest tests/test_checkpoint.py

The tests hold for transformers 4 and 5: configurations of both are written by hand.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from cepe_data.errors import ArgumentError
from cepe_data.teacher import model as teacher_model
from cepe_data.teacher.checkpoint import Checkpoint, position_limit

MAJOR = int(transformers.__version__.split(".")[0])
SMALL = {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MLP = {"intermediate_size": 64, "num_key_value_heads": 1, "initializer_range": 0.4}
THETA = 500_000.0
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
OF_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256, "tie_word_embeddings": False, **SMALL, **MLP,
}  # fmt: skip
VERSIONS: dict[int, dict[str, dict[str, Any]]] = {
    4: {
        "default": {"transformers_version": "4.40.0", "rope_theta": THETA, "rope_scaling": None},
        "llama3": {"transformers_version": "4.43.0", "rope_theta": THETA, "rope_scaling": LLAMA3},
    },
    5: {
        "default": {"transformers_version": "5.1.0", "rope_parameters": {"rope_theta": THETA, "rope_type": "default"}},
        "llama3": {"transformers_version": "5.1.0", "rope_parameters": {"rope_theta": THETA, **LLAMA3}},
    },
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of a small LLaMA."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **MLP)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(llama, tmp_path / "model")


def find(folder: Path, config: dict[str, Any] | None = None) -> Checkpoint:
    """The model in a folder, with this content of config.json."""
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint.find(str(folder), "model")


def frequencies(rope_type: str) -> list[float]:
    """The frequencies of rotary positions, a number at a time (Su et al. 2021; LLaMA 3.1's code, model.py)."""
    head_dim = SMALL["hidden_size"] // SMALL["num_attention_heads"]
    found = []
    for pair in range(head_dim // 2):
        frequency = THETA ** (-2 * pair / head_dim)
        if rope_type == "llama3":
            turns = 32 * frequency / (2 * math.pi)  # in the original context
            smooth = min(1.0, max(0.0, (turns - 1) / (4 - 1)))
            frequency = (1 - smooth) * frequency / 8 + smooth * frequency
        found.append(frequency)
    return found


@pytest.mark.parametrize("rope_type", ["default", "llama3"])
@pytest.mark.parametrize("version", [4, 5])
def test_rotary_frequencies_are_those_of_the_configuration_or_it_is_refused(
    folder: Path, version: int, rope_type: str
) -> None:
    config = {**OF_LLAMA, **VERSIONS[version][rope_type]}
    if version > MAJOR:
        message = r'"rope_parameters", which transformers 4.* with transformers 5'
        with pytest.raises(ArgumentError, match=message) as hint:
            find(folder, config)
        # The remedy that the message names makes the configuration that version 4 reads.
        assert f'"rope_theta": {THETA}' in str(hint.value) and ('"llama3"' in str(hint.value)) == (
            rope_type == "llama3"
        )
        rope = {key: value for key, value in config.pop("rope_parameters").items() if key != "rope_theta"}
        config |= {"rope_theta": THETA, "transformers_version": transformers.__version__}
        config |= {"rope_scaling": rope} if rope_type == "llama3" else {}
    model = find(folder, config).load("AutoModelForCausalLM", "model")
    [found] = [buffer for name, buffer in model.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    np.testing.assert_allclose(found, frequencies(rope_type), rtol=1e-6)


def test_configurations_of_a_later_major_version_are_refused_and_of_a_later_minor_one_not(folder: Path) -> None:
    config = {**OF_LLAMA, "transformers_version": f"{MAJOR + 1}.0.0.dev0"}
    with pytest.raises(ArgumentError, match=f"saved by transformers {MAJOR + 1}.0.0.dev0"):
        find(folder, config)
    find(folder, {**config, "transformers_version": f"{MAJOR}.999.0"})


def keep_only_gguf(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")


def replace_by_pointer(path: Path) -> None:
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 13476838616\n")


def give_code(folder: Path) -> None:
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.LM"}
    config = {**OF_LLAMA, "model_type": "own", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('code of the model ran')")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda folder: (folder / "adapter_config.json").write_text("{}"), "merge the adapter", id="adapter"
        ),
        pytest.param(lambda folder: replace_by_pointer(folder / "model.safetensors"), "git lfs pull", id="pointer"),
        pytest.param(lambda folder: replace_by_pointer(folder / "config.json"), "git lfs pull", id="config is pointer"),
        pytest.param(keep_only_gguf, r"only \.gguf", id="gguf"),
        pytest.param(lambda folder: (folder / "model.safetensors").unlink(), "no weights of a model", id="no weights"),
        pytest.param(give_code, "code of its own", id="code"),
    ],
)
def test_folders_that_are_not_a_whole_model_are_refused(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(ArgumentError, match=message):
        find(folder).fingerprint()


def test_the_fingerprint_covers_shards_below_and_configurations_for_versions(folder: Path) -> None:
    weights = folder / "parts/model-00001-of-00001.safetensors"
    weights.parent.mkdir()
    (folder / "model.safetensors").rename(weights)
    index = {"weight_map": {"lm_head.weight": f"parts/{weights.name}", "gone": "gone.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config, versioned = json.loads((folder / "config.json").read_text()), folder / "config.4.0.0.json"
    versioned.write_text(json.dumps(config))
    found = {find(folder, {**config, "configuration_files": [versioned.name]}).fingerprint()}
    versioned.write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    found.add(find(folder).fingerprint())
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found.add(find(folder).fingerprint())
    assert len(found) == 3


@pytest.mark.parametrize(
    ("scaling", "limit"),
    [
        (None, 4096),
        ({"type": "linear", "factor": 4.0}, 16384),
        ({"rope_type": "dynamic", "factor": 2.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048}, 4096),  # of the original 2,048
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 65536),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, 4096),
    ],
)
def test_scaling_of_rotary_positions_raises_their_limit(scaling: dict[str, Any] | None, limit: int) -> None:
    assert position_limit({"max_position_embeddings": 4096, "rope_scaling": scaling}) == limit
    if scaling is not None and "rope_type" in scaling:
        assert position_limit({"max_position_embeddings": 4096, "rope_parameters": scaling}) == limit
        by_layer = {"full_attention": scaling, "sliding_attention": {"rope_type": "default"}}
        assert position_limit({"max_position_embeddings": 4096, "rope_parameters": by_layer}) == limit


GEMMA2 = {**SMALL, **MLP, "head_dim": 16, "attn_logit_softcapping": 1.0}
FALCON = {**SMALL, "initializer_range": 0.4, "multi_query": False, "new_decoder_architecture": False}


@pytest.mark.parametrize(
    ("config", "is_rotary", "has_right_sdpa"),
    [
        pytest.param(transformers.LlamaConfig(**SMALL, **MLP), True, True, id="llama"),
        pytest.param(transformers.GPT2Config(vocab_size=500, n_embd=32, n_layer=2, n_head=2), False, True, id="gpt2"),
        pytest.param(transformers.Gemma2Config(**GEMMA2), True, False, id="gemma2"),
        pytest.param(transformers.FalconConfig(**FALCON, alibi=True), True, False, id="falcon with alibi"),
        pytest.param(transformers.FalconConfig(**FALCON, alibi=False), True, True, id="falcon"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_attention_and_positions_of_families(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Any, is_rotary: bool, has_right_sdpa: bool
) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    checkpoint = find(tmp_path)
    assert checkpoint.has_rotary_positions() == is_rotary
    arguments = (checkpoint, "bfloat16", "cpu", 300)
    chosen = teacher_model.choose_attention(*arguments, None)
    assert chosen == ("sdpa" if has_right_sdpa else "eager")
    assert teacher_model.choose_attention(*arguments, "eager") == "eager"
    if config.model_type == "gemma2" and MAJOR > 4:
        with pytest.raises(ArgumentError, match="does not support"):
            teacher_model.choose_attention(*arguments, "sdpa")
        return
    capsys.readouterr()
    assert teacher_model.choose_attention(*arguments, "sdpa") == "sdpa"
    assert ("sdpa attention gives other probabilities" in capsys.readouterr().err) == (not has_right_sdpa)
