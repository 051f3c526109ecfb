"""`solo-mim pretrain`: trains one method on one data set and says what came of it."""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import lightning.pytorch as pl
import pandas as pd
import torch
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from solo_mim.commands import checkpoints, runs
from solo_mim.commands.configuration import (
    CONFIG_FOLDER,
    TRAINER_KEYS,
    checked,
    completed,
    composed_from,
    located,
    refusal,
)
from solo_mim.commands.progress import EpochLines, LossBar
from solo_mim.data import SSLDataModule
from solo_mim.errors import ConfigError, nearest
from solo_mim.evaluation.diagnostics import InformationCallback
from solo_mim.evaluation.offline import Predictions, evaluate_features, extract_features
from solo_mim.evaluation.plots import plot_curves
from solo_mim.losses import ExplicitMIMError
from solo_mim.methods import find_method, recipe_folders


def _loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    sitting = runs.next_session(folder)
    loggers: list[Logger] = [CSVLogger(folder, name=None, version=sitting)]
    wanted: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(
            folder, name=None, version=sitting, default_hp_metric=False
        ),
        "wandb": lambda: WandbLogger(
            name=cfg.name,
            project=cfg.wandb.project,
            entity=cfg.wandb.entity,
            offline=cfg.wandb.offline,
            save_dir=folder,
            id=folder.name,
            resume="allow",
        ),
    }
    for name, make in wanted.items():
        if cfg[name].enabled:
            try:
                loggers.append(make())
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"{name}.enabled=true needs {name}: pip install 'solo-mim[{name}]', "
                    f"or set {name}.enabled=false"
                ) from error
    return loggers


def _trainer(cfg: DictConfig, folder: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """lightning's, from the configuration's top level; one of `callbacks` is an `EpochEnd`."""
    arguments: dict[str, Any] = {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for key, value in cfg.items()
        if key in TRAINER_KEYS and value is not None
    }
    arguments["strategy"] = (
        DDPStrategy(find_unused_parameters=False)
        if cfg.strategy == "ddp"
        else cfg.strategy or "auto"
    )
    arguments.setdefault("log_every_n_steps", 10)
    arguments.setdefault("enable_model_summary", False)
    arguments.setdefault("num_sanity_val_steps", 0)
    if cfg.progress_bar and sys.stderr.isatty():
        callbacks = [*callbacks, LossBar(leave=False)]
    arguments["enable_progress_bar"] = any(isinstance(c, LossBar) for c in callbacks)
    try:
        return pl.Trainer(
            **arguments,
            logger=_loggers(cfg, folder),
            callbacks=callbacks,
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"lightning's Trainer refuses its settings: {error}") from error


# Raw pixels of larger data sets are not worth their memory: their kNN says little anyway.
_RAW_PIXELS_LIMIT = 2**31  # bytes as float32


def _offline(
    cfg: DictConfig, data: SSLDataModule, split: str, backbone: Any, device: Any, probe: bool = True
) -> Predictions:
    """kNN and probe of a frozen backbone's features, from the training images to a split's."""
    train, test = (
        extract_features(
            backbone,
            data.plain_dataloader(part),
            device,
            description=f"offline evaluation: {part}",
            progress=cfg.progress_bar and sys.stderr.isatty(),
        )
        for part in ("train", split)
    )
    return evaluate_features(train, test, cfg.knn_eval.k, cfg.knn_eval.distance_func, probe)


def _peak_memory_mib() -> dict[str, float]:
    """Peak resident memory of this process, and allocated on the GPU where there is one, in MiB."""
    peak = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 2**20
    return peak


def _last(metrics: pd.DataFrame, column: str) -> float | None:
    values = metrics[column].dropna().tolist() if column in metrics else []
    return float(values[-1]) if values else None


def pretrain(cfg: DictConfig) -> dict[str, Any]:
    """Trains, evaluates and records one run; the result, also of a run that is already finished.

    Raises:
        ConfigError: a key, value or path is wrong; the message names it.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the message says what is kept and how to go on.
    """
    cfg = checked(cfg)
    method = find_method(cfg.method)
    folder = runs.folder_of(cfg)
    try:
        with runs.FolderLock(folder) as lock:
            try:
                return _trained_and_evaluated(cfg, method, folder, lock)
            except Exception as error:
                if lock.held:
                    runs.note_failure(folder, error)
                raise
    except KeyboardInterrupt:
        if getattr(rank_zero_only, "rank", 0):  # the first process speaks for all
            raise SystemExit(1) from None
        raise KeyboardInterrupt(runs.standing(folder, cfg)) from None


def _trained_and_evaluated(
    cfg: DictConfig, method: Any, folder: Path, lock: runs.FolderLock
) -> dict[str, Any]:
    runs.refuse_foreign(folder, cfg)
    if (folder / runs.RESULT).exists():
        result = json.loads((folder / runs.RESULT).read_text())
        print(f"finished before, nothing to do: {folder}\n\n{summary(result)}")
        return result

    data = SSLDataModule(cfg)
    data.train_dataloader()  # refuses an impossible batch size here, before anything is written
    by_labels = cfg.method == "supcon" or cfg.method_kwargs.get("supervised")
    if by_labels and not data.splits.train.labelled:
        raise ConfigError(
            f"method={cfg.method} learns from labels, which not every training image of "
            f"data.dataset={cfg.data.dataset} has"
        )
    resolved = completed(cfg, data.num_classes, data.num_large_crops, data.num_small_crops)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    try:
        model: Any = method(resolved)
    except ConfigError:
        raise
    # Whatever torch and the host raise of sizes and the like that they do not check.
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"method_kwargs: {cfg.method} refuses them ({reason})") from error
    if not resolved.performance.get("disable_channel_last", False):
        model = model.to(memory_format=torch.channels_last)
    lines = EpochLines()
    epochs = runs.EpochEnd(
        folder, cfg.checkpoint.enabled, cfg.checkpoint.frequency, cfg.checkpoint.keep_prev
    )
    callbacks: list[pl.Callback] = [lines, epochs]
    has_validation = data.num_val_images > 0
    if has_validation:
        views, every = data.views_dataloader("val"), cfg.evaluation.information_every_n_epochs
        held_out = InformationCallback(views, every)
        callbacks.append(held_out)
    trainer = _trainer(resolved, folder, callbacks)
    device = trainer.strategy.root_device

    checkpoint = runs.newest_checkpoint(folder)
    foreign = None
    if checkpoint is None and cfg.resume_from_checkpoint:
        checkpoint = Path(cfg.resume_from_checkpoint)
        foreign, is_plain = checkpoints.read(checkpoint)
        checkpoints.refuse_misfit(foreign, model, checkpoint)
        foreign = None if is_plain else foreign
    departure = runs.departure(folder, cfg)
    if trainer.is_global_zero:
        lock.acquire()
        runs.prepare(folder, cfg)
    print(_announcement(resolved, data, folder, departure, checkpoint))
    if foreign is not None:
        checkpoint = folder / "resumed_from.ckpt"
        torch.save(foreign, checkpoint)

    offline: dict[str, Predictions] = {}
    split = "test" if cfg.evaluation.test and cfg.data.validation_split else "val"
    if has_validation and cfg.evaluation.offline:
        offline["untrained"] = _offline(cfg, data, split, model.backbone.to(device), device)
        if data.num_train_images * 3 * data.crop_size**2 * 4 <= _RAW_PIXELS_LIMIT:
            offline["raw_pixels"] = _offline(
                cfg, data, split, torch.nn.Identity(), "cpu", probe=False
            )

    pl.seed_everything(cfg.seed, workers=True, verbose=False)  # the evaluation above drew numbers
    started = time.perf_counter()
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        raise KeyboardInterrupt from None  # lightning makes the one of the other
    except ExplicitMIMError as error:
        raise ConfigError(
            f"method={cfg.method} has diverged in epoch {trainer.current_epoch + 1}: {error}; "
            "lower optimizer.lr"
        ) from error
    seconds = time.perf_counter() - started

    metrics = epochs.metrics
    information = None
    if has_validation:
        model.to(device)
        information = held_out.measure(trainer, model)
        if cfg.evaluation.offline:
            offline["trained"] = _offline(cfg, data, split, model.backbone, device)
    result = {
        "name": cfg.name,
        "method": cfg.method,
        "data": cfg.data.dataset,
        "seed": cfg.seed,
        "epochs": trainer.current_epoch,
        "evaluated_on": _evaluated_on(cfg),
        "offline_evaluated_on": "test images" if split == "test" else _evaluated_on(cfg),
        "online": {
            "probe_top1": _last(metrics, "val_acc1"),
            "probe_top5": _last(metrics, "val_acc5"),
            "knn_top1": _last(metrics, "val_knn_acc1"),
        },
        "offline": {name: predictions.accuracies() for name, predictions in offline.items()},
        "information": None if information is None else asdict(information),
        "corrupt_images": data.corrupt_images,
        # None where this sitting only had the evaluation left to do.
        "images_per_second": statistics.median(lines.images_per_second)
        if lines.images_per_second
        else None,
        "training_seconds_of_last_sitting": seconds,
        "shared_machine": _shared_machine(lines.loads, data.num_workers * trainer.world_size),
        "peak_memory_mib": _peak_memory_mib(),
        "folder": str(folder),
        "versions": runs.versions(cfg.method),
        "commit": runs.commit(),
    }
    if trainer.is_global_zero:
        if trained := offline.get("trained"):
            runs.write_predictions(folder, trained)
        plot_curves({cfg.method: metrics}, folder / "curves.png", folder.name)
        runs.write_json(folder / runs.RESULT, result)  # last: it says that the run is finished
        print("\n" + summary(result))
    return result


def _shared_machine(loads: list[float], workers: int) -> bool | None:
    """Whether others computed here too, as far as the load average tells; None where it does not.

    Seconds of runs that shared their machine compare with nothing.
    """
    return statistics.median(loads) > torch.get_num_threads() + workers + 0.7 if loads else None


def _evaluated_on(cfg: DictConfig) -> str:
    return "validation split" if cfg.data.validation_split else "held-out images"


def _announcement(
    cfg: DictConfig, data: SSLDataModule, folder: Path, departure: str | None, checkpoint: Any
) -> str:
    opt = cfg.optimizer
    lines = [
        f"{cfg.method} on {cfg.data.dataset}: {data.num_train_images:,} training and "
        f"{data.num_val_images:,} held-out images, {data.num_classes} classes, "
        f"{cfg.data.num_large_crops + cfg.data.num_small_crops} views of {data.crop_size} px",
        f"{cfg.backbone.name}, {cfg.max_epochs} epochs, batch {opt.batch_size}, {opt.name}, "
        f"lr {opt.lr:g} (scaled to the batch), seed {cfg.seed}",
        f"run folder: {folder}",
    ]
    if departure:
        lines.append(departure)
    if checkpoint:
        lines.append(f"resuming from {checkpoint}")
    return "\n".join(lines)


def summary(result: dict[str, Any]) -> str:
    """The closing table of a run, from its result."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    def row(label: str, accuracies: dict[str, Any] | None) -> str:
        found = accuracies or {}
        return f"  {label:<34}{cell(found.get('probe_top1')):>8}{cell(found.get('knn_top1')):>8}"

    offline = result["offline"]
    title = (
        f"{result['method']} on {result['data']}, {result['epochs']} epochs, seed {result['seed']}"
    )
    lines = [title, f"  {'top-1 (%)':<34}{'probe':>8}{'kNN':>8}"]
    where = result["evaluated_on"]
    lines.append(row(f"trained, online, {where}", result["online"]))
    if offline:
        where = result["offline_evaluated_on"]
        lines.append(row(f"trained, offline, {where}", offline.get("trained")))
        lines.append(row("untrained, offline", offline.get("untrained")))
        lines.append(row("raw pixels, offline", offline.get("raw_pixels")))
    info = result["information"]
    if info:
        for reading, meaning in (("infomax", "I(z; image) >="), ("two_view", "I(z; z') =")):
            lines.append(
                f"  {meaning} {info[reading]:.2f} nats on {info['images']:,} held-out images "
                f"(bias {info[reading + '_bias']:.2f}, "
                f"shuffled pairs {info[reading + '_shuffled']:.2f})"
            )
        lines.append(f"  effective rank of z {info['effective_rank']:.1f}")
    if result["corrupt_images"]:
        lines.append(f"  {len(result['corrupt_images'])} unreadable images skipped: result.json")
    speed = f"{result['images_per_second']:,.0f} images/s, " if result["images_per_second"] else ""
    memory = ", ".join(f"{mib:,.0f} MiB ({of})" for of, mib in result["peak_memory_mib"].items())
    lines += [
        f"  {speed}peak memory {memory}",
        f"  run: {result['folder']}",
        f"       (result.json, metrics.csv, {'predictions.csv, ' if offline else ''}curves.png, "
        "checkpoints)",
        f"  next: {_prefix()}solo-mim pretrain method=vicreg   a baseline under the same budget",
        f"        {_prefix()}solo-mim methods                   all that can be trained",
    ]
    return "\n".join(lines)


def _prefix() -> str:
    """How to reach the command again where it was started by `uv run`, outside an environment."""
    if "UV" not in os.environ:
        return ""
    try:
        return f"{os.path.relpath(os.environ['UV'])} run "
    except ValueError:  # another drive of a Windows machine
        return f"{os.environ['UV']} run "


class _PluginRecipes(SearchPathPlugin):
    """Hydra finds the recipes that installed plug-ins bring, after the shipped ones."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for package, folder in recipe_folders().items():
            search_path.append(provider=package, path=f"file://{folder}")


def _quiet() -> None:
    """Silences what a user can do nothing about."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
        ".*Experiment logs directory .* exists.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _explained(error: BaseException) -> ConfigError:
    """Hydra's and OmegaConf's errors in our words: the key, what sets it, what comes nearest."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        wanted = (error.missing_cfg_file or "").split("/")[-1]
        return ConfigError(
            f"{error.missing_cfg_file}: no such config{nearest(wanted, error.options)}"
        )
    cause = error.__cause__ or error.__context__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        return located(refusal(cause), composed_from(str(error), sys.argv[1:]))
    override = getattr(error, "override", None)  # of one that does not parse
    return ConfigError(" ".join([*([f"{override}:"] if override else []), *str(error).split()]))


_refused: list[ConfigError] = []


@hydra.main(config_path=str(CONFIG_FOLDER), config_name="pretrain", version_base="1.3")
def _hydra_main(cfg: DictConfig) -> float | None:
    # Hydra has read its arguments; lightning starts further processes by the whole command line.
    if sys.argv[1:2] != ["pretrain"]:
        sys.argv.insert(1, "pretrain")
    OmegaConf.set_struct(cfg, False)
    try:
        result = pretrain(cfg)
    except ConfigError as error:
        # For `run` to raise: here Hydra would print a line of its own and give a sweep's rest up.
        _refused.append(located(error))
        return None
    return result["online"]["knn_top1"]


def _with_absolute_paths(arguments: list[str]) -> list[str]:
    """Hydra takes a relative --config-path as relative to this file, not to where the user is."""
    found = list(arguments)
    for i, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option not in ("--config-path", "-cp"):
            continue
        if equals:
            found[i] = f"{option}={os.path.abspath(value)}"
        elif i + 1 < len(found):
            found[i + 1] = os.path.abspath(found[i + 1])
    return found


def run(arguments: list[str]) -> int:
    """The command: `arguments` are Hydra's."""
    _quiet()
    Plugins.instance().register(_PluginRecipes)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here and not as Hydra's printout
    sys.argv = [sys.argv[0], *_with_absolute_paths(arguments)]
    _refused.clear()
    try:
        _hydra_main()
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error) from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"a YAML file cannot be read: {' '.join(str(error).split())}") from error
    finally:
        HydraConfig.instance().cfg = None  # Hydra leaves it to the next run in this process
    for refused in _refused[:-1]:  # of a sweep
        print(f"solo-mim: {refused}", file=sys.stderr)
    if _refused:
        raise _refused[-1]
    return 0
