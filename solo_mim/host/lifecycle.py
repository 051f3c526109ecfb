"""What both generations of the host leave out of a training run, as one cooperative mixin."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig

from solo_mim.host.knn import OnlineKNN


class Lifecycle:
    """Mixed in before a host's LightningModule: mended kNN, and resuming to equal weights."""

    cfg: DictConfig
    trainer: Trainer

    knn_eval: bool
    knn: OnlineKNN
    momentum_updater: Any  # of methods with a momentum network

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()  # type: ignore[misc]
        # With validation every few epochs the host would keep the features of stale weights.
        if self.knn_eval:
            self.knn.reset()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)  # type: ignore[misc]
        if batch_idx == 0:
            # Dropout, masks and the like draw from (seed, epoch, process): a resumed run's epoch
            # draws what it would have drawn. Not at the start of the epoch: the loader's own draw
            # comes before that hook where a run is resumed, and after it elsewhere.
            origin = (self.cfg.get("seed", 5), self.trainer.current_epoch, self.trainer.global_rank)
            seed_everything(int(np.random.SeedSequence(origin).generate_state(1)[0]), verbose=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if hasattr(self, "momentum_updater"):
            # Without it a resumed run restarts at base_tau and drags the momentum network along.
            checkpoint["solo_mim"] = {"tau": self.momentum_updater.cur_tau}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        state = checkpoint.get("solo_mim", {})  # absent where solo-learn itself has saved
        if "tau" in state:
            self.momentum_updater.cur_tau = state["tau"]
