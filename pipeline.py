"""Plan, print, submit and follow a whole run that one settings file describes.

reads   SETTINGS (settings.example.toml is one to copy), and the meta files of what is there
writes  nothing itself, but for the list of the corpus when it submits; `clean --delete` deletes

    python pipeline.py settings.toml plan              # disk and hours of every step, and whether it fits
    python pipeline.py settings.toml print             # the command lines, for bash, xargs, parallel
    python pipeline.py settings.toml submit            # the same as slurm arrays that wait for each other
    python pipeline.py settings.toml progress          # what is done, and the lines for the rest
    python pipeline.py settings.toml clean             # what no later step needs
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from cepe_data import cli
from cepe_data.pipeline import disk, jobs, progress, run
from cepe_data.storage.steps import Script


def main() -> int:
    commands = {
        "plan": (disk.plan, None, "what each step reads, writes and takes, and whether it fits on the disk"),
        "print": (run.print_lines, run.add_print_arguments, "the command lines of all steps, without slurm"),
        "submit": (run.submit, run.add_submit_arguments, "submit what is left to slurm"),
        "progress": (progress.run, progress.add_arguments, progress.HELP),
        "clean": (disk.clean, disk.add_clean_arguments, "list or delete what no later step needs"),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("settings", type=Path, metavar="SETTINGS", help="the settings file, in TOML")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, add_arguments, text) in commands.items():
        command = subparsers.add_parser(name, help=text, description=text, formatter_class=cli.HelpFormatter)
        if add_arguments:
            add_arguments(command)
    args = parser.parse_args()
    return commands[args.command][0](args, jobs.Pipeline(args.settings, parse))


def parse(script: Script, words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a step as its script does."""
    return importlib.import_module(script.name.removesuffix(".py")).parse_args(words)


if __name__ == "__main__":
    cli.run(main)
