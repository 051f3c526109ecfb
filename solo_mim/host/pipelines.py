"""The host's own augmentation, to compare ours with."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from solo_mim.host import GENERATION


def host_transform(pipeline: Mapping[str, Any], dataset: str = "cifar10") -> Callable[..., Tensor]:
    """One random view of a Pillow image as the host makes it, 3 x crop_size x crop_size.

    Of an entry of `augmentations` with all blocks, normalised as the host has it for `dataset`.
    Raises ValueError where the host lacks a step: equalisation in 1.0.2.
    """
    module: Any
    if GENERATION == "current":
        module = importlib.import_module("solo.data.pretrain_dataloader")
        return module.build_transform_pipeline(dataset, OmegaConf.create(dict(pipeline)))
    if pipeline["equalization"]["prob"]:
        raise ValueError("solo-learn 1.0.2 has no equalisation")
    jitter, crop = pipeline["color_jitter"], pipeline["rrc"]
    module = importlib.import_module("solo.utils.pretrain_dataloader")
    return module.prepare_transform(
        dataset,
        **{key: jitter[key] for key in ("brightness", "contrast", "saturation", "hue")},
        color_jitter_prob=jitter["prob"],
        gray_scale_prob=pipeline["grayscale"]["prob"],
        gaussian_prob=pipeline["gaussian_blur"]["prob"],
        solarization_prob=pipeline["solarization"]["prob"],
        horizontal_flip_prob=pipeline["horizontal_flip"]["prob"],
        min_scale=crop["crop_min_scale"],
        max_scale=crop["crop_max_scale"],
        crop_size=pipeline["crop_size"],
    )
