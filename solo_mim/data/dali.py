"""Training views by NVIDIA DALI: the draws of ``transforms``, decoding and kernels of DALI.

Not solo-learn's DALI pipelines, which make other views than its torchvision ones: their hue turns
in YIQ and not in HSV, their contrast is about 128 and not the image's mean, their jitter keeps one
order. Here the images of a batch, their order and all random numbers are those of the Pillow path;
DALI has no random state.
"""

import io
import os
import re
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import fn, math, pipeline_def, types
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from solo_mim.data.batches import OnCorrupt
from solo_mim.data.errors import DataError
from solo_mim.data.images import Files, ImageSet, naming_unreadable, rgb
from solo_mim.data.rows import ROW, DrawnRows
from solo_mim.data.transforms import Augmentation

AHEAD = 2  # batches that DALI works on while the network trains
END_OF_IMAGE = b"\xff\xd9"
# What may follow 0xFF between a baseline JPEG's header and its end: a stuffed zero, a restart.
WITHIN_SCAN = np.isin(np.arange(256), [0x00, *range(0xD0, 0xD8)])

# A forked process has none of DALI's threads: it would wait for them for ever if it collected, as
# garbage of its parent, a pipeline. So it keeps them all.
_PIPELINES: weakref.WeakSet[Any] = weakref.WeakSet()
_OF_THE_PARENT: list[Any] = []
os.register_at_fork(after_in_child=lambda: _OF_THE_PARENT.extend(_PIPELINES))


class Encoded(NamedTuple):
    """The bytes of an image file, and its size in pixels."""

    content: bytes
    size: tuple[int, int]


class EncodedFiles(Files):
    """The same files; ``source[i]`` is ``Encoded``, for DALI to decode as ``images.rgb`` would."""

    def __getitem__(self, index: int) -> Encoded:  # type: ignore[override]
        path = os.fsdecode(self.paths[index])
        with naming_unreadable(path, self.key), open(path, "rb") as file:
            return encoded(file.read())


def encoded(content: bytes) -> Encoded:
    """A plain JPEG as it is, any other image as the PPM of what Pillow makes of it.

    A JPEG with unusual markers, of which DALI would pass over what Pillow refuses, is first read
    by Pillow. Raises one of images.UNREADABLE.
    """
    file = io.BytesIO(content)
    with Image.open(file) as image:
        if image.format == "JPEG" and image.mode in ("RGB", "L") and _is_upright(image):
            if not _is_whole(content, file.tell()):
                image.load()
            return Encoded(content, image.size)
    pixels, file = rgb(io.BytesIO(content)), io.BytesIO()
    pixels.save(file, "PPM")
    return Encoded(file.getvalue(), pixels.size)


def _is_upright(image: Image.Image) -> bool:
    with suppress(Exception):  # a broken EXIF block is no broken image
        return bool(image.getexif().get(ExifTags.Base.Orientation, 1) == 1)
    return True


def _is_whole(content: bytes, start: int) -> bool:
    """Whether a JPEG's scan, from ``start`` on, holds what a baseline one may and then ends."""
    scan = np.frombuffer(content, np.uint8, offset=start)
    markers = scan[1:][scan[:-1] == 0xFF]
    return content.endswith(END_OF_IMAGE) and bool(WITHIN_SCAN[markers[:-1]].all())


@pipeline_def(enable_conditionals=True)
def _views(
    source: Callable[[], list[Any]], augmentations: Sequence[Augmentation], on_gpu: bool
) -> tuple[Any, ...]:
    """DALI's graph: batches of files and one row per view to float32 views, normalised."""
    files, *rows = fn.external_source(
        source=source,
        num_outputs=1 + len(augmentations),
        dtype=[types.UINT8] + [types.FLOAT] * len(augmentations),
        ndim=1,
    )
    images = fn.decoders.image(
        files,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        jpeg_fancy_upsampling=True,  # libjpeg's, and so Pillow's
        adjust_orientation=False,
    )
    return tuple(_view(images, rows[v], one, on_gpu) for v, one in enumerate(augmentations))


def _view(images: Any, row: Any, augment: Augmentation, on_gpu: bool) -> Any:
    cubic = augment.interpolation is InterpolationMode.BICUBIC
    kernel = types.INTERP_CUBIC if cubic else types.INTERP_LINEAR
    side = augment.crop_size
    start = fn.cast(row[ROW.top : ROW.height], dtype=types.INT32)
    if augment.crop_scale is not None:
        # Cut first: a region of interest would let the kernel look beyond the crop's edge.
        shape = fn.cast(row[ROW.height : ROW.jitter], dtype=types.INT32)
        images = fn.slice(images, start=start, shape=shape, axes=(0, 1))
        images = fn.resize(images, size=(side, side), interp_type=kernel)
    else:
        images = fn.resize(images, size=row[ROW.height : ROW.jitter], interp_type=kernel)
        images = fn.slice(images, start=start, shape=(side, side), axes=(0, 1))
    if augment.color_jitter is not None:
        images = _jittered(images, row, on_gpu)
    if augment.grayscale and row[ROW.grayscale] > 0:
        grey = _grey(images)
        images = fn.cat(grey, grey, grey, axis=2)
    if augment.gaussian_blur and row[ROW.blur] > 0:
        images = fn.gaussian_blur(images, sigma=row[ROW.blur])
    if augment.solarization and row[ROW.solarization] > 0:
        images = math.min(images, types.Constant(255, dtype=types.UINT8) - images)
    return fn.crop_mirror_normalize(
        images,
        mirror=fn.cast(row[ROW.horizontal_flip], dtype=types.INT32),
        mean=[255 * value for value in augment.mean],
        std=[255 * value for value in augment.std],
        dtype=types.FLOAT,
        output_layout="CHW",
    )


def _jittered(images: Any, row: Any, on_gpu: bool) -> Any:
    if row[ROW.jitter] > 0:
        for step in range(4):
            if row[ROW.hue_at] == float(step):
                images = _hue_shifted(images, _beside(row[ROW.hue], on_gpu))
            if step < 3:
                column = ROW.blends + 3 * step
                if row[column + 2] != 1.0:
                    of_mean, of_grey, factor = (_beside(row[column + i], on_gpu) for i in range(3))
                    grey = _grey(images)
                    base = of_mean * fn.reductions.mean(grey) + of_grey * grey
                    blended = math.floor(base + factor * (images - base))  # as Pillow rounds
                    images = fn.cast(blended, dtype=types.UINT8)
    return images


def _beside(number: Any, on_gpu: bool) -> Any:
    """A number where the images are, for arithmetic with them."""
    return number.gpu() if on_gpu else number


def _grey(images: Any) -> Any:
    return fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)


def _hue_shifted(images: Any, turns: Any) -> Any:
    """The hue of HSV; value, and chroma, which is value times saturation, stay."""
    red, green, blue = (fn.cast(images[:, :, c : c + 1], dtype=types.FLOAT) for c in range(3))
    value = math.max(math.max(red, green), blue)
    chroma = value - math.min(math.min(red, green), blue)
    is_red = red == value
    is_green = (green == value) & (is_red ^ True)
    sixths = (
        is_red * (green - blue)
        + is_green * (blue - red + 2 * chroma)
        + ((is_red | is_green) ^ True) * (red - green + 4 * chroma)
    ) / math.max(chroma, 1.0) + 6 * turns
    channels = []
    for offset in (5.0, 3.0, 1.0):
        angle = sixths + offset
        angle = angle - 6 * math.floor(angle / 6)
        channels.append(value - chroma * math.clamp(math.min(angle, 4 - angle), 0.0, 1.0))
    return fn.cast(fn.cat(*channels, axis=2), dtype=types.UINT8)


class EncodedViews(DrawnRows):
    """Files, and a row of numbers for each of their views, a batch at a time; keys as of Views.

    Raises DataError where there is equalisation.
    """

    def __init__(
        self, images: ImageSet, augmentations: Sequence[Augmentation], on_corrupt: OnCorrupt
    ) -> None:
        assert isinstance(images.source, Files)
        if any(augment.equalization for augment in augmentations):
            raise DataError(
                "the equalisation of DALI is another than Pillow's",
                key="augmentations: equalization.prob",
                remedy="Set it to 0, or data.format: image_folder",
            )
        files: Any = EncodedFiles(images.source.paths, key=images.source.key)
        super().__init__(replace(images, source=files), augmentations, on_corrupt)

    def made(self, image: Encoded, seed: int) -> Any:
        return np.frombuffer(image.content, np.uint8), super().made(image, seed)

    def batch(self, indexes: Tensor, made: Sequence[Any], targets: Tensor) -> Any:
        """``indexes, files, rows, targets``; files are arrays of bytes."""
        files, rows = zip(*made, strict=True)
        return indexes, list(files), *super().batch(indexes, rows, targets)[1:]


class DaliLoader:
    """Yields ``[indexes, [X_1 .. X_V], targets]`` like the loader of Pillow views.

    From a loader of ``EncodedViews``, computed by so many threads of DALI, or on a GPU.
    """

    def __init__(self, batches: Any, threads: int, device: torch.device) -> None:
        self.batches = batches
        self.sampler = batches.sampler  # Lightning calls its set_epoch
        self.dataset = batches.dataset  # of which methods take the length
        self.device = device
        on_gpu = device.type == "cuda"
        self._options = {
            "augmentations": batches.dataset.augmentations,
            "on_gpu": on_gpu,
            "batch_size": batches.batch_size,
            "num_threads": threads,
            "device_id": (device.index or 0) if on_gpu else None,
            "prefetch_queue_depth": AHEAD,
        }
        self._pipeline: Any = None
        self._fetched: Iterator[Any] = iter(())
        self._under_way: deque[tuple[Tensor, Tensor]] = deque()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        # First: it forks, which DALI's threads would not survive.
        self._fetched = iter(self.batches)
        self._under_way.clear()
        # Kept for the next epoch only where this one came to its end: nothing is left in it then.
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            pipeline = _views(self._fetch, **self._options)
            pipeline.build()
            _PIPELINES.add(pipeline)
        stream = torch.cuda.current_stream(self.device) if self._options["on_gpu"] else None
        while True:
            try:
                views = pipeline.run(stream)
            except StopIteration:
                break
            except RuntimeError as error:
                raise self._undecodable(error) from error
            indexes, targets = self._under_way.popleft()
            yield [indexes, [torch.from_dlpack(of_view.as_tensor()) for of_view in views], targets]
        pipeline.reset()
        self._pipeline = pipeline

    def _fetch(self) -> list[Any]:
        """DALI's next batch; it asks for it while others are under way."""
        indexes, files, rows, targets = next(self._fetched)
        self._under_way.append((indexes, targets))
        return [files, *rows]

    def _undecodable(self, error: RuntimeError) -> DataError:
        """Of an image that Pillow would have read; DALI is then at its end."""
        sample = re.search(r"sample #(\d+)", str(error))
        if sample is None:
            reason = " ".join(str(error).split())
            return DataError(
                f"DALI has failed ({reason})",
                key="data.format",
                remedy="image_folder reads the same files without it",
            )
        indexes, _ = self._under_way[0]
        return DataError(
            "DALI cannot decode the image",
            key="data.train_path",
            path=self.dataset.images.path(int(indexes[int(sample[1])])),
            remedy="Replace or move the file, or set data.format: image_folder",
        )
