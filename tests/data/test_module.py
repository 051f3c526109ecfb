import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torchvision import transforms as reference

from solo_mim.data import DataError, SSLDataModule
from solo_mim.data.folders import IMAGENET_STATISTICS
from solo_mim.data.photo_patches import MEAN, STD
from solo_mim.data.transforms import normalise

pytestmark = pytest.mark.filterwarnings("ignore:.*holds one class")

MakeCfg = Callable[..., DictConfig]
WriteFolder = Callable[..., Path]


def fingerprints(loader: Any) -> list[tuple[list[int], list[float]]]:
    """Of each batch the indexes and one number per view that any other augmentation changes."""
    return [(indexes.tolist(), [x.sum().item() for x in X]) for indexes, X, _ in loader]


# What is known right after construction


def test_counts_are_there_right_after_construction(make_cfg: MakeCfg) -> None:
    module = SSLDataModule(make_cfg(validation_split=100))
    assert module.num_classes == len(module.class_names) == 17
    assert (module.num_train_images, module.num_val_images) == (5000, 100)
    assert (module.num_large_crops, module.num_small_crops, module.crop_size) == (2, 0, 32)


def test_crops_of_another_size_are_small_crops(
    make_cfg: MakeCfg, pipeline: Callable[..., Any]
) -> None:
    augmentations = [
        pipeline(num_crops=1),
        pipeline(crop_size=16, num_crops=3),
        pipeline(num_crops=1),
    ]
    module = SSLDataModule(make_cfg(augmentations=augmentations))
    assert (module.num_large_crops, module.num_small_crops) == (2, 3)
    _, X, _ = next(iter(module.train_dataloader()))
    assert [x.shape[-1] for x in X] == [32, 32, 16, 16, 16]


def test_missing_section_is_named(make_cfg: MakeCfg) -> None:
    cfg = make_cfg()
    del cfg["augmentations"]
    with pytest.raises(DataError, match="augmentations: the section is missing"):
        SSLDataModule(cfg)


# Batches


def test_training_batch_is_indexes_views_targets(make_cfg: MakeCfg) -> None:
    module = SSLDataModule(make_cfg(batch_size=60))
    loader = module.train_dataloader()
    assert len(loader) == 5100 // 60
    indexes, X, targets = next(iter(loader))
    assert indexes.shape == targets.shape == (60,)
    assert indexes.dtype == targets.dtype == torch.int64
    assert [(x.shape, x.dtype) for x in X] == [((60, 3, 32, 32), torch.float32)] * 2
    assert not torch.equal(X[0], X[1])
    assert torch.equal(targets, torch.tensor(module.splits.train.labels[indexes]))


def test_epoch_shows_every_image_once_and_drops_the_incomplete_batch(make_cfg: MakeCfg) -> None:
    loader = SSLDataModule(make_cfg(batch_size=64, fraction=0.1)).train_dataloader()
    shown = torch.cat([indexes for indexes, _, _ in loader])
    assert len(shown) == 448  # of 510
    assert len(shown.unique()) == 448


def test_un_augmented_view_is_the_normalised_image(
    make_cfg: MakeCfg, pipeline: Callable[..., Any]
) -> None:
    module = SSLDataModule(make_cfg(augmentations=[pipeline()]))
    indexes, X, _ = next(iter(module.train_dataloader()))
    images = [module.splits.train[int(index)] for index in indexes]
    assert torch.equal(X[0], normalise(images, MEAN, STD))
    assert torch.equal(X[0], X[1])


def test_validation_batch_is_images_and_targets_in_order(make_cfg: MakeCfg) -> None:
    module = SSLDataModule(make_cfg())
    batches = list(module.val_dataloader())
    targets = torch.cat([targets for _, targets in batches])
    assert torch.equal(targets, torch.tensor(module.splits.test.labels))
    expected = normalise([module.splits.test[i] for i in range(64)], MEAN, STD)
    assert torch.equal(batches[0][0], expected)


def test_plain_loader_gives_a_whole_split_in_order(make_cfg: MakeCfg) -> None:
    module = SSLDataModule(make_cfg(validation_split=0.1, fraction=0.2))
    for split, images in (("train", 918), ("val", 102), ("test", 4250)):
        targets = torch.cat([targets for _, targets in module.plain_dataloader(split)])
        assert torch.equal(targets, torch.tensor(module._images(split).labels))
        assert len(targets) == images


def test_views_loader_gives_the_same_views_at_every_call_and_seed(make_cfg: MakeCfg) -> None:
    cfg = make_cfg(batch_size=100, fraction=0.05)
    first = fingerprints(SSLDataModule(cfg).views_dataloader("train"))
    again = fingerprints(SSLDataModule(make_cfg(100, 6, fraction=0.05)).views_dataloader("train"))
    assert first == again
    assert [index for indexes, _ in first for index in indexes] == list(range(255))


def test_views_loader_draws_some_of_all_classes_with_the_views_that_they_always_have(
    make_cfg: MakeCfg,
) -> None:
    module = SSLDataModule(make_cfg(batch_size=100))
    (indexes, X, targets), *rest = module.views_dataloader("val", max_images=80)
    assert not rest
    assert indexes.tolist() == sorted(set(indexes.tolist()))
    assert set(targets.tolist()) == set(range(module.num_classes))
    first_views = [views[0] for _, views, _ in module.views_dataloader("val", max_images=10**6)]
    everything = torch.cat(first_views)
    assert len(everything) == module.num_val_images
    assert torch.equal(everything[indexes], X[0])


def test_views_loader_repeats_the_pipelines_for_more_views(
    make_cfg: MakeCfg, pipeline: Callable[..., Any]
) -> None:
    augmentations = [
        pipeline(num_crops=1),
        pipeline(num_crops=1, solarization={"prob": 1.0}),
        pipeline(num_crops=4, crop_size=16),
    ]
    module = SSLDataModule(make_cfg(augmentations=augmentations))
    _, X, _ = next(iter(module.views_dataloader("val", num_views=3)))
    assert len(X) == 3
    assert torch.equal(X[0], X[2])
    assert not torch.equal(X[0], X[1])
    assert X[1].shape[-1] == 32


def test_pipelines_own_constants_normalise_training_and_evaluation(
    make_cfg: MakeCfg, pipeline: Callable[..., Any]
) -> None:
    own = pipeline(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    module = SSLDataModule(make_cfg(augmentations=[own]))
    _, X, _ = next(iter(module.train_dataloader()))
    images, _ = next(iter(module.val_dataloader()))
    for x in (X[0], images):
        assert x.min() >= 0
        assert x.max() <= 1


def test_image_folder_of_any_size_is_batched(image_folder: WriteFolder, make_cfg: MakeCfg) -> None:
    train = image_folder("train", cat=5, dog=5)
    val = image_folder("val", size=(64, 90), cat=2, dog=2)
    cfg = make_cfg(batch_size=4, dataset="custom", train_path=str(train), val_path=str(val))
    module = SSLDataModule(cfg)
    assert [X[0].shape for _, X, _ in module.train_dataloader()] == [(4, 3, 32, 32)] * 2
    images, targets = next(iter(module.val_dataloader()))
    assert targets.tolist() == [0, 0, 1, 1]
    expected = reference.Compose(
        [
            reference.Resize(32),
            reference.CenterCrop(32),
            reference.ToTensor(),
            reference.Normalize(*IMAGENET_STATISTICS),
        ]
    )
    torch.testing.assert_close(images[0], expected(module.splits.val[0]), atol=1e-5, rtol=0)


# Errors


def test_batch_larger_than_the_training_set_is_refused(make_cfg: MakeCfg) -> None:
    module = SSLDataModule(make_cfg(batch_size=200, fraction=0.03))
    with pytest.raises(DataError, match=r"optimizer\.batch_size: .* Set it to 153 or less"):
        module.train_dataloader()
    assert sum(len(targets) for _, targets in module.plain_dataloader("train")) == 153
    module = SSLDataModule(make_cfg(batch_size=100, fraction=0.03))
    module.refuse_impossible_batch()
    with pytest.raises(DataError, match=r"optimizer\.batch_size: .* Set it to 76 or less"):
        module.refuse_impossible_batch(2)


def test_a_run_on_the_cpu_needs_no_gpu_that_is_there(
    make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = make_cfg(batch_size=2)
    for accelerator, device in (("auto", "cuda"), ("cpu", "cpu")):
        module = SSLDataModule(OmegaConf.merge(cfg, {"accelerator": accelerator}))
        assert module._device().type == device


def test_absent_validation_images_are_refused_and_validation_is_empty(
    image_folder: WriteFolder, make_cfg: MakeCfg
) -> None:
    root = image_folder("train", cat=4)
    module = SSLDataModule(make_cfg(batch_size=2, dataset="custom", train_path=str(root)))
    assert module.num_val_images == 0
    assert module.val_dataloader() == []
    with pytest.raises(DataError, match=r"data\.val_path: the data set has no val images"):
        module.plain_dataloader("val")


def test_unlabelled_validation_is_empty_but_its_views_are_there(
    image_folder: WriteFolder, make_cfg: MakeCfg
) -> None:
    root = image_folder("train", cat=8)
    cfg = make_cfg(2, dataset="custom", train_path=str(root), no_labels=True, validation_split=4)
    module = SSLDataModule(cfg)
    assert module.val_dataloader() == []
    assert module.num_val_images == 0
    assert len(list(module.views_dataloader("val"))) == 2


def test_unknown_split_is_refused(make_cfg: MakeCfg) -> None:
    with pytest.raises(ValueError, match="no split 'valid'"):
        SSLDataModule(make_cfg()).plain_dataloader("valid")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrupt_image_is_named_from_a_worker_too(
    num_workers: int, image_folder: WriteFolder, make_cfg: MakeCfg
) -> None:
    root = image_folder("train", cat=4)
    (root / "cat" / "2.png").write_bytes(b"no image")
    cfg = make_cfg(4, dataset="custom", train_path=str(root), num_workers=num_workers)
    with pytest.raises(DataError, match=r"2\.png") as caught:
        list(SSLDataModule(cfg).train_dataloader())
    assert "Traceback" not in str(caught.value)
    assert caught.value.path == root / "cat" / "2.png"


# Corrupt images, data.on_corrupt: skip


@pytest.fixture
def partly_corrupt(image_folder: WriteFolder, make_cfg: MakeCfg) -> Callable[..., SSLDataModule]:
    """A module on 8 training and 6 validation images; image 1 of the former cannot be read, nor can
    0, 1 and 2 of the latter: with batches of 2, one of them has nothing."""
    train, val = image_folder("train", cat=4, dog=4), image_folder("val", cat=3, dog=3)
    for path in (train / "cat" / "1.png", *(val / "cat" / f"{n}.png" for n in range(3))):
        path.write_bytes(path.read_bytes()[:200])

    def build(**data: Any) -> SSLDataModule:
        folders = {"train_path": str(train), "val_path": str(val)}
        return SSLDataModule(make_cfg(2, dataset="custom", **folders, on_corrupt="skip", **data))

    return build


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_training_image_is_replaced_by_the_next(
    num_workers: int, partly_corrupt: Callable[..., SSLDataModule]
) -> None:
    module = partly_corrupt(num_workers=num_workers)
    loader = module.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert [len(X[0]) for _, X, _ in batches] == [2, 2, 2, 2]
        shown = torch.cat([indexes for indexes, _, _ in batches])
        assert sorted(shown.tolist()) == [0, 2, 2, 3, 4, 5, 6, 7]
        assert torch.equal(torch.cat([t for _, _, t in batches]), (shown >= 4).long())
    assert [Path(path).name for path in module.corrupt_images] == ["1.png"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_image_is_left_out_of_evaluation_and_listed_once(
    num_workers: int, partly_corrupt: Callable[..., SSLDataModule]
) -> None:
    module = partly_corrupt(num_workers=num_workers)
    for _ in range(2):
        assert [y.tolist() for _, y in module.val_dataloader()] == [[1], [1, 1]]
        views = list(module.views_dataloader("val"))
        assert [indexes.tolist() for indexes, _, _ in views] == [[3], [4, 5]]
        assert sum(len(y) for _, y in module.plain_dataloader("train")) == 7
    assert len(module.corrupt_images) == 4


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nothing_readable_at_all_is_an_error(
    num_workers: int, image_folder: WriteFolder, make_cfg: MakeCfg
) -> None:
    root = image_folder("train", cat=4)
    for path in (root / "cat").iterdir():
        path.write_bytes(b"no image")
    cfg = make_cfg(
        2, dataset="custom", train_path=str(root), on_corrupt="skip", num_workers=num_workers
    )
    module = SSLDataModule(cfg)
    for loader in (module.train_dataloader(), module.plain_dataloader("train")):
        with pytest.raises(DataError, match=r"data\.train_path: none of 4 images can be read"):
            list(loader)


def test_unknown_way_with_corrupt_images_is_refused(make_cfg: MakeCfg) -> None:
    with pytest.raises(DataError, match=r"data\.on_corrupt: unknown value 'skipp'; did you mean"):
        SSLDataModule(make_cfg(on_corrupt="skipp"))


def test_trainer_passes_over_corrupt_images_and_its_checkpoint_lists_them(
    partly_corrupt: Callable[..., SSLDataModule], tmp_path: Path
) -> None:
    model, module = Recorder(), partly_corrupt()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=module)
    assert len(model.seen[0]) == 4
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    assert model.validated == 3
    saved = torch.load(tmp_path / "it.ckpt", weights_only=True)
    later = partly_corrupt()
    later.load_state_dict(saved[module.__class__.__qualname__])
    assert sorted(later.corrupt_images) == sorted(module.corrupt_images)
    assert len(later.corrupt_images) == 4


# Reproducibility


def test_batches_do_not_depend_on_the_number_of_workers(make_cfg: MakeCfg) -> None:
    seen = []
    for num_workers in (0, 1, 2):
        loader = SSLDataModule(make_cfg(num_workers=num_workers, fraction=0.05)).train_dataloader()
        epochs = []
        for epoch in range(2):  # the second from workers that persist
            loader.sampler.set_epoch(epoch)
            epochs.append(fingerprints(loader))
        seen.append(epochs)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0] != seen[0][1]


def test_data_set_survives_the_journey_to_a_spawned_worker(make_cfg: MakeCfg) -> None:
    loader = SSLDataModule(make_cfg(fraction=0.1)).train_dataloader()
    arrived = pickle.loads(pickle.dumps(loader.dataset))
    keys = list(loader.sampler)[:8]
    here, there = (views.__getitems__(keys).batch for views in (loader.dataset, arrived))
    assert all(torch.equal(a, b) for a, b in zip(here[1], there[1], strict=True))


def test_epoch_repeats_whatever_came_before(make_cfg: MakeCfg) -> None:
    loader = SSLDataModule(make_cfg(fraction=0.05)).train_dataloader()
    passes = {}
    for epoch in (0, 1, 2):
        loader.sampler.set_epoch(epoch)
        passes[epoch] = fingerprints(loader)
    torch.manual_seed(99)
    fresh = SSLDataModule(make_cfg(fraction=0.05)).train_dataloader()
    fresh.sampler.set_epoch(2)
    assert fingerprints(fresh) == passes[2]


def test_another_seed_gives_another_order_and_other_views(make_cfg: MakeCfg) -> None:
    module, other = (SSLDataModule(make_cfg(seed=seed, fraction=0.05)) for seed in (1, 2))
    order, views = zip(*fingerprints(module.train_dataloader()), strict=True)
    other_order, other_views = zip(*fingerprints(other.train_dataloader()), strict=True)
    assert order != other_order
    assert views != other_views


def test_image_gets_other_views_in_another_epoch(
    make_cfg: MakeCfg,
) -> None:
    loader = SSLDataModule(make_cfg(batch_size=51, fraction=0.01)).train_dataloader()
    by_image = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        ((indexes, X, _),) = list(loader)
        by_image.append(X[0][indexes.argsort()])
    same = (by_image[0] == by_image[1]).flatten(1).all(1)
    assert not same.any()


def test_loading_leaves_the_models_random_numbers_alone(make_cfg: MakeCfg) -> None:
    loader = SSLDataModule(make_cfg()).train_dataloader()
    batches = iter(loader)
    next(batches)
    before = torch.get_rng_state()
    next(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_share_an_epoch_without_overlap(make_cfg: MakeCfg) -> None:
    from solo_mim.data.batches import EpochSampler

    images = SSLDataModule(make_cfg(fraction=0.01)).splits.train  # 51
    shards = []
    for rank in range(2):
        sampler = EpochSampler(images, seed=0, num_replicas=2, rank=rank)
        sampler.set_epoch(3)
        shards.append(list(sampler))
        assert len(shards[-1]) == len(sampler) == 25
    indexes = [index for shard in shards for index, _ in shard]
    assert len(set(indexes)) == 50
    assert len({seed for shard in shards for _, seed in shard}) == 50


def test_processes_share_held_out_images_and_count_none_twice(make_cfg: MakeCfg) -> None:
    module = SSLDataModule(make_cfg(validation_split=100))
    seen = []
    for rank in range(3):
        of_three = SimpleNamespace(world_size=3, global_rank=rank, limit_val_batches=1.0)
        module.trainer = of_three  # type: ignore[assignment]
        shard = torch.cat([images for images, _ in module.val_dataloader()])
        assert len(shard) == 33
        seen += [image.sum().item() for image in shard]
    module.trainer = None
    every = [x.sum().item() for images, _ in module.val_dataloader() for x in images]
    assert sorted(seen) == sorted(every[:99])


# Under Lightning


class Recorder(LightningModule):
    """Trains one number and writes down every training batch by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[Any]] = {}
        self.validated = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        indexes, X, _ = batch
        entry = (indexes.tolist(), [x.sum().item() for x in X])
        self.seen.setdefault(self.current_epoch, []).append(entry)
        return self.weight * X[0].mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated += len(batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    cfg: DictConfig,
    folder: Path,
    max_epochs: int,
    ckpt_path: Path | None = None,
    model: Recorder | None = None,
    **options: Any,
) -> Recorder:
    model = model or Recorder()
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, save_last=True)],
        **options,
    )
    trainer.fit(model, datamodule=SSLDataModule(cfg), ckpt_path=ckpt_path)
    return model


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_run_sees_the_batches_it_would_have_seen(
    num_workers: int, make_cfg: MakeCfg, tmp_path: Path
) -> None:
    cfg = make_cfg(fraction=0.05, num_workers=num_workers)
    whole = fit(cfg, tmp_path / "whole", 3)
    fit(cfg, tmp_path / "part", 1)
    resumed = fit(cfg, tmp_path / "part", 3, tmp_path / "part" / "last.ckpt")
    assert sorted(whole.seen) == [0, 1, 2]
    assert sorted(resumed.seen) == [1, 2]
    for epoch in (1, 2):
        assert resumed.seen[epoch] == whole.seen[epoch]
    assert whole.seen[0] != whole.seen[1] != whole.seen[2]


def test_trainer_sees_what_a_bare_loop_sees(make_cfg: MakeCfg, tmp_path: Path) -> None:
    cfg = make_cfg(fraction=0.05)
    seen = fit(cfg, tmp_path, 2).seen
    loader = SSLDataModule(cfg).train_dataloader()
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        assert fingerprints(loader) == seen[epoch]


def test_trainer_validates_on_every_validation_image(make_cfg: MakeCfg, tmp_path: Path) -> None:
    cfg = make_cfg(fraction=0.05, validation_split=70)
    assert fit(cfg, tmp_path, 1, num_sanity_val_steps=0).validated == 70


@pytest.mark.parametrize("limit", [2, 0.35, 1.0])
def test_limited_validation_sees_the_same_images_of_all_classes(
    limit: float, make_cfg: MakeCfg, tmp_path: Path
) -> None:
    targets = []

    class Validated(Recorder):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            targets[-1] += batch[1].tolist()

    for seed in (1, 2):
        targets.append([])
        cfg = make_cfg(34, seed, fraction=0.05, validation_split=204)  # 12 of each of 17 classes
        options = {"limit_val_batches": limit, "num_sanity_val_steps": 0}
        fit(cfg, tmp_path / str(seed), 1, model=Validated(), **options)
    assert targets[0] == targets[1]
    assert len(targets[0]) == 204 if limit == 1.0 else 68
    if limit == 1.0:
        assert targets[0] == sorted(targets[0])
    else:
        assert sorted(targets[0]) == sorted(list(range(17)) * 4)


def test_beginnings_of_a_limited_validation_hold_classes_in_their_proportion() -> None:
    from solo_mim.data.batches import spread_over_classes

    labels = np.repeat([0, 1, 2], [10, 100, 300])
    order = spread_over_classes(labels)
    assert sorted(order) == list(range(410))
    for seen in (41, 100, 205, 409):
        counts = np.bincount(labels[order[:seen]], minlength=3)
        assert np.abs(counts - seen / 410 * np.array([10, 100, 300])).max() <= 1.5
    assert not np.array_equal(np.sort(order[labels[order] == 2]), order[labels[order] == 2])


def test_trainer_runs_without_validation_images(
    image_folder: WriteFolder, make_cfg: MakeCfg, tmp_path: Path
) -> None:
    root = image_folder("train", cat=4)
    cfg = make_cfg(2, dataset="custom", train_path=str(root))
    model = fit(cfg, tmp_path / "run", 1)
    assert len(model.seen[0]) == 2
    assert model.validated == 0


def test_overfitting_on_a_few_batches_repeats_them(make_cfg: MakeCfg, tmp_path: Path) -> None:
    seen = fit(make_cfg(fraction=0.05), tmp_path, 2, overfit_batches=2).seen
    assert len(seen[0]) == 2
    assert seen[0] == seen[1]


def test_default_loaders_make_no_noise(make_cfg: MakeCfg, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        fit(make_cfg(fraction=0.05, num_workers=None), tmp_path, 1)
    data = ("worker", "fork", "dataloader", "sampler", "pin_memory")
    noise = [str(w.message) for w in caught if any(word in str(w.message) for word in data)]
    assert noise == []


def test_seeds_of_a_long_run_hardly_collide(make_cfg: MakeCfg) -> None:
    from solo_mim.data.batches import EpochSampler

    images = SSLDataModule(make_cfg()).splits.train
    sampler = EpochSampler(images, seed=0, num_replicas=1, rank=0)
    seeds = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        seeds += [seed for _, seed in sampler]
    expected = math.comb(len(seeds), 2) / 2**32  # of drawing them uniformly
    assert len(seeds) - len(np.unique(seeds)) < 4 * expected + 5
