"""``SSLDataModule``: the loaders of one run, reproducible from (seed, epoch) alone.

A batch of epoch e depends on ``cfg.seed`` and e only: not on the number of workers, not on what
came before, so that a run resumed at epoch e sees the batches it would have seen. The sampler
draws both the order and one augmentation seed per image from (seed, epoch) and hands out
(index, seed) pairs. So the data sets need no state that persistent workers would not notice.
"""

import os
import random
import warnings
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from solo_mim.data.datasets import SPLIT_SEED, ImageSet, load_splits
from solo_mim.data.errors import DataError
from solo_mim.data.transforms import (
    Augmentation,
    evaluation_transform,
    normalise,
    parse_augmentations,
)

ViewsBatch = list[Any]  # [indexes int64 B, [X_1 .. X_V] each float32 B x 3 x H x W, targets B]
PlainBatch = list[Tensor]  # [X float32 B x 3 x H x W, targets int64 B]

# Lightning would say so of the un-augmented loaders, which are fastest without any worker.
warnings.filterwarnings("ignore", message=".*does not have many workers.*")


class SSLDataModule(LightningDataModule):
    """Training, validation and measuring loaders of the whole configuration ``cfg``.

    Reads ``cfg.data``, ``cfg.augmentations``, ``cfg.optimizer.batch_size`` and ``cfg.seed`` (5 when
    absent, as solo-learn has it). The data set is loaded, or its folder scanned, at once: counts
    and classes are there before any trainer is. Raises DataError.
    """

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__()
        data = _plain(cfg, "data")
        self.splits = load_splits(data)
        self.augmentations = parse_augmentations(
            _plain(cfg, "augmentations"), self.splits.mean, self.splits.std
        )
        self.batch_size: int = cfg.optimizer.batch_size
        self.seed: int = OmegaConf.select(cfg, "seed", default=5)
        # On two cores two workers train a tiny network on 32-pixel images a third faster than none;
        # where the network keeps both cores busy there is no difference.
        configured = data.get("num_workers")
        self.num_workers: int = min(_cores(), 8) if configured is None else configured

    @property
    def num_classes(self) -> int:
        return self.splits.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.splits.class_names

    @property
    def num_train_images(self) -> int:
        return len(self.splits.train)

    @property
    def num_val_images(self) -> int:
        """Images that ``val_dataloader`` yields: none where they have no labels."""
        val = self.splits.val
        return len(val) if val is not None and val.labelled else 0

    @property
    def crop_size(self) -> int:
        """Pixels of a large crop, and of the un-augmented images."""
        return self.augmentations[0].crop_size

    @property
    def num_large_crops(self) -> int:
        return sum(a.num_crops for a in self.augmentations if a.crop_size == self.crop_size)

    @property
    def num_small_crops(self) -> int:
        return sum(a.num_crops for a in self.augmentations) - self.num_large_crops

    def train_dataloader(self) -> DataLoader[ViewsBatch]:
        """Yields ``[indexes, [X_1 .. X_V], targets]``, large crops first, shuffled, last dropped.

        Outside a trainer call ``loader.sampler.set_epoch(epoch)`` before each pass, or every pass
        repeats epoch 0.
        """
        trainer = self.trainer
        sampler = EpochSampler(
            self.splits.train,
            seed=self.seed,
            shuffle=True,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
        )
        # Lightning calls set_epoch too, but only after it has created the first iterator, whose
        # workers prefetch at once.
        sampler.set_epoch(_epoch_about_to_run(trainer))
        if self.batch_size > len(sampler):
            raise DataError(
                f"a batch of {self.batch_size} is larger than the training set of {len(sampler)} "
                "images (per process)",
                key="optimizer.batch_size",
                remedy=f"Set it to {len(sampler)} or less",
            )
        views = Views(self.splits.train, _one_per_view(self.augmentations))
        return self._loader(views, sampler=sampler, drop_last=True, persistent=True)

    def val_dataloader(self) -> DataLoader[PlainBatch] | list[Any]:
        """Yields ``[X, targets]``, un-augmented; an empty list without labelled validation data."""
        if self.num_val_images == 0:
            return []
        return self._loader(self._plain_images("val"), persistent=True)

    def plain_dataloader(self, split: str) -> DataLoader[PlainBatch]:
        """Yields ``[X, targets]`` of ``train``, ``val`` or ``test``, un-augmented and in order."""
        return self._loader(self._plain_images(split))

    def views_dataloader(self, split: str, num_views: int = 2) -> DataLoader[ViewsBatch]:
        """Yields ``[indexes, [X_1 .. X_num_views], targets]`` of a split, in order, none dropped.

        The training augmentation of the large crops under a seed that is the same in every run and
        at every call, so that a held-out quantity moves with the model and not with the draw.
        """
        images = self._images(split)
        large = [a for a in self.augmentations if a.crop_size == self.crop_size]
        views = Views(images, tuple(islice(cycle(_one_per_view(large)), num_views)))
        sampler = EpochSampler(images, seed=SPLIT_SEED, shuffle=False, num_replicas=1, rank=0)
        return self._loader(views, sampler=sampler)

    def _images(self, split: str) -> ImageSet:
        images = {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}
        if split not in images:
            raise ValueError(f"there is no split {split!r}, but train, val and test")
        chosen = images[split]
        if chosen is None:
            raise DataError(
                f"the data set has no {split} images",
                key="data.val_path",
                remedy="Name a folder of images, or set data.validation_split",
            )
        return chosen

    def _plain_images(self, split: str) -> "PlainImages":
        return PlainImages(self._images(split), self.augmentations[0])

    def _loader(
        self, dataset: "Views | PlainImages", *, persistent: bool = False, **options: Any
    ) -> DataLoader[Any]:
        # Without augmentation an image in memory costs less than handing it between processes.
        plain_in_memory = isinstance(dataset, PlainImages) and dataset.images.in_memory
        workers = 0 if plain_in_memory else self.num_workers
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_it_is,
            **options,
        )


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


class Views(Dataset[ViewsBatch]):
    """Random views of images, one augmentation per view, a batch at a time.

    A key is ``(index, seed)``, or an index alone (from a foreign sampler, such as that of
    Lightning's ``overfit_batches``), which then is its own seed.
    """

    def __init__(self, images: ImageSet, augmentations: tuple[Augmentation, ...]) -> None:
        self.images = images
        self.augmentations = augmentations

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int] | int]) -> ViewsBatch:
        pairs = [key if isinstance(key, tuple) else (key, key) for key in keys]
        views: list[list[Any]] = [[] for _ in self.augmentations]
        for index, seed in pairs:
            image, rng = self.images[index], random.Random(seed)
            for view, augment in zip(views, self.augmentations, strict=True):
                view.append(augment(image, rng))
        indexes = [index for index, _ in pairs]
        batches = [
            normalise(view, augment.mean, augment.std)
            for view, augment in zip(views, self.augmentations, strict=True)
        ]
        return [torch.tensor(indexes), batches, torch.from_numpy(self.images.labels[indexes])]


class PlainImages(Dataset[PlainBatch]):
    """Images under the evaluation transform, with the crop size and constants of ``like``."""

    def __init__(self, images: ImageSet, like: Augmentation) -> None:
        self.images = images
        self.like = like

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indexes: Sequence[int]) -> PlainBatch:
        views = [evaluation_transform(self.images[index], self.like.crop_size) for index in indexes]
        targets = torch.from_numpy(self.images.labels[list(indexes)])
        return [normalise(views, self.like.mean, self.like.std), targets]


def _epoch_about_to_run(trainer: Trainer | None) -> int:
    """What Lightning will call set_epoch with; ``current_epoch`` lags by one while resuming."""
    if trainer is None:
        return 0
    processed: int = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    return processed


def _one_per_view(augmentations: Sequence[Augmentation]) -> tuple[Augmentation, ...]:
    return tuple(one for one in augmentations for _ in range(one.num_crops))


def _as_it_is(batch: Any) -> Any:
    """The collate function of data sets whose ``__getitems__`` makes whole batches."""
    return batch


def _plain(cfg: DictConfig, section: str) -> Any:
    if section not in cfg:
        raise DataError("the section is missing", key=section, remedy="Add it to the configuration")
    return OmegaConf.to_container(cfg[section], resolve=True)


def _cores() -> int:
    """Cores that this process may use, which in a container or a batch job is not all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
