"""A driver of scripts/imagenet100 whose `solo-mim` is a stand-in, and a toy ImageNet."""

from pathlib import Path

import pytest
from driven import Driver, without_costs

from solo_mim.data.folders import IMAGENET100


@pytest.fixture(scope="session")
def toy_imagenet(tmp_path_factory) -> Path:
    """A tree with all 100 classes; its files are no images, and one of them is empty."""
    root = tmp_path_factory.mktemp("imagenet")
    for split in ("train", "val"):
        for number, name in enumerate(IMAGENET100):
            (root / split / name).mkdir(parents=True)
            (root / split / name / "0.JPEG").write_bytes(b"0" * (number > 0))
    return root


@pytest.fixture
def driver(tmp_path, toy_imagenet, monkeypatch) -> Driver:
    """`driver.run("--methods", "vicreg")`: nothing is counted, no step is tried."""
    without_costs(monkeypatch)
    return Driver(tmp_path, toy_imagenet)
