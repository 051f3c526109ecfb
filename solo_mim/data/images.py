"""What every data set is made of: sources of Pillow images, and sets of them with labels."""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from solo_mim.data.errors import DataError
from solo_mim.data.transforms import RGB

UNLABELLED = -1

# What Pillow raises of files: SyntaxError of a broken PNG, ValueError of some broken headers,
# the bomb of a header that claims more pixels than anyone has photographed.
UNREADABLE = (
    *(UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error),
    Image.DecompressionBombError,
)


class Source:
    """``source[i]`` is a Pillow RGB image, or a DataError with the path of a file that is none.

    Handed to every worker process, so small once pickled where the images are many.
    """

    # Whether an image costs no decoding, so that handing it between processes would cost more.
    decoded: ClassVar[bool] = False
    key = "data.train_path"  # of the configuration, that names where the images lie

    def __getitem__(self, index: int) -> Image.Image:
        raise NotImplementedError

    def entries(self) -> Iterable[tuple[bytes, int]]:
        """Name, wherever the images lie, and bytes of each file, where they are files."""
        return ()


@dataclass(frozen=True)
class Pixels(Source):
    """Images in memory, uint8 N x H x W x 3."""

    decoded: ClassVar[bool] = True
    pixels: np.ndarray

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


@dataclass(frozen=True)
class Files(Source):
    """Image files below ``root``, read by ``rgb``.

    ``paths`` is an array of bytes, since worker processes would copy a list of a million strings by
    counting references. ``key`` is of the configuration, that names ``root``.
    """

    paths: np.ndarray
    root: bytes = b""
    key: str = Source.key

    def __getitem__(self, index: int) -> Image.Image:
        path = os.fsdecode(self.paths[index])
        with naming_unreadable(path, self.key):
            return rgb(path)

    def entries(self) -> Iterable[tuple[bytes, int]]:
        start = len(self.root)
        for path in self.paths.tolist():
            try:
                size = os.stat(path).st_size
            except OSError:  # said where it is read
                size = -1
            yield path[start:].replace(os.sep.encode(), b"/"), size


@dataclass(frozen=True)
class ImageSet:
    """Images with labels: ``image_set[i]`` is a Pillow RGB image.

    ``labels`` is int64 N, -1 where there is none; ``rows``, int64 N, says which images of
    ``source`` these are, None that they are its first N. Subsets share the source.
    """

    source: Source
    labels: np.ndarray
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        return self.source[self._row(index)]

    def path(self, index: int) -> str:
        """Of an image; its number where the source is not ``Files``."""
        if not isinstance(self.source, Files):
            return f"image {index}"
        return os.fsdecode(self.source.paths[self._row(index)])

    def _row(self, index: int) -> int:
        return index if self.rows is None else self.rows[index]

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return bool((self.labels != UNLABELLED).all())

    @property
    def evaluable(self) -> np.ndarray:
        """Indexes of the images that have a label; of all where none has one."""
        has_label = self.labels != UNLABELLED
        return np.flatnonzero(has_label if has_label.any() else ~has_label)

    def subset(self, indexes: np.ndarray) -> "ImageSet":
        rows = indexes if self.rows is None else self.rows[indexes]
        return ImageSet(self.source, self.labels[indexes], rows)


class Unread(NamedTuple):
    """Files with one ending, or in one place, that are not read: the first few are named."""

    key: str
    what: str
    files: int
    names: list[str]


@dataclass(frozen=True)
class DataSplits:
    """What one data set offers.

    ``val`` is what training validates on: what ``data.validation_split`` took from the training set
    or, without it, the test set. ``test`` is always the untouched official test set (what
    ``data.val_path`` names, for folders and HDF5). ``mean`` and ``std`` are per channel, in [0, 1].
    ``unread`` are files of the folders that count as no image.
    """

    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None
    class_names: tuple[str, ...]
    mean: RGB
    std: RGB
    fingerprint: str = ""
    unread: tuple[Unread, ...] = ()

    @property
    def num_classes(self) -> int:
        """1 without labels: solo-learn's methods cannot be built with none."""
        return max(1, len(self.class_names))


def fingerprint_of(splits: DataSplits) -> str:
    """Twelve hex digits of the classes, the labels in order and, of files, their names and bytes.

    Nothing is read: pixels that change under the same name and size are not seen.
    """
    found = hashlib.sha256("\n".join(splits.class_names).encode())
    for images in filter(None, (splits.train, splits.test)):
        found.update(f"\n{len(images)}\n".encode())
        found.update(images.labels.astype("<i8").tobytes())
        for name, size in images.source.entries():
            found.update(b"%b\0%d\n" % (name, size))
    return found.hexdigest()[:12]


def rgb(file: str | BinaryIO) -> Image.Image:
    """RGB, 8 bits a channel, of any image file that Pillow reads.

    As solo-learn reads it (first frame of several, transparency dropped), but turned upright where
    EXIF says so, and with the high byte of 16-bit grey, which Pillow would clip to white. Raises
    one of UNREADABLE, also for 32-bit numbers, whose range no file states.
    """
    with Image.open(file) as image:
        image.load()
        with suppress(Exception):  # a broken EXIF block is no broken image
            ImageOps.exif_transpose(image, in_place=True)
        # PGM, and PNG under some versions of Pillow, put 16 bits into a mode of 32.
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise ValueError(
                f"32-bit numbers (Pillow's mode {image.mode}) have no known range; convert it to 8 "
                "or 16 bits"
            )
        image.info.pop("transparency", None)  # of a palette: Pillow would warn of its loss
        return image.convert("RGB")


@contextmanager
def naming_unreadable(path: str | Path, key: str) -> Iterator[None]:
    """Turns what is raised of an unreadable image into a DataError that names it and the key."""
    try:
        yield
    except UNREADABLE as error:
        raise DataError(
            f"the image cannot be read ({error})",
            key=key,
            path=path,
            remedy="Replace the file, move it out of the folder, or set data.on_corrupt: skip",
        ) from error
