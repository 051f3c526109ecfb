"""`solo-mim pretrain`: trains one method on one data set and says what came of it."""

from __future__ import annotations

import copy
import io
import os
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
import torch.distributed as dist
from omegaconf import DictConfig

from solo_mim.commands import checkpoints, jobs, processes, runs, sources, trained
from solo_mim.commands.configuration import (
    PretrainConfig,
    check_run,
    checked,
    completed,
    num_devices,
)
from solo_mim.commands.divergence import Divergence, diverged
from solo_mim.commands.progress import EpochLines
from solo_mim.data import SSLDataModule
from solo_mim.errors import ConfigError, is_out_of_memory
from solo_mim.evaluation.diagnostics import MAX_IMAGES, HeldOutInformation, InformationCallback
from solo_mim.evaluation.offline import Predictions, evaluate_features
from solo_mim.evaluation.plots import plot_curves
from solo_mim.losses import ExplicitMIMError
from solo_mim.methods import find_method

# Raw pixels of larger data sets are not worth their memory: their kNN says little anyway.
_RAW_PIXELS_LIMIT = 2**31  # bytes as float32


def _offline(
    cfg: DictConfig, data: SSLDataModule, split: str, backbone: Any, device: Any, probe: bool = True
) -> Predictions:
    """kNN and probe of a frozen backbone's features, from the training images to a split's."""
    train, test = (
        jobs.plain_features(cfg, data, part, backbone, device) for part in ("train", split)
    )
    return evaluate_features(train, test, cfg.knn_eval.k, cfg.knn_eval.distance_func, probe)


def _yardsticks(
    cfg: DictConfig, data: SSLDataModule, split: str, untrained: Any, device: Any, folder: Path
) -> dict[str, Any]:
    """Accuracies of the backbone as it starts, untrained but for `backbone.weights`, and of raw
    pixels, measured once for a run's folder."""
    path = folder / runs.YARDSTICKS
    found: dict[str, Any] = {}
    try:
        found = runs.read_json(path, dict) or {}
    except ConfigError:
        print(f"note: {path} is damaged, its figures are measured again")
    pixels = data.num_train_images * 3 * data.crop_size**2 * 4
    backbones = {"untrained": (untrained, device, True)}
    if pixels <= _RAW_PIXELS_LIMIT:
        backbones["raw_pixels"] = (torch.nn.Identity(), "cpu", False)
    for name, (backbone, where, probe) in backbones.items():
        if name not in found:
            predictions = _offline(cfg, data, split, backbone.to(where), where, probe)
            found[name] = predictions.accuracies()
            runs.write_json(path, found)
    return found


def _last(metrics: pd.DataFrame, column: str) -> float | None:
    values = metrics[column].dropna().tolist() if column in metrics else []
    return float(values[-1]) if values else None


def pretrain(cfg: DictConfig) -> dict[str, Any]:
    """Trains, evaluates and records one run; the result, also of a run that is already finished.

    Raises:
        ConfigError: a key, value or path is wrong; the message names it.
        RunError: it cannot go on, since it has diverged for instance.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the message says what is kept and how to go on.
        SystemExit: in all processes but the first, which evaluates alone.
    """
    cfg = checked(cfg)
    check_run(cfg)
    method = find_method(cfg.method)
    start = trained.start_of(cfg)
    data = SSLDataModule(cfg)
    folder = runs.folder_of(cfg, data.splits.fingerprint, start.digest if start else None)

    return jobs.done_once(
        folder,
        cfg,
        summary,
        lambda lock: _trained_and_evaluated(cfg, method, data, folder, lock, start),
        lambda: runs.standing(folder, cfg),
    )


def _trained_and_evaluated(
    cfg: DictConfig,
    method: Any,
    data: SSLDataModule,
    folder: Path,
    lock: runs.FolderLock,
    start: trained.Start | None,
) -> dict[str, Any]:
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
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"method_kwargs: {cfg.method} refuses them ({reason})") from error
    # Of a resumed run only the yardstick below keeps them: its checkpoint replaces all weights.
    taken = start.give(model) if start else []
    if not resolved.performance.get("disable_channel_last", False):
        model = model.to(memory_format=torch.channels_last)
    lines = EpochLines()
    epochs = runs.EpochEnd(
        folder, cfg.checkpoint.enabled, cfg.checkpoint.frequency, cfg.checkpoint.keep_prev
    )
    callbacks: list[pl.Callback] = [Divergence(cfg.method, cfg.optimizer.lr), lines, epochs]
    has_validation = data.num_val_images > 0
    if has_validation:
        views = data.views_dataloader("val", max_images=MAX_IMAGES)
        held_out = InformationCallback(views, cfg.evaluation.information_every_n_epochs)
        callbacks.append(held_out)
    trainer = jobs.trainer_of(resolved, folder, callbacks)
    device = trainer.strategy.root_device

    checkpoint = runs.newest_checkpoint(folder)
    foreign = None
    if checkpoint is None and cfg.resume_from_checkpoint:
        checkpoint = Path(cfg.resume_from_checkpoint)
        foreign, is_plain = checkpoints.read(checkpoint)
        checkpoints.refuse_misfit(foreign, model, checkpoint)
        if (epochs_done := foreign["epoch"] + 1) >= cfg.max_epochs:
            raise ConfigError(
                f"max_epochs={cfg.max_epochs}: {checkpoint} has {epochs_done} behind it already"
            )
        foreign = None if is_plain else foreign
    made_from = (data.splits.fingerprint, start.digest if start else None)
    departure = runs.departure(folder, cfg, *made_from)
    if trainer.is_global_zero:
        lock.acquire()
        runs.prepare(folder, cfg, *made_from)
        print(_announcement(resolved, data, folder, departure, checkpoint))
        if start and checkpoint is None:
            print(f"starts from {start.source.path}: {' and '.join(taken)}")
    copied = folder / "resumed_from.ckpt"
    if foreign is not None:
        checkpoint = copied
        if trainer.is_global_zero:  # the others wait for it before they read
            with runs.whole(copied) as partial, partial.open("wb") as file:
                torch.save(foreign, file)

    is_evaluated = has_validation and cfg.evaluation.offline
    untrained = copy.deepcopy(model.backbone) if is_evaluated and trainer.is_global_zero else None

    pl.seed_everything(cfg.seed, workers=True, verbose=False)  # the model above drew numbers
    started = time.perf_counter()
    try:
        jobs.fit(trainer, model, data, checkpoint)
    except ExplicitMIMError as error:
        step = trainer.fit_loop.batch_idx + 1
        raise diverged(trainer, cfg.method, cfg.optimizer.lr, error, step) from error
    seconds = time.perf_counter() - started
    if trainer.is_global_zero:
        copied.unlink(missing_ok=True)

    corrupt_images = _of_all_processes(data.corrupt_images)
    processes.part()
    if not trainer.is_global_zero:
        raise SystemExit(0)  # the rest is the first process's, and nobody waits for it
    metrics = epochs.metrics
    information = None
    split, offline_evaluated_on = jobs.offline_split(cfg)
    offline: dict[str, Any] = {}
    if has_validation:
        model.to(device)
        information = held_out.measure(trainer, model)
    if is_evaluated:
        offline = _yardsticks(cfg, data, split, untrained, device, folder)
        predictions = _offline(cfg, data, split, model.backbone, device)
        offline["trained"] = predictions.accuracies()
        runs.write_predictions(folder, predictions)
    result = {
        "name": cfg.name,
        "method": cfg.method,
        "data": cfg.data.dataset,
        "seed": cfg.seed,
        "start": start.record(taken) if start else None,
        "epochs": trainer.current_epoch,
        "evaluated_on": jobs.evaluated_on(cfg),
        "offline_evaluated_on": offline_evaluated_on,
        "online": {
            "probe_top1": _last(metrics, "val_acc1"),
            "probe_top5": _last(metrics, "val_acc5"),
            "knn_top1": _last(metrics, "val_knn_acc1"),
        },
        # Of a validation that the processes share: `SSLDataModule.val_dataloader`.
        "online_left_out": data.num_val_images % trainer.world_size,
        "offline": offline,
        "information": None if information is None else asdict(information),
        "corrupt_images": list(dict.fromkeys([*corrupt_images, *data.corrupt_images])),
        # None where this sitting only had the evaluation left to do.
        "images_per_second": statistics.median(lines.images_per_second)
        if lines.images_per_second
        else None,
        "training_seconds_of_last_sitting": seconds,
        "shared_machine": _shared_machine(lines.loads, data.num_workers, num_devices(resolved)),
        "peak_memory_mib": jobs.peak_memory_mib(),
        "folder": str(folder),
        "versions": runs.versions(cfg.method),
        "commit": runs.commit(),
        "code": sources.digest(cfg.method),
        "fingerprint": data.splits.fingerprint,
    }
    picture = io.BytesIO()
    plot_curves(metrics, picture, folder.name)
    if curves := picture.getvalue():
        runs.write(folder / "curves.png", curves)
    runs.write_json(folder / runs.RESULT, result)  # last: it says that the run is finished
    print("\n" + summary(result))
    return result


def _of_all_processes(paths: list[str]) -> list[str]:
    """Those that any process has met, each once."""
    met: list[list[str] | None] = [paths]
    if dist.is_available() and dist.is_initialized():
        met = [None] * dist.get_world_size()
        dist.all_gather_object(met, paths)
    return list(dict.fromkeys(path for part in met for path in part or []))


def _shared_machine(loads: list[float], workers: int, processes: int) -> bool | None:
    """Whether others computed here too, as far as the load average tells; None where it does not.

    Seconds of runs that shared their machine compare with nothing. Each of this machine's processes
    has its threads and its workers.
    """
    own = processes * (torch.get_num_threads() + workers)
    return statistics.median(loads) > own + 0.7 if loads else None


def _announcement(
    cfg: DictConfig, data: SSLDataModule, folder: Path, departure: str | None, checkpoint: Any
) -> str:
    opt = cfg.optimizer
    processes = num_devices(cfg) * cfg.num_nodes
    joint = f" x {processes} processes = {opt.batch_size * processes}" if processes > 1 else ""
    steps = cfg.get("accumulate_grad_batches") or 1
    accumulated = f", gradients of {steps} batches in each step" if steps > 1 else ""
    lines = [
        f"{cfg.method} on {cfg.data.dataset}: {data.num_train_images:,} training and "
        f"{data.num_val_images:,} held-out images, {data.num_classes} classes, "
        f"{cfg.data.num_large_crops + cfg.data.num_small_crops} views of {data.crop_size} px",
        f"{cfg.backbone.name}, {cfg.max_epochs} epochs, batch {opt.batch_size}{joint}"
        f"{accumulated}, {opt.name}, lr {opt.lr:g} (scaled to the batch), seed {cfg.seed}",
        f"run folder: {folder}",
        *jobs.goes_on(folder, departure, checkpoint),
    ]
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
        before = "at the start" if result.get("start") else "untrained"
        lines.append(row(f"{before}, offline", offline.get("untrained")))
        lines.append(row("raw pixels, offline", offline.get("raw_pixels")))
    if left_out := result.get("online_left_out"):
        lines.append(
            f"  online figures leave out {left_out} of the {result['evaluated_on']}, which the "
            "processes cannot share evenly"
        )
    info = result["information"]
    if info:
        lines += [f"  {line}" for line in HeldOutInformation(**info).lines()]
        lines.append(f"  effective rank of z {info['effective_rank']:.1f}")
    lines += jobs.skipped_images(result)
    speed = f"{result['images_per_second']:,.0f} images/s, " if result["images_per_second"] else ""
    memory = ", ".join(f"{mib:,.0f} MiB ({of})" for of, mib in result["peak_memory_mib"].items())
    lines += [
        f"  {speed}peak memory {memory}",
        f"  run: {result['folder']}",
        f"       (result.json, metrics.csv, {'predictions.csv, ' if offline else ''}curves.png)",
        f"  next: the same command with another method=... for the rows beside it; "
        f"{_prefix()}solo-mim methods lists them",
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


def _job(cfg: DictConfig) -> float | None:
    """Hydra's of one run; what a sweep would go by."""
    knn_top1: float | None = pretrain(cfg)["online"]["knn_top1"]
    return knn_top1


def run(arguments: list[str]) -> int:
    """The command: `arguments` are Hydra's."""
    return jobs.run_by_hydra("pretrain", _job, arguments, PretrainConfig)
