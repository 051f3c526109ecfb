"""`solo-mim bench`: what the losses cost, alone and in a training step, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from solo_mim.errors import nearest

BACKBONES = ["small_cnn", "resnet18"]
# `benchmarks.PRECISIONS`, which would import torch.
PRECISIONS = ["32-true", "16-mixed", "bf16-mixed"]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="solo-mim bench",
        description="`loss`: time and peak memory of the losses of two views, forward and "
        "backward: explicit MIM, its rivals and the host's baselines, taking turns; `matrix "
        "products` are those that the covariances cannot do without. `step`: a whole training "
        "step with each, over one with a mean square for a loss. `data`: augmented views a "
        "second, ours and the host's, and from files those of images in memory and, where it is "
        "installed, of DALI. Nothing else should run meanwhile.",
    )
    parser.add_argument("what", choices=["loss", "step", "data"])
    parser.add_argument("--samples", "-N", type=int, nargs="+", help="64 256 1024; of steps 256")
    parser.add_argument(
        "--dims", "-D", type=int, nargs="+", help="64 128 256 512 2048; of steps 128"
    )
    parser.add_argument(
        "--backbones",
        nargs="+",
        choices=[*BACKBONES, "resnet50"],
        default=BACKBONES,
        help="of steps",
    )
    parser.add_argument(
        "--crop-sizes", type=int, nargs="+", help="pixels; of data 32 224, of steps 32"
    )
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS[:1], help="not of data"
    )
    parser.add_argument("--losses", nargs="+", metavar="NAME", default=[], help="of steps; all")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, help="torch's by default")
    parser.add_argument(
        "--device", help="of losses and steps, a GPU by default; data is measured on the CPU"
    )
    parser.add_argument("--output", type=Path, default=Path("bench"))
    return parser


def run(arguments: list[str]) -> None:
    given = parser().parse_args(arguments)
    whole = given.what == "step"
    sizes = given.samples or ([256] if whole else [64, 256, 1024])
    dims = given.dims or ([128] if whole else [64, 128, 256, 512, 2048])
    crop_sizes = given.crop_sizes or ([32] if whole else [32, 224])
    numbers = [*dims, *crop_sizes, given.repeats, *([given.threads] if given.threads else [])]
    if min(sizes) < 2 or min(numbers) < 1 or given.threads == 0:
        parser().error("--samples must be at least 2, the other numbers at least 1")
    from solo_mim.benchmarks import Benchmark, losses

    for name in given.losses:
        if name not in (known := losses(2)):
            parser().error(f"--losses: unknown loss '{name}'{nearest(name, known)}")
    try:
        benchmark = Benchmark(given.what, given.repeats, given.threads, given.device)
    except (RuntimeError, AssertionError) as error:
        parser().error(f"--device {given.device}: {str(error).splitlines()[0]}")
    benchmark.run(crop_sizes, sizes, dims, given.precision, given.backbones, given.losses)
    written = benchmark.write(given.output)
    print(f"\nwritten: {given.output}/{', '.join(written)}")
