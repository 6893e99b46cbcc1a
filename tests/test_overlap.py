"""sanity_check.py overlap: planted spans are found at the stated rates, unrelated text is not.

pytest tests/test_overlap.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cepe_data.inspect import overlap as overlap_check
from cepe_data.storage import mds, outputs, provenance
from cepe_data.storage.report import Report
from tests.conftest import Run, World

SPAN, TOTAL = 50, 300


def write_set(folder: Path, windows: np.ndarray, **made_with: object) -> None:
    """A set of windows, int [rows, TOTAL]."""
    boundary = TOTAL - TOTAL // 3
    columns = {
        "token_ids": f"ndarray:int16:{TOTAL // 3}",
        "prev_token_ids": f"ndarray:int16:{boundary}",
        "domain": "str",
    }
    rows = [
        {"token_ids": one[boundary:], "prev_token_ids": one[:boundary], "domain": folder.name}
        for one in windows.astype(np.int16)
    ]
    mds.write_shard(outputs.Output(folder, made_with), columns, len(rows), rows)


def write_passages(path: Path, passages: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = (
        {"id": f"{path.stem}_0_{number}", "contents": "", "contents_token_ids": ids[:64].tolist(),
         "neighbor_token_ids": ids[64:].tolist(), "file": 0, "position": 0}
        for number, ids in enumerate(passages)
    )  # fmt: skip
    path.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records))


def windows_of(folder: Path) -> list[np.ndarray]:
    return [np.concatenate([row["prev_token_ids"], row["token_ids"]]) for row in mds.Rows(folder)]


def spans(texts: list[np.ndarray], length: int) -> list[set[tuple[int, ...]]]:
    return [
        {tuple(text[start : start + length]) for start in range(len(text) - length + 1)}
        for text in (one.tolist() for one in texts)
    ]


@pytest.fixture
def leaks(tmp_path: Path) -> Callable[..., dict[int, range]]:
    """Makes tmp_path/OUT: stretches of test rows stand in train (and, shorter by half of them, in passages)."""

    def make(lengths: tuple[int, ...], rows_each: int = 200) -> dict[int, range]:
        draw = np.random.default_rng(len(lengths))
        test = draw.integers(3, 32_000, ((len(lengths) + 1) * rows_each, TOTAL))
        train = draw.integers(3, 32_000, (len(lengths) * rows_each, TOTAL))
        planted = {}
        for number, length in enumerate(lengths):
            planted[length] = range(number * rows_each, (number + 1) * rows_each)
            for row in planted[length]:
                source, target = draw.integers(0, TOTAL - length + 1, 2)
                train[row, target : target + length] = test[row, source : source + length]
        write_set(tmp_path / "OUT/test/book", test)
        write_set(tmp_path / "OUT/train/book", draw.permutation(train))
        passages = [test[row, 100 : 100 + 128] for row in range(0, len(test), 50)]
        write_passages(tmp_path / "OUT/retrieval/0/book.jsonl", [*passages, *draw.integers(3, 32_000, (50, 90))])
        return planted

    return make


def overlap(run: Run, cwd: Path, *arguments: object) -> dict:
    return json.loads(run("sanity_check.py", "overlap", "OUT", "--json", *arguments, cwd=cwd).stdout)


def test_planted_stretches_are_found_at_the_stated_rate_and_unrelated_rows_never(
    run: Run, tmp_path: Path, leaks: Callable[..., dict[int, range]]
) -> None:
    planted = leaks((50, 60, 75, 100, 150))
    found = overlap(run, tmp_path)
    assert found["sampling"] == 8 and found["expected_false_matches"] < 1e-6
    rows = set(found["domains"]["book"]["train"]["row_numbers"])
    for length, of_length in planted.items():
        chance = 1 - found["chance_of_missing"][str(length)]
        hits = len(rows.intersection(of_length))
        assert abs(hits - chance * 200) <= 4 * np.sqrt(200 * chance * (1 - chance)) + 1, (length, hits)
    assert not rows.intersection(range(1000, 1200))
    passages = found["domains"]["book"]["retrieval"]["row_numbers"]
    assert passages == list(range(0, 1200, 50)), "128 tokens are missed with a probability of 3e-5"


def test_with_every_span_the_rows_are_those_of_a_brute_force_search(
    run: Run, tmp_path: Path, leaks: Callable[..., dict[int, range]]
) -> None:
    leaks((49, 50, 51), 20)
    found = overlap(run, tmp_path, "--sampling", 1, "--write_clean_list")
    test, train = (windows_of(tmp_path / f"OUT/{split}/book") for split in ("test", "train"))
    lines = (tmp_path / "OUT/retrieval/0/book.jsonl").read_text().splitlines()
    passages = [np.array(one["contents_token_ids"] + one["neighbor_token_ids"]) for one in map(json.loads, lines)]
    clean = set(range(80))
    for name, texts in (("train", train), ("retrieval", passages)):
        there = set().union(*spans(texts, SPAN))
        shares = [len(one & there) / len(one) for one in spans(test, SPAN)]
        of_side = found["domains"]["book"][name]
        assert of_side["row_numbers"] == [row for row, share in enumerate(shares) if share]
        assert np.allclose(of_side["shares"], [share for share in shares if share], atol=1e-4)
        clean -= set(of_side["row_numbers"])
    assert found["domains"]["book"]["train"]["row_numbers"] == list(range(20, 60)), "of the 49 tokens none"
    assert np.load(tmp_path / "OUT/test/book.clean.npy").tolist() == sorted(clean)
    assert json.loads((tmp_path / "OUT/overlap.json").read_text())["domains"] == found["domains"]
    said = run("sanity_check.py", "overlap", "OUT", "--sampling", 1, "--num_workers", 2, cwd=tmp_path).stdout
    assert said.splitlines()[2].split() == ["book", "80", "40", "2", str(len(clean))]
    assert json.loads((tmp_path / "OUT/overlap.json").read_text())["domains"] == found["domains"], "two workers"


def test_what_samplers_wrote_is_compared_with_a_brute_force_search(run: Run, world: World, tmp_path: Path) -> None:
    flags = "--domains arxiv=0.5,book=0.5 --test_fraction 0.3 --retrieval_shards 2 --retrieval_chunk_size 32".split()
    flags += ["--allow_shortage", *world.source_flags]
    for shard in range(2):
        run("sample_mds_concat.py", "OUT", 64, 64, 60, 100, 60, shard, *flags, cwd=tmp_path)
    length = 4
    found = overlap(run, tmp_path, "--span_tokens", length, "--sampling", 1)
    train = [window for domain in ("arxiv", "book") for window in windows_of(tmp_path / f"OUT/train/{domain}")]
    there = set().union(*spans(train, length))
    for domain in ("arxiv", "book"):
        windows = windows_of(tmp_path / f"OUT/test/{domain}")
        rows = [row for row, one in enumerate(spans(windows, length)) if one & there]
        assert found["domains"][domain]["train"]["row_numbers"] == rows and rows
    assert found["compared_with"]["train"]["tokens"] == 128 * len(train)
    assert found["domains"]["book"]["retrieval"]["rows"] > 0


def test_what_cannot_be_compared_is_an_error_and_what_is_not_there_is_said(
    run: Run, tmp_path: Path, leaks: Callable[..., dict[int, range]]
) -> None:
    leaks((60,), 5)
    (tmp_path / "OUT/train").rename(tmp_path / "elsewhere")
    command = ("sanity_check.py", "overlap", "OUT")
    done = run(*command, cwd=tmp_path)
    assert "OUT/train is not there" in done.stderr and "share with train" not in done.stdout
    assert overlap(run, tmp_path, "--train", "elsewhere")["domains"]["book"]["train"]["rows"] > 0
    run(*command, "--corpus", "elsewhere", cwd=tmp_path, status=2)
    assert "--span_tokens" in run(*command, "--span_tokens", 0, cwd=tmp_path, status=2).stderr
    with (tmp_path / "OUT/retrieval/0/book.jsonl").open("a") as file:
        file.write('{"id":"book_0_99"}\n')
    assert "is not a passage" in run(*command, cwd=tmp_path, status=1).stderr
    outputs.remove(tmp_path / "OUT/retrieval")
    assert "pass --train or --corpus" in run(*command, cwd=tmp_path, status=2).stderr
    write_set(tmp_path / "OUT/train/book", np.zeros((3, TOTAL), int), tokenizer="other")
    for name in ("train", "test"):
        path = tmp_path / f"OUT/{name}/book/meta.json"
        path.write_text(json.dumps(provenance.signed({**json.loads(path.read_text()), "tokenizer": name})))
    assert "different tokenizers" in run(*command, cwd=tmp_path, status=2).stderr


def test_a_report_of_other_sets_than_those_that_are_there_is_found(
    run: Run, tmp_path: Path, leaks: Callable[..., dict[int, range]]
) -> None:
    leaks((60,), 5)
    (tmp_path / "OUT/retrieval").rename(tmp_path / "RET")

    def findings() -> list[dict[str, str]]:
        report = Report("samples", as_json=False)
        overlap_check.check_clean_lists(report, tmp_path / "OUT")
        return report.findings

    def compare(*flags: object) -> None:
        overlap(run, tmp_path, "--corpus", "RET", "--write_clean_list", *flags)
        assert not findings()

    compare()
    write_set(tmp_path / "OUT/train/arxiv", np.ones((3, TOTAL), int))
    assert "train/arxiv as it is now: run sanity_check.py overlap" in findings()[0]["what"], "a new set"
    compare()
    outputs.remove(tmp_path / "OUT/train/arxiv")
    assert not findings(), "what is gone makes no row less clean"
    write_passages(tmp_path / "RET/0/book.jsonl", [np.zeros(90, int)])
    assert "RET/0/book.jsonl as it is now" in findings()[0]["what"], "replaced passages"
    compare()
    outputs.remove(tmp_path / "OUT/train/book")
    write_set(tmp_path / "OUT/train/book", np.zeros((3, TOTAL), int))
    assert "train/book as it is now" in findings()[0]["what"], "a replaced set"
    compare("--train", "OUT/train")
    path = tmp_path / "OUT/overlap.json"
    old = {name: one for name, one in json.loads(path.read_text()).items() if name != "fingerprints"}
    path.write_text(json.dumps(provenance.signed(old)))
    assert "test/book as it is now" in findings()[0]["what"], "a report of earlier versions"
