"""What values a recipe may have."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from solo_mim.errors import ConfigError, nearest
from solo_mim.optim import OPTIMIZERS
from solo_mim.recipe.compose import on_command_line, place, refusal
from solo_mim.recipe.main_files import in_our_spelling, note, without_unread
from solo_mim.recipe.schema import PretrainRecipe, Recipe, node, num_devices
from solo_mim.runs import files

_Recipe = TypeVar("_Recipe", bound=Recipe)

_CHOICES = {
    "optimizer.name": tuple(OPTIMIZERS),
    "scheduler.name": ("warmup_cosine", "step", "none"),
    "scheduler.interval": ("step", "epoch"),
    "knn_eval.distance_func": ("euclidean", "cosine"),
    "other_code": ("refuse", "accept"),
}

# Key -> the least and the greatest value that it can have; all are finite.
_RANGES: dict[str, tuple[float, float]] = {
    "optimizer.batch_size": (2, math.inf),  # statistics need two images
    "optimizer.lr": (0, math.inf),
    "optimizer.classifier_lr": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "scheduler.warmup_epochs": (0, math.inf),
    "scheduler.warmup_start_lr": (0, math.inf),
    "scheduler.min_lr": (0, math.inf),
    "label_smoothing": (0, 1),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
    "optimizer.layer_decay": (0, 1),
    "momentum.base_tau": (0, 1),
    "momentum.final_tau": (0, 1),
    "knn_eval.k": (1, math.inf),
    "data.num_workers": (0, math.inf),
    "checkpoint.frequency": (1, math.inf),
    "evaluation.information_every_n_epochs": (0, math.inf),
    "max_epochs": (1, math.inf),
    "seed": (0, 2**32 - 1),
    "num_nodes": (1, math.inf),
    "accumulate_grad_batches": (1, math.inf),
    "check_val_every_n_epoch": (1, math.inf),
    "gradient_clip_val": (0, math.inf),
}


def checked(cfg: DictConfig, schema: type[_Recipe] = PretrainRecipe) -> _Recipe:  # type: ignore[assignment]
    """The recipe of a composed configuration: types and values checked, defaults filled.

    Raises:
        ConfigError: naming the key; for an unknown one the nearest known.
    """
    try:
        merged: Any = OmegaConf.merge(node(schema), without_unread(cfg))
        OmegaConf.resolve(merged)
    except OmegaConfBaseException as error:
        raise refusal(error, schema) from error
    if missing := sorted(OmegaConf.missing_keys(merged)):
        raise ConfigError(
            f"required: {', '.join(missing)}; give a value on the command line or in the file"
        )
    in_our_spelling(merged)
    _check_ranges(merged)
    _check_choices(merged)
    merged.optimizer.kwargs = _optimizer_kwargs(merged.optimizer)
    recipe: _Recipe = OmegaConf.to_object(merged)  # type: ignore[assignment]
    num_devices(recipe.devices, recipe.on_cpu)  # refuses what names none
    return recipe


def _check_ranges(cfg: DictConfig) -> None:
    for key, (least, greatest) in _RANGES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not (
            isinstance(value, int | float) and least <= value <= greatest and value < math.inf
        ):
            most = f" and at most {greatest}" if greatest < math.inf else ""
            most = " and finite" if value == math.inf else most
            raise ConfigError(f"{key} must be at least {least}{most}, not {value}")
    if "momentum" in cfg and cfg.momentum.base_tau > cfg.momentum.final_tau:
        raise ConfigError("momentum.base_tau must not be above momentum.final_tau")


def _check_choices(cfg: DictConfig) -> None:
    # Nothing would be trained, and the run would count as finished.
    idle = [key for key in ("limit_train_batches", "max_steps") if cfg[key] == 0]
    if idle or cfg.fast_dev_run:
        key = "fast_dev_run" if cfg.fast_dev_run else idle[0]
        raise ConfigError(f"{key}={cfg[key]}: a trial run is max_epochs=1 limit_train_batches=2")
    if cfg.overfit_batches and cfg.data.format in ("tensor", "dali"):
        raise ConfigError(
            f"overfit_batches: not with data.format={cfg.data.format}, whose loader lightning "
            "cannot make anew; set data.format=image_folder"
        )
    for key, choices in _CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if key.split(".")[0] in cfg and value not in choices:
            raise ConfigError(f"{key}: unknown value '{value}'{nearest(str(value), choices)}")
    steps = cfg.scheduler.lr_decay_steps
    if cfg.scheduler.name == "step" and (not steps or min(steps) < 1):
        raise ConfigError("scheduler.name=step needs scheduler.lr_decay_steps, epochs from 1 on")


def check_run(cfg: Recipe) -> None:
    """What a recipe that trains is held to beside `checked`.

    A warm-up longer than the run is only said where it is a recipe's and `max_epochs` cuts the run
    short from elsewhere.

    Raises:
        ConfigError: the name is none of a folder's, or the warm-up outlasts the run.
    """
    name: str = cfg.name  # type: ignore[attr-defined]
    if not re.fullmatch(r"[^/\\\x00-\x1f]+", name):
        raise ConfigError(f"name={name!r} must be fit for a folder: not empty, no slash")
    steps = cfg.scheduler.lr_decay_steps
    if cfg.scheduler.name == "step" and steps and min(steps) >= cfg.max_epochs:
        note(f"scheduler.lr_decay_steps: none is before the end, max_epochs={cfg.max_epochs}")
    key, last = "scheduler.warmup_epochs", "max_epochs"
    warm_up = cfg.scheduler.warmup_epochs
    if cfg.scheduler.name != "warmup_cosine" or warm_up <= cfg.max_epochs:
        return
    said = f"{key}={warm_up:g} is more than {last}={cfg.max_epochs}"
    file = place(key)
    of_a_run = (Path(file).parent / files.PROVENANCE).exists()  # which had it noted
    if on_command_line(key) or (file and file == place(last) and not of_a_run):
        raise ConfigError(f"{said}: optimizer.lr is never reached; lower it")
    note(f"{said}: optimizer.lr is never reached")


# Name -> its arguments with their defaults.
_OPTIMIZER_KWARGS: dict[str, dict[str, Any]] = {
    name: {
        key: parameter.default
        for key, parameter in inspect.signature(optimizer).parameters.items()
        if key not in ("params", "lr", "weight_decay")
    }
    for name, optimizer in OPTIMIZERS.items()
}


def _optimizer_kwargs(optimizer: DictConfig) -> dict[str, Any]:
    """Those of `optimizer.kwargs` that the chosen optimiser takes, checked.

    What belongs to another one is a recipe's (LARS) from before `optimizer.name` was overridden,
    and is left out; what belongs to none is an error.
    """
    known, every = _OPTIMIZER_KWARGS[optimizer.name], set().union(*_OPTIMIZER_KWARGS.values())
    for key in optimizer.kwargs:
        if key not in every:
            raise ConfigError(f"unknown key 'optimizer.kwargs.{key}'{nearest(str(key), every)}")
        if key not in known and on_command_line(f"optimizer.kwargs.{key}"):
            raise ConfigError(
                f"optimizer.kwargs.{key}: {optimizer.name} takes no such key"
                + nearest(str(key), known)
            )
    given: Any = OmegaConf.to_container(optimizer.kwargs)
    kwargs = {key: value for key, value in given.items() if key in known}
    for key, value in kwargs.items():
        if isinstance(known[key], int | float) and not (
            isinstance(value, int | float) and math.isfinite(value)
        ):
            raise ConfigError(f"optimizer.kwargs.{key}: a finite number is needed, not {value!r}")
    weights = [torch.nn.Parameter(torch.zeros(1))]
    try:
        OPTIMIZERS[optimizer.name](weights, lr=optimizer.lr, **kwargs)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        refused = f"optimizer.kwargs: {optimizer.name} refuses {kwargs}"
        raise ConfigError(f"{refused} ({error})") from error
    return kwargs
