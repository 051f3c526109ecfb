"""Runs one command in three processes, stopped at one moment after another, and at last to its end.

In forks of this process, which has paid for the imports; they are told apart as by torchrun. Prints
one JSON object per session: the moment, how long the processes lived after it, their exit codes,
what they wrote to stderr, the epochs whose checkpoints they left, and whose features of what were
extracted.

    python stopped_worker.py FOLDER KEY=VALUE ...
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

import solo_mim.training as command
from solo_mim.commands import main
from solo_mim.data.photo_patches import photo_patches
from solo_mim.progress import EpochLines
from solo_mim.protocols import figures
from solo_mim.runs import checkpoints

PROCESSES = 3
EVERYBODY = -1


def strike(folder: Path, rank: int, numbers: tuple[int, ...]) -> None:
    """Sends signals to the process that is in it, or to all of them."""
    (folder / "struck").write_text(str(time.time()))
    for number in numbers:
        if rank == EVERYBODY:
            os.killpg(os.getpgrp(), number)
        else:
            os.kill(os.getpid(), number)


def at(where: str, call: int, target: int, *numbers: int) -> Callable[[Path, int], None]:
    """Has signals sent amid one call of a function: to its process, or by the first to all."""
    owner, name = {
        "batch": (EpochLines, "on_train_batch_end"),
        "save": (checkpoints.torch, "save"),
        "evaluation": (command, "evaluate_features"),
    }[where]

    def install(folder: Path, rank: int) -> None:
        if rank != max(target, 0):
            return
        function: Any = getattr(owner, name)
        calls = [0]

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == call:
                strike(folder, target, numbers)
            return function(*args, **kwargs)

        setattr(owner, name, counted)

    return install


def note_extractions(folder: Path, rank: int) -> None:
    extract = figures.extract_features

    def noted(*args: Any, **kwargs: Any) -> Any:
        with (folder / "extracted").open("a") as file:
            file.write(f"{rank} {kwargs['description']}\n")
        return extract(*args, **kwargs)

    figures.extract_features = noted


def full_disk(folder: Path, rank: int) -> None:
    """Files end at 20 kB from the first process's first checkpoint on: half of that."""
    import resource

    save = checkpoints.torch.save

    def cut_short(checkpoint: Any, file: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        save(checkpoint, file)

    if rank == 0:
        checkpoints.torch.save = cut_short  # type: ignore[assignment]


TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
# An epoch has two batches.
MOMENTS: dict[str, Callable[[Path, int], None]] = {
    "full disk": full_disk,
    "SIGTERM to the first in a save": at("save", 1, 0, TERM),
    "SIGTERM to all in a save": at("save", 1, EVERYBODY, TERM),
    "SIGTERM to the first in a batch": at("batch", 3, 0, TERM),
    "several to all in a batch": at("batch", 3, EVERYBODY, TERM, TERM, INT, TERM),
    "SIGKILL to the last in a batch": at("batch", 3, 2, KILL),
    "SIGKILL to the first in a batch": at("batch", 3, 0, KILL),
    "SIGKILL to the first in the evaluation": at("evaluation", 3, 0, KILL),
    "none": lambda folder, rank: None,
}


def session(arguments: list[str], folder: Path, moment: Callable[[Path, int], None]) -> Any:
    """Exit codes, by rank, of forks that run the command, and seconds since the moment, or since
    the start where there is none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "struck").write_text(str(time.time()))
    children: list[int] = []
    for rank in range(PROCESSES):
        child = os.fork()
        if child == 0:
            os.setpgid(0, children[0] if children else 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
            os.environ |= {"MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
            rank_zero_only.rank = rank
            note_extractions(folder, rank)
            moment(folder, rank)
            try:
                code = main(arguments)
            except SystemExit as left:
                code = int(left.code or 0)
            os._exit(code)
        os.setpgid(child, (children or [child])[0])
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return codes, time.time() - float((folder / "struck").read_text())


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings = [*sys.argv[2:], f"devices={PROCESSES}", "strategy=ddp", "accelerator=cpu"]
    photo_patches()  # cached, and so shared with the forks
    for name, moment in MOMENTS.items():
        for noted in ("stderr", "extracted"):
            (folder / noted).write_text("")
        codes, seconds = session(
            ["pretrain", *settings, f"output_dir={folder}/runs"], folder, moment
        )
        (run,) = folder.glob("runs/*")
        print(
            json.dumps(
                {
                    "moment": name,
                    "codes": codes,
                    "seconds": seconds,
                    "stderr": (folder / "stderr").read_text().splitlines(),
                    "epochs": sorted(int(p.stem[6:]) for p in run.glob("checkpoints/*.ckpt")),
                    "partial": [str(path) for path in run.rglob("*.partial")],
                    "failure": (run / "failure.txt").exists(),
                    "extracted": (folder / "extracted").read_text().splitlines(),
                }
            ),
            flush=True,
        )
