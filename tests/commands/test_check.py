"""`solo-mim check`: what it finds in folders of images, and what it makes of other data sets."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from solo_mim.data.check import check


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """Of `cat` 21 training images, of `dog` two; one is broken, one a copy, one in validation too,
    and `cat` is not validated on."""
    root = tmp_path_factory.mktemp("spoilt")
    draw = np.random.RandomState(0)
    for part, name, count in (("train", "cat", 21), ("train", "dog", 2), ("val", "dog", 1)):
        (root / part / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.randint(0, 256, (36 + number, 40, 3), np.uint8)
            Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    train = root / "train"
    shutil.copy(train / "cat" / "3.png", train / "cat" / "copy.png")
    shutil.copy(train / "dog" / "1.png", root / "val" / "dog" / "same.png")
    os.truncate(train / "cat" / "0.png", 300)
    (train / "cat" / "drawing.svg").touch()
    return [f"data.{part}_path={root / part}" for part in ("train", "val")]


def test_everything_that_is_wrong_is_named_at_once(spoilt, solo_mim):
    said = solo_mim("check", "data=image_folder", *spoilt, "--all")
    assert said.code == 1
    assert "train: 24 images of 2 classes; of a class min 2, median 12, max 22" in said.out
    assert "height 36 / 45 / 56 pixels (min / median / max, 23 of 24 images)" in said.out
    assert "a crop of 32 pixels fits" in said.out
    train = Path(spoilt[0].partition("=")[2])
    paths = [path for path in train.rglob("*.png") if path != train / "cat" / "0.png"]
    pixels = [np.asarray(Image.open(path)).reshape(-1, 3) / 255 for path in paths]
    mean = np.mean([one.mean(0) for one in pixels], 0)
    std = (np.mean([(one**2).mean(0) for one in pixels], 0) - mean**2) ** 0.5
    for name, expected in (("mean", mean), ("std", std)):
        found = re.search(rf"    {name}: \[(.*)\]", said.out)[1].split(", ")
        np.testing.assert_allclose(np.array(found, float), expected, atol=6e-5)
    for found in (
        r"note: data.train_path: 1 file .svg not read: \S+drawing.svg",
        r"note: 1 class of fewer than 10 training images: dog \(2\)",
        r"note: uneven classes: 22 images of cat, 2 of dog",
        r"note: without a validation image: 1 class: cat",
        r"WRONG: train: 1 of 24 images cannot be read\n  \S+train/cat/0.png",
        r"WRONG: in train and in val: 1 image\n  \S+train/dog/1.png = \S+val/dog/same.png",
        r"note: train: copies of another image: 1\n",
    ):
        assert re.search(found, said.out), (found, said.out)


def test_a_class_that_only_validation_has_is_a_finding_and_a_wrong_path_an_error(
    spoilt, solo_mim, refused
):
    train, val = spoilt
    dog = f"{train}/dog".replace("train_path", "val_path")
    swapped = [val.replace("val_path", "train_path"), train.replace("train_path", "val_path")]
    said = solo_mim("check", "data=image_folder", *swapped)
    assert said.code == 1
    assert "WRONG: data.val_path: 'cat' is no class of the training set" in said.out
    assert "data.val_path: there is no such folder" in refused(
        "check", "data=image_folder", train, f"{dog}s"
    )
    assert "data.train_path: no folder is given" in refused("check", "data=image_folder")


def test_a_data_set_of_arrays_is_counted_and_a_sample_looked_at(monkeypatch):
    monkeypatch.setattr("solo_mim.data.check.SAMPLE", 20)
    report = check({"dataset": "photo_patches"})
    assert report.lines[0].startswith("train: 5,100 images of 17 classes; of a class min 300,")
    assert "(min / median / max, 20 of 5,100 images)" in report.lines[1]
    assert not report.wrong
