"""Kill every step at random moments until it has been killed often enough, and compare with an undisturbed run.

    python benchmarks/faults.py            # 200 kills; about 6 minutes on 2 cores, 1 GB of disk

Each step works on a small corpus with several files, shards and workers. A run is killed by SIGKILL or SIGTERM, alone
or with its workers, and started again, perhaps to be killed again, until the step is complete; then it begins anew.
After every kill, each file that has its final name must be what an undisturbed run makes, byte by byte; in the end no
file may be missing or left over. SIGTERM must end a run within 10 seconds, with status 143. tests/kills.py has the
details.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("benchmarks/")[0] or "."  # this folder has modules that are named as the library's

import argparse
import os
import random
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.generated import find_corpus
from cepe_data import cli, shards
from tests import kills, preloaded

SAMPLED = "--test_fraction 0.2 --allow_shortage --num_workers 2"
CONCAT = "sample_mds_concat.py concat 96 32 20 400 300"
PASSAGES = f"{SAMPLED} --retrieval_shards 2 --retrieval_chunk_size 32 --rows_per_part 40"
TEACHER = (
    "calculate_logits.py --input_dir ab/train --domain arxiv --model_dir teacher --topk 5 --num_encoder_tokens 64 "
    "--num_decoder_tokens 32 --rows_per_part 40 --num_shards 2"
)
EMBED = (
    "retrieval.embed_passages --corpus concat/retrieval --output embeddings --model_dir encoder --part_bytes 30000 "
    "--num_workers 2 --num_shards 2"
)
SEARCH = (
    "retrieval.search --queries concat/test --embeddings embeddings --output hits --model_dir encoder --topk 20 "
    "--exclude_overlap 16 --allow_shortage --num_workers 2 --num_shards 2"
)
WRITE = (
    "retrieval.write_mds --hits hits --embeddings embeddings --queries concat/test --output retrieved/test --topk 10 "
    "--rows_per_part 4"
)
EVERY_SHARD = ("--shard_id 0", "--shard_id 1")
# By step: the folder that it writes into, and its commands, one after the other.
STEPS = {
    "tokenize": ("tokenized", ["tokenize_jsonl.py --tokenizer tokenizer.model --num_workers 2"]),
    "duplicates": ("tokenized", ["sanity_check.py duplicates --num_workers 1"]),
    "sample_ab": ("ab", [f"sample_mds_ab.py ab 128 64 100 800 {SAMPLED} --rows_per_part 50"]),
    "sample_concat": ("concat", [f"{CONCAT} {shard_id} {PASSAGES}" for shard_id in (0, 1)]),
    "annotate": (
        "ab/train-logits-enc64-dec32-teacher",
        [f"{TEACHER} {flags}" for flags in (*EVERY_SHARD, "--merge")],
    ),
    "embed": ("embeddings", [f"{EMBED} {flags}" for flags in EVERY_SHARD]),
    "search": ("hits", [f"{SEARCH} {flags}" for flags in (*EVERY_SHARD, "--merge")]),
    "write_mds": ("retrieved", [WRITE]),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--kills", type=cli.positive_count, default=200, help="in all, divided among the steps")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", nargs="+", choices=[*STEPS], default=[*STEPS], help="which steps are killed")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    start = time.monotonic()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    preloaded.import_all()
    rng, tallies = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        make_inputs(whole)
        for step, (output, lines) in STEPS.items():
            commands = [tuple(line.split()) for line in lines]
            victim = kills.Victim.measured(commands, whole, output, whole.with_suffix(".log"))
            if step not in args.steps:
                continue
            first, stop = shards.row_range(args.steps.index(step), len(args.steps), args.kills)
            folder = Path(scratch) / step
            lay_out(folder, whole, Path(output))
            try:
                tally = replace(victim, folder=folder, output=folder / output).disturb(stop - first, rng)
            except kills.FaultError as error:
                print(f"FAILED {step}: {error}", flush=True)
                continue
            shutil.rmtree(folder)
            tallies.append(tally)
            print(f"{step:14} {describe(tally)}", flush=True)
    num_killed, num_resumed, num_files, num_bytes = (
        sum(getattr(tally, name) for tally in tallies)
        for name in ("num_killed", "num_resumed", "num_files", "num_bytes")
    )
    num_failed = len(args.steps) - len(tallies)
    print(
        f"{num_killed} kills, {num_resumed} runs resumed, {num_files:,} files and {num_bytes:,} bytes compared, "
        f"{num_failed} of {len(args.steps)} steps failed, {cli.seconds_since(start)}"
    )
    return int(num_failed > 0)


def describe(tally: kills.Tally) -> str:
    """A line about a step."""
    by_signal = ", ".join(f"{tally.killed[number]} {number.name}" for number in kills.SIGNALS)
    return (
        f"{tally.num_killed:3} kills ({by_signal}: ended in {tally.longest_end:.1f} s at most), "
        f"{tally.num_resumed} runs resumed, {tally.num_rounds} rounds completed; "
        f"{tally.num_files:,} files, {tally.num_bytes:,} bytes compared"
    )


def make_inputs(folder: Path) -> None:
    """A corpus and its list, a tokenizer, a teacher and an encoder."""
    from demo import models

    folder.mkdir()
    corpus, tokenizer = find_corpus(folder)
    (folder / "redpajama").symlink_to(corpus)
    if not (folder / "tokenizer.model").exists():
        (folder / "tokenizer.model").symlink_to(tokenizer)
    kills.measure(("get_all_jsonl.py", "redpajama"), folder, folder, folder.with_suffix(".log"))
    models.make_teacher(folder / "teacher", 32_000)
    (folder / "encoder").symlink_to(models.find_encoder())


def lay_out(folder: Path, whole: Path, output: Path) -> None:
    """Link everything that is in `whole` except the output."""
    folder.mkdir()
    for path in whole.iterdir():
        if path.name != output.parts[0]:
            (folder / path.name).symlink_to(path)
        elif len(output.parts) > 1:
            lay_out(folder / path.name, path, Path(*output.parts[1:]))


if __name__ == "__main__":
    sys.exit(main())
