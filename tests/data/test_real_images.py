"""Real photographs through the image folder, where SOLO_MIM_TEST_DATA names their folder."""

import io
import random
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from view_statistics import assert_alike, summaries

from solo_mim.data import SSLDataModule
from solo_mim.data.imagenet100 import smaller
from solo_mim.data.images import rgb
from solo_mim.data.transforms import normalise, parse_augmentations

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


@pytest.fixture
def crop(hundred_photographs: Path):
    """A hundred photographs, and ImageNet's random resized crop of 224 pixels."""
    pipeline = {"rrc": {"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 1.0}}
    pipeline |= {"crop_size": 224, "num_crops": 1}
    (augment,) = parse_augmentations([pipeline], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    files = sorted((hundred_photographs / "train").rglob("*.JPEG"))
    return [rgb(str(file)) for file in files], augment


def test_views_of_files_of_256_pixels_lose_some_sharpness_and_nothing_else(crop) -> None:
    photographs, augment = crop
    images = [
        Image.open(io.BytesIO(smaller(image, 256))) if min(image.size) > 256 else image
        for image in photographs
    ]

    def views(of: list[Image.Image], seed: int) -> dict:
        rng = random.Random(seed)
        made = [augment(image, rng) for image in of for _ in range(2)]
        return summaries(normalise(made, augment.mean, augment.std))

    ours, theirs = views(images, 0), views(photographs, 1)
    kept = float(ours.pop("sharpness").mean() / theirs.pop("sharpness").mean())
    print(f"sharpness of views of 256-pixel files: {kept:.2f} of that of the files as they are")
    assert 0.8 < kept < 1
    assert_alike(ours, theirs)


def test_few_crops_are_large_enough_to_be_decoded_at_half_their_size(crop) -> None:
    """What a JPEG decoder that scales by two would save: both crops of an image need 448 pixels."""
    photographs, augment = crop
    rng = random.Random(0)
    boxes = [
        [augment.draw(*image.size, rng).box for _ in range(2)]
        for image in photographs
        for _ in range(100)
    ]
    sides = [min(min(b[2] - b[0], b[3] - b[1]) for b in pair) for pair in boxes]
    share = sum(side >= 448 for side in sides) / len(sides)
    print(f"images of which two crops could be decoded at half their size: {share:.1%}")
    assert 0 < share < 0.05
