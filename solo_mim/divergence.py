"""The end of a training that has diverged, before its weights are evaluated or saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from solo_mim.errors import RunError


def diverged(
    trainer: Trainer, what: str, lr: float, reason: object, step: int | None = None
) -> RunError:
    """The error of a training, as of `Divergence`, that has diverged in the present epoch, in a
    step counted from 1, by default the present one."""
    step = step or trainer.fit_loop.batch_idx + 1
    return RunError(
        f"optimizer.lr={lr:g}: {what} has diverged in epoch {trainer.current_epoch + 1}, "
        f"step {step}: {reason}; lower it"
    )


class Divergence(Callback):
    """Raises RunError where the loss of a step, or a weight before validation and at the end of an
    epoch, is not finite: in all processes at the same step, so that none waits for another.

    On CUDA, where reading a flag at once would stall the step, a loss is looked at one step later,
    and the last one before validation and at the end of the epoch.

    Args:
        what: that diverges, such as the method.
        lr: learning rate as configured.
    """

    def __init__(self, what: str, lr: float) -> None:
        self.what, self.lr = what, lr
        self._pending: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step's loss; on CUDA that of the step before."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return
        self._settle(trainer)
        flag, arrived = _non_finite([loss]), None
        if flag.is_cuda:
            # The copy lands in pinned memory and waits for nobody.
            device, flag = flag.device, flag.to("cpu", non_blocking=True)
            arrived = torch.cuda.current_stream(device).record_event()
        self._pending = batch_idx + 1, flag, arrived
        if arrived is None:
            self._settle(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks loss and weights before the checkpoint is written, or they are evaluated."""
        self._settle(trainer)
        if _non_finite(pl_module.parameters()).item():
            raise diverged(trainer, self.what, self.lr, "the weights are not finite")

    on_validation_start = on_train_epoch_end

    def _settle(self, trainer: Trainer) -> None:
        if self._pending is None:
            return
        (step, flag, arrived), self._pending = self._pending, None
        if arrived is not None:
            arrived.synchronize()
        if flag.item():
            raise diverged(trainer, self.what, self.lr, "the loss is not finite", step)


def _non_finite(tensors: Iterable[Tensor]) -> Tensor:
    """1 where an entry in any process is NaN or inf, else 0."""
    flag = (~torch.stack([x.detach().isfinite().all() for x in tensors]).all()).int()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag
