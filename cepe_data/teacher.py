"""A teacher: a causal language model that gives top-k next-token probabilities. Torch is imported when it is needed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cepe_data import atomic, hub, mds
from cepe_data.errors import ArgumentError, PipelineError

if TYPE_CHECKING:
    import torch

HEAD_ROWS = 512
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # of Gemma, Cohere, Granite


@dataclass(frozen=True)
class Model:
    """A model on disk; `max_positions` is None where its configuration names no limit."""

    folder: Path
    vocab_size: int
    max_positions: int | None


def find_model(model_dir: str) -> Model:
    """The model called `model_dir`, a folder or a hub name.

    Raises:
        ArgumentError: if there is none.
    """
    name = model_dir.rstrip("/")
    try:
        folder = Path(name) if Path(name).is_dir() else _download(name)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text_config = config if "vocab_size" in config else config["text_config"]
        max_positions = text_config.get("max_position_embeddings") or text_config.get("n_positions")
        return Model(folder, int(text_config["vocab_size"]), max_positions)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"no model {model_dir!r}: {str(error).splitlines()[0]} Pass a folder that save_pretrained wrote, or a hub "
            f"name"
        ) from None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    hub.announce(name)
    folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    if not any(folder.glob("*.safetensors")):
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.bin"]))
    return folder


def fingerprint(folder: Path) -> str:
    """A hash of the configuration and of all weights. (Reading them takes no longer than loading them will.)

    Raises:
        ArgumentError: if there are no weights.
    """
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not weights:
        raise ArgumentError(f"{folder} holds no *.safetensors and no *.bin: no weights of a model")
    return atomic.fingerprint({path.name: atomic.file_facts(path) for path in [folder / "config.json", *weights]})


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
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=getattr(torch, dtype), output_loading_info=True
            )
            model, loading = loaded
        except Exception as error:  # every library on the way to the weights has exceptions of its own
            raise ArgumentError(f"the model in {folder} cannot be loaded: {error}") from None
        if lacking := [*loading["missing_keys"], *loading["mismatched_keys"]]:
            raise ArgumentError(
                f"the model in {folder} lacks {len(lacking)} weights, such as {lacking[0]}: it would guess"
            )
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
        if not np.isfinite(prob).all():
            raise PipelineError("the teacher gives probabilities that are no numbers: try another --dtype")
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
