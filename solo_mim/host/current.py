"""solo-learn main: imported as it is; only what is broken is mended."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo_mim.backbones import (
    OUR_BACKBONES,
    backbone_factory,
    fill_backbone_kwargs,
    refuse_unknown_backbone,
)
from solo_mim.errors import ConfigError
from solo_mim.evaluation.knn import OnlineKNN
from solo_mim.host import mended
from solo_mim.host.baselines import OPTIONS
from solo_mim.host.checks import refuse_impossible_batch, refuse_impossible_views
from solo_mim.host.lifecycle import Lifecycle, OwnOptions, fill_options
from solo_mim.optim import hold_rates

with warnings.catch_warnings():
    # Of torch.cuda.amp.custom_fwd, and of its backbones' names in timm's registry.
    warnings.simplefilter("ignore")
    host_methods: Any = importlib.import_module("solo.methods")
    host_base: Any = importlib.import_module("solo.methods.base")
    mended.mend_modules()

host_base.WeightedKNNClassifier = OnlineKNN  # constructed in the host's BaseMethod.__init__


def build_backbone(cfg: DictConfig, method: str | None) -> nn.Module:
    """The backbone as a method would have it, in its first state; fills `cfg.backbone.kwargs` in.

    Args:
        cfg: read are `backbone`, `augmentations` and `data`.
        method: MAE and MoCo v3 have vision transformers of their own.

    Raises:
        ConfigError: unknown backbone, stem, or argument of it.
    """
    name = cfg.backbone.name
    refuse_unknown_backbone(name, BACKBONES)
    fill_backbone_kwargs(cfg)
    factory = backbone_factory(cfg, host_base.BaseMethod._BACKBONES.get(name))
    return factory(method, **cfg.backbone.kwargs)


class Adapter(Lifecycle):
    """Mixed in before a method class of main."""

    backbone_name: str
    extra_optimizer_args: dict[str, Any]

    def __init__(self, cfg: DictConfig):
        name = cfg.backbone.name
        refuse_unknown_backbone(name, BACKBONES)
        fill_backbone_kwargs(cfg)
        # The host looks a backbone up by name, and where the name starts with "resnet" it does the
        # stem surgery by data set name. Under this one it finds ours, finished, and leaves it
        # alone; methods that ask for "resnet" or "vit" in the name find that too.
        backbones = host_base.BaseMethod._BACKBONES
        key = f"solo_mim {name}"
        backbones[key] = backbone_factory(cfg, backbones.get(name))
        cfg.backbone.name = key
        threshold = logging.root.manager.disable
        logging.disable(logging.WARNING)  # of schedules per step, which resume exactly here
        try:
            super().__init__(cfg)  # type: ignore[call-arg]
        except AssertionError as error:
            raise ConfigError(
                f"method={cfg.method}: solo-learn refuses this configuration: {error}"
            ) from error
        finally:
            logging.disable(threshold)
            cfg.backbone.name = name
            del backbones[key]
        self.backbone_name = name
        # A checkpoint holds them; plain ones can be loaded with weights_only=True.
        self.extra_optimizer_args = OmegaConf.to_container(cfg.optimizer.kwargs)  # type: ignore[assignment]

    def configure_optimizers(self) -> Any:
        """The host's, without what it puts into the schedule's state for static rates."""
        configured = super().configure_optimizers()  # type: ignore[misc]
        if isinstance(configured, tuple):
            _, (scheduler,) = configured
            scheduler = scheduler["scheduler"] if isinstance(scheduler, dict) else scheduler
            static = vars(scheduler).pop("get_lr", None)  # a partial of the host's `static_lr`
            if static is not None:
                groups, rates = (
                    static.keywords[k] for k in ("param_group_indexes", "lrs_to_replace")
                )
                hold_rates(scheduler, dict(zip(groups, rates, strict=True)))
        return configured


class BaseMethod(OwnOptions, Adapter, host_base.BaseMethod):
    """Base class for methods of ours and of third parties: main's own, mended."""


class BaseMomentumMethod(OwnOptions, Adapter, host_base.BaseMomentumMethod):
    """Base class for methods with a momentum network: main's own, mended."""


# Written for any number of large crops, and for small crops beside them.
_ANY_NUMBER_OF_VIEWS = {"byol", "mae", "simclr", "supcon", "wmse"}
_MULTI_CROP = {"byol", "simclr", "supcon", "swav", "wmse"}  # W-MSE: its features alone


def _complete(cfg: DictConfig, *, method: str, cls: Any) -> DictConfig:
    refuse_impossible_views(cfg, method, _ANY_NUMBER_OF_VIEWS, _MULTI_CROP)
    if declared := OPTIONS.get(method):
        fill_options(cfg, declared)
    cfg = cls.add_and_assert_specific_cfg(cfg)
    refuse_impossible_batch(cfg, method)
    return cfg


def _bind(method: str, cls: Any) -> type:
    """`cls` with the adapter before it, in this module's globals so that the class pickles."""
    namespace = {
        "__module__": __name__,
        "__doc__": cls.__doc__,
        "Options": OPTIONS.get(method),
        "add_and_assert_specific_cfg": staticmethod(partial(_complete, method=method, cls=cls)),
    }
    mends = {"dino": (mended.DINO,), "deepclusterv2": (mended.DeepClusterV2,)}.get(method, ())
    bound: Any = type(cls.__name__, (Adapter, *mends, cls), namespace)
    globals()[cls.__name__] = bound
    return bound


def _simclr(z1: Tensor, z2: Tensor) -> Tensor:
    images = torch.arange(len(z1), device=z1.device).repeat(2)
    return mended.host_loss("simclr", "simclr_loss_func")(torch.cat([z1, z2]), images)


# Of two views, N x D each, with the host's own defaults.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "barlow_twins": mended.host_loss("barlow", "barlow_loss_func"),
    "simclr": _simclr,
    "vicreg": mended.host_loss("vicreg", "vicreg_loss_func"),
}

BACKBONES = sorted({*host_base.BaseMethod._BACKBONES, *OUR_BACKBONES})
METHODS = {
    name: _bind(name, cls)
    for name, cls in host_methods.METHODS.items()
    if name not in ("base", "linear")
}
