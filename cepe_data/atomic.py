"""Complete or absent: how outputs get their final names, and the record of what made them.

A *unit* of output is one file or one folder, together with the files beside it that belong to it (companions). It is
written under temporary names, `.tmp-{name}-{host}-{pid}` beside the place, flushed, and published by a rename that
never replaces; companions come first, so that whoever sees the unit sees all of it. Each unit has a meta file,
`X.meta.json` beside a file `X.ext` and `meta.json` inside a folder:

    {"made_with": {argument or input: value},        what determines the bytes of the unit, and only that
     "files": {name: {"bytes": int, "xxh3_64": hex}}, every file of the unit but the meta file itself; companions of a
                                                     folder, which stand beside it, have names that begin with ../
     ...,                                            facts about the content
     "meta_xxh3_64": hex}                            of all this, as JSON with sorted keys

A later run compares `made_with` with its own arguments: the same means done, a difference is an error that names it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash

from cepe_data.errors import ArgumentError, DamagedFileError

TEMPORARY_PREFIX = ".tmp-"
STALE_SECONDS = 7 * 24 * 3600
_OWN_HASH = "meta_xxh3_64"
_DERIVED = {"rows", "first_row", "stop_row", "rows_per_part"}
_INITIAL_PROCESSES = 0xEFFFFFFC  # the inode of a machine's own process namespace (proc_ns.h of Linux)


def _host_name() -> str:
    """The name of this host, without `-` (else node1 would take gpu-node1's temporaries for its own); in a container,
    where process numbers begin anew, also that of its process namespace."""
    name, processes = socket.gethostname().replace("-", "_"), Path("/proc/self/ns/pid").stat().st_ino
    return name if processes == _INITIAL_PROCESSES else f"{name}_{processes}"


_HOST = _host_name()
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
_READ_BYTES = 8 << 20

Meta = dict[str, Any]


def temporary_path(final: Path) -> Path:
    """The name under which this process writes what will be called `final`."""
    return final.with_name(f"{TEMPORARY_PREFIX}{final.name}-{_HOST}-{os.getpid()}")


def remove_stale_temporaries(folder: Path) -> None:
    """Remove temporaries in `folder` of dead processes of this host, of an earlier process with our own number, and
    those of any host that are older than a week. Call it before this process makes its first one there."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(TEMPORARY_PREFIX)]
    for name in names:
        if _is_stale(folder / name):
            remove(folder / name)


def _is_stale(temporary: Path) -> bool:
    rest, _, process = temporary.name.rpartition("-")
    if rest.endswith(f"-{_HOST}") and process.isdigit():
        return int(process) == os.getpid() or not _is_running(process)
    try:
        return time.time() - temporary.lstat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return False


def _is_running(process: str) -> bool:
    """Whether there is such a process that is not a dead one which its parent has not noticed: in a container whose
    first process is no init, workers of a killed run stay like that."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a file or a folder; being gone already is fine, also where nothing may be written."""
    if not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def retract(unit: Path) -> None:
    """Take away a published folder, all at once; being gone already is fine."""
    aside = temporary_path(unit.with_name(f"{unit.name}.old"))
    if unit.exists():
        remove(aside)
        unit.rename(aside)
        remove(aside)


def write_json(path: Path, content: object) -> None:
    """Write or replace a small JSON file, atomically. Keys are sorted: the same content gives the same bytes."""
    write_bytes(path, _json_bytes(content))


def _json_bytes(content: object) -> bytes:
    import orjson

    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def write_text(path: Path, text: str) -> None:
    """Write or replace a small text file, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write or replace a small file, atomically; one that has this content already is left alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes() == content:
        return
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(content)
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def file_facts(path: Path) -> dict[str, object]:
    """`{"bytes": size, "xxh3_64": hex digest of the whole file}`."""
    digest, size = xxhash.xxh3_64(), 0
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(min(_READ_BYTES, os.fstat(file.fileno()).st_size + 1))
        while num_read := file.readinto(buffer):
            digest.update(memoryview(buffer)[:num_read])
            size += num_read
    return {"bytes": size, "xxh3_64": digest.hexdigest()}


def fingerprint(content: object) -> str:
    """xxh3_64 of a JSON-able object, as hex."""
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def signed(meta: Meta) -> Meta:
    """The content of a meta file, with its own hash."""
    content = {name: value for name, value in meta.items() if name != _OWN_HASH}
    return {**content, _OWN_HASH: fingerprint(content)}


def unsigned(content: Meta) -> Meta:
    """What `signed` was given.

    Raises:
        ValueError: if it is not that any more.
        KeyError: if it has no hash of its own.
    """
    rest = {name: value for name, value in content.items() if name != _OWN_HASH}
    if content[_OWN_HASH] != fingerprint(rest):
        raise ValueError("its content is not what was written")
    return rest


def read_signed(path: Path, remedy: str) -> Meta:
    """The content of a JSON file that was written signed.

    Raises:
        DamagedFileError: if it is not what was written; it ends with `remedy`.
    """
    try:
        return unsigned(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {remedy}") from None


def meta_path(unit: Path, is_folder: bool = False) -> Path:
    """Where the meta file of a unit is: inside a folder, beside a file."""
    return unit / "meta.json" if is_folder else unit.with_name(f"{unit.name.rpartition('.')[0]}.meta.json")


def read_meta(unit: Path) -> Meta | None:
    """The meta file of a unit that is there; None where it has none (it was not made by this pipeline).

    Raises:
        DamagedFileError: if it is no meta file.
    """
    path = meta_path(unit, unit.is_dir())
    try:
        meta = unsigned(json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(meta["made_with"], dict) or not isinstance(meta["files"], dict):
            raise TypeError("made_with and files are no objects")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): remove {unit} and make it again") from None
    return meta


def is_intact(unit: Path, meta: Meta) -> bool:
    """Whether every file of the unit has the size and the hash that its meta file says. Reads all of it."""
    return not lost_files(unit, meta) and not damaged_files(unit, meta)


def damaged_files(unit: Path, meta: Meta) -> list[Path]:
    """The files of the unit that are not there with the size and the hash that its meta file says. Reads all of it."""
    return [path for path, facts in _files_of(unit, meta) if not path.is_file() or file_facts(path) != facts]


def lost_files(unit: Path, meta: Meta) -> list[Path]:
    """The files of the unit that are not there with the size that its meta file says. Reads none."""
    return [
        path for path, facts in _files_of(unit, meta) if not path.is_file() or path.stat().st_size != facts["bytes"]
    ]


def _files_of(unit: Path, meta: Meta) -> list[tuple[Path, dict[str, object]]]:
    folder = unit if unit.is_dir() else unit.parent
    beside = [(folder.parent / name[3:], facts) for name, facts in meta["files"].items() if name.startswith("../")]
    return beside + [(folder / name, facts) for name, facts in meta["files"].items() if not name.startswith("../")]


def is_made(unit: Path, made_with: Meta, overwrite: bool = False) -> bool:
    """Whether `unit` is there and was made with `made_with`, so that nothing is left to do.

    With `overwrite`, a unit that was made with something else, or that is damaged, counts as not made.

    Raises, unless `overwrite` is on:
        ArgumentError: if it is there, but made with something else.
        DamagedFileError: if one of its files is gone or has another size, or its meta file is damaged.
    """
    if not unit.exists():
        return False
    if overwrite:
        try:
            meta = read_meta(unit)
        except DamagedFileError:
            return False
        return meta is not None and meta["made_with"] == made_with and is_intact(unit, meta)
    meta = read_meta(unit)
    if meta is None:
        raise ArgumentError(f"{unit} is there, but nothing says what made it: move it away, or pass --overwrite")
    differences = describe_differences(meta["made_with"], made_with)
    if differences:
        raise ArgumentError(
            f"{unit} was made with other arguments or inputs: {differences}. Use the same, remove it, or replace it "
            f"with --overwrite"
        )
    if lost := lost_files(unit, meta):
        raise DamagedFileError(f"{unit} is damaged: {lost[0]} is gone or has another size. --overwrite makes it again")
    return True


def describe_differences(old: Meta, new: Meta) -> str:
    """What differs between two records, as `seed: was 42, now 43; …`; empty if nothing does. Numbers of rows, which may
    follow from other differences, are named only where nothing else differs."""
    missing = object()
    names = {name for name in {*old, *new} if old.get(name, missing) != new.get(name, missing)}
    found = []
    for name in sorted(names - _DERIVED or names):
        before, after = old.get(name, missing), new.get(name, missing)
        was = "absent" if before is missing else json.dumps(before, ensure_ascii=False)
        now = "absent" if after is missing else json.dumps(after, ensure_ascii=False)
        found.append(f"{name}: was {was}, now {now}")
    return "; ".join(found)


class Draft:
    """A unit on its way to its final name.

        with Draft(final, made_with) as draft:
            ... write draft.path, and draft.companion(other) for files beside it ...
            draft.publish(facts)

    Whatever was not published is removed on leaving. `draft.path` is an existing empty folder if `is_folder`.
    """

    def __init__(self, final: Path, made_with: Meta, *, is_folder: bool = False, overwrite: bool = False) -> None:
        self.final, self.made_with, self.is_folder, self.overwrite = final, made_with, is_folder, overwrite
        self.path = temporary_path(final)
        self._aside = temporary_path(final.with_name(f"{final.name}.old"))
        self._companions: dict[Path, Path] = {}  # final and temporary paths
        self._known_facts: dict[str, dict[str, object]] = {}

    def __enter__(self) -> Draft:
        self.final.parent.mkdir(parents=True, exist_ok=True)
        remove(self.path)
        if self.is_folder:
            self.path.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for temporary in [self.path, *self._companions.values()]:
            remove(temporary)
        if isinstance(error, OSError):
            _name(error, self.final)

    def companion(self, final: Path) -> Path:
        """The temporary path of a file beside the unit that belongs to it."""
        self._companions[final] = temporary_path(final)
        return self._companions[final]

    def link(self, name: str, source: Path, facts: dict[str, object]) -> bool:
        """Give the file `source`, whose facts are known, a second name in the folder; copy it where links are refused.

        Returns whether it was linked.
        """
        self._known_facts[name] = facts
        try:
            os.link(source, self.path / name)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS | {errno.EXDEV}:
                raise
            shutil.copyfile(source, self.path / name)
            flush(self.path / name)  # a link needs none: its file was flushed when it was published
            return False
        return True

    def publish(self, facts: Meta | None = None) -> bool:
        """Write the meta file, flush everything, and give all of it its final name, the unit itself last.

        Returns False if another process, with the same arguments, was faster; then ours is dropped.

        Raises:
            ArgumentError: if another process has made it with other arguments meanwhile.
        """
        self.seal(facts)
        return publish_together([self])[0]

    def seal(self, facts: Meta | None = None) -> None:
        """Write the meta file: from now on nothing of the unit changes but its name."""
        meta = signed({**(facts or {}), "made_with": self.made_with, "files": self._own_files()})
        meta_file = meta_path(self.path, True) if self.is_folder else self.companion(meta_path(self.final))
        meta_file.write_bytes(_json_bytes(meta))

    def _unflushed(self) -> list[Path]:
        """What is to be flushed. A linked file was, when it was published."""
        inside = [self.path / name for name in os.listdir(self.path)] if self.is_folder else []
        new = [path for path in inside if path.name not in self._known_facts]
        return [*new, self.path, *self._companions.values()]

    def _give_names(self) -> bool:
        """Rename everything, the unit itself last. False if it is there by now."""
        with _locked(self.final.parent):
            if self.overwrite and self.final.exists():
                remove(self._aside)
                self.final.rename(self._aside)
            if self.final.exists():
                return False
            for companion, temporary in self._companions.items():
                temporary.replace(companion)
            return _rename_folder(self.path, self.final) if self.is_folder else _rename_file(self.path, self.final)

    def _settle(self, published: bool) -> None:
        """What is left to do when the name is on the disk."""
        remove(self._aside)
        if not published:
            is_made(self.final, self.made_with)

    def _own_files(self) -> dict[str, dict[str, object]]:
        """Facts of every file of the unit, under the names that they will have."""
        if self.is_folder:
            names = sorted(os.listdir(self.path))
            files = {name: self._known_facts.get(name) or file_facts(self.path / name) for name in names}
        else:
            files = {self.final.name: file_facts(self.path)}
        beside = "../" if self.is_folder else ""
        return files | {f"{beside}{path.name}": file_facts(temporary) for path, temporary in self._companions.items()}


def publish_together(drafts: Sequence[Draft]) -> list[bool]:
    """Publish sealed units, as `Draft.publish` does each; the disk is waited for once, not for every file of theirs.

    Returns and raises what that does; what was published before stays.
    """
    if len(drafts) > 1:
        _start_flushing(drafts[0].final.parent)
    for draft in drafts:
        with naming(draft.final):
            for path in draft._unflushed():
                flush(path)
    published = [draft._give_names() for draft in drafts]
    for folder in {draft.final.parent for draft in drafts}:
        flush(folder)
    for draft, is_ours in zip(drafts, published, strict=True):
        draft._settle(is_ours)
    return published


def _start_flushing(folder: Path) -> None:
    """Write what waits to be written on the file system of a folder, all at once: to flush a file after that is quick.
    Whether it went well is left to that, since Linux before 5.8 does not say it here."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error such as a full disk, which does not name one itself."""
    try:
        yield
    except OSError as error:
        _name(error, path)
        raise


def _name(error: OSError, path: Path) -> None:
    if error.errno and error.filename is None:
        error.filename = str(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Exclude other publishers in a folder, for the moment of the renames: companions of two must not be mixed. Where
    the file system has no locks on folders, what is left is the rename that never replaces."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _rename_file(temporary: Path, final: Path) -> bool:
    """Rename without replacing: False if `final` is there. A link refuses to replace; a plain rename does not."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if final.exists():
            return False
        temporary.rename(final)
        return True
    temporary.unlink()
    return True


def _rename_folder(temporary: Path, final: Path) -> bool:
    """Rename without replacing: False if `final` is there (the system refuses to replace a folder with content)."""
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise
    return True
