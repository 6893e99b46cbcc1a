"""From jsonl to token files, run as a process.    pytest tests/test_tokenize_jsonl.py"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash
import zstandard
from sentencepiece import SentencePieceProcessor

from tests import reference
from tests.conftest import HARD_TEXTS, PROJECT, Run, World, make_texts, write_jsonl


def lay_out(folder: Path, world: World) -> Path:
    """A folder of its own with the world's corpus and list."""
    shutil.copytree(world.data, folder / "redpajama")
    for name in ("all_jsonl.txt", "tokenizer.model"):
        shutil.copy(world.folder / name, folder / name)
    content = json.loads((world.folder / "all_jsonl.json").read_text())
    (folder / "all_jsonl.json").write_text(json.dumps({**content, "root": str(folder / "redpajama")}))
    return folder


def test_token_files_equal_sentencepiece_run_document_by_document(world: World) -> None:
    processor = SentencePieceProcessor(model_file=str(world.tokenizer))
    num_documents = 0
    for file in world.listed():
        texts = reference.texts_of(world.data / file["path"])
        target = world.tokenized / file["path"].replace(".jsonl", ".npy")
        documents = reference.documents_of(target)
        assert len(documents) == len(texts)
        for text, document in zip(texts, documents, strict=True):
            assert document.tolist() == [1, *processor.encode(text), 2]
        hashes = np.load(target.with_name(target.name.replace(".npy", ".hash.npy")))
        assert hashes.tolist() == [xxhash.xxh3_64_intdigest(text.encode()) for text in texts]
        num_documents += len(texts)
    assert num_documents == 763


def test_decoding_gives_the_text_back(world: World) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.tokenized / "tokenizer")
    path = world.data / "c4/c4-train.00000-of-01024.jsonl"
    texts = reference.texts_of(path)
    documents = reference.documents_of(world.tokenized / "c4/c4-train.00000-of-01024.npy")
    assert set(HARD_TEXTS) <= set(texts)
    for text, document in zip(texts, documents, strict=True):
        decoded = tokenizer.decode(document, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert decoded == text.replace("\u2581", " ")


@pytest.mark.parametrize("flags", [["--backend", "sentencepiece"], ["shards"], ["packed"]])
def test_backends_shards_and_compression_change_no_byte(
    run: Run, world: World, tmp_path: Path, flags: list[str]
) -> None:
    lay_out(tmp_path, world)
    if flags == ["packed"]:
        for number, path in enumerate(sorted((tmp_path / "redpajama").rglob("*.jsonl"))):
            pack = (gzip.compress, zstandard.compress)[number % 2]
            path.with_name(path.name + (".gz", ".zst")[number % 2]).write_bytes(pack(path.read_bytes()))
            path.unlink()
        run("get_all_jsonl.py", "redpajama", cwd=tmp_path)
    if flags == ["shards"]:
        for shard in (2, 0, 1):
            done = run(
                "tokenize_jsonl.py", "--tokenizer", "tokenizer.model", "--num_shards", 3, cwd=tmp_path,
                environment={"SLURM_ARRAY_TASK_ID": str(shard)},
            )  # fmt: skip
            assert done.stdout.startswith(f"shard {shard} of 3")
    else:
        run("tokenize_jsonl.py", "--tokenizer", "tokenizer.model", *(flags if len(flags) > 1 else []), cwd=tmp_path)
    made, wanted = reference.tree_bytes(tmp_path / "tokenized"), reference.tree_bytes(world.tokenized)
    assert made.keys() == wanted.keys()
    for name in wanted:
        if flags != ["packed"] or not name.endswith(".meta.json"):  # a meta file names the packed source
            assert made[name] == wanted[name], name


def test_a_rerun_writes_nothing_and_other_arguments_are_refused(run: Run, world: World, tmp_path: Path) -> None:
    lay_out(tmp_path, world)
    shutil.copytree(world.tokenized, tmp_path / "tokenized")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "skipped 10 of 10 files" in run("tokenize_jsonl.py", cwd=tmp_path).stdout
    error = run("tokenize_jsonl.py", "--text_key", "raw", cwd=tmp_path, status=2).stderr
    assert 'text_key: was "text", now "raw"' in error and "--overwrite" in error
    from demo import models

    models.train_tokenizer(make_texts(99, 30, 200), tmp_path / "other.model", 700)
    error = run("tokenize_jsonl.py", "--tokenizer", "other.model", cwd=tmp_path, status=2).stderr
    assert "tokenizer: was" in error and '"vocab_size": 700' in error
    path = tmp_path / "redpajama/book/book.jsonl"
    with path.open("a") as file:
        file.write('{"text": "one more"}\n')
    assert "when it was listed" not in run("tokenize_jsonl.py", cwd=tmp_path).stderr, "done files need no source"
    times[path] = path.stat().st_mtime_ns
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path in times} == times
    run("get_all_jsonl.py", "redpajama", cwd=tmp_path)
    assert "source_bytes: was" in run("tokenize_jsonl.py", cwd=tmp_path, status=2).stderr
    assert "skipped 9 of 10" in run("tokenize_jsonl.py", "--overwrite", cwd=tmp_path).stdout
    assert len(reference.documents_of(tmp_path / "tokenized/book/book.npy")) == 41
    run("tokenize_jsonl.py", "--overwrite", "--tokenizer", "other.model", cwd=tmp_path)
    run("sanity_check.py", cwd=tmp_path)


def test_bad_lines_are_skipped_counted_and_reported(run: Run, world: World, tmp_path: Path) -> None:
    shutil.copy(world.tokenizer, tmp_path / "tokenizer.model")
    good = make_texts(5, 4, 30)
    lines = [json.dumps({"text": good[0]}), "", "{broken", '{"text": 1}', json.dumps({"text": good[1]}), "[]", "{}"]
    lines += [r'{"text": "lone \udc00 surrogate"}', json.dumps({"text": good[2]})]
    path = tmp_path / "data/arxiv/a.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    run("get_all_jsonl.py", "data", cwd=tmp_path)
    done = run("tokenize_jsonl.py", "--tokenizer", "tokenizer.model", cwd=tmp_path)
    assert "4 documents" in done.stdout and "4 lines skipped, 1 mended" in done.stdout
    assert "a.jsonl: 4 lines skipped (1 not JSON, first in lines 3; 1 'text' is no string" in done.stderr
    meta = json.loads((tmp_path / "tokenized/arxiv/a.meta.json").read_text())
    assert {reason: one["first_lines"] for reason, one in meta["skipped_lines"].items()} == {
        "not JSON": [3],
        "'text' is no string": [4],
        "no JSON object": [6],
        "no key 'text'": [7],
    }
    assert meta["mended_lines"] == {"lone surrogate": {"count": 1, "first_lines": [8]}}
    processor = SentencePieceProcessor(model_file=str(world.tokenizer))
    wanted = [[1, *processor.encode(text), 2] for text in (good[0], good[1], "lone \ufffd surrogate", good[2])]
    assert [document.tolist() for document in reference.documents_of(tmp_path / "tokenized/arxiv/a.npy")] == wanted


def test_a_damaged_changed_or_vanished_input_fails_alone(run: Run, world: World, tmp_path: Path) -> None:
    shutil.copy(world.tokenizer, tmp_path / "tokenizer.model")
    for name in ("good", "grown", "gone"):
        write_jsonl(tmp_path / f"data/arxiv/{name}.jsonl", make_texts(1, 5, 50))
    (tmp_path / "data/arxiv/cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "long enough"}\n' * 99)[:-5])
    (tmp_path / "data/arxiv/empty.jsonl").write_text("")
    run("get_all_jsonl.py", "data", cwd=tmp_path)
    with (tmp_path / "data/arxiv/grown.jsonl").open("a") as file:
        file.write("\n")
    (tmp_path / "data/arxiv/gone.jsonl").unlink()
    done = run("tokenize_jsonl.py", "--tokenizer", "tokenizer.model", cwd=tmp_path, status=1)
    assert "3 files failed" in done.stderr
    for message in ("cut.jsonl.gz is a damaged gzip", "grown.jsonl has", "gone.jsonl: No such file"):
        assert message in done.stderr
    made = sorted(
        name for name in os.listdir(tmp_path / "tokenized/arxiv") if not name.endswith((".hash.npy", ".json"))
    )
    assert made == ["empty.npy", "good.npy"]
    assert np.load(tmp_path / "tokenized/arxiv/empty.npy").tolist() == [0]


def test_a_killed_run_leaves_nothing_half_made_and_a_rerun_gives_the_same_bytes(
    run: Run, world: World, tmp_path: Path
) -> None:
    lay_out(tmp_path, world)
    command = [sys.executable, str(PROJECT / "tokenize_jsonl.py"), "--tokenizer", "tokenizer.model"]
    for delay in random.Random(0).sample([2.5, 2.8, 3.1, 3.4, 3.7, 4.0], 4):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in (tmp_path / "tokenized").rglob("[!.]*.meta.json"):
            meta = json.loads(path.read_text())
            npy = path.with_name(path.name.replace(".meta.json", ".npy"))
            if npy.exists():
                assert npy.stat().st_size == meta["files"][npy.name]["bytes"]
    run("tokenize_jsonl.py", "--tokenizer", "tokenizer.model", cwd=tmp_path)
    assert reference.tree_bytes(tmp_path / "tokenized") == reference.tree_bytes(world.tokenized)


def test_run_tokenize_runs_in_plain_bash_and_as_a_copy_in_a_spool_folder(
    run: Run, world: World, tmp_path: Path
) -> None:
    lay_out(tmp_path, world)
    shutil.copytree(world.tokenized, tmp_path / "tokenized")
    assert "skipped 10 of 10" in run("run_tokenize.sh", cwd=tmp_path, shell="bash").stdout
    assert "skipped 10 of 10" in run("run_tokenize.sh", "redpajama", cwd=tmp_path, shell="bash").stdout
    spool = tmp_path / "slurm_script"
    shutil.copy(PROJECT / "run_tokenize.sh", spool)
    task = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_SUBMIT_DIR": str(PROJECT)}
    done = run(spool, "redpajama", "--num_shards", 4, cwd=tmp_path, shell="bash", environment=task)
    assert "shard 1 of 4" in done.stdout
    done = run(spool, "redpajama", cwd=tmp_path, shell="bash", environment=task, status=2)
    assert "--data_dir redpajama --num_shards 2" in done.stderr
    done = run(spool, cwd=tmp_path, shell="bash", status=2, environment={"SLURM_SUBMIT_DIR": str(tmp_path)})
    assert "CEPE_DATA_HOME" in done.stderr


def test_more_shards_than_files_and_wrong_shards(run: Run, world: World, tmp_path: Path) -> None:
    lay_out(tmp_path, world)
    flags = ("--tokenizer", "tokenizer.model", "--num_shards", 99)
    assert "shard 98 of 99: 0 files" in run("tokenize_jsonl.py", *flags, "--shard_id", 98, cwd=tmp_path).stdout
    assert "not below" in run("tokenize_jsonl.py", *flags, "--shard_id", 99, cwd=tmp_path, status=2).stderr
    error = run("tokenize_jsonl.py", "--file_list", "none.txt", cwd=tmp_path, status=2).stderr
    assert "python get_all_jsonl.py DATA_DIR" in error
