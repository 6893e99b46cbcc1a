"""Check the token files, or show one row of any set as text.

reads   all_jsonl.txt, tokenized/**, and for `show` the MDS set that it names
writes  nothing; exit status 1 if anything is missing or damaged

    python sanity_check.py --num_shards 100
    python sanity_check.py show 8k_ab/test/arxiv 0
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cepe_data import atomic, cli, corpus, shards
from cepe_data.errors import ArgumentError, DamagedFileError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast

    from cepe_data.token_file import TokenFile
    from cepe_data.tokenizers import TokenizerIdentity

CHUNK_TOKENS = 4096
LONG_DOCUMENT_TOKENS = (8192, 32768, 131072)
READ_TOKENS = 4 << 20


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--file_list", type=Path, default=Path("all_jsonl.txt"), help="what get_all_jsonl.py wrote")
    parser.add_argument("--tokenized_dir", type=Path, default=Path("tokenized"), help="the folder of token files")
    parser.add_argument(
        "--num_shards",
        type=cli.positive_count,
        default=None,
        help="as given to tokenize_jsonl.py: then the array ids to run again are printed",
    )
    commands = parser.add_subparsers(dest="command", metavar="show PATH ROW", title="instead of the check")
    show = commands.add_parser("show", help="show one row as text", formatter_class=cli.HelpFormatter)
    show.add_argument("path", type=Path, metavar="PATH", help="the folder of an MDS set, such as 8k_ab/test/arxiv")
    show.add_argument("row", type=cli.count, metavar="ROW", help="the number of the row, from 0")
    show.add_argument(
        "--tokenized_dir",
        type=Path,
        default=argparse.SUPPRESS,
        help="for its tokenizer and documents (default: tokenized)",
    )
    show.add_argument("--tokenizer", default=None, help="hub name, folder or .model file (default: the saved one)")
    show.add_argument(
        "--input_dir",
        type=Path,
        default=None,
        help="the folder of a teacher's input (default: beside it), or of the queries of retrieved passages",
    )
    show.add_argument(
        "--max_characters",
        type=cli.positive_count,
        default=1500,
        help="of each text; the middle of a longer one is cut",
    )
    show.add_argument("--positions", type=cli.positive_count, default=10, help="of a teacher's row, evenly spaced")
    show.add_argument("--passages", type=cli.positive_count, default=3, help="of a row of retrieved passages, the best")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    return show_row(args) if args.command == "show" else check_token_files(args)


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
                findings = check_token_file(path, file, fingerprint, counts[file.domain])
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


def check_token_file(path: Path, file: corpus.ListedFile, fingerprint: str | None, counts: DomainCounts) -> list[str]:
    """Everything that is wrong with one token file, as messages; what could be read is added to `counts`."""
    from cepe_data.token_file import TokenFile, hash_path

    try:
        with TokenFile(path) as tokens:
            findings = []
            if tokens.meta is not None:
                findings += check_against_meta(tokens, tokens.meta, file, fingerprint)
            elif hash_path(path).exists():
                findings.append(f"{path} has no {atomic.meta_path(path).name}: remove it and make it again")
            else:
                cli.warn(f"{path} was made elsewhere: its BOS, EOS and vocabulary are not checked")
            findings += check_documents(tokens, counts)
    except (DamagedFileError, FileNotFoundError) as error:
        findings = [f"{error.filename} is missing" if isinstance(error, FileNotFoundError) else str(error)]
    return findings


def check_against_meta(
    tokens: TokenFile, meta: atomic.Meta, file: corpus.ListedFile, fingerprint: str | None
) -> list[str]:
    """What the meta file says otherwise than arrays, list and saved tokenizer."""
    from cepe_data.token_file import TOKEN_DTYPE, read_tokenizer

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
    made_with = meta["made_with"]
    if (made_with.get("source"), made_with.get("source_bytes")) != (file.path, file.num_bytes):
        findings.append(
            f"{tokens.path} was made from {made_with.get('source')} with {made_with.get('source_bytes')} bytes, the "
            f"list says {file.path} with {file.num_bytes}"
        )
    made_by = read_tokenizer(tokens.path, meta).fingerprint
    if fingerprint is not None and made_by != fingerprint:
        findings.append(f"{tokens.path} was made with another tokenizer ({made_by}) than the saved one ({fingerprint})")
    return findings


def check_documents(tokens: TokenFile, counts: DomainCounts) -> list[str]:
    """Lengths, BOS and EOS at every border, ids below the vocabulary size."""
    import numpy as np

    from cepe_data.token_file import read_tokenizer

    identity = read_tokenizer(tokens.path, tokens.meta) if tokens.meta else None
    findings: list[str] = []
    for first_document, position, lengths, _ in tokens.document_blocks():
        ends = position + np.cumsum(lengths)
        findings += check_borders(tokens, identity, first_document, ends - lengths, ends)
        for index, threshold in enumerate(LONG_DOCUMENT_TOKENS):
            counts.long_documents[index] += int(np.count_nonzero(lengths >= threshold))
    counts.files += 1
    counts.documents += tokens.num_documents
    counts.tokens += tokens.num_tokens
    counts.chunks += tokens.num_tokens // CHUNK_TOKENS
    return findings


def check_borders(
    tokens: TokenFile, identity: TokenizerIdentity | None, first_document: int, starts: np.ndarray, ends: np.ndarray
) -> list[str]:
    """Check the tokens of consecutive documents that stand at positions [starts, ends); one finding per kind. Of a file
    made elsewhere, nothing is known but that ids are not negative."""
    import numpy as np

    bos = identity.bos_id if identity else None
    vocab_size = identity.vocab_size if identity else int(np.iinfo(np.int32).max)
    first_wrong: dict[str, int] = {}

    def note(what: str, positions: np.ndarray, is_wrong: np.ndarray) -> None:
        if is_wrong.any() and what not in first_wrong:
            position = positions[int(np.argmax(is_wrong))]
            first_wrong[what] = first_document + int(np.searchsorted(ends, position, "right"))

    shortest = 0 if identity is None else 1 if bos is None else 2
    note(f"is shorter than {shortest} tokens", starts, ends - starts < shortest)
    for start in range(int(starts[0]), int(ends[-1]), READ_TOKENS):
        stop = min(start + READ_TOKENS, int(ends[-1]))
        ids = tokens.tokens(start, stop)
        note(f"has ids outside of 0 … {vocab_size - 1}", np.arange(start, stop), (ids < 0) | (ids >= vocab_size))
        begins = starts[(starts >= start) & (starts < stop)]
        lasts = ends[(ends > start) & (ends <= stop)] - 1
        if bos is not None:
            note(f"does not begin with BOS ({bos})", begins, ids[begins - start] != bos)
        if identity is not None:
            note(f"does not end with EOS ({identity.eos_id})", lasts, ids[lasts - start] != identity.eos_id)
    return [f"{tokens.path}: document {document} {what}" for what, document in first_wrong.items()]


def print_domain_table(counts: dict[str, DomainCounts]) -> None:
    header = ["domain", "files", "documents", "tokens", f"chunks of {CHUNK_TOKENS}"]
    header += [f"documents ≥ {threshold}" for threshold in LONG_DOCUMENT_TOKENS]
    rows = [
        [domain, one.files, one.documents, one.tokens, one.chunks, *one.long_documents]
        for domain, one in sorted(counts.items())
    ]
    if not rows:
        return
    rows.append(["total", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))])
    cli.say(cli.table(header, rows))


def print_remedy(
    args: argparse.Namespace, files: list[corpus.ListedFile], missing: list[str], damaged: list[str]
) -> None:
    """The command that makes what is missing or damaged."""
    flags = f" --file_list {args.file_list}" if args.file_list != Path("all_jsonl.txt") else ""
    flags += f" --output_dir {args.tokenized_dir}" if args.tokenized_dir != Path("tokenized") else ""
    if (text_key := used_text_key(args, files)) != "text":
        flags += f" --text_key {text_key}"
    flags += " --overwrite" if damaged else ""
    if args.num_shards is None:
        cli.say(f"make them: python tokenize_jsonl.py{flags}   (pass --num_shards for the array ids)")
        return
    broken = {*missing, *damaged}
    assigned = shards.assign_files([(file.path, file.num_bytes) for file in files], args.num_shards)
    ids = shards.array_ids(shard for shard, paths in enumerate(assigned) if broken.intersection(paths))
    data_dir = corpus.read_root(args.file_list) or "DATA_DIR"
    cli.say(f"make them: sbatch --array={ids} run_tokenize.sh {data_dir} --num_shards {args.num_shards}{flags}")


def used_text_key(args: argparse.Namespace, files: list[corpus.ListedFile]) -> str:
    """The --text_key that made the first token file that tells."""
    for file in files:
        path = args.tokenized_dir / file.token_file
        with contextlib.suppress(DamagedFileError):
            if path.exists() and (meta := atomic.read_meta(path)) and "text_key" in meta["made_with"]:
                return str(meta["made_with"]["text_key"])
    return "text"


def show_row(args: argparse.Namespace) -> int:
    """Print one row of an MDS set: where it comes from, and its tokens as text."""
    from cepe_data import mds, tokenizers

    columns = mds.read_columns(args.path)
    rows = mds.open_set(args.path)
    if args.row >= len(rows):
        raise ArgumentError(f"{args.path} has {len(rows)} rows, numbered from 0: there is no row {args.row}")
    name = args.tokenizer or str(args.tokenized_dir / "tokenizer")
    tokenizer = tokenizers.load_pretrained(name)
    refuse_other_tokenizer(args, columns, name, tokenizers.identify(tokenizer, name).fingerprint)
    row = rows[args.row]
    cli.say(
        f"{args.path} row {args.row} of {len(rows)}: " + ", ".join(f"{name} {kind}" for name, kind in columns.items())
    )

    def print_text(title: str, ids: np.ndarray) -> None:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        cli.say(f"--- {title}, {len(ids)} tokens\n{cut_middle(text, args.max_characters)}")

    if not {"target_index", "token_ids", "retrieved_token_ids"}.intersection(columns):
        raise ArgumentError(f"{args.path} has none of the columns of this pipeline: it was not made by this pipeline")
    if "retrieved_token_ids" in columns:
        if args.input_dir:
            meta = atomic.read_meta(args.path) or {"made_with": {}}
            num_tokens = meta.get("query_tokens")
            found_for = meta["made_with"].get("input")
            if found_for is not None and found_for != mds.fingerprint(input_folder(args)):
                raise ArgumentError(
                    f"the passages in {args.path} were found for other rows than {input_folder(args)}'s"
                )
            print_text("query, the beginning of token_ids", input_row(args)["token_ids"][:num_tokens])
        else:
            cli.say("pass --input_dir, the folder of the domain folders of the queries, to see the query")
        for title, ids in retrieved_passages(args, row):
            print_text(title, ids)
    elif "target_index" in columns:
        window = input_row(args)
        print_teacher_row(row, window["token_ids"], tokenizer, args.positions)
    else:
        for line in describe_source(args.path, args.row, args.tokenized_dir):
            cli.say(line)
        print_text("prev_token_ids", row["prev_token_ids"])
        print_text("token_ids", row["token_ids"])
    return cli.EXIT_OK


def refuse_other_tokenizer(args: argparse.Namespace, columns: Mapping[str, str], name: str, fingerprint: str) -> None:
    """Raise ArgumentError unless it made the tokens of the set, as far as a meta file tells."""
    folder = input_folder(args) if "target_index" in columns else args.path
    made_by = (atomic.read_meta(folder) or {}).get("tokenizer")
    if made_by not in {None, fingerprint}:
        raise ArgumentError(
            f"the tokenizer {name} ({fingerprint}) is not the one whose tokens are in {folder} ({made_by}): pass "
            f"--tokenized_dir, the folder of its token files, or --tokenizer"
        )


def retrieved_passages(args: argparse.Namespace, row: dict) -> Iterator[tuple[str, np.ndarray]]:
    """A title with score and id, and the token ids, of the best passages of a row."""
    import numpy as np

    from retrieval.embeddings import passage_ids

    keys_path, meta = args.path.with_name(f"{args.path.name}.keys.npy"), atomic.read_meta(args.path)
    names = [""] * len(row["retrieval_scores"])
    if meta and keys_path.exists():
        keys = np.load(keys_path, mmap_mode="r", allow_pickle=False)[args.row]
        names = passage_ids(meta["corpus_files"], keys)
    best = zip(names, row["retrieval_scores"].tolist(), row["retrieved_token_ids"], strict=True)
    for number, (name, score, ids) in enumerate(itertools.islice(best, args.passages)):
        yield f"passage {number} {name}, score {score:.4f}", ids


def cut_middle(text: str, max_characters: int) -> str:
    if len(text) <= max_characters:
        return text
    half = max_characters // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[len(text) - half :]}"


def describe_source(folder: Path, row: int, tokenized_dir: Path) -> list[str]:
    """The jsonl file and the document that a row of windows starts in, as far as the files that say so are there."""
    import numpy as np

    from cepe_data.sampling import rows_path
    from cepe_data.token_file import TokenFile, read_tokenizer

    meta = atomic.read_meta(folder)
    if meta is None or not rows_path(folder).exists():
        return ["source: unknown, no provenance is beside this set"]
    try:
        number, position = (int(value) for value in np.load(rows_path(folder), mmap_mode="r", allow_pickle=False)[row])
        source = meta["source_files"][number]
    except (ValueError, IndexError, KeyError) as error:
        raise DamagedFileError(f"{rows_path(folder)} is not that of {folder} ({error}): make the set again") from None
    path = tokenized_dir / corpus.token_path(source)
    if not path.exists():
        return [f"source: {source}, from position {position:,} of its token file ({path} is not there)"]
    with TokenFile(path) as tokens:
        if tokens.meta and meta.get("tokenizer") not in {None, read_tokenizer(path, tokens.meta).fingerprint}:
            return [f"source: {source}, from position {position:,} of its token file ({path} is of another tokenizer)"]
        for first_document, start, lengths, _ in tokens.document_blocks():
            ends = start + np.cumsum(lengths)
            if position < ends[-1]:
                index = int(np.searchsorted(ends, position, "right"))
                return [
                    f"source: {source}, document {first_document + index} (from 0) of {tokens.num_documents:,}, from "
                    f"its token {position - int(ends[index] - lengths[index]):,} of {int(lengths[index]):,} on"
                ]
    raise DamagedFileError(f"{path} has no position {position}: it is not the one that {folder} was sampled from")


def input_folder(args: argparse.Namespace) -> Path:
    """The set that a teacher's set belongs to."""
    from cepe_data import mds

    meta = atomic.read_meta(args.path) or {}
    input_dir = args.input_dir or args.path.parent.parent / (meta.get("input_name") or "")
    folder = input_dir / args.path.name
    if not (folder / mds.INDEX_NAME).exists() or "token_ids" not in mds.read_columns(folder):
        raise ArgumentError(
            f"the input of {args.path} is not {folder}: pass --input_dir, the folder of its domain folders"
        )
    return folder


def input_row(args: argparse.Namespace) -> dict:
    """The row that a teacher's row belongs to."""
    from cepe_data import mds

    folder = input_folder(args)
    for line in describe_source(folder, args.row, args.tokenized_dir):
        cli.say(line)
    return mds.open_set(folder)[args.row]


def print_teacher_row(row: dict, token_ids: np.ndarray, tokenizer: PreTrainedTokenizerFast, num_positions: int) -> None:
    """What the teacher expects after some of the positions, beside what comes."""
    import numpy as np

    probabilities, indices = row["target_prob"], row["target_index"]
    pieces = tokenizer.convert_ids_to_tokens(token_ids.tolist())
    cli.say("position  token → next token: what the teacher expects, and the mass of all it does not name")
    for position in np.linspace(0, len(indices) - 1, num_positions).astype(int).tolist():
        best = zip(indices[position, :5].tolist(), probabilities[position, :5], strict=True)
        expected = "  ".join(f"{tokenizer.convert_ids_to_tokens(index)} {prob:.3f}" for index, prob in best)
        following = pieces[position + 1] if position + 1 < len(pieces) else "(end of the row)"
        cli.say(
            f"{position:>8}  {pieces[position]} → {following}: {expected}  (rest {probabilities[position, -1]:.3g})"
        )


if __name__ == "__main__":
    cli.run(main)
