"""A text encoder: text → word pieces → one vector, the mean of the last hidden states of all its word pieces.

As Contriever does it (Izacard et al. 2022, github.com/facebookresearch/contriever): no pooling layer, no normalisation
unless it is asked for. Torch and transformers are imported when they are needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cepe_data import hub, workers
from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.teacher import devices
from cepe_data.teacher import model as teacher_model

if TYPE_CHECKING:
    import torch

MAX_WORD_PIECES = 512
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
    "sentencepiece.bpe.model", "spiece.model",
)  # fmt: skip
GPU_DTYPE = "float16"  # bfloat16 would cost vectors three bits
CPU_BATCH = 16
CUDA_BATCH_TOKENS = 1 << 16


@dataclass(frozen=True)
class EncoderModel:
    """An encoder on disk: its folder, a hash of weights and word pieces, the size of its vectors, its longest input."""

    folder: Path
    fingerprint: str
    dimension: int
    max_word_pieces: int

    @classmethod
    def find(cls, model_dir: str) -> EncoderModel:
        """The encoder called `model_dir`, a folder or a hub name.

        Raises:
            ArgumentError: if there is none, or it has no fast tokenizer.
        """
        folder = hub.find_folder(model_dir, "encoder")
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            dimension = int(config.get("hidden_size") or config["dim"])
            positions = int(config.get("max_position_embeddings", MAX_WORD_PIECES))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArgumentError(f"no encoder {model_dir!r}: its config.json is not that of one ({error})") from None
        fingerprint = teacher_model.fingerprint(folder, TOKENIZER_FILES)
        return cls(folder, fingerprint, dimension, min(MAX_WORD_PIECES, positions))


def word_piece_json(model: EncoderModel) -> str:
    """The fast tokenizer of an encoder, cutting at its longest input. For a child process: transformers takes seconds.

    Raises:
        ArgumentError: if it has none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(model.folder), use_fast=True)
        core = tokenizer.backend_tokenizer
    except Exception as error:  # every library on the way has exceptions of its own
        raise ArgumentError(f"the tokenizer of {model.folder} cannot be loaded: {error}") from None
    core.enable_truncation(model.max_word_pieces)
    core.no_padding()
    return str(core.to_str())


class WordPieces:
    """Texts → word pieces, with the special ones of the encoder at both ends."""

    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer_json)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """int32 [total] ids and int64 [texts] lengths."""
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
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
        self._device, self._normalize, self._batch_size = device, normalize, batch_size
        with devices.memory_errors(device):
            self._model = _load(model, dtype, device)

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
            raise PipelineError("the encoder gives vectors that are not numbers: try another --dtype")
        return vectors

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
        """float32 [batch, dimension]: the mean, in float32, of the hidden states inside each text."""
        import torch

        del rows
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        hidden = self._model(input_ids=ids, attention_mask=mask.long())[0].float()
        pooled = (hidden * mask[:, :, None]).sum(1) / lengths[:, None].clamp(min=1)
        if self._normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        return (pooled,)


def _load(model: EncoderModel, dtype: str, device: str) -> Any:
    import torch
    from transformers import AutoModel

    hub.silence_transformers()
    try:
        loaded: Any = AutoModel.from_pretrained(
            str(model.folder), dtype=getattr(torch, dtype), output_loading_info=True
        )
        encoder, loading = loaded
    except Exception as error:  # every library on the way to the weights has exceptions of its own
        raise ArgumentError(f"the encoder in {model.folder} cannot be loaded: {error}") from None
    used = [key for key in loading["missing_keys"] if not key.startswith("pooler.")]
    if lacking := [*used, *loading["mismatched_keys"]]:
        raise ArgumentError(f"the encoder in {model.folder} lacks weights, such as {lacking[0]}: it would guess")
    return encoder.eval().requires_grad_(False).to(device)
