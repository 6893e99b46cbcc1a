"""What every command line shares: counts such as 2e6, exit statuses, errors as one line, the progress bar, tables.

Exit statuses: 0 complete; 1 failed, or damage was found; 2 wrong arguments; 3 fewer samples than requested. No heavy
library is imported here, so that `--help` and argument errors answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import shlex
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from cepe_data.errors import ArgumentError, PipelineError

if TYPE_CHECKING:
    from tqdm import tqdm

Options = TypeVar("Options")
MAX_COUNT = 1 << 53
GRACE_SECONDS = 8.0
LIBRARY = Path(__file__).resolve().parent
SCRIPTS = LIBRARY / "scripts" if (LIBRARY / "scripts").is_dir() else LIBRARY.parent  # the first in an installation
EXIT_OK, EXIT_FAILED, EXIT_WRONG_ARGUMENTS, EXIT_SHORTAGE = 0, 1, 2, 3


def count(text: str) -> int:
    """A whole number, at least 0, as `5000000`, `5_000_000` or `5e6`.

    Raises:
        argparse.ArgumentTypeError: if it is not a whole number, or negative.
    """
    try:
        number = int(text) if text.lstrip("+-").replace("_", "").isdigit() else float(text)
        if number != int(number) or not 0 <= number <= MAX_COUNT:
            raise ValueError
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a count: a whole number from 0 on, such as 1000 or 2e6, is expected"
        ) from None
    return int(number)


def positive_count(text: str) -> int:
    """A `count` of at least 1."""
    number = count(text)
    if number == 0:
        raise argparse.ArgumentTypeError("at least 1 is expected")
    return number


def fraction(text: str) -> float:
    """A number from 0 to 1. Raises argparse.ArgumentTypeError if it is not one."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: a number from 0 to 1 is expected")
    return number


def utf8(text: str) -> str:
    """An argument that JSON files will have. Raises argparse.ArgumentTypeError if its bytes were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from None
    return text


def typed(kind: type[Options], args: argparse.Namespace) -> Options:
    """Parsed arguments as the dataclass `kind`, which has a field for each argument of its step."""
    fields = dataclasses.fields(cast(Any, kind))
    taken = [field.name for field in fields if field.name in args or field.default is dataclasses.MISSING]
    return kind(**{name: getattr(args, name) for name in taken})


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults other than None, False and an empty text, and the script's docstring unchanged."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, ""):
            return action.help
        return super()._get_help_string(action)


def add_overwrite_argument(parser: argparse._ActionsContainer) -> None:
    """The flag that replaces outputs."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what other arguments made, and what is damaged"
    )


def add_disk_argument(parser: argparse._ActionsContainer) -> None:
    """The flag that turns off the check for free disk space."""
    parser.add_argument(
        "--ignore_disk_space", action="store_true", help="start although less is free than is to be written"
    )


def run_command() -> None:
    """Run the script that an installed command is named after: `tokenize_jsonl.py …` is `python tokenize_jsonl.py …`,
    and `retrieval.search …` is `python -m retrieval.search …`.

    An installation does not have the scripts as modules, since names such as `retrieval` are too general. They are in
    the folder `scripts` of this package; in an editable installation, in the checkout.
    """
    import runpy

    import cepe_data

    global command_name  # noqa: PLW0603
    cepe_data.end_silently_on_ctrl_c()
    command_name = Path(sys.argv[0]).name
    sys.path.insert(0, str(SCRIPTS))
    runpy.run_module(command_name.removesuffix(".py"), run_name="__main__", alter_sys=True)


def run(main: Callable[[], int]) -> None:
    """Run a script's `main` and exit with its status. An error that a user can fix, or a signal, is printed as one
    message."""
    script = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without → must not end a run
    try:
        Stopped.on_signals()
        status = _exit_status_of(main, script)
        Stopped.ignore_signals()  # the exit status is final
    except Stopped as stopped:
        stopped.end()
    sys.exit(status)


def _exit_status_of(main: Callable[[], int], script: str) -> int:
    try:
        _require_own_library(Path(getattr(sys.modules["__main__"], "__file__", script)).resolve())
        status = main()
        sys.stdout.flush()
    except PipelineError as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        status = error.exit_status
    except BrokenPipeError:  # `| head` has ended; what is unwritten must not fail once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"{script}: error: {where}{error.strerror or error}. Nothing incomplete has a final name; once this is "
            f"repaired, the same command goes on from here.",
            file=sys.stderr,
        )
        status = EXIT_FAILED
    return status


def _require_own_library(script: Path) -> None:
    """Raise ArgumentError if this library is not the one beside the script: that of another clone, such as an installed
    one, may write other bytes."""
    for folder in script.parents[:2]:  # the second is for retrieval/
        if (folder / "cepe_data/cli.py").exists() and (folder / "cepe_data").resolve() != LIBRARY:
            raise ArgumentError(
                f"{script} is not a script of the library that it found, {LIBRARY}: "
                f"run it as `python -m {'.'.join(script.relative_to(folder).with_suffix('').parts)}` in {folder}"
            )


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGINT: unpublished work is dropped, and the process ends, after GRACE_SECONDS at the latest."""

    _is_deferred: ClassVar[bool] = False
    _deferred: ClassVar[Stopped | None] = None

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    @classmethod
    def on_signals(cls) -> None:
        """From now on, the first of these signals raises Stopped in the main thread; later ones are ignored."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, cls._handle)

    @staticmethod
    def ignore_signals() -> None:
        """From now on, ignore these signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    @classmethod
    @contextlib.contextmanager
    def deferred(cls) -> Iterator[None]:
        """Raise Stopped for a signal only at the end of this block, which must not be left halfway."""
        cls._is_deferred = True
        try:
            yield
        finally:
            cls._is_deferred = False
            if cls._deferred is not None:
                raise cls._deferred

    @classmethod
    def _handle(cls, number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_name == "__del__":  # an exception would be ignored there: send the signal again
                threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
                return
            frame = frame.f_back
        cls.ignore_signals()
        stopped = cls(number)
        timer = threading.Timer(GRACE_SECONDS, stopped.end)  # in case a device or a disk does not answer
        timer.daemon = True
        timer.start()
        if not cls._is_deferred:
            raise stopped
        cls._deferred = stopped

    def end(self) -> None:
        """Print where the run was stopped and how to go on, and end the process without waiting for its threads."""
        where = ""
        if _bars and (bar := _bars[-1]).total:
            unit = bar.unit if bar.unit == "B" else f"{bar.unit}s"
            where = f" at {int(bar.n):,} of {int(bar.total):,} {unit} ({bar.desc})"
        by = signal.Signals(self._number).name
        print(
            f"{Path(sys.argv[0]).name}: stopped by {by}{where}. Nothing incomplete has a final name; the same command "
            f"goes on from here:\n  {this_command()}",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(128 + self._number)


command_name: str | None = None  # the name of an installed command
_bars: list[tqdm] = []  # the progress bar of this process


def say(message: str) -> None:
    """Print a message on stdout, and flush it: stdout may be a log file."""
    print(message, flush=True)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def progress_bar(total: int, unit: str, description: str, **options: Any) -> tqdm:
    """The only progress bar of this process, on stderr. It appears after a second; in a log file it changes rarely."""
    from tqdm import tqdm

    options |= {"mininterval": 0.1 if sys.stderr.isatty() else 30.0, "dynamic_ncols": True, "delay": 1}
    bar = tqdm(total=total, unit=unit, desc=description, file=sys.stderr, **options)
    _bars[:] = [bar]
    return bar


def seconds_since(start: float) -> str:
    """The time since `start` (of `time.monotonic`), for a last line: `12.3 s`."""
    return f"{time.monotonic() - start:.1f} s"


def this_command(*added: object) -> str:
    """The running command, to be pasted into a shell, with more arguments at its end."""
    script, *arguments = sys.argv
    module = getattr(sys.modules["__main__"], "__spec__", None)
    what = ["python", "-m", module.name] if module else ["python", script]
    return shlex.join([*([command_name] if command_name else what), *arguments, *map(str, added)])


def report_disk(output: Path, num_bytes: int) -> None:
    """Print, for a dry run, the bytes to be written and those that are free on the disk of `output`."""
    place, free_bytes = free_space(output)
    say(f"about {num_bytes:,} bytes to write, {free_bytes:,} bytes are free at {place}")
    if num_bytes > free_bytes:
        warn(f"{output} does not fit on its disk")


def free_space(output: Path) -> tuple[Path, int]:
    """The deepest existing folder of the path `output`, and the bytes that are free on its disk."""
    place = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    return place, shutil.disk_usage(place).free


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A plain text table: the first column left-aligned, the others right-aligned, integers as `1,000`."""
    cells = [list(header)]
    for row in rows:
        cells.append([f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row])
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]

    def line(words: list[str]) -> str:
        return "  ".join([words[0].ljust(widths[0])] + [w.rjust(n) for w, n in zip(words[1:], widths[1:], strict=True)])

    return "\n".join([line(cells[0]), "  ".join("-" * width for width in widths), *map(line, cells[1:])])
