"""The summary of a run of a sampler, or of a dry run: the table of every set, the shortage, the exit status."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from cepe_data import cli
from cepe_data.samples.options import SampleOptions


@dataclass(frozen=True)
class SetSummary:
    """The documents of a set's split; and its rows: requested, available, and written."""

    name: str
    documents: int
    requested: int
    available: int
    written: int


@dataclass(frozen=True)
class Estimate:
    """What writing a set takes: files (MDS shards, or one jsonl), their bytes, seconds on one core."""

    files: int
    num_bytes: int
    seconds: float


def format_minutes(minutes: float) -> str:
    """`12.3`, or `<0.1`."""
    return f"{minutes:,.1f}" if minutes >= 0.1 or not minutes else "<0.1"


@dataclass
class Summary:
    """The summary of a run, set by set; in a dry run, with what each would take."""

    sets: list[SetSummary] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)

    def report_dry_run(self, args: SampleOptions) -> None:
        """Print what a run would write, the time it would take, and the space that is free for it."""
        header = ("set", "documents", "requested", "available", "rows", "files", "bytes", "minutes")
        minutes = [takes.seconds / 60 / args.num_workers for takes in self.estimates]
        rows = [
            (*dataclasses.astuple(one), takes.files, takes.num_bytes, format_minutes(expected))
            for one, takes, expected in zip(self.sets, self.estimates, minutes, strict=True)
        ]
        cli.say(cli.table(header, rows))
        is_made = [one.written and not takes.files for one, takes in zip(self.sets, self.estimates, strict=True)]
        if made := sum(map(bool, is_made)):
            cli.say(f"{made} of these sets are there already, made with the same arguments")
        taken = format_minutes(sum(minutes))
        cli.say(f"about {taken} minutes with {args.num_workers} workers, from a measured sample of each set")
        cli.report_disk(args.output, sum(takes.num_bytes for takes in self.estimates))

    def finish(self, args: SampleOptions, start: float) -> int:
        """Print the last lines, the shortage among them if there is one; return the exit status."""
        written = [one.written for one in self.sets if one.written]
        what = "would be there" if args.dry_run else "are there"
        cli.say(f"{sum(written):,} rows in {len(written)} sets {what}, {cli.seconds_since(start)} → {args.output}")
        short = [one for one in self.sets if one.written < one.requested]
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
