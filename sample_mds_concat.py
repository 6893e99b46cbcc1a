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

from cepe_data import cli, shards, workers
from cepe_data.errors import ArgumentError
from cepe_data.samples import options, reader
from cepe_data.samples.passages import PassageShard
from cepe_data.samples.summary import finish, report_dry_run
from cepe_data.samples.windows import Windows
from cepe_data.samples.writer import WindowSampler
from cepe_data.storage.steps import look_at_manifest
from cepe_data.storage.verify import compare_records
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
# What retrieval shards depend on.
RETRIEVAL_ARGUMENTS = {"retrieval_samples", "retrieval_shards", "retrieval_chunk_size", "domains", "seed"}
RETRIEVAL_ARGUMENTS |= {"test_fraction", "train_fraction", "drop_duplicates"}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    lengths = {"encoder_length": "prev_token_ids' tokens", "decoder_length": "token_ids' tokens"}
    options.add_arguments(parser, WEIGHTS, **lengths)
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
    splits = args.splits  # raises before any file is opened
    tokens = options.open_tokens(args)
    has_windows, has_passages = shard_id == 0, bool(args.retrieval_shards and args.retrieval_samples)
    windows: dict[str, Windows] = {"test": args.windows, "train": args.windows} if has_windows else {}
    windows |= {"retrieval": args.passages} if has_passages else {}
    inventories = reader.inventory(tokens, splits, windows)
    sampler = WindowSampler(args, tokens, inventories)
    corpus_shard = PassageShard(args, shard_id, tokens, inventories)
    requests = options.window_requests(args) if has_windows else {}
    passage_requests = options.domain_counts("retrieval", args, args.retrieval_samples) if has_passages else {}
    tokenizer = tokenizers.find(args.tokenizer, args.tokenized_dir, tokens.fingerprint) if has_passages else None
    planned = sampler.plan(requests)
    planned_files = corpus_shard.plan(passage_requests, tokenizer) if tokenizer else []
    replaced = [*(one.folder for one in planned), *(one.output.path for one in planned_files)]
    check = functools.partial(sampler.check_other_sets, replaced)
    check()
    if args.dry_run:
        sets = [sampler.dry_run(one) for one in planned]
        sets += corpus_shard.dry_run(planned_files, tokenizer) if tokenizer else []
        report_dry_run(sets, args)
        return finish(sets, args, start)
    args.require_disk(args.output, sampler.count_bytes(planned) + corpus_shard.count_bytes(planned_files))
    if has_windows:
        with workers.Workers(args.num_workers, sampler.write_part) as pool:
            sampler.write_all(pool, planned, check)
    if tokenizer:
        corpus_shard.write_all(planned_files, tokenizer, check)
        corpus_shard.write_manifest(planned_files)
        if args.shard_id is None and shards.slurm_task_id() is None:
            report_shards_left(args)
    return finish([*(one.summary for one in planned), *(one.summary for one in planned_files)], args, start)


def report_shards_left(args: options.ConcatOptions) -> None:
    """Say which retrieval shards are still to be made."""
    paths = (args.output / "retrieval" / str(shard) / "manifest.json" for shard in range(args.retrieval_shards))
    given = options.described_arguments(args)
    arguments = {name: given.get(name) for name in RETRIEVAL_ARGUMENTS}
    manifests = [look_at_manifest(path)[1]["arguments"] for path in paths]
    left = [shard for shard, found in enumerate(manifests) if not found or compare_records(found, arguments)]
    if left:
        cli.say(
            f"{len(left)} of {args.retrieval_shards} retrieval shards are left: run this with each SHARD_ID of "
            f"{shards.array_ids(left)} behind RETRIEVAL_SAMPLES (sbatch --array={shards.array_ids(left)})"
        )


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
