"""A text encoder: text → word pieces → one vector, pooled from the last hidden states of its word pieces.

In a folder of sentence-transformers (sbert.net), modules.json and 1_Pooling/config.json select the pooling: the mean,
or the state of the first word piece (cls), and scaling to length 1 by a Normalize module. Without these files it is
the mean, as in Contriever (Izacard et al. 2022, github.com/facebookresearch/contriever). Torch and transformers are
imported when they are needed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cepe_data import cli, workers
from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.teacher import devices
from cepe_data.teacher.checkpoint import Checkpoint
from cepe_data.tokens.tokenizers import read_library

if TYPE_CHECKING:
    import torch

MAX_WORD_PIECES = 512
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
    "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "added_tokens.json",
)  # fmt: skip
MEAN, CLS = "mean", "cls"
_POOLING_FLAGS = {"pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS}
GPU_DTYPE = "float16"  # bfloat16 would cost vectors three bits
CPU_BATCH = 16
CUDA_BATCH_TOKENS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Which encoder runs where: the arguments of `add_encoder_arguments`."""

    model_dir: str
    dtype: str
    device: str | None
    batch_size: int | None


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of EncoderOptions."""
    group = parser.add_argument_group("encoder")
    group.add_argument("--model_dir", default="facebook/contriever", help="the text encoder: a folder or a hub name")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="of weights and activations; auto is float16 on a GPU and float32 on a CPU",
    )
    group.add_argument("--device", default=None, help="default: cuda where there is one, else cpu")
    group.add_argument(
        "--batch_size", type=cli.positive_count, default=None, help="texts at once (default: what suits the device)"
    )


@dataclass(frozen=True)
class EncoderModel:
    """An encoder on disk: a hash of weights and word pieces, the size of its vectors, its longest input, how vectors
    are pooled (`mean` or `cls`), and whether they are scaled to length 1."""

    checkpoint: Checkpoint
    fingerprint: str
    dimension: int
    max_word_pieces: int
    pooling: str
    normalize: bool

    @classmethod
    def find(cls, model_dir: str) -> EncoderModel:
        """The encoder called `model_dir`, a folder or a hub name.

        Raises:
            ArgumentError: if there is none, or its pooling is not supported.
        """
        checkpoint = Checkpoint.find(model_dir, "encoder")
        config = checkpoint.config
        try:
            dimension = int(config.get("hidden_size") or config["dim"])
            positions = int(config.get("max_position_embeddings", MAX_WORD_PIECES))
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"no encoder {model_dir!r}: its config.json is not that of an encoder ({error})"
            ) from None
        pooling, normalize = _read_modules(checkpoint.folder)
        fingerprint = checkpoint.fingerprint(TOKENIZER_FILES)
        return cls(checkpoint, fingerprint, dimension, min(MAX_WORD_PIECES, positions), pooling, normalize)

    def check_prefix(self, prefix: str, flag: str, names: Sequence[str]) -> None:
        """Warn if `prefix` is empty, and the encoder's configuration has a prompt with one of these names."""
        path = self.checkpoint.folder / "config_sentence_transformers.json"
        prompts = _read_json(path).get("prompts") if path.exists() else None
        named = [prompts[name] for name in names if prompts.get(name)] if isinstance(prompts, dict) else []
        if named and not prefix:
            cli.warn(f"{path} names a prefix, which is not used: add {flag} {shlex.quote(named[0])}")


def _read_modules(folder: Path) -> tuple[str, bool]:
    """Pooling, `mean` or `cls`, and whether vectors are scaled to length 1, as in sentence-transformers.

    Raises:
        ArgumentError: if a module or a pooling mode is not supported.
    """
    path, pooling, normalize = folder / "modules.json", folder / "1_Pooling/config.json", False
    modules = _read_json(path, list) if path.exists() else []
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = folder / module["path"] / "config.json"
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ArgumentError(f"{path} has a module {kind}, which is not supported")
    if not modules and not pooling.exists():
        return MEAN, normalize
    config = _read_json(pooling)
    flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    modes = {_POOLING_FLAGS.get(flag, flag) for flag in flags} or {str(config.get("pooling_mode"))}
    if modes not in ({MEAN}, {CLS}) or config.get("include_prompt") is False:
        raise ArgumentError(
            f"{pooling} requires {' and '.join(sorted(modes))} (include_prompt: {config.get('include_prompt', True)}): "
            f"only mean and cls of all word pieces are supported"
        )
    return modes.pop(), normalize


def _read_json(path: Path, kind: type = dict) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it is not a {kind.__name__}")
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} cannot be read ({error}): download it again") from None
    return content


def word_piece_json(model: EncoderModel) -> str:
    """The fast tokenizer of an encoder as JSON; it truncates at the longest input. For a child process: importing
    transformers takes seconds.

    Raises:
        ArgumentError: if it has none.
    """
    from transformers import AutoTokenizer

    try:
        folder = str(model.checkpoint.folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        core = tokenizer.backend_tokenizer
    except Exception as error:  # every library on the way has exceptions of its own
        raise ArgumentError(f"the tokenizer of {folder} cannot be loaded: {error}") from None
    core.enable_truncation(model.max_word_pieces)
    core.no_padding()
    return str(core.to_str())


class WordPieces:
    """Texts, each with a prefix → word pieces, with the special tokens of the encoder."""

    def __init__(self, tokenizer_json: str, prefix: str = "") -> None:
        self._tokenizer, self._prefix = read_library(tokenizer_json), prefix

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """int32 [total] ids and int64 [texts] lengths."""
        prefixed = [self._prefix + text for text in texts]
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(prefixed)]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        flat = (number for ids in encoded for number in ids)
        return np.fromiter(flat, np.int32, int(lengths.sum())), lengths


class Encoder:
    """Word pieces → vectors, on a device.

    Raises:
        ArgumentError: if the model cannot be loaded, or lacks weights.
    """

    def __init__(
        self, model: EncoderModel, dtype: str, device: str, normalize: bool, batch_size: int | None = None
    ) -> None:
        import torch

        self._device, self._batch_size = device, batch_size
        self._pooling, self._normalize = model.pooling, normalize or model.normalize
        with devices.memory_errors(device):
            loaded = model.checkpoint.load("AutoModel", "encoder", unused="pooler.", dtype=getattr(torch, dtype))
            self._model = loaded.to(device)

    def embed(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """float32 [texts, dimension] from int32 [total] word pieces and int64 [texts] lengths.

        Raises:
            PipelineError: if a vector is not finite, or the memory of the device is not enough.
        """
        starts = np.cumsum(lengths) - lengths
        vectors: np.ndarray | None = None
        batches = self.batches(ids, starts, lengths)
        num_threads = workers.default_num_workers()
        for (_, of_batch, rows), (pooled,) in devices.run_batches(self._device, self.compute, batches, num_threads):
            del of_batch
            if vectors is None:
                vectors = np.empty((len(lengths), pooled.shape[1]), np.float32)
            vectors[rows] = pooled
        if vectors is None:
            return np.empty((0, 0), np.float32)
        if not np.isfinite(vectors).all():
            raise PipelineError("the encoder gives vectors that are not finite: try another --dtype")
        return vectors

    def report_time(self, ids: np.ndarray, lengths: np.ndarray, left: str, num_texts: float) -> None:
        """For a dry run: print what is left, and how long `num_texts` take, from the time of these texts."""
        self.embed(ids, lengths)  # the first call chooses kernels
        start = time.perf_counter()
        self.embed(ids, lengths)
        seconds = time.perf_counter() - start
        hours = num_texts * seconds / max(1, len(lengths)) / 3600
        cli.say(
            f"of all shards, {left}; {len(lengths)} took {seconds:.2f} s\n"
            f"about {hours:,.2f} hours on one such device, if reading keeps up"
        )

    def batches(
        self, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Texts of about the same length together, the longest first: int64 [batch, longest] ids, int64 [batch]
        lengths, int64 [batch] numbers of the texts."""
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            longest = max(1, int(lengths[order[start]]))
            most = CUDA_BATCH_TOKENS // longest if self._device.startswith("cuda") else CPU_BATCH
            rows = order[start : start + (self._batch_size or most)]
            batch = np.zeros((len(rows), longest), np.int64)
            inside = np.arange(longest) < lengths[rows, None]
            batch[inside] = ids[(starts[rows, None] + np.arange(longest))[inside]]
            yield batch, lengths[rows], rows
            start += len(rows)

    @devices.inference_mode
    def compute(self, ids: torch.Tensor, lengths: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor]:
        """float32 [batch, dimension]: the mean, in float32, of the hidden states of each text, or the first one."""
        import torch

        del rows
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        hidden = self._model(input_ids=ids, attention_mask=mask.long())[0].float()
        if self._pooling == CLS:
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * mask[:, :, None]).sum(1) / lengths[:, None].clamp(min=1)
        if self._normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        return (pooled,)
