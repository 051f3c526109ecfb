"""ImageNet-100 by solo-learn's protocol: seven methods, one command that goes on where it stopped.

    python scripts/imagenet100/reproduce.py --imagenet ILSVRC2012 [--gpus 2] [--dry-run]
    python scripts/imagenet100/reproduce.py --imagenet ILSVRC2012 --slurm --partition gpu

Stages, in order: `prepare` the 100 classes out of ImageNet; `pretrain` every method and seed
(ResNet-18, 400 epochs, 256 images a step, DALI, 16-mixed); `linear` (100 epochs on frozen features,
rates as published); `knn`; `report`. Before anything is written everything is looked at that can
be wrong, and one step of each method is taken. Then each job is one `solo-mim` command, with a log:
OUTPUT/logs, or OUTPUT/slurm. Finished work is skipped and broken work resumed; a method that fails
stops no other. OUTPUT/report/campaign.md has the state of every method and seed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cluster
import page
import preflight
from campaign import FORMATS, METHODS, SOLO_MIM, STAGES, Campaign, NotReady
from local import Local, say

from solo_mim import stopping

CODES = """exit codes:
  0      all that was asked for is done (with --slurm: is submitted; with --dry-run: can be done)
  1      a job has failed, or was left out for one that has; campaign.md names it
  2      something is wrong with the arguments, the machine, the images or a method, or another
         call is at work in OUTPUT: nothing was begun
  128+n  signal n came (130 Ctrl-C, 143 SIGTERM): every job was stopped, and what it has kept is
         said; the same command goes on"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--stages", nargs="+", choices=STAGES, help="all; prepare where --imagenet is given")
    add("--imagenet", type=Path, help="its folders or archives, to prepare from")
    add("--data", type=Path, default=Path("datasets/imagenet-100"))
    add("--output", type=Path, default=Path("runs/imagenet100"))
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--seeds", nargs="+", type=int, default=[5])
    add("--gpus", type=int, default=2, choices=(0, 1, 2, 4, 8), help="of each pre-training")
    add("--linear-gpus", type=int, default=1, choices=(1, 2, 4, 8), help="of each classifier; 1")
    add("--jobs", type=int, help="side by side; as many as the GPUs suffice for")
    add("--format", choices=FORMATS, default="dali", help="h5: DATA/train.h5 and DATA/val.h5")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    add("--toy", action="store_true", help="two epochs of two batches, and kNN")
    add = parser.add_argument_group("what is looked at before").add_argument
    add("--dry-run", action="store_true", help="looks, prints, and does nothing")
    add("--no-trial", action="store_true", help="no training step of each method")
    add("--go-on", action="store_true", help="without methods that cannot be trained")
    add("--any-images", action="store_true", help="other numbers than ImageNet's too")
    add("--checksums", action="store_true", help="MD5 of the archives, 150 GB")
    add("--card", default="A100", help="of solo-mim plan, for the hours; A100")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="on this machine, which is the default")
    where.add_argument("--slurm", action="store_true", help="submits jobs, by submitit")
    add = parser.add_argument_group("of --slurm").add_argument
    add("--partition")
    add("--hours", type=float, default=24.0, help="limit of a job; it is requeued")
    add("--cpus", type=int, default=8, help="of each GPU")
    add("--sbatch", action="append", default=[], metavar="NAME=VALUE")
    add = parser.add_argument_group("rarely needed").add_argument
    add("--grace", type=float, default=120.0, help="seconds to stop in")
    add("--command", type=shlex.split, default=list(SOLO_MIM), help="for solo-mim")
    return parser


def campaign_of(given: argparse.Namespace, error: argparse.ArgumentParser) -> Campaign:
    """What was asked for; ends with exit code 2 where that is nothing."""
    from solo_mim.evaluation.gpus import GPUS

    wanted = given.stages or STAGES[given.imagenet is None :]
    if "prepare" in wanted and given.imagenet is None:
        error.error("prepare needs --imagenet")
    if given.jobs is not None and given.jobs < 1:
        error.error("--jobs: give a number of 1 or more")
    if given.linear_gpus > max(1, given.gpus):
        error.error("--linear-gpus: no more than --gpus")
    if given.card not in GPUS:
        error.error(f"--card: give one of {', '.join(GPUS)}")
    if wrong := [one for one in given.sbatch if not one.partition("=")[2]]:
        error.error(f"--sbatch {wrong[0]}: write NAME=VALUE, as account=ours")
    given.any_images |= given.toy
    return Campaign(
        data=given.data.expanduser().absolute(),
        output=given.output.expanduser().absolute(),
        imagenet=given.imagenet and given.imagenet.expanduser().absolute(),
        methods=tuple(dict.fromkeys(given.methods)),
        seeds=tuple(dict.fromkeys(given.seeds)),
        stages=tuple(stage for stage in STAGES if stage in wanted),
        gpus=given.gpus,
        linear_gpus=given.linear_gpus,
        format=given.format,
        settings=tuple(given.settings),
        toy=given.toy,
        command=tuple(given.command),
    )


def visible() -> list[str]:
    """GPUs that may be used here, by the names that CUDA_VISIBLE_DEVICES takes."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def looked_at(
    campaign: Campaign, given: argparse.Namespace, devices: list[str]
) -> tuple[Campaign, bool]:
    """The campaign without what cannot be done, and whether anything can; says what was found."""
    found = preflight.check(campaign, given, devices)
    campaign = replace(campaign, refused=found.refused)
    print("\n".join(preflight.lines(found, campaign, given, devices)), flush=True)
    may = not found.wrong and (given.go_on or not found.refused)
    return campaign, may and set(found.refused) != set(campaign.methods)


def with_workers(campaign: Campaign, at_once: int, devices: list[str]) -> Campaign:
    """Jobs side by side share the cores; each would take eight else."""
    from solo_mim.data.batches import usable_cores

    if at_once == 1 or any(s.startswith("data.num_workers=") for s in campaign.settings):
        return campaign
    processes = max(1, len(devices) or at_once)
    return replace(campaign, workers=max(1, min(8, usable_cores() // processes)))


def locally(campaign: Campaign, work: Local) -> int:
    """Runs the jobs here; the exit code."""
    well = work.run()
    print("\n" + page.text(campaign))
    say("all of it is done" if well else f"not all of it is done: {page.place(campaign)}")
    return 0 if well else 1


def on_slurm(campaign: Campaign, given: argparse.Namespace) -> int:
    """Submits the jobs; the exit code."""
    stopping.only_note()  # what is submitted has to be noted too
    try:
        ids = cluster.submit(campaign, given)
    except ImportError:
        return refused("--slurm needs submitit: pip install '.[slurm]'")
    except (NotReady, RuntimeError, OSError) as error:
        refused(" ".join(str(error).split()))
        return 1
    for job, number in ids.items():
        say(f"{job.name}: job {number}, log {campaign.output / 'slurm' / f'{job.name}.log'}")
    say("all of it is submitted" if ids else "nothing is left to submit")
    return 0


def refused(reason: str) -> int:
    """Says why nothing was begun; the exit code."""
    print(f"reproduce.py: {reason}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Looks at everything, then runs or submits what is not finished; the exit code."""
    options = parser()
    given = options.parse_args(arguments)
    campaign = campaign_of(given, options)
    with stopping.interruptible() as signals:
        try:
            return begun(campaign, given)
        except BaseException:  # a library that is interrupted may make another error of it
            if not signals:
                raise
            stopping.only_note()
            say("stopped; the same command goes on with what is kept")
            return 128 + signals[0]


def begun(campaign: Campaign, given: argparse.Namespace) -> int:
    """The exit code of a call.

    Raises:
        KeyboardInterrupt: a signal came; every job has ended.
    """
    from solo_mim.errors import ConfigError
    from solo_mim.runs.lock import FolderLock

    if FolderLock.is_held(campaign.notes):
        return refused(f"another call is at work in {campaign.output}; stop it, or wait for it")
    devices = visible() if given.gpus else []
    at_once = given.jobs or max(1, len(devices))  # on the CPU one
    campaign, may = looked_at(campaign, given, devices)
    if not may or given.dry_run:
        return 0 if may else 2
    try:
        if not given.slurm and (there := cluster.in_queue(campaign)):
            waiting = ", ".join(f"{job.name} ({number})" for job, number in there.items())
            return refused(f"SLURM still has {waiting}; scancel it or wait")
        with FolderLock(campaign.notes) as lock:
            lock.acquire()
            for job in (job for job in campaign.jobs() if job.stage == "pretrain"):
                if job.method in campaign.refused:
                    campaign.write_note(job, said=campaign.refused[job.method])
            if given.slurm:
                return on_slurm(campaign, given)
            shared = with_workers(campaign, at_once, devices)
            return locally(shared, Local(shared, devices, at_once, given.grace))
    except (ConfigError, NotReady) as error:
        return refused(str(error))


if __name__ == "__main__":
    sys.exit(main())
