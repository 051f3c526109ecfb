"""Images read a batch at a time, in an order that is a function of (seed, epoch), and what is done
about those that cannot be read."""

import os
import random
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from solo_mim.data.datasets import SPLIT_SEED
from solo_mim.data.errors import DataError
from solo_mim.data.images import ImageSet
from solo_mim.data.transforms import Augmentation, evaluation_transform, normalise

ViewsBatch = list[Any]  # [indexes int64 B, [X_1 .. X_V] each float32 B x 3 x H x W, targets B]
PlainBatch = list[Tensor]  # [X float32 B x 3 x H x W, targets int64 B]

# What is done about a file that is no readable image: DataError; the next that is readable in its
# place, so that batches keep their size; or a smaller batch, so that no image counts twice.
OnCorrupt = Literal["fail", "replace", "leave out"]


class Fetched(NamedTuple):
    """What a worker process answers with. An error is handed over, for one that it raised would
    arrive with its traceback as the message.

    ``batch`` is None of an error, and where no image is left in it.
    """

    batch: Any
    unreadable: list[str]
    error: DataError | None = None


class BatchedImages(Dataset[Any]):
    """Images read a batch at a time, what cannot be read handled by ``on_corrupt``."""

    corrupt_images: list[str]

    def __init__(
        self, images: ImageSet, augmentations: Sequence[Augmentation], on_corrupt: OnCorrupt
    ) -> None:
        self.images, self.augmentations, self.on_corrupt = images, augmentations, on_corrupt

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int] | int]) -> Fetched:
        unreadable: list[str] = []
        indexes, made = [], []
        try:
            for key in keys:
                index, seed = key if isinstance(key, tuple) else (key, key)
                if found := self._readable(index, unreadable):
                    indexes.append(found[0])
                    made.append(self.made(found[1], seed))
        except DataError as error:
            return Fetched(None, unreadable, error)
        if not indexes:
            return Fetched(None, unreadable)
        targets = torch.from_numpy(self.images.labels[indexes])
        return Fetched(self.batch(torch.tensor(indexes), made, targets), unreadable)

    def made(self, image: Any, seed: int) -> Any:
        """What a batch holds of one image, which is what the image set's source gives."""
        raise NotImplementedError

    def batch(self, indexes: Tensor, made: list[Any], targets: Tensor) -> Any:
        """The batch of what was made of its images."""
        raise NotImplementedError

    def _readable(self, index: int, unreadable: list[str]) -> tuple[int, Any] | None:
        """Index and image: those asked for, or what stands in for them."""
        for candidate in chain(range(index, len(self.images)), range(index)):
            try:
                return candidate, self.images[candidate]
            except DataError as error:
                if self.on_corrupt == "fail":
                    raise
                unreadable.append(str(error.path))
                if self.on_corrupt == "leave out":
                    return None
        raise _nothing_readable(self.images)


def _nothing_readable(images: ImageSet) -> DataError:
    return DataError(
        f"none of {len(images)} images can be read",
        key=images.source.key,
        remedy="Look at one of them: a broken copy, or a format that Pillow lacks",
    )


class ReadableLoader(DataLoader[Any]):
    """Yields the batches alone, and lists what could not be read: here, in the main process.

    Each path is listed once. Raises DataError for what a worker process could not read.
    """

    dataset: BatchedImages

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # The workers start, and the loader draws its seed, at this call and not at the first batch.
        return self._readable(super().__iter__())

    def _readable(self, fetched: Iterator[Fetched]) -> Iterator[Any]:
        met = self.dataset.corrupt_images
        batches = nothing = 0
        for batch, unreadable, error in fetched:
            if error is not None:
                raise error
            for path in unreadable:
                if path not in met:
                    met.append(path)
            if batch is None:
                nothing += 1
            else:
                batches += 1
                yield batch
        if nothing and not batches:
            raise _nothing_readable(self.dataset.images)


class Views(BatchedImages):
    """Random views of images, one augmentation per view, a batch at a time.

    A key is ``(index, seed)``, or an index alone, as under Lightning's ``overfit_batches``, which
    then is its own seed.
    """

    def made(self, image: Any, seed: int) -> Any:
        rng = random.Random(seed)
        return [augment(image, rng) for augment in self.augmentations]

    def batch(self, indexes: Tensor, made: list[Any], targets: Tensor) -> ViewsBatch:
        views = zip(zip(*made, strict=True), self.augmentations, strict=True)
        return [indexes, [normalise(view, one.mean, one.std) for view, one in views], targets]


class PlainImages(BatchedImages):
    """Images under the evaluation transform, with crop size and constants of the large crops."""

    def made(self, image: Any, seed: int) -> Any:
        return evaluation_transform(image, self.augmentations[0].crop_size)

    def batch(self, indexes: Tensor, made: list[Any], targets: Tensor) -> PlainBatch:
        large = self.augmentations[0]
        return [normalise(made, large.mean, large.std), targets]


def as_it_is(batch: Any) -> Any:
    """The collate function of data sets whose ``__getitems__`` makes whole batches."""
    return batch


def usable_cores() -> int:
    """Cores that this process may use, which in a container or a batch job is not all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class EpochSampler(DistributedSampler[Any]):
    """Yields ``(index, augmentation seed)``; both are functions of (seed, epoch) and the index.

    A DistributedSampler, for Lightning wraps any other kind and no longer calls its ``set_epoch``.
    Images that do not divide among the processes are dropped.
    """

    dataset: Any  # of which it only takes the length

    def __init__(self, images: Any, *, seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(images, num_replicas, rank, seed=seed, drop_last=True)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # numpy keeps what SeedSequence generates the same over versions and machines (NEP 19).
        sequence = np.random.SeedSequence((self.seed, self.epoch))
        seeds, keys = np.split(sequence.generate_state(2 * len(self.dataset)), 2)
        order = np.argsort(keys, kind="stable")
        mine = order[: self.total_size][self.rank :: self.num_replicas]
        return zip(mine.tolist(), seeds[mine].tolist(), strict=True)


def spread_over_classes(labels: np.ndarray) -> np.ndarray:
    """An order of images, the same in every run, in which any first n have all classes in the
    proportion of the whole, to an image or so."""
    draw = np.random.RandomState(SPLIT_SEED)
    drawn = draw.permutation(len(labels))
    by_class = drawn[np.argsort(labels[drawn], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    places = [(np.arange(count) + draw.random_sample()) / count for count in counts]
    return by_class[np.argsort(np.concatenate(places), kind="stable")]
