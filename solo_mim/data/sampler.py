"""Order of the images, functions of (seed, epoch) alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data.distributed import DistributedSampler

from solo_mim.data.datasets import SPLIT_SEED
from solo_mim.data.images import ImageSet


class EpochSampler(DistributedSampler[Any]):
    """Yields ``(index, augmentation seed)``; both are functions of (seed, epoch) and the index.

    A DistributedSampler, for Lightning wraps any other kind and then no longer reaches its
    ``set_epoch``. Shuffling drops the few images that do not divide among the processes.
    """

    def __init__(
        self, dataset: ImageSet, *, seed: int, shuffle: bool, num_replicas: int, rank: int
    ) -> None:
        super().__init__(
            dataset,  # type: ignore[arg-type]  # of which it only takes the length
            num_replicas=num_replicas,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=True,
        )
        self.num_images = len(dataset)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # numpy keeps what SeedSequence generates the same over versions and machines (NEP 19).
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(2 * self.num_images)
        seeds, keys = np.split(state, 2)
        order = np.argsort(keys, kind="stable") if self.shuffle else np.arange(self.num_images)
        mine = order[: self.total_size][self.rank :: self.num_replicas]
        return zip(mine.tolist(), seeds[mine].tolist(), strict=True)


def spread_over_classes(labels: np.ndarray) -> np.ndarray:
    """An order of images, the same in every run, in which the first n have all classes in the
    proportion of the whole, to an image or so, for any n."""
    draw = np.random.RandomState(SPLIT_SEED)
    drawn = draw.permutation(len(labels))
    by_class = drawn[np.argsort(labels[drawn], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    places = [(np.arange(count) + draw.random_sample()) / count for count in counts]
    return by_class[np.argsort(np.concatenate(places), kind="stable")]
