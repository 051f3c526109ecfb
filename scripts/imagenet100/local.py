"""The jobs of a campaign on this machine: side by side on its GPUs, and stopped together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import page
from campaign import Campaign, Job, NotReady, State

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# Under these lightning would count tasks of SLURM; a job has one, which starts the others itself.
_NOT_FOR_LIGHTNING = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NPROCS")
_LOOK_EVERY = 0.2  # seconds
_PAGE_EVERY = 60.0
_LIVE_EVERY = 2.0  # between looks at runs that another process is at work on


class Stopped(KeyboardInterrupt):
    """A signal has asked for an end."""


class Signals:
    """The signals that ask for an end: noted in here, or raised as `Stopped` where that is safe."""

    def __init__(self) -> None:
        self.number = 0
        self.raises = True

    def __call__(self, number: int, _frame: Any) -> None:
        self.number = self.number or number
        if self.raises:
            self.raises = False  # once: what is at work then is ended in peace
            raise Stopped

    @contextlib.contextmanager
    def handled(self) -> Iterator[Signals]:
        """One that is ignored, as SIGHUP is under nohup, stays so."""
        before = {number: signal.getsignal(number) for number in STOPPING}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, self)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _dies_with_its_parent() -> None:
    """SIGTERM to this process where the one that started it is gone, by SIGKILL for instance."""
    if _libc:
        _libc.prctl(1, signal.SIGTERM)


def environment(devices: Sequence[str] = ()) -> dict[str, str]:
    """Of a job, which sees these GPUs; without any, those that are seen here."""
    found = {key: value for key, value in os.environ.items() if key not in _NOT_FOR_LIGHTNING}
    return {**found, "CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else found


class Child:
    """A command in a process group of its own, its output at the end of a log."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("a") as file:
            print(f"\n$ {shlex.join(command)}", file=file, flush=True)
            self._from = file.tell()
            self.process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_dies_with_its_parent,
            )

    def ended(self) -> int | None:
        """The exit code; None of one that is at work. What it has left of its group is killed."""
        code = self.process.poll()
        if code is not None:
            self._kill()
        return code

    def said(self) -> str:
        """The last line of solo-mim's own, else the last of all; without its name."""
        try:
            with self.log.open(errors="replace") as file:
                file.seek(self._from)
                lines = [line.strip() for line in file if line.strip()]
        except OSError:
            return ""
        own = [line for line in lines if line.startswith("solo-mim: ")]
        return (own or lines or [""])[-1].removeprefix("solo-mim: ")[:500]

    def ask(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal to the first process, which ends the others in an orderly way: to a whole
        group it would kill the loaders of images amid the saving of an epoch."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait(self, until: float) -> int:
        """Waits for the end; from a time of time.monotonic on the whole group is killed."""
        while self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        self._kill()
        return self.process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def started(campaign: Campaign, job: Job, logs: Path, devices: Sequence[str] = ()) -> Child | None:
    """Starts a job; None where nothing is left to do, as of a report where there are no runs.

    Raises:
        NotReady: what it needs is not there.
        OSError: the log cannot be written, or there is no such command.
    """
    if job.stage == "report":
        page.write(campaign)
        if not page.any_run(campaign):
            return None
    words = campaign.words(job)
    campaign.write_note(job)
    return Child([*campaign.command, *words], logs / f"{job.name}.log", environment(devices))


def outcome(campaign: Campaign, job: Job, code: int, child: Child) -> State:
    """How a job has ended; what went wrong is noted."""
    if code == 0:
        return State("finished")
    said = child.said() or f"ended with {code}"
    with contextlib.suppress(OSError):  # a full disk
        campaign.write_note(job, code=code, said=said, log=str(child.log))
    return State("failed", said)


@dataclass
class _AtWork:
    child: Child
    devices: list[str]


class Local:
    """Jobs at work here.

    Args:
        devices: GPUs by the names that CUDA_VISIBLE_DEVICES takes.
        at_once: jobs side by side, at the most.
        grace: seconds that a child has for its end before it is killed.
    """

    def __init__(
        self, campaign: Campaign, devices: list[str], at_once: int, grace: float, signals: Signals
    ) -> None:
        self.campaign, self.at_once, self.grace, self.signals = campaign, at_once, grace, signals
        self.free = list(devices)
        self.states: dict[Job, State] = {}
        self.at_work: dict[Job, _AtWork] = {}
        self._written = time.monotonic()  # of the page
        self._alive: dict[Job, float] = {}  # those that another process is at work on -> next look

    def run(self) -> bool:
        """Every job once, as soon as it can be; whether all of them are done.

        Raises:
            Stopped: a signal came; every child has ended.
        """
        self.signals.raises = False
        jobs = self.campaign.jobs()
        try:
            while any(job not in self.states for job in jobs):
                if self.signals.number:
                    raise Stopped
                for job in jobs:
                    if job not in self.states and job not in self.at_work:
                        self._begin(job)
                time.sleep(_LOOK_EVERY)
                self._look()
        finally:
            self._stop()
            self._write_page()
        return all(state.word == "finished" for state in self.states.values())

    def _begin(self, job: Job) -> None:
        """Starts a job, or finds that it needs no start, if what it waits for has ended."""
        before = self.campaign.before(job)
        if any(other not in self.states for other in before):
            return
        bad = [other for other in before if self.states[other].word != "finished"]
        if bad and job.stage != "report":
            self._end(job, State("left out", f"{bad[0].name} has not finished"))
            return
        if job.stage == "pretrain" and job.method in self.campaign.refused:
            self._end(job, self.campaign.state(job))
            return
        wanted = self.campaign.gpus_of(job)
        if len(self.at_work) >= self.at_once or wanted > len(self.free):
            return
        if time.monotonic() < self._alive.get(job, 0):
            return
        state = self.campaign.state(job)
        if state.word == "running":
            if job not in self._alive:
                say(f"{job.name}: another process is at work in {state.folder}; waiting for it")
            self._alive[job] = time.monotonic() + _LIVE_EVERY
        elif state.word == "finished":
            self._end(job, State("finished", "before"))
        else:
            self._start(job, [self.free.pop(0) for _ in range(wanted)])

    def _start(self, job: Job, devices: list[str]) -> None:
        on = f" on GPU {', '.join(devices)}" if devices else ""
        try:
            child = started(self.campaign, job, self.campaign.output / "logs", devices)
        except (NotReady, OSError) as error:
            self.free += devices
            self._end(job, State("failed", str(error)))
            return
        if child is None:
            self._end(job, State("failed", "there is no run to report on"))
            return
        self.at_work[job] = _AtWork(child, devices)
        say(f"{job.name}: started{on}, see {child.log}")

    def _look(self) -> None:
        for job, work in list(self.at_work.items()):
            code = work.child.ended()
            if code is not None:
                del self.at_work[job]
                self.free = sorted([*self.free, *work.devices])
                self._end(job, outcome(self.campaign, job, code, work.child))

    def _end(self, job: Job, state: State) -> None:
        self.states[job] = state
        word = state.word.upper() if state.word == "failed" else state.word
        say(f"{job.name}: {State(word, state.said)}")
        if time.monotonic() > self._written + _PAGE_EVERY:
            self._write_page()

    def _write_page(self) -> None:
        self._written = time.monotonic()
        with contextlib.suppress(OSError):  # a full disk
            page.write(self.campaign)

    def _stop(self) -> None:
        """Asks every child to end, waits for it, and says what is kept."""
        for work in self.at_work.values():
            work.child.ask()
        until = time.monotonic() + self.grace
        for job, work in self.at_work.items():
            code = work.child.wait(until)
            killed = f"killed after {self.grace:g} seconds; " if code == -signal.SIGKILL else ""
            say(f"{job.name}: {killed}{work.child.said()}")
        self.at_work.clear()


def say(line: str) -> None:
    """A line with the time, at once; nobody may be there to read it."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%d %b %H:%M:%S')}  {line}", flush=True)
