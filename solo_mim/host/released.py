"""solo-learn 1.0.2 under today's torch and lightning, behind main's contract.

`Baseline` goes before the host's own method classes and changes their life cycle only. New methods
inherit `BaseMethod` or `BaseMomentumMethod`, whose shared step calls `self(X)`, so that
`training_step` yields what `forward` returns, as on main; a baseline's projector would run twice.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch
import lightning.pytorch.callbacks
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo_mim.backbones import backbone_factory
from solo_mim.evaluation.knn import OnlineKNN
from solo_mim.host import mended
from solo_mim.host.baselines import RELEASED_OPTIONS, bound
from solo_mim.host.lifecycle import Lifecycle, OwnOptions
from solo_mim.optim import optimisation


@contextlib.contextmanager
def _modules_that_solo_expects() -> Iterator[None]:
    """`pytorch_lightning` is lightning 2 and lightning-bolts' schedule a blank, while in here.

    The host must subclass the LightningModule that our Trainer knows. lightning-bolts does not
    import under lightning 2; only `configure_optimizers` uses its schedule, and the adapter
    replaces that.
    """
    schedule = types.ModuleType("pl_bolts.optimizers.lr_scheduler")
    schedule.LinearWarmupCosineAnnealingLR = None  # type: ignore[attr-defined]
    stand_ins = {
        "pytorch_lightning": lightning.pytorch,
        "pytorch_lightning.callbacks": lightning.pytorch.callbacks,
        "pl_bolts": types.ModuleType("pl_bolts"),
        "pl_bolts.optimizers": types.ModuleType("pl_bolts.optimizers"),
        "pl_bolts.optimizers.lr_scheduler": schedule,
    }
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if module})


with _modules_that_solo_expects(), warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # torch.cuda.amp.custom_fwd, in its whitening
    host_methods: Any = importlib.import_module("solo.methods")
    host_base: Any = importlib.import_module("solo.methods.base")
    host_backbones: Any = importlib.import_module("solo.utils.backbones")
    mended.mend_modules()


HOST_BACKBONES: dict[str, Any] = {
    name: getattr(host_backbones, name, None) for name in host_base.BaseMethod._SUPPORTED_ENCODERS
}


@contextlib.contextmanager
def _backbone_in_slot(cfg: DictConfig) -> Iterator[None]:
    """While in here the host's `vit_tiny` is the configured backbone, whatever that is.

    1.0.2 maps names to factories in a literal inside __init__, but imports this one there by name.
    Its stem surgery, on names containing "resnet", is not reached.
    """
    host_backbones.vit_tiny = backbone_factory(cfg, HOST_BACKBONES)
    try:
        yield
    finally:
        host_backbones.vit_tiny = HOST_BACKBONES["vit_tiny"]


class Adapter(Lifecycle):
    """Mixed in before a 1.0.2 class: main's constructor, names, optimisation, validation hooks."""

    trainer: lightning.pytorch.Trainer
    backbone: nn.Module
    momentum_backbone: nn.Module

    def __init__(self, cfg: DictConfig):
        cfg = self.add_and_assert_specific_cfg(cfg)
        with _backbone_in_slot(cfg):
            super().__init__(**self._constructor_arguments(cfg))
        self.cfg = cfg
        self.backbone_name: str = cfg.backbone.name
        self.no_channel_last: bool = cfg.performance.disable_channel_last
        self.validation_step_outputs: list[Any] = []
        self.knn_eval = cfg.knn_eval.enabled
        self.knn_k = cfg.knn_eval.k
        if self.knn_eval:
            self.knn = OnlineKNN(k=self.knn_k, distance_fx=cfg.knn_eval.distance_func)

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Main's hook, in which methods add their defaults to a completed recipe in place."""
        return cfg

    def _constructor_arguments(self, cfg: DictConfig) -> dict[str, Any]:
        """Keyword arguments of 1.0.2's constructors from main's configuration."""
        rates = ("batch_size", "lr", "weight_decay", "classifier_lr")
        schedule = ("min_lr", "warmup_start_lr", "warmup_epochs", "lr_decay_steps")
        counts = ("num_classes", "num_large_crops", "num_small_crops")
        arguments: dict[str, Any] = {
            "encoder": "vit_tiny",  # see _backbone_in_slot
            "backbone_args": OmegaConf.to_container(cfg.backbone.kwargs),
            "max_epochs": cfg.max_epochs,
            "optimizer": cfg.optimizer.name,
            "lars": cfg.optimizer.name == "lars",
            **{name: cfg.optimizer[name] for name in rates},
            "exclude_bias_n_norm": False,  # read from optimizer.kwargs by configure_optimizers
            "accumulate_grad_batches": cfg.accumulate_grad_batches,
            "extra_optimizer_args": OmegaConf.to_container(cfg.optimizer.kwargs),
            "scheduler": cfg.scheduler.name,
            **{name: cfg.scheduler[name] for name in schedule},
            **{name: cfg.data[name] for name in counts},
            "knn_eval": False,  # its kNN breaks on construction; __init__ sets ours afterwards
        }
        if isinstance(self, host_base.BaseMomentumMethod):
            arguments |= {
                "base_tau_momentum": cfg.momentum.base_tau,
                "final_tau_momentum": cfg.momentum.final_tau,
                "momentum_classifier": cfg.momentum.classifier,
            }
        return arguments

    def _laid_out(self, X: Tensor) -> Tensor:
        return X if self.no_channel_last else X.to(memory_format=torch.channels_last)

    # Modules live under main's names, so that state dicts, and with them checkpoints, cross.

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(_MAIN_NAMES.get(name, name), value)

    encoder = property(lambda self: self.backbone)
    momentum_encoder = property(lambda self: self.momentum_backbone)

    def configure_optimizers(self) -> Any:
        """Main's: groups, optimiser by name, warm-up and cosine per step from 3e-5.

        1.0.2 steps its schedule once an epoch from .003: a run of ten epochs never leaves warm-up.
        """
        groups = self.learnable_params  # type: ignore[attr-defined]
        for group in groups:
            if group.get("name") in _MAIN_NAMES:
                group["name"] = _MAIN_NAMES[group["name"]]
        # main, as 1.0.2, multiplies every rate by the batches that are accumulated.
        return optimisation(groups, self.cfg, self, self.cfg.accumulate_grad_batches)

    # lightning 2 refuses this hook of the host, which on_validation_epoch_end runs.
    validation_epoch_end = None

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """The host's, its output kept for the end of the epoch."""
        outputs = super().validation_step(batch, batch_idx)  # type: ignore[misc]
        self.validation_step_outputs.append(outputs)
        return None

    def on_validation_epoch_end(self) -> None:
        """The host's `validation_epoch_end`: accuracies weighted by batch size, online kNN."""
        super().validation_epoch_end(self.validation_step_outputs)  # type: ignore[misc]
        self.validation_step_outputs.clear()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """lightning 2 calls this hook without `dataloader_idx`, which 1.0.2's momentum classes
        expect; tau follows main's count of steps, which limited and accumulated batches change."""
        hook = super().on_train_batch_end  # type: ignore[misc]
        if isinstance(self, host_base.BaseMomentumMethod):
            hook(outputs, batch, batch_idx, 0)
            self._update_tau()
        else:
            hook(outputs, batch, batch_idx)


_MAIN_NAMES = {"encoder": "backbone", "momentum_encoder": "momentum_backbone"}


class Baseline(Adapter):
    """Before one of 1.0.2's own methods: its method_kwargs become constructor arguments."""

    def _constructor_arguments(self, cfg: DictConfig) -> dict[str, Any]:
        method_kwargs = OmegaConf.to_container(cfg.method_kwargs)
        return super()._constructor_arguments(cfg) | dict(method_kwargs)  # type: ignore[arg-type]

    def base_forward(self, X: Tensor) -> dict[str, Tensor]:
        """In the memory layout that main gives its images."""
        return super().base_forward(self._laid_out(X))  # type: ignore[misc]

    def base_momentum_forward(self, X: Tensor) -> dict[str, Tensor]:
        return super().base_momentum_forward(self._laid_out(X))  # type: ignore[misc]

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """The host's, with main's name for the projected features, `z`."""
        out = super().forward(X)  # type: ignore[misc]
        old = next((name for name in ("z", "q", "v", "p") if name in out), None)
        return out if old is None else {**out, "z": out[old]}


class BaseMethod(OwnOptions, Adapter, host_base.BaseMethod):
    """Base class for methods of ours and of third parties, with the contract of main's."""

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """Maps images N x C x H x W to `feats`, N x features_dim, and `logits`, N x classes."""
        feats = self.backbone(self._laid_out(X))
        return {"logits": self.classifier(feats.detach()), "feats": feats}

    def base_forward(self, X: Tensor) -> dict[str, Tensor]:
        """What the host's shared step calls: here all of `forward`, so that steps yield `z`."""
        return self(X)


class BaseMomentumMethod(BaseMethod, host_base.BaseMomentumMethod):
    """Base class for methods with a momentum network, with the contract of main's."""

    @torch.no_grad()
    def momentum_forward(self, X: Tensor) -> dict[str, Tensor]:
        """Maps images to `feats` of the momentum backbone; subclasses add their projections."""
        return {"feats": self.momentum_backbone(self._laid_out(X))}

    def base_momentum_forward(self, X: Tensor) -> dict[str, Tensor]:
        """1.0.2's name of `momentum_forward`, called by its shared step."""
        return self.momentum_forward(X)


_MENDS = mended.MENDS | {"swav": mended.SwAV}
METHODS = bound(host_methods.METHODS, Baseline, _MENDS, RELEASED_OPTIONS, {"wmse"}, {"simclr"})
