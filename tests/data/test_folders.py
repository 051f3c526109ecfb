import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from solo_mim.data import DataError, SSLDataModule
from solo_mim.data.datasets import load_splits
from solo_mim.data.folders import IMAGENET100, IMAGENET_STATISTICS
from solo_mim.data.images import DataSplits, Files, ImageSet

pytestmark = pytest.mark.filterwarnings("ignore:.*holds one class")

WriteFolder = Callable[..., Path]


def folder(train: Path, val: Path | None = None, **keys: Any) -> DataSplits:
    paths = {"train_path": str(train), "val_path": val and str(val)}
    return load_splits({"dataset": "custom", **paths, **keys})


def names(images: ImageSet) -> list[str]:
    """File names, in order."""
    assert isinstance(images.source, Files)
    return [os.path.basename(os.fsdecode(path)) for path in images.source.paths]


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
    assert sorted(names(splits.train)) == ["0.png", "1.png", "loose.png"]


def test_unlabelled_imagenet100_needs_no_class_folders(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    data = {"dataset": "imagenet100", "train_path": str(tmp_path), "no_labels": True}
    assert names(load_splits(data).train) == ["loose.png"]


def test_unlabelled_images_can_be_held_out(image_folder: WriteFolder) -> None:
    root = image_folder("train", a=10)
    splits = load_splits(
        {"dataset": "custom", "train_path": str(root), "no_labels": True, "validation_split": 3}
    )
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (7, 3)


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


# What counts as an image


def test_suffix_in_upper_case_counts(image_folder: WriteFolder) -> None:
    root = image_folder("train", cat=2)
    (root / "cat" / "0.png").rename(root / "cat" / "0.PNG")
    assert names(folder(root).train) == ["0.PNG", "1.png"]


@pytest.mark.parametrize("no_labels", [False, True])
def test_hidden_files_and_folders_are_left_out(no_labels: bool, image_folder: WriteFolder) -> None:
    root = image_folder("train", cat=2)
    (root / ".DS_Store").write_bytes(b"\0")
    (root / "cat" / "._0.png").write_bytes(b"what macOS leaves on other file systems")
    for place in (root, root / "cat"):
        (place / ".ipynb_checkpoints").mkdir()
        Image.new("RGB", (4, 4)).save(place / ".ipynb_checkpoints" / "0-checkpoint.png")
    splits = folder(root, no_labels=no_labels)
    assert names(splits.train) == ["0.png", "1.png"]
    assert splits.num_classes == 1


def test_folder_inside_a_hidden_one_is_read(tmp_path: Path) -> None:
    root = tmp_path / ".cache" / "train"
    (root / "cat").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "cat" / "0.png")
    assert names(folder(root).train) == ["0.png"]


def test_of_a_gif_the_first_frame_is_read_and_other_files_are_listed(
    image_folder: WriteFolder,
) -> None:
    root = image_folder("train", cat=1)
    first, second = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    first.save(root / "cat" / "moving.gif", save_all=True, append_images=[second])
    for name in ("cat/0.SVG", "cat/1.svg", "loose.png"):
        (root / name).touch()
    splits = folder(root)
    assert names(splits.train) == ["0.png", "moving.gif"]
    assert splits.train[1].getpixel((0, 0)) == (255, 0, 0)
    assert [(u.key, u.what, u.files) for u in splits.unread] == [
        ("data.train_path", ".svg", 2),
        ("data.train_path", "beside the class folders", 1),
    ]
    for name in ("0.png", "moving.gif"):
        (root / "cat" / name).unlink()
    with pytest.raises(DataError, match=r"'cat' holds no image .* read are \.jpg, .*\.gif"):
        folder(root)


@pytest.mark.parametrize("no_labels", [False, True])
def test_linked_folders_are_followed(no_labels: bool, image_folder: WriteFolder) -> None:
    root, elsewhere = image_folder("train", cat=1), image_folder("elsewhere", dog=2)
    (root / "dog").symlink_to(elsewhere / "dog", target_is_directory=True)
    assert len(folder(root, no_labels=no_labels).train) == 3


@pytest.mark.parametrize("target", ["..", "../..", ".", "deep", "../dog", "../dog/deep"])
@pytest.mark.parametrize("no_labels", [False, True])
def test_folder_that_a_link_leads_to_again_is_refused(
    no_labels: bool, target: str, image_folder: WriteFolder
) -> None:
    root = image_folder("train", cat=1, dog=1)
    for name in ("cat", "dog"):
        (root / name / "deep").mkdir()
    (root / "cat" / "up").symlink_to(target, target_is_directory=True)
    with pytest.raises(DataError, match="are one, whose images would count twice") as raised:
        folder(root, no_labels=no_labels)
    assert raised.value.key == "data.train_path"
    assert "Remove whichever of them is" in raised.value.remedy
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("target", ["cat", ".", ".."])
def test_class_that_links_to_another_or_to_the_whole_is_refused(
    target: str, image_folder: WriteFolder
) -> None:
    root = image_folder("train", cat=1, dog=1)
    (root / "feline").symlink_to(target, target_is_directory=True)
    with pytest.raises(DataError, match=r"are one, .*train/feline"):
        folder(root)


@pytest.mark.parametrize("linked", ["root", "classes", "images"])
def test_data_set_made_of_links_is_the_data_set(
    linked: str, image_folder: WriteFolder, tmp_path: Path
) -> None:
    stored, root = image_folder("stored", cat=2, dog=3), tmp_path / "train"
    if linked == "root":
        root.symlink_to(stored, target_is_directory=True)
    for found in sorted(stored.iterdir()):
        if linked == "classes":
            root.mkdir(exist_ok=True)
            (root / found.name).symlink_to(found, target_is_directory=True)
        elif linked == "images":
            (root / found.name).mkdir(parents=True)
            for image in found.iterdir():
                (root / found.name / image.name).symlink_to(image)
    splits = folder(root, stored)
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert splits.val is not None
    assert names(splits.train) == names(splits.val) == ["0.png", "1.png", "0.png", "1.png", "2.png"]


def test_hidden_loop_is_left_out(image_folder: WriteFolder) -> None:
    root = image_folder("train", cat=2)
    (root / "cat" / ".up").symlink_to("..", target_is_directory=True)
    assert len(folder(root).train) == 2


def test_home_is_written_as_tilde(
    image_folder: WriteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder("train", cat=1)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert len(folder(Path("~/train")).train) == 1


def test_images_of_every_shape_make_one_batch(tmp_path: Path, make_cfg: Callable[..., Any]) -> None:
    sizes = [(1, 1), (2000, 3), (3, 2000), (32, 32), (33, 31), (640, 480)]
    (tmp_path / "train" / "things").mkdir(parents=True)
    for number, size in enumerate(sizes):
        path = tmp_path / "train" / "things" / f"{number}.png"
        Image.new("RGB", size, (10 * number, 99, 0)).save(path)
    cfg = make_cfg(6, dataset="custom", train_path=str(tmp_path / "train"))
    module = SSLDataModule(cfg)
    ((_, X, _),) = list(module.train_dataloader())
    assert [x.shape for x in X] == [(6, 3, 32, 32)] * 2
    ((images, targets),) = list(module.plain_dataloader("train"))
    assert images.shape == (6, 3, 32, 32)
    assert targets.tolist() == [0] * 6


# Classes


def test_one_class_is_enough_and_warned_of(image_folder: WriteFolder) -> None:
    with pytest.warns(UserWarning, match="one class, 'cat': accuracies will say nothing"):
        splits = folder(image_folder("train", cat=4), validation_split=1)
    assert splits.num_classes == 1
    assert splits.val is not None
    assert (splits.train.labels.tolist(), splits.val.labels.tolist()) == ([0, 0, 0], [0])


def test_classes_that_differ_in_case_are_two_and_warned_of(tmp_path: Path) -> None:
    for name in ("cat", "Cat", "dog"):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    if len(list(tmp_path.iterdir())) == 2:
        pytest.skip("this file system does not tell them apart")
    with pytest.warns(UserWarning, match=r"the classes 'Cat' and 'cat', which count as two"):
        splits = folder(tmp_path)
    assert splits.class_names == ("Cat", "cat", "dog")
    assert splits.train.labels.tolist() == [0, 1, 2]


def test_validation_class_in_other_case_is_answered_with_the_training_classes(
    image_folder: WriteFolder,
) -> None:
    with pytest.raises(DataError, match=r"'Cat' is no class .* mean 'cat'"):
        folder(image_folder("train", cat=1, dog=1), image_folder("val", Cat=1))


# Validation folders


def test_empty_validation_folder_is_named(image_folder: WriteFolder, tmp_path: Path) -> None:
    root = image_folder("train", cat=1)
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="holds no class folders") as raised:
        folder(root, tmp_path / "val")
    assert raised.value.key == "data.val_path"
    (tmp_path / "val" / "cat").mkdir()
    with pytest.raises(DataError, match="'cat' holds no image") as raised:
        folder(root, tmp_path / "val")
    assert raised.value.path == tmp_path / "val" / "cat"


def test_validation_on_the_training_folder_is_warned_of(image_folder: WriteFolder) -> None:
    root = image_folder("train", cat=2, dog=2)
    with pytest.warns(UserWarning, match=r"data\.val_path is data\.train_path"):
        splits = folder(root, root / "." / "cat" / "..")
    assert splits.val is not None
    assert names(splits.val) == names(splits.train)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder(root, image_folder("val", cat=1, dog=1))


# ImageNet-100


@pytest.fixture
def classes_in(tmp_path: Path) -> Callable[..., Path]:
    """A folder with one image in each of the named classes."""

    def write(name: str, classes: tuple[str, ...]) -> Path:
        for class_name in classes:
            (tmp_path / name / class_name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / name / class_name / f"{class_name}.png")
        return tmp_path / name

    return write


def test_list_of_imagenet100_is_solo_learns(solo_learn_main: Path) -> None:
    file = solo_learn_main / "solo" / "data" / "dataset_subset" / "imagenet100_classes.txt"
    assert tuple(sorted(file.read_text().split())) == IMAGENET100
    assert len(IMAGENET100) == 100


@pytest.mark.parametrize("no_labels", [False, True])
def test_imagenet100_takes_its_classes_among_all(
    no_labels: bool, classes_in: Callable[..., Path]
) -> None:
    others = ("n00000001", "n99999999")
    train, val = classes_in("train", IMAGENET100 + others), classes_in("val", IMAGENET100 + others)
    splits = folder(train, val, dataset="imagenet100", no_labels=no_labels)
    for images in (splits.train, splits.val):
        assert images is not None
        assert names(images) == [f"{name}.png" for name in IMAGENET100]
        assert images.labels.tolist() == ([-1] * 100 if no_labels else list(range(100)))
    assert splits.class_names == (() if no_labels else IMAGENET100)
    assert len(folder(train, dataset="imagenet").train) == 102


def test_imagenet100_takes_a_prepared_folder_as_it_is(classes_in: Callable[..., Path]) -> None:
    others = (*IMAGENET100[:50], "n00000001")
    splits = folder(classes_in("train", others), dataset="imagenet100")
    assert splits.class_names == tuple(sorted(others))
    assert len(splits.train) == 51


def test_the_fingerprint_is_of_the_images_and_not_of_where_they_lie(
    image_folder: WriteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = image_folder("train", dog=3, cat=2), image_folder("val", dog=1, cat=1)
    here = folder(train, val).fingerprint
    moved = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-moved")
    assert folder(moved / "train", moved / "val").fingerprint == here
    monkeypatch.chdir(moved)
    assert folder(Path("train"), Path("val")).fingerprint == here
    assert folder(train, val, validation_split=2).fingerprint == here
    assert folder(train).fingerprint != here
    assert folder(val, train).fingerprint != here
    assert folder(train, val, no_labels=True).fingerprint != here
    image = moved / "train" / "dog" / "0.png"
    content = image.read_bytes()
    image.write_bytes(content + b"0")
    assert folder(moved / "train", moved / "val").fingerprint != here, "another size"
    image.write_bytes(content)
    image.rename(moved / "train" / "dog" / "first.png")
    assert folder(moved / "train", moved / "val").fingerprint != here, "another name"


def test_a_link_to_nothing_is_left_to_whoever_reads_it(image_folder: WriteFolder) -> None:
    train = image_folder("train", cat=1, dog=1)
    (train / "cat" / "gone.png").symlink_to("nowhere")
    assert folder(train).fingerprint
