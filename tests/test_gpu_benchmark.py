"""benchmarks/gpu.py, on a CPU, as on a machine that was made for models.    pytest tests/test_gpu_benchmark.py"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import PROJECT

NOT_THERE = ("orjson", "gigatoken", "streaming")


def test_it_measures_everything_without_what_such_machines_lack(tmp_path: Path) -> None:
    for name in NOT_THERE:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no module {name}', name='{name}')\n")
    command = [sys.executable, str(PROJECT / "benchmarks/gpu.py"), "--tiny", "--output", "found.json"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    results = {one["what"]: one for one in found["results"]}
    assert len(results) == 7 and all(0 < one["ratio"] < 1e6 for one in results.values())
    for what in ("teacher", "sampled targets against top-k", "one sequence at a time", "embedding", "search"):
        assert any(what in name for name in results) and what in done.stdout
    assert found["product_flops"] > 0 and done.stdout.splitlines()[-1] == "found.json"
