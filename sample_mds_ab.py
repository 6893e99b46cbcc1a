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

from cepe_data import cli, workers
from cepe_data.samples import options, reader
from cepe_data.samples.summary import finish, report_dry_run
from cepe_data.samples.writer import WindowSampler

WEIGHTS = {"arxiv": 0.5, "book": 0.5}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    lengths = {"total_length": "tokens of a window", "decoder_length": "the last of them, for token_ids"}
    options.add_arguments(parser, WEIGHTS, **lengths)
    return parser.parse_args(arguments)


def main() -> int:
    args = cli.typed(options.InsideOptions, parse_args())
    start = time.monotonic()
    windows, splits = args.windows, args.splits  # raise before any file is opened
    tokens = options.open_tokens(args)
    sampler = WindowSampler(args, tokens, reader.inventory(tokens, splits, {"test": windows, "train": windows}))
    planned = sampler.plan(options.window_requests(args))
    check = functools.partial(sampler.check_other_sets, [one.folder for one in planned])
    check()
    if args.dry_run:
        sets = [sampler.dry_run(one) for one in planned]
        report_dry_run(sets, args)
        return finish(sets, args, start)
    args.require_disk(args.output, sampler.count_bytes(planned))
    with workers.Workers(args.num_workers, sampler.write_part) as pool:
        sampler.write_all(pool, planned, check)
    return finish([one.summary for one in planned], args, start)


if __name__ == "__main__":
    cli.run(main)
