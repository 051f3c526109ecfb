"""From the configuration section ``data`` to the images: training, validation and test set.

Every data set hands out Pillow images, the representation in which augmenting is fastest.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from solo_mim.data import photo_patches as patches
from solo_mim.data.archives import (
    ARCHIVES,
    CIFAR10_STATISTICS,
    CIFAR100_STATISTICS,
    FASHION_MNIST_STATISTICS,
    STL10_STATISTICS,
)
from solo_mim.data.errors import DataError, impossible, refuse_unknown_value
from solo_mim.data.folders import IMAGENET_STATISTICS, class_tree
from solo_mim.data.images import DataSplits, ImageSet, Pixels, fingerprint_of
from solo_mim.data.transforms import RGB

# solo-learn's, and not the run's seed: runs of every seed train and validate on the same images.
SPLIT_SEED = 42


def load_splits(data: Mapping[str, Any]) -> DataSplits:
    """The data set that the section ``data`` (a plain dictionary) describes.

    ``fraction`` (-1, or a share of the training set) is taken first, ``validation_split`` (null,
    a share, or a number of images) from what it left; both are stratified by class. Where some
    training images have no label, they count as one more class for the former, and the latter
    takes labelled images alone, its share being that of them. Raises DataError, naming key, file
    and remedy, for whatever cannot be used.
    """
    name: Any = data.get("dataset")
    refuse_unknown_value(name, DATA_SETS, "data.dataset", "data set")
    of_files = DATA_SETS[name] is class_tree
    given = data.get("format") or "image_folder"
    formats = ["image_folder", "tensor", *(("dali", "h5") if of_files else ())]
    if given not in formats:
        raise DataError(
            "DALI reads folders of image files, which this data set is not"
            if given == "dali"
            else f"the format {given!r} is not read here",
            key="data.format",
            remedy=f"Set data.format: {', '.join(formats[:-1])} or {formats[-1]}",
        )
    if data.get("no_labels") and not of_files:
        raise DataError(
            f"{name} has labels, and they are not left out",
            key="data.no_labels",
            remedy="Set data.no_labels: false; true is for a folder of images",
        )
    splits = DATA_SETS[name](data)
    splits = replace(splits, fingerprint=fingerprint_of(splits))
    if (fraction := share_of(data.get("fraction"))) < 1:
        kept = _drawn(splits.train.labels, "data.fraction", train_size=fraction)
        splits = replace(splits, train=splits.train.subset(kept))
    train, evaluable = splits.train, splits.train.evaluable
    if held_out := held_out_of(data.get("validation_split"), len(evaluable)):
        kept = _drawn(train.labels[evaluable], "data.validation_split", test_size=held_out)
        val = np.delete(evaluable, kept)
        rest = np.delete(np.arange(len(train)), val)
        splits = replace(splits, train=train.subset(rest), val=train.subset(val))
    return splits


def share_of(fraction: Any) -> float:
    """`data.fraction` as a share of the training images; raises DataError where it is none."""
    if fraction in (None, -1):
        return 1.0
    if not _is_share(fraction) and fraction != 1:
        remedy = "Set a share of the training set above 0 and up to 1, or -1 for all of it"
        raise impossible(fraction, "data.fraction", remedy)
    return float(fraction)


def held_out_of(held_out: Any, evaluable: int) -> int:
    """`data.validation_split` as a number of images, of so many that can be held out.

    Raises DataError where it is no share and no number of them.
    """
    if held_out is None:
        return 0
    is_count = isinstance(held_out, int) and not isinstance(held_out, bool)
    if not _is_share(held_out) and not (is_count and 0 < held_out < evaluable):
        raise impossible(
            held_out,
            "data.validation_split",
            "Set a share of the training set between 0 and 1, a number of images below "
            f"{evaluable}, or null to validate on the test set",
        )
    return held_out if is_count else math.ceil(evaluable * held_out)


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _drawn(labels: np.ndarray, key: str, **sizes: float) -> np.ndarray:
    """Sorted indexes of the first of two parts, stratified by label, of sizes as in scikit-learn's
    ``train_test_split``."""
    from sklearn.model_selection import train_test_split  # a second to import, rarely needed

    try:
        first, _ = train_test_split(
            np.arange(len(labels)), stratify=labels, random_state=SPLIT_SEED, **sizes
        )
    except ValueError as error:
        raise DataError(
            f"the training set of {len(labels)} images cannot be divided by class ({error})",
            key=key,
            remedy="Each part needs at least one image, and each class at least two images",
        ) from error
    return np.sort(first)


def _photo_patches(_data: Mapping[str, Any]) -> DataSplits:
    train, test = (ImageSet(Pixels(half.images), half.labels) for half in patches.photo_patches())
    return DataSplits(train, test, test, tuple(patches.PHOTOGRAPHS), patches.MEAN, patches.STD)


_OF_FILES = ("imagenet", "imagenet100", "custom")
# Mean and standard deviation of the channels, in [0, 1], by which images are normalised where their
# pipeline does not say otherwise.
STATISTICS: dict[str, tuple[RGB, RGB]] = {
    "photo_patches": (patches.MEAN, patches.STD),
    "cifar10": CIFAR10_STATISTICS,
    "cifar100": CIFAR100_STATISTICS,
    "fashion_mnist": FASHION_MNIST_STATISTICS,
    "stl10": STL10_STATISTICS,
    **dict.fromkeys(_OF_FILES, IMAGENET_STATISTICS),
}
DATA_SETS: dict[str, Callable[[Mapping[str, Any]], DataSplits]] = {
    "photo_patches": _photo_patches,
    **ARCHIVES,
    **dict.fromkeys(_OF_FILES, class_tree),
}
