"""Outputs are complete or absent.    pytest tests/test_outputs.py"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from cepe_data.errors import ArgumentError
from cepe_data.storage import outputs, provenance


def publish(
    path: Path, text: str, made_with: provenance.Provenance, overwrite: bool = False, is_folder: bool = False
) -> bool:
    """Publish an output with that text, and a sidecar file that has it twice."""
    with outputs.Output(path, made_with, overwrite).draft(is_folder) as draft:
        (draft.path / "file" if is_folder else draft.path).write_text(text)
        draft.sidecar(path.with_name("beside.txt")).write_text(text + text)
        return draft.publish({"fact": 1})


def as_another_process(function: Callable[[], object]) -> None:
    """Call a function that writes outputs under the temporary names of another process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "temporary_path", lambda path: path.with_name(f".tmp-{path.name}-elsewhere-1"))
        function()


def test_an_output_is_published_with_its_sidecar_and_meta_files(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/output.txt"
    assert publish(path, "content", {"seed": 1})
    meta = json.loads((path.parent / "output.meta.json").read_text())
    assert meta["made_with"] == {"seed": 1} and meta["fact"] == 1
    assert meta["files"] == {
        "output.txt": {"bytes": 7, "xxh3_64": xxhash.xxh3_64_hexdigest(b"content")},
        "beside.txt": {"bytes": 14, "xxh3_64": xxhash.xxh3_64_hexdigest(b"contentcontent")},
    }
    assert sorted(os.listdir(path.parent)) == ["beside.txt", "output.meta.json", "output.txt"]


def test_a_draft_that_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), outputs.Output(tmp_path / "output", {}).draft(is_folder=True) as draft:
        (draft.path / "half").write_text("half")
        draft.sidecar(tmp_path / "beside").write_text("beside")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("seed", [1, 2], ids=["same arguments", "other arguments"])
@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_the_slower_of_two_publishers_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool, seed: int
) -> None:
    final = tmp_path / "output.d"

    def be_overtaken(draft: outputs.Draft) -> bool:
        monkeypatch.undo()
        as_another_process(lambda: publish(final, "faster", {"seed": 1}, is_folder=is_folder))
        return draft._give_names()

    monkeypatch.setattr(outputs.Draft, "_give_names", be_overtaken)
    for _ in ("overtaken just before its rename", "begun too late"):
        if seed == 1:
            assert not publish(final, "slower", {"seed": 1}, is_folder=is_folder)
        else:
            with pytest.raises(ArgumentError, match=r"seed: was 1, now 2.*--overwrite"):
                publish(final, "slower", {"seed": 2}, is_folder=is_folder)
    assert (final / "file" if is_folder else final).read_text() == "faster"
    assert (tmp_path / "beside.txt").read_text() == "faster" * 2
    assert outputs.Output(final, {"seed": 1}, True).is_done()
    assert not list(tmp_path.glob(".tmp*"))


def test_of_outputs_published_together_none_is_renamed_before_all_files_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    flush, give_names = outputs.flush, outputs.Draft._give_names

    def note(path: Path) -> None:
        flushed.append(path)
        flush(path)

    def check_flushed(draft: outputs.Draft) -> bool:
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
        as_another_process(lambda: publish(tmp_path / "1.npy", "faster", {"number": 1}))
        monkeypatch.setattr(outputs, "flush", note)
        monkeypatch.setattr(outputs.Draft, "_give_names", check_flushed)
        assert outputs.publish_together(drafts) == [True, False, True]
    assert flushed[-1] == tmp_path and sorted(tmp_path.glob(".tmp-*")) == []
    assert [(tmp_path / f"{number}.npy").read_text() for number in range(3)] == ["content", "faster", "content"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_cannot_be_renamed_does_not_stop_the_others(tmp_path: Path, overwrite: bool) -> None:
    for number in range(3 * overwrite):
        publish(tmp_path / f"{number}.npy", "old", {})
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


def test_the_error_of_a_full_disk_names_the_output_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*output\.txt'$"):
        publish(tmp_path / "output.txt", "content", {})
    assert os.listdir(tmp_path) == []


def test_without_hard_links_files_are_renamed_and_still_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "this file system has no hard links")

    monkeypatch.setattr(os, "link", fail)
    assert publish(tmp_path / "output.txt", "first", {})
    assert not publish(tmp_path / "output.txt", "again", {})
    assert (tmp_path / "output.txt").read_text() == "first"


def test_temporaries_of_the_dead_and_of_the_long_gone_are_removed(tmp_path: Path) -> None:
    host = os.uname().nodename.replace("-", "_")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    week_ago = time.time() - 8 * 24 * 3600
    old = {".tmp-old.npy-other-host-77", "kept.npy"}
    stale = {
        f".tmp-dead.npy-{host}-{child.pid}",
        f".tmp-zombie.npy-{host}-{zombie.pid}",
        f".tmp-own.npy-{host}-{os.getpid()}",
        ".tmp-old.npy-other-host-77",
    }
    kept = {
        f".tmp-alive.npy-{host}-{os.getppid()}",
        f".tmp-elsewhere.npy-gpu_{host}-{child.pid}",
        ".tmp-new.npy-other-host-77",
        "kept.npy",
    }
    for name in stale | kept:
        (tmp_path / name).touch()
        if name in old:
            os.utime(tmp_path / name, (week_ago, week_ago))
    outputs.remove_stale_temporaries(tmp_path)
    assert {*os.listdir(tmp_path)} == kept
