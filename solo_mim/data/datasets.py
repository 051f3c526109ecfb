"""From the configuration section ``data`` to the images: training, validation and test set.

Nothing here augments or batches. Small data sets are one uint8 array in memory, image folders are
a list of paths; both hand out Pillow images, the representation in which augmenting is fastest.
"""

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from solo_mim.data import photo_patches as patches
from solo_mim.data.errors import DataError
from solo_mim.data.transforms import RGB
from solo_mim.errors import nearest

CIFAR10_STATISTICS: tuple[RGB, RGB] = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_STATISTICS: tuple[RGB, RGB] = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
FASHION_MNIST_STATISTICS: tuple[RGB, RGB] = (0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530)
IMAGENET_STATISTICS: tuple[RGB, RGB] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Archive = type[CIFAR10] | type[FashionMNIST]

UNLABELLED = -1

# What Pillow raises of files: SyntaxError of a broken PNG, ValueError of some broken headers,
# the bomb of a header that claims more pixels than anyone has photographed.
UNREADABLE = (
    *(UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, struct.error),
    Image.DecompressionBombError,
)

# solo-learn's, and not the run's seed: runs of every seed train and validate on the same images.
SPLIT_SEED = 42


@dataclass(frozen=True)
class ImageSet:
    """Images with labels: ``image_set[i]`` is a Pillow RGB image.

    ``images`` is uint8 N x H x W x 3, or N paths as a bytes array: an array, since worker
    processes would copy a list of a million strings by counting references. ``labels`` is int64 N,
    -1 where there is none.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        return self.images.dtype == np.uint8

    @property
    def labelled(self) -> bool:
        return bool((self.labels != UNLABELLED).all())

    def __getitem__(self, index: int) -> Image.Image:
        """Raises DataError with the path of a file that is no readable image."""
        if self.in_memory:
            return Image.fromarray(self.images[index])
        path = os.fsdecode(self.images[index])
        try:
            with Image.open(path) as file:
                return file.convert("RGB")
        except UNREADABLE as error:
            raise DataError(
                f"the image cannot be read ({error})",
                key="data.train_path or data.val_path",
                path=path,
                remedy="Replace the file, move it out of the folder, or set data.on_corrupt: skip",
            ) from error

    def subset(self, indexes: np.ndarray) -> "ImageSet":
        return ImageSet(self.images[indexes], self.labels[indexes])


@dataclass(frozen=True)
class DataSplits:
    """What one data set offers.

    ``val`` is what training validates on: the share that ``data.validation_split`` took from the
    training set or, without it, the test set. ``test`` is always the untouched official test set
    (``data.val_path`` for folders). ``mean`` and ``std`` are per channel, in [0, 1].
    """

    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None
    class_names: tuple[str, ...]
    mean: RGB
    std: RGB

    @property
    def num_classes(self) -> int:
        """1 without labels: solo-learn's methods cannot be built with none."""
        return max(1, len(self.class_names))


def load_splits(data: Mapping[str, Any]) -> DataSplits:
    """The data set that the section ``data`` (a plain dictionary) describes.

    ``fraction`` (-1, or a share of the training set) is taken first, ``validation_split`` (null,
    a share, or a number of images) from what it left; both are stratified by class. Raises
    DataError, naming key, file and remedy, for whatever cannot be used.
    """
    name = data.get("dataset")
    if name not in DATA_SETS:
        raise DataError(
            f"unknown data set {name!r}{nearest(str(name), DATA_SETS)}", key="data.dataset"
        )
    if data.get("format") not in (None, "image_folder"):
        raise DataError(
            f"the format {data['format']!r} is not read here",
            key="data.format",
            remedy="Set data.format: image_folder",
        )
    splits = DATA_SETS[name](data)

    fraction = data.get("fraction")
    if fraction not in (None, -1):
        if not _is_share(fraction) and fraction != 1:
            raise DataError(
                f"the value cannot be {fraction!r}",
                key="data.fraction",
                remedy="Set a share of the training set above 0 and up to 1, or -1 for all of it",
            )
        if fraction != 1:
            kept, _ = _divide(splits.train, "data.fraction", train_size=fraction)
            splits = replace(splits, train=kept)

    held_out = data.get("validation_split")
    if held_out is not None:
        is_count = isinstance(held_out, int) and not isinstance(held_out, bool)
        if not _is_share(held_out) and not (is_count and 0 < held_out < len(splits.train)):
            raise DataError(
                f"the value cannot be {held_out!r}",
                key="data.validation_split",
                remedy="Set a share of the training set between 0 and 1, a number of images below "
                f"{len(splits.train)}, or null to validate on the test set",
            )
        train, val = _divide(splits.train, "data.validation_split", test_size=held_out)
        splits = replace(splits, train=train, val=val)
    return splits


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _divide(images: ImageSet, key: str, **sizes: float) -> tuple[ImageSet, ImageSet]:
    """The two stratified parts, each in the original order."""
    from sklearn.model_selection import train_test_split  # a second to import, rarely needed

    try:
        first, second = train_test_split(
            np.arange(len(images)),
            stratify=images.labels if images.labelled else None,
            random_state=SPLIT_SEED,
            **sizes,
        )
    except ValueError as error:
        raise DataError(
            f"the training set of {len(images)} images cannot be divided by class ({error})",
            key=key,
            remedy="Each part needs at least one image, and each class at least two images",
        ) from error
    return images.subset(np.sort(first)), images.subset(np.sort(second))


def _photo_patches(_data: Mapping[str, Any]) -> DataSplits:
    train, test = (ImageSet(half.images, half.labels) for half in patches.photo_patches())
    return DataSplits(train, test, test, tuple(patches.PHOTOGRAPHS), patches.MEAN, patches.STD)


def _archive(data: Mapping[str, Any], archive: Archive, mean: RGB, std: RGB) -> DataSplits:
    """Both halves come from ``train_path``: one archive holds them, so ``val_path`` is not read."""
    root = Path(data.get("train_path") or "datasets")
    try:
        train, test = _open_archive(root, archive, download=False)
    except RuntimeError as absent:
        if not data.get("download", True):
            raise _no_archive(root, archive, absent) from absent
        try:
            train, test = _open_archive(root, archive, download=True)
        except Exception as error:  # no network, no disk, a proxy's page instead of the archive
            raise _no_archive(root, archive, error) from error
    labelled = [
        ImageSet(_in_colour(np.asarray(half.data)), np.asarray(half.targets, np.int64))
        for half in (train, test)
    ]
    return DataSplits(labelled[0], labelled[1], labelled[1], tuple(train.classes), mean, std)


def _open_archive(root: Path, archive: Archive, download: bool) -> tuple[Any, Any]:
    return archive(root, train=True, download=download), archive(root, train=False)


def _in_colour(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 4 else np.repeat(pixels[..., None], 3, axis=-1)


def _no_archive(root: Path, archive: Archive, error: Exception) -> DataError:
    reason = str(error).split(". ")[0]
    if archive is FashionMNIST:
        names = ", ".join(Path(name).stem for name, _ in archive.resources)
        path, unpack = root / "FashionMNIST" / "raw", f"Unpack there {names}"
    else:
        path = root / archive.base_folder
        unpack = f"Unpack {archive.filename} (from {archive.url}) in {root}"
    return DataError(
        f"{archive.__name__} is not there ({reason})",
        key="data.train_path",
        path=path,
        remedy=f"{unpack}, or name the folder that holds {path.relative_to(root)}; "
        "data.download: true fetches it where there is a network",
    )


def _image_folder(data: Mapping[str, Any]) -> DataSplits:
    train_root = _existing_folder(data.get("train_path"), "data.train_path")
    val_path = data.get("val_path")
    val_root = None if val_path is None else _existing_folder(val_path, "data.val_path")
    if data.get("no_labels", False):
        class_names: tuple[str, ...] = ()
        read: Callable[[Path, str], ImageSet] = _unlabelled_images
    else:
        class_names = _subfolders(train_root, "data.train_path")
        read = partial(_labelled_images, class_names=class_names)
    train = read(train_root, "data.train_path")
    val = None if val_root is None else read(val_root, "data.val_path")
    return DataSplits(train, val, val, class_names, *IMAGENET_STATISTICS)


def _existing_folder(path: str | None, key: str) -> Path:
    if not path or not Path(path).is_dir():
        raise DataError(
            "there is no such folder" if path else "no folder is given",
            key=key,
            path=path or None,
            remedy="Name a folder of images, relative to the working directory or absolute",
        )
    return Path(path)


def _subfolders(root: Path, key: str) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))
    if not names:
        raise DataError(
            "the folder holds no class folders",
            key=key,
            path=root,
            remedy="Put the images of each class in a subfolder, or set data.no_labels: true",
        )
    return names


def _labelled_images(root: Path, key: str, class_names: tuple[str, ...]) -> ImageSet:
    """All images below ``root``, labelled by the position of their subfolder in ``class_names``.

    The names are the training set's for the validation set too: a class that is missing there
    must not shift the labels of the classes after it.
    """
    present = _subfolders(root, key)
    for name in present:
        if name not in class_names:
            raise DataError(
                f"{name!r} is no class of the training set{nearest(name, class_names)}",
                key=key,
                path=root / name,
                remedy="Validate on classes that data.train_path has a folder for",
            )
    label_of = {name: class_names.index(name) for name in present}
    samples = make_dataset(str(root), label_of, IMG_EXTENSIONS, allow_empty=True)
    for name in sorted(set(present) - {class_names[label] for _, label in samples}):
        raise DataError(
            f"the class folder {name!r} holds no image",
            key=key,
            path=root / name,
            remedy=f"Fill or remove it; read are {', '.join(IMG_EXTENSIONS)}",
        )
    return _from_samples(samples)


def _unlabelled_images(root: Path, key: str) -> ImageSet:
    """All images below ``root`` at any depth, in the order of their paths."""
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise DataError(
            "the folder holds no image",
            key=key,
            path=root,
            remedy=f"Fill it; read are {', '.join(IMG_EXTENSIONS)}",
        )
    return _from_samples([(str(file), UNLABELLED) for file in files])


def _from_samples(samples: list[tuple[str, int]]) -> ImageSet:
    paths, labels = zip(*samples, strict=True)
    return ImageSet(np.array([os.fsencode(path) for path in paths]), np.array(labels, np.int64))


DATA_SETS: dict[str, Callable[[Mapping[str, Any]], DataSplits]] = {
    "photo_patches": _photo_patches,
    "cifar10": lambda data: _archive(data, CIFAR10, *CIFAR10_STATISTICS),
    "cifar100": lambda data: _archive(data, CIFAR100, *CIFAR100_STATISTICS),
    "fashion_mnist": lambda data: _archive(data, FashionMNIST, *FASHION_MNIST_STATISTICS),
    "imagenet": _image_folder,
    "imagenet100": _image_folder,
    "custom": _image_folder,
}
