"""The plan of a search: the rows of which sets are the queries, in which embeddings, and the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import xxhash

from cepe_data.errors import ArgumentError
from cepe_data.retrieval.embeddings import Embeddings
from cepe_data.retrieval.encoder import MEAN, EncoderModel
from cepe_data.retrieval.row_texts import QueryOptions
from cepe_data.storage import mds, provenance
from cepe_data.storage.inputs import Input, SetInput
from cepe_data.storage.npy import NpyRows
from cepe_data.storage.outputs import Output
from cepe_data.storage.parts import MergeOptions, PartedSetOptions, Parts, part_path, parts_dir

HIT_BYTES = 12  # a key and a score


@dataclass(frozen=True)
class SearchOptions(QueryOptions, MergeOptions):
    """The arguments of retrieval/search.py."""

    queries: Path
    domain: str
    embeddings: Path
    output: Path
    topk: int
    exclude_overlap: int | None
    overfetch: float
    allow_shortage: bool


@dataclass(frozen=True)
class RetrievedSetOptions(PartedSetOptions):
    """The arguments of retrieval/write_mds.py."""

    hits: Path
    embeddings: Path
    queries: Path
    domain: str
    output: Path
    topk: int | None


@dataclass(frozen=True)
class Search:
    """The search for the rows of one domain: `fetch` passages for each, some of which may then be dropped."""

    domain: str
    queries: Path
    num_rows: int
    embedded_queries: Output
    hits: Output
    fetch: int
    parts: Parts  # the hits in each shard of the corpus


def find_encoder(args: SearchOptions, corpus: Embeddings) -> EncoderModel:
    """The encoder of the queries, not loaded yet. Checks the arguments against the corpus.

    Raises:
        ArgumentError: if the encoder is not that of the corpus, or an argument does not fit the corpus.
    """
    if args.topk > corpus.num_passages:
        raise ArgumentError(f"--topk {args.topk} is more than the {corpus.num_passages} passages in {args.embeddings}")
    chunk_size = corpus.kind["chunk_size"]
    if args.exclude_overlap and chunk_size and args.exclude_overlap > chunk_size:
        raise ArgumentError(f"--exclude_overlap {args.exclude_overlap}: passages have only {chunk_size} tokens")
    model = EncoderModel.find(args.model_dir)
    if model.fingerprint != corpus.kind["model"]:
        raise ArgumentError(
            f"the encoder {args.model_dir} ({model.fingerprint}) is not the one that embedded the passages in "
            f"{args.embeddings} ({corpus.kind['model']})"
        )
    if model.pooling != corpus.kind["pooling"] or (model.normalize and not corpus.kind["normalize"]):
        raise ArgumentError(
            f"the passages in {args.embeddings} were not pooled or scaled as the files of {args.model_dir} say: embed "
            f"them again, with --overwrite"
        )
    return model


def plan_search(args: SearchOptions, corpus: Embeddings, domain: str) -> Search:
    """The search for one domain, with the encoder of the corpus; reads meta files only.

    Raises:
        ArgumentError: if the queries are missing, or their tokenizer is not that of the corpus.
    """
    queries = args.queries / domain
    num_rows = mds.num_rows(queries)
    tokenizer = provenance.read_meta(queries).get("tokenizer")
    if None not in {tokenizer, corpus.kind["tokenizer"]} and tokenizer != corpus.kind["tokenizer"]:
        raise ArgumentError(
            f"the rows of {queries} are tokens of {tokenizer}, the passages in {args.embeddings} of "
            f"{corpus.kind['tokenizer']}"
        )
    query_made_with = {
        "domain": domain,
        "input": mds.fingerprint(queries),
        "query_tokens": args.query_tokens,
        "model": corpus.kind["model"],
        "normalize": corpus.kind["normalize"],
        "dtype": str(corpus.kind["dtype"] or "float32") if args.dtype == "auto" else args.dtype,
        **({"query_prefix": args.query_prefix} if args.query_prefix else {}),
    }
    # The fingerprint of the encoder does not cover it. That of the embeddings does, on which hits depend.
    pooling = {"pooling": corpus.kind["pooling"]} if corpus.kind["pooling"] != MEAN else {}
    overfetch = args.overfetch if args.exclude_overlap else 1
    fetch = min(round(args.topk * overfetch), corpus.num_passages)
    found_with = {**query_made_with, "topk": args.topk, "overfetch": overfetch}
    made_with = {
        **found_with,
        "embeddings": corpus.fingerprint(corpus.parts),
        "exclude_overlap": args.exclude_overlap,
    }
    hits, directory = args.output / domain, parts_dir(args.output / domain)
    of_shards = [
        args.output_at(
            part_path(directory, shard),
            {**found_with, "corpus_shard": shard, "embeddings": corpus.fingerprint(corpus.parts_of(shard))},
        )
        for shard in corpus.shards
    ]
    return Search(
        domain,
        queries,
        num_rows,
        args.output_at(args.output / f"{domain}.queries", {**query_made_with, **pooling}),
        args.output_at(hits, made_with),
        fetch,
        Parts.of(directory, of_shards),
    )


@dataclass(frozen=True)
class HitsInput:
    """The hits of a domain, of every row its keys and scores, as an input."""

    folder: Path

    @property
    def fingerprint(self) -> str:
        return provenance.fingerprint(provenance.read_meta(self.folder).files)

    def rows_fingerprint(self, start: int, stop: int) -> str:
        hashes = []
        for name in ("keys", "scores"):
            with NpyRows(self.folder / f"{name}.npy", "if", 2) as rows:
                content = rows.read(start, min(stop, rows.size)) if start < rows.size else rows.read(0, 0)
                hashes.append([content.dtype.str, *content.shape, xxhash.xxh3_64_hexdigest(content.tobytes())])
        return provenance.fingerprint(hashes)

    def files_fingerprint(self, start: int, stop: int) -> None:
        """None: reading a kilobyte a row is as quick as looking up metadata."""


def find_inputs(args: RetrievedSetOptions, domain: str) -> dict[str, Input]:
    """The inputs of the retrieved passages of a domain, by their names in the provenance."""
    return {"input": SetInput(args.queries / domain), "hits": HitsInput(args.hits / domain)}
