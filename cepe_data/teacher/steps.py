"""Annotating as a step: parts of sets in shards, and once more with --merge, the sets. No model is loaded."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cepe_data import hub, shards
from cepe_data.errors import PipelineError
from cepe_data.storage import mds, parts
from cepe_data.storage.inputs import Input, describe_set
from cepe_data.storage.steps import (
    DONE,
    MISSING,
    USUAL_CHUNK,
    USUAL_VOCABULARY,
    OutputStatus,
    Script,
    Step,
    Takes,
    Task,
    known_of_part,
    look,
    look_at_part,
    rows_to_come,
    unknown_tasks,
)
from cepe_data.teacher import model as teacher_model
from cepe_data.teacher import plan

USUAL_PARAMETERS = 6.7e9  # of a teacher that is not a folder here
RANKS = {MISSING: 1, DONE: 2}  # what is wrong with a set comes before these


def look_at_annotation(args: plan.AnnotationOptions, before: Sequence[OutputStatus] = ()) -> Step:
    """Parts of annotated sets; with --merge, the sets."""
    to_come = rows_to_come(before, args.input_dir, args.domain)
    sets = [look_at_annotated(args, domain, to_come.get(domain, 0)) for domain in domains_of(args, to_come)]
    output = sets[0].joined.path if len(sets) == 1 else plan.output_folder(args, "all").parent
    num_shards, directories = args.num_shards or 1, [parts.parts_dir(one.joined.path) for one in sets]
    if args.merge:  # which links the parts
        outputs = [replace(one.joined, num_bytes=0) for one in sets] or [
            OutputStatus(output, is_counted=False, is_result=True)
        ]
        return Step(output, "sets", "rows", [Task(outputs)], reads=directories)
    context = args.retrieval_k * USUAL_CHUNK if args.retrieval_input_dir else args.num_encoder_tokens
    num_tokens = sum(one.joined.total for one in sets) * (context + args.num_decoder_tokens)
    takes = Takes(flops=2 * num_tokens * hub.num_parameters(args.model_dir, USUAL_PARAMETERS))
    reads = [
        folder / one.joined.path.name for one in sets for folder in (args.input_dir, args.retrieval_input_dir) if folder
    ]
    rows_per_part = args.rows_per_part or next((one.rows_per_part for one in sets if one.rows_per_part), None)
    if not rows_per_part or not all(one.is_known for one in sets):
        # No part exists, and their size depends on the model.
        nothing = OutputStatus(output, is_result=True)
        found = min((one.joined for one in sets), key=lambda status: RANKS.get(status.state, 0), default=nothing)
        unknown = unknown_tasks(output, num_shards, sum(one.joined.num_bytes for one in sets), found)
        return Step(output, "", "", unknown, True, reads, directories, takes)
    tasks: list[list[OutputStatus]] = [[] for _ in range(num_shards)]
    for one in sets:
        outputs = look_at_parts(args, one, rows_per_part)
        for shard in range(num_shards):
            start, stop = shards.row_range(shard, num_shards, len(outputs))
            tasks[shard] += outputs[start:stop]
    return Step(output, "parts", "rows", list(map(Task, tasks)), False, reads, directories, takes)


def domains_of(args: plan.AnnotationOptions, to_come: Mapping[str, int]) -> list[str]:
    """The domains that `--domain` names, those included that the input will have."""
    found: list[str] = []
    with contextlib.suppress(PipelineError):
        found = mds.find_domains(args.input_dir, args.domain)
    return list(dict.fromkeys([*found, *to_come]))


@dataclass(frozen=True)
class AnnotatedSet:
    """What is known of an annotated set without the model: from its provenance, and its inputs where they exist."""

    joined: OutputStatus
    inputs: Mapping[str, Input]
    rows_per_part: int | None  # of the parts that exist
    is_known: bool  # how many rows it has


def look_at_annotated(args: plan.AnnotationOptions, domain: str, to_come: int) -> AnnotatedSet:
    """Look at an annotated set. Where its input is gone, it is compared with the arguments alone."""
    folder, known = plan.output_folder(args, domain), plan.provenance_of_request(args, domain)
    known |= {"rows_per_part": args.rows_per_part} if args.rows_per_part else {}
    inputs: Mapping[str, Input] = {}
    with contextlib.suppress(PipelineError):
        found = plan.find_inputs(args, domain)
        known |= {**describe_set(found), "rows": mds.num_rows(args.input_dir / domain)}
        inputs = found
    joined = look(folder, known, is_result=True)  # so are its parts, to which it is links
    first = joined if joined.meta else first_part(folder)
    num_rows = known.get("rows") or joined.made_with("rows")
    total = num_rows or to_come
    num_bytes = total * mds.row_bytes(target_columns(args))
    joined = replace(joined, total=total, done=total if joined.state == DONE else 0, num_bytes=num_bytes)
    return AnnotatedSet(joined, inputs, first.made_with("rows_per_part"), bool(num_rows))


def look_at_parts(args: plan.AnnotationOptions, one: AnnotatedSet, rows_per_part: int) -> list[OutputStatus]:
    """Look at the parts of an annotated set."""
    joined, outputs = one.joined, []
    shared = {**plan.provenance_of_request(args, joined.path.name), "rows_per_part": rows_per_part}
    for part, (start, stop) in enumerate(parts.part_ranges(joined.total, rows_per_part)):
        path = parts.part_path(parts.parts_dir(joined.path), part)
        known = functools.partial(known_of_part, path, shared, one.inputs, start, stop)
        num_bytes = joined.num_bytes * (stop - start) / joined.total
        outputs.append(look_at_part(path, known, stop - start, num_bytes, joined))
    return outputs


def target_columns(args: plan.AnnotationOptions) -> mds.Columns:
    """The columns of an annotated set; ids are as wide as those of a model that is a folder here, else int16."""
    vocab_size = USUAL_VOCABULARY
    if Path(args.model_dir).is_dir():
        with contextlib.suppress(PipelineError):
            vocab_size = teacher_model.find_model(args.model_dir).vocab_size
    return plan.target_columns(args, vocab_size)


def first_part(folder: Path) -> OutputStatus:
    """The first part of a set that can be read, whatever made it."""
    found = (look(path, {}) for path in parts.paths_there(folder))
    return next((part for part in found if part.meta), OutputStatus(folder))


ANNOTATE = Script("calculate_logits.py", plan.AnnotationOptions, look_at_annotation)
