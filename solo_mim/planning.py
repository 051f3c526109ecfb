"""What a run would take, before it is started."""

from __future__ import annotations

import math
from typing import Any

from solo_mim.data.datasets import held_out_of, share_of
from solo_mim.data.folders import IMAGENET100, IMAGENET_STATISTICS
from solo_mim.data.imagenet100 import IMAGES
from solo_mim.data.photo_patches import PHOTOGRAPHS, TRAIN_PATCHES
from solo_mim.data.transforms import parse_augmentations
from solo_mim.errors import ConfigError, is_out_of_memory
from solo_mim.evaluation.cost import LOSS_COSTS, StepCost, step_cost
from solo_mim.evaluation.gpus import GPUS
from solo_mim.methods import find_method
from solo_mim.recipe.checks import check_run
from solo_mim.recipe.schema import PretrainRecipe, host_config
from solo_mim.trained import start_of

GIB = 2**30


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
_OVERHEAD = 1.7  # of the same row as `UTILISATION`
_BATCHES = (8, 64, 128)  # images to count on: some losses are of no fewer than so many
_DIMENSIONS, _PROCESSES = (128, 2048), (1, 2, 4, 8)


def _images(recipe: PretrainRecipe, given: int | None) -> tuple[int, int]:
    """Training images, and classes."""
    data = recipe.data
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


def _counted(recipe: PretrainRecipe, sizes: list[int], classes: int) -> StepCost:
    """What one step costs.

    Raises:
        ConfigError: the model cannot be built, or trains no step on images of noise.
    """
    large = sum(size == sizes[0] for size in sizes)
    method = find_method(recipe.method)
    reason = ""
    for batch in _BATCHES:
        model: Any = method(host_config(recipe, classes, large, len(sizes) - large))
        try:
            return step_cost(model, batch, sizes, classes)
        # Whatever the host's methods raise of a batch that they cannot take.
        except (ConfigError, TypeError, ValueError, LookupError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
    raise ConfigError(f"method={recipe.method}: its steps cannot be counted ({reason})")


def plan(recipe: PretrainRecipe, gpu: str, images: int | None, utilisation: float) -> Plan:
    """What a run would take.

    Args:
        recipe: as of `solo-mim pretrain`.
        gpu: one of `GPUS`.
        images: of training; None for those of the data set.
        utilisation: share of the GPU's peak that training reaches.

    Raises:
        ConfigError: a key or value is wrong, or the method's steps cannot be counted.
    """
    check_run(recipe)
    _, recipe = start_of(recipe)
    count, classes = _images(recipe, images)
    augmentations = parse_augmentations(recipe.augmentations, *IMAGENET_STATISTICS)
    sizes = [one.crop_size for one in augmentations for _ in range(one.num_crops)]
    steps = count // recipe.global_batch
    if not steps:
        raise ConfigError(
            f"optimizer.batch_size: {recipe.global_batch} exceeds the {count} training images"
        )
    step = _counted(recipe, sizes, classes)
    return Plan(recipe, step, gpu, count, steps, sizes, utilisation)


class Plan:
    """What is computed, what is assumed, and what comes of both; as text by `str`.

    Attributes:
        memory: GiB on each GPU.
        hours: of training.
        images_per_second: of all GPUs.
        flops: of a step on one GPU, forward and backward.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        step: StepCost,
        gpu: str,
        count: int,
        steps: int,
        sizes: list[int],
        utilisation: float,
    ) -> None:
        self.recipe, self.step, self.gpu = recipe, step, gpu
        self.count, self.steps, self.sizes, self.utilisation = count, steps, sizes, utilisation
        self.half = "16" in str(recipe.precision)
        self.peak = GPUS[gpu].half if self.half else GPUS[gpu].single
        self.flops = step.flops * recipe.optimizer.batch_size + step.fixed_flops
        share = recipe.optimizer.batch_size * (0.5 if self.half else 1)
        activations = step.activations * share + step.fixed_activations
        self.memory = _OVERHEAD * (self._resident() + activations) / GIB
        seconds = self.flops / (self.peak * 1e12 * utilisation)
        self.images_per_second = recipe.global_batch / seconds
        self.hours = steps * recipe.max_epochs * seconds / 3600

    def __str__(self) -> str:
        recipe = self.recipe
        return "\n".join(
            [
                f"{recipe.method}, {recipe.backbone.name}, {recipe.data.dataset}: "
                f"{len(self.sizes)} views of "
                f"{'/'.join(str(size) for size in dict.fromkeys(self.sizes))} px, "
                f"{recipe.precision}, {recipe.processes} x {self.gpu}",
                *("", *self._computed(), *self._assumed(), *self._both(), ""),
                f"the loss alone, {recipe.optimizer.batch_size} images a GPU, two views: 10^9 "
                "operations and MB sent",
                *_losses(recipe.optimizer.batch_size),
            ]
        )

    def _computed(self) -> list[str]:
        recipe, step = self.recipe, self.step
        local, processes = recipe.optimizer.batch_size, recipe.processes
        gradients = 4 * step.trained * 2 * (processes - 1) / processes
        weights = 4 * step.parameters + step.buffer_bytes
        checkpoint = weights + step.optimizer_bytes
        return [
            "computed, of a step on one GPU where not said otherwise",
            f"  parameters             {step.parameters / 1e6:.2f} M, of which trained "
            f"{step.trained / 1e6:.2f} M",
            f"  global batch           {local} x {processes} = {recipe.global_batch} images: "
            f"{self.steps:,} steps an epoch, {recipe.max_epochs * self.steps:,} in all",
            f"  operations             {self.flops / 1e12:.3f} x 10^12, forward and backward",
            f"  weights, optimiser     {self._resident() / GIB:.2f} GiB, with buffers, gradients",
            f"  gradients sent         {gradients / 1e6:.0f} MB, over a ring",
            f"  checkpoints            {_kept(recipe) * checkpoint / 1e6:,.0f} MB on disk",
        ]

    def _resident(self) -> float:
        """Bytes that stay: weights, buffers, gradients and the optimiser's state."""
        step = self.step
        weights = 4 * step.parameters + step.buffer_bytes
        return weights + 4 * step.trained + step.optimizer_bytes

    def _assumed(self) -> list[str]:
        kept_in = "half of those in 32 bits" if self.half else "those in 32 bits"
        return [
            "assumed",
            f"  images                 {self.count:,} of training",
            f"  {self.gpu:<22} {self.peak:g} x 10^12 operations a second, "
            f"{GPUS[self.gpu].memory} GiB (data sheet)",
            f"  reached                {self.utilisation:.0%} of that; loading images is never "
            "waited for",
            f"  activations kept       {kept_in}",
            f"  workspace, slack       {_OVERHEAD - 1:.0%} of what is counted",
        ]

    def _both(self) -> list[str]:
        fits = self.memory < GPUS[self.gpu].memory
        return [
            "with these",
            f"  memory                 {self.memory:.1f} GiB: "
            + ("fits" if fits else "DOES NOT FIT: lower the batch"),
            f"  time                   {self.hours:.1f} hours at "
            f"{self.images_per_second:,.0f} images/s",
        ]


def _kept(recipe: PretrainRecipe) -> int:
    """Checkpoints of a run at the most, as `EpochEnd` keeps them."""
    settings = recipe.checkpoint
    if not settings.enabled:
        return 0
    if settings.keep_prev:
        return math.ceil(recipe.max_epochs / settings.frequency)
    return min(2, settings.frequency)  # the last, and the last multiple


def _losses(local: int) -> list[str]:
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
