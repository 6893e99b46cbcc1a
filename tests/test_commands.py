"""Every command that READMEs, docs/, slurm/ and docstrings show is accepted by its script.

pytest tests/test_commands.py
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from demo import run as demo
from tests.conftest import MODULES, PROJECT, Run, World

OF_PROJECT = ("python ", "bash ", "sbatch ", "make ")
OTHERS = {*"for done cp aws gcloud mkdir wget source pip uv".split()}  # other words that begin a line of a block
SLURM_CONFIG = "ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\nNodeName=localhost\nPartitionName=all Nodes=ALL\n"


def shown_commands() -> list[tuple[str, str]]:
    """Pairs of a file and a command that it shows, on one line and without comment."""
    found = []
    for path in [*PROJECT.glob("*.md"), *PROJECT.glob("[rd]*/*.md")]:
        prose_and_blocks = path.read_text().split("```")
        for number, text in enumerate(prose_and_blocks):
            if number % 2 == 0:
                lines = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", text)]
                lines = [line for line in lines if line.startswith(OF_PROJECT) and " -" in line]
            else:
                language, _, block = text.partition("\n")
                lines = on_one_line(block) if language == "bash" else []
            found += [(path.name, line) for line in lines]
    for path in [*PROJECT.glob("slurm/*.sh"), PROJECT / "run_tokenize.sh"]:
        comments = "\n".join(line[1:] for line in path.read_text().splitlines() if line.startswith("#     "))
        found += [(path.name, line) for line in on_one_line(comments)]
    for path in [*PROJECT.glob("*.py"), *PROJECT.glob("[rdb]*/*.py"), *PROJECT.glob("cepe_data/**/*.py")]:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        indented = "\n".join(re.findall(r"^    .*$", docstring, re.MULTILINE))
        found += [(path.name, line) for line in on_one_line(indented) if line.startswith(OF_PROJECT)]
    return [(name, re.split(r"\s+#\s|\s{3,}", line.strip())[0]) for name, line in found]


def on_one_line(block: str) -> list[str]:
    """The commands of a block, each on one line."""
    lines = re.sub(r" *\\\n *", " ", block).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


@dataclass(frozen=True)
class Command:
    """A command, or what a batch job runs: a script of the project, or a module, and its arguments."""

    shown_in: str
    sbatch_flags: tuple[str, ...] | None
    script: str
    arguments: tuple[str, ...]
    batch_file: tuple[str, ...] = ()

    @classmethod
    def of(cls, shown_in: str, line: str) -> Command:
        words, sbatch_flags = shlex.split(line.replace("$shard", "0")), None
        if words[0] == "sbatch":
            num_flags = next(number for number, word in enumerate(words) if word == "--wrap" or word.endswith(".sh"))
            is_wrapped = words[num_flags] == "--wrap"
            sbatch_flags = tuple(words[1:num_flags])
            words = shlex.split(words[num_flags + 1]) if is_wrapped else ["bash", *words[num_flags:]]
        start = 2 if words[1:2] in (["-m"], ["slurm/step.sh"]) else 1
        batch_file = ("slurm/step.sh",) if words[1:2] == ["slurm/step.sh"] else ()
        script = words[start] if words[start:] else ""
        return cls(shown_in, sbatch_flags, script, tuple(words[start + 1 :]), batch_file)

    @property
    def key(self) -> str:
        """The same for a module and its file."""
        return Path(self.script.removesuffix(".py").replace("retrieval.", "")).stem


def as_commands(shown: list[tuple[str, str]]) -> list[Command]:
    """Each once. `…` stands for the arguments with which the script is shown elsewhere."""
    commands = [Command.of(name, line) for name, line in shown if not re.search(r"\[|=…", line)]
    whole = {one.key: one.arguments for one in commands if one.arguments and "…" not in one.arguments}
    filled = {}
    for one in commands:
        arguments: tuple[str, ...] = ()
        for word in one.arguments:
            arguments += whole[one.key] if word == "…" else (word,)
        filled[(one.sbatch_flags, one.script, arguments)] = replace(one, arguments=arguments)
    return list(filled.values())


def check(run: Run, command: Command, folder: Path) -> None:
    """A command is accepted: it fails because its files are missing, and shows no usage. Benchmarks and the demo, which
    need no files, are shown without arguments; their script must exist."""
    if command.sbatch_flags is not None:
        check_sbatch(command.sbatch_flags, folder)
    script, arguments = command.script, command.arguments
    where = f"{command.shown_in}: {script} {' '.join(arguments)}"
    assert script.startswith(MODULES) or (PROJECT / script.replace(".run", "/run.py")).is_file(), where
    if script.startswith(("benchmarks/", "demo.")):
        assert not arguments, where
        return
    is_shell = bool(command.batch_file) or script.endswith(".sh")
    task = {"CEPE_DATA_HOME": str(PROJECT), "SLURM_ARRAY_TASK_ID": "0"} if is_shell else {}
    shell = "bash" if is_shell else sys.executable
    done = run(*command.batch_file, script, *arguments, cwd=folder, status=None, environment=task, shell=shell)
    assert done.returncode in {1, 2} and "usage:" not in done.stderr, f"{where}\n{done.stderr}"
    assert "Traceback" not in done.stderr, f"{where}\n{done.stderr}"


def check_sbatch(flags: tuple[str, ...], folder: Path) -> None:
    """sbatch accepts the flags and their values; for that it needs a configuration, but no running slurm."""
    if shutil.which("sbatch"):
        (folder / "slurm.conf").write_text(SLURM_CONFIG)
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        command = ["sbatch", *flags, "--usage"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.startswith("Usage: sbatch"), f"{flags}\n{done.stderr}"


def test_every_command_that_is_shown_is_accepted(run: Run, tmp_path: Path) -> None:
    shown = shown_commands()
    targets = set(re.findall(r"^([a-z-]+):.*##", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    of_scripts = []
    for name, line in shown:
        words = line.split()
        if words[0] == "make":
            assert set(words[1:]) <= targets, f"{name}: {line}"
        elif words[0] == "cp":
            assert (PROJECT / words[1]).is_file(), f"{name}: {line}"
        elif words[0] in {"python", "bash", "sbatch"}:
            of_scripts.append((name, line))
        else:
            assert words[0] in OTHERS, f"{name}: {line}"
    commands = as_commands(of_scripts)
    by_file = Counter(one.shown_in for one in commands)
    assert by_file["README.md"] > 10 and by_file["steps.md"] > 20 and len(by_file) > 20, by_file
    assert sum(one.sbatch_flags is not None for one in commands) > 7
    assert len(demo.tour_commands(demo.TOUR.read_text())) == 18
    for one in commands:
        if one.arguments or not one.script.startswith("retrieval."):  # else it is a name in a sentence
            check(run, one, tmp_path)


def test_what_the_settings_to_copy_run_is_accepted(run: Run, world: World, tmp_path: Path) -> None:
    """The example's numbers with a corpus, a tokenizer and folders of the test; of every array the first task. `plan`
    needs no outputs."""
    settings = (PROJECT / "settings.example.toml").read_text()
    here = {"data_dir": world.data, "work_dir": tmp_path / "work", "python": sys.executable}
    for name, value in {**here, "tokenizer": world.tokenizer}.items():
        settings, number = re.subn(rf"^{name} = \S*", f'{name} = "{value}"', settings, flags=re.MULTILINE)
        assert number == 1, name
    (tmp_path / "my_settings.toml").write_text(settings)
    assert "4.85 TB" in run("pipeline.py", "my_settings.toml", "plan", cwd=tmp_path, status=1).stdout
    lines = run("pipeline.py", "my_settings.toml", "print", cwd=tmp_path).stdout.splitlines()
    commands = [shlex.join(shlex.split(line)[3:]) for line in lines if line.startswith("cd ")]
    first = [line for line in commands if not re.search(r"--shard_id [1-9]|2000000 [1-9]", line)]
    assert len(first) == 16
    (tmp_path / "empty").mkdir()
    of_project = (line.replace(f"{PROJECT}/", "").replace(f"env PYTHONPATH={PROJECT} ", "") for line in first)
    for one in as_commands([("settings.example.toml", line) for line in of_project]):
        check(run, one, tmp_path / "empty")


def test_the_shell_can_read_every_script() -> None:
    for path in [*PROJECT.glob("slurm/*.sh"), PROJECT / "run_tokenize.sh", PROJECT / ".ci/run"]:
        subprocess.run(["bash", "-n", path], check=True)
