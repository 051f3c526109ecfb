"""A run's state after each epoch, and checkpoints that someone else has written, made fit to resume
from or refused by name."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from solo_mim import stopping
from solo_mim.errors import ConfigError, is_out_of_memory
from solo_mim.runs import files

KEY = "resume_from_checkpoint"
_COUNT = "num_batches_tracked"


# Checkpoints that we write


class WholeCheckpoints(TorchCheckpointIO):
    """Files that are there whole or not at all, written beside their place: lightning's own pass
    through memory and the folder for temporary files, which may be on another disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with files.whole(Path(path)) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


class EpochEnd(Checkpoint):
    """Writes metrics.csv and the state after every finished epoch.

    A state carries the metrics of all epochs up to its own, so that a resumed run's are without gap
    or repetition wherever it was killed. Its file gets its name when it is whole, and only then the
    one before it goes. Beside the latest stay the multiples of `frequency`: all of them with
    `keep_prev`, otherwise the last.
    """

    def __init__(self, folder: Path, enabled: bool, frequency: int, keep_prev: bool) -> None:
        self.folder, self.enabled = folder, enabled
        self.frequency, self.keep_prev = frequency, keep_prev
        self.rows: list[dict[str, float]] = []

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per epoch and a column for whatever was logged; `step` counts updates."""
        return pd.DataFrame(self.rows or {"epoch": []})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes what a kill has left between a checkpoint and the removal of the one before, and
        writes the metrics that a checkpoint brings."""
        if not trainer.is_global_zero:
            return
        if self.rows:
            files.write(self.folder / files.METRICS, self.metrics.to_csv(index=False))
        if self.enabled and (newest := files.newest_checkpoint(self.folder)):
            self._remove_all_but(newest[0])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the epoch before: validation, or a part of it, may be rarer than an epoch."""
        trainer.logged_metrics.clear()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sees what all others have logged, for lightning calls a Checkpoint last."""
        epoch = trainer.current_epoch
        logged = {k: float(v) for k, v in trainer.logged_metrics.items() if not k.endswith("_step")}
        self.rows.append({"epoch": epoch, "step": trainer.global_step, **logged})
        with stopping.put_off():
            if trainer.is_global_zero:
                files.write(self.folder / files.METRICS, self.metrics.to_csv(index=False))
            if self.enabled:
                trainer.save_checkpoint(files.checkpoint_file(self.folder, epoch))
                if trainer.is_global_zero:
                    self._remove_all_but(epoch)

    def _remove_all_but(self, epoch: int) -> None:
        found = files.checkpoints(self.folder)
        multiples = [e for e in found if self.frequency > 0 and (e + 1) % self.frequency == 0]
        kept = {epoch, *(multiples if self.keep_prev else multiples[-1:])}
        for other, path in found.items():
            if other not in kept:
                path.unlink()


# Checkpoints of others, not to be trusted


class _Inert:
    """Takes the place of whatever else is in a pickle; nothing of it is run."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _empty(*_: Any) -> dict[Any, Any]:
    return {}


# What the parts to drop keep their state in has to take it.
_CONTAINERS: list[Any] = [(dict, "builtins.dict"), (_empty, "collections.defaultdict")]


def load(
    path: str | Path, stands_in: Callable[[str], bool] = lambda name: True
) -> tuple[Any, bool]:
    """What `torch.save` has written, and whether it is plain: tensors, numbers, text, containers.

    Whatever else is in it is read as inert objects where `stands_in` of its dotted name is true,
    and otherwise refused: no code of a file is run.

    Raises:
        ConfigError: the file is not there, is none of torch's, or holds what is refused.
    """
    try:
        names: list[str] = []
        if zipfile.is_zipfile(path):  # torch's format before 1.6, which tells of none, is not
            with torch.serialization.safe_globals(_CONTAINERS):
                names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        if refused := [name for name in names if not stands_in(name)]:
            raise _not_opened(path, refused[0])
        inert: list[Any] = [(_Inert, name) for name in names]
        safe = torch.serialization.safe_globals([*_CONTAINERS, *inert])
        with safe, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused below
            return torch.load(path, map_location="cpu", weights_only=True), not names
    except ConfigError:
        raise
    except pickle.UnpicklingError as error:
        if unknown := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise _not_opened(path, unknown[1]) from error
        # torch's own words advise to run the code of the file
        raise ConfigError(
            f"{path} is a pickle, but none of torch.save; give a checkpoint or a state dict"
        ) from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is not there; give a checkpoint") from error
    # Whatever torch raises of files that are none of its own.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if "torchscript" in str(error).lower():
            raise ConfigError(
                f"{path} is a TorchScript program, and no code of a file is run; give the "
                "model's state dict"
            ) from error
        first_line = str(error).split("\n")[0]
        reason = f"{type(error).__name__}: {first_line}"
        raise ConfigError(f"{path} is cut short, or not of torch.save ({reason})") from error


def _not_opened(path: str | Path, name: str) -> ConfigError:
    return ConfigError(
        f"{path} is not opened: it holds {name}, which no checkpoint needs and which could run code"
    )


def read(path: str | Path) -> tuple[dict[str, Any], bool]:
    """A lightning checkpoint to resume from, and whether it is plain.

    What is not, as a function in solo-learn's own of SimSiam and NNSiam (docs/host.md), is dropped.

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


def _without_inert(node: Any) -> Any:
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if not isinstance(value, _Inert)}
        return {key: _without_inert(value) for key, value in kept.items()}
    if isinstance(node, list):
        return [_without_inert(value) for value in node if not isinstance(value, _Inert)]
    return node


def misfit(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], late: Collection[str] = ()
) -> str:
    """Which weights of a file's state dict are not those of a network's, the first three of a kind;
    empty of none.

    Counts of batches, which old files lack, are not missed; nor are `late` ones, which a model
    registers when its training starts.
    """
    theirs, ours = (
        {key: value for key, value in weights.items() if key not in late}
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
