"""Worker processes: one pool for a whole run, results in order, a bound on the items in flight.

Workers are spawned, not forked (forking a process that has threads can hang), die with their parent, and ignore Ctrl-C,
which the parent handles. A pool of one worker runs in this process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, TypeVar

from cepe_data import cli, system
from cepe_data.errors import PipelineError

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_num_workers() -> int:
    """The cores that slurm gives this task, else those of the affinity mask."""
    of_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, int(of_task)) if of_task.isdecimal() else system.usable_cores()


class Workers(Generic[Item, Result]):
    """A pool of processes for one task, as a context manager.

    Args:
        num_workers: with 1, the task runs in this process.
        task: called with each item. Every worker gets a pickled copy of it once, before the first item. State that is
            large or cannot be pickled is a `cached_property` of it, made in the worker.
    """

    def __init__(self, num_workers: int, task: Callable[[Item], Result]) -> None:
        self.num_workers = num_workers
        self._task = task
        self._executor: ProcessPoolExecutor | None = None
        self._task_file: IO[bytes] | None = None

    def __enter__(self) -> Workers[Item, Result]:
        if self.num_workers > 1:
            # Not sent through the pipe of multiprocessing, which can be too small, and would wait forever for a process
            # that is killed before it has read all of it.
            self._task_file, path = system.open_shared_file()
            pickle.dump(self._task, self._task_file)
            self._task_file.flush()
            self._executor = _open_executor(self.num_workers, _read_task, (path,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None and self._task_file is not None:
            _close_executor(self._executor, kind)
            self._task_file.close()

    def map_in_order(
        self, items: Iterable[Item], size_of: Callable[[Item], int] = lambda _: 1, max_size: int | None = None
    ) -> Iterator[tuple[Item, Result]]:
        """Each item with its result, in order. The sizes of the items in flight add up to at most `max_size`, or there
        is one; by default, there are two for each worker.

        Raises:
            PipelineError: if a worker died.
        """
        max_size = 2 * self.num_workers if max_size is None else max_size
        pending: deque[tuple[Item, Future[Result]]] = deque()
        size_in_flight = 0
        try:
            for item in items:
                while pending and size_in_flight + size_of(item) > max_size:
                    done, future = pending.popleft()
                    size_in_flight -= size_of(done)
                    yield done, future.result()
                pending.append((item, self._submit(item)))
                size_in_flight += size_of(item)
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        except BrokenProcessPool:
            raise _worker_died() from None

    def _submit(self, item: Item) -> Future[Result]:
        if self._executor is not None:
            return _submit(self._executor, _run_task, item)
        future: Future[Result] = Future()
        future.set_result(self._task(item))
        return future


def run_in_child(function: Callable[..., Result], *arguments: Any) -> Result:
    """The result of a function in a short-lived process, so that its imports do not stay in memory.

    Raises:
        PipelineError: if the process died; otherwise what the function raises.
    """
    executor = _open_executor(1)
    try:
        return _submit(executor, function, *arguments).result()
    except BrokenProcessPool:
        raise _worker_died() from None
    finally:
        _close_executor(executor, sys.exc_info()[0])


def run_shares(
    function: Callable[..., None], shares: Sequence[tuple[Any, ...]], progress: Callable[[int], object]
) -> None:
    """Call a function once per share of the work, each in a process of its own; a single share in this one.

    Args:
        function: called with the values of a share, and a function to report progress: it takes the number of items.
        progress: called in this process with the sum over all shares.

    Raises:
        the first error of a function, after the other processes were killed; PipelineError if a process died.
    """
    if len(shares) == 1:
        function(*shares[0], progress)
        return
    with _naming_shared_memory():
        done_by_all = _spawning().Value("q", 0)
    executor = _open_executor(len(shares), _share_progress, (done_by_all,))
    num_done = 0
    try:
        running = [_submit(executor, _run_share, function, share) for share in shares]
        while running:
            ended, _ = wait(running, timeout=0.5, return_when=FIRST_EXCEPTION)
            before, num_done = num_done, done_by_all.value
            progress(num_done - before)
            for future in ended:
                future.result()
            running = [future for future in running if future not in ended]
    except BrokenProcessPool:
        raise _worker_died() from None
    except BaseException:
        _kill(executor)
        raise
    finally:
        _close_executor(executor, sys.exc_info()[0])


# The state of a worker process: its task, or the counter that all shares add to.
_state: dict[str, Any] = {}


def _read_task(path: Path) -> None:
    with path.open("rb") as file:
        _state["task"] = pickle.load(file)


def _run_task(item: Any) -> Any:
    return _state["task"](item)


def _share_progress(done_by_all: Any) -> None:
    _state["done by all"] = done_by_all


def _run_share(function: Callable[..., None], share: tuple[Any, ...]) -> None:
    done_by_all = _state["done by all"]

    def add(number: int) -> None:
        with done_by_all.get_lock():
            done_by_all.value += number

    function(*share, add)


def _spawning() -> SpawnContext:
    """The start method. The resource tracker of multiprocessing removes what a stopped run leaves; its warning is
    turned off."""
    if (option := "ignore:resource_tracker:UserWarning") not in sys.warnoptions:
        sys.warnoptions.append(option)
    return multiprocessing.get_context("spawn")


def _open_executor(
    num_workers: int, prepare: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    with _naming_shared_memory():
        return ProcessPoolExecutor(num_workers, _spawning(), _start_worker, (os.getpid(), prepare, arguments))


@contextlib.contextmanager
def _naming_shared_memory() -> Iterator[None]:
    """Name shared memory, which has the locks of worker processes, in an error that names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise PipelineError(
            f"no worker process can be started: {error.strerror}. Their locks are in shared memory, which must have "
            f"space and be writable: on Linux, see `df /dev/shm`"
        ) from error


def _submit(executor: ProcessPoolExecutor, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Submit. A process that this starts has signals blocked from its first instruction on: one that is stopped during
    its start would end with a traceback, or never end."""
    with cli.Stopped.deferred():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            return executor.submit(function, *arguments)
        except OSError as error:
            if error.errno is None:  # multiprocessing has closed its pipes: the pool broke while it was growing
                raise BrokenProcessPool(str(error)) from error
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _close_executor(executor: ProcessPoolExecutor, kind: type[BaseException] | None) -> None:
    """Wait for the workers to end. They are killed after Ctrl-C or SIGTERM (`cli.Stopped` is a KeyboardInterrupt), also
    if the signal comes during the wait: a worker that is still starting would not find its task any more. Those of a
    broken pool are killed, too: it does not know of one that it was just starting."""
    if executor._broken or (kind is not None and issubclass(kind, KeyboardInterrupt)):
        _kill(executor)
    try:
        executor.shutdown(wait=True, cancel_futures=True)
    except KeyboardInterrupt:
        _kill(executor)
        executor.shutdown(wait=True, cancel_futures=True)
        raise


def _kill(executor: ProcessPoolExecutor) -> None:
    for process in list((executor._processes or {}).values()):
        process.kill()


def _start_worker(parent: int, prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    system.die_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # SIGINT stays blocked
    if prepare is not None:
        prepare(*arguments)


def _worker_died() -> PipelineError:
    return PipelineError(
        "a worker process died, most likely because there is not enough memory. What is published is whole; run the "
        "same command again with fewer processes (--num_workers, --num_gpus)"
    )
