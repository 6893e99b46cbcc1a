"""Teachers of several families against float64, and the choice of batches.    pytest tests/test_teacher.py"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.teacher import model as teacher_model
from cepe_data.teacher.checkpoint import Checkpoint
from cepe_data.teacher.targets import TopK

VOCAB_SIZE = 500
SMALL = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MLP = {"intermediate_size": 64, "num_key_value_heads": 1, "initializer_range": 0.4}
FAMILIES: dict[str, Any] = {
    "Llama": {**SMALL, **MLP},
    "GPT2": {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.4},
    "GPTNeoX": {**SMALL, "intermediate_size": 64, "initializer_range": 0.4},
    "OPT": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 16, "max_position_embeddings": 128, "init_std": 0.4},
    "Phi": {**SMALL, **MLP},  # a head with a bias
    "Gemma2": {**SMALL, **MLP, "head_dim": 16, "final_logit_softcapping": 3.0},
    "Cohere": {**SMALL, **MLP, "logit_scale": 0.3},
    "Granite": {**SMALL, **MLP, "logits_scaling": 3.0},
    "Gemma3": {**SMALL, **MLP, "head_dim": 16},
    "Mamba": {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.4},
}


def save_model(family: str, folder: Path) -> Any:
    torch.manual_seed(0)
    name = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    config = getattr(transformers, name)(**FAMILIES[family])
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    model.save_pretrained(folder)
    return model.eval()


def open_teacher(folder: Path, device: str = "cpu", **others: Any) -> teacher_model.Teacher:
    settings = {"num_tokens": 60, "num_positions": 20, "targets": TopK(10), "dtype": "float32", "run_length": 7}
    asked = teacher_model.Settings(**{**settings, **others})
    return teacher_model.Teacher(Checkpoint.find(str(folder), "model"), asked, device)


def make_sequences(number: int) -> list[tuple[str, np.ndarray]]:
    ids = np.random.default_rng(0).integers(3, VOCAB_SIZE, (number, 60))
    return [(f"book/{row}", of_row) for row, of_row in enumerate(ids)]


def float64_probabilities(model: Any, sequence: np.ndarray, num_positions: int) -> np.ndarray:
    with torch.no_grad():
        logits = model.double()(input_ids=torch.from_numpy(sequence)[None], use_cache=False).logits[0, -num_positions:]
    return torch.softmax(logits, -1).numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_any_family_are_those_of_the_model_itself_in_float64(family: str, device: str, tmp_path: Path) -> None:
    model = save_model(family, tmp_path)
    sequences = make_sequences(3)
    one = open_teacher(tmp_path, device)
    annotated = list(one.annotate([sequences[:2], sequences[2:]]))
    for (_, sequence), row in zip(sequences, annotated, strict=True):
        expected = float64_probabilities(model, sequence, 20)
        assert row["target_prob"].shape == (20, 11) and row["target_prob"].dtype == np.float16
        chosen = np.take_along_axis(expected, row["target_index"].astype(np.int64), -1)
        rounding = 2.0**-11
        np.testing.assert_allclose(row["target_prob"][:, :10], chosen, rtol=2 * rounding, atol=2.0**-24)
        np.testing.assert_allclose(chosen, -np.sort(-expected, -1)[:, :10], rtol=1e-4)
        np.testing.assert_allclose(row["target_prob"][:, 10], 1 - chosen.sum(-1), rtol=0.01, atol=2.0**-24)


def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SMALL, intermediate_size=64)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="is not causal"):
        open_teacher(tmp_path)


def test_a_cap_of_another_name_is_left_to_the_model(tmp_path: Path) -> None:
    config = transformers.RecurrentGemmaConfig(**SMALL, intermediate_size=64, logits_soft_cap=5.0, lru_width=32)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 30
    model.save_pretrained(tmp_path)
    one = open_teacher(tmp_path)
    (row,) = one.annotate([make_sequences(1)])
    expected = float64_probabilities(model.eval(), make_sequences(1)[0][1], 20)
    np.testing.assert_allclose(row["target_prob"][:, 0], expected.max(-1), rtol=2e-3)


def test_a_model_that_changes_its_logits_in_its_own_way_is_asked_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_model("Llama", tmp_path)
    forward = transformers.LlamaForCausalLM.forward

    def squared(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = forward(self, *args, **kwargs)
        outputs.logits = outputs.logits**3
        return outputs

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", squared)
    one = open_teacher(tmp_path)
    (row,) = one.annotate([make_sequences(1)])
    expected = float64_probabilities(model, make_sequences(1)[0][1], 20)
    np.testing.assert_allclose(row["target_prob"][:, 0], expected.max(-1), rtol=1e-3)


def test_tails_down_to_a_millionth_are_within_one_percent_in_float64() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 1, (400, 32_000))
    logits[:, :50] += draw.uniform(0, 25, (400, 1))  # tails from nearly all to nearly nothing
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    order = np.argsort(-expected, -1, kind="stable")[:, :50]
    rest = expected.copy()
    np.put_along_axis(rest, order, 0, -1)
    tails = rest.sum(-1)
    assert tails.min() < 1e-6 and tails.max() > 0.5
    prob, index = TopK(50).of_logits(torch.from_numpy(logits.astype(np.float32)), torch.empty(400, 0))
    assert (np.sort(index.numpy(), -1) == np.sort(order, -1)).mean() > 0.999  # but for ties in float32
    np.testing.assert_allclose(prob[:, 50].numpy()[tails > 1e-6], tails[tails > 1e-6], rtol=0.01)
    np.testing.assert_allclose(prob[:, 50].numpy(), tails, rtol=0.01)
    stored = prob[:, 50].half().numpy()
    np.testing.assert_allclose(stored, tails, rtol=0.01, atol=2.0**-25)  # half a step of float16 below 6.1e-5


def test_half_precision_models_give_float32_logits(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    (row,) = open_teacher(tmp_path, dtype="bfloat16").annotate([make_sequences(1)])
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.inference_mode():
        hidden = model.base_model(input_ids=torch.from_numpy(make_sequences(1)[0][1])[None])[0][0, -20:]
        expected = torch.softmax(hidden.double() @ model.get_output_embeddings().weight.double().T, -1)
    np.testing.assert_allclose(row["target_prob"][:, 0], expected.amax(-1), rtol=2.0**-10)


def test_memory_that_is_not_there_names_the_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model("Llama", tmp_path)
    one = open_teacher(tmp_path, batch_size=2)

    def too_much(*_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(one, "compute", too_much)
    with pytest.raises(PipelineError, match="the memory of cpu is not enough: lower --batch_size"):
        list(one.annotate([make_sequences(2)]))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++, which is not here")
def test_compiled_layers_give_the_same_rows(device: str, tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    teachers = [open_teacher(tmp_path, device, compile=compiled) for compiled in (False, True)]
    rows = [next(iter(one.annotate([make_sequences(1)]))) for one in teachers]
    assert (rows[0]["target_index"] == rows[1]["target_index"]).all()
    np.testing.assert_allclose(rows[0]["target_prob"], rows[1]["target_prob"], rtol=2.0**-10, atol=2.0**-24)


# Without AVX-512, sums of this product depend on the number of threads.
PRODUCTS = """
import torch
from cepe_data.teacher import devices
left, right = torch.randn(77, 688), torch.randn(256, 688)
with devices.thread_pool(1) as pool:
    found = pool.submit(torch.mm, left, right.T).result()
torch.set_num_threads(1)
assert torch.equal(found, torch.mm(left, right.T))
"""


def test_the_first_product_of_a_thread_uses_one_core() -> None:
    environment = {**os.environ, "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", PRODUCTS], env=environment, check=True, cwd=Path(__file__).parent.parent)


def test_operations_are_counted_as_the_formula_says(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    in_layers = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32  # q and o, k and v, MLP, norms; last norm
    expected = 2 * 60 * in_layers + 2 * 2 * 60 * 60 * 32 + 2 * 20 * 32 * VOCAB_SIZE
    assert open_teacher(tmp_path).num_flops() == expected


def test_batches_fill_a_run_with_the_least_left_over() -> None:
    for max_batch in range(1, 40):
        for run_length in (1, 2, 7, 100, 324):
            size = teacher_model.least_filled_batch(max_batch, run_length)
            assert min(max_batch, run_length) // 2 < size <= min(max_batch, run_length)
            evenly = -(-run_length // size) * size - run_length
            assert evenly <= -run_length % min(max_batch, run_length)
    assert teacher_model.least_filled_batch(0, 5) == 1
