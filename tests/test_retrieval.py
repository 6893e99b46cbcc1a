"""The retrieval step, run as processes on a small corpus with a tiny encoder, and its parts against brute force.

pytest tests/test_retrieval.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cepe_data import workers
from cepe_data.errors import ArgumentError
from cepe_data.retrieval.embeddings import NO_KEY, Embeddings, passage_ids
from cepe_data.retrieval.encoder import Encoder, EncoderModel, WordPieces, word_piece_json
from cepe_data.retrieval.topk import TopK
from cepe_data.samples.spans import shares_span
from cepe_data.storage import mds, outputs, provenance
from demo.models import find_encoder
from tests import reference
from tests.conftest import PROJECT, Run, World, make_encoder
from tests.conftest import read_rows as rows_of

CHUNK = 32
EMBED = "retrieval.embed_passages --corpus OUT/retrieval --output EMB --model_dir encoder --part_bytes 30000".split()
SEARCH = "retrieval.search --queries OUT/test --embeddings EMB --output HITS --model_dir encoder".split()
SEARCH += "--topk 7 --query_tokens 20".split()
WRITE = "retrieval.write_mds --hits HITS --embeddings EMB --queries OUT/test --output RET/test".split()
SPLITS = "--test_fraction 0.2 --train_fraction 0.2 --allow_shortage".split()
SPLITS += "--domains arxiv=0.3,book=0.3,cc=0.2,github=0.1,wiki=0.1".split()


@pytest.fixture(scope="module")
def corpus(run: Run, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of a retrieval corpus, test rows of five domains, an encoder, and the tokenizer of the tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    make_encoder(folder / "encoder")
    make_encoder(folder / "other_encoder", seed=1)
    flags: tuple[Any, ...] = (*SPLITS, "--retrieval_shards", 3, "--retrieval_chunk_size", CHUNK, *world.source_flags)
    for shard in range(3):
        run("sample_mds_concat.py", "OUT", 96, 32, 60, 0, 400, shard, *flags, cwd=folder)
    # A domain that has nothing in one shard.
    manifest = folder / "OUT/retrieval/1/manifest.json"
    content = json.loads(manifest.read_text())
    content["sets"]["wiki"]["written"] = 0
    outputs.write_json(manifest, provenance.signed(content))
    for name in ("wiki.jsonl", "wiki.meta.json"):
        (folder / "OUT/retrieval/1" / name).unlink()
    (folder / "tokenized").symlink_to(world.tokenized)
    return folder


@pytest.fixture(scope="module")
def whole(run: Run, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three steps without shards."""
    folder = lay_out(tmp_path_factory.mktemp("whole"), corpus)
    run(*EMBED, cwd=folder)
    run(*SEARCH, cwd=folder)
    run(*WRITE, "--rows_per_part", 4, cwd=folder)
    return folder


def lay_out(folder: Path, source: Path, *names: str) -> Path:
    for path in source.iterdir():
        if path.name in {"OUT", "encoder", "other_encoder", "tokenized", *names}:
            (folder / path.name).symlink_to(path)
    return folder


def corpus_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Every passage by its id."""
    lines = (line for path in sorted(folder.glob("OUT/retrieval/*/*.jsonl")) for line in path.open(encoding="utf-8"))
    return {record["id"]: record for record in map(json.loads, lines)}


def names_of(embedded: Embeddings, keys: np.ndarray) -> list[str]:
    """The ids of passages."""
    return passage_ids([file.name for file in embedded.files], keys)


def hidden_states(folder: Path, texts: list[str]) -> Iterator[np.ndarray]:
    """float64 [word pieces, dimension]: one text at a time through transformers' own classes."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModel.from_pretrained(folder).double()
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            yield model(ids["input_ids"]).last_hidden_state[0].numpy()


def mean_of_hidden_states(folder: Path, texts: list[str]) -> np.ndarray:
    """float64 [texts, dimension]."""
    return np.stack([states.mean(0) for states in hidden_states(folder, texts)])


def test_embeddings_are_means_of_hidden_states_and_everything_else_is_the_corpus(whole: Path) -> None:
    records = corpus_records(whole)
    embedded = Embeddings(whole / "EMB")
    assert embedded.num_passages == len(records)
    found: dict[str, tuple[np.ndarray, np.ndarray, list[int]]] = {}
    for part in embedded.parts:
        vectors, passages, neighbors, offsets = (
            np.load(part.path / f"{name}.npy") for name in ("embeddings", "passages", "neighbors", "neighbor_offsets")
        )
        assert vectors.dtype == np.float16 and passages.dtype == np.int16 and passages.shape[1] == CHUNK
        for row, name in enumerate(names_of(embedded, part.first_key + np.arange(part.num_rows))):
            found[name] = vectors[row], passages[row], neighbors[offsets[row] : offsets[row + 1]].tolist()
    assert found.keys() == records.keys()
    for name, (_, passage, neighbor) in found.items():
        assert passage.tolist() == records[name]["contents_token_ids"]
        assert neighbor == records[name]["neighbor_token_ids"]
    some = sorted(records)[::37]
    expected = mean_of_hidden_states(whole / "encoder", [records[name]["contents"] for name in some])
    np.testing.assert_allclose(np.stack([found[name][0] for name in some]), expected, rtol=2e-3, atol=2e-3)
    assert len(list((whole / "EMB").glob("0/cc/part-*"))) > 1, "some file has several parts"


def write_modules(folder: Path, pooling: dict[str, Any], *others: str) -> None:
    """The files with which sentence-transformers says how vectors are made."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", **{f"{kind}_folder": kind for kind in others}}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))


def test_vectors_are_pooled_and_scaled_as_the_encoder_says_after_the_prefixes(
    run: Run, corpus: Path, whole: Path, tmp_path: Path
) -> None:
    for name in ("OUT", "tokenized"):
        (tmp_path / name).symlink_to(corpus / name)
    shutil.copytree(corpus / "encoder", tmp_path / "encoder")
    (tmp_path / "EMB").symlink_to(whole / "EMB")
    first = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    write_modules(tmp_path / "encoder", first, "Normalize")
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}}
    (tmp_path / "encoder/config_sentence_transformers.json").write_text(json.dumps(prompts))
    error = run(*SEARCH, cwd=tmp_path, status=2).stderr
    assert "were not pooled or scaled as the files of encoder say" in error
    (tmp_path / "EMB").unlink()
    run(*EMBED, "--passage_prefix", "passage: ", cwd=tmp_path)
    assert 'passage_prefix: was "passage: ", now absent' in run(*EMBED, cwd=tmp_path, status=2).stderr
    search = (*SEARCH, "--domain", "wiki")
    told = run(*search, "--query_prefix", "", cwd=tmp_path).stderr
    assert "add --query_prefix 'query: '" in told
    run(*search, "--query_prefix", "query: ", "--overwrite", cwd=tmp_path)
    assert 'query_prefix: was "query: ", now absent' in run(*search, cwd=tmp_path, status=2).stderr
    model = EncoderModel.find(str(tmp_path / "encoder"))
    assert (model.pooling, model.normalize) == ("cls", True)
    records = corpus_records(tmp_path)
    embedded = Embeddings(tmp_path / "EMB")
    part = embedded.parts[-1]
    names = names_of(embedded, part.first_key + np.arange(5))
    queries = rows_of(tmp_path / "OUT/test/wiki")[:5]
    texts = ["passage: " + records[name]["contents"] for name in names]
    texts += ["query: " + text for text in decode(tmp_path, [row["token_ids"][:20] for row in queries])]
    expected = first_hidden_states(tmp_path / "encoder", texts)
    np.testing.assert_allclose(np.load(part.path / "embeddings.npy")[:5], expected[:5], atol=1e-3)
    np.testing.assert_allclose(np.load(tmp_path / "HITS/wiki.queries/embeddings.npy")[:5], expected[5:], atol=1e-5)


def test_queries_are_embedded_again_after_the_pooling_changed(
    run: Run, corpus: Path, whole: Path, tmp_path: Path
) -> None:
    for name in ("OUT", "tokenized"):
        (tmp_path / name).symlink_to(corpus / name)
    for folder in (corpus / "encoder", whole / "HITS"):
        shutil.copytree(folder, tmp_path / folder.name)
    write_modules(tmp_path / "encoder", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    run(*EMBED, cwd=tmp_path)
    run(*SEARCH, "--domain", "wiki", "--overwrite", cwd=tmp_path)
    texts = decode(tmp_path, [row["token_ids"][:20] for row in rows_of(tmp_path / "OUT/test/wiki")[:5]])
    expected = np.stack([states[0] for states in hidden_states(tmp_path / "encoder", texts)])
    np.testing.assert_allclose(np.load(tmp_path / "HITS/wiki.queries/embeddings.npy")[:5], expected, atol=1e-5)


def first_hidden_states(folder: Path, texts: list[str]) -> np.ndarray:
    """float64 [texts, dimension]: the first state of each text, scaled to length 1."""
    return np.stack([states[0] / np.sqrt((states[0] ** 2).sum()) for states in hidden_states(folder, texts)])


@pytest.mark.parametrize(
    ("pooling", "others", "found"),
    [
        pytest.param({"pooling_mode_mean_tokens": True}, ("Normalize",), ("mean", True), id="mean"),
        pytest.param({"pooling_mode": "cls"}, (), ("cls", False), id="newer files"),
        pytest.param({"pooling_mode_max_tokens": True}, (), "pooling_mode_max_tokens", id="max"),
        pytest.param({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (), "cls and mean", id="two"),
        pytest.param({"pooling_mode_mean_tokens": True, "include_prompt": False}, (), "include_prompt", id="prompt"),
        pytest.param({"pooling_mode_mean_tokens": True}, ("Dense",), "module Dense", id="dense"),
    ],
)
def test_encoders_pool_in_a_known_way_or_are_rejected(
    corpus: Path, tmp_path: Path, pooling: dict[str, Any], others: tuple[str, ...], found: Any
) -> None:
    shutil.copytree(corpus / "encoder", tmp_path / "encoder")
    write_modules(tmp_path / "encoder", pooling, *others)
    if isinstance(found, str):
        with pytest.raises(ArgumentError, match=found):
            EncoderModel.find(str(tmp_path / "encoder"))
    else:
        model = EncoderModel.find(str(tmp_path / "encoder"))
        assert (model.pooling, model.normalize) == found


def test_hits_are_those_of_brute_force_and_of_faiss(whole: Path, corpus: Path) -> None:
    import faiss

    embedded = Embeddings(whole / "EMB")
    vectors = np.concatenate([np.load(part.path / "embeddings.npy") for part in embedded.parts])
    keys = np.concatenate([part.first_key + np.arange(part.num_rows) for part in embedded.parts])
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.astype(np.float32))
    for domain in ("arxiv", "book", "cc", "github", "wiki"):
        queries = np.load(whole / f"HITS/{domain}.queries/embeddings.npy")
        hits, scores = (np.load(whole / f"HITS/{domain}/{name}.npy") for name in ("keys", "scores"))
        exact = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
        order = np.stack([np.lexsort((keys, -row))[:7] for row in exact])
        assert (hits == keys[order]).all()
        np.testing.assert_allclose(scores, np.take_along_axis(exact, order, 1), rtol=1e-6)
        _, of_faiss = index.search(queries, 7)  # in float32: it may take one passage for another of almost its score
        rounding = 1e-5 * np.linalg.norm(queries, axis=1) * np.linalg.norm(vectors.astype(np.float32), axis=1).max()
        assert (np.take_along_axis(exact, of_faiss, 1).min(axis=1) >= scores[:, -1] - rounding).all()
        assert all(len({*row}) == 7 for row in of_faiss.tolist())
        rows = rows_of(whole / "OUT/test" / domain)
        texts = decode(whole, [row["token_ids"][:20] for row in rows])
        np.testing.assert_allclose(queries, mean_of_hidden_states(whole / "encoder", texts), rtol=1e-3, atol=1e-4)


def decode(folder: Path, ids: list[np.ndarray]) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenized/tokenizer")
    return [tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in ids]


def test_rows_stand_beside_the_queries_and_go_through_what_the_trainer_does(whole: Path, streaming: Any) -> None:
    records = corpus_records(whole)
    for domain in ("arxiv", "wiki"):
        folder = whole / "RET/test" / domain
        keys = np.load(folder.with_name(f"{domain}.keys.npy"))
        ids = [names_of(Embeddings(whole / "EMB"), row) for row in keys]
        retrieved = streaming.StreamingDataset(streams=[streaming.Stream(local=str(folder))], batch_size=1)
        windows = mds.Rows(whole / "OUT/test" / domain)
        assert len(retrieved) == len(windows) == len(ids)
        for number in range(len(windows)):
            row = retrieved[number]
            assert row["retrieved_token_ids"].dtype == np.int16 and row["retrieval_scores"].dtype == np.float32
            assert row["retrieved_token_ids"].shape == (7, CHUNK)
            for passage, neighbor, name in zip(
                row["retrieved_token_ids"], row["retrieved_neighbor_token_ids"], ids[number], strict=True
            ):
                assert passage.tolist() == records[name]["contents_token_ids"]
                assert neighbor == records[name]["neighbor_token_ids"]
            assert (np.diff(row["retrieval_scores"]) <= 0).all()
            # Slice, pad, concatenate: passages with their neighbours as contexts of one size.
            contexts = []
            for pair in zip(row["retrieved_token_ids"][:4], row["retrieved_neighbor_token_ids"][:4], strict=True):
                joined = np.concatenate(pair)[: 2 * CHUNK]
                contexts.append(np.pad(joined, (0, 2 * CHUNK - len(joined))))
            assert torch.tensor(np.stack(contexts), dtype=torch.long).shape == (4, 2 * CHUNK)


def test_shards_merged_are_what_one_run_makes(run: Run, corpus: Path, whole: Path, tmp_path: Path) -> None:
    lay_out(tmp_path, corpus)
    run(*EMBED, "--num_shards", 3, "--shard_id", 2, "--num_workers", 2, cwd=tmp_path)
    for shard in (0, 1):
        run(*EMBED, "--num_shards", 3, "--shard_id", shard, cwd=tmp_path)
    run(*SEARCH, "--num_shards", 2, "--shard_id", 1, cwd=tmp_path, environment={"SLURM_CPUS_PER_TASK": "2"})
    run(*SEARCH, "--num_shards", 2, "--shard_id", 0, cwd=tmp_path)
    early = run(*WRITE, "--num_shards", 2, "--shard_id", 0, cwd=tmp_path, status=2)
    assert "holds no hits: run search, and its --merge" in early.stderr
    run(*SEARCH, "--num_shards", 2, "--merge", cwd=tmp_path)
    flags = (*WRITE, "--rows_per_part", 4, "--num_shards", 2)
    run(*flags, "--shard_id", 1, cwd=tmp_path)
    assert "run shard ids 0 of" in run(*flags, "--merge", cwd=tmp_path, status=1).stderr
    run(*flags, "--shard_id", 0, cwd=tmp_path)
    run(*flags, "--merge", cwd=tmp_path)
    for name in ("EMB", "HITS", "RET"):
        assert reference.tree_bytes(tmp_path / name) == reference.tree_bytes(whole / name), name
    for command in (EMBED, SEARCH, (*WRITE, "--rows_per_part", 4)):
        assert "skipped" in run(*command, cwd=tmp_path).stdout
    done = run(*SEARCH, "--delete_parts", cwd=tmp_path)
    assert "skipped" in done.stdout and sorted(os.listdir(tmp_path / "HITS"))[:2] == ["arxiv", "book"]
    assert not list(tmp_path.glob("HITS/*.parts")) and not list(tmp_path.glob("HITS/*.queries"))


def test_passages_of_queries_that_grew_keep_the_parts_of_the_same_rows(
    run: Run, world: World, whole: Path, tmp_path: Path
) -> None:
    lay_out(tmp_path, whole, "EMB")
    shutil.copytree(whole / "RET", tmp_path / "RET")
    sample = ("sample_mds_concat.py", "GROWN", 96, 32, 90, 0, 0, 0, "--retrieval_shards", 0, *SPLITS)
    run(*sample, *world.source_flags, cwd=tmp_path)
    before, after = (len(mds.Rows(folder / "test/arxiv")) for folder in (tmp_path / "OUT", tmp_path / "GROWN"))
    assert after > before and before % 4, "some part has fewer rows"
    queries = ("--queries", "GROWN/test", "--domain", "arxiv")
    run(*SEARCH, *queries, "--output", "GROWN_HITS", cwd=tmp_path)
    write = (*WRITE, *queries, "--hits", "GROWN_HITS", "--rows_per_part", 4)
    assert "input: was" in run(*write, cwd=tmp_path, status=2).stderr
    done = run(*write, "--overwrite", cwd=tmp_path).stdout
    assert f"skipped {before // 4} of {-(-after // 4)} parts" in done and f"{after} rows" in done
    run(*write, "--output", "FRESH", cwd=tmp_path)
    for name in (
        "arxiv.keys.npy",
        "arxiv/index.json",
        *(f"arxiv/shard.{part:05d}.mds" for part in range(-(-after // 4))),
    ):
        assert (tmp_path / "RET/test" / name).read_bytes() == (tmp_path / "FRESH" / name).read_bytes()


@pytest.mark.parametrize("overfetch", [1, 10])
def test_passages_that_overlap_their_row_are_dropped_and_counted(
    run: Run, whole: Path, tmp_path: Path, overfetch: int
) -> None:
    """Against brute force over the passages that a search without it finds."""
    lay_out(tmp_path, whole, "EMB")
    span = 3  # short: the texts of the corpus are random words
    run(*SEARCH, "--domain", "arxiv", "--topk", 7 * overfetch, "--output", "WIDE", cwd=tmp_path)
    flags = ("--domain", "arxiv", "--exclude_overlap", span, "--overfetch", overfetch)
    done = run(*SEARCH, *flags, cwd=tmp_path, status=None)
    records, embedded = corpus_records(whole), Embeddings(whole / "EMB")
    windows = rows_of(whole / "OUT/test/arxiv")
    expected, num_dropped, num_short = [], 0, 0
    for window, row_keys in zip(windows, np.load(tmp_path / "WIDE/arxiv/keys.npy"), strict=True):
        ids = [*window["prev_token_ids"].tolist(), *window["token_ids"].tolist()]
        spans = {tuple(ids[start : start + span]) for start in range(len(ids) - span + 1)}
        kept = []
        for key, name in zip(row_keys.tolist(), names_of(embedded, row_keys), strict=True):
            tokens = records[name]["contents_token_ids"]
            if spans.isdisjoint(tuple(tokens[start : start + span]) for start in range(CHUNK - span + 1)):
                kept.append(key)
        num_dropped += len(row_keys) - len(kept)
        num_short += len(kept) < 7
        expected.append([*kept[:7], *[NO_KEY] * (7 - len(kept))])
    assert num_dropped > 0
    assert (np.load(tmp_path / "HITS/arxiv/keys.npy") == np.array(expected)).all()
    assert f"{num_dropped:,} passages dropped" in done.stdout
    assert done.returncode == (3 if num_short else 0)
    if overfetch == 1:
        assert num_short, "some row is short"
        again = run(*SEARCH, *flags, cwd=tmp_path, status=3)
        assert "rows with fewer than 7 passages" in again.stdout
        run(*SEARCH, *flags, "--allow_shortage", cwd=tmp_path)
        only = (*WRITE, "--domain", "arxiv")
        assert "has fewer than 7 passages: lower --topk" in run(*only, cwd=tmp_path, status=2).stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((*SEARCH, "--topk", 100_000), "more than the 1"),
        ((*SEARCH, "--model_dir", "other_encoder"), "is not the one that embedded the passages"),
        ((*SEARCH, "--model_dir", "nothing/here"), "no encoder 'nothing/here'"),
        ((*SEARCH, "--embeddings", "OUT"), "holds no embeddings"),
        ((*SEARCH, "--queries", "OUT"), "holds no domain folders"),
        ((*SEARCH, "--domain", "c4-rp"), "holds no MDS set"),
        ((*WRITE, "--topk", 8), "more than the 7"),
        ((*WRITE, "--hits", "OUT"), "holds no hits"),
        ((*EMBED, "--corpus", "OUT"), "holds no retrieval corpus"),
        ((*SEARCH, "--domain", "../test/arxiv"), "is not a name of a domain folder"),
        ((*SEARCH, "--exclude_overlap", 5, "--overfetch", "nan"), "is not a number from 1 on"),
        ((*SEARCH, "--exclude_overlap", CHUNK + 1), "passages have only 32 tokens"),
        ((*EMBED, "--normalize"), "normalize: was false, now true"),
        ((*EMBED, "--dtype", "bfloat16"), "dtype: was"),
        ((*EMBED, "--model_dir", "other_encoder"), "model: was"),
        ((*EMBED, "--part_bytes", 40_000), "part_bytes: was 30000, now 40000"),
    ],
)
def test_what_does_not_belong_together_is_an_error(
    run: Run, corpus: Path, whole: Path, tmp_path: Path, command: tuple[Any, ...], message: str
) -> None:
    lay_out(tmp_path, whole, "EMB", "HITS")
    assert message in run(*command, cwd=tmp_path, status=2).stderr


def test_parts_of_two_versions_of_a_file_are_rejected_and_empty_ones_do_no_harm(
    run: Run, corpus: Path, whole: Path, tmp_path: Path
) -> None:
    lay_out(tmp_path, corpus)
    one = tmp_path / "one/0"
    one.mkdir(parents=True)
    for name in ("arxiv.jsonl", "arxiv.meta.json"):
        shutil.copy(corpus / "OUT/retrieval/0" / name, one)
    size = (one / "arxiv.jsonl").stat().st_size
    embed = (*EMBED, "--corpus", "one", "--num_shards", 2)
    for shard in (1, 0):
        run(*embed, "--part_bytes", size // (shard + 2) + 1, "--shard_id", shard, cwd=tmp_path)
    assert "parts of two versions of a file: part_bytes" in run(*SEARCH, cwd=tmp_path, status=1).stderr
    # The last part has the end of a line only.
    for name, part_bytes in (("A", size - 10), ("B", size)):
        flags = ("--embeddings", f"EMB{name}")
        run(*EMBED, "--corpus", "one", "--output", f"EMB{name}", "--part_bytes", part_bytes, cwd=tmp_path)
        run(*SEARCH, *flags, "--domain", "arxiv", "--output", f"HITS{name}", cwd=tmp_path)
        run(*WRITE, *flags, "--domain", "arxiv", "--hits", f"HITS{name}", "--output", f"RET{name}", cwd=tmp_path)
    assert (tmp_path / "RETA/arxiv.keys.npy").read_bytes() == (tmp_path / "RETB/arxiv.keys.npy").read_bytes()


def test_a_set_that_lost_its_index_is_not_left_out_and_temporaries_are(
    run: Run, corpus: Path, whole: Path, tmp_path: Path
) -> None:
    lay_out(tmp_path, whole, "EMB")
    shutil.copytree(corpus / "OUT/test", tmp_path / "queries")
    shutil.copytree(corpus / "OUT/test/arxiv", tmp_path / "queries/.tmp-arxiv-elsewhere-17")
    flags = ("--queries", "queries")
    run(*SEARCH, *flags, cwd=tmp_path)
    assert not list(tmp_path.glob("HITS/.tmp*"))
    (tmp_path / "queries/book/index.json").unlink()
    assert "queries/book has shards and no index.json" in run(*SEARCH, *flags, cwd=tmp_path, status=1).stderr


def test_passages_of_other_rows_are_rejected(run: Run, world: World, whole: Path, tmp_path: Path) -> None:
    lay_out(tmp_path, whole)
    shutil.copytree(whole / "RET/test", tmp_path / "RET/test")
    for path in (tmp_path / "RET/test").glob("wiki*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "RET/test/github").rename(tmp_path / "RET/test/wiki")
    flags = ("--num_decoder_tokens", 32, "--retrieval_input_dir", "RET/test", "--retrieval_k", 3, "--topk", 5)
    model = ("--model_dir", world.folder / "teacher", "--domain", "wiki", "--input_dir", "OUT/test")
    same_number = len(rows_of(whole / "OUT/test/wiki")) == len(rows_of(whole / "OUT/test/github"))
    assert same_number, "else this shows nothing"
    assert "found for other rows" in run("calculate_logits.py", *model, *flags, cwd=tmp_path, status=2).stderr
    show = ("sanity_check.py", "show", "RET/test/wiki", 0, "--input_dir", "OUT/test")
    assert "found for other rows" in run(*show, cwd=tmp_path, status=2).stderr


def test_damage_in_the_corpus_and_missing_parts_are_named(run: Run, corpus: Path, whole: Path, tmp_path: Path) -> None:
    lay_out(tmp_path, corpus)
    (tmp_path / "OUT").unlink()
    shutil.copytree(corpus / "OUT", tmp_path / "OUT")
    path = tmp_path / "OUT/retrieval/2/cc.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    provenance.meta_path(path).unlink()
    for damage, message in (
        ({"id": "cc_2_x"}, "is not a passage"),
        ({"id": "cc_1_3"}, "its id is cc_1_3, not cc_2_…"),
        ({"id": "cc_2_99"}, "not numbered one after the other"),
        ({"contents": None}, "its contents are not text"),
        ({"contents_token_ids": [1, 2]}, "tokens"),
        ({"contents_token_ids": [1 << 40] * CHUNK}, "it has ids from"),
    ):
        changed = json.dumps({**json.loads(lines[3]), **damage}) + "\n"
        path.write_text("".join([*lines[:3], changed, *lines[4:]]), encoding="utf-8")
        error = run(*EMBED, "--output", "NEW", "--part_bytes", 10**6, cwd=tmp_path, status=1).stderr
        assert message in error and "2/cc.jsonl" in error, error
    shutil.copytree(whole / "EMB", tmp_path / "EMB")
    shutil.rmtree(tmp_path / "EMB/0/cc/part-00001")
    assert "parts are missing in EMB" in run(*SEARCH, cwd=tmp_path, status=2).stderr


def test_the_teacher_reads_the_rows_and_show_prints_them(run: Run, world: World, whole: Path, tmp_path: Path) -> None:
    lay_out(tmp_path, whole)
    shutil.copytree(whole / "RET", tmp_path / "RET")
    flags = ("--num_decoder_tokens", 32, "--retrieval_input_dir", "RET/test", "--retrieval_k", 3, "--topk", 5)
    model = ("--model_dir", world.folder / "teacher")
    run("calculate_logits.py", "--input_dir", "OUT/test", *model, "--domain", "book", *flags, cwd=tmp_path)
    assert len(rows_of(tmp_path / "RET/test-ret_k3-dec32-teacher/book")) == len(rows_of(whole / "OUT/test/book"))
    show = ("sanity_check.py", "show", "RET/test/book", 1, "--input_dir", "OUT/test", "--passages", 2)
    done = run(*show, cwd=tmp_path)
    row, window = rows_of(whole / "RET/test/book")[1], rows_of(whole / "OUT/test/book")[1]
    query, *passages = decode(whole, [window["token_ids"][:20], *row["retrieved_token_ids"][:2]])
    assert "--- query" in done.stdout and query.strip() in done.stdout
    for number, text in enumerate(passages):
        assert f"--- passage {number} " in done.stdout and f"score {row['retrieval_scores'][number]:.4f}" in done.stdout
        assert text.strip() in done.stdout
    assert "--- passage 2 " not in done.stdout


@pytest.mark.parametrize("in_half", [False, True])
@given(st.integers(0, 10**6), st.sampled_from([1e-4, 1.0, 30.0, 1000.0]))
@settings(max_examples=25, deadline=None)
def test_top_k_is_exact_for_any_blocks_with_ties_to_the_smallest_key(
    device: str, in_half: bool, seed: int, scale: float
) -> None:
    draw = np.random.default_rng(seed)
    num_queries, num_passages, dimension = draw.integers(1, (60, 800, 40))
    topk = int(draw.integers(1, num_passages + 3))
    passages = draw.normal(0, scale, (num_passages, dimension)).astype(np.float16)
    passages[draw.integers(0, num_passages, num_passages // 2)] = passages[0]  # many are one and the same
    queries = draw.normal(0, scale, (num_queries, dimension)).astype(np.float32)
    exact = (queries.astype(np.float64) @ passages.astype(np.float64).T).astype(np.float32)
    expected = np.stack([np.lexsort((np.arange(num_passages), -row))[:topk] for row in exact])
    best, start = TopK(queries, topk, device, in_half), 0
    with mock.patch("cepe_data.retrieval.topk.GROUP", int(draw.choice([7, 1024]))):
        while start < num_passages:
            stop = min(num_passages, start + int(draw.integers(1, 300)))
            best.add(passages[start:stop], 10**9 + start)
            start = stop
        keys, scores = best.best()
    best.close()
    width = expected.shape[1]
    assert (keys[:, :width] == 10**9 + expected).all() and (keys[:, width:] == NO_KEY).all()
    assert (scores[:, :width] == np.take_along_axis(exact, expected, 1)).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 10**6))
def test_shared_spans_are_those_of_brute_force(row: list[int], span: int, seed: int) -> None:
    passages = np.random.default_rng(seed).integers(0, 4, (20, 12))
    text = [tuple(row[start : start + span]) for start in range(len(row) - span + 1)]
    expected = [
        any(tuple(passage[start : start + span]) in text for start in range(len(passage) - span + 1))
        for passage in passages.tolist()
    ]
    assert shares_span(np.array(row), passages, span).tolist() == expected


def test_a_real_encoder_finds_the_other_half_of_a_text_and_a_random_one_does_not(tmp_path: Path) -> None:
    """Halves of articles of the language reference, 40 words each, among the other halves of all of them."""
    from transformers import AutoConfig, AutoModel

    from demo.corpus import read_topics

    articles = [text.split() for _, text in read_topics()]
    halves = [(" ".join(words[30:70]), " ".join(words[70:110])) for words in articles if len(words) > 110]
    random = tmp_path / "random"
    shutil.copytree(find_encoder(), random)
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(random)).save_pretrained(random)
    found = {}
    for name, folder in (("real", find_encoder()), ("random", random)):
        model = EncoderModel.find(str(folder))
        word_pieces = WordPieces(workers.run_in_child(word_piece_json, model))
        encoder = Encoder(model, "float32", "cpu", True)
        queries, passages = (encoder.embed(*word_pieces.encode(texts)) for texts in zip(*halves, strict=True))
        best = TopK(queries, 3, "cpu")
        best.add(passages.astype(np.float16), 0)
        keys, _ = best.best()
        best.close()
        found[name] = np.mean([number in row for number, row in enumerate(keys.tolist())])
    print(found)
    assert found["real"] > 0.7 and found["random"] < 0.5 * found["real"], found


def test_encoders_without_weights_are_rejected(corpus: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(corpus / "encoder", tmp_path / "broken")

    path = tmp_path / "broken/model.safetensors"
    weights = load_file(path)
    del weights["embeddings.word_embeddings.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ArgumentError, match="lacks 1 weights, such as embeddings"):
        Encoder(EncoderModel.find(str(tmp_path / "broken")), "float32", "cpu", False)


def test_help_and_wrong_arguments_answer_without_torch() -> None:
    for name in ("embed_passages", "search", "write_mds"):
        code = f"import sys, retrieval.{name}; assert 'torch' not in sys.modules and 'streaming' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)
