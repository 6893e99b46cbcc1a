"""What tokenizing is as a step: a token file for every listed file, in shards of about as many bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cepe_data import shards
from cepe_data.corpus import listing
from cepe_data.corpus.domains import RecordKeys
from cepe_data.errors import DamagedFileError
from cepe_data.storage.steps import DAMAGED, DONE, OutputStatus, Script, Step, Takes, Task, look, unknown_tasks
from cepe_data.tokens import tokenizers
from cepe_data.tokens.encoding import Tokenization, TokenizeOptions

TOKEN_BYTES = 0.98  # of token files for a byte of JSON lines: RedPajama's 4.95 TB make 4.84 TB
UNPACKED_BYTES = 3.0  # of JSON lines for a byte of a compressed file
BYTES_PER_CORE = 37e6  # of JSON lines a second
BYTES_PER_PROCESS = 300e6  # which one process reads, and writes as tokens, whatever its workers (measured: 250 to 390)


def look_at_tokens(args: TokenizeOptions, before: Sequence[OutputStatus] = ()) -> Step:
    """Token files; the first task has the saved tokenizer, too. What is there tells how large the others will be.
    Without a list, the corpus is as large as the output of it `before` is.

    Raises:
        PipelineError: for a list that is not right.
    """
    num_shards, folder, data_dir = args.num_shards or 1, args.output_dir, Path(args.data_dir) if args.data_dir else None
    if not args.file_list.exists():
        text_bytes = sum(output.num_bytes for output in before)
        return Step(
            folder,
            "",
            "",
            unknown_tasks(folder, num_shards, text_bytes * TOKEN_BYTES),
            True,
            reads=[output.path for output in before[:1]],
            intermediates=[folder / "**/*.npy"],  # their folders are not known yet
            takes=Takes(text_bytes / BYTES_PER_CORE, text_bytes / BYTES_PER_PROCESS),
        )
    listed = listing.read_file_list(args.file_list, data_dir)
    listed.require_sizes()
    saved, tokenization = look(folder / "tokenizer", {}), None
    try:
        if identity := tokenizers.saved_identity(folder / "tokenizer"):
            tokenization = Tokenization(Path(), folder, RecordKeys(args.text_key, listed.record_domains), 0.0, identity)
    except DamagedFileError as error:
        saved = replace(saved, state=DAMAGED, what=str(error))
    sizes = {file.path: file.num_bytes or 0 for file in listed.files}
    known = {
        file.path: {"domain_key": None, "domain_map": None, **tokenization.made_with(file)} if tokenization else {}
        for file in listed.files
    }
    outputs = {file.path: look(folder / file.token_file, known[file.path], sizes[file.path]) for file in listed.files}
    outputs = with_expected_bytes(listed.files, outputs)
    assigned = shards.assign_files(list(sizes.items()), num_shards)
    tasks = [[outputs[path] for path in paths] for paths in assigned]
    tasks[0].append(replace(saved, is_counted=False, is_result=True))
    text_bytes = sum(map(json_bytes, listed.files))
    in_flight = min(num_shards, len(sizes)) * max((output.num_bytes for output in outputs.values()), default=0)
    return Step(
        folder,
        "files",
        "bytes",
        [Task(of_task) for of_task in tasks],
        reads=[output.path for output in before[:1]],
        intermediates=sorted({path for file in listed.files for path in paths_of(folder, file.token_file)}),
        takes=Takes(text_bytes / BYTES_PER_CORE, text_bytes / BYTES_PER_PROCESS, scratch_bytes=in_flight),
    )


def paths_of(folder: Path, token_file: str) -> list[Path]:
    """The folder below `folder` that has a token file; or, of one that is in no such folder, all of its files."""
    first, *others = Path(token_file).parts
    return [folder / first] if others else [folder / first, *folder.glob(f"{first.removesuffix('npy')}*")]


def with_expected_bytes(
    files: Sequence[listing.ListedFile], outputs: dict[str, OutputStatus]
) -> dict[str, OutputStatus]:
    """These outputs, with the bytes that the token file of each will take: as many for a byte as in its domain, or as
    in all of those that are there."""
    there: dict[str | None, float] = defaultdict(float)
    made: dict[str | None, float] = defaultdict(float)
    for file in files:
        if outputs[file.path].state == DONE:
            for domain in {file.domain, "all of them"}:
                there[domain] += json_bytes(file)
                made[domain] += outputs[file.path].num_bytes
    expected = {}
    for file in files:
        domain = file.domain if there[file.domain] else "all of them"
        ratio = made[domain] / there[domain] if there[domain] else TOKEN_BYTES
        output = outputs[file.path]
        expected[file.path] = output if output.state == DONE else replace(output, num_bytes=json_bytes(file) * ratio)
    return expected


def expected_bytes(files: Sequence[listing.ListedFile]) -> float:
    """Bytes of the token files of these files."""
    return TOKEN_BYTES * sum(map(json_bytes, files))


def json_bytes(file: listing.ListedFile) -> float:
    """Bytes of the JSON lines of a file, about so many if it is compressed."""
    return (file.num_bytes or 0) * (1.0 if file.path.endswith((".jsonl", ".json")) else UNPACKED_BYTES)


TOKENIZE = Script("tokenize_jsonl.py", TokenizeOptions, look_at_tokens)
