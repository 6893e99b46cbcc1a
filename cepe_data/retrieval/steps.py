"""What embedding, searching and writing are as steps. No model is loaded."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    RetrievedSetOptions,
    Search,
    SearchOptions,
    find_inputs,
    plan_search,
    written_topk,
)
from cepe_data.storage import mds, parts, provenance
from cepe_data.storage.inputs import Input, describe_set
from cepe_data.storage.steps import (
    DONE,
    MISSING,
    OutputStatus,
    Script,
    Step,
    Takes,
    Task,
    below,
    look,
    look_at_part,
    look_at_set,
    rows_to_come,
    unknown_tasks,
)

USUAL_PARAMETERS = 88e6  # in the layers of an encoder of BERT's size, if it is not here to be looked at
USUAL_DIMENSION = 768
USUAL_CHUNK = 256  # tokens of a passage; its word pieces are as many
NEIGHBOR = 0.83  # of a passage: how long what follows one is, because documents end
JSON_BYTES = 6  # of a token id
HIT_BYTES = 12  # a key and a score


def dimension(model_dir: str) -> int:
    """Of the vectors of an encoder that is a folder here; else a usual one."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        config = json.loads((Path(model_dir) / "config.json").read_text(encoding="utf-8"))
        return int(config.get("hidden_size") or config.get("dim") or USUAL_DIMENSION)
    return USUAL_DIMENSION


def look_at_embeddings(args: EmbeddingOptions, before: Sequence[OutputStatus] = ()) -> Step:
    """Parts of the embedded corpus; the first task has their list, too. Of a corpus that is gone, which no later step
    reads, or of files of it, that list says what there is to be, in parts whose bytes are not known."""
    num_shards, output = args.num_shards or 1, args.output
    there: list[embeddings.CorpusFile] = []
    with contextlib.suppress(PipelineError):
        there = list_corpus(args.corpus, args.part_bytes)
    corpus = below(before, args.corpus)
    num_passages = sum(output.total for output in corpus)
    passage_bytes = 2 * dimension(args.model_dir) + 8 + 2 * USUAL_CHUNK * (1 + NEIGHBOR)
    ratio = num_passages * passage_bytes / (sum(output.num_bytes for output in corpus) or 1)  # for a byte of the corpus
    flops = 2 * num_passages * USUAL_CHUNK * hub.num_parameters(args.model_dir, USUAL_PARAMETERS)
    listed = listed_corpus(output)
    files = listed if set(there) <= set(listed) else there
    if files:
        outputs = [output for file in files for output in embedded_outputs(args, file, file in there, ratio)]
        ranges = [shards.row_range(shard, num_shards, len(outputs)) for shard in range(num_shards)]
        of_tasks = [outputs[first:stop] for first, stop in ranges]
        state = DONE if listed == files else MISSING
        of_tasks[0].append(OutputStatus(output / embeddings.MANIFEST, state, is_counted=False))
        tasks = [Task(of_task) for of_task in of_tasks]
    else:
        tasks = unknown_tasks(output, num_shards, num_passages * passage_bytes)
    names = ("parts", "bytes") if files else ("", "")
    return Step(output, *names, tasks, True, [args.corpus], [output], Takes(flops=flops))


def listed_corpus(output: Path) -> list[embeddings.CorpusFile]:
    """What the list of an embedded corpus says; nothing if it cannot be read: every task writes it anew."""
    with contextlib.suppress(PipelineError):
        return embeddings.read_manifest(output)
    return []


def embedded_outputs(
    args: EmbeddingOptions, file: embeddings.CorpusFile, is_there: bool, bytes_per_byte: float
) -> list[OutputStatus]:
    """The parts of a file of the corpus, which may be gone."""
    source = source_path(args.corpus, file)
    of_source = provenance_of_source(source, provenance.read_meta(source)) if is_there else {}
    outputs = []
    for part in range(file.num_parts):
        start, stop = part_range(source, part, args.part_bytes) if is_there else (0, 0)
        known = {**of_source, **provenance_of_request(args, part)}
        path = embeddings.part_path(args.output, file, part)
        outputs.append(look(path, known, stop - start, (stop - start) * bytes_per_byte))
    return outputs


@functools.cache
def open_embeddings(folder: Path) -> embeddings.Embeddings | None:
    """The embedded corpus; None if it is not complete."""
    with contextlib.suppress(PipelineError):
        return embeddings.Embeddings(folder)
    return None


def rows_of_queries(args: SearchOptions | RetrievedSetOptions, before: Sequence[OutputStatus]) -> dict[str, int]:
    """The rows of every domain of the queries; those that are to come where there are no queries."""
    with contextlib.suppress(PipelineError):
        names = mds.find_domains(args.queries, args.domain)
        return {name: mds.num_rows(args.queries / name) for name in names}
    return rows_to_come(before, args.queries, args.domain)


def look_at_search(args: SearchOptions, before: Sequence[OutputStatus] = ()) -> Step:
    """What is found in shards of the corpus, a part a domain and shard; with --merge, the hits of every domain."""
    num_shards, num_rows = args.num_shards or 1, rows_of_queries(args, before)
    reads = [args.queries, args.embeddings, args.tokenized_dir / "tokenizer"]
    searches = {domain: plan for domain in num_rows if (plan := plan_of_search(args, domain))}
    joined = {domain: look_at_hits(args, domain, rows) for domain, rows in num_rows.items()}
    pools = [parts.parts_dir(args.output / domain) for domain in num_rows]
    if args.merge:
        outputs = [*joined.values()] or [OutputStatus(args.output, is_counted=False)]
        hits = [output.path for output in outputs]
        return Step(args.output, "sets", "rows", [Task(outputs)], True, [*reads, *pools], hits)
    passages = [output for output in before if output.path.suffix == ".jsonl"]
    corpus_shards = len({output.path.parent for output in passages})
    flops = 2.0 * dimension(args.model_dir) * sum(output.total for output in passages) * sum(num_rows.values())
    queries = [args.output / f"{domain}.queries" for domain in num_rows]
    corpus = open_embeddings(args.embeddings)
    fetch = round(args.topk * (args.overfetch if args.exclude_overlap else 1))
    part_bytes = {domain: rows * fetch * HIT_BYTES for domain, rows in num_rows.items()}
    of_queries = sum(num_rows.values()) * 4 * dimension(args.model_dir)
    if corpus is None or len(searches) < len(num_rows) or not num_rows:
        is_done = bool(joined) and all(output.state == DONE for output in joined.values())
        found = OutputStatus(args.output, DONE if is_done else MISSING)
        num_bytes = 0 if is_done else of_queries + corpus_shards * sum(part_bytes.values())
        tasks = unknown_tasks(args.output, num_shards, num_bytes, found)
        return Step(args.output, "", "", tasks, True, reads, [*pools, *queries], Takes(flops=flops))
    tasks = []
    for shard in range(num_shards):
        first, stop = shards.row_range(shard, num_shards, len(corpus.shards))
        outputs = []
        for number in range(first, stop):
            for domain, one in searches.items():
                part, of_set = one.parts[number], joined[domain]
                num_bytes = part_bytes[domain] if of_set.state != DONE or part.path.exists() else 0
                known = functools.partial(getattr, part, "made_with")
                outputs.append(look_at_part(part.path, known, one.num_rows, num_bytes, of_set))
        tasks.append(Task(outputs))
    return Step(args.output, "parts", "rows", tasks, True, reads, [*pools, *queries], Takes(flops=flops))


def plan_of_search(args: SearchOptions, domain: str) -> Search | None:
    """The search for a domain; None where an input is missing."""
    corpus = open_embeddings(args.embeddings)
    with contextlib.suppress(PipelineError):
        return plan_search(args, corpus, domain) if corpus else None
    return None


def look_at_hits(args: SearchOptions, domain: str, num_rows: int) -> OutputStatus:
    """The hits of a domain."""
    plan = plan_of_search(args, domain)
    of_arguments = {name: getattr(args, name) for name in ("topk", "query_tokens", "exclude_overlap")}
    known = plan.hits.made_with if plan else {"domain": domain, **of_arguments}
    return look(args.output / domain, known, num_rows, num_rows * args.topk * HIT_BYTES)


def look_at_retrieved(args: RetrievedSetOptions, before: Sequence[OutputStatus] = ()) -> Step:
    """The sets of retrieved passages."""
    outputs = []
    for domain, num_rows in rows_of_queries(args, before).items():
        known: provenance.Meta = {"domain": domain}
        found_inputs: Mapping[str, Input] = {}
        with contextlib.suppress(PipelineError):
            if meta := provenance.read_meta(args.hits / domain):
                known["topk"] = written_topk(args, meta)
                there = find_inputs(args, domain)
                describe_set(there)  # raises where one is gone or damaged: then the arguments alone are compared
                found_inputs = there
        of_hits = below(before, args.hits / domain)
        topk = args.topk or sum(output.num_bytes for output in of_hits) // (HIT_BYTES * max(1, num_rows))
        row_bytes = topk * (USUAL_CHUNK * (2 + NEIGHBOR * JSON_BYTES) + HIT_BYTES)
        outputs.append(look_at_set(args.output / domain, known, num_rows, num_rows * row_bytes, found_inputs))
    tasks = [Task(outputs)] if outputs else unknown_tasks(args.output, 1)
    return Step(args.output, "sets", "rows", tasks, True, [args.queries, args.embeddings, args.hits])


EMBED = Script("retrieval.embed_passages", EmbeddingOptions, look_at_embeddings)
SEARCH = Script("retrieval.search", SearchOptions, look_at_search)
WRITE = Script("retrieval.write_mds", RetrievedSetOptions, look_at_retrieved)
