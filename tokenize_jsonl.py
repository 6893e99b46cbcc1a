"""Tokenize the listed jsonl files, each into one token file.

reads   all_jsonl.txt and the files below DATA_DIR that it lists
writes  tokenized/**/X.npy with X.hash.npy and X.meta.json (docs/formats.md), and tokenized/tokenizer/

    python tokenize_jsonl.py --data_dir /data/redpajama --tokenizer meta-llama/Llama-2-7b-hf
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cepe_data import atomic, cli, corpus, shards
from cepe_data.errors import DamagedFileError, PipelineError

if TYPE_CHECKING:
    from tqdm import tqdm

    from cepe_data.tokenizers import Encoder, TokenizerIdentity


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--data_dir", default=None, help="the jsonl files' root (default: $REDPAJAMA_DIR, else the list's)"
    )
    files.add_argument("--file_list", type=Path, default=Path("all_jsonl.txt"), help="what get_all_jsonl.py wrote")
    files.add_argument("--output_dir", type=Path, default=Path("tokenized"), help="where the token files go")
    files.add_argument(
        "--overwrite", action="store_true", help="replace what other arguments made, and what is damaged"
    )
    tokenizing = parser.add_argument_group("tokenizing")
    tokenizing.add_argument(
        "--tokenizer",
        default=None,
        help="hub name, folder, or SentencePiece .model file (default: the one that OUTPUT_DIR/tokenizer holds, else "
        "meta-llama/Llama-2-7b-hf)",
    )
    tokenizing.add_argument("--text_key", default="text", help="the key of a json line that holds the text")
    tokenizing.add_argument(
        "--backend", choices=("transformers", "sentencepiece"), default="transformers", help="all give the same ids"
    )
    shards.add_shard_arguments(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    start = time.monotonic()
    shard_id, num_shards = shards.resolve_shard(args.shard_id, args.num_shards)
    files = corpus.read_file_list(args.file_list, Path(args.data_dir) if args.data_dir else None)
    root = corpus.require_data_dir(args.data_dir, args.file_list)
    assigned = set(shards.assign_files([(file.path, file.num_bytes) for file in files], num_shards)[shard_id])
    mine = [file for file in files if file.path in assigned]
    encode, identity = prepare_tokenizer(args)
    job = Job(root, args.output_dir, args.text_key, args.overwrite, encode, identity)

    todo = [file for file in mine if not job.is_done(file)]
    if skipped := len(mine) - len(todo):
        cli.say(f"skipped {skipped} of {len(mine)} files: already tokenized with the same arguments")
    totals, failures = Totals(), []
    with cli.progress_bar(sum(file.num_bytes for file in todo), "B", f"shard {shard_id}", unit_scale=True) as bar:
        for file in todo:
            try:
                totals.add(job.tokenize(file, bar))
            except (DamagedFileError, FileNotFoundError) as error:
                failures.append(f"{error.filename} is missing" if isinstance(error, FileNotFoundError) else str(error))
                cli.warn(failures[-1])
    cli.say(
        f"shard {shard_id} of {num_shards}: {len(todo) - len(failures)} files, {totals.documents:,} documents, "
        f"{totals.tokens:,} tokens, {totals.skipped:,} lines skipped, {totals.mended:,} mended, "
        f"{cli.seconds_since(start)} → {args.output_dir}"
    )
    if failures:
        raise PipelineError(f"{len(failures)} files failed:\n  " + "\n  ".join(failures))
    return cli.EXIT_OK


@dataclass
class Totals:
    """Sums over the files of this run."""

    documents: int = 0
    tokens: int = 0
    skipped: int = 0
    mended: int = 0

    def add(self, other: Totals) -> None:
        self.documents += other.documents
        self.tokens += other.tokens
        self.skipped += other.skipped
        self.mended += other.mended


def prepare_tokenizer(args: argparse.Namespace) -> tuple[Encoder, TokenizerIdentity]:
    """Load the tokenizer and save it beside the token files; one that differs from the saved one is refused."""
    from cepe_data import tokenizers

    saved = args.output_dir / "tokenizer"
    name = args.tokenizer or (str(saved) if saved.is_dir() else tokenizers.DEFAULT_TOKENIZER)
    tokenizer = tokenizers.load_pretrained(name)
    identity = tokenizers.identify(tokenizer, name)
    encode = tokenizers.make_encoder(args.backend, tokenizer, name)
    atomic.remove_stale_temporaries(args.output_dir)
    tokenizers.save(tokenizer, identity, saved, args.overwrite)
    return encode, identity


@dataclass(frozen=True)
class Job:
    """What all files of a run share."""

    root: Path
    output_dir: Path
    text_key: str
    overwrite: bool
    encode: Encoder
    identity: TokenizerIdentity

    def made_with(self, file: corpus.ListedFile) -> atomic.Meta:
        return {
            "source": file.path,
            "source_bytes": file.num_bytes,
            "text_key": self.text_key,
            "tokenizer": self.identity.as_json(),
        }

    def is_done(self, file: corpus.ListedFile) -> bool:
        return atomic.is_made(self.output_dir / file.token_file, self.made_with(file), self.overwrite)

    def tokenize(self, file: corpus.ListedFile, bar: tqdm) -> Totals:
        """Make one token file.

        Raises:
            DamagedFileError: if the jsonl file is damaged, or not the one that was listed.
            FileNotFoundError: if it is gone.
        """
        import numpy as np
        import xxhash

        from cepe_data import token_file

        source, target = self.root / file.path, self.output_dir / file.token_file
        if (size := source.stat().st_size) != file.num_bytes:
            raise DamagedFileError(
                f"{source} has {size:,} bytes, but had {file.num_bytes:,} when it was listed: once it is whole, run "
                f"get_all_jsonl.py again"
            )
        atomic.remove_stale_temporaries(target.parent)
        skipped, mended = corpus.LineReport(), corpus.LineReport()
        blocks = corpus.LineBlocks(source)
        with token_file.TokenFileWriter(target, self.made_with(file), self.overwrite) as writer:
            bytes_shown = 0
            for first_line, block in blocks:
                texts, block_skipped, block_mended = corpus.parse_documents(first_line, block, self.text_key)
                skipped.merge(block_skipped)
                mended.merge(block_mended)
                ids, lengths = self.encode(texts)
                ids, lengths = token_file.add_bos_eos(ids, lengths, self.identity.bos_id, self.identity.eos_id)
                hashes = np.fromiter((xxhash.xxh3_64_intdigest(text.encode()) for text in texts), np.uint64, len(texts))
                writer.append(ids, lengths, hashes)
                bar.update(blocks.bytes_read - bytes_shown)
                bytes_shown = blocks.bytes_read
            writer.publish({"skipped_lines": skipped.as_json(), "mended_lines": mended.as_json()})
        for what, report in (("skipped", skipped), ("mended", mended)):
            for reason, number in report.counts.items():
                cli.warn(f"{source}: {number} lines {what}, {reason}: first lines {report.lines[reason]}")
        return Totals(
            writer.num_documents, writer.num_tokens, sum(skipped.counts.values()), sum(mended.counts.values())
        )


if __name__ == "__main__":
    cli.run(main)
