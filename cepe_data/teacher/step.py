"""What annotating is as a step: parts of sets in shards, and once more with --merge, the sets. No model is loaded."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cepe_data import hub, shards
from cepe_data.errors import PipelineError
from cepe_data.storage import mds, parts, provenance
from cepe_data.storage.inputs import Input, describe_set
from cepe_data.storage.steps import (
    DONE,
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

USUAL_PARAMETERS = 6.7e9  # of a teacher that is not here to be looked at
USUAL_VOCABULARY = 32_000
USUAL_CHUNK = 256  # tokens of a retrieved passage


def look_at_annotation(args: plan.AnnotationOptions, before: Sequence[OutputStatus] = ()) -> Step:
    """Parts of annotated sets; with --merge, the sets."""
    to_come = rows_to_come(before, args.input_dir, args.domain)
    sets = [AnnotatedSet.of(args, domain, to_come.get(domain, 0)) for domain in domains_of(args, to_come)]
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
    reads = [folder / one.domain for one in sets for folder in (args.input_dir, args.retrieval_input_dir) if folder]
    rows_per_part = next((one.rows_per_part for one in sets if one.rows_per_part), None)
    if not rows_per_part or not all(one.is_known for one in sets):
        # No part is there, and how large they will be is for the model to say.
        wrong = [one.joined for one in sets if one.joined.state not in {DONE, "missing"}]
        found = next(iter(wrong), sets[0].joined if sets else OutputStatus(output, is_result=True))
        tasks = unknown_tasks(output, num_shards, sum(one.joined.num_bytes for one in sets), found)
        return Step(output, "", "", tasks, True, reads, directories, takes)
    outputs_of = [one.parts_of(rows_per_part) for one in sets]
    tasks = []
    for shard in range(num_shards):
        ranges = [(outputs, shards.row_range(shard, num_shards, len(outputs))) for outputs in outputs_of]
        tasks.append(Task([output for outputs, (start, stop) in ranges for output in outputs[start:stop]]))
    return Step(output, "parts", "rows", tasks, False, reads, directories, takes)


def domains_of(args: plan.AnnotationOptions, to_come: Mapping[str, int]) -> list[str]:
    """The domains that `--domain` names; of an input that is not there yet, those that it will have."""
    with contextlib.suppress(PipelineError):
        return mds.find_domains(args.input_dir, args.domain)
    return list(to_come)


@dataclass(frozen=True)
class AnnotatedSet:
    """What is known of an annotated set without the model: of its provenance, and its inputs, where these are there."""

    domain: str
    known: provenance.Meta
    inputs: Mapping[str, Input]
    joined: OutputStatus
    rows_per_part: int | None
    is_known: bool  # how many rows it has

    @classmethod
    def of(cls, args: plan.AnnotationOptions, domain: str, to_come: int) -> AnnotatedSet:
        """Look at an annotated set. Where its input is gone, it is compared with the arguments alone."""
        folder, known = plan.output_folder(args, domain), plan.provenance_of_request(args, domain)
        known |= {"rows_per_part": args.rows_per_part} if args.rows_per_part else {}
        inputs: Mapping[str, Input] = {}
        of_set: provenance.Meta = {}
        with contextlib.suppress(PipelineError):
            there = plan.find_inputs(args, domain)
            of_set = {**describe_set(there), "rows": mds.num_rows(args.input_dir / domain)}
            inputs = there
        joined = look(folder, {**known, **of_set}, is_result=True)  # so are its parts, to which it is links
        first = joined if joined.meta else first_part(folder)
        num_rows = of_set.get("rows") or joined.made_with("rows")
        rows = num_rows or to_come
        done = rows if joined.state == DONE else 0
        joined = replace(joined, total=rows, done=done, num_bytes=rows * row_bytes(args))
        return cls(
            domain, known, inputs, joined, args.rows_per_part or first.made_with("rows_per_part"), bool(num_rows)
        )

    def parts_of(self, rows_per_part: int) -> list[OutputStatus]:
        """Its parts."""
        outputs, known = [], {**self.known, "rows_per_part": rows_per_part}
        for part, (start, stop) in enumerate(parts.part_ranges(self.joined.total, rows_per_part)):
            path = parts.part_path(parts.parts_dir(self.joined.path), part)
            known_of_it = functools.partial(known_of_part, path, known, self.inputs, start, stop)
            num_bytes = self.joined.num_bytes * (stop - start) / self.joined.total
            outputs.append(look_at_part(path, known_of_it, stop - start, num_bytes, self.joined))
        return outputs


def row_bytes(args: plan.AnnotationOptions) -> int:
    """Bytes of an annotated row; ids are as wide as those of a model that is a folder here, else as usual ones."""
    vocab_size, width = USUAL_VOCABULARY, plan.choose_targets(args).width
    with contextlib.suppress(PipelineError):
        vocab_size = (
            teacher_model.find_model(args.model_dir).vocab_size if Path(args.model_dir).is_dir() else vocab_size
        )
    return args.num_decoder_tokens * (2 * (width + 1) + mds.token_dtype(vocab_size).itemsize * width)


def first_part(folder: Path) -> OutputStatus:
    """The first part of a set that can be read, whatever made it."""
    found = (look(path, {}) for path in parts.paths_there(folder))
    return next((part for part in found if part.meta), OutputStatus(folder))


ANNOTATE = Script("calculate_logits.py", plan.AnnotationOptions, look_at_annotation)
