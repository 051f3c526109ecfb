"""Backbones as torchvision or timm build them, and the lines of Python that do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from solo_mim.errors import ConfigError, nearest

_RESNETS = {"resnet18": "resnet18", "resnet50": "resnet50"}
_SIZES = ("tiny", "small", "base", "large")
# Ours, or the host's -> the library's.
MODELS: dict[str, dict[str, str]] = {
    "torchvision": _RESNETS,
    "timm": {
        **_RESNETS,
        **{f"vit_{size}": f"vit_{size}_patch16_224" for size in _SIZES},
        **{f"swin_{size}": f"swin_{size}_patch4_window7_224" for size in _SIZES},
    },
}
TOLERANCE = 1e-5  # of features, as a share of the largest


@dataclass(frozen=True)
class Target:
    """A model of a library without its classifier."""

    library: str
    model: str  # its name there
    kwargs: Mapping[str, Any]
    small_stem: bool  # first convolution and pooling of a ResNet are those for small images

    def build(self) -> nn.Module:
        """In its first state."""
        model: Any
        if self.library == "timm":
            model = timm.create_model(self.model, num_classes=0, **self.kwargs)
        else:
            model = getattr(torchvision.models, self.model)(**self.kwargs)
            model.fc = nn.Identity()
        if self.small_stem:
            model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=2, bias=False)
            model.maxpool = nn.Identity()
        return model

    def lines(self, path: str) -> list[str]:
        """Python that builds it and loads the state dict in a file."""
        kwargs = [f"{key}={value!r}" for key, value in self.kwargs.items()]
        if self.library == "timm":
            arguments = ", ".join([repr(self.model), "num_classes=0", *kwargs])
            lines = ["import timm, torch", f"model = timm.create_model({arguments})"]
        else:
            lines = [
                "import torch, torchvision",
                f"model = torchvision.models.{self.model}({', '.join(kwargs)})",
                "model.fc = torch.nn.Identity()",
            ]
        if self.small_stem:
            lines += [
                "model.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, padding=2, bias=False)",
                "model.maxpool = torch.nn.Identity()",
            ]
        return [*lines, f"model.load_state_dict(torch.load({path!r}, weights_only=True))"]


def target(library: str, backbone: str, stem: str, kwargs: Mapping[str, Any]) -> Target:
    """The library's model for one of our backbones.

    Raises:
        ConfigError: the library has none.
    """
    models = MODELS[library]
    if backbone not in models:
        raise ConfigError(
            f"{library} has no {backbone}, or it is not known to be the same"
            f"{nearest(backbone, models)}"
        )
    small_stem = backbone in _RESNETS and stem == "small"
    return Target(library, models[backbone], dict(kwargs), small_stem)


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, size: int) -> float:
    """Largest absolute difference of the features of two models in evaluation mode, relative to the
    largest feature of the first, on images of noise `size` pixels wide."""
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected, found = (model.eval()(images).flatten(1) for model in (one, other))
    if expected.shape != found.shape:
        return float("inf")
    return float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))
