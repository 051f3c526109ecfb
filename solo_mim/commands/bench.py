"""`solo-mim bench`: what the losses cost, alone and in a training step, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

BACKBONES = ["small_cnn", "resnet18"]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="solo-mim bench",
        description="`loss`: time and peak memory of the losses of two views, forward and "
        "backward: explicit MIM, its rivals and the host's baselines, taking turns; `matrix "
        "products` are those that the covariances cannot do without. `step`: a whole training "
        "step with each, over one with a mean square for a loss. `data`: augmented views a "
        "second, ours and the host's, and from files DALI's where it is installed. Nothing else "
        "should run meanwhile.",
    )
    parser.add_argument("what", choices=["loss", "step", "data"])
    parser.add_argument("--samples", "-N", type=int, nargs="+", help="64 256 1024; of steps 256")
    parser.add_argument(
        "--dims", "-D", type=int, nargs="+", help="64 128 256 512 2048; of steps 128"
    )
    parser.add_argument(
        "--backbones", nargs="+", choices=BACKBONES, default=BACKBONES, help="of steps"
    )
    parser.add_argument("--crop-sizes", type=int, nargs="+", default=[32, 224], help="of data")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, help="torch's by default")
    parser.add_argument(
        "--device", help="of losses and steps, a GPU by default; data is measured on the CPU"
    )
    parser.add_argument("--output", type=Path, default=Path("bench"))
    return parser


def run(arguments: list[str]) -> int:
    given = parser().parse_args(arguments)
    whole = given.what == "step"
    sizes = given.samples or ([256] if whole else [64, 256, 1024])
    dims = given.dims or ([128] if whole else [64, 128, 256, 512, 2048])
    numbers = [*dims, *given.crop_sizes, given.repeats, *([given.threads] if given.threads else [])]
    if min(sizes) < 2 or min(numbers) < 1 or given.threads == 0:
        parser().error("--samples must be at least 2, the other numbers at least 1")
    from solo_mim.benchmarks import Benchmark

    try:
        benchmark = Benchmark(given.what, given.repeats, given.threads, given.device)
    except (RuntimeError, AssertionError) as error:
        parser().error(f"--device {given.device}: {str(error).splitlines()[0]}")
    if given.what == "data":
        benchmark.data(given.crop_sizes)
    else:
        benchmark.losses(sizes, dims, given.backbones)
    written = benchmark.write(given.output)
    print(f"\nwritten: {given.output}/{', '.join(written)}")
    return 0
