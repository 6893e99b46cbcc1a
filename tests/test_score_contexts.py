"""retrieval.score_contexts: scores of the chunks before a query, and their check.

pytest tests/test_score_contexts.py
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cepe_data.storage import mds, outputs, provenance
from tests import reference
from tests.conftest import PROJECT, Run, World, add_stale_temporaries, make_encoder, read_rows
from tests.test_retrieval import decode, mean_of_hidden_states

SCORE = "retrieval.score_contexts --input_dir OUT/test --model_dir encoder --chunk_tokens 24 --query_tokens 30".split()
SCORE += "--rows_per_part 3 --output".split()
CHECK = ("sanity_check.py", "scores", "OUT/test_scores", "--model_dir", "encoder")


@pytest.fixture(scope="module")
def scored(run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rows of each of two domains, four chunks before each query, and their scores beside them."""
    folder = tmp_path_factory.mktemp("scored")
    make_encoder(folder / "encoder")
    make_encoder(folder / "other_encoder", seed=1)
    for name in ("tokenized", "all_jsonl.txt", "all_jsonl.json"):
        (folder / name).symlink_to(world.folder / name)
    flags = ("--test_fraction", 0.2, "--train_fraction", 0.2, "--domains", "book=0.5,wiki=0.5", "--retrieval_shards", 0)
    run("sample_mds_concat.py", "OUT", 96, 64, 14, 0, 0, *flags, *world.source_flags, cwd=folder)
    run(*SCORE, "OUT/test_scores", cwd=folder)
    return folder


@pytest.fixture
def copied(scored: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(scored, tmp_path / "copied", symlinks=True)


def test_scores_of_previous_chunks_are_those_of_the_encoder(scored: Path) -> None:
    """Against transformers' own encoder and decoder, one text at a time."""
    for domain in ("book", "wiki"):
        windows, rows = (read_rows(scored / "OUT" / name / domain) for name in ("test", "test_scores"))
        assert len(rows) == len(windows) == 7
        for row, window in zip(rows, windows, strict=True):
            assert row.keys() - window.keys() == {"context_scores"} and row["domain"] == window["domain"]
            assert (row["token_ids"] == window["token_ids"]).all()
            assert (row["prev_token_ids"] == window["prev_token_ids"]).all()
            ids = [window["token_ids"][:30], *window["prev_token_ids"].reshape(4, 24)]
            query, *chunks = mean_of_hidden_states(scored / "encoder", decode(scored, ids))
            assert row["context_scores"].dtype == np.float32
            np.testing.assert_allclose(row["context_scores"], [query @ chunk for chunk in chunks], rtol=1e-4, atol=1e-4)


def test_shards_merged_are_what_one_run_makes(run: Run, copied: Path) -> None:
    for shard in (1, 0):
        run(*SCORE, "sharded", "--num_shards", 2, "--shard_id", shard, cwd=copied)
    run(*SCORE, "sharded", "--num_shards", 2, "--merge", cwd=copied)
    for path in (copied / "OUT/test_scores").glob("*/*.mds"):
        assert path.read_bytes() == (copied / "sharded" / path.parent.name / path.name).read_bytes()
    assert run(*SCORE, "OUT/test_scores", cwd=copied).stdout.count("skipped") == 2
    assert "== scores sharded --input_dir OUT/test" in run("sanity_check.py", "all", cwd=copied).stdout


def test_other_rows_and_scores_are_found(run: Run, copied: Path) -> None:
    assert "14 compared with the input, 4 recomputed: 0 findings" in run(*CHECK, cwd=copied).stdout
    folder = copied / "OUT/test_scores/wiki"
    rows, columns, made_with = list(mds.Rows(folder)), mds.read_columns(folder), provenance.read_meta(folder).made_with

    def check_rows() -> str:
        shutil.rmtree(folder)
        mds.write_shard(outputs.Output(folder, made_with), columns, 7, rows)
        return run(*CHECK, "--input_dir", "OUT/test", cwd=copied, status=1).stdout

    right, rows[3]["token_ids"] = rows[3]["token_ids"], rows[2]["token_ids"]
    rows[0]["context_scores"] = rows[1]["context_scores"]
    assert "row 3: has other token_ids" in check_rows()
    rows[3]["token_ids"] = right
    assert "row 0: has the score" in check_rows()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--num_shards", 2, "--shard_id", 0, "--delete_parts"), "--delete_parts goes with --merge"),
        (("--chunk_tokens", 25), "not a multiple of it"),
        (("--query_tokens", 65), "--query_tokens 65 is more than the 64"),
        (("--input_dir", "OUT/test_scores"), "has the column context_scores already"),
        (("--model_dir", "other_encoder"), "model: was"),
    ],
)
def test_wrong_arguments_are_named(run: Run, scored: Path, wrong: tuple[Any, ...], message: str) -> None:
    assert message in run(*SCORE, "OUT/test_scores", *wrong, cwd=scored, status=2).stderr


def test_a_dry_run_counts_what_is_left_of_all_shards_and_writes_nothing(run: Run, copied: Path) -> None:
    run(*SCORE, "new", "--num_shards", 2, "--shard_id", 0, cwd=copied)  # of 3, 3 and 1 rows, the first part
    add_stale_temporaries(copied / "new")
    add_stale_temporaries(copied / "OUT/test_scores")
    before = reference.tree_bytes(copied)
    assert "nothing is left to do" in run(*SCORE, "OUT/test_scores", "--dry_run", cwd=copied).stdout
    done = run(*SCORE, "new", "--num_shards", 2, "--shard_id", 0, "--dry_run", cwd=copied).stdout
    assert "8 rows of 2 sets are left, 40 texts to embed; 15 took" in done and "hours on one such device" in done
    row_bytes = sum((copied / f"OUT/test_scores/{name}/shard.00000.mds").stat().st_size for name in ("book", "wiki"))
    [num_bytes] = [int(line.split()[1].replace(",", "")) for line in done.splitlines() if "bytes to write" in line]
    assert 0.5 * row_bytes < num_bytes / 8 * 6 < row_bytes
    assert reference.tree_bytes(copied) == before


def test_a_full_disk_stops_it_before_anything_is_written(run: Run, copied: Path) -> None:
    (copied / "sitecustomize.py").write_text(
        "import shutil\nusage = shutil.disk_usage('/')\nshutil.disk_usage = lambda path: usage._replace(free=1000)\n"
    )
    environment = {"PYTHONPATH": f"{copied}{os.pathsep}{PROJECT}"}  # which a module would not keep
    score = ("retrieval/score_contexts.py", *SCORE[1:], "new")
    failed = run(*score, cwd=copied, status=1, environment=environment)
    assert "bytes are to be written, and 1,000 are free" in failed.stderr and not (copied / "new").exists()
    run(*score, "--ignore_disk_space", cwd=copied, environment=environment)
    assert (copied / "new/wiki/index.json").exists()
