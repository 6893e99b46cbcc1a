"""Worker processes: results in order, bounded, and gone with their parent.    pytest tests/test_workers.py"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from cepe_data import workers
from cepe_data.errors import ArgumentError, PipelineError
from tests.conftest import PROJECT


def add_offset(offset: int, number: int) -> tuple[int, int]:
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number + offset, os.getpid()


def fail(name: str) -> None:
    raise ArgumentError(f"no {name}")


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_come_in_order_and_what_is_in_flight_is_bounded(num_workers: int) -> None:
    num_taken = 0

    def items() -> Iterator[int]:
        nonlocal num_taken
        for number in range(100, 130):
            num_taken += 1
            yield number

    with workers.Workers(num_workers, functools.partial(add_offset, 1000)) as pool:
        processes = set()
        for number, (item, (result, process)) in enumerate(pool.map_in_order(items(), lambda _: 10, 50)):
            assert item == 100 + number and result == item + 1000
            assert num_taken <= number + 6
            processes.add(process)
    assert (os.getpid() in processes) == (num_workers == 1)


def test_a_worker_that_dies_is_an_error_and_an_error_in_a_child_comes_back() -> None:
    with (
        workers.Workers(2, functools.partial(add_offset, 0)) as pool,
        pytest.raises(PipelineError, match=r"a worker process died.*--num_workers"),
    ):
        list(pool.map_in_order(range(20), lambda _: 1, 100))
    with pytest.raises(ArgumentError, match="no luck"):
        workers.run_in_child(fail, "luck")


def start(folder: Path, script: str) -> subprocess.Popen[str]:
    """Start a Python script in a folder."""
    (folder / "parent.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen([sys.executable, "parent.py"], cwd=folder, env=environment, stderr=PIPE, text=True)


def test_a_worker_that_is_killed_before_it_has_read_its_task_is_an_error_too(tmp_path: Path) -> None:
    parent = start(
        tmp_path,
        "import functools, os, signal\n"
        "from multiprocessing import util\n"
        "from cepe_data import cli, workers\n"
        "def kill_at_once(*arguments):\n"
        "    process = spawn(*arguments)\n"
        "    os.kill(process, signal.SIGKILL)\n"
        "    return process\n"
        "def main():\n"
        "    with workers.Workers(2, functools.partial(print, bytes(10_000_000))) as pool:\n"
        "        list(pool.map_in_order(range(9), lambda _: 1, 4))\n"
        "if __name__ == '__main__':\n"
        "    spawn = util.spawnv_passfds\n"
        "    workers.run_in_child(abs, 1)  # starts the tracker of multiprocessing, too\n"
        "    util.spawnv_passfds = kill_at_once\n"
        "    cli.run(main)\n",
    )
    _, error = parent.communicate(timeout=60)
    assert parent.returncode == 1 and "a worker process died" in error, error


def test_the_number_of_workers_is_what_slurm_or_the_affinity_mask_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert workers.default_num_workers() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "7")
    assert workers.default_num_workers() == 7


def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = start(
        tmp_path,
        "import os, time\n"
        "from cepe_data.workers import Workers\n"
        "def work(number):\n"
        "    open(f'pid{os.getpid()}', 'w').close()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    with Workers(2, work) as pool:\n"
        "        list(pool.map_in_order(range(4), lambda item: 1, 100))\n",
    )
    deadline = time.monotonic() + 30
    while len(pids := [int(path.name[3:]) for path in tmp_path.glob("pid*")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    assert len(pids) == 2
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_signal_after_the_last_result_ends_workers_that_are_still_starting(tmp_path: Path) -> None:
    parent = start(
        tmp_path,
        "import os, signal, threading, time\n"
        "from pathlib import Path\n"
        "from cepe_data import cli, workers\n"
        "def work(number):\n"
        "    return number\n"
        "def main():\n"
        "    with workers.Workers(4, work) as pool:\n"
        "        list(pool.map_in_order(range(40), lambda item: 1, 4))\n"
        "        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "if __name__ == '__mp_main__':\n"
        "    try:\n"
        "        Path('first').mkdir()\n"
        "    except FileExistsError:\n"
        "        time.sleep(1.5)  # the other workers take long to start\n"
        "if __name__ == '__main__':\n"
        "    end = os._exit\n"
        "    os._exit = lambda status: (os.closerange(3, 99), time.sleep(3), end(status))  # a slow kernel\n"
        "    cli.run(main)\n",
    )
    _, error = parent.communicate(timeout=60)
    assert parent.returncode == 128 + signal.SIGTERM, error
    assert "stopped by SIGTERM" in error and "Traceback" not in error
