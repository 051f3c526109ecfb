import importlib.util
import socket
from typing import Any

import numpy as np
import pytest

from solo_mim.data import DataError
from solo_mim.data import photo_patches as module
from solo_mim.data.photo_patches import MEAN, PATCH, PHOTOGRAPHS, STD, photo_patches


def test_every_photograph_gives_300_training_and_250_test_patches() -> None:
    train, test = photo_patches()
    assert np.bincount(train.labels).tolist() == [300] * 17
    assert np.bincount(test.labels).tolist() == [250] * 17
    assert train.images.shape == (5100, 32, 32, 3)
    assert test.images.shape == (4250, 32, 32, 3)
    assert train.images.dtype == test.images.dtype == np.uint8


def test_training_and_test_patches_share_no_pixel() -> None:
    train, test = photo_patches()
    for label in range(len(PHOTOGRAPHS)):
        covered = []
        for split in (train, test):
            mask = np.zeros((1024, 1024), bool)
            for row, column in split.corners[split.labels == label]:
                mask[row : row + PATCH, column : column + PATCH] = True
            covered.append(mask)
        assert covered[0].any()
        assert covered[1].any()
        assert not (covered[0] & covered[1]).any()


def test_patches_are_what_the_photograph_shows_at_their_corners() -> None:
    names = list(PHOTOGRAPHS)
    for split in photo_patches():
        for position in range(0, len(split.labels), 500):
            row, column = split.corners[position]
            photograph = module.photograph(names[split.labels[position]])
            shown = photograph[row : row + PATCH, column : column + PATCH]
            assert np.array_equal(split.images[position], shown)


def test_no_position_is_drawn_twice() -> None:
    for split in photo_patches():
        places = np.column_stack([split.labels, split.corners])
        assert len(np.unique(places, axis=0)) == len(places)


def test_no_patch_is_flat() -> None:
    for split in photo_patches():
        channels = split.images.reshape(len(split.images), -1, 3)
        assert np.ptp(channels, axis=1).max(axis=1).min() >= module.FLAT


def test_building_again_gives_the_same_patches_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked for")

    first = photo_patches()
    monkeypatch.setattr(socket, "socket", no_network)
    again = photo_patches.__wrapped__()
    for before, after in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_shared_arrays_refuse_writes() -> None:
    train, _ = photo_patches()
    assert photo_patches()[0].images is train.images
    with pytest.raises(ValueError, match="read-only"):
        train.images[0] = 0


def test_normalisation_constants_are_those_of_the_training_patches() -> None:
    values = photo_patches()[0].images / 255
    assert values.mean(axis=(0, 1, 2)) == pytest.approx(MEAN, abs=1e-3)
    assert values.std(axis=(0, 1, 2)) == pytest.approx(STD, abs=1e-3)


def test_raw_pixels_solve_half_of_the_task() -> None:
    """52.3 % measured: far above chance (5.9), with room to learn."""
    from sklearn.neighbors import KNeighborsClassifier

    train, test = photo_patches()
    neighbours = KNeighborsClassifier(5, algorithm="brute")
    neighbours.fit(train.images.reshape(5100, -1).astype(np.float32), train.labels)
    some = test.images[::4].reshape(1063, -1).astype(np.float32)
    assert 100 * neighbours.score(some, test.labels[::4]) == pytest.approx(52.3, abs=2.0)


def test_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="Install scikit-image from its wheel") as raised:
        photo_patches.__wrapped__()
    assert raised.value.path is not None
    assert raised.value.path.name == "astronaut.png"
