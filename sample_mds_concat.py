"""Sample test and train sets of all domains, windows over concatenated documents, and the retrieval corpus.

reads   all_jsonl.txt, tokenized/**
writes  OUT/{test,train}/{domain}/ (MDS: token_ids, prev_token_ids, domain), {domain}.rows.npy, OUT/manifest.json, by
        shard 0; and OUT/retrieval/{shard}/{domain}.jsonl (id, contents, neighbor and their token ids), manifest.json

    python sample_mds_concat.py 8k_concat 4096 4096 35000 2500000 2e6 0
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Sequence

from cepe_data import cli, shards
from cepe_data.errors import ArgumentError
from cepe_data.samples import options, reader
from cepe_data.samples.passages import PassageShard
from cepe_data.samples.summary import Summary
from cepe_data.samples.windows import DocumentWindows
from cepe_data.samples.writer import WindowSampler
from cepe_data.tokens import tokenizers

WEIGHTS = {
    "arxiv": 0.025,
    "book": 0.045,
    "c4-rp": 0.15,
    "cc": 0.67,
    "github": 0.045,
    "stackexchange": 0.02,
    "wiki": 0.045,
}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    options.add_output_argument(parser)
    parser.add_argument(
        "encoder_length", type=cli.positive_count, metavar="ENCODER_LENGTH", help="prev_token_ids' tokens"
    )
    parser.add_argument("decoder_length", type=cli.positive_count, metavar="DECODER_LENGTH", help="token_ids' tokens")
    options.add_arguments(parser, WEIGHTS)
    retrieval = parser.add_argument_group("retrieval")
    parser.add_argument("retrieval_samples", type=cli.count, metavar="RETRIEVAL_SAMPLES", help="passages of each shard")
    parser.add_argument(
        "shard_id",
        type=cli.count,
        nargs="?",
        metavar="SHARD_ID",
        help=f"retrieval shard; 0 also writes test and train (default: ${shards.SLURM_TASK_ID}, else 0)",
    )
    retrieval.add_argument("--retrieval_shards", type=cli.count, default=100, help="how many there are; 0 for none")
    retrieval.add_argument("--retrieval_chunk_size", type=cli.positive_count, default=256, help="tokens of a passage")
    retrieval.add_argument("--tokenizer", default=None, help="for the texts (default: TOKENIZED_DIR/tokenizer)")
    return parser.parse_args(arguments)


def main() -> int:
    args = cli.typed(options.ConcatOptions, parse_args())
    start = time.monotonic()
    shard_id = resolve_retrieval_shard(args)
    windows = options.over_concatenation(args.encoder_length, args.decoder_length)
    passages = DocumentWindows(args.retrieval_chunk_size, args.retrieval_chunk_size)
    splits = options.make_splits(args)
    tokens = options.open_tokens(args)
    wants_passages = bool(args.retrieval_shards and args.retrieval_samples)
    ways = {"test": windows, "train": windows} if shard_id == 0 else {}
    inventories = reader.inventory(tokens, splits, {**ways, "retrieval": passages} if wants_passages else ways)
    sampler = WindowSampler.of_run(options.OVER_CONCATENATION, args, tokens, splits, windows, inventories)
    requests = options.window_requests(args) if shard_id == 0 else {}
    passage_requests = options.domain_counts("retrieval", args, args.retrieval_samples) if wants_passages else {}
    corpus_shard = PassageShard(tokens, splits, passages, inventories, args.output, shard_id, args.retrieval_shards)
    tokenizer = tokenizers.find(args.tokenizer, args.tokenized_dir, tokens.fingerprint) if wants_passages else None
    planned = sampler.plan(requests)
    todo = corpus_shard.missing(passage_requests, tokenizer, args)
    replaced = [*(one.folder for one in planned), *(file.output.path for file in todo)]
    check = functools.partial(sampler.check_other_sets, replaced)
    check()
    summary = Summary()
    if args.dry_run:
        sampler.dry_run(planned, summary)
        corpus_shard.dry_run(passage_requests, todo, tokenizer, summary)
        summary.report_dry_run(args)
        return summary.finish(args, start)
    if shard_id == 0:
        with sampler.start_workers(args.num_workers) as pool:
            sampler.write_all(pool, planned, options.describe_run(args), summary, check)
    if tokenizer:
        corpus_shard.write_all(todo, tokenizer, args.num_workers, check)
        corpus_shard.account(passage_requests, options.describe_run(args), summary)
    return summary.finish(args, start)


def resolve_retrieval_shard(args: options.ConcatOptions) -> int:
    """SHARD_ID, else the slurm task, else 0; below the number of shards. Without retrieval there is only shard 0."""
    shard_id = args.shard_id if args.shard_id is not None else shards.slurm_task_id() or 0
    if shard_id and not args.retrieval_shards:
        raise ArgumentError(f"SHARD_ID {shard_id}: with --retrieval_shards 0, only SHARD_ID 0 has anything to make")
    if shard_id >= max(1, args.retrieval_shards):
        raise ArgumentError(
            f"SHARD_ID {shard_id} is not below --retrieval_shards {args.retrieval_shards}: ids start at 0"
        )
    return shard_id


if __name__ == "__main__":
    cli.run(main)
