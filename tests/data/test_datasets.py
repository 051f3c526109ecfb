from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solo_mim.data import DataError
from solo_mim.data.datasets import DATA_SETS, STATISTICS, load_splits
from solo_mim.data.images import ImageSet
from solo_mim.errors import ConfigError

WriteFolder = Callable[..., Path]


def patches(**keys: Any) -> Any:
    return load_splits({"dataset": "photo_patches", **keys})


def pixels(images: ImageSet) -> list[bytes]:
    return [images[i].tobytes() for i in range(len(images))]


def test_photo_patches_validate_on_the_test_patches_by_default() -> None:
    splits = patches()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (5100, 4250, 4250)
    assert splits.num_classes == len(splits.class_names) == 17
    assert splits.train[0].size == (32, 32)


def test_validation_split_comes_from_the_training_set_and_leaves_the_test_set() -> None:
    whole = patches()
    for held_out in (0.2, 1020):
        splits = patches(validation_split=held_out)
        assert np.bincount(splits.train.labels).tolist() == [240] * 17
        assert np.bincount(splits.val.labels).tolist() == [60] * 17
        assert pixels(splits.test) == pixels(whole.test)
        assert sorted(pixels(splits.train) + pixels(splits.val)) == sorted(pixels(whole.train))


def test_fraction_is_stratified_and_taken_before_the_validation_split() -> None:
    splits = patches(fraction=0.5, validation_split=0.2)
    assert np.bincount(splits.train.labels).tolist() == [120] * 17
    assert np.bincount(splits.val.labels).tolist() == [30] * 17
    assert len(splits.test) == 4250


@pytest.mark.parametrize("everything", [-1, -1.0, 1, 1.0, None])
def test_fraction_of_all_is_the_whole_training_set(everything: float | None) -> None:
    assert len(patches(fraction=everything).train) == 5100


def test_division_is_the_same_at_every_call() -> None:
    first, again = patches(fraction=0.1), patches(fraction=0.1)
    assert pixels(first.train) == pixels(again.train)


def test_part_of_a_part_has_the_images_of_its_labels() -> None:
    whole, part = patches().train, patches(fraction=0.5, validation_split=0.2).train
    label_of = dict(zip(pixels(whole), whole.labels, strict=True))
    assert [label_of[image] for image in pixels(part)] == part.labels.tolist()


@pytest.mark.parametrize("value", [0, 1.5, -0.5, 2, "half"])
def test_impossible_fraction_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"data\.fraction: .* above 0 and up to 1"):
        patches(fraction=value)


@pytest.mark.parametrize("value", [0, 1.0, -3, 5100, 1.5, "some", True])
def test_impossible_validation_split_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"data\.validation_split: .* below 5100"):
        patches(validation_split=value)


def test_split_that_some_class_cannot_share_is_refused(image_folder: WriteFolder) -> None:
    root = image_folder("train", cat=5, dog=1)
    with pytest.raises(DataError, match="each class at least two images") as raised:
        load_splits({"dataset": "custom", "train_path": str(root), "validation_split": 2})
    assert raised.value.key == "data.validation_split"


def test_unknown_data_set_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"data\.dataset: .*'cifar1O'.* mean 'cifar10'"):
        load_splits({"dataset": "cifar1O"})


def test_format_that_is_not_read_is_refused() -> None:
    with pytest.raises(DataError, match=r"'h5' is not .* image_folder or tensor$"):
        patches(format="h5")
    with pytest.raises(DataError, match=r"'zip' is not read .* image_folder, tensor, dali or h5"):
        load_splits({"dataset": "custom", "format": "zip"})


def test_every_data_set_has_constants_which_are_those_of_its_images(
    image_folder: WriteFolder,
) -> None:
    assert STATISTICS.keys() == DATA_SETS.keys()
    root = image_folder("train", cat=1, dog=1)
    for splits, name in (
        (patches(), "photo_patches"),
        (load_splits({"dataset": "custom", "train_path": str(root)}), "custom"),
    ):
        assert (splits.mean, splits.std) == STATISTICS[name]
