"""The teacher's rows against a plain float32 forward pass.    pytest tests/test_calculate_logits.py"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from cepe_data.storage import outputs, provenance
from cepe_data.storage.parts import PartedSet
from cepe_data.teacher.checkpoint import Checkpoint
from tests import reference, test_targets
from tests.conftest import VOCAB_SIZE, Run, World, make_wide_teacher
from tests.conftest import read_rows as read

LENGTHS = ("--num_encoder_tokens", 40, "--num_decoder_tokens", 24, "--topk", 10)
NAME = "train-logits-enc40-dec24-teacher"


@pytest.fixture(scope="module")
def rows(run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 11 train rows of book, and retrieved passages for them."""
    from cepe_data.storage import mds

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


def lay_out(folder: Path, rows: Path, world: World) -> tuple[Path, tuple[Any, ...]]:
    """A copy of the rows, and the arguments that every call has."""
    shutil.copytree(rows, folder, dirs_exist_ok=True)
    for teacher in ("teacher", "other_teacher"):
        (folder / teacher).symlink_to(world.folder / teacher)
    return folder, (
        "calculate_logits.py",
        "--input_dir",
        "OUT/train",
        "--model_dir",
        "teacher",
        "--domain",
        "book",
        *LENGTHS,
    )


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
def test_rows_equal_a_plain_float32_forward_pass(
    run: Run, world: World, rows: Path, tmp_path: Path, context: str
) -> None:
    _, command = lay_out(tmp_path, rows, world)
    if context == "retrieved":
        run(*command, "--retrieval_input_dir", "RET/train/", "--retrieval_k", 3, cwd=tmp_path)
        made = read(tmp_path / "RET/train-ret_k3-dec24-teacher/book")
        retrieved = read(tmp_path / "RET/train/book")
        contexts = [np.concatenate(list(row["retrieved_token_ids"][:3])) for row in retrieved]
    else:
        run(*command, "--input_dir", "OUT/train/", "--model_dir", "teacher//", cwd=tmp_path)
        made = read(tmp_path / "OUT" / NAME / "book")
        contexts = [row["prev_token_ids"][-40:] for row in read(tmp_path / "OUT/train/book")]
    model = AutoModelForCausalLM.from_pretrained(world.folder / "teacher", dtype=torch.float32)
    windows = read(tmp_path / "OUT/train/book")
    assert len(made) == len(windows) == 11
    for row, before, window in zip(made, contexts, windows, strict=True):
        check_row(row, model, before, window["token_ids"][:24])


def test_shards_and_merge_give_the_bytes_of_one_run_in_any_order_and_number(
    run: Run, world: World, rows: Path, tmp_path: Path
) -> None:
    _, command = lay_out(tmp_path, rows, world)
    parts = (*command, "--rows_per_part", 2)
    run(*parts, cwd=tmp_path)
    whole = reference.tree_bytes(tmp_path / "OUT" / NAME / "book")
    shutil.rmtree(tmp_path / "OUT" / NAME)
    run(*parts, "--shard_id", 1, "--num_shards", 3, cwd=tmp_path)
    error = run(*parts, "--num_shards", 3, "--merge", cwd=tmp_path, status=1).stderr
    assert "4 of 6 parts are missing" in error and "shard ids 0,2 of --num_shards 3" in error and "--array=0,2" in error
    other = run(*parts, "--topk", 3, "--shard_id", 0, "--num_shards", 3, cwd=tmp_path, status=2).stderr
    assert "topk: was 10, now 3" in other and "All parts of" in other
    # The rest in another number of shards; then more shards than parts.
    done = run(*parts, "--shard_id", 0, "--num_shards", 2, cwd=tmp_path)
    assert "skipped 1 of 3 parts" in done.stdout
    for shard in (9, 8, 7, 3, 0):
        run(*parts, "--num_shards", 10, cwd=tmp_path, environment={"SLURM_ARRAY_TASK_ID": str(shard)})
    run(*parts, "--shard_id", 0, "--num_shards", 10, "--merge", cwd=tmp_path)
    assert reference.tree_bytes(tmp_path / "OUT" / NAME / "book") == whole
    for again in (("--merge",), ("--shard_id", 1, "--num_shards", 3), ()):
        assert "skipped, made before" in run(*parts, *again, cwd=tmp_path).stdout
    assert reference.tree_bytes(tmp_path / "OUT" / NAME / "book") == whole


def test_another_model_or_other_arguments_are_refused_and_overwrite_replaces(
    run: Run, world: World, rows: Path, tmp_path: Path
) -> None:
    _, command = lay_out(tmp_path, rows, world)
    (tmp_path / "teacher").unlink()
    shutil.copytree(world.folder / "teacher", tmp_path / "teacher")
    run(*command, "--rows_per_part", 4, cwd=tmp_path)
    before = reference.tree_bytes(tmp_path / "OUT" / NAME)
    assert "topk: was 10, now 5" in run(*command, "--topk", 5, cwd=tmp_path, status=2).stderr
    assert "rows_per_part: was 4, now 3" in run(*command, "--rows_per_part", 3, cwd=tmp_path, status=2).stderr
    shutil.copy(world.folder / "other_teacher/model.safetensors", tmp_path / "teacher/model.safetensors")
    shutil.rmtree(tmp_path / "OUT" / NAME / "book")
    error = run(*command, "--rows_per_part", 4, "--num_shards", 2, "--merge", cwd=tmp_path, status=2).stderr
    assert "part-00000 was made with other arguments or inputs: model: was" in error
    run(*command, "--rows_per_part", 4, "--overwrite", cwd=tmp_path)
    after = reference.tree_bytes(tmp_path / "OUT" / NAME)
    assert after.keys() == before.keys() and after["book/shard.00000.mds"] != before["book/shard.00000.mds"]


@pytest.mark.parametrize(
    ("damage", "status", "message"),
    [("missing", 2, "lacks 1 weights, such as"), ("nan", 1, "not numbers"), ("truncated", 2, "cannot be loaded")],
)
def test_a_model_with_missing_or_broken_weights_is_refused(
    run: Run, world: World, rows: Path, tmp_path: Path, damage: str, status: int, message: str
) -> None:
    from safetensors.torch import load_file, save_file

    _, command = lay_out(tmp_path, rows, world)
    shutil.copytree(world.folder / "teacher", tmp_path / "broken")
    path = tmp_path / "broken/model.safetensors"
    weights = load_file(path)
    if damage == "missing":
        del weights["lm_head.weight"]
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, path, {"format": "pt"})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    assert message in run(*command, "--model_dir", "broken", cwd=tmp_path, status=status).stderr
    assert not list((tmp_path / "OUT").rglob("part-*"))


def test_a_join_takes_the_dtype_of_the_parts_and_odd_paths_have_names(
    run: Run, world: World, rows: Path, tmp_path: Path
) -> None:
    _, command = lay_out(tmp_path, rows, world)
    run(*command, "--dtype", "bfloat16", "--num_shards", 1, "--rows_per_part", 4, cwd=tmp_path)
    shutil.rmtree(tmp_path / "OUT" / NAME / "book")
    run(*command, "--merge", "--rows_per_part", 4, cwd=tmp_path)
    assert "skipped, made before" in run(*command, "--rows_per_part", 4, cwd=tmp_path).stdout
    odd = ("--input_dir", ".", "--model_dir", "../../teacher/.", "--domain", "book/", "--rows_per_part", 4)
    assert "skipped, made before" in run(*command, *odd, cwd=tmp_path / "OUT/train").stdout


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
    run: Run, world: World, rows: Path, tmp_path: Path, change: tuple[Any, ...], message: str
) -> None:
    from cepe_data.storage import mds
    from demo import models

    _, command = lay_out(tmp_path, rows, world)
    if "small" in change:
        models.make_teacher(tmp_path / "small", 700)
    if "narrow" in change:
        GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB_SIZE, n_positions=63, n_embd=32, n_layer=1, n_head=2)
        ).save_pretrained(tmp_path / "narrow")
    if "short" in change:
        retrieved = read(tmp_path / "RET/train/book")[:3]
        mds.write_shard(
            outputs.Output(tmp_path / "short/book", {}), mds.read_columns(tmp_path / "RET/train/book"), 3, retrieved
        )
    before = sorted(os.listdir(tmp_path / "OUT"))
    assert message in run(*command, *change, cwd=tmp_path, status=2).stderr
    assert sorted(os.listdir(tmp_path / "OUT")) == before


def test_batch_size_threads_and_processes_change_no_byte(run: Run, world: World, rows: Path, tmp_path: Path) -> None:
    _, command = lay_out(tmp_path, rows, world)
    make_wide_teacher(tmp_path / "wide")
    command += ("--model_dir", "wide", "--num_encoder_tokens", 53, "--rows_per_part", 4)
    out = tmp_path / "OUT/train-logits-enc53-dec24-wide"
    trees = []
    for flags, environment in (
        (("--batch_size", 1), {}),
        (("--batch_size", 3), {"SLURM_CPUS_PER_TASK": "3", "OMP_NUM_THREADS": "3"}),
        ((), {"SLURM_CPUS_PER_TASK": "2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "1"}),
        (("--num_gpus", 2, "--device", "cpu"), {}),
    ):
        done = run(*command, *flags, cwd=tmp_path, environment=environment)
        assert "11 rows in 3 parts" in done.stdout
        trees.append(reference.tree_bytes(out))
        shutil.rmtree(out)
    assert trees[0] == trees[1] == trees[2] == trees[3]


def test_a_process_that_fails_ends_the_others(run: Run, world: World, rows: Path, tmp_path: Path) -> None:
    _, command = lay_out(tmp_path, rows, world)
    pool = tmp_path / "OUT" / NAME / "book.parts"
    pool.mkdir(parents=True)
    (pool / "part-00001").mkdir()  # nothing says what made it
    error = run(*command, "--rows_per_part", 6, cwd=tmp_path, status=2).stderr
    assert "nothing says what made it" in error
    shutil.rmtree(pool)
    pool.write_text("in the way")
    error = run(*command, "--rows_per_part", 6, "--num_gpus", 2, "--device", "cpu", cwd=tmp_path, status=1).stderr
    assert f"{NAME}/book.parts" in error and "Traceback" not in error


def test_a_dry_run_times_a_batch_and_writes_nothing(run: Run, world: World, rows: Path, tmp_path: Path) -> None:
    """It counts what is left of all shards."""
    _, command = lay_out(tmp_path, rows, world)
    run(*command, "--num_shards", 2, "--shard_id", 0, "--rows_per_part", 3, cwd=tmp_path)
    before = sorted(os.listdir(tmp_path / "OUT"))
    done = run(*command, "--num_shards", 2, "--rows_per_part", 3, "--dry_run", cwd=tmp_path)
    assert "5 sequences of 64 tokens" in done.stdout and "TFLOP/s" in done.stdout and "hours on cpu" in done.stdout
    assert f"about {5 * (24 * (11 * 2 + 10 * 2) + 4):,} bytes to write" in done.stdout
    assert sorted(os.listdir(tmp_path / "OUT")) == before
    run(*command, "--rows_per_part", 3, cwd=tmp_path)
    assert "skipped, made before" in run(*command, "--rows_per_part", 3, "--dry_run", cwd=tmp_path).stdout


def test_parts_go_once_they_are_joined(run: Run, world: World, rows: Path, tmp_path: Path) -> None:
    _, command = lay_out(tmp_path, rows, world)
    command += ("--rows_per_part", 6)
    for shard in (0, 1):
        run(*command, "--num_shards", 2, "--shard_id", shard, cwd=tmp_path)
    early = run(*command, "--num_shards", 2, "--shard_id", 0, "--delete_parts", cwd=tmp_path, status=2)
    assert "--delete_parts goes with --merge" in early.stderr
    run(*command, "--num_shards", 2, "--merge", cwd=tmp_path)
    pool = tmp_path / "OUT" / NAME / "book.parts"
    assert len(list(pool.iterdir())) == 2
    for _ in range(2):
        run(*command, "--num_shards", 2, "--merge", "--delete_parts", cwd=tmp_path)
        assert not pool.exists()
    assert len(read(tmp_path / "OUT" / NAME / "book")) == 11


def test_a_damaged_part_is_made_again_by_overwrite_and_a_merge_says_so(
    run: Run, world: World, rows: Path, tmp_path: Path
) -> None:
    _, command = lay_out(tmp_path, rows, world)
    command += ("--rows_per_part", 6)
    run(*command, cwd=tmp_path)
    whole = reference.tree_bytes(tmp_path / "OUT" / NAME)
    part = tmp_path / "OUT" / NAME / "book.parts/part-00001/shard.00000.mds"
    content = bytearray(part.read_bytes())
    part.unlink()  # else the joined set would change as well
    content[-1] ^= 1
    part.write_bytes(content)
    shutil.rmtree(tmp_path / "OUT" / NAME / "book")
    (tmp_path / "OUT" / NAME / "book.parts/part-00000/meta.json").write_text("{")
    error = run(*command, "--merge", "--overwrite", cwd=tmp_path, status=1).stderr
    assert "2 of 2 parts are missing or not right" in error and "--overwrite" in error
    run(*command, "--overwrite", cwd=tmp_path)
    assert reference.tree_bytes(tmp_path / "OUT" / NAME) == whole
    # A dry run removes nothing, and what a killed merge left goes away.
    (tmp_path / "OUT" / NAME / f".tmp-book-{outputs._HOST}-999999").mkdir()
    run(*command, "--dry_run", "--delete_parts", cwd=tmp_path)
    run(*command, "--merge", cwd=tmp_path)
    assert reference.tree_bytes(tmp_path / "OUT" / NAME) == whole
    assert sorted(os.listdir(tmp_path / "OUT" / NAME)) == ["book", "book.parts"]


def test_shards_of_an_input_that_differ_are_refused(run: Run, world: World, rows: Path, tmp_path: Path) -> None:
    from cepe_data.storage import mds

    _, command = lay_out(tmp_path, rows, world)
    index = json.loads((tmp_path / "OUT/train/book/index.json").read_text())
    columns = mds.read_columns(tmp_path / "OUT/train/book")
    short = {**columns, "token_ids": mds.array_column(np.dtype(np.int16), 30)}
    shortened = [{**row, "token_ids": row["token_ids"][:30]} for row in read(tmp_path / "OUT/train/book")]
    mds.write_shard(outputs.Output(tmp_path / "short", {}), short, len(shortened), shortened)
    shutil.copy(tmp_path / "short/shard.00000.mds", tmp_path / "OUT/train/book/shard.00001.mds")
    [other] = json.loads((tmp_path / "short/index.json").read_text())["shards"]
    other["raw_data"]["basename"] = "shard.00001.mds"
    index["shards"].append(other)
    (tmp_path / "OUT/train/book/index.json").write_text(json.dumps(index))
    error = run(*command, cwd=tmp_path, status=1).stderr
    assert "shard.00001.mds has other columns than the first shard" in error


def test_the_tokenizer_beside_the_model_is_that_of_the_rows_or_it_is_refused(
    run: Run, world: World, rows: Path, tmp_path: Path
) -> None:
    from demo import models

    _, command = lay_out(tmp_path, rows, world)
    (tmp_path / "teacher").unlink()
    shutil.copytree(world.folder / "teacher", tmp_path / "teacher")
    models.train_tokenizer(["other words than those of the corpus"], tmp_path / "teacher/tokenizer.model", 290)
    error = run(*command, cwd=tmp_path, status=2).stderr
    assert "OUT/train/book was made with another tokenizer" in error and "--allow_other_tokenizer" in error
    allowed = run(*command, "--allow_other_tokenizer", cwd=tmp_path)
    shutil.copy(world.tokenizer, tmp_path / "teacher/tokenizer.model")
    done = run(*command, cwd=tmp_path)
    assert "skipped, made before" in done.stdout and not done.stderr and "11 rows" in allowed.stdout
    (tmp_path / "teacher/tokenizer.model").unlink()
    error = run(*command, cwd=tmp_path).stderr
    assert "teacher has no tokenizer.json and no tokenizer.model" in error and "is not checked" in error
    # A damaged row, of a set that says that its ids are all known.
    path = tmp_path / "OUT/train/book/shard.00000.mds"
    content = bytearray(path.read_bytes())
    content[-30:-28] = (31_000).to_bytes(2, "little")
    path.write_bytes(content)
    error = run(*command, "--num_decoder_tokens", 64, cwd=tmp_path, status=2).stderr
    assert "row 10 of OUT/train/book has ids from" in error and "to 31000" in error


def test_padding_of_the_vocabulary_is_counted_or_left_out(run: Run, world: World, rows: Path, tmp_path: Path) -> None:
    from demo import models

    _, command = lay_out(tmp_path, rows, world)
    models.make_teacher(tmp_path / "padded", 900)
    shutil.copy(world.tokenizer, tmp_path / "padded")
    command += ("--model_dir", "padded")
    out = tmp_path / "OUT/train-logits-enc40-dec24-padded/book"
    told = run(*command, cwd=tmp_path).stderr
    index = np.stack([row["target_index"] for row in read(out)])
    num_padding = int((index >= VOCAB_SIZE).sum())
    assert f"{num_padding:,} of {index.size:,} ids ({num_padding / index.size:.2%})" in told and num_padding > 100
    assert "num_words: was absent, now 800" in run(*command, "--num_words", "tokenizer", cwd=tmp_path, status=2).stderr
    shutil.rmtree(out.parent)
    assert not run(*command, "--num_words", "tokenizer", cwd=tmp_path).stderr
    assert "skipped, made before" in run(*command, "--num_words", VOCAB_SIZE, cwd=tmp_path).stdout
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "padded", dtype=torch.float32)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight[:VOCAB_SIZE])
    for row, window in zip(read(out), read(tmp_path / "OUT/train/book"), strict=True):
        check_row(row, model, window["prev_token_ids"][-40:], window["token_ids"][:24])
    run("sanity_check.py", "teacher", out, "--model_dir", "padded", cwd=tmp_path)
    assert "more than the 900 words" in run(*command, "--num_words", 901, cwd=tmp_path, status=2).stderr


@pytest.mark.filterwarnings("ignore")
def test_the_attention_is_the_one_that_is_right_and_is_remembered(
    run: Run, world: World, rows: Path, tmp_path: Path
) -> None:
    _, command = lay_out(tmp_path, rows, world)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_key_value_heads=1, head_dim=16, initializer_range=0.4, attn_logit_softcapping=1.0,
        max_position_embeddings=63,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    command += ("--model_dir", "gemma", "--rows_per_part", 6)
    out = tmp_path / "OUT/train-logits-enc40-dec24-gemma"
    told = run(*command, "--num_shards", 2, "--shard_id", 0, cwd=tmp_path).stderr
    assert "more than the 63 positions" in told, "rotary positions go on: a warning"
    other = run(*command, "--num_shards", 2, "--attn_implementation", "sdpa", "--shard_id", 1, cwd=tmp_path, status=2)
    assert 'attn_implementation: was "eager", now "sdpa"' in other.stderr
    run(*command, "--num_shards", 2, "--shard_id", 1, "--attn_implementation", "eager", cwd=tmp_path)
    run(*command, "--num_shards", 2, "--merge", cwd=tmp_path)
    assert "skipped, made before" in run(*command, "--attn_implementation", "eager", cwd=tmp_path).stdout
    meta = json.loads((out / "book/meta.json").read_text())
    assert meta["made_with"]["attn_implementation"] == "eager" and meta["transformers"] == [transformers.__version__]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "gemma", dtype=torch.float32, attn_implementation="eager")
    for row, window in zip(read(out / "book"), read(tmp_path / "OUT/train/book"), strict=True):
        check_row(row, model, window["prev_token_ids"][-40:], window["token_ids"][:24])
    run("sanity_check.py", "teacher", out, "--model_dir", "gemma", cwd=tmp_path)
    error = run(*command, "--compile", cwd=tmp_path, status=2).stderr
    assert "compile: was absent, now true" in error


def test_a_student_learns_from_the_rows_next_to_the_input(
    run: Run, world: World, rows: Path, tmp_path: Path, streaming: Any
) -> None:
    """What the trainer does: both sets by row number, KL over the top-k and the rest."""
    from demo import models

    _, command = lay_out(tmp_path, rows, world)
    run(*command, cwd=tmp_path)
    windows, targets = (
        streaming.StreamingDataset(streams=[streaming.Stream(local=str(folder))], shuffle=False, batch_size=1)
        for folder in (tmp_path / "OUT/train/book", tmp_path / "OUT" / NAME / "book")
    )
    assert len(windows) == len(targets) == 11
    models.make_teacher(tmp_path / "student", VOCAB_SIZE, seed=5)
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
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
    run: Run, world: World, rows: Path, tmp_path: Path
) -> None:
    """With the parts still there, and once more with those that only the joined set has."""
    from cepe_data.storage import mds

    folder, command = lay_out(tmp_path, rows, world)
    command += ("--rows_per_part", 4)
    sample = ("sample_mds_ab.py", "OUT", 128, 64, 0)
    flags = ("--domains", "book=1", "--overwrite", *world.source_flags)
    run(*command, "--delete_parts", cwd=folder)
    run(*sample, 18, *flags, cwd=folder)
    error = run(*command, cwd=folder, status=2).stderr
    assert "input: was" in error and "--overwrite" in error
    done = run(*command, "--overwrite", cwd=folder).stdout
    assert "skipped 2 of 5 parts" in done and "10 rows in 3 parts" in done  # 12 to 18, and the part of 8 to 11 again
    grown = reference.tree_bytes(folder / "OUT" / NAME)
    run(*command, "--output_dir", "fresh", cwd=folder)
    fresh = reference.tree_bytes(folder / "fresh")
    assert {name: fresh[name] for name in fresh if name.endswith(("mds", "index.json"))} == {
        name: grown[name] for name in grown if name.endswith(("mds", "index.json"))
    }
    # An array that nobody joined yet; then row 13 changes, in a set that is cut into other shards.
    shutil.rmtree(folder / "OUT" / NAME / "book")
    columns, windows = mds.read_columns(folder / "OUT/train/book"), list(mds.Rows(folder / "OUT/train/book"))
    windows[13]["token_ids"] = windows[12]["token_ids"]
    shutil.rmtree(folder / "OUT/train/book")
    of_set = PartedSet(folder / "OUT/train/book", columns, 18, 7, {}, outputs.REPLACE_NOTHING)
    for part, (start, stop) in enumerate(of_set.part_ranges):
        of_set.write_part(part, windows[start:stop])
    of_set.publish({}, lambda draft: None)
    error = run(*command, "--num_shards", 2, "--merge", cwd=folder, status=2).stderr
    assert "part-00003 was made with other arguments or inputs: input: was" in error
    done = run(*command, "--overwrite", cwd=folder).stdout
    assert "skipped 4 of 5 parts" in done and "4 rows in 1 parts" in done


def test_all_domains_at_once_and_a_merge_that_finds_the_size_of_parts(
    run: Run, world: World, rows: Path, tmp_path: Path
) -> None:
    folder, command = lay_out(tmp_path, rows, world)
    shutil.copytree(folder / "OUT/train/book", folder / "OUT/train/wiki")
    (folder / "OUT/train/book.parts").mkdir()  # what a killed sampler leaves is not a domain
    run(*command, "--domain", "book", "--rows_per_part", 4, "--output_dir", "one", cwd=folder)
    both = (*command, "--output_dir", "both", "--num_shards", 2)
    for shard in (1, 0):
        done = run(*both, "--domain", "all", "--rows_per_part", 4, "--shard_id", shard, cwd=folder)
    assert "8 rows in 2 parts" in done.stdout, "one part of each domain"
    run(*both, "--domain", "wiki,book", "--merge", cwd=folder)
    assert reference.tree_bytes(folder / "both/book") == reference.tree_bytes(folder / "one/book")
    assert len(read(folder / "both/wiki")) == 11
    error = run(*both, "--domain", "book,../wiki", "--merge", cwd=folder, status=2).stderr
    assert "'../wiki' is not a name of a domain folder" in error
    checked = run("sanity_check.py", "teacher", "both", "--input_dir", "OUT/train", cwd=folder)
    assert "2 sets, 22 rows" in checked.stdout


def test_sampled_targets_are_those_of_the_formula_for_any_batches_and_shards(
    run: Run, world: World, rows: Path, tmp_path: Path
) -> None:
    folder, command = lay_out(tmp_path, rows, world)
    command += ("--target", "sampled", "--num_samples", 6, "--seed", 3)
    run(*command, "--batch_size", 3, "--rows_per_part", 11, cwd=folder)
    made = read(folder / "OUT" / NAME / "book")
    sharded = (*command, "--output_dir", "sharded", "--rows_per_part", 2, "--num_shards", 2)
    for shard in (1, 0):
        run(*sharded, "--shard_id", shard, cwd=folder)
    run(*sharded, "--merge", cwd=folder)
    model = AutoModelForCausalLM.from_pretrained(world.folder / "teacher", dtype=torch.float32)
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
    name = f"OUT/{NAME}"
    checked = run("sanity_check.py", "teacher", name, "--deep", "--model_dir", "teacher", "--plot", "a.png", cwd=folder)
    assert "2 computed once more: 0 findings" in checked.stdout and "it is not drawn" in checked.stderr
    shown = run("sanity_check.py", "show", f"{name}/book", 0, "--tokenized_dir", world.tokenized, cwd=folder).stdout
    assert "the shares of 6 draws" in shown
    path = folder / name / "book/meta.json"
    meta = json.loads(path.read_text())
    meta["made_with"]["num_samples"] = 7
    path.write_text(json.dumps(provenance.signed(meta)))
    error = run("sanity_check.py", "teacher", name, cwd=folder, status=1).stdout
    assert "not the shares of 7 draws, at position 0" in error
    shutil.copy(folder / "sharded/book/meta.json", path)
    (folder / "teacher").unlink()
    shutil.copytree(world.folder / "other_teacher", folder / "teacher")
    meta["made_with"] |= {"num_samples": 6, "model": Checkpoint.find(str(folder / "teacher"), "model").fingerprint()}
    path.write_text(json.dumps(provenance.signed(meta)))
    error = run("sanity_check.py", "teacher", name, "--model_dir", "teacher", cwd=folder, status=1).stdout
    assert "is not what the model gives" in error
