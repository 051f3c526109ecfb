"""The seam to solo-learn: the only folder that imports `solo`.

Two generations of solo-learn are in use and both stand behind one contract, that of its main
branch: `BaseMethod(cfg)` with `backbone`, `features_dim`, `learnable_params`, `forward(X) -> dict`
and `training_step`, and `METHODS[name](cfg)`.

- `released`: solo-learn 1.0.2, what the package registry has; adapted at import.
- `current`: a checkout of solo-learn main; imported as it is, only what is broken is mended.

Which of them is found on the import path decides. Checkpoint keys are main's in both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from solo_mim.backbones import OUR_BACKBONES, backbone_factory
from solo_mim.host.mended import host_loss
from solo_mim.installed import host_generation

GENERATION = host_generation()

if GENERATION == "current":
    from solo_mim.host.current import HOST_BACKBONES, METHODS, BaseMethod, BaseMomentumMethod
else:
    from solo_mim.host.released import HOST_BACKBONES, METHODS, BaseMethod, BaseMomentumMethod

BACKBONES = sorted({*HOST_BACKBONES, *OUR_BACKBONES})
_host_simclr = host_loss("simclr", "simclr_loss_func")


def _simclr(z1: Tensor, z2: Tensor) -> Tensor:
    if GENERATION == "released":
        return _host_simclr(z1, z2)
    return _host_simclr(torch.cat([z1, z2]), torch.arange(len(z1), device=z1.device).repeat(2))


# Of two views, N x D each, with the host's own defaults.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "barlow_twins": host_loss("barlow", "barlow_loss_func"),
    "simclr": _simclr,
    "vicreg": host_loss("vicreg", "vicreg_loss_func"),
}


def build_backbone(cfg: DictConfig, method: str | None) -> nn.Module:
    """The backbone as a method would have it, in its first state; fills `cfg.backbone.kwargs` in.

    MAE and MoCo v3 of main have vision transformers of their own. Raises ConfigError as
    `backbone_factory`.
    """
    of_host = (method,) if GENERATION == "current" else ()
    return backbone_factory(cfg, HOST_BACKBONES)(*of_host, **cfg.backbone.kwargs)


__all__ = [
    "BACKBONES",
    "GENERATION",
    "LOSSES",
    "METHODS",
    "BaseMethod",
    "BaseMomentumMethod",
    "build_backbone",
]
