"""`pip install .` gives a wheel with everything, commands on the PATH, and nothing else in the environment.

pytest tests/test_installation.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests import reference
from tests.conftest import PROJECT, World, environment_of_scripts

AB = ("OUT", "64", "16", "3", "40", "--test_fraction", "0.2", "--num_workers", "2")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkout: all files that git does not ignore."""
    folder = tmp_path_factory.mktemp("clone")
    listing = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    for path in subprocess.run(listing, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (PROJECT / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def wheel(clone: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "--wheel-dir", clone / "dist", clone], check=True)
    [path] = (clone / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with the wheel and this environment's libraries."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps")
    subprocess.run([*pip, wheel], check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    (Path(packages) / "libraries.pth").write_text(sysconfig.get_path("purelib"))  # .pth files in there are not read
    return environment / "bin"


def run_installed(installed: Path, command: str, *arguments: object, cwd: Path) -> str:
    environment = environment_of_scripts()
    environment["PATH"] = f"{installed}{os.pathsep}{environment['PATH']}"
    for name in ("PYTHONPATH", "PYTHON"):
        environment.pop(name, None)
    words = [str(installed / command), *map(str, arguments)]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_module_and_one_name_of_its_own(clone: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for suffix in ("py", "html", "css", "js") for path in (clone / "cepe_data").rglob(f"*.{suffix}")]
    library = {path.relative_to(clone).as_posix() for path in files}
    scripts = [*clone.glob("*.py"), *clone.glob("retrieval/*.py"), *clone.glob("slurm/*.sh")]
    scripts += [clone / "run_tokenize.sh", clone / "settings.example.toml"]
    beside = {f"cepe_data/scripts/{path.relative_to(clone).as_posix()}" for path in scripts}
    assert library | beside == {name for name in names if name.startswith("cepe_data/")}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cepe_data"}


def test_every_command_answers(installed: Path, tmp_path: Path) -> None:
    project = (PROJECT / "pyproject.toml").read_text()
    commands = [line.split('"')[1] for line in project.splitlines() if line.endswith('"cepe_data.cli:run_command"')]
    modules = [f"retrieval.{path.stem}" for path in PROJECT.glob("retrieval/[a-z]*.py")]
    assert sorted(commands) == sorted([*(path.name for path in PROJECT.glob("*.py")), *modules])
    for command in commands:
        assert "--help" in run_installed(installed, command, "--help", cwd=tmp_path)


def test_installed_commands_make_what_the_checkouts_scripts_make(installed: Path, world: World, tmp_path: Path) -> None:
    run_installed(installed, "get_all_jsonl.py", world.data, cwd=tmp_path)
    run_installed(installed, "run_tokenize.sh", "--tokenizer", world.tokenizer, "--num_workers", 2, cwd=tmp_path)
    assert reference.tree_bytes(tmp_path / "tokenized") == reference.tree_bytes(world.tokenized)
    run_installed(installed, "sample_mds_ab.py", *AB, cwd=tmp_path)
    assert "0 findings" in run_installed(installed, "sanity_check.py", "samples", "OUT", cwd=tmp_path)


def test_two_clones_never_mix(clone: Path, tmp_path: Path) -> None:
    with (clone / "cepe_data/__init__.py").open("a") as file:
        file.write("\nprint('that of the clone')\n")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}  # as if this one were installed
    status = {"sanity_check.py": 0, "retrieval/embed_passages.py": 2}
    for script, expected in status.items():
        command = [sys.executable, str(clone / script), "--help"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == expected
        assert ("that of the clone" in done.stdout) != ("is not a script of the library" in done.stderr)
