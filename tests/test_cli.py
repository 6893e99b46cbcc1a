"""Arguments as users write them, answers as they read them.    pytest tests/test_cli.py"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pytest

from cepe_data import cli
from tests.conftest import PROJECT, Run

SCRIPTS = sorted(path.name for path in PROJECT.glob("*.py"))


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("2e6", 2_000_000), ("1_000", 1000), ("5000000", 5_000_000)])
def test_counts(text: str, number: int) -> None:
    assert cli.count(text) == number


@pytest.mark.parametrize("text", ["-1", "1.5", "", "many", "inf", "nan", "1e400"])
def test_other_texts_are_rejected_as_counts(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a count"):
        cli.count(text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_at_once_and_imports_nothing_heavy(run: Run, script: str, tmp_path: Path) -> None:
    start = time.monotonic()
    done = run(script, "--help", cwd=tmp_path, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert time.monotonic() - start < 5, "well above the second that it takes, for a busy machine"
    assert "usage:" in done.stdout and "default: None" not in done.stdout
    for heavy in ("torch", "transformers", "streaming", "matplotlib"):
        assert f" {heavy}\n" not in done.stderr, f"{heavy} was imported"


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_arguments_are_exit_status_2(run: Run, script: str, tmp_path: Path) -> None:
    assert "usage:" in run(script, "--no_such_flag", cwd=tmp_path, status=2).stderr


@pytest.mark.parametrize(
    ("script", "flag"),
    [("tokenize_jsonl.py", "--text_key"), ("get_all_jsonl.py", "--domain_key"), ("get_all_jsonl.py", "--domain_map")],
)
def test_a_key_that_is_not_utf8_is_a_wrong_argument(run: Run, script: str, flag: str, tmp_path: Path) -> None:
    error = run(script, *([] if "tokenize" in script else ["data"]), flag, "a\udcff", cwd=tmp_path, status=2).stderr
    assert rf"argument {flag}: 'a\udcff' is not UTF-8" in error
