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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import page
from campaign import Campaign, Job, NotReady, State

from solo_mim import stopping

# Under these lightning would count tasks of SLURM; a job has one, which starts the others itself.
_NOT_FOR_LIGHTNING = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NPROCS")
_LOOK_EVERY = 0.2  # seconds
_LIVE_EVERY = 2.0  # between looks at runs that another process is at work on
_REFUSED = 2  # the exit code of a command that did nothing
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
    """A command in a process group of its own, its output at the end of a log.

    Raises:
        OSError: the log cannot be written, or there is no such command.
    """

    def __init__(self, command: list[str], log: Path, devices: Sequence[str] = ()) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("a") as file:
            print(f"\n$ {shlex.join(command)}", file=file, flush=True)
            self._from = file.tell()
            self.process = subprocess.Popen(
                command,
                env=environment(devices),
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
        with contextlib.suppress(OSError), self.log.open(errors="replace") as file:
            file.seek(self._from)
            lines = [line.strip() for line in file if line.strip()]
            own = [line for line in lines if line.startswith("solo-mim: ")]
            return (own or lines or [""])[-1].removeprefix("solo-mim: ")[:500]
        return ""

    def ask(self) -> None:
        """SIGTERM to the first process, which ends the others in an orderly way: to a whole group
        it would kill the loaders of images amid the saving of an epoch."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def wait(self, until: float = float("inf")) -> int:
        """Waits for the end; from a time of time.monotonic on the whole group is killed."""
        while (code := self.ended()) is None and time.monotonic() < until:
            time.sleep(0.05)
        self._kill()
        return self.process.wait() if code is None else code

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def started(campaign: Campaign, job: Job, logs: str, devices: Sequence[str] = ()) -> Child:
    """Starts a job, its log in a folder of the output.

    Raises:
        NotReady: what it needs is not there.
        OSError: the log cannot be written, or there is no such command.
    """
    if job.stage == "report":
        page.write(campaign)
    words = campaign.words(job)
    campaign.write_note(job)
    log = campaign.output / logs / f"{job.name}.log"
    return Child([*campaign.command, *words], log, devices)


def outcome(campaign: Campaign, job: Job, code: int, child: Child) -> State:
    """How a job has ended; what went wrong is noted."""
    if code == 0:
        return State("finished")
    said = child.said() or f"ended with {code}"
    with contextlib.suppress(OSError):  # a full disk
        campaign.write_note(job, said=said)
    return State("failed", said)


@dataclass
class Local:
    """Jobs at work here.

    Attributes:
        free: GPUs by the names that CUDA_VISIBLE_DEVICES takes.
        at_once: jobs side by side, at the most.
        grace: seconds that jobs have for their end before they are killed.
        states: of the jobs that need no further look.
    """

    campaign: Campaign
    free: list[str]
    at_once: int
    grace: float
    states: dict[Job, State] = field(default_factory=dict)
    at_work: dict[Job, tuple[Child, list[str]]] = field(default_factory=dict)
    _next_look: dict[Job, float] = field(default_factory=dict)  # at another process's work

    def run(self) -> bool:
        """Every job once, as soon as it can be; whether all of them are done.

        Raises:
            KeyboardInterrupt: a signal came; every job has ended.
        """
        stopping.only_note()
        jobs = self.campaign.jobs()
        try:
            while len(self.states) < len(jobs):
                for job in jobs:
                    if stopping.asked():
                        raise KeyboardInterrupt
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
        wanted = self.campaign.gpus_of(job)
        if len(self.at_work) >= self.at_once or wanted > len(self.free):
            return
        if time.monotonic() < self._next_look.get(job, 0):
            return
        bad = [other for other in before if self.states[other].word != "finished"]
        state = self.campaign.state(job)
        if state.word == "running":
            self._wait(job, f"another process is at work on this run, in {state.folder}")
        elif state.word == "finished":
            self._end(job, State("finished", "before"))
        elif bad and job.stage != "report":
            self._end(job, State("left out", f"{bad[0].name} has not finished"))
        elif job.stage == "pretrain" and job.method in self.campaign.refused:
            self._end(job, state)
        else:
            self._start(job, [self.free.pop(0) for _ in range(wanted)])

    def _wait(self, job: Job, why: str) -> None:
        if job not in self._next_look:
            say(f"{job.name}: {why}; waiting for it")
        self._next_look[job] = time.monotonic() + _LIVE_EVERY

    def _start(self, job: Job, devices: list[str]) -> None:
        try:
            child = started(self.campaign, job, "logs", devices)
        except (NotReady, OSError) as error:
            self.free += devices
            self._end(job, State("failed", str(error)))
        else:
            self.at_work[job] = child, devices
            on = f" on GPU {', '.join(devices)}" if devices else ""
            say(f"{job.name}: started{on}, see {child.log}")

    def _look(self) -> None:
        for job, (child, devices) in list(self.at_work.items()):
            code = child.ended()
            if code is None:
                continue
            del self.at_work[job]
            self.free = sorted([*self.free, *devices])
            said = child.said() if code == _REFUSED else ""
            if said.startswith("another process "):  # which was a little earlier
                self._wait(job, said.partition(";")[0])
            else:
                self._end(job, outcome(self.campaign, job, code, child))
                self._write_page()

    def _end(self, job: Job, state: State) -> None:
        self.states[job] = state
        word = state.word.upper() if state.word == "failed" else state.word
        say(f"{job.name}: {State(word, state.said)}")

    def _write_page(self) -> None:
        with contextlib.suppress(OSError):  # a full disk
            page.write(self.campaign)

    def _stop(self) -> None:
        """Asks every job to end, waits for it, and says what is kept."""
        for child, _ in self.at_work.values():
            child.ask()
        until = time.monotonic() + self.grace
        for job, (child, _) in self.at_work.items():
            code = child.wait(until)
            killed = f"killed after {self.grace:g} seconds; " if code == -signal.SIGKILL else ""
            say(f"{job.name}: {killed}{child.said()}")


def say(line: str) -> None:
    """A line with the time, at once; nobody may be there to read it."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%d %b %H:%M:%S')}  {line}", flush=True)
