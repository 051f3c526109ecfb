"""The features of a split, and what they look like."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solo_mim import trained
from solo_mim.data import SSLDataModule
from solo_mim.errors import ConfigError
from solo_mim.evaluation.diagnostics import (
    MAX_IMAGES,
    exponent,
    held_out_information,
    project_views,
)
from solo_mim.evaluation.embedding import (
    FeaturesAsZ,
    covariance_spectrum,
    neighbour_plane,
    principal_plane,
)
from solo_mim.evaluation.plots import plot_planes, plot_spectra
from solo_mim.information import ALPHA_REQ_RANKS, HeldOutInformation, effective_rank, rankme
from solo_mim.protocols import figures
from solo_mim.runs.files import ARRAYS, PLANES, RESULT, SPECTRA, whole
from solo_mim.runs.folder import Result, RunFolder

_SPLITS = {"train": "training images", "test": "test images"}


def embed(run: str, overrides: list[str], split: str | None = None) -> Result:
    """Embeds one split; the result, also of one that was embedded before.

    Args:
        run, overrides: as in `trained.opened`.
        split: train, val or test; None takes the one that offline figures are of.

    Raises:
        ConfigError: the network, a key, or a value is wrong; the message names it.
    """
    network = trained.opened(run, overrides)
    data = SSLDataModule(network.recipe.plain)
    split = split or figures.offline_split(network.recipe, data)[0]
    name = f"{network.recipe.data.dataset}-{split}"
    folder = network.folder("embed", name, data.splits.fingerprint)
    return folder.once(lambda: _embedded(network, data, split, folder), summary)


def _embedded(
    network: trained.Opened, data: SSLDataModule, split: str, folder: RunFolder
) -> Result:
    recipe = network.recipe
    where = _SPLITS.get(split, figures.evaluated_on(recipe))
    data.plain_dataloader(split)  # refuses a split that is not there
    device = figures.device(recipe)
    model: Any = None
    no_z = None
    try:
        model = trained.whole_model(network, data.num_large_crops, data.num_small_crops)
    except ConfigError as error:
        no_z = str(error)
    folder.begin()
    found, targets = _features(network, model, data, split, device)
    ranks = _ranks(found)
    arrays: dict[str, Any] = {kind: values.numpy() for kind, values in found.items()}
    arrays |= {"targets": targets.numpy(), "class_names": np.array(data.class_names, dtype=str)}
    with whole(folder.path / ARRAYS) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    _draw(folder.path, found, ranks["effective_rank"], targets, data.class_names, where)
    module = model if "z" in found else FeaturesAsZ(network.backbone)
    views = project_views(module.to(device), data.views_dataloader(split, max_images=MAX_IMAGES))
    result = {
        "data": recipe.data.dataset,
        "backbone": recipe.backbone.name,
        "protocol": "offline",
        "split": where,
        "images": len(targets),
        "dimensions": {kind: values.shape[1] for kind, values in found.items()},
        "no_z": no_z,
        **ranks,
        "information_of": "z" if "z" in found else "features",
        "information": None if views is None else asdict(held_out_information(views)),
        "corrupt_images": data.corrupt_images,
        "trained": network.origin,
        **figures.provenance(folder, recipe.method, data.splits.fingerprint),
    }
    folder.finish(result)
    print(summary(result))
    return result


def _features(
    network: trained.Opened, model: Any, data: SSLDataModule, split: str, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """Features and, where the model gives one, z of a split's images, and their targets: all on the
    CPU."""

    def both(images: Tensor) -> Tensor:
        out = model(images)
        return torch.cat([out["feats"].flatten(1), *([out["z"]] if "z" in out else [])], 1)

    of = network.backbone.to(device) if model is None else both
    if model is not None:
        model.to(device)
    joined, targets = figures.plain_features(network.recipe, data, split, of, device)
    dim = joined.shape[1] if model is None else model.features_dim
    found = {"features": joined[:, :dim], "z": joined[:, dim:]}
    return {kind: values for kind, values in found.items() if values.shape[1]}, targets


def _ranks(found: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """By measure what the spectrum of features and of z says."""
    return {
        "effective_rank": {kind: float(effective_rank(z)) for kind, z in found.items()},
        "rankme": {kind: float(rankme(z)) for kind, z in found.items()},
        "alpha_req": {kind: exponent(z) for kind, z in found.items()},
    }


def _draw(
    folder: Path,
    found: dict[str, Tensor],
    ranks: dict[str, float],
    targets: Tensor,
    class_names: tuple[str, ...],
    where: str,
) -> None:
    features, classes = found["features"].numpy(), targets.numpy()
    label, rows, points = neighbour_plane(features)
    planes = {
        f"PCA of {len(classes):,} images": (principal_plane(features), classes),
        label: (points, classes[rows]),
    }
    plot_planes(planes, class_names, folder / PLANES, f"features, {where}")
    spectra = {
        f"{kind}: effective rank {ranks[kind]:.1f} of {values.shape[1]}": covariance_spectrum(
            values
        )
        for kind, values in found.items()
    }
    plot_spectra(spectra, folder / SPECTRA, where)


def summary(result: Result) -> str:
    """The closing lines, from the result."""
    kinds = ", ".join(
        f"{kind} of {dim} dimensions, effective rank {result['effective_rank'][kind]:.1f}"
        for kind, dim in result["dimensions"].items()
    )
    lines = [
        f"{result['backbone']} of {result['trained']['checkpoint']} on {result['data']}",
        f"  {result['images']:,} {result['split']}: {kinds}",
    ]
    for kind, value in result.get("rankme", {}).items():  # not there of older results
        alpha = result["alpha_req"][kind]
        first, last = ALPHA_REQ_RANKS
        last = min(last, result["dimensions"][kind], result["images"] - 1)
        fitted = "" if alpha is None else f", alpha-ReQ {alpha:.2f} (eigenvalues {first} to {last})"
        lines.append(f"  {kind}: RankMe {value:.1f}{fitted}")
    if result["no_z"]:
        lines.append(f"  no z: {result['no_z']}")
    if info := result["information"]:
        measured = HeldOutInformation(**info)
        lines += [f"  {line}" for line in measured.lines(result["information_of"])]
        if measured.lidar is not None:
            lines.append(f"  LiDAR of {result['information_of']} {measured.lidar:.1f}")
    lines += figures.skipped_images(result)
    lines.append(f"  results: {result['folder']} ({ARRAYS}, {PLANES}, {SPECTRA}, {RESULT})")
    return "\n".join(lines)
