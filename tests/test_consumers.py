"""The trainer's way of reading: StreamingDataset without unsafe types.    pytest tests/test_consumers.py"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cepe_data.storage import mds
from tests.conftest import Run, World


def test_the_trainer_pairs_slices_and_converts_every_set(run: Run, world: World, tmp_path: Path) -> None:
    sample = ("sample_mds_ab.py", "OUT", 128, 64, 8, 12, "--test_fraction", 0.2, *world.source_flags)
    run(*sample, cwd=tmp_path)
    flags = ("--num_encoder_tokens", 40, "--num_decoder_tokens", 24, "--topk", 10, "--rows_per_part", 2)
    for domain in ("arxiv", "book"):
        teacher = ("--model_dir", world.folder / "teacher", "--domain", domain)
        run("calculate_logits.py", "--input_dir", "OUT/train", *teacher, *flags, cwd=tmp_path)
    assert run(*sample, cwd=tmp_path).stdout.count("skipped") == 4, "the teacher's outputs are not the sampler's"
    streaming = mds.import_streaming()

    def dataset(folder: Path) -> Any:
        streams = [streaming.Stream(local=str(folder / domain)) for domain in ("arxiv", "book")]
        return streaming.StreamingDataset(streams=streams, shuffle=False, batch_size=1)

    inputs = dataset(tmp_path / "OUT/train")
    targets = dataset(tmp_path / "OUT/train-logits-enc40-dec24-teacher")
    assert len(inputs) == len(targets) == 12
    for number in range(12):
        row, target = inputs[number], targets[number]
        assert row["domain"] == ("arxiv", "book")[number // 6]
        chunk = torch.tensor(row["token_ids"][:24], dtype=torch.long)
        contexts = torch.tensor(row["prev_token_ids"][-48:].reshape(3, 16), dtype=torch.long)
        assert chunk.shape == (24,) and contexts.shape == (3, 16)
        index = torch.tensor(target["target_index"], dtype=torch.long)
        probability = torch.tensor(target["target_prob"], dtype=torch.float32)
        logits = torch.randn(24, 800, requires_grad=True)
        log_p = logits.log_softmax(-1).gather(-1, index)
        loss = -(probability[:, :-1] * log_p).sum(-1).mean()
        loss.backward()
        assert torch.isfinite(loss) and np.isfinite(logits.grad.numpy()).all()  # type: ignore[union-attr]


def test_a_copied_set_is_read_from_where_it_is_kept(run: Run, world: World, tmp_path: Path) -> None:
    """As in docs/object_store.md; the store is a folder."""
    flags = ("--domains", "book=1", "--rows_per_part", 3, *world.source_flags)
    run("sample_mds_ab.py", "OUT", 128, 64, 0, 10, *flags, cwd=tmp_path)
    shutil.move(tmp_path / "OUT", tmp_path / "bucket")
    streaming = mds.import_streaming()
    stream = streaming.Stream(remote=str(tmp_path / "bucket/train/book"), local=str(tmp_path / "cache"))
    rows = streaming.StreamingDataset(streams=[stream], shuffle=True, batch_size=2, cache_limit="1gb")
    kept = list(mds.Rows(tmp_path / "bucket/train/book"))
    for number in (9, 0, 4):
        assert (rows[number]["token_ids"] == kept[number]["token_ids"]).all()
    assert (tmp_path / "cache/shard.00003.mds").exists() and not (tmp_path / "cache/shard.00002.mds").exists()
    seen = sorted(row["prev_token_ids"].tobytes() for row in rows)
    assert seen == sorted(row["prev_token_ids"].tobytes() for row in kept)
