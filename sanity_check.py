"""Check what the pipeline wrote, or look at it.

reads   all_jsonl.txt, tokenized/**, and the sets that a command names
writes  nothing, but for what a command says; exit status 1 if anything is missing or damaged

    python sanity_check.py --num_shards 100             # the token files
    python sanity_check.py show 8k_ab/test/arxiv 0
"""

from __future__ import annotations

import argparse
import sys

from cepe_data import cli
from cepe_data.inspect import check_all, overlap, report_page, show
from cepe_data.inspect import duplicates as inspect_duplicates

COMMANDS = {
    **{name: module for name, (module, _) in check_all.CHECKS.items()},
    "all": check_all,
    "duplicates": inspect_duplicates,
    "overlap": overlap,
    "show": show,
    "report": report_page,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands, each with a --help of its own")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=cli.HelpFormatter
        )
        module.add_arguments(command)
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in {"-h", "--help"}):
        arguments.insert(0, "tokens")
    return parser.parse_args(arguments)


def main() -> int:
    args = parse_args()
    if args.command in check_all.CHECKS:
        return check_all.run_one(args)
    return COMMANDS[args.command].run(args)


if __name__ == "__main__":
    cli.run(main)
