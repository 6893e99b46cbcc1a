"""A later run knows what made an output, and whether it is still that.    pytest tests/test_records.py"""

from __future__ import annotations

from pathlib import Path

import pytest

from cepe_data.errors import ArgumentError, DamagedFileError
from cepe_data.storage import outputs, provenance
from tests.test_atomic import publish_file


def test_overwrite_replaces_what_differs_or_is_damaged_and_keeps_what_is_right(tmp_path: Path) -> None:
    path = tmp_path / "unit.txt"
    publish_file(path, "first", {"seed": 1})
    assert provenance.is_made(path, {"seed": 1}, overwrite=True)
    assert not provenance.is_made(path, {"seed": 2}, overwrite=True)
    path.write_text("fIrst")
    assert provenance.is_made(path, {"seed": 1})
    assert not provenance.is_made(path, {"seed": 1}, overwrite=True)
    assert publish_file(path, "third", {"seed": 3}, overwrite=True)
    assert path.read_text() == "third" and provenance.is_made(path, {"seed": 3}, overwrite=True)


def test_a_lost_or_resized_file_of_a_unit_is_damage_and_overwrite_mends_it(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for overwrite in (False, True):
        with outputs.Draft(folder, {}, is_folder=True, overwrite=overwrite) as draft:
            (draft.path / "shard").write_text("rows")
            draft.companion(tmp_path / "set.rows").write_text("sources")
            assert draft.publish()
        assert provenance.is_made(folder, {}, overwrite=True)
        (tmp_path / "set.rows").write_text("other")
        with pytest.raises(DamagedFileError, match=r"set\.rows is gone or has another size.*--overwrite"):
            provenance.is_made(folder, {})
        assert not provenance.is_made(folder, {}, overwrite=True)
    provenance.meta_path(folder, is_folder=True).write_text("{")
    assert not provenance.is_made(folder, {}, overwrite=True)


def test_a_unit_that_nothing_says_the_origin_of_is_refused(tmp_path: Path) -> None:
    (tmp_path / "unit.txt").write_text("by hand")
    with pytest.raises(ArgumentError, match="nothing says what made it"):
        provenance.is_made(tmp_path / "unit.txt", {})
    (tmp_path / "unit.meta.json").write_text('{"made_with": 1}')
    with pytest.raises(DamagedFileError, match=r"unit\.meta\.json is damaged"):
        provenance.is_made(tmp_path / "unit.txt", {})
