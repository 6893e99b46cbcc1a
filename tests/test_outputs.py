"""Outputs are complete or absent.    pytest tests/test_outputs.py"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xxhash

from cepe_data.errors import ArgumentError
from cepe_data.storage import outputs, provenance


def publish_file(path: Path, text: str, made_with: provenance.Meta, overwrite: bool = False) -> bool:
    with outputs.Output(path, made_with, overwrite).draft() as draft:
        draft.path.write_text(text)
        draft.sidecar(path.with_name("beside.txt")).write_text(text + text)
        return draft.publish({"fact": 1})


def test_a_unit_is_published_with_its_companions_and_meta_file(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/unit.txt"
    assert publish_file(path, "content", {"seed": 1})
    meta = json.loads((path.parent / "unit.meta.json").read_text())
    assert meta["made_with"] == {"seed": 1} and meta["fact"] == 1
    assert meta["files"] == {
        "unit.txt": {"bytes": 7, "xxh3_64": xxhash.xxh3_64_hexdigest(b"content")},
        "beside.txt": {"bytes": 14, "xxh3_64": xxhash.xxh3_64_hexdigest(b"contentcontent")},
    }
    assert sorted(os.listdir(path.parent)) == ["beside.txt", "unit.meta.json", "unit.txt"]


def test_what_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), outputs.Output(tmp_path / "unit", {}).draft(is_folder=True) as draft:
        (draft.path / "half").write_text("half")
        draft.sidecar(tmp_path / "beside").write_text("beside")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_second_publisher_with_the_same_arguments_is_dropped_and_one_with_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "unit.txt"
    assert publish_file(path, "first", {"seed": 1})
    assert not publish_file(path, "again", {"seed": 1})
    with pytest.raises(ArgumentError, match=r"seed: was 1, now 2.*--overwrite"):
        publish_file(path, "other", {"seed": 2})
    assert path.read_text() == "first"


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_publisher_that_is_overtaken_at_the_last_moment_replaces_nothing(
    tmp_path: Path, is_folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "unit.d"

    def write(draft: outputs.Draft, text: str) -> None:
        (draft.path / "file" if is_folder else draft.path).write_text(text)

    give_names = outputs.Draft._give_names

    def be_overtaken(draft: outputs.Draft) -> bool:
        monkeypatch.setattr(outputs.Draft, "_give_names", give_names)
        monkeypatch.setattr(outputs, "temporary_path", lambda path: path.with_name(f".tmp-{path.name}-elsewhere-1"))
        with outputs.Output(final, {"seed": 1}).draft(is_folder=is_folder) as other:
            write(other, "theirs")
            assert other.publish()
        monkeypatch.undo()
        return draft._give_names()

    with outputs.Output(final, {"seed": 1}).draft(is_folder=is_folder) as draft:
        write(draft, "ours")
        monkeypatch.setattr(outputs.Draft, "_give_names", be_overtaken)
        assert not draft.publish()
    assert (final / "file" if is_folder else final).read_text() == "theirs"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".tmp")]


def test_of_units_that_are_published_together_no_name_is_given_before_all_files_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    flush = outputs.flush
    give_names = outputs.Draft._give_names

    def note(path: Path) -> None:
        flushed.append(path)
        flush(path)

    def look(draft: outputs.Draft) -> bool:
        assert {path.name.split("-")[1] for path in flushed} == {
            f"{number}{kind}" for number in range(3) for kind in (".npy", ".meta.json", ".beside")
        }
        return give_names(draft)

    with contextlib.ExitStack() as stack:
        drafts = []
        for number in range(3):
            draft = stack.enter_context(outputs.Output(tmp_path / f"{number}.npy", {"number": number}).draft())
            draft.path.write_text("content")
            draft.sidecar(tmp_path / f"{number}.beside").write_text("beside")
            draft.seal()
            drafts.append(draft)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(outputs, "temporary_path", lambda path: path.with_name(f".tmp-{path.name}-elsewhere-1"))
            publish_file(tmp_path / "1.npy", "theirs", {"number": 1})
        monkeypatch.setattr(outputs, "flush", note)
        monkeypatch.setattr(outputs.Draft, "_give_names", look)
        assert outputs.publish_together(drafts) == [True, False, True]
    assert flushed[-1] == tmp_path and sorted(tmp_path.glob(".tmp-*")) == []
    assert [(tmp_path / f"{number}.npy").read_text() for number in range(3)] == ["content", "theirs", "content"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_unit_that_cannot_be_named_keeps_none_of_the_others_from_it(tmp_path: Path, overwrite: bool) -> None:
    for number in range(3 * overwrite):
        publish_file(tmp_path / f"{number}.npy", "old", {})
        outputs.remove(tmp_path / "beside.txt")
    outputs.remove(tmp_path / "1.meta.json")
    (tmp_path / "1.meta.json").mkdir()
    with contextlib.ExitStack() as stack, pytest.raises(OSError, match=r"Is a directory: '.*/1\.npy'"):
        drafts = []
        for number in range(3):
            drafts.append(stack.enter_context(outputs.Output(tmp_path / f"{number}.npy", {}, overwrite).draft()))
            drafts[-1].path.write_text("new")
            drafts[-1].seal()
        outputs.publish_together(drafts)
    assert [(tmp_path / f"{number}.npy").read_text() for number in (0, 2)] == ["new", "new"]
    assert sorted(os.listdir(tmp_path)) == ["0.meta.json", "0.npy", "1.meta.json", "2.meta.json", "2.npy"]


def test_a_disk_that_cannot_be_written_names_the_unit_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=r"No space left on device: .*unit\.txt'$"):
        publish_file(tmp_path / "unit.txt", "content", {})
    assert os.listdir(tmp_path) == []


def test_the_slower_of_two_publishers_replaces_no_companion_of_the_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "unit.txt"
    give_names = outputs.Draft._give_names

    def be_overtaken(draft: outputs.Draft) -> bool:
        monkeypatch.setattr(outputs.Draft, "_give_names", give_names)
        monkeypatch.setattr(outputs, "temporary_path", lambda path: path.with_name(f".tmp-{path.name}-elsewhere-1"))
        assert publish_file(path, "theirs", {"seed": 2})
        monkeypatch.undo()
        return draft._give_names()

    monkeypatch.setattr(outputs.Draft, "_give_names", be_overtaken)
    with pytest.raises(ArgumentError, match="seed: was 2, now 1"):
        publish_file(path, "ours", {"seed": 1})
    assert path.read_text() == "theirs" and (tmp_path / "beside.txt").read_text() == "theirs" * 2
    assert outputs.Output(path, {"seed": 2}, True).is_done()


def test_without_hard_links_files_are_renamed_and_still_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "links are refused here")

    monkeypatch.setattr(os, "link", refuse)
    assert publish_file(tmp_path / "unit.txt", "first", {})
    assert not publish_file(tmp_path / "unit.txt", "again", {})
    assert (tmp_path / "unit.txt").read_text() == "first"


def test_temporaries_of_the_dead_and_of_the_long_gone_are_removed(tmp_path: Path) -> None:
    host = os.uname().nodename.replace("-", "_")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    unnoticed = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, unnoticed.pid, os.WEXITED | os.WNOWAIT)
    week_ago = time.time() - 8 * 24 * 3600
    ages = {
        f".tmp-dead.npy-{host}-{child.pid}": None,
        f".tmp-dead.npy-{host}-{unnoticed.pid}": None,
        f".tmp-ours.npy-{host}-{os.getpid()}": None,
        ".tmp-old.npy-other-host-77": week_ago,
        f".tmp-alive.npy-{host}-{os.getppid()}": None,
        f".tmp-theirs.npy-gpu_{host}-{child.pid}": None,
        ".tmp-new.npy-other-host-77": None,
        "kept.npy": week_ago,
    }
    for name, age in ages.items():
        (tmp_path / name).touch()
        if age:
            os.utime(tmp_path / name, (age, age))
    outputs.remove_stale_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(
        [
            f".tmp-alive.npy-{host}-{os.getppid()}",
            f".tmp-theirs.npy-gpu_{host}-{child.pid}",
            ".tmp-new.npy-other-host-77",
            "kept.npy",
        ]
    )
