"""What both generations of the host leave out of a training run, as one cooperative mixin."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from solo_mim.host.knn import OnlineKNN


def _rng_state() -> dict[str, Any]:
    """State of every generator in types that load with `weights_only=True`."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    state = {
        "python": random.getstate(),
        "numpy": (
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            *map(float, rest),
        ),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_rng_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    keys = keys.numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        (name, keys, int(position), int(has_gauss), cached)
    )
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class Lifecycle:
    """Mixed in before a host's LightningModule: mended kNN, and state that its checkpoints
    forget."""

    _rng_to_restore: dict[str, Any] | None = None

    knn_eval: bool
    knn: OnlineKNN
    momentum_updater: Any  # of methods with a momentum network

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()  # type: ignore[misc]
        # With validation every few epochs the host would keep the features of stale weights.
        if self.knn_eval:
            self.knn.reset()

    def on_train_start(self) -> None:
        super().on_train_start()  # type: ignore[misc]
        if self._rng_to_restore is not None:
            _set_rng_state(self._rng_to_restore)
            self._rng_to_restore = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        state: dict[str, Any] = {"rng": _rng_state()}
        if hasattr(self, "momentum_updater"):
            # Without it a resumed run restarts at base_tau and drags the momentum network along.
            state["tau"] = self.momentum_updater.cur_tau
        checkpoint["solo_mim"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        state = checkpoint.get(
            "solo_mim", {}
        )  # absent from checkpoints written by solo-learn itself
        self._rng_to_restore = state.get("rng")
        if "tau" in state:
            self.momentum_updater.cur_tau = state["tau"]
