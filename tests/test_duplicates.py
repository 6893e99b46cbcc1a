"""Marking copies, and leaving them out: sanity_check.py duplicates, and --drop_duplicates of the samplers."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from cepe_data.storage import mds
from cepe_data.tokens import duplicates
from demo import models
from tests import reference
from tests.conftest import Run, folder_of_run, make_texts, write_jsonl

FOLDERS = {"cc": "common_crawl", "wiki": "wikipedia"}
MARK = ("sanity_check.py", "duplicates")
FLAGS = ("--allow_shortage", "--test_fraction", 0.2, "--train_fraction", 0.4)
PASSAGES = ("--retrieval_shards", 1, "--retrieval_chunk_size", 8, "--domains", "cc=0.6,wiki=0.4")
CONCAT = ("sample_mds_concat.py", "OUT", 16, 8, "1e6", "1e6", "1e6", *PASSAGES, *FLAGS)
AB = ("sample_mds_ab.py", "OUT", 24, 8, "1e6", "1e6", "--domains", "cc=1", *FLAGS)


@pytest.fixture(scope="session")
def made(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains: cc with copies in a file, over files, and a file of nothing else; wiki has texts of cc, once."""
    folder = folder_of_run(tmp_path_factory) / "copies"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "complete").exists():
            make(run, folder)
            (folder / "complete").touch()
    return folder


def make(run: Run, folder: Path) -> None:
    texts = make_texts(50, 90, 25)
    files = {
        "common_crawl/2019/a.jsonl": [*texts[:20], texts[3], texts[3], *texts[20:41], "", texts[40], ""],
        "common_crawl/2019/b.jsonl": [texts[7], *texts[41:55], *texts[20:30], *texts[55:70], texts[69], texts[0]],
        "common_crawl/2020/a.jsonl": texts[38:44],
        "wikipedia/wiki.jsonl": [*texts[60:90], *texts[:11]],
    }
    for path, of_file in files.items():
        write_jsonl(folder / "redpajama" / path, of_file)
    run("get_all_jsonl.py", "redpajama", cwd=folder)
    models.train_tokenizer(texts, folder / "tokenizer.model", 400)
    run("tokenize_jsonl.py", "--tokenizer", "tokenizer.model", cwd=folder)


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may write into."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def listed(place: Path) -> list[str]:
    return (place / "all_jsonl.txt").read_text().split()


def duplicates_of(place: Path, domain: str) -> dict[str, list[bool]]:
    """By jsonl file of the domain: whether each text stood before."""
    seen: set[str] = set()
    copies: dict[str, list[bool]] = {}
    for path in sorted(path for path in listed(place) if path.startswith(FOLDERS[domain])):
        copies[path] = []
        for text in reference.texts_of(place / "redpajama" / path):
            copies[path].append(text in seen)
            seen.add(text)
    return copies


def bits_file(place: Path, path: str) -> Path:
    return place / "tokenized" / path.replace(".jsonl", ".duplicates.npy")


def read_bits(place: Path, path: str, number: int) -> list[bool]:
    """Bit d of the array for document d; those that belong to none must be 0."""
    array = np.load(bits_file(place, path))
    assert array.dtype == np.uint8 and array.shape == (-(-number // 8),)
    bits = [bool(array[document // 8] >> document % 8 & 1) for document in range(8 * len(array))]
    assert not any(bits[number:])
    return bits[:number]


def all_bits(place: Path) -> dict[str, bytes]:
    tree = reference.tree_bytes(place / "tokenized")
    return {name: content for name, content in tree.items() if "duplicates" in name or ".tmp-" in name}


def expected_bits(place: Path) -> dict[str, list[bool]]:
    return {path: bits for domain in FOLDERS for path, bits in duplicates_of(place, domain).items()}


def found_bits(place: Path) -> dict[str, list[bool]]:
    return {path: read_bits(place, path, len(bits)) for path, bits in expected_bits(place).items()}


def test_every_later_duplicate_in_a_domain_is_marked_and_no_other_text(run: Run, place: Path) -> None:
    told = run(*MARK, cwd=place).stdout
    expected = expected_bits(place)
    assert [sum(bits) for bits in expected.values()] == [4, 13, 6, 0], "texts of another domain are not copies"
    assert found_bits(place) == expected
    lines = {line.split()[0]: line.split()[1:] for line in told.splitlines()}
    assert lines["cc"] == ["3", "94", "23", "24.468%"] and lines["wiki"] == ["1", "41", "0", "0.000%"]
    assert "4 token files: 135 documents, 23 copies" in told.splitlines()[-1]

    before = all_bits(place)
    for flags in (["--partition_documents", 1], ["--partition_documents", 7, "--num_workers", 2]):
        for path in before:
            (place / "tokenized" / path).unlink()
        run(*MARK, *flags, cwd=place)
        assert all_bits(place) == before


@pytest.mark.parametrize("kind", ["spread", "few texts", "alike above", "alike below", "one text"])
def test_duplicates_are_found_whatever_the_hashes_the_partitions_and_the_blocks(kind: str, tmp_path: Path) -> None:
    rng = random.Random(kind)
    for _ in range(40):
        texts = {
            "spread": [rng.getrandbits(64) for _ in range(200)],
            "few texts": [rng.getrandbits(64) for _ in range(3)],
            "alike above": [rng.getrandbits(9) for _ in range(200)],
            "alike below": [rng.getrandbits(9) << 55 for _ in range(200)],
            "one text": [(1 << 64) - 1],
        }[kind]
        hashes = rng.choices(texts, k=rng.randint(0, 400))
        expected = [hash_ in hashes[:number] for number, hash_ in enumerate(hashes)]
        with duplicates.DuplicateFinder(len(hashes), tmp_path, rng.choice([1, 2, 30, 1000])) as finder:
            rest = hashes
            while rest:
                number = rng.randint(1, 90)
                finder.add(np.array(rest[:number], np.uint64))
                rest = rest[number:]
            finder.compare()
            found: list[bool] = []
            while len(found) < len(hashes):
                found += finder.take(min(rng.randint(1, 90), len(hashes) - len(found))).tolist()
        assert found == expected
    assert not list(tmp_path.iterdir())


def test_documents_of_files_made_elsewhere_are_compared_by_their_tokens(run: Run, place: Path) -> None:
    expected = expected_bits(place)
    run(*MARK, "--domains", "wiki", cwd=place)
    of_cc = [path for path in expected if path.startswith("common_crawl")]
    for path in of_cc:
        stem = place / "tokenized" / path.removesuffix(".jsonl")
        if path == of_cc[-1]:
            error = run(*MARK, "--domains", "cc", cwd=place, status=2).stderr
            assert "2 of 3 token files have no hashes of texts" in error
        for suffix in (".hash.npy", ".meta.json"):
            stem.with_name(stem.name + suffix).unlink()
    assert not list(place.glob("tokenized/common_crawl/*/*.duplicates.*"))
    run(*MARK, cwd=place)  # wiki's have hashes of texts: what one domain has is not a matter to another
    assert found_bits(place) == expected
    assert (
        json.loads(bits_file(place, of_cc[0]).with_suffix(".meta.json").read_text())["made_with"]["document_hash"]
        == "tokens"
    )


def test_a_rerun_skips_what_is_there_and_notices_other_token_files_and_damage(run: Run, place: Path) -> None:
    run(*MARK, cwd=place)
    before = {path: path.stat().st_mtime_ns for path in place.glob("tokenized/**/*")}
    done = run(*MARK, "--json", cwd=place)
    assert json.loads(done.stdout)["domains"]["cc"] == {"files": 3, "documents": 94, "copies": 23}
    assert "cc: skipped" in run(*MARK, cwd=place).stdout
    run(*MARK, "--overwrite", cwd=place)
    assert {path: path.stat().st_mtime_ns for path in place.glob("tokenized/**/*")} == before

    with bits_file(place, "common_crawl/2019/b.jsonl").open("ab") as file:
        file.write(b"\0")
    assert "--overwrite makes it again" in run(*MARK, cwd=place, status=1).stderr
    run(*MARK, "--overwrite", cwd=place)
    assert found_bits(place) == expected_bits(place)
    other = bits_file(place, "common_crawl/2019/a.jsonl")
    assert other.stat().st_mtime_ns == before[other], "what was right stays"

    # A file before the others turns their first texts into copies.
    write_jsonl(place / "redpajama/common_crawl/2018/a.jsonl", make_texts(50, 90, 25)[:50])
    run("get_all_jsonl.py", "redpajama", cwd=place)
    run("tokenize_jsonl.py", cwd=place)
    error = run(*MARK, cwd=place, status=2).stderr
    assert "a.duplicates.npy was made with other" in error and "token_files: was" in error and "--overwrite" in error
    wiki = bits_file(place, "wikipedia/wiki.jsonl").stat().st_mtime_ns
    run(*MARK, "--overwrite", cwd=place)
    assert found_bits(place) == expected_bits(place)
    assert sum(sum(bits) for bits in expected_bits(place).values()) > 50
    assert bits_file(place, "wikipedia/wiki.jsonl").stat().st_mtime_ns == wiki


def test_a_flipped_bit_is_found_by_all_that_read_it(run: Run, place: Path) -> None:
    run(*MARK, cwd=place)
    bits = bits_file(place, "common_crawl/2019/b.jsonl")
    content = bytearray(bits.read_bytes())
    content[-1] ^= 1
    bits.write_bytes(content)
    assert f"{bits.name} is not what was written" in run(*MARK, cwd=place, status=1).stderr
    done = run("sanity_check.py", "--deep", "--num_shards", 2, cwd=place, status=1)
    assert f"{bits.name}: is not what was written" in done.stdout and "make them" not in done.stdout
    sample = ("sample_mds_concat.py", "DAMAGED", 32, 32, 2, 2, 0, "--domains", "cc=1", "--drop_duplicates")
    assert "is not what was written" in run(*sample, cwd=place, status=1).stderr
    assert not (place / "DAMAGED/train").exists()
    bits.unlink()
    for flags in ((), ("--deep",)):
        assert f"{bits.name}: is missing" in run("sanity_check.py", *flags, cwd=place, status=1).stdout


def paste(error: str, place: Path) -> None:
    """Run the command that ends a message, as a person would."""
    command = error.strip().splitlines()[-1].strip()
    assert command.startswith("python ")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, cwd=place, env={**os.environ, "PATH": path}, check=True, capture_output=True)


def kept_documents(place: Path, domain: str, split: str) -> list[list[np.ndarray]]:
    """By file, the documents of the split that are not copies."""
    kept = []
    for path, copies in duplicates_of(place, domain).items():
        texts = reference.texts_of(place / "redpajama" / path)
        documents = reference.documents_of(place / "tokenized" / path.replace(".jsonl", ".npy"))
        of_file = zip(texts, copies, documents, strict=True)
        kept.append(
            [ids for text, copy, ids in of_file if not copy and reference.split_of(text, 42, 0.2, 0.4) == split]
        )
    return kept


def rows_of(folder: Path) -> list[tuple[int, ...]]:
    return [tuple([*row["prev_token_ids"].tolist(), *row["token_ids"].tolist()]) for row in mds.Rows(folder)]


def source_texts(place: Path, sources: list[tuple[int, int]], paths: list[str]) -> Counter:
    """How often a window starts in each text, by the provenance of the windows; and in how many documents of it."""
    documents = set()
    for file, position in sources:
        array = np.load(place / "tokenized" / paths[file].replace(".jsonl", ".npy"))
        ends = 1 + array[0] + np.cumsum(array[1 : 1 + array[0]])
        documents.add((paths[file], int(np.searchsorted(ends, position, "right"))))
    return Counter(reference.texts_of(place / "redpajama" / path)[number] for path, number in documents)


def test_samplers_that_drop_duplicates_take_no_text_twice(run: Run, place: Path) -> None:
    error = run(*CONCAT, "--drop_duplicates", cwd=place, status=2).stderr
    assert "duplicates.npy is missing" in error and "duplicates" in error.splitlines()[-1]
    assert not (place / "OUT").exists()
    paste(error, place)
    run(*CONCAT, "--drop_duplicates", "--rows_per_part", 9, cwd=place)
    manifest = json.loads((place / "OUT/manifest.json").read_text())
    assert manifest["arguments"]["drop_duplicates"] is True
    for domain in FOLDERS:
        paths = list(duplicates_of(place, domain))
        for split in ("test", "train"):
            kept = kept_documents(place, domain, split)
            windows = [w for of_file in kept if of_file for w in reference.windows_in(np.concatenate(of_file), 24, 8)]
            assert sorted(rows_of(place / "OUT" / split / domain)) == sorted(windows) and windows
            assert manifest["sets"][split][domain]["documents"] == sum(map(len, kept))
            sources = np.load(place / f"OUT/{split}/{domain}.rows.npy").tolist()
            assert set(source_texts(place, sources, paths).values()) == {1}
        lines = map(json.loads, (place / f"OUT/retrieval/0/{domain}.jsonl").open())
        passages = [(line["file"], line["position"], tuple(line["contents_token_ids"])) for line in lines]
        documents = [ids for of_file in kept_documents(place, domain, "retrieval") for ids in of_file]
        assert sorted(ids for *_, ids in passages) == sorted(
            window for ids in documents for window in reference.windows_in(ids, 8, 8)
        )
        assert set(source_texts(place, [source[:2] for source in passages], paths).values()) == {1}
        passage_manifest = json.loads((place / "OUT/retrieval/0/manifest.json").read_text())
        assert passage_manifest["sets"][domain]["documents"] == len(documents)

    run(*AB[:1], "AB", *AB[2:], "--drop_duplicates", cwd=place)
    run(*AB[:1], "all", *AB[2:], cwd=place)
    for split in ("test", "train"):
        documents = [ids for of_file in kept_documents(place, "cc", split) for ids in of_file]
        windows = [window for ids in documents for window in reference.windows_in(ids, 24, 8)]
        assert sorted(rows_of(place / "AB" / split / "cc")) == sorted(windows)
        sources = np.load(place / f"all/{split}/cc.rows.npy").tolist()
        assert max(source_texts(place, sources, list(duplicates_of(place, "cc"))).values()) > 1, "the flag does it"


def test_dropping_does_not_depend_on_workers_and_is_in_every_meta_file(run: Run, place: Path) -> None:
    run(*CONCAT, cwd=place)
    without = reference.tree_bytes(place / "OUT")
    shutil.rmtree(place / "OUT")
    run(*MARK, cwd=place)
    run(*CONCAT, cwd=place)
    assert reference.tree_bytes(place / "OUT") == without, "marks change nothing where nobody asks for them"
    assert not any(b"duplicates" in content for name, content in without.items() if name.endswith(".json"))

    error = run(*CONCAT, "--drop_duplicates", cwd=place, status=2).stderr
    assert "drop_duplicates: was absent, now true" in error and "duplicates: was absent, now" in error
    trees = []
    for number in (1, 2):
        out = [CONCAT[0], f"OUT{number}", *CONCAT[2:]]
        run(*out, "--drop_duplicates", "--rows_per_part", 11, "--num_workers", number, cwd=place)
        trees.append(reference.tree_bytes(place / f"OUT{number}"))
    assert trees[0] == trees[1]
    for name in ("test/cc/meta.json", "train/wiki/meta.json", "retrieval/0/cc.meta.json"):
        record = json.loads(trees[0][name])["made_with"]
        assert record["drop_duplicates"] is True and len(record["duplicates"]) == 16

    # Sets of one output follow one rule, also those that this run does not make.
    only_train = (*AB[:1], "mixed", *AB[2:4], 0, "1e6", *AB[6:])
    only_test = (*AB[:1], "mixed", *AB[2:4], "1e6", 0, *AB[6:])
    run(*only_test, "--drop_duplicates", cwd=place)
    assert "drop_duplicates: was true, now absent" in run(*only_train, cwd=place, status=2).stderr
    shutil.rmtree(place / "mixed")
    run(*only_test, cwd=place)
    error = run(*only_train, "--drop_duplicates", cwd=place, status=2).stderr
    assert "drop_duplicates: was absent, now true" in error


def test_marks_of_other_token_files_are_rejected_with_the_command_that_renews_them(run: Run, place: Path) -> None:
    run(*MARK, cwd=place)
    path = place / "redpajama/common_crawl/2019/a.jsonl"
    write_jsonl(path, [*reference.texts_of(path)[::-1], "a text more"])
    run("get_all_jsonl.py", "redpajama", cwd=place)
    run("tokenize_jsonl.py", "--overwrite", cwd=place)
    error = run(*AB, "--drop_duplicates", cwd=place, status=2).stderr
    assert "was made from other token files than its domain has now" in error and error.strip().endswith("--overwrite")
    paste(error, place)
    run(*AB, "--drop_duplicates", cwd=place)
    assert found_bits(place) == expected_bits(place)

    shutil.rmtree(place / "OUT")
    bits_file(place, "common_crawl/2020/a.jsonl").write_bytes(b"no array")
    assert "a.duplicates.npy is not an .npy file" in run(*AB, "--drop_duplicates", cwd=place, status=1).stderr
