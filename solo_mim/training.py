"""One run of pre-training, from a recipe to its result: data, model, trainer, fit, evaluate."""

from __future__ import annotations

import copy
import io
import math
import os
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from omegaconf import DictConfig
from torch import nn

from solo_mim import processes
from solo_mim.data import SSLDataModule
from solo_mim.data.check import listing_notes
from solo_mim.divergence import diverged
from solo_mim.errors import ConfigError, epochs, is_out_of_memory
from solo_mim.evaluation.diagnostics import MAX_IMAGES, InformationCallback
from solo_mim.evaluation.offline import Predictions, evaluate_features
from solo_mim.evaluation.plots import plot_curves
from solo_mim.host.lifecycle import LATE_STATE
from solo_mim.information import HeldOutInformation
from solo_mim.installed import OUR_BACKBONES
from solo_mim.losses import ExplicitMIMError
from solo_mim.methods import find_method
from solo_mim.progress import CPUNote
from solo_mim.protocols import figures
from solo_mim.recipe.checks import check_run
from solo_mim.recipe.schema import PretrainRecipe, host_config
from solo_mim.runs import checkpoints, files
from solo_mim.runs.folder import Result, RunFolder
from solo_mim.runs.identity import folder_of, settings_of
from solo_mim.trained import Start, find, start_of
from solo_mim.trainer import fit, peak_memory_mib, trainer_of

# Raw pixels of larger data sets are not worth their memory: their kNN says little anyway.
_RAW_PIXELS_LIMIT = 2**31  # bytes as float32
_ONLINE = {"probe_top1": "val_acc1", "probe_top5": "val_acc5", "knn_top1": "val_knn_acc1"}


def pretrain(recipe: PretrainRecipe) -> Result:
    """Trains, evaluates and records one run; the result, also of one that is finished already.

    Raises:
        ConfigError: a key, value or path is wrong; the message names it.
        RunError: it cannot go on, since it has diverged for instance.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the message says what is kept and how to go on.
        SystemExit: in all processes but the first, which evaluates alone.
    """
    check_run(recipe)
    method = find_method(recipe.method)
    start, recipe = start_of(recipe)
    config = recipe.plain
    data = SSLDataModule(config)
    images, weights = data.splits.fingerprint, start.digest if start else None
    path = folder_of(config, images, weights)
    folder = RunFolder(path, config, images, weights, resumes=True)
    return folder.once(lambda: _Run(recipe, method, data, folder, start).result(), summary)


class _Run:
    """The work of one run; each step reads what those before it have left."""

    def __init__(
        self,
        recipe: PretrainRecipe,
        method: Any,
        data: SSLDataModule,
        folder: RunFolder,
        start: Start | None,
    ) -> None:
        self.recipe, self.data, self.folder, self.start = recipe, data, folder, start
        # They refuse what is impossible here, before anything is written.
        figures.offline_split(recipe, data)
        data.refuse_impossible_batch(recipe.processes)
        data.train_dataloader()
        cfg = host_config(recipe, data.num_classes, data.num_large_crops, data.num_small_crops)
        self.model = self._model(method, cfg)
        # On resuming they serve the untrained baseline alone: the checkpoint replaces all weights.
        self.taken = start.give(self.model) if start else []
        self.held_out: InformationCallback | None = None
        if data.num_val_images:
            views = data.views_dataloader("val", max_images=MAX_IMAGES)
            every = recipe.evaluation.information_every_n_epochs
            self.held_out = InformationCallback(views, every)
        callbacks: list[pl.Callback] = [self.held_out] if self.held_out else []
        if recipe.on_cpu and recipe.backbone.name not in OUR_BACKBONES:
            callbacks.append(CPUNote())
        self.trainer, self.lines, self.epochs = trainer_of(
            recipe, cfg, folder, recipe.method, callbacks
        )
        self.plain_copy = folder.path / files.RESUMED_FROM

    def result(self) -> Result:
        """Trains and evaluates; only the first process comes to the end of it."""
        checkpoint, foreign = self._checkpoint()
        if self.trainer.is_global_zero:
            self._begin(checkpoint, foreign)
        untrained = None
        if self.held_out and self.recipe.evaluation.offline and self.trainer.is_global_zero:
            untrained = copy.deepcopy(self.model.backbone)
        seconds = self._trained(self.plain_copy if foreign else checkpoint)
        corrupt = processes.parted(self.data.corrupt_images)
        information = None
        if self.held_out:
            self.model.to(self.trainer.strategy.root_device)
            information = self.held_out.measure(self.trainer, self.model)
        offline = self._evaluated(untrained) if untrained is not None else {}
        result = self._recorded(information, offline, seconds, corrupt)
        print("\n" + summary(result))
        return result

    def _model(self, method: Any, cfg: DictConfig) -> Any:
        recipe = self.recipe
        by_labels = recipe.method == "supcon" or recipe.method_kwargs.get("supervised")
        if by_labels and not self.data.splits.train.labelled:
            raise ConfigError(
                f"method={recipe.method} learns from labels, which not every training image of "
                f"data.dataset={recipe.data.dataset} has"
            )
        pl.seed_everything(recipe.seed, workers=True, verbose=False)
        try:
            model = method(cfg)
        # Whatever torch and the host raise of sizes and the like that they do not check.
        except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
            if isinstance(error, ConfigError) or is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
            raise ConfigError(f"method_kwargs: {recipe.method} refuses them ({reason})") from error
        if not recipe.performance.disable_channel_last:
            model = model.to(memory_format=torch.channels_last)
        return model

    def _checkpoint(self) -> tuple[Path | None, dict[str, Any] | None]:
        """The file to resume from and, where that is not plain, what of it is."""
        own = self.folder.newest_checkpoint()
        if own is not None or not self.recipe.resume_from_checkpoint:
            return own, None
        path = Path(self.recipe.resume_from_checkpoint)
        content, is_plain = checkpoints.read(path)
        state, ours = content["state_dict"], self.model.state_dict()
        if wrong := checkpoints.misfit(state, ours, LATE_STATE):
            key = checkpoints.KEY
            raise ConfigError(f"{key}: {path} does not fit this configuration; {wrong}")
        if (done := content["epoch"] + 1) >= self.recipe.max_epochs:
            raise ConfigError(
                f"max_epochs={self.recipe.max_epochs}: {path} has {done} behind it already"
            )
        return path, None if is_plain else content

    def _begin(self, checkpoint: Path | None, foreign: dict[str, Any] | None) -> None:
        recipe, data, opt = self.recipe, self.data, self.recipe.optimizer
        several = recipe.processes > 1
        joint = f" x {recipe.processes} processes = {recipe.global_batch}" if several else ""
        steps = recipe.accumulate_grad_batches
        rate = steps * recipe.scaled(opt.lr)
        accumulated = f", gradients of {steps} batches in each step" if steps > 1 else ""
        differs = self.folder.begin(checkpoint)
        print(
            f"{recipe.method} on {recipe.data.dataset}: {data.num_train_images:,} training and "
            f"{data.num_val_images:,} held-out images, {data.num_classes} classes, "
            f"{data.num_large_crops + data.num_small_crops} views of {data.crop_size} px\n"
            f"{recipe.backbone.name}, {epochs(recipe.max_epochs)}, batch {opt.batch_size}{joint}"
            f"{accumulated}, {opt.name}, lr {rate:g} (scaled to the batch), "
            f"seed {recipe.seed}\nrun folder: {self.folder}",
            *(f"note: {note.text}" for note in listing_notes(data.splits)),
            *differs,
            *_other_schedule(recipe, checkpoint),
            sep="\n",
        )
        if self.start and checkpoint is None:
            print(f"starts from {self.start.source.path}: {' and '.join(self.taken)}")
        if foreign is not None:  # the other processes wait for it before they read
            checkpoints.WholeCheckpoints().save_checkpoint(foreign, self.plain_copy)

    def _trained(self, checkpoint: Path | None) -> float:
        """Seconds that this session has trained."""
        pl.seed_everything(self.recipe.seed, workers=True, verbose=False)  # the model drew numbers
        started = time.perf_counter()
        try:
            fit(self.trainer, self.model, self.data, checkpoint)
        except ExplicitMIMError as error:
            rate = self.recipe.optimizer.lr
            raise diverged(self.trainer, self.recipe.method, rate, error) from error
        finally:
            if self.trainer.is_global_zero:
                self.plain_copy.unlink(missing_ok=True)
        return time.perf_counter() - started

    def _evaluated(self, untrained: nn.Module) -> dict[str, Any]:
        """Offline accuracies of the trained network and of the baselines, by name."""
        found = self._baselines(untrained)
        predictions = self._offline(self.model.backbone, self.trainer.strategy.root_device)
        columns = {k: v.tolist() for k, v in vars(predictions).items() if v is not None}
        table = pd.DataFrame(columns).to_csv(index=False)
        files.write(self.folder.path / files.PREDICTIONS, table)
        return {**found, "trained": predictions.accuracies()}

    def _offline(self, backbone: Any, device: Any, probe: bool = True) -> Predictions:
        """kNN and probe of a frozen backbone's features, from the training images to a split's."""
        train, test = figures.train_and_test(self.recipe, self.data, backbone, device)
        knn = self.recipe.knn_eval
        return evaluate_features(train, test, knn.k, knn.distance_func, probe)

    def _baselines(self, untrained: nn.Module) -> dict[str, Any]:
        """Accuracies of the backbone as it starts, untrained but for `backbone.weights`, and of raw
        pixels, measured once for a run's folder."""
        found = self.folder.yardsticks()
        backbones: dict[str, tuple[nn.Module, Any, bool]] = {
            "untrained": (untrained, self.trainer.strategy.root_device, True)
        }
        images = len(self.data.splits.train.evaluable)
        if images * 3 * self.data.crop_size**2 * 4 <= _RAW_PIXELS_LIMIT:
            backbones["raw_pixels"] = (nn.Identity(), "cpu", False)
        for name, (backbone, device, probe) in backbones.items():
            if name not in found:
                found[name] = self._offline(backbone.to(device), device, probe).accuracies()
                files.write_json(self.folder.path / files.YARDSTICKS, found)
        return found

    def _recorded(
        self,
        information: HeldOutInformation | None,
        offline: dict[str, Any],
        seconds: float,
        corrupt: list[str],
    ) -> Result:
        recipe, data, metrics = self.recipe, self.data, self.epochs.metrics
        speeds, loads = self.lines.images_per_second, self.lines.loads
        # Each of this machine's processes has its threads and its workers; a load above that is of
        # others, who computed here too.
        local = recipe.processes // recipe.num_nodes
        own = local * (torch.get_num_threads() + data.num_workers)
        result = {
            "name": recipe.name,
            "method": recipe.method,
            "data": recipe.data.dataset,
            "seed": recipe.seed,
            "start": self.start.record(self.taken) if self.start else None,
            "epochs": self.trainer.current_epoch,
            "training_images": data.num_train_images,
            "held_out_images": data.num_val_images,
            "classes": data.num_classes,
            "evaluated_on": figures.evaluated_on(recipe),
            "offline_evaluated_on": figures.offline_split(recipe, data)[1],
            **_online(metrics),
            # Of a validation that the processes share: `SSLDataModule.val_dataloader`.
            "online_left_out": data.num_val_images % self.trainer.world_size,
            "offline": offline,
            "information": None if information is None else asdict(information),
            "corrupt_images": list(dict.fromkeys([*corrupt, *data.corrupt_images])),
            # None where this session only had the evaluation left to do.
            "images_per_second": statistics.median(speeds) if speeds else None,
            "training_seconds_of_last_sitting": seconds,
            "shared_machine": statistics.median(loads) > own + 0.7 if loads else None,
            "peak_memory_mib": peak_memory_mib(),
            **figures.provenance(self.folder, recipe.method, data.splits.fingerprint),
        }
        for logger in self.trainer.loggers[1:]:  # the first is of steps alone
            logger.log_metrics(_scalars(result), self.trainer.global_step)
            logger.save()
        picture = io.BytesIO()
        plot_curves(metrics, picture, self.folder.path.name)
        if curves := picture.getvalue():
            files.write(self.folder.path / files.CURVES, curves)
        self.folder.finish(result)
        return result


def _other_schedule(recipe: PretrainRecipe, checkpoint: Path | None) -> list[str]:
    """A line where a run is prolonged whose rate had come down by then."""
    before = find(checkpoint).cfg if checkpoint and recipe.resume_from_checkpoint else None
    planned = before.max_epochs if before else recipe.max_epochs
    if planned == recipe.max_epochs or recipe.scheduler.name != "warmup_cosine":
        return []
    return [
        f"note: from here on the rate follows the cosine of {recipe.max_epochs} epochs, after that "
        f"of {planned}: another run than one of {recipe.max_epochs} epochs from the start"
    ]


def _scalars(result: dict[str, Any]) -> dict[str, float]:
    """What was measured at the end, as `offline/trained/probe_top1` and `information/infomax`."""
    found = settings_of({key: result[key] or {} for key in ("offline", "information")}, ())
    numbers = {key: value for key, value in found.items() if isinstance(value, int | float)}
    return {key.replace(".", "/"): float(value) for key, value in numbers.items()}


def _online(metrics: pd.DataFrame) -> dict[str, Any]:
    """The figures of the last validation, and how many epochs it came after."""
    validated = metrics.reindex(columns=["epoch", *_ONLINE.values()]).dropna(subset="val_acc1")
    last = validated.iloc[-1].to_dict() if len(validated) else {}
    found = {name: last.get(column, math.nan) for name, column in _ONLINE.items()}
    return {
        "online": {name: None if math.isnan(value) else value for name, value in found.items()},
        "online_after_epochs": int(last["epoch"]) + 1 if last else None,
    }


def summary(result: dict[str, Any]) -> str:
    """The closing table of a run, from its result."""
    offline, info = result["offline"], result["information"]
    rows = {f"trained, online, {result['evaluated_on']}": result["online"]}
    if offline:
        before = "at the start" if result.get("start") else "untrained"
        rows[f"trained, offline, {result['offline_evaluated_on']}"] = offline.get("trained")
        rows[f"{before}, offline"] = offline.get("untrained")
        rows["raw pixels, offline"] = offline.get("raw_pixels")
    lines = [
        f"{result['method']} on {result['data']}, {epochs(result['epochs'])}, "
        f"seed {result['seed']}",
        f"  {'top-1 (%)':<34}{'probe':>8}{'kNN':>8}",
    ]
    for label, accuracies in rows.items():
        found = [(accuracies or {}).get(key) for key in ("probe_top1", "knn_top1")]
        cells = [f"{'-' if value is None else f'{value:.1f}':>8}" for value in found]
        lines.append(f"  {label:<34}{''.join(cells)}")
    validated = result.get("online_after_epochs") or result["epochs"]
    if validated < result["epochs"]:
        lines.append(f"  online figures are of epoch {validated}, the last one with a validation")
    if left_out := result.get("online_left_out"):
        lines.append(
            f"  online figures leave out {left_out} of the {result['evaluated_on']}, which the "
            "processes cannot share evenly"
        )
    if info:
        lines += [f"  {line}" for line in HeldOutInformation(**info).lines()]
        lines.append(f"  effective rank of z {info['effective_rank']:.1f}")
    lines += figures.skipped_images(result)
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
