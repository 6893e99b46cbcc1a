"""Corpora whose records say their domain, in all formats: the same documents give the same token files, rows and
passages as one file a source and domain.    pytest tests/test_mixed_corpora.py"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cepe_data.storage import mds, provenance
from tests.conftest import PROJECT, Run, World, make_texts, run_script, write_jsonl

KEY = ("--domain_key", "meta.redpajama_set_name")
NAMES = {
    "arxiv": "RedPajamaArXiv",
    "book": "RedPajamaBook",
    "c4": "RedPajamaC4",
    "common_crawl": "RedPajamaCommonCrawl",
    "github": "RedPajamaGithub",
    "stackexchange": "RedPajamaStackExchange",
    "wikipedia": "RedPajamaWikipedia",
}
DOMAINS = ["arxiv", "book", "c4-rp", "cc", "github", "stackexchange", "wiki"]
DOMAIN_OF_NAME = dict(zip(NAMES.values(), DOMAINS, strict=True))

AB = ("sample_mds_ab.py", "AB", 128, 64, 8, 40, "--test_fraction", 0.2)
RETRIEVAL = ("--retrieval_shards", 2, "--retrieval_chunk_size", 32)
CONCAT = ("sample_mds_concat.py", "CONCAT", 128, 64, 30, 140, 40, 0, "--test_fraction", 0.2, *RETRIEVAL)

Record = dict[str, Any]


def write_zst(path: Path, records: list[Record]) -> None:
    path.write_bytes(zstandard.compress("".join(json.dumps(record) + "\n" for record in records).encode()))


def write_gz(path: Path, records: list[Record]) -> None:
    """The meta objects are strings of JSON, as some mirrors have them."""
    lines = [json.dumps({**record, "meta": json.dumps(record["meta"])}) + "\n" for record in records]
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def write_parquet(path: Path, records: list[Record], codec: str = "zstd") -> None:
    pq.write_table(pa.Table.from_pylist(records), path, compression=codec, row_group_size=17)


def write_parquet_of_strings(path: Path, records: list[Record]) -> None:
    write_parquet(path, [{**record, "meta": json.dumps(record["meta"])} for record in records], "gzip")


SOURCES: dict[str, Callable[[Path, list[Record]], None]] = {
    "train/chunk1/example_train_0.jsonl.zst": write_zst,
    "train/chunk1/example_train_1.json.gz": write_gz,
    "train/chunk2/example_train_0.parquet": write_parquet,
    "train/chunk2/example_train_1.parquet": write_parquet_of_strings,
}


@dataclass(frozen=True)
class Mixed:
    """The documents of `world`, shuffled: in `mixed`, in files of all domains; in `plain`, the same files as jsonl of a
    single domain; in `pure`, a file a source and domain."""

    folder: Path
    records: dict[str, list[Record]]

    def arrays(self, corpus: str, path: str) -> Iterator[bytes]:
        stem = self.folder / corpus / "tokenized" / path.split(".", maxsplit=1)[0]
        for name in (f"{stem}.npy", f"{stem}.hash.npy"):
            yield Path(name).read_bytes()


@pytest.fixture(scope="module")
def mixed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    folder = tmp_path_factory.mktemp("mixed")
    records = []
    for source in sorted(world.data.rglob("*.jsonl")):
        name = NAMES[source.relative_to(world.data).parts[0]]
        records += [{"text": json.loads(line)["text"], "meta": {"redpajama_set_name": name}} for line in source.open()]
    random.Random(0).shuffle(records)
    of_source = {path: records[number :: len(SOURCES)] for number, path in enumerate(SOURCES)}
    for path, write in SOURCES.items():
        (folder / "mixed/data" / path).parent.mkdir(parents=True, exist_ok=True)
        write(folder / "mixed/data" / path, of_source[path])
        stem = path.split(".")[0]
        write_jsonl(folder / f"plain/data/{stem}.jsonl", [record["text"] for record in of_source[path]])
        for top, name in NAMES.items():
            mine = [record["text"] for record in of_source[path] if record["meta"]["redpajama_set_name"] == name]
            write_jsonl(folder / f"pure/data/{top}/{stem}.jsonl", mine)
    for corpus, flags in {"mixed": KEY, "plain": ("--domain_map", "train=any"), "pure": ()}.items():
        run_script("get_all_jsonl.py", "data", *flags, cwd=folder / corpus)
        run_script("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=folder / corpus)
    for corpus in ("mixed", "pure"):
        run_script("sanity_check.py", "duplicates", cwd=folder / corpus)
        for script in (AB, CONCAT):
            run_script(*script, "--drop_duplicates", "--allow_shortage", cwd=folder / corpus)
    return Mixed(folder, of_source)


def test_every_format_gives_the_token_files_of_plain_jsonl_and_the_domain_of_each_document(
    mixed: Mixed, world: World, run: Run, tmp_path: Path
) -> None:
    for path, records in mixed.records.items():
        assert list(mixed.arrays("mixed", path)) == list(mixed.arrays("plain", path))
        stem = mixed.folder / "mixed/tokenized" / path.split(".")[0]
        expected = [DOMAIN_OF_NAME[record["meta"]["redpajama_set_name"]] for record in records]
        meta = json.loads(Path(f"{stem}.meta.json").read_text())
        numbers = np.load(f"{stem}.domain.npy")
        assert numbers.dtype == np.uint8
        assert [meta["domains"]["names"][number] for number in numbers] == expected
        assert meta["domains"]["documents"] == [expected.count(domain) for domain in DOMAINS]
    assert "0 missing, 0 damaged, 16 texts" in run("sanity_check.py", "--deep", cwd=mixed.folder / "mixed").stdout
    for num_workers in (2, 5):
        output = tmp_path / str(num_workers)
        flags = ("--tokenizer", world.tokenizer, "--output_dir", output, "--num_workers", num_workers)
        run("tokenize_jsonl.py", *flags, cwd=mixed.folder / "mixed")
        for file in sorted((mixed.folder / "mixed/tokenized").rglob("*")):
            if file.is_file() and "duplicates" not in file.name:
                assert (output / file.relative_to(mixed.folder / "mixed/tokenized")).read_bytes() == file.read_bytes()


def without_place(line: str) -> Record:
    return {name: value for name, value in json.loads(line).items() if name not in {"file", "position"}}


def test_rows_and_passages_are_those_of_a_file_a_source_and_domain(mixed: Mixed, run: Run) -> None:
    folders = {corpus: mixed.folder / corpus for corpus in ("mixed", "pure")}
    sets = sorted(path.parent.relative_to(folders["pure"]) for path in folders["pure"].glob("*/*/*/index.json"))
    assert len(sets) == 4 + 14
    for one in sets:
        first, second = (mds.Rows(folder / one) for folder in folders.values())
        assert len(first) == len(second) > 0
        for row, other in zip(first, second, strict=True):
            assert row.keys() == other.keys() and all(np.array_equal(row[name], other[name]) for name in row)
    for path in sorted(folders["pure"].glob("CONCAT/retrieval/*/*.jsonl")):
        same = folders["mixed"] / path.relative_to(folders["pure"])
        assert list(map(without_place, path.open())) == list(map(without_place, same.open()))
    for name in ("AB", "CONCAT"):
        status = 1 if name == "CONCAT" else 0  # only one of its two shards is there
        done = run("sanity_check.py", "samples", name, "--deep", cwd=folders["mixed"], status=status)
        assert (done.stdout.count("FOUND") == status and "has not all of its 2 shards" in done.stdout) or not status


def test_a_teacher_annotates_rows_of_a_mixed_corpus(mixed: Mixed, world: World, run: Run) -> None:
    flags = (
        "--num_encoder_tokens",
        64,
        "--num_decoder_tokens",
        64,
        "--topk",
        5,
        "--model_dir",
        world.folder / "teacher",
    )
    run("calculate_logits.py", "--input_dir", "AB/train", "--domain", "arxiv", *flags, cwd=mixed.folder / "mixed")
    [made] = (mixed.folder / "mixed/AB").glob("train-logits-*/arxiv")
    assert len(mds.Rows(made)) == len(mds.Rows(mixed.folder / "mixed/AB/train/arxiv"))
    assert "0 findings" in run("sanity_check.py", "teacher", made.parent, "--deep", cwd=mixed.folder / "mixed").stdout


def drop_column(path: Path, records: list[Record]) -> None:
    write_parquet(path, [{"body": record["text"], "meta": record["meta"]} for record in records])


def number_texts(path: Path, records: list[Record]) -> None:
    write_parquet(path, [{**record, "text": 7} for record in records])


def cut(path: Path, records: list[Record]) -> None:
    write_parquet(path, records)
    os.truncate(path, path.stat().st_size // 2)


def flip_page(path: Path, records: list[Record]) -> None:
    pq.write_table(pa.Table.from_pylist(records), path, compression="zstd", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)


def other_names(path: Path, records: list[Record]) -> None:
    write_zst(path, [{**record, "meta": {"redpajama_set_name": "PileOfLaw"}} for record in records])


def without_names(path: Path, records: list[Record]) -> None:
    write_zst(path, [{**record, "meta": {}} for record in records])


def spoil_meta(path: Path, records: list[Record]) -> None:
    write_zst(path, [{**record, "meta": "no JSON"} for record in records])


def write_array(path: Path, records: list[Record]) -> None:
    path.write_text(json.dumps(records, indent=1))


DAMAGES: dict[str, tuple[str, Callable[[Path, list[Record]], None], str]] = {
    "missing column": (".parquet", drop_column, "has no column 'text', but body, meta: pass one with --text_key"),
    "texts that are numbers": (".parquet", number_texts, "holds int64, not strings"),
    "cut parquet": (".parquet", cut, "is a damaged parquet file"),
    "other byte in a page with a checksum": (".parquet", flip_page, "is a damaged parquet file"),
    "unknown domain": (".jsonl.zst", other_names, "unknown domain 'PileOfLaw' in 'meta.redpajama_set_name', first"),
    "no domain": (".jsonl.zst", without_names, "no domain in 'meta.redpajama_set_name', first in lines 1, 2"),
    "meta that is not JSON": (".jsonl.zst", spoil_meta, "is not JSON, first in lines 1, 2"),
    "one JSON array": (".json", write_array, "is one JSON array, not JSON lines: convert it with `jq -c '.[]'`"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_source_fails_alone_with_its_name(
    mixed: Mixed, world: World, run: Run, tmp_path: Path, damage: str
) -> None:
    suffix, write, message = DAMAGES[damage]
    (tmp_path / "data/train").mkdir(parents=True)
    good, bad = "train/chunk1/example_train_0.jsonl.zst", f"bad{suffix}"
    shutil.copy(mixed.folder / "mixed/data" / good, tmp_path / "data/train/good.jsonl.zst")
    write(tmp_path / "data/train" / bad, mixed.records[good])
    run("get_all_jsonl.py", "data", *KEY, cwd=tmp_path)
    done = run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=tmp_path, status=1)
    assert f"train/{bad}" in done.stderr and message in done.stderr
    if "domain" in damage:
        assert f"--domain_{'map' if 'unknown' in damage else 'key'}" in done.stderr
    assert (tmp_path / "tokenized/train/good.npy").exists()
    assert not (tmp_path / "tokenized/train/bad.npy").exists()


def test_further_values_become_domains_by_the_map(mixed: Mixed, world: World, run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    records = [{"body": {"text": f"text {number}"}, "kind": ["law", "news", None][number % 3]} for number in range(30)]
    write_parquet(tmp_path / "data/all.parquet", records)
    command = ("get_all_jsonl.py", "data", "--domain_key", "kind", "--domain_map", "law=law,news=press")
    assert "(kind)" in run(*command, cwd=tmp_path).stdout
    flags = ("--tokenizer", world.tokenizer, "--text_key", "body.text")
    done = run("tokenize_jsonl.py", *flags, cwd=tmp_path)
    assert "20 documents" in done.stdout and "10 lines skipped" in done.stdout
    meta = json.loads((tmp_path / "tokenized/all.meta.json").read_text())
    names = dict(zip(meta["domains"]["names"], meta["domains"]["documents"], strict=True))
    assert (names["law"], names["press"], sum(names.values())) == (10, 10, 20)
    assert meta["skipped_lines"] == {"no domain in 'kind'": {"count": 10, "first_lines": list(range(3, 31, 3))}}
    sample = ("sample_mds_ab.py", "OUT", 4, 2, 1, 1)
    message = run(*sample, cwd=tmp_path, status=2).stderr
    assert "--domains law=" in message and ",press=" in message
    assert "already tokenized" in run("tokenize_jsonl.py", *flags, cwd=tmp_path).stdout


def test_texts_in_strings_of_json_are_those_of_lines_and_a_key_into_a_text_stops_the_run(
    world: World, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    records = [{"body": json.dumps({"content": f"text {number}"}), "text": "plain"} for number in range(30)]
    write_parquet(tmp_path / "data/rows.parquet", records)
    (tmp_path / "data/lines.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_jsonl(tmp_path / "data/texts.jsonl", [f"text {number}" for number in range(30)])
    for name, suffix, key in (
        ("rows", "parquet", "body.content"),
        ("lines", "jsonl", "body.content"),
        ("texts", "jsonl", "text"),
    ):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        (tmp_path / name / "data/book").mkdir(parents=True)
        shutil.copy(tmp_path / f"data/{name}.{suffix}", tmp_path / name / f"data/book/x.{suffix}")
        run("get_all_jsonl.py", "data", cwd=tmp_path / name)
        run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, "--text_key", key, cwd=tmp_path / name)
    made = [(tmp_path / name / "tokenized/book/x.npy").read_bytes() for name in ("rows", "lines", "texts")]
    assert made[0] == made[1] == made[2]
    flags = ("--tokenizer", world.tokenizer, "--text_key", "text.typo", "--output_dir", "other")
    for name in ("rows", "lines"):
        error = run("tokenize_jsonl.py", *flags, cwd=tmp_path / name, status=2).stderr
        assert "has the key 'text.typo': its first one has 'body', 'text'. Pass the one" in error
        assert not list((tmp_path / name / "other").rglob("*.npy"))


def test_a_domain_that_is_no_text_is_reported_and_the_rest_tokenized(world: World, run: Run, tmp_path: Path) -> None:
    """A lone surrogate, and JSON so deep that it cannot be shown."""
    (tmp_path / "data").mkdir()
    values = ['"wikipedia"', r'"\ud800"', "[" * 1000 + "]" * 1000]
    lines = "".join(f'{{"text": "a", "set": {value}}}\n' for value in values)
    (tmp_path / "data/a.jsonl").write_text(lines)
    run("get_all_jsonl.py", "data", "--domain_key", "set", cwd=tmp_path)
    done = run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=tmp_path)
    assert r"1 unknown domain '\ud800' in 'set', first in lines 2" in done.stderr
    assert json.loads((tmp_path / "tokenized/a.meta.json").read_text())["skipped_lines"] == {
        r"unknown domain '\ud800' in 'set'": {"count": 1, "first_lines": [2]},
        "no domain in 'set'": {"count": 1, "first_lines": [3]},
    }


def test_links_lead_to_other_disks_and_names_stay_those_below_the_data_folder(
    mixed: Mixed, world: World, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/arxiv").symlink_to(world.data / "arxiv")
    (tmp_path / "data/book").mkdir()
    (tmp_path / "data/book/b.jsonl").symlink_to(world.data / "book/book.jsonl")
    (tmp_path / "data/book/loop").symlink_to(tmp_path / "data")
    done = run("get_all_jsonl.py", "data", cwd=tmp_path)
    listed = (tmp_path / "all_jsonl.txt").read_text().split()
    assert listed == ["arxiv/arxiv_0.jsonl", "arxiv/arxiv_1.jsonl", "book/b.jsonl"]
    assert "1 links to a folder that they stand in (book/loop)" in done.stderr
    run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=tmp_path)
    made = (tmp_path / "tokenized/book/b.npy").read_bytes()
    assert made == (world.tokenized / "book/book.npy").read_bytes()


def test_once_all_files_are_tokenized_the_data_folder_may_be_gone(world: World, run: Run, tmp_path: Path) -> None:
    shutil.copytree(world.data / "book", tmp_path / "data/book")
    run("get_all_jsonl.py", "data", cwd=tmp_path)
    run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=tmp_path)
    shutil.rmtree(tmp_path / "data")
    for flags in ((), ("--dry_run",), ("--data_dir", "data")):
        run("tokenize_jsonl.py", *flags, cwd=tmp_path)
    run("run_tokenize.sh", "data", "--num_shards", 1, cwd=tmp_path, shell="bash")
    run(*AB, "--domains", "book=1", cwd=tmp_path)
    (tmp_path / "tokenized/book/book.npy").unlink()
    assert "the data folder" in run("tokenize_jsonl.py", cwd=tmp_path, status=2).stderr


def test_samplers_need_no_sizes_of_token_files_that_were_made_elsewhere(world: World, run: Run, tmp_path: Path) -> None:
    (tmp_path / "all_jsonl.txt").write_text("book/book.jsonl\n")
    (tmp_path / "tokenized/book").mkdir(parents=True)
    shutil.copy(world.tokenized / "book/book.npy", tmp_path / "tokenized/book/book.npy")
    done = run(*AB, "--domains", "book=1", cwd=tmp_path)
    assert "hash of the tokens" in done.stderr and len(mds.Rows(tmp_path / "AB/train/book")) == 40
    error = run("tokenize_jsonl.py", "--data_dir", "elsewhere", cwd=tmp_path, status=2).stderr
    assert "size of book/book.jsonl" in error and "not in the data folder (elsewhere)" in error


def test_duplicates_are_marked_within_a_domain(mixed: Mixed) -> None:
    """Of the five texts that stand twice in arxiv, in whichever files, one copy each is marked."""
    marked = 0
    for path, records in mixed.records.items():
        bits = mixed.folder / "mixed/tokenized" / f"{path.split('.')[0]}.duplicates.npy"
        is_copy = np.unpackbits(np.load(bits), bitorder="little")[: len(records)].astype(bool)
        marked += int(is_copy.sum())
        meta = provenance.read_meta(bits)
        assert meta["copies"] == int(is_copy.sum())
    assert marked == 5


def test_a_missing_token_file_among_which_duplicates_are_marked_is_named(
    world: World, run: Run, tmp_path: Path
) -> None:
    """Documents of book are in a mixed file, so those of all domains in it are marked together with book's own file."""
    texts = make_texts(4, 40, 60)
    (tmp_path / "data/train").mkdir(parents=True)
    names = [NAMES["arxiv"], NAMES["book"]]
    records = [{"text": text, "meta": {"redpajama_set_name": names[n % 2]}} for n, text in enumerate(texts)]
    write_zst(tmp_path / "data/train/a.jsonl.zst", records)
    write_jsonl(tmp_path / "data/book/b.jsonl", texts[:5])
    run("get_all_jsonl.py", "data", *KEY, cwd=tmp_path)
    run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=tmp_path)
    sample = ("sample_mds_ab.py", "OUT", 16, 8, 2, 2, "--domains", "arxiv=1", "--test_fraction", 0.3)
    mark = ("sanity_check.py", "duplicates", "--domains", "arxiv")
    run(*mark, cwd=tmp_path)
    for suffix in (".npy", ".hash.npy", ".meta.json"):
        (tmp_path / f"tokenized/book/b{suffix}").unlink()
        for command in ((*sample, "--drop_duplicates"), (*sample, "--drop_duplicates", "--dry_run"), mark):
            error = run(*command, cwd=tmp_path, status=2).stderr
            assert "1 of 1 token files are missing" in error and "book/b.jsonl: run tokenize_jsonl.py" in error
    run(*sample, cwd=tmp_path)


def test_the_commands_of_the_page_on_own_corpora_work(mixed: Mixed, world: World, run: Run, tmp_path: Path) -> None:
    """As they stand there, but for lengths and counts, which suit a small corpus, and the tokenizer of the hub."""
    shutil.copytree(world.data / "book", tmp_path / "my_corpus/law")
    shutil.copytree(world.data / "arxiv", tmp_path / "my_corpus/archive/news")
    shutil.copytree(mixed.folder / "mixed/data", tmp_path / "slimpajama")
    page = (PROJECT / "docs/own_corpus.md").read_text()
    small = {"8192 4096": "128 64", "4096 4096": "64 64", "100000": "40", "10000": "40", "1000": "8"}
    small |= {"meta-llama/Llama-2-7b-hf": str(world.tokenizer)}
    for shown, number in small.items():
        page = page.replace(shown, number)
    for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL):
        for line in block.strip().splitlines():
            run(*line.split()[1:], *(("--test_fraction", 0.2) if "sample" in line else ()), cwd=tmp_path)
    assert (tmp_path / "slimpajama.txt").read_text().splitlines() == sorted(SOURCES)


@pytest.mark.parametrize(
    "flags",
    [("--domain_map", "train=arxiv"), (*KEY, "--domain_map", "RedPajamaBook=wiki"), ("--domain_key", "meta.other")],
    ids=["domains of folders", "another map", "another key"],
)
def test_token_files_are_rejected_once_the_list_takes_domains_from_elsewhere(
    mixed: Mixed, run: Run, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    shutil.copytree(mixed.folder / "mixed/tokenized", tmp_path / "tokenized")
    run("get_all_jsonl.py", mixed.folder / "mixed/data", *flags, cwd=tmp_path)
    message = "was made when the list had another --domain_key or --domain_map"
    assert message in run(*AB, "--domains", "arxiv=1", cwd=tmp_path, status=1).stderr
    assert run("sanity_check.py", cwd=tmp_path, status=1).stdout.count(message) == len(SOURCES)


def test_a_file_of_several_domains_that_lost_its_meta_file_is_found(mixed: Mixed, run: Run, tmp_path: Path) -> None:
    shutil.copytree(mixed.folder / "mixed/tokenized", tmp_path / "tokenized")
    run("get_all_jsonl.py", mixed.folder / "mixed/data", *KEY, cwd=tmp_path)
    for suffix in ("meta.json", "hash.npy"):
        (tmp_path / f"tokenized/train/chunk1/example_train_0.{suffix}").unlink()
    found = run("sanity_check.py", "--deep", cwd=tmp_path, status=1).stdout
    assert "example_train_0.npy: does not say the domains of its documents" in found and "1 damaged" in found


def test_growth_keeps_splits_and_token_files_and_a_finished_test_set_stays_apart(
    world: World, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "data/arxiv").mkdir(parents=True)
    shutil.copy(world.data / "arxiv/arxiv_0.jsonl", tmp_path / "data/arxiv/b.jsonl")
    sample = ("sample_mds_concat.py", "OLD", 64, 64, 8, 20, 0, 0, "--domains", "arxiv=1", "--test_fraction", 0.3)

    def list_and_tokenize() -> str:
        run("get_all_jsonl.py", "data", cwd=tmp_path)
        return run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=tmp_path).stdout

    list_and_tokenize()
    run(*sample, cwd=tmp_path)
    shutil.copy(world.data / "book/book.jsonl", tmp_path / "data/arxiv/a.jsonl")
    assert "skipped 1 of 2 files" in list_and_tokenize()
    assert "token_files: was" in run(*sample, cwd=tmp_path, status=2).stderr
    grown = ("sample_mds_concat.py", "NEW", 64, 64, 0, 80, *sample[6:])
    run(*grown, cwd=tmp_path)
    assert not (tmp_path / "NEW/test").exists()
    done = run("sanity_check.py", "overlap", "OLD", "--train", "NEW/train", cwd=tmp_path)
    assert [line.split() for line in done.stdout.splitlines() if "total" in line] == [["total", "8", "0", "8"]]
    run(*sample, "--overwrite", cwd=tmp_path)
    assert len(mds.Rows(tmp_path / "OLD/train/arxiv")) == 20
