"""Random views as rows of numbers, for kernels that compute a batch of them at once.

The numbers are the draws of ``transforms``, of the same (seed, epoch, image): only the pixels are
computed elsewhere.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from solo_mim.data.batches import BatchedImages
from solo_mim.data.transforms import Augmentation


class ROW:
    """Columns of a view's row of numbers.

    The first four are the crop or, without one, its corner in the resized image and the size of
    that. The blends are brightness, contrast and saturation in the order drawn, three columns each:
    weights of the image's mean grey and of its grey, factor. ``hue_at`` is the number of blends
    before the hue, which is in turns.
    """

    top, left, height, width, jitter, blends = range(6)
    hue_at, hue, grayscale, blur, solarization, equalization, horizontal_flip = range(14, 21)


BASES = {"brightness": (0.0, 0.0), "contrast": (1.0, 0.0), "saturation": (0.0, 1.0)}


def row_of(augment: Augmentation, size: tuple[int, int], rng: random.Random) -> list[float]:
    """The numbers of one random view of an image of ``size`` (width, height)."""
    drawn = augment.draw(*size, rng)
    if drawn.box is not None:
        left, top, right, bottom = drawn.box
        place: list[float] = [top, left, bottom - top, right - left]
    else:
        place = _centre(augment.crop_size, *size)
    blends: list[float] = []
    hue_at, hue = -1.0, 0.0  # none
    for step, factor in drawn.color_jitter:
        if step == "hue":
            hue_at, hue = len(blends) / 3, int(255 * factor) / 255  # as Pillow's 8 bits have it
        else:
            blends += [*BASES[step], factor]
    blends += [0.0, 0.0, 1.0] * (3 - len(blends) // 3)
    return [
        *(*place, len(drawn.color_jitter) > 0, *blends, hue_at, hue),
        *(drawn.grayscale, drawn.blur, drawn.solarization, drawn.equalization),
        drawn.horizontal_flip,
    ]


def _centre(side: int, width: int, height: int) -> list[float]:
    """Top and left of the centre and size of the image once its short side is ``side``, as
    torchvision rounds them."""
    short = min(width, height)
    resized_width, resized_height = side * width // short, side * height // short
    top, left = (round((length - side) / 2) for length in (resized_height, resized_width))
    return [top, left, resized_height, resized_width]


class DrawnRows(BatchedImages):
    """A row of numbers for each view of images that have a ``size`` (width, height), a batch at a
    time; keys as of Views."""

    def made(self, image: Any, seed: int) -> Any:
        rng = random.Random(seed)
        return [row_of(augment, image.size, rng) for augment in self.augmentations]

    def batch(self, indexes: Tensor, made: Sequence[Any], targets: Tensor) -> Any:
        """``indexes, rows, targets``, rows a float32 array B x columns for each view."""
        rows = [np.array(of_view, np.float32) for of_view in zip(*made, strict=True)]
        return indexes, rows, targets
