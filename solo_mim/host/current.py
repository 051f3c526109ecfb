"""solo-learn main: imported as it is; only what is broken is mended."""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any

from omegaconf import DictConfig, OmegaConf

from solo_mim.backbones import backbone_factory
from solo_mim.errors import ConfigError
from solo_mim.evaluation.knn import OnlineKNN
from solo_mim.host import mended
from solo_mim.host.baselines import OPTIONS, bound
from solo_mim.host.lifecycle import Lifecycle, OwnOptions
from solo_mim.optim import hold_rates

with warnings.catch_warnings():
    # Of torch.cuda.amp.custom_fwd, and of its backbones' names in timm's registry.
    warnings.simplefilter("ignore")
    host_methods: Any = importlib.import_module("solo.methods")
    host_base: Any = importlib.import_module("solo.methods.base")
    mended.mend_modules()

host_base.WeightedKNNClassifier = OnlineKNN  # constructed in the host's BaseMethod.__init__
HOST_BACKBONES = dict(host_base.BaseMethod._BACKBONES)


class Adapter(Lifecycle):
    """Mixed in before a method class of main."""

    backbone_name: str
    extra_optimizer_args: dict[str, Any]

    def __init__(self, cfg: DictConfig):
        name = cfg.backbone.name
        # The host looks a backbone up by name, and where the name starts with "resnet" it does the
        # stem surgery by data set name. Under this one it finds ours, finished, and leaves it
        # alone; methods that ask for "resnet" or "vit" in the name find that too.
        backbones = host_base.BaseMethod._BACKBONES
        key = f"solo_mim {name}"
        backbones[key] = backbone_factory(cfg, HOST_BACKBONES)
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
                given = static.keywords
                held = zip(given["param_group_indexes"], given["lrs_to_replace"], strict=True)
                hold_rates(scheduler, dict(held))
        return configured


class BaseMethod(OwnOptions, Adapter, host_base.BaseMethod):
    """Base class for methods of ours and of third parties: main's own, mended."""


class BaseMomentumMethod(OwnOptions, Adapter, host_base.BaseMomentumMethod):
    """Base class for methods with a momentum network: main's own, mended."""


_ANY_NUMBER_OF_VIEWS = {"byol", "mae", "simclr", "supcon", "wmse"}
_MULTI_CROP = {"byol", "simclr", "supcon", "swav", "wmse"}  # W-MSE: its features alone
METHODS = bound(
    host_methods.METHODS, Adapter, mended.MENDS, OPTIONS, _ANY_NUMBER_OF_VIEWS, _MULTI_CROP
)
