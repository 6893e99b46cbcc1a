"""The plan of embedding: the parts of a retrieval corpus, byte ranges of its files, and the output of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cepe_data import cli, shards
from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.retrieval import embeddings
from cepe_data.retrieval.embeddings import CorpusFile
from cepe_data.retrieval.encoder import EncoderModel, EncoderOptions
from cepe_data.storage import mds, provenance
from cepe_data.storage.outputs import Output, WriteOptions
from cepe_data.storage.steps import USUAL_CHUNK

CHUNK_BYTES = 4_000_000


@dataclass(frozen=True)
class EmbeddingOptions(EncoderOptions, WriteOptions):
    """The arguments of retrieval/embed_passages.py."""

    corpus: Path
    output: Path
    normalize: bool
    passage_prefix: str
    part_bytes: int
    num_workers: int
    dry_run: bool
    shard_id: int | None
    num_shards: int | None


def list_corpus(corpus: Path, part_bytes: int) -> list[CorpusFile]:
    """The jsonl files of a corpus, sorted by domain and shard.

    Raises:
        ArgumentError: if there is none, or some are of another number of shards than others.
        DamagedFileError: if a file has another size than it was written with, or a manifest names passages of a file
            that is gone.
    """
    for manifest in sorted(corpus.glob("*/manifest.json")):
        for domain, metadata in provenance.read_signed(manifest, "make the shard again")["sets"].items():
            path = manifest.with_name(f"{domain}.jsonl")
            if metadata["written"] and not path.exists():
                raise DamagedFileError(f"{path} is gone, which has {metadata['written']:,} passages: make it again")
    files = []
    counts: set[int] = set()  # of shards, as meta files say
    for path in corpus.glob("*/*.jsonl"):
        if path.parent.name.isdecimal():
            meta = provenance.read_meta(path)
            counts |= {int(meta.made_with["retrieval_shards"])} if "retrieval_shards" in meta.made_with else set()
            if meta and (lost := provenance.lost_files(path, meta.files)):
                raise DamagedFileError(f"{lost[0]} has not the size it was written with: make it again")
            num_parts = -(-path.stat().st_size // part_bytes)
            files.append(CorpusFile(path.stem, int(path.parent.name), num_parts))
    if not files:
        raise ArgumentError(f"{corpus} holds no retrieval corpus: no {{shard}}/{{domain}}.jsonl is in it")
    if len(counts) > 1:
        raise ArgumentError(f"{corpus} has files of {sorted(counts)} retrieval shards: remove those of an earlier run")
    num_shards = max(counts, default=1)
    if absent := set(range(num_shards)).difference(file.shard for file in files):
        cli.warn(f"{corpus} lacks {len(absent)} of its {num_shards} shards: {shards.array_ids(absent)}")
    return sorted(files, key=lambda file: (file.domain, file.shard))


def source_path(corpus: Path, file: CorpusFile) -> Path:
    """The path of a jsonl file of a corpus."""
    return corpus / str(file.shard) / f"{file.domain}.jsonl"


def part_range(source: Path, part: int, part_bytes: int) -> tuple[int, int]:
    """The bytes [start, stop) of a jsonl file in which the lines of a part begin."""
    return part * part_bytes, min((part + 1) * part_bytes, source.stat().st_size)


def provenance_of_source(source: Path, meta: provenance.Meta) -> provenance.Provenance:
    """The provenance of a part as far as its jsonl file, with the meta file `meta`, gives it."""
    return {
        "source": meta.files[source.name] if meta else {"bytes": source.stat().st_size},
        "tokenizer": meta.made_with.get("tokenizer"),
        "chunk_size": meta.made_with.get("chunk_size"),
    }


def provenance_of_request(args: EmbeddingOptions, part: int) -> provenance.Provenance:
    """The provenance of a part as far as the arguments give it, without the encoder and its dtype."""
    prefix = {"passage_prefix": args.passage_prefix} if args.passage_prefix else {}
    return {"part": part, "part_bytes": args.part_bytes, **prefix, **({"normalize": True} if args.normalize else {})}


@dataclass(frozen=True)
class PlannedPart:
    """The lines of a corpus file that begin at bytes [start, stop), and their output."""

    source: Path
    file: CorpusFile
    start: int
    stop: int
    output: Output
    vocab_size: int | None
    token_dtype: np.dtype
    num_passages: float  # in proportion to its bytes
    num_bytes: float  # of its arrays

    @classmethod
    def of(cls, args: EmbeddingOptions, model: EncoderModel, file: CorpusFile, part: int) -> PlannedPart:
        """Part `part` of a file."""
        source = source_path(args.corpus, file)
        meta = provenance.read_meta(source)
        vocab_size = meta.get("vocab_size")
        made_with = {
            **provenance_of_source(source, meta),
            **provenance_of_request(args, part),
            "model": model.fingerprint,
            "pooling": model.pooling,
            "normalize": args.normalize or model.normalize,
            "dtype": args.dtype,
            "dimension": model.dimension,
            "max_word_pieces": model.max_word_pieces,
        }
        output = args.output_at(embeddings.part_path(args.output, file, part), made_with)
        start, stop = part_range(source, part, args.part_bytes)
        chunk_size = made_with["chunk_size"] or USUAL_CHUNK
        rows = meta["rows"] * (stop - start) / source.stat().st_size if meta else (stop - start) / 17 / chunk_size
        token_dtype = mds.token_dtype(vocab_size) if vocab_size else np.dtype(np.int32)
        num_bytes = rows * (2 * model.dimension + 2 * chunk_size * token_dtype.itemsize + 8)
        return cls(source, file, start, stop, output, vocab_size, token_dtype, rows, num_bytes)

    def chunks(self) -> Iterator[Chunk]:
        """Its lines in chunks."""
        for start in range(self.start, self.stop, CHUNK_BYTES):
            yield Chunk(self, start, min(start + CHUNK_BYTES, self.stop))


@dataclass(frozen=True)
class Chunk:
    """The lines of a part that begin at bytes [start, stop) of its source: what a worker reads at a time."""

    part: PlannedPart
    start: int
    stop: int
