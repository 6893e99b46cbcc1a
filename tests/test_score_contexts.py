"""retrieval.score_contexts: scores of the chunks before a query, and their check.

pytest tests/test_score_contexts.py
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from cepe_data.storage import mds, outputs, provenance
from tests.conftest import Run, World, make_encoder


def test_scores_of_previous_chunks_are_those_of_the_encoder(run: Run, world: World, tmp_path: Path) -> None:
    """Against transformers' own encoder and decoder, one text at a time; and for any number of shards."""
    make_encoder(tmp_path / "encoder")
    make_encoder(tmp_path / "other_encoder", seed=1)
    flags = ("--test_fraction", 0.2, "--train_fraction", 0.2, "--domains", "book=0.5,wiki=0.5", "--retrieval_shards", 0)
    run("sample_mds_concat.py", "OUT", 96, 64, 14, 0, 0, *flags, *world.source_flags, cwd=tmp_path)
    score: tuple[Any, ...] = (
        "retrieval.score_contexts",
        "--input_dir",
        "OUT/test",
        "--model_dir",
        tmp_path / "encoder",
    )
    score = (*score, "--chunk_tokens", 24, "--query_tokens", 30, "--rows_per_part", 3)
    score = (*score, "--tokenized_dir", world.tokenized)
    beside = (*score, "--output", "OUT/test_scores")
    run(*beside, cwd=tmp_path)
    for shard in (1, 0):
        run(*score, "--output", "sharded", "--num_shards", 2, "--shard_id", shard, cwd=tmp_path)
    run(*score, "--output", "sharded", "--num_shards", 2, "--merge", cwd=tmp_path)
    for path in (tmp_path / "OUT/test_scores").glob("*/*.mds"):
        assert path.read_bytes() == (tmp_path / "sharded" / path.parent.name / path.name).read_bytes()
    assert run(*beside, cwd=tmp_path).stdout.count("skipped") == 2

    decoder = AutoTokenizer.from_pretrained(world.tokenized / "tokenizer")
    word_pieces = AutoTokenizer.from_pretrained(tmp_path / "encoder")
    model = AutoModel.from_pretrained(tmp_path / "encoder").eval()

    def vector(ids: np.ndarray) -> np.ndarray:
        text = decoder.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        inputs = word_pieces(text, return_tensors="pt", truncation=True, max_length=128)
        with torch.inference_mode():
            return model(inputs["input_ids"], attention_mask=inputs["attention_mask"])[0][0].mean(0).numpy()

    streaming = mds.import_streaming()
    for domain in ("book", "wiki"):
        windows = list(streaming.LocalDataset(str(tmp_path / "OUT/test" / domain)))
        rows = list(streaming.LocalDataset(str(tmp_path / "OUT/test_scores" / domain)))
        assert len(rows) == len(windows) == 7
        for row, window in zip(rows, windows, strict=True):
            assert row.keys() - window.keys() == {"context_scores"} and row["domain"] == window["domain"]
            assert (row["token_ids"] == window["token_ids"]).all()
            assert (row["prev_token_ids"] == window["prev_token_ids"]).all()
            query = vector(window["token_ids"][:30])
            expected = [query @ vector(chunk) for chunk in window["prev_token_ids"].reshape(4, 24)]
            assert row["context_scores"].dtype == np.float32
            np.testing.assert_allclose(row["context_scores"], expected, rtol=1e-4, atol=1e-4)

    check: tuple[Any, ...] = ("sanity_check.py", "scores", "OUT/test_scores", "--model_dir", tmp_path / "encoder")
    check = (*check, "--tokenized_dir", world.tokenized)
    assert "14 compared with the input, 4 computed once more: 0 findings" in run(*check, cwd=tmp_path).stdout
    assert "== scores sharded --input_dir OUT/test" in run("sanity_check.py", "all", cwd=tmp_path).stdout
    folder = tmp_path / "OUT/test_scores/wiki"
    rows, columns, meta = list(mds.Rows(folder)), mds.read_columns(folder), provenance.read_meta(folder)
    rows[0]["context_scores"], rows[3]["token_ids"] = rows[1]["context_scores"], rows[2]["token_ids"]
    shutil.rmtree(folder)
    assert meta is not None
    mds.write_shard(outputs.Output(folder, meta["made_with"]), columns, 7, rows)
    assert "row 3: has other token_ids" in run(*check, "--input_dir", "OUT/test", cwd=tmp_path, status=1).stdout
    rows[3]["token_ids"] = windows[3]["token_ids"]
    shutil.rmtree(folder)
    mds.write_shard(outputs.Output(folder, meta["made_with"]), columns, 7, rows)
    done = run(*check, "--input_dir", "OUT/test", cwd=tmp_path, status=1).stdout
    assert "row 0: has the score" in done
    for wrong, message in (
        (("--chunk_tokens", 25), "no multiple of it"),
        (("--query_tokens", 65), "--query_tokens 65 is more than the 64"),
        (("--input_dir", "OUT/test_scores"), "has the column context_scores already"),
        (("--model_dir", tmp_path / "other_encoder"), "model: was"),
    ):
        assert message in run(*beside, *wrong, cwd=tmp_path, status=2).stderr
