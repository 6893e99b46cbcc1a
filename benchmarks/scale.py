"""What every step takes at RedPajama's full size, from the steps' own --dry_run: docs/scale.md has what it printed.

    python benchmarks/scale.py             # about 3 minutes on 2 cores, 7 GB of disk

The dry runs measure a sample of real text (../shared/corpus where it is, else the demo's). Their inputs are made here:
for tokenizing, a file for each domain that begins with that text and ends with a hole, as large as RedPajama's tokens
take; for the samplers, token files with 1/1000 of these tokens, the real documents over and over, and 1/1000 of the
requested rows. Operations of models are counted on meta tensors. Hours on a GPU are these
operations at the rates that benchmarks/gpu.py measured on an H100.
"""

from __future__ import annotations

import sys

sys.path[0] = __file__.rpartition("benchmarks/")[0] or "."  # this folder has a tokenize.py, and so has the library

import itertools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import PROJECT
from benchmarks.generated import BILLIONS, find_corpus, write_repeated
from cepe_data import cli
from cepe_data.corpus import listing, readers
from cepe_data.storage import mds
from cepe_data.tokens.token_file import TokenFile

SAMPLE_BYTES = 20 << 20
SHRUNK = 1000
PASSAGES, PASSAGE_TOKENS, WORD_PIECES, DIMENSION = 200_000_000, 256, 256, 768
QUERIES = 35_000
H100_TFLOPS = {"teacher": 461, "embedding": 351, "searching": 179}
TEACHER_ROWS = 2_500_000


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data, model = find_corpus(folder)
        run(folder, "get_all_jsonl.py", data, "--output", "real.txt")
        run(folder, "tokenize_jsonl.py", "--file_list", "real.txt", "--output_dir", "real", "--tokenizer", model)
        documents, bytes_per_token = read_corpus(folder, data)
        write_holes(folder, data, bytes_per_token)
        run(folder, "get_all_jsonl.py", "data")
        show(folder, "tokenize_jsonl.py", "--output_dir", "empty", "--tokenizer", model, "--num_workers", 1)
        (folder / "tokenized").mkdir()
        shutil.copytree(folder / "real/tokenizer", folder / "tokenized/tokenizer")
        num_tokens = {domain: 10**9 * number // SHRUNK for domain, number in BILLIONS.items()}
        write_repeated(folder, "shrunk", documents, num_tokens)
        flags = ("--file_list", "shrunk.txt", "--num_workers", 1, "--allow_shortage")
        print(f"the samplers: documents, rows, bytes and minutes below are 1/{SHRUNK} of those of all of it")
        show(folder, "sample_mds_ab.py", "8k_ab", 8192, 4096, 0, 5_000_000 // SHRUNK, *flags)
        counts = (35_000 // SHRUNK, 2_500_000 // SHRUNK, 2_000_000 // SHRUNK, 0)
        show(folder, "sample_mds_concat.py", "8k_concat", 4096, 4096, *counts, *flags)
    report_models()
    return cli.EXIT_OK


def run(folder: Path, script: str, *arguments: object) -> str:
    """What a script prints."""
    command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, check=True, text=True, stdout=subprocess.PIPE).stdout


def show(folder: Path, script: str, *arguments: object) -> None:
    """Print a dry run."""
    print(f"$ python {script} {' '.join(map(str, arguments[: 6 if 'concat' in script else 5]))} … --dry_run")
    print(run(folder, script, *arguments, "--dry_run"), flush=True)


def read_corpus(folder: Path, data: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, float]]:
    """By domain of the real corpus: its documents, as `write_repeated` takes them, and bytes of jsonl a token."""
    documents, bytes_per_token = {}, {}
    for domain in BILLIONS:
        ids, lengths, num_bytes = [], [], 0
        for file in files_of(folder, domain):
            with TokenFile(folder / "real" / file.token_file) as tokens:
                lengths.append(tokens.lengths())
                ids.append(tokens.tokens(tokens.tokens_start, tokens.tokens_start + tokens.num_tokens))
            num_bytes += sum(len(block) for _, block, _ in readers.line_blocks(data / file.path))
        documents[domain] = np.concatenate(ids), np.concatenate(lengths)
        bytes_per_token[domain] = num_bytes / len(documents[domain][0])
    return documents, bytes_per_token


def files_of(folder: Path, domain: str) -> list[listing.ListedFile]:
    """The files of a domain of the real corpus."""
    return [file for file in listing.read_file_list(folder / "real.txt").files if file.domain == domain]


def write_holes(folder: Path, data: Path, bytes_per_token: dict[str, float]) -> None:
    """A jsonl file for each domain in `folder`/data: it begins with real lines, over and over; the rest is a hole."""
    for domain, billions in BILLIONS.items():
        path = folder / "data" / domain / "all.jsonl"
        path.parent.mkdir(parents=True)
        blocks = (block for file in files_of(folder, domain) for _, block, _ in readers.line_blocks(data / file.path))
        with path.open("wb") as target:
            for block in itertools.cycle(blocks):
                target.write(block)
                if target.tell() > SAMPLE_BYTES:
                    break
            target.truncate(int(billions * 10**9 * bytes_per_token[domain]))


def report_models() -> None:
    """Operations and bytes of the steps that run models."""
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    from cepe_data.teacher.model import count_flops

    with torch.device("meta"):  # the configurations' defaults are LLaMA-7B, and BERT-base, which contriever is
        teacher, encoder = LlamaForCausalLM(LlamaConfig()), BertModel(BertConfig(), add_pooling_layer=False)
    columns = {"target_prob": mds.array_column(np.dtype(np.float16), 2048, 51)}
    columns["target_index"] = mds.array_column(np.dtype(np.int16), 2048, 50)
    embedding_bytes = 2 * (DIMENSION + 2 * PASSAGE_TOKENS)
    rows = [
        (f"teacher, 7B, {TEACHER_ROWS:,} rows of 2,048 + 2,048", count_flops(teacher, 4096, 2048) * TEACHER_ROWS,
         mds.row_bytes(columns) * TEACHER_ROWS),
        (f"embedding {PASSAGES:,} passages of {WORD_PIECES} word pieces", count_flops(encoder, WORD_PIECES) * PASSAGES,
         embedding_bytes * PASSAGES),
        (f"searching them for {QUERIES:,} rows", 2 * DIMENSION * QUERIES * PASSAGES, 2 * DIMENSION * PASSAGES),
    ]  # fmt: skip
    hours = [f"{flops / H100_TFLOPS[re.split('[ ,]', what)[0]] / 3600e12:.2g}" for what, flops, _ in rows]
    table = [(what, f"{flops:.2g}", size, taken) for (what, flops, size), taken in zip(rows, hours, strict=True)]
    print(cli.table(("step", "operations", "bytes written (search: read)", "H100 hours"), table))


if __name__ == "__main__":
    sys.exit(main())
