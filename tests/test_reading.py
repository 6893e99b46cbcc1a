"""The public way to read sets: rows that are paired, cut and cast; batches; documents.

pytest tests/test_reading.py
"""

from __future__ import annotations

import multiprocessing
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from torch.utils.data import DataLoader, DistributedSampler

from cepe_data.reading import Documents, PairedRows, PipelineError, collate
from cepe_data.storage import mds, outputs, provenance
from tests import reference
from tests.conftest import PROJECT, Run, World, read_rows

NUM_FOUND, CHUNK = 3, 256
TEACHER = "8k_concat/train-logits-enc2048-dec2048-teacher"


def sample_rows(run: Run, world: World, cwd: Path, name: str, num_rows: int, *flags: object) -> None:
    """Sample rows of two domains for training."""
    domains = ("--domains", "book=0.5,cc=0.5", "--test_fraction", 0.05, "--train_fraction", 0.9)
    run("sample_mds_concat.py", name, 4096, 4096, 0, num_rows, 0, *domains, *world.source_flags, *flags, cwd=cwd)


def write_passages(folder: Path, queries: Path) -> None:
    """Random passages for the rows of a set, as write_mds writes them; neighbors have from 0 to 256 ids."""
    rng = np.random.default_rng(0)
    columns = {
        "retrieved_token_ids": mds.array_column(np.dtype(np.int16), NUM_FOUND, CHUNK),
        "retrieved_neighbor_token_ids": "json",
        "retrieval_scores": mds.array_column(np.dtype(np.float32), NUM_FOUND),
    }
    num_rows = mds.num_rows(queries)
    rows = [
        {
            "retrieved_token_ids": rng.integers(0, 800, (NUM_FOUND, CHUNK), np.int16),
            "retrieved_neighbor_token_ids": [rng.integers(0, 800, size).tolist() for size in (256, 31 + row, 0)],
            "retrieval_scores": np.sort(rng.random(NUM_FOUND).astype(np.float32))[::-1],
        }
        for row in range(num_rows)
    ]
    mds.write_shard(outputs.Output(folder, {"input": mds.fingerprint(queries)}), columns, num_rows, rows)


@pytest.fixture(scope="module")
def folder(run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8k_concat of two domains, its teacher's sets, passages in RET, and token files, as docs/python.md names them."""
    folder = tmp_path_factory.mktemp("reading")
    (folder / "tokenized").symlink_to(world.tokenized)
    sample_rows(run, world, folder, "8k_concat", 8, "--rows_per_part", 3)
    for domain in ("book", "cc"):
        teacher = ("--model_dir", world.folder / "teacher", "--domain", domain, "--batch_size", 2)
        run("calculate_logits.py", "--input_dir", "8k_concat/train", *teacher, cwd=folder)
        write_passages(folder / "RET/train" / domain, folder / "8k_concat/train" / domain)
    return folder


def plain(folder: Path) -> list[dict[str, Any]]:
    """All rows of the two domains as streaming reads them."""
    return [*read_rows(folder / "book"), *read_rows(folder / "cc")]


def test_rows_are_those_of_the_three_sets_cut_and_cast(folder: Path) -> None:
    rows = PairedRows(
        folder / "8k_concat/train",
        teacher_dir=folder / TEACHER,
        passages_dir=folder / "RET/train",
        num_contexts=3,
        context_size=500,
        num_decoder_tokens=700,
        num_passages=2,
        with_neighbors=True,
    )
    sets = [plain(folder / name) for name in ("8k_concat/train", TEACHER, "RET/train")]
    assert len(rows) == len(sets[0]) == 8 and rows.vocab_size == 800
    for index in [7, 0, *range(8), -1]:
        row, (window, targets, passages) = rows[index], (one[index] for one in sets)
        assert row["domain"] == window["domain"] == rows.locate(index)[0]
        expected = {
            "token_ids": window["token_ids"][:700],
            "prev_token_ids": window["prev_token_ids"][-1500:].reshape(3, 500),
            "target_prob": targets["target_prob"][:700],
            "target_index": targets["target_index"][:700],
            "retrieved_token_ids": passages["retrieved_token_ids"][:2],
            "retrieval_scores": passages["retrieval_scores"][:2],
        }
        assert row.keys() == {*expected, "domain", "retrieved_neighbor_token_ids"}
        for name, array in expected.items():
            assert row[name].dtype == (torch.float32 if array.dtype.kind == "f" else torch.int64), name
            assert np.array_equal(row[name].numpy(), array), name
            row[name].zero_()  # writable, and the next reader does not see it
        neighbors = [ids.tolist() for ids in row["retrieved_neighbor_token_ids"]]
        assert neighbors == passages["retrieved_neighbor_token_ids"][:2]
    with pytest.raises(IndexError, match="there are 8 rows, and none has the number 8"):
        rows[8]
    whole = PairedRows(folder / "8k_concat/train", "cc", teacher_dir=folder / TEACHER)[0]
    assert np.array_equal(whole["prev_token_ids"], sets[0][4]["prev_token_ids"]) and len(whole["token_ids"]) == 2048
    assert "prev_token_ids" not in PairedRows(folder / "8k_concat/train", num_contexts=0)[0]


def test_sets_that_do_not_belong_together_are_rejected_with_the_remedy(
    folder: Path, run: Run, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample_rows(run, world, tmp_path, "other", 8, "--seed", 1)
    sample_rows(run, world, tmp_path, "fewer", 6)
    train, teacher, found = folder / "8k_concat/train", folder / TEACHER, folder / "RET/train"
    (tmp_path / "part").mkdir()
    (tmp_path / "part/book").symlink_to(teacher / "book")
    rejected: list[tuple[Callable[[], object], str]] = [
        (lambda: PairedRows(tmp_path / "other/train", teacher_dir=teacher), "made from other rows than those of"),
        (lambda: PairedRows(tmp_path / "other/train", passages_dir=found), "made from other rows than those of"),
        (lambda: PairedRows(tmp_path / "fewer/train", teacher_dir=teacher), "has 4 rows, .* has 3: they do not belong"),
        (lambda: PairedRows(train, teacher_dir=tmp_path / "part"), r"no set of cc .*domains=\['book'\]"),
        (lambda: PairedRows(train, ["book", "wiki"]), "no set of wiki"),
        (lambda: PairedRows(train / "book"), "is the folder of one domain"),
        (lambda: PairedRows(tmp_path / "nowhere"), "does not exist"),
        (lambda: PairedRows(train, num_contexts=17, context_size=256), "more than the 4,096 of prev_token_ids"),
        (lambda: PairedRows(train, num_contexts=4), "Pass context_size"),
        (lambda: PairedRows(train, num_decoder_tokens=4097), "there are 4096 token_ids"),
        (lambda: PairedRows(train, teacher_dir=teacher, num_decoder_tokens=2049), "there are 2048 targets"),
        (lambda: PairedRows(train, passages_dir=found, num_passages=4), "there are 3 passages of a row"),
        (lambda: PairedRows(train, teacher_dir=found), "has no arrays target_index"),
        (lambda: PairedRows(train, with_neighbors=True), "pass passages_dir"),
    ]
    for open_rows, message in rejected:
        with pytest.raises(PipelineError, match=message):
            open_rows()
    assert not capsys.readouterr().err
    for domain in ("book", "cc"):  # sets without provenance
        copy = tmp_path / "elsewhere" / domain
        copy.mkdir(parents=True)
        for path in (teacher / domain).glob("[!m]*"):
            (copy / path.name).symlink_to(path)
    assert len(PairedRows(train, teacher_dir=tmp_path / "elsewhere")) == 8
    assert "their numbers agree" in capsys.readouterr().err


def test_two_processes_with_workers_see_every_row_once(folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    seen = fork.Queue()
    rows = PairedRows(folder / "8k_concat/train", teacher_dir=folder / TEACHER, num_contexts=1, context_size=64)
    rows[0]  # files that are open must do no harm to those who inherit them

    def read(rank: int) -> None:
        sampler: DistributedSampler = DistributedSampler(rows, num_replicas=2, rank=rank, shuffle=True, seed=3)
        loader = DataLoader(rows, batch_size=2, sampler=sampler, num_workers=1, collate_fn=collate)
        for batch in loader:
            for ids, prob in zip(batch["token_ids"].numpy(), batch["target_prob"].numpy(), strict=True):
                seen.put((ids.tobytes(), prob.tobytes()))

    processes = [fork.Process(target=read, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [seen.get(timeout=60) for _ in range(8)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    expected = [
        (row["token_ids"].numpy().tobytes(), row["target_prob"].numpy().tobytes())
        for row in map(rows.__getitem__, range(8))
    ]
    assert sorted(found) == sorted(expected) and len({*expected}) == 8
    sent = pickle.loads(pickle.dumps(rows))  # as to a worker that is spawned
    assert torch.equal(sent[7]["target_prob"], rows[7]["target_prob"])


def test_batches_pad_neighbors_and_cast_what_streaming_gives(folder: Path) -> None:
    rows = PairedRows(folder / "8k_concat/train", passages_dir=folder / "RET/train", with_neighbors=True)
    batch = collate([rows[index] for index in (1, 6)], pad_id=9)
    neighbors, mask = batch["retrieved_neighbor_token_ids"], batch["retrieved_neighbor_mask"]
    passages = plain(folder / "RET/train")
    assert neighbors.shape == mask.shape == (2, 3, 256) and batch["domain"] == ["book", "cc"]
    for place, index in enumerate((1, 6)):
        for number, ids in enumerate(passages[index]["retrieved_neighbor_token_ids"]):
            assert neighbors[place, number].tolist() == ids + [9] * (256 - len(ids))
            assert mask[place, number].tolist() == [True] * len(ids) + [False] * (256 - len(ids))
    of_streaming = collate([passages[1], passages[6]], pad_id=9)
    for name, value in of_streaming.items():
        assert torch.equal(value, batch[name]) and value.dtype == batch[name].dtype, name


def test_other_columns_are_what_the_rows_have(tmp_path: Path) -> None:
    columns = {"token_ids": "ndarray:int16:4", "weights": "json", "names": "json", "nested": "json", "ids": "json"}
    others: list[dict[str, Any]] = [
        {"weights": [0.5, 0.9], "names": ["a", "b"], "nested": [[0.5]], "ids": [[1, 2], []]},
        {"weights": [1, 2], "names": [], "nested": [], "ids": []},
    ]
    written = [{"token_ids": np.arange(4, dtype=np.int16), **one} for one in others]
    mds.write_shard(outputs.Output(tmp_path / "OUT/book", {}), columns, 2, written)
    rows = PairedRows(tmp_path / "OUT")
    batch = collate([rows[0], rows[1]])
    for name in ("weights", "names", "nested"):
        assert [rows[0][name], rows[1][name]] == batch[name] == [one[name] for one in others]
    assert batch["ids"].tolist() == [[[1, 2], [0, 0]], [[0, 0], [0, 0]]] and batch["ids_mask"].sum() == 2


def test_documents_are_those_of_the_file_by_number(world: World, tmp_path: Path) -> None:
    path = world.tokenized / "c4/c4-train.00000-of-01024.npy"
    expected = reference.documents_of(path)
    texts = reference.texts_of(world.data / "c4/c4-train.00000-of-01024.jsonl")
    hashes = [xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace")) for text in texts]
    with Documents(path) as documents:
        assert len(documents) == len(expected) and documents.num_tokens == sum(map(len, expected))
        assert documents.lengths(5, 9).tolist() == [len(one) for one in expected[5:9]]
        assert documents.hashes().tolist() == hashes and documents.hashes(7, 8).tolist() == hashes[7:8]
        for number in (0, len(expected) - 1, 17, -2):
            assert np.array_equal(documents[number], expected[number])
        assert pickle.loads(pickle.dumps(documents))[3].tolist() == expected[3].tolist()
        with pytest.raises(IndexError):
            documents[len(expected)]
    rng = np.random.default_rng(0)  # a file of another program, with more than 1,024 documents
    lengths = rng.integers(0, 5, 3000)
    ids = rng.integers(0, 1 << 40, int(lengths.sum()))
    np.save(tmp_path / "X.npy", np.concatenate([[3000], lengths, ids]))
    with Documents(tmp_path / "X.npy") as documents:
        ends = np.cumsum(lengths)
        assert documents.tokenizer is None
        for number, document in enumerate(documents):
            assert np.array_equal(document, ids[ends[number] - lengths[number] : ends[number]])
        for number in range(0, 3000, 97):
            assert np.array_equal(documents[number], ids[ends[number] - lengths[number] : ends[number]])
    np.save(tmp_path / "X.npy", np.concatenate([[3000], lengths, ids[:-1]]))
    with pytest.raises(PipelineError, match="do not add up"), Documents(tmp_path / "X.npy") as documents:
        documents[0]


def test_the_examples_in_the_documentation_print_what_they_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "docs/python.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
        assert capsys.readouterr().out.splitlines() == re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)

    def loader_of(seed: int) -> Any:  # what the example of streaming promises: an epoch that is resumed
        streamed = names["StreamedRows"](names["rows"], shuffle=True, shuffle_seed=seed, batch_size=2)
        return names["streaming"].StreamingDataLoader(streamed, batch_size=2, collate_fn=collate)

    order = [batch["token_ids"][:, :8].tolist() for batch in loader_of(1)]
    stopped = loader_of(1)
    begun = iter(stopped)
    assert [next(begun)["token_ids"][:, :8].tolist() for _ in range(2)] == order[:2]
    state = stopped.state_dict()
    resumed = loader_of(1)
    resumed.load_state_dict(state)
    assert [batch["token_ids"][:, :8].tolist() for batch in resumed] == order[2:]


def test_losses_of_the_example_fall_in_each_mode_and_exchanged_targets_are_seen(folder: Path, run: Run) -> None:
    """Targets of other rows teach less: as far as they go, the model learns which token has which."""
    for domain in ("book", "cc"):
        targets, meta = folder / TEACHER / domain, provenance.read_meta(folder / TEACHER / domain)
        rows = list(mds.Rows(targets))
        output = outputs.Output(folder / "exchanged" / domain, meta["made_with"])
        mds.write_shard(output, mds.read_columns(targets), len(rows), [*rows[1:], rows[0]])
    short = ("--context_size", 16, "--num_contexts", 1, "--steps", 24, "--num_decoder_tokens")

    def losses(num_tokens: int, *flags: object) -> tuple[float, float]:
        done = run("examples/train_tiny.py", "8k_concat/train", *flags, *short, num_tokens, cwd=folder)
        assert done.stdout.count("step ") == 3 and done.stdout.count("*") == 24, done.stdout
        first, last = re.findall(r"\d+\.\d+", done.stdout.splitlines()[-1])
        return float(first), float(last)

    for flags in ((), ("--passages", "RET/train")):
        first, last = losses(128, *flags)
        assert last < 0.92 * first
    first, last = losses(512, "--teacher", TEACHER)
    assert last < 0.8 * first
    _, of_exchanged = losses(512, "--teacher", "exchanged")
    assert of_exchanged > 1.2 * last
