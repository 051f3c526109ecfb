"""Checkpoints that someone else has written, made fit to resume from or refused by name."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from solo_mim.errors import ConfigError
from solo_mim.host.lifecycle import LATE_STATE

KEY = "resume_from_checkpoint"
_MOST_STAND_INS = 100


class _Inert:
    """Takes the place of whatever else is in a pickle; nothing of it is run."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forgets it."""


def _empty(*_: Any) -> dict[Any, Any]:
    return {}


# What the parts to drop keep their state in has to take it.
_CONTAINERS = [(dict, "builtins.dict"), (_empty, "collections.defaultdict")]


def read(path: str | Path) -> tuple[dict[str, Any], bool]:
    """A lightning checkpoint, and whether it is plain: tensors, numbers, text and containers.

    solo-learn's own of SimSiam and NNSiam hold a function bound to the schedule
    (docs/host.md). Such parts are read as inert objects and dropped: no code of a file is run.

    Raises:
        ConfigError: the file is not there, or is no lightning checkpoint.
    """
    if not zipfile.is_zipfile(path):
        what = "is no checkpoint" if Path(path).exists() else "is not there"
        raise ConfigError(f"{KEY}: {path} {what}; give a .ckpt file of a run")
    stand_ins: list[Any] = [*_CONTAINERS]
    for _ in range(_MOST_STAND_INS):
        try:
            with torch.serialization.safe_globals(stand_ins):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            break
        except pickle.UnpicklingError as error:
            unknown = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
            if unknown is None:
                raise ConfigError(f"{KEY}: {path} cannot be read ({_line(error)})") from error
            name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
            stand_ins.append((_Inert, name))
        except (RuntimeError, EOFError, KeyError) as error:
            raise ConfigError(f"{KEY}: {path} cannot be read ({_line(error)})") from error
    else:
        raise ConfigError(f"{KEY}: {path} holds too much that is no checkpoint's")
    needed = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step")
    missing = [key for key in needed if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ConfigError(f"{KEY}: {path} has no {missing[0]!r}; give a .ckpt file of a run")
    return _without_inert(checkpoint), len(stand_ins) == len(_CONTAINERS)


def _line(error: Exception) -> str:
    return str(error).split("\n")[0]


def _without_inert(node: Any) -> Any:
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if not isinstance(value, _Inert)}
        return {key: _without_inert(value) for key, value in kept.items()}
    if isinstance(node, list):
        return [_without_inert(value) for value in node if not isinstance(value, _Inert)]
    return node


def refuse_misfit(checkpoint: dict[str, Any], model: nn.Module, path: str | Path) -> None:
    """Raises ConfigError where a checkpoint's weights are not those of the model; names a key."""
    theirs, ours = checkpoint["state_dict"], model.state_dict()
    missing = [key for key in ours if key not in theirs and key not in LATE_STATE]
    unknown = [key for key in theirs if key not in ours and key not in LATE_STATE]
    shapes = [
        f"{key} ({tuple(theirs[key].shape)} there, {tuple(value.shape)} here)"
        for key, value in ours.items()
        if key in theirs and theirs[key].shape != value.shape
    ]
    for keys, what in ((missing, "missing"), (unknown, "unknown"), (shapes, "of another shape")):
        if keys:
            raise ConfigError(
                f"{KEY}: {path} does not fit this configuration; {len(keys)} weights are {what}: "
                + ", ".join(keys[:3])
            )
