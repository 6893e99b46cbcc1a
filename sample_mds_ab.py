"""Sample test and train sets of long documents: windows inside one document, arxiv and book by default.

reads   all_jsonl.txt, tokenized/**
writes  OUT/{test,train}/{domain}/ (MDS: token_ids, prev_token_ids, domain), {domain}.rows.npy, OUT/manifest.json

    python sample_mds_ab.py 8k_ab 8192 4096 1000 5000000
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Sequence

from cepe_data import cli
from cepe_data.samples import options, reader
from cepe_data.samples.summary import Summary
from cepe_data.samples.writer import WindowSampler

WEIGHTS = {"arxiv": 0.5, "book": 0.5}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    options.add_output_argument(parser)
    parser.add_argument("total_length", type=cli.positive_count, metavar="TOTAL_LENGTH", help="tokens of a window")
    parser.add_argument(
        "decoder_length", type=cli.positive_count, metavar="DECODER_LENGTH", help="the last of them, for token_ids"
    )
    options.add_arguments(parser, WEIGHTS)
    return parser.parse_args(arguments)


def main() -> int:
    args = cli.typed(options.InsideOptions, parse_args())
    start = time.monotonic()
    windows, splits = options.inside_documents(args.total_length, args.decoder_length), options.make_splits(args)
    tokens = options.open_tokens(args)
    inventories = reader.inventory(tokens, splits, {"test": windows, "train": windows})
    sampler = WindowSampler.of_run(options.INSIDE_DOCUMENTS, args, tokens, splits, windows, inventories)
    requests = options.window_requests(args)
    planned = sampler.plan(requests)
    check = functools.partial(sampler.check_other_sets, [one.folder for one in planned])
    check()
    summary = Summary()
    if args.dry_run:
        sampler.dry_run(planned, summary)
        summary.report_dry_run(args)
    else:
        with sampler.start_workers(args.num_workers) as pool:
            sampler.write_all(pool, planned, options.describe_run(args), summary, check)
    return summary.finish(args, start)


if __name__ == "__main__":
    cli.run(main)
