"""Training views of images that lie decoded in memory, a batch at a time by torch, on the device
that trains.

The draws are those of ``transforms`` and the arithmetic is Pillow's, its roundings to 8 bits
included: antialiased resampling and box blurs as matrices, blends that are cut to whole numbers,
hue in 8 bits. Indexes, order, epoch length, shards and resuming are those of ``module``.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from solo_mim.data.batches import OnCorrupt
from solo_mim.data.errors import DataError
from solo_mim.data.images import ImageSet, Pixels, Source
from solo_mim.data.rows import ROW
from solo_mim.data.transforms import RGB, Augmentation

# Images that are computed at a time on a CPU: what they take stays in its cache.
_CHUNK = 128
_GREY = (19595, 38470, 7471)  # 65536ths, Pillow's
_BLUR_PASSES = 3  # of a box filter, Pillow's


# From files to an array


@dataclass(frozen=True)
class Decoded(Source):
    """Image files decoded to uint8 N x H x W x 3; what of them cannot be read, with its error."""

    decoded: ClassVar[bool] = True
    pixels: np.ndarray
    unreadable: dict[int, DataError]

    def __getitem__(self, index: int) -> Image.Image:
        if error := self.unreadable.get(int(index)):
            raise error
        return Image.fromarray(self.pixels[index])


def in_memory(images: ImageSet, on_corrupt: OnCorrupt) -> ImageSet:
    """The same images as one array.

    Raises:
        DataError: they are not of one size, or one cannot be read and ``on_corrupt`` is fail.
    """
    source = images.source
    if isinstance(source, Pixels):
        pixels = source.pixels[: len(images)] if images.rows is None else source.pixels[images.rows]
        return ImageSet(Pixels(pixels), images.labels)
    array, unreadable = np.empty((0, 0, 0, 3), np.uint8), {}
    for index in tqdm(range(len(images)), "decoding", unit=" images", leave=False, disable=None):
        try:
            pixels = np.asarray(images[index])
        except DataError as error:
            if on_corrupt == "fail":
                raise
            unreadable[index] = error
            continue
        if not array.size:
            array, first = np.zeros((len(images), *pixels.shape), np.uint8), index
        if pixels.shape != array.shape[1:]:
            paths = [images.path(i) for i in (first, index)]  # arrays on disk are of one size
            sizes = [f"{w} x {h}" for h, w, _ in (array.shape[1:], pixels.shape)]
            raise DataError(
                f"the images are not of one size: {sizes[1]} pixels here, {sizes[0]} in {paths[0]}",
                key="data.format",
                path=paths[1],
                remedy="Set it to image_folder or dali; tensor takes images of one size",
            )
        array[index] = pixels
    return ImageSet(Decoded(array, unreadable), images.labels)


# From an array to views


class TensorLoader:
    """Yields ``[indexes, [X_1 .. X_V], targets]`` like the loader of Pillow views, X on ``device``,
    which holds all images.

    From a loader of ``DrawnRows`` of images of ``in_memory``.
    """

    def __init__(self, batches: Any, device: torch.device) -> None:
        self.batches = batches
        self.sampler = batches.sampler  # Lightning calls its set_epoch
        self.dataset = batches.dataset  # of which methods take the length
        self.device = device

    @functools.cached_property
    def pixels(self) -> Tensor:
        """N x H x 3 x W: both directions of a resampling are then products without a copy.

        Taken to the device by the first epoch, not by a loader that is only made to be checked.
        """
        pixels = self.dataset.images.source.pixels
        return torch.from_numpy(np.ascontiguousarray(pixels.swapaxes(2, 3))).to(self.device)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for indexes, rows, targets in self.batches:
            images = self.pixels[indexes.to(self.device, non_blocking=True)]
            drawn = zip(rows, self.dataset.augmentations, strict=True)
            X = [views(images, torch.from_numpy(row), augment) for row, augment in drawn]
            yield [indexes, X, targets]


@torch.no_grad()
def views(images: Tensor, rows: Tensor, augment: Augmentation) -> Tensor:
    """One normalised view of each image.

    Args:
        images: uint8 B x H x 3 x W.
        rows: float32 B x columns of ``ROW``, on the CPU.
        augment: of which the rows were drawn.

    Returns:
        float32 B x 3 x ``crop_size`` x ``crop_size``, on the device of the images.
    """
    side = augment.crop_size
    found = torch.empty(len(images), 3, side, side, device=images.device)
    mean, std = (_levels(c, images.device) for c in (augment.mean, augment.std))
    chunk = _CHUNK if images.device.type == "cpu" else len(images)
    parts = zip(*(part.split(chunk) for part in (found, images, rows)), strict=True)
    for out, of_images, of_rows in parts:
        grey_levels = _view(of_images, of_rows, augment)
        out.copy_(grey_levels.sub_(mean).div_(std).transpose(1, 2))
    return found


@functools.lru_cache(maxsize=8)
def _levels(constants: RGB, device: torch.device) -> Tensor:
    """Constants of the channels in grey levels; kept, as to send them waits for a GPU."""
    return 255 * torch.tensor(constants, device=device).view(1, 3, 1)


def _view(images: Tensor, rows: Tensor, augment: Augmentation) -> Tensor:
    """Grey levels as whole numbers, float32 B x side x 3 x side."""
    there = rows.to(images.device, non_blocking=True)
    x = _resampled(images, there, augment)
    if augment.color_jitter is not None:
        x = _jittered(x, rows, there)
    if augment.grayscale:
        x = _of_chosen(x, rows[:, ROW.grayscale] > 0, lambda x, _: _grey(x).expand_as(x))
    if augment.gaussian_blur:
        blurred = rows[:, ROW.blur] > 0
        x = _of_chosen(x, blurred, lambda x, chosen: _blurred(x, rows[chosen, ROW.blur]))
    if augment.solarization:
        x = _of_chosen(x, rows[:, ROW.solarization] > 0, lambda x, _: torch.minimum(x, 255 - x))
    if augment.equalization:
        x = _of_chosen(x, rows[:, ROW.equalization] > 0, _equalised)
    return x


def _of_chosen(x: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`x` with some of its images changed, in place; `change` takes these, and which they are. What
    is chosen lies on the CPU, so that no device is waited for."""
    which = chosen.nonzero().flatten()
    if len(which) == 0:
        return x
    there = which.to(x.device, non_blocking=True)
    return x.index_copy_(0, there, change(x[there], which))


def _resampled(images: Tensor, rows: Tensor, augment: Augmentation) -> Tensor:
    """Cut, resized and flipped: all that follows treats left and right alike."""
    side = augment.crop_size
    cut = augment.crop_scale is not None
    kernel = _cubic if augment.interpolation is InterpolationMode.BICUBIC else _triangle
    height, width = images.shape[1], images.shape[3]
    across = _weights(rows[:, ROW.left], rows[:, ROW.width], width, side, cut, kernel)
    across = torch.where(rows[:, ROW.horizontal_flip, None, None] > 0, across.flip(1), across)
    down = _weights(rows[:, ROW.top], rows[:, ROW.height], height, side, cut, kernel)
    x = images.reshape(len(images), -1, width).float() @ across.mT
    x = down @ _rounded(x).view(len(images), height, -1)
    return _rounded(x).view(len(images), side, 3, side)


def _weights(
    start: Tensor,
    length: Tensor,
    pixels: int,
    side: int,
    cut: bool,
    kernel: tuple[float, Callable[[Tensor], Tensor]],
) -> Tensor:
    """Of each pixel in each pixel of the result, B x side x pixels, along one direction.

    Where it is cut, `length` pixels from `start` on become `side`; otherwise all become `length`,
    of which `side` remain from `start` on.
    """
    start, length = start[:, None, None], length[:, None, None]
    scale = (length / side) if cut else (pixels / length)
    support, function = kernel
    at = torch.arange(side, device=start.device)[:, None] + 0.5
    centre = start + at * scale if cut else (start + at) * scale
    pixel = torch.arange(pixels, device=start.device) + 0.5
    weights = function(((pixel - centre) / scale.clamp(min=1)).abs().clamp(max=support))
    if cut:
        weights = weights * ((pixel > start) & (pixel < start + length))
    return weights / weights.sum(2, keepdim=True)


def _keys_cubic(x: Tensor) -> Tensor:
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far)


# Where each ends, and its value at distances up to there.
_cubic = (2.0, _keys_cubic)
_triangle = (1.0, lambda x: 1 - x)


def _rounded(x: Tensor) -> Tensor:
    return x.add_(0.5).floor_().clamp_(0, 255)


def _grey(x: Tensor) -> Tensor:
    red, green, blue = (x[:, :, c : c + 1] for c in range(3))
    grey = (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])
    return grey.add_(32768).div_(65536).floor_()


def _jittered(x: Tensor, rows: Tensor, there: Tensor) -> Tensor:
    """In the order drawn; `there` are the rows on the device of the images."""
    there = there[:, :, None, None, None]
    for step in range(4):
        hue = rows[:, ROW.hue_at] == step
        x = _of_chosen(x, hue, lambda x, chosen: _hue_shifted(x, rows[chosen, ROW.hue]))
        if step < 3:
            column = ROW.blends + 3 * step
            of_mean, of_grey, factor = there[:, column : column + 3].unbind(1)
            grey = _grey(x)
            mean = grey.mean((1, 2, 3), keepdim=True).add_(0.5).floor_()
            base = (of_grey * grey).add_(of_mean * mean)
            x = torch.addcmul(base, x.sub_(base), factor).floor_().clamp_(0, 255)
    return x


def _hue_shifted(x: Tensor, turns: Tensor) -> Tensor:
    """By way of HSV in 8 bits."""
    shift = (255 * turns).round_().to(x.device, non_blocking=True)[:, None, None]
    red, green, blue = x.unbind(2)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    of_green = (blue - red).add_(chroma, alpha=2)
    of_blue = (red - green).add_(chroma, alpha=4)
    sixths = torch.where(green == value, of_green, of_blue)
    sixths = torch.where(red == value, green - blue, sixths).div_(chroma.clamp(min=1))
    hue = sixths.div_(6).remainder_(1).mul_(255).floor_().add_(shift)
    hue = hue.remainder_(256).mul_(6 / 255)
    chroma = chroma.mul_(255).div_(value.clamp(min=1)).floor_().mul_(value).div_(255)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        angle = (hue + offset).remainder_(6)
        part = torch.minimum(angle, 4 - angle).clamp_(0, 1)
        x[:, :, channel] = torch.addcmul(value, part, chroma, value=-1).add_(0.5).floor_()
    return x


def _blurred(x: Tensor, sigmas: Tensor) -> Tensor:
    """By box filters whose radius is no whole number (Gwosdek et al., 2011), edges repeated."""
    variance = sigmas**2 / _BLUR_PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part = part / (6 * (variance - (whole + 1) ** 2))
    inner = 1 / (2 * (whole + part) + 1)
    outer = (1 - (2 * whole + 1) * inner) / 2
    reach = int(whole.max()) + 1
    away = torch.arange(-reach, reach + 1).abs()
    taps = torch.where(away <= whole[:, None], inner[:, None], outer[:, None])
    taps = torch.where(away <= whole[:, None] + 1, taps, 0.0).to(x.device, non_blocking=True)
    height, _, width = x.shape[1:]
    across, down = (
        torch.tensordot(taps, _neighbours(reach, length, x.device), 1) for length in (width, height)
    )
    for _ in range(_BLUR_PASSES):
        x = _rounded(x.reshape(len(x), -1, width) @ across.mT)
    x = x.view(len(x), height, -1)
    for _ in range(_BLUR_PASSES):
        x = _rounded(down @ x)
    return x.view(len(x), height, 3, width)


@functools.lru_cache(maxsize=8)
def _neighbours(reach: int, length: int, device: torch.device) -> Tensor:
    """Matrices of zeros and ones, 2 reach + 1 x length x length: of each pixel the one so far to
    its right, or the last there is."""
    moved = torch.arange(length) + torch.arange(-reach, reach + 1)[:, None]
    return torch.nn.functional.one_hot(moved.clamp(0, length - 1), length).float().to(device)


def _equalised(x: Tensor, _: Tensor) -> Tensor:
    """Each channel's histogram, as torchvision does it."""
    return F.equalize(x.transpose(1, 2).to(torch.uint8)).transpose(1, 2).to(x.dtype)
