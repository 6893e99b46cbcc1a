"""What the samplers are as steps: their sets and files of passages. Windows are not counted: a set that is not there
yet has the rows that are asked for."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cepe_data.corpus import domains, listing
from cepe_data.errors import DamagedFileError, PipelineError
from cepe_data.samples import options, reader
from cepe_data.samples.passages import PASSAGE_BYTES, PassageShard
from cepe_data.samples.writer import WindowSampler
from cepe_data.storage import provenance
from cepe_data.storage.steps import (
    DONE,
    MISSING,
    OTHER,
    OTHERWISE,
    USUAL_VOCABULARY,
    OutputStatus,
    Script,
    Step,
    Takes,
    Task,
    look,
    look_at_manifest,
    look_at_set,
)
from cepe_data.tokens import tokenizers

WINDOW_BYTES_PER_CORE = 340e6  # a second
PASSAGES_PER_CORE = 25_000


def look_at_inside(args: options.InsideOptions, _: Sequence[OutputStatus] = ()) -> Step:
    """Test and train sets."""
    outputs = window_outputs(args, OpenTokens.of(args))
    takes = Takes(sum(output.num_bytes for output in outputs) / WINDOW_BYTES_PER_CORE)
    return Step(args.output, "sets", "rows", [Task(outputs)], reads=[args.tokenized_dir], takes=takes)


def look_at_concat(args: options.ConcatOptions, _: Sequence[OutputStatus] = ()) -> Step:
    """Passages of every shard, and in the first the test and train sets."""
    tokens = OpenTokens.of(args)
    outputs: list[list[OutputStatus]] = [[] for _ in range(args.retrieval_shards or 1)]
    outputs[0] += window_outputs(args, tokens)
    core_seconds = sum(output.num_bytes for output in outputs[0]) / WINDOW_BYTES_PER_CORE
    if args.retrieval_shards and args.retrieval_samples:
        requests = domains.largest_remainder(options.split_weights(args)["retrieval"], args.retrieval_samples)
        decoding = find_decoding(args, tokens)
        for shard in range(args.retrieval_shards):
            outputs[shard] += passage_outputs(args, tokens, requests, decoding, shard)
        core_seconds += args.retrieval_shards * args.retrieval_samples / PASSAGES_PER_CORE
        for path in sorted((args.output / "retrieval").glob("[0-9]*")):
            if path.name.isdecimal() and int(path.name) >= args.retrieval_shards:
                what = f"is not one of the {args.retrieval_shards} retrieval shards: remove it"
                outputs[0].append(OutputStatus(path, OTHER, what=what, is_counted=False))
    return Step(
        args.output,
        "sets and files",
        "rows",
        [Task(of_shard) for of_shard in outputs],
        reads=[args.tokenized_dir],
        intermediates=[args.output / "retrieval"],
        takes=Takes(core_seconds),
    )


@dataclass(frozen=True)
class OpenTokens:
    """The token files of a sampler with the fingerprints of its domains, without those of marks of duplicates if these
    are not right; `inventories` is empty if some token files are missing. `sources`: the listed files by domain; None
    if the list does not say them."""

    tokens: reader.Tokens
    inventories: dict[str, reader.Inventory]
    sources: dict[str, list[str]] | None

    @classmethod
    def of(cls, args: options.SampleOptions) -> OpenTokens:
        """The token files, if all are there. No document is read: not those that were made elsewhere either, whose
        fingerprints would be hashes of all their bytes."""
        key = (args.file_list, args.tokenized_dir, args.domains, args.test_domains, args.drop_duplicates)
        if key not in _opened:
            _opened[key] = cls._open(args)
        return _opened[key]

    @classmethod
    def _open(cls, args: options.SampleOptions) -> OpenTokens:
        for drop_duplicates in (True, False) if args.drop_duplicates else (False,):
            with contextlib.suppress(PipelineError):
                tokens = options.open_tokens(replace(args, drop_duplicates=drop_duplicates))
                paths = [tokens.folder / file.token_file for files in tokens.files.values() for file in files]
                if all(provenance.meta_path(path).exists() for path in paths):
                    sources = {domain: [file.path for file in files] for domain, files in tokens.files.items()}
                    return cls(tokens, reader.inventory(tokens, args.splits, {}), sources)
        vocab_size = USUAL_VOCABULARY
        with contextlib.suppress(DamagedFileError):
            if identity := tokenizers.saved_identity(args.tokenized_dir / "tokenizer"):
                vocab_size = identity.vocab_size
        return cls(reader.Tokens({}, args.tokenized_dir, vocab_size, None), {}, cls._listed(args))

    @staticmethod
    def _listed(args: options.SampleOptions) -> dict[str, list[str]] | None:
        """The listed files by domain; None without a list, or where records say their domain."""
        by_domain: dict[str, list[str]] = defaultdict(list)
        with contextlib.suppress(PipelineError):
            for file in listing.read_file_list(args.file_list).files:
                by_domain[file.domain or ""].append(file.path)
        return by_domain if by_domain and "" not in by_domain else None

    def compare_with_list(self, output: OutputStatus, domain: str, listed: dict[str, Any]) -> OutputStatus:
        """An output, done or not as the list of files says. One that is missing because nothing was available in these
        files, as the manifest of the same run says in `listed`, is done; one that is done of other files is not."""
        sources = None if self.sources is None else self.sources.get(domain, [])
        if (
            output.state == MISSING
            and listed.get("written") == 0
            and sources in (None, listed.get("source_files", sources))
        ):
            return OutputStatus(output.path, DONE, is_counted=False)
        if output.state == DONE and sources not in (None, output.meta.get("source_files", sources)):
            return replace(output, state=OTHER, done=0, what=f"{OTHERWISE}: the list has other files of {domain} now")
        return output


_opened: dict[object, OpenTokens] = {}  # several sets are sampled from the same files


def window_outputs(args: options.SampleOptions, tokens: OpenTokens) -> list[OutputStatus]:
    """The test and train sets of a sampler, and its manifest, which comes last."""
    sampler = WindowSampler(args, tokens.tokens, tokens.inventories)
    row_bytes = sampler.row_bytes
    of_manifest, manifest = look_at_manifest(args.output / "manifest.json")
    is_of_these = manifest["arguments"] == options.described_arguments(args)
    outputs, weights = [], options.split_weights(args)
    for split, number in (("test", args.eval_samples), ("train", args.train_samples)):
        for domain, requested in domains.largest_remainder(weights[split], number).items():
            if requested:
                listed = manifest["sets"].get(split, {}).get(domain, {})
                known = known_of_windows(sampler, split, domain)
                output = look_at_set(args.output / split / domain, known, requested, requested * row_bytes)
                outputs.append(tokens.compare_with_list(output, domain, listed if is_of_these else {}))
                of_manifest = compare_with_rows(of_manifest, outputs[-1], listed)
    return [*outputs, of_manifest]


def known_of_windows(sampler: WindowSampler, split: str, domain: str) -> provenance.Provenance:
    """What is known of the provenance of a set without counting windows."""
    drop_duplicates = {"drop_duplicates": sampler.args.drop_duplicates or None}  # also where marks are gone
    if sampler.inventories:
        return {**sampler.made_with(split, domain), "rows_per_part": sampler.part_rows, **drop_duplicates}
    known = {"split": split, "domain": domain, **sampler.window_rule(split), **drop_duplicates}
    with contextlib.suppress(DamagedFileError):
        if meta := provenance.read_meta(sampler.args.output / split / domain):  # it knows the vocabulary
            tokens = replace(sampler.tokens, vocab_size=meta.get("vocab_size"))
            sampler = replace(sampler, tokens=tokens)
            known |= {"token_dtype": sampler.dtype.name, "rows_per_part": sampler.part_rows}
    return known


def compare_with_rows(of_manifest: OutputStatus, output: OutputStatus, listed: dict[str, Any]) -> OutputStatus:
    """The manifest, missing if it has other rows of an output than there are: a run ended before it was written."""
    is_old = of_manifest.state == output.state == DONE and output.is_counted and listed.get("written") != output.done
    return replace(of_manifest, state=MISSING) if is_old else of_manifest


def find_decoding(args: options.ConcatOptions, tokens: OpenTokens) -> str | None:
    """The hash of how texts are decoded; None if it is not to be known without loading a tokenizer."""
    if args.tokenizer is None and tokens.inventories:
        with contextlib.suppress(PipelineError):
            return tokenizers.find(None, args.tokenized_dir, tokens.tokens.fingerprint).decoding_fingerprint
    return None


def passage_outputs(
    args: options.ConcatOptions, tokens: OpenTokens, requests: dict[str, int], decoding: str | None, shard: int
) -> list[OutputStatus]:
    """The files of passages of a shard, and its manifest, which comes last."""
    of_shard = PassageShard(args, shard, tokens.tokens, tokens.inventories)
    of_manifest, manifest = look_at_manifest(args.output / "retrieval" / str(shard) / "manifest.json")
    is_of_these = manifest["arguments"] == options.described_arguments(args)
    outputs = []
    for domain, requested in requests.items():
        if requested:
            known = {**of_shard.own_made_with(domain), **of_shard.request_made_with(requested)}
            known["drop_duplicates"] = args.drop_duplicates or None
            if tokens.inventories:
                shared = of_shard.shared_made_with(domain, requested, decoding or "")
                known |= {name: value for name, value in shared.items() if decoding or name != "decoding"}
            num_bytes = requested * args.retrieval_chunk_size * PASSAGE_BYTES
            output = look(of_shard.path(domain), known, requested, num_bytes)
            if output.meta and output.state == DONE:
                output = replace(output, total=int(output.meta["rows"]), done=int(output.meta["rows"]))
            listed = manifest["sets"].get(domain, {})
            outputs.append(tokens.compare_with_list(output, domain, listed if is_of_these else {}))
            of_manifest = compare_with_rows(of_manifest, outputs[-1], listed)
    return [*outputs, replace(of_manifest, is_result=False)]


_LENGTHS = ("decoder_length", "eval_samples", "train_samples")
INSIDE = Script("sample_mds_ab.py", options.InsideOptions, look_at_inside, ("output", "total_length", *_LENGTHS))
CONCAT = Script(
    "sample_mds_concat.py",
    options.ConcatOptions,
    look_at_concat,
    ("output", "encoder_length", *_LENGTHS, "retrieval_samples", "shard_id"),
)
