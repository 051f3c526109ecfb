"""``SSLDataModule``: the loaders of one run, reproducible from (seed, epoch) alone.

A batch of epoch e depends on ``cfg.seed`` and e only, not on the number of workers, so that a run
resumed at epoch e sees the batches it would have seen. The sampler draws both the order and one
augmentation seed per image: the data sets need no state that persistent workers would not notice.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from solo_mim.data.batches import (
    BatchedImages,
    EpochSampler,
    OnCorrupt,
    PlainBatch,
    PlainImages,
    ReadableLoader,
    Views,
    ViewsBatch,
    as_it_is,
    spread_over_classes,
    usable_cores,
)
from solo_mim.data.datasets import SPLIT_SEED, load_splits
from solo_mim.data.errors import DataError, refuse_unknown_value
from solo_mim.data.images import ImageSet
from solo_mim.data.rows import DrawnRows
from solo_mim.data.tensor import TensorLoader, in_memory
from solo_mim.data.transforms import Augmentation, parse_augmentations
from solo_mim.errors import install_extra

# Lightning would say so of the un-augmented loaders, which are fastest without any worker.
warnings.filterwarnings("ignore", message=".*does not have many workers.*")


class SSLDataModule(LightningDataModule):
    """Training, validation and measuring loaders of the whole configuration ``cfg``.

    Reads ``cfg.data``, ``cfg.augmentations``, ``cfg.optimizer.batch_size``, ``cfg.dali.device``,
    ``cfg.accelerator`` and ``cfg.seed`` (5 when absent, as solo-learn has it). The data set is
    loaded, or its folder scanned, at once. Raises DataError.

    Attributes:
        corrupt_images: paths of the unreadable images that ``data.on_corrupt: skip`` has passed
            over, in the order in which they were met; a checkpoint carries them.
    """

    def __init__(self, cfg: DictConfig | Mapping[str, Any]) -> None:
        super().__init__()
        cfg = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
        data = _plain(cfg, "data")
        self.splits = load_splits(data)
        pipelines = _plain(cfg, "augmentations")
        self.augmentations = parse_augmentations(pipelines, self.splits.mean, self.splits.std)
        self.batch_size: int = cfg.optimizer.batch_size
        self.seed: int = OmegaConf.select(cfg, "seed", default=5)
        on_corrupt = data.get("on_corrupt", "fail")
        refuse_unknown_value(on_corrupt, ("fail", "skip"), "data.on_corrupt", "value")
        self._in_training: OnCorrupt = "replace" if on_corrupt == "skip" else "fail"
        self._in_evaluation: OnCorrupt = "leave out" if on_corrupt == "skip" else "fail"
        self.corrupt_images: list[str] = []
        configured = data.get("num_workers")
        self.num_workers: int = min(usable_cores(), 8) if configured is None else configured
        self.format: str = data.get("format") or "image_folder"
        self._in_memory: dict[str, ImageSet] = {}  # by split, of data.format: tensor
        self._on_cpu: bool = OmegaConf.select(cfg, "accelerator") == "cpu"
        self.dali_device: str | None = OmegaConf.select(cfg, "dali.device")
        if self.dali_device is not None:
            refuse_unknown_value(self.dali_device, ("cpu", "gpu"), "dali.device", "value")

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
        world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        sampler = EpochSampler(self.splits.train, seed=self.seed, num_replicas=world, rank=rank)
        if trainer:
            # Lightning calls set_epoch too, but only after it has created the first iterator, whose
            # workers prefetch at once; `current_epoch` lags by one while resuming.
            current: Any = trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(current.processed)
        self.refuse_impossible_batch(world)
        if self.format == "dali":
            return self._dali_loader(sampler)
        kind = DrawnRows if self.format == "tensor" else Views
        views = kind(self._images("train"), _one_per_view(self.augmentations), self._in_training)
        loader = self._loader(views, sampler=sampler, drop_last=True, persistent=True)
        return TensorLoader(loader, self._device()) if self.format == "tensor" else loader  # type: ignore[return-value]

    def refuse_impossible_batch(self, processes: int = 1) -> None:
        """Raises DataError where the training images of a process do not fill a batch."""
        share = self.num_train_images // processes
        if self.batch_size > share:
            raise DataError(
                f"a batch of {self.batch_size} is larger than the training set of {share} images "
                "(per process)",
                key="optimizer.batch_size",
                remedy=f"Set it to {share} or less",
            )

    def val_dataloader(
        self, split: str = "val", even: bool = True
    ) -> DataLoader[PlainBatch] | list[Any]:
        """Yields ``[X, targets]``, un-augmented; an empty list without labelled validation data.

        In order, but where the trainer's `limit_val_batches` takes the first batches alone: then
        so that any first images are of all classes, in the proportion of the whole. Several
        processes share the images; those that do not divide among them are left out, unless the
        shares need not be even.
        """
        if split == "val" and self.num_val_images == 0:
            return []
        images, trainer = self._plain_images(split), self.trainer
        limit = 1.0 if trainer is None else trainer.limit_val_batches
        if isinstance(limit, int) or limit < 1:  # batches, or a share of them
            order = spread_over_classes(images.images.labels)
            images.images = images.images.subset(order)
        if trainer is None or trainer.world_size == 1:
            return self._loader(images, persistent=True)
        # Lightning's own would fill the last shares up with images that others have already.
        kind: Any = DistributedSampler if even else UnrepeatedDistributedSampler
        share = (images, trainer.world_size, trainer.global_rank)
        sampler: DistributedSampler[Any] = kind(*share, shuffle=False, drop_last=even)
        return self._loader(images, persistent=True, sampler=sampler)

    def plain_dataloader(self, split: str) -> DataLoader[PlainBatch]:
        """Yields ``[X, targets]`` of ``train``, ``val`` or ``test``, un-augmented and in order.

        Images without label beside others that have one, as in STL-10, are left out: no evaluation
        could use them.
        """
        return self._loader(self._plain_images(split))

    def views_dataloader(
        self, split: str, num_views: int = 2, max_images: int | None = None
    ) -> DataLoader[ViewsBatch]:
        """Yields ``[indexes, [X_1 .. X_num_views], targets]`` of a split, in order, none dropped.

        The training augmentation of the large crops under one seed for all runs and calls, so that
        a held-out quantity moves with the model and not with the draw. Of more images than
        `max_images` so many are drawn, under that seed too.
        """
        images = self._images(split)
        large = [a for a in self.augmentations if a.crop_size == self.crop_size]
        augmentations = tuple(islice(cycle(_one_per_view(large)), num_views))
        views = Views(images, augmentations, on_corrupt=self._in_evaluation)
        drawn = EpochSampler(images, seed=SPLIT_SEED)
        return self._loader(views, sampler=sorted(islice(drawn, max_images)))

    def state_dict(self) -> dict[str, Any]:
        """The unreadable images met so far."""
        return {"corrupt_images": list(self.corrupt_images)} if self.corrupt_images else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the list up again: those met before are not told of a second time."""
        self.corrupt_images[:] = state_dict["corrupt_images"]

    def _images(self, split: str) -> ImageSet:
        if split not in ("train", "val", "test"):
            raise ValueError(f"there is no split {split!r}, but train, val and test")
        chosen: ImageSet | None = getattr(self.splits, split)
        if chosen is None:
            raise DataError(
                f"the data set has no {split} images",
                key="data.val_path",
                remedy="Name a folder of images"
                + (", or set data.validation_split" if split == "val" else ""),
            )
        if self.format != "tensor":
            return chosen
        if split not in self._in_memory:
            self._in_memory[split] = in_memory(chosen, self._in_evaluation)
        return self._in_memory[split]

    def _device(self) -> torch.device:
        """Where training is: the trainer's; before there is one a GPU, if there is any to use."""
        if self.trainer:
            return self.trainer.strategy.root_device
        return torch.device("cuda" if torch.cuda.is_available() and not self._on_cpu else "cpu")

    def _plain_images(self, split: str) -> PlainImages:
        images = self._images(split)
        evaluable = images if images.labelled else images.subset(images.evaluable)
        return PlainImages(evaluable, self.augmentations, self._in_evaluation)

    def _dali_loader(self, sampler: EpochSampler) -> Any:
        try:
            from solo_mim.data.dali import DaliLoader, EncodedViews
        except ModuleNotFoundError as error:
            raise DataError(
                "dali needs nvidia-dali",
                key="data.format",
                remedy=f"{install_extra('dali')} (Linux), or set data.format: image_folder",
            ) from error
        augmentations = _one_per_view(self.augmentations)
        views = EncodedViews(self.splits.train, augmentations, self._in_training)
        batches = self._loader(views, sampler=sampler, drop_last=True, persistent=True)
        device = self._device()
        if self.dali_device == "gpu" and device.type != "cuda":
            raise DataError(
                "training does not run on a GPU", key="dali.device", remedy="Leave it out, or cpu"
            )
        if device.type != "cuda" or self.dali_device == "cpu":
            device = torch.device("cpu")
        return DaliLoader(batches, max(1, self.num_workers), device)

    def _loader(
        self, dataset: BatchedImages, *, persistent: bool = False, **options: Any
    ) -> DataLoader[Any]:
        # Without augmentation a decoded image costs less than handing it between processes.
        plain_decoded = isinstance(dataset, PlainImages) and dataset.images.source.decoded
        workers = 0 if plain_decoded else self.num_workers
        # On the data set, for Lightning may make a loader anew from the arguments that it knows.
        dataset.corrupt_images = self.corrupt_images
        return ReadableLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=as_it_is,
            **options,
        )


def _one_per_view(augmentations: Sequence[Augmentation]) -> tuple[Augmentation, ...]:
    return tuple(one for one in augmentations for _ in range(one.num_crops))


def _plain(cfg: DictConfig, section: str) -> Any:
    if section not in cfg:
        raise DataError("the section is missing", key=section, remedy="Add it to the configuration")
    return OmegaConf.to_container(cfg[section], resolve=True)
