"""Scores of the chunks before a row's query: the plan of the sets, and the formula.

`OUTPUT/{domain}/` has the columns of its input, and one more:

    context_scores   ndarray:float32:CHUNKS   Σ qᵢ cᵢ of the query's vector and that of each chunk of prev_token_ids

A query is the text of the first `query_tokens` of `token_ids`, a chunk that of `chunk_tokens` of `prev_token_ids`, and
vectors are those of encoder.py, as passages and queries of the search have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data.errors import ArgumentError
from cepe_data.retrieval.encoder import GPU_DTYPE, EncoderModel
from cepe_data.retrieval.row_texts import QueryOptions, RowTexts
from cepe_data.storage import mds, provenance
from cepe_data.storage.inputs import SetInput
from cepe_data.storage.parts import PartedSet, PartedSetOptions
from cepe_data.teacher.plan import choose_dtype, name_beside, require_column
from cepe_data.tokens.tokenizers import TokenizerFiles

SHARD_BYTES = 64 << 20
COLUMN = "context_scores"


@dataclass(frozen=True)
class ScoreOptions(QueryOptions, PartedSetOptions):
    """The arguments of retrieval/score_contexts.py."""

    input_dir: Path
    output: Path
    domain: str
    chunk_tokens: int
    passage_prefix: str


@dataclass(frozen=True)
class ScoredSet:
    """The rows of one domain with their scores, by an encoder of some dtype. `metadata` are for its meta file."""

    of_set: PartedSet
    source: Path
    num_chunks: int
    dtype: str
    metadata: dict[str, Any]


def plan_scores(args: ScoreOptions, domain: str, model: EncoderModel) -> ScoredSet:
    """The plan for one domain; reads meta files only.

    Raises:
        ArgumentError: if the input is missing, has scores, or does not consist of whole chunks.
    """
    source, folder = args.input_dir / domain, args.output / domain
    require_column(source, "token_ids", 1, args.query_tokens, "--query_tokens")
    require_column(source, "prev_token_ids", 1, args.chunk_tokens, "--chunk_tokens")
    columns = mds.read_columns(source)
    if COLUMN in columns:
        raise ArgumentError(f"{source} has the column {COLUMN} already: pass the set that a sampler wrote")
    _, (num_tokens,) = mds.column_array(columns["prev_token_ids"])
    num_chunks, rest = divmod(num_tokens, args.chunk_tokens)
    if rest:
        raise ArgumentError(
            f"--chunk_tokens {args.chunk_tokens}: the {num_tokens} of {source} are not a multiple of it"
        )
    columns[COLUMN] = mds.array_column(np.dtype(np.float32), num_chunks)
    dtype = choose_dtype(args, args.dtype, args.device, folder, GPU_DTYPE)
    prefixes = {name: getattr(args, name) for name in ("query_prefix", "passage_prefix") if getattr(args, name)}
    made_with = {
        "domain": domain,
        "chunk_tokens": args.chunk_tokens,
        "query_tokens": args.query_tokens,
        "model": model.fingerprint,
        "max_word_pieces": model.max_word_pieces,
        "pooling": model.pooling,
        "normalize": model.normalize,
        "dtype": dtype,
        **prefixes,
    }
    part_rows = args.part_rows(folder, mds.rows_per_shard(columns, SHARD_BYTES))
    inputs = {"input": SetInput(source)}
    of_set = PartedSet(folder, columns, mds.num_rows(source), part_rows, made_with, args, inputs)
    of_input = provenance.read_meta(source)
    metadata = {
        "input_name": name_beside(args.input_dir, args.output),
        "tokenizer": of_input.get("tokenizer"),
        "vocab_size": of_input.get("vocab_size"),
    }
    return ScoredSet(of_set, source, num_chunks, dtype, metadata)


def texts_of(source: Path, tokenizer: TokenizerFiles, word_pieces: str, made_with: provenance.Provenance) -> RowTexts:
    """The task that reads the texts of rows of `source`, for scores with the provenance `made_with`."""
    names = ("query_tokens", "query_prefix", "chunk_tokens", "passage_prefix")
    return RowTexts(source, tokenizer, word_pieces, **{name: made_with[name] for name in names if name in made_with})


def scores_of(vectors: np.ndarray, num_chunks: int) -> np.ndarray:
    """float32 [rows, chunks], summed in float64, from float32 [rows · (1 + chunks), dimension]: for every row the
    vector of its query, then those of its chunks."""
    by_row = vectors.astype(np.float64).reshape(-1, 1 + num_chunks, vectors.shape[1])
    return np.einsum("rd,rcd->rc", by_row[:, 0], by_row[:, 1:]).astype(np.float32)
