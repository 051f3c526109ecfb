"""A linear classifier on a trained backbone, or a logistic regression on its features."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torchvision.transforms import InterpolationMode

from solo_mim import processes, trained
from solo_mim.data import SSLDataModule
from solo_mim.errors import ConfigError, RunError
from solo_mim.evaluation.linear import LinearModel
from solo_mim.evaluation.offline import chosen_probe
from solo_mim.protocols import figures
from solo_mim.recipe.checks import check_run, checked
from solo_mim.recipe.compose import refusal
from solo_mim.recipe.schema import LinearRecipe, host_config
from solo_mim.runs.collect import FINE_TUNED, LINEAR_LAYER
from solo_mim.runs.folder import Result, RunFolder
from solo_mim.trainer import fit, peak_memory_mib, trainer_of

KEY = "pretrained_feature_extractor"
# solo-learn's, of data sets whose images are not cropped to 224 pixels.
_CROP_SIZES = {"cifar10": 32, "cifar100": 32, "stl10": 96}
_CROP_SCALE = {"crop_min_scale": 0.08, "crop_max_scale": 1.0}


def trained_with(plain: dict[str, Any] | None) -> dict[str, Any]:
    """What of a configuration of pre-training a classifier is trained under, unless told otherwise:
    backbone, data, and size and normalisation of the images."""
    if plain is None:
        return {}
    images = {key: plain["augmentations"][0].get(key) for key in ("crop_size", "mean", "std")}
    backbone = {key: value for key, value in plain["backbone"].items() if key != "weights"}
    return {
        "pretrain_method": plain.get("method"),
        "backbone": backbone,
        "data": {**plain["data"], "augmentations": images},
        "evaluation": {"test": plain.get("evaluation", {}).get("test", False)},
        "seed": plain.get("seed", 5),
    }


def prepared(cfg: DictConfig) -> tuple[LinearRecipe, trained.Source]:
    """The recipe, completed by what the network was trained with, and the network.

    Raises:
        ConfigError: a key, value or path is wrong, or one is needed that nothing says.
    """
    given = cfg.get(KEY)
    if given in ("None", None):
        raise ConfigError(f"{KEY}: no network is named, as in solo-mim linear RUN")
    source = trained.find(given)
    own: Any = None if source.cfg is None else OmegaConf.to_container(source.cfg)
    try:
        merged = OmegaConf.merge(trained_with(own), cfg)
    except OmegaConfBaseException as error:
        raise refusal(error, LinearRecipe) from error
    assert isinstance(merged, DictConfig)
    for key in ("backbone.name", "data.dataset"):
        if OmegaConf.select(merged, key, throw_on_missing=False) is None:
            raise trained.nameless(source.path)
    recipe = checked(merged, LinearRecipe)
    check_run(recipe)
    _refuse_impossible(recipe)
    size = recipe.data.augmentations.crop_size or _CROP_SIZES.get(recipe.data.dataset, 224)
    images = replace(recipe.data.augmentations, crop_size=size)
    one: dict[str, Any] = {}
    if recipe.processes == 1:
        # Then strategy and synchronisation say nothing; a list names its device.
        devices = recipe.devices if isinstance(recipe.devices, list) else 1
        one = {"devices": devices, "strategy": None, "sync_batchnorm": False}
    return replace(recipe, data=replace(recipe.data, augmentations=images), **one), source


def _refuse_impossible(recipe: LinearRecipe) -> None:
    if recipe.processes > 1 and recipe.fast:
        raise ConfigError("devices: a logistic regression is fitted on one; set devices=1")
    if recipe.plain["limit_val_batches"] == 0:
        raise ConfigError("limit_val_batches=0: nothing would be evaluated; leave it out")
    if recipe.auto_augment:
        raise ConfigError("auto_augment=true: there is no RandAugment here; set it to false")
    if recipe.optimizer.layer_decay and not recipe.finetune:
        raise ConfigError("optimizer.layer_decay is of the backbone's layers: set finetune=true")
    if (recipe.mixup or recipe.cutmix) and recipe.optimizer.batch_size % 2:
        raise ConfigError("optimizer.batch_size: mixup and cutmix need an even number")


def images_of(recipe: LinearRecipe) -> SSLDataModule:
    """Labelled images: a random resized crop and a flip in training, the centre in evaluation.

    Raises:
        DataError: they cannot be read.
        ConfigError: fewer than two classes, or nothing to evaluate on.
    """
    plain = recipe.plain
    pipeline = {
        "rrc": _CROP_SCALE,
        "horizontal_flip": {"prob": 0.5},
        "num_crops": 1,
        **plain["data"].pop("augmentations"),
    }
    data = SSLDataModule({**plain, "augmentations": [pipeline]})
    data.augmentations = tuple(
        replace(one, interpolation=InterpolationMode.BILINEAR) for one in data.augmentations
    )
    train = data.splits.train
    data.splits = replace(data.splits, train=train.subset(train.evaluable))
    if data.num_classes < 2 or data.num_val_images == 0:
        raise ConfigError(
            f"data.dataset={recipe.data.dataset}: a classifier needs two classes and labelled "
            "images to evaluate on; name them in data.val_path, or set data.validation_split"
        )
    figures.offline_split(recipe, data)  # refuses what is not there
    return data


def linear(cfg: DictConfig) -> Result:
    """Trains and evaluates one classifier; the result, also of one that is already finished.

    Raises:
        ConfigError: a key, value or path is wrong; the message names it.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the message says what is kept and how to go on.
    """
    recipe, source = prepared(cfg)
    weights = trained.weights(source.path)
    size = recipe.data.augmentations.crop_size
    assert size is not None
    backbone, completed = trained.with_weights(
        recipe.backbone, [size], weights, source.path, recipe.pretrain_method
    )
    recipe = replace(recipe, backbone=completed)
    if recipe.optimizer.layer_decay and not hasattr(backbone, "group_matcher"):
        name = recipe.backbone.name
        raise ConfigError(f"optimizer.layer_decay: the layers of {name} are not known")
    data = images_of(recipe)
    images, plain = data.splits.fingerprint, recipe.plain
    path = trained.folder_for("linear", recipe.name, plain, source, weights.digest, images)
    folder = RunFolder(path, plain, images, resumes=not recipe.fast)
    work = _Classifier(recipe, backbone, data, folder, trained.origin(source, weights))
    return folder.once(work.probed if recipe.fast else work.trained, summary)


@dataclass
class _Classifier:
    """The work of one: a logistic regression that is `probed`, or a layer that is `trained`."""

    recipe: LinearRecipe
    backbone: nn.Module
    data: SSLDataModule
    folder: RunFolder
    origin: dict[str, Any]
    started: float = 0.0

    def probed(self) -> Result:
        """Chooses the penalty on training images and evaluates once."""
        device = figures.device(self.recipe)
        self._begin()
        backbone = self.backbone.to(device)
        train, test = figures.train_and_test(self.recipe, self.data, backbone, device)
        probe = asdict(chosen_probe(train, test, self.data.num_classes))
        found = {key: probe.pop(key) for key in ("top1", "top5", "nll")}
        where = figures.offline_split(self.recipe, self.data)[1]
        measured = figures.measured("logistic regression", where, len(test[1]), found)
        probe["chosen_on"] = (
            f"top-1 of {probe.pop('held_out'):,} training images held out by class; then refitted "
            f"on all {len(train[1]):,}"
        )
        return self._recorded(measured, {"probe": probe})

    def trained(self) -> Result:
        """Trains by gradient steps, the network too where it is fine-tuned."""
        recipe, data = self.recipe, self.data
        data.refuse_impossible_batch(recipe.processes)  # before anything is written
        data.train_dataloader()
        cfg = host_config(recipe, data.num_classes, 1, 0)
        pl.seed_everything(recipe.seed, workers=True, verbose=False)
        model = LinearModel(self.backbone, data.num_classes, cfg)
        if not recipe.performance.disable_channel_last:
            model = model.to(memory_format=torch.channels_last)
        trainer, lines, _ = trainer_of(recipe, cfg, self.folder, "the classifier", [])
        checkpoint = self.folder.newest_checkpoint()
        if trainer.is_global_zero:
            self._begin(checkpoint)
        fit(trainer, model, data, checkpoint)
        split, where = figures.offline_split(recipe, data)
        loader = data.val_dataloader(split, even=False)
        (found,) = trainer.validate(model, loader, verbose=False)
        data.corrupt_images = processes.parted(data.corrupt_images)
        if not math.isfinite(found["val_loss"]):
            rate = recipe.optimizer.lr
            raise RunError(f"optimizer.lr={rate:g}: the classifier diverged; lower it")
        keys = {"top1": "val_acc1", "top5": "val_acc5", "nll": "val_loss"}
        scores = {name: found.get(key) for name, key in keys.items()}
        classifier = FINE_TUNED if recipe.finetune else LINEAR_LAYER
        measured = figures.measured(classifier, where, model.images, scores)
        speeds = lines.images_per_second
        speed = statistics.median(speeds) if speeds else None
        more = {"epochs": trainer.current_epoch, "images_per_second": speed}
        return self._recorded(measured, more)

    def _begin(self, checkpoint: Path | None = None) -> None:
        data = self.data
        differs = self.folder.begin(checkpoint)
        lines = [
            f"{self.recipe.backbone.name} of {self.origin['checkpoint']}",
            f"{self.recipe.data.dataset}: {data.num_train_images:,} labelled training and "
            f"{data.num_val_images:,} held-out images of {data.crop_size} px, {data.num_classes} "
            "classes",
            f"results: {self.folder}",
        ]
        print("\n".join([*lines, *differs]))
        self.started = time.perf_counter()

    def _recorded(self, measured: dict[str, Any], more: dict[str, Any]) -> Result:
        result = {
            "name": self.recipe.name,
            "data": self.recipe.data.dataset,
            "backbone": self.recipe.backbone.name,
            "seed": self.recipe.seed,
            "measured": [measured],
            **more,
            "seconds_of_last_sitting": time.perf_counter() - self.started,
            "corrupt_images": self.data.corrupt_images,
            "peak_memory_mib": peak_memory_mib(),
            "trained": self.origin,
            **figures.provenance(self.folder, None, self.data.splits.fingerprint),
        }
        self.folder.finish(result)
        print("\n" + summary(result))
        return result


def summary(result: Result) -> str:
    """The closing lines, from the result."""
    lines = [f"{result['backbone']} on {result['data']}, seed {result['seed']}"]
    lines += [figures.measured_line(row) for row in result["measured"]]
    if probe := result.get("probe"):
        lines.append(f"  C = {probe['C']:g}, chosen by {probe['chosen_on']}")
    lines += figures.skipped_images(result)
    lines.append(f"  results: {result['folder']}")
    return "\n".join(lines)
