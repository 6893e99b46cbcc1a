"""What annotating is as a step: parts of a set in shards, and once more with --merge, the set. No model is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cepe_data import hub, shards
from cepe_data.errors import PipelineError
from cepe_data.storage import mds, parts, provenance
from cepe_data.storage.steps import DONE, Script, Step, Takes, Task, Unit, below, look, look_at_part, unknown_tasks
from cepe_data.teacher import model as teacher_model
from cepe_data.teacher import plan

USUAL_PARAMETERS = 6.7e9  # of a teacher that is not here to be looked at
USUAL_VOCABULARY = 32_000


def look_at_annotation(args: plan.AnnotationOptions, before: Sequence[Unit] = ()) -> Step:
    """Parts of an annotated set; with --merge, the set."""
    folder, num_shards = plan.output_folder(args), args.num_shards or 1
    known: provenance.Meta = {"rows_per_part": args.rows_per_part} if args.rows_per_part else {}
    with contextlib.suppress(PipelineError):
        known |= {**plan.provenance_of_request(args), "rows": mds.num_rows(args.input_dir / args.domain)}
    expected_rows = known.get("rows") or sum(unit.total for unit in below(before, args.input_dir / args.domain))
    index_bytes = mds.token_dtype(vocab_size(args.model_dir)).itemsize
    row_bytes = args.num_decoder_tokens * (2 * (args.topk + 1) + index_bytes * args.topk)
    joined = look(folder, known, is_result=True)  # so are its parts, to which it is links
    first = joined if joined.meta else first_part(folder)
    num_rows, rows_per_part = (known.get(name) or first.made_with(name) for name in ("rows", "rows_per_part"))
    directory = parts.parts_dir(folder)
    if args.merge:
        rows = num_rows or expected_rows
        of_set = replace(joined, total=rows, done=rows if joined.state == DONE else 0, num_bytes=0)
        return Step(folder, "sets", "rows", [Task([of_set])], reads=[directory])
    context = args.retrieval_k * 256 if args.retrieval_input_dir else args.num_encoder_tokens
    num_tokens = (num_rows or expected_rows) * (context + args.num_decoder_tokens)
    takes = Takes(flops=2 * num_tokens * hub.num_parameters(args.model_dir, USUAL_PARAMETERS))
    reads = [path / args.domain for path in (args.input_dir, args.retrieval_input_dir) if path]
    if not num_rows or not rows_per_part:  # no part is there, and how large they will be is for the model to say
        tasks = unknown_tasks(folder, num_shards, expected_rows * row_bytes, joined)
        return Step(folder, "", "", tasks, True, reads, [directory], takes)
    ranges, tasks = parts.part_ranges(num_rows, rows_per_part), []
    for shard in range(num_shards):
        start, stop = shards.row_range(shard, num_shards, len(ranges))
        units = []
        for part, (start_row, stop_row) in enumerate(ranges[start:stop], start):
            of_part = {**known, "rows_per_part": rows_per_part, "first_row": start_row, "stop_row": stop_row}
            rows = stop_row - start_row
            units.append(look_at_part(parts.part_path(directory, part), of_part, rows, rows * row_bytes, joined))
        tasks.append(Task(units))
    return Step(folder, "parts", "rows", tasks, False, reads, [directory], takes)


def first_part(folder: Path) -> Unit:
    """The first part of a set that can be read, whatever made it."""
    found = (look(path, {}) for path in parts.paths_there(folder))
    return next((part for part in found if part.meta), Unit(folder))


def vocab_size(model_dir: str) -> int:
    """Of a model that is a folder here; else a usual one."""
    with contextlib.suppress(PipelineError):
        return teacher_model.find_model(model_dir).vocab_size if Path(model_dir).is_dir() else USUAL_VOCABULARY
    return USUAL_VOCABULARY


ANNOTATE = Script("calculate_logits.py", plan.AnnotationOptions, look_at_annotation)
