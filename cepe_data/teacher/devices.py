"""Where models run: devices, free memory, and streams that keep a device busy. Torch is imported when it is needed."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cepe_data import system
from cepe_data.errors import ArgumentError, PipelineError

Arrays = tuple[np.ndarray, ...]


def choose_device(device: str | None) -> str:
    """`--device`; without it cuda where there is a GPU, else cpu."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(dtype: str, device: str | None, half: str) -> str:
    """`--dtype`; `auto` is `half` on a GPU, else float32."""
    if dtype != "auto":
        return dtype
    return half if choose_device(device).startswith("cuda") else "float32"


def choose_devices(device: str | None, num_gpus: int) -> list[str]:
    """The device of each process.

    Raises:
        ArgumentError: if the device does not exist, or there are fewer than `num_gpus` GPUs.
    """
    import torch

    chosen = choose_device(device)
    try:
        kind = torch.device(chosen).type
    except RuntimeError:
        kind = ""
    if kind not in {"cpu", "cuda"}:
        raise ArgumentError(f"--device {chosen} is not supported: cpu, cuda and cuda:1, say, are")
    available = torch.cuda.device_count() if kind == "cuda" or device is None else num_gpus
    if kind == "cuda" and (torch.device(chosen).index or 0) >= available:
        raise ArgumentError(f"--device {chosen}: torch sees {available} GPUs here")
    if num_gpus == 1:
        return [f"cuda:{torch.device(chosen).index or 0}" if kind == "cuda" else "cpu"]
    if torch.device(chosen).index is not None:
        raise ArgumentError(f"--num_gpus {num_gpus} takes the first GPUs, and goes without --device {chosen}")
    if num_gpus > available:
        raise ArgumentError(f"--num_gpus {num_gpus} is more than the {available} GPUs that torch sees here")
    return [f"cuda:{number}" if kind == "cuda" else "cpu" for number in range(num_gpus)]


def inference_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function without autograd; torch is imported when it is called, not when it is defined."""

    @functools.wraps(function)
    def without_autograd(*args: Any) -> Any:
        import torch

        with torch.inference_mode():
            return function(*args)

    return without_autograd


def free_bytes(device: str) -> int:
    """Free memory of the device in bytes. Of a GPU, a tenth is left for other things, and what torch holds for later
    counts as free."""
    if device.startswith("cuda"):
        import torch

        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + held) * 9 // 10
    return system.free_memory_bytes()


@contextlib.contextmanager
def memory_errors(device: str) -> Iterator[None]:
    """Raise PipelineError where torch runs out of memory."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        raise PipelineError(
            f"the memory of {device} is not enough: lower --batch_size, or see what else is in it"
        ) from None


def thread_pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads that run torch on one core each. (A number that another thread sets reaches the matrix library only after
    torch itself has run something.)"""
    import torch

    return ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))


def run_batches(
    device: str, compute: Callable[..., Any], batches: Iterable[Arrays], num_threads: int
) -> Iterator[tuple[Arrays, Arrays]]:
    """Each batch with its result of `compute`, in order.

    On a GPU, one batch is computed while the next is read and copied, and the caller uses the one before. On a CPU,
    `num_threads` batches run at once, each on one core: as much work, without waiting for each other, and the results
    do not depend on the number of cores (matrix libraries split the sums of some shapes by the number of threads).

    Args:
        compute: takes tensors on the device, one for each array of a batch, and returns a tuple of such tensors.

    Raises:
        PipelineError: if the memory of the device is not enough.
    """
    with contextlib.ExitStack() as stack, memory_errors(device):
        if device.startswith("cuda"):
            depth, launch = 2, _CudaStream(device, compute).launch
        else:
            pool = thread_pool(num_threads)
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            depth = 2 * num_threads

            def launch(batch: Arrays) -> Callable[[], Arrays]:
                return pool.submit(_compute_on_cpu, compute, batch).result

        pending: deque[tuple[Arrays, Callable[[], Arrays]]] = deque()
        for batch in batches:
            pending.append((batch, launch(batch)))
            if len(pending) >= depth:
                done, result = pending.popleft()
                yield done, result()
        while pending:
            done, result = pending.popleft()
            yield done, result()


def _compute_on_cpu(compute: Callable[..., Any], batch: Arrays) -> Arrays:
    import torch

    return tuple(result.numpy() for result in compute(*map(torch.from_numpy, batch)))


class _CudaStream:
    """Runs batches on a GPU. Copies go through pinned memory on their own streams."""

    def __init__(self, device: str, compute: Callable[..., Any]) -> None:
        import torch

        self._device, self._compute = device, compute
        self._to_device, self._to_host = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def launch(self, batch: Arrays) -> Callable[[], Arrays]:
        """Start a batch; the returned function waits for its result."""
        import torch

        pinned = [torch.from_numpy(array).pin_memory() for array in batch]
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._to_device):
            inputs = [array.to(self._device, non_blocking=True) for array in pinned]
        compute.wait_stream(self._to_device)
        for array in inputs:
            array.record_stream(compute)
        results = self._compute(*inputs)
        self._to_host.wait_stream(compute)
        with torch.cuda.stream(self._to_host):
            copies = [torch.empty(result.shape, dtype=result.dtype, pin_memory=True) for result in results]
            for copy, result in zip(copies, results, strict=True):
                copy.copy_(result, non_blocking=True)
                result.record_stream(self._to_host)
            done = torch.cuda.Event()
            done.record(self._to_host)

        def finish() -> Arrays:
            done.synchronize()
            return tuple(copy.numpy() for copy in copies)

        return finish
