"""The weights of a backbone for torchvision or timm, or in the layout of the Hugging Face Hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from omegaconf import OmegaConf

from solo_mim import trained
from solo_mim.backbones import resolved_stem
from solo_mim.errors import ConfigError, is_out_of_memory
from solo_mim.evaluation.export import (
    HUB,
    HUB_CONFIGURATION,
    HUB_WEIGHTS,
    TOLERANCE,
    Target,
    difference,
    hub_configuration,
    hub_lines,
    target,
)
from solo_mim.protocols import figures
from solo_mim.runs.files import whole, write_json
from solo_mim.runs.folder import Result


def export(run: str, library: str, path: Path, overrides: list[str]) -> Result:
    """Writes the state dict and the JSON beside it, or, for `timm-hub`, a folder; what is in the
    JSON, in the folder `solo-mim.json`.

    Raises:
        ConfigError: the library has no such backbone, its features would differ, the files cannot
            be written, or of `trained.opened` and, for a folder, `figures.images_of_training`.
    """
    if path.suffix == ".json" and library != HUB:
        raise ConfigError(f"{path}: name the weights' file; its .json is written beside it")
    network = trained.opened(run, overrides, needs_data=False)
    recipe = network.recipe
    stem = resolved_stem(OmegaConf.create(recipe.plain))
    wanted = target(library, recipe.backbone.name, stem, recipe.backbone.kwargs)
    hub = library == HUB
    images = _hub_images(network, overrides) if hub else _images(network)
    state = {key: value.contiguous() for key, value in network.backbone.state_dict().items()}
    size = recipe.augmentations[0]["crop_size"]

    def loaded() -> torch.nn.Module:
        model = wanted.build()
        model.load_state_dict(state)
        return model

    result = {
        "lines": hub_lines(wanted, str(path)) if hub else wanted.lines(str(path)),
        "library": library,
        "model": wanted.model,
        "backbone": recipe.backbone.name,
        "stem": "small" if wanted.small_stem else "the library's",
        "images": images,
        "difference": _check(loaded, wanted.library, wanted, network.backbone, size),
        "trained": network.origin,
        **figures.provenance(str(path if hub else path.parent), recipe.method, None),
    }
    try:
        if hub:
            written = [_write_folder(path, wanted, state, network.backbone, result)]
        else:
            written = _write_file(path, state, result)
    except (OSError, RuntimeError) as error:  # torch's of a folder that is not there
        raise ConfigError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error
    print(f"written: {', '.join(map(str, written))}\n\n" + "\n".join(result["lines"]))
    return result


def _images(network: trained.Opened) -> dict[str, Any]:
    """Of training. Of a file without a configuration nothing says how they were made."""
    images: dict[str, Any] = dict.fromkeys(("size", "normalised as", "mean", "std"))
    if network.source.cfg is not None:
        pipeline = network.recipe.augmentations[0]
        images |= {"size": pipeline["crop_size"], "normalised as": network.recipe.data.dataset}
        images |= {key: pipeline.get(key) for key in ("mean", "std")}
    return images


def _hub_images(network: trained.Opened, overrides: list[str]) -> dict[str, Any]:
    if not hasattr(timm.models._hub, "load_model_config_from_path"):
        raise ConfigError(f"{HUB}: timm {timm.__version__} loads no folder; pip install -U timm")
    return asdict(figures.images_of_training(network.source, network.recipe, overrides))


def _write_file(path: Path, state: dict[str, Any], result: Result) -> list[Path]:
    """The state dict and, beside it, the result."""
    with whole(path) as partial, partial.open("wb") as file:
        torch.save(state, file)
    write_json(path.with_suffix(".json"), result)
    return [path, path.with_suffix(".json")]


def _write_folder(
    path: Path, wanted: Target, state: dict[str, Any], backbone: torch.nn.Module, result: Result
) -> Path:
    """A folder as the Hub has it: it is loaded by timm, in both ways, before it gets its name.

    Raises:
        ConfigError: timm does not load it, or to another network.
    """
    from safetensors import SafetensorError  # comes with timm
    from safetensors.torch import save_file

    images = result["images"]
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as partial:
        folder = Path(partial)
        alone = {key: value.clone() for key, value in state.items()}  # no two share their memory
        try:
            save_file(alone, folder / HUB_WEIGHTS, {"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        write_json(folder / HUB_CONFIGURATION, hub_configuration(wanted, **images))
        write_json(folder / "solo-mim.json", result)
        for build in wanted.from_folder(folder):
            _check(build, f"timm {timm.__version__}", wanted, backbone, images["size"])
        path.mkdir(exist_ok=True)
        for name in (HUB_WEIGHTS, HUB_CONFIGURATION, "solo-mim.json"):
            os.replace(folder / name, path / name)
    return path


def _check(
    build: Callable[[], torch.nn.Module],
    library: str,
    wanted: Target,
    backbone: torch.nn.Module,
    size: int,
) -> float:
    """How far the features of the library's model are from ours, relative to the largest.

    Raises:
        ConfigError: they are other ones, or the weights do not fit.
    """
    try:
        model = build()
    # Whatever the library raises of arguments and weights that are not its own.
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"{library}'s {wanted.model} is another network: {' '.join(str(error).split())[:300]}"
        ) from error
    if not (apart := difference(backbone, model, size)) <= TOLERANCE:  # NaN is refused
        raise ConfigError(
            f"{library}'s {wanted.model} gives other features with these weights: they differ by "
            f"{apart:.1e} of the largest"
        )
    return apart
