"""Both samplers, run as processes, against brute force over the token files.    pytest tests/test_samplers.py"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

import sample_mds_concat
from cepe_data import cli
from cepe_data.corpus import domains, listing
from cepe_data.samples import options, passages, reader
from cepe_data.storage import mds, provenance
from cepe_data.tokens import tokenizers
from demo import models
from tests import reference
from tests.conftest import PROJECT, Run, World, make_texts, write_jsonl

AB = ("sample_mds_ab.py", "OUT", 128, 64)
CONCAT = ("sample_mds_concat.py", "OUT", 96, 32)
FRACTIONS = ("--test_fraction", "0.2", "--train_fraction", "0.4")
EVERYTHING = ("--allow_shortage", *FRACTIONS)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = mds.import_streaming().LocalDataset(str(folder))
    return [rows[number] for number in range(len(rows))]


def whole_window(row: dict[str, Any]) -> np.ndarray:
    return np.concatenate([row["prev_token_ids"], row["token_ids"]])


def window_set(folder: Path) -> list[tuple[int, ...]]:
    return [tuple(whole_window(row).tolist()) for row in rows_of(folder)]


def documents_by_split(world: World, path: str) -> dict[str, list[np.ndarray]]:
    """The documents of a jsonl file by split, from its texts and token file alone."""
    texts = reference.texts_of(world.data / path)
    documents = reference.documents_of(world.tokenized / path.replace(".jsonl", ".npy"))
    found: dict[str, list[np.ndarray]] = {"test": [], "train": [], "retrieval": []}
    for text, document in zip(texts, documents, strict=True):
        found[reference.split_of(text, 42, 0.2, 0.4)].append(document)
    return found


def paths_of(world: World, domain: str) -> list[str]:
    return [file["path"] for file in world.listed() if file["domain"] == domain]


def manifest_of(out: Path) -> dict[str, Any]:
    """What the manifest of an output says of its sets."""
    return json.loads((out / "manifest.json").read_text())["sets"]


@pytest.fixture
def flags(world: World) -> tuple[str, ...]:
    """The flags that most runs have."""
    return (*FRACTIONS, *world.source_flags)


@pytest.fixture(scope="module")
def ab(run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every window inside documents of the world."""
    folder = tmp_path_factory.mktemp("ab")
    run(*AB, 10_000, 10_000, *EVERYTHING, *world.source_flags, cwd=folder)
    return folder / "OUT"


@pytest.fixture(scope="module")
def concat(run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every window over concatenated documents of the world, and its retrieval corpus in 3 shards."""
    folder = tmp_path_factory.mktemp("concat")
    for shard in (2, 0, 1):
        flags = ("--retrieval_shards", 3, "--retrieval_chunk_size", 32)
        run(*CONCAT, "1e6", "1e6", "1e6", shard, *EVERYTHING, *flags, *world.source_flags, cwd=folder)
    return folder / "OUT"


@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize(
    ("kind", "domain"), [("ab", "arxiv"), ("ab", "book"), *(("concat", domain) for domain in domains.DOMAINS)]
)
def test_rows_are_all_windows_by_the_documented_permutation_and_say_where_they_are_from(
    request: pytest.FixtureRequest, world: World, kind: str, domain: str, split: str
) -> None:
    out: Path = request.getfixturevalue(kind)
    decoder_length = 64 if kind == "ab" else 32
    ordered: list[tuple[int, ...]] = []
    num_documents = 0
    for path in paths_of(world, domain):
        documents = documents_by_split(world, path)[split]
        num_documents += len(documents)
        for tokens in documents if kind == "ab" else [np.concatenate([[], *documents]).astype(np.int32)]:
            ordered += reference.windows_in(tokens, 128, decoder_length)
    sampled = window_set(out / split / domain)
    name = f"42/{domain}/{split}"
    assert sampled == [ordered[reference.permutation(name, len(ordered), row)] for row in range(len(ordered))]
    assert len(sampled) > 20 or (kind == "concat" and sampled)
    for row in rows_of(out / split / domain):
        assert row["domain"] == domain
        assert row["token_ids"].dtype == np.int16 and row["token_ids"].shape == (decoder_length,)

    sources = np.load(out / split / f"{domain}.rows.npy")
    assert sources.dtype == np.int64 and sources.shape == (len(sampled), 2)
    metadata = manifest_of(out)[split][domain]
    assert metadata["written"] == metadata["windows_available"] == len(sampled)
    assert metadata["documents"] == num_documents
    arrays = [np.load(world.tokenized / path.replace(".jsonl", ".npy")) for path in metadata["source_files"]]
    num_checked = 128 if kind == "ab" else 1  # documents of other splits may follow
    for window, (file, position) in zip(sampled, sources, strict=True):
        assert list(window[:num_checked]) == arrays[file][position : position + num_checked].tolist()


def test_no_text_is_in_two_splits_and_duplicates_are_in_one_split(ab: Path, world: World) -> None:
    sampled = {split: window_set(ab / split / "arxiv") + window_set(ab / split / "book") for split in ("test", "train")}
    assert not set(sampled["test"]) & set(sampled["train"])
    texts = [text for path in paths_of(world, "arxiv") for text in reference.texts_of(world.data / path)]
    assert sum(number == 2 for number in Counter(texts).values()) == 5
    twice = {window for split in sampled for window, number in Counter(sampled[split]).items() if number == 2}
    assert twice, "all duplicates of a text are in one split"


def test_passages_are_the_chunks_of_the_retrieval_split_with_their_neighbours(concat: Path, world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.tokenized / "tokenizer")
    for domain in ("arxiv", "wiki"):
        ordered = []
        for number, path in enumerate(paths_of(world, domain)):
            for document in documents_by_split(world, path)["retrieval"]:
                for start in range(0, len(document) - 31, 32):
                    ordered.append((number, document[start : start + 32], document[start + 32 : start + 64]))
        found = []
        for shard in range(3):
            lines = (concat / f"retrieval/{shard}/{domain}.jsonl").read_text().splitlines()
            first, stop = shard * len(ordered) // 3, (shard + 1) * len(ordered) // 3
            assert len(lines) == stop - first
            for number, line in enumerate(lines):
                passage = json.loads(line)
                assert passage["id"] == f"{domain}_{shard}_{number}"
                found.append(passage)
        name = f"42/{domain}/retrieval"
        assert len(found) == len(ordered) > 10
        for row, passage in enumerate(found):
            number, chunk, neighbor = ordered[reference.permutation(name, len(ordered), row)]
            assert passage["file"] == number
            assert passage["contents_token_ids"] == chunk.tolist()
            assert passage["neighbor_token_ids"] == neighbor.tolist()
            for key, ids in (("contents", chunk), ("neighbor", neighbor)):
                text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                assert passage[key] == text
            path = paths_of(world, domain)[passage["file"]]
            array = np.load(world.tokenized / path.replace(".jsonl", ".npy"))
            assert array[passage["position"] :][:32].tolist() == chunk.tolist()


def test_a_hundred_retrieval_shards_are_disjoint_and_together_the_prefix_of_the_sampling_order(world: World) -> None:
    arguments = ("OUT", "96", "32", "0", "0", "1", *FRACTIONS, "--retrieval_chunk_size", "8")
    args = cli.typed(options.ConcatOptions, sample_mds_concat.parse_args(arguments))
    files = [file for file in listing.read_file_list(world.folder / "all_jsonl.txt").files if file.domain == "cc"]
    tokens = options.find_tokens(listing.FileList(files), world.tokenized)
    tokenizer = tokenizers.find(None, world.tokenized, tokens.fingerprint)
    inventories = reader.inventory(tokens, args.splits, {"retrieval": args.passages})
    available = inventories["cc"].available("retrieval")
    source = passages.PassageShard(args, 0, tokens, inventories).source("cc")
    sampled = np.empty((available, 8), np.int32)
    source.read(source.sample(0, available), [sampled])
    for requested, num_written in ((available // 100, available // 100 * 100), (available // 90, available)):
        rows = []
        for shard_id in range(100):
            shard = passages.PassageShard(args, shard_id, tokens, inventories)
            [file] = shard.plan({"cc": requested}, tokenizer)
            block = passages.Block("cc", 0, source.sample(file.start, file.stop))
            rows += [json.loads(line) for line in passages.PassageFormatter(shard, tokenizer)(block).splitlines()]
        assert [row["contents_token_ids"] for row in rows] == sampled[:num_written].tolist()
        assert len({(row["file"], row["position"]) for row in rows}) == num_written > 1000


def test_retrieval_shards_are_consecutive_slices_of_the_sampling_order(
    run: Run, world: World, concat: Path, tmp_path: Path
) -> None:
    def contents(folder: Path, shard: int) -> list[str]:
        lines = (folder / f"retrieval/{shard}/cc.jsonl").read_text().splitlines()
        return [json.loads(line)["contents"] for line in lines]

    everything = [text for shard in range(3) for text in contents(concat, shard)]
    flags = ("--domains", "cc=1", "--retrieval_chunk_size", 32, "--retrieval_shards", 4, *FRACTIONS)
    for shard in (3, 1):
        done = run(*CONCAT, 0, 0, 20, *flags, *world.source_flags, cwd=tmp_path,
                   environment={"SLURM_ARRAY_TASK_ID": str(shard)})  # fmt: skip
        assert contents(tmp_path / "OUT", shard) == everything[shard * 20 : (shard + 1) * 20]
        assert "20 rows in 1 sets" in done.stdout
    assert sorted(os.listdir(tmp_path / "OUT")) == ["retrieval"], "shards other than 0 write no test, train, manifest"
    metadata = manifest_of(tmp_path / "OUT/retrieval/3")["cc"]
    assert metadata["written"] == 20 and metadata["passages_available"] == len(everything)
    run(*CONCAT, 0, 0, 20, 4, *flags, *world.source_flags, cwd=tmp_path, status=2)
    for train_samples in (0, 5):  # on which no retrieval shard depends
        done = run(*CONCAT, 0, train_samples, 20, *flags, *world.source_flags, cwd=tmp_path)
        assert "1 of 4 retrieval shards are left" in done.stdout and "SHARD_ID of 2 behind" in done.stdout


def test_sets_of_one_output_have_one_split_rule_and_its_retrieval_shards_one_count(
    run: Run, world: World, tmp_path: Path
) -> None:
    flags = ("--domains", "cc=1", "--retrieval_chunk_size", 32, *FRACTIONS, *world.source_flags)
    run(*CONCAT, 4, 4, 20, 0, *flags, "--retrieval_shards", 4, cwd=tmp_path)
    for change, message in (
        (("--seed", 7), "seed: was 42, now 7"),
        (("--train_fraction", 0.5), "train_fraction: was 0.4, now 0.5"),
        (("--retrieval_shards", 3), "retrieval_shards: was 4, now 3"),
        (("--retrieval_chunk_size", 16), "chunk_size: was 32, now 16"),
        (("--retrieval_chunk_size", 1_000_000), "chunk_size: was 32, now 1000000"),  # nothing is available
    ):
        error = run(*CONCAT, 4, 4, 20, 1, *flags, "--retrieval_shards", 4, *change, cwd=tmp_path, status=2).stderr
        assert "in the same output" in error and message in error
    done = run(*CONCAT, 4, 4, 20, 1, *flags, "--retrieval_shards", 3, "--overwrite", cwd=tmp_path)
    assert "retrieval/0/cc.jsonl is in the same output" in done.stderr
    none = ("--retrieval_chunk_size", 1_000_000, "--overwrite")
    run(*CONCAT, 4, 4, 20, 0, *flags, "--retrieval_shards", 3, *none, cwd=tmp_path, status=3)
    assert os.listdir(tmp_path / "OUT/retrieval/0") == ["manifest.json"]


def test_a_smaller_sample_is_a_prefix_of_a_larger_one(run: Run, world: World, ab: Path, tmp_path: Path) -> None:
    run(*AB, 10, 31, *FRACTIONS, *world.source_flags, cwd=tmp_path)
    for split, number in (("test", 5), ("train", 16)):
        window = window_set(tmp_path / "OUT" / split / "arxiv")
        assert window == window_set(ab / split / "arxiv")[:number]
        sources = np.load(ab / split / "arxiv.rows.npy")[:number]
        assert (np.load(tmp_path / "OUT" / split / "arxiv.rows.npy") == sources).all()


def test_a_rerun_writes_nothing_and_what_differs_is_an_error(run: Run, world: World, ab: Path, tmp_path: Path) -> None:
    shutil.copytree(ab, tmp_path / "OUT")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    del before[tmp_path / "OUT/manifest.json"]
    flags = (*EVERYTHING, *world.source_flags)
    done = run(*AB, 10_000, 10_000, *flags, cwd=tmp_path)
    assert done.stdout.count("skipped, made before") == 4
    run(*AB, 20_000, 10_000, *flags, cwd=tmp_path)  # all there is, once more
    run(*AB, 10_000, 0, *flags, cwd=tmp_path)
    metadata = manifest_of(tmp_path / "OUT")["train"]["book"]
    assert metadata["requested"] == 0 and metadata["written"] > 0
    errors = {
        "seed: was 42, now 1": ("--seed", 1),
        "test_fraction: was 0.2, now 0.3": ("--test_fraction", 0.3),
        "train_fraction: was 0.4, now 0.3": ("--train_fraction", 0.3),
        'token_dtype: was "int16", now "int32"': ("--token_dtype", "int32"),
    }
    for message, change in errors.items():
        error = run(*AB, 10_000, 10_000, *flags, *change, cwd=tmp_path, status=2).stderr
        assert message in error and "--overwrite" in error
    shutil.copytree(tmp_path / "OUT/test", tmp_path / "ONLY/test")
    flags_of_others = ("--allow_shortage", *FRACTIONS[:2], "--train_fraction", 0.3, *world.source_flags)
    run("sample_mds_ab.py", "ONLY", *AB[2:], 10_000, 10_000, *flags_of_others, cwd=tmp_path)
    concat = ("sample_mds_concat.py", "OUT", 64, 64, 10, 10, 0, "--domains", "arxiv=1")
    assert "kind: was" in run(*concat, *flags, cwd=tmp_path, status=2).stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    run(*AB, 10_000, 10_000, *flags, "--token_dtype", "int32", "--overwrite", cwd=tmp_path)
    assert rows_of(tmp_path / "OUT/test/book")[0]["token_ids"].dtype == np.int32
    assert window_set(tmp_path / "OUT/test/book") == window_set(ab / "test/book")


def test_any_number_of_workers_gives_the_same_bytes(run: Run, world: World, tmp_path: Path) -> None:
    flags = (*EVERYTHING, "--domains", "cc=1", "--rows_per_part", 7, *world.source_flags)
    passage_flags = ("--retrieval_shards", 1, "--retrieval_chunk_size", 8)
    trees = []
    for num_workers in (1, 3):
        pools, name = ("--num_workers", num_workers), f"concat{num_workers}"
        run(CONCAT[0], name, *CONCAT[2:], 40, 60, 40_000, *flags, *passage_flags, *pools, cwd=tmp_path)
        trees.append(reference.tree_bytes(tmp_path / name))
    assert trees[0] == trees[1]
    assert len([name for name in trees[0] if name.endswith(".mds")]) == 6 + 9
    assert len(trees[0]["retrieval/0/cc.jsonl"].splitlines()) > passages.PASSAGES_AT_ONCE
    others = (*flags, *passage_flags, "--rows_per_part", 8)
    error = run(CONCAT[0], "concat1", *CONCAT[2:], 40, 60, 40_000, *others, cwd=tmp_path, status=2).stderr
    assert "rows_per_part: was 7, now 8" in error


def test_the_test_documents_are_the_same_for_all_lengths_both_samplers_and_another_tokenizer(
    run: Run, world: World, tmp_path: Path
) -> None:
    models.train_tokenizer(make_texts(99, 30, 200), tmp_path / "other.model", 700)
    listing = ("--file_list", world.folder / "all_jsonl.txt")
    run("tokenize_jsonl.py", *listing, "--tokenizer", "other.model", "--output_dir", "other", cwd=tmp_path)
    runs = [
        (AB[0], 64, 32, world.tokenized),
        (AB[0], 256, 32, world.tokenized),
        (AB[0], 128, 64, tmp_path / "other"),
        (CONCAT[0], 96, 32, world.tokenized),
    ]
    of_runs = []
    for number, (script, first_length, decoder_length, tokenized) in enumerate(runs):
        out = f"OUT{number}"
        counts = (10_000, 10_000) if script == AB[0] else (10_000, 10_000, 0)
        source = (*listing, "--tokenized_dir", tokenized, "--domains", "arxiv=0.5,book=0.5")
        run(script, out, first_length, decoder_length, *counts, *EVERYTHING, *source, cwd=tmp_path)
        found: dict[str, set[str]] = {}
        for split in ("test", "train"):
            found[split] = set()
            for domain in ("arxiv", "book"):
                sources = np.load(tmp_path / out / split / f"{domain}.rows.npy")
                for number_of_file, path in enumerate(paths_of(world, domain)):
                    array = np.load(tokenized / path.replace(".jsonl", ".npy"))
                    starts = 1 + array[0] + np.cumsum(array[1 : 1 + array[0]]) - array[1 : 1 + array[0]]
                    positions = sources[sources[:, 0] == number_of_file, 1]
                    texts = reference.texts_of(world.data / path)
                    found[split] |= {texts[index - 1] for index in np.searchsorted(starts, positions, "right")}
            assert {reference.split_of(text, 42, 0.2, 0.4) for text in found[split]} == {split}
        of_runs.append(found)
    for split in ("test", "train"):
        assert of_runs[1][split] <= of_runs[0][split], "a longer window asks for longer documents, of the same split"
        assert of_runs[0][split] & of_runs[2][split] and of_runs[0][split] & of_runs[3][split]


def test_streaming_reads_every_set_as_it_was_written(ab: Path, concat: Path) -> None:
    streaming = mds.import_streaming()
    folders = [index.parent for out in (ab, concat) for index in sorted(out.glob("*/*/index.json"))]
    assert len(folders) == 4 + 14
    for folder in folders:
        rows = streaming.StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
        expected = rows_of(folder)
        assert len(rows) == len(expected)
        for row, one in zip(rows, expected, strict=True):
            assert row.keys() == one.keys() and row["domain"] == one["domain"] == folder.name
            assert (whole_window(row) == whole_window(one)).all()


def test_shortage_is_status_3_also_on_a_rerun_and_names_the_way_out(
    run: Run, flags: tuple[str, ...], tmp_path: Path
) -> None:
    for _ in range(2):
        done = run(*AB, 10_000, 4, *flags, cwd=tmp_path, status=3)
        header, _, *lines = done.stdout.splitlines()[-4:]
        assert header.split() == ["set", "requested", "available", "written"]
        assert [line.split()[0] for line in lines] == ["test/arxiv", "test/book"]
        assert lines[0].split()[1] == "5,000" and lines[0].split()[2] == lines[0].split()[3] != "0"
    assert run(*AB, 10_000, 4, *flags, "--dry_run", cwd=tmp_path, status=3).stdout.splitlines()[-2:] == lines
    run(*AB, 10_000, 4, *flags, "--allow_shortage", cwd=tmp_path)
    done = run("sample_mds_ab.py", "LONG", 100_000, 64, 4, 0, *flags, cwd=tmp_path, status=3)
    assert "--test_fraction" in done.stderr and "lengths" in done.stderr
    assert not (tmp_path / "LONG/test").exists()
    run("sample_mds_ab.py", "NONE", 128, 64, 0, 0, *flags, cwd=tmp_path)
    assert os.listdir(tmp_path / "NONE") == ["manifest.json"]


def test_a_manifest_keeps_the_sets_of_earlier_runs_and_overwrite_repairs_damage(
    run: Run, flags: tuple[str, ...], tmp_path: Path
) -> None:
    for domain in ("arxiv", "book"):
        run(*AB, 4, 4, "--domains", f"{domain}=1", *flags, cwd=tmp_path)
    assert {split: sorted(sets) for split, sets in manifest_of(tmp_path / "OUT").items()} == {
        split: ["arxiv", "book"] for split in ("test", "train")
    }
    again = (*AB, 4, 4, "--domains", "book=1", *flags)
    run(*again, cwd=tmp_path)
    before = reference.tree_bytes(tmp_path)
    test = tmp_path / "OUT/test"
    for damage, message in (
        ((test / "book.rows.npy").unlink, "book.rows.npy is gone"),
        (lambda: (test / "book/meta.json").write_text(""), "meta.json is damaged"),
    ):
        damage()
        assert message in run(*again, cwd=tmp_path, status=1).stderr
        run(*again, "--overwrite", cwd=tmp_path)
        assert reference.tree_bytes(tmp_path) == before


def test_a_dry_run_writes_nothing(run: Run, world: World, tmp_path: Path) -> None:
    flags = (*FRACTIONS, *world.source_flags, "--dry_run", "--retrieval_chunk_size", 32, "--retrieval_shards", 2)
    done = run(*CONCAT, 40, 40, 40, *flags, cwd=tmp_path)
    assert "test/wiki" in done.stdout and "retrieval/0/wiki" in done.stdout and "bytes are free" in done.stdout
    assert os.listdir(tmp_path) == []
    header = next(line for line in done.stdout.splitlines() if line.startswith("set "))
    assert header.split("  ")[-1] == "minutes"
    sizes = {line.split()[0]: line.split()[-2].replace(",", "") for line in done.stdout.splitlines() if "/wiki" in line}
    run(*CONCAT, 40, 40, 40, *[flag for flag in flags if flag != "--dry_run"], cwd=tmp_path)
    assert int(sizes["test/wiki"]) == len(rows_of(tmp_path / "OUT/test/wiki")) * 128 * 2
    assert int(sizes["retrieval/0/wiki"]) == (tmp_path / "OUT/retrieval/0/wiki.jsonl").stat().st_size


def test_a_dry_run_looks_at_what_is_there_and_ends_as_the_run_would(
    run: Run, flags: tuple[str, ...], tmp_path: Path
) -> None:
    run(*AB, 4, 4, *flags, cwd=tmp_path)
    done = run(*AB, 4, 5, *flags, "--dry_run", cwd=tmp_path, status=2)
    assert "rows: was 2, now 3" in done.stderr
    done = run(*AB, 4, 4, *flags, "--dry_run", cwd=tmp_path)
    assert "4 of these sets are there already" in done.stdout and "about 0 bytes to write" in done.stdout
    assert "seed: was 42, now 43" in run(*AB, 4, 4, *flags, "--seed", 43, "--dry_run", cwd=tmp_path, status=2).stderr


def test_sets_of_other_lengths_in_one_output_are_an_error_also_where_nothing_is_available(
    run: Run, flags: tuple[str, ...], tmp_path: Path
) -> None:
    flags = ("--domains", "arxiv=1", *flags)
    run(*AB, 4, 4, *flags, cwd=tmp_path)
    before = reference.tree_bytes(tmp_path)
    for lengths in ((256, 64), (100_000_000, 64)):
        for counts in ((4, 0), (0, 4)):
            error = run("sample_mds_ab.py", "OUT", *lengths, *counts, *flags, cwd=tmp_path, status=2).stderr
            assert f"total_length: was 128, now {lengths[0]}" in error
    assert "rows_per_part" in run(*AB, 4, 4, *flags, "--rows_per_part", "1e9", cwd=tmp_path, status=2).stderr
    (tmp_path / "file").write_text("")
    assert "is not a folder" in run(AB[0], "file", 128, 64, 4, 4, *flags, cwd=tmp_path, status=2).stderr
    (tmp_path / "file").unlink()
    assert reference.tree_bytes(tmp_path) == before
    # With --overwrite, what nothing takes the place of goes away; what this run does not make is named.
    done = run("sample_mds_ab.py", "OUT", "1e8", 64, 4, 0, *flags, "--overwrite", cwd=tmp_path, status=3)
    assert "OUT/train/arxiv is in the same output" in done.stderr and "OUT/test/arxiv is in" not in done.stderr
    assert sorted(os.listdir(tmp_path / "OUT/test")) == []
    assert manifest_of(tmp_path / "OUT")["test"]["arxiv"]["written"] == 0


def test_token_files_that_are_not_what_they_say_are_an_error(run: Run, world: World, tmp_path: Path) -> None:
    flags = ("--domains", "book=1", "--file_list", world.folder / "all_jsonl.txt", *EVERYTHING)
    tokenized = tmp_path / "tokenized/book"
    for damage, message in (
        ("shorter", "gone or has not the size"),
        ("no hashes", "gone or has not the size"),
        ("no meta file", "book.meta.json is missing"),
        ("header", "is not an .npy file"),
    ):
        shutil.copytree(world.tokenized, tmp_path / "tokenized")
        if damage == "shorter":
            np.save(tokenized / "book.npy", np.load(tokenized / "book.npy")[:-1])
        elif damage == "header":
            content = bytearray((tokenized / "book.npy").read_bytes())
            content[8] = 1
            (tokenized / "book.npy").write_bytes(content)
        else:
            (tokenized / f"book.{'hash.npy' if damage == 'no hashes' else 'meta.json'}").unlink()
        error = run(*AB, 4, 4, *flags, cwd=tmp_path, status=1).stderr
        assert message in error and "Traceback" not in error, error
        shutil.rmtree(tmp_path / "tokenized")
    # Files of both kinds: a text could be in two splits.
    shutil.copytree(world.tokenized, tmp_path / "tokenized")
    for suffix in ("hash.npy", "meta.json"):
        (tokenized / f"book.{suffix}").unlink()
    both = (*AB, 4, 4, "--file_list", world.folder / "all_jsonl.txt", *EVERYTHING)
    assert "1 of 3 token files have no hashes" in run(*both, cwd=tmp_path, status=2).stderr
    run(*AB, 4, 4, *flags, cwd=tmp_path)  # by the hash of the tokens
    error = run(*AB, 4, 0, "--domains", "arxiv=1", "--file_list", world.folder / "all_jsonl.txt", *EVERYTHING,
                cwd=tmp_path, status=2).stderr  # fmt: skip
    assert 'document_hash: was "tokens", now "text"' in error


def test_two_runs_at_once_with_other_splits_do_not_both_publish(run: Run, world: World, tmp_path: Path) -> None:
    """The second begins before the first has published anything, and ends after it."""
    flags = ("--domains", "book=1", *EVERYTHING, *world.source_flags, "--rows_per_part", 1)
    command = [sys.executable, str(PROJECT / AB[0]), "OUT", "128", "64", "0", "1e6", *map(str, flags), "--seed", "1"]
    late = subprocess.Popen([*command, "--num_workers", "1"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("OUT/train/book.parts/part-*")):
        time.sleep(0.001)
    late.send_signal(signal.SIGSTOP)
    run(*AB, 10, 0, *flags, cwd=tmp_path)
    late.send_signal(signal.SIGCONT)
    _, error = late.communicate()
    assert late.returncode == 2 and "OUT/test/book is in the same output" in error
    assert not (tmp_path / "OUT/train/book").exists()


def test_the_rest_of_an_unfinished_run_with_other_arguments_is_named(run: Run, world: World, tmp_path: Path) -> None:
    flags = ("--domains", "book=1", *EVERYTHING, *world.source_flags)
    run(*AB, 0, 30, *flags, "--rows_per_part", 10, cwd=tmp_path)
    book = tmp_path / "OUT/train/book"
    for part in range(3):
        shutil.copytree(book, tmp_path / f"OUT/train/book.parts/part-{part:05d}")
        meta = json.loads((book / "meta.json").read_text())
        meta["made_with"].update(first_row=10 * part, stop_row=10 * part + 10, rows_per_part=10)
        del meta["made_with"]["rows"]
        (tmp_path / f"OUT/train/book.parts/part-{part:05d}/meta.json").write_text(json.dumps(provenance.signed(meta)))
    shutil.rmtree(book)
    error = run(*AB, 0, 30, *flags, "--rows_per_part", 20, cwd=tmp_path, status=2).stderr
    assert "OUT/train/book.parts/part-00000 was made with other arguments" in error
    assert "rows_per_part: was 10, now 20" in error


def test_splits_stay_when_files_are_renamed_added_and_removed(run: Run, world: World, ab: Path, tmp_path: Path) -> None:
    texts = [text for path in paths_of(world, "arxiv") for text in reference.texts_of(world.data / path)]
    data = tmp_path / "data"
    write_jsonl(data / "arxiv/renamed.jsonl", texts[20:][::-1])
    write_jsonl(data / "arxiv/added.jsonl", make_texts(77, 20, 400))
    run("get_all_jsonl.py", "data", cwd=tmp_path)
    run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=tmp_path)
    run(*AB, 10_000, 10_000, "--domains", "arxiv=1", *EVERYTHING, cwd=tmp_path)
    moved = {split: set(window_set(tmp_path / "OUT" / split / "arxiv")) for split in ("test", "train")}
    for split, other in (("test", "train"), ("train", "test")):
        before = set(window_set(ab / split / "arxiv"))
        assert not before & moved[other]
        assert len(before & moved[split]) > len(before) / 3, "most documents are still there"


def test_what_is_missing_is_an_error_that_says_what_to_do(run: Run, world: World, tmp_path: Path) -> None:
    listing = [path for path in (world.folder / "all_jsonl.txt").read_text().splitlines() if "book" not in path]
    (tmp_path / "list.txt").write_text("\n".join(listing))
    shutil.copy(world.folder / "all_jsonl.json", tmp_path / "list.json")
    source = ("--file_list", "list.txt", "--tokenized_dir", world.tokenized)
    error = run(*AB, 1, 1, *source, cwd=tmp_path, status=2).stderr
    assert "lists no files of book" in error and error.rstrip().endswith("--domains arxiv=1")
    error = run(*CONCAT, 1, 1, 1, *source, cwd=tmp_path, status=2).stderr
    line = error.rstrip().rpartition("--domains ")[2]
    run(*CONCAT, 100, 0, 0, "--domains", line, *EVERYTHING, *source, cwd=tmp_path)
    shutil.copytree(world.tokenized, tmp_path / "tokenized")
    (tmp_path / "tokenized/arxiv/arxiv_1.npy").unlink()
    error = run(*AB, 1, 1, "--file_list", world.folder / "all_jsonl.txt", cwd=tmp_path, status=2).stderr
    assert "1 of 3 token files are missing" in error and "arxiv/arxiv_1.jsonl" in error
    for flags, message in (
        (("--domains", "arxiv=0.5,book=0.4"), "--domains arxiv=0.55"),
        (("--test_fraction", "0.9", "--train_fraction", "0.2"), "more than 1"),
        (("--token_dtype", "int8"), "invalid choice"),
    ):
        assert message in run(*AB, 1, 1, *flags, *world.source_flags, cwd=tmp_path, status=2).stderr
    assert "must be more" in run("sample_mds_ab.py", "OUT", 64, 64, 1, 1, cwd=tmp_path, status=2).stderr


def test_test_sets_have_weights_of_their_own(run: Run, world: World, tmp_path: Path) -> None:
    def written(split: str) -> dict[str, int]:
        out = tmp_path / "OUT"
        return {domain: mds.num_rows(out / split / domain) for domain in manifest_of(out)[split]}

    flags = ("--retrieval_shards", 0, *FRACTIONS, *world.source_flags)
    done = run(*CONCAT, 14, 20, 0, "--test_domains", "equal", *flags, cwd=tmp_path)
    assert written("test") == dict.fromkeys(domains.DOMAINS, 2)
    assert written("train") == {"arxiv": 1, "book": 1, "c4-rp": 3, "cc": 13, "github": 1, "wiki": 1}
    assert "train: 20 rows leave none for stackexchange" in done.stderr
    assert "no folder of that name, and a reader of all domains stops there" in done.stderr
    of_equal = reference.tree_bytes(tmp_path / "OUT/test/wiki")
    shutil.rmtree(tmp_path / "OUT")
    for script in (("sample_mds_ab.py", "OUT", 128, 32), CONCAT):  # wiki in test only; the rows are the same
        command = (*script, 4, 2, *[0] * (script == CONCAT), "--domains", "cc=1", "--test_domains", "cc=0.5,wiki=0.5")
        run(*command, *(flags if script == CONCAT else flags[2:]), cwd=tmp_path)
        assert (written("test"), written("train")) == ({"cc": 2, "wiki": 2}, {"cc": 2})
        if script == CONCAT:
            assert reference.tree_bytes(tmp_path / "OUT/test/wiki") == of_equal
        shutil.rmtree(tmp_path / "OUT")
    error = run(*AB, 4, 2, "--test_domains", "book=0.4", *world.source_flags, cwd=tmp_path, status=2).stderr
    assert error.rstrip().endswith("--test_domains book=1")


def test_token_files_of_two_tokenizers_and_another_tokenizer_are_an_error(
    run: Run, world: World, tmp_path: Path
) -> None:
    models.train_tokenizer(make_texts(99, 30, 200), tmp_path / "other.model", 700)
    flags = ("--tokenizer", tmp_path / "other.model", "--domains", "wiki=1", "--retrieval_shards", 1)
    error = run(*CONCAT, 0, 0, 1, *flags, *world.source_flags, cwd=tmp_path, status=2).stderr
    assert "is not the one that made the tokens" in error
    listing = ("--file_list", world.folder / "all_jsonl.txt")
    run("tokenize_jsonl.py", *listing, "--tokenizer", "other.model", "--output_dir", "other", cwd=tmp_path)
    of_both = ("--domains", "wiki=1", "--retrieval_shards", 1, *FRACTIONS)
    run(*CONCAT, 1, 0, 1, *of_both, *world.source_flags, cwd=tmp_path)
    of_train = (*CONCAT, 0, 1, 0, *of_both, *listing, "--tokenized_dir", "other")
    for name in ("test/wiki", "retrieval/0/wiki.jsonl"):
        error = run(*of_train, cwd=tmp_path, status=2).stderr
        assert f"OUT/{name} is in the same output" in error and "tokenizer: was" in error
        shutil.rmtree(tmp_path / "OUT/test", ignore_errors=True)
    assert "tokenizer: was" in run(*of_train, "--overwrite", cwd=tmp_path).stderr
    shutil.copytree(world.tokenized, tmp_path / "tokenized")
    path = tmp_path / "tokenized/book/book.meta.json"
    changed = path.read_text().replace('"fingerprint": "', '"fingerprint": "other')
    path.write_text(json.dumps(provenance.signed(json.loads(changed))))
    error = run(*AB, 1, 1, *listing, cwd=tmp_path, status=1).stderr
    assert "several tokenizers" in error


def test_token_files_from_elsewhere_are_sampled_and_it_says_so(run: Run, world: World, tmp_path: Path) -> None:
    for path in paths_of(world, "book"):
        target = tmp_path / "tokenized" / path.replace(".jsonl", ".npy")
        target.parent.mkdir(parents=True)
        np.save(target, np.load(world.tokenized / path.replace(".jsonl", ".npy")).astype(np.int64))
    flags = ("--domains", "book=1", "--file_list", world.folder / "all_jsonl.txt", *EVERYTHING)
    done = run(*AB, 10_000, 10_000, *flags, cwd=tmp_path)
    assert "have no hashes of texts" in done.stderr
    rows = rows_of(tmp_path / "OUT/train/book")
    documents = [document for path in paths_of(world, "book") for document in
                 reference.documents_of(world.tokenized / path.replace(".jsonl", ".npy"))]  # fmt: skip
    assert rows[0]["token_ids"].dtype == np.int32
    assert all(any(reference.stands_in(whole_window(row), document) for document in documents) for row in rows)
