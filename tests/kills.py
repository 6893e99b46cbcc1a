"""Kill a script at random moments of its work, again and again; each run continues where the last one was killed.

    python tests/kills.py NUMBER SEED OUTPUT SCRIPT ARGUMENT…

Every run is a fork of this process, which has made the long imports: so a kill hits the work, not start-up. A moment is
a time, or just before a change that the run makes to the file system: there a kill could leave something incomplete.
SIGKILL or SIGTERM goes to the run alone, or to its workers as well. benchmarks/faults.py does this with all steps.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tests import preloaded, reference

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
SECONDS_TO_END = 10  # after SIGTERM
SECONDS_TO_COMPLETE = 600
_CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}

Command = tuple[str, ...]  # a script of the project or a module such as retrieval.search, and its arguments


class FaultError(Exception):
    """After a kill, a file or an exit status is wrong."""


@dataclass(frozen=True)
class Pace:
    """An undisturbed run of a command: seconds from where it catches signals to its first output and to its end, and
    the number of changes to the file system that its own process made."""

    seconds_to_output: float
    seconds: float
    num_changes: int


@dataclass(frozen=True)
class Kill:
    """A signal to a run: after some seconds, or where these are None, before a change to the file system."""

    number: signal.Signals
    to_workers: bool
    seconds: float | None
    change: int

    @classmethod
    def sample(cls, rng: random.Random, pace: Pace) -> Kill:
        """Half of them by time, most of these after the first output; half by changes. Early moments are likelier: they
        leave work in which the next run is killed."""
        first = 0.0 if rng.random() < 0.2 else pace.seconds_to_output
        share = min(rng.random(), rng.random())
        seconds = first + share * (pace.seconds - first) if rng.random() < 0.5 else None
        change = max(1, round(share * pace.num_changes))
        return cls(rng.choice(SIGNALS), rng.random() < 0.5, seconds, change)

    def send(self, pid: int) -> None:
        """Send it to a run, which leads its process group."""
        (os.killpg if self.to_workers else os.kill)(pid, self.number)


@dataclass
class Tally:
    """Counts of kills and of what was compared."""

    killed: Counter[signal.Signals] = field(default_factory=Counter)
    num_resumed: int = 0  # runs that began where a killed one had published something
    num_rounds: int = 0  # times that all commands were completed
    num_files: int = 0  # compared after every kill and every round
    num_bytes: int = 0
    longest_end: float = 0.0  # seconds from a SIGTERM to the end of the run

    @property
    def num_killed(self) -> int:
        return sum(self.killed.values())


class Run:
    """A fork of this process that becomes a script, in a process group of its own."""

    def __init__(self, command: Command, folder: Path, log: Path, kill: Kill | None = None) -> None:
        self._log, self._kill = log, kill
        log.unlink(missing_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            _become(command, folder, log, kill)
        self._status: int | None = None
        while not self.has_ended() and not _catches(self.pid, signal.SIGTERM):
            time.sleep(0.001)
        self.start = time.monotonic()

    @property
    def text(self) -> str:
        """What the run has written to stderr so far."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    @property
    def num_changes(self) -> int:
        """Changes to the file system that the run made; it must have ended."""
        return int(_changes_path(self._log).read_text())

    def has_ended(self) -> bool:
        """Whether it has; then it has an `exit_status`."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    @property
    def exit_status(self) -> int:
        assert self._status is not None
        return os.waitstatus_to_exitcode(self._status)

    def watch(self) -> float:
        """Wait for its end, and send a signal that is due by time. Returns when it was sent, else when the run began.

        Raises:
            FaultError: if it takes longer than SECONDS_TO_COMPLETE.
        """
        sent, due = self.start, math.inf
        if self._kill and self._kill.seconds is not None:
            due = self.start + self._kill.seconds
        while not self.has_ended():
            if self._kill and time.monotonic() >= due:
                self._kill.send(self.pid)
                sent, due = time.monotonic(), math.inf
            if time.monotonic() - sent > SECONDS_TO_COMPLETE:
                os.killpg(self.pid, signal.SIGKILL)
                raise FaultError(f"it did not end in {SECONDS_TO_COMPLETE} s\n{self.text}")
            time.sleep(0.001)
        return sent

    def check_no_process_is_left(self) -> None:
        """Raise FaultError unless its workers end too."""
        deadline = time.monotonic() + SECONDS_TO_END
        while left := _alive_in_group(self.pid):
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise FaultError(f"processes {left} outlive the run that started them")
            time.sleep(0.005)


def _become(command: Command, folder: Path, log: Path, kill: Kill | None) -> None:
    """Run the script in this fork, which then exits without what its parent would do at exit."""
    try:
        os.setpgid(0, 0)
        script, *arguments = command
        where = script if script.startswith("retrieval.") else str(preloaded.PROJECT / script)
        environment = {**os.environ, "PYTHONPATH": str(preloaded.PROJECT)}
        changes = _count_changes(kill)
        status = preloaded.become([where, *arguments], str(folder), environment, os.devnull, str(log))
        _changes_path(log).write_text(str(changes()))
        os._exit(status)
    finally:
        os._exit(1)


def _changes_path(log: Path) -> Path:
    return log.with_suffix(".changes")


def _count_changes(kill: Kill | None) -> Callable[[], int]:
    """Count the changes that this process makes to the file system once it catches signals, and send a signal that is
    due before one of them. Returns a function that returns their number."""
    count = 0
    writing = os.O_WRONLY | os.O_RDWR

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        is_open = event == "open" and isinstance(arguments[2], int) and arguments[2] & writing
        if (is_open or event in _CHANGES) and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            count += 1
            if kill and kill.seconds is None and count == kill.change:
                kill.send(os.getpid())

    sys.addaudithook(hook)
    return lambda: count


def _catches(pid: int, number: signal.Signals) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    [mask] = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def _alive_in_group(group: int) -> list[int]:
    """The running processes of a group; dead ones wait for the process that adopted them."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(of_group) == group and state not in "ZX":
            alive.append(int(path.parent.name))
    return alive


def measure(command: Command, folder: Path, output: Path, log: Path) -> Pace:
    """Run a command to its end, undisturbed.

    Raises:
        FaultError: if its exit status is not 0.
    """
    names, seconds_to_output = reference.names_below(output), None
    run = Run(command, folder, log)
    while not run.has_ended():
        if seconds_to_output is None and reference.names_below(output) != names:
            seconds_to_output = time.monotonic() - run.start
        time.sleep(0.01)
    seconds = time.monotonic() - run.start
    if run.exit_status:
        raise FaultError(f"exit status {run.exit_status}\n{run.text}")
    return Pace(seconds if seconds_to_output is None else seconds_to_output, seconds, run.num_changes)


@dataclass(frozen=True)
class Victim:
    """Commands that make `output` together, one after the other, in `folder`.

    `whole` has the files that undisturbed runs make there, by path; `before` those that were there before.
    """

    commands: Sequence[Command]
    paces: Sequence[Pace]
    folder: Path
    output: Path
    whole: dict[str, bytes]
    before: dict[str, bytes]
    log: Path

    @classmethod
    def measured(cls, commands: Sequence[Command], folder: Path, output: str, log: Path) -> Victim:
        """Run the commands, undisturbed, to know what they make and when."""
        target = folder / output
        before = reference.tree_bytes(target)
        paces = [measure(command, folder, target, log) for command in commands]
        return cls(commands, paces, folder, target, reference.tree_bytes(target), before, log)

    def disturb(self, number: int, rng: random.Random) -> Tally:
        """Kill the commands `number` times; whenever all are completed, begin anew.

        Raises:
            FaultError: if a file with a final name differs from that of an undisturbed run, is missing or left over
                after the last rerun, or a run does not end as it should.
        """
        tally = Tally()
        while tally.num_killed < number or not tally.num_rounds:
            self._reset()
            for command, pace in zip(self.commands, self.paces, strict=True):
                is_completed = False
                while not is_completed:
                    kill = Kill.sample(rng, pace) if tally.num_killed < number else None
                    is_completed = self._run(command, kill, tally)
            self._compare(tally, is_complete=True)
            tally.num_rounds += 1
        return tally

    def _reset(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        for name, content in self.before.items():
            path = self.output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def _run(self, command: Command, kill: Kill | None, tally: Tally) -> bool:
        """Whether a run ended before it was killed."""
        run = Run(command, self.folder, self.log, kill)
        try:
            sent = run.watch()
            run.check_no_process_is_left()
            was_killed = run.exit_status != 0
            if was_killed:
                _count_kill(run, kill, time.monotonic() - sent, tally)
            if "Traceback" in run.text and run.exit_status != -signal.SIGKILL:  # whose workers may be half started
                raise FaultError(run.text)
            if was_killed and self._compare(tally, is_complete=False):
                tally.num_resumed += 1
        except FaultError as error:
            raise FaultError(f"{' '.join(command)}\n{kill}\n{error}") from None
        return not was_killed

    def _compare(self, tally: Tally, is_complete: bool) -> bool:
        """Compare the files that have final names with the undisturbed run's. Returns whether any was published."""
        if is_complete and (temporary := list(self.output.rglob(".tmp-*"))):
            raise FaultError(f"left over: {temporary[0]}")
        made = reference.tree_bytes(self.output)
        final = {name: content for name, content in made.items() if ".tmp-" not in name}
        if is_complete and (lacking := self.whole.keys() - final.keys()):
            raise FaultError(f"missing: {sorted(lacking)[0]}")
        for name, content in final.items():
            if name in self.whole:
                tally.num_files, tally.num_bytes = tally.num_files + 1, tally.num_bytes + len(content)
                if content != self.whole[name]:
                    raise FaultError(f"other bytes than an undisturbed run's: {self.output / name}")
            elif is_complete or ".parts/" not in name:  # the samplers remove their parts
                raise FaultError(f"an undisturbed run does not leave {self.output / name}")
        return bool(final.keys() - self.before.keys())


def _count_kill(run: Run, kill: Kill | None, seconds: float, tally: Tally) -> None:
    """Count a run that was killed so many seconds ago; raise FaultError unless it ended as it should."""
    expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}
    if kill is None or run.exit_status != expected[kill.number]:
        raise FaultError(f"exit status {run.exit_status}\n{run.text}")
    tally.killed[kill.number] += 1
    if kill.number == signal.SIGTERM:
        if kill.seconds is not None:  # else the time of the signal is unknown
            tally.longest_end = max(tally.longest_end, seconds)
        if tally.longest_end > SECONDS_TO_END or "stopped by SIGTERM" not in run.text:
            raise FaultError(f"it ended {seconds:.1f} s after SIGTERM\n{run.text}")


def main() -> None:
    number, seed, output, *command = sys.argv[1:]
    preloaded.import_all()
    victim = Victim.measured([tuple(command)], Path.cwd(), output, Path.cwd() / "kills.log")
    tally = victim.disturb(int(number), random.Random(int(seed)))
    print(f"{tally.num_killed} killed, {tally.num_resumed} resumed, {tally.num_rounds} ended")


if __name__ == "__main__":
    main()
