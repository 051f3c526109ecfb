"""`solo-mim embed`: the features of a split, and what they look like."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solo_mim.commands import jobs, runs, trained
from solo_mim.data import SSLDataModule
from solo_mim.errors import ConfigError
from solo_mim.evaluation.diagnostics import (
    MAX_IMAGES,
    HeldOutInformation,
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
from solo_mim.information import effective_rank

ARRAYS = "embeddings.npz"
PLANES = "planes.png"
SPECTRA = "spectra.png"

DESCRIPTION = f"""The features of a split's un-augmented images, and z where the checkpoint has a
projector of a method that is known: {ARRAYS} (features, z, targets, class_names), {PLANES} (PCA
beside UMAP, or beside t-SNE where umap-learn is not installed), {SPECTRA} (spectrum of the
covariance), and in result.json the effective rank and the information that two fresh augmentations
of an image share, beside its bias and what shuffled pairs give."""
EXAMPLES = """examples:
  solo-mim embed runs/explicit_mim-photo_patches-seed5-1a2b3c4d
  solo-mim embed RUN --split train
  solo-mim embed weights.pth backbone=resnet18 data=cifar10 data.train_path=D
"""
SPLITS = {"train": "training images", "test": "test images"}


def embed(run: str, overrides: list[str], split: str | None = None) -> dict[str, Any]:
    """Embeds one split; the result, also of one that was embedded before.

    Args:
        run, overrides: as in `trained.opened`.
        split: train, val or test; None takes the one that offline figures are of.

    Raises:
        ConfigError: the network, a key, or a value is wrong; the message names it.
    """
    network = trained.opened(run, overrides)
    cfg = network.cfg
    usual, where = jobs.offline_split(cfg)
    split = split or usual
    where = where if split == usual else SPLITS.get(split, jobs.evaluated_on(cfg))
    name = f"{cfg.data.dataset}-{split}"
    data = SSLDataModule(cfg)
    images = data.splits.fingerprint
    folder = trained.folder_for("embed", name, cfg, network.source, network.weights.digest, images)

    def work(lock: runs.FolderLock) -> dict[str, Any]:
        data.plain_dataloader(split)  # refuses a split that is not there
        device = jobs.device(cfg)
        model, no_z = _model(network, data)
        lock.acquire()
        runs.prepare(folder, cfg, images)
        features, z, targets = _embedded(network, model, data, split, device)
        kinds = {"features": features} if z is None else {"features": features, "z": z}
        _write_arrays(folder / ARRAYS, kinds, targets, data.class_names)
        label, rows, points = neighbour_plane(features.numpy())
        classes = targets.numpy()
        plot_planes(
            {
                f"PCA of {len(classes):,} images": (principal_plane(features.numpy()), classes),
                label: (points, classes[rows]),
            },
            data.class_names,
            folder / PLANES,
            f"features, {where}",
        )
        ranks = {kind: float(effective_rank(values)) for kind, values in kinds.items()}
        spectra = {
            f"{kind}: effective rank {ranks[kind]:.1f} of {values.shape[1]}": covariance_spectrum(
                values
            )
            for kind, values in kinds.items()
        }
        plot_spectra(spectra, folder / SPECTRA, where)
        module = FeaturesAsZ(network.backbone) if z is None else model
        loader = data.views_dataloader(split, max_images=MAX_IMAGES)
        views = project_views(module.to(device), loader)
        information = None if views is None else asdict(held_out_information(views))
        result = {
            "data": cfg.data.dataset,
            "backbone": cfg.backbone.name,
            "protocol": "offline",
            "split": where,
            "images": len(targets),
            "dimensions": {kind: values.shape[1] for kind, values in kinds.items()},
            "no_z": no_z,
            "effective_rank": ranks,
            "information_of": "features" if z is None else "z",
            "information": information,
            "corrupt_images": data.corrupt_images,
            **jobs.provenance(cfg, folder, trained.origin(network.source, network.weights), images),
        }
        runs.write_json(folder / runs.RESULT, result)
        print(summary(result))
        return result

    return jobs.done_once(folder, cfg, summary, work)


def _model(network: trained.Opened, data: SSLDataModule) -> tuple[Any, str | None]:
    """The model with the projector, or None and why there is none."""
    try:
        return trained.whole_model(network, data.num_large_crops, data.num_small_crops), None
    except ConfigError as error:
        return None, str(error)


def _embedded(
    network: trained.Opened, model: Any, data: SSLDataModule, split: str, device: torch.device
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Features, z where the model gives one, and targets of a split's images, on the CPU."""

    def both(images: Tensor) -> Tensor:
        out = model(images)
        return torch.cat([out["feats"].flatten(1), *([out["z"]] if "z" in out else [])], 1)

    backbone = network.backbone.to(device)
    if model is None:
        features, targets = jobs.plain_features(network.cfg, data, split, backbone, device)
        return features, None, targets
    model.to(device)
    joined, targets = jobs.plain_features(network.cfg, data, split, both, device)
    dim = model.features_dim
    z = joined[:, dim:] if joined.shape[1] > dim else None
    return joined[:, :dim], z, targets


def _write_arrays(
    path: Path, kinds: dict[str, Tensor], targets: Tensor, class_names: tuple[str, ...]
) -> None:
    arrays: dict[str, Any] = {kind: values.numpy() for kind, values in kinds.items()}
    arrays |= {"targets": targets.numpy(), "class_names": np.array(class_names, dtype=str)}
    with runs.whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def summary(result: dict[str, Any]) -> str:
    """The closing lines, from the result."""
    lines = [
        f"{result['backbone']} of {result['trained']['checkpoint']} on {result['data']}",
        f"  {result['images']:,} {result['split']}: "
        + ", ".join(
            f"{kind} of {dim} dimensions, effective rank {result['effective_rank'][kind]:.1f}"
            for kind, dim in result["dimensions"].items()
        ),
    ]
    if result["no_z"]:
        lines.append(f"  no z: {result['no_z']}")
    if info := result["information"]:
        said = HeldOutInformation(**info).lines(result["information_of"])
        lines += [f"  {line}" for line in said]
    lines.append(f"  results: {result['folder']} ({ARRAYS}, {PLANES}, {SPECTRA}, result.json)")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Of the command."""
    parser = jobs.evaluation_parser("embed", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="default: val, or test where evaluation.test=true opens it",
    )
    return parser


def run(arguments: list[str]) -> int:
    """The command: the network, overrides and the split."""
    given = parser().parse_intermixed_args(arguments)
    embed(given.run, given.overrides, given.split)
    return 0
