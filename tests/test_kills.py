"""Kills at random moments of every step; tests/kills.py has the details.    pytest tests/test_kills.py"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import reference
from tests.conftest import STEPS, run_at_once

TWO_WORKERS = ("--num_workers", 2)
# How often each step is killed, and flags that change no published byte.
KILLS: dict[str, tuple[Any, ...]] = {
    "tokenize": (20, *TWO_WORKERS, "--verify_documents", 0),
    "duplicates": (10,),
    "sample_ab": (10, *TWO_WORKERS),
    "sample_concat": (14, *TWO_WORKERS),
    "sample_passages": (10, *TWO_WORKERS),
    "annotate": (10, "--delete_parts"),
    "embed": (10,),
    "search": (10,),
    "write_mds": (10,),
}


def published(folder: Path) -> dict[str, bytes]:
    """Every file but the parts, which `--delete_parts` removes."""
    return {name: content for name, content in reference.tree_bytes(folder).items() if ".parts/" not in name}


@pytest.mark.parametrize("step", STEPS)
def test_a_run_killed_at_random_moments_goes_on_and_gives_the_same_bytes(
    stages: dict[str, tuple[Path, Path]], tmp_path: Path, step: str
) -> None:
    before, after = stages[step]
    [output] = {Path(name).parts[0] for name in published(after).keys() - published(before).keys()}
    shutil.copytree(before, tmp_path, dirs_exist_ok=True)
    number, *flags = KILLS[step]
    [done] = run_at_once([("tests/kills.py", number, 0, output, *STEPS[step], *flags)], cwd=tmp_path)
    assert done.stdout.startswith(f"{number} killed") and " 0 resumed" not in done.stdout, done.stdout + done.stderr
    assert published(tmp_path / output) == published(after / output)
