"""solo-learn main: imported as it is; only what is broken is mended."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from omegaconf import DictConfig

from solo_mim.errors import ConfigError, nearest
from solo_mim.host.backbones import OUR_BACKBONES, backbone_factory
from solo_mim.host.knn import OnlineKNN
from solo_mim.host.lifecycle import Lifecycle

with warnings.catch_warnings():
    # Of torch.cuda.amp.custom_fwd, and of its backbones' names in timm's registry.
    warnings.simplefilter("ignore")
    host_methods: Any = importlib.import_module("solo.methods")
    host_base: Any = importlib.import_module("solo.methods.base")

host_base.WeightedKNNClassifier = OnlineKNN  # constructed in the host's BaseMethod.__init__

# The host looks a backbone up by name, and by a name that starts with "resnet" it also does the
# stem surgery by data set name. Under this key it finds ours, finished, and leaves it alone.
_OUR_KEY = "solo_mim"


class Adapter(Lifecycle):
    """Mixed in before a method class of main."""

    def __init__(self, cfg: DictConfig):
        name = cfg.backbone.name
        if name not in BACKBONES:
            raise ConfigError(f"backbone.name: unknown backbone '{name}'{nearest(name, BACKBONES)}")
        factory = backbone_factory(cfg)
        if factory is not None:
            backbones = host_base.BaseMethod._BACKBONES
            backbones[_OUR_KEY] = lambda method, **kwargs: factory(**kwargs)
            cfg.backbone.name = _OUR_KEY
        try:
            super().__init__(cfg)  # type: ignore[call-arg]
        except AssertionError as error:
            raise ConfigError(
                f"method={cfg.method}: solo-learn refuses this configuration: {error}"
            ) from error
        finally:
            cfg.backbone.name = name
            host_base.BaseMethod._BACKBONES.pop(_OUR_KEY, None)
        self.backbone_name = name


class BaseMethod(Adapter, host_base.BaseMethod):
    """Base class for methods of ours and of third parties: main's own, mended."""


class BaseMomentumMethod(Adapter, host_base.BaseMomentumMethod):
    """Base class for methods with a momentum network: main's own, mended."""


def _bind(cls: type) -> type:
    """`cls` with the adapter before it, bound in this module's globals so that it pickles."""
    bound: Any = type(
        cls.__name__, (Adapter, cls), {"__module__": __name__, "__doc__": cls.__doc__}
    )
    globals()[cls.__name__] = bound
    return bound


BACKBONES = sorted({*host_base.BaseMethod._BACKBONES, *OUR_BACKBONES})
METHODS = {
    name: _bind(cls) for name, cls in host_methods.METHODS.items() if name not in ("base", "linear")
}
