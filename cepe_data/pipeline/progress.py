"""What of a run is done, step by step and task by task, and the lines for the rest: of plain bash, or for sbatch.

The outputs are looked at, not the queue: what a job is at work on counts as missing. Nothing is read but meta files and
sizes, so this is quick, and no proof; sanity_check.py is. The exit status is 1 if something is damaged, else 0.
"""

from __future__ import annotations

import argparse
import functools
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from cepe_data import cli, shards
from cepe_data.pipeline.jobs import Job, Pipeline
from cepe_data.storage.report import Report, add_report_arguments
from cepe_data.storage.steps import DAMAGED, DONE, OTHER, PART_DONE, Counts, OutputStatus, Step

HELP = "what is done, task by task, and the lines for the rest"
MAX_DIFFERENCES = 3  # said of a step; --json has all of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plain", action="store_true", help="lines of bash, a task each, and none for sbatch")
    add_report_arguments(parser)


def run(args: argparse.Namespace, pipeline: Pipeline) -> int:
    """Print what is there, and the lines for what is not."""
    report = Report("progress", args.json)
    steps, what = pipeline.steps, "run" if args.plain else "submit"
    lines = {job: list(lines_of(pipeline, job, args.plain)) for job in jobs_to_run(pipeline)}
    waits_for = {job: job.before(lambda other: other.is_needed or bool(lines.get(other))) for job in lines}
    for job in steps:
        report_step(report, pipeline, job)
    first = first_lines(pipeline)
    if any(lines.values()):
        report.say("\n".join([f"\nto {what}:", *first]))
        for job, of_job in lines.items():
            if waits_for[job] and of_job:
                labels = [pipeline.label(other) for other in waits_for[job]]
                report.say(f"# once {' and '.join(labels)} {'is' if len(labels) == 1 else 'are'} done:")
            for line in of_job:
                report.say(line)
        report.say("")
    report.results["first"] = first
    report.results["steps"] = [as_json(pipeline, job, waits_for[job], of_job) for job, of_job in lines.items()]
    num_done = sum(not job.is_needed for job in steps)
    text = f"{num_done} of {len(steps)} steps done, {sum(map(len, lines.values()))} lines to {what}"
    return report.finish(text, pipeline.folder)


def jobs_to_run(pipeline: Pipeline) -> list[Job]:
    """The jobs that have an output, and what marks duplicates for those of which something is left."""
    marked = [before for job in pipeline.jobs if job.left for before in job.after if before.marks_duplicates]
    return [job for job in pipeline.jobs if job.step.tasks or job in marked]


def first_lines(pipeline: Pipeline) -> list[str]:
    """What the other lines need, as bash."""
    folder, environment = shlex.quote(str(pipeline.folder)), shlex.join(map("=".join, pipeline.environment.items()))
    return [f"mkdir -p {folder}/logs && cd {folder}", f"export {environment}", *pipeline.list_lines()]


def lines_of(pipeline: Pipeline, job: Job, plain: bool) -> Iterator[str]:
    """The lines for what is left of a job; damage has one of its own, with --overwrite."""
    for tasks, added in ((job.left if job.step.tasks else [0], []), (job.damaged, ["--overwrite"])):
        if plain:
            of_job = job.tasks if tasks and not job.num_tasks else tasks
            yield from (pipeline.plain([*job.words(task), *added]) for task in of_job)
        elif tasks:
            for first_task, of_array in array_groups(tasks, find_max_array_size()).items():
                yield shlex.join([*sbatch_words(job, of_array, first_task), *added])


def array_groups(tasks: Sequence[int], max_array_size: int | None) -> dict[int, list[int]]:
    """The arrays that tasks are submitted as, each by the task that its first id stands for: the ids of an array of
    slurm are below `max_array_size`."""
    groups: dict[int, list[int]] = {}
    for task in tasks:
        groups.setdefault(task - task % max_array_size if max_array_size else 0, []).append(task)
    return groups


@functools.cache
def find_max_array_size() -> int | None:
    """How many tasks an array of this slurm may have; None without slurm."""
    try:
        said = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return None
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", said)
    return max(1, int(found[1])) if found else 1001  # slurm's default


def sbatch_words(job: Job, tasks: Sequence[int], first_task: int = 0, dependency: str = "") -> list[str]:
    """The line that submits tasks of a job, of an array whose task 0 is task `first_task` of the job."""
    words = ["sbatch", "--parsable", "--job-name", job.name, "--output", "logs/%x-%A_%a.log", *job.slurm]
    if job.num_tasks:
        words.append(f"--array={shards.array_ids(task - first_task for task in tasks)}")
    if dependency:
        words += ["--dependency", f"afterok:{dependency}", "--kill-on-invalid-dep", "yes"]
    return [*words, str(cli.SCRIPTS / "slurm/step.sh"), *([f"+{first_task}"] if first_task else []), *job.words()]


def report_step(report: Report, pipeline: Pipeline, job: Job) -> None:
    """Say what there is of a step, and what is not right."""
    step, by_state = job.step, dict[str, list[int]]()
    for number, task in enumerate(step.tasks):
        by_state.setdefault(task.state, []).append(number)
    [state, *others] = by_state
    of_tasks = f"{len(by_state.get(DONE, []))} of {len(step.tasks)} tasks done" if others else state
    not_needed = ["no later step needs the rest"] if not job.is_needed and not step.is_done else []
    report.say(f"{pipeline.label(job)}: {', '.join([of_tasks, *counts_texts(step, step.counts), *not_needed])}")
    if others or (len(step.tasks) > 1 and state == PART_DONE):
        for number in by_state.pop(PART_DONE, []):
            report.say(f"  {PART_DONE} {number}: {', '.join(counts_texts(step, step.tasks[number].counts))}")
        for state, numbers in by_state.items():
            report.say(f"  {state} {shards.array_ids(numbers)}")
    others_made = [output for output in wrong_outputs(step) if output.state == OTHER]
    for output in others_made[:MAX_DIFFERENCES]:
        report.say(f"  {pipeline.shown(output.path)} {output.what}")
    if others_made:
        report.say("  (use the same settings, or another output; or remove it, or run it with --overwrite)")
    said = {(finding["path"], finding["what"]) for finding in report.findings}
    for output in wrong_outputs(step):
        if output.state == DAMAGED and (str(output.path), output.what) not in said:
            report.found(output.path, output.what)


def counts_texts(step: Step, counts: Counts) -> list[str]:
    """`3 of 4 parts` and `30 of 40 rows`, as far as they are known."""
    known = [(counts.outputs_done, counts.outputs, step.counted), (counts.done, counts.total, step.measure)]
    return [f"{done:,} of {total:,} {name}" for done, total, name in known if total]


def wrong_outputs(step: Step) -> Sequence[OutputStatus]:
    """The outputs that other arguments made, or that are damaged, each once."""
    wrong = [output for output in step.outputs if output.state in {OTHER, DAMAGED}]
    return list({(output.path, output.what): output for output in wrong}.values())


def as_json(pipeline: Pipeline, job: Job, waits_for: Sequence[Job], lines: Sequence[str]) -> dict[str, Any]:
    """A step, or what marks duplicates, for --json."""
    is_step = bool(job.step.tasks)
    return {
        "job": job.name,
        "output": str(pipeline.shown(job.step.folder)),
        "done": is_step and job.step.is_done,
        "needed": job.is_needed or not is_step,
        "waits_for": [pipeline.label(other) for other in waits_for] if job.is_needed or not is_step else [],
        "counted": job.step.counted,
        "measure": job.step.measure,
        "tasks": [
            {"task": number if job.num_tasks else None, "state": task.state, **task.counts._asdict()}
            for number, task in enumerate(job.step.tasks)
        ],
        "wrong": [
            {"path": str(output.path), "state": output.state, "what": output.what} for output in wrong_outputs(job.step)
        ],
        "lines": lines,
    }
