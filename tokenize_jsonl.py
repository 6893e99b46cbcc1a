"""Tokenize the listed corpus files, each into one token file.

reads   all_jsonl.txt and the files below DATA_DIR that it lists: JSON lines or parquet
writes  tokenized/**/X.npy with X.hash.npy and X.meta.json, and X.domain.npy where records say their domain
        (docs/formats.md); and tokenized/tokenizer/

    python tokenize_jsonl.py --data_dir /data/redpajama --tokenizer meta-llama/Llama-2-7b-hf
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cepe_data import cli, shards, workers
from cepe_data.corpus import listing, readers
from cepe_data.corpus.domains import RecordKeys
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.storage import outputs
from cepe_data.tokens import backends, tokenizers
from cepe_data.tokens.encoding import (
    BATCH_BYTES,
    MIN_BAD_LINES,
    SegmentEncoder,
    Tokenization,
    TokenizeOptions,
    Totals,
    describe_missing_key,
)
from cepe_data.tokens.steps import expected_bytes
from cepe_data.tokens.tokenizers import TokenizerFiles, TokenizerIdentity

VERIFIED_CHARACTERS = 64 << 10
MAX_SHARE_WITHOUT_KEY = 0.5  # who allows more bad lines may have files that begin with them


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("--data_dir", help="the files' root (default: $REDPAJAMA_DIR, or the list's)")
    files.add_argument("--file_list", type=Path, default=Path("all_jsonl.txt"), help="what get_all_jsonl.py wrote")
    files.add_argument("--output_dir", type=Path, default=Path("tokenized"), help="where the token files go")
    files.add_argument("--overwrite", action="store_true", help="replace what differs and what is damaged")
    cli.add_disk_argument(files)
    files.add_argument("--dry_run", action="store_true", help="say what each shard would take, and write nothing")
    tokenizing = parser.add_argument_group("tokenizing")
    tokenizing.add_argument(
        "--tokenizer",
        help="hub name, folder, or SentencePiece .model file (default: the one that OUTPUT_DIR/tokenizer holds, else "
        "meta-llama/Llama-2-7b-hf)",
    )
    tokenizing.add_argument(
        "--text_key", type=cli.utf8, default="text", help="key or column of the text; a.b is b in the object a"
    )
    tokenizing.add_argument(
        "--backend",
        choices=backends.BACKENDS,
        help="all give the same ids (default: the fastest that gives those of this tokenizer)",
    )
    tokenizing.add_argument(
        "--verify_documents",
        type=cli.count,
        default=16,
        help="of this run's files, on which the backend is compared with the tokenizer's own library before it starts",
    )
    tokenizing.add_argument(
        "--max_bad_lines",
        type=cli.fraction,
        default=0.001,
        metavar="SHARE",
        help=f"more bad lines than this share of a file, and more than {MIN_BAD_LINES}, are an error: the wrong file. "
        f"So is a file without a good line; with 0, any bad line is",
    )
    tokenizing.add_argument(
        "--num_workers", type=cli.positive_count, default=workers.default_num_workers(), help="processes that encode"
    )
    shards.add_shard_arguments(parser)
    return parser.parse_args(arguments)


def main() -> int:
    args = cli.typed(TokenizeOptions, parse_args())
    start = time.monotonic()
    data_dir = args.data_dir or os.environ.get("REDPAJAMA_DIR")
    listed = listing.read_file_list(args.file_list, Path(data_dir) if data_dir else None)
    listed.require_sizes()
    if args.dry_run:
        return report_dry_run(args, listed)
    shard_id, num_shards = shards.resolve_shard(args.shard_id, args.num_shards)
    assigned = listed.by_shard(num_shards)[shard_id]
    outputs.remove_stale_temporaries(args.output_dir)
    saved = args.output_dir / "tokenizer"
    tokenizer, identity = find_tokenizer(args.tokenizer, saved, args)
    tokenization = tokenization_of(args, listed, identity)
    for folder in {(args.output_dir / file.token_file).parent for file in assigned}:
        outputs.remove_stale_temporaries(folder)
    totals = Totals()
    todo = [file for file in assigned if not tokenization.is_done(file, totals)]
    listed.require_root(todo)
    if skipped := len(assigned) - len(todo) - len(totals.failures):
        cli.say(f"skipped {skipped} of {len(assigned)} files: already tokenized with the same arguments")
    if todo:
        documents = first_texts(tokenization, todo, args.verify_documents)
        backend = workers.run_in_child(backends.choose_backend, tokenizer, args.backend, documents)
    if tokenizers.saved_identity(saved) != identity:  # only now: one that is rejected would be in the way of another
        tokenizers.save(tokenizer, saved, args)
    if todo:
        new = [file for file in todo if not (args.output_dir / file.token_file).exists()]
        args.require_disk(args.output_dir, expected_bytes(new))
        tokenization.tokenize(todo, backend, args.num_workers, f"shard {shard_id}", totals)
    cli.say(
        f"shard {shard_id} of {num_shards}: {totals.files} files, {totals.documents:,} documents, {totals.tokens:,} "
        f"tokens, {totals.skipped:,} lines skipped, {totals.repaired:,} repaired, {cli.seconds_since(start)} → "
        f"{args.output_dir}"
    )
    if totals.failures:
        raise PipelineError(f"{len(totals.failures)} files failed:\n  " + "\n  ".join(totals.failures))
    return cli.EXIT_OK


def tokenization_of(args: TokenizeOptions, listed: listing.FileList, identity: TokenizerIdentity) -> Tokenization:
    """The tokenization of the arguments. The data folder must be there only if a file is to be read."""
    keys = RecordKeys(args.text_key, listed.record_domains)
    return Tokenization(listed.root or Path(), args.output_dir, keys, args.max_bad_lines, identity, args)


def find_tokenizer(
    name: str | None, folder: Path, options: outputs.WriteOptions
) -> tuple[TokenizerFiles, TokenizerIdentity]:
    """The tokenizer called `name`, else that saved in `folder`. Raises ArgumentError if another one is saved there."""
    saved = tokenizers.saved_identity(folder)
    if name is None and saved is not None:
        return tokenizers.read_saved(folder), saved
    tokenizer = tokenizers.load(name or tokenizers.DEFAULT_TOKENIZER)
    options.output_at(folder, tokenizers.made_with(tokenizer.identity)).is_done()
    return tokenizer, tokenizer.identity


def first_texts(tokenization: Tokenization, files: Sequence[listing.ListedFile], number: int) -> list[str]:
    """The beginnings of the first documents of up to `number` files spread over the run, or of more of fewer files.

    Raises:
        ArgumentError: if all records that were looked at lack the key of the text.
    """
    chosen = files[:: max(1, len(files) // max(1, number))]
    per_file = max(1, -(-number // len(chosen)))
    texts: list[str] = []
    without_key: list[Path] = []
    for file in chosen:
        source, num_before = tokenization.root / file.path, len(texts)
        try:
            keys = tokenization.keys.of(file.domain)
            for first_line, block, _ in itertools.islice(readers.read_blocks(source, keys, 1), per_file):
                parsed = readers.parse_block(first_line, block, keys)
                texts += [text[:VERIFIED_CHARACTERS] for text in parsed.texts[:per_file]]
                if len(texts) == num_before and keys.no_text in parsed.skipped.counts:
                    without_key.append(source)
        except (DamagedFileError, OSError):
            continue  # reported when the file itself is tokenized
    if without_key and not texts and tokenization.max_bad_lines < MAX_SHARE_WITHOUT_KEY:
        raise ArgumentError(describe_missing_key(without_key[0], tokenization.keys.text))
    return texts[:number]


def report_dry_run(args: TokenizeOptions, listed: listing.FileList) -> int:
    """Print, per shard, what it would take, from a measured sample of every domain's largest file."""
    files = listed.files
    saved = args.output_dir / "tokenizer"
    with outputs.naming(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tokenizer"
        tokenizer, identity = find_tokenizer(args.tokenizer, saved, args)
        tokenizers.save(tokenizer, folder)
        tokenization = tokenization_of(args, listed, identity)
        totals = Totals()
        todo = [file for file in files if not tokenization.is_done(file, totals)]
        if totals.failures:
            raise PipelineError(f"{len(totals.failures)} files are damaged:\n  " + "\n  ".join(totals.failures))
        if skipped := len(files) - len(todo):
            cli.say(f"{skipped} of {len(files)} files are tokenized already, with the same arguments")
        if not todo:
            return cli.EXIT_OK
        listed.require_root(todo)
        backend = workers.run_in_child(backends.choose_backend, tokenizer, args.backend, [])
        rates = workers.run_in_child(measure_domains, tokenization, backend, folder, todo)
    rows: list[list[Any]] = []
    is_todo, num_shards = set(todo), args.num_shards or 1
    for shard, of_shard in enumerate(listed.by_shard(num_shards)):
        assigned = [file for file in of_shard if file in is_todo]
        if assigned:
            made = [[(file.num_bytes or 0) * rate for rate in rates[file.domain]] for file in assigned]
            tokens, documents, seconds = map(sum, zip(*made, strict=True))
            text_bytes = sum(file.num_bytes or 0 for file in assigned)
            num_bytes = 4 * round(tokens) + 12 * round(documents)
            minutes = seconds / args.num_workers / 60
            rows.append([str(shard), len(assigned), text_bytes, round(tokens), num_bytes, minutes])
    if len(rows) < num_shards:
        cli.say(f"{num_shards - len(rows)} shards have nothing to do")
    if len(rows) > 1:
        rows.append(["total", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))])
    header = ("shard", "files", "bytes", "tokens", "token bytes", "minutes")
    cli.say(cli.table(header, [[*row[:-1], f"{row[-1]:.1f}"] for row in rows]))
    cli.say(f"estimated from up to {BATCH_BYTES >> 20} MB of each domain, with {args.num_workers} workers a shard")
    cli.say("while a file is assembled, it takes its size once more")
    cli.report_disk(args.output_dir, rows[-1][4])
    return cli.EXIT_OK


def measure_domains(
    tokenization: Tokenization, backend: str, folder: Path, files: list[listing.ListedFile]
) -> dict[str | None, tuple[float, float, float]]:
    """Encode the beginning of every domain's largest file, and of the largest of mixed ones. For a child process.

    Returns:
        By domain: tokens, documents and seconds of one core, for a byte of a corpus file on disk.
    """
    encode = SegmentEncoder(backend, folder, tokenization.identity, tokenization.keys)
    encode([])  # loads the backend, which is not to be measured
    rates = {}
    for domain in {file.domain for file in files}:
        largest = max((file for file in files if file.domain == domain), key=lambda file: file.num_bytes or 0)
        start = time.perf_counter()
        segment = next(tokenization.read(largest))
        if segment.failure:
            raise DamagedFileError(segment.failure)
        [encoded] = encode([segment])
        seconds, num_bytes = time.perf_counter() - start, max(1, segment.stop - segment.start)
        rates[domain] = len(encoded.ids) / num_bytes, len(encoded.lengths) / num_bytes, seconds / num_bytes
    return rates


if __name__ == "__main__":
    cli.run(main)
