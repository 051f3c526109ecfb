"""What both generations of the host leave out of a training run, as one cooperative mixin."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig

from solo_mim.host.checks import refuse_impossible_batch
from solo_mim.host.knn import OnlineKNN

# SwAV and DeepClusterV2 register these when training starts, after a checkpoint has been loaded.
_LATE_BUFFERS = ("queue", "local_memory_index", "local_memory_embeddings")
# All4One computes it in the first step, and again where it is not there.
_CACHE = "pos_enc.penc.penc.cached_penc"
LATE_STATE = (*_LATE_BUFFERS, _CACHE)


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


class Lifecycle(SeededEpochs):
    """Mixed in before a host's LightningModule: mended kNN, and resuming to equal weights."""

    device: torch.device
    knn_eval: bool
    knn: OnlineKNN
    momentum_updater: Any  # of methods with a momentum network
    last_step: int

    def on_train_start(self) -> None:
        refuse_impossible_batch(self.cfg, self.cfg.method, self.trainer.world_size)
        restored: dict[str, torch.Tensor] = {
            name: buffer.clone()
            for name, buffer in self._buffers.items()  # type: ignore[attr-defined]
            if name in _LATE_BUFFERS
        }
        super().on_train_start()  # type: ignore[misc]
        for name, buffer in restored.items():
            getattr(self, name).copy_(buffer)
        if hasattr(self, "momentum_updater"):
            # The host starts from step 0: with accumulated gradients the first batch after resuming
            # would move the momentum network without an optimiser step.
            self.last_step = self.trainer.global_step
            if self.last_step > 0:
                # Nor is tau in the checkpoint: a resumed run would restart at base_tau and drag the
                # momentum network along.
                self._update_tau()

    def _update_tau(self) -> None:
        """The momentum coefficient of the next step, a function of the step alone."""
        self.momentum_updater.update_tau(
            cur_step=self.trainer.global_step, max_steps=self.trainer.estimated_stepping_batches
        )

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        # With validation every few epochs the host would keep the features of stale weights.
        if self.knn_eval:
            self.knn.reset()

    def _base_shared_step(self, X: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
        """The host's, with loss and accuracies of the labelled images alone, 0 where none is.

        The host's loss of a batch without a label is NaN, and it counts unlabelled images as wrong.
        """
        out = super()._base_shared_step(X, targets)  # type: ignore[misc]
        labelled = targets >= 0
        if not labelled.all():
            logits = out["logits"]
            count = labelled.sum().clamp_min(1)
            loss = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
            out["loss"] = loss / count
            for key, k in (("acc1", 1), ("acc5", min(5, logits.shape[1]))):
                hits = (logits.topk(k).indices == targets[:, None]).any(1) & labelled
                out[key] = 100 * hits.sum() / count
        return out

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        checkpoint["state_dict"].pop(_CACHE, None)
        for name in _LATE_BUFFERS:
            value = checkpoint["state_dict"].get(name)
            if value is not None and not hasattr(self, name):
                self.register_buffer(  # type: ignore[attr-defined]
                    name, torch.empty_like(value, device=self.device)
                )
