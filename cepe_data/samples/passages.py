"""The retrieval corpus: passages as json lines, `OUT/retrieval/{shard}/{domain}.jsonl`, in sampling order.

One UTF-8 JSON object a line (docs/formats.md): `id`, `contents` and `neighbor` (the text of the passage and of what
follows it in its document), their token ids, and where they are from. A passage is a full chunk of a document of the
retrieval split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cepe_data import cli, shards, workers
from cepe_data.samples import options
from cepe_data.samples.options import ConcatOptions
from cepe_data.samples.reader import Inventory, Tokens, WindowSource
from cepe_data.samples.summary import SetSummary
from cepe_data.storage import outputs, provenance
from cepe_data.storage.outputs import Output
from cepe_data.tokens import backends
from cepe_data.tokens.tokenizers import TokenizerFiles

PASSAGES_AT_ONCE = 4096
PASSAGE_BYTES = 17.2  # of JSON for each token of a passage, those of its neighbor among them
METADATA = ("documents", "passages_available", "vocab_size", "source_files")


@dataclass(frozen=True)
class Block:
    """Some passages of a file on their way to a worker, PLAN [passages]; the first has this number in the file."""

    domain: str
    first_number: int
    plan: np.ndarray


@dataclass(frozen=True)
class PassageFormatter:
    """The task that makes the json lines of a block of passages."""

    shard: PassageShard
    tokenizer: TokenizerFiles

    @cached_property
    def _decode(self) -> backends.Decoder:
        return backends.make_decoder(self.tokenizer)

    def __call__(self, block: Block) -> bytes:
        import orjson

        plan = block.plan
        ids, lengths = self._token_ids(self.shard.source(block.domain), plan)
        texts = self._decode(ids, lengths)
        stops = np.cumsum(lengths).tolist()
        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        lines, start = [], 0
        for row, (file, position) in enumerate(zip(plan["file"].tolist(), plan["position"].tolist(), strict=True)):
            middle, stop = stops[2 * row], stops[2 * row + 1]
            record = {
                "id": f"{block.domain}_{self.shard.shard_id}_{block.first_number + row}",
                "contents": texts[2 * row],
                "neighbor": texts[2 * row + 1],
                "contents_token_ids": ids[start:middle],
                "neighbor_token_ids": ids[middle:stop],
                "file": file,
                "position": position,
            }
            lines.append(orjson.dumps(record, option=options))
            start = stop
        return b"".join(lines)

    def _token_ids(self, source: WindowSource, plan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the passages of a plan in its order, each with what follows it in its document, int32 [total]; and
        their lengths, int64 [2 · passages]."""
        chunk_size = source.windows.total_length
        ids: list[np.ndarray] = [np.empty(0)] * len(plan)
        for token_file, rows in source.by_file(plan):
            start = plan["position"][rows]
            token_file.will_need_tokens(start, start + 2 * chunk_size)
            document_stop = start - plan["offset"][rows] + token_file.lengths_of(plan["document"][rows])
            stop = np.minimum(start + 2 * chunk_size, document_stop)
            for row, first, end in zip(rows.tolist(), start.tolist(), stop.tolist(), strict=True):
                ids[row] = token_file.tokens(first, end)
            source.check(token_file, np.concatenate([ids[row] for row in rows]), self.tokenizer.identity.vocab_size - 1)
        lengths = np.full((len(plan), 2), chunk_size)
        lengths[:, 1] = np.fromiter(map(len, ids), np.int64, len(plan)) - chunk_size
        return np.concatenate(ids).astype(np.int32, copy=False), lengths.ravel()


@dataclass(frozen=True)
class PlannedFile:
    """A file of passages, which are rows [start, stop) of the domain's sampling order; `is_made` if nothing is left to
    do."""

    output: Output
    domain: str
    start: int
    stop: int
    summary: SetSummary
    is_made: bool


@dataclass(frozen=True)
class PassageShard:
    """Writes one shard of the retrieval corpus."""

    args: ConcatOptions
    shard_id: int
    tokens: Tokens
    inventories: Mapping[str, Inventory]

    def plan(self, requests: Mapping[str, int], tokenizer: TokenizerFiles) -> list[PlannedFile]:
        """The file of every domain; one without passages replaces what is there.

        Raises:
            ArgumentError: if one is there that other arguments made, or another shard of its domain is.
        """
        planned, num_shards = [], self.args.retrieval_shards
        for domain, requested in requests.items():
            inventory, path = self.inventories[domain], self.path(domain)
            available = inventory.available("retrieval")
            start, stop = self.shard_id * requested, (self.shard_id + 1) * requested
            if requested * num_shards > available:
                start, stop = shards.row_range(self.shard_id, num_shards, available)
            shared = self.shared_made_with(domain, requested, tokenizer.decoding_fingerprint)
            for other in sorted(self.args.output.glob(f"retrieval/*/{domain}.jsonl")):
                if other != path:
                    options.check_differences(other, shared, self.args.overwrite)
            made_with = {**self.own_made_with(domain), "first_row": start, "stop_row": stop, **shared}
            output, num_rows = self.args.output_at(path, made_with), stop - start
            name = f"retrieval/{self.shard_id}/{domain}"
            summary = SetSummary(name, inventory.documents["retrieval"], requested, num_rows, num_rows)
            planned.append(PlannedFile(output, domain, start, stop, summary, output.is_done()))
            if planned[-1].is_made:
                cli.say(f"{path}: skipped, made before with the same arguments")
        return planned

    def count_bytes(self, planned: Sequence[PlannedFile]) -> float:
        """About how many bytes the files will have that are to be written."""
        num_rows = sum(one.summary.written for one in planned if not one.is_made)
        return num_rows * self.args.retrieval_chunk_size * PASSAGE_BYTES

    def dry_run(self, planned: Sequence[PlannedFile], tokenizer: TokenizerFiles) -> list[SetSummary]:
        """What writing each file takes, from a measured block of it; nothing is written."""
        format_block = PassageFormatter(self, tokenizer)
        planned = [one for one in planned if one.summary.requested]
        measured = [self._measure(format_block, one) for one in planned]
        num_shards = self.args.retrieval_shards
        cli.say(
            f"the {num_shards} retrieval shards together: about "
            f"{sum(one.written for one in measured) * num_shards:,} passages, "
            f"{sum(one.num_bytes for one in measured) * num_shards:,} bytes"
        )
        return [one.summary if one.is_made else summary for one, summary in zip(planned, measured, strict=True)]

    def _measure(self, format_block: PassageFormatter, planned: PlannedFile) -> SetSummary:
        num_rows, num_measured = planned.summary.written, min(planned.summary.written, PASSAGES_AT_ONCE)
        if not num_measured:
            return planned.summary
        plan = self.source(planned.domain).sample(0, num_measured)
        start_time = time.perf_counter()
        num_bytes = len(format_block(Block(planned.domain, 0, plan))) * num_rows // num_measured
        seconds = (time.perf_counter() - start_time) * num_rows / num_measured
        return replace(planned.summary, files=1, num_bytes=num_bytes, seconds=seconds)

    def source(self, domain: str) -> WindowSource:
        """All passages of the domain."""
        args = self.args
        return WindowSource(self.tokens, domain, "retrieval", args.splits, args.passages, self.inventories[domain])

    def path(self, domain: str) -> Path:
        return self.args.output / "retrieval" / str(self.shard_id) / f"{domain}.jsonl"

    def shared_made_with(self, domain: str, requested: int, decoding: str) -> provenance.Provenance:
        """What the files of a domain have in common over all shards; else they would overlap."""
        return {
            **self.request_made_with(requested),
            "tokenizer": self.tokens.fingerprint,
            "decoding": decoding,
            **self.inventories[domain].inputs,
            **self.inventories[domain].rule,
        }

    def request_made_with(self, requested: int) -> provenance.Provenance:
        """What of that the arguments say, whatever the token files are."""
        return {
            "requested": requested,
            "retrieval_shards": self.args.retrieval_shards,
            "chunk_size": self.args.retrieval_chunk_size,
            **self.args.splits.made_with("retrieval"),
        }

    def own_made_with(self, domain: str) -> provenance.Provenance:
        """What only the file of a domain in this shard has."""
        return {"kind": "passages", "domain": domain, "shard_id": self.shard_id}

    def write_manifest(self, planned: Sequence[PlannedFile]) -> None:
        """Write the manifest of the shard; warn of files with fewer passages than requested."""
        sets = {}
        for one in planned:
            requested, written, metadata = one.summary.requested, one.summary.written, self.metadata(one.domain)
            if written < requested:
                cli.warn(
                    f"{one.summary.name}: {requested:,} × {self.args.retrieval_shards} passages are more than the "
                    f"{metadata['passages_available']:,} that there are; the shards share these, this one has "
                    f"{written:,} (of a small corpus, make fewer --retrieval_shards)"
                )
            if requested:
                sets[one.domain] = {"requested": requested, "written": written, **metadata}
        for path in sorted(self.path("").parent.glob("*.jsonl")):
            if path.stem not in sets and (meta := provenance.read_meta(path)):  # of an earlier run, for other domains
                metadata = {name: meta.get(name) for name in METADATA}
                sets[path.stem] = {"requested": meta.made_with["requested"], "written": meta["rows"], **metadata}
        manifest = self.path("").with_name("manifest.json")
        outputs.remove_stale_temporaries(manifest.parent)
        content = {**options.describe_run(self.args), "shard_id": self.shard_id, "sets": sets}
        outputs.write_json(manifest, provenance.signed(content))

    def metadata(self, domain: str) -> dict[str, Any]:
        """What the meta file and the manifest say of the content of a file."""
        one = self.inventories[domain]
        return {
            "documents": one.documents["retrieval"],
            "passages_available": one.available("retrieval"),
            "vocab_size": self.tokens.vocab_size,
            "source_files": [file.path for file in self.tokens.files[domain]],
        }

    def write_all(self, planned: Sequence[PlannedFile], tokenizer: TokenizerFiles, check: Callable[[], None]) -> None:
        """Write the files that are not made. `check` is called before each is published."""
        with workers.Workers(self.args.num_workers, PassageFormatter(self, tokenizer)) as pool:
            for one in planned:
                if one.is_made:
                    continue
                if one.summary.written:
                    self._write(pool, one, check)
                else:
                    outputs.remove(one.output.path)
                    outputs.remove(provenance.meta_path(one.output.path))

    def _write(self, pool: workers.Workers, file: PlannedFile, check: Callable[[], None]) -> None:
        start_time = time.monotonic()
        outputs.remove_stale_temporaries(file.output.path.parent)
        plan = self.source(file.domain).sample(file.start, file.stop)
        blocks = (
            Block(file.domain, first, plan[first : first + PASSAGES_AT_ONCE])
            for first in range(0, len(plan), PASSAGES_AT_ONCE)
        )
        with (
            file.output.draft() as draft,
            cli.progress_bar(len(plan), "passage", file.summary.name) as bar,
        ):
            with draft.path.open("wb") as lines_file:
                for block, lines in pool.map_in_order(blocks, lambda _: 1, pool.num_workers + 2):
                    lines_file.write(lines)
                    bar.update(len(block.plan))
            check()
            draft.publish({"rows": len(plan), **self.metadata(file.domain)})
        cli.say(f"{file.output.path}: {len(plan):,} passages, {cli.seconds_since(start_time)}")
