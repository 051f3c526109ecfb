"""Corrections of single methods of the host, the same for both generations where both need them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from solo_mim.errors import ConfigError
from solo_mim.losses.statistics import sum_over_processes


class DINO:
    """Mixed in before the host's DINO: clips the gradients that the optimiser is given.

    The host clips in `on_after_backward`, where mixed precision still has them scaled and
    accumulation has not finished. In 1.0.2 its helper shadows lightning's hook `clip_gradients`.
    """

    clip_grad: float
    backbone: nn.Module

    def on_after_backward(self) -> None:
        clip, self.clip_grad = self.clip_grad, 0.0
        super().on_after_backward()  # type: ignore[misc]
        self.clip_grad = clip

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)  # type: ignore[misc]
        if self.clip_grad:
            for p in self.backbone.parameters():  # each by its own norm, as the paper's code does
                if p.grad is not None:
                    nn.utils.clip_grad_norm_(p, self.clip_grad)

    def clip_gradients(self, *args: Any, **kwargs: Any) -> None:
        LightningModule.clip_gradients(self, *args, **kwargs)  # type: ignore[arg-type]


class DeepClusterV2:
    """Mixed in before the host's DeepClusterV2: says at once what would fail an epoch later."""

    local_memory_index: Tensor
    num_prototypes: list[int]
    trainer: Trainer

    def on_train_start(self) -> None:
        super().on_train_start()  # type: ignore[misc]
        loader: Any = self.trainer.train_dataloader
        if self.trainer.num_training_batches < len(loader):
            raise ConfigError(
                "method=deepclusterv2 clusters what a whole epoch has seen: leave "
                "limit_train_batches out, or give less data (data.fraction)"
            )
        images, most = len(self.local_memory_index), max(self.num_prototypes)
        if most > images:
            raise ConfigError(
                f"method_kwargs.num_prototypes: {most} prototypes cannot be drawn from the {images}"
                " images that an epoch holds; give fewer"
            )


def deepclusterv2_loss(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The host's loss, 0 instead of NaN in its first epoch, when no image is assigned yet."""

    def loss(outputs: Tensor, assignments: Tensor, temperature: float = 0.1) -> Tensor:
        if (assignments < 0).all():
            return 0.0 * outputs.sum()
        return original(outputs, assignments, temperature)

    return loss


class SwAV:
    """Mixed in before 1.0.2's SwAV: prototypes of norm one, as on main and in the paper's code."""

    prototypes: Any

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.prototypes.weight_g.data.fill_(1)
        self.prototypes.weight_g.requires_grad = False


def mend_barlow_loss(losses: Any) -> None:
    """Barlow Twins (`solo.losses.barlow`) all-reduces its correlation matrix behind autograd's
    back: with several processes the gradient is 1 / world_size of the true one."""

    def all_reduce(tensor: Tensor) -> None:
        tensor.copy_(sum_over_processes(tensor, dist.group.WORLD))

    losses.dist = SimpleNamespace(**vars(dist) | {"all_reduce": all_reduce})


# Mixed in before the classes of these methods.
MENDS: dict[str, type] = {"deepclusterv2": DeepClusterV2, "dino": DINO}


def accuracy_at_few_classes(accuracy_at_k: Callable[..., Any]) -> Callable[..., Any]:
    """The host's `accuracy_at_k`, whose top 5 of a momentum probe fails where classes are fewer."""

    def clamped(outputs: Tensor, targets: Tensor, top_k: Sequence[int] = (1, 5)) -> Any:
        return accuracy_at_k(outputs, targets, top_k=[min(k, outputs.size(1)) for k in top_k])

    return clamped


def mend_modules() -> None:
    """Puts what this file has for the host's functions in their places, in its imported modules."""
    importlib.import_module("solo.utils.whitening").Whitening2d.forward = whiten
    mend_barlow_loss(importlib.import_module("solo.losses.barlow"))
    deepcluster: Any = importlib.import_module("solo.methods.deepclusterv2")
    deepcluster.deepclusterv2_loss_func = deepclusterv2_loss(deepcluster.deepclusterv2_loss_func)
    base: Any = importlib.import_module("solo.methods.base")
    base.accuracy_at_k = accuracy_at_few_classes(base.accuracy_at_k)


def host_loss(module: str, name: str) -> Callable[..., Tensor]:
    """A loss function of the host, mended."""
    return getattr(importlib.import_module(f"solo.losses.{module}"), name)


def whiten(self: Any, x: Tensor) -> Tensor:
    """W-MSE's whitening of N x D features by the Cholesky factor of their covariance, N > D.

    Stands in for `Whitening2d.forward`, which calls two deprecated functions and solves in the
    precision that autocast has chosen. Raises ConfigError where the covariance is singular.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        x = x - x.mean(0)
        covariance = x.T @ x / (len(x) - 1)
        identity = torch.eye(self.output_dim, dtype=x.dtype, device=x.device)
        factor, failed = torch.linalg.cholesky_ex((1 - self.eps) * covariance + self.eps * identity)
        if failed.item():
            raise ConfigError(
                f"method=wmse: the covariance of {len(x)} x {self.output_dim} features is singular;"
                " lower method_kwargs.proj_output_dim, raise method_kwargs.whitening_size, or give "
                "method_kwargs.whitening_eps a value such as 1e-4"
            )
        return torch.linalg.solve_triangular(factor, x.T, upper=False).T
