"""Calls of the driver, as forks of a process that has paid for the imports."""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import local
import preflight
import pytest
import reproduce
from campaign import Campaign

# What the driver imports when it is under way.
import solo_mim.evaluation.gpus
import solo_mim.runs.collect
import solo_mim.trained  # noqa: F401

STANDIN = Path(__file__).with_name("standin.py")


def without_costs(patch: pytest.MonkeyPatch) -> None:
    """Nothing is counted of a method, and what is waited for is looked at often."""
    patch.setattr(local, "_LOOK_EVERY", 0.02)
    patch.setattr(local, "_LIVE_EVERY", 0.05)
    plan = SimpleNamespace(hours=24.0, disk=100_000_000, memory=5.0, images_per_second=1e3)
    patch.setattr(preflight, "planned", lambda *_: plan)


def asked_for(*arguments: str) -> tuple[Campaign, argparse.Namespace]:
    """What the driver makes of its arguments."""
    options = reproduce.parser()
    given = options.parse_args(arguments)
    return reproduce.campaign_of(given, options), given


def wait_until(true: Callable[[], object]) -> None:
    """Until something is true."""
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@dataclass
class Driver:
    """Calls of the driver on one output."""

    folder: Path
    imagenet: Path
    first: tuple[int, str] = (0, "")  # of a call that a fixture has made

    @property
    def output(self) -> Path:
        return self.folder / "runs"

    def arguments(self, *more: str) -> list[str]:
        command = f"{sys.executable} -S {STANDIN} {self.folder}"
        given = ["--imagenet", str(self.imagenet), "--data", str(self.folder / "data")]
        given += ["--output", str(self.output), "--command", command]
        given += ["--gpus", "0", "--format", "pillow", "--any-images", "--no-trial"]
        return [*given, *more]

    def campaign(self, *more: str) -> Campaign:
        """Of the arguments; the stand-in is told what its methods' configurations are."""
        campaign, _ = asked_for(*self.arguments(*more))
        for method in campaign.methods:
            plain = json.dumps(campaign.recipe(method).plain)
            (self.folder / f"{method}.json").write_text(plain)
        return campaign

    def begin(self, *more: str) -> "Call":
        """Starts a call."""
        self.campaign(*more)
        return self.forked(lambda: reproduce.main(self.arguments(*more)))

    def forked(self, work: Callable[[], int]) -> "Call":
        """Does something in a fork of this process, which has paid for the imports."""
        log = self.folder / f"said-{time.monotonic_ns()}"
        pid = os.fork()
        if pid == 0:
            code = 99
            with contextlib.suppress(BaseException):
                out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(out, 1)
                os.dup2(out, 2)
                sys.stdout = os.fdopen(1, "w", closefd=False)
                sys.stderr = os.fdopen(2, "w", closefd=False)
                os.setpgrp()
                # Shells have what they start in the background ignore it.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                try:
                    code = work()
                except SystemExit as error:
                    code = error.code
                except BaseException:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
        return Call(pid, log)

    def run(self, *more: str) -> tuple[int, str]:
        """The exit code of a call, and what it said."""
        call = self.begin(*more)
        return call.code(), call.said()

    def journal(self) -> list[list[str]]:
        path = self.folder / "journal"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def epochs(self) -> list[str]:
        """Each that was trained: `vicreg-seed5 0`."""
        return [" ".join(line[3:]) for line in self.journal() if line[2] == "epoch"]

    def wait_for(self, *words: str) -> None:
        """Until the journal has a line with these words in it."""
        wait_until(lambda: any(set(words) <= set(line) for line in self.journal()))


@dataclass
class Call:
    pid: int
    log: Path

    def code(self) -> int:
        """Of its end, which is waited for; of a signal that killed it its negative."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""
