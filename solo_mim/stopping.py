"""What asks a command to end: Ctrl-C, SIGTERM and SIGUSR1, each as KeyboardInterrupt."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

# Windows has no SIGUSR1.
_STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class _Signals:
    """Signal handler: records signals, and interrupts unless that is deferred."""

    def __init__(self) -> None:
        self.noted: list[int] = []
        self.only_noted = False

    def __call__(self, signum: int, _frame: Any) -> None:
        self.noted.append(signum)
        if not self.only_noted:
            raise KeyboardInterrupt


_signals = _Signals()


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """The signals raise KeyboardInterrupt in here, and are noted in what this gives.

    One that is ignored, as Ctrl-C is in a shell's background job, stays so.
    """
    _signals.noted, _signals.only_noted = [], False
    before = {number: signal.getsignal(number) for number in _STOPPING}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _signals)
    try:
        yield _signals.noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """A signal in here raises KeyboardInterrupt at its end."""
    before = len(_signals.noted)
    _signals.only_noted = True
    try:
        yield
    finally:
        _signals.only_noted = False
        if len(_signals.noted) > before:
            raise KeyboardInterrupt


def only_note(only: bool = True) -> None:
    """From here on signals change nothing, for a run is about to end; or, with False, they do."""
    _signals.only_noted = only


def asked() -> bool:
    """Whether a signal came."""
    return bool(_signals.noted)
