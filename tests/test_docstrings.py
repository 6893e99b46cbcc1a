"""The examples in docstrings are true.    pytest tests/test_docstrings.py"""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.conftest import PROJECT

WITH_EXAMPLES = [
    ".".join(path.relative_to(PROJECT).with_suffix("").parts)
    for path in sorted(Path(PROJECT / "cepe_data").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted and not failed
