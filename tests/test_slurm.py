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
from typing import Any

import pytest

from tests import reference
from tests.conftest import PROJECT, Run, World, make_encoder

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
    """A running slurm, for those who pass its environment."""

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


def write_settings(path: Path, world: World, folder: Path) -> None:
    path.write_text(f"""
DATA_DIR={world.data}
WORK_DIR={folder}
PYTHON={sys.executable}
SBATCH_FLAGS="--cpus-per-task=1 --mem=0 --time=10"
GPU_FLAGS=""
TOKENIZER={world.tokenizer}
TOKENIZE_SHARDS=2
SAMPLER_FLAGS="--test_fraction 0.2 --num_workers 1 --allow_shortage"
AB_SETS=("ab 128 64 8 24")
CONCAT_SET="concat 64 64 20 20 120"
RETRIEVAL_SHARDS=2
CONCAT_FLAGS="--retrieval_chunk_size 32"
TEACHER={world.folder}/teacher
TEACHER_INPUTS=("ab/train book")
TEACHER_SHARDS=2
TEACHER_FLAGS="--num_encoder_tokens 64 --num_decoder_tokens 64 --topk 5 --rows_per_part 4 --device cpu"
ENCODER={folder}/encoder
EMBED_SHARDS=2
EMBED_FLAGS="--part_bytes 20000 --num_workers 1"
SEARCH_SPLIT=test
SEARCH_SHARDS=2
SEARCH_FLAGS="--topk 5 --num_workers 1"
""")


def test_the_whole_pipeline_is_submitted_and_a_second_submission_skips_all_of_it(
    slurm: Slurm, run: Run, world: World, tmp_path: Path
) -> None:
    make_encoder(tmp_path / "encoder")
    write_settings(tmp_path / "settings.sh", world, tmp_path)
    submit = ("bash", PROJECT / "slurm/submit_pipeline.sh", tmp_path / "settings.sh")
    shown = slurm.run(*submit, "--dry_run", cwd=tmp_path)
    assert shown.count("sbatch --parsable") == 12 and "afterok:ID_OF_tokenize" in shown and not slurm.jobs(tmp_path)
    settings = (tmp_path / "settings.sh").read_text()
    flags = re.sub('(?m)^SAMPLER_FLAGS="', 'SAMPLER_FLAGS="--drop_duplicates ', settings)
    (tmp_path / "marking.sh").write_text(flags)
    shown = slurm.run(*submit[:2], tmp_path / "marking.sh", "--dry_run", cwd=tmp_path)
    assert re.search(r"name mark_duplicates .*afterok:ID_OF_check_2 .*check\.sh duplicates", shown), shown
    slurm.run(*submit, cwd=tmp_path)
    slurm.wait(tmp_path)
    assert not [text for text in logs(tmp_path) if "error" in text], "\n".join(logs(tmp_path))
    for made in ("ab/train/book", "ab/train-logits-enc64-dec64-teacher/book", "concat/test/cc", "retrieved/test/cc"):
        assert (tmp_path / made / "index.json").exists(), "\n".join(logs(tmp_path))
    progress = sys.executable, PROJECT / "sanity_check.py", "progress", tmp_path / "settings.sh"
    assert "9 of 9 steps done, 0 lines to submit" in slurm.run(*progress, cwd=tmp_path)
    # Two tasks of an array made what one process makes.
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    command: tuple[Any, ...] = ("calculate_logits.py", "--input_dir", tmp_path / "ab/train", "--domain", "book")
    command += ("--model_dir", world.folder / "teacher", "--num_encoder_tokens", 64, "--num_decoder_tokens", 64)
    command += ("--topk", 5, "--rows_per_part", 4, "--device", "cpu")
    whole = reference.tree_bytes(tmp_path / "ab/train-logits-enc64-dec64-teacher")
    shutil.rmtree(tmp_path / "ab/train-logits-enc64-dec64-teacher")
    run(*command, cwd=by_hand)
    assert reference.tree_bytes(tmp_path / "ab/train-logits-enc64-dec64-teacher") == whole
    before = reference.tree_bytes(tmp_path / "retrieved")
    slurm.run(*submit, cwd=tmp_path)
    slurm.wait(tmp_path)
    assert reference.tree_bytes(tmp_path / "retrieved") == before
    assert sum("skipped" in text for text in logs(tmp_path)) >= 10


def test_a_cancelled_task_says_how_to_go_on_and_is_submitted_alone(slurm: Slurm, world: World, tmp_path: Path) -> None:
    """Task 1 of 2 is cancelled in the middle of its work; the merge names it; it alone is submitted again."""
    flags = ["--domains", "book=1", "--train_fraction", "0.9", "--allow_shortage", *world.source_flags]
    slurm.run(sys.executable, PROJECT / "sample_mds_ab.py", "OUT", 64, 4, 0, 2000, *flags, cwd=tmp_path)
    slurm.environment["CEPE_DATA_HOME"] = str(PROJECT)
    (tmp_path / "logs").mkdir()
    sbatch = ("sbatch", "--parsable", "--cpus-per-task=1", "--mem=0", "--output", "logs/%x-%A_%a.log")
    arguments = (PROJECT / "slurm/annotate.sh", "--input_dir", "OUT/train", "--domain", "book", "--model_dir",
                 world.folder / "teacher", "--num_encoder_tokens", 60, "--num_decoder_tokens", 4, "--topk", 5,
                 "--rows_per_part", 20, "--num_shards", 2, "--device", "cpu")  # fmt: skip
    job = slurm.run(*sbatch, "--array=0-1", *arguments, cwd=tmp_path).strip()
    pool = tmp_path / "OUT/train-logits-enc60-dec4-teacher/book.parts"
    while not list(pool.glob(".tmp-part-0005*")) + list(pool.glob("part-0005*")):
        assert slurm.jobs(tmp_path), "\n".join(logs(tmp_path))
        time.sleep(0.01)
    slurm.run("scancel", "--batch", "--signal=TERM", f"{job}_1", cwd=tmp_path)
    slurm.wait(tmp_path)
    text = (tmp_path / f"logs/cepe-annotate-{job}_1.log").read_text()
    assert "stopped by SIGTERM" in text and "goes on from here" in text, text
    merge = [sys.executable, PROJECT / "calculate_logits.py", *arguments[1:], "--merge"]
    assert "run shard ids 1 of --num_shards 2" in slurm.run(*merge, cwd=tmp_path, status=1)
    slurm.run(*sbatch, "--array=1", *arguments, cwd=tmp_path)
    slurm.wait(tmp_path)
    slurm.run(*merge, cwd=tmp_path)
    assert (pool.parent / "book/index.json").exists()
