"""Kill every step at random moments until it has been killed often enough, and compare with an undisturbed run.

    python benchmarks/faults.py            # 200 kills; about 6 minutes on 2 cores, 1 GB of disk

Each step works on a small corpus with several files, shards and workers. A run is killed by SIGKILL or SIGTERM, alone
or with its workers, and started again, perhaps to be killed again, until the step has come to its end; then it begins
anew. After every kill, all that has a final name must be what an undisturbed run makes, byte by byte; in the end
nothing may be missing or left over. SIGTERM must end a run within 10 seconds, with status 143. tests/kills.py has the
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
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import find_corpus
from cepe_data import cli
from tests import kills, preloaded, reference

SAMPLED = ("--test_fraction", "0.2", "--allow_shortage", "--num_workers", "2")
CONCAT = ("sample_mds_concat.py", "concat", "96", "32", "20", "400", "300")
PASSAGES = (*SAMPLED, "--retrieval_shards", "2", "--retrieval_chunk_size", "32", "--rows_per_part", "40")
TEACHER = (
    "calculate_logits.py", "--input_dir", "ab/train", "--domain", "arxiv", "--model_dir", "teacher", "--topk", "5",
    "--num_encoder_tokens", "64", "--num_decoder_tokens", "32", "--rows_per_part", "40", "--num_shards", "2",
)  # fmt: skip
EMBED = (
    "retrieval.embed_passages", "--corpus", "concat/retrieval", "--output", "embeddings", "--model_dir", "encoder",
    "--part_bytes", "30000", "--num_workers", "2", "--num_shards", "2",
)  # fmt: skip
SEARCH = (
    "retrieval.search", "--queries", "concat/test", "--embeddings", "embeddings", "--output", "hits", "--model_dir",
    "encoder", "--topk", "20", "--exclude_overlap", "16", "--allow_shortage", "--num_workers", "2", "--num_shards", "2",
)  # fmt: skip
WRITE = (
    "retrieval.write_mds", "--hits", "hits", "--embeddings", "embeddings", "--queries", "concat/test", "--output",
    "retrieved/test", "--topk", "10", "--rows_per_part", "4",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A step of the pipeline: its commands, one after the other, and the folder that they write into."""

    name: str
    commands: tuple[kills.Command, ...]
    output: str


def shards_of(command: kills.Command) -> tuple[kills.Command, ...]:
    """The command for both of two shards."""
    return (*command, "--shard_id", "0"), (*command, "--shard_id", "1")


STEPS = (
    Step(
        "tokenize",
        (("tokenize_jsonl.py", "--tokenizer", "tokenizer.model", "--num_workers", "2"),),
        "tokenized",
    ),
    Step("duplicates", (("sanity_check.py", "duplicates", "--num_workers", "1"),), "tokenized"),
    Step(
        "sample_ab", (("sample_mds_ab.py", "ab", "128", "64", "100", "800", *SAMPLED, "--rows_per_part", "50"),), "ab"
    ),
    Step("sample_concat", ((*CONCAT, "0", *PASSAGES), (*CONCAT, "1", *PASSAGES)), "concat"),
    Step("annotate", (*shards_of(TEACHER), (*TEACHER, "--merge")), "ab/train-logits-enc64-dec32-teacher"),
    Step("embed", shards_of(EMBED), "embeddings"),
    Step("search", (*shards_of(SEARCH), (*SEARCH, "--merge")), "hits"),
    Step("write_mds", (WRITE,), "retrieved"),
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--kills", type=cli.positive_count, default=200, help="in all, shared out over the steps")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    names = [step.name for step in STEPS]
    parser.add_argument("--steps", nargs="+", choices=names, default=names, help="which steps are killed")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    start = time.monotonic()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    preloaded.import_all()
    draw, tallies, num_failed = random.Random(args.seed), [], 0
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        make_inputs(whole)
        for step in STEPS:
            before, paces = run_undisturbed(step, whole)
            if step.name not in args.steps:
                continue
            place = args.steps.index(step.name)
            number = (place + 1) * args.kills // len(args.steps) - place * args.kills // len(args.steps)
            try:
                tally = disturb(step, whole, Path(scratch) / step.name, before, paces, number, draw)
            except kills.FaultError as error:
                print(f"FAILED {step.name}: {error}", flush=True)
                num_failed += 1
                continue
            tallies.append(tally)
            print(f"{step.name:14} {describe(tally)}", flush=True)
    num_killed, num_resumed, num_files, num_bytes = (
        sum(getattr(tally, name) for tally in tallies)
        for name in ("num_killed", "num_resumed", "num_files", "num_bytes")
    )
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
        f"{tally.num_resumed} runs resumed, {tally.num_rounds} came to their end; "
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
    finish(("get_all_jsonl.py", "redpajama"), folder)
    models.make_teacher(folder / "teacher", 32_000)
    (folder / "encoder").symlink_to(models.find_encoder())


def finish(command: kills.Command, folder: Path) -> None:
    """Run a command to its end."""
    kills.measure(command, folder, folder, folder.with_suffix(".log"))


def run_undisturbed(step: Step, whole: Path) -> tuple[dict[str, bytes], list[kills.Pace]]:
    """Run a step in `whole`. Returns what was in its output before, and how its commands went."""
    output = whole / step.output
    before = reference.tree_bytes(output) if output.exists() else {}
    return before, [kills.measure(command, whole, output, whole.with_suffix(".log")) for command in step.commands]


def disturb(
    step: Step,
    whole: Path,
    folder: Path,
    before: dict[str, bytes],
    paces: list[kills.Pace],
    number: int,
    draw: random.Random,
) -> kills.Tally:
    """Kill a step so many times in a folder of its own."""
    lay_out(folder, whole, Path(step.output))
    made = reference.tree_bytes(whole / step.output)
    victim = kills.Victim(step.commands, paces, folder, folder / step.output, made, before, folder.with_suffix(".log"))
    tally = victim.disturb(number, draw)
    shutil.rmtree(folder)
    return tally


def lay_out(folder: Path, whole: Path, output: Path) -> None:
    """Everything that is in `whole` but the output, as links."""
    folder.mkdir()
    for path in whole.iterdir():
        if path.name != output.parts[0]:
            (folder / path.name).symlink_to(path)
        elif len(output.parts) > 1:
            lay_out(folder / path.name, path, Path(*output.parts[1:]))


if __name__ == "__main__":
    sys.exit(main())
