"""Kill scripts at random moments of their work, again and again, each time going on from where the last one was killed.

    python tests/kills.py NUMBER SEED OUTPUT SCRIPT ARGUMENT…

Every run is a fork of this process, which has imported all that the scripts do: so the kills fall into the work, not
into start-up. A moment is a time, or one of the changes that the run makes to the file system, just before it is made:
that is where a kill could leave something half done. SIGKILL or SIGTERM goes to the run, or to its workers as well.
benchmarks/faults.py does this with all steps; from the command line it is one.
"""

from __future__ import annotations

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
SECONDS_TO_END = 10
_CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}

Command = tuple[str, ...]  # a script of the project or a module such as retrieval.search, and its arguments


class FaultError(Exception):
    """Something is not as it should be after a kill."""


@dataclass(frozen=True)
class Pace:
    """How an undisturbed run of a command went: seconds from where it catches signals to its first output and to its
    end, and how many changes to the file system its own process made."""

    seconds_to_output: float
    seconds: float
    num_changes: int


@dataclass(frozen=True)
class Kill:
    """A signal on its way to a run: after some seconds, or else just before a change to the file system."""

    number: signal.Signals
    to_workers: bool
    seconds: float | None
    change: int

    @classmethod
    def draw(cls, draw: random.Random, pace: Pace) -> Kill:
        """Half of them by time, of which most come when there is output; half by changes. Early moments are likelier:
        they leave work in which the next run is killed."""
        first = 0.0 if draw.random() < 0.2 else pace.seconds_to_output
        share = min(draw.random(), draw.random())
        seconds = first + share * (pace.seconds - first) if draw.random() < 0.5 else None
        change = max(1, round(share * pace.num_changes))
        return cls(draw.choice(SIGNALS), draw.random() < 0.5, seconds, change)


@dataclass
class Tally:
    """What happened to a step."""

    killed: Counter[signal.Signals] = field(default_factory=Counter)
    num_resumed: int = 0  # runs that began where a killed one had published something
    num_rounds: int = 0  # times that the step came to its end
    num_files: int = 0  # that were compared, after every kill and every round
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
        """What the run has said on stderr so far."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    @property
    def num_changes(self) -> int:
        """Changes to the file system that a run which has come to its end has made."""
        return int(_changes_path(self._log).read_text())

    def has_ended(self) -> bool:
        """Whether it has, with `exit_status` then."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    @property
    def exit_status(self) -> int:
        assert self._status is not None
        return os.waitstatus_to_exitcode(self._status)

    def watch(self, seconds: float = 600.0) -> float:
        """Wait for its end, and kill it on the way if that is to be done by time. Returns when the signal was sent, or
        when the wait began."""
        sent = self.start
        to_send = self._kill.seconds if self._kill else None
        while not self.has_ended():
            if self._kill and to_send is not None and time.monotonic() - self.start >= to_send:
                sent, to_send = time.monotonic(), None
                (os.killpg if self._kill.to_workers else os.kill)(self.pid, self._kill.number)
            if time.monotonic() - sent > seconds:
                os.killpg(self.pid, signal.SIGKILL)
                raise FaultError(f"it did not end in {seconds:.0f} s\n{self.text}")
            time.sleep(0.001)
        return sent

    def check_no_process_is_left(self) -> None:
        """Raise FaultError unless its workers end, too."""
        deadline = time.monotonic() + SECONDS_TO_END
        while left := _alive_in_group(self.pid):
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise FaultError(f"processes {left} outlive the run that started them")
            time.sleep(0.005)


def _become(command: Command, folder: Path, log: Path, kill: Kill | None) -> None:
    """Be the script, never to come back: what this process would do on its way out is not the fork's to do."""
    try:
        os.setpgid(0, 0)
        script, *arguments = command
        where = script if script.startswith("retrieval.") else str(preloaded.PROJECT / script)
        environment = {**os.environ, "PYTHONPATH": str(preloaded.PROJECT)}
        request = {"script": where, "arguments": arguments, "cwd": str(folder), "environment": environment}
        changes = _count_changes(kill)
        status = preloaded.become({**request, "stdout": os.devnull, "stderr": str(log)})
        _changes_path(log).write_text(str(changes()))
        os._exit(status)
    finally:
        os._exit(1)


def _changes_path(log: Path) -> Path:
    return log.with_suffix(".changes")


def _count_changes(kill: Kill | None) -> Callable[[], int]:
    """Count the changes that this process makes to the file system from where it catches signals on, and send the
    signal before one of them if it is to be sent then. Returns what gives their number."""
    count = 0
    writing = os.O_WRONLY | os.O_RDWR

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        is_open = event == "open" and isinstance(arguments[2], int) and arguments[2] & writing
        if (is_open or event in _CHANGES) and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            count += 1
            if kill and kill.seconds is None and count == kill.change:
                (os.killpg if kill.to_workers else os.kill)(os.getpid(), kill.number)

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
    """The processes of a group that run; the dead ones wait for whoever adopted them."""
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
    """Run a command to its end.

    Raises:
        FaultError: if its exit status is not 0.
    """
    before = _names_in(output)
    run = Run(command, folder, log)
    seconds_to_output = None
    while not run.has_ended():
        if seconds_to_output is None and _names_in(output) != before:
            seconds_to_output = time.monotonic() - run.start
        time.sleep(0.01)
    seconds = time.monotonic() - run.start
    if run.exit_status:
        raise FaultError(f"exit status {run.exit_status}\n{run.text}")
    return Pace(seconds if seconds_to_output is None else seconds_to_output, seconds, run.num_changes)


def _names_in(output: Path) -> int:
    return sum(1 for _ in output.rglob("*"))


@dataclass
class Victim:
    """Commands that make `output` together, one after the other, in `folder`.

    `whole` is what an undisturbed run makes there, by path; `before` is what of it is there before the first command.
    """

    commands: Sequence[Command]
    paces: Sequence[Pace]
    folder: Path
    output: Path
    whole: dict[str, bytes]
    before: dict[str, bytes]
    log: Path

    def disturb(self, number: int, draw: random.Random) -> Tally:
        """Kill the commands `number` times; whenever they have all come to their end, begin anew.

        Raises:
            FaultError: if something has a final name that is not what an undisturbed run makes, or after the last rerun
                is missing or left over; or a run does not end as it should.
        """
        tally = Tally()
        while tally.num_killed < number or not tally.num_rounds:
            self._reset()
            for command, pace in zip(self.commands, self.paces, strict=True):
                while not self._run(command, pace if tally.num_killed < number else None, draw, tally):
                    pass
            self._compare(tally, is_complete=True)
            tally.num_rounds += 1
        return tally

    def _reset(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        for name, content in self.before.items():
            path = self.output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def _run(self, command: Command, pace: Pace | None, draw: random.Random, tally: Tally) -> bool:
        """Whether a run came to its end; with a pace, it is to be killed on its way."""
        kill = Kill.draw(draw, pace) if pace else None
        run = Run(command, self.folder, self.log, kill)
        try:
            sent = run.watch()
            run.check_no_process_is_left()
            was_killed = run.exit_status != 0
            if was_killed:
                self._note_kill(run, kill, time.monotonic() - sent, tally)
            if "Traceback" in run.text and run.exit_status != -signal.SIGKILL:  # whose workers may be half started
                raise FaultError(run.text)
            if was_killed and self._compare(tally, is_complete=False):
                tally.num_resumed += 1
        except FaultError as error:
            raise FaultError(f"{' '.join(command)}\n{kill}\n{error}") from None
        return not was_killed

    @staticmethod
    def _note_kill(run: Run, kill: Kill | None, seconds: float, tally: Tally) -> None:
        expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM}
        if kill is None or run.exit_status != expected[kill.number]:
            raise FaultError(f"exit status {run.exit_status}\n{run.text}")
        tally.killed[kill.number] += 1
        if kill.number == signal.SIGTERM:
            if kill.seconds is not None:  # else nobody knows when it was sent
                tally.longest_end = max(tally.longest_end, seconds)
            if tally.longest_end > SECONDS_TO_END or "stopped by SIGTERM" not in run.text:
                raise FaultError(f"it ended {seconds:.1f} s after SIGTERM\n{run.text}")

    def _compare(self, tally: Tally, is_complete: bool) -> bool:
        """Compare what has final names with what an undisturbed run makes. Returns whether anything was published."""
        made = reference.tree_bytes(self.output) if self.output.exists() else {}
        temporary = [path for path in self.output.rglob(".tmp-*")]
        if is_complete and temporary:
            raise FaultError(f"left over: {temporary[0]}")
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


def main() -> None:
    number, seed, output, *command = sys.argv[1:]
    preloaded.import_all()
    folder, log = Path(output), Path.cwd() / "kills.log"
    before = reference.tree_bytes(folder)
    pace = measure(tuple(command), Path.cwd(), folder, log)
    victim = Victim([tuple(command)], [pace], Path.cwd(), folder, reference.tree_bytes(folder), before, log)
    tally = victim.disturb(int(number), random.Random(int(seed)))
    print(f"{tally.num_killed} killed, {tally.num_resumed} resumed, {tally.num_rounds} ended")


if __name__ == "__main__":
    main()
