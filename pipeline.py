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
from pathlib import Path

from cepe_data import cli
from cepe_data.pipeline import disk, jobs, progress, run


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
    return commands[args.command][0](args, jobs.Builder(args.settings, parsers_of_scripts()).pipeline())


def parsers_of_scripts() -> jobs.Parsers:
    """What parses the arguments of each script that is a step."""
    import calculate_logits
    import sample_mds_ab
    import sample_mds_concat
    import tokenize_jsonl
    from retrieval import embed_passages, search, write_mds

    return {
        "tokenize_jsonl.py": tokenize_jsonl.parse_args,
        "sample_mds_ab.py": sample_mds_ab.parse_args,
        "sample_mds_concat.py": sample_mds_concat.parse_args,
        "calculate_logits.py": calculate_logits.parse_args,
        "retrieval.embed_passages": embed_passages.parse_args,
        "retrieval.search": search.parse_args,
        "retrieval.write_mds": write_mds.parse_args,
    }


if __name__ == "__main__":
    cli.run(main)
