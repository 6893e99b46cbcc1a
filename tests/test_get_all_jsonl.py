"""Listing a download.    pytest tests/test_get_all_jsonl.py"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cepe_data.storage import outputs, provenance
from tests.conftest import Run, World


def make(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text('{"text": "x"}\n' * len(path))
    return folder


def listed(folder: Path) -> list[str]:
    return (folder / "all_jsonl.txt").read_text().splitlines()


def test_the_list_is_sorted_and_knows_domains_sizes_and_root(run: Run, tmp_path: Path) -> None:
    paths = ["c4/b.jsonl", "c4-rp/a.jsonl.gz", "common_crawl/2019-30/z.jsonl.zst", "cc/y.jsonl", "wikipedia/w.jsonl"]
    paths += ["wiki/w2.jsonl", "arxiv/Z.jsonl", "arxiv/a.jsonl", "arxiv/a/b.jsonl", "book/notes.txt", "github/x.yaml"]
    paths += ["train/RedPajamaC4/p.parquet", "train/RedPajamaC4/j.json.zst"]
    make(tmp_path / "data", *paths)
    done = run("get_all_jsonl.py", "data", cwd=tmp_path)
    expected = sorted(path for path in paths if not path.endswith((".txt", ".yaml")))
    assert listed(tmp_path) == expected
    content = json.loads((tmp_path / "all_jsonl.json").read_text())
    assert content["root"] == str((tmp_path / "data").resolve())
    domains = {"c4": "c4-rp", "c4-rp": "c4-rp", "common_crawl": "cc", "cc": "cc", "wikipedia": "wiki", "wiki": "wiki"}
    domains["train"] = "c4-rp"
    for file in content["files"]:
        assert file["bytes"] == (tmp_path / "data" / file["path"]).stat().st_size
        assert file["domain"] == domains.get(file["path"].split("/")[0], "arxiv")
    assert "no files of book, github, stackexchange" in done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{len(expected)} files, ")


def test_unknown_folders_are_named_and_kept_out_unless_mapped(run: Run, tmp_path: Path) -> None:
    make(tmp_path / "data", "arxiv/a.jsonl", "mine/m.jsonl", "top.jsonl", "arxiv/.hidden/h.jsonl", "arxiv/.h.jsonl")
    (tmp_path / "data/arxiv/.hidden/lock").symlink_to("nothing")
    done = run("get_all_jsonl.py", "data", cwd=tmp_path)
    assert listed(tmp_path) == ["arxiv/a.jsonl"]
    for message in ("mine/ with 1 files", "--domain_map mine=mine\n", "outside of any folder", "3 hidden ("):
        assert message in done.stderr
    done = run("get_all_jsonl.py", "data", "--domain_map", "mine=book", cwd=tmp_path)
    assert listed(tmp_path) == ["arxiv/a.jsonl", "mine/m.jsonl"] and "1 added, 0 removed" in done.stdout
    assert json.loads((tmp_path / "all_jsonl.json").read_text())["files"][1]["domain"] == "book"
    for bad in ("mine", "mine=", "mine=../x", "mine=a,mine=b", "mine=a=b"):
        run("get_all_jsonl.py", "data", "--domain_map", bad, cwd=tmp_path, status=2)


def test_what_is_ignored_is_named_by_suffix_and_so_are_empty_files(run: Run, tmp_path: Path) -> None:
    names = ["a.jsonl", "b.jsonl.bz2", "c.jsonl.xz", "d.ndjson", "e.JSONL", "f.jsonl.zst.part", "g.jsonl.bz2", "SUMS"]
    make(tmp_path / "data", *(f"arxiv/{name}" for name in names))
    (tmp_path / "data/arxiv/empty.jsonl").touch()
    (tmp_path / "data/arxiv/empty.jsonl.gz").touch()
    os.mkfifo(tmp_path / "data/arxiv/pipe.jsonl")
    done = run("get_all_jsonl.py", "data", cwd=tmp_path, status=2)
    assert "empty.jsonl and arxiv/empty.jsonl.gz would both write" in done.stderr
    (tmp_path / "data/arxiv/empty.jsonl.gz").unlink()
    done = run("get_all_jsonl.py", "data", cwd=tmp_path)
    assert listed(tmp_path) == ["arxiv/a.jsonl", "arxiv/empty.jsonl"]
    assert (
        "8 other files left out: 1 .JSONL (arxiv/e.JSONL), 2 .bz2 (arxiv/b.jsonl.bz2), 1 .ndjson (arxiv/d.ndjson), "
        "1 .xz (arxiv/c.jsonl.xz), 1 .zst.part (arxiv/f.jsonl.zst.part), 1 not a regular file (arxiv/pipe.jsonl), "
        "1 without a suffix (arxiv/SUMS). Only the suffixes .jsonl, .jsonl.gz, "
    ) in done.stderr
    assert "1 listed files have 0 bytes, such as arxiv/empty.jsonl" in done.stderr


def test_a_folder_without_jsonl_is_an_error_that_says_what_was_looked_for(run: Run, tmp_path: Path) -> None:
    make(tmp_path / "data", "arxiv/a.yaml")
    error = run("get_all_jsonl.py", "data", cwd=tmp_path, status=2).stderr
    assert "*.jsonl, *.jsonl.gz, *.jsonl.zst, *.json, " in error and "common_crawl" in error
    assert "does not exist" in run("get_all_jsonl.py", "nowhere", cwd=tmp_path, status=2).stderr
    assert sorted(os.listdir(tmp_path)) == ["data"]


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("arxiv/gone.jsonl", "nothing.jsonl", "link to nothing"),
        ("arxiv/gone.jsonl", "/nowhere/x.jsonl", "link to nothing"),
        ("arxiv/self.jsonl", "self.jsonl", "link to nothing"),
        ("book/disk2", "/nowhere/book", "mount that"),
        ("arxiv/twice.jsonl", "a.jsonl", "are one file"),
        ("arxiv/again", "../book", "are one file"),
    ],
)
def test_links_to_nothing_and_to_listed_files_are_rejected(
    run: Run, tmp_path: Path, link: str, target: str, message: str
) -> None:
    make(tmp_path / "data", "arxiv/a.jsonl", "book/b.jsonl")
    (tmp_path / "data" / link).symlink_to(target)
    assert message in run("get_all_jsonl.py", "data", cwd=tmp_path, status=1).stderr


def test_links_inside_are_followed_and_the_root_may_be_one(run: Run, tmp_path: Path) -> None:
    make(tmp_path / "store/data", "blobs/1", "arxiv/a.jsonl")
    (tmp_path / "store/data/arxiv/b.jsonl").symlink_to("../blobs/1")
    (tmp_path / "data").symlink_to("store/data")
    run("get_all_jsonl.py", "data", cwd=tmp_path)
    assert listed(tmp_path) == ["arxiv/a.jsonl", "arxiv/b.jsonl"]


def test_a_file_with_two_names_or_a_bad_name_is_an_error(run: Run, tmp_path: Path) -> None:
    make(tmp_path / "data", "arxiv/a.jsonl", f"book/{'b' * 200}.jsonl", "arxiv/a\nb.jsonl")
    os.link(tmp_path / "data/arxiv/a.jsonl", tmp_path / "data/arxiv/z.jsonl")
    error = run("get_all_jsonl.py", "data", cwd=tmp_path, status=1).stderr
    assert "arxiv/a.jsonl and arxiv/z.jsonl are one file" in error and "more than 160 bytes: rename it" in error
    assert "'arxiv/a\\nb.jsonl' cannot stand in a list of one path per line: rename it" in error


@pytest.mark.parametrize("output", ["tokenized", "."])
def test_what_these_scripts_wrote_into_the_corpus_is_not_listed(
    run: Run, world: World, tmp_path: Path, output: str
) -> None:
    corpus = ["arxiv/a.json", "arxiv/b.jsonl", "arxiv/manifest.json", "arxiv/meta.json", "book/a.jsonl"]
    make(tmp_path, *corpus)
    run("get_all_jsonl.py", ".", cwd=tmp_path)
    where = ("--data_dir", ".", "--output_dir", output)
    run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, *where, cwd=tmp_path)
    (tmp_path / "8k_concat").mkdir()
    outputs.write_json(tmp_path / "8k_concat/manifest.json", provenance.signed({"sets": {}}))
    for flags in ((), ("--domain_key", "meta.set")):
        done = run("get_all_jsonl.py", ".", *flags, cwd=tmp_path)
        assert "0 added, 0 removed" in done.stdout and "written by these scripts (" in done.stderr
        assert listed(tmp_path) == corpus
    error = run("get_all_jsonl.py", ".", "--output", "arxiv/a.txt", cwd=tmp_path, status=2).stderr
    assert "arxiv/a.json is a file of the corpus" in error
    (tmp_path / "book/meta.json").write_text("[" * 100_000)
    (tmp_path / "arxiv/a.meta.json").unlink(missing_ok=True)
    (tmp_path / "arxiv/a.meta.json").mkdir()
    run("get_all_jsonl.py", ".", cwd=tmp_path)
    assert listed(tmp_path) == [*corpus, "book/meta.json"]
