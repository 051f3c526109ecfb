import gzip
import pickle
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.model_selection  # noqa: F401  # its import must not count as memory of a data set
import torch
from torchvision.datasets import CIFAR10, CIFAR100, STL10, FashionMNIST

from solo_mim.data import DataError, SSLDataModule
from solo_mim.data.archives import CIFAR10_STATISTICS, STL10_CLASSES, STL10_STATISTICS
from solo_mim.data.datasets import load_splits
from solo_mim.data.images import DataSplits
from solo_mim.recipe.checks import checked
from solo_mim.training import pretrain

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
    assert splits.train[0].size == (32, 32)
    reference = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name](fake_cifar)
    assert all(splits.train[i] == reference[i][0] for i in range(20))
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


# Fashion-MNIST, in the raw idx files


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fake_fashion_mnist(tmp_path: Path) -> Path:
    """30 training and 20 test images."""
    rng, raw = np.random.default_rng(0), tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


def test_fashion_mnist_becomes_rgb(fake_fashion_mnist: Path) -> None:
    splits = load_splits({"dataset": "fashion_mnist", "train_path": str(fake_fashion_mnist)})
    assert splits.test is not None
    assert (len(splits.train), len(splits.test), splits.num_classes) == (30, 20, 10)
    assert splits.class_names[9] == "Ankle boot"
    assert splits.test.labels.tolist() == [*range(10), *range(10)]
    reference = FashionMNIST(fake_fashion_mnist, train=False)
    for i in (0, 19):
        assert splits.test[i].size == (28, 28)
        assert splits.test[i] == reference[i][0].convert("RGB")


@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_compressed_as_it_is_published(
    place: str, fake_fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And nothing is written beside it."""
    folder = tmp_path_factory.mktemp("compressed")
    (folder / place).mkdir(parents=True, exist_ok=True)
    for file in (fake_fashion_mnist / "FashionMNIST" / "raw").iterdir():
        (folder / place / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    there = sorted(folder.rglob("*"))
    found, reference = (
        load_splits({"dataset": "fashion_mnist", "train_path": str(root)})
        for root in (folder, fake_fashion_mnist)
    )
    assert sorted(folder.rglob("*")) == there
    assert (found.class_names, found.fingerprint) == (reference.class_names, reference.fingerprint)
    for ours, theirs in ((found.train, reference.train), (found.test, reference.test)):
        assert ours is not None
        assert theirs is not None
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert all(ours[i] == theirs[i] for i in range(len(theirs)))
    cut = next(folder.rglob("t10k-images*"))
    cut.write_bytes(cut.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        load_splits({"dataset": "fashion_mnist", "train_path": str(folder), "download": False})


def test_fashion_mnist_is_resized_to_the_crops(
    fake_fashion_mnist: Path, make_cfg: Callable[..., Any]
) -> None:
    cfg = make_cfg(10, dataset="fashion_mnist", train_path=str(fake_fashion_mnist))
    module = SSLDataModule(cfg)
    batches = [*module.train_dataloader(), *module.views_dataloader("val")]
    assert {x.shape for _, X, _ in batches for x in X} == {(10, 3, 32, 32)}
    assert {X.shape for X, _ in module.val_dataloader()} == {(10, 3, 32, 32)}


def test_absent_fashion_mnist_is_named_with_all_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(self: FashionMNIST) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(FashionMNIST, "download", no_network)
    with pytest.raises(DataError, match="Error downloading") as raised:
        load_splits({"dataset": "fashion_mnist", "train_path": str(tmp_path)})
    assert raised.value.path == tmp_path / "FashionMNIST" / "raw"
    for part in ("train", "t10k"):
        assert f"{part}-images-idx3-ubyte, {part}-labels-idx1-ubyte" in raised.value.remedy


# STL-10, in the files of its archive


def write_stl10(
    root: Path, monkeypatch: pytest.MonkeyPatch, labelled: int, unlabelled: int, test: int
) -> Path:
    """Noise in stl10_binary/, labels in order; checksums off."""
    rng, folder = np.random.default_rng(0), root / STL10.base_folder
    folder.mkdir()
    for part, count in (("train", labelled), ("test", test)):
        rng.integers(0, 256, (count, 3, 96, 96), np.uint8).tofile(folder / f"{part}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")
    rng.integers(0, 256, (unlabelled, 3, 96, 96), np.uint8).tofile(folder / "unlabeled_X.bin")
    for files in ("train_list", "test_list"):
        unchecked = [[name, None] for name, _ in getattr(STL10, files)]
        monkeypatch.setattr(STL10, files, unchecked)
    return root


@pytest.fixture
def fake_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 labelled, 60 unlabelled and 20 test images."""
    return write_stl10(tmp_path, monkeypatch, 40, 60, 20)


def stl10(root: Path, **keys: Any) -> DataSplits:
    return load_splits({"dataset": "stl10", "train_path": str(root), **keys})


def test_stl10_is_what_torchvision_reads(fake_stl10: Path) -> None:
    splits = stl10(fake_stl10)
    for part, split in ((splits.train, "train+unlabeled"), (splits.val, "test")):
        assert part is not None
        reference = STL10(fake_stl10, split)
        assert part.labels.tolist() == reference.labels.tolist()
        assert all(part[i] == reference[i][0] for i in range(len(reference)))
    assert splits.test is splits.val
    assert splits.train.labels.tolist() == [*range(10)] * 4 + [-1] * 60
    assert (splits.class_names, splits.num_classes) == (STL10_CLASSES, 10)
    assert (splits.mean, splits.std) == STL10_STATISTICS


def test_stl10_in_memory_is_the_same_images(fake_stl10: Path, make_cfg: Callable[..., Any]) -> None:
    keys = {"dataset": "stl10", "train_path": str(fake_stl10)}
    on_disk, in_memory = (
        list(SSLDataModule(make_cfg(20, format=name, **keys)).plain_dataloader("train"))
        for name in ("image_folder", "tensor")
    )
    pairs = zip(on_disk, in_memory, strict=True)
    assert all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))
    loader = SSLDataModule(make_cfg(20, format="tensor", **keys)).train_dataloader()
    assert {x.shape for _, X, _ in loader for x in X} == {(20, 3, 32, 32)}


def test_stl10_holds_labelled_images_out(fake_stl10: Path) -> None:
    for held_out in (0.25, 10):
        splits = stl10(fake_stl10, validation_split=held_out)
        assert splits.val is not None
        assert splits.test is not None
        assert sorted(splits.val.labels) == [*range(10)]
        assert Counter(splits.train.labels.tolist()) == {-1: 60, **dict.fromkeys(range(10), 3)}
        assert len(splits.test) == 20
        shown = {part[i].tobytes() for part in (splits.train, splits.val) for i in range(len(part))}
        assert len(shown) == 100


def test_stl10_cannot_hold_out_more_images_than_have_labels(fake_stl10: Path) -> None:
    with pytest.raises(DataError, match=r"data\.validation_split: .* below 40"):
        stl10(fake_stl10, validation_split=50)


def test_fraction_of_stl10_is_one_share_of_labelled_and_unlabelled(fake_stl10: Path) -> None:
    splits = stl10(fake_stl10, fraction=0.5, validation_split=10)
    assert splits.val is not None
    assert Counter(splits.train.labels.tolist()) == {-1: 30, **dict.fromkeys(range(10), 1)}
    assert sorted(splits.val.labels) == [*range(10)]


def test_plain_images_of_stl10_are_the_labelled_ones(
    fake_stl10: Path, make_cfg: Callable[..., Any]
) -> None:
    keys = {"dataset": "stl10", "train_path": str(fake_stl10), "validation_split": 10}
    module = SSLDataModule(make_cfg(25, **keys))
    targets = [target for _, y in module.plain_dataloader("train") for target in y.tolist()]
    assert Counter(targets) == dict.fromkeys(range(10), 3)
    assert sum(len(y) for _, _, y in module.train_dataloader()) == 75
    assert (module.num_train_images, module.num_val_images) == (90, 10)


def test_stl10_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stl10(tmp_path, monkeypatch, 40, 0, 20)
    with (tmp_path / STL10.base_folder / "unlabeled_X.bin").open("wb") as file:
        size = 5000 * 3 * 96 * 96
        file.truncate(size)
    tracemalloc.start()
    try:
        splits = stl10(tmp_path, fraction=0.5, validation_split=0.5)
        sent = pickle.dumps(splits.train)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 20
    arrived = pickle.loads(sent)
    assert len(arrived) == len(splits.train) == 2510
    assert all(arrived[i] == splits.train[i] for i in (0, 9, 2509))


def test_absent_stl10_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(self: STL10) -> None:
        raise OSError("name resolution failed")

    monkeypatch.setattr(STL10, "download", no_network)
    with pytest.raises(DataError, match="name resolution failed") as raised:
        stl10(tmp_path)
    assert f"Unpack stl10_binary.tar.gz (from {STL10.url}) in {tmp_path}" in raised.value.remedy
    assert raised.value.path == tmp_path / "stl10_binary"
    with pytest.raises(DataError, match="not found or corrupted"):
        stl10(tmp_path, download=False)


def test_run_on_stl10_evaluates_by_its_labels(
    fake_stl10: Path, tmp_path: Path, compose_cfg: Callable[..., Any]
) -> None:
    """Every unlabelled image carries the target -1 through probe, kNN and offline evaluation."""
    cfg = compose_cfg(
        "data=stl10",
        "method=simclr",
        "+budget=cpu",
        f"data.train_path={fake_stl10}",
        f"output_dir={tmp_path / 'runs'}",
        "max_epochs=1",
        "optimizer.batch_size=50",
        "scheduler.warmup_epochs=0",
        "data.num_workers=0",
        "progress_bar=false",
    )
    result = pretrain(checked(cfg))
    accuracies = [*result["online"].values(), *result["offline"]["trained"].values()]
    assert all(0 <= accuracy <= 100 for accuracy in accuracies)
