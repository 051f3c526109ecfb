"""solo-learn's augmentation schema as functions of an image and an explicit random generator.

The configuration section ``augmentations`` is a list of pipelines. Each turns one image into
``num_crops`` views; pipelines whose ``crop_size`` is not that of the first make *small* crops.
Keys, value ranges and order of the steps are those of solo-learn main.

The kernels are Pillow's, with torchvision's results. The parameters are drawn here: on 32-pixel
images the machinery of transform classes takes most of the time, and a view that is a function of
(image, generator) neither reads nor disturbs the global generators of dropout and masks.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from solo_mim.data.errors import DataError, impossible, refuse_unknown_keys

BLUR_SIGMA = (0.1, 2.0)
CROP_RATIO = (3 / 4, 4 / 3)
SOLARIZE_FROM = 128

# Per block of the schema, its numbers and the range each must lie in.
PROBABILITY = {"prob": (0.0, 1.0)}
BLOCKS: dict[str, dict[str, tuple[float, float]]] = {
    "rrc": {"crop_min_scale": (0.0, 1.0), "crop_max_scale": (0.0, 1.0)},
    "color_jitter": {
        **PROBABILITY,
        **dict.fromkeys(("brightness", "contrast", "saturation"), (0.0, math.inf)),
        "hue": (0.0, 0.5),
    },
    "grayscale": PROBABILITY,
    "gaussian_blur": PROBABILITY,
    "solarization": PROBABILITY,
    "equalization": PROBABILITY,
    "horizontal_flip": PROBABILITY,
}
PIPELINE_KEYS = (*BLOCKS, "crop_size", "num_crops", "mean", "std")

RGB = tuple[float, float, float]


class ColorJitter(NamedTuple):
    """Strengths as in torchvision: factors from [max(0, 1 - s), 1 + s], hue from [-hue, hue]."""

    prob: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


class Draw(NamedTuple):
    """The random parameters of one view.

    ``box`` is the crop (left, top, right, bottom) in pixels; ``color_jitter`` the steps, in order,
    each with its factor (hue: shift in turns); ``blur`` the sigma in pixels, 0 for none.
    """

    box: tuple[int, int, int, int] | None
    color_jitter: tuple[tuple[str, float], ...]
    grayscale: bool
    blur: float
    solarization: bool
    equalization: bool
    horizontal_flip: bool


@dataclass(frozen=True)
class Augmentation:
    """One pipeline of the schema; calling it gives one random view, not yet normalised.

    The plain numbers are probabilities. ``crop_scale`` is the range of the crop's share of the
    image area; None resizes the whole image. ``interpolation`` is solo-learn's of pre-training.
    """

    crop_size: int
    num_crops: int
    mean: RGB
    std: RGB
    crop_scale: tuple[float, float] | None = None
    color_jitter: ColorJitter | None = None
    grayscale: float = 0.0
    gaussian_blur: float = 0.0
    solarization: float = 0.0
    equalization: float = 0.0
    horizontal_flip: float = 0.0
    interpolation: InterpolationMode = InterpolationMode.BICUBIC

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """RGB of any size to RGB of ``crop_size`` x ``crop_size``, random through ``rng`` alone."""
        return self.view(image, self.draw(*image.size, rng))

    def draw(self, width: int, height: int, rng: random.Random) -> Draw:
        """For an image of that size in pixels."""
        scale, jitter = self.crop_scale, self.color_jitter
        return Draw(
            box=_random_crop_box(width, height, scale, rng) if scale else None,
            color_jitter=_jitter_steps(jitter, rng)
            if jitter and rng.random() < jitter.prob
            else (),
            grayscale=rng.random() < self.grayscale,
            blur=rng.uniform(*BLUR_SIGMA) if rng.random() < self.gaussian_blur else 0.0,
            solarization=rng.random() < self.solarization,
            equalization=rng.random() < self.equalization,
            horizontal_flip=rng.random() < self.horizontal_flip,
        )

    def view(self, image: Image.Image, drawn: Draw) -> Image.Image:
        """The view of ``image`` that was drawn for one of its size."""
        if drawn.box is not None:
            size = (self.crop_size, self.crop_size)
            image = image.crop(drawn.box).resize(size, Image.Resampling[self.interpolation.name])
        else:
            image = _resize_and_centre(image, self.crop_size, self.crop_size, self.interpolation)
        for step, factor in drawn.color_jitter:
            image = _ADJUST[step](image, factor)
        if drawn.grayscale:
            image = _grey(image)
        if drawn.blur:
            image = image.filter(ImageFilter.GaussianBlur(drawn.blur))
        if drawn.solarization:
            image = F.solarize(image, SOLARIZE_FROM)
        if drawn.equalization:
            image = F.equalize(image)
        if drawn.horizontal_flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def short_side(crop_size: int) -> int:
    """Pixels of the short side of an image whose centre is evaluated, as solo-learn has it: those
    of the centre up to 96 (CIFAR, STL-10), above 256/224 of it (ImageNet)."""
    return crop_size if crop_size <= 96 else round(crop_size * 256 / 224)


def evaluation_transform(image: Image.Image, crop_size: int) -> Image.Image:
    """The un-augmented view, ``crop_size`` x ``crop_size``, as solo-learn evaluates: the centre of
    the image with its short side at ``short_side(crop_size)``."""
    return _resize_and_centre(image, short_side(crop_size), crop_size, InterpolationMode.BILINEAR)


def normalise(images: Sequence[Image.Image], mean: RGB, std: RGB) -> Tensor:
    """B images of one size -> float32 B x 3 x H x W, ``(value / 255 - mean) / std``.

    A whole batch at once: image by image this would cost half as much as augmenting.
    """
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    channel_mean, channel_std = (255 * torch.tensor(c).view(3, 1, 1) for c in (mean, std))
    return planes.sub_(channel_mean).div_(channel_std)


def parse_augmentations(
    pipelines: Sequence[Mapping[str, Any]], mean: RGB, std: RGB
) -> tuple[Augmentation, ...]:
    """The section ``augmentations`` (plain lists and dictionaries), checked; large crops first.

    A block that is absent, has ``enabled: false`` or ``prob: 0`` is off. ``mean`` and ``std``, of
    the data set, hold where the pipeline does not set its own. Raises DataError with the place of
    the first unknown, missing or impossible key.
    """
    if isinstance(pipelines, str | Mapping) or not pipelines:
        remedy = "Write one list entry (- rrc: ... crop_size: ... num_crops: ...) per pipeline"
        raise DataError("a list of pipelines is needed", key="augmentations", remedy=remedy)
    parsed = [
        _parse_pipeline(pipeline, f"augmentations[{position}]", mean, std)
        for position, pipeline in enumerate(pipelines)
    ]
    # Methods take the first num_large_crops views for the large ones, whatever the order here.
    return tuple(sorted(parsed, key=lambda one: one.crop_size != parsed[0].crop_size))


def _parse_pipeline(pipeline: Mapping[str, Any], where: str, mean: RGB, std: RGB) -> Augmentation:
    if not isinstance(pipeline, Mapping):
        raise DataError(f"{pipeline!r} is no pipeline", key=where, remedy="Give it keys and values")
    refuse_unknown_keys(pipeline, PIPELINE_KEYS, where)
    blocks = {name: _parse_block(pipeline, name, where) for name in BLOCKS}
    scale = blocks.pop("rrc")
    if scale and not 0 < scale["crop_min_scale"] <= scale["crop_max_scale"]:
        raise DataError(
            f"the crop cannot cover from {scale['crop_min_scale']} to {scale['crop_max_scale']} "
            "of the image",
            key=f"{where}.rrc",
            remedy="Set 0 < crop_min_scale <= crop_max_scale <= 1",
        )
    jitter = blocks.pop("color_jitter")
    return Augmentation(
        crop_size=_positive_integer(pipeline, "crop_size", where),
        num_crops=_positive_integer(pipeline, "num_crops", where),
        mean=_per_channel(pipeline.get("mean"), mean, f"{where}.mean"),
        std=_per_channel(pipeline.get("std"), std, f"{where}.std", above=0.0),
        crop_scale=(scale["crop_min_scale"], scale["crop_max_scale"]) if scale else None,
        color_jitter=ColorJitter(**jitter) if jitter else None,
        **{name: block.get("prob", 0.0) for name, block in blocks.items()},
    )


def _parse_block(pipeline: Mapping[str, Any], name: str, where: str) -> dict[str, float]:
    """The numbers of one block, empty when it is off."""
    block, where = pipeline.get(name), f"{where}.{name}"
    if block is None:
        return {}
    if not isinstance(block, Mapping):
        remedy = f"Give it {', '.join(BLOCKS[name])}"
        raise DataError(f"{block!r} is no block", key=where, remedy=remedy)
    refuse_unknown_keys(block, ("enabled", *BLOCKS[name]), where)
    if not block.get("enabled", True) or block.get("prob") == 0:
        return {}
    return {
        key: _number_between(block.get(key), low, high, f"{where}.{key}")
        for key, (low, high) in BLOCKS[name].items()
    }


def _number_between(value: Any, low: float, high: float, key: str) -> float:
    if not _is_number(value) or not low <= value <= high:
        bounds = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise impossible(value, key, f"Set a number {bounds}")
    return float(value)


def _positive_integer(pipeline: Mapping[str, Any], name: str, where: str) -> int:
    value = pipeline.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise impossible(value, f"{where}.{name}", "Set 1, 2, 3 ...")
    return value


def _per_channel(given: Any, default: RGB, key: str, above: float = -math.inf) -> RGB:
    values = default if given is None else given
    if (
        not isinstance(values, Sequence)
        or len(values) != 3
        or not all(_is_number(value) and above < value < math.inf for value in values)
    ):
        more = "" if above == -math.inf else f" above {above:g}"
        raise impossible(values, key, f"Set three numbers{more} (red, green, blue)")
    red, green, blue = map(float, values)
    return red, green, blue


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _resize_and_centre(
    image: Image.Image, short_side: int, crop_size: int, interpolation: InterpolationMode
) -> Image.Image:
    image = F.resize(image, [short_side], interpolation=interpolation)
    return F.center_crop(image, [crop_size, crop_size])


def _random_crop_box(
    width: int, height: int, scale: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) as torchvision's RandomResizedCrop draws: ten tries for a share of
    the area and a ratio that fit, else the largest centred box whose ratio is in range."""
    log_ratio = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    w = min(width, round(height * CROP_RATIO[1]))
    h = min(height, round(width / CROP_RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _jitter_steps(jitter: ColorJitter, rng: random.Random) -> tuple[tuple[str, float], ...]:
    """Brightness, contrast, saturation and hue in random order; a strength of 0 is skipped."""
    _, *strengths, hue = jitter
    factors = [(max(0.0, 1.0 - strength), 1.0 + strength) for strength in strengths]
    ranges = zip(_ADJUST, [*factors, (-hue, hue)], strict=True)
    # A hue shift of zero is not the identity: the way to HSV and back rounds.
    steps = [(step, rng.uniform(low, high)) for step, (low, high) in ranges if low < high]
    rng.shuffle(steps)
    return tuple(steps)


# torchvision's adjust_* of Pillow images, to the bit and without what its dispatch and Pillow's
# enhancers cost on 32 pixels.


def _adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    return Image.blend(Image.new("RGB", image.size), image, factor)


def _adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    mean = int(np.asarray(image.convert("L")).mean() + 0.5)
    return Image.blend(Image.new("RGB", image.size, (mean, mean, mean)), image, factor)


def _adjust_saturation(image: Image.Image, factor: float) -> Image.Image:
    return Image.blend(_grey(image), image, factor)


def _adjust_hue(image: Image.Image, factor: float) -> Image.Image:
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.int32(255 * factor).astype(np.uint8)  # wraps around
    return Image.fromarray(hsv, "HSV").convert("RGB")


_ADJUST = {
    "brightness": _adjust_brightness,
    "contrast": _adjust_contrast,
    "saturation": _adjust_saturation,
    "hue": _adjust_hue,
}


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")
