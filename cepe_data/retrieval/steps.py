"""The steps of retrieval: embed, search, write. No model is loaded."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from cepe_data import hub, shards
from cepe_data.errors import PipelineError
from cepe_data.retrieval import embeddings
from cepe_data.retrieval.plan_embedding import (
    EmbeddingOptions,
    list_corpus,
    part_range,
    provenance_of_request,
    provenance_of_source,
    source_path,
)
from cepe_data.retrieval.plan_search import (
    HIT_BYTES,
    RetrievedSetOptions,
    Search,
    SearchOptions,
    find_inputs,
    plan_search,
)
from cepe_data.storage import parts, provenance
from cepe_data.storage.inputs import describe_set
from cepe_data.storage.steps import (
    DONE,
    MISSING,
    USUAL_CHUNK,
    OutputStatus,
    Script,
    Step,
    Takes,
    Task,
    below,
    look,
    look_at_part,
    look_at_set,
    rows_of_sets,
    unknown_tasks,
)

USUAL_PARAMETERS = 88e6  # in the layers of an encoder of BERT's size, for one that is not a local folder
USUAL_DIMENSION = 768
NEIGHBOR = 0.83  # mean length of a neighbor, for a passage of length 1: documents end
JSON_BYTES = 6.4  # of a token id of LLaMA-2 (measured), with its comma

Result = TypeVar("Result")


def dimension(model_dir: str) -> int:
    """The dimension of the vectors of an encoder that is a local folder; else a usual one."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        config = json.loads((Path(model_dir) / "config.json").read_text(encoding="utf-8"))
        return int(config.get("hidden_size") or config.get("dim") or USUAL_DIMENSION)
    return USUAL_DIMENSION


def if_complete(read: Callable[..., Result], *arguments: object) -> Result | None:
    """What a function returns; None where one of its inputs is missing or damaged."""
    with contextlib.suppress(PipelineError):
        return read(*arguments)
    return None


def look_at_embeddings(args: EmbeddingOptions, before: Sequence[OutputStatus] = ()) -> Step:
    """The parts of the embedded corpus; the first task also has their manifest. Where the corpus or files of it are
    gone, which no later step reads, the manifest says which parts there are; their bytes are not known."""
    num_shards, output = args.num_shards or 1, args.output
    there = if_complete(list_corpus, args.corpus, args.part_bytes) or []
    listed = if_complete(embeddings.read_manifest, output) or []
    corpus = below(before, args.corpus)
    num_passages = sum(output.total for output in corpus)
    passage_bytes = 2 * dimension(args.model_dir) + 8 + 2 * USUAL_CHUNK * (1 + NEIGHBOR)
    bytes_per_byte = num_passages * passage_bytes / (sum(output.num_bytes for output in corpus) or 1)
    flops = 2 * num_passages * USUAL_CHUNK * hub.num_parameters(args.model_dir, USUAL_PARAMETERS)
    files = listed if set(there) <= set(listed) else there
    if files:
        outputs = [part for file in files for part in embedded_outputs(args, file, file in there, bytes_per_byte)]
        ranges = [shards.row_range(shard, num_shards, len(outputs)) for shard in range(num_shards)]
        of_tasks = [outputs[first:stop] for first, stop in ranges]
        state = DONE if listed == files else MISSING
        of_tasks[0].append(OutputStatus(output / embeddings.MANIFEST, state, is_counted=False))
        tasks = [Task(of_task) for of_task in of_tasks]
    else:
        tasks = unknown_tasks(output, num_shards, num_passages * passage_bytes)
    names = ("parts", "bytes") if files else ("", "")
    return Step(output, *names, tasks, True, [args.corpus], [output], Takes(flops=flops))


def embedded_outputs(
    args: EmbeddingOptions, file: embeddings.CorpusFile, is_there: bool, bytes_per_byte: float
) -> list[OutputStatus]:
    """The parts of a file of the corpus, which may be gone. `bytes_per_byte`: of a part, for a byte of the file."""
    source = source_path(args.corpus, file)
    of_source = provenance_of_source(source, provenance.read_meta(source)) if is_there else {}
    outputs = []
    for part in range(file.num_parts):
        start, stop = part_range(source, part, args.part_bytes) if is_there else (0, 0)
        known = {**of_source, "passage_prefix": None, **provenance_of_request(args, part)}
        path = embeddings.part_path(args.output, file, part)
        outputs.append(look(path, known, stop - start, (stop - start) * bytes_per_byte))
    return outputs


@functools.cache
def open_embeddings(folder: Path) -> embeddings.Embeddings | None:
    """The embedded corpus; None if it is not complete."""
    return if_complete(embeddings.Embeddings, folder)


def look_at_search(args: SearchOptions, before: Sequence[OutputStatus] = ()) -> Step:
    """The hits in each shard of the corpus, a part for a domain and shard; with --merge, the hits of every domain."""
    num_shards, num_rows = args.num_shards or 1, rows_of_sets(before, args.queries, args.domain)
    corpus = open_embeddings(args.embeddings)
    plans = {name: if_complete(plan_search, args, corpus, name) if corpus else None for name in num_rows}
    hits = {name: look_at_hits(args, name, rows, plans[name]) for name, rows in num_rows.items()}
    reads = [args.queries, args.embeddings, args.tokenized_dir / "tokenizer"]
    directories = [parts.parts_dir(args.output / name) for name in num_rows]
    if args.merge:
        outputs = [*hits.values()] or [OutputStatus(args.output, is_counted=False)]
        paths = [output.path for output in outputs]
        return Step(args.output, "sets", "rows", [Task(outputs)], True, [*reads, *directories], paths)
    passages = [output for output in before if output.path.suffix == ".jsonl"]
    flops = 2.0 * dimension(args.model_dir) * sum(output.total for output in passages) * sum(num_rows.values())
    fetch = round(args.topk * (args.overfetch if args.exclude_overlap else 1))
    part_bytes = {name: rows * fetch * HIT_BYTES for name, rows in num_rows.items()}
    searches = {name: plan for name, plan in plans.items() if plan}
    if corpus is None or len(searches) < len(plans) or not plans:
        state = DONE if hits and all(output.state == DONE for output in hits.values()) else MISSING
        corpus_shards = len({output.path.parent for output in passages})
        query_bytes = sum(num_rows.values()) * 4 * dimension(args.model_dir)
        num_bytes = 0 if state == DONE else query_bytes + corpus_shards * sum(part_bytes.values())
        tasks = unknown_tasks(args.output, num_shards, num_bytes, OutputStatus(args.output, state))
        names = ("", "")
    else:
        tasks = []
        for shard in range(num_shards):
            numbers = range(*shards.row_range(shard, num_shards, len(corpus.shards)))
            found = [(number, name) for number in numbers for name in searches]
            tasks.append(
                Task([look_at_found(searches[name], number, part_bytes[name], hits[name]) for number, name in found])
            )
        names = ("parts", "rows")
    intermediates = [*directories, *(args.output / f"{name}.queries" for name in num_rows)]
    return Step(args.output, *names, tasks, True, reads, intermediates, Takes(flops=flops))


def look_at_found(search: Search, number: int, num_bytes: float, hits: OutputStatus) -> OutputStatus:
    """The hits of a domain in one shard of the corpus, which may be removed once they are merged."""
    num_bytes = 0 if hits.state == DONE and not search.parts.paths[number].exists() else num_bytes
    return look_at_part(search.parts, number, search.num_rows, num_bytes, hits)


def look_at_hits(args: SearchOptions, domain: str, num_rows: int, plan: Search | None) -> OutputStatus:
    """The hits of a domain."""
    of_arguments = {name: getattr(args, name) for name in ("topk", "query_tokens", "exclude_overlap")}
    known = plan.hits.made_with if plan else {"domain": domain, **of_arguments}
    known = {"query_prefix": args.query_prefix or None, **known}
    return look(args.output / domain, known, num_rows, num_rows * args.topk * HIT_BYTES)


def look_at_retrieved(args: RetrievedSetOptions, before: Sequence[OutputStatus] = ()) -> Step:
    """The sets of retrieved passages."""
    outputs = []
    for domain, num_rows in rows_of_sets(before, args.queries, args.domain).items():
        meta = if_complete(provenance.read_meta, args.hits / domain)
        known = {"domain": domain, **({"topk": args.topk or meta.made_with["topk"]} if meta else {})}
        inputs = find_inputs(args, domain) if meta else {}
        if if_complete(describe_set, inputs) is None:  # one is missing or damaged: only the arguments are compared
            inputs = {}
        of_hits = below(before, args.hits / domain)
        topk = args.topk or sum(output.num_bytes for output in of_hits) // (HIT_BYTES * max(1, num_rows))
        row_bytes = topk * (USUAL_CHUNK * (2 + NEIGHBOR * JSON_BYTES) + HIT_BYTES)
        outputs.append(look_at_set(args.output / domain, known, num_rows, num_rows * row_bytes, inputs))
    tasks = [Task(outputs)] if outputs else unknown_tasks(args.output, 1)
    return Step(args.output, "sets", "rows", tasks, True, [args.queries, args.embeddings, args.hits])


EMBED = Script("retrieval.embed_passages", EmbeddingOptions, look_at_embeddings)
SEARCH = Script("retrieval.search", SearchOptions, look_at_search)
WRITE = Script("retrieval.write_mds", RetrievedSetOptions, look_at_retrieved)
