"""Lists and weights of the corpus.    pytest tests/test_listing.py"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cepe_data.corpus import domains, listing
from cepe_data.errors import ArgumentError


def test_token_paths_and_their_collisions() -> None:
    assert listing.token_path("c/en.json.gz.dedup.classifier.jsonl.zst") == "c/en.json.gz.dedup.classifier.npy"
    for suffix in (".jsonl", ".jsonl.gz", ".json", ".json.zst", ".parquet"):
        assert listing.token_path(f"a{suffix}") == "a.npy"
    with pytest.raises(ArgumentError, match="ends in none of"):
        listing.token_path("a.txt")
    listing.check_targets_differ(["a/x.jsonl", "b/x.jsonl", "a/y.jsonl.gz"])
    for paths in (["x.jsonl", "x.parquet"], ["x.jsonl", "x.jsonl"], ["x.json", "x.domain.json"]):
        with pytest.raises(ArgumentError, match="both write x"):
            listing.check_targets_differ(paths)


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=9), st.integers(0, 10**7))
def test_counts_by_largest_remainder_add_up_and_are_within_one(raw: list[float], total: int) -> None:
    weights = {f"d{index}": weight / math.fsum(raw) for index, weight in enumerate(raw)}
    counts = domains.largest_remainder(weights, total)
    assert sum(counts.values()) == total
    assert all(abs(counts[domain] - weight * total) < 1 + 1e-6 for domain, weight in weights.items())


def test_counts_add_up_where_the_weights_nearly_do() -> None:
    for third in (0.333333333, 0.3333333334):
        weights = dict.fromkeys("abc", third)
        assert sum(domains.largest_remainder(weights, 10**10).values()) == 10**10


def test_weights_that_do_not_add_up_print_a_line_that_does() -> None:
    assert domains.parse_weights("arxiv=0.25,book=0.75,cc=0") == {"arxiv": 0.25, "book": 0.75}
    with pytest.raises(ArgumentError, match=r"add up to 0\.9") as error:
        domains.parse_weights("arxiv=0.3,book=0.3,cc=0.3")
    line = str(error.value).splitlines()[-1].removeprefix("  --domains ")
    assert domains.parse_weights(line) == pytest.approx(dict.fromkeys(("arxiv", "book", "cc"), 1 / 3))
    for text in ("arxiv", "arxiv=", "arxiv=x", "arxiv=-1,book=2", "arxiv=nan", "arxiv=0.5,arxiv=0.5", "arxiv=0"):
        with pytest.raises(ArgumentError, match="--domains"):
            domains.parse_weights(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../x.jsonl", "leaves the data folder"),
        ("/etc/x.jsonl", "leaves the data folder"),
        ("unknown/x.jsonl", "no domain"),
        ("", "names no file"),
    ],
)
def test_a_list_edited_by_hand_is_checked(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "all_jsonl.txt").write_text(f"{line}\n")
    with pytest.raises(ArgumentError, match=message):
        listing.read_file_list(tmp_path / "all_jsonl.txt", tmp_path)
    with pytest.raises(ArgumentError, match="get_all_jsonl"):
        listing.read_file_list(tmp_path / "none.txt")


def test_a_list_saved_with_a_byte_order_mark_and_untidy_paths_names_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "arxiv").mkdir()
    (tmp_path / "arxiv/x.jsonl").write_text("{}\n")
    (tmp_path / "all_jsonl.txt").write_text("./arxiv//x.jsonl\n", encoding="utf-8-sig")
    [file] = listing.read_file_list(tmp_path / "all_jsonl.txt", tmp_path).files
    assert file == listing.ListedFile("arxiv/x.jsonl", "arxiv", 3)
