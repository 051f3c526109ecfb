import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from solo_mim.data import DataError
from solo_mim.data.datasets import CIFAR10_STATISTICS, IMAGENET_STATISTICS, load_splits
from solo_mim.errors import ConfigError

WriteFolder = Callable[..., Path]


def patches(**keys: Any) -> Any:
    return load_splits({"dataset": "photo_patches", **keys})


# Sizes of the splits


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
        assert splits.test.images is whole.test.images
        together = {image.tobytes() for part in (splits.train, splits.val) for image in part.images}
        assert together == {image.tobytes() for image in whole.train.images}


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
    assert np.array_equal(first.train.images, again.train.images)


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
    with pytest.raises(DataError, match=r"Set data\.format: image_folder"):
        patches(format="h5")


# Image folders


def test_image_folder_labels_by_sorted_subfolder(image_folder: WriteFolder) -> None:
    train = image_folder("train", dog=3, cat=2)
    val = image_folder("val", dog=1, cat=1)
    splits = load_splits({"dataset": "custom", "train_path": str(train), "val_path": str(val)})
    assert splits.class_names == ("cat", "dog")
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert splits.val is not None
    assert splits.val.labels.tolist() == [0, 1]
    assert (splits.mean, splits.std) == IMAGENET_STATISTICS
    with Image.open(train / "dog" / "2.png") as file:
        assert np.array_equal(np.asarray(splits.train[4]), np.asarray(file))


def test_validation_folder_without_some_class_keeps_the_other_labels(
    image_folder: WriteFolder,
) -> None:
    train, val = image_folder("train", ant=1, bee=1, cat=1), image_folder("val", ant=1, cat=1)
    splits = load_splits({"dataset": "custom", "train_path": str(train), "val_path": str(val)})
    assert splits.val is not None
    assert splits.val.labels.tolist() == [0, 2]


def test_image_folder_without_validation_path_has_no_validation(image_folder: WriteFolder) -> None:
    root = image_folder("train", cat=2, dog=2)
    splits = load_splits({"dataset": "custom", "train_path": str(root)})
    assert splits.val is None
    assert splits.test is None


def test_unlabelled_folder_takes_images_at_any_depth(image_folder: WriteFolder) -> None:
    root = image_folder("train", a=2, b=1)
    (root / "a" / "0.png").rename(root / "loose.png")
    (root / "notes.txt").write_text("no image")
    splits = load_splits({"dataset": "custom", "train_path": str(root), "no_labels": True})
    assert splits.train.labels.tolist() == [-1] * 3
    assert not splits.train.labelled
    assert splits.class_names == ()
    assert splits.num_classes == 1
    names = sorted(os.path.basename(os.fsdecode(path)) for path in splits.train.images)
    assert names == ["0.png", "1.png", "loose.png"]


def test_unlabelled_images_can_be_held_out(image_folder: WriteFolder) -> None:
    root = image_folder("train", a=10)
    splits = load_splits(
        {"dataset": "custom", "train_path": str(root), "no_labels": True, "validation_split": 3}
    )
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (7, 3)


def test_grey_and_transparent_files_become_rgb(tmp_path: Path) -> None:
    (tmp_path / "things").mkdir()
    Image.new("L", (5, 4), 9).save(tmp_path / "things" / "grey.png")
    Image.new("RGBA", (5, 4), (1, 2, 3, 0)).save(tmp_path / "things" / "transparent.png")
    splits = load_splits({"dataset": "custom", "train_path": str(tmp_path)})
    assert [splits.train[i].mode for i in range(2)] == ["RGB", "RGB"]


def test_missing_folder_is_named() -> None:
    with pytest.raises(DataError, match=r"data\.train_path: there is no such folder \(nowhere\)"):
        load_splits({"dataset": "custom", "train_path": "nowhere"})
    with pytest.raises(DataError, match=r"data\.train_path: no folder is given"):
        load_splits({"dataset": "custom"})


def test_missing_validation_folder_is_named(image_folder: WriteFolder) -> None:
    root = str(image_folder("train", cat=1))
    with pytest.raises(DataError) as raised:
        load_splits({"dataset": "custom", "train_path": root, "val_path": "nowhere"})
    assert raised.value.key == "data.val_path"
    assert raised.value.path == Path("nowhere")


def test_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"no class folders.* or set data\.no_labels: true"):
        load_splits({"dataset": "custom", "train_path": str(tmp_path)})


def test_empty_class_folder_is_named(image_folder: WriteFolder) -> None:
    root = image_folder("train", cat=1, dog=0, eel=1)
    with pytest.raises(DataError, match="'dog' holds no image") as raised:
        load_splits({"dataset": "custom", "train_path": str(root)})
    assert raised.value.path == root / "dog"
    assert "Fill or remove it" in raised.value.remedy


def test_unlabelled_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        load_splits({"dataset": "custom", "train_path": str(tmp_path), "no_labels": True})


def test_class_that_only_validation_has_is_refused(image_folder: WriteFolder) -> None:
    train, val = image_folder("train", cat=1, dog=1), image_folder("val", cats=1)
    with pytest.raises(DataError, match=r"'cats' is no class .* mean 'cat'"):
        load_splits({"dataset": "custom", "train_path": str(train), "val_path": str(val)})


@pytest.mark.parametrize("damage", ["truncated", "no image at all", "empty", "broken chunk"])
def test_corrupt_image_is_named(damage: str, image_folder: WriteFolder) -> None:
    root = image_folder("train", cat=2)
    victim = root / "cat" / "1.png"
    intact = victim.read_bytes()
    victim.write_bytes(
        {
            "truncated": intact[: len(intact) // 2],
            "no image at all": b"<html>not found</html>",
            "empty": b"",
            "broken chunk": intact[:40] + b"\xff" * 40 + intact[80:],
        }[damage]
    )
    splits = load_splits({"dataset": "custom", "train_path": str(root)})
    assert splits.train[0].size == (36, 40)
    with pytest.raises(DataError, match=r"cannot be read .*1\.png") as raised:
        splits.train[1]
    assert raised.value.path == victim


# CIFAR, in torchvision's pickled layout


@pytest.fixture
def fake_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archives of 20 training and 10 test images, checksums off."""
    rng = np.random.default_rng(0)

    def batch(path: Path, count: int, classes: int, key: str) -> None:
        content = {"data": rng.integers(0, 256, (count, 3072), np.uint8)}
        with path.open("wb") as file:
            pickle.dump({**content, key: [i % classes for i in range(count)]}, file)

    for archive, classes, key in ((CIFAR10, 10, "labels"), (CIFAR100, 100, "fine_labels")):
        folder = tmp_path / archive.base_folder
        folder.mkdir()
        train, test = archive.train_list[0][0], archive.test_list[0][0]
        batch(folder / train, 20, classes, key)
        batch(folder / test, 10, classes, key)
        names = [f"class {i}" for i in range(classes)]
        with (folder / archive.meta["filename"]).open("wb") as file:
            pickle.dump({archive.meta["key"]: names}, file)
        monkeypatch.setattr(archive, "train_list", [[train, None]])
        monkeypatch.setattr(archive, "test_list", [[test, None]])
        monkeypatch.setattr(archive, "meta", {**archive.meta, "md5": None})
    return tmp_path


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_from_one_folder(name: str, classes: int, fake_cifar: Path) -> None:
    # solo-learn's files carry a val_path of another data set, which must not matter here.
    splits = load_splits(
        {"dataset": name, "train_path": str(fake_cifar), "val_path": "datasets/imagenet100/val"}
    )
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (20, 10)
    assert splits.num_classes == classes
    assert splits.train.images.shape == (20, 32, 32, 3)
    assert splits.train.labels.tolist()[:3] == [0, 1, 2]


def test_cifar10_is_normalised_with_its_own_constants(fake_cifar: Path) -> None:
    splits = load_splits({"dataset": "cifar10", "train_path": str(fake_cifar)})
    assert (splits.mean, splits.std) == CIFAR10_STATISTICS


def test_absent_cifar_is_not_fetched_without_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(self: CIFAR10) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(CIFAR10, "download", fetched)
    with pytest.raises(DataError) as raised:
        load_splits({"dataset": "cifar10", "train_path": str(tmp_path), "download": False})
    assert "Unpack cifar-10-python.tar.gz" in raised.value.remedy
    assert raised.value.key == "data.train_path"
    assert raised.value.path == tmp_path / "cifar-10-batches-py"


def test_failed_download_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(self: CIFAR10) -> None:
        raise OSError("name resolution failed")

    monkeypatch.setattr(CIFAR10, "download", no_network)
    with pytest.raises(DataError, match="name resolution failed") as raised:
        load_splits({"dataset": "cifar100", "train_path": str(tmp_path)})
    assert f"Unpack cifar-100-python.tar.gz (from {CIFAR100.url}) in {tmp_path}" in str(
        raised.value
    )


def test_absent_cifar_is_fetched_once(
    fake_cifar: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path_factory.mktemp("elsewhere")

    def arrives(self: CIFAR10) -> None:
        (fake_cifar / CIFAR10.base_folder).rename(root / CIFAR10.base_folder)

    monkeypatch.setattr(CIFAR10, "download", arrives)
    for _ in range(2):
        splits = load_splits({"dataset": "cifar10", "train_path": str(root)})
        assert len(splits.train) == 20
