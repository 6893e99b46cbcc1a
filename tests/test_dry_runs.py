"""A dry run changes nothing on the disk, whatever is there.    pytest tests/test_dry_runs.py"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import reference
from tests.conftest import STEPS, Run, add_stale_temporaries


@pytest.mark.parametrize("step", [step for step in STEPS if step != "duplicates"])
def test_a_dry_run_changes_nothing_before_the_run_and_after_it(
    run: Run, stages: dict[str, tuple[Path, Path]], tmp_path: Path, step: str
) -> None:
    for number, stage in enumerate(stages[step]):
        folder = shutil.copytree(stage, tmp_path / f"{number}")
        add_stale_temporaries(folder)
        before = reference.tree_bytes(folder)
        run(*STEPS[step], "--dry_run", cwd=folder)
        assert reference.tree_bytes(folder) == before


@pytest.mark.parametrize("step", ["annotate", "search", "write_mds"])
def test_a_shard_deletes_no_parts_of_the_others(
    run: Run, stages: dict[str, tuple[Path, Path]], tmp_path: Path, step: str
) -> None:
    _, after = stages[step]
    shutil.copytree(after, tmp_path, dirs_exist_ok=True)
    for flags in (("--shard_id", 0), ("--dry_run",)):
        done = run(*STEPS[step], "--num_shards", 3, "--delete_parts", *flags, cwd=tmp_path, status=2)
        assert "--delete_parts goes with --merge" in done.stderr
    assert reference.tree_bytes(tmp_path) == reference.tree_bytes(after)
