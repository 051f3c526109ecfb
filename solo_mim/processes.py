"""The processes of one run: none waits for one that is gone, and none is left behind."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Iterator

import torch.distributed as dist
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities import rank_zero_only

from solo_mim import stopping

_LOOK_EVERY = 0.5  # seconds
# gloo tells of a process that is gone by an error in the same second. NCCL may wait for ever.
_GRACE = 5.0

_over = threading.Event()  # nobody needs another any more


def rank() -> int:
    """Global rank of this process; rank 0 speaks for the others."""
    return getattr(rank_zero_only, "rank", 0) or 0


@contextlib.contextmanager
def together(last_words: Callable[[], None]) -> Iterator[None]:
    """Ends this process soon after another of the run is gone: one that it has started, or the one
    that has started it. Those that lightning starts in here end with this block.

    `last_words` are called before such an end, in a thread: this process may wait in the backend.
    """
    started: list[subprocess.Popen[bytes]] = []
    parent = os.getppid()
    _over.clear()
    stopping.only_note(False)  # an earlier run of a sweep may have failed

    def is_one_gone() -> bool:
        return any(process.poll() for process in started) or (rank() > 0 and os.getppid() != parent)

    def watch() -> None:
        while not _over.wait(_LOOK_EVERY):
            if is_one_gone() and not _over.wait(_GRACE):
                last_words()
                _kill(started)
                os._exit(1)

    watching = threading.Thread(target=watch, daemon=True)

    def observe(processes: list[subprocess.Popen[bytes]]) -> None:
        started.extend(processes)
        watching.start()

    # lightning's would kill this process too, by SIGKILL and without a word.
    lightnings = subprocess_script._launch_process_observer
    subprocess_script._launch_process_observer = observe  # type: ignore[assignment]
    if rank() > 0:
        watching.start()
    try:
        yield
    except BaseException:
        stopping.only_note()
        raise
    finally:
        _over.set()
        if watching.is_alive():
            watching.join()
        _kill(started)
        subprocess_script._launch_process_observer = lightnings


def parted(paths: list[str]) -> list[str]:
    """Paths that any process has, each once, in the first process, which goes on alone: from here
    on each may leave when it likes, and the process group, of which each is a member to the last,
    is closed.

    Raises:
        SystemExit: in all processes but the first; the rest is its, and nobody waits for it.
    """
    found, several = [paths], dist.is_available() and dist.is_initialized()
    if several:
        found = [[]] * dist.get_world_size()
        dist.all_gather_object(found, paths)
    _over.set()
    if several:
        dist.destroy_process_group()
    if rank() > 0:
        raise SystemExit(0)
    return list(dict.fromkeys(itertools.chain(*found)))


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
