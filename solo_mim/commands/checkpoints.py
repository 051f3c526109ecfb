"""Checkpoints that someone else has written, made fit to resume from or refused by name."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solo_mim.errors import ConfigError, is_out_of_memory
from solo_mim.host.lifecycle import LATE_STATE

KEY = "resume_from_checkpoint"
_MOST_STAND_INS = 100
_COUNT = "num_batches_tracked"


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


def load(
    path: str | Path, stands_in: Callable[[str], bool] = lambda name: True
) -> tuple[Any, bool]:
    """What `torch.save` has written, and whether it is plain: tensors, numbers, text, containers.

    Whatever else is in it is read as inert objects: no code of a file is run.

    Args:
        path: of the file.
        stands_in: of the dotted name of something that is not plain: whether it is read so, or
            makes the file one to be refused.

    Raises:
        ConfigError: the file is not there, is none of torch's, or holds what is refused.
    """
    stand_ins: list[Any] = [*_CONTAINERS]
    for _ in range(_MOST_STAND_INS):
        try:
            with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is refused below
                content = torch.load(path, map_location="cpu", weights_only=True)
            return content, len(stand_ins) == len(_CONTAINERS)
        except pickle.UnpicklingError as error:
            unknown = re.search(r"GLOBAL ([\w.]+)", str(error))
            if unknown is None:  # torch's own words advise to run the code of the file
                raise ConfigError(
                    f"{path} is a pickle, but none of torch.save; give a checkpoint or a state dict"
                ) from error
            name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
            if "is blocked" in str(error) or not stands_in(name):
                raise ConfigError(
                    f"{path} is not opened: it holds {name}, which no checkpoint needs and which "
                    "could run code"
                ) from error
            stand_ins.append((_Inert, name))
        except FileNotFoundError as error:
            raise ConfigError(f"{path} is not there; give a checkpoint") from error
        # Whatever torch raises of files that are none of its own.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if "TorchScript" in str(error):
                raise ConfigError(
                    f"{path} is a TorchScript program, and no code of a file is run; give the "
                    "model's state dict"
                ) from error
            reason = f"{type(error).__name__}: {_line(error)}"
            raise ConfigError(f"{path} is cut short, or not of torch.save ({reason})") from error
    raise ConfigError(f"{path} holds too much that is no checkpoint's")


def read(path: str | Path) -> tuple[dict[str, Any], bool]:
    """A lightning checkpoint to resume from, and whether it is plain.

    solo-learn's own of SimSiam and NNSiam hold a function bound to the schedule
    (docs/host.md). Such parts are dropped.

    Raises:
        ConfigError: the file is not there, or is no lightning checkpoint.
    """
    if not zipfile.is_zipfile(path):
        what = "is no checkpoint" if Path(path).exists() else "is not there"
        raise ConfigError(f"{KEY}: {path} {what}; give a .ckpt file of a run")
    try:
        checkpoint, is_plain = load(path)
    except ConfigError as error:
        raise ConfigError(f"{KEY}: {error}") from error
    needed = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step")
    missing = [key for key in needed if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ConfigError(f"{KEY}: {path} has no {missing[0]!r}; give a .ckpt file of a run")
    return _without_inert(checkpoint), is_plain


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
    """Raises ConfigError where a checkpoint's weights are not those of the model; names keys."""
    if wrong := misfit(checkpoint["state_dict"], model.state_dict()):
        raise ConfigError(f"{KEY}: {path} does not fit this configuration; {wrong}")


def misfit(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """Which weights of a file are not those of a network, the first three of a kind; empty of
    none.

    Counts of batches, which old files lack, are not missed; what a host registers late is passed
    over.
    """
    theirs, ours = (
        {key: value for key, value in weights.items() if key not in LATE_STATE}
        for weights in (theirs, ours)
    )
    missing = [key for key in ours if key not in theirs and not key.endswith(_COUNT)]
    unknown = [key for key in theirs if key not in ours]
    shapes = [
        f"{key} ({tuple(theirs[key].shape)} there, {tuple(value.shape)} here)"
        for key, value in ours.items()
        if key in theirs and theirs[key].shape != value.shape
    ]
    kinds = ((missing, "missing"), (unknown, "unknown"), (shapes, "of another shape"))
    return "; ".join(
        f"{len(keys)} weights are {what}: {', '.join(keys[:3])}" for keys, what in kinds if keys
    )
