"""Images that lie in classes: folders, or HDF5 files of the same layout."""

import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from solo_mim.data.errors import DataError
from solo_mim.data.h5 import H5Tree
from solo_mim.data.images import UNLABELLED, DataSplits, Files, ImageSet, Source
from solo_mim.data.transforms import RGB
from solo_mim.errors import nearest

IMAGENET_STATISTICS: tuple[RGB, RGB] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET100 = tuple(files("solo_mim.data").joinpath("imagenet100_classes.txt").read_text().split())


class ClassTree(Protocol):
    """Where images lie in classes. Entries, in sorted order, are what ``source`` reads by; what is
    hidden, by a leading dot, is none. Each method raises DataError where it finds nothing."""

    key: str  # of the configuration
    root: Path

    def class_names(self) -> tuple[str, ...]: ...

    def images_of(self, class_name: str) -> list[bytes]: ...

    def all_images(self) -> list[bytes]: ...

    def source(self, entries: list[bytes]) -> Source: ...


def class_tree(data: Mapping[str, Any]) -> DataSplits:
    """The images that ``train_path`` and ``val_path`` name, each a folder or an HDF5 file.

    ``imagenet100`` takes the 100 classes of solo-learn's list where it finds them among others.
    ``no_labels`` takes no notice of the classes.
    """
    open_tree: Callable[[str | None, str], ClassTree]
    open_tree = H5Tree if data.get("format") == "h5" else FolderTree
    train = open_tree(data.get("train_path"), "data.train_path")
    val_path = data.get("val_path")
    val = None if val_path is None else open_tree(val_path, "data.val_path")
    if val is not None and val.root.samefile(train.root):
        warnings.warn(
            "data.val_path is data.train_path: accuracies would be those of training images; "
            "data.validation_split holds images out",
            stacklevel=2,
        )
    listed = IMAGENET100 if data["dataset"] == "imagenet100" else ()
    if data.get("no_labels", False):
        class_names: tuple[str, ...] = ()
        read = partial(_unlabelled_images, listed=listed)
    else:
        class_names = _classes(train, listed)
        _warn_of_odd_classes(class_names, train)
        read = partial(_labelled_images, listed=listed, class_names=class_names)
    images, held_out = read(train), None if val is None else read(val)
    return DataSplits(images, held_out, held_out, class_names, *IMAGENET_STATISTICS)


def _classes(tree: ClassTree, listed: tuple[str, ...]) -> tuple[str, ...]:
    """All classes, or those listed where the tree has them and others besides."""
    names = tree.class_names()
    return listed if listed and set(listed) <= set(names) else names


def _warn_of_odd_classes(class_names: tuple[str, ...], tree: ClassTree) -> None:
    if len(class_names) == 1:
        warnings.warn(
            f"{tree.root} holds one class, {class_names[0]!r}: accuracies will say nothing. "
            "Name what holds all classes, or set data.no_labels: true",
            stacklevel=3,
        )
    folded: dict[str, str] = {}
    for name in class_names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            warnings.warn(
                f"{tree.root} has the classes {other!r} and {name!r}, which count as two",
                stacklevel=3,
            )


def _labelled_images(
    tree: ClassTree, listed: tuple[str, ...], class_names: tuple[str, ...]
) -> ImageSet:
    """The images of the tree's classes, labelled by their position in ``class_names``.

    The names are the training set's for the validation set too: a class that is missing there
    must not shift the labels of the classes after it.
    """
    entries: list[bytes] = []
    labels: list[int] = []
    for name in _classes(tree, listed):
        if name not in class_names:
            raise DataError(
                f"{name!r} is no class of the training set{nearest(name, class_names)}",
                key=tree.key,
                path=tree.root / name,
                remedy="Validate on classes that data.train_path has a folder for",
            )
        found = tree.images_of(name)
        entries += found
        labels += [class_names.index(name)] * len(found)
    return ImageSet(tree.source(entries), np.array(labels, np.int64))


def _unlabelled_images(tree: ClassTree, listed: tuple[str, ...]) -> ImageSet:
    try:
        names = _classes(tree, listed) if listed else ()
    except DataError:  # there are no classes
        names = ()
    if listed and names == listed:
        entries = [entry for name in names for entry in tree.images_of(name)]
    else:
        entries = tree.all_images()
    return ImageSet(tree.source(entries), np.full(len(entries), UNLABELLED, np.int64))


class FolderTree:
    """A folder as a ``ClassTree``: a subfolder for each class, images below it at any depth.

    Images are files with one of torchvision's suffixes, as for solo-learn (no .gif), in either
    case. Links are followed; a folder that they lead to a second time, up a loop or in another
    class, raises DataError, for its images would count twice and with two labels.
    """

    def __init__(self, path: str | None, key: str) -> None:
        self.key, self.root = key, Path(path or "").expanduser()
        if not path or not self.root.is_dir():
            raise DataError(
                "there is no such folder" if path else "no folder is given",
                key=key,
                path=path or None,
                remedy="Set data.format: h5"
                if self.root.suffix in (".h5", ".hdf5") and self.root.is_file()
                else "Name a folder of images, relative to the working directory or absolute",
            )
        self._met = {os.path.realpath(self.root): str(self.root)}

    def class_names(self) -> tuple[str, ...]:
        entries = os.scandir(self.root)
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        if not names:
            raise DataError(
                "the folder holds no class folders",
                key=self.key,
                path=self.root,
                remedy="Put the images of each class in a subfolder, or set data.no_labels: true",
            )
        return tuple(names)

    def images_of(self, class_name: str) -> list[bytes]:
        found = self._images_below(class_name)
        if not found:
            raise DataError(
                f"the class folder {class_name!r} holds no image",
                key=self.key,
                path=self.root / class_name,
                remedy=f"Fill or remove it; read are {', '.join(IMG_EXTENSIONS)}",
            )
        return found

    def all_images(self) -> list[bytes]:
        found = self._images_below("")
        if not found:
            raise DataError(
                "the folder holds no image",
                key=self.key,
                path=self.root,
                remedy=f"Fill it; read are {', '.join(IMG_EXTENSIONS)}",
            )
        return found

    def source(self, entries: list[bytes]) -> Files:
        return Files(np.array(entries), os.fsencode(self.root))

    def _images_below(self, folder: str) -> list[bytes]:
        found = []
        for path, folders, names in os.walk(self.root / folder, followlinks=True):
            self._refuse_second_way_to(path)
            folders[:] = [name for name in folders if not name.startswith(".")]
            images = (n for n in names if n.lower().endswith(IMG_EXTENSIONS) and n[0] != ".")
            found.append((path, sorted(images)))
        return [os.fsencode(os.path.join(path, n)) for path, names in sorted(found) for n in names]

    def _refuse_second_way_to(self, path: str) -> None:
        other = self._met.setdefault(os.path.realpath(path), path)
        if other != path:
            raise DataError(
                f"the folder and {other} are one, whose images would count twice",
                key=self.key,
                path=path,
                remedy="Remove whichever of them is, or lies below, a link",
            )
