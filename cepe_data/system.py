"""Features of Linux, each with a fallback for any Unix.

These are memory files, the affinity mask and `/proc`. All of them are optimisations. The
outputs have the same bytes without them: tests/test_portability.py runs the pipeline in a Python that lacks them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_INITIAL_PROCESSES = 0xEFFFFFFC  # the inode of a machine's own process namespace (proc_ns.h of Linux)


def usable_cores() -> int:
    """The cores of the affinity mask, else of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_bytes() -> int:
    """The memory that is available to a process, else half of the machine's."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def process_namespace() -> int | None:
    """The number of the process namespace in a container, where process numbers begin anew; None outside of one."""
    try:
        inode = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None
    return None if inode == _INITIAL_PROCESSES else inode


def is_running(process: int) -> bool:
    """Whether there is such a process, and not a zombie: workers of a killed run remain zombies in a container whose
    first process is not an init. Without `/proc`, zombies count as running."""
    try:
        os.kill(process, 0)
    except PermissionError:  # a process of another user
        pass
    except (ProcessLookupError, OverflowError):
        return False
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return True


def die_with_parent(parent: int) -> None:
    """From now on this process is killed when its parent ends, at once or within a second."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except AttributeError:
        threading.Thread(target=_await_end_of, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it died before the lines above
        os._exit(1)


def _await_end_of(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def open_shared_file() -> tuple[IO[bytes], Path]:
    """A file that is removed when it is closed, and the path under which other processes can open it until then."""
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("shared"), "wb")
        path = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
        if path.exists():
            return file, path
        file.close()
    named = tempfile.NamedTemporaryFile(prefix="cepe_data-")  # noqa: SIM115
    return named, Path(named.name)


def start_flushing(folder: Path) -> None:
    """Write all cached data of a folder's file system to the disk: flushing its files is quick after that. It is those
    flushes that report errors, since Linux before 5.8 does not report them here."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    except AttributeError:  # no syncfs: each file is waited for
        pass
    finally:
        os.close(descriptor)


def will_need(descriptor: int, start: int, num_bytes: int) -> None:
    """Ask the system to read a range of a file ahead, without waiting: a disk serves many requests at once."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, num_bytes, os.POSIX_FADV_WILLNEED)
