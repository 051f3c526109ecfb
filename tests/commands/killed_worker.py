"""Runs one command whole, and once more with a kill at one moment after another.

In forks of this process, which has paid for the imports. Prints one JSON list per killed sitting:
the moment, the signal that ended it, the epochs whose checkpoints it left.

    python killed_worker.py FOLDER KEY=VALUE ...
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import solo_mim.training as command
from solo_mim.commands import main
from solo_mim.data.photo_patches import photo_patches
from solo_mim.progress import EpochLines
from solo_mim.runs import checkpoints, files


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: Any, name: str, number: int, whole: bool = False) -> Callable[[], None]:
    """Has the process die before a call of a function, or, with `whole`, after it."""

    def install() -> None:
        function, calls = getattr(owner, name), [0]

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == number and not whole:
                die()
            result = function(*args, **kwargs)
            if calls[0] == number:
                die()
            return result

        setattr(owner, name, counted)

    return install


def half_a_checkpoint() -> None:
    """The process dies when half of a checkpoint's bytes are written."""
    save = checkpoints.torch.save

    def cut(checkpoint: Any, file: Any) -> None:
        save(checkpoint, file)
        file.truncate(file.tell() // 2)
        die()

    checkpoints.torch.save = cut  # type: ignore[assignment]


# `os.replace` puts in place, in this order: configuration, provenance, in a sitting that resumes
# the metrics that its checkpoint brings, then for each epoch metrics and checkpoint.
MOMENTS: dict[str, Callable[[], None]] = {
    "configuration written, not in place": at_call(files.os, "replace", 1),
    "half a checkpoint, the first": half_a_checkpoint,
    "checkpoint written, not in place": at_call(files.os, "replace", 4),
    "checkpoint in place": at_call(files.os, "replace", 4, whole=True),
    "half a checkpoint, a later one": half_a_checkpoint,
    "metrics written, not in place": at_call(files.os, "replace", 4),
    "checkpoint in place, the one before not gone": at_call(files.os, "replace", 5, whole=True),
    "second epoch of this session": at_call(EpochLines, "on_train_batch_end", 5),
    "evaluation": at_call(command, "evaluate_features", 3),
    "curves drawn, no result": at_call(files, "write_json", 2),
}


def sitting(arguments: list[str], moment: Callable[[], None], seconds: float | None = None) -> int:
    """The wait status of a fork that runs the command."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        moment()
        os._exit(main(arguments))
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    output, *settings = sys.argv[1:]

    def run_in(folder: str) -> list[str]:
        return ["pretrain", *settings, f"output_dir={output}/{folder}"]

    photo_patches()  # cached, and so shared with the forks
    started = time.perf_counter()
    assert sitting(run_in("whole"), lambda: None) == 0
    whole = time.perf_counter() - started
    for name, moment in MOMENTS.items():
        status = sitting(run_in("killed"), moment)
        left = sorted(int(p.stem[6:]) for p in Path(output).glob("killed/*/checkpoints/*.ckpt"))
        print(json.dumps([name, os.waitstatus_to_exitcode(status), left]))
    draw = random.Random(0)
    for _ in range(2):
        sitting(run_in("timed"), lambda: None, seconds=draw.uniform(0.3, 0.9) * whole)
    for folder in ("killed", "timed"):
        assert sitting(run_in(folder), lambda: None) == 0
