"""`solo-mim linear`: a linear classifier on a trained backbone, or a logistic regression on its
features."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.core.config_store import ConfigStore
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torchvision.transforms import InterpolationMode

from solo_mim.commands import jobs, runs, trained
from solo_mim.commands.configuration import (
    LinearConfig,
    check_run,
    checked,
    completed,
    num_devices,
    refusal,
)
from solo_mim.commands.divergence import Divergence
from solo_mim.commands.progress import EpochLines
from solo_mim.data import SSLDataModule
from solo_mim.errors import ConfigError
from solo_mim.evaluation.collect import FINE_TUNED, LINEAR_LAYER
from solo_mim.evaluation.linear import LinearModel
from solo_mim.evaluation.offline import chosen_probe

KEY = "pretrained_feature_extractor"
# solo-learn's, of data sets whose images are not cropped to 224 pixels.
_CROP_SIZES = {"cifar10": 32, "cifar100": 32, "stl10": 96}
_CROP_SIZE = 224
_CROP_SCALE = {"crop_min_scale": 0.08, "crop_max_scale": 1.0}

# Hydra's options that the next argument belongs to.
_TAKE_A_VALUE = {
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--cfg", "-c", "--package", "-p"),
}

ConfigStore.instance().store(name="trained_with", node={})


def trained_with(cfg: DictConfig | None) -> dict[str, Any]:
    """What of a configuration of pre-training a classifier is trained under, unless told otherwise:
    backbone, data, and size and normalisation of the images."""
    if cfg is None:
        return {}
    plain: Any = OmegaConf.to_container(cfg)
    images = {key: plain["augmentations"][0].get(key) for key in ("crop_size", "mean", "std")}
    backbone = {key: value for key, value in plain["backbone"].items() if key != "weights"}
    return {
        "pretrain_method": plain.get("method"),
        "backbone": backbone,
        "data": {**plain["data"], "augmentations": images},
        "evaluation": {"test": plain.get("evaluation", {}).get("test", False)},
        "seed": plain.get("seed", 5),
    }


def prepared(cfg: DictConfig) -> tuple[DictConfig, trained.Source]:
    """The checked configuration, completed by what the network was trained with, and the network.

    Raises:
        ConfigError: a key, value or path is wrong, or one is needed that nothing says.
    """
    given = cfg.get(KEY, "???") if not OmegaConf.is_missing(cfg, KEY) else "???"
    if given in ("???", "None", None):
        raise ConfigError(f"{KEY}: no network is named, as in solo-mim linear RUN")
    source = trained.find(given)
    try:
        merged = OmegaConf.merge(trained_with(source.cfg), cfg)
    except OmegaConfBaseException as error:
        raise refusal(error, LinearConfig) from error
    assert isinstance(merged, DictConfig)
    for key in ("backbone.name", "data.dataset"):
        if OmegaConf.select(merged, key, throw_on_missing=False) is None:
            raise trained.nameless(source.path)
    cfg = checked(merged, LinearConfig)
    check_run(cfg)
    images = cfg.data.augmentations
    images.crop_size = images.crop_size or _CROP_SIZES.get(cfg.data.dataset, _CROP_SIZE)
    if num_devices(cfg) * cfg.num_nodes > 1:
        raise ConfigError("devices: a classifier is trained on one device; set devices=1")
    if cfg.limit_val_batches == 0:
        raise ConfigError("limit_val_batches=0: nothing would be evaluated; leave it out")
    # Of one process these say nothing; a list names its device.
    cfg.devices = cfg.devices if isinstance(cfg.devices, list | ListConfig) else 1
    cfg.strategy, cfg.sync_batchnorm = None, False
    if cfg.auto_augment:
        raise ConfigError("auto_augment=true: there is no RandAugment here; set it to false")
    if cfg.optimizer.layer_decay and not cfg.finetune:
        raise ConfigError("optimizer.layer_decay is of the backbone's layers: set finetune=true")
    if (cfg.mixup or cfg.cutmix) and cfg.optimizer.batch_size % 2:
        raise ConfigError("optimizer.batch_size: mixup and cutmix need an even number")
    return cfg, source


def images_of(cfg: DictConfig) -> SSLDataModule:
    """Labelled images: a random resized crop and a flip in training, the centre in evaluation.

    Raises:
        DataError: they cannot be read.
        ConfigError: fewer than two classes, or nothing to evaluate on.
    """
    size = cfg.data.augmentations
    pipeline = {
        **{"rrc": _CROP_SCALE, "horizontal_flip": {"prob": 0.5}, "num_crops": 1},
        **{"crop_size": size.crop_size, "mean": size.mean, "std": size.std},
    }
    data = SSLDataModule(
        OmegaConf.create(
            {
                "data": {key: value for key, value in cfg.data.items() if key != "augmentations"},
                "augmentations": [pipeline],
                "dali": cfg.dali,
                "optimizer": {"batch_size": cfg.optimizer.batch_size},
                "seed": cfg.seed,
            }
        )
    )
    data.augmentations = tuple(
        replace(one, interpolation=InterpolationMode.BILINEAR) for one in data.augmentations
    )
    train = data.splits.train
    data.splits = replace(data.splits, train=train.subset(train.evaluable))
    if data.num_classes < 2 or data.num_val_images == 0:
        raise ConfigError(
            f"data.dataset={cfg.data.dataset}: a classifier needs two classes and labelled images "
            "to evaluate on; name them in data.val_path, or set data.validation_split"
        )
    return data


def linear(cfg: DictConfig) -> dict[str, Any]:
    """Trains and evaluates one classifier; the result, also of one that is already finished.

    Raises:
        ConfigError: a key, value or path is wrong; the message names it.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the message says what is kept and how to go on.
    """
    cfg, source = prepared(cfg)
    weights = trained.weights(source.path)
    network = OmegaConf.create(
        {
            "backbone": cfg.backbone,
            "augmentations": [{"crop_size": cfg.data.augmentations.crop_size}],
            "data": {"num_small_crops": 0},
        }
    )
    backbone = trained.with_weights(network, weights, source.path, cfg.pretrain_method)
    cfg.backbone = network.backbone
    if cfg.optimizer.layer_decay and not hasattr(backbone, "group_matcher"):
        raise ConfigError(f"optimizer.layer_decay: the layers of {cfg.backbone.name} are not known")
    data = images_of(cfg)
    images = data.splits.fingerprint
    folder = trained.folder_for("linear", cfg.name, cfg, source, weights.digest, images)
    origin = trained.origin(source, weights)
    if cfg.fast:
        return jobs.done_once(
            folder, cfg, summary, lambda lock: _probed(cfg, backbone, data, folder, lock, origin)
        )
    return jobs.done_once(
        folder,
        cfg,
        summary,
        lambda lock: _trained(cfg, backbone, data, folder, lock, origin),
        lambda: runs.standing(folder, cfg),
    )


def _probed(
    cfg: DictConfig,
    backbone: nn.Module,
    data: SSLDataModule,
    folder: Path,
    lock: runs.FolderLock,
    origin: dict[str, Any],
) -> dict[str, Any]:
    split, where = jobs.offline_split(cfg)
    device = jobs.device(cfg)
    lock.acquire()
    runs.prepare(folder, cfg, data.splits.fingerprint)
    print(_announcement(cfg, data, folder, origin))
    started = time.perf_counter()
    train, test = (
        jobs.plain_features(cfg, data, part, backbone.to(device), device)
        for part in ("train", split)
    )
    probe = asdict(chosen_probe(train, test, data.num_classes))
    figures = {key: probe.pop(key) for key in ("top1", "top5", "nll")}
    measured = jobs.measured("logistic regression", where, len(test[1]), figures)
    chosen_on = (
        f"top-1 of {probe.pop('held_out'):,} training images held out by class; then refitted on "
        f"all {len(train[1]):,}"
    )
    return _recorded(
        cfg, folder, origin, data, measured, started, {"probe": {**probe, "chosen_on": chosen_on}}
    )


def _trained(
    cfg: DictConfig,
    backbone: nn.Module,
    data: SSLDataModule,
    folder: Path,
    lock: runs.FolderLock,
    origin: dict[str, Any],
) -> dict[str, Any]:
    data.train_dataloader()  # refuses an impossible batch size before anything is written
    split, where = jobs.offline_split(cfg)
    resolved = completed(cfg, data.num_classes, 1, 0)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    model = LinearModel(backbone, data.num_classes, resolved)
    if not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    lines = EpochLines()
    settings = cfg.checkpoint
    epochs = runs.EpochEnd(folder, settings.enabled, settings.frequency, settings.keep_prev)
    watch = Divergence("the classifier", cfg.optimizer.lr)
    callbacks: list[Callback] = [watch, lines, epochs]
    trainer = jobs.trainer_of(resolved, folder, callbacks)
    checkpoint = runs.newest_checkpoint(folder)
    departure = runs.departure(folder, cfg, data.splits.fingerprint)
    lock.acquire()
    runs.prepare(folder, cfg, data.splits.fingerprint)
    print(_announcement(cfg, data, folder, origin, departure, checkpoint))
    started = time.perf_counter()
    jobs.fit(trainer, model, data, checkpoint)
    (found,) = trainer.validate(model, data.val_dataloader(split), verbose=False)
    figures = {
        **{"top1": found["val_acc1"], "top5": found.get("val_acc5"), "nll": found["val_loss"]}
    }
    if not math.isfinite(found["val_loss"]):
        raise ConfigError(f"optimizer.lr={cfg.optimizer.lr:g}: the classifier diverged; lower it")
    classifier = FINE_TUNED if cfg.finetune else LINEAR_LAYER
    measured = jobs.measured(classifier, where, model.images, figures)
    speed = statistics.median(lines.images_per_second) if lines.images_per_second else None
    return _recorded(
        cfg,
        folder,
        origin,
        data,
        measured,
        started,
        {"epochs": trainer.current_epoch, "images_per_second": speed},
    )


def _recorded(
    cfg: DictConfig,
    folder: Path,
    origin: dict[str, Any],
    data: SSLDataModule,
    measured: dict[str, Any],
    started: float,
    more: dict[str, Any],
) -> dict[str, Any]:
    result = {
        "name": cfg.name,
        "data": cfg.data.dataset,
        "backbone": cfg.backbone.name,
        "seed": cfg.seed,
        "measured": [measured],
        **more,
        "seconds_of_last_sitting": time.perf_counter() - started,
        "corrupt_images": data.corrupt_images,
        "peak_memory_mib": jobs.peak_memory_mib(),
        **jobs.provenance(cfg, folder, origin, data.splits.fingerprint),
    }
    runs.write_json(folder / runs.RESULT, result)  # last: it says that all is there
    print("\n" + summary(result))
    return result


def _announcement(
    cfg: DictConfig,
    data: SSLDataModule,
    folder: Path,
    origin: dict[str, Any],
    departure: str | None = None,
    checkpoint: Path | None = None,
) -> str:
    lines = [
        f"{cfg.backbone.name} of {origin['checkpoint']}",
        f"{cfg.data.dataset}: {data.num_train_images:,} labelled training and "
        f"{data.num_val_images:,} held-out images of {data.crop_size} px, {data.num_classes} "
        "classes",
        f"results: {folder}",
        *jobs.goes_on(folder, departure, checkpoint),
    ]
    return "\n".join(lines)


def summary(result: dict[str, Any]) -> str:
    """The closing lines, from the result."""
    lines = [f"{result['backbone']} on {result['data']}, seed {result['seed']}"]
    lines += [jobs.measured_line(row) for row in result["measured"]]
    if probe := result.get("probe"):
        lines.append(f"  C = {probe['C']:g}, chosen by {probe['chosen_on']}")
    lines += jobs.skipped_images(result)
    lines.append(f"  results: {result['folder']}")
    return "\n".join(lines)


def _job(cfg: DictConfig) -> float:
    """Hydra's of one run; what a sweep would go by."""
    top1: float = linear(cfg)["measured"][0]["top1"]
    return top1


def hydra_arguments(arguments: list[str]) -> list[str]:
    """Those of the command as Hydra takes them; what the network was trained with is put where
    `configs/linear.yaml` finds it.

    Raises:
        ConfigError: the network that is named is not there, or its data cannot be told.
    """
    found: list[str] = []
    options: list[str] = []
    for argument, before in zip(arguments, ["", *arguments], strict=False):
        is_option = argument.startswith("-") or before in _TAKE_A_VALUE
        (options if is_option else found).append(argument)
    if found and not jobs.is_override(found[0]):
        found[0] = f"{KEY}={found[0]}"
    named = [a.partition("=")[2].strip("'") for a in found if a.startswith(f"{KEY}=")]
    groups, others = trained.split(found)
    base: dict[str, Any] = {}
    if named:
        source = trained.find(named[-1])
        # Where Hydra leaves the list of a sweep.
        others.append(f"hydra.sweep.dir='{source.run or trained.ELSEWHERE}/linear'")
        if source.cfg is not None or groups:
            chosen = [f"{group}={option}" for group, option in groups.items()]
            chosen += [argument for argument in others if argument.startswith("backbone.")]
            base = trained_with(trained.configuration(source, chosen))
    ConfigStore.instance().store(name="trained_with", node=base)
    return [*others, *options]


def run(arguments: list[str]) -> int:
    """The command: the network, and Hydra's arguments."""
    return jobs.run_by_hydra("linear", _job, hydra_arguments(arguments), LinearConfig)
