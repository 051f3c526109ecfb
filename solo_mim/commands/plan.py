"""`solo-mim plan`: what a run would take, before it is started."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from solo_mim.commands import jobs, trained
from solo_mim.commands.configuration import (
    PretrainConfig,
    check_run,
    checked,
    completed,
    num_devices,
)
from solo_mim.data.datasets import held_out_of, share_of
from solo_mim.data.folders import IMAGENET100, IMAGENET_STATISTICS
from solo_mim.data.imagenet100 import IMAGES
from solo_mim.data.photo_patches import PHOTOGRAPHS, TRAIN_PATCHES
from solo_mim.data.transforms import parse_augmentations
from solo_mim.errors import ConfigError, is_out_of_memory, nearest

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """Of a data sheet: dense matrix products in 10^12 operations a second, memory in GiB.

    Attributes:
        half: in 16 bits, summed in 32.
        single: in 32 bits as torch runs convolutions by default, TF32 where the GPU has it.
        memory: GiB.
    """

    half: float
    single: float
    memory: int


GPUS = {
    "T4": Gpu(65, 8.1, 15),
    "V100": Gpu(125, 15.7, 32),
    "RTX2080Ti": Gpu(53.8, 13.4, 11),
    "RTX3090": Gpu(71, 35.6, 24),
    "RTX4090": Gpu(165, 82.6, 24),
    "A6000": Gpu(155, 77.4, 48),
    "L4": Gpu(121, 60, 23),
    "A100": Gpu(312, 156, 80),
    "A100-40": Gpu(312, 156, 40),
    "H100": Gpu(989, 494, 80),
    "H200": Gpu(989, 494, 141),
}
# Training images, those of them with a label, and classes, of the data sets whose files need not be
# here.
_KNOWN = {
    "photo_patches": (TRAIN_PATCHES * len(PHOTOGRAPHS),) * 2 + (len(PHOTOGRAPHS),),
    "cifar10": (50_000, 50_000, 10),
    "cifar100": (50_000, 50_000, 100),
    "fashion_mnist": (60_000, 60_000, 10),
    "stl10": (105_000, 5_000, 10),
    "imagenet100": (IMAGES["train"], IMAGES["train"], len(IMAGENET100)),
    "imagenet": (1_281_167, 1_281_167, 1000),
}
# By these counts, of Barlow Twins in solo-learn's README: ResNet-18, 20 epochs of ImageNet-100 in
# 43 minutes on two RTX 2080 Ti with DALI; 5,097 MB on each without.
UTILISATION = 0.2
_OVERHEAD = 1.7
_BATCHES = (8, 64, 128)  # images to count on: some losses are of no fewer than so many
_DIMENSIONS, _PROCESSES = (128, 2048), (1, 2, 4, 8)


def _images(cfg: DictConfig, given: int | None) -> tuple[int, int]:
    """Training images, and classes."""
    data = cfg.data
    known, labelled, classes = _KNOWN.get(data.dataset, (None, 0, 2))
    if given is not None:
        return given, classes
    if known is None:
        raise ConfigError(
            f"data.dataset={data.dataset}: how many images there are is not known; add --images N"
        )
    share = share_of(data.fraction)
    held_out = held_out_of(data.validation_split, int(labelled * share))
    return int(known * share) - held_out, classes


def _counted(cfg: DictConfig, sizes: list[int], classes: int) -> Any:
    """What one step costs.

    Raises:
        ConfigError: the model cannot be built, or trains no step on images of noise.
    """
    from solo_mim.evaluation.cost import step_cost
    from solo_mim.methods import find_method

    large = sum(size == sizes[0] for size in sizes)
    method = find_method(cfg.method)
    reason = ""
    for batch in _BATCHES:
        model: Any = method(completed(cfg, classes, large, len(sizes) - large))
        try:
            return step_cost(model, batch, sizes, classes)
        # Whatever the host's methods raise of a batch that they cannot take.
        except (ConfigError, TypeError, ValueError, LookupError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
    raise ConfigError(f"method={cfg.method}: its steps cannot be counted ({reason})")


def plan(cfg: DictConfig, gpu: str, images: int | None, utilisation: float) -> str:
    """The plan as text.

    Args:
        cfg: as of `solo-mim pretrain`.
        gpu: one of `GPUS`.
        images: of training; None for those of the data set.
        utilisation: share of the GPU's peak that training reaches.

    Raises:
        ConfigError: a key or value is wrong, or the method's steps cannot be counted.
    """
    cfg = checked(cfg)
    check_run(cfg)
    trained.start_of(cfg)  # completes the backbone
    count, classes = _images(cfg, images)
    pipelines: Any = OmegaConf.to_container(cfg.augmentations)
    augmentations = parse_augmentations(pipelines, *IMAGENET_STATISTICS)
    sizes = [one.crop_size for one in augmentations for _ in range(one.num_crops)]
    step = _counted(cfg, sizes, classes)
    local, processes = cfg.optimizer.batch_size, num_devices(cfg) * cfg.num_nodes
    batch = local * processes
    steps = count // batch
    if not steps:
        raise ConfigError(f"optimizer.batch_size: {batch} exceeds the {count} training images")
    flops = step.flops * local + step.fixed_flops
    is_half = "16" in str(cfg.precision)
    peak = GPUS[gpu].half if is_half else GPUS[gpu].single
    activations = step.activations * local * (0.5 if is_half else 1) + step.fixed_activations
    weights = 4 * step.parameters + step.buffer_bytes
    resident = weights + 4 * step.trained + step.optimizer_bytes
    needed = _OVERHEAD * (resident + activations) / GIB
    gradients = 4 * step.trained * 2 * (processes - 1) / processes
    seconds = cfg.max_epochs * steps * flops / (peak * 1e12 * utilisation)
    fits = "fits" if needed < GPUS[gpu].memory else "DOES NOT FIT: lower the batch"
    checkpoint = weights + step.optimizer_bytes
    kept_in = "half of those in 32 bits" if is_half else "those in 32 bits"
    lines = [
        f"{cfg.method}, {cfg.backbone.name}, {cfg.data.dataset}: {len(sizes)} views of "
        f"{'/'.join(str(size) for size in dict.fromkeys(sizes))} px, {cfg.precision}, "
        f"{processes} x {gpu}",
        "",
        "computed, of a step on one GPU where not said otherwise",
        f"  parameters             {step.parameters / 1e6:.2f} M, of which trained "
        f"{step.trained / 1e6:.2f} M",
        f"  global batch           {local} x {processes} = {batch} images: {steps:,} steps an "
        f"epoch, {cfg.max_epochs * steps:,} in all",
        f"  operations             {flops / 1e12:.3f} x 10^12, forward and backward",
        f"  weights, optimiser     {resident / GIB:.2f} GiB, with buffers and gradients",
        f"  gradients sent         {gradients / 1e6:.0f} MB, over a ring",
        f"  checkpoints            {_kept(cfg) * checkpoint / 1e6:,.0f} MB on disk",
        "assumed",
        f"  images                 {count:,} of training",
        f"  {gpu:<22} {peak:g} x 10^12 operations a second, {GPUS[gpu].memory} GiB (data sheet)",
        f"  reached                {utilisation:.0%} of that; loading images is never waited for",
        f"  activations kept       {kept_in}",
        f"  workspace, slack       {_OVERHEAD - 1:.0%} of what is counted",
        "with these",
        f"  memory                 {needed:.1f} GiB: {fits}",
        f"  time                   {seconds / 3600:.1f} hours at "
        f"{steps * batch * cfg.max_epochs / seconds:,.0f} images/s",
        "",
        f"the loss alone, {local} images a GPU, two views: 10^9 operations and MB sent",
        *_losses(local),
    ]
    return "\n".join(lines)


def _kept(cfg: DictConfig) -> int:
    """Checkpoints of a run at the most, as `runs.EpochEnd` keeps them."""
    settings = cfg.checkpoint
    if not settings.enabled:
        return 0
    if settings.keep_prev:
        return math.ceil(cfg.max_epochs / settings.frequency)
    return min(2, settings.frequency)  # the last, and the last multiple


def _losses(local: int) -> list[str]:
    from solo_mim.evaluation.cost import LOSS_COSTS

    lines = [f"  {'D':>5}{'GPUs':>6}" + "".join(f"{name:>22}" for name in LOSS_COSTS)]
    for dim in _DIMENSIONS:
        for processes in _PROCESSES:
            cells = []
            for cost in LOSS_COSTS.values():
                found = cost(local, dim, processes)
                operations = (found.products + found.factorisations) / 1e9
                cells.append(f"{operations:>13,.2f}{found.sent / 1e6:>9,.2f}")
            lines.append(f"  {dim:>5}{processes:>6}" + "".join(cells))
    return lines


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
    """The command: its options, and Hydra's arguments as of `solo-mim pretrain`."""
    given, overrides = parser().parse_known_args(arguments)
    if given.gpu not in GPUS:
        raise ConfigError(f"--gpu {given.gpu} is not known{nearest(given.gpu, GPUS)}")
    if given.images is not None and given.images < 1:
        raise ConfigError(f"--images {given.images}: give a number of 1 or more")
    if not 0 < given.utilisation <= 1:
        raise ConfigError(f"--utilisation {given.utilisation}: give a share above 0 and up to 1")

    def job(cfg: DictConfig) -> None:
        print(plan(cfg, given.gpu, given.images, given.utilisation))

    return jobs.run_by_hydra("pretrain", job, overrides, PretrainConfig)
