"""`solo-mim export`: the weights of a backbone for torchvision or timm."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from solo_mim.commands import jobs, runs, trained
from solo_mim.errors import ConfigError, is_out_of_memory
from solo_mim.evaluation.export import MODELS, TOLERANCE, difference, target
from solo_mim.host.backbones import resolved_stem

DESCRIPTION = """The backbone as a state dict that a model of torchvision or timm loads, and beside
it a JSON file with the lines of Python that do. Features are compared before anything is written.
"""
EXAMPLES = """examples:
  solo-mim export RUN --to torchvision resnet18.pth
  solo-mim export RUN --to timm vit.pth
  solo-mim export trained.ckpt --to timm resnet18.pth backbone=resnet18
"""


def export(run: str, library: str, path: Path, overrides: list[str]) -> dict[str, Any]:
    """Writes the state dict and the JSON beside it; what is in that.

    Raises:
        ConfigError: the library has no such backbone, its features would differ, the files cannot
            be written, or of `trained.opened`.
    """
    if path.suffix == ".json":
        raise ConfigError(f"{path}: name the weights' file; its .json is written beside it")
    network = trained.opened(run, overrides, needs_data=False)
    cfg = network.cfg
    known = network.source.cfg is not None
    pipeline = cfg.augmentations[0]
    size = cfg.augmentations[0].crop_size
    kwargs: Any = OmegaConf.to_container(cfg.backbone.kwargs)
    wanted = target(library, cfg.backbone.name, resolved_stem(cfg), kwargs)
    state = {key: value.contiguous() for key, value in network.backbone.state_dict().items()}
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
    if not (apart := difference(network.backbone, model, size)) <= TOLERANCE:  # NaN is refused
        raise ConfigError(
            f"{library}'s {wanted.model} gives other features with these weights: they differ by "
            f"{apart:.1e} of the largest"
        )
    result = {
        "lines": wanted.lines(str(path)),
        "library": library,
        "model": wanted.model,
        "backbone": cfg.backbone.name,
        "stem": "small" if wanted.small_stem else "the library's",
        # Of a file without a configuration nothing says how its images were made.
        "images": {
            "size": size if known else None,
            "normalised as": cfg.data.dataset if known else None,
            "mean": OmegaConf.to_object(pipeline.mean) if known and pipeline.get("mean") else None,
            "std": OmegaConf.to_object(pipeline.std) if known and pipeline.get("std") else None,
        },
        "difference": apart,
        **jobs.provenance(cfg, path.parent, trained.origin(network.source, network.weights)),
    }
    try:
        with runs.whole(path) as partial, partial.open("wb") as file:
            torch.save(state, file)
        runs.write_json(path.with_suffix(".json"), result)
    except (OSError, RuntimeError) as error:  # torch's of a folder that is not there
        raise ConfigError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error
    print(f"written: {path}, {path.with_suffix('.json')}\n\n" + "\n".join(result["lines"]))
    return result


def parser() -> argparse.ArgumentParser:
    """Of the command."""
    parser = jobs.evaluation_parser("export", DESCRIPTION, EXAMPLES, file="OUT.pth")
    parser.add_argument("--to", choices=tuple(MODELS), required=True, help="the library")
    return parser


def run(arguments: list[str]) -> int:
    """The command: the network, the library and the file."""
    given = parser().parse_intermixed_args(arguments)
    export(given.run, given.to, Path(given.file), given.overrides)
    return 0
