"""Configurations and small image folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from solo_mim.data import SSLDataModule
from solo_mim.data import photo_patches as patches


@pytest.fixture
def pipeline() -> Callable[..., dict[str, Any]]:
    """One pipeline of the schema that leaves a 32-pixel image as it is, but for the given keys."""

    def build(**keys: Any) -> dict[str, Any]:
        return {"rrc": {"enabled": False}, "crop_size": 32, "num_crops": 2, **keys}

    return build


@pytest.fixture
def make_cfg() -> Callable[..., DictConfig]:
    """A configuration as a command would compose it; keywords go to the section ``data``."""

    def build(
        batch_size: int = 64, seed: int = 5, augmentations: Any = None, **data: Any
    ) -> DictConfig:
        strong = {
            "rrc": {"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 1.0},
            "color_jitter": {
                "prob": 0.8,
                "brightness": 0.8,
                "contrast": 0.8,
                "saturation": 0.8,
                "hue": 0.2,
            },
            "grayscale": {"prob": 0.2},
            "gaussian_blur": {"prob": 0.5},
            "horizontal_flip": {"prob": 0.5},
            "crop_size": 32,
            "num_crops": 2,
        }
        return OmegaConf.create(
            {
                "data": {"dataset": "photo_patches", "num_workers": 0, **data},
                "augmentations": [strong] if augmentations is None else augmentations,
                "optimizer": {"batch_size": batch_size},
                "seed": seed,
            }
        )

    return build


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes noise PNGs: ``image_folder("train", cat=3, dog=2)``, and gives the folder."""

    def write(name: str, size: tuple[int, int] = (40, 36), **images_of: int) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / name
        for class_name, count in images_of.items():
            (root / class_name).mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / class_name / f"{number}.png")
        return root

    return write


@pytest.fixture
def module(make_cfg: Callable[..., DictConfig]) -> Callable[..., SSLDataModule]:
    """Of a folder: ``module(folder, "dali", [pipeline], batch_size=8)``."""

    def build(
        folder: Path, format: str, augmentations: list[Any], batch_size: int = 8, **data: Any
    ) -> SSLDataModule:
        seed = data.pop("seed", 5)
        folders = {"dataset": "custom", "train_path": str(folder), "format": format}
        return SSLDataModule(make_cfg(batch_size, seed, augmentations, **folders, **data))

    return build


@pytest.fixture(scope="session")
def write_photographs() -> Callable[..., Path]:
    """Writes the 17 installed photographs as JPEGs, two classes: ``write_photographs(root)``."""

    def write(root: Path, size: tuple[int, int] | None = None) -> Path:
        for number, name in enumerate(patches.PHOTOGRAPHS):
            folder = root / "ab"[number % 2]
            folder.mkdir(exist_ok=True)
            image = Image.fromarray(patches.photograph(name))
            (image.resize(size) if size else image).save(folder / f"{name}.jpg", quality=90)
        return root

    return write
