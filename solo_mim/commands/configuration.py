"""The configuration: solo-learn main's schema plus ours, checked key by key, and a run's
identity."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass as _dataclass
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from lightning.pytorch import Trainer
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

import solo_mim
from solo_mim.errors import ConfigError, nearest

PACKAGE = Path(solo_mim.__file__).parent
# A wheel carries the configs inside the package, a checkout beside it.
CONFIG_FOLDER = next(
    (folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()),
    PACKAGE / "configs",
)


@_dataclass
class BackboneConfig:
    name: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    stem: str = "auto"


@_dataclass
class DataConfig:
    dataset: str = MISSING
    train_path: str | None = None
    val_path: str | None = None
    format: str = "image_folder"
    num_workers: int | None = None
    no_labels: bool = False
    fraction: float = -1.0
    validation_split: Any = None
    download: bool = True
    # Filled in from the data set and the augmentations.
    num_classes: int | None = None
    num_large_crops: int | None = None
    num_small_crops: int | None = None


@_dataclass
class OptimizerConfig:
    name: str = MISSING
    batch_size: int = MISSING
    lr: float = MISSING
    classifier_lr: float = MISSING
    weight_decay: float = 0.0
    exclude_bias_n_norm_wd: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


@_dataclass
class SchedulerConfig:
    name: str = "warmup_cosine"
    min_lr: float = 0.0
    warmup_start_lr: float = 3e-5
    warmup_epochs: float = 10
    lr_decay_steps: list[int] | None = None
    interval: str = "step"


@_dataclass
class MomentumConfig:
    base_tau: float = 0.99
    final_tau: float = 1.0
    classifier: bool = False


@_dataclass
class KNNConfig:
    enabled: bool = False
    k: int = 20
    distance_func: str = "euclidean"


@_dataclass
class CheckpointConfig:
    enabled: bool = True
    dir: str = "trained_models"
    frequency: int = 1
    keep_prev: bool = False


@_dataclass
class WandbConfig:
    enabled: bool = False
    entity: str | None = None
    project: str = "solo-learn"
    offline: bool = False


@_dataclass
class EvaluationConfig:
    offline: bool = True
    test: bool = False
    information_every_n_epochs: int = 5


@_dataclass
class _Schema:
    name: str = MISSING
    method: str = MISSING
    method_kwargs: dict[str, Any] = field(default_factory=dict)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augmentations: list[Any] = MISSING
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    momentum: MomentumConfig = field(default_factory=MomentumConfig)
    knn_eval: KNNConfig = field(default_factory=KNNConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    performance: dict[str, Any] = field(default_factory=lambda: {"disable_channel_last": False})
    # Accepted because main's files have them; runs resume by identity here.
    auto_resume: dict[str, Any] = field(default_factory=dict)
    auto_umap: dict[str, Any] = field(default_factory=dict)
    dali: dict[str, Any] = field(default_factory=dict)
    debug_augmentations: bool = False
    resume_from_checkpoint: str | None = None
    output_dir: str = "runs"
    progress_bar: bool = True
    seed: int = 5
    max_epochs: int = MISSING
    devices: Any = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    strategy: str | None = None
    precision: Any = "32-true"
    sync_batchnorm: bool = False
    accumulate_grad_batches: int = 1


_OURS = {f.name for f in fields(_Schema)}
# These the command itself decides on.
_RESERVED = {
    *("self", "logger", "callbacks", "default_root_dir"),
    *("enable_checkpointing", "enable_progress_bar"),
}
TRAINER_KEYS = set(inspect.signature(Trainer.__init__).parameters) - _RESERVED

# main takes every other argument of lightning's Trainer at the top level of its files: so does
# this.
PretrainConfig: Any = make_dataclass(
    "PretrainConfig",
    [(key, Any, field(default=None)) for key in sorted(TRAINER_KEYS - _OURS)],
    bases=(_Schema,),
)

ConfigStore.instance().store(name="schema", node=PretrainConfig)


def _known_keys(schema: DictConfig, dotted: str) -> list[str]:
    node = OmegaConf.select(schema, dotted) if dotted else schema
    return list(node) if isinstance(node, DictConfig) else []


def unknown_key_message(full_key: str) -> str:
    """What to say of a key that the schema lacks: where it stands and what comes nearest."""
    *parents, key = full_key.split(".")
    schema = OmegaConf.structured(PretrainConfig)
    while parents and OmegaConf.select(schema, ".".join(parents), throw_on_missing=False) is None:
        *parents, key = parents  # a whole section is unknown: its name is the mistake
    known = _known_keys(schema, ".".join(parents))
    where = f"{'.'.join([*parents, key])}"
    if parents and not known:  # a free section such as method_kwargs: its recipe says what is in it
        return f"this recipe has no key '{where}'; write +{where}=... to add one"
    return f"unknown key '{where}'{nearest(key, known)}"


def checked(cfg: DictConfig) -> DictConfig:
    """The configuration merged over the schema: types checked, defaults filled, unknown keys
    refused.

    Raises:
        ConfigError: naming the key; for an unknown one the nearest that is known.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PretrainConfig), cfg)
        OmegaConf.resolve(merged)
    except ConfigKeyError as error:
        raise ConfigError(unknown_key_message(str(error.full_key or error.key))) from error
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise ConfigError(f"{error.full_key or 'configuration'}: {message}") from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(
            f"required: {', '.join(missing)}; give a value on the command line or in the file"
        )
    plain = OmegaConf.create(OmegaConf.to_container(merged))
    assert isinstance(plain, DictConfig)
    _check_choices(plain)
    plain.optimizer.kwargs = _optimizer_kwargs(plain.optimizer)
    plain.wandb.entity = None if plain.wandb.entity == "None" else plain.wandb.entity
    if plain.precision in (16, "16"):
        plain.precision = "16-mixed"  # main's linear files still have lightning 1's spelling
    if plain.optimizer.batch_size < 2:
        raise ConfigError("optimizer.batch_size must be at least 2: statistics need two images")
    return plain


_CHOICES = {
    "optimizer.name": ("sgd", "lars", "adam", "adamw"),
    "scheduler.name": ("warmup_cosine", "step", "none"),
    "scheduler.interval": ("step", "epoch"),
    "knn_eval.distance_func": ("euclidean", "cosine"),
}


def _check_choices(cfg: DictConfig) -> None:
    for key, choices in _CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value not in choices:
            raise ConfigError(f"{key}: unknown value '{value}'{nearest(str(value), choices)}")
    if cfg.scheduler.name == "step" and not cfg.scheduler.lr_decay_steps:
        raise ConfigError("scheduler.name=step needs scheduler.lr_decay_steps, a list of epochs")


def _arguments(optimizer: type) -> set[str]:
    parameters = set(inspect.signature(optimizer).parameters)
    return parameters - {"params", "lr", "weight_decay"}


_OPTIMIZER_KWARGS = {
    "sgd": _arguments(torch.optim.SGD),
    "adam": _arguments(torch.optim.Adam),
    "adamw": _arguments(torch.optim.AdamW),
    "lars": {"momentum", "eta", "clip_lr", "exclude_bias_n_norm", "eps"},
}


def _optimizer_kwargs(optimizer: DictConfig) -> dict[str, Any]:
    """Those of `optimizer.kwargs` that the chosen optimiser takes.

    What belongs to another one is a recipe's (LARS) from before `optimizer.name` was overridden,
    and is left out; what belongs to none is an error.
    """
    known = _OPTIMIZER_KWARGS[optimizer.name]
    for key in optimizer.kwargs:
        if not any(key in arguments for arguments in _OPTIMIZER_KWARGS.values()):
            raise ConfigError(f"optimizer.kwargs: unknown key '{key}'{nearest(str(key), known)}")
    return {str(key): value for key, value in optimizer.kwargs.items() if key in known}


def num_devices(cfg: DictConfig) -> int:
    """Processes on one node that `devices` asks for; "auto" and -1 count what is there."""
    devices = cfg.devices
    if isinstance(devices, str) and devices != "auto":
        try:
            devices = [int(d) for d in devices.split(",")] if "," in devices else int(devices)
        except ValueError:
            raise ConfigError(
                f"devices={devices}: give a number, a list of indexes, or auto"
            ) from None
    if isinstance(devices, int) and devices > 0:
        return devices
    if devices in ("auto", -1):
        return max(1, torch.cuda.device_count()) if cfg.accelerator != "cpu" else 1
    return len(devices)


def completed(
    cfg: DictConfig, num_classes: int, num_large_crops: int, num_small_crops: int
) -> DictConfig:
    """What main's parser adds: class and crop counts, rates scaled to the batch, optimiser
    defaults.

    Rates follow main's linear rule, `lr * batch_size * devices * nodes / 256`.
    """
    cfg = cfg.copy()
    cfg.data.num_classes = num_classes
    cfg.data.num_large_crops, cfg.data.num_small_crops = num_large_crops, num_small_crops
    scale = cfg.optimizer.batch_size * num_devices(cfg) * cfg.num_nodes / 256
    cfg.optimizer.lr *= scale
    cfg.optimizer.classifier_lr *= scale
    defaults: dict[str, dict[str, Any]] = {
        "sgd": {"momentum": 0.9},
        "lars": {"momentum": 0.9, "eta": 1e-3, "clip_lr": False, "exclude_bias_n_norm": False},
        "adamw": {"betas": [0.9, 0.999]},
    }
    for key, value in defaults.get(cfg.optimizer.name, {}).items():
        cfg.optimizer.kwargs.setdefault(key, value)
    return cfg


# Where results go and how they are shown does not change them.
_NOT_IDENTITY = (
    "output_dir",
    "progress_bar",
    "wandb",
    "checkpoint",
    "auto_resume",
    "data.num_workers",
)


def identity(cfg: DictConfig, host: str) -> str:
    """Eight hex digits of the checked configuration, the code version and the host generation."""
    container = OmegaConf.to_container(cfg)
    assert isinstance(container, dict)
    for dotted in _NOT_IDENTITY:
        *parents, key = dotted.split(".")
        node: Any = container
        for parent in parents:
            node = node[parent]
        node.pop(key, None)
    content = json.dumps([container, solo_mim.__version__, host], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


__all__ = [
    "CONFIG_FOLDER",
    "TRAINER_KEYS",
    "PretrainConfig",
    "checked",
    "completed",
    "identity",
    "num_devices",
    "unknown_key_message",
]
