"""The weights of a backbone for torchvision or timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from solo_mim import trained
from solo_mim.backbones import resolved_stem
from solo_mim.errors import ConfigError, is_out_of_memory
from solo_mim.evaluation.export import TOLERANCE, Target, difference, target
from solo_mim.protocols import figures
from solo_mim.runs.files import whole, write_json
from solo_mim.runs.folder import Result


def export(run: str, library: str, path: Path, overrides: list[str]) -> Result:
    """Writes the state dict and the JSON beside it; what is in that.

    Raises:
        ConfigError: the library has no such backbone, its features would differ, the files cannot
            be written, or of `trained.opened`.
    """
    if path.suffix == ".json":
        raise ConfigError(f"{path}: name the weights' file; its .json is written beside it")
    network = trained.opened(run, overrides, needs_data=False)
    recipe = network.recipe
    pipeline = recipe.augmentations[0]
    # Of a file without a configuration nothing says how its images were made.
    images = dict.fromkeys(("size", "normalised as", "mean", "std"))
    if network.source.cfg is not None:
        images |= {"size": pipeline["crop_size"], "normalised as": recipe.data.dataset}
        images |= {key: pipeline.get(key) for key in ("mean", "std")}
    stem = resolved_stem(OmegaConf.create(recipe.plain))
    wanted = target(library, recipe.backbone.name, stem, recipe.backbone.kwargs)
    state = {key: value.contiguous() for key, value in network.backbone.state_dict().items()}
    apart = _compared(wanted, library, state, network.backbone, pipeline["crop_size"])
    result = {
        "lines": wanted.lines(str(path)),
        "library": library,
        "model": wanted.model,
        "backbone": recipe.backbone.name,
        "stem": "small" if wanted.small_stem else "the library's",
        "images": images,
        "difference": apart,
        "trained": network.origin,
        **figures.provenance(str(path.parent), recipe.method, None),
    }
    try:
        with whole(path) as partial, partial.open("wb") as file:
            torch.save(state, file)
        write_json(path.with_suffix(".json"), result)
    except (OSError, RuntimeError) as error:  # torch's of a folder that is not there
        raise ConfigError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error
    print(f"written: {path}, {path.with_suffix('.json')}\n\n" + "\n".join(result["lines"]))
    return result


def _compared(
    wanted: Target, library: str, state: dict[str, Any], backbone: torch.nn.Module, size: int
) -> float:
    """How far the library's features are from ours, relative to the largest.

    Raises:
        ConfigError: they are other ones, or the weights do not fit.
    """
    try:
        model = wanted.build()
        model.load_state_dict(state)
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
