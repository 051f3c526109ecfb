"""HDF5 files of solo-learn's layout, against the folders that they were made of."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from solo_mim.data import DataError, SSLDataModule
from solo_mim.data.datasets import load_splits
from solo_mim.data.folders import IMAGENET100, H5Images
from solo_mim.data.images import DataSplits

h5py = pytest.importorskip("h5py")

pytestmark = pytest.mark.filterwarnings("ignore:.*holds one class")

WriteFolder = Callable[..., Path]


def packed(folder: Path) -> Path:
    """The folder as an HDF5 file beside it, its files' bytes compressed as solo-learn does."""
    path = folder.with_suffix(".h5")
    with h5py.File(path, "w") as file:
        for image in sorted(folder.glob("*/*"), reverse=True):
            content = np.frombuffer(image.read_bytes(), np.uint8)
            name = f"{image.parent.name}/{image.name}"
            file.create_dataset(name, data=content, compression="gzip")
    return path


def h5(train: Path | str | None, val: Path | None = None, **keys: Any) -> DataSplits:
    paths = {"train_path": train and str(train), "val_path": val and str(val)}
    return load_splits({"dataset": "custom", "format": "h5", **paths, **keys})


def test_file_gives_the_images_of_its_folder(image_folder: WriteFolder) -> None:
    train, val = image_folder("train", dog=3, cat=2), image_folder("val", dog=2)
    splits = h5(packed(train), packed(val))
    paths = {"train_path": str(train), "val_path": str(val)}
    expected = load_splits({"dataset": "custom", **paths})
    assert splits.class_names == expected.class_names == ("cat", "dog")
    assert (splits.mean, splits.std) == (expected.mean, expected.std)
    for part, reference in ((splits.train, expected.train), (splits.val, expected.val)):
        assert part is not None
        assert reference is not None
        assert part.labels.tolist() == reference.labels.tolist()
        assert all(part[i] == reference[i] for i in range(len(reference)))


def test_worker_processes_open_the_file_for_themselves(
    image_folder: WriteFolder, make_cfg: Callable[..., Any]
) -> None:
    train = image_folder("train", dog=8, cat=8)
    packed(train)
    batches = []
    for path, keys in ((train, {}), (train.with_suffix(".h5"), {"format": "h5"})):
        cfg = make_cfg(4, dataset="custom", train_path=str(path), num_workers=2, **keys)
        module = SSLDataModule(cfg)
        module.splits.train[0]  # from here on this process has the file open
        loader = module.train_dataloader()
        batches.append([X[0] for _ in range(2) for _, X, _ in loader])
        module.splits.train[1]
    assert len(batches[0]) == 8
    assert all(torch.equal(*pair) for pair in zip(*batches, strict=True))


def test_file_is_opened_anew_after_a_fork(
    image_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = h5(packed(image_folder("train", cat=2))).train
    assert isinstance(images.source, H5Images)
    before, handle = images[1], images.source._file
    images[0]
    assert images.source._file is handle
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert images[1] == before
    assert not handle  # closed
    assert images.source._file


def test_open_file_is_not_pickled(image_folder: WriteFolder) -> None:
    images = h5(packed(image_folder("train", cat=2))).train
    before = images[1]
    assert pickle.loads(pickle.dumps(images))[1] == before


def test_nothing_is_written_beside_the_file_or_in_the_home_of_the_user(
    image_folder: WriteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = packed(image_folder("train", cat=2))
    before = sorted(tmp_path.rglob("*"))
    h5(path).train[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_the_fingerprint_follows_the_file_and_not_its_place(image_folder: WriteFolder) -> None:
    path = packed(image_folder("train", cat=2, dog=1))
    here = h5(path).fingerprint
    assert h5(path.rename(path.with_name("moved.h5"))).fingerprint == here
    assert h5(packed(image_folder("other", cat=1, dog=2))).fingerprint != here


def test_labels_can_be_left_out(image_folder: WriteFolder) -> None:
    splits = h5(packed(image_folder("train", dog=3, cat=2)), no_labels=True)
    assert splits.train.labels.tolist() == [-1] * 5
    assert splits.num_classes == 1


@pytest.mark.parametrize("dataset", ["imagenet", "imagenet100"])
def test_imagenet100_takes_its_classes_among_all(
    dataset: str, image_folder: WriteFolder, tmp_path: Path
) -> None:
    classes = ("n00000001", *IMAGENET100)
    path = packed(image_folder("train", **dict.fromkeys(classes, 1)))
    splits = h5(path, dataset=dataset)
    expected = IMAGENET100 if dataset == "imagenet100" else tuple(sorted(classes))
    assert splits.class_names == expected
    assert splits.train.labels.tolist() == list(range(len(expected)))
    assert isinstance(splits.train.source, H5Images)
    assert [name.split(b"/")[0].decode() for name in splits.train.source.names] == list(expected)


def test_hidden_entries_are_left_out(image_folder: WriteFolder) -> None:
    root = image_folder("train", cat=2)
    (root / "cat" / ".DS_Store").write_bytes(b"\0")
    path = packed(root)
    with h5py.File(path, "a") as file:
        file.create_group(".hidden")
    splits = h5(path)
    assert splits.class_names == ("cat",)
    assert len(splits.train) == 2


def test_unreadable_entry_is_named_and_can_be_skipped(
    image_folder: WriteFolder, make_cfg: Callable[..., Any]
) -> None:
    root = image_folder("train", cat=4)
    (root / "cat" / "1.png").write_bytes(b"no image")
    path = packed(root)
    with h5py.File(path, "a") as file:
        file.create_group("cat/2.png-folder")
    images = h5(path).train
    with pytest.raises(DataError, match=r"cannot be read .*cat/1\.png") as raised:
        images[1]
    assert raised.value.path == path / "cat" / "1.png"
    with pytest.raises(DataError, match="a group stands where an image should"):
        images[3]
    keys = {"dataset": "custom", "format": "h5", "train_path": str(path), "on_corrupt": "skip"}
    module = SSLDataModule(make_cfg(4, **keys))
    assert sum(len(y) for _, y in module.plain_dataloader("train")) == 3
    assert module.corrupt_images == [str(path / "cat" / name) for name in ("1.png", "2.png-folder")]


def test_entry_with_a_broken_header_is_named(image_folder: WriteFolder) -> None:
    path = packed(image_folder("train", cat=4))
    with h5py.File(path) as file:
        header = h5py.h5o.get_info(file["cat/1.png"].id).addr
    with path.open("r+b") as raw:
        raw.seek(header)
        raw.write(b"\xff" * 16)
    with pytest.raises(DataError, match=r"cannot be read .*cat/1\.png"):
        h5(path).train[1]


def test_absent_h5py_is_named(image_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(image_folder("train", cat=1))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"pip install '\.\[h5\]'") as raised:
        h5(path)
    assert raised.value.key == "data.format"


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train_path: no file is given"):
        h5(None)
    with pytest.raises(DataError, match=r"data\.train_path: there is no such file \(nowhere\.h5\)"):
        h5("nowhere.h5")
    with pytest.raises(DataError, match=r"or set data\.format: image_folder"):
        h5(tmp_path)


def test_missing_validation_file_is_named(image_folder: WriteFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file") as raised:
        h5(packed(image_folder("train", cat=1)), tmp_path / "val.h5")
    assert raised.value.key == "data.val_path"


def test_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.h5").write_bytes(b"something else")
    with pytest.raises(DataError, match="no readable HDF5") as raised:
        h5(tmp_path / "train.h5")
    assert raised.value.path == tmp_path / "train.h5"


def test_folder_format_points_to_h5_for_a_file(image_folder: WriteFolder) -> None:
    path = packed(image_folder("train", cat=1))
    with pytest.raises(DataError, match=r"Set data\.format: h5"):
        load_splits({"dataset": "custom", "train_path": str(path)})


def test_file_without_classes_or_images_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["loose"] = np.zeros(3, np.uint8)
    with pytest.raises(DataError, match="holds no group"):
        h5(tmp_path / "train.h5")
    with h5py.File(tmp_path / "train.h5", "a") as file:
        file.create_group("cat")
    with pytest.raises(DataError, match="the group 'cat' holds no image"):
        h5(tmp_path / "train.h5")
