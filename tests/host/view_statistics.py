"""Augmented views compared: by the distributions of numbers, and pixel by pixel."""

from typing import Any

import numpy as np
import torch
from scipy import stats


def summaries(views: torch.Tensor) -> dict[str, np.ndarray]:
    """Numbers of each of B x 3 x 32 x 32 pixels in [0, 1] that one step or another moves."""
    luminance = torch.einsum("bchw,c->bhw", views, torch.tensor([0.299, 0.587, 0.114]))
    red, green, blue = views.mean((2, 3)).unbind(1)
    left, right = luminance.chunk(2, dim=2)
    colour = (views.amax(1) - views.amin(1)).mean((1, 2))
    hue = torch.atan2(1.7320508 * (green - blue), 2 * red - green - blue)
    found = {
        "brightness": luminance.mean((1, 2)),
        "contrast": luminance.std((1, 2)),
        "colour": colour,
        "hue": torch.where(colour > 0.02, hue, 0.0),  # grey has none
        "sharpness": luminance.diff(dim=2).abs().mean((1, 2))
        + luminance.diff(dim=1).abs().mean((1, 2)),
        "side": (left - right.flip(2)).mean((1, 2)),
        "corner": views[:, 0, 0, 0],
    }
    return {name: values.numpy() for name, values in found.items()}


def assert_alike(ours: dict, theirs: dict) -> None:
    for name in ours:
        # Rounding to 8 bits leaves ties that are a float's last bit apart.
        found = stats.ks_2samp(ours[name].round(4), theirs[name].round(4))
        assert found.pvalue > 1e-4, (name, found)


# Pixel by pixel, of pipelines with one step each

JITTER = {"prob": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
STEPS: dict[str, dict[str, Any]] = {
    "crop": {},
    "no_crop": {"rrc": {"enabled": False}},
    "brightness": {"color_jitter": JITTER | {"brightness": 0.8}},
    "contrast": {"color_jitter": JITTER | {"contrast": 0.8}},
    "saturation": {"color_jitter": JITTER | {"saturation": 0.8}},
    "hue": {"color_jitter": JITTER | {"hue": 0.2}},
    "jitter": {
        "color_jitter": {
            **{"prob": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
        }
    },
    "grayscale": {"grayscale": {"prob": 0.5}},
    "blur": {"gaussian_blur": {"prob": 0.5}},
    "solarisation": {"solarization": {"prob": 0.5}},
    "flip": {"horizontal_flip": {"prob": 0.5}},
}


def pixels(**keys: Any) -> dict[str, Any]:
    """A pipeline whose views are grey levels of 255."""
    crop = {"rrc": {"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 1.0}}
    constants = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255] * 3}
    return {**crop, "crop_size": 64, "num_crops": 2, **constants, **keys}


def epochs(module: Any, *numbers: int) -> list[list[Any]]:
    loader = module.train_dataloader()
    batches = []
    for number in numbers:
        loader.sampler.set_epoch(number)
        batches += list(loader)
    return batches


def levels_apart(ours: list[list[Any]], theirs: list[list[Any]]) -> torch.Tensor:
    """Grey levels of 255 between the two views of each draw, mean over pixels; raises where the
    batches are of other images, labels, sizes or types."""
    assert len(ours) == len(theirs) > 0
    apart = []
    for (indexes, X, targets), (their_indexes, their_X, their_targets) in zip(
        ours, theirs, strict=True
    ):
        assert torch.equal(indexes, their_indexes)
        assert torch.equal(targets, their_targets)
        assert [(x.shape, x.dtype) for x in X] == [(x.shape, x.dtype) for x in their_X]
        for x, y in zip(X, their_X, strict=True):
            apart.append((x - y.cpu()).abs().mean((1, 2, 3)))
    return torch.cat(apart)


def assert_same_views(
    ours: list[list[Any]], theirs: list[list[Any]], limits: tuple[float, float]
) -> None:
    """Of the same draws: `limits` are of the grey levels between them, on average over the views
    and in the worst of them."""
    apart = levels_apart(ours, theirs)
    print(f"grey levels apart: {apart.mean():.4f} on average, {apart.max():.4f} in the worst view")
    assert apart.mean() < limits[0]
    assert apart.max() < limits[1]
