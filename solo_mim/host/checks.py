"""Configurations that a method of the host would stumble over deep inside, refused by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from omegaconf import DictConfig

from solo_mim.errors import ConfigError

_QUEUES = ("all4one", "mocov2plus", "nnbyol", "nnclr", "nnsiam", "ressl")


def refuse_impossible_views(
    cfg: DictConfig, method: str, any_number: Collection[str], multi_crop: Collection[str]
) -> None:
    """Raises ConfigError where a method is not written for the crops counted in `cfg.data`.

    Methods in `any_number` take any number of large crops, the others two; those in `multi_crop`
    take small ones beside them.
    """
    large, small = cfg.data.num_large_crops, cfg.data.num_small_crops
    others = ", ".join(f"method={name}" for name in sorted(multi_crop))
    if small and method not in multi_crop:
        raise ConfigError(
            f"method={method} cannot take small crops; give every augmentation one crop_size"
            + (f", or use {others}" if others else "")
        )
    if large != 2 and method not in any_number:
        raise ConfigError(
            f"method={method} is written for two views of an image, not {large}; "
            "let augmentations[].num_crops add up to 2"
        )
    if large < 2 and method != "mae":
        raise ConfigError(f"method={method} needs two large crops; raise augmentations[].num_crops")


def refuse_impossible_batch(cfg: DictConfig, method: str, processes: int = 1) -> None:
    """Raises ConfigError of queues, whitening, prototypes and warm-up that do not fit the run.

    Queues take the batches of all processes.
    """
    kwargs, batch_size = cfg.method_kwargs, cfg.optimizer.batch_size
    queue_size, global_batch = kwargs.get("queue_size"), batch_size * processes
    if method in _QUEUES and (queue_size < 1 or queue_size % global_batch):
        raise ConfigError(
            f"method_kwargs.queue_size={queue_size} must be a multiple of the batch of "
            f"{global_batch} (optimizer.batch_size on {processes} process(es))"
        )
    if method == "swav" and 0 < queue_size < global_batch:
        raise ConfigError(
            f"method_kwargs.queue_size={queue_size} must hold a batch of {global_batch}, or be 0"
        )
    if method == "wmse":
        size = kwargs.whitening_size
        if size < 2 or batch_size % size:
            raise ConfigError(
                f"method_kwargs.whitening_size={size} must divide optimizer.batch_size={batch_size}"
            )
        if size <= kwargs.proj_output_dim and not kwargs.whitening_eps:
            raise ConfigError(
                f"method_kwargs.whitening_size={size} must be more than "
                f"method_kwargs.proj_output_dim={kwargs.proj_output_dim}: the covariance of so few "
                "features is singular (or set method_kwargs.whitening_eps)"
            )
    if method == "deepclusterv2" and (
        not isinstance(kwargs.num_prototypes, Sequence) or len(set(kwargs.num_prototypes)) != 1
    ):
        raise ConfigError(
            f"method_kwargs.num_prototypes={kwargs.num_prototypes}: give a list, the prototypes of "
            "each clustering; solo-learn stacks them, so they must be equally many"
        )
    if method == "mae" and not 0 < kwargs.mask_ratio < 1:
        raise ConfigError(
            f"method_kwargs.mask_ratio={kwargs.mask_ratio}: give a share above 0 and below 1"
        )
    if method == "dino" and kwargs.warmup_teacher_temperature_epochs > cfg.max_epochs:
        raise ConfigError(
            "method_kwargs.warmup_teacher_temperature_epochs="
            f"{kwargs.warmup_teacher_temperature_epochs} is more than max_epochs={cfg.max_epochs}"
        )
