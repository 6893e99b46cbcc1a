"""The summary of a run of a sampler, or of a dry run: the table of every set, the shortage, the exit status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from cepe_data import cli
from cepe_data.samples.options import SampleOptions


@dataclass(frozen=True)
class SetSummary:
    """The documents of a set's split; and its rows: requested, available, and written. In a dry run also what writing
    it takes: files (MDS shards, or one jsonl), their bytes, and seconds on one core."""

    name: str
    documents: int
    requested: int
    available: int
    written: int
    files: int = 0
    num_bytes: int = 0
    seconds: float = 0.0


def format_minutes(minutes: float) -> str:
    """`12.3`, or `<0.1`."""
    return f"{minutes:,.1f}" if minutes >= 0.1 or not minutes else "<0.1"


def report_dry_run(sets: Sequence[SetSummary], args: SampleOptions) -> None:
    """Print what a run would write, the time it would take, and the space that is free for it."""
    header = ("set", "documents", "requested", "available", "rows", "files", "bytes", "minutes")
    minutes = [one.seconds / 60 / args.num_workers for one in sets]
    rows = [(*astuple(one)[:-1], format_minutes(expected)) for one, expected in zip(sets, minutes, strict=True)]
    cli.say(cli.table(header, rows))
    if made := sum(one.written > 0 and not one.files for one in sets):
        cli.say(f"{made} of these sets are there already, made with the same arguments")
    taken = format_minutes(sum(minutes))
    cli.say(f"about {taken} minutes with {args.num_workers} workers, from a measured sample of each set")
    cli.report_disk(args.output, sum(one.num_bytes for one in sets))


def finish(sets: Sequence[SetSummary], args: SampleOptions, start: float) -> int:
    """Print the last lines, the shortage among them if there is one; return the exit status."""
    written = [one.written for one in sets if one.written]
    what = "would be there" if args.dry_run else "are there"
    cli.say(f"{sum(written):,} rows in {len(written)} sets {what}, {cli.seconds_since(start)} → {args.output}")
    short = [one for one in sets if one.written < one.requested]
    if not short:
        return cli.EXIT_OK
    if empty := [one.name for one in short if not one.written]:
        cli.warn(
            f"{', '.join(empty)}: nothing is available, so there is no folder. Give its split more documents "
            f"(--test_fraction, --train_fraction), or ask for shorter lengths"
        )
    cli.say(f"shortage, all that is available {'would be' if args.dry_run else 'was'} taken:")
    rows = [(one.name, one.requested, one.available, one.written) for one in short]
    cli.say(cli.table(("set", "requested", "available", "written"), rows))
    return cli.EXIT_OK if args.allow_shortage else cli.EXIT_SHORTAGE
