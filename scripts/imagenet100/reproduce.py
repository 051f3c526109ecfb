"""ImageNet-100 by solo-learn's protocol: seven methods, one command that goes on where it stopped.

    python scripts/imagenet100/reproduce.py --imagenet ILSVRC2012 [--gpus 2] [--dry-run] [STAGE ...]
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
from campaign import FORMATS, METHODS, SOLO_MIM, STAGES, Campaign
from local import Local, Signals, say

CODES = """exit codes:
  0      all that was asked for is done (with --slurm: is submitted; with --dry-run: can be done)
  1      a job has failed, or was left out for one that has; campaign.md names it
  2      something is wrong with the arguments, the machine, the images or a method, or another
         call is at work in OUTPUT: nothing was begun
  128+n  signal n came (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP): every job was stopped, and what it has
         kept is said; the same command goes on

A classifier takes one GPU, others beside it: solo-mim linear trains on one device only."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listed = ", ".join(STAGES)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {listed}; all of them")
    parser.add_argument("--stages", nargs="+", dest="more", default=[], metavar="STAGE")
    parser.add_argument("--imagenet", type=Path, help="its folders or archives, to prepare from")
    parser.add_argument("--data", type=Path, default=Path("datasets/imagenet-100"))
    parser.add_argument("--output", type=Path, default=Path("runs/imagenet100"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", "--seed", nargs="+", type=int, default=[5])
    parser.add_argument("--gpus", type=int, default=2, choices=(0, 1, 2, 4, 8), help="of each job")
    parser.add_argument("--jobs", type=int, help="side by side; as many as the GPUs suffice for")
    parser.add_argument("--format", choices=FORMATS, default="dali", help="h5: DATA/{train,val}.h5")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--toy", action="store_true", help="two epochs of two batches, and kNN")
    looks = parser.add_argument_group("what is looked at before")
    looks.add_argument("--dry-run", action="store_true", help="looks, prints, and does nothing")
    looks.add_argument("--no-trial", action="store_true", help="no training step of each method")
    looks.add_argument(
        "--go-on", action="store_true", help="without methods that cannot be trained"
    )
    looks.add_argument(
        "--any-images", action="store_true", help="other numbers than ImageNet's too"
    )
    looks.add_argument("--checksums", action="store_true", help="MD5 of the archives, 150 GB")
    looks.add_argument("--card", help="of solo-mim plan, for the hours; the one that is here")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="on this machine, which is the default")
    where.add_argument("--slurm", action="store_true", help="submits jobs, by submitit")
    queue = parser.add_argument_group("of --slurm")
    queue.add_argument("--partition")
    queue.add_argument("--hours", type=float, default=24.0, help="limit of a job; it is requeued")
    queue.add_argument("--cpus", type=int, default=8, help="of each GPU")
    queue.add_argument("--sbatch", action="append", default=[], metavar="NAME=VALUE")
    rare = parser.add_argument_group("rarely needed")
    rare.add_argument("--grace", type=float, default=120.0, help="seconds to stop in")
    rare.add_argument("--command", type=shlex.split, default=list(SOLO_MIM), help="for solo-mim")
    return parser


def campaign_of(given: argparse.Namespace, error: argparse.ArgumentParser) -> Campaign:
    """What was asked for; ends with exit code 2 where that is nothing."""
    wanted = {*given.stages, *given.more}
    if unknown := wanted - set(STAGES):
        error.error(f"there is no stage {', '.join(sorted(unknown))}")
    if not wanted:
        wanted = set(STAGES[given.imagenet is None :])
    if "prepare" in wanted and given.imagenet is None:
        error.error("prepare needs --imagenet")
    if given.jobs is not None and given.jobs < 1:
        error.error("--jobs: give a number of 1 or more")
    return Campaign(
        data=given.data.expanduser().absolute(),
        output=given.output.expanduser().absolute(),
        imagenet=given.imagenet and given.imagenet.expanduser().absolute(),
        methods=tuple(dict.fromkeys(given.methods)),
        seeds=tuple(dict.fromkeys(given.seeds)),
        stages=tuple(stage for stage in STAGES if stage in wanted),
        gpus=given.gpus,
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


def names_of_gpus() -> list[str]:
    """As their makers call them."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def side_by_side(given: argparse.Namespace, devices: list[str]) -> int:
    """Jobs at once: as many as the GPUs suffice for, classifiers taking one; on the CPU one."""
    return given.jobs or max(1, len(devices) if given.gpus else 1)


def looked_at(
    campaign: Campaign, given: argparse.Namespace, devices: list[str], at_once: int
) -> tuple[Campaign, bool]:
    """The campaign without what cannot be done, and whether anything can; says what was found."""
    asked = preflight.Asked(
        devices=tuple(devices),
        card=given.card or preflight.guessed_card(names_of_gpus if given.gpus else list),
        here=not given.slurm,
        trial=not given.no_trial,
        checksums=given.checksums,
        any_images=given.any_images or given.toy,
    )
    found = preflight.check(campaign, asked)
    campaign = replace(campaign, refused=found.refused)
    print("\n".join(preflight.lines(found, campaign, asked, at_once)), flush=True)
    may = not found.wrong and (given.go_on or not found.refused)
    return campaign, may and set(found.refused) != set(campaign.methods)


def with_workers(campaign: Campaign, at_once: int, devices: list[str]) -> Campaign:
    """Jobs side by side share the cores; each would take eight else."""
    from solo_mim.data.batches import usable_cores

    processes = len(devices) if campaign.gpus else at_once
    if at_once == 1 or any(s.startswith("data.num_workers=") for s in campaign.settings):
        return campaign
    return replace(campaign, workers=max(1, min(8, usable_cores() // max(1, processes))))


def locally(campaign: Campaign, work: Local) -> int:
    """Runs the jobs here; the exit code."""
    well = work.run()
    print("\n" + page.text(campaign))
    say("all of it is done" if well else f"not all of it is done: {page.place(campaign)}")
    return 0 if well else 1


def on_slurm(campaign: Campaign, given: argparse.Namespace) -> int:
    """Submits the jobs; the exit code."""
    queue = cluster.Queue(
        partition=given.partition,
        hours=given.hours,
        cpus=given.cpus,
        at_once=given.jobs or cluster.Queue.at_once,
        others=dict(other.partition("=")[::2] for other in given.sbatch),
    )
    try:
        cluster.tell(campaign, cluster.submit(campaign, queue))
    except ImportError:
        print("reproduce.py: --slurm needs submitit: pip install '.[slurm]'", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(f"reproduce.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Looks at everything, then runs or submits what is not finished; the exit code."""
    options = parser()
    given = options.parse_args(arguments)
    campaign = campaign_of(given, options)
    with Signals().handled() as signals:
        try:
            return begun(campaign, given, signals)
        except BaseException:  # a library that is interrupted may make another error of it
            if not signals.number:
                raise
            say("stopped; the same command goes on with what is kept")
            return 128 + signals.number


def begun(campaign: Campaign, given: argparse.Namespace, signals: Signals) -> int:
    """The exit code of a call; raises Stopped where a signal ends it."""
    from solo_mim.errors import ConfigError
    from solo_mim.runs.lock import FolderLock

    if FolderLock.is_held(campaign.notes):
        print(f"reproduce.py: another call is at work in {campaign.output}", file=sys.stderr)
        return 2
    devices = visible() if given.gpus else []
    at_once = side_by_side(given, devices)
    campaign, may = looked_at(campaign, given, devices, at_once)
    if not may or given.dry_run:
        return 0 if may else 2
    if not given.slurm and (there := cluster.in_queue(campaign)):
        waiting = ", ".join(f"{job.name} ({number})" for job, number in there.items())
        print(f"reproduce.py: SLURM still has {waiting}; scancel it or wait", file=sys.stderr)
        return 2
    try:
        with FolderLock(campaign.notes) as lock:
            lock.acquire()
            for job in (job for job in campaign.jobs() if job.stage == "pretrain"):
                if job.method in campaign.refused:
                    campaign.write_note(job, said=campaign.refused[job.method])
            if given.slurm:
                return on_slurm(campaign, given)
            shared = with_workers(campaign, at_once, devices)
            return locally(shared, Local(shared, devices, at_once, given.grace, signals))
    except ConfigError as error:
        print(f"reproduce.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
