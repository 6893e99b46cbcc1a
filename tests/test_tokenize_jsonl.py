"""From jsonl to token files, run as a process.    pytest tests/test_tokenize_jsonl.py"""

from __future__ import annotations

import gzip
import json
import os
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

from cepe_data.corpus import listing, readers
from cepe_data.corpus.domains import RecordKeys
from cepe_data.storage import provenance
from cepe_data.tokens import encoding, tokenizers
from demo import models
from tests import reference
from tests.conftest import HARD_TEXTS, PROJECT, Run, World, make_texts, run_script, write_jsonl


def lay_out(folder: Path, world: World) -> Path:
    """A folder of its own with the world's corpus and list."""
    shutil.copytree(world.data, folder / "redpajama")
    for name in ("all_jsonl.txt", "tokenizer.model"):
        shutil.copy(world.folder / name, folder / name)
    content = json.loads((world.folder / "all_jsonl.json").read_text())
    (folder / "all_jsonl.json").write_text(
        json.dumps(provenance.signed({**content, "root": str(folder / "redpajama")}))
    )
    return folder


def make_other_tokenizer(folder: Path) -> Path:
    models.train_tokenizer(make_texts(99, 30, 200), folder / "other.model", 700)
    return folder / "other.model"


def list_and_tokenize(folder: Path, *flags: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    run_script("get_all_jsonl.py", "data", cwd=folder)
    return run_script("tokenize_jsonl.py", *flags, cwd=folder, status=status)


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
    made, expected = reference.tree_bytes(tmp_path / "tokenized"), reference.tree_bytes(world.tokenized)
    assert made.keys() == expected.keys()
    for name in expected:
        if flags != ["packed"] or not name.endswith(".meta.json"):  # a meta file names the packed source
            assert made[name] == expected[name], name


def test_a_rerun_writes_nothing_and_other_arguments_are_rejected(run: Run, world: World, tmp_path: Path) -> None:
    lay_out(tmp_path, world)
    shutil.copytree(world.tokenized, tmp_path / "tokenized")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "skipped 10 of 10 files" in run("tokenize_jsonl.py", cwd=tmp_path).stdout
    error = run("tokenize_jsonl.py", "--text_key", "raw", cwd=tmp_path, status=2).stderr
    assert 'text_key: was "text", now "raw"' in error and "--overwrite" in error
    other = ("--tokenizer", make_other_tokenizer(tmp_path))
    error = run("tokenize_jsonl.py", *other, cwd=tmp_path, status=2).stderr
    assert "tokenizer: was" in error and '"vocab_size": 700' in error
    path = tmp_path / "redpajama/book/book.jsonl"
    with path.open("a") as file:
        file.write('{"text": "one more"}\n')
    assert "when it was listed" in run("tokenize_jsonl.py", cwd=tmp_path, status=1).stderr
    times[path] = path.stat().st_mtime_ns
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path in times} == times
    run("get_all_jsonl.py", "redpajama", cwd=tmp_path)
    assert "source_bytes: was" in run("tokenize_jsonl.py", cwd=tmp_path, status=2).stderr
    assert "skipped 9 of 10" in run("tokenize_jsonl.py", "--overwrite", cwd=tmp_path).stdout
    assert len(reference.documents_of(tmp_path / "tokenized/book/book.npy")) == 41
    run("tokenize_jsonl.py", "--overwrite", *other, cwd=tmp_path)
    run("sanity_check.py", cwd=tmp_path)


def test_a_token_file_that_cannot_be_written_takes_none_of_the_others_along(
    run: Run, world: World, tmp_path: Path
) -> None:
    lay_out(tmp_path, world)
    shutil.copytree(world.tokenized / "tokenizer", tmp_path / "tokenized/tokenizer")
    (tmp_path / "tokenized/book/book.meta.json").mkdir(parents=True)
    for number_there in (9, 9):
        error = run("tokenize_jsonl.py", cwd=tmp_path, status=1).stderr
        assert "tokenized/book/book.npy: Is a directory" in error, error
        there = [path for path in tmp_path.rglob("tokenized/*/**/*.npy") if ".hash" not in path.name]
        assert len(there) == number_there and not list(tmp_path.rglob(".tmp-*"))
    (tmp_path / "tokenized/book/book.meta.json").rmdir()
    run("tokenize_jsonl.py", cwd=tmp_path)
    assert reference.tree_bytes(tmp_path / "tokenized") == reference.tree_bytes(world.tokenized)


def test_bad_lines_are_skipped_counted_and_reported(world: World, tmp_path: Path) -> None:
    """The last record is whole without a line end."""
    good = make_texts(5, 4, 30)
    lines = [json.dumps({"text": good[0]}), "", "{broken", '{"text": 1}', json.dumps({"text": good[1]}), "[]", "{}"]
    lines += [r'{"text": "lone \udc00 surrogate"}', json.dumps({"text": good[2]})]
    path = tmp_path / "data/arxiv/a.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    done = list_and_tokenize(tmp_path, "--tokenizer", world.tokenizer)
    assert "4 documents" in done.stdout and "4 lines skipped, 1 repaired" in done.stdout
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
    expected = [[1, *processor.encode(text), 2] for text in (good[0], good[1], "lone \ufffd surrogate", good[2])]
    assert [document.tolist() for document in reference.documents_of(tmp_path / "tokenized/arxiv/a.npy")] == expected


def test_a_damaged_changed_or_vanished_input_fails_alone(run: Run, world: World, tmp_path: Path) -> None:
    for name in ("good", "grown", "gone", "loop"):
        write_jsonl(tmp_path / f"data/arxiv/{name}.jsonl", make_texts(1, 5, 50))
    (tmp_path / "data/arxiv/cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "long enough"}\n' * 99)[:-5])
    (tmp_path / "data/arxiv/empty.jsonl").write_text("")
    run("get_all_jsonl.py", "data", cwd=tmp_path)
    with (tmp_path / "data/arxiv/grown.jsonl").open("a") as file:
        file.write("\n")
    (tmp_path / "data/arxiv/gone.jsonl").unlink()
    (tmp_path / "data/arxiv/loop.jsonl").unlink()
    (tmp_path / "data/arxiv/loop.jsonl").symlink_to("loop.jsonl")
    done = run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=tmp_path, status=1)
    assert "4 files failed" in done.stderr
    for message in ("cut.jsonl.gz is a damaged gzip", "grown.jsonl has", "gone.jsonl: No such file", "loop.jsonl: Too"):
        assert message in done.stderr
    made = {path.name for path in (tmp_path / "tokenized/arxiv").iterdir()}
    assert made == {f"{name}.{suffix}" for name in ("empty", "good") for suffix in ("npy", "hash.npy", "meta.json")}
    assert np.load(tmp_path / "tokenized/arxiv/empty.npy").tolist() == [0]


def cut_off(text: str) -> bytes:
    return "".join(json.dumps({"text": f"{text} {number}"}) + "\n" for number in range(99)).encode()[:-9]


LINES = '{"text": "word"}\n' * 99
WRONG_SOURCES = {
    "cut in the middle of a record": ("a.jsonl", cut_off("word"), "ends inside a record, in line 99: it was cut off"),
    "cut in the middle of a character": ("a.jsonl", '{"text": "日本語"}\n{"text": "日本'.encode()[:-1], "in line 2"),
    "cut before it was compressed": ("a.jsonl.gz", gzip.compress(cut_off("word")), "ends inside a record, in line 99"),
    "zeros at its end": ("a.jsonl", b'{"text": "whole"}\n' + bytes(4096), "has a run of NUL bytes, in line 2"),
    "zeros in its middle": (
        "a.jsonl",
        LINES.encode() + bytes(4096) + LINES.encode(),
        "has a run of NUL bytes, in line",
    ),
    "line ends of old Macs": ("a.jsonl", LINES.replace("\n", "\r").encode(), "its lines end in CR alone"),
    "UTF-16": ("a.jsonl", LINES.encode("utf-16"), "UTF-16 text: convert it with `iconv -f UTF-16"),
    "UTF-16 without a mark": ("a.jsonl", LINES.encode("utf-16-be"), "iconv -f UTF-16BE"),
    "Latin-1": ("a.jsonl", '{"text": "für"}\n'.encode("latin-1") * 99, "most likely Latin-1 or Windows-1252 text"),
    "gzip data": ("a.jsonl", gzip.compress(b'{"text": "word"}\n'), "it contains gzip data: end its name in .gz"),
    "an error page": ("a.jsonl", b"<html>\n<body>404</body>\n", "it is an HTML page"),
    "another key": ("a.jsonl", b'{"content": "word", "id": 1}\n' * 20, "its first one has 'content', 'id'. Pass"),
}


def test_a_source_that_is_cut_off_or_something_else_fails_and_says_what_it_is(world: World, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data/arxiv/good.jsonl", make_texts(1, 5, 50))
    paths = {case: f"arxiv/{number}{name}" for number, (case, (name, _, _)) in enumerate(WRONG_SOURCES.items())}
    for case, (_, content, _) in WRONG_SOURCES.items():
        (tmp_path / "data" / paths[case]).write_bytes(content)
    done = list_and_tokenize(tmp_path, "--tokenizer", world.tokenizer, "--max_bad_lines", 1, status=1)
    failures = done.stderr.partition("files failed:")[2].splitlines()
    for case, (_, _, message) in WRONG_SOURCES.items():
        assert any(paths[case] in line and message in line for line in failures), f"{case}: {failures}"
    assert not [path.name for path in (tmp_path / "tokenized/arxiv").iterdir() if not path.name.startswith("good.")]


def test_a_wrong_text_key_is_said_once_and_stops_the_run(run: Run, world: World, tmp_path: Path) -> None:
    for number in range(40):
        key = "text" if number == 0 else "content"
        (tmp_path / "data/arxiv").mkdir(parents=True, exist_ok=True)
        line = json.dumps({"id": number, key: f"some words {number}"})
        (tmp_path / f"data/arxiv/{number:02}.jsonl").write_text(f"{line}\n" * 20)
    flags = ("--tokenizer", world.tokenizer)
    done = list_and_tokenize(tmp_path, *flags, status=2)  # one file has it: found while they are tokenized
    assert "10 files failed alike: no record of" in done.stderr
    assert done.stderr.count("either") == 9
    assert done.stderr.count("Pass the one that holds the text with --text_key") == 2
    (tmp_path / "data/arxiv/00.jsonl").unlink()
    done = list_and_tokenize(tmp_path, *flags, status=2)  # none has it: found at the start
    assert done.stderr.count("has the key 'text': its first one has 'id', 'content'. Pass") == 1
    shutil.rmtree(tmp_path / "tokenized")
    run("tokenize_jsonl.py", *flags, cwd=tmp_path, status=2)
    assert not (tmp_path / "tokenized").exists()
    assert "39 files" in run("tokenize_jsonl.py", *flags, "--text_key", "content", cwd=tmp_path).stdout


def test_a_source_that_changes_while_it_is_read_fails(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read_range = tmp_path / "arxiv_0.jsonl", readers.read_range

    def read_and_replace(path: Path, start: int, stop: int) -> bytes:
        block = read_range(path, start, stop)
        (tmp_path / "new").write_bytes(path.read_bytes())
        (tmp_path / "new").replace(path)
        return block

    shutil.copy(world.data / "arxiv/arxiv_0.jsonl", source)
    shutil.copytree(world.tokenized / "tokenizer", tmp_path / "tokenized/tokenizer")
    identity = tokenizers.saved_identity(tmp_path / "tokenized/tokenizer")
    assert identity is not None
    job = encoding.Tokenization(tmp_path, tmp_path / "tokenized", RecordKeys("text"), 0.001, identity)
    file = listing.ListedFile(source.name, "arxiv", source.stat().st_size)
    for patched, num_failures in ((read_range, 0), (read_and_replace, 1)):
        monkeypatch.setattr(readers, "read_range", patched)
        (tmp_path / "tokenized/arxiv_0.npy").unlink(missing_ok=True)
        totals = encoding.Totals()
        job.tokenize([file], "tokenizers", 1, "", totals)
        assert len(totals.failures) == num_failures
        assert (tmp_path / "tokenized/arxiv_0.npy").exists() == (not num_failures)
    assert "changed while it was being read" in totals.failures[0]


def test_a_damaged_saved_tokenizer_is_rejected(run: Run, world: World, tmp_path: Path) -> None:
    lay_out(tmp_path, world)
    shutil.copytree(world.tokenized / "tokenizer", tmp_path / "tokenized/tokenizer")
    path = tmp_path / "tokenized/tokenizer/tokenizer.json"
    whole = path.read_text()
    for damaged in (whole.replace('"a"', '"b"', 1), whole[: len(whole) // 2], ""):
        path.write_text(damaged)
        for flags in ((), ("--tokenizer", world.tokenizer)):
            error = run("tokenize_jsonl.py", *flags, cwd=tmp_path, status=1).stderr
            assert "tokenizer is damaged: remove it" in error and "Traceback" not in error
    shutil.rmtree(path.parent)
    run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=tmp_path)
    assert reference.tree_bytes(tmp_path / "tokenized") == reference.tree_bytes(world.tokenized)


@pytest.mark.parametrize("delay", [0.7, 2.0])
def test_ctrl_c_twice_ends_a_run_and_its_workers(world: World, tmp_path: Path, delay: float) -> None:
    write_jsonl(tmp_path / "data/book/book.jsonl", make_texts(1, 100, 500) * 100)  # several seconds of work
    subprocess.run([sys.executable, str(PROJECT / "get_all_jsonl.py"), "data"], cwd=tmp_path, check=True)
    command = [sys.executable, str(PROJECT / "tokenize_jsonl.py"), "--num_workers", "2", "--backend", "tokenizers"]
    command += ["--tokenizer", str(world.tokenizer), "--verify_documents", "100"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    time.sleep(delay)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 130 and b"stopped by SIGINT" in error and b"Traceback" not in error
    deadline = time.monotonic() + 5
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:  # multiprocessing's own helper ends a moment later
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_too_many_bad_lines_are_the_wrong_file(run: Run, world: World, tmp_path: Path) -> None:
    good = [json.dumps({"text": text}) for text in make_texts(3, 100, 5)]
    for name, num_bad in (("ten", 10), ("eleven", 11)):
        path = tmp_path / f"data/arxiv/{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*good, *["bad"] * num_bad, ""]))
    done = list_and_tokenize(tmp_path, "--tokenizer", world.tokenizer, status=1)
    assert "eleven.jsonl has 11 bad lines and 100 good ones" in done.stderr and "--max_bad_lines" in done.stderr
    assert (tmp_path / "tokenized/arxiv/ten.npy").exists() and not (tmp_path / "tokenized/arxiv/eleven.npy").exists()
    assert "10 lines skipped" in done.stdout
    run("tokenize_jsonl.py", "--max_bad_lines", 0.2, cwd=tmp_path)


def test_a_document_of_a_hundred_megabytes_works(run: Run, world: World, tmp_path: Path) -> None:
    text = " ".join(make_texts(11, 20, 5000))
    text *= 100_000_000 // len(text)
    write_jsonl(tmp_path / "data/book/book.jsonl", ["before", text, "after"])
    list_and_tokenize(tmp_path, "--tokenizer", world.tokenizer)
    documents = reference.documents_of(tmp_path / "tokenized/book/book.npy")
    processor = SentencePieceProcessor(model_file=str(world.tokenizer))
    # The ids of a text that begins the document, up to where its last word may join the next one.
    beginning = processor.encode(text[:10_000])[:-5]
    assert documents[1][1 : len(beginning) + 1].tolist() == beginning
    assert [document.tolist() for document in (documents[0], documents[2])] == [
        [1, *processor.encode(word), 2] for word in ("before", "after")
    ]


def test_a_dry_run_says_what_each_shard_takes_and_writes_nothing(run: Run, world: World, tmp_path: Path) -> None:
    lay_out(tmp_path, world)
    flags = ("--tokenizer", "tokenizer.model", "--num_shards", 3)
    done = run("tokenize_jsonl.py", *flags, "--dry_run", cwd=tmp_path)
    header, _, *lines = done.stdout.splitlines()
    assert header.split() == ["shard", "files", "bytes", "tokens", "token", "bytes", "minutes"]
    assert [line.split()[0] for line in lines[:3]] == ["0", "1", "2"]
    estimated = sum(int(line.split()[3].replace(",", "")) for line in lines[:3])
    true = sum(len(np.load(path)) for path in world.tokenized.rglob("*.npy") if not path.name.endswith(".hash.npy"))
    assert estimated == pytest.approx(true, rel=0.2)
    assert "bytes are free" in done.stdout and not (tmp_path / "tokenized").exists()
    # What is done is left out, and a run that would be rejected is rejected.
    run("tokenize_jsonl.py", *flags, "--shard_id", 0, cwd=tmp_path)
    done = run("tokenize_jsonl.py", *flags, "--dry_run", cwd=tmp_path)
    assert "of 10 files are tokenized already" in done.stdout and "1 shards have nothing to do" in done.stdout
    other = ("--tokenizer", make_other_tokenizer(tmp_path))
    assert "fingerprint" in run("tokenize_jsonl.py", *flags, *other, "--dry_run", cwd=tmp_path, status=2).stderr
    run("tokenize_jsonl.py", *flags[:2], cwd=tmp_path)
    assert "10 of 10 files" in run("tokenize_jsonl.py", *flags, "--dry_run", cwd=tmp_path).stdout


def test_a_data_folder_that_is_another_one_is_rejected_before_anything_is_made(
    run: Run, world: World, tmp_path: Path
) -> None:
    lay_out(tmp_path, world)
    write_jsonl(tmp_path / "other/book/book.jsonl", make_texts(1, 3, 10))
    flags = ("--tokenizer", "tokenizer.model", "--data_dir", "other")
    for more in ((), ("--dry_run",)):
        error = run("tokenize_jsonl.py", *flags, *more, cwd=tmp_path, status=2).stderr
        assert "9 of 10 listed files are not in the data folder other, such as arxiv/" in error
    assert not list(tmp_path.glob("tokenized/**/*.npy"))


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
