"""A teacher: a causal language model that gives next-token probabilities. Torch is imported when it is needed."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cepe_data import cli, workers
from cepe_data.errors import ArgumentError, PipelineError
from cepe_data.storage import mds
from cepe_data.teacher import devices
from cepe_data.teacher.checkpoint import Checkpoint, position_limit
from cepe_data.teacher.targets import Targets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

HEAD_BYTES = 32 << 20  # of logits whose targets are found at a time
HEAD_BYTES_CUDA = 512 << 20
MAX_BATCH_TOKENS = 1 << 16  # of more, a GPU does not become faster
PROBE_TOKENS = 512
ATTENTION_TOLERANCE = 1e-4  # in float32, mean total variation distance; two right ones differ by about 1e-6
HALF_ATTENTION_TOLERANCE = 0.03


@dataclass(frozen=True)
class Model:
    """A causal language model on disk; `max_positions` is None where its configuration names no limit."""

    checkpoint: Checkpoint
    vocab_size: int
    max_positions: int | None


def find_model(model_dir: str) -> Model:
    """The model called `model_dir`, a folder or a hub name.

    Raises:
        ArgumentError: as `Checkpoint.find`.
    """
    checkpoint = Checkpoint.find(model_dir, "model")
    config = checkpoint.text_config
    if "vocab_size" not in config:  # what is usual for its kind
        config = checkpoint.full_config().get_text_config().to_dict()
    try:
        return Model(checkpoint, int(config["vocab_size"]), position_limit(config))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(f"no model {model_dir!r}: its config.json is not that of one ({error})") from None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a teacher is asked for, and how it runs."""

    num_tokens: int  # of a sequence
    num_positions: int  # the last ones, which are annotated
    targets: Targets
    dtype: str
    run_length: int  # sequences come in runs of this many, which batches do not cross
    batch_size: int | None = None  # None: what the memory holds
    attn_implementation: str | None = None  # None: what transformers prefers
    compile: bool = False
    num_words: int | None = None  # the first ones, which have a probability; None: all of the model's


class Teacher:
    """A causal language model that gives targets for the last positions of sequences.

    On a GPU, sequences run in batches of one shape (the last one is filled up). On a CPU, each core runs one sequence.

    Raises:
        ArgumentError: if the model cannot be loaded, or lacks weights.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings, device: str) -> None:
        import torch

        self.settings, self.device = settings, device
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        with devices.memory_errors(device):
            self._model = _load(checkpoint, settings.dtype, device, settings.attn_implementation)
            self._config = self._model.config.get_text_config()
            self._num_words = settings.num_words or int(self._config.vocab_size)
            self._index_dtype = getattr(torch, mds.token_dtype(self._num_words).name)
            logit_bytes = HEAD_BYTES_CUDA if device.startswith("cuda") else HEAD_BYTES
            self._head_rows = max(1, logit_bytes // (4 * self._num_words))
            self._replace_head(checkpoint.folder)
            if settings.compile:
                _compile_layers(self._model, self._config.num_hidden_layers)
            self.batch_size = min(settings.batch_size or self._choose_batch_size(), settings.run_length)

    def annotate(self, batches: Iterable[Sequence[tuple[str, np.ndarray]]]) -> Iterator[dict[str, np.ndarray]]:
        """Probabilities after each of the last positions of sequences, given all tokens up to and with that position.

        Args:
            batches: at most `batch_size` sequences each: the name `{domain}/{row}`, on which the random numbers of
                sampled targets depend, and int64 [num_tokens].

        Yields, for every sequence in order:
            target_prob: float16 [positions, width + 1], probabilities, descending, then the mass of the rest.
            target_index: int16 or int32 [positions, width], their ids.

        Raises:
            PipelineError: if probabilities are not numbers, or the memory of the device is not enough.
        """
        size = self.batch_size if self.device.startswith("cuda") else 1
        num_positions, targets = self.settings.num_positions, self.settings.targets
        lengths: deque[int] = deque()

        def stacked() -> Iterator[devices.Arrays]:
            for batch in batches:
                rows = [(ids, targets.uniforms(name, num_positions)) for name, ids in batch]
                for group in (rows[first : first + size] for first in range(0, len(rows), size)):
                    lengths.append(len(group))
                    filled = group + [group[-1]] * (size - len(group))
                    yield tuple(map(np.stack, zip(*filled, strict=True)))

        num_threads = min(self.batch_size, workers.default_num_workers())
        for _, (prob, index) in devices.run_batches(self.device, self.compute, stacked(), num_threads):
            num_rows = lengths.popleft()
            if not np.isfinite(prob).all():
                raise PipelineError("the teacher gives probabilities that are not numbers: try another --dtype")
            for row in range(num_rows):
                yield {"target_prob": prob[row], "target_index": index[row]}

    def num_flops(self) -> int:
        """Floating point operations of one sequence, as `count_flops` has them."""
        return count_flops(self._model, self.settings.num_tokens, self.settings.num_positions)

    @devices.inference_mode
    def compute(self, ids: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float16 [batch, positions, width + 1] and integer [batch, positions, width] from int64 [batch, tokens] and
        the float64 [batch, positions, n] of the targets, all on the device."""
        import torch

        num_rows, width = len(ids) * self.settings.num_positions, self.settings.targets.width
        prob = torch.empty(num_rows, width + 1, dtype=torch.float16, device=ids.device)
        index = torch.empty(num_rows, width, dtype=self._index_dtype, device=ids.device)
        of_rows = uniforms.flatten(0, 1)
        logits = self._logits(ids)[:, -self.settings.num_positions :].flatten(0, 1)
        for start in range(0, num_rows, self._head_rows):
            rows = slice(start, start + self._head_rows)
            prob[rows], index[rows] = self.settings.targets.of_logits(logits[rows].float(), of_rows[rows])
        return prob.view(len(ids), -1, width + 1), index.view(len(ids), -1, width)

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self._model(input_ids=ids, use_cache=False).logits[..., : self._num_words]

    @devices.inference_mode
    def _replace_head(self, folder: Path) -> None:
        """Have the model apply its head to the last positions and first words only, and with float32 sums: bfloat16
        logits tie at the boundary of the top-k, and are off by up to 0.4 %. What it does to logits then (Granite,
        Cohere and Gemma scale or cap them) it does in float32, too.

        Raises:
            ArgumentError: if the last token changes the logits at the positions before it.
        """
        import torch

        head, num_positions = self._model.get_output_embeddings(), self.settings.num_positions
        weight = head.weight[: self._num_words]
        bias = None if getattr(head, "bias", None) is None else head.bias[: self._num_words].float()
        # In one product of half-precision operands; where torch cannot, they are made float32.
        sums_float32 = weight.is_cuda and weight.dtype != torch.float32 and "dtype" in torch.ops.aten.mm.overloads()
        weight = weight if sums_float32 else weight.float()
        product = functools.partial(torch.mm, **({"out_dtype": torch.float32} if sums_float32 else {}))

        def logits_of(hidden: torch.Tensor) -> torch.Tensor:
            rows = hidden[:, -num_positions:].flatten(0, 1).to(weight.dtype)
            logits = product(rows, weight.t())
            return (logits if bias is None else logits.add_(bias)).unflatten(0, (len(hidden), -1))

        num_ids = min(16, self.settings.num_tokens)
        ids = torch.linspace(0, self._num_words - 1, num_ids, device=weight.device).long()[None]
        other = ids.clone()
        other[0, -1] = 0
        own, of_other = self._logits(ids).float(), self._logits(other).float()
        # The model rounds its own logits to its dtype.
        tolerance = own.abs().max() * (1e-4 if self._model.dtype == torch.float32 else 2.0**-7)
        if bool(((own - of_other)[:, :-1].abs() > tolerance).any()):
            raise ArgumentError(f"the model in {folder} is not causal: what it expects depends on later tokens")
        head.forward = logits_of
        found, own = self._logits(ids), own[:, -num_positions:]
        if found.shape != own.shape or bool(((found - own).abs() > tolerance).any()):
            del head.forward  # it uses its head in another way

    def _choose_batch_size(self) -> int:
        """As many sequences as the free memory holds, and the device can use."""
        num_tokens = self.settings.num_tokens
        if not self.device.startswith("cuda"):
            # A core has about 16 activations as wide as the hidden state at a time, and its logits up to three times.
            of_sequence = 16 * num_tokens * self._config.hidden_size * self._model.dtype.itemsize
            of_sequence += 12 * self.settings.num_positions * self._num_words
            return max(1, min(workers.default_num_workers(), devices.free_bytes("cpu") // of_sequence))
        of_memory = devices.free_bytes(self.device) // self._measure_sequence_bytes()
        return least_filled_batch(min(of_memory, MAX_BATCH_TOKENS // num_tokens), self.settings.run_length)

    def _measure_sequence_bytes(self) -> int:
        import torch

        settings = self.settings
        ids = torch.zeros(1, settings.num_tokens, dtype=torch.int64, device=self.device)
        uniforms = torch.from_numpy(settings.targets.uniforms("", settings.num_positions)[None]).to(ids.device)
        torch.cuda.reset_peak_memory_stats(ids.device)
        before = torch.cuda.memory_allocated(ids.device)
        self.compute(ids, uniforms)
        return torch.cuda.max_memory_allocated(ids.device) - before


def _load(checkpoint: Checkpoint, dtype: str, device: str, attention: str | None) -> Any:
    import torch

    chosen = {"attn_implementation": attention} if attention else {}
    model = checkpoint.load("AutoModelForCausalLM", "model", dtype=getattr(torch, dtype), **chosen)
    return model.to(device)


def choose_attention(checkpoint: Checkpoint, dtype: str, device: str, num_tokens: int, asked: str | None) -> str:
    """The attention implementation to use: `asked`, with a warning where it is wrong; for None, the one that
    transformers prefers if it is right, else eager.

    It is right if it gives the probabilities of eager, which writes out the formula of the model. (sdpa leaves out the
    cap of Gemma-2's attention; Falcon's differs where there is ALiBi.) Both are loaded, one after the other, and read
    PROBE_TOKENS random tokens: in float32 where the memory holds that, because the rounding of half precision would
    hide small errors.

    Raises:
        ArgumentError: if the model cannot be loaded.
    """
    if asked == "eager":
        return asked
    num_bytes = 2 * sum(path.stat().st_size for path in checkpoint.weights)  # of weights saved in half precision
    if asked in {None, "sdpa"} and num_bytes < min(map(devices.free_bytes, {device, "cpu"})):
        dtype = "float32"
    with devices.memory_errors(device):
        used, probabilities = _read_probe(checkpoint, dtype, device, num_tokens, asked)
        if used == "eager":
            return used
        _, expected = _read_probe(checkpoint, dtype, device, num_tokens, "eager")
    # Total variation distance: by how much the probability of any set of words can be off.
    difference = float(np.abs(probabilities - expected).sum(-1).mean() / 2)
    if difference <= (ATTENTION_TOLERANCE if dtype == "float32" else HALF_ATTENTION_TOLERANCE):
        return used
    what = f"{used} attention gives other probabilities than the model in {checkpoint.folder} has, by {difference:.2g}"
    if asked:
        cli.warn(f"{what}: without --attn_implementation, or with eager, they are right")
        return used
    cli.warn(f"{what}: eager attention, which is slower, is used instead")
    return "eager"


def _read_probe(
    checkpoint: Checkpoint, dtype: str, device: str, num_tokens: int, attention: str | None
) -> tuple[str, np.ndarray]:
    """The attention implementation in use, and float32 [tokens, vocabulary] probabilities, computed as rows are: on one
    core of a CPU, whatever the number of its cores."""
    model = _load(checkpoint, dtype, device, attention)
    config = model.config.get_text_config()

    @devices.inference_mode
    def compute(ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (model(input_ids=ids, use_cache=False).logits[0].float().softmax(-1),)

    ids = np.random.default_rng(0).integers(int(config.vocab_size), size=(1, min(PROBE_TOKENS, num_tokens)))
    [(_, (probabilities,))] = devices.run_batches(device, compute, [(ids,)], num_threads=1)
    return config._attn_implementation or "eager", probabilities


def _compile_layers(model: Any, num_layers: int) -> None:
    """Compile the layers one by one: they share one compilation, and what comes before them is not compiled. (Under the
    compiler, transformers writes out the causal mask, and attention without a mask is faster.)"""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers:
            for layer in module:
                layer.compile()
            return
    model.compile()


def least_filled_batch(max_batch: int, run_length: int) -> int:
    """The batch size, `max_batch` or down to half of it, that leaves the least to fill up in the last batch of a run.

    >>> least_filled_batch(16, 324), least_filled_batch(16, 5)
    (12, 5)
    """
    most = max(1, min(max_batch, run_length))
    return min(range(most, most // 2, -1), key=lambda size: -(-run_length // size) * size)


def count_flops(model: PreTrainedModel, num_tokens: int, num_positions: int = 0) -> int:
    """Floating point operations of one sequence of `num_tokens` tokens in a model of transformers: 2 per token and
    weight in the layers, attention to half of all pairs of tokens (4 per pair and hidden unit), and the head, if there
    is one, at `num_positions` tokens."""
    import torch

    config, head = model.config.get_text_config(), model.get_output_embeddings()
    embeddings = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    outside = {id(weight) for weight in ([head.weight] if head is not None else []) + embeddings}
    in_layers = sum(weight.numel() for weight in model.parameters() if id(weight) not in outside)
    attention = 2 * num_tokens * num_tokens * config.hidden_size * config.num_hidden_layers
    in_head = 2 * num_positions * head.weight.numel() if head is not None else 0
    return 2 * num_tokens * in_layers + attention + in_head
