"""The pipeline on a real slurm: one node, on a configuration and folders of its own.    pytest tests/test_slurm.py"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import reference
from tests.conftest import PROJECT, World, make_encoder
from tests.test_progress import finished, write_settings  # noqa: F401

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
MaxArraySize=2
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
DependencyParameters=kill_invalid_depend
ReturnToService=2
KillWait=15
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running slurm: commands find it by its environment."""

    environment: dict[str, str]

    def run(self, *command: object, cwd: Path, status: int = 0) -> str:
        done = subprocess.run(
            [*map(str, command)], cwd=cwd, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def jobs(self, cwd: Path) -> list[str]:
        return self.run("squeue", "--noheader", "--array", "--format", "%i %j %T", cwd=cwd).splitlines()

    def wait(self, cwd: Path, seconds: float = 400) -> None:
        deadline = time.monotonic() + seconds
        while jobs := self.jobs(cwd):
            assert time.monotonic() < deadline, "\n".join([*jobs, *logs(cwd)])
            time.sleep(0.5)


def logs(folder: Path) -> list[str]:
    return [f"--- {path.name}\n{path.read_text()}" for path in sorted(folder.glob("logs/*.log"))]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if lacking := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"not run: slurm is not installed here, {', '.join(lacking)} is missing")
    if os.getuid():
        pytest.skip("not run: slurm's daemons are started as root")
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, ports=ports))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment = {**inherited, "SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable}
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = ["munged", "--force", "--foreground", *(f"--{name}={folder}/munge.{end}" for name, end in files.items())]
    daemons = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host])
    ]
    try:
        one = Slurm(environment)
        deadline = time.monotonic() + 60
        while "idle" not in subprocess.run(
            ["sinfo", "--noheader", "--format", "%T"], env=environment, capture_output=True, text=True, check=False
        ).stdout:  # fmt: skip
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()
            time.sleep(0.5)
        yield one
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(20)


ON_SLURM = (  # one core a task; MaxArraySize splits the 3 tasks of tokenizing into two arrays
    ("[corpus]", 'slurm = ["--cpus-per-task=1", "--mem=0", "--time=10"]\n[corpus]'),
    ("gpus = 1\n", ""),
    ("part_bytes = 20000", "part_bytes = 20000\ncores = 1"),
)


def test_the_whole_pipeline_is_submitted_and_once_more_after_a_task_was_cancelled(
    slurm: Slurm,
    world: World,
    finished: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Arrays make what single commands made, though slurm allows them two tasks only."""
    make_encoder(tmp_path / "encoder")
    write_settings(tmp_path, world, *ON_SLURM, ("test_fraction = 0.2", "test_fraction = 0.2\ndrop_duplicates = true"))
    tool = (sys.executable, PROJECT / "pipeline.py", tmp_path / "settings.toml")
    shown = slurm.run(*tool, "submit", "--dry_run", cwd=tmp_path)
    pattern = r"name mark_duplicates .*afterok:ID_OF_check_3 .*/step\.sh sanity_check\.py duplicates"
    assert re.search(pattern, shown), shown
    write_settings(tmp_path, world, *ON_SLURM)
    shown = slurm.run(*tool, "submit", "--dry_run", cwd=tmp_path)
    assert shown.count("sbatch --parsable") == 13 and "afterok:ID_OF_tokenize_1:ID_OF_tokenize_2" in shown
    assert not slurm.jobs(tmp_path)
    [queued] = re.findall(r"^queued: (.*)", slurm.run(*tool, "submit", cwd=tmp_path), re.MULTILINE)
    slurm.run("scancel", queued.split()[1], cwd=tmp_path)  # task 2 of tokenizing
    slurm.wait(tmp_path)
    progress = slurm.run(*tool, "progress", cwd=tmp_path)
    assert "tokenize tokenized: 2 of 3 tasks done" in progress and "--array=0 " in progress and " +2 " in progress, (
        progress
    )
    slurm.run(*tool, "submit", cwd=tmp_path)
    slurm.wait(tmp_path)
    assert not [text for text in logs(tmp_path) if "error" in text], "\n".join(logs(tmp_path))
    assert "9 of 9 steps done, 0 lines to submit" in slurm.run(*tool, "progress", cwd=tmp_path)
    assert "all is there" in slurm.run(*tool, "submit", cwd=tmp_path)
    for name in ("ab", "concat", "tokenized"):
        assert reference.tree_bytes(tmp_path / name) == reference.tree_bytes(finished / name), name
    vectors = reference.tree_bytes(tmp_path / "embeddings")  # of another encoder than those of `finished`
    shutil.rmtree(tmp_path / "embeddings")
    lines = slurm.run(*tool, "print", "embed", cwd=tmp_path)
    xargs = ("xargs", "-P", "2", "-d", "\\n", "-I{}", "bash", "-c", "{}")
    subprocess.run(xargs, input=lines, env=slurm.environment, text=True, check=True)
    assert lines.count("\n") == 2 and reference.tree_bytes(tmp_path / "embeddings") == vectors


def test_a_cancelled_task_says_how_to_go_on_and_is_submitted_alone(slurm: Slurm, world: World, tmp_path: Path) -> None:
    """Task 1 of 2 is cancelled during its work; the merge names it; it alone is submitted again."""
    flags = ["--domains", "book=1", "--train_fraction", "0.9", "--allow_shortage", *world.source_flags]
    slurm.run(sys.executable, PROJECT / "sample_mds_ab.py", "OUT", 64, 4, 0, 2000, *flags, cwd=tmp_path)
    slurm.environment["CEPE_DATA_HOME"] = str(PROJECT)
    (tmp_path / "logs").mkdir()
    how = ("--cpus-per-task=1", "--mem=0", "--job-name=annotate", "--output=logs/%x-%A_%a.log")
    sbatch = ("sbatch", "--parsable", *how)
    arguments = (PROJECT / "slurm/step.sh", "calculate_logits.py", "--input_dir", "OUT/train", "--domain", "book",
                 "--model_dir", world.folder / "teacher", "--num_encoder_tokens", 60, "--num_decoder_tokens", 4,
                 "--topk", 5, "--rows_per_part", 20, "--num_shards", 2, "--device", "cpu")  # fmt: skip
    job = slurm.run(*sbatch, "--array=0-1", *arguments, cwd=tmp_path).strip()
    parts = tmp_path / "OUT/train-logits-enc60-dec4-teacher/book.parts"
    while not list(parts.glob(".tmp-part-0005*")) + list(parts.glob("part-0005*")):
        assert slurm.jobs(tmp_path), "\n".join(logs(tmp_path))
        time.sleep(0.01)
    slurm.run("scancel", "--batch", "--signal=TERM", f"{job}_1", cwd=tmp_path)
    slurm.wait(tmp_path)
    text = (tmp_path / f"logs/annotate-{job}_1.log").read_text()
    assert "stopped by SIGTERM" in text and "goes on from here" in text, text
    merge = [sys.executable, PROJECT / "calculate_logits.py", *arguments[2:], "--merge"]
    assert "run shard ids 1 of --num_shards 2" in slurm.run(*merge, cwd=tmp_path, status=1)
    slurm.run(*sbatch, "--array=1", *arguments, cwd=tmp_path)
    slurm.wait(tmp_path)
    slurm.run(*merge, cwd=tmp_path)
    assert (parts.parent / "book/index.json").exists()
