"""The texts of rows that an encoder reads: the query, and the chunks before it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cepe_data import cli, workers
from cepe_data.retrieval.encoder import EncoderOptions, WordPieces, add_encoder_arguments
from cepe_data.storage import mds
from cepe_data.tokens import backends
from cepe_data.tokens.tokenizers import TokenizerFiles


@dataclass(frozen=True, kw_only=True)
class QueryOptions(EncoderOptions):
    """What the texts of queries are, how many processes tokenize them, and which encoder reads them: the arguments of
    `add_query_arguments`."""

    query_tokens: int
    query_prefix: str
    tokenized_dir: Path
    tokenizer: str | None
    num_workers: int


def add_query_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of QueryOptions."""
    parser.add_argument(
        "--query_tokens", type=cli.positive_count, default=256, help="the query is the text of so many of token_ids"
    )
    parser.add_argument(
        "--query_prefix", default="", help="put before every query for the encoder, such as 'query: ' for E5"
    )
    parser.add_argument("--tokenized_dir", type=Path, default=Path("tokenized"), help="the folder of token files")
    parser.add_argument("--tokenizer", default=None, help="for the texts (default: TOKENIZED_DIR/tokenizer)")
    parser.add_argument(
        "--num_workers", type=cli.positive_count, default=workers.default_num_workers(), help="processes that tokenize"
    )
    add_encoder_arguments(parser)


@dataclass(frozen=True)
class RowTexts:
    """The task that reads rows [start, stop) of a set and tokenizes them for the encoder: int32 [total], the ids of
    word pieces, and int64 [texts], lengths.

    The texts of a row are its query, the first `query_tokens` of `token_ids`; and with `chunk_tokens`, after it, all of
    `prev_token_ids` in chunks of that length. Each has its prefix.
    """

    folder: Path
    tokenizer: TokenizerFiles
    word_pieces: str
    query_tokens: int
    query_prefix: str = ""
    chunk_tokens: int | None = None
    passage_prefix: str = ""

    @cached_property
    def _rows(self) -> mds.Rows:
        return mds.Rows(self.folder)

    @cached_property
    def _decode(self) -> backends.Decoder:
        return backends.make_decoder(self.tokenizer)

    @cached_property
    def _word_pieces(self) -> WordPieces:
        return WordPieces(self.word_pieces)

    def __call__(self, rows: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        ids: list[np.ndarray] = []
        prefixes: list[str] = []
        for number in range(*rows):
            row = self._rows[number]
            ids.append(row["token_ids"][: self.query_tokens].astype(np.int32))
            if self.chunk_tokens:
                ids.extend(row["prev_token_ids"].astype(np.int32).reshape(-1, self.chunk_tokens))
            prefixes += [self.query_prefix, *[self.passage_prefix] * (len(ids) - len(prefixes) - 1)]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        texts = self._decode(np.concatenate(ids), lengths)
        return self._word_pieces.encode([prefix + text for prefix, text in zip(prefixes, texts, strict=True)])
