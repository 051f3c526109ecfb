"""lightning's Trainer as every training here uses it."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from solo_mim.data import SSLDataModule
from solo_mim.divergence import Divergence
from solo_mim.errors import ConfigError, install_extra
from solo_mim.progress import EpochLines, LossBar
from solo_mim.recipe.schema import TRAINER_KEYS, Recipe
from solo_mim.runs.checkpoints import EpochEnd, WholeCheckpoints
from solo_mim.runs.folder import RunFolder

# What a user can do nothing about.
_QUIET = (
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
    ".*Experiment logs directory .* exists.*",
    ".*in eval mode at the start of training.*",
    ".*is smaller than the logging interval.*",  # what is shown and drawn is logged by epoch
    ".*It is recommended to use `self.log.*sync_dist=True.*",  # shown is the first process's loss
)


def shows_progress(recipe: Recipe) -> bool:
    """Whether bars are drawn: not where nobody would see them."""
    return recipe.progress_bar and sys.stderr.isatty()


def trainer_of(
    recipe: Recipe, cfg: DictConfig, folder: RunFolder, what: str, callbacks: list[pl.Callback]
) -> tuple[pl.Trainer, EpochLines, EpochEnd]:
    """The Trainer of a recipe, and of its callbacks those that know speed and metrics.

    Args:
        recipe: its loggers, learning rate and section `checkpoint` are read.
        cfg: `host_config` of the recipe; the arguments of the Trainer are at its top level.
        what: is trained, such as the method: an error says that it has diverged.

    Raises:
        ConfigError: lightning refuses its settings, or a logger is not installed.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _QUIET:
        warnings.filterwarnings("ignore", message=message)
    given: Any = OmegaConf.to_container(cfg)
    arguments: dict[str, Any] = {
        **{"log_every_n_steps": 10, "enable_model_summary": False, "num_sanity_val_steps": 0},
        **{k: v for k, v in given.items() if k in TRAINER_KEYS and v is not None},
    }
    arguments["strategy"] = cfg.strategy or "auto"
    if cfg.strategy == "ddp":
        arguments["strategy"] = DDPStrategy(find_unused_parameters=False)
    lines, kept = EpochLines(), recipe.checkpoint
    epochs = EpochEnd(folder.path, kept.enabled, kept.frequency, kept.keep_prev)
    bar = [LossBar(leave=False)] if shows_progress(recipe) else []
    used = loggers(recipe, folder)
    try:
        trainer = pl.Trainer(
            **arguments,
            enable_progress_bar=bool(bar),
            logger=used,
            callbacks=[Divergence(what, recipe.optimizer.lr), lines, epochs, *callbacks, *bar],
            default_root_dir=folder.path,
            plugins=[WholeCheckpoints()],
        )
    # ImportError: accelerators and strategies that want a package which is not there.
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"lightning's Trainer refuses its settings: {error}") from error
    # Its handler of SIGTERM broadcasts from wherever the process is, so that those of several wait
    # for each other in different places; that of SIGUSR1, for SLURM, saves a checkpoint amid an
    # epoch. What `stopping` has set stands.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer, lines, epochs


def loggers(recipe: Recipe, folder: RunFolder) -> list[Logger]:
    """A step-wise CSV log and what else the recipe asks for."""
    version = folder.next_log()
    found: list[Logger] = [CSVLogger(folder.path, name=None, version=version)]
    name = "tensorboard"
    try:
        if recipe.tensorboard.enabled:
            place: Any = {"name": None, "version": version}
            found.append(TensorBoardLogger(folder.path, **place, default_hp_metric=False))
        name = "wandb"
        if recipe.wandb.enabled:
            shown = {k: v for k, v in asdict(recipe.wandb).items() if k != "enabled"}
            run: Any = {"id": folder.path.name, "save_dir": folder.path, "resume": "allow"}
            found.append(WandbLogger(recipe.name, **run, **shown))  # type: ignore[attr-defined]
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{name}.enabled=true needs {name}: {install_extra(name)}, or set {name}.enabled=false"
        ) from error
    return found


def fit(
    trainer: pl.Trainer, model: pl.LightningModule, data: SSLDataModule, checkpoint: Path | None
) -> None:
    """`trainer.fit` from a checkpoint on, with Ctrl-C and SIGTERM as KeyboardInterrupt.

    Raises:
        ConfigError: lightning refuses its settings once it sees the data, or the checkpoint.
    """
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        raise KeyboardInterrupt from None  # lightning makes the one of the other
    except (MisconfigurationException, ValueError) as error:
        if isinstance(error, ValueError) and "val_check_interval" not in str(error):
            raise
        raise ConfigError(f"lightning refuses to train: {' '.join(str(error).split())}") from error


def peak_memory_mib() -> dict[str, float]:
    """Peak resident memory of this process, and allocated on the GPU where there is one, in MiB."""
    peak = {}
    with contextlib.suppress(ImportError):  # Windows
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 2**20
    return peak
