"""What training takes, by counting: parameters, floating-point operations, memory, bytes sent."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

FLOAT = 4  # bytes


@dataclass(frozen=True)
class StepCost:
    """Counts of a training step of N images: what grows with N, for one image with all its views,
    and what does not.

    Operations are of matrix products and convolutions, forward and backward; a multiplication and
    an addition are two. Activations are bytes that are kept for the backward, in float32.
    """

    parameters: int
    trained: int  # of these, by the optimiser
    flops: float  # for one image
    activations: float
    fixed_flops: float  # whatever N is
    fixed_activations: float
    optimizer_bytes: int  # state after a step
    buffer_bytes: int  # queues, running statistics


def step_cost(model: Any, images: int, crop_sizes: Sequence[int], num_classes: int) -> StepCost:
    """Counts two steps of a model on the CPU, on N and 2 N images of noise.

    Costs of the loss that grow faster than N, as those of N x N similarities, are underestimated
    for larger batches; beside a network's they are small.

    Args:
        model: a lightning module of the methods' contract; it is trained by these steps.
        images: N.
        crop_sizes: pixels of each view of an image.
        num_classes: of the online probe.
    """
    noise = [
        (index, [torch.randn(3, size, size) for size in crop_sizes], index % num_classes)
        for index in range(2 * images)
    ]
    _, flops, kept = _counted_step(model, noise[:images])
    optimizer, twice_flops, twice_kept = _counted_step(model, noise)
    state = [value for values in optimizer.state.values() for value in values.values()]
    return StepCost(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
        flops=(twice_flops - flops) / images,
        activations=(twice_kept - kept) / images,
        fixed_flops=2 * flops - twice_flops,
        fixed_activations=2 * kept - twice_kept,
        optimizer_bytes=sum(t.nbytes for t in state if isinstance(t, Tensor)),
        buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
    )


def _counted_step(model: Any, images: list[Any]) -> tuple[Any, int, int]:
    """Trains one step of all images: index, views, class each; the optimiser, operations and bytes
    kept for the backward."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices, its products
    shown = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: Any = dict.fromkeys(shown, False)
    trainer = pl.Trainer(
        max_steps=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        accelerator="cpu",
        devices=1,
        logger=False,
        **quiet,
    )
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with warnings.catch_warnings(), counter, hooks:
        warnings.simplefilter("ignore")  # of a batch so small
        trainer.fit(model, DataLoader(images, batch_size=len(images)))  # type: ignore[arg-type]
    (optimizer,) = trainer.optimizers
    return optimizer, counter.get_total_flops(), sum(kept.values())


@dataclass(frozen=True)
class LossCost:
    """Of one process in one step, two views, forward and backward: floating-point operations, and
    bytes sent over a ring of processes."""

    products: float  # of matrices
    factorisations: float  # Cholesky factors and inverses, D^3 each
    sent: float


def _all_reduce(size: float, processes: int) -> float:
    return 2 * (processes - 1) / processes * size


def _explicit_mim(local: int, dim: int, processes: int) -> LossCost:
    samples = local * processes
    if 2 * samples >= dim:  # the moments travel
        sent = 2 * _all_reduce(FLOAT * 2 * dim**2, processes)
        return LossCost(8 * local * dim**2, dim**3, sent)
    rows = 2 * samples - 1  # the rows travel
    sent = 2 * _all_reduce(FLOAT * 2 * samples * dim, processes)
    return LossCost(4 * rows**2 * dim, rows**3, sent)


def _vicreg(local: int, dim: int, processes: int) -> LossCost:
    size = FLOAT * 2 * local * processes * dim
    sent = 1.5 * _all_reduce(size, processes)  # an all-gather sends half as much
    return LossCost(12 * local * processes * dim**2, 0, sent)


def _barlow_twins(local: int, dim: int, processes: int) -> LossCost:
    return LossCost(6 * local * dim**2, 0, 2 * _all_reduce(FLOAT * dim**2, processes))


# Images of one process, dimensions, processes -> cost. VICReg and Barlow Twins as solo-learn has
# them, the latter with its gradient mended.
LOSS_COSTS: dict[str, Callable[[int, int, int], LossCost]] = {
    "explicit_mim": _explicit_mim,
    "vicreg": _vicreg,
    "barlow_twins": _barlow_twins,
}
