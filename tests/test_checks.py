"""The checks of sanity_check.py: a table of damages, each made here and found; and no finding on clean data.

pytest tests/test_checks.py
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from cepe_data.storage import mds, outputs, provenance
from cepe_data.teacher import check as teacher_check
from demo import models
from tests.conftest import Run, World, folder_of_run, make_encoder, make_texts

CHUNK = 16
TEACHER = "OUT/train-logits-enc64-dec32-teacher"
SPLITS = ("--test_fraction", 0.2, "--train_fraction", 0.4, "--allow_shortage", "--rows_per_part", 8)
CONCAT = ("sample_mds_concat.py", "OUT", 64, 32, 40, 60, 60, 0, "--domains", "arxiv=0.5,book=0.5",
          "--retrieval_shards", 1, "--retrieval_chunk_size", CHUNK)  # fmt: skip
RETRIEVAL = ("--embeddings", "EMB", "--corpus", "OUT/retrieval", "--queries", "OUT/test", "--hits", "HITS")


@pytest.fixture(scope="session")
def made(run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every step writes, from the world's corpus; made once for all workers of a run."""
    base = folder_of_run(tmp_path_factory)
    folder = base / "checked"
    with FileLock(base / "checked.lock"):
        if (folder / "complete").exists():
            return folder
        folder.mkdir()
        for name in ("redpajama", "teacher"):
            (folder / name).symlink_to(world.folder / name)
        for name in ("all_jsonl.txt", "all_jsonl.json"):
            shutil.copy(world.folder / name, folder / name)
        shutil.copytree(world.tokenized, folder / "tokenized")
        make_encoder(folder / "encoder")
        for seed, output in ((42, "OUT"), (7, "OTHER")):
            run(CONCAT[0], output, *CONCAT[2:], *SPLITS, "--seed", seed, cwd=folder)
        run("sample_mds_ab.py", "AB", 96, 32, 5, 40, "--domains", "book=1", *SPLITS, cwd=folder)
        run("calculate_logits.py", "--input_dir", "OUT/train", "--model_dir", "teacher", "--domain", "book",
            "--num_encoder_tokens", 64, "--num_decoder_tokens", 32, "--topk", 5, "--rows_per_part", 8, "--delete_parts",
            cwd=folder)  # fmt: skip
        run("retrieval.embed_passages", "--corpus", "OUT/retrieval", "--output", "EMB", "--model_dir", "encoder",
            cwd=folder)  # fmt: skip
        run("retrieval.search", "--queries", "OUT/test", "--embeddings", "EMB", "--output", "HITS",
            "--model_dir", "encoder", "--topk", 4, "--query_tokens", 20, cwd=folder)  # fmt: skip
        run("retrieval.write_mds", "--hits", "HITS", "--embeddings", "EMB", "--queries", "OUT/test",
            "--output", "RET/test", "--rows_per_part", 8, "--delete_parts", cwd=folder)  # fmt: skip
        run("sanity_check.py", "overlap", "OUT", "--write_clean_list", cwd=folder)
        (folder / "complete").touch()
    return folder


Damage = Callable[[Path], None]


def flip(name: str) -> Damage:
    """Another bit in a byte in the middle of a file that is not a white space."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        places = [place for place, byte in enumerate(content) if chr(byte).isalnum() or not name.endswith("json")]
        content[random.Random(name).choice(places)] ^= 1
        (folder / name).unlink()  # a set shares its shards with its parts
        (folder / name).write_bytes(content)

    return damage


def truncate(name: str) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).write_bytes(content[:-7])

    return damage


def remove(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        for name in names:
            outputs.remove(folder / name)

    return damage


def swap(one: str, other: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / one).rename(folder / "aside")
        (folder / other).rename(folder / one)
        (folder / "aside").rename(folder / other)

    return damage


def copy(name: str, target: str) -> Damage:
    def damage(folder: Path) -> None:
        (shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, folder / target)

    return damage


def move(name: str, target: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).rename(folder / target)

    return damage


def rename_key(name: str, key: str) -> Damage:
    """A key of the third line of a jsonl file has another name."""

    def damage(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines(keepends=True)
        lines[2] = lines[2].replace(f'"{key}"', f'"{key[::-1]}"')
        (folder / name).write_text("".join(lines))

    return damage


def together(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def replace(name: str, other: str) -> Damage:
    def damage(folder: Path) -> None:
        shutil.copy(folder / other, folder / name)

    return damage


def sign(output: Path, **metadata: object) -> None:
    """A meta file that says what is there, as a faulty writer would have written it."""
    path = provenance.meta_path(output, output.is_dir())
    meta = json.loads(path.read_text())
    base = output if output.is_dir() else output.parent
    meta["files"] = {name: provenance.file_metadata(base / name) for name in meta["files"]}
    path.write_text(json.dumps(provenance.signed({**meta, **metadata})))


def edit_json(name: str, change: Callable[[Any], None]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(provenance.signed(content) if "meta_xxh3_64" in content else content))

    return damage


def edit_array(name: str, output: str, change: Callable[[np.ndarray], object]) -> Damage:
    """Change an array, and sign the output that it belongs to."""

    def damage(folder: Path) -> None:
        array = np.load(folder / name)
        change(array)
        np.save(folder / name, array)
        sign(folder / output)

    return damage


def edit_rows(name: str, change: Callable[[list[dict[str, Any]]], object]) -> Damage:
    """Change the rows of a set, and sign it."""

    def damage(folder: Path) -> None:
        output = folder / name
        rows, columns, start = list(mds.Rows(output)), mds.read_columns(output), 0
        change(rows)
        index = json.loads((output / "index.json").read_text())
        for shard in index["shards"]:
            stop = start + shard["samples"]
            mds.write_shard(outputs.Output(folder / "rewritten", {}), columns, stop - start, rows[start:stop])
            target = output / shard["raw_data"]["basename"]
            target.unlink()
            shutil.move(folder / "rewritten/shard.00000.mds", target)
            shard["raw_data"]["bytes"] = target.stat().st_size
            shutil.rmtree(folder / "rewritten")
            start = stop
        (output / "index.json").write_text(json.dumps(index))
        sign(output)

    return damage


def edit_array_unsigned(name: str, change: Callable[[np.ndarray], object]) -> Damage:
    """Change an array, as a bad disk would."""

    def damage(folder: Path) -> None:
        array = np.load(folder / name)
        change(array)
        np.save(folder / name, array)

    return damage


def edit_text(name: str, old: str, new: str) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return damage


def set_value(column: str, row: int, place: Any, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[row][column][place] = value

    return change


def put_test_document_into_train(folder: Path) -> None:
    """A row of train becomes one of test, with its provenance: only the hash of the document tells."""
    test = mds.Rows(folder / "OUT/test/book")[3]
    edit_rows("OUT/train/book", lambda rows: rows.__setitem__(5, test))(folder)
    place = np.load(folder / "OUT/test/book.rows.npy")[3]
    edit_array("OUT/train/book.rows.npy", "OUT/train/book", lambda array: array.__setitem__(5, place))(folder)


def tokenize_otherwise(folder: Path) -> None:
    """The token files are now those of another tokenizer."""
    from tests.conftest import run_script

    models.train_tokenizer(make_texts(99, 30, 200), folder / "other.model", 700)
    run_script("tokenize_jsonl.py", "--tokenizer", "other.model", "--overwrite", cwd=folder)


def shift_lines(folder: Path) -> None:
    """Passages stand one line later than they should."""
    path = folder / "OUT/retrieval/0/book.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[-1], *lines[:-1]]))
    sign(path)


def shift_positions(rows: list[dict[str, Any]]) -> None:
    """Nearly half of the positions of a row hold the targets of the next one."""
    for column in ("target_index", "target_prob"):
        array = rows[1][column]
        array[: len(array) * 9 // 20] = array[1 : len(array) * 9 // 20 + 1].copy()


def roll_rows(rows: list[dict[str, Any]]) -> None:
    rows[:] = [rows[-1], *rows[:-1]]


QUICK, DEEP = (), ("--deep",)
SAMPLES, AB = ("samples", "OUT"), ("samples", "AB")
SET = "OUT/train/book"
CHECKS: dict[str, tuple[Any, ...]] = {
    "tokens": ("tokens", "--num_shards", 5), "samples": SAMPLES, "ab": AB, "teacher": ("teacher", TEACHER),
    "retrieval": ("retrieval", "RET/test", *RETRIEVAL),
    "all": ("all", "--file_list", "none"),
}  # fmt: skip
DAMAGES: list[tuple[str, tuple[Any, ...], Damage, str]] = [
    # A flipped byte in every kind of file.
    *(("tokens", DEEP, flip(name), re.escape(name)) for name in (
        "tokenized/book/book.npy", "tokenized/book/book.hash.npy", "tokenized/tokenizer/tokenizer.json")),
    ("tokens", QUICK, flip("tokenized/book/book.meta.json"), "book.meta.json is damaged"),
    ("tokens", QUICK, flip("tokenized/tokenizer/meta.json"), "tokenizer/meta.json is damaged"),
    ("tokens", QUICK, flip("all_jsonl.json"), "all_jsonl.json|FOUND"),
    ("samples", DEEP, flip(f"{SET}/shard.00001.mds"), f"{SET}/shard.00001.mds: is not what was written"),
    ("samples", DEEP, flip(f"{SET}.rows.npy"), r"book\.rows\.npy"),
    ("samples", DEEP, flip(f"{SET}/index.json"), f"{SET}"),
    ("samples", QUICK, flip(f"{SET}/meta.json"), f"{SET}/meta.json is damaged"),
    ("samples", QUICK, edit_json("OUT/manifest.json", lambda all: all["sets"]["train"]["book"].update(documents=1)),
     "OUT/manifest.json: says of OUT/train/book otherwise"),
    *(("samples", QUICK, flip(name), f"{name} is damaged")
      for name in ("OUT/manifest.json", "OUT/retrieval/0/manifest.json")),
    ("samples", DEEP, flip("OUT/retrieval/0/book.jsonl"), "0/book.jsonl: is not what was written"),
    ("samples", QUICK, flip("OUT/retrieval/0/book.meta.json"), "book.meta.json is damaged"),
    ("samples", QUICK, flip("OUT/overlap.json"), "overlap.json is damaged"),
    ("samples", QUICK, flip("OUT/test/book.clean.npy"), r"OUT/test/book.clean.npy: (lists other|is not an \.npy)"),
    ("samples", QUICK, truncate("OUT/test/book.clean.npy"), "OUT/test/book.clean.npy: is damaged"),
    ("samples", QUICK, remove("OUT/overlap.json"), "OUT/test/book.clean.npy: lists other rows than OUT/overlap"),
    ("teacher", DEEP, flip(f"{TEACHER}/book/shard.00001.mds"), "shard.00001.mds: is not what was written"),
    ("teacher", QUICK, flip(f"{TEACHER}/book/meta.json"), "book/meta.json is damaged"),
    ("retrieval", DEEP, flip("RET/test/book/shard.00001.mds"), "shard.00001.mds: is not what was written"),
    ("retrieval", DEEP, flip("RET/test/book.keys.npy"), r"book\.keys\.npy"),
    ("retrieval", QUICK, flip("RET/test/book/meta.json"), "book/meta.json is damaged"),
    # Truncated files, and files that are gone.
    *((check, QUICK, truncate(name), re.escape(name)) for check, name in (
        ("tokens", "tokenized/book/book.npy"), ("tokens", "tokenized/book/book.hash.npy"),
        ("tokens", "tokenized/book/book.meta.json"), ("tokens", "tokenized/tokenizer/tokenizer.json"),
        ("samples", f"{SET}/shard.00001.mds"), ("samples", f"{SET}/index.json"), ("samples", f"{SET}.rows.npy"),
        ("samples", "OUT/manifest.json"), ("samples", "OUT/retrieval/0/book.jsonl"),
        ("teacher", f"{TEACHER}/book/shard.00000.mds"), ("retrieval", "RET/test/book/shard.00000.mds"),
        ("retrieval", "RET/test/book.keys.npy"))),
    *((check, QUICK, remove(name), re.escape(name)) for check, name in (
        ("tokens", "tokenized/book/book.npy"), ("samples", f"{SET}/shard.00001.mds"), ("samples", SET),
        ("samples", f"{SET}.rows.npy"), ("samples", "OUT/retrieval/0/book.jsonl"),
        ("teacher", f"{TEACHER}/book/shard.00000.mds"), ("retrieval", "RET/test/book.keys.npy"))),
    # Things at the wrong place.
    ("tokens", QUICK, together(*(swap(f"tokenized/arxiv/arxiv_0{kind}", f"tokenized/arxiv/arxiv_1{kind}")
                                 for kind in (".npy", ".hash.npy", ".meta.json"))), "was made from|has another name"),
    ("tokens", QUICK, edit_array("tokenized/book/book.npy", "tokenized/book/book.npy",
                                 lambda array: array.__setitem__(slice(50, 60), 9)), "has not the ids of its text"),
    ("tokens", QUICK, edit_array("tokenized/book/book.hash.npy", "tokenized/book/book.npy",
                                 lambda array: np.add(array, 1, out=array)), "the text at byte 0 of .* is not in it"),
    ("samples", QUICK, swap(f"{SET}/shard.00000.mds", f"{SET}/shard.00001.mds"),
     "row 0: is not what stands at position"),
    ("samples", QUICK, replace(f"{SET}/shard.00001.mds", "OTHER/train/book/shard.00001.mds"), "row 8: "),
    ("samples", QUICK, edit_json(f"{SET}/index.json", lambda all: all["shards"][0]["raw_data"].update(bytes=9)),
     r"index\.json"),
    ("samples", QUICK, edit_rows(SET, set_value("token_ids", 9, 3, 4)),
     "row 9: is not what stands at .* differ from token 67"),
    ("ab", QUICK, edit_rows("AB/train/book", set_value("prev_token_ids", 2, 0, 4)), "row 2: .* differ from token 0 on"),
    ("samples", QUICK, put_test_document_into_train, "row 5: comes from document .*, which is of test"),
    ("samples", QUICK, tokenize_otherwise, "which another tokenizer has made since"),
    ("samples", QUICK, swap("OUT/train/book", "OUT/train/arxiv"), "is not where it was written"),
    ("samples", QUICK, together(remove("OUT/retrieval/0"), copy("OTHER/retrieval/0", "OUT/retrieval/0")),
     "0/book.jsonl: was made with seed 7, but .* with 42"),
    ("samples", QUICK, move("OUT/retrieval/0", "OUT/retrieval/1"),
     "is not where it was written: shard_id: was 0, now 1(.|\n)*has not all of its 1 shards: run the sampler for 0"),
    ("samples", QUICK, remove("OUT/manifest.json"), "OUT/manifest.json: is missing"),
    ("samples", QUICK, together(remove("OUT/manifest.json"), remove(SET), copy("OTHER/train/book", SET),
                                copy("OTHER/train/book.rows.npy", f"{SET}.rows.npy")), "was made with seed 7"),
    ("samples", DEEP, rename_key("OUT/retrieval/0/book.jsonl", "position"), "in line 3 is not a record of a passage"),
    ("tokens", QUICK, together(copy("tokenized/book", "aside"), tokenize_otherwise,
                               remove("tokenized/tokenizer", "tokenized/book"), copy("aside", "tokenized/book")),
     "another tokenizer than"),
    ("samples", DEEP, shift_lines, r"the passage in line 1 has the id book_0_\d+, not book_0_0"),
    ("teacher", DEEP, swap(f"{TEACHER}/book/shard.00000.mds", f"{TEACHER}/book/shard.00001.mds"),
     "is not what was written"),
    ("teacher", ("--model_dir", "teacher", "--recomputed_rows", 99),
     edit_rows(f"{TEACHER}/book", lambda rows: rows.insert(1, rows.pop(9))), "row 1: is not what the model gives"),
    ("teacher", ("--model_dir", "teacher", "--recomputed_rows", 99), edit_rows(f"{TEACHER}/book", shift_positions),
     "row 1: is not what the model gives"),
    ("teacher", QUICK, edit_rows(f"{TEACHER}/book", set_value("target_prob", 4, (7, 0), 0.001)),
     "row 4: .*at position 7"),
    ("teacher", QUICK, edit_rows(f"{TEACHER}/book", set_value("target_prob", 4, (7, 0), np.nan)),
     "row 4: .*not numbers"),
    ("teacher", QUICK, edit_rows(f"{TEACHER}/book", set_value("target_prob", 4, (7, 5), 0)), "row 4: .*add up to 1"),
    ("teacher", QUICK, edit_rows(f"{TEACHER}/book", set_value("target_index", 4, 7, 9)),
     "row 4: has the same id twice"),
    ("teacher", QUICK, edit_rows(f"{TEACHER}/book", set_value("target_index", 4, (7, 0), 800)),
     "row 4: has ids outside"),
    ("teacher", QUICK, edit_rows("OUT/train/book", set_value("token_ids", 4, 7, 5)), "was made from other rows"),
    ("retrieval", QUICK, edit_rows("RET/test/book", roll_rows), r"row \d+: has at place \d not the passage"),
    ("retrieval", QUICK, together(edit_rows("RET/test/book", roll_rows), edit_array(
        "RET/test/book.keys.npy", "RET/test/book", lambda array: array.__setitem__(slice(None), np.roll(array, 1, 0)))),
     r"row \d+: has at place \d (the score|not what HITS)"),
    ("retrieval", QUICK, edit_rows("RET/test/book", set_value("retrieval_scores", 3, 0, -9)),
     "row 3: .*do not descend"),
    ("retrieval", QUICK, edit_rows("OUT/test/book", set_value("token_ids", 4, 7, 5)), "was found for other rows"),
    # Sets that are broken where one looks what they are.
    ("all", DEEP, truncate(f"{TEACHER}/book/shard.00001.mds"), f"{TEACHER}/book"),
    ("all", QUICK, together(*(lambda folder, name=name: (folder / f"RET/test/{name}/index.json").write_text("{}")
                              for name in ("arxiv", "book"))), r"RET/test/book/index\.json: is gone"),
    ("all", QUICK, remove(f"{TEACHER}/book/index.json", f"{TEACHER}/book/meta.json"), f"{TEACHER}/book|{TEACHER} "),
    ("all", QUICK, remove("RET/test/book/index.json", "RET/test/book/meta.json"), "RET/test/book: "),
    # What lies between the queries and the passages.
    ("all", QUICK, remove("EMB/0/book/part-00000"), "EMB/0/book/part-00000: is missing"),
    ("all", QUICK, truncate("EMB/embeddings.json"), r"EMB/embeddings\.json"),
    ("all", QUICK, truncate("HITS/book/meta.json"), "HITS/book/meta.json is damaged"),
    ("retrieval", QUICK, truncate("EMB/0/arxiv/part-00000/embeddings.npy"), r"part-00000/embeddings\.npy: is gone"),
    ("retrieval", DEEP, flip("EMB/0/arxiv/part-00000/neighbors.npy"), r"part-00000/neighbors\.npy: is not what was"),
    ("retrieval", QUICK, truncate("HITS/book/scores.npy"), r"HITS/book/scores\.npy: is gone"),
    ("retrieval", DEEP, flip("HITS/book.queries/embeddings.npy"), r"book\.queries/embeddings\.npy: is not what was"),
    ("retrieval", QUICK, remove("HITS/book"), "RET/test/book: has no hits: HITS/book is not there"),
    ("retrieval", QUICK, edit_array("HITS/book/keys.npy", "HITS/book", lambda array: array.sort()),
     "RET/test/book: was written from other hits"),
    ("retrieval", QUICK, edit_array_unsigned("HITS/book/scores.npy", lambda array: array.__setitem__((3, 0), 1e9)),
     r"row 3: has at place 0 not what HITS/book/scores\.npy"),
    ("retrieval", QUICK, remove("RET/test/book"), "RET/test/book: is missing"),
    ("retrieval", QUICK, edit_array("RET/test/book.keys.npy", "RET/test/book",
                                    lambda array: array.__setitem__((3, 0), -5)), "row 3: .*not a key"),
    ("retrieval", QUICK, edit_array_unsigned("EMB/0/book/part-00000/neighbor_offsets.npy",
                                             lambda array: array.__imul__(-1)), "neighbor_offsets.npy is damaged"),
    ("retrieval", QUICK, edit_text("OUT/retrieval/0/book.jsonl", "contents_token_ids", "contents_token_idz"),
     "not the passage .* of OUT/retrieval/0/book.jsonl"),
    # Damage of what a set was made from.
    ("teacher", QUICK, flip("OUT/train/book/meta.json"), "OUT/train/book: is what .* was made from"),
    ("retrieval", QUICK, truncate("OUT/test/book/shard.00000.mds"), "OUT/test/book: is what .* was found for"),
]  # fmt: skip


@pytest.mark.parametrize(
    "number",
    range(len(DAMAGES)),
    ids=[f"{check} {' '.join(map(str, flags))}: {what}" for check, flags, _, what in DAMAGES],
)
def test_every_damage_is_found_and_named(run: Run, made: Path, tmp_path: Path, number: int) -> None:
    check, flags, damage, message = DAMAGES[number]
    folder = tmp_path / "damaged"
    shutil.copytree(made, folder, symlinks=True)
    damage(folder)
    more = ("--texts", 99) if check == "tokens" else ("--rows", 99)
    done = run("sanity_check.py", *CHECKS[check], *flags, *more, cwd=folder, status=None)
    assert done.returncode in {1, 2} and "Traceback" not in done.stderr, done.stderr
    found = "\n".join(line for line in done.stdout.splitlines() if line.startswith("FOUND")) or done.stderr
    assert re.search(message, found), f"{found}\n{done.stderr}"


def test_a_position_without_its_most_probable_word_is_not_right() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (20, 50)).astype(np.float32)
    log_prob = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    order = np.argsort(-log_prob, axis=1)
    for first, is_right in ((0, True), (1, False)):
        ids = order[:, first : first + 5]
        stored = np.exp(np.take_along_axis(log_prob, ids, axis=1)).astype(np.float16).astype(np.float32)
        assert (teacher_check.topk_difference(log_prob, ids, stored) < teacher_check.LOG_TOLERANCE) == is_right


def test_clean_data_has_no_finding(run: Run, made: Path) -> None:
    for flags in (QUICK, DEEP):
        done = run("sanity_check.py", "all", *flags, "--rows", 20, cwd=made)
        assert "FOUND" not in done.stdout and not done.stderr, done.stdout + done.stderr
        of_sets = ("samples AB", "samples OTHER", "samples OUT", f"teacher {TEACHER}", "retrieval RET/test")
        for check in ("tokens", *of_sets):
            assert f"== {check}" in done.stdout
        assert "--queries OUT/test --embeddings EMB --corpus OUT/retrieval --hits HITS" in done.stdout
    for arguments in (one for one in CHECKS.values() if one[0] != "all"):
        more = ("--model_dir", "teacher") if arguments[0] == "teacher" else ()
        content = json.loads(run("sanity_check.py", *arguments, "--json", *more, "--num_workers", 2, cwd=made).stdout)
        assert content["ok"] and content["check"] == arguments[0] and content["findings"] == []
    whole = json.loads(run("sanity_check.py", "all", "--json", cwd=made).stdout)
    assert whole["ok"] and len(whole["checks"]) == 6


def test_every_row_was_compared_and_texts_from_archives_too(run: Run, made: Path, tmp_path: Path) -> None:
    deep = json.loads(run("sanity_check.py", "samples", "OUT", "--deep", "--json", cwd=made).stdout)
    num_rows = sum(len(np.load(path)) for path in made.glob("OUT/*/*.rows.npy"))
    num_passages = sum(len(path.read_text().splitlines()) for path in made.glob("OUT/retrieval/0/*.jsonl"))
    assert (deep["rows_compared"], deep["passages_compared"]) == (num_rows, num_passages) and num_rows > 50
    texts = make_texts(5, 20, 50)
    for name, pack in (("a.jsonl.gz", reference_gzip), ("b.jsonl", lambda path, content: path.write_bytes(content))):
        (tmp_path / "data/book").mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps({"text": f"{name} {text}"}) + "\n" for text in texts).encode()
        pack(tmp_path / "data/book" / name, b"\xef\xbb\xbf" + lines)
    run("get_all_jsonl.py", "data", cwd=tmp_path)
    run("tokenize_jsonl.py", "--tokenizer", made / "../world/tokenizer.model", cwd=tmp_path)
    checked = json.loads(run("sanity_check.py", "--texts", 500, "--json", cwd=tmp_path).stdout)
    assert checked["texts_compared"] == 40


def reference_gzip(path: Path, content: bytes) -> None:
    import gzip

    path.write_bytes(gzip.compress(content))


def test_what_cannot_be_compared_is_said(run: Run, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "moved", symlinks=True)
    shutil.rmtree(tmp_path / "moved/tokenized/book")
    shutil.rmtree(tmp_path / "moved/OUT/train")
    done = run("sanity_check.py", "samples", "AB", cwd=tmp_path / "moved")
    assert "book.npy is not there: rows from it are not compared" in done.stderr and "0 rows compared" in done.stdout
    done = run("sanity_check.py", "teacher", TEACHER, cwd=tmp_path / "moved")
    assert "OUT/train/book is not there" in done.stderr
    done = run("sanity_check.py", "teacher", TEACHER, "--model_dir", "teacher", cwd=tmp_path / "moved", status=2)
    assert "pass --input_dir" in done.stderr
    assert "holds no sets" in run("sanity_check.py", "samples", "EMB", cwd=made, status=2).stderr
    assert "holds no MDS sets" in run("sanity_check.py", "teacher", "EMB", cwd=made, status=2).stderr
    where = ("--file_list", "no.txt", "--tokenized_dir", "none")
    assert "neither" in run("sanity_check.py", "all", "encoder", *where, cwd=made, status=2).stderr


def test_a_folder_may_be_named_from_inside(run: Run, made: Path) -> None:
    retrieval = [f"../../../{word}" if "/" in word or word.isupper() else word for word in RETRIEVAL]
    run("sanity_check.py", "retrieval", ".", *retrieval, cwd=made / "RET/test/book")
    done = run("sanity_check.py", "teacher", ".", cwd=made / f"{TEACHER}/book")
    assert "1 sets, 30 rows" in done.stdout and "is not there" not in done.stderr
    run("sanity_check.py", "show", ".", 0, "--tokenized_dir", made / "tokenized", cwd=made / f"{TEACHER}/book")
    where = ("--tokenized_dir", "../tokenized", "--file_list")
    run("sanity_check.py", "all", *where, "../all_jsonl.txt", cwd=made / "OUT")
    error = run("sanity_check.py", "all", *where, "none.txt", cwd=made / "OUT", status=2).stderr
    assert "none.txt is missing" in error and "name another with --file_list" in error


def test_damage_is_said_as_json_too_and_is_worse_than_what_cannot_be_checked(
    run: Run, made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made, tmp_path / "damaged", symlinks=True)
    cwd = tmp_path / "damaged"
    truncate(f"{TEACHER}/book/shard.00001.mds")(cwd)
    flip("RET/test/book/meta.json")(cwd)
    for arguments in (("teacher", TEACHER), ("retrieval", "RET/test", *RETRIEVAL)):
        content = json.loads(run("sanity_check.py", *arguments, "--json", cwd=cwd, status=1).stdout)
        assert not content["ok"] and "book" in content["findings"][0]["path"]
    whole = json.loads(run("sanity_check.py", "all", "--json", "--tokenized_dir", "none", cwd=cwd, status=1).stdout)
    assert not whole["ok"]
    done = run("sanity_check.py", "retrieval", "RET/test", "--hits", "nope", cwd=made, status=2)
    assert "nope holds no hits" in done.stderr and "Nothing incomplete" not in done.stderr
    for flag in ("--queries", "--corpus"):
        done = run("sanity_check.py", "retrieval", "RET/test", flag, "nope", cwd=made, status=2)
        assert f"{flag} nope does not exist" in done.stderr


def test_what_show_cannot_read_is_said(run: Run, made: Path, tmp_path: Path) -> None:
    cwd = tmp_path / "damaged"
    shutil.copytree(made, cwd, symlinks=True)
    truncate("RET/test/book.keys.npy")(cwd)
    edit_array_unsigned(f"{SET}.rows.npy", lambda array: array.__setitem__((0, 0), 99))(cwd)
    for name, path in (("book.keys.npy is damaged", "RET/test/book"), ("book.rows.npy is not that of", SET)):
        assert name in run("sanity_check.py", "show", path, 0, cwd=cwd, status=1).stderr
    (cwd / "tokenized").rename(cwd / "moved")
    done = run("sanity_check.py", "show", SET, 0, cwd=cwd, status=2)
    assert "tokenized/tokenizer is not there: pass --tokenized_dir" in done.stderr and "hub" not in done.stderr
