"""What a run takes, step by step, before it is run; and what of it may be deleted when.

The numbers are the steps' own: of what is there from meta files, of what is to come from the arguments, and as large as
what is there of its kind. Steps count one after the other, in the order of the table.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from cepe_data import cli
from cepe_data.pipeline.jobs import Job, Pipeline
from cepe_data.storage import outputs
from cepe_data.storage.steps import DONE, OutputStatus, below

NO_FIT = "does not fit on"


def plan(_: argparse.Namespace, pipeline: Pipeline) -> int:
    """Print what each step reads, writes and takes, the disk at the peak and at the end, and whether it fits."""
    steps = pipeline.steps
    everything = [pipeline.corpus, *(output for job in steps for output in job.outputs)]
    total, peak, least, least_peak = 0.0, 0.0, 0.0, 0.0  # the last two: if what may be deleted is deleted at once
    rows, notes = [], []
    if not pipeline.corpus.num_bytes:
        notes.append("the size of the corpus is not known: `print list` lists it, or give [corpus] num_bytes")
    for job in steps:
        takes, written = job.step.takes, total_bytes(job.outputs)
        total, least = total + written, least + written
        peak, least_peak = max(peak, total + takes.scratch_bytes), max(least_peak, least + takes.scratch_bytes)
        read = sum(total_bytes(below(everything, path)) for path in job.step.reads)
        gpu_seconds = takes.flops / pipeline.gpu_tflops / 1e12
        seconds = max(takes.core_seconds / job.cores, takes.serial_seconds) + gpu_seconds / job.gpus
        rows.append((pipeline.label(job), len(job.tasks), size(read), size(written), size(total),
                     *map(hours, (takes.core_seconds, gpu_seconds, seconds / len(job.tasks)))))  # fmt: skip
        if takes.serial_seconds and job.cores > (most := takes.core_seconds / takes.serial_seconds):
            notes.append(f"{job.name}: more than {math.ceil(most)} cores a task do not help, more shards do")
        for other in steps:
            passing = total_bytes(output for output in other.outputs if not output.is_result)
            if passing and other.readers and other.readers[-1] is job:
                least -= passing
                first, *more = (str(pipeline.shown(path)) for path in other.step.intermediates)
                paths = f"{first} and {len(more)} like it" if more else first
                notes.append(f"after {pipeline.label(job)}: {paths} may go, {size(passing)} (`clean` does it)")
    header = ("step", "tasks", "reads", "writes", "disk then", "core hours", "GPU hours", "hours a task")
    cli.say("\n".join([cli.table(header, rows), *notes]))
    there = total_bytes(output for job in steps for output in job.outputs if output.state == DONE)
    place, free_bytes = cli.free_space(pipeline.folder)
    room = free_bytes + there
    verdict = "fits on" if peak <= room else "fits, with `clean` in between, on" if least_peak <= room else NO_FIT
    cli.say(f"at the peak {size(peak)}, at the end {size(total)}; with `clean`: at the peak {size(least_peak)}, at the "
            f"end {size(least)}; there now: {size(there)}")  # fmt: skip
    cli.say(f"that {verdict} the disk of {place}, which has {size(room)} for it → {pipeline.folder}")
    return cli.EXIT_FAILED if verdict == NO_FIT else cli.EXIT_OK


def total_bytes(statuses: Iterable[OutputStatus]) -> float:
    """What outputs take on the disk, or will take."""
    return sum(status.num_bytes for status in statuses)


def size(num_bytes: float) -> str:
    """`4.84 TB`."""
    if not num_bytes:
        return "-"
    rounded = float(f"{num_bytes:.3g}")
    power = min(5, int(math.log10(rounded)) // 3) if rounded >= 1 else 0
    return f"{rounded / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def hours(seconds: float) -> str:
    """`37`, `0.05`, or `<0.01`."""
    if seconds < 36:
        return "<0.01" if seconds else "-"
    return f"{seconds / 3600:.2g}" if seconds < 36_000 else f"{seconds / 3600:,.0f}"


def add_clean_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delete", action="store_true", help="delete what is listed; without it, nothing is touched")


def clean(args: argparse.Namespace, pipeline: Pipeline) -> int:
    """List what no later step needs, with its bytes and what making it again takes; or delete it."""
    rows, total = [], 0
    for folder in {path.parent for job in pipeline.steps for path in job.step.intermediates} if args.delete else ():
        outputs.remove_stale_temporaries(folder)  # of a deletion that was stopped
    for job, path in not_needed(pipeline):
        if not (freed := freed_bytes(path)):
            continue
        takes, total = job.step.takes, total + freed
        again = [f"{hours(takes.core_seconds)} core hours"] if takes.core_seconds else []
        again += [f"{hours(takes.flops / pipeline.gpu_tflops / 1e12)} GPU hours"] if takes.flops else []
        rows.append((str(pipeline.shown(path)), size(freed), job.name, " and ".join(again) or "little"))
        if args.delete:
            outputs.retract(path) if path.is_dir() else outputs.remove(path)
    if rows:
        cli.say(cli.table(("path", "bytes", "made by", "to make all of that step again"), rows))
    what = "deleted" if args.delete else "may be deleted with --delete"
    cli.say(f"{len(rows)} paths, {size(total)} {what} → {pipeline.folder}")
    return cli.EXIT_OK


def not_needed(pipeline: Pipeline) -> Iterator[tuple[Job, Path]]:
    """What is there of intermediates that all who read them are done with."""
    for job in pipeline.steps:
        if job.readers and not any(reader.is_needed for reader in job.readers):
            yield from ((job, path) for path in job.step.intermediates if path.exists())


def freed_bytes(path: Path) -> int:
    """What deleting a file or folder frees: files that have another name elsewhere keep their bytes."""
    files = [path] if path.is_file() else [Path(at, name) for at, _, names in os.walk(path) for name in names]
    num_bytes = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # removed by the step itself, or by another `clean`
            status = file.stat()
            if status.st_nlink == 1:
                num_bytes += status.st_size
    return num_bytes
