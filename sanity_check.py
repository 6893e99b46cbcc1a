"""Check the token files, or show one row of any set as text.

reads   all_jsonl.txt, tokenized/**, and for `show` the MDS set that it names
writes  nothing; exit status 1 if anything is missing or damaged

    python sanity_check.py --num_shards 100
    python sanity_check.py show 8k_ab/test/arxiv 0
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cepe_data import atomic, cli, corpus, shards
from cepe_data.errors import DamagedFileError

if TYPE_CHECKING:
    import numpy as np

    from cepe_data.token_file import TokenFile

CHUNK_TOKENS = 4096
LONG_DOCUMENT_TOKENS = (8192, 32768, 131072)
READ_TOKENS = 4 << 20


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--file_list", type=Path, default=Path("all_jsonl.txt"), help="what get_all_jsonl.py wrote")
    parser.add_argument("--tokenized_dir", type=Path, default=Path("tokenized"), help="the folder of token files")
    parser.add_argument(
        "--num_shards", type=cli.positive_count, default=None, help="of tokenize_jsonl.py, for the ids to run again"
    )
    return parser.parse_args()


def main() -> int:
    return check_token_files(parse_args())


def check_token_files(args: argparse.Namespace) -> int:
    """Read every token file of the list; print what is wrong, what to run again, and a table per domain."""
    start = time.monotonic()
    files = corpus.read_file_list(args.file_list)
    fingerprint = saved_fingerprint(args.tokenized_dir / "tokenizer")
    counts: dict[str, DomainCounts] = defaultdict(DomainCounts)
    missing, damaged = [], []
    with cli.progress_bar(len(files), "file", "checking") as bar:
        for file in files:
            path = args.tokenized_dir / file.token_file
            if path.exists():
                findings = check_token_file(path, fingerprint, counts[file.domain])
                damaged += [file.path] if findings else []
            else:
                findings = [f"{path} is missing"]
                missing.append(file.path)
            for finding in findings:
                cli.say(f"FOUND  {finding}")
            bar.update()
    print_domain_table(counts)
    if missing or damaged:
        print_remedy(args, files, missing, damaged)
    cli.say(
        f"{len(files)} token files: {len(missing)} missing, {len(damaged)} damaged, "
        f"{cli.seconds_since(start)} → {args.tokenized_dir}"
    )
    return cli.EXIT_FAILED if missing or damaged else cli.EXIT_OK


@dataclass
class DomainCounts:
    """What the table has of a domain."""

    files: int = 0
    documents: int = 0
    tokens: int = 0
    chunks: int = 0
    long_documents: list[int] = field(default_factory=lambda: [0] * len(LONG_DOCUMENT_TOKENS))


def saved_fingerprint(folder: Path) -> str | None:
    from cepe_data import tokenizers

    identity = tokenizers.saved_identity(folder)
    return identity.fingerprint if identity else None


def check_token_file(path: Path, fingerprint: str | None, counts: DomainCounts) -> list[str]:
    """Everything that is wrong with one token file, as messages; what could be read is added to `counts`."""
    from cepe_data.token_file import TokenFile, hash_path

    try:
        with TokenFile(path) as tokens:
            findings = []
            if tokens.meta is not None:
                findings += check_against_meta(tokens, tokens.meta, fingerprint)
            elif hash_path(path).exists():
                findings.append(f"{path} has no {atomic.meta_path(path).name}: remove it and make it again")
            else:
                cli.warn(f"{path} was made elsewhere: its BOS, EOS and vocabulary are not checked")
            findings += check_documents(tokens, counts)
    except (DamagedFileError, FileNotFoundError) as error:
        findings = [f"{error.filename} is missing" if isinstance(error, FileNotFoundError) else str(error)]
    return findings


def check_against_meta(tokens: TokenFile, meta: atomic.Meta, fingerprint: str | None) -> list[str]:
    """What the meta file says otherwise than the arrays: hashes, counts, dtype, tokenizer."""
    from cepe_data.token_file import TOKEN_DTYPE

    findings = []
    if not atomic.is_intact(tokens.path, meta):
        findings.append(
            f"{tokens.path} or its hash file is not what was written: sizes or hashes differ from the meta file"
        )
    for name, value in (("documents", tokens.num_documents), ("tokens", tokens.num_tokens)):
        if meta.get(name) != value:
            findings.append(f"{tokens.path} has {value:,} {name}, its meta file says {meta.get(name)}")
    if tokens.dtype != TOKEN_DTYPE:
        findings.append(f"{tokens.path} has dtype {tokens.dtype}, not {TOKEN_DTYPE}")
    made_by = meta["made_with"]["tokenizer"]["fingerprint"]
    if fingerprint is not None and made_by != fingerprint:
        findings.append(f"{tokens.path} was made with another tokenizer ({made_by}) than the saved one ({fingerprint})")
    return findings


def check_documents(tokens: TokenFile, counts: DomainCounts) -> list[str]:
    """Lengths, BOS and EOS at every border, ids below the vocabulary size."""
    import numpy as np

    identity = tokens.meta["made_with"]["tokenizer"] if tokens.meta else None
    findings: list[str] = []
    for first_document, position, lengths, _ in tokens.document_blocks():
        ends = position + np.cumsum(lengths)
        if identity:
            findings += check_borders(tokens, identity, first_document, ends - lengths, ends)
        for index, threshold in enumerate(LONG_DOCUMENT_TOKENS):
            counts.long_documents[index] += int(np.count_nonzero(lengths >= threshold))
    counts.files += 1
    counts.documents += tokens.num_documents
    counts.tokens += tokens.num_tokens
    counts.chunks += tokens.num_tokens // CHUNK_TOKENS
    return findings


def check_borders(
    tokens: TokenFile, identity: dict, first_document: int, starts: np.ndarray, ends: np.ndarray
) -> list[str]:
    """Check the tokens of consecutive documents that stand at positions [starts, ends); one finding per kind."""
    import numpy as np

    bos, eos, vocab_size = identity["bos_id"], identity["eos_id"], identity["vocab_size"]
    first_wrong: dict[str, int] = {}

    def note(what: str, positions: np.ndarray, is_wrong: np.ndarray) -> None:
        if is_wrong.any() and what not in first_wrong:
            position = positions[int(np.argmax(is_wrong))]
            first_wrong[what] = first_document + int(np.searchsorted(ends, position, "right"))

    shortest = 1 if bos is None else 2
    note(f"is shorter than {shortest} tokens", starts, ends - starts < shortest)
    for start in range(int(starts[0]), int(ends[-1]), READ_TOKENS):
        stop = min(start + READ_TOKENS, int(ends[-1]))
        ids = tokens.tokens(start, stop)
        note(f"has ids outside of 0 … {vocab_size - 1}", np.arange(start, stop), (ids < 0) | (ids >= vocab_size))
        begins = starts[(starts >= start) & (starts < stop)]
        lasts = ends[(ends > start) & (ends <= stop)] - 1
        if bos is not None:
            note(f"does not begin with BOS ({bos})", begins, ids[begins - start] != bos)
        note(f"does not end with EOS ({eos})", lasts, ids[lasts - start] != eos)
    return [f"{tokens.path}: document {document} {what}" for what, document in first_wrong.items()]


def print_domain_table(counts: dict[str, DomainCounts]) -> None:
    header = ["domain", "files", "documents", "tokens", f"chunks of {CHUNK_TOKENS}"]
    header += [f"documents ≥ {threshold}" for threshold in LONG_DOCUMENT_TOKENS]
    rows = [
        [domain, one.files, one.documents, one.tokens, one.chunks, *one.long_documents]
        for domain, one in sorted(counts.items())
    ]
    rows.append(["total", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))])
    cli.say(cli.table(header, rows))


def print_remedy(
    args: argparse.Namespace, files: list[corpus.ListedFile], missing: list[str], damaged: list[str]
) -> None:
    """The command that makes what is missing or damaged."""
    overwrite = " --overwrite" if damaged else ""
    if args.num_shards is None:
        cli.say(f"make them: python tokenize_jsonl.py{overwrite}   (pass --num_shards for the array ids)")
        return
    broken = {*missing, *damaged}
    assigned = shards.assign_files([(file.path, file.num_bytes) for file in files], args.num_shards)
    ids = shards.array_ids(shard for shard, paths in enumerate(assigned) if broken.intersection(paths))
    data_dir = corpus.read_root(args.file_list) or "DATA_DIR"
    cli.say(f"make them: sbatch --array={ids} run_tokenize.sh {data_dir} --num_shards {args.num_shards}{overwrite}")


if __name__ == "__main__":
    cli.run(main)
