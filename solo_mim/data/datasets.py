"""From the configuration section ``data`` to the images: training, validation and test set.

Nothing here augments or batches. Every data set hands out Pillow images, the representation in
which augmenting is fastest; how it holds them is in ``images``, what it is in ``archives``,
``folders`` and ``h5``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from solo_mim.data import photo_patches as patches
from solo_mim.data.archives import cifar10, cifar100, fashion_mnist, stl10
from solo_mim.data.errors import DataError
from solo_mim.data.folders import class_tree
from solo_mim.data.images import DataSplits, ImageSet, Pixels, fingerprint_of
from solo_mim.errors import nearest

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
    name = data.get("dataset")
    if name not in DATA_SETS:
        raise DataError(
            f"unknown data set {name!r}{nearest(str(name), DATA_SETS)}", key="data.dataset"
        )
    _refuse_unread_format(data.get("format") or "image_folder", DATA_SETS[name])
    if data.get("no_labels") and DATA_SETS[name] is not class_tree:
        raise DataError(
            f"{name} has labels, and they are not left out",
            key="data.no_labels",
            remedy="Set data.no_labels: false; true is for a folder of images",
        )
    splits = DATA_SETS[name](data)
    splits = replace(splits, fingerprint=fingerprint_of(splits))
    splits = _fraction(splits, data.get("fraction"))
    return _with_validation(splits, data.get("validation_split"))


def _refuse_unread_format(given: str, read: Callable[..., DataSplits]) -> None:
    formats = ["image_folder", "tensor", *(("dali", "h5") if read is class_tree else ())]
    if given == "dali" and read is not class_tree:
        raise DataError(
            "DALI reads folders of image files, which this data set is not",
            key="data.format",
            remedy="Set data.format: tensor, or image_folder",
        )
    if given not in formats:
        raise DataError(
            f"the format {given!r} is not read here",
            key="data.format",
            remedy=f"Set data.format: {', '.join(formats[:-1])} or {formats[-1]}",
        )


def share_of(fraction: Any) -> float:
    """`data.fraction` as a share of the training images.

    Raises:
        DataError: it is none.
    """
    if fraction in (None, -1):
        return 1.0
    if not _is_share(fraction) and fraction != 1:
        raise DataError(
            f"the value cannot be {fraction!r}",
            key="data.fraction",
            remedy="Set a share of the training set above 0 and up to 1, or -1 for all of it",
        )
    return float(fraction)


def _fraction(splits: DataSplits, given: Any) -> DataSplits:
    fraction = share_of(given)
    if fraction == 1:
        return splits
    kept = _drawn(splits.train.labels, "data.fraction", train_size=fraction)
    return replace(splits, train=splits.train.subset(kept))


def held_out_of(held_out: Any, evaluable: int) -> int:
    """`data.validation_split` as a number of so many images that can be held out.

    Raises:
        DataError: it is no share and no number of them.
    """
    if held_out is None:
        return 0
    is_count = isinstance(held_out, int) and not isinstance(held_out, bool)
    if not _is_share(held_out) and not (is_count and 0 < held_out < evaluable):
        raise DataError(
            f"the value cannot be {held_out!r}",
            key="data.validation_split",
            remedy="Set a share of the training set between 0 and 1, a number of images below "
            f"{evaluable}, or null to validate on the test set",
        )
    return held_out if is_count else math.ceil(evaluable * held_out)


def _with_validation(splits: DataSplits, given: Any) -> DataSplits:
    train, evaluable = splits.train, splits.train.evaluable
    held_out = held_out_of(given, len(evaluable))
    if not held_out:
        return splits
    remaining = _drawn(train.labels[evaluable], "data.validation_split", test_size=held_out)
    val = np.delete(evaluable, remaining)
    rest = np.delete(np.arange(len(train)), val)
    return replace(splits, train=train.subset(rest), val=train.subset(val))


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


DATA_SETS: dict[str, Callable[[Mapping[str, Any]], DataSplits]] = {
    "photo_patches": _photo_patches,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "stl10": stl10,
    "imagenet": class_tree,
    "imagenet100": class_tree,
    "custom": class_tree,
}
