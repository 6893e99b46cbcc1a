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
from cepe_data.inspect import check_all, overlap, progress, report_page, show
from cepe_data.inspect import duplicates as inspect_duplicates

COMMANDS = {
    **check_all.CHECKS,
    "all": check_all,
    "progress": progress,
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
    if args.command == "progress":
        return progress.run(args, parsers_of_steps())
    return COMMANDS[args.command].run(args)


def parsers_of_steps() -> progress.Parsers:
    """What parses the arguments of each batch file in slurm/: its script."""
    import calculate_logits
    import sample_mds_ab
    import sample_mds_concat
    import tokenize_jsonl
    from retrieval import embed_passages, search, write_mds

    return {
        "tokenize.sh": tokenize_jsonl.parse_args,
        "sample_ab.sh": sample_mds_ab.parse_args,
        "sample_concat.sh": sample_mds_concat.parse_args,
        "annotate.sh": calculate_logits.parse_args,
        "embed.sh": embed_passages.parse_args,
        "search.sh": search.parse_args,
        "write_mds.sh": write_mds.parse_args,
    }


if __name__ == "__main__":
    cli.run(main)
