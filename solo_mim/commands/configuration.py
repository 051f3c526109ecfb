"""The configuration: solo-learn main's schema plus ours, checked key by key, and a run's
identity."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import math
import re
from dataclasses import dataclass as _dataclass
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

import solo_mim
from solo_mim.errors import ConfigError, nearest
from solo_mim.evaluation.collect import DATA_PATHS, NOT_IDENTITY, settings_of
from solo_mim.host.optimisation import OPTIMIZERS

PACKAGE = Path(solo_mim.__file__).parent
# A wheel carries the configs inside the package, a checkout beside it.
CONFIG_FOLDER = next(
    (folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()),
    PACKAGE / "configs",
)

# One of main's files is called all4one.yml, and Hydra reads nothing but .yaml since its 1.2.
_with_suffix = ConfigSource._normalize_file_name
ConfigSource._normalize_file_name = staticmethod(  # type: ignore[method-assign]
    lambda filename: filename if filename.endswith(".yml") else _with_suffix(filename)
)


@_dataclass
class BackboneConfig:
    name: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    stem: str = "auto"


@_dataclass
class PretrainBackboneConfig(BackboneConfig):
    weights: str | None = None


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
    on_corrupt: str = "fail"
    num_classes: int | None = None
    num_large_crops: int | None = None
    num_small_crops: int | None = None


@_dataclass
class ImagesConfig:
    """Main's, of classification; None takes what belongs to the data set."""

    crop_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


@_dataclass
class LinearDataConfig(DataConfig):
    augmentations: ImagesConfig = field(default_factory=ImagesConfig)


@_dataclass
class OptimizerConfig:
    name: str = MISSING
    batch_size: int = MISSING
    lr: float = MISSING
    weight_decay: float = 0.0
    exclude_bias_n_norm_wd: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


@_dataclass
class PretrainOptimizerConfig(OptimizerConfig):
    classifier_lr: float = MISSING


@_dataclass
class LinearOptimizerConfig(OptimizerConfig):
    layer_decay: float = 0.0


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
class TensorBoardConfig:
    enabled: bool = False


@_dataclass
class PerformanceConfig:
    disable_channel_last: bool = False


# The next three are accepted because main's files have them; runs resume by identity here.


@_dataclass
class AutoResumeConfig:
    enabled: bool = False
    max_hours: float | None = None


@_dataclass
class AutoUMAPConfig:
    enabled: bool = False
    dir: str | None = None
    frequency: int | None = None


@_dataclass
class DALIConfig:
    device: str | None = None
    encode_indexes_into_labels: bool = False


@_dataclass
class EvaluationConfig:
    offline: bool = True
    test: bool = False
    information_every_n_epochs: int = 5


@_dataclass
class LinearEvaluationConfig:
    test: bool = False


@_dataclass
class _Method:
    name: str = MISSING
    method: str = MISSING
    method_kwargs: dict[str, Any] = field(default_factory=dict)
    augmentations: list[Any] = MISSING
    momentum: MomentumConfig = field(default_factory=MomentumConfig)
    knn_eval: KNNConfig = field(default_factory=KNNConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    auto_umap: AutoUMAPConfig = field(default_factory=AutoUMAPConfig)
    debug_augmentations: bool = False
    resume_from_checkpoint: str | None = None
    output_dir: str = "runs"


@_dataclass
class _Classifier:
    name: str = MISSING
    pretrained_feature_extractor: str = MISSING
    pretrain_method: str | None = None
    fast: bool = False
    finetune: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    auto_augment: bool = False
    evaluation: LinearEvaluationConfig = field(default_factory=LinearEvaluationConfig)
    output_dir: str | None = None


@_dataclass
class _Training:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    tensorboard: TensorBoardConfig = field(default_factory=TensorBoardConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    auto_resume: AutoResumeConfig = field(default_factory=AutoResumeConfig)
    dali: DALIConfig = field(default_factory=DALIConfig)
    progress_bar: bool = True
    other_code: str = "refuse"
    seed: int = 5
    max_epochs: int = MISSING
    devices: Any = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    strategy: str | None = None
    precision: Any = "32-true"
    sync_batchnorm: bool = False
    accumulate_grad_batches: int = 1


@_dataclass
class _Pretrain(_Training, _Method):
    backbone: PretrainBackboneConfig = field(default_factory=PretrainBackboneConfig)
    optimizer: PretrainOptimizerConfig = field(default_factory=PretrainOptimizerConfig)


@_dataclass
class _Linear(_Training, _Classifier):
    data: LinearDataConfig = field(default_factory=LinearDataConfig)
    optimizer: LinearOptimizerConfig = field(default_factory=LinearOptimizerConfig)


# These the command itself decides on.
_RESERVED = {
    *("self", "logger", "callbacks", "default_root_dir"),
    *("enable_checkpointing", "enable_progress_bar"),
}
TRAINER_KEYS = set(inspect.signature(Trainer.__init__).parameters) - _RESERVED


def _with_trainer_keys(name: str, schema: type) -> Any:
    """main takes every other argument of lightning's Trainer at the top level of its files: so
    does this."""
    known = {f.name for f in fields(schema)}
    others = [(key, Any, field(default=None)) for key in sorted(TRAINER_KEYS - known)]
    return make_dataclass(name, others, bases=(schema,))


PretrainConfig = _with_trainer_keys("PretrainConfig", _Pretrain)
LinearConfig = _with_trainer_keys("LinearConfig", _Linear)

ConfigStore.instance().store(name="schema", node=PretrainConfig)
ConfigStore.instance().store(name="linear_schema", node=LinearConfig)


def _position(key: str) -> list[str]:
    """A dotted key in its parts: `augmentations[0].crop_size` has three."""
    return re.sub(r"\[(\d+)\]", r".\1", key).split(".")


def _holds(node: Any, position: list[str]) -> bool:
    for part in position:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            return False
    return True


def _on_command_line(key: str) -> bool:
    """Whether an override sets a dotted key, a part of it, or the section around it."""
    if not HydraConfig.initialized():
        return False
    hydra, position = HydraConfig.get(), _position(key)
    for override in hydra.overrides.task:
        name = re.split("[@=]", override.lstrip("+~"))[0]
        is_group = name in hydra.runtime.choices
        if not is_group and all(a == b for a, b in zip(_position(name), position, strict=False)):
            return True
    return False


def place(key: str) -> str:
    """What Hydra took a dotted key from: "the command line", or the path of the file.

    Empty for a key that nothing sets, and where the configuration is not Hydra's.
    """
    if not HydraConfig.initialized():
        return ""
    if _on_command_line(key):
        return "the command line"
    hydra, position = HydraConfig.get(), _position(key)
    overrides = list(hydra.overrides.task)
    folders = [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file"]
    loader = GlobalHydra.instance().config_loader()
    composed = loader.compute_defaults_list(hydra.job.config_name, overrides, RunMode.RUN).defaults
    for default in reversed(composed):  # the last one wins
        package = [part for part in (default.package or "").split(".") if part]
        file = _file_of(default.config_path or "", folders)
        if file is None or position[: len(package)] != package:
            continue
        content = OmegaConf.to_container(OmegaConf.load(file))
        if _holds(content, position[len(package) :]):
            return str(file)
    return ""


def composed_from(message: str, arguments: list[str]) -> str:
    """As `place`, for an error of Hydra's own, from before there is a configuration to look into.

    Args:
        message: Hydra's: "In 'method/vicreg': ..." of a file, something else of an override.
        arguments: of the command.
    """
    config = re.match(r"In '(.+?)': ", message)
    if config is None:
        return "the command line"
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cfg", "-c")  # else "-c" is short for either of the next
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-path", "-cp")
    given, _ = parser.parse_known_args(arguments)
    folders = [given.config_path or CONFIG_FOLDER, given.config_dir]
    file = _file_of(config[1], [Path(folder) for folder in folders if folder])
    return str(file or config[1])


def _file_of(config: str, folders: list[Path]) -> Path | None:
    """The file behind one of Hydra's config names, in the first folder that has it."""
    name = ConfigSource._normalize_file_name(config)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def located(error: ConfigError, source: str | None = None) -> ConfigError:
    """The same error, its cause included, with the place of its key: the command line or a file.

    Args:
        error: where it is about a key, of the form "unknown key 'a.b' ..." or "a.b ...".
        source: the place, where it is known already; else it is looked up.
    """
    named = re.match(r"(?:unknown key ')?([a-z_]+[\w.\[\]]*)", str(error))
    source = place(named[1]) if source is None and named else source
    suffix = f" (set {'on' if source == 'the command line' else 'in'} {source})"
    if source and suffix not in str(error):
        error.args = (f"{error}{suffix}",)
    return error


def refusal(error: OmegaConfBaseException, of: Any = PretrainConfig) -> ConfigError:
    """OmegaConf's error in our words: the key, and the nearest of those that its section has.

    Args:
        error: with the key in it.
        of: the schema.
    """
    key = str(error.full_key or error.key or "configuration")
    if not isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return ConfigError(f"{key}: {str(error).splitlines()[0]}")
    *parents, name = _position(key)
    schema: Any = OmegaConf.structured(of)
    while parents and OmegaConf.select(schema, ".".join(parents), throw_on_missing=False) is None:
        *parents, name = parents  # a whole section is unknown: its name is the mistake
    where = ".".join([*parents, name])
    known = set(OmegaConf.select(schema, ".".join(parents)) if parents else schema)
    if not parents:  # +budgt=cpu is a group's name misspelt
        known |= {folder.name for folder in CONFIG_FOLDER.iterdir() if folder.is_dir()}
    if name not in known:
        return ConfigError(f"unknown key '{where}'{nearest(name, known)}")
    # To the schema, but not to the file that Hydra was given.
    return ConfigError(f"no file here sets '{where}'; write +{where}=... to add it")


def checked(cfg: DictConfig, schema: Any = PretrainConfig) -> DictConfig:
    """The configuration merged over the schema: types checked, defaults filled, unknown keys
    refused.

    Args:
        cfg: as it was composed.
        schema: `PretrainConfig` or `LinearConfig`.

    Raises:
        ConfigError: naming the key and where it is set; for an unknown one the nearest known.
    """
    try:
        return _checked(cfg, schema)
    except ConfigError as error:
        raise located(error) from error.__cause__


def _checked(cfg: DictConfig, schema: Any) -> DictConfig:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), _without_unread(cfg))
        OmegaConf.resolve(merged)
    except OmegaConfBaseException as error:
        raise refusal(error, schema) from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ConfigError(
            f"required: {', '.join(missing)}; give a value on the command line or in the file"
        )
    plain = OmegaConf.create(OmegaConf.to_container(merged))
    assert isinstance(plain, DictConfig)
    for key, reason in _IDLE.items():
        if value := OmegaConf.select(plain, key):
            _note_unread(key, value, reason)
    for key in _TOLD:
        if value := OmegaConf.select(plain, key):
            _note_unread(key, value, "the data set and the augmentations tell")
            OmegaConf.update(plain, key, None)
    if plain.checkpoint.dir != CheckpointConfig.dir:
        _note_unread("checkpoint.dir", plain.checkpoint.dir, "checkpoints lie in the run's folder")
    _check_choices(plain)
    plain.optimizer.kwargs = _optimizer_kwargs(plain.optimizer)
    plain.wandb.entity = None if plain.wandb.entity == "None" else plain.wandb.entity
    if plain.precision in (16, "16"):
        plain.precision = "16-mixed"  # main's linear files still have lightning 1's spelling
    num_devices(plain)
    return plain


# What solo-learn main's own files set for a method and nothing reads, there or here, and why.
_UNREAD = {
    "simsiam": {  # scripts/pretrain/{cifar,imagenet-100}/simsiam.yaml
        "method_kwargs.temperature": "its loss is a cosine, without a temperature",
        "augmentations_cfg": "the defaults list names the augmentations",
        "wandb_cfg": "the defaults list names the wandb settings",
    },
    "ressl": {  # scripts/pretrain/{cifar,imagenet-100}/ressl.yaml
        "method_kwargs.base_tau_momentum": "momentum.base_tau is read",
        "method_kwargs.final_tau_momentum": "momentum.final_tau is read",
        "method_kwargs.momentum_classifier": "momentum.classifier is read",
    },
}

# What main reads and nothing reads here.
_IDLE = {
    "dali.encode_indexes_into_labels": "every batch has its images' own indexes",
    "auto_resume.max_hours": "an unfinished run resumes however old it is",
    "auto_umap.enabled": "no UMAP is drawn while training",
    "auto_umap.dir": "no UMAP is drawn while training",
    "auto_umap.frequency": "no UMAP is drawn while training",
    "debug_augmentations": "the augmentations are those of the configuration",
}


# Filled in from the data set and the augmentations.
_TOLD = ("data.num_classes", "data.num_large_crops", "data.num_small_crops")


@rank_zero_only
def _note(text: str) -> None:
    print(f"note: {text}")


def _note_unread(key: str, value: Any, reason: str) -> None:
    _note(f"nothing reads {key}={value}: {reason}")


def _without_unread(cfg: DictConfig) -> DictConfig:
    """A copy without what its method's files have in vain; a printed line for each.

    It is not of the schema's type, as Hydra's is: what `+` has added to that, a merge lets pass.
    """
    plain: Any = OmegaConf.to_container(cfg)
    cfg = OmegaConf.create(plain)
    method = None if OmegaConf.is_missing(cfg, "method") else cfg.get("method")
    for key, reason in _UNREAD.get(str(method), {}).items():
        section, _, name = key.rpartition(".")
        holder = cfg.get(section) if section else cfg
        if holder is not None and name in holder:
            _note_unread(key, holder.pop(name), reason)
    return cfg


_CHOICES = {
    "optimizer.name": tuple(OPTIMIZERS),
    "scheduler.name": ("warmup_cosine", "step", "none"),
    "scheduler.interval": ("step", "epoch"),
    "knn_eval.distance_func": ("euclidean", "cosine"),
    "other_code": ("refuse", "accept"),
}


# Key -> the least and the greatest value that it can have; all are finite.
_RANGES: dict[str, tuple[float, float]] = {
    "optimizer.batch_size": (2, math.inf),  # statistics need two images
    "optimizer.lr": (0, math.inf),
    "optimizer.classifier_lr": (0, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "scheduler.warmup_epochs": (0, math.inf),
    "scheduler.warmup_start_lr": (0, math.inf),
    "scheduler.min_lr": (0, math.inf),
    "label_smoothing": (0, 1),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
    "optimizer.layer_decay": (0, 1),
    "momentum.base_tau": (0, 1),
    "momentum.final_tau": (0, 1),
    "knn_eval.k": (1, math.inf),
    "data.num_workers": (0, math.inf),
    "checkpoint.frequency": (1, math.inf),
    "evaluation.information_every_n_epochs": (0, math.inf),
    "max_epochs": (1, math.inf),
    "seed": (0, 2**32 - 1),
    "num_nodes": (1, math.inf),
    "accumulate_grad_batches": (1, math.inf),
    "check_val_every_n_epoch": (1, math.inf),
    "gradient_clip_val": (0, math.inf),
}


def _check_choices(cfg: DictConfig) -> None:
    for key, (least, greatest) in _RANGES.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not (
            isinstance(value, int | float) and least <= value <= greatest and value < math.inf
        ):
            most = f" and at most {greatest}" if greatest < math.inf else ""
            most = " and finite" if value == math.inf else most
            raise ConfigError(f"{key} must be at least {least}{most}, not {value}")
    if "momentum" in cfg and cfg.momentum.base_tau > cfg.momentum.final_tau:
        raise ConfigError("momentum.base_tau must not be above momentum.final_tau")
    # Nothing would be trained, and the run would count as finished.
    idle = [key for key in ("limit_train_batches", "max_steps") if cfg[key] == 0]
    if idle or cfg.fast_dev_run:
        key = "fast_dev_run" if cfg.fast_dev_run else idle[0]
        raise ConfigError(f"{key}={cfg[key]}: a trial run is max_epochs=1 limit_train_batches=2")
    for key, choices in _CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if key.split(".")[0] in cfg and value not in choices:
            raise ConfigError(f"{key}: unknown value '{value}'{nearest(str(value), choices)}")
    steps = cfg.scheduler.lr_decay_steps
    if cfg.scheduler.name == "step" and (not steps or min(steps) < 1):
        raise ConfigError("scheduler.name=step needs scheduler.lr_decay_steps, epochs from 1 on")


def check_run(cfg: DictConfig) -> None:
    """What a configuration that trains is held to beside `checked`: name and warm-up.

    A warm-up longer than the run is only said where it is a recipe's and `max_epochs` cuts the run
    short from elsewhere.

    Raises:
        ConfigError: the name is none of a folder's, or the warm-up outlasts the run.
    """
    if not re.fullmatch(r"[^/\\\x00-\x1f]+", cfg.name):
        raise ConfigError(f"name={cfg.name!r} must be fit for a folder: not empty, no slash")
    if cfg.scheduler.name == "step" and min(cfg.scheduler.lr_decay_steps) >= cfg.max_epochs:
        _note(f"scheduler.lr_decay_steps: none is before the end, max_epochs={cfg.max_epochs}")
    key, last = "scheduler.warmup_epochs", "max_epochs"
    warm_up = cfg.scheduler.warmup_epochs
    if cfg.scheduler.name != "warmup_cosine" or warm_up <= cfg.max_epochs:
        return
    said = f"{key}={warm_up:g} is more than {last}={cfg.max_epochs}"
    file = place(key)
    of_a_run = (Path(file).parent / "provenance.json").exists()  # which had it noted
    if _on_command_line(key) or (file and file == place(last) and not of_a_run):
        raise ConfigError(f"{said}: optimizer.lr is never reached; lower it")
    _note(f"{said}: optimizer.lr is never reached")


def _arguments(optimizer: type) -> dict[str, Any]:
    parameters = inspect.signature(optimizer).parameters
    given = ("params", "lr", "weight_decay")
    return {name: p.default for name, p in parameters.items() if name not in given}


# Name -> its arguments with their defaults.
_OPTIMIZER_KWARGS = {name: _arguments(optimizer) for name, optimizer in OPTIMIZERS.items()}


def _optimizer_kwargs(optimizer: DictConfig) -> dict[str, Any]:
    """Those of `optimizer.kwargs` that the chosen optimiser takes, checked.

    What belongs to another one is a recipe's (LARS) from before `optimizer.name` was overridden,
    and is left out; what belongs to none is an error.
    """
    known, every = _OPTIMIZER_KWARGS[optimizer.name], set().union(*_OPTIMIZER_KWARGS.values())
    for key in optimizer.kwargs:
        if key not in every:
            raise ConfigError(f"unknown key 'optimizer.kwargs.{key}'{nearest(str(key), every)}")
        if key not in known and _on_command_line(f"optimizer.kwargs.{key}"):
            raise ConfigError(
                f"optimizer.kwargs.{key}: {optimizer.name} takes no such key"
                + nearest(str(key), known)
            )
    given: Any = OmegaConf.to_container(optimizer.kwargs)
    kwargs = {key: value for key, value in given.items() if key in known}
    for key, value in kwargs.items():
        if isinstance(known[key], int | float) and not (
            isinstance(value, int | float) and math.isfinite(value)
        ):
            raise ConfigError(f"optimizer.kwargs.{key}: a finite number is needed, not {value!r}")
    weights = [torch.nn.Parameter(torch.zeros(1))]
    try:
        OPTIMIZERS[optimizer.name](weights, lr=optimizer.lr, **kwargs)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        refused = f"optimizer.kwargs: {optimizer.name} refuses {kwargs}"
        raise ConfigError(f"{refused} ({error})") from error
    return kwargs


def _on_cpu(cfg: DictConfig) -> bool:
    automatic = cfg.accelerator == "auto" and not torch.cuda.is_available()
    return cfg.accelerator == "cpu" or automatic


def num_devices(cfg: DictConfig) -> int:
    """Processes on one node that `devices` asks for; "auto" and -1 count what is there.

    Raises:
        ConfigError: it asks for none, or is neither a number nor a list of indexes.
    """
    devices = cfg.devices
    if str(devices) in ("auto", "-1"):
        return 1 if _on_cpu(cfg) else max(1, torch.cuda.device_count())
    try:
        if isinstance(devices, str):
            devices = [int(d) for d in devices.split(",")] if "," in devices else int(devices)
        count = devices if isinstance(devices, int) else len([int(d) for d in devices])
    except (TypeError, ValueError):
        count = 0
    if count < 1 or isinstance(devices, bool):
        raise ConfigError(f"devices={cfg.devices}: give a number, a list of indexes, or auto")
    return count


def completed(
    cfg: DictConfig, num_classes: int, num_large_crops: int, num_small_crops: int
) -> DictConfig:
    """What main's parser adds: class and crop counts, rates scaled to the batch, optimiser
    defaults.

    Rates follow main's linear rule, `lr * batch_size * devices * nodes / 256`.
    """
    cfg = cfg.copy()
    if _on_cpu(cfg):  # main's files count their GPUs: [0, 1]
        cfg.devices = num_devices(cfg)
        # On CPUs torch cannot synchronise batch norm and, worse, refuses even for one process.
        if cfg.sync_batchnorm and cfg.devices * cfg.num_nodes > 1:
            raise ConfigError(
                "sync_batchnorm=true: there is none on CPUs; set it to false, or devices to 1"
            )
        cfg.sync_batchnorm = False
    elif isinstance(cfg.devices, str) or cfg.devices == -1:
        listed = "," in str(cfg.devices)
        cfg.devices = [int(d) for d in cfg.devices.split(",")] if listed else num_devices(cfg)
    cfg.data.num_classes = num_classes
    cfg.data.num_large_crops, cfg.data.num_small_crops = num_large_crops, num_small_crops
    scale = cfg.optimizer.batch_size * num_devices(cfg) * cfg.num_nodes / 256
    for key in ("lr", "classifier_lr"):
        if key in cfg.optimizer:
            cfg.optimizer[key] *= scale
    defaults: dict[str, dict[str, Any]] = {
        "sgd": {"momentum": 0.9},
        "lars": {"momentum": 0.9, "eta": 1e-3, "clip_lr": False, "exclude_bias_n_norm": False},
        "adamw": {"betas": [0.9, 0.999]},
    }
    for key, value in defaults.get(cfg.optimizer.name, {}).items():
        cfg.optimizer.kwargs.setdefault(key, value)
    return cfg


def identity(cfg: DictConfig, made_with: str, images: str | None) -> str:
    """Eight hex digits of the checked configuration, our version, the images and what else made the
    result: the host, a plug-in, weights that it starts from.

    Args:
        images: their fingerprint, which counts in the place of their paths; None for the identity
            by paths, which runs from before there were fingerprints have.
    """
    without = NOT_IDENTITY if images else [key for key in NOT_IDENTITY if key not in DATA_PATHS]
    settings = settings_of(OmegaConf.to_container(cfg), without)
    parts = [settings, solo_mim.__version__, made_with, *([images] if images else [])]
    content = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def folder_by_identity(start: Path, cfg: DictConfig, made_with: str, images: str) -> Path:
    """`START-HASH`, the hash being the identity; that by paths where there is such a folder and
    none of the other."""
    new, old = (
        start.with_name(f"{start.name}-{identity(cfg, made_with, by)}") for by in (images, None)
    )
    return old if old.exists() and not new.exists() else new


__all__ = [
    "CONFIG_FOLDER",
    "TRAINER_KEYS",
    "LinearConfig",
    "PretrainConfig",
    "check_run",
    "checked",
    "completed",
    "composed_from",
    "folder_by_identity",
    "identity",
    "located",
    "num_devices",
    "place",
    "refusal",
]
