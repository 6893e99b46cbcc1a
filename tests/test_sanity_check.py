"""What the check of the token files finds, and what `show` shows.    pytest tests/test_sanity_check.py"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cepe_data.storage import mds, provenance
from demo import models
from tests import reference
from tests.conftest import PROJECT, Run, World, make_texts

BOOK = "book/book.npy"


def lay_out(folder: Path, world: World) -> Path:
    shutil.copytree(world.tokenized, folder / "tokenized")
    for name in ("all_jsonl.txt", "all_jsonl.json"):
        shutil.copy(world.folder / name, folder / name)
    return folder / "tokenized" / BOOK


def write_meta(path: Path, meta: dict) -> None:
    """A meta file as a faulty writer would write it, with the right hash of its own."""
    path.write_text(json.dumps(provenance.signed(meta)))


def test_clean_files_are_counted_as_they_are(run: Run, world: World, tmp_path: Path) -> None:
    lay_out(tmp_path, world)
    done = run("sanity_check.py", "--num_shards", 3, cwd=tmp_path)
    assert "FOUND" not in done.stdout and "10 token files: 0 missing, 0 damaged" in done.stdout
    rows = {line.split()[0]: line.replace(",", "").split()[1:] for line in done.stdout.splitlines() if line}
    for domain in ("arxiv", "book", "c4-rp", "cc", "github", "stackexchange", "wiki"):
        paths = [world.tokenized / f["path"].replace(".jsonl", ".npy") for f in world.listed() if f["domain"] == domain]
        lengths = [[len(document) for document in reference.documents_of(path)] for path in paths]
        flat = [length for of_file in lengths for length in of_file]
        expected = [len(paths), len(flat), sum(flat), sum(sum(of_file) // 4096 for of_file in lengths)]
        expected += [sum(length >= threshold for length in flat) for threshold in (8192, 32768, 131072)]
        assert rows[domain] == list(map(str, expected))
    assert rows["total"][1] == "763"


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (41, 7, r"document 0 does not begin with BOS \(1\)"),
        (-1, 7, r"document 39 does not end with EOS \(2\)"),
        (50, 800, "document 0 has ids outside of 0 … 799"),
        (50, -1, "document 0 has ids outside"),
        (1, 10**6, "do not add up"),
        (1, -4, "negative length"),
        (0, 39, "39 documents|39 hashes|40 hashes for 39"),
        (0, 10**7, "documents in"),
    ],
)
def test_wrong_content_is_found_even_where_hashes_agree(
    run: Run, world: World, tmp_path: Path, position: int, value: int, message: str
) -> None:
    path = lay_out(tmp_path, world)
    array = np.load(path)
    array[position] = value
    np.save(path, array)
    meta_path = provenance.meta_path(path)
    meta = json.loads(meta_path.read_text())
    meta["files"][path.name] = provenance.file_metadata(path)
    write_meta(meta_path, meta)
    done = run("sanity_check.py", "--deep", cwd=tmp_path, status=1)
    [finding, *more] = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert str(path.relative_to(tmp_path).parent) in finding
    assert re.search(message, "\n".join([finding, *more])), finding


def test_missing_and_damaged_files_are_named_with_the_array_that_makes_them(
    run: Run, world: World, tmp_path: Path
) -> None:
    path = lay_out(tmp_path, world)
    array = np.load(path)
    array[100] ^= 1
    np.save(path, array)
    (tmp_path / "tokenized/wikipedia/wiki.npy").unlink()
    (tmp_path / "tokenized/github/filtered_0.sampled.hash.npy").unlink()
    foreign = tmp_path / "tokenized/arxiv/arxiv_0.meta.json"
    fingerprint = json.loads(foreign.read_text())["made_with"]["tokenizer"]["fingerprint"]
    write_meta(foreign, json.loads(foreign.read_text().replace(fingerprint, "0123456789abcdef")))
    truncated = tmp_path / "tokenized/arxiv/arxiv_1.npy"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    done = run("sanity_check.py", "--deep", "--num_shards", 99, cwd=tmp_path, status=1)
    for message in (
        "wikipedia/wiki.npy: is missing",
        "book/book.npy: is not what was written",
        "filtered_0.sampled.hash.npy",
        "arxiv_0.npy: was made with another tokenizer (0123456789abcdef)",
        "arxiv_1.npy: is gone, or has not the size",
        "1 missing, 4 damaged",
    ):
        assert message in done.stdout
    [line] = [line for line in done.stdout.splitlines() if "sbatch --array=" in line]
    ids = line.partition("--array=")[2].split()[0]
    assert line.endswith("--num_shards 99 --overwrite")
    assert f"run_tokenize.sh {world.data}" in line
    flags = ("--data_dir", world.data, "--num_shards", 99, "--overwrite")
    for part in ids.split(","):
        first, _, last = part.partition("-")
        for shard in range(int(first), int(last or first) + 1):
            run("tokenize_jsonl.py", *flags, "--shard_id", shard, cwd=tmp_path)
    run("sanity_check.py", cwd=tmp_path)
    assert reference.tree_bytes(tmp_path / "tokenized") == reference.tree_bytes(world.tokenized)


def test_before_any_tokenizing_everything_is_missing(run: Run, world: World, tmp_path: Path) -> None:
    lay_out(tmp_path, world)
    done = run("sanity_check.py", "--tokenized_dir", "none", "--num_shards", 3, cwd=tmp_path, status=1)
    assert "10 missing" in done.stdout
    script = PROJECT / "run_tokenize.sh"
    assert f"--array=0-2 {script} {world.data} --num_shards 3 --output_dir none" in done.stdout
    assert f"CEPE_DATA_HOME={PROJECT} sbatch" in done.stdout


def test_the_lines_that_make_what_is_missing_work_with_spaces_in_every_path(
    run: Run, world: World, tmp_path: Path
) -> None:
    (tmp_path / "red pajama/book").mkdir(parents=True)
    (tmp_path / "red pajama/book/b.jsonl").write_text('{"the text": "one"}\n')
    (tmp_path / "my scripts").symlink_to(PROJECT)
    (tmp_path / "bin").mkdir()
    run_only_task = '[ "$1" = --array=0 ] || exit 9\nshift\nSLURM_ARRAY_TASK_ID=0 exec bash "$@"\n'
    for name, content in (("sbatch", run_only_task), ("python", f'exec {shlex.quote(sys.executable)} "$@"\n')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{content}")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHON": sys.executable}
    run("get_all_jsonl.py", "red pajama", "--output", "my list.txt", cwd=tmp_path)
    places = ("--file_list", "my list.txt", "--output_dir", "my tokens", "--text_key", "the text")
    run("tokenize_jsonl.py", *places, "--tokenizer", world.tokenizer, cwd=tmp_path)
    check = [sys.executable, "my scripts/sanity_check.py", *places[:2], "--tokenized_dir", "my tokens"]
    for flags in ([], ["--num_shards", "1"]):
        (tmp_path / "my tokens/book/b.hash.npy").write_bytes(b"")
        found = subprocess.run([*check, *flags], check=False, cwd=tmp_path, capture_output=True, text=True).stdout
        [line] = [line for line in found.splitlines() if line.startswith("make them: ")]
        line = line.removeprefix("make them: ").partition("   (")[0]
        subprocess.run(line, shell=True, cwd=tmp_path, env=environment, check=True)
        run("sanity_check.py", *check[2:], cwd=tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_texts_are_compared_by_the_lines_that_tokenizing_reads(
    run: Run, world: World, tmp_path: Path, suffix: str
) -> None:
    """A byte-order mark inside a file makes a bad line; a lone CR is a space inside a record."""
    (tmp_path / "data/book").mkdir(parents=True)
    lines = ['{"text": "a"}', '{"text": "outer",\r"part": \r{"text": "inner"}\r}', '\ufeff{"text": "marked"}']
    content = "".join(f"{line}\n" for line in lines).encode()
    (tmp_path / f"data/book/x.jsonl{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    run("get_all_jsonl.py", "data", cwd=tmp_path)
    run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=tmp_path)
    assert "2 texts tokenized again" in run("sanity_check.py", "--texts", 50, cwd=tmp_path).stdout


def test_a_stale_token_file_is_found_and_not_sampled(run: Run, world: World, tmp_path: Path) -> None:
    lay_out(tmp_path, world)
    content = json.loads((tmp_path / "all_jsonl.json").read_text())
    content["files"] = [{**file, "bytes": file["bytes"] + (file["domain"] == "book")} for file in content["files"]]
    (tmp_path / "all_jsonl.json").write_text(json.dumps(provenance.signed(content)))
    assert "book.npy: was made from" in run("sanity_check.py", cwd=tmp_path, status=1).stdout
    assert "another size" in run("sample_mds_ab.py", "OUT", 128, 64, 1, 1, cwd=tmp_path, status=1).stderr


def test_show_prints_a_row_with_its_source_and_document(run: Run, world: World, tmp_path: Path) -> None:
    flags = (*world.source_flags, "--test_fraction", 0.2)
    run("sample_mds_ab.py", "OUT", 128, 64, 4, 0, "--domains", "book=1", *flags, cwd=tmp_path)
    row = mds.Rows(tmp_path / "OUT/test/book")[2]
    tokens = np.concatenate([row["prev_token_ids"], row["token_ids"]])
    documents = reference.documents_of(world.tokenized / BOOK)
    [number] = [n for n, document in enumerate(documents) if reference.stands_in(tokens, document)]
    show = ("sanity_check.py", "show", "OUT/test/book", 2, "--tokenized_dir", world.tokenized)
    shown = run(*show, cwd=tmp_path).stdout
    assert f"source: book/book.jsonl, document {number} (from 0) of 40" in shown
    text = reference.texts_of(world.data / "book/book.jsonl")[number]
    for line in shown.partition("--- prev_token_ids")[2].splitlines()[2:-4]:
        assert line in text or "---" in line
    assert "there is no row 4" in run(*show[:3], 4, *show[4:], cwd=tmp_path, status=2).stderr
    assert "holds no MDS set" in run(*show[:2], "OUT", *show[3:], cwd=tmp_path, status=2).stderr


def test_show_rejects_a_tokenizer_that_did_not_make_the_tokens(run: Run, world: World, tmp_path: Path) -> None:
    models.train_tokenizer(make_texts(99, 30, 200), tmp_path / "other.model", 700)
    listing = ("--file_list", world.folder / "all_jsonl.txt")
    run("tokenize_jsonl.py", *listing, "--tokenizer", "other.model", cwd=tmp_path)
    flags = ("--domains", "book=1", "--test_fraction", 0.3, *world.source_flags)
    run("sample_mds_ab.py", "OUT", 128, 64, 2, 0, *flags, cwd=tmp_path)
    show = ("sanity_check.py", "show", "OUT/test/book", 0)
    assert "is not the one that made the tokens" in run(*show, cwd=tmp_path, status=2).stderr
    done = run(*show, "--tokenizer", world.tokenizer, cwd=tmp_path)
    assert "(tokenized/book/book.npy is of another tokenizer)" in done.stdout
    done = run(*show, "--tokenized_dir", world.tokenized, cwd=tmp_path)
    assert "source: book/book.jsonl, document" in done.stdout


def test_show_takes_ranges_random_rows_all_domains_documents_and_passages(
    run: Run, world: World, tmp_path: Path
) -> None:
    lay_out(tmp_path, world)
    concat = ("sample_mds_concat.py", "OUT", 32, 32, 100, 0, 100, "--retrieval_shards", 1, "--retrieval_chunk_size", 16)
    run(*concat, "--test_fraction", 0.2, "--allow_shortage", cwd=tmp_path)

    def show(*arguments: object, status: int = 0) -> str:
        done = run("sanity_check.py", "show", *arguments, cwd=tmp_path, status=status)
        return done.stdout if status == 0 else done.stderr

    domains = sorted(path.parent.name for path in (tmp_path / "OUT/test").glob("*/index.json"))
    assert len(domains) == 7
    first_lines = re.findall(r"^OUT/test/(\S+) row (\d+) of", show("OUT/test", "0:2", "--domain", "all"), re.MULTILINE)
    assert first_lines == [(domain, str(row)) for domain in domains for row in (0, 1)]
    assert len({show("OUT/test/cc", "random") for _ in range(3)}) > 1
    assert show("OUT/test", 1, "--domain", "cc") == show("OUT/test/cc", 1) == show("OUT/test/cc", "1:2")
    assert "--domain no: in OUT/test there is arxiv, book" in show("OUT/test", 0, "--domain", "no", status=2)
    for rows in ("5:5", "x", "-1"):
        assert "argument ROWS" in show("OUT/test/cc", rows, status=2)

    documents = show(f"tokenized/{BOOK}", "3:5", "--max_characters", 10**6).split("--- ")[1:]
    texts = reference.texts_of(world.data / "book/book.jsonl")
    for number, document in enumerate(documents, 3):
        assert document.startswith(f"tokenized/{BOOK} document {number} of 40 of book/book.jsonl, ")
        assert texts[number] in document
    assert len(documents) == 2
    assert "there is no row 40" in show(f"tokenized/{BOOK}", 40, status=2)

    passages = [json.loads(line) for line in (tmp_path / "OUT/retrieval/0/wiki.jsonl").read_text().splitlines()]
    shown = show("OUT/retrieval/0/wiki.jsonl", 1)
    assert "--- passage {id}\n{contents}\n--- neighbor\n{neighbor}\n".format(**passages[1]) in shown
    assert show("OUT/retrieval/0", 1, "--domain", "wiki") == shown
    assert "is not there" in show("OUT/retrieval/9/wiki.jsonl", 1, status=2)
