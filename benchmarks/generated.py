"""Texts and token files for benchmarks.

Texts are those of the real corpus in ../shared where it is there, else of the demo's. Token files repeat its tokens,
with lognormal document lengths and random hashes: a repeated document counts as a document of its own.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import PROJECT
from cepe_data import workers
from cepe_data.corpus import listing, readers
from cepe_data.corpus.domains import RecordKeys
from cepe_data.samples import reader
from cepe_data.storage import outputs, provenance
from cepe_data.storage.npy import write_header
from cepe_data.tokens import backends, encoding, token_file, tokenizers

SHARED = PROJECT.parent / "shared"
TEXT_KEY = RecordKeys("text")
# Billions of LLaMA tokens, as published with RedPajama-Data-1T.
BILLIONS = {"arxiv": 28, "book": 26, "c4-rp": 175, "cc": 878, "github": 59, "stackexchange": 20, "wiki": 24}


def find_corpus(folder: Path) -> tuple[Path, str]:
    """A corpus and its SentencePiece model: the real ones where they are there, else the demo's, made in `folder`."""
    if SHARED.is_dir():
        return SHARED / "corpus", str(SHARED / "tokenizer/tokenizer.model")
    from demo import corpus as demo_corpus
    from demo import models
    from demo.run import training_texts

    data, model = folder / "data", folder / "tokenizer.model"
    if not model.exists():
        demo_corpus.build(data)
        models.train_tokenizer(training_texts(data), model)
    return data, str(model)


def corpus_texts(data: Path) -> Iterator[list[str]]:
    """The texts of a corpus, by block of lines."""
    for path in sorted(data.rglob("*.jsonl*")):
        for _, block, _ in readers.line_blocks(path):
            yield parse_texts(block)


def parse_texts(lines: bytes) -> list[str]:
    """The texts of json lines."""
    return readers.parse_documents(1, lines, TEXT_KEY).texts


def save_tokenizer(name: str, folder: Path) -> None:
    """Convert and save a tokenizer, as the tokenizing step does. For a child process."""
    tokenizers.save(tokenizers.load(name), folder)


def saved_identity(folder: Path) -> tokenizers.TokenizerIdentity:
    """The identity of a saved tokenizer."""
    found = tokenizers.saved_identity(folder)
    assert found is not None
    return found


def prepare(folder: Path) -> np.ndarray:
    """int32 [tokens]: the corpus, tokenized; its tokenizer is saved in `folder`/tokenized."""
    data, model = find_corpus(folder)
    workers.run_in_child(save_tokenizer, model, folder / "tokenized/tokenizer")
    return workers.run_in_child(corpus_tokens, data, folder / "tokenized/tokenizer")


def corpus_tokens(data: Path, tokenizer: Path) -> np.ndarray:
    """int32 [tokens]: the corpus, tokenized."""
    encode = backends.make_encoder("gigatoken", tokenizers.read_saved(tokenizer))
    return np.concatenate([encode(texts)[0] for texts in corpus_texts(data)])


def lognormal(rng: np.random.Generator, mean: float, number: int) -> np.ndarray:
    """int64 [number]: lengths of documents with this mean and a heavy tail."""
    return np.maximum(2, rng.lognormal(math.log(mean) - 0.5, 1.0, number)).astype(np.int64)


def random_hashes(rng: np.random.Generator, number: int) -> np.ndarray:
    """uint64 [number]."""
    return rng.integers(0, 1 << 64, number, np.uint64)


@contextlib.contextmanager
def new_token_file(
    folder: Path, file: listing.ListedFile, domain_names: Sequence[str] = ()
) -> Iterator[token_file.TokenFileWriter]:
    """A writer of the token file of a listed file, which is published in the end."""
    path = folder / "tokenized" / file.token_file
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = token_file.TokenFileWriter(outputs.Output(path, made_with(folder, file)), domain_names)
    with contextlib.closing(writer):
        yield writer
        writer.publish({"skipped_lines": {}, "mended_lines": {}})


def made_with(folder: Path, file: listing.ListedFile) -> provenance.Provenance:
    """The provenance of a token file."""
    identity = saved_identity(folder / "tokenized/tokenizer")
    return encoding.Tokenization(folder, folder / "tokenized", TEXT_KEY, 0.0, identity).made_with(file)


def write_list(folder: Path, name: str, files: Sequence[listing.ListedFile]) -> None:
    """The list of files `{name}.txt`, and its .json."""
    (folder / f"{name}.txt").write_text("".join(f"{file.path}\n" for file in files))
    entries = [{"bytes": 1, "domain": file.domain, "path": file.path} for file in files]
    (folder / f"{name}.json").write_text(json.dumps(provenance.signed({"root": str(folder), "files": entries})))


def open_tokens(folder: Path, files: dict[str, list[listing.ListedFile]]) -> reader.Tokens:
    """The token files of domains."""
    identity = saved_identity(folder / "tokenized/tokenizer")
    return reader.Tokens(files, folder / "tokenized", identity.vocab_size, identity.fingerprint)


def open_domain(folder: Path, name: str) -> reader.Tokens:
    """The token files that are listed as `{name}.txt`, all of one domain of this name."""
    return open_tokens(folder, {name: list(listing.read_file_list(folder / f"{name}.txt").files)})


def write_tokens(folder: Path, name: str, text: np.ndarray, num_tokens: int, mean_length: int) -> None:
    """The token file of a domain of this name, listed as `{name}.txt`, with the tokens of `text`, int32 [tokens]."""
    rng = np.random.default_rng(1)
    identity = saved_identity(folder / "tokenized/tokenizer")
    file = listing.ListedFile(f"{name}/{name}.jsonl", name, 1)
    with new_token_file(folder, file) as writer:
        while writer.num_tokens < num_tokens:
            lengths = lognormal(rng, mean_length, 1000)
            ids = np.resize(np.roll(text, -int(rng.integers(len(text)))), int(lengths.sum()))
            ends = np.cumsum(lengths)
            ids[ends - lengths], ids[ends - 1] = identity.bos_id, identity.eos_id
            writer.append(ids, lengths, random_hashes(rng, len(lengths)))
    write_list(folder, name, [file])


def write_mixed(
    folder: Path, name: str, text: np.ndarray, num_tokens: int, mean_length: int
) -> tuple[reader.Tokens, reader.Tokens]:
    """The same documents in one token file whose documents say their domain, at random, and in a token file a domain;
    domains have the shares of RedPajama."""
    rng = np.random.default_rng(2)
    identity = saved_identity(folder / "tokenized/tokenizer")
    domains, billions = list(BILLIONS), np.array(list(BILLIONS.values()))  # sorted, as a token file numbers them
    mixed = listing.ListedFile(f"{name}/mixed.jsonl", None, 1)
    pure = [listing.ListedFile(f"{name}/{domain}.jsonl", domain, 1) for domain in domains]
    with contextlib.ExitStack() as stack:
        mixed_writer = stack.enter_context(new_token_file(folder, mixed, domains))
        pure_writers = [stack.enter_context(new_token_file(folder, file)) for file in pure]
        while mixed_writer.num_tokens < num_tokens:
            number = int(rng.choice(len(domains), p=billions / billions.sum()))
            lengths = lognormal(rng, mean_length, 1)
            start = int(rng.integers(len(text)))
            ids = np.resize(text[start : start + int(lengths[0])], int(lengths[0]))
            ids[0], ids[-1] = identity.bos_id, identity.eos_id
            hashes = random_hashes(rng, 1)
            mixed_writer.append(ids, lengths, hashes, np.array([number], np.uint8))
            pure_writers[number].append(ids, lengths, hashes)
    return (
        open_tokens(folder, {domain: [mixed] for domain in domains}),
        open_tokens(folder, {domain: [file] for domain, file in zip(domains, pure, strict=True)}),
    )


def write_headers(folder: Path, name: str, num_documents: int) -> None:
    """Ten token files of a domain with real headers and hashes, and holes instead of tokens."""
    rng, num_files = np.random.default_rng(2), 10
    files = [listing.ListedFile(f"{name}/{number}.jsonl", name, 1) for number in range(num_files)]
    (folder / "tokenized" / name).mkdir(parents=True)
    for listed in files:
        lengths = lognormal(rng, 600, num_documents // num_files)
        target = folder / "tokenized" / listed.token_file
        with target.open("wb") as file:
            write_header(file, token_file.TOKEN_DTYPE, 1 + len(lengths) + int(lengths.sum()))
            file.write(np.concatenate([[len(lengths)], lengths]).astype(token_file.TOKEN_DTYPE).data)
            file.truncate(file.tell() + 4 * int(lengths.sum()))
        hashes = token_file.hash_path(target)
        np.save(hashes, random_hashes(rng, len(lengths)))
        metadata = {one.name: {"bytes": one.stat().st_size, "xxh3_64": ""} for one in (target, hashes)}
        meta = provenance.signed({"made_with": made_with(folder, listed), "files": metadata})
        provenance.meta_path(target).write_text(json.dumps(meta))
    write_list(folder, name, files)


def write_repeated(
    folder: Path, name: str, documents: dict[str, tuple[np.ndarray, np.ndarray]], num_tokens: dict[str, int]
) -> None:
    """A token file for each domain, listed as `{name}.txt`, of about so many tokens: the same documents over and over,
    by domain their ids, int32 [tokens], and lengths, int64 [documents]."""
    rng = np.random.default_rng(3)
    files = [listing.ListedFile(f"{domain}/all.jsonl", domain, 1) for domain in documents]
    for file, (ids, lengths) in zip(files, documents.values(), strict=True):
        ends = np.cumsum(lengths)
        with new_token_file(folder, file) as writer:
            while (rest := num_tokens[str(file.domain)] - writer.num_tokens) > 0:
                number = 1 + int(np.searchsorted(ends[:-1], rest))
                writer.append(ids[: ends[number - 1]], lengths[:number], random_hashes(rng, number))
    write_list(folder, name, files)
