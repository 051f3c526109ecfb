"""`solo-mim plan`: what a run would take, before it is started."""

from __future__ import annotations

import argparse
from typing import Any

from solo_mim.errors import ConfigError, nearest
from solo_mim.evaluation.gpus import GPUS, UTILISATION


def parser() -> argparse.ArgumentParser:
    """The command's own options; the rest is Hydra's."""
    parser = argparse.ArgumentParser(
        prog="solo-mim plan",
        description="Parameters, operations, memory, bytes sent, disk and hours of a run, counted "
        "on two steps of the configured model on noise, on the CPU. What is computed and what is "
        "assumed stand apart.",
        epilog="Further arguments are those of solo-mim pretrain. example: solo-mim plan --gpu "
        "A100 data=imagenet100 method=vicreg devices=2 precision=16-mixed",
    )
    parser.add_argument("--gpu", default="A100", help=f"one of {', '.join(GPUS)}; A100 by default")
    parser.add_argument("--images", type=int, help="of training; those of the data set by default")
    parser.add_argument(
        "--utilisation",
        type=float,
        default=UTILISATION,
        help=f"share of the GPU's peak that training reaches; {UTILISATION} by default: put in "
        "what a run of yours had",
    )
    return parser


def run(arguments: list[str]) -> int:
    given, overrides = parser().parse_known_args(arguments)
    if given.gpu not in GPUS:
        raise ConfigError(f"--gpu {given.gpu} is not known{nearest(given.gpu, GPUS)}")
    if given.images is not None and given.images < 1:
        raise ConfigError(f"--images {given.images}: give a number of 1 or more")
    if not 0 < given.utilisation <= 1:
        raise ConfigError(f"--utilisation {given.utilisation}: give a share above 0 and up to 1")
    from solo_mim.planning import plan
    from solo_mim.recipe.checks import checked
    from solo_mim.recipe.compose import run_by_hydra

    def job(cfg: Any) -> None:
        print(plan(checked(cfg), given.gpu, given.images, given.utilisation).text)

    return run_by_hydra("pretrain", job, overrides)
