"""Images that lie in classes: folders, or HDF5 files of solo-learn's layout, a group for each class
and in it, for each image, a data set with the bytes of its encoded file."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from solo_mim.data.errors import DataError
from solo_mim.data.images import (
    UNLABELLED,
    DataSplits,
    Files,
    ImageSet,
    Source,
    Unread,
    naming_unreadable,
    rgb,
)
from solo_mim.data.transforms import RGB
from solo_mim.errors import install_extra, nearest

IMAGENET_STATISTICS: tuple[RGB, RGB] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
READ = (*IMG_EXTENSIONS, ".gif")  # of an animation, the first frame
IMAGENET100 = tuple(files("solo_mim.data").joinpath("imagenet100_classes.txt").read_text().split())


class _Tree:
    """Where images lie in classes. Entries, in sorted order, are what ``source`` reads by; what is
    hidden, by a leading dot, is none. Each method raises DataError where it finds nothing."""

    def __init__(self, path: str | None, key: str) -> None:
        self.given, self.key = path, key
        self.root = Path(path or "").expanduser()
        self._unread: dict[str, list[str]] = {}

    def unread(self) -> list[Unread]:
        """What the methods called so far have passed over, by ending or place."""
        found = sorted(self._unread.items())
        return [Unread(self.key, what, len(names), names[:3]) for what, names in found]

    def absent(self, kind: str, remedy: str) -> DataError:
        what = f"there is no such {kind}" if self.given else f"no {kind} is given"
        return DataError(what, key=self.key, path=self.given or None, remedy=remedy)

    def refused(self, problem: str, remedy: str, name: str = "") -> DataError:
        return DataError(problem, key=self.key, path=self.root / name, remedy=remedy)


def class_tree(data: Mapping[str, Any]) -> DataSplits:
    """The images that ``train_path`` and ``val_path`` name, each a folder or an HDF5 file.

    ``imagenet100`` takes the 100 classes of solo-learn's list where it finds them among others.
    ``no_labels`` takes no notice of the classes.
    """
    train, val = open_trees(data)
    if val is not None and val.root.samefile(train.root):
        warnings.warn(
            "data.val_path is data.train_path: accuracies would be those of training images; "
            "data.validation_split holds images out",
            stacklevel=2,
        )
    # A data set may take some classes out of a tree that has more; without these it takes all.
    listed = IMAGENET100 if data["dataset"] == "imagenet100" else ()
    class_names: tuple[str, ...] = ()
    if not data.get("no_labels", False):
        class_names = classes_of(train, listed)
        _warn_of_odd_classes(class_names, train)
    read = partial(_images, listed=listed, class_names=class_names)
    images, held_out = read(train), None if val is None else read(val)
    unread = tuple(found for tree in (train, val) if tree for found in tree.unread())
    splits = DataSplits(images, held_out, held_out, class_names, *IMAGENET_STATISTICS)
    return replace(splits, unread=unread)


def open_trees(data: Mapping[str, Any]) -> tuple[FolderTree | H5Tree, FolderTree | H5Tree | None]:
    """What ``train_path`` and ``val_path`` of the section ``data`` name; None where there is no
    ``val_path``. Raises DataError with the key of a path that leads nowhere."""
    open_tree = H5Tree if data.get("format") == "h5" else FolderTree
    train = open_tree(data.get("train_path"), "data.train_path")
    val_path = data.get("val_path")
    return train, None if val_path is None else open_tree(val_path, "data.val_path")


def classes_of(tree: FolderTree | H5Tree, listed: tuple[str, ...]) -> tuple[str, ...]:
    """All classes, or those listed where the tree has them and others besides."""
    names = tree.class_names()
    return listed if listed and set(listed) <= set(names) else names


def _warn_of_odd_classes(class_names: tuple[str, ...], tree: FolderTree | H5Tree) -> None:
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


def _images(
    tree: FolderTree | H5Tree, listed: tuple[str, ...], class_names: tuple[str, ...]
) -> ImageSet:
    """The images of the tree's classes, labelled by their position in ``class_names``.

    The names are the training set's for the validation set too: a class that is missing there
    must not shift the labels of the classes after it. Without names there are no labels.
    """
    entries: list[bytes] = []
    labels: list[int] = []
    names: tuple[str, ...]
    if not class_names:
        names = ()
        with suppress(DataError):  # there are no classes
            names = classes_of(tree, listed) if listed else ()
        if names and names == listed:
            entries = [entry for name in names for entry in tree.images_of(name)]
        else:
            entries = tree.all_images()
        return ImageSet(tree.source(entries), np.full(len(entries), UNLABELLED, np.int64))
    names = classes_of(tree, listed)
    if foreign := [name for name in names if name not in class_names]:
        first, *others = foreign
        more = f" (nor are {', '.join(others)})" if others else ""
        raise tree.refused(
            f"{first!r} is no class of the training set{more}{nearest(first, class_names)}",
            "Validate on classes that data.train_path has a folder for",
            first,
        )
    for name in names:
        found = tree.images_of(name)
        entries += found
        labels += [class_names.index(name)] * len(found)
    return ImageSet(tree.source(entries), np.array(labels, np.int64))


class FolderTree(_Tree):
    """A folder: a subfolder for each class, images below it at any depth.

    Images are files with one of torchvision's suffixes, as for solo-learn, or .gif, in either case.
    Links are followed; a folder that they lead to a second time, up a loop or in another
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
        entries = [e for e in os.scandir(self.root) if not e.name.startswith(".")]
        names = sorted(e.name for e in entries if e.is_dir())
        if loose := sorted(e.name for e in entries if not e.is_dir()):
            self._unread["beside the class folders"] = loose
        if not names:
            raise self.refused(
                "the folder holds no class folders",
                "Put the images of each class in a subfolder, or set data.no_labels: true",
            )
        return tuple(names)

    def all_images(self) -> list[bytes]:
        return self.images_of("")

    def source(self, entries: list[bytes]) -> Files:
        return Files(np.array(entries), os.fsencode(self.root), self.key)

    def images_of(self, class_name: str) -> list[bytes]:
        found = []
        for path, folders, names in os.walk(self.root / class_name, followlinks=True):
            other = self._met.setdefault(os.path.realpath(path), path)
            if other != path:
                raise DataError(
                    f"the folder and {other} are one, whose images would count twice",
                    key=self.key,
                    path=path,
                    remedy="Remove whichever of them is, or lies below, a link",
                )
            folders[:] = [name for name in folders if not name.startswith(".")]
            names = sorted(name for name in names if name[0] != ".")
            here = [name for name in names if name.lower().endswith(READ)]
            found.append((path, here))
            for name in names if len(here) < len(names) else ():
                if not name.lower().endswith(READ):
                    ending = os.path.splitext(name)[1].lower() or "without an ending"
                    self._unread.setdefault(ending, []).append(os.path.join(path, name))
        images = [os.path.join(path, name) for path, names in sorted(found) for name in names]
        if not images:
            what = f"the class folder {class_name!r}" if class_name else "the folder"
            remedy = "Fill or remove it" if class_name else "Fill it"
            read = f"{remedy}; read are {', '.join(READ)}"
            raise self.refused(f"{what} holds no image", read, class_name)
        return [os.fsencode(image) for image in images]


class H5Tree(_Tree):
    """An HDF5 file; entries are names ``class/image`` inside it."""

    def __init__(self, path: str | None, key: str) -> None:
        super().__init__(path, key)
        if not path or not self.root.is_file():
            raise self.absent("file", "Name an HDF5 file, or set data.format: image_folder")
        try:
            with _opened(self.root):
                pass
        except OSError as error:
            raise self.refused(
                f"the file is no readable HDF5 ({error})",
                "Make it anew, or set data.format: image_folder",
            ) from error

    def class_names(self) -> tuple[str, ...]:
        with _opened(self.root) as file:
            groups = [name for name, item in file.items() if hasattr(item, "keys")]
        names = tuple(sorted(name for name in groups if not name.startswith(".")))
        if not names:
            raise self.refused(
                "the file holds no group",
                "Give each class a group, and in it each image a data set of its bytes",
            )
        return names

    def images_of(self, class_name: str) -> list[bytes]:
        with _opened(self.root) as file:
            names = sorted(name for name in file[class_name] if not name.startswith("."))
        if not names:
            what = f"the group {class_name!r} holds no image"
            raise self.refused(what, "Fill or remove it", class_name)
        return [os.fsencode(f"{class_name}/{name}") for name in names]

    def all_images(self) -> list[bytes]:
        return [image for name in self.class_names() for image in self.images_of(name)]

    def source(self, entries: list[bytes]) -> H5Images:
        return H5Images(self.root, np.array(entries), self.key)


class H5Images(Source):
    """The images ``names`` (bytes, ``class/image``) of an HDF5 file, read by ``rgb``.

    The file is opened at the first image that a process reads: a handle neither crosses a fork nor
    is pickled.
    """

    def __init__(self, path: Path, names: np.ndarray, key: str = Source.key) -> None:
        self.path, self.names, self.key = path, names, key
        self._file: Any = None
        self._process: int | None = None

    def __getitem__(self, index: int) -> Image.Image:
        name = os.fsdecode(self.names[index])
        with naming_unreadable(self.path / name, self.key):
            try:
                entry = self._of_this_process()[name]
            except KeyError as error:  # h5py's also of a header that is broken
                raise ValueError(str(error)) from error
            if not hasattr(entry, "shape"):
                raise ValueError("a group stands where an image should")
            return rgb(io.BytesIO(np.asarray(entry).tobytes()))

    def entries(self) -> Iterable[tuple[bytes, int]]:
        """Each with the bytes of the whole file, for to ask for those of one is to open it."""
        size = self.path.stat().st_size
        return ((name, size) for name in self.names.tolist())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.names, self.key)

    def _of_this_process(self) -> Any:
        if self._process != os.getpid():
            if self._file is not None:
                # The parent's. Left open here, HDF5 would give it out again for the same path.
                self._file.close()
            self._file, self._process = _opened(self.path), os.getpid()
        return self._file


def _opened(path: Path) -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise DataError(
            "h5 needs h5py",
            key="data.format",
            remedy=f"{install_extra('h5')}, or set data.format: image_folder",
        ) from error
    return h5py.File(path, "r")
