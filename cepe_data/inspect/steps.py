"""What there is of every task of a step: which units (files, sets, parts) are done, and how many rows or bytes that is.

Read are meta files, manifests and headers, and a unit's files are looked up by their size. That is cheap, and does not
see a changed byte in a file that kept its size, nor another teacher or encoder of the same name (their weights would
have to be read), nor another tokenizer than the saved one. Windows are not counted: a set that is not there yet has the
rows that are asked for. Where an input is gone that a unit was made from (token files after sampling, say), the unit is
compared with the arguments alone. What a process has in flight has a temporary name, and counts as missing.

The arguments of a line are parsed by its own script: sanity_check.py, which may import scripts, brings the parsers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepe_data import shards
from cepe_data.corpus import domains, listing
from cepe_data.errors import DamagedFileError, PipelineError
from cepe_data.inspect.units import (
    DAMAGED,
    DONE,
    MISSING,
    OTHER,
    Found,
    Step,
    Task,
    Unit,
    joined_unit,
    look,
    look_at_manifest,
    look_at_part,
    part_paths,
    part_unit,
    set_unit,
)
from cepe_data.retrieval import embeddings, plan_embedding, plan_search
from cepe_data.samples import options, reader
from cepe_data.samples.passages import PassageShard
from cepe_data.samples.windows import DocumentWindows, Windows
from cepe_data.samples.writer import WindowSampler
from cepe_data.storage import mds, parts, provenance
from cepe_data.storage.inputs import Input, describe_set
from cepe_data.teacher import plan as teacher_plan
from cepe_data.tokens import tokenizers
from cepe_data.tokens.encoding import Job, TokenizeOptions

BY_SEVERITY = (DAMAGED, OTHER, MISSING, DONE)


def tokenize(args: TokenizeOptions) -> Step:
    """Token files; the first task has the saved tokenizer, too. Raises PipelineError for a list that is not right."""
    num_shards, folder = args.num_shards or 1, args.output_dir
    if not args.file_list.exists():
        return Step.unknown(folder, num_shards)
    listed = listing.read_file_list(args.file_list)
    listed.require_sizes()
    sizes = {file.path: file.num_bytes or 0 for file in listed.files}
    saved, job = look(folder / "tokenizer", {}), None
    try:
        if identity := tokenizers.saved_identity(folder / "tokenizer"):
            job = Job(Path(), folder, domains.RecordKeys(args.text_key, listed.record_domains), 0.0, identity)
    except DamagedFileError as error:
        saved = Found(DAMAGED, str(error))
    of_path = {}
    for file in listed.files:
        found = look(folder / file.token_file, job.made_with(file) if job else {})
        size = sizes[file.path]
        done = size if found.state == DONE else 0
        of_path[file.path] = Unit(folder / file.token_file, found.state, size, done, found.what)
    assigned = shards.assign_files(list(sizes.items()), num_shards)
    units = [[of_path[path] for path in paths] for paths in assigned]
    units[0].append(Unit(folder / "tokenizer", saved.state, 0, what=saved.what, is_counted=False))
    return Step(folder, "files", "bytes", [Task(of_task) for of_task in units])


def sample_ab(args: options.InsideOptions) -> Step:
    """Test and train sets."""
    windows = options.inside_documents(args.total_length, args.decoder_length)
    return Step(
        args.output, "sets", "rows", [Task(window_units(options.INSIDE_DOCUMENTS, windows, args, open_tokens(args)))]
    )


def sample_concat(args: options.ConcatOptions) -> Step:
    """Passages of every shard, and in the first the test and train sets."""
    tokens = open_tokens(args)
    units: list[list[Unit]] = [[] for _ in range(args.retrieval_shards or 1)]
    windows = options.over_concatenation(args.encoder_length, args.decoder_length)
    units[0] += window_units(options.OVER_CONCATENATION, windows, args, tokens)
    if args.retrieval_shards and args.retrieval_samples:
        requests = domains.largest_remainder(options.split_weights(args)["retrieval"], args.retrieval_samples)
        decoding = find_decoding(args, tokens)
        for shard in range(args.retrieval_shards):
            units[shard] += passage_units(args, tokens, requests, decoding, shard)
    return Step(args.output, "sets and files", "rows", [Task(of_shard) for of_shard in units])


@dataclass(frozen=True)
class OpenTokens:
    """The token files of a sampler with the fingerprints of its domains; `inventories` is empty if some are missing."""

    tokens: reader.Tokens
    inventories: dict[str, reader.Inventory]


def open_tokens(args: options.SampleOptions) -> OpenTokens:
    """The token files, if all are there. No document is read: not those that were made elsewhere either, whose
    fingerprints would be hashes of all their bytes."""
    with contextlib.suppress(PipelineError):
        tokens = options.open_tokens(args)
        paths = [tokens.folder / file.token_file for files in tokens.files.values() for file in files]
        if all(provenance.meta_path(path).exists() for path in paths):
            return OpenTokens(tokens, reader.inventory(tokens, options.make_splits(args), {}))
    return OpenTokens(reader.Tokens({}, args.tokenized_dir, None, None), {})


def window_units(kind: str, windows: Windows, args: options.SampleOptions, tokens: OpenTokens) -> list[Unit]:
    """The test and train sets of a sampler, and its manifest, which comes last."""
    sampler = WindowSampler.of_run(kind, args, tokens.tokens, options.make_splits(args), windows, tokens.inventories)
    of_manifest, manifest = look_at_manifest(args.output / "manifest.json")
    is_of_these = manifest["arguments"] == options.described_arguments(args)
    units, weights = [], options.split_weights(args)
    for split, number in (("test", args.eval_samples), ("train", args.train_samples)):
        for domain, requested in domains.largest_remainder(weights[split], number).items():
            if requested:
                listed = manifest["sets"].get(split, {}).get(domain, {}) if is_of_these else {}
                unit = set_unit(args.output / split / domain, known_of_windows(sampler, split, domain), requested, {})
                units.append(none_wanted(unit, listed))
    return [*units, of_manifest]


def known_of_windows(sampler: WindowSampler, split: str, domain: str) -> provenance.Meta:
    """What is known of the record of a set without counting windows."""
    if sampler.inventories:
        return {**sampler.made_with(split, domain), "rows_per_part": sampler.part_rows}
    return {"split": split, "domain": domain, **sampler.window_rule(split)}


def none_wanted(unit: Unit, listed: dict[str, Any]) -> Unit:
    """A unit that is missing because nothing is available, as the manifest of the same run says, is done."""
    is_empty = unit.state == MISSING and listed.get("written") == 0
    return Unit(unit.path, DONE, 0, is_counted=False) if is_empty else unit


def find_decoding(args: options.ConcatOptions, tokens: OpenTokens) -> str | None:
    """The hash of how texts are decoded; None if it is not to be known without loading a tokenizer."""
    if args.tokenizer is None and tokens.inventories:
        with contextlib.suppress(PipelineError):
            return tokenizers.find(None, args.tokenized_dir, tokens.tokens.fingerprint).decoding_fingerprint
    return None


def passage_units(
    args: options.ConcatOptions, tokens: OpenTokens, requests: dict[str, int], decoding: str | None, shard: int
) -> list[Unit]:
    """The files of passages of a shard, and its manifest, which comes last."""
    splits = options.make_splits(args)
    passages = DocumentWindows(args.retrieval_chunk_size, args.retrieval_chunk_size)
    of_shard = PassageShard(
        tokens.tokens, splits, passages, tokens.inventories, args.output, shard, args.retrieval_shards
    )
    of_manifest, manifest = look_at_manifest(args.output / "retrieval" / str(shard) / "manifest.json")
    is_of_these = manifest["arguments"] == options.described_arguments(args)
    units = []
    for domain, requested in requests.items():
        if requested:
            known = {**of_shard.own_made_with(domain), **of_shard.request_made_with(requested)}
            if decoding:
                known |= of_shard.shared_made_with(domain, requested, decoding)
            found = look(of_shard.path(domain), known)
            rows = int(found.meta["rows"]) if found.meta and found.state == DONE else 0
            unit = Unit(of_shard.path(domain), found.state, rows or requested, rows, found.what)
            units.append(none_wanted(unit, manifest["sets"].get(domain, {}) if is_of_these else {}))
    return [*units, of_manifest]


def annotate(args: teacher_plan.AnnotationOptions) -> Step:
    """Parts of annotated sets; with --merge, the sets."""
    domains = domains_of(args.input_dir, args.domain)
    sets = [annotated_set(args, domain) for domain in domains]
    output = sets[0].folder if len(sets) == 1 else teacher_plan.output_folder(args, args.domain).parent
    num_shards = args.num_shards or 1
    if args.merge and sets:
        units = [joined_unit(one.folder, one.joined, one.num_rows or 0) for one in sets]
        return Step(output, "sets", "rows", [Task(units)])
    rows_per_part = next((one.rows_per_part for one in sets if one.rows_per_part), None)
    if not rows_per_part or not all(one.num_rows for one in sets):
        # No part is there, and how large they will be is for the model to say.
        worst = min(
            (one.joined for one in sets), key=lambda found: BY_SEVERITY.index(found.state), default=Found(MISSING)
        )
        return Step.unknown(output, num_shards, worst.state, worst.what)
    units_of = [annotated_units(one, rows_per_part) for one in sets]
    tasks = []
    for shard in range(num_shards):
        ranges = [(units, shards.row_range(shard, num_shards, len(units))) for units in units_of]
        tasks.append(Task([unit for units, (start, stop) in ranges for unit in units[start:stop]]))
    return Step(output, "parts", "rows", tasks)


@dataclass(frozen=True)
class AnnotatedSet:
    """What is known of an annotated set without the model: of its provenance, its inputs, its numbers of rows."""

    folder: Path
    known: provenance.Meta
    inputs: Mapping[str, Input]
    joined: Found
    num_rows: int | None
    rows_per_part: int | None


def annotated_set(args: teacher_plan.AnnotationOptions, domain: str) -> AnnotatedSet:
    """Look at an annotated set. Where its input is gone, it is compared with the arguments alone."""
    folder, known = teacher_plan.output_folder(args, domain), teacher_plan.provenance_of_request(args, domain)
    known |= {"rows_per_part": args.rows_per_part} if args.rows_per_part else {}
    found_inputs = teacher_plan.find_inputs(args, domain)
    of_set: provenance.Meta = {}
    try:
        of_set = {**describe_set(found_inputs), "rows": mds.num_rows(args.input_dir / domain)}
    except PipelineError:
        found_inputs = {}
    joined = look(folder, {**known, **of_set})
    first = joined if joined.meta else first_part(folder)
    rows_per_part = args.rows_per_part or first.made_with("rows_per_part")
    num_rows = of_set.get("rows") or joined.made_with("rows")
    return AnnotatedSet(folder, known, found_inputs, joined, num_rows, rows_per_part)


def annotated_units(one: AnnotatedSet, rows_per_part: int) -> list[Unit]:
    """The parts of an annotated set."""
    units, known = [], {**one.known, "rows_per_part": rows_per_part}
    for part, (start, stop) in enumerate(parts.part_ranges(one.num_rows or 0, rows_per_part)):
        path = parts.part_path(parts.parts_dir(one.folder), part)
        look_at_it = functools.partial(look_at_part, path, known, one.inputs, start, stop)
        units.append(part_unit(path, look_at_it, stop - start, one.folder, one.joined))
    return units


def first_part(folder: Path) -> Found:
    """The first part of a set that can be read, whatever made it."""
    found = (look(path, {}) for path in part_paths(folder))
    return next((part for part in found if part.meta), Found(MISSING))


def embed(args: plan_embedding.EmbeddingOptions) -> Step:
    """Parts of the embedded corpus; the first task has their list, too. Of a corpus that is gone, which no later step
    reads, or of files of it, that list says what there is to be, in parts whose bytes are not known."""
    num_shards, output = args.num_shards or 1, args.output
    there: list[embeddings.CorpusFile] = []
    with contextlib.suppress(PipelineError):
        there = plan_embedding.list_corpus(args.corpus, args.part_bytes)
    listed = listed_corpus(output)
    files = listed if set(there) <= set(listed) else there
    if not files:
        return Step.unknown(output, num_shards)
    units = [unit for file in files for unit in embedded_units(args, file, file in there)]
    ranges = [shards.row_range(shard, num_shards, len(units)) for shard in range(num_shards)]
    of_tasks = [units[first:stop] for first, stop in ranges]
    state = DONE if listed == files else MISSING
    of_tasks[0].append(Unit(output / embeddings.MANIFEST, state, 0, is_counted=False))
    return Step(output, "parts", "bytes", [Task(of_task) for of_task in of_tasks], True)


def listed_corpus(output: Path) -> list[embeddings.CorpusFile]:
    """What the list of an embedded corpus says; nothing if it cannot be read: every task writes it anew."""
    with contextlib.suppress(PipelineError):
        return embeddings.read_manifest(output)
    return []


def embedded_units(args: plan_embedding.EmbeddingOptions, file: embeddings.CorpusFile, is_there: bool) -> list[Unit]:
    """The parts of a file of the corpus, which may be gone."""
    source = plan_embedding.source_path(args.corpus, file)
    of_source = plan_embedding.provenance_of_source(source, provenance.read_meta(source)) if is_there else {}
    units = []
    for part in range(file.num_parts):
        path = embeddings.part_path(args.output, file, part)
        start, stop = plan_embedding.part_range(source, part, args.part_bytes) if is_there else (0, 0)
        found = look(path, {**of_source, **plan_embedding.provenance_of_request(args, part)})
        done = stop - start if found.state == DONE else 0
        units.append(Unit(path, found.state, stop - start, done, found.what))
    return units


@functools.cache
def open_embeddings(folder: Path) -> embeddings.Embeddings | None:
    """The embedded corpus; None if it is not complete."""
    with contextlib.suppress(PipelineError):
        return embeddings.Embeddings(folder)
    return None


def domains_of(folder: Path, domain: str) -> list[str]:
    """The domains that `--domain` names; none where all are asked for, and none is there."""
    with contextlib.suppress(PipelineError):
        return mds.find_domains(folder, domain)
    return []


def search_passages(args: plan_search.SearchOptions) -> Step:
    """What is found in shards of the corpus, a part a domain and shard; with --merge, the hits of every domain."""
    num_shards, domains = args.num_shards or 1, domains_of(args.queries, args.domain)
    searches = [plan for domain in domains if (plan := plan_of_search(args, domain))]
    joined = {domain: look(args.output / domain, known_of_hits(args, domain)) for domain in domains}
    if args.merge:
        units = [joined_unit(args.output / domain, found, count_rows(args, domain)) for domain, found in joined.items()]
        return Step(args.output, "sets", "rows", [Task(units)], True) if units else Step.unknown(args.output, 1)
    corpus_there = open_embeddings(args.embeddings)
    if corpus_there is None or len(searches) < len(domains) or not domains:
        is_done = bool(domains) and all(found.state == DONE for found in joined.values())
        return Step.unknown(args.output, num_shards, DONE if is_done else MISSING)
    tasks = []
    for shard in range(num_shards):
        first, stop = shards.row_range(shard, num_shards, len(corpus_there.shards))
        units = []
        for number in range(first, stop):
            for one in searches:
                part = one.parts.outputs[number]
                look_at_it = functools.partial(look, part.path, part.made_with)
                units.append(part_unit(part.path, look_at_it, one.num_rows, one.hits.path, joined[one.domain]))
        tasks.append(Task(units))
    return Step(args.output, "parts", "rows", tasks, True)


def plan_of_search(args: plan_search.SearchOptions, domain: str) -> plan_search.Search | None:
    """The search for a domain; None where an input is missing."""
    corpus_there = open_embeddings(args.embeddings)
    with contextlib.suppress(PipelineError):
        return plan_search.plan_search(args, corpus_there, domain) if corpus_there else None
    return None


def known_of_hits(args: plan_search.SearchOptions, domain: str) -> provenance.Meta:
    """What is known of the record of hits."""
    plan = plan_of_search(args, domain)
    of_arguments = {name: getattr(args, name) for name in ("topk", "query_tokens", "exclude_overlap")}
    return plan.hits.made_with if plan else {"domain": domain, **of_arguments}


def count_rows(args: plan_search.SearchOptions | plan_search.RetrievedSetOptions, domain: str) -> int:
    """Rows of the queries."""
    return mds.num_rows(args.queries / domain)


def write_retrieved(args: plan_search.RetrievedSetOptions) -> Step:
    """The sets of retrieved passages."""
    units = []
    for domain in domains_of(args.queries, args.domain):
        known: provenance.Meta = {"domain": domain}
        found_inputs: Mapping[str, Input] = {}
        with contextlib.suppress(PipelineError):
            if meta := provenance.read_meta(args.hits / domain):
                known["topk"] = plan_search.written_topk(args, meta)
                there = plan_search.find_inputs(args, domain)
                describe_set(there)  # raises where one is gone or damaged: then the arguments alone are compared
                found_inputs = there
        units.append(set_unit(args.output / domain, known, count_rows(args, domain), found_inputs))
    return Step(args.output, "sets", "rows", [Task(units)], True) if units else Step.unknown(args.output, 1)


Look = Callable[[Any], Step]
STEPS: dict[str, tuple[type, Look]] = {  # by batch file: the options of its script, and what looks at its output
    "tokenize.sh": (TokenizeOptions, tokenize),
    "sample_ab.sh": (options.InsideOptions, sample_ab),
    "sample_concat.sh": (options.ConcatOptions, sample_concat),
    "annotate.sh": (teacher_plan.AnnotationOptions, annotate),
    "embed.sh": (plan_embedding.EmbeddingOptions, embed),
    "search.sh": (plan_search.SearchOptions, search_passages),
    "write_mds.sh": (plan_search.RetrievedSetOptions, write_retrieved),
}
