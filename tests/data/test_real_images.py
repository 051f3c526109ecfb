"""Real photographs through the image folder, where SOLO_MIM_TEST_DATA names their folder."""

import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from solo_mim.data import SSLDataModule

IMAGES_PER_CLASS = {"train": 20, "test": 10}


@pytest.fixture(scope="session")
def cifar10_jpeg(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 20 training and 10 test images of every class of CIFAR-10 (JPEG)."""
    root = tmp_path_factory.mktemp("cifar10-jpeg")
    taken: Counter[str] = Counter()
    with tarfile.open(real_images / "cifar10-jpeg.tar.gz") as archive:
        for member in archive:
            folder = str(Path(member.name).parent)
            split = member.name.split("/")[0]
            if member.isfile() and taken[folder] < IMAGES_PER_CLASS[split]:
                taken[folder] += 1
                archive.extract(member, root, filter="data")
    return root


def test_cifar10_jpeg_loads_as_an_image_folder(
    cifar10_jpeg: Path, make_cfg: Callable[..., DictConfig]
) -> None:
    train, test = (str(cifar10_jpeg / split) for split in ("train", "test"))
    module = SSLDataModule(make_cfg(50, dataset="custom", train_path=train, val_path=test))
    assert (module.num_train_images, module.num_val_images, module.num_classes) == (200, 100, 10)
    assert module.class_names[0] == "airplane"
    batches = list(module.train_dataloader())
    assert [X[0].shape for _, X, _ in batches] == [(50, 3, 32, 32)] * 4
    for _, X, _ in batches:
        assert all(torch.isfinite(x).all() and 0.3 < x.std() < 3 for x in X)
    images = torch.cat([images for images, _ in module.val_dataloader()])
    assert images.shape == (100, 3, 32, 32)
    assert -1 < images.mean() < 1


def test_hundred_full_size_photographs_load_at_64_pixels(
    real_images: Path, hundred_photographs: Path, make_cfg: Callable[..., DictConfig]
) -> None:
    cfg = make_cfg(25, dataset="custom", train_path=str(hundred_photographs / "train"))
    cfg.augmentations[0].crop_size = 64
    module = SSLDataModule(cfg)
    listed = (real_images / "imagenet100_classes.txt").read_text().split()
    assert module.class_names == tuple(sorted(listed))
    assert module.num_train_images == module.num_classes == 100
    targets = []
    for _, X, labels in module.train_dataloader():
        assert [x.shape for x in X] == [(25, 3, 64, 64)] * 2
        assert all(torch.isfinite(x).all() for x in X)
        targets += labels.tolist()
    assert sorted(targets) == list(range(100))
    assert [x.shape for x, _ in module.plain_dataloader("train")] == [(25, 3, 64, 64)] * 4
