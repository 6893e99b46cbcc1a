"""A teacher: a causal language model that gives top-k next-token probabilities. Torch is imported when it is needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from cepe_data import atomic, mds
from cepe_data.errors import ArgumentError

if TYPE_CHECKING:
    import torch

HEAD_ROWS = 512
_HASHED_BYTES = 1 << 20
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # of Gemma, Cohere, Granite


def find_model(model_dir: str) -> tuple[Path, int]:
    """The local folder of a model, from a folder or a hub name, and its vocabulary size."""
    from transformers import AutoConfig

    name = model_dir.rstrip("/")
    try:
        vocab_size = int(AutoConfig.from_pretrained(name).get_text_config().vocab_size)
        if Path(name).is_dir():
            return Path(name), vocab_size
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.bin"]))
        return folder, vocab_size
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"no model {model_dir!r}: {str(error).splitlines()[0]} Pass a folder that save_pretrained wrote, or a hub "
            f"name"
        ) from None


def fingerprint(folder: Path) -> str:
    """A hash of the configuration, and of the size, first, middle and last MiB of every weight file. (All of 13 GB
    would take long to read in every task; another training run changes every megabyte.)"""
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not weights:
        raise ArgumentError(f"{folder} holds no *.safetensors and no *.bin: no weights of a model")
    facts = {}
    for path in [folder / "config.json", *weights]:
        size, digest = path.stat().st_size, xxhash.xxh3_64()
        with path.open("rb") as file:
            for position in (0, size // 2, max(0, size - _HASHED_BYTES)):
                file.seek(position)
                digest.update(file.read(_HASHED_BYTES))
        facts[path.name] = [size, digest.hexdigest()]
    return atomic.fingerprint(facts)


def resolve_dtype(dtype: str, device: str | None) -> str:
    """`auto` as the dtype that it stands for on the device."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if choose_device(device).startswith("cuda") else "float32"


def choose_device(device: str | None) -> str:
    """The device that is asked for, else cuda where there is one, else cpu."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _inference_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function without autograd; torch is imported when it is called, not when it is defined."""

    @functools.wraps(function)
    def without_autograd(*args: Any) -> Any:
        import torch

        with torch.inference_mode():
            return function(*args)

    return without_autograd


class Teacher:
    """A causal language model that gives top-k probabilities of the last positions of a sequence."""

    def __init__(self, folder: Path, dtype: str, device: str, num_positions: int, topk: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._device, self._num_positions, self._topk = device, num_positions, topk
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, dtype))
        self._index_dtype = mds.token_dtype(int(model.config.get_text_config().vocab_size))
        self._model = model.eval().requires_grad_(False).to(device)
        head = model.get_output_embeddings()
        self._weight, self._bias = head.weight.float(), getattr(head, "bias", None)
        self._has_plain_head = self._check_head()

    @_inference_mode
    def annotate(self, input_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Probabilities after each of the last positions of a sequence, given all tokens up to and with that position.

        Args:
            input_ids: int64 [tokens].

        Returns:
            target_prob: float16 [positions, topk + 1], the top-k probabilities, descending, then the mass of the rest.
            target_index: int16 or int32 [positions, topk], their ids.
        """
        import torch

        ids = torch.from_numpy(input_ids).to(self._device)[None]
        chunks = [top_probabilities(logits, self._topk) for logits in self._logits(ids, self._num_positions)]
        prob = torch.cat([prob for prob, _ in chunks]).to(torch.float16).cpu().numpy()
        index = torch.cat([index for _, index in chunks]).cpu().numpy().astype(self._index_dtype)
        return {"target_prob": prob, "target_index": index}

    def _logits(self, ids: torch.Tensor, num_positions: int) -> Iterator[torch.Tensor]:
        """The logits of the last positions, float32 [≤ HEAD_ROWS, vocabulary] at a time."""
        if self._has_plain_head:
            hidden = self._model.base_model(input_ids=ids, use_cache=False)[0][0, -num_positions:]
            for rows in hidden.split(HEAD_ROWS):
                yield self._head(rows)
        else:
            logits = self._model(input_ids=ids, use_cache=False, logits_to_keep=num_positions).logits[0]
            for rows in logits.split(HEAD_ROWS):
                yield rows.float()

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head in float32: bfloat16 logits tie at the border of the top-k, and are off by up to 0.4 %."""
        import torch

        return torch.nn.functional.linear(hidden.float(), self._weight, self._bias)

    @_inference_mode
    def _check_head(self) -> bool:
        """Whether the logits are the head times the last hidden state, and nothing more (some models scale or cap)."""
        import torch

        config = self._model.config.get_text_config()
        if any(getattr(config, name, None) not in (None, 1.0) for name in _LOGIT_CHANGES):
            return False
        ids = torch.arange(min(8, self._weight.shape[0]), device=self._device)[None]
        own = self._model(input_ids=ids, use_cache=False).logits[0].float()
        ours = self._head(self._model.base_model(input_ids=ids, use_cache=False)[0][0])
        return own.shape == ours.shape and bool((own - ours).abs().max() <= 0.02 * own.abs().max())


def top_probabilities(logits: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-k probabilities with the mass of the rest, and their ids.

    p_i = exp(l_i − logsumexp(l)); the rest is a second logsumexp over the others, not 1 − Σ p, which is 0 where the
    truth is 1e-7.

    Args:
        logits: float32 [positions, vocabulary]; overwritten.

    Returns:
        float32 [positions, topk + 1] and int64 [positions, topk].
    """
    import torch

    log_total = logits.logsumexp(-1, keepdim=True)
    top, index = logits.topk(topk, dim=-1)
    log_rest = logits.scatter_(-1, index, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([top - log_total, log_rest - log_total], dim=-1).exp(), index
