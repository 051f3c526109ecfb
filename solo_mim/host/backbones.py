"""Backbones built the same way for both generations of the host.

The host decides by the *name* of the data set whether a ResNet gets the stem for small images; here
`backbone.stem` decides, for the online and the momentum backbone alike.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from omegaconf import DictConfig
from torch import nn
from torchvision.models import resnet18, resnet50

from solo_mim.errors import ConfigError, nearest

STEMS = ("auto", "small", "imagenet")
# Up to this crop size (pixels) an ImageNet stem, which divides the resolution by four before the
# first block, leaves too little to work on. The host's CIFAR stem is for 32, its STL-10 (96) uses
# ImageNet's.
SMALL_STEM_CROP_SIZE = 64


class SmallCNN(nn.Sequential):
    """Four 3 x 3 convolutions with batch norm and ReLU, global average pooling: 1.6 M parameters.

    For comparisons that a CPU can run: each layer halves the resolution and doubles the width. Maps
    N x 3 x H x W, H and W at least 16, to N x 512.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512)):
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((3, *widths)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
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


def resolved_stem(cfg: DictConfig) -> str:
    """`small` or `imagenet` for a ResNet, from `backbone.stem` and the size of the large crops.

    Raises:
        ConfigError: unknown stem, or a stem asked of a backbone that has none.
    """
    stem = cfg.backbone.get("stem") or "auto"
    if stem not in STEMS:
        raise ConfigError(f"backbone.stem: unknown stem '{stem}'{nearest(stem, STEMS)}")
    if cfg.backbone.name not in _RESNETS:
        if stem != "auto":
            raise ConfigError(
                f"backbone.stem={stem}: only {', '.join(_RESNETS)} have a stem to choose, "
                f"not {cfg.backbone.name}; leave it at 'auto'"
            )
        return "auto"
    if stem != "auto":
        return stem
    return "small" if cfg.augmentations[0].crop_size <= SMALL_STEM_CROP_SIZE else "imagenet"


def backbone_factory(cfg: DictConfig) -> Callable[..., nn.Module] | None:
    """A factory `(**kwargs) -> module with num_features` where the backbone is ours to build.

    None for backbones that the host builds better (its vision transformers and the like).
    """
    name = cfg.backbone.name
    if name in _RESNETS:
        stem = resolved_stem(cfg)
        return lambda **kwargs: _resnet(_RESNETS[name], stem, **kwargs)
    resolved_stem(cfg)  # refuses a stem where there is none
    return OUR_BACKBONES.get(name)
