"""Ids, fingerprints and hashes with the newest major versions of the libraries, beside those of the tested set.

pytest tests/test_newest_libraries.py        # `make test` installs tests/newest.txt into .venv/newest
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import reference
from tests import tokenizer_kinds as kinds
from tests.conftest import PROJECT, Run, require_folder, write_jsonl

READ_BACK = """
import json, sys
import transformers, xxhash
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts = [" x", "def f():\\n        return 1", "a\\u1df8\\u1df9", "Newton <s>"]
versions = [int(version.split(".")[0]) for version in (transformers.__version__, xxhash.VERSION)]
ids = [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
if len(sys.argv) > 2:
    tokenizer.save_pretrained(sys.argv[2])
print(json.dumps({"versions": versions, "ids": ids, "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}))
"""


@pytest.fixture(scope="module")
def newest() -> dict[str, str]:
    """The environment of a process that has the newest libraries."""
    return {"PYTHONPATH": str(require_folder(Path(sys.prefix) / "newest", "which `make test` installs"))}


def run_code(code: str, environment: dict[str, str], *arguments: Path) -> str:
    """The last line that Python code prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", ["llama", "llama with user-defined symbols", "neox, NFC and runs of spaces"])
def test_token_files_are_the_same_with_the_newest_libraries(
    run: Run, tmp_path: Path, newest: dict[str, str], name: str
) -> None:
    kind = kinds.make_kind(tmp_path / "source", name)
    texts = [" x", "def f():\n        return 1", *kinds.generated_texts(300, kind.added)]
    write_jsonl(tmp_path / "data/arxiv/a.jsonl", texts)
    run("get_all_jsonl.py", "data", cwd=tmp_path)
    trees = []
    for output, environment in (("tested", {"PYTHONPATH": ""}), ("newest", newest)):
        flags = ("--tokenizer", kind.path, "--output_dir", output)
        run("tokenize_jsonl.py", *flags, cwd=tmp_path, environment=environment)
        trees.append(reference.tree_bytes(tmp_path / output))
        run("sanity_check.py", "--deep", "--tokenized_dir", output, cwd=tmp_path, environment=environment)
    assert trees[0] == trees[1]


@pytest.mark.parametrize("name", ["llama", "neox, NFC and runs of spaces"])
def test_transformers_4_and_5_read_the_saved_tokenizer_alike_and_what_5_saves_is_read_here(
    tmp_path: Path, newest: dict[str, str], name: str
) -> None:
    from cepe_data.tokens import tokenizers

    kind = kinds.make_kind(tmp_path / "source", name)
    loaded = tokenizers.load(str(kind.path))
    tokenizers.save(loaded, tmp_path / "saved")
    old = json.loads(run_code(READ_BACK, {}, tmp_path / "saved"))
    new = json.loads(run_code(READ_BACK, newest, tmp_path / "saved", tmp_path / "by_newest"))
    assert (old.pop("versions"), new.pop("versions")) == ([4, 3], [5, 4])
    assert old == new and (old["bos"], old["eos"]) == (kind.bos_id, kind.eos_id)
    assert old["ids"][:3] == [kind.encode(text) for text in (" x", "def f():\n        return 1", "a\u1df8\u1df9")]
    assert tokenizers.load(str(tmp_path / "by_newest")).identity == loaded.identity


def test_the_samplers_hashes_do_not_depend_on_the_version_of_xxhash(newest: dict[str, str]) -> None:
    code = (
        "from cepe_data import hashing; from cepe_data.storage import provenance;"
        "print(hashing.key('seed'), provenance.fingerprint({'a': [1, 'é']}))"
    )
    both = {"PYTHONPATH": f"{newest['PYTHONPATH']}{os.pathsep}{PROJECT}"}
    assert run_code(code, {"PYTHONPATH": str(PROJECT)}) == run_code(code, both)
