"""Whether the tokenizer that made the rows is the teacher's, and which ids have a probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cepe_data import cli
from cepe_data.errors import ArgumentError
from cepe_data.storage import provenance
from cepe_data.tokens import tokenizers

TOKENIZER_WORDS = "tokenizer"  # a value of --num_words
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


def num_words(text: str) -> int | str:
    """A value of `--num_words`: a count, or `tokenizer`."""
    return text if text == TOKENIZER_WORDS else cli.positive_count(text)


def check_tokenizer(sets: Sequence[Path], model_folder: Path, vocab_size: int, allow_other: bool) -> None:
    """Check that the tokenizer that made sets, as their metadata says, is the model's, of at most `vocab_size` words.

    Args:
        allow_other: accept any tokenizer.

    Raises:
        ArgumentError: if the tokenizer beside the model is another one, or knows more words than the model.
    """
    if allow_other:
        return
    go_on = "Take the model whose tokenizer made the token files, or go on with --allow_other_tokenizer"
    metas = {folder: provenance.read_meta(folder) for folder in sets}
    for folder, meta in metas.items():
        if (size := meta.get("vocab_size")) is not None and size > vocab_size:
            raise ArgumentError(
                f"{folder} was made with a tokenizer of {size:,} words, and the model in {model_folder} knows only "
                f"{vocab_size} words. {go_on}"
            )
    fingerprints = {folder: meta["tokenizer"] for folder, meta in metas.items() if meta.get("tokenizer")}
    own = _fingerprint_beside(model_folder) if fingerprints else None
    for folder, fingerprint in fingerprints.items():
        if own not in {None, fingerprint}:
            raise ArgumentError(
                f"{folder} was made with another tokenizer ({fingerprint}) than that of the model in {model_folder} "
                f"({own}; vocabulary, merges, BOS and EOS count): the model would read its ids as other words. {go_on}"
            )


def _fingerprint_beside(model_folder: Path) -> str | None:
    """The fingerprint of the tokenizer in a model's folder; None, with a warning, if there is none that can be read."""
    unchecked = "whether its tokenizer made the input is not checked"
    if not any((model_folder / name).exists() for name in _TOKENIZER_FILES):
        cli.warn(f"{model_folder} has no {' and no '.join(_TOKENIZER_FILES)}: {unchecked}")
        return None
    try:
        return tokenizers.load(str(model_folder)).identity.fingerprint
    except ArgumentError as error:
        cli.warn(f"{error} ({unchecked})")
        return None


def tokenizer_size(folder: Path) -> int | None:
    """The vocabulary size of the tokenizer that made a set, if its metadata says so."""
    size = provenance.read_meta(folder).get("vocab_size")
    return None if size is None else int(size)


def resolve_num_words(asked: int | str | None, folder: Path, vocab_size: int) -> int | None:
    """`--num_words` as a number; None for all words of the model.

    Raises:
        ArgumentError: if it is more than the model knows, or the metadata of the input `folder` does not say it.
    """
    number = tokenizer_size(folder) if asked == TOKENIZER_WORDS else asked
    if asked == TOKENIZER_WORDS and number is None:
        raise ArgumentError(f"nothing says how many words the tokenizer of {folder} has: pass --num_words N")
    if number is not None and int(number) > vocab_size:
        raise ArgumentError(f"--num_words {number} is more than the {vocab_size} words of the model")
    return None if number is None or number == vocab_size else int(number)


@dataclass
class UnknownWords:
    """Counts ids of the targets that the tokenizer of the rows does not have: those of padded embeddings."""

    tokenizer_size: int | None
    num_ids: int = 0
    num_unknown: int = 0
    mass: float = 0.0
    num_positions: int = 0

    def add(self, prob: np.ndarray, index: np.ndarray) -> None:
        """Count a row, float [positions, topk + 1] and int [positions, topk]."""
        if self.tokenizer_size is not None:
            is_unknown = (index >= self.tokenizer_size) & (prob[:, :-1] > 0)
            self.num_ids += index.size
            self.num_unknown += int(is_unknown.sum())
            self.mass += float(prob[:, :-1][is_unknown].sum(dtype=np.float64))
            self.num_positions += len(index)

    def report(self) -> None:
        """Warn if there are any."""
        if self.num_unknown:
            cli.warn(
                f"{self.num_unknown:,} of {self.num_ids:,} ids ({self.num_unknown / self.num_ids:.2%}), with "
                f"{self.mass / self.num_positions:.2g} of the probability, are not among the {self.tokenizer_size:,} "
                f"words of the tokenizer: --num_words {TOKENIZER_WORDS} leaves them out"
            )
