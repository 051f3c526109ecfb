"""What is wrong with a data set, told before a training: of its listing, and of its images."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ImageStat
from tqdm import tqdm

from solo_mim.data.batches import usable_cores
from solo_mim.data.datasets import DATA_SETS, SPLIT_SEED, load_splits
from solo_mim.data.errors import DataError
from solo_mim.data.folders import class_tree, open_trees
from solo_mim.data.images import DataSplits, Files, ImageSet
from solo_mim.errors import first

FEW = 10  # images of a class, below which it is named
IMBALANCE = 10  # times as many images in the largest class as in the smallest
SAMPLE = 500  # images of a split that are decoded where not all are
CROPS = (32, 96, 224)  # that the shipped recipes have


class Note(NamedTuple):
    """A sentence; ``wrong``: a training would break, or its figures would be false."""

    text: str
    wrong: bool = False


@dataclass(frozen=True)
class Report:
    """What a check has found: lines of each split, and notes."""

    lines: list[str]
    notes: list[Note]

    @property
    def wrong(self) -> bool:
        return any(note.wrong for note in self.notes)


def check(data: Mapping[str, Any], every_image: bool = False) -> Report:
    """Lists the data set that the section ``data`` describes and decodes a sample of it.

    Nothing is downloaded. With ``every_image`` all images are decoded, on all cores, and files
    compared by content. Raises DataError for a path that leads nowhere.
    """
    data = {**data, "download": False}
    of_files = DATA_SETS.get(str(data.get("dataset"))) is class_tree
    if of_files:
        open_trees(data)  # what they raise is no finding
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        try:
            splits = load_splits(data)
        except DataError as error:
            if not of_files:
                raise
            return Report([], [Note(str(error), wrong=True)])
    notes = [Note(str(warning.message), wrong=True) for warning in warned]
    notes += listing_notes(splits)
    parts = {"train": splits.train, "val": splits.val}
    if splits.test is not splits.val:
        parts["test"] = splits.test
    lines = []
    for name, images in parts.items():
        if images is None:
            continue
        lines.append(f"{name}: {len(images):,} images{_classes(images, splits.class_names)}")
        found = _decoded(images, name, every_image)
        lines += found.lines(name == "train")
        if found.unreadable:
            skipped = data.get("on_corrupt") == "skip"
            named = f"{len(found.unreadable):,} of {found.images:,} images cannot be read"
            # Of all decoded, so all are named: the list is what one has come for.
            text = "\n  ".join([f"{name}: {named}", *map(str, found.unreadable)])
            notes.append(Note(text, wrong=not skipped))
    if every_image:
        notes += _duplicates({name: images for name, images in parts.items() if images})
    return Report(lines, notes)


def listing_notes(splits: DataSplits) -> list[Note]:
    """What the listing alone says: files that are not read, classes that are small, uneven, or
    absent from what is validated on. Nothing is opened."""
    notes = []
    for unread in splits.unread:
        others = ["..."] if unread.files > len(unread.names) else []
        files = f"{_many(unread.files, 'file', 'files')} {unread.what}"
        named = ", ".join([*unread.names, *others])
        notes.append(Note(f"{unread.key}: {files} not read: {named}"))
    names = splits.class_names
    counts = _counts(splits.train, names)
    if few := [f"{name} ({counts[name]})" for name in names if counts[name] < FEW]:
        notes.append(Note(f"{_many(len(few))} of fewer than {FEW} training images: {first(few)}"))
    if names and max(counts.values()) >= IMBALANCE * max(1, min(counts.values())):
        least, most = min(names, key=counts.get), max(names, key=counts.get)  # type: ignore[arg-type]
        notes.append(
            Note(f"uneven classes: {counts[most]:,} images of {most}, {counts[least]:,} of {least}")
        )
    if names and splits.val is not None:
        held_out = _counts(splits.val, names)
        if absent := [name for name in names if not held_out[name]]:
            notes.append(Note(f"without a validation image: {_many(len(absent))}: {first(absent)}"))
    return notes


def _many(count: int, one: str = "class", several: str = "classes") -> str:
    return f"{count:,} {one if count == 1 else several}"


def _counts(images: ImageSet, names: tuple[str, ...]) -> dict[str, int]:
    labelled = images.labels[images.labels >= 0]
    return dict(zip(names, np.bincount(labelled, minlength=len(names)).tolist(), strict=True))


def _classes(images: ImageSet, names: tuple[str, ...]) -> str:
    """The end of a split's line: images of a class, each class where they are few."""
    if not names:
        return ", without labels"
    counts = _counts(images, names)
    numbers = list(counts.values())
    each = f" ({', '.join(f'{n} {count:,}' for n, count in counts.items())})"
    return (
        f" of {_many(sum(n > 0 for n in numbers))}; of a class min {min(numbers):,}, median "
        f"{np.median(numbers):,.0f}, max {max(numbers):,}{each if len(names) <= 10 else ''}"
    )


class _Measured(NamedTuple):
    """Of one image: size in pixels; mean and mean square of each channel, in [0, 1]."""

    size: tuple[int, int]
    mean: list[float]
    square: list[float]


@dataclass(frozen=True)
class _Decoded:
    of: int
    images: int
    measured: list[_Measured]
    unreadable: list[DataError | Path]

    def lines(self, statistics: bool) -> list[str]:
        if not self.measured:
            return []
        of = f"{len(self.measured):,} of {self.of:,} images"
        sizes = np.array([one.size for one in self.measured])
        spans = [f"{c.min()} / {np.median(c):.0f} / {c.max()}" for c in sizes.T]
        lines = [f"  width {spans[0]}, height {spans[1]} pixels (min / median / max, {of})"]
        if not statistics:
            return lines
        short = np.median(sizes.min(axis=1))
        crop = max((size for size in CROPS if size <= short), default=int(short))
        # Every image counts as much as any other, whatever its size.
        mean = np.mean([one.mean for one in self.measured], axis=0)
        std = np.sqrt(np.mean([one.square for one in self.measured], axis=0) - mean**2)
        given = [f"[{', '.join(f'{v:.4f}' for v in values)}]" for values in (mean, std)]
        return [
            *lines,
            f"  a crop of {crop} pixels fits: the median of the shorter side is {short:.0f}",
            f"  of each entry of augmentations ({of}):",
            f"    mean: {given[0]}",
            f"    std: {given[1]}",
        ]


def _measure(images: ImageSet, index: int) -> _Measured | DataError:
    try:
        image = images[index]
    except DataError as error:
        return error
    found = ImageStat.Stat(image)
    squares = [total / count / 255**2 for total, count in zip(found.sum2, found.count, strict=True)]
    return _Measured(image.size, [mean / 255 for mean in found.mean], squares)


def _decoded(images: ImageSet, name: str, every_image: bool) -> _Decoded:
    """All images, or as many as a sample has, drawn under one seed."""
    count = len(images) if every_image else min(SAMPLE, len(images))
    drawn = np.random.RandomState(SPLIT_SEED).permutation(len(images))[:count]
    found = list(_by_threads(partial(_measure, images), np.sort(drawn).tolist(), f"reading {name}"))
    measured = [one for one in found if isinstance(one, _Measured)]
    unreadable = [one.path or one for one in found if isinstance(one, DataError)]
    return _Decoded(len(images), count, measured, unreadable)


def _by_threads(function: Any, items: list[Any], what: str) -> Iterator[Any]:
    """Pillow, the system and hashlib work without Python's lock."""
    with ThreadPool(usable_cores()) as threads:
        found = threads.imap(function, items, chunksize=8)
        yield from tqdm(found, what, len(items), unit=" images", leave=False, disable=None)


def _digest(key: tuple[ImageSet, int]) -> bytes | None:
    images, index = key
    try:
        if isinstance(images.source, Files):
            content = Path(images.path(index)).read_bytes()
        else:
            content = images[index].tobytes()
    except (OSError, DataError):  # told of as unreadable
        return None
    return hashlib.sha256(content).digest()


def _duplicates(parts: dict[str, ImageSet]) -> list[Note]:
    """Images of equal content, by the bytes of files (of pixels, of other data sets): each that
    training and another split share, and how often training repeats one."""
    by_size: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for name, images in parts.items():
        rows = range(len(images)) if images.rows is None else images.rows.tolist()
        sizes = [size for _, size in images.source.entries()]
        for index, row in enumerate(rows):
            by_size[sizes[row] if isinstance(images.source, Files) else 0].append((name, index))
    alike = [where for group in by_size.values() if len(group) > 1 for where in group]
    digests = _by_threads(_digest, [(parts[name], i) for name, i in alike], "comparing")
    groups: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for where, digest in zip(alike, digests, strict=True):
        if digest:
            groups[digest].append(where)
    shared: dict[str, list[str]] = defaultdict(list)
    repeated = 0
    for group in groups.values():
        places = dict(reversed(group))  # an index of each split
        repeated += max(0, Counter(name for name, _ in group)["train"] - 1)
        for name in places.keys() - {"train"} if "train" in places else ():
            pair = (parts[part].path(places[part]) for part in ("train", name))
            shared[name].append(" = ".join(pair))
    notes = [
        Note(
            "\n  ".join(
                [f"in train and in {name}: {_many(len(pairs), 'image', 'images')}", *pairs]
            ),
            wrong=True,
        )
        for name, pairs in shared.items()
    ]
    return notes + ([Note(f"train: copies of another image: {repeated:,}")] if repeated else [])
