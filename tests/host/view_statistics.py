"""Numbers of augmented views, to compare distributions by."""

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
