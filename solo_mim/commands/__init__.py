"""The command line: `solo-mim COMMAND ...`."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import traceback

from solo_mim.errors import (
    ConfigError,
    MissingHostError,
    RunError,
    is_out_of_memory,
    nearest,
    out_of_memory,
)
from solo_mim.stopping import interruptible

COMMANDS = {
    "pretrain": "train any method on any data set; resumes or skips a run that is already there",
    "prepare": "ImageNet-100 out of ImageNet's archives or folders, and its verification",
    "check": "what is wrong with a data set: unreadable images, classes, duplicates, sizes",
    "linear": "linear classifier, or logistic regression, on a trained backbone",
    "knn": "weighted nearest neighbours by the features of a trained backbone",
    "transfer": "linear classifier and neighbours on several data sets, few and all labels",
    "embed": "features of a split, with pictures of them, spectrum and information",
    "export": "weights of a backbone for torchvision, timm or the Hugging Face Hub",
    "plan": "what a run would take: memory, bytes sent, hours on a GPU of your choice",
    "runs": "list runs: state, epochs done, accuracy, space on disk",
    "report": "rank finished runs: tables, significance, pictures, one HTML page",
    "methods": "list methods and backbones, and which of them have a recipe",
    "bench": "measure time and memory of the losses beside those of the baselines",
    "doctor": "tell what is installed: host, versions, devices, optional parts",
}

_LISTED = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
USAGE = f"""solo-mim: explicit mutual information maximisation beside the solo-learn baselines

usage: solo-mim COMMAND [--help] ...

{_LISTED}

example: solo-mim pretrain method=vicreg data=photo_patches max_epochs=5"""

# With it an error shows its whole traceback.
DEBUG = "SOLO_MIM_DEBUG"


def _requeued() -> str:
    """Puts the SLURM job that this runs in back into the queue, and says so; "" outside of one."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return ""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"; job {job} could not be requeued: {error}"
    return f"; job {job} is requeued"


def _interrupted(error: BaseException, number: int) -> int:
    """Says what stands where a signal has ended a command; its exit code."""
    standing = (isinstance(error, KeyboardInterrupt) and str(error)) or "nothing was begun"
    requeued = "" if number in (signal.SIGINT, signal.SIGTERM) else _requeued()
    print(f"\nsolo-mim: interrupted; {standing}{requeued}", file=sys.stderr)
    return 128 + number


def _nobody_reads() -> bool:
    """Whether stdout is a pipe without a reader, as in `solo-mim report runs | head`; then what is
    left to print goes nowhere."""
    try:
        print(flush=True)  # an empty buffer alone would tell nothing
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    User errors are one line on stderr and exit code 2; so are runs that cannot go on, with exit
    code 1, Ctrl-C, with 130, SIGTERM, with 143, and SIGUSR1, which also requeues a SLURM job.
    `SOLO_MIM_DEBUG=1` or `HYDRA_FULL_ERROR=1` in the environment puts the traceback before the
    line.
    """
    # Once and for all processes of the run: `run_by_hydra` sets Hydra's variable for itself.
    os.environ.setdefault(DEBUG, os.environ.get("HYDRA_FULL_ERROR", "0"))
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    command, *rest = arguments
    with interruptible() as signals:
        try:
            if command not in COMMANDS:
                raise ConfigError(f"unknown command '{command}'{nearest(command, COMMANDS)}")
            # Imported here: torch and lightning take seconds that `--help` should not.
            code: int | None = importlib.import_module(f"solo_mim.commands.{command}").run(rest)
            sys.stdout.flush()
            return code or 0
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                return 141  # as a shell has it of SIGPIPE
            refused = isinstance(error, (ConfigError, MissingHostError, RunError))
            # A library that is interrupted amid its import may make another error of it.
            if isinstance(error, KeyboardInterrupt) or (signals and not refused):
                return _interrupted(error, signals[0] if signals else signal.SIGINT)
            if not refused and not is_out_of_memory(error):
                raise
            if os.environ[DEBUG] not in ("", "0"):
                traceback.print_exc()
            said = error if refused else out_of_memory(error)
            print(f"solo-mim: {said}", file=sys.stderr)
            return 1 if isinstance(error, RunError) else 2
