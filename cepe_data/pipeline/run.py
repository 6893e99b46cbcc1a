"""Run what is left: as plain lines of bash, or as arrays of slurm, each of which starts when those it needs are done.

python pipeline.py settings.toml print tokenize | xargs -P 4 -d '\\n' -I{} bash -c {}
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cepe_data import cli
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.pipeline import progress
from cepe_data.pipeline.jobs import Job, Pipeline
from cepe_data.storage.steps import DAMAGED

DRY_RUN_STEPS = ("tokenize", "sample_ab", "sample_concat")  # which say before what a run comes to


def add_print_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("step", nargs="?", metavar="STEP", help="only the lines of this step, and nothing else")


def print_lines(args: argparse.Namespace, pipeline: Pipeline) -> int:
    """Print a line of bash for every task of every job, whatever is there; in groups that run one after the other."""
    groups = {"list": [f"mkdir -p {shlex.quote(str(pipeline.folder))} && {pipeline.plain(pipeline.list_words)}"]}
    for job in pipeline.jobs:
        groups.setdefault(job.name, []).extend(pipeline.plain(job.words(task)) for task in job.tasks)
    if args.step not in {None, *groups}:
        raise ArgumentError(f"there is no step {args.step}, only {', '.join(groups)}")
    for name, lines in groups.items():
        if args.step is None:
            cli.say(f"# {name}: {len(lines)} lines")
        if args.step in {None, name}:
            cli.say("\n".join(lines))
    return cli.EXIT_OK


def add_submit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry_run", action="store_true", help="print the sbatch lines, and submit nothing")


def submit(args: argparse.Namespace, pipeline: Pipeline) -> int:
    """Submit what is left. Before that, the steps whose inputs are there are asked what they would do: a shortage,
    other arguments than before, or damage end it here. Windows can only be counted once there are token files; before
    that, a job between tokenizing and sampling does it."""
    for job in pipeline.steps:
        for output in progress.wrong_outputs(job.step) if job.is_needed else []:
            what = f"{pipeline.label(job)}: {output.path} {output.what}"
            if output.state == DAMAGED:
                raise DamagedFileError(f"{what}. `progress` has the line that replaces it")
            raise ArgumentError(f"{what}. Use the same settings or another output, or --overwrite by hand")
    jobs = jobs_to_submit(pipeline)
    if not jobs:
        cli.say(f"all is there → {pipeline.folder}")
        return cli.EXIT_OK
    max_array_size = progress.find_max_array_size()
    if not max_array_size:
        raise ArgumentError("no slurm is installed here: `print` has lines that run without it")
    (pipeline.folder / "logs").mkdir(parents=True, exist_ok=True)
    os.environ.update(pipeline.environment)
    ready = [job.dry_run() for job in jobs if job.name in DRY_RUN_STEPS and job.has_inputs]
    for line in [*pipeline.list_lines(), *(pipeline.plain(job.words()) for job in ready)]:
        cli.say(line)
        if status := subprocess.run(["bash", "-c", line], check=False).returncode:
            cli.warn("nothing is submitted")
            return status
    ids: dict[Job, list[str]] = {}  # of what is queued
    queued: list[str] = []
    try:
        for job in jobs:
            after = ":".join(one.partition(";")[0] for before in job.before(ids.__contains__) for one in ids[before])
            for first_task, tasks in progress.array_groups(job.left or [0], max_array_size).items():
                words = progress.sbatch_words(job, tasks, first_task, after)
                print(shlex.join(words), file=sys.stderr, flush=True)
                answer = f"ID_OF_{job.name}_{len(queued) + 1}" if args.dry_run else sbatch(words, pipeline.folder)
                ids.setdefault(job, []).append(answer)
                queued.append(answer)
    finally:
        if queued and not args.dry_run:
            cli.say(f"queued: {' '.join(queued)}")
    cli.say(f"{len(queued)} jobs {'would be' if args.dry_run else 'are'} queued → {pipeline.folder}")
    return cli.EXIT_OK


def jobs_to_submit(pipeline: Pipeline) -> list[Job]:
    """The jobs of which something is left, and the checks that these wait for; a job counts windows only if that cannot
    be done now."""
    wanted: list[Job] = []
    for job in reversed(pipeline.jobs):
        is_check = not job.step.tasks and any(job in other.after for other in wanted)
        if job.left or (is_check and (not job.has_inputs or "--dry_run" not in job.flags)):
            wanted.append(job)
    return wanted[::-1]


def sbatch(words: Sequence[str], folder: Path) -> str:
    """Submit; returns what sbatch answers: an id, on some sites with the name of a cluster behind it, `101;cluster`.

    Raises:
        PipelineError: if it fails.
    """
    done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    answer = done.stdout.strip()
    if done.returncode or not answer[:1].isdigit():
        raise PipelineError(f"sbatch failed with exit status {done.returncode} {answer}: {shlex.join(words)}")
    return answer
