"""Images in HDF5 files of solo-learn's layout: a group for each class, and in it, for each image, a
data set with the bytes of its encoded file."""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from solo_mim.data.errors import DataError
from solo_mim.data.images import ClassTree, Source, naming_unreadable, rgb
from solo_mim.errors import install_extra


class H5Tree(ClassTree):
    """An HDF5 file as a ``ClassTree``; entries are names ``class/image`` inside it.

    Raises DataError where there is no such file, no h5py, or what is there is no HDF5.
    """

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

    def source(self, entries: list[bytes]) -> "H5Images":
        return H5Images(self.root, np.array(entries))


class H5Images(Source):
    """The images ``names`` (bytes, ``class/image``) of an HDF5 file, read by ``rgb``.

    The file is opened at the first image that a process reads: a handle neither crosses a fork nor
    is pickled.
    """

    def __init__(self, path: Path, names: np.ndarray) -> None:
        self.path, self.names = path, names
        self._file: Any = None
        self._process: int | None = None

    def __getitem__(self, index: int) -> Image.Image:
        """Raises DataError with the name of an entry that is no readable image."""
        name = os.fsdecode(self.names[index])
        with naming_unreadable(self.path / name):
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
        return type(self), (self.path, self.names)

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
