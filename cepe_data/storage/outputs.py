"""Complete or absent: how outputs get their final names.

An output is one file or one folder, together with sidecar files beside it. It is written under temporary names,
`.tmp-{name}-{host}-{pid}` in the same folder, flushed, and published by a rename that never replaces. Sidecar files are
renamed first, so that a reader who sees the output sees all of it. Each output has a meta file: storage/provenance.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from cepe_data import cli, system
from cepe_data.errors import PipelineError
from cepe_data.storage import provenance

TEMPORARY_PREFIX = ".tmp-"
STALE_SECONDS = 7 * 24 * 3600


def _host_name() -> str:
    """The name of this host, without `-` (else node1 would take gpu-node1's temporaries for its own). In a container,
    where process numbers begin anew, it has the number of the process namespace, too."""
    name, namespace = socket.gethostname().replace("-", "_"), system.process_namespace()
    return name if namespace is None else f"{name}_{namespace}"


_HOST = _host_name()
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


def temporary_path(final: Path) -> Path:
    """The path under which this process writes `final`."""
    return final.with_name(f"{TEMPORARY_PREFIX}{final.name}-{_HOST}-{os.getpid()}")


def remove_stale_temporaries(folder: Path) -> None:
    """Remove temporaries in `folder`: those of dead processes of this host, of an earlier process with this process's
    number, and those of any host that are older than a week. Call it before this process makes its first one there."""
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
        return int(process) == os.getpid() or not system.is_running(int(process))
    try:
        return time.time() - temporary.lstat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists: where it does not, the place may even be read-only."""
    if not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def retract(output: Path) -> None:
    """Remove a published folder, if it exists, in one step: a reader sees all of it or nothing."""
    aside = temporary_path(output.with_name(f"{output.name}.old"))
    if output.exists():
        remove(aside)
        output.rename(aside)
        remove(aside)


def write_json(path: Path, content: object) -> None:
    """Write or replace a small JSON file, atomically. Keys are sorted: the same content gives the same bytes."""
    write_bytes(path, _json_bytes(content))


def _json_bytes(content: object) -> bytes:
    try:
        import orjson
    except ModuleNotFoundError:  # a machine that was set up for models: same bytes, except for numbers such as 1e-05
        return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def write_bytes(path: Path, content: bytes) -> None:
    """Write or replace a small file, atomically. A file that has this content already is not touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes() == content:
        return
    temporary = temporary_path(path)
    with naming(path):
        try:
            temporary.write_bytes(content)
            flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        flush(path.parent)


@dataclass(frozen=True)
class Output:
    """An output: its path, its provenance, and whether it replaces one of other provenance."""

    path: Path
    made_with: provenance.Provenance
    overwrite: bool = False
    _is_verified: bool = field(default=False, init=False, repr=False, compare=False)

    def is_done(self) -> bool:
        """Whether it exists and is right. Raises as `provenance.is_made`.

        With `overwrite`, an output of other provenance, or a damaged one, is not done. For that all its files are
        hashed, but only once: a set may have a terabyte.
        """
        if not self._is_verified:
            is_made = provenance.is_made_and_intact if self.overwrite else provenance.is_made
            object.__setattr__(self, "_is_verified", is_made(self.path, self.made_with))
        return self._is_verified

    def draft(self, is_folder: bool = False) -> Draft:
        """Begin to write it."""
        return Draft(self, is_folder)


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """The options of a step that writes outputs."""

    overwrite: bool
    ignore_disk_space: bool = False

    def output_at(self, path: Path, made_with: provenance.Provenance) -> Output:
        """An output of the step."""
        return Output(path, made_with, self.overwrite)

    def require_disk(self, path: Path, num_bytes: float) -> None:
        """Raise PipelineError if fewer than `num_bytes` are free for `path`, unless `ignore_disk_space`."""
        place, free_bytes = cli.free_space(path)
        if num_bytes > free_bytes and not self.ignore_disk_space:
            raise PipelineError(
                f"{path}: about {int(num_bytes):,} bytes are to be written, and {free_bytes:,} are free at {place}. "
                f"Make room there, or start with --ignore_disk_space"
            )


REPLACE_NOTHING = WriteOptions(overwrite=False)


class Draft:
    """An output that is being written, and has not its final name yet.

        with Output(path, made_with).draft() as draft:
            ... write draft.path, and draft.sidecar(other) for files beside it ...
            draft.publish(metadata)

    On leaving, what was not published is removed. `draft.path` is an existing empty folder if `is_folder`.
    """

    def __init__(self, output: Output, is_folder: bool) -> None:
        self.output, self.final, self.is_folder = output, output.path, is_folder
        self.path = temporary_path(self.final)
        self._aside = temporary_path(self.final.with_name(f"{self.final.name}.old"))
        self._sidecars: dict[Path, Path] = {}  # final and temporary paths
        self._known_metadata: dict[str, dict[str, object]] = {}

    def __enter__(self) -> Draft:
        self.final.parent.mkdir(parents=True, exist_ok=True)
        remove(self.path)
        if self.is_folder:
            self.path.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # If a replacement failed halfway, the old output goes, too: its sidecar files may be replaced already.
        for temporary in [self.path, *self._sidecars.values(), self._aside]:
            remove(temporary)
        if isinstance(error, OSError):
            _name(error, self.final)

    def sidecar(self, final: Path) -> Path:
        """The temporary path of a sidecar file."""
        self._sidecars[final] = temporary_path(final)
        return self._sidecars[final]

    def link(self, name: str, source: Path, metadata: dict[str, object]) -> bool:
        """Link the file `source`, whose metadata are known, into the folder. Returns False if the file system has no
        hard links, and it was copied."""
        self._known_metadata[name] = metadata
        try:
            os.link(source, self.path / name)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS | {errno.EXDEV}:
                raise
            shutil.copyfile(source, self.path / name)
            flush(self.path / name)  # a linked file was flushed when it was published
            return False
        return True

    def publish(self, metadata: Mapping[str, object] | None = None) -> bool:
        """Write the meta file, flush everything, and rename everything to its final name, the output itself last.

        Returns False if another process, with the same arguments, was faster; then this draft is dropped.

        Raises:
            ArgumentError: if another process has made it with other arguments meanwhile.
        """
        self.seal(metadata)
        return publish_together([self])[0]

    def seal(self, metadata: Mapping[str, object] | None = None) -> None:
        """Write the meta file: from now on nothing of the output changes but its name."""
        meta = provenance.signed({**(metadata or {}), "made_with": self.output.made_with, "files": self._own_files()})
        meta_file = provenance.meta_path(self.path if self.is_folder else self.final, self.is_folder)
        if not self.is_folder:
            meta_file = self.sidecar(meta_file)
        meta_file.write_bytes(_json_bytes(meta))

    def _flush(self) -> None:
        """Flush everything but linked files, which were flushed when they were published."""
        inside = [self.path / name for name in os.listdir(self.path)] if self.is_folder else []
        new = [path for path in inside if path.name not in self._known_metadata]
        for path in [*new, self.path, *self._sidecars.values()]:
            flush(path)

    def _give_names(self) -> bool:
        """Rename everything, the output itself last. False if its final name is taken by now."""
        with _locked(self.final.parent):
            if self.output.overwrite and self.final.exists():
                remove(self._aside)
                self.final.rename(self._aside)
            if self.final.exists():
                return False
            for sidecar, temporary in self._sidecars.items():
                temporary.replace(sidecar)
            return _rename_folder(self.path, self.final) if self.is_folder else _rename_file(self.path, self.final)

    def _settle(self, published: bool) -> None:
        """Remove what was replaced; if another process was faster, check that its arguments were the same."""
        remove(self._aside)
        if not published:
            provenance.is_made(self.final, self.output.made_with)

    def _own_files(self) -> dict[str, dict[str, object]]:
        """Metadata of every file of the output, by their final names."""
        beside = "../" if self.is_folder else ""
        paths = {f"{beside}{path.name}": temporary for path, temporary in self._sidecars.items()}
        if self.is_folder:
            paths |= {name: self.path / name for name in os.listdir(self.path)}
        else:
            paths[self.final.name] = self.path
        known = self._known_metadata
        return {name: known.get(name) or provenance.file_metadata(path) for name, path in paths.items()}


def publish_together(drafts: Sequence[Draft]) -> list[bool]:
    """Publish sealed outputs as `Draft.publish` does, but wait for the disk once, not for every file.

    Returns the result for each. An error of one is raised once all others that can be published are.
    """
    if len(drafts) > 1:
        system.start_flushing(drafts[0].final.parent)
    published: dict[Draft, bool] = {}
    errors: list[Exception] = []
    flushed = _each(drafts, Draft._flush, errors)
    named = _each(flushed, lambda draft: published.update({draft: draft._give_names()}), errors)
    for folder in {draft.final.parent for draft in named}:
        flush(folder)
    _each(named, lambda draft: draft._settle(published[draft]), errors)
    if errors:
        raise errors[0]
    return [published[draft] for draft in drafts]


def _each(drafts: Sequence[Draft], function: Callable[[Draft], None], errors: list[Exception]) -> list[Draft]:
    """Call a function for each draft. Returns the drafts without an error; `errors`, naming the output, grows."""
    done = []
    for draft in drafts:
        try:
            with naming(draft.final):
                function(draft)
            done.append(draft)
        except (OSError, PipelineError) as error:
            errors.append(error)
    return done


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file name to an error that has none, such as a full disk."""
    try:
        yield
    except OSError as error:
        _name(error, path)
        raise


def _name(error: OSError, path: Path) -> None:
    is_temporary = isinstance(error.filename, str) and TEMPORARY_PREFIX in error.filename
    if error.errno and (error.filename is None or is_temporary):
        error.filename = str(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other publishers during the renames: sidecar files of two must not be mixed. If the file
    system cannot lock folders, there is still the rename that never replaces."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def flush(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _rename_file(temporary: Path, final: Path) -> bool:
    """Rename without replacing: False if `final` exists. A link never replaces; a plain rename would."""
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
    """Rename without replacing: False if `final` exists (a rename never replaces a folder that is not empty)."""
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise
    return True
