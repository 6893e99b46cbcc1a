"""The teacher's rows against a plain float32 forward pass.    pytest tests/test_calculate_logits.py"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from cepe_data.storage import mds, outputs, provenance
from cepe_data.storage.parts import PartedSet
from cepe_data.teacher.checkpoint import Checkpoint
from demo import models
from tests import reference, test_targets
from tests.conftest import VOCAB_SIZE, Run, World, add_stale_temporaries, make_wide_teacher
from tests.conftest import read_rows as read

LENGTHS = ("--num_encoder_tokens", 40, "--num_decoder_tokens", 24, "--topk", 10)
ANNOTATED = "OUT/train-logits-enc40-dec24-teacher"


@pytest.fixture(scope="module")
def rows(run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 11 train rows of book, and retrieved passages for them."""
    folder = tmp_path_factory.mktemp("rows")
    run("sample_mds_ab.py", "OUT", 128, 64, 0, 11, "--domains", "book=1", *world.source_flags, cwd=folder)
    draw = np.random.default_rng(0)
    columns = {
        "retrieved_token_ids": "ndarray:int16:9,8",
        "retrieved_neighbor_token_ids": "json",
        "retrieval_scores": "ndarray:float32:9",
    }
    retrieved = (
        {
            "retrieved_token_ids": draw.integers(3, VOCAB_SIZE, (9, 8), np.int16),
            "retrieved_neighbor_token_ids": [[1, 2], []],
            "retrieval_scores": np.zeros(9, np.float32),
        }
        for _ in range(11)
    )
    mds.write_shard(outputs.Output(folder / "RET/train/book", {}), columns, 11, retrieved)
    return folder


@pytest.fixture
def folder(rows: Path, world: World, tmp_path: Path) -> Path:
    """Copies of the rows and the teachers."""
    shutil.copytree(rows, tmp_path, dirs_exist_ok=True)
    for teacher in ("teacher", "other_teacher"):
        shutil.copytree(world.folder / teacher, tmp_path / teacher)
    return tmp_path


@pytest.fixture
def annotate(run: Run, folder: Path) -> Run:
    """Runs calculate_logits.py there; the last of equal flags counts."""
    where = ("--input_dir", "OUT/train", "--model_dir", "teacher", "--domain", "book")
    return functools.partial(run, "calculate_logits.py", *where, *LENGTHS, cwd=folder)


def check_rows(folder: Path, annotated: str, model: torch.nn.Module, contexts: Iterable[np.ndarray] = ()) -> None:
    """Compare every row with a forward pass; the contexts are by default the ends of prev_token_ids."""
    windows = read(folder / "OUT/train/book")
    contexts = [*contexts] or [window["prev_token_ids"][-40:] for window in windows]
    for row, context, window in zip(read(folder / annotated / "book"), contexts, windows, strict=True):
        check_row(row, model, context, window["token_ids"][:24])


def check_row(row: dict[str, Any], model: torch.nn.Module, context: np.ndarray, tokens: np.ndarray) -> None:
    """Compare a row with a float32 forward pass of the whole sequence, softmax and sort."""
    ids = torch.from_numpy(np.concatenate([context, tokens]).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(ids).logits[0, -len(tokens) :]
    probabilities = torch.softmax(logits.double(), -1).numpy()
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    topk = row["target_index"].shape[1]
    assert row["target_index"].dtype == np.int16 and row["target_prob"].dtype == np.float16
    assert row["target_prob"].shape == (len(tokens), topk + 1)
    assert (row["target_index"] == order[:, :topk]).all()
    expected = np.take_along_axis(probabilities, order, -1)
    rounding = 2.0**-11
    np.testing.assert_allclose(row["target_prob"][:, :topk], expected[:, :topk], rtol=2 * rounding, atol=1e-7)
    np.testing.assert_allclose(row["target_prob"][:, topk], expected[:, topk:].sum(-1), rtol=0.01, atol=1e-7)
    np.testing.assert_allclose(row["target_prob"].astype(np.float64).sum(-1), 1, atol=topk * rounding)
    assert (np.diff(row["target_prob"][:, :topk].astype(np.float32)) <= 0).all()


@pytest.mark.parametrize("context", ["prev_token_ids", "retrieved"])
def test_rows_equal_a_plain_float32_forward_pass(annotate: Run, folder: Path, context: str) -> None:
    if context == "retrieved":
        annotate("--retrieval_input_dir", "RET/train/", "--retrieval_k", 3)
        annotated = "RET/train-ret_k3-dec24-teacher"
        contexts = [row["retrieved_token_ids"][:3].flatten() for row in read(folder / "RET/train/book")]
    else:
        annotate("--input_dir", "OUT/train/", "--model_dir", "teacher//")
        annotated, contexts = ANNOTATED, []
    model = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
    check_rows(folder, annotated, model, contexts)
    assert len(read(folder / annotated / "book")) == 11


def test_shards_and_merge_give_the_bytes_of_one_run_in_any_order_and_number(annotate: Run, folder: Path) -> None:
    annotate = functools.partial(annotate, "--rows_per_part", 2)
    annotate()
    whole = reference.tree_bytes(folder / ANNOTATED / "book")
    shutil.rmtree(folder / ANNOTATED)
    annotate("--shard_id", 1, "--num_shards", 3)
    error = annotate("--num_shards", 3, "--merge", status=1).stderr
    assert "4 of 6 parts are missing" in error and "shard ids 0,2 of --num_shards 3" in error and "--array=0,2" in error
    other = annotate("--topk", 3, "--shard_id", 0, "--num_shards", 3, status=2).stderr
    assert "topk: was 10, now 3" in other and "All parts of" in other
    # The rest in another number of shards; then more shards than parts.
    done = annotate("--shard_id", 0, "--num_shards", 2)
    assert "skipped 1 of 3 parts" in done.stdout
    for shard in (9, 8, 7, 3, 0):
        annotate("--num_shards", 10, environment={"SLURM_ARRAY_TASK_ID": str(shard)})
    annotate("--shard_id", 0, "--num_shards", 10, "--merge")
    assert reference.tree_bytes(folder / ANNOTATED / "book") == whole
    for again in (("--merge",), ("--shard_id", 1, "--num_shards", 3), ()):
        assert "skipped, made before" in annotate(*again).stdout
    assert reference.tree_bytes(folder / ANNOTATED / "book") == whole


def test_another_model_or_other_arguments_are_refused_and_overwrite_replaces(annotate: Run, folder: Path) -> None:
    annotate("--rows_per_part", 4)
    before = reference.tree_bytes(folder / ANNOTATED)
    assert "topk: was 10, now 5" in annotate("--topk", 5, status=2).stderr
    assert "rows_per_part: was 4, now 3" in annotate("--rows_per_part", 3, status=2).stderr
    shutil.copy(folder / "other_teacher/model.safetensors", folder / "teacher")
    shutil.rmtree(folder / ANNOTATED / "book")
    error = annotate("--rows_per_part", 4, "--num_shards", 2, "--merge", status=2).stderr
    assert "part-00000 was made with other arguments or inputs: model: was" in error
    annotate("--rows_per_part", 4, "--overwrite")
    after = reference.tree_bytes(folder / ANNOTATED)
    assert after.keys() == before.keys() and after["book/shard.00000.mds"] != before["book/shard.00000.mds"]


@pytest.mark.parametrize(
    ("damage", "status", "message"),
    [("missing", 2, "lacks 1 weights, such as"), ("nan", 1, "not numbers"), ("truncated", 2, "cannot be loaded")],
)
def test_a_model_with_missing_or_broken_weights_is_refused(
    annotate: Run, folder: Path, damage: str, status: int, message: str
) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "teacher/model.safetensors"
    weights = load_file(path)
    if damage == "missing":
        del weights["lm_head.weight"]
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, path, {"format": "pt"})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    assert message in annotate(status=status).stderr
    assert not list((folder / "OUT").rglob("part-*"))


def test_a_join_takes_the_dtype_of_the_parts_and_odd_paths_have_names(annotate: Run, folder: Path) -> None:
    annotate("--dtype", "bfloat16", "--num_shards", 1, "--rows_per_part", 4)
    shutil.rmtree(folder / ANNOTATED / "book")
    annotate("--merge", "--rows_per_part", 4)
    assert "skipped, made before" in annotate("--rows_per_part", 4).stdout
    odd = ("--input_dir", ".", "--model_dir", "../../teacher/.", "--domain", "book/", "--rows_per_part", 4)
    assert "skipped, made before" in annotate(*odd, cwd=folder / "OUT/train").stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--domain", "arxiv"), "holds no MDS set"),
        (("--num_encoder_tokens", 65), "more than the 64 that prev_token_ids has"),
        (("--num_decoder_tokens", 65), "more than the 64 that token_ids has"),
        (("--topk", VOCAB_SIZE + 1), "more than the 800 words"),
        (("--model_dir", "none/such"), "no model 'none/such'"),
        (("--model_dir", "OUT"), "no model 'OUT'"),
        (("--model_dir", "small"), "knows only 700 words"),
        (("--model_dir", "narrow"), "more than the 63 positions"),
        (("--retrieval_input_dir", "RET/train", "--retrieval_k", 10), "more than the 9"),
        (("--retrieval_input_dir", "OUT/train"), "no column retrieved_token_ids"),
        (("--retrieval_input_dir", "short"), "has 3 rows"),
        (("--shard_id", 1), "needs --num_shards"),
        (("--num_gpus", 2), "more than the 0 GPUs"),
        (("--device", "cuda:0"), "torch sees 0 GPUs"),
        (("--device", "banana"), "is not supported"),
        (("--rows_per_part", 10**9), "an MDS shard holds at most"),
        (("--merge", "--dry_run"), "has no dry run"),
        (("--attn_implementation", "nothing"), "cannot be loaded"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    annotate: Run, folder: Path, change: tuple[Any, ...], message: str
) -> None:
    if "small" in change:
        models.make_teacher(folder / "small", 700)
    if "narrow" in change:
        GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB_SIZE, n_positions=63, n_embd=32, n_layer=1, n_head=2)
        ).save_pretrained(folder / "narrow")
    if "short" in change:
        retrieved = read(folder / "RET/train/book")[:3]
        mds.write_shard(
            outputs.Output(folder / "short/book", {}), mds.read_columns(folder / "RET/train/book"), 3, retrieved
        )
    before = sorted(os.listdir(folder / "OUT"))
    assert message in annotate(*change, status=2).stderr
    assert sorted(os.listdir(folder / "OUT")) == before


def test_batch_size_threads_and_processes_change_no_byte(annotate: Run, folder: Path) -> None:
    make_wide_teacher(folder / "wide")
    annotate = functools.partial(annotate, "--model_dir", "wide", "--num_encoder_tokens", 53, "--rows_per_part", 4)
    out = folder / "OUT/train-logits-enc53-dec24-wide"
    trees = []
    for flags, environment in (
        (("--batch_size", 1), {}),
        (("--batch_size", 3), {"SLURM_CPUS_PER_TASK": "3", "OMP_NUM_THREADS": "3"}),
        ((), {"SLURM_CPUS_PER_TASK": "2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "1"}),
        (("--num_gpus", 2, "--device", "cpu"), {}),
    ):
        done = annotate(*flags, environment=environment)
        assert "11 rows in 3 parts" in done.stdout and "eager" not in done.stderr
        trees.append(reference.tree_bytes(out))
        shutil.rmtree(out)
    assert trees[0] == trees[1] == trees[2] == trees[3]


def test_another_model_has_its_attention_checked_even_if_it_replaces_what_is_there(annotate: Run, folder: Path) -> None:
    annotate("--output_dir", "MADE")
    config = Gemma2Config(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, initializer_range=0.4, attn_logit_softcapping=1.0,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(folder / "capped")
    made = annotate("--output_dir", "MADE", "--model_dir", "capped", "--overwrite")
    assert provenance.read_meta(folder / "MADE/book").made_with["attn_implementation"] == "eager", made.stderr


@pytest.mark.skipif(int(transformers.__version__.partition(".")[0]) > 4, reason="transformers 5 reads the window")
def test_a_window_that_transformers_ignores_is_an_error(annotate: Run, folder: Path) -> None:
    """RecurrentGemma's; shorter sequences are the same with and without it."""
    for window, status in ((64, 0), (63, 2)):
        config = RecurrentGemmaConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
            lru_width=32, attention_window_size=window,
        )  # fmt: skip
        RecurrentGemmaForCausalLM(config).save_pretrained(folder / f"window_{window}")
        error = annotate("--model_dir", f"window_{window}", status=status).stderr
        assert (f"attention_window_size {window}" in error) == bool(status)


def test_a_process_that_fails_ends_the_others(annotate: Run, folder: Path) -> None:
    pool = folder / ANNOTATED / "book.parts"
    pool.mkdir(parents=True)
    (pool / "part-00001").mkdir()  # nothing says what made it
    error = annotate("--rows_per_part", 6, status=2).stderr
    assert "nothing says what made it" in error
    shutil.rmtree(pool)
    pool.write_text("in the way")
    error = annotate("--rows_per_part", 6, "--num_gpus", 2, "--device", "cpu", status=1).stderr
    assert f"{ANNOTATED}/book.parts" in error and "Traceback" not in error


def test_a_dry_run_times_a_batch_and_writes_nothing(annotate: Run, folder: Path) -> None:
    """It counts what is left of all shards."""
    annotate("--num_shards", 2, "--shard_id", 0, "--rows_per_part", 3)
    add_stale_temporaries(folder / ANNOTATED)
    before = reference.tree_bytes(folder / ANNOTATED)
    done = annotate("--num_shards", 2, "--rows_per_part", 3, "--dry_run")
    assert "5 sequences of 64 tokens" in done.stdout and "TFLOP/s" in done.stdout and "hours on cpu" in done.stdout
    assert f"about {5 * (24 * (11 * 2 + 10 * 2) + 4):,} bytes to write" in done.stdout
    assert reference.tree_bytes(folder / ANNOTATED) == before
    annotate("--rows_per_part", 3)
    assert "nothing is left to do" in annotate("--rows_per_part", 3, "--dry_run").stdout


def test_parts_go_once_they_are_joined(annotate: Run, folder: Path) -> None:
    annotate = functools.partial(annotate, "--rows_per_part", 6)
    for shard in (0, 1):
        annotate("--num_shards", 2, "--shard_id", shard)
    early = annotate("--num_shards", 2, "--shard_id", 0, "--delete_parts", status=2)
    assert "--delete_parts goes with --merge" in early.stderr
    annotate("--num_shards", 2, "--merge")
    pool = folder / ANNOTATED / "book.parts"
    assert len(list(pool.iterdir())) == 2
    for _ in range(2):
        annotate("--num_shards", 2, "--merge", "--delete_parts")
        assert not pool.exists()
    assert len(read(folder / ANNOTATED / "book")) == 11


def test_a_damaged_part_is_made_again_by_overwrite_and_a_merge_says_so(annotate: Run, folder: Path) -> None:
    annotate = functools.partial(annotate, "--rows_per_part", 6)
    annotate()
    whole = reference.tree_bytes(folder / ANNOTATED)
    part = folder / ANNOTATED / "book.parts/part-00001/shard.00000.mds"
    content = bytearray(part.read_bytes())
    part.unlink()  # else the joined set would change as well
    content[-1] ^= 1
    part.write_bytes(content)
    shutil.rmtree(folder / ANNOTATED / "book")
    (folder / ANNOTATED / "book.parts/part-00000/meta.json").write_text("{")
    error = annotate("--merge", "--overwrite", status=1).stderr
    assert "2 of 2 parts are missing or not right" in error and "--overwrite" in error
    annotate("--overwrite")
    assert reference.tree_bytes(folder / ANNOTATED) == whole
    # A dry run removes nothing, and what a killed merge left goes away.
    stale = folder / ANNOTATED / f".tmp-book-{outputs._HOST}-999999"
    stale.mkdir()
    annotate("--dry_run", "--delete_parts")
    assert stale.exists()
    annotate("--merge")
    assert reference.tree_bytes(folder / ANNOTATED) == whole
    assert sorted(os.listdir(folder / ANNOTATED)) == ["book", "book.parts"]


def test_shards_of_an_input_that_differ_are_refused(annotate: Run, folder: Path) -> None:
    index = json.loads((folder / "OUT/train/book/index.json").read_text())
    columns = mds.read_columns(folder / "OUT/train/book")
    short = {**columns, "token_ids": mds.array_column(np.dtype(np.int16), 30)}
    shortened = [{**row, "token_ids": row["token_ids"][:30]} for row in read(folder / "OUT/train/book")]
    mds.write_shard(outputs.Output(folder / "short", {}), short, len(shortened), shortened)
    shutil.copy(folder / "short/shard.00000.mds", folder / "OUT/train/book/shard.00001.mds")
    [other] = json.loads((folder / "short/index.json").read_text())["shards"]
    other["raw_data"]["basename"] = "shard.00001.mds"
    index["shards"].append(other)
    (folder / "OUT/train/book/index.json").write_text(json.dumps(index))
    error = annotate(status=1).stderr
    assert "shard.00001.mds has other columns than the first shard" in error


def test_the_tokenizer_beside_the_model_is_that_of_the_rows_or_it_is_refused(
    annotate: Run, world: World, folder: Path
) -> None:
    models.train_tokenizer(["other words than those of the corpus"], folder / "teacher/tokenizer.model", 290)
    error = annotate(status=2).stderr
    assert "OUT/train/book was made with another tokenizer" in error and "--allow_other_tokenizer" in error
    allowed = annotate("--allow_other_tokenizer")
    shutil.copy(world.tokenizer, folder / "teacher/tokenizer.model")
    done = annotate()
    assert "skipped, made before" in done.stdout and not done.stderr and "11 rows" in allowed.stdout
    (folder / "teacher/tokenizer.model").unlink()
    error = annotate().stderr
    assert "teacher has no tokenizer.json and no tokenizer.model" in error and "is not checked" in error
    # A damaged row, of a set that says that its ids are all known.
    path = folder / "OUT/train/book/shard.00000.mds"
    content = bytearray(path.read_bytes())
    content[-30:-28] = (31_000).to_bytes(2, "little")
    path.write_bytes(content)
    error = annotate("--num_decoder_tokens", 64, status=2).stderr
    assert "row 10 of OUT/train/book has ids from" in error and "to 31000" in error


def test_padding_of_the_vocabulary_is_counted_or_left_out(run: Run, annotate: Run, world: World, folder: Path) -> None:
    models.make_teacher(folder / "padded", 900)
    shutil.copy(world.tokenizer, folder / "padded")
    annotate = functools.partial(annotate, "--model_dir", "padded")
    out = folder / "OUT/train-logits-enc40-dec24-padded/book"
    told = annotate().stderr
    index = np.stack([row["target_index"] for row in read(out)])
    num_padding = int((index >= VOCAB_SIZE).sum())
    assert f"{num_padding:,} of {index.size:,} ids ({num_padding / index.size:.2%})" in told and num_padding > 100
    assert "num_words: was absent, now 800" in annotate("--num_words", "tokenizer", status=2).stderr
    shutil.rmtree(out.parent)
    assert not annotate("--num_words", "tokenizer").stderr
    assert "skipped, made before" in annotate("--num_words", VOCAB_SIZE).stdout
    model = AutoModelForCausalLM.from_pretrained(folder / "padded", dtype=torch.float32)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight[:VOCAB_SIZE])
    check_rows(folder, "OUT/train-logits-enc40-dec24-padded", model)
    # Passages that other sets of the same check may have as context are not read.
    flags = ("--model_dir", "padded", "--retrieval_input_dir", "RET/train")
    checked = run("sanity_check.py", "teacher", out, *flags, cwd=folder).stdout
    assert "2 computed once more: 0 findings" in checked
    assert "more than the 900 words" in annotate("--num_words", 901, status=2).stderr


@pytest.mark.filterwarnings("ignore")
def test_the_attention_is_the_one_that_is_right_and_is_remembered(run: Run, annotate: Run, folder: Path) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_key_value_heads=1, head_dim=16, initializer_range=0.4, attn_logit_softcapping=1.0,
        max_position_embeddings=63,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(folder / "gemma")
    annotate = functools.partial(annotate, "--model_dir", "gemma", "--rows_per_part", 6)
    out = folder / "OUT/train-logits-enc40-dec24-gemma"
    told = annotate("--num_shards", 2, "--shard_id", 0).stderr
    assert "more than the 63 positions" in told, "rotary positions go on: a warning"
    other = annotate("--num_shards", 2, "--attn_implementation", "sdpa", "--shard_id", 1, status=2)
    assert 'attn_implementation: was "eager", now "sdpa"' in other.stderr
    annotate("--num_shards", 2, "--shard_id", 1, "--attn_implementation", "eager")
    annotate("--num_shards", 2, "--merge")
    assert "skipped, made before" in annotate("--attn_implementation", "eager").stdout
    meta = json.loads((out / "book/meta.json").read_text())
    assert meta["made_with"]["attn_implementation"] == "eager" and meta["transformers"] == [transformers.__version__]
    model = AutoModelForCausalLM.from_pretrained(folder / "gemma", dtype=torch.float32, attn_implementation="eager")
    check_rows(folder, "OUT/train-logits-enc40-dec24-gemma", model)
    run("sanity_check.py", "teacher", out, "--model_dir", "gemma", cwd=folder)
    error = annotate("--compile", status=2).stderr
    assert "compile: was absent, now true" in error


def test_a_student_learns_from_the_rows_next_to_the_input(annotate: Run, folder: Path, streaming: Any) -> None:
    """What the trainer does: both sets by row number, KL over the top-k and the rest."""
    annotate()
    windows, targets = (
        streaming.StreamingDataset(streams=[streaming.Stream(local=str(path))], shuffle=False, batch_size=1)
        for path in (folder / "OUT/train/book", folder / ANNOTATED / "book")
    )
    assert len(windows) == len(targets) == 11
    models.make_teacher(folder / "student", VOCAB_SIZE, seed=5)
    student = AutoModelForCausalLM.from_pretrained(folder / "student")
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    losses = []
    for step in range(60):
        window, target = windows[step % 11], targets[step % 11]
        context = torch.tensor(window["prev_token_ids"][-40:], dtype=torch.long)
        ids = torch.cat([context, torch.tensor(window["token_ids"][:24], dtype=torch.long)])
        prob = torch.tensor(target["target_prob"], dtype=torch.float32)
        index = torch.tensor(target["target_index"], dtype=torch.long)
        log_q = torch.log_softmax(student(ids[None]).logits[0, -24:], -1)
        top = log_q.gather(-1, index)
        rest = torch.log1p(-top.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
        loss = torch.nn.functional.kl_div(torch.cat([top, rest], -1), prob, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-11:]) < 0.5 * np.mean(losses[:11])


def test_a_set_that_grew_or_whose_later_rows_changed_keeps_the_parts_of_the_same_rows(
    run: Run, annotate: Run, world: World, folder: Path
) -> None:
    """With the parts still there, and once more with those that only the joined set has."""
    annotate = functools.partial(annotate, "--rows_per_part", 4)
    sample = ("sample_mds_ab.py", "OUT", 128, 64, 0)
    flags = ("--domains", "book=1", "--overwrite", *world.source_flags)
    annotate("--delete_parts")
    run(*sample, 18, *flags, cwd=folder)
    error = annotate(status=2).stderr
    assert "input: was" in error and "--overwrite" in error
    done = annotate("--overwrite").stdout
    assert "skipped 2 of 5 parts" in done and "10 rows in 3 parts" in done  # 12 to 18, and the part of 8 to 11 again
    grown = reference.tree_bytes(folder / ANNOTATED)
    annotate("--output_dir", "fresh")
    fresh = reference.tree_bytes(folder / "fresh")
    assert {name: fresh[name] for name in fresh if name.endswith(("mds", "index.json"))} == {
        name: grown[name] for name in grown if name.endswith(("mds", "index.json"))
    }
    # An array that nobody joined yet; then row 13 changes, in a set that is cut into other shards.
    shutil.rmtree(folder / ANNOTATED / "book")
    columns, windows = mds.read_columns(folder / "OUT/train/book"), list(mds.Rows(folder / "OUT/train/book"))
    windows[13]["token_ids"] = windows[12]["token_ids"]
    shutil.rmtree(folder / "OUT/train/book")
    of_set = PartedSet(folder / "OUT/train/book", columns, 18, 7, {}, outputs.REPLACE_NOTHING)
    for part, (start, stop) in enumerate(of_set.part_ranges):
        of_set.write_part(part, windows[start:stop])
    of_set.publish({}, lambda draft: None)
    error = annotate("--num_shards", 2, "--merge", status=2).stderr
    assert "part-00003 was made with other arguments or inputs: input: was" in error
    done = annotate("--overwrite").stdout
    assert "skipped 4 of 5 parts" in done and "4 rows in 1 parts" in done


def test_all_domains_at_once_and_a_merge_that_finds_the_size_of_parts(run: Run, annotate: Run, folder: Path) -> None:
    shutil.copytree(folder / "OUT/train/book", folder / "OUT/train/wiki")
    (folder / "OUT/train/book.parts").mkdir()  # what a killed sampler leaves is not a domain
    annotate("--domain", "book", "--rows_per_part", 4, "--output_dir", "one")
    both = functools.partial(annotate, "--output_dir", "both", "--num_shards", 2)
    for shard in (1, 0):
        done = both("--domain", "all", "--rows_per_part", 4, "--shard_id", shard)
    assert "8 rows in 2 parts" in done.stdout, "one part of each domain"
    both("--domain", "wiki,book", "--merge")
    assert reference.tree_bytes(folder / "both/book") == reference.tree_bytes(folder / "one/book")
    assert len(read(folder / "both/wiki")) == 11
    error = both("--domain", "book,../wiki", "--merge", status=2).stderr
    assert "'../wiki' is not a name of a domain folder" in error
    checked = run("sanity_check.py", "teacher", "both", "--input_dir", "OUT/train", cwd=folder)
    assert "2 sets, 22 rows" in checked.stdout


def test_sampled_targets_are_those_of_the_formula_for_any_batches_and_shards(
    run: Run, annotate: Run, world: World, folder: Path
) -> None:
    annotate = functools.partial(annotate, "--target", "sampled", "--num_samples", 6, "--seed", 3)
    annotate("--batch_size", 3, "--rows_per_part", 11)
    made = read(folder / ANNOTATED / "book")
    sharded = functools.partial(annotate, "--output_dir", "sharded", "--rows_per_part", 2, "--num_shards", 2)
    for shard in (1, 0):
        sharded("--shard_id", shard)
    sharded("--merge")
    model = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
    num_different = 0
    windows = read(folder / "OUT/train/book")
    for number, (row, other, window) in enumerate(zip(made, read(folder / "sharded/book"), windows, strict=True)):
        assert all((row[name] == other[name]).all() for name in row) and row["target_index"].dtype == np.int16
        assert row["target_prob"].shape == (24, 7) and row["target_prob"].dtype == np.float16
        ids = np.concatenate([window["prev_token_ids"][-40:], window["token_ids"][:24]]).astype(np.int64)
        with torch.no_grad():
            probabilities = torch.softmax(model(torch.from_numpy(ids)[None]).logits[0, -24:].double(), -1).numpy()
        boundaries = probabilities.cumsum(-1)
        numbers = test_targets.uniforms(f"3/book/{number}", 24, 6)
        for position in range(24):
            drawn = Counter(np.searchsorted(boundaries[position], numbers[position], "right").tolist())
            shares = zip(row["target_index"][position].tolist(), row["target_prob"][position].tolist(), strict=False)
            stored = Counter({word: round(share * 6) for word, share in shares if share})
            num_different += stored != drawn
    assert num_different <= 1, "but for a number at a boundary"
    # What looks at it knows it; another teacher of the same kind did not draw these.
    flags = ("--deep", "--model_dir", "teacher", "--plot", "a.png")
    checked = run("sanity_check.py", "teacher", ANNOTATED, *flags, cwd=folder)
    assert "2 computed once more: 0 findings" in checked.stdout and "it is not drawn" in checked.stderr
    show = ("sanity_check.py", "show", f"{ANNOTATED}/book", 0, "--tokenized_dir", world.tokenized)
    assert "the shares of 6 draws" in run(*show, cwd=folder).stdout
    path = folder / ANNOTATED / "book/meta.json"
    meta = json.loads(path.read_text())
    meta["made_with"]["num_samples"] = 7
    path.write_text(json.dumps(provenance.signed(meta)))
    error = run("sanity_check.py", "teacher", ANNOTATED, cwd=folder, status=1).stdout
    assert "not the shares of 7 draws, at position 0" in error
    shutil.copy(folder / "sharded/book/meta.json", path)
    shutil.rmtree(folder / "teacher")
    shutil.copytree(folder / "other_teacher", folder / "teacher")
    meta["made_with"] |= {"num_samples": 6, "model": Checkpoint.find(str(folder / "teacher"), "model").fingerprint()}
    path.write_text(json.dumps(provenance.signed(meta)))
    error = run("sanity_check.py", "teacher", ANNOTATED, "--model_dir", "teacher", cwd=folder, status=1).stdout
    assert "is not what the model gives" in error
