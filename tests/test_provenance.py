"""A later run knows the provenance of an output, and whether it is intact.    pytest tests/test_provenance.py"""

from __future__ import annotations

from pathlib import Path

import pytest

from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.storage import outputs, provenance
from tests.test_outputs import publish


def test_overwrite_replaces_what_differs_or_is_damaged_and_keeps_what_is_right(tmp_path: Path) -> None:
    path = tmp_path / "output.txt"
    publish(path, "first", {"seed": 1})
    assert outputs.Output(path, {"seed": 1}, True).is_done()
    assert not outputs.Output(path, {"seed": 2}, True).is_done()
    path.write_text("fIrst")
    assert outputs.Output(path, {"seed": 1}).is_done()
    assert not outputs.Output(path, {"seed": 1}, True).is_done()
    assert publish(path, "third", {"seed": 3}, overwrite=True)
    assert path.read_text() == "third" and outputs.Output(path, {"seed": 3}, True).is_done()


def test_a_lost_or_resized_file_is_damage_and_overwrite_repairs_it(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for overwrite in (False, True):
        with outputs.Output(folder, {}, overwrite).draft(is_folder=True) as draft:
            (draft.path / "shard").write_text("rows")
            draft.sidecar(tmp_path / "set.rows").write_text("sources")
            assert draft.publish()
        assert outputs.Output(folder, {}, True).is_done()
        (tmp_path / "set.rows").write_text("other")
        with pytest.raises(DamagedFileError, match=r"set\.rows is gone or has another size.*--overwrite"):
            outputs.Output(folder, {}).is_done()
        assert not outputs.Output(folder, {}, True).is_done()
    provenance.meta_path(folder, is_folder=True).write_text("{")
    assert not outputs.Output(folder, {}, True).is_done()


def test_an_output_without_a_meta_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "output.txt").write_text("by hand")
    with pytest.raises(ArgumentError, match="nothing says what made it"):
        outputs.Output(tmp_path / "output.txt", {}).is_done()
    (tmp_path / "output.meta.json").write_text('{"made_with": 1}')
    with pytest.raises(DamagedFileError, match=r"output\.meta\.json is damaged"):
        outputs.Output(tmp_path / "output.txt", {}).is_done()
