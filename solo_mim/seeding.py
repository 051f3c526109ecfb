"""Random numbers of training that depend on (seed, epoch, process) alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig


class SeededEpochs:
    """Mixed in before a LightningModule: what an epoch draws depends on (seed, epoch, process)."""

    cfg: DictConfig
    trainer: Trainer

    def on_train_epoch_start(self) -> None:
        self._seed()  # DeepClusterV2 draws its first centroids in this hook
        super().on_train_epoch_start()  # type: ignore[misc]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)  # type: ignore[misc]
        if batch_idx == 0:
            # Once more: the loader's own draw comes before the hook above where a run is resumed,
            # and after it elsewhere.
            self._seed()

    def _seed(self) -> None:
        """Dropout, masks and the like draw from (seed, epoch, process): a resumed run's epoch draws
        what it would have drawn."""
        origin = (self.cfg.get("seed", 5), self.trainer.current_epoch, self.trainer.global_rank)
        seed_everything(int(np.random.SeedSequence(origin).generate_state(1)[0]), verbose=False)
