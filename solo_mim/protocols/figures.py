"""Features of frozen networks, and rows of a result that say what they are of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf

from solo_mim.data import SSLDataModule
from solo_mim.data.datasets import STATISTICS
from solo_mim.errors import ConfigError
from solo_mim.evaluation.knn import Features
from solo_mim.evaluation.offline import extract_features
from solo_mim.recipe.schema import PretrainRecipe, Recipe
from solo_mim.runs import sources
from solo_mim.runs.folder import RunFolder
from solo_mim.runs.identity import commit, versions
from solo_mim.trained import Source
from solo_mim.trainer import shows_progress


@dataclass(frozen=True)
class Images:
    """As a network was trained on them: pixels of a side, and the channels' constants in [0, 1]."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def images_of_training(source: Source, recipe: PretrainRecipe, overrides: list[str]) -> Images:
    """Size and normalisation of the images that a network was trained on, wherever it is now used.

    Of a file without a configuration the size has to be named; its constants are ImageNet's where
    overrides name none.

    Args:
        recipe, overrides: as of `trained.recipe_of`.

    Raises:
        ConfigError: nothing says the size, or which constants belong to its data set.
    """
    pipeline: Any = recipe.augmentations[0]
    named = any(re.match(r"\+*augmentations\.0\.crop_size=", one) for one in overrides)
    if source.cfg is None and not named:
        raise ConfigError(
            f"{source.path}: no configuration is beside it; name the size of the images that it "
            "was trained on, as in augmentations.0.crop_size=224, and their constants where they "
            "are not ImageNet's, as in ++augmentations.0.mean=[0.5,0.5,0.5]"
        )
    dataset = "imagenet" if source.cfg is None else OmegaConf.select(source.cfg, "data.dataset")
    mean, std = (pipeline.get(key) for key in ("mean", "std"))
    if (mean is None or std is None) and dataset not in STATISTICS:
        raise ConfigError(
            f"{source.path}: constants of data.dataset={dataset}, on which it was trained, are not "
            "known; name them, as in ++augmentations.0.mean=[0.5,0.5,0.5], and std likewise"
        )
    known = STATISTICS.get(dataset, ((), ()))
    return Images(pipeline["crop_size"], tuple(mean or known[0]), tuple(std or known[1]))


def device(recipe: Recipe) -> torch.device:
    """The GPU, where there is one and the recipe does not ask for the CPU: the first that `devices`
    names."""
    if recipe.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    named = recipe.devices[0] if isinstance(recipe.devices, list) else 0
    return torch.device("cuda", named)


def plain_features(
    recipe: Recipe, data: SSLDataModule, split: str, backbone: Any, on: torch.device | str
) -> Features:
    """Features of a split's un-augmented images, N x D, and their classes."""
    return extract_features(
        backbone,
        data.plain_dataloader(split),
        on,
        description=f"offline evaluation: {split}",
        progress=shows_progress(recipe),
    )


def train_and_test(
    recipe: Recipe, data: SSLDataModule, backbone: Any, on: torch.device | str
) -> tuple[Features, Features]:
    """`plain_features` of the training images, and of the split that offline figures are of."""
    split, _ = offline_split(recipe, data)
    train, test = (plain_features(recipe, data, part, backbone, on) for part in ("train", split))
    return train, test


def evaluated_on(recipe: Recipe) -> str:
    """What the split `val` is called in results."""
    return "validation split" if recipe.data.validation_split else "held-out images"


def offline_split(recipe: Any, data: SSLDataModule) -> tuple[str, str]:
    """The split that offline figures are of, and what it is called in results.

    `evaluation.test` opens the test images where `val` is a share of the training images; elsewhere
    `val` is those images.

    Raises:
        ConfigError: it opens them, and there are none with labels.
    """
    if recipe.evaluation.test and recipe.data.validation_split:
        test = data.splits.test
        if test is None or not test.labelled:
            raise ConfigError(
                f"evaluation.test=true: data.dataset={recipe.data.dataset} has no labelled test "
                "images; name them in data.val_path, or leave it out"
            )
        return "test", "test images"
    return "val", evaluated_on(recipe)


def measured(classifier: str, split: str, images: int, figures: dict[str, Any]) -> dict[str, Any]:
    """Accuracies (%), losses (nats) and what was chosen for them, with what they are of."""
    of = {"protocol": "offline", "classifier": classifier, "split": split, "images": images}
    return {**of, **figures}


def measured_line(row: dict[str, Any]) -> str:
    """One of a closing table, of what `measured` gives."""
    figures = [f"top-1 {row['top1']:.1f} %"]
    if row.get("top5") is not None:
        figures.append(f"top-5 {row['top5']:.1f} %")
    if row.get("nll") is not None:
        figures.append(f"{row['nll']:.3f} nats")
    of = ", ".join(filter(None, [row["classifier"], row.get("setting")]))
    return f"  offline, {of}, {row['images']:,} {row['split']}: {', '.join(figures)}"


def skipped_images(result: dict[str, Any]) -> list[str]:
    """The closing table's line on unreadable images, where there were any."""
    count = len(result["corrupt_images"])
    return [f"  {count} unreadable images skipped: result.json"] if count else []


def provenance(folder: RunFolder | str, method: str | None, images: str | None) -> dict[str, Any]:
    """The end of a result: the folder that it lies in and what it was made with: the method that
    trained the network, and the images by their fingerprint."""
    return {
        "folder": str(folder),
        "versions": versions(method),
        "commit": commit(),
        "code": sources.digest(method),
        "fingerprint": images,
    }
