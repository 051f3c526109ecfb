"""What a run would take, before it is started."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

from solo_mim.data.datasets import held_out_of, load_splits, share_of
from solo_mim.data.errors import DataError
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
# Views a second of one core (an AMD EPYC), by crop size: of JPEG files, and of decoded images.
# Measured by `solo-mim bench data`: docs/results/data-speed.json, `symmetric`.
_VIEWS = {224: (221, 302), 32: (3312, 5671)}
_OVERHEAD = 1.7  # of the same row as `UTILISATION`
_BATCHES = (8, 64, 128)  # images to count on: some losses are of no fewer than so many
_DIMENSIONS, _PROCESSES = (128, 2048), (1, 2, 4, 8)


def _images(recipe: PretrainRecipe, given: int | None) -> tuple[int, int]:
    """Training images, and classes."""
    data = recipe.data
    known, labelled, classes = _KNOWN.get(data.dataset, (0, 0, 2))
    if given is not None:
        return given, classes
    if data.dataset not in _KNOWN:
        try:
            splits = load_splits(recipe.plain["data"])
        except DataError as error:
            raise ConfigError(f"{error}; or add --images N") from error
        return len(splits.train), splits.num_classes
    share = share_of(data.fraction)
    held_out = held_out_of(data.validation_split, int(labelled * share))
    return int(known * share) - held_out, classes


def _views(recipe: PretrainRecipe) -> list[int]:
    """Pixels of each view of an image."""
    augmentations = parse_augmentations(recipe.augmentations, *IMAGENET_STATISTICS)
    return [one.crop_size for one in augmentations for _ in range(one.num_crops)]


def _cores(recipe: PretrainRecipe, sizes: list[int], speed: float) -> str:
    """CPU cores that make the views of so many images a second, where that was measured."""
    by_cpu = recipe.data.format in (None, "image_folder")
    if not by_cpu or not set(sizes) <= set(_VIEWS):
        what = "views of these sizes" if by_cpu else f"data.format={recipe.data.format}"
        return f"not known for {what}: measure by solo-mim bench data"
    in_files = recipe.data.dataset in ("custom", "imagenet", "imagenet100")
    cores = math.ceil(speed * sum(1 / _VIEWS[size][not in_files] for size in sizes))
    return f"{cores:,} make the views, at the rates of docs/results/data-speed.json"


def _heading(recipe: PretrainRecipe, sizes: list[int]) -> str:
    pixels = "/".join(str(size) for size in dict.fromkeys(sizes))
    what = f"{recipe.method}, {recipe.backbone.name}, {recipe.data.dataset}"
    views = f"{len(sizes)} views of {pixels} px"
    return f"{what}: {views}, {recipe.precision}, {recipe.processes}"


def _counted(recipe: PretrainRecipe, sizes: list[int], classes: int) -> StepCost:
    """What one step costs.

    Raises:
        ConfigError: the model cannot be built, or trains no step on images of noise.
    """
    print("counting a training step on this CPU ...", file=sys.stderr)
    large = sum(size == sizes[0] for size in sizes)
    method = find_method(recipe.method)
    recipe = replace(recipe, sync_batchnorm=False)  # of one process, and there is none on CPUs
    for batch in _BATCHES:
        model = method(host_config(recipe, classes, large, len(sizes) - large))
        try:
            return step_cost(model, batch, sizes, classes)
        # Whatever the host's methods raise of a batch that they cannot take.
        except (ConfigError, TypeError, ValueError, LookupError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
    raise ConfigError(f"method={recipe.method}: its steps cannot be counted ({reason})")


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        text: what `solo-mim plan` prints.
        memory: GiB on each GPU.
        images_per_second: of all GPUs.
        flops: of a step on one GPU, forward and backward.
        hours: of training.
        disk: bytes of the checkpoints that are kept.
    """

    text: str
    memory: float
    images_per_second: float
    flops: float
    hours: float
    disk: int


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
    sizes = _views(recipe)
    local, steps = recipe.optimizer.batch_size, count // recipe.global_batch
    if not steps:
        raise ConfigError(
            f"optimizer.batch_size: {recipe.global_batch} exceeds the {count} training images"
        )
    step = _counted(recipe, sizes, classes)
    sheet, half = GPUS[gpu], "16" in str(recipe.precision)
    peak = sheet.half if half else sheet.single
    flops = step.flops * local + step.fixed_flops
    weights = 4 * step.parameters + step.buffer_bytes
    resident = weights + 4 * step.trained + step.optimizer_bytes
    activations = step.activations * local * (0.5 if half else 1) + step.fixed_activations
    needed = _OVERHEAD * (resident + activations) / GIB
    sent = 4 * step.trained * 2 * (recipe.processes - 1) / recipe.processes
    kept = _kept(recipe) * (weights + step.optimizer_bytes)
    total = steps * recipe.max_epochs
    seconds = total * flops / (peak * 1e12 * utilisation)
    speed = total * recipe.global_batch / seconds
    text = f"""\
{_heading(recipe, sizes)} x {gpu}

computed, of a step on one GPU where not said otherwise
  parameters             {step.parameters / 1e6:.2f} M, of which trained {step.trained / 1e6:.2f} M
  global batch           {local} x {recipe.processes} = {recipe.global_batch} images: \
{steps:,} steps an epoch, {total:,} in all
  operations             {flops / 1e12:.3f} x 10^12, forward and backward
  weights, optimiser     {resident / GIB:.2f} GiB, with buffers, gradients
  gradients sent         {sent / 1e6:.0f} MB, over a ring
  checkpoints            {kept / 1e6:,.0f} MB on disk
assumed
  images                 {count:,} of training
  {gpu:<22} {peak:g} x 10^12 operations a second, {sheet.memory} GiB (data sheet)
  reached                {utilisation:.0%} of that; loading images is never waited for
  activations kept       {"half of those in 32 bits" if half else "those in 32 bits"}
  workspace, slack       {_OVERHEAD - 1:.0%} of what is counted
with these
  memory                 {needed:.1f} GiB: \
{"fits" if needed < sheet.memory else "DOES NOT FIT: lower the batch"}
  time                   {seconds / 3600:.1f} hours at \
{speed:,.0f} images/s
  CPU cores              {_cores(recipe, sizes, speed)}

{_losses(local)}"""
    return Plan(text, needed, speed, flops, seconds / 3600, int(kept))


def _kept(recipe: PretrainRecipe) -> int:
    """Checkpoints of a run at the most, as `EpochEnd` keeps them."""
    enabled, frequency = recipe.checkpoint.enabled, recipe.checkpoint.frequency
    if recipe.checkpoint.keep_prev and enabled:
        return math.ceil(recipe.max_epochs / frequency)
    return min(2, frequency) if enabled else 0  # the last, and the last multiple


def _losses(local: int) -> str:
    lines = [
        f"the loss alone, {local} images a GPU, two views: 10^9 operations and MB sent",
        f"  {'D':>5}{'GPUs':>6}" + "".join(f"{name:>22}" for name in LOSS_COSTS),
    ]
    for dim in _DIMENSIONS:
        for processes in _PROCESSES:
            cells = []
            for cost in LOSS_COSTS.values():
                found = cost(local, dim, processes)
                operations = (found.products + found.factorisations) / 1e9
                cells.append(f"{operations:>13,.2f}{found.sent / 1e6:>9,.2f}")
            lines.append(f"  {dim:>5}{processes:>6}" + "".join(cells))
    return "\n".join(lines)
