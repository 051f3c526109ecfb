"""Data sets that torchvision downloads and checks: CIFAR, Fashion-MNIST, STL-10."""

import gzip
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, STL10, FashionMNIST

from solo_mim.data.errors import DataError
from solo_mim.data.images import UNLABELLED, DataSplits, ImageSet, Pixels, Source
from solo_mim.data.transforms import RGB

CIFAR10_STATISTICS: tuple[RGB, RGB] = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_STATISTICS: tuple[RGB, RGB] = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
FASHION_MNIST_STATISTICS: tuple[RGB, RGB] = (0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530)
# torchvision has them from a file of the archive that it does not check.
STL10_CLASSES = (
    *("airplane", "bird", "car", "cat", "deer"),
    *("dog", "horse", "monkey", "ship", "truck"),
)
STL10_STATISTICS: tuple[RGB, RGB] = (0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)

Archive = type[CIFAR10] | type[FashionMNIST] | type[STL10]


def _stl10(data: Mapping[str, Any]) -> DataSplits:
    """Trains on the 5,000 labelled images and, behind them, the 100,000 without label."""
    labelled = _present(data, STL10, lambda root, fetch: STL10(root, "train", download=fetch))
    folder = Path(labelled.root) / STL10.base_folder
    (train, _), _, (unlabelled, _) = STL10.train_list
    (test, _), (test_labels, _) = STL10.test_list
    images = MappedPixels(folder / train, folder / unlabelled)
    labels = np.full(len(images), UNLABELLED, np.int64)
    labels[: len(labelled)] = labelled.labels
    from_one = np.fromfile(folder / test_labels, np.uint8).astype(np.int64)
    held_out = ImageSet(MappedPixels(folder / test), from_one - 1)
    train_set = ImageSet(images, labels)
    return DataSplits(train_set, held_out, held_out, STL10_CLASSES, *STL10_STATISTICS)


class MappedPixels(Source):
    """The images of STL-10's files, one file behind the other, left on disk: of 2.9 GB, memory
    holds what the system caches, once for all processes."""

    decoded: ClassVar[bool] = True

    def __init__(self, *files: Path) -> None:
        self.files = files
        # In the files columns come before rows, and channels before both.
        self._arrays = [
            np.asarray(np.memmap(file, np.uint8, "r")).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
            for file in files
        ]

    def __len__(self) -> int:
        return sum(map(len, self._arrays))

    def __getitem__(self, index: int) -> Image.Image:
        for array in self._arrays:
            if index < len(array):
                return Image.fromarray(array[index])
            index -= len(array)
        raise IndexError(f"beyond the last of {len(self)} images")

    def __reduce__(self) -> tuple[Any, ...]:
        # Spawned workers map the files anew; pickled, a mapped array would be read and sent.
        return type(self), self.files


def _two_splits(
    archive: type[CIFAR10] | type[FashionMNIST],
    statistics: tuple[RGB, RGB],
    data: Mapping[str, Any],
) -> DataSplits:
    def both(root: Path, fetch: bool) -> tuple[Any, ...]:
        try:
            return archive(root, train=True, download=fetch), archive(root, train=False)
        except RuntimeError:
            if archive is FashionMNIST and not fetch and (found := _compressed(root)):
                return found
            raise

    sets, parts = [], _present(data, archive, both)
    for part in parts:
        pixels = np.asarray(part.data)
        pixels = pixels if pixels.ndim == 4 else np.repeat(pixels[..., None], 3, axis=-1)
        sets.append(ImageSet(Pixels(pixels), np.asarray(part.targets, np.int64)))
    train, test = sets
    return DataSplits(train, test, test, tuple(parts[0].classes), *statistics)


def _compressed(root: Path) -> tuple[Any, ...] | None:
    """Fashion-MNIST of the four files as they are published and as Debian has them, in the folder
    or where torchvision looks for them unpacked; None where they are not there."""
    for folder in (root, root / "FashionMNIST" / "raw"):
        files = [folder / name for name, _ in FashionMNIST.resources]
        if all(file.is_file() for file in files):
            images, labels, test_images, test_labels = map(_idx, files)
            classes = FashionMNIST.classes
            return (
                SimpleNamespace(data=images, targets=labels, classes=classes),
                SimpleNamespace(data=test_images, targets=test_labels, classes=classes),
            )
    return None


def _idx(file: Path) -> np.ndarray:
    """The bytes of one of MNIST's files, whose head says how many there are in each direction.

    Raises:
        ValueError: it is cut short, or no such file.
    """
    try:
        content = gzip.decompress(file.read_bytes())
        shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape)
    except (OSError, EOFError, IndexError, zlib.error) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _present(data: Mapping[str, Any], archive: Archive, read: Callable[[Path, bool], Any]) -> Any:
    """What ``read`` makes of ``train_path`` and whether to download: if allowed, and if needed."""
    root = Path(data.get("train_path") or "datasets").expanduser()
    try:
        return read(root, False)
    except (RuntimeError, ValueError) as absent:  # not there; cut short
        if not data.get("download", True):
            raise _no_archive(root, archive, absent) from absent
        try:
            return read(root, True)
        except Exception as error:  # no network, no disk, a proxy's page instead of the archive
            raise _no_archive(root, archive, error) from error


def _no_archive(root: Path, archive: Archive, error: Exception) -> DataError:
    reason = str(error).split(". ")[0]
    if issubclass(archive, FashionMNIST):
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


ARCHIVES: dict[str, Callable[[Mapping[str, Any]], DataSplits]] = {
    "cifar10": partial(_two_splits, CIFAR10, CIFAR10_STATISTICS),
    "cifar100": partial(_two_splits, CIFAR100, CIFAR100_STATISTICS),
    "fashion_mnist": partial(_two_splits, FashionMNIST, FASHION_MNIST_STATISTICS),
    "stl10": _stl10,
}
