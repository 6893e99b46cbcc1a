"""The whole pipeline as in the README, the demo and the user's description.    pytest tests/test_pipeline.py"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from tests.conftest import PROJECT, Run, World

COUNTS = {"arxiv": 134, "book": 16, "c4-rp": 719, "cc": 708, "github": 730, "stackexchange": 1239, "wiki": 671}


def test_the_readme_is_short_and_what_it_names_is_there() -> None:
    readme = (PROJECT / "README.md").read_text()
    assert len(readme.splitlines()) <= 180 and len(readme.split()) <= 1500
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    folders = {path.partition("/")[0] for path in listed.split() if "/" in path and not path.startswith(".")}
    assert set(re.findall(r"\b([a-z_]+)/", readme.rpartition("```\n*.py")[2])) == folders
    for page in [PROJECT / "README.md", PROJECT / "retrieval/README.md", *PROJECT.glob("docs/*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_commands_of_the_users_description_run_on_the_real_corpus(run: Run, shared: Path, tmp_path: Path) -> None:
    run("get_all_jsonl.py", shared / "corpus", cwd=tmp_path)
    tokenizer = shared / "tokenizer/tokenizer.model"
    run("run_tokenize.sh", "--tokenizer", tokenizer, "--backend", "sentencepiece", cwd=tmp_path, shell="bash")
    checked = run("sanity_check.py", cwd=tmp_path).stdout
    for domain, number in COUNTS.items():
        [line] = [line for line in checked.splitlines() if line.startswith(f"{domain} ")]
        assert line.split()[2] == f"{number:,}"
    description = (shared / "spec/README-of-the-seed.md").read_text()
    commands = [line.strip() for line in re.findall(r"^ *python (sample_.*)$", description, re.MULTILINE)]
    commands = [line.replace("$shard", "99") for line in commands if "{" not in line]
    assert len(commands) == 4
    for command in commands:
        # Far more than the small corpus has: the shortage status is the right answer.
        done = run(*shlex.split(command), cwd=tmp_path, status=3)
        assert done.stdout.splitlines()[-2].split()[0].count("/") in (1, 2)


def test_the_teacher_commands_of_the_users_description_parse(run: Run, shared: Path, tmp_path: Path) -> None:
    description = (shared / "spec/README-of-the-seed.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^ *python (calculate_logits\.py .*)$", description, re.MULTILINE)
    assert len(commands) == 3
    values = {"$N_DEC": "8", "$N_ENC": "8", "$TOPK": "5", "$SHARD_ID": "0", "$N_SHARD": "2"}
    for command in commands:
        words = [values.get(word, word.strip("$").lower()) for word in shlex.split(command)]
        assert "holds no MDS set" in run(*words, cwd=tmp_path, status=2).stderr


def test_the_same_tokens_from_all_backends_on_the_real_corpus(run: Run, shared: Path, tmp_path: Path) -> None:
    run("get_all_jsonl.py", shared / "corpus", cwd=tmp_path)
    for backend in ("gigatoken", "tokenizers", "sentencepiece"):
        flags = ("--tokenizer", shared / "tokenizer/tokenizer.model", "--backend", backend, "--output_dir", backend)
        run("tokenize_jsonl.py", *flags, cwd=tmp_path)
    files = sorted((tmp_path / "tokenizers").rglob("*.npy"))
    assert len(files) == 44
    for path in files:
        for backend in ("gigatoken", "sentencepiece"):
            assert path.read_bytes() == (tmp_path / backend / path.relative_to(tmp_path / "tokenizers")).read_bytes()


def test_the_demo_corpus_has_all_domains_and_long_documents(world: World, run: Run, tmp_path: Path) -> None:
    from demo import corpus

    corpus.build(tmp_path / "data")
    plain = b"".join(path.read_bytes() for path in sorted((tmp_path / "data").rglob("*.jsonl")))
    for of_machine in (socket.gethostname(), sys.prefix, str(Path.cwd()), *os.environ.values()):
        if len(of_machine) > 11:  # shorter ones may be words of the manual
            assert of_machine.encode() not in plain, f"{of_machine} is of this machine only"
    done = run("get_all_jsonl.py", "data", cwd=tmp_path)
    assert "no files of" not in done.stderr
    assert any(path.suffix == ".zst" for path in (tmp_path / "data/common_crawl").rglob("*"))
    run("tokenize_jsonl.py", "--tokenizer", world.tokenizer, cwd=tmp_path)
    table = run("sanity_check.py", cwd=tmp_path).stdout
    for domain in ("arxiv", "book"):
        [line] = [line for line in table.splitlines() if line.startswith(domain)]
        assert int(line.split()[5]) >= 20, "documents of at least 8,192 tokens"
