"""Sample test and train sets of all domains, windows over concatenated documents, and the retrieval corpus.

reads   all_jsonl.txt, tokenized/**
writes  OUT/{test,train}/{domain}/ (MDS: token_ids, prev_token_ids, domain), {domain}.rows.npy, OUT/manifest.json, by
        shard 0; and OUT/retrieval/{shard}/{domain}.jsonl (id, contents, neighbor and their token ids), manifest.json

    python sample_mds_concat.py 8k_concat 4096 4096 35000 2500000 2e6 0
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cepe_data import atomic, cli, drawing, sampling, shards, tokenizers
from cepe_data.drawing import Plan, WindowSource
from cepe_data.errors import ArgumentError
from cepe_data.splits import Splits
from cepe_data.windows import ConcatWindows, DocumentWindows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WEIGHTS = {
    "arxiv": 0.025,
    "book": 0.045,
    "c4-rp": 0.15,
    "cc": 0.67,
    "github": 0.045,
    "stackexchange": 0.02,
    "wiki": 0.045,
}
PASSAGES_AT_ONCE = 4096


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    sampling.add_output_argument(parser)
    parser.add_argument(
        "encoder_length", type=cli.positive_count, metavar="ENCODER_LENGTH", help="prev_token_ids' tokens"
    )
    parser.add_argument("decoder_length", type=cli.positive_count, metavar="DECODER_LENGTH", help="token_ids' tokens")
    sampling.add_arguments(parser, WEIGHTS)
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
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    start = time.monotonic()
    shard_id = resolve_retrieval_shard(args)
    windows = ConcatWindows(args.encoder_length + args.decoder_length, args.decoder_length)
    passages = DocumentWindows(args.retrieval_chunk_size, args.retrieval_chunk_size)
    splits = Splits(args.seed, args.test_fraction, args.train_fraction)
    tokens, weights = sampling.open_tokens(args)
    wants_passages = bool(args.retrieval_shards and args.retrieval_samples)
    ways = {"test": windows, "train": windows} if shard_id == 0 else {}
    surveys = drawing.survey(tokens, splits, {**ways, "retrieval": passages} if wants_passages else ways)
    sampler = sampling.WindowSampler.of_run("over concatenation", args, tokens, splits, windows, surveys)
    requests = sampling.window_requests(weights, args) if shard_id == 0 else {}
    passage_requests = sampling.domain_counts("retrieval", weights, args.retrieval_samples) if wants_passages else {}
    corpus_shard = PassageShard(tokens, splits, passages, surveys, args.output, shard_id, args.retrieval_shards)
    outcome = sampling.Outcome()
    if args.dry_run:
        sampler.dry_run(requests, outcome)
        corpus_shard.dry_run(passage_requests, outcome)
        outcome.report_disk(args.output)
        return outcome.finish(args, start)
    sampling.refuse_other_sets(args.output, splits, args.overwrite)
    todo: list[PassageFile] = []
    if wants_passages:
        tokenizer = PassageTokenizer(args.tokenizer, args.tokenized_dir, tokens.fingerprint)
        todo = corpus_shard.missing(passage_requests, tokenizer.decoding, args.overwrite)
        if todo:
            tokenizer.load()  # before hours of work, if it cannot be loaded
    if shard_id == 0:
        sampler.write_all(requests, args, outcome)
    for file in todo:
        corpus_shard.write(file, tokenizer.load(), args.overwrite)
    if wants_passages:
        corpus_shard.account(passage_requests, args, outcome)
    return outcome.finish(args, start)


def resolve_retrieval_shard(args: argparse.Namespace) -> int:
    """SHARD_ID, else the slurm task, else 0; below the number of shards. Without retrieval there is only shard 0."""
    shard_id = args.shard_id if args.shard_id is not None else shards.slurm_task_id() or 0
    if shard_id >= max(1, args.retrieval_shards):
        raise ArgumentError(
            f"SHARD_ID {shard_id} is not below --retrieval_shards {args.retrieval_shards}: ids start at 0"
        )
    return shard_id


class PassageTokenizer:
    """The tokenizer of the token files, for the texts of passages. The saved one is loaded when it is first needed.

    Raises:
        ArgumentError: if none is saved and none is named, or it is not the one that made the token files.
    """

    def __init__(self, name: str | None, tokenized_dir: Path, made_by: str | None) -> None:
        saved = tokenized_dir / "tokenizer"
        identity = tokenizers.saved_identity(saved)
        if name is None and identity is None:
            raise ArgumentError(f"{saved} is missing, so --tokenizer must name the tokenizer of the token files")
        self._name = name or str(saved)
        self._loaded: PreTrainedTokenizerFast | None = None
        if name is None and identity is not None:
            core = (saved / "tokenizer.json").read_text(encoding="utf-8")
        else:
            identity = tokenizers.identify(self.load(), self._name)
            core = self.load().backend_tokenizer.to_str()
        self.decoding = tokenizers.decoding_fingerprint(core)
        if made_by is not None and identity is not None and identity.fingerprint != made_by:
            raise ArgumentError(
                f"the tokenizer {self._name} ({identity.fingerprint}) did not make the token files in {tokenized_dir} "
                f"({made_by}): leave --tokenizer out, or name theirs"
            )

    def load(self) -> PreTrainedTokenizerFast:
        """The tokenizer itself."""
        if self._loaded is None:
            self._loaded = tokenizers.load_pretrained(self._name)
        return self._loaded


@dataclass(frozen=True)
class PassageFile:
    """A file that is to be made: its passages are rows [start, stop) of the domain's drawing order."""

    path: Path
    domain: str
    start: int
    stop: int
    made_with: atomic.Meta


@dataclass(frozen=True)
class PassageShard:
    """Writes one shard of the retrieval corpus."""

    tokens: drawing.Tokens
    splits: Splits
    passages: DocumentWindows
    surveys: Mapping[str, drawing.Survey]
    output: Path
    shard_id: int
    num_shards: int

    def rows(self, domain: str, requested: int) -> tuple[int, int]:
        """First row and the one after the last, of this shard, in the drawing order of the domain."""
        available = self.surveys[domain].available("retrieval")
        if requested * self.num_shards <= available:
            return self.shard_id * requested, (self.shard_id + 1) * requested
        return shards.row_range(self.shard_id, self.num_shards, available)

    def set_name(self, domain: str) -> str:
        return f"retrieval/{self.shard_id}/{domain}"

    def outcome_line(self, domain: str, requested: int) -> sampling.SetOutcome:
        start, stop = self.rows(domain, requested)
        one = self.surveys[domain]
        available = min(requested, stop - start)
        return sampling.SetOutcome(self.set_name(domain), one.documents["retrieval"], requested, available, available)

    def dry_run(self, requests: Mapping[str, int], outcome: sampling.Outcome) -> None:
        # A token is about 4 bytes of text and 6 of digits, once in the passage and once in the neighbour before it.
        row_bytes = 20 * self.passages.total_length
        for domain, requested in requests.items():
            if requested:
                outcome.add(self.outcome_line(domain, requested), row_bytes)

    def path(self, domain: str) -> Path:
        return self.output / "retrieval" / str(self.shard_id) / f"{domain}.jsonl"

    def shared_made_with(self, domain: str, requested: int, decoding: str) -> atomic.Meta:
        """What the files of a domain have in common over all shards; else they would overlap."""
        return {
            "requested": requested,
            "retrieval_shards": self.num_shards,
            "chunk_size": self.passages.total_length,
            "tokenizer": self.tokens.fingerprint,
            "decoding": decoding,
            "token_files": self.surveys[domain].fingerprint,
            **self.splits.made_with("retrieval"),
        }

    def missing(self, requests: Mapping[str, int], decoding: str, overwrite: bool) -> list[PassageFile]:
        """The files that are still to be made.

        Raises:
            ArgumentError: if one is there that other arguments made, or another shard of its domain is.
        """
        todo = []
        for domain, requested in requests.items():
            start, stop = self.rows(domain, requested)
            if start == stop:
                continue
            path, shared = self.path(domain), self.shared_made_with(domain, requested, decoding)
            for other in sorted(self.output.glob(f"retrieval/*/{domain}.jsonl")):
                if other != path and (meta := atomic.read_meta(other)):
                    made_with = {name: meta["made_with"].get(name) for name in shared}
                    sampling.refuse_differences(other, made_with, shared, overwrite)
            numbers = {"shard_id": self.shard_id, "first_row": start, "stop_row": stop}
            file = PassageFile(path, domain, start, stop, {"kind": "passages", "domain": domain, **numbers, **shared})
            if atomic.is_made(path, file.made_with, overwrite):
                cli.say(f"{path}: skipped, made before with the same arguments")
            else:
                todo.append(file)
        return todo

    def account(self, requests: Mapping[str, int], args: argparse.Namespace, outcome: sampling.Outcome) -> None:
        """Add what came of every request to the outcome, and write it into the manifest."""
        sets = {}
        for domain, requested in requests.items():
            if not requested:
                continue
            line, available = self.outcome_line(domain, requested), self.surveys[domain].available("retrieval")
            outcome.add(line)
            if line.available < requested:
                cli.warn(
                    f"{self.set_name(domain)}: {requested:,} × {self.num_shards} passages are more than the "
                    f"{available:,} that there are; the shards share these, this one has {line.written:,}"
                )
            sets[domain] = {
                "documents": line.documents,
                "passages_available": available,
                "requested": requested,
                "written": line.written,
                "source_files": [file.path for file in self.tokens.files[domain]],
            }
        atomic.write_json(
            self.path("").with_name("manifest.json"),
            {**sampling.describe_run(args), "shard_id": self.shard_id, "sets": sets},
        )

    def write(self, file: PassageFile, tokenizer: PreTrainedTokenizerFast, overwrite: bool) -> None:
        """Write one file."""
        import orjson

        start_time = time.monotonic()
        atomic.remove_stale_temporaries(file.path.parent)
        one = self.surveys[file.domain]
        source = WindowSource.of(self.tokens, file.domain, "retrieval", self.splits, self.passages, one)
        plan = source.draw(file.start, file.stop)
        with (
            atomic.Draft(file.path, file.made_with, overwrite=overwrite) as draft,
            cli.progress_bar(len(plan), "passage", self.set_name(file.domain)) as bar,
        ):
            with draft.path.open("wb") as lines:
                for first in range(0, len(plan), PASSAGES_AT_ONCE):
                    block = plan.rows(first, first + PASSAGES_AT_ONCE)
                    for number, record in enumerate(self._records(source, block, tokenizer), first):
                        record["id"] = f"{file.domain}_{self.shard_id}_{number}"
                        lines.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
                    bar.update(len(block))
            draft.publish({"rows": len(plan)})
        cli.say(f"{file.path}: {len(plan):,} passages, {cli.seconds_since(start_time)}")

    def _records(
        self, source: WindowSource, plan: Plan, tokenizer: PreTrainedTokenizerFast
    ) -> Iterator[dict[str, Any]]:
        """The passages of a plan in its order, without their ids."""
        token_ids: list[np.ndarray] = [np.empty(0)] * (2 * len(plan))
        for token_file, rows in source.by_file(plan):
            for row in rows:
                document, offset, position = int(plan.document[row]), int(plan.offset[row]), int(plan.position[row])
                document_end = position - offset + int(token_file.lengths(document, document + 1)[0])
                middle = position + self.passages.total_length
                stop = min(middle + self.passages.total_length, document_end)
                ids = source.checked(token_file, position, stop).astype(np.int32)
                token_ids[2 * row] = ids[: middle - position]
                token_ids[2 * row + 1] = ids[middle - position :]
        texts = tokenizer.batch_decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for row in range(len(plan)):
            yield {
                "id": "",
                "contents": texts[2 * row],
                "neighbor": texts[2 * row + 1],
                "contents_token_ids": token_ids[2 * row],
                "neighbor_token_ids": token_ids[2 * row + 1],
                "file": int(plan.file[row]),
                "position": int(plan.position[row]),
            }


if __name__ == "__main__":
    cli.run(main)
