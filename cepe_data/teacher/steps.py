"""Annotating as a step: parts of sets in shards, and once more with --merge, the sets. No model is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cepe_data import hub, shards
from cepe_data.errors import PipelineError
from cepe_data.storage import mds, parts
from cepe_data.storage.inputs import Input, describe_set
from cepe_data.storage.parts import PartedSet
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
    look,
    look_at_part,
    rows_of_sets,
    unknown_tasks,
)
from cepe_data.teacher import model as teacher_model
from cepe_data.teacher import plan

USUAL_PARAMETERS = 6.7e9  # of a teacher that is not a folder here
RANKS = {MISSING: 1, DONE: 2}  # what is wrong with a set comes before these


def look_at_annotation(args: plan.AnnotationOptions, before: Sequence[OutputStatus] = ()) -> Step:
    """Parts of annotated sets; with --merge, the sets."""
    num_rows = rows_of_sets(before, args.input_dir, args.domain)
    sets = [look_at_annotated(args, domain, rows) for domain, rows in num_rows.items()]
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
    recorded = (args.recorded(one.joined.path, "rows_per_part") for one in sets)
    rows_per_part = args.rows_per_part or next(filter(None, recorded), None)
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


@dataclass(frozen=True)
class AnnotatedSet:
    """What is known of an annotated set without the model: from its provenance, and its inputs where they exist."""

    joined: OutputStatus
    inputs: Mapping[str, Input]
    is_known: bool  # how many rows it has


def look_at_annotated(args: plan.AnnotationOptions, domain: str, to_come: int) -> AnnotatedSet:
    """Look at an annotated set, of `to_come` rows if nothing there says how many. Where its input is gone, it is
    compared with the arguments alone."""
    folder, known = plan.output_folder(args, domain), plan.provenance_of_request(args, domain)
    known |= {"rows_per_part": args.rows_per_part} if args.rows_per_part else {}
    inputs: Mapping[str, Input] = {}
    with contextlib.suppress(PipelineError):
        found = plan.find_inputs(args, domain)
        known |= {**describe_set(found), "rows": mds.num_rows(args.input_dir / domain)}
        inputs = found
    joined = look(folder, known, is_result=True)  # so are its parts, to which it is links
    num_rows = known.get("rows") or joined.made_with("rows")
    total = num_rows or to_come
    num_bytes = total * mds.row_bytes(target_columns(args))
    joined = replace(joined, total=total, done=total if joined.state == DONE else 0, num_bytes=num_bytes)
    return AnnotatedSet(joined, inputs, bool(num_rows))


def look_at_parts(args: plan.AnnotationOptions, one: AnnotatedSet, rows_per_part: int) -> list[OutputStatus]:
    """Look at the parts of an annotated set."""
    joined, request = one.joined, plan.provenance_of_request(args, one.joined.path.name)
    of_set = PartedSet(joined.path, target_columns(args), joined.total, rows_per_part, request, args, one.inputs)
    return [
        look_at_part(of_set.parts, part, stop - start, joined.num_bytes * (stop - start) / joined.total, joined)
        for part, (start, stop) in enumerate(of_set.part_ranges)
    ]


def target_columns(args: plan.AnnotationOptions) -> mds.Columns:
    """The columns of an annotated set; ids are as wide as those of a model that is a folder here, else int16."""
    vocab_size = USUAL_VOCABULARY
    if Path(args.model_dir).is_dir():
        with contextlib.suppress(PipelineError):
            vocab_size = teacher_model.find_model(args.model_dir).vocab_size
    return plan.target_columns(args, vocab_size)


ANNOTATE = Script("calculate_logits.py", plan.AnnotationOptions, look_at_annotation)
