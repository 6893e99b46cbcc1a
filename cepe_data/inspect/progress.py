"""What of the pipeline is done, step by step and shard by shard, and the sbatch lines for what is left.

SETTINGS is the file that slurm/submit_pipeline.sh reads; that script says what the lines are, and each step's own
arguments say what it would make. The outputs are looked at, not the queue: what a job is at work on counts as missing.
Nothing is read but meta files and sizes, so this is quick, and no proof; the other commands are (steps.py beside this
file says what is not seen). The exit status is 1 if something is damaged, else 0.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from cepe_data import cli, shards
from cepe_data.errors import ArgumentError
from cepe_data.inspect.units import DAMAGED, DONE, MISSING, OTHER, PART_DONE, Counts, Step, Unit
from cepe_data.storage.report import Report, add_report_arguments

HELP = "what of the pipeline is done, shard by shard, and the sbatch lines for what is left"
PIPELINE = Path(__file__).resolve().parents[2] / "slurm/submit_pipeline.sh"
MAX_DIFFERENCES = 3  # said of a step; --json has all of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", type=Path, metavar="SETTINGS", help="what slurm/submit_pipeline.sh was given")
    add_report_arguments(parser)


Parsers = Mapping[str, Callable[[Sequence[str]], argparse.Namespace]]  # by batch file: what parses its arguments


def run(args: argparse.Namespace, parsers: Parsers) -> int:
    """Look at the outputs of every step; print what is there, and the lines for what is not."""
    report = Report("progress", args.json)
    pipeline = Pipeline.read(args.settings, parsers)
    steps = [(job, job.step) for job in pipeline.jobs.values() if job.step]
    for job, step in steps:
        report_step(report, pipeline, job, step)
    left = [line for job, _ in steps for line in pipeline.lines(job)]
    if left:
        print_lines(report, pipeline, left)
    report.facts["first"] = list(pipeline.first)
    report.facts["steps"] = [as_json(pipeline, job, step) for job, step in steps]
    num_done = sum(step.is_done for _, step in steps)
    return report.finish(f"{num_done} of {len(steps)} steps done, {len(left)} lines to submit", pipeline.folder)


@dataclass
class Job:
    """A line that the pipeline submits: its number, the numbers of the jobs that it waits for, and its words; what
    there is of its output, where it has one."""

    number: int
    after: list[int]
    words: list[str]
    step: Step | None = None

    @cached_property
    def script(self) -> int:
        """Which of the words is the batch file."""
        return next(place for place, word in enumerate(self.words) if Path(word).parent == PIPELINE.parent)

    @property
    def name(self) -> str:
        return self.words[self.words.index("--job-name") + 1]

    @property
    def is_array(self) -> bool:
        return any(word.startswith("--array=") for word in self.words[: self.script])

    def line(self, tasks: Iterable[int], overwrite: bool) -> str:
        """The line for some of its tasks."""
        ids = f"--array={shards.array_ids(tasks)}"
        flags = [ids if word.startswith("--array=") else word for word in self.words[: self.script]]
        return shlex.join([*flags, *self.words[self.script :], *["--overwrite"] * overwrite])


@dataclass(frozen=True)
class Line:
    """What is to be submitted once the steps that it waits for are done."""

    text: str
    waits_for: Sequence[str]


@dataclass(frozen=True)
class Pipeline:
    """The jobs of a SETTINGS file: the folder that they run in, the lines of bash that come before theirs, the jobs."""

    folder: Path
    first: Sequence[str]
    jobs: Mapping[int, Job]

    @classmethod
    def read(cls, settings: Path, parsers: Parsers) -> Pipeline:
        """The pipeline as submit_pipeline.sh says it, and what there is of every output.

        Raises:
            ArgumentError: if the settings are none, or a script does not take its arguments.
        """
        command = ["bash", str(PIPELINE), str(settings.resolve()), "--lines"]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        lines = said.stdout.splitlines()
        if said.returncode or not lines:
            raise ArgumentError(f"{settings} are not settings of {PIPELINE}: copy slurm/settings.example.sh")
        jobs = {}
        for fields in (line.split("\t") for line in lines if "\t" in line):
            number, after, words = fields
            others = [int(other) for other in after.split(":") if other]
            jobs[int(number)] = Job(int(number), others, shlex.split(words))
        folder = Path(shlex.split(lines[0])[-1])
        for job in jobs.values():
            job.step = look_at(job, folder, parsers)
        return cls(folder, [line for line in lines if "\t" not in line], jobs)

    def waits_for(self, job: Job) -> list[Job]:
        """The jobs that must have succeeded before this one can: those that are not done, nearest first."""
        found: dict[int, Job] = {}
        for number in job.after:
            before = self.jobs[number]
            if before.step is None:
                found |= {other.number: other for other in self.waits_for(before)}
            elif not before.step.is_done:
                found[number] = before
        return [found[number] for number in sorted(found)]

    def lines(self, job: Job) -> list[Line]:
        """The lines to submit for what is left of a job: damage wants one of its own, with --overwrite. Tasks that have
        units which other arguments made are in none: what is to become of those is for a person to say."""
        if job.step is None or job.step.is_done:
            return []
        waits_for = self.waits_for(job)
        states = [task.state for task in job.step.tasks]
        expected = {PART_DONE, MISSING, *([DONE] if waits_for and job.step.borders_move else [])}
        left = [task for task, state in enumerate(states) if state in expected]
        damaged = [task for task, state in enumerate(states) if state == DAMAGED]
        labels = [self.label(other) for other in waits_for]
        return [
            Line(job.line(tasks, overwrite), labels) for tasks, overwrite in ((left, False), (damaged, True)) if tasks
        ]

    def label(self, job: Job) -> str:
        """The name of a job, and where its output is."""
        return f"{job.name} {self.shown(job.step.output)}" if job.step else job.name

    def shown(self, path: Path) -> Path:
        """A path as it is in the folder that the jobs run in."""
        return path.relative_to(self.folder) if path.is_relative_to(self.folder) else path


def look_at(job: Job, folder: Path, parsers: Parsers) -> Step | None:
    """What there is of the output of a job that runs in `folder`; None if it writes nothing.

    Raises:
        ArgumentError: if its script does not take its arguments.
        PipelineError: if the list of files is not right.
    """
    from cepe_data.inspect.steps import STEPS

    script, arguments = Path(job.words[job.script]).name, job.words[job.script + 1 :]
    if script not in STEPS or "--dry_run" in arguments:
        return None
    try:
        args = parsers[script](arguments)
    except SystemExit:
        raise ArgumentError(f"{script} does not take what SETTINGS has for it: {shlex.join(arguments)}") from None
    kind, look = STEPS[script]
    taken: Any = cli.typed(kind, args)
    paths = {name: folder / value for name, value in vars(taken).items() if isinstance(value, Path)}
    return look(replace(taken, **paths))


def report_step(report: Report, pipeline: Pipeline, job: Job, step: Step) -> None:
    """Say what there is of a step, and what is not right."""
    by_state: dict[str, list[int]] = {}
    for number, task in enumerate(step.tasks):
        by_state.setdefault(task.state, []).append(number)
    [state, *others] = by_state
    of_tasks = f"{len(by_state.get(DONE, []))} of {len(step.tasks)} tasks done" if others else state
    report.say(f"{pipeline.label(job)}: {', '.join([of_tasks, *counts_texts(step, step.counts)])}")
    if others or (len(step.tasks) > 1 and state == PART_DONE):
        for number in by_state.pop(PART_DONE, []):
            report.say(f"  {PART_DONE} {number}: {', '.join(counts_texts(step, step.tasks[number].counts))}")
        for state, numbers in by_state.items():
            report.say(f"  {state} {shards.array_ids(numbers)}")
    wrong = wrong_units(step)
    for unit in wrong[:MAX_DIFFERENCES]:
        if unit.state == OTHER:
            report.say(f"  {pipeline.shown(unit.path)} {unit.what}")
    if OTHER in {unit.state for unit in wrong}:
        report.say("  (use the same SETTINGS, or another output; or remove it, or submit with --overwrite)")
    said = {(finding["path"], finding["what"]) for finding in report.findings}
    for unit in wrong:
        if unit.state == DAMAGED and (str(unit.path), unit.what) not in said:
            report.found(unit.path, unit.what)


def counts_texts(step: Step, counts: Counts) -> list[str]:
    """`3 of 4 parts` and `30 of 40 rows`, as far as they are known."""
    units = [f"{counts.units_done:,} of {counts.units:,} {step.unit}"] if counts.units else []
    return units + ([f"{counts.done:,} of {counts.total:,} {step.measure}"] if counts.total else [])


def wrong_units(step: Step) -> list[Unit]:
    """The units that other arguments made, or that are damaged, each once."""
    units = (unit for task in step.tasks for unit in task.units if unit.state in {OTHER, DAMAGED})
    return list({(unit.path, unit.what): unit for unit in units}.values())


def print_lines(report: Report, pipeline: Pipeline, left: Sequence[Line]) -> None:
    """Print what is to be submitted, as bash that can be pasted: what must wait stands behind a comment."""
    report.say("\nto submit:")
    for text in pipeline.first:
        report.say(text)
    for waits_for, lines in groupby(left, key=lambda line: line.waits_for):
        if waits_for:
            report.say(f"# once {' and '.join(waits_for)} {'is' if len(waits_for) == 1 else 'are'} done:")
        for line in lines:
            report.say(line.text)
    report.say("")


def as_json(pipeline: Pipeline, job: Job, step: Step) -> dict[str, Any]:
    """A step for --json."""
    lines = pipeline.lines(job)
    return {
        "job": job.name,
        "output": str(pipeline.shown(step.output)),
        "done": step.is_done,
        "waits_for": [] if step.is_done else [pipeline.label(other) for other in pipeline.waits_for(job)],
        "unit": step.unit,
        "measure": step.measure,
        "tasks": [
            {"task": number if job.is_array else None, "state": task.state, **asdict(task.counts)}
            for number, task in enumerate(step.tasks)
        ],
        "wrong": [{"path": str(unit.path), "state": unit.state, "what": unit.what} for unit in wrong_units(step)],
        "lines": [line.text for line in lines],
    }
