"""Backbones built the same way for both generations of the host.

The host's stems go by the *name* of the data set, and its transformers are for 224 pixels unless
told otherwise; here `backbone.stem` and the crop size decide.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.ops import Conv2dNormActivation

from solo_mim.errors import ConfigError, nearest

_Backbone = TypeVar("_Backbone")

STEMS = ("auto", "small", "imagenet")
# Up to this crop size (pixels) an ImageNet stem, which divides the resolution by four, leaves too
# little to work on. The host's CIFAR stem is for 32, its STL-10 (96) uses ImageNet's.
SMALL_STEM_CROP_SIZE = 64


class SmallCNN(nn.Sequential):
    """Four 3 x 3 convolutions with batch norm and ReLU, global average pooling: 1.6 M parameters.

    For comparisons that a CPU can run. Maps N x 3 x H x W to N x 512, the last of `widths`.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512)):
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((3, *widths)):
            layers += Conv2dNormActivation(inputs, outputs, 3, stride=2)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.num_features = widths[-1]


def _resnet(factory: Callable[..., Any], stem: str, **kwargs: Any) -> nn.Module:
    resnet = factory(**kwargs)
    resnet.num_features = resnet.inplanes
    resnet.fc = nn.Identity()
    if stem == "small":
        # padding=2 is the host's (a 3 x 3 kernel would need 1); kept so that weights and rows
        # compare.
        resnet.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
        resnet.maxpool = nn.Identity()
    return resnet


_RESNETS: dict[str, Callable[..., Any]] = {"resnet18": resnet18, "resnet50": resnet50}
OUR_BACKBONES = {"small_cnn": SmallCNN}


def _is_vit(name: str) -> bool:
    return name.startswith("vit_")


def fitted_to_weights(backbone: _Backbone, weights: Mapping[str, torch.Tensor]) -> _Backbone:
    """A backbone's recipe with the stem that a state dict is of; what it says explicitly stays.

    The recipe is a dataclass with `name`, `stem` and `kwargs`.
    """
    given: Any = backbone
    if given.stem != "auto":
        return backbone
    if given.name in _RESNETS and "conv1.weight" in weights:
        stem = "small" if weights["conv1.weight"].shape[-1] == 3 else "imagenet"
        return replace(given, stem=stem)
    if _is_vit(given.name) and "patch_embed.proj.weight" in weights:
        patch_size = weights["patch_embed.proj.weight"].shape[-1]
        return replace(given, kwargs={"patch_size": patch_size, **given.kwargs})
    return backbone


def resolved_stem(cfg: DictConfig) -> str:
    """`small` or `imagenet` from `backbone.stem` and the size of the large crops.

    A ResNet's stem is its first convolution and pooling, a vision transformer's its patches: 4 or
    16 pixels wide. Raises ConfigError of a stem that is unknown, or that the backbone lacks.
    """
    stem = cfg.backbone.get("stem") or "auto"
    if stem not in STEMS:
        raise ConfigError(f"backbone.stem: unknown stem '{stem}'{nearest(stem, STEMS)}")
    if stem == "auto":
        small = cfg.augmentations[0].crop_size <= SMALL_STEM_CROP_SIZE
        return "small" if small else "imagenet"
    if cfg.backbone.name not in _RESNETS and not _is_vit(cfg.backbone.name):
        raise ConfigError(
            f"backbone.stem={stem}: only {', '.join(_RESNETS)} and the vision transformers have a "
            f"stem to choose, not {cfg.backbone.name}; leave it at 'auto'"
        )
    return stem


def fill_backbone_kwargs(cfg: DictConfig) -> None:
    """Sets in place what a transformer must know of the images: their size, patches, windows.

    What `backbone.kwargs` gives stays. Raises ConfigError as `resolved_stem`.
    """
    if cfg.backbone.get("kwargs") is None:
        cfg.backbone.kwargs = {}
    stem, name, kwargs = resolved_stem(cfg), cfg.backbone.name, cfg.backbone.kwargs
    crop_size = cfg.augmentations[0].crop_size
    if _is_vit(name) or name.startswith("swin_"):
        kwargs.setdefault("img_size", crop_size)
        if cfg.data.num_small_crops:
            kwargs.setdefault("dynamic_img_size", True)
    if _is_vit(name):
        kwargs.setdefault("patch_size", 4 if stem == "small" else 16)
    elif name.startswith("swin_"):
        kwargs.setdefault("window_size", 4 if stem == "small" else 7)


def backbone_factory(
    cfg: DictConfig, of_host: Mapping[str, Callable[..., Any]] = MappingProxyType({})
) -> Callable[..., nn.Module]:
    """A factory `(*host's arguments, **backbone.kwargs) -> module with num_features`.

    Ours for ResNets and the small CNN, the host's for all else. Fills `cfg.backbone.kwargs` in.

    Raises:
        ConfigError: unknown backbone or stem or, when called, an unknown or impossible
            `backbone.kwargs`.
    """
    name = cfg.backbone.name
    known = {*of_host, *_RESNETS, *OUR_BACKBONES}
    if name not in known:
        raise ConfigError(f"backbone.name: unknown backbone '{name}'{nearest(name, known)}")
    fill_backbone_kwargs(cfg)
    stem = resolved_stem(cfg)

    def build(*args: Any, **kwargs: Any) -> nn.Module:
        if name in _RESNETS:
            factory: Callable[..., Any] = partial(_resnet, _RESNETS[name], stem)
        else:
            factory = OUR_BACKBONES.get(name) or partial(of_host[name], *args)
        if kwargs:
            with torch.device("meta"):  # costs no memory
                known = _arguments(factory())
            for key in kwargs:
                if key not in known:
                    raise ConfigError(
                        f"unknown key 'backbone.kwargs.{key}' of {name}{nearest(key, known)}"
                    )
            crop_sizes = {int(augmentation.crop_size) for augmentation in cfg.augmentations}
            try:
                with torch.device("meta"):
                    module = factory(**kwargs).eval()
                    for size in crop_sizes:
                        module(torch.empty(2, 3, size, size))
            # Whatever a library raises of arguments that it does not check.
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ConfigError(
                    f"backbone.kwargs: {name} refuses them at {sorted(crop_sizes)} pixels: {reason}"
                ) from error
        return factory(**kwargs)

    return build


def _arguments(module: nn.Module) -> set[str]:
    """Names that the constructors of a module's classes take."""
    names: set[str] = set()
    for cls in type(module).__mro__[: type(module).__mro__.index(nn.Module)]:
        names |= set(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    return names - {"self", "kwargs", "args", "block", "layers", "num_classes"}
