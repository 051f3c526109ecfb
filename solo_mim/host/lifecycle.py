"""What both generations of the host leave out of a training run, as one cooperative mixin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig, OmegaConf

from solo_mim.errors import ConfigError
from solo_mim.evaluation.knn import OnlineKNN
from solo_mim.host.checks import refuse_impossible_batch
from solo_mim.options import SECTION, checked_options
from solo_mim.seeding import SeededEpochs

# SwAV and DeepClusterV2 register these when training starts, after a checkpoint has been loaded.
_LATE_BUFFERS = ("queue", "local_memory_index", "local_memory_embeddings")
# All4One computes it in the first step, and again where it is not there.
_CACHE = "pos_enc.penc.penc.cached_penc"
LATE_STATE = (*_LATE_BUFFERS, _CACHE)
_OF_PROCESSES = "solo_mim_late_buffers"  # in a checkpoint: name -> processes x buffer


class Lifecycle(SeededEpochs):
    """Mixed in before a host's LightningModule: mended kNN, and resuming to equal weights."""

    knn_eval: bool
    knn: OnlineKNN
    momentum_updater: Any  # of methods with a momentum network
    last_step: int
    _late: frozenset[str] = frozenset()  # names of the late buffers that this method has
    _restored: Mapping[str, torch.Tensor] = MappingProxyType({})  # of a checkpoint

    def on_train_start(self) -> None:
        refuse_impossible_batch(self.cfg, self.cfg.method, self.trainer.world_size)
        buffers: dict[str, torch.Tensor] = self._buffers  # type: ignore[attr-defined]
        restored = {name: buffers[name].clone() for name in self._late}
        restored.update(self._restored)
        before = set(buffers)
        super().on_train_start()  # type: ignore[misc]
        self._late |= set(_LATE_BUFFERS) & set(buffers) - before
        for name, value in restored.items():
            if value.shape != buffers[name].shape:
                raise ConfigError(
                    f"method={self.cfg.method} has a {name} of {tuple(buffers[name].shape)} here, "
                    f"{tuple(value.shape)} in the checkpoint: resume with its batch and images"
                )
            buffers[name].copy_(value)
        self._restored = {}
        if hasattr(self, "momentum_updater"):
            # The host starts from step 0: with accumulated gradients the first batch after resuming
            # would move the momentum network without an optimiser step.
            self.last_step = self.trainer.global_step
            if self.last_step > 0:
                # Nor is tau in the checkpoint: a resumed run would restart at base_tau.
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
        """With loss and accuracies of the labelled images alone, 0 where none is.

        The host's loss of a batch without a label is NaN, and it counts unlabelled images as wrong.
        """
        return _of_labelled(super()._base_shared_step(X, targets), targets)  # type: ignore[misc]

    def _shared_step_momentum(self, X: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
        """The same of the momentum probe, where there is one."""
        return _of_labelled(super()._shared_step_momentum(X, targets), targets)  # type: ignore[misc]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Each process has late buffers of its own: all of them go into the file."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if self.trainer.world_size > 1:
            checkpoint[_OF_PROCESSES] = {
                name: self.all_gather(getattr(self, name)).cpu()  # type: ignore[attr-defined]
                for name in sorted(self._late)
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ConfigError where a file's late buffers are of another number of processes."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        state = checkpoint["state_dict"]
        state.pop(_CACHE, None)
        of_processes = checkpoint.get(_OF_PROCESSES, {})
        for name in _LATE_BUFFERS:
            value = state.get(name)
            if value is None or (hasattr(self, name) and name not in self._late):
                continue
            shares = of_processes.get(name, value[None])
            if len(shares) != self.trainer.world_size:
                raise ConfigError(
                    f"devices: of method={self.cfg.method} each process has a {name} of its own; "
                    f"the checkpoint has {len(shares)} of them and resumes on as many processes"
                )
            self._restored = {**self._restored, name: shares[self.trainer.global_rank]}
            # Set when training starts: DDP gives all processes the first one's of what it finds.
            if not hasattr(self, name):
                del state[name]


def fill_options(cfg: DictConfig, declared: type) -> Any:
    """Checked options of `cfg.method_kwargs`, which is set to all of them."""
    given: Any = OmegaConf.to_container(cfg.get(SECTION) or OmegaConf.create())
    options: Any = checked_options(declared, given, cfg.method)
    OmegaConf.update(cfg, SECTION, asdict(options), merge=False, force_add=True)
    return options


class OwnOptions:
    """Mixed in before an adapter: a method's options are those that its class declares.

    `Options` is a dataclass (`solo_mim.options`), `options` an instance of what the configuration
    gives. Where a class declares none, nobody checks its `method_kwargs`.
    """

    Options: type | None = None
    options: Any = None

    def __init__(self, cfg: DictConfig):
        options = None
        if self.Options is not None:
            options = fill_options(cfg, self.Options)
        elif cfg.get(SECTION):
            rank_zero_warn(
                f"method={cfg.method} declares no Options: its method_kwargs are not checked"
            )
        super().__init__(cfg)  # type: ignore[call-arg]
        self.options = options


def _of_labelled(out: dict[str, Any], targets: torch.Tensor) -> dict[str, Any]:
    """A step's outputs with the probe's loss and accuracies, if it has one, of labelled images."""
    labelled = targets >= 0
    if "logits" in out and not labelled.all():
        logits = out["logits"]
        count = labelled.sum().clamp_min(1)
        loss = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
        out["loss"] = loss / count
        for key, k in (("acc1", 1), ("acc5", min(5, logits.shape[1]))):
            hits = (logits.topk(k).indices == targets[:, None]).any(1) & labelled
            out[key] = 100 * hits.sum() / count
    return out
