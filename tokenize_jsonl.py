"""Tokenize the listed corpus files, each into one token file.

reads   all_jsonl.txt and the files below DATA_DIR that it lists: JSON lines or parquet
writes  tokenized/**/X.npy with X.hash.npy and X.meta.json, and X.domain.npy where records say their domain
        (docs/formats.md); and tokenized/tokenizer/

    python tokenize_jsonl.py --data_dir /data/redpajama --tokenizer meta-llama/Llama-2-7b-hf
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cepe_data import cli, shards, workers
from cepe_data.corpus import listing, readers
from cepe_data.corpus.domains import RecordKeys
from cepe_data.errors import ArgumentError, DamagedFileError, PipelineError
from cepe_data.storage import outputs
from cepe_data.tokens import backends, tokenizers
from cepe_data.tokens.encoding import (
    BATCH_BYTES,
    MIN_BAD_LINES,
    Job,
    SegmentEncoder,
    TokenizeOptions,
    Totals,
    describe_missing_key,
)
from cepe_data.tokens.tokenizers import TokenizerIdentity

VERIFIED_CHARACTERS = 64 << 10
MAX_SHARE_WITHOUT_KEY = 0.5  # who allows more bad lines may have files that begin with them


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("--data_dir", default=None, help="the files' root (default: $REDPAJAMA_DIR, or the list's)")
    files.add_argument("--file_list", type=Path, default=Path("all_jsonl.txt"), help="what get_all_jsonl.py wrote")
    files.add_argument("--output_dir", type=Path, default=Path("tokenized"), help="where the token files go")
    files.add_argument("--overwrite", action="store_true", help="replace what differs and what is damaged")
    files.add_argument("--dry_run", action="store_true", help="say what each shard would take, and write nothing")
    tokenizing = parser.add_argument_group("tokenizing")
    tokenizing.add_argument(
        "--tokenizer",
        default=None,
        help="hub name, folder, or SentencePiece .model file (default: the one that OUTPUT_DIR/tokenizer holds, else "
        "meta-llama/Llama-2-7b-hf)",
    )
    tokenizing.add_argument("--text_key", default="text", help="key or column of the text; a.b is b in the object a")
    tokenizing.add_argument(
        "--backend",
        choices=backends.BACKENDS,
        default=None,
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
    data_dir = listing.choose_data_dir(args.data_dir)
    listed = listing.read_file_list(args.file_list, data_dir)
    listed.require_sizes()
    if args.dry_run:
        return report_dry_run(args, listed, data_dir)
    shard_id, num_shards = shards.resolve_shard(args.shard_id, args.num_shards)
    mine = files_of_shard(listed.files, shard_id, num_shards)
    outputs.remove_stale_temporaries(args.output_dir)
    identity = prepare_tokenizer(args.tokenizer, args.output_dir / "tokenizer", args)
    job = job_of(args, listed, data_dir, identity)
    for folder in {(args.output_dir / file.token_file).parent for file in mine}:
        outputs.remove_stale_temporaries(folder)
    totals = Totals()
    todo = [file for file in mine if not job.is_done(file, totals)]
    require_data_dir(job, listed, todo)
    if skipped := len(mine) - len(todo) - len(totals.failures):
        cli.say(f"skipped {skipped} of {len(mine)} files: already tokenized with the same arguments")
    if todo:
        documents = first_texts(job, todo, args.verify_documents)
        backend = workers.run_in_child(choose_backend, args.output_dir / "tokenizer", args.backend, documents)
        job.tokenize(todo, backend, args.num_workers, f"shard {shard_id}", totals)
    cli.say(
        f"shard {shard_id} of {num_shards}: {totals.files} files, {totals.documents:,} documents, {totals.tokens:,} "
        f"tokens, {totals.skipped:,} lines skipped, {totals.repaired:,} repaired, {cli.seconds_since(start)} → "
        f"{args.output_dir}"
    )
    if totals.failures:
        raise PipelineError(f"{len(totals.failures)} files failed:\n  " + "\n  ".join(totals.failures))
    return cli.EXIT_OK


def job_of(args: TokenizeOptions, listed: listing.FileList, data_dir: Path | None, identity: TokenizerIdentity) -> Job:
    """What the arguments ask for. The data folder need not be there: it is required only if a file is to be read."""
    keys = RecordKeys(args.text_key, listed.record_domains)
    return Job(data_dir or listed.root or Path(), args.output_dir, keys, args.max_bad_lines, identity, args)


def files_of_shard(files: Sequence[listing.ListedFile], shard_id: int, num_shards: int) -> list[listing.ListedFile]:
    assigned = set(shards.assign_files([(file.path, file.num_bytes or 0) for file in files], num_shards)[shard_id])
    return [file for file in files if file.path in assigned]


def require_data_dir(job: Job, listed: listing.FileList, files: Sequence[listing.ListedFile]) -> None:
    """Raise ArgumentError if there are files to read and no data folder, or most of them are not in it: it is not the
    one that was listed. (Of some that are gone, each is an error of its own.)"""
    if files:
        listed.require_root(job.root if job.root != Path() else None)
    absent = [file.path for file in files if not (job.root / file.path).exists()]
    if 2 * len(absent) > len(files):
        raise ArgumentError(
            f"{len(absent)} of {len(files)} listed files are not in the data folder {job.root}, such as {absent[0]}: "
            f"is it the one that was listed?"
        )


def prepare_tokenizer(name: str | None, folder: Path, options: outputs.WriteOptions) -> TokenizerIdentity:
    """Save the tokenizer in `folder`, or find it saved; one that differs from a saved one is refused."""
    saved = tokenizers.saved_identity(folder)
    if name is None and saved is not None:
        tokenizers.check_saved(folder, saved)
        return saved
    tokenizer = tokenizers.load(name or tokenizers.DEFAULT_TOKENIZER)
    tokenizers.save(tokenizer, folder, options)
    return tokenizer.identity


def choose_backend(folder: Path, requested: str | None, documents: list[str]) -> str:
    """The backend for a saved tokenizer. For a child process: the libraries that are compared take memory."""
    return backends.choose_backend(tokenizers.read_saved(folder), requested, documents)


def first_texts(job: Job, files: Sequence[listing.ListedFile], number: int) -> list[str]:
    """The beginnings of the first documents of up to `number` files spread over the run, or of more of fewer files.

    Raises:
        ArgumentError: if all records that were looked at lack the key of the text.
    """
    chosen = files[:: max(1, len(files) // max(1, number))]
    per_file = -(-number // len(chosen))
    texts: list[str] = []
    without_key: list[Path] = []
    for file in chosen:
        source, num_before = job.root / file.path, len(texts)
        try:
            keys = job.keys.of(file.domain)
            for first_line, block in itertools.islice(readers.open_blocks(source, keys, 1), max(1, per_file)):
                parsed = readers.parse_block(first_line, block, keys)
                texts += [text[:VERIFIED_CHARACTERS] for text in parsed.texts[: max(1, per_file)]]
                if len(texts) == num_before and keys.no_text in parsed.skipped.counts:
                    without_key.append(source)
        except (DamagedFileError, OSError):
            continue  # its turn comes, with a message
    if without_key and not texts and job.max_bad_lines < MAX_SHARE_WITHOUT_KEY:
        raise ArgumentError(describe_missing_key(without_key[0], job.keys.text))
    return texts[:number]


def report_dry_run(args: TokenizeOptions, listed: listing.FileList, data_dir: Path | None) -> int:
    """Print, per shard, what it would take, from a measured sample of every domain's largest file."""
    files = listed.files
    saved = args.output_dir / "tokenizer"
    with outputs.naming(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as scratch:
        name = args.tokenizer or (str(saved) if saved.is_dir() else None)
        identity = prepare_tokenizer(name, Path(scratch) / "tokenizer", args)
        if not args.overwrite:
            args.output_at(saved, tokenizers.made_with(identity)).is_done()
        job = job_of(args, listed, data_dir, identity)
        totals = Totals()
        todo = [file for file in files if not job.is_done(file, totals)]
        if totals.failures:
            raise PipelineError(f"{len(totals.failures)} files are damaged:\n  " + "\n  ".join(totals.failures))
        if skipped := len(files) - len(todo):
            cli.say(f"{skipped} of {len(files)} files are tokenized already, with the same arguments")
        if not todo:
            return cli.EXIT_OK
        require_data_dir(job, listed, todo)
        folder = Path(scratch) / "tokenizer"
        backend = workers.run_in_child(choose_backend, folder, args.backend, [])
        rates = workers.run_in_child(measure_domains, job, backend, folder, todo)
    rows = []
    is_todo = set(todo)
    for shard in range(args.num_shards or 1):
        mine = [file for file in files_of_shard(files, shard, args.num_shards or 1) if file in is_todo]
        sizes = [(file.num_bytes or 0, rates[file.domain]) for file in mine]
        num_tokens = round(sum(size * rate.tokens_per_byte for size, rate in sizes))
        num_documents = round(sum(size * rate.documents_per_byte for size, rate in sizes))
        seconds = sum(size * rate.seconds_per_byte for size, rate in sizes) / args.num_workers
        num_bytes = 4 * num_tokens + 12 * num_documents
        rows.append((str(shard), len(mine), sum(size for size, _ in sizes), num_tokens, num_bytes,
                     f"{seconds / 60:.1f}"))  # fmt: skip
    if empty := sum(not row[1] for row in rows):
        cli.say(f"{empty} shards have nothing to do")
    rows = [row for row in rows if row[1]]
    if len(rows) > 1:
        sums = [sum(int(row[column]) for row in rows) for column in range(1, 5)]
        rows.append(("total", sums[0], sums[1], sums[2], sums[3], f"{sum(float(row[5]) for row in rows):.1f}"))
    cli.say(cli.table(("shard", "files", "bytes", "tokens", "token bytes", "minutes"), rows))
    cli.say(f"estimated from up to {BATCH_BYTES >> 20} MB of each domain, with {args.num_workers} workers a shard")
    cli.say("while a file is assembled, it takes its size once more")
    cli.report_disk(args.output_dir, int(rows[-1][4]))
    return cli.EXIT_OK


@dataclass(frozen=True)
class Rates:
    """What a byte of a corpus file on disk makes, on one core."""

    tokens_per_byte: float
    documents_per_byte: float
    seconds_per_byte: float


def measure_domains(job: Job, backend: str, folder: Path, files: list[listing.ListedFile]) -> dict[str | None, Rates]:
    """Encode the beginning of every domain's largest file, and of the largest of mixed ones. For a child process."""
    encode = SegmentEncoder(backend, folder, job.identity, job.keys)
    encode([])  # loads the backend, which is not to be measured
    rates: dict[str | None, Rates] = {}
    for domain in {file.domain for file in files}:
        largest = max((file for file in files if file.domain == domain), key=lambda file: file.num_bytes or 0)
        start = time.perf_counter()
        segment = next(job.read(largest))
        if segment.failure:
            raise DamagedFileError(segment.failure)
        [encoded] = encode([segment])
        num_bytes, seconds = max(1, segment.stop - segment.start), time.perf_counter() - start
        rates[domain] = Rates(len(encoded.ids) / num_bytes, len(encoded.lengths) / num_bytes, seconds / num_bytes)
    return rates


if __name__ == "__main__":
    cli.run(main)
