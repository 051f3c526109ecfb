"""Images that lie in classes: folders, or HDF5 files of the same layout."""

import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from solo_mim.data.errors import DataError
from solo_mim.data.h5 import H5Tree
from solo_mim.data.images import UNLABELLED, ClassTree, DataSplits, Files, ImageSet
from solo_mim.data.transforms import RGB
from solo_mim.errors import nearest

IMAGENET_STATISTICS: tuple[RGB, RGB] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET100 = tuple(files("solo_mim.data").joinpath("imagenet100_classes.txt").read_text().split())


def class_tree(data: Mapping[str, Any]) -> DataSplits:
    """The images that ``train_path`` and ``val_path`` name, each a folder or an HDF5 file.

    ``imagenet100`` takes the 100 classes of solo-learn's list where it finds them among others.
    ``no_labels`` takes no notice of the classes.
    """
    open_tree: type[ClassTree] = H5Tree if data.get("format") == "h5" else FolderTree
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
    class_names: tuple[str, ...] = ()
    if not data.get("no_labels", False):
        class_names = _classes(train, listed)
        _warn_of_odd_classes(class_names, train)
    read = partial(_images, listed=listed, class_names=class_names)
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


def _images(tree: ClassTree, listed: tuple[str, ...], class_names: tuple[str, ...]) -> ImageSet:
    """The images of the tree's classes, labelled by their position in ``class_names``.

    The names are the training set's for the validation set too: a class that is missing there
    must not shift the labels of the classes after it. Without names there are no labels.
    """
    entries: list[bytes] = []
    labels: list[int] = []
    if not class_names:
        names: tuple[str, ...] = ()
        with suppress(DataError):  # there are no classes
            names = _classes(tree, listed) if listed else ()
        if names and names == listed:
            entries = [entry for name in names for entry in tree.images_of(name)]
        else:
            entries = tree.all_images()
        return ImageSet(tree.source(entries), np.full(len(entries), UNLABELLED, np.int64))
    for name in _classes(tree, listed):
        if name not in class_names:
            raise tree.refused(
                f"{name!r} is no class of the training set{nearest(name, class_names)}",
                "Validate on classes that data.train_path has a folder for",
                name,
            )
        found = tree.images_of(name)
        entries += found
        labels += [class_names.index(name)] * len(found)
    return ImageSet(tree.source(entries), np.array(labels, np.int64))


class FolderTree(ClassTree):
    """A folder as a ``ClassTree``: a subfolder for each class, images below it at any depth.

    Images are files with one of torchvision's suffixes, as for solo-learn (no .gif), in either
    case. Links are followed; a folder that they lead to a second time, up a loop or in another
    class, raises DataError, for its images would count twice and with two labels.
    """

    def __init__(self, path: str | None, key: str) -> None:
        super().__init__(path, key)
        if not path or not self.root.is_dir():
            raise self.absent(
                "folder",
                "Set data.format: h5"
                if self.root.suffix in (".h5", ".hdf5") and self.root.is_file()
                else "Name a folder of images, relative to the working directory or absolute",
            )
        self._met = {os.path.realpath(self.root): str(self.root)}

    def class_names(self) -> tuple[str, ...]:
        entries = os.scandir(self.root)
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        if not names:
            raise self.refused(
                "the folder holds no class folders",
                "Put the images of each class in a subfolder, or set data.no_labels: true",
            )
        return tuple(names)

    def images_of(self, class_name: str) -> list[bytes]:
        what = f"the class folder {class_name!r}"
        return self._images_below(class_name, what, "Fill or remove it")

    def all_images(self) -> list[bytes]:
        return self._images_below("", "the folder", "Fill it")

    def source(self, entries: list[bytes]) -> Files:
        return Files(np.array(entries), os.fsencode(self.root))

    def _images_below(self, folder: str, what: str, remedy: str) -> list[bytes]:
        found = []
        for path, folders, names in os.walk(self.root / folder, followlinks=True):
            other = self._met.setdefault(os.path.realpath(path), path)
            if other != path:
                raise DataError(
                    f"the folder and {other} are one, whose images would count twice",
                    key=self.key,
                    path=path,
                    remedy="Remove whichever of them is, or lies below, a link",
                )
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = (n for n in names if n.lower().endswith(IMG_EXTENSIONS) and n[0] != ".")
            found.append((path, sorted(here)))
        images = [os.path.join(path, name) for path, names in sorted(found) for name in names]
        if not images:
            read = ", ".join(IMG_EXTENSIONS)
            raise self.refused(f"{what} holds no image", f"{remedy}; read are {read}", folder)
        return [os.fsencode(image) for image in images]
