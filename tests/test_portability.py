"""The pipeline in a Python that has only what every Unix has, as on macOS.    pytest tests/test_portability.py"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import reference
from tests.conftest import PROJECT, Run, World

# Run by every Python process that finds it on its path, before anything else.
WITHOUT_LINUX = """
import builtins, ctypes, io, os
for name in ("memfd_create", "sched_getaffinity", "posix_fadvise"):
    delattr(os, name)

def hiding(function):
    def hidden(path, *arguments, **options):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith("/proc"):
            raise FileNotFoundError(2, "there is no /proc", os.fspath(path))
        return function(path, *arguments, **options)
    return hidden

for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "stat"), (os, "lstat"), (os, "scandir"),
                     (os, "listdir"), (os, "readlink")):
    setattr(module, name, hiding(getattr(module, name)))

class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name in ("prctl", "syncfs"):
            raise AttributeError(name)
        return super().__getattr__(name)

ctypes.CDLL = Library
"""
REMOVE_STALE = """
import os, sys
from pathlib import Path
from cepe_data import system
from cepe_data.storage import outputs
assert not hasattr(os, "memfd_create") and not Path("/proc/self/stat").exists()
assert 1 << 28 < system.free_memory_bytes() < 1 << 50
for process in sys.argv[1:]:
    Path(f".tmp-x-{outputs._HOST}-{process}").touch()
outputs.remove_stale_temporaries(Path.cwd())
"""
AB = ("sample_mds_ab.py", "OUT", 64, 16, 3, 40, "--test_fraction", 0.2)


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process without what Linux adds."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(WITHOUT_LINUX)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(PROJECT)])}


def test_every_step_makes_the_same_bytes(run: Run, world: World, portable: dict[str, str], tmp_path: Path) -> None:
    for name in ("linux", "portable"):
        (tmp_path / name).mkdir()
    run(*AB, *world.source_flags, cwd=tmp_path / "linux")
    cwd, workers = tmp_path / "portable", ("--num_workers", 2)
    run("get_all_jsonl.py", world.data, cwd=cwd, environment=portable)
    run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, *workers, cwd=cwd, environment=portable)
    assert reference.tree_bytes(cwd / "tokenized") == reference.tree_bytes(world.tokenized)
    run(*AB, *workers, cwd=cwd, environment=portable)
    assert reference.tree_bytes(cwd / "OUT") == reference.tree_bytes(tmp_path / "linux/OUT")


def test_temporaries_of_living_processes_stay(portable: dict[str, str], tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    command = [sys.executable, "-c", REMOVE_STALE, str(os.getpid()), str(dead.pid)]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **portable}, check=True)
    assert [path.name.rpartition("-")[2] for path in tmp_path.iterdir()] == [str(os.getpid())]
