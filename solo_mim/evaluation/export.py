"""Backbones as torchvision or timm build them, and the lines of Python that do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from solo_mim.data.transforms import short_side
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
# The library's name for a folder in the layout of the Hugging Face Hub, and the files in it.
HUB = "timm-hub"
HUB_CONFIGURATION, HUB_WEIGHTS = "config.json", "model.safetensors"
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

    def from_folder(self, folder: Path) -> list[Callable[[], nn.Module]]:
        """What timm loads a folder in the layout of the Hub by: its name, or the file in it."""
        weights, kwargs = folder / HUB_WEIGHTS, {"num_classes": 0, **self.kwargs}
        return [
            lambda: timm.create_model(f"local-dir:{folder}", pretrained=True),
            lambda: timm.create_model(self.model, checkpoint_path=str(weights), **kwargs),
        ]

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


def hub_lines(wanted: Target, folder: str) -> list[str]:
    """Python that loads a folder in the layout of the Hub, in either way, and prepares images."""
    kwargs = "".join(f", {key}={value!r}" for key, value in wanted.kwargs.items())
    return [
        "import timm",
        f"model = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        f"# or: timm.create_model({wanted.model!r}, num_classes=0{kwargs}, "
        f"checkpoint_path={f'{folder}/{HUB_WEIGHTS}'!r})",
    ]


def hub_configuration(
    wanted: Target, size: int, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any]:
    """What timm's `config.json` says of a model without a classifier, and of its images, which are
    evaluated as here: bilinear, short side of `short_side` pixels, the centre of `size`.

    Args:
        size, mean, std: pixels of a side, and the channels' constants in [0, 1].
    """
    with torch.device("meta"):  # costs no memory
        model: Any = wanted.build()
    layers = {key: model.pretrained_cfg.get(key) for key in ("first_conv", "classifier")}
    fixed = model.pretrained_cfg.get("fixed_input_size", False)
    return {
        "architecture": wanted.model,
        "num_classes": 0,
        "num_features": model.num_features,
        **({"model_args": dict(wanted.kwargs)} if wanted.kwargs else {}),
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": fixed and not wanted.kwargs.get("dynamic_img_size", False),
            "interpolation": "bilinear",
            "crop_pct": _crop_share(size),
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": 0,
            "pool_size": None,
            **layers,
        },
    }


def _crop_share(size: int) -> float:
    """Of the short side: timm divides by it and rounds down, which a share in the middle of the
    pixel meets where the quotient itself would miss."""
    side = short_side(size)
    share = size / side
    return share if math.floor(size / share) == side else size / (side + 0.5)


def target(library: str, backbone: str, stem: str, kwargs: Mapping[str, Any]) -> Target:
    """The library's model for one of our backbones.

    Raises:
        ConfigError: the library has none, or the layout of the Hub no name for it.
    """
    hub = library == HUB
    library = "timm" if hub else library
    models = MODELS[library]
    if backbone not in models:
        raise ConfigError(
            f"{library} has no {backbone}, or it is not known to be the same"
            f"{nearest(backbone, models)}"
        )
    small_stem = backbone in _RESNETS and stem == "small"
    if small_stem and hub:
        raise ConfigError(
            f"{HUB}: timm has no name for a {backbone} with the stem for small images, which a "
            "config.json could give; --to timm writes its weights and the lines that put it in"
        )
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
