"""Token files for benchmarks: lognormal lengths of documents, tokens of the corpus over and over, hashes at random."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from benchmarks.common import find_corpus, save_tokenizer, saved_identity
from cepe_data import workers
from cepe_data.corpus import listing, readers
from cepe_data.corpus.domains import RecordKeys
from cepe_data.samples import reader
from cepe_data.storage import outputs, provenance
from cepe_data.tokens import backends, encoding, token_file, tokenizers

# Billions of LLaMA tokens, as published with RedPajama-Data-1T.
BILLIONS = {"arxiv": 28, "book": 26, "c4-rp": 175, "cc": 878, "github": 59, "stackexchange": 20, "wiki": 24}


def prepare(folder: Path) -> np.ndarray:
    """int32 [tokens]: the corpus, tokenized; its tokenizer is saved in `folder`/tokenized."""
    data, model = find_corpus(folder)
    workers.run_in_child(save_tokenizer, model, folder / "tokenized/tokenizer")
    return workers.run_in_child(corpus_tokens, data, folder / "tokenized/tokenizer")


def corpus_tokens(data: Path, tokenizer: Path) -> np.ndarray:
    """int32 [tokens]: the corpus, tokenized."""
    encode, ids = backends.make_encoder("gigatoken", tokenizers.read_saved(tokenizer)), []
    for path in sorted(data.rglob("*.jsonl*")):
        for _, block, _ in readers.line_blocks(path):
            texts = readers.parse_documents(1, block, RecordKeys("text")).texts
            ids.append(encode(texts)[0])
    return np.concatenate(ids)


def write_tokens(folder: Path, name: str, text: np.ndarray, num_tokens: int, mean_length: int) -> None:
    """The token file of a domain of this name, listed as `{name}.txt`: lognormal lengths, hashes at random."""
    draw = np.random.default_rng(1)
    listed = listing.ListedFile(f"{name}/{name}.jsonl", name, 1)
    (folder / "tokenized" / name).mkdir(parents=True)
    writer = token_file.TokenFileWriter(
        outputs.Output(folder / "tokenized" / listed.token_file, made_with(folder, listed))
    )
    identity = saved_identity(folder / "tokenized/tokenizer")
    while writer.num_tokens < num_tokens:
        lengths = lognormal(draw, mean_length, 1000)
        ids = np.resize(np.roll(text, -int(draw.integers(len(text)))), int(lengths.sum()))
        ends = np.cumsum(lengths)
        ids[ends - lengths], ids[ends - 1] = identity.bos_id, identity.eos_id
        writer.append(ids, lengths, draw.integers(0, 1 << 64, len(lengths), np.uint64))
    writer.publish({"skipped_lines": {}, "mended_lines": {}})
    writer.close()
    (folder / f"{name}.txt").write_text(f"{listed.path}\n")
    files = [{"bytes": 1, "domain": name, "path": listed.path}]
    (folder / f"{name}.json").write_text(json.dumps(provenance.signed({"root": str(folder), "files": files})))


def write_mixed(
    folder: Path, name: str, text: np.ndarray, num_tokens: int, mean_length: int
) -> tuple[reader.Tokens, reader.Tokens]:
    """The same documents in one token file whose documents say their domain, at random, and in a token file a domain;
    domains have the shares of RedPajama."""
    draw = np.random.default_rng(2)
    identity = saved_identity(folder / "tokenized/tokenizer")
    shares = np.array(list(BILLIONS.values()), float)
    domains = list(BILLIONS)  # sorted, as they are numbered in a token file
    mixed = listing.ListedFile(f"{name}/mixed.jsonl", None, 1)
    pure = {domain: listing.ListedFile(f"{name}/{domain}.jsonl", domain, 1) for domain in domains}
    (folder / "tokenized" / name).mkdir(parents=True)
    writers = {
        file.domain: token_file.TokenFileWriter(
            outputs.Output(folder / "tokenized" / file.token_file, made_with(folder, file)),
            domains if file.domain is None else (),
        )
        for file in (mixed, *pure.values())
    }
    whole = writers[None]
    while whole.num_tokens < num_tokens:
        number = int(draw.choice(len(domains), p=shares / shares.sum()))
        lengths = lognormal(draw, mean_length, 1)
        start = int(draw.integers(len(text)))
        ids = np.resize(text[start : start + int(lengths[0])], int(lengths[0]))
        ids[0], ids[-1] = identity.bos_id, identity.eos_id
        document = ids, lengths, draw.integers(0, 1 << 64, 1, np.uint64)
        whole.append(*document, np.array([number], np.uint8))
        writers[domains[number]].append(*document)
    for writer in writers.values():
        writer.publish({"skipped_lines": {}, "mended_lines": {}})
        writer.close()
    of_tokenizer = folder / "tokenized", identity.vocab_size, identity.fingerprint
    return (
        reader.Tokens({domain: [mixed] for domain in domains}, *of_tokenizer),
        reader.Tokens({domain: [pure[domain]] for domain in domains}, *of_tokenizer),
    )


def made_with(folder: Path, file: listing.ListedFile) -> provenance.Meta:
    """The record of a token file."""
    identity = saved_identity(folder / "tokenized/tokenizer")
    return encoding.Job(folder, folder / "tokenized", RecordKeys("text"), 0.0, identity).made_with(file)


def lognormal(draw: np.random.Generator, mean: float, number: int) -> np.ndarray:
    """int64 [number]: lengths of documents with this mean and a heavy tail."""
    return np.maximum(2, draw.lognormal(math.log(mean) - 0.5, 1.0, number)).astype(np.int64)


def open_domain(folder: Path, name: str) -> reader.Tokens:
    identity = saved_identity(folder / "tokenized/tokenizer")
    files = list(listing.read_file_list(folder / f"{name}.txt").files)
    return reader.Tokens({name: files}, folder / "tokenized", identity.vocab_size, identity.fingerprint)


def write_headers(folder: Path, name: str, num_documents: int) -> None:
    """Ten token files of a domain with real headers and hashes, and holes instead of tokens."""
    draw, num_files = np.random.default_rng(2), 10
    paths = [f"{name}/{number}.jsonl" for number in range(num_files)]
    (folder / "tokenized" / name).mkdir(parents=True)
    for path in paths:
        lengths = lognormal(draw, 600, num_documents // num_files)
        target = folder / "tokenized" / listing.ListedFile(path, name, 1).token_file
        with target.open("wb") as file:
            shape = (1 + len(lengths) + int(lengths.sum()),)
            np.lib.format.write_array_header_1_0(file, {"descr": "<i4", "fortran_order": False, "shape": shape})
            file.write(np.array([len(lengths)], np.int32).tobytes() + lengths.astype(np.int32).tobytes())
            file.truncate(file.tell() + 4 * int(lengths.sum()))
        hashes = token_file.hash_path(target)
        np.save(hashes, draw.integers(0, 1 << 64, len(lengths), np.uint64))
        metadata = {one.name: {"bytes": one.stat().st_size, "xxh3_64": ""} for one in (target, hashes)}
        meta = {"made_with": made_with(folder, listing.ListedFile(path, name, 1)), "files": metadata}
        provenance.meta_path(target).write_text(json.dumps(provenance.signed(meta)))
    (folder / f"{name}.txt").write_text("".join(f"{path}\n" for path in paths))
    files = [{"bytes": 1, "domain": name, "path": path} for path in paths]
    (folder / f"{name}.json").write_text(json.dumps(provenance.signed({"root": str(folder), "files": files})))


def write_repeated(
    folder: Path, name: str, documents: dict[str, tuple[np.ndarray, np.ndarray]], num_tokens: dict[str, int]
) -> None:
    """A token file for each domain, listed as `{name}.txt`, of about so many tokens: the same documents over and over,
    by domain their ids, int32 [tokens], and lengths, int64 [documents]. Hashes are random, so that each copy counts as
    a document of its own."""
    draw, files = np.random.default_rng(3), []
    for domain, (ids, lengths) in documents.items():
        file = listing.ListedFile(f"{domain}/all.jsonl", domain, 1)
        (folder / "tokenized" / domain).mkdir(parents=True)
        writer = token_file.TokenFileWriter(
            outputs.Output(folder / "tokenized" / file.token_file, made_with(folder, file))
        )
        ends = np.cumsum(lengths)
        while (rest := num_tokens[domain] - writer.num_tokens) > 0:
            number = 1 + int(np.searchsorted(ends[:-1], rest))
            hashes = draw.integers(0, 1 << 64, number, np.uint64)
            writer.append(ids[: ends[number - 1]], lengths[:number], hashes)
        writer.publish({"skipped_lines": {}, "mended_lines": {}})
        writer.close()
        files.append({"bytes": 1, "domain": domain, "path": file.path})
    (folder / f"{name}.txt").write_text("".join(f"{file['path']}\n" for file in files))
    (folder / f"{name}.json").write_text(json.dumps(provenance.signed({"root": str(folder), "files": files})))
