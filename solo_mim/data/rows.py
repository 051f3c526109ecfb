"""Random views as rows of numbers, for kernels that compute a batch of them at once.

The numbers are the draws of ``transforms``, of the same (seed, epoch, image): only the pixels are
computed elsewhere.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from solo_mim.data.batches import BatchedImages, OnCorrupt, Read
from solo_mim.data.images import ImageSet
from solo_mim.data.transforms import Augmentation


class Row(NamedTuple):
    """Columns of a view's row of numbers.

    The first four are the crop or, without one, its corner in the resized image and the size of
    that. The blends are brightness, contrast and saturation in the order drawn, three columns each:
    weights of the image's mean grey and of its grey, factor. ``hue_at`` is the number of blends
    before the hue, which is in turns.
    """

    top: int = 0
    left: int = 1
    height: int = 2
    width: int = 3
    jitter: int = 4
    blends: int = 5
    hue_at: int = 14
    hue: int = 15
    grayscale: int = 16
    blur: int = 17
    solarization: int = 18
    equalization: int = 19
    horizontal_flip: int = 20


ROW = Row()
BASES = {"brightness": (0.0, 0.0), "contrast": (1.0, 0.0), "saturation": (0.0, 1.0)}
NO_HUE = -1.0


def row_of(augment: Augmentation, size: tuple[int, int], rng: random.Random) -> list[float]:
    """The numbers of one random view of an image of ``size`` (width, height)."""
    drawn = augment.draw(*size, rng)
    if drawn.box is not None:
        left, top, right, bottom = drawn.box
        place: list[float] = [top, left, bottom - top, right - left]
    else:
        place = _centre(augment.crop_size, *size)
    blends: list[float] = []
    hue_at, hue = NO_HUE, 0.0
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
    """A row of numbers for each view of the images, a batch at a time; keys as of Views.

    Args:
        images: whose items have a ``size`` (width, height).
        augmentations: one per view.
        on_corrupt: as of BatchedImages.
    """

    def __init__(
        self, images: ImageSet, augmentations: Sequence[Augmentation], on_corrupt: OnCorrupt
    ) -> None:
        super().__init__(images, on_corrupt)
        self.augmentations = augmentations

    def batch(self, images: Iterator[Read]) -> Any:
        """``indexes, rows, targets``, rows a float32 array B x columns for each view; None of
        nothing."""
        indexes: list[int] = []
        rows: list[list[list[float]]] = [[] for _ in self.augmentations]
        for index, seed, image in images:
            indexes.append(index)
            rng = random.Random(seed)
            for of_view, augment in zip(rows, self.augmentations, strict=True):
                of_view.append(row_of(augment, image.size, rng))
        if not indexes:
            return None
        targets = torch.from_numpy(self.images.labels[indexes])
        return torch.tensor(indexes), [np.array(r, np.float32) for r in rows], targets
