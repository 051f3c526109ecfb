"""What is seen of training: a bar with the loss terms, and one line per epoch that stays."""

from __future__ import annotations

import os
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from solo_mim.errors import first

# What an epoch's line shows beside the method's own terms, in this order.
_SHOWN = {"val_acc1": "probe", "val_knn_acc1": "kNN"}
_HOUSEKEEPING = {
    "train_n_positives",
    *(f"train_{probe}{name}" for probe in ("", "momentum_") for name in ("acc1", "acc5")),
    *("train_class_loss", "train_momentum_class_loss"),
}


def _skipped(trainer: Trainer) -> list[str]:
    """The unreadable images that this process has passed over, in the order met."""
    return getattr(getattr(trainer, "datamodule", None), "corrupt_images", [])


def _terms(metrics: dict[str, Any], suffix: str) -> dict[str, float]:
    """The method's own logged terms, shortened: `train_explicit_mim_total_step` -> `total`."""
    found = {}
    for key, value in metrics.items():
        name = key.removesuffix(suffix)
        # DINO's, and ReSSL's in 1.0.2, is called `dino_loss`.
        own = name.startswith("train_") or name.endswith("_loss")
        if key.endswith(suffix) and own and name not in _HOUSEKEEPING:
            found[name.removeprefix("train_").removeprefix("explicit_mim_")] = float(value)
    return found


def _duration(seconds: float) -> str:
    """`9 s`, `5 min`, `2.5 h`: the largest unit of which there are two or more."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class LossBar(TQDMProgressBar):
    """lightning's bar with the loss terms of the step in place of the version number."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The bar's right-hand side."""
        terms = _terms(trainer.callback_metrics, "_step")
        return {name: f"{value:.3f}" for name, value in terms.items()}


class CPUNote(Callback):
    """Says after three steps of a session how long training will take here, where that is hours:
    the shipped recipes of large networks are meant for GPUs."""

    def __init__(self) -> None:
        self._steps: list[float] = []  # when each has ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Told by the steps after the first, which warms up."""
        if len(self._steps) == 3 or not trainer.is_global_zero:
            return
        self._steps.append(time.perf_counter())
        if len(self._steps) < 3 or trainer.max_epochs is None:
            return
        step = (self._steps[2] - self._steps[0]) / 2
        to_come = trainer.num_training_batches * (trainer.max_epochs - trainer.current_epoch)
        if (left := step * (to_come - batch_idx - 1)) >= 7200:
            print(
                f"note: there is no GPU, and {_duration(step)} a step make {_duration(left)}; "
                "+budget=cpu trains a small network for a few epochs",
                flush=True,
            )


class EpochLines(Callback):
    """Prints one line per epoch and measures throughput.

    Attributes:
        images_per_second: of each training epoch, validation excluded; an image counts once,
            however many views are made of it.
        loads: the system's load average at the end of each epoch, where it has one.
    """

    def __init__(self) -> None:
        self.images_per_second: list[float] = []
        self.loads: list[float] = []
        self._images, self._seconds, self._epoch_started = 0, 0.0, 0.0
        self._began, self._first = 0.0, 0
        self._skipped = 0  # unreadable images that were told of

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on the remaining time is told by the time taken."""
        self._began, self._first = time.perf_counter(), trainer.current_epoch
        self._skipped = len(_skipped(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock: the wait for the first batch counts."""
        self._images, self._epoch_started = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stops the clock at the last batch, before validation."""
        self._images += len(batch[-1]) * trainer.world_size
        self._seconds = time.perf_counter() - self._epoch_started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The epoch's line; logs the backbone's learning rate."""
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"], rank_zero_only=True)
        self.images_per_second.append(self._images / self._seconds)
        if hasattr(os, "getloadavg"):
            self.loads.append(os.getloadavg()[0])
        metrics = trainer.callback_metrics
        parts = [f"{name} {value:.3f}" for name, value in _terms(metrics, "_epoch").items()]
        parts += [f"{short} {float(metrics[k]):.1f}" for k, short in _SHOWN.items() if k in metrics]
        parts.append(f"{self.images_per_second[-1]:,.0f} images/s")
        done = trainer.current_epoch + 1
        taken = (time.perf_counter() - self._began) / (done - self._first)
        parts.append(f"{_duration(taken)} an epoch")
        if trainer.max_epochs and done < trainer.max_epochs:
            parts.append(f"{_duration(taken * (trainer.max_epochs - done))} left")
        if trainer.is_global_zero:
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            print("  ".join([epoch, *parts]), flush=True)
        self._tell_of_skipped(trainer)

    def _tell_of_skipped(self, trainer: Trainer) -> None:
        """Each process those that it has met since it last did."""
        paths = _skipped(trainer)
        new, self._skipped = paths[self._skipped :], len(paths)
        if new:
            several = f"process {trainer.global_rank}: " if trainer.world_size > 1 else ""
            images = f"image{'s' * (len(new) > 1)}"
            print(
                f"  {several}{len(new)} unreadable {images} skipped: {first(new)} "
                "(all will be in result.json, as corrupt_images)",
                flush=True,
            )
