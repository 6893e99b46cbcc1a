"""What of a run is done, step by step and task by task, and the lines for the rest: of plain bash, or for sbatch.

The outputs are looked at, not the queue: what a job is at work on counts as missing. Nothing is read but meta files and
sizes, so this is quick, and no proof; sanity_check.py is. The exit status is 1 if something is damaged, else 0.
"""

from __future__ import annotations

import argparse
import shlex
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
    for job, step in pipeline.steps:
        report_step(report, pipeline, job, step)
    lines = {id(job): list(lines_of(pipeline, job, args.plain)) for job, _ in pipeline.steps}
    first = first_lines(pipeline)
    if num_lines := sum(map(len, lines.values())):
        report.say("\nto run:" if args.plain else "\nto submit:")
        for text in first:
            report.say(text)
        for job, _ in pipeline.steps:
            if job.waits_for and lines[id(job)]:
                labels = [pipeline.label(other) for other in job.waits_for]
                report.say(f"# once {' and '.join(labels)} {'is' if len(labels) == 1 else 'are'} done:")
            for text in lines[id(job)]:
                report.say(text)
        report.say("")
    report.results["first"] = first
    report.results["steps"] = [as_json(pipeline, job, step, lines[id(job)]) for job, step in pipeline.steps]
    num_done = sum(not job.is_needed for job, _ in pipeline.steps)
    what = "run" if args.plain else "submit"
    text = f"{num_done} of {len(report.results['steps'])} steps done, {num_lines} lines to {what}"
    return report.finish(text, pipeline.folder)


def first_lines(pipeline: Pipeline) -> list[str]:
    """What the other lines need, as bash."""
    folder = shlex.quote(str(pipeline.folder))
    lines = [
        f"mkdir -p {folder}/logs && cd {folder}",
        "export " + shlex.join(map("=".join, environment(pipeline).items())),
    ]
    return lines + list_lines(pipeline)


def list_lines(pipeline: Pipeline) -> list[str]:
    """What lists the corpus, where it is not listed."""
    is_there = (pipeline.folder / "all_jsonl.txt").exists()
    return [] if is_there else [pipeline.plain(pipeline.list_words)]


def environment(pipeline: Pipeline) -> dict[str, str]:
    """What the batch file takes from the environment."""
    return {"CEPE_DATA_HOME": str(cli.SCRIPTS), "PYTHON": pipeline.python}


def lines_of(pipeline: Pipeline, job: Job, plain: bool) -> Iterator[str]:
    """The lines for what is left of a job; damage has one of its own, with --overwrite."""
    for tasks, overwrite in job.left():
        added = ["--overwrite"] * overwrite
        if plain:
            ids = tasks if job.num_tasks else [None]
            yield from (pipeline.plain([*job.words(task), *added]) for task in ids)
        else:
            yield shlex.join([*sbatch_words(job, shards.array_ids(tasks)), *job.words(), *added])


def sbatch_words(job: Job, ids: str, first_task: int = 0, dependency: str = "") -> list[str]:
    """The beginning of a line that submits tasks of a job, up to its script. An array of slurm begins with task
    `first_task`."""
    words = ["sbatch", "--parsable", "--job-name", job.name, "--output", "logs/%x-%A_%a.log"]
    words += [f"--array={ids}" if word.startswith("--array=") else word for word in job.slurm]
    if dependency:
        words += ["--dependency", f"afterok:{dependency}", "--kill-on-invalid-dep", "yes"]
    return [*words, str(cli.SCRIPTS / "slurm/step.sh"), *([f"+{first_task}"] if first_task else [])]


def report_step(report: Report, pipeline: Pipeline, job: Job, step: Step) -> None:
    """Say what there is of a step, and what is not right."""
    by_state: dict[str, list[int]] = {}
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
    wrong = wrong_outputs(step)
    for output in wrong[:MAX_DIFFERENCES]:
        if output.state == OTHER:
            report.say(f"  {pipeline.shown(output.path)} {output.what}")
    if OTHER in {output.state for output in wrong}:
        report.say("  (use the same settings, or another output; or remove it, or run it with --overwrite)")
    said = {(finding["path"], finding["what"]) for finding in report.findings}
    for output in wrong:
        if output.state == DAMAGED and (str(output.path), output.what) not in said:
            report.found(output.path, output.what)


def counts_texts(step: Step, counts: Counts) -> list[str]:
    """`3 of 4 parts` and `30 of 40 rows`, as far as they are known."""
    outputs = [f"{counts.outputs_done:,} of {counts.outputs:,} {step.counted}"] if counts.outputs else []
    return outputs + ([f"{counts.done:,} of {counts.total:,} {step.measure}"] if counts.total else [])


def wrong_outputs(step: Step) -> Sequence[OutputStatus]:
    """The outputs that other arguments made, or that are damaged, each once."""
    return list(
        {(output.path, output.what): output for output in step.outputs if output.state in {OTHER, DAMAGED}}.values()
    )


def as_json(pipeline: Pipeline, job: Job, step: Step, lines: Sequence[str]) -> dict[str, Any]:
    """A step for --json."""
    return {
        "job": job.name,
        "output": str(pipeline.shown(step.folder)),
        "done": step.is_done,
        "needed": job.is_needed,
        "waits_for": [pipeline.label(other) for other in job.waits_for] if job.is_needed else [],
        "counted": step.counted,
        "measure": step.measure,
        "tasks": [
            {"task": number if job.num_tasks else None, "state": task.state, **task.counts._asdict()}
            for number, task in enumerate(step.tasks)
        ],
        "wrong": [
            {"path": str(output.path), "state": output.state, "what": output.what} for output in wrong_outputs(step)
        ],
        "lines": lines,
    }
