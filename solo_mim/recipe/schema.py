"""What a run is asked for: main's schema plus ours, as frozen dataclasses.

Keys, types and defaults stand here, what values they may have in `checks`.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import MISSING, DictConfig, OmegaConf

from solo_mim.errors import ConfigError


@dataclass(frozen=True)
class Backbone:
    name: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    stem: str = "auto"


@dataclass(frozen=True)
class PretrainBackbone(Backbone):
    weights: str | None = None


@dataclass(frozen=True)
class Data:
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


@dataclass(frozen=True)
class Images:
    """Main's, of classification; None takes what belongs to the data set."""

    crop_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass(frozen=True)
class LinearData(Data):
    augmentations: Images = field(default_factory=Images)


@dataclass(frozen=True)
class Optimizer:
    name: str = MISSING
    batch_size: int = MISSING
    lr: float = MISSING
    weight_decay: float = 0.0
    exclude_bias_n_norm_wd: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PretrainOptimizer(Optimizer):
    classifier_lr: float = MISSING


@dataclass(frozen=True)
class LinearOptimizer(Optimizer):
    layer_decay: float = 0.0


@dataclass(frozen=True)
class Scheduler:
    name: str = "warmup_cosine"
    min_lr: float = 0.0
    warmup_start_lr: float = 3e-5
    warmup_epochs: float = 10
    lr_decay_steps: list[int] | None = None
    interval: str = "step"


@dataclass(frozen=True)
class Momentum:
    base_tau: float = 0.99
    final_tau: float = 1.0
    classifier: bool = False


@dataclass(frozen=True)
class KNN:
    enabled: bool = False
    k: int = 20
    distance_func: str = "euclidean"


@dataclass(frozen=True)
class Checkpoint:
    enabled: bool = True
    dir: str = "trained_models"
    frequency: int = 1
    keep_prev: bool = False


@dataclass(frozen=True)
class Wandb:
    enabled: bool = False
    entity: str | None = None
    project: str = "solo-learn"
    offline: bool = False


@dataclass(frozen=True)
class TensorBoard:
    enabled: bool = False


@dataclass(frozen=True)
class Performance:
    disable_channel_last: bool = False


# The next three are accepted because main's files have them; runs resume by identity here.


@dataclass(frozen=True)
class AutoResume:
    enabled: bool = False
    max_hours: float | None = None


@dataclass(frozen=True)
class AutoUMAP:
    enabled: bool = False
    dir: str | None = None
    frequency: int | None = None


@dataclass(frozen=True)
class DALI:
    device: str | None = None
    encode_indexes_into_labels: bool = False


@dataclass(frozen=True)
class Evaluation:
    offline: bool = True
    test: bool = False
    information_every_n_epochs: int = 5


@dataclass(frozen=True)
class LinearEvaluation:
    test: bool = False


@dataclass(frozen=True)
class _Method:
    name: str = MISSING
    method: str = MISSING
    method_kwargs: dict[str, Any] = field(default_factory=dict)
    augmentations: list[Any] = MISSING
    momentum: Momentum = field(default_factory=Momentum)
    knn_eval: KNN = field(default_factory=KNN)
    evaluation: Evaluation = field(default_factory=Evaluation)
    auto_umap: AutoUMAP = field(default_factory=AutoUMAP)
    debug_augmentations: bool = False
    resume_from_checkpoint: str | None = None
    output_dir: str = "runs"


@dataclass(frozen=True)
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
    evaluation: LinearEvaluation = field(default_factory=LinearEvaluation)
    output_dir: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Keys that pre-training and linear evaluation share.

    `optimizer.lr` is for a batch of 256, as main has it; what the optimiser gets is
    `scaled(optimizer.lr)`, in pre-training times `accumulate_grad_batches`.
    """

    backbone: Backbone = field(default_factory=Backbone)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    wandb: Wandb = field(default_factory=Wandb)
    tensorboard: TensorBoard = field(default_factory=TensorBoard)
    performance: Performance = field(default_factory=Performance)
    auto_resume: AutoResume = field(default_factory=AutoResume)
    dali: DALI = field(default_factory=DALI)
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

    @property
    def plain(self) -> dict[str, Any]:
        """All of it, as the run's `config.yaml` has it."""
        return asdict(self)

    @property
    def on_cpu(self) -> bool:
        automatic = self.accelerator == "auto" and not torch.cuda.is_available()
        return self.accelerator == "cpu" or automatic

    @property
    def processes(self) -> int:
        """World size: devices of a node x nodes."""
        return num_devices(self.devices, self.on_cpu) * self.num_nodes

    @property
    def global_batch(self) -> int:
        """Images of a step in all processes."""
        return self.optimizer.batch_size * self.processes

    def scaled(self, rate: float) -> float:
        """Main's linear rule: a rate for a batch of 256 brought to the global batch."""
        return rate * self.global_batch / 256


@dataclass(frozen=True)
class PretrainRecipe(Recipe, _Method):
    backbone: PretrainBackbone = field(default_factory=PretrainBackbone)
    optimizer: PretrainOptimizer = field(default_factory=PretrainOptimizer)

    @property
    def crop_sizes(self) -> list[int]:
        """Pixels of the crops of each pipeline."""
        return [pipeline["crop_size"] for pipeline in self.augmentations]


@dataclass(frozen=True)
class LinearRecipe(Recipe, _Classifier):
    data: LinearData = field(default_factory=LinearData)
    optimizer: LinearOptimizer = field(default_factory=LinearOptimizer)


def num_devices(devices: Any, on_cpu: bool) -> int:
    """Processes on one node that `devices` asks for; "auto" and -1 count what is there.

    Raises:
        ConfigError: it asks for none, or is neither a number nor a list of indexes.
    """
    if str(devices) in ("auto", "-1"):
        return 1 if on_cpu else max(1, torch.cuda.device_count())
    wanted = devices
    try:
        if isinstance(wanted, str):
            wanted = [int(d) for d in wanted.split(",")] if "," in wanted else int(wanted)
        count = wanted if isinstance(wanted, int) else len([int(d) for d in wanted])
    except (TypeError, ValueError):
        count = 0
    if count < 1 or isinstance(wanted, bool):
        raise ConfigError(f"devices={devices}: give a number, a list of indexes, or auto")
    return count


# But for those arguments of lightning's Trainer that the command itself decides on.
TRAINER_KEYS = set(inspect.signature(Trainer).parameters) - {
    *("logger", "callbacks", "default_root_dir", "enable_checkpointing", "enable_progress_bar")
}


@functools.cache
def with_trainer_keys(recipe: type[Recipe]) -> type[Recipe]:
    """A recipe with every other argument of lightning's Trainer at its top level, where main's
    files have them."""
    known = {f.name for f in fields(recipe)}
    others = [(key, Any, field(default=None)) for key in sorted(TRAINER_KEYS - known)]
    return make_dataclass(recipe.__name__, others, bases=(recipe,), frozen=True)


def node(recipe: type[Recipe]) -> DictConfig:
    """The schema as OmegaConf merges files over it."""

    def writable(config: Any) -> Any:
        OmegaConf.set_readonly(config, None)  # as frozen dataclasses are
        for key in config:
            if not OmegaConf.is_missing(config, key) and OmegaConf.is_config(config[key]):
                writable(config[key])
        return config

    return writable(OmegaConf.structured(with_trainer_keys(recipe)))  # type: ignore[arg-type]


# Of the optimisers, which main fills in.
_OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "lars": {"momentum": 0.9, "eta": 1e-3, "clip_lr": False, "exclude_bias_n_norm": False},
    "adamw": {"betas": [0.9, 0.999]},
}


def host_config(
    recipe: Recipe, num_classes: int, num_large_crops: int, num_small_crops: int
) -> DictConfig:
    """What the host's classes take: the recipe with what main's parser adds, class and crop counts,
    optimiser defaults, and rates scaled to the global batch."""
    cfg = OmegaConf.create(recipe.plain)
    if recipe.on_cpu:  # main's files count their GPUs: [0, 1]
        cfg.devices = num_devices(recipe.devices, on_cpu=True)
        # On CPUs torch cannot synchronise batch norm and, worse, refuses even for one process.
        if recipe.sync_batchnorm and recipe.processes > 1:
            raise ConfigError(
                "sync_batchnorm=true: there is none on CPUs; set it to false, or devices to 1"
            )
        cfg.sync_batchnorm = False
    elif isinstance(recipe.devices, str) and "," in recipe.devices:
        cfg.devices = [int(index) for index in recipe.devices.split(",")]
    elif not isinstance(recipe.devices, list):
        cfg.devices = num_devices(recipe.devices, on_cpu=False)
    cfg.data.num_classes = num_classes
    cfg.data.num_large_crops, cfg.data.num_small_crops = num_large_crops, num_small_crops
    for key in ("lr", "classifier_lr"):
        if key in cfg.optimizer:
            cfg.optimizer[key] = recipe.scaled(cfg.optimizer[key])
    for key, value in _OPTIMIZER_DEFAULTS.get(cfg.optimizer.name, {}).items():
        cfg.optimizer.kwargs.setdefault(key, value)
    return cfg
