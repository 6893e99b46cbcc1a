"""What every command line shares: counts such as 2e6, exit statuses, errors as one line, the progress bar, tables.

Exit statuses: 0 everything asked for is there; 1 failed, or damage was found; 2 wrong arguments; 3 fewer samples than
asked for. Nothing here imports a heavy library, so that `--help` and argument errors answer at once.
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
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from cepe_data.errors import ArgumentError, PipelineError

if TYPE_CHECKING:
    from tqdm import tqdm

Options = TypeVar("Options")
MAX_COUNT = 1 << 53
GRACE_SECONDS = 8.0
LIBRARY = Path(__file__).resolve().parent
EXIT_OK, EXIT_FAILED, EXIT_WRONG_ARGUMENTS, EXIT_SHORTAGE = 0, 1, 2, 3


def count(text: str) -> int:
    """A number of things, at least 0, as `5000000`, `5_000_000` or `5e6`.

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
    """A share between 0 and 1, both allowed.

    Raises:
        argparse.ArgumentTypeError: if it is not such a number.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: a number from 0 to 1 is expected")
    return number


def typed(kind: type[Options], args: argparse.Namespace) -> Options:
    """Parsed arguments as the dataclass `kind`, which has a field for each that its step takes."""
    return kind(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cast(Any, kind))})


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that say something, and the script's docstring as it was written."""

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


def run_command() -> None:
    """Run the script that this command on the PATH is called after: `tokenize_jsonl.py …` is
    `python tokenize_jsonl.py …`, and `retrieval.search …` is `python -m retrieval.search …`.

    The scripts are not modules of an installation, because names such as `retrieval` belong to everybody. They are in
    the folder `scripts` of this package, or, in an editable installation, where the checkout has them.
    """
    import runpy

    import cepe_data

    global command_name  # noqa: PLW0603
    cepe_data.end_silently_on_ctrl_c()
    command_name = Path(sys.argv[0]).name
    scripts = LIBRARY / "scripts"
    sys.path.insert(0, str(scripts if scripts.is_dir() else LIBRARY.parent))
    runpy.run_module(command_name.removesuffix(".py"), run_name="__main__", alter_sys=True)


def run(main: Callable[[], int]) -> None:
    """Run a script's `main` and leave with its exit status; errors that a user can mend are printed as one message, and
    so is where a signal stopped it."""
    script = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without → must not end a run
    try:
        Stopped.on_signals()
        status = _exit_status_of(main, script)
        Stopped.ignore_signals()  # the exit status is known: nothing is left to be stopped
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
    except BrokenPipeError:  # `| head` has seen enough; what is unwritten must not fail once more at exit
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
    """A script uses the library beside it: that of another clone, such as an installed one, may write other bytes.

    Raises:
        ArgumentError: if it is another one.
    """
    for folder in script.parents[:2]:  # the second is for retrieval/
        if (folder / "cepe_data/cli.py").exists() and (folder / "cepe_data").resolve() != LIBRARY:
            raise ArgumentError(
                f"{script} is not a script of the library that it found, {LIBRARY}: "
                f"run it as `python -m {'.'.join(script.relative_to(folder).with_suffix('').parts)}` in {folder}"
            )


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGINT came: what is in flight is dropped, and the process ends, after GRACE_SECONDS at the latest."""

    _holds: ClassVar[bool] = False
    _held: ClassVar[Stopped | None] = None

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    @classmethod
    def on_signals(cls) -> None:
        """From now on, the first of these signals raises Stopped in the main thread; more of them change nothing."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, cls._come)

    @staticmethod
    def ignore_signals() -> None:
        """From now on, these signals change nothing."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    @classmethod
    @contextlib.contextmanager
    def held(cls) -> Iterator[None]:
        """Of a signal that comes meanwhile, Stopped is raised at the end of this. For what must not be done by half."""
        cls._holds = True
        try:
            yield
        finally:
            cls._holds = False
            if cls._held is not None:
                raise cls._held

    @classmethod
    def _come(cls, number: int, _: object) -> None:
        cls.ignore_signals()
        stopped = cls(number)
        too_late = threading.Timer(GRACE_SECONDS, stopped.end)  # something does not let go: a device, a disk
        too_late.daemon = True
        too_late.start()
        if not cls._holds:
            raise stopped
        cls._held = stopped

    def end(self) -> None:
        """Say where the run stands and how to go on, and end the process without waiting for its threads."""
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


command_name: str | None = None  # of an installed command
_bars: list[tqdm] = []  # the last one is that of this process


def say(message: str) -> None:
    """A message to the user on stdout, at once even when stdout is a log file."""
    print(message, flush=True)


def warn(message: str) -> None:
    """A message on stderr about something that deserves a look, though the run goes on."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def progress_bar(total: int, unit: str, description: str, **options: Any) -> tqdm:
    """The progress bar of this process, on stderr, for what takes more than a second; seldom refreshed in a log file.
    There is one at a time."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 30.0
    bar = tqdm(
        total=total,
        unit=unit,
        desc=description,
        file=sys.stderr,
        mininterval=interval,
        dynamic_ncols=True,
        delay=1,
        **options,
    )
    _bars[:] = [bar]
    return bar


def seconds_since(start: float) -> str:
    """The time since `start` (of `time.monotonic`), for a last line: `12.3 s`."""
    return f"{time.monotonic() - start:.1f} s"


def this_command(*added: object) -> str:
    """The running command as one can paste it, with more arguments at its end."""
    script, *arguments = sys.argv
    module = getattr(sys.modules["__main__"], "__spec__", None)
    what = ["python", "-m", module.name] if module else ["python", script]
    return shlex.join([*([command_name] if command_name else what), *arguments, *map(str, added)])


def report_disk(output: Path, num_bytes: int) -> None:
    """For a dry run: what would be written, and the space that is free where `output` is or will be."""
    place = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    free_bytes = shutil.disk_usage(place).free
    say(f"about {num_bytes:,} bytes to write, {free_bytes:,} bytes are free at {place}")
    if num_bytes > free_bytes:
        warn(f"{output} does not fit on its disk")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A plain text table: the first column left-aligned, numbers right-aligned with thousands separators."""
    cells = [list(header)]
    for row in rows:
        cells.append([f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row])
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]

    def line(words: list[str]) -> str:
        return "  ".join([words[0].ljust(widths[0])] + [w.rjust(n) for w, n in zip(words[1:], widths[1:], strict=True)])

    return "\n".join([line(cells[0]), "  ".join("-" * width for width in widths), *map(line, cells[1:])])
