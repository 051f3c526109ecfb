"""What solo-learn main's own files set and nothing reads here, or there either; each is noted."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from solo_mim.recipe.schema import Checkpoint

# By method, what not even main reads, and why.
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
def note(text: str) -> None:
    """Prints a remark, once for all processes."""
    print(f"note: {text}")


def _note_unread(key: str, value: Any, reason: str) -> None:
    note(f"nothing reads {key}={value}: {reason}")


def without_unread(cfg: DictConfig) -> DictConfig:
    """A copy without what the method's files have in vain; not of the schema's type, as Hydra's is:
    what `+` has added to that, a merge lets pass."""
    plain: Any = OmegaConf.to_container(cfg)
    cfg = OmegaConf.create(plain)
    for key, reason in _UNREAD.get(str(cfg.get("method")), {}).items():
        section, _, name = key.rpartition(".")
        holder = cfg.get(section) if section else cfg
        if holder is not None and name in holder:
            _note_unread(key, holder.pop(name), reason)
    return cfg


def in_our_spelling(cfg: DictConfig) -> None:
    """Notes what nothing reads, and brings main's spelling of some values to ours, in place."""
    for key, reason in _IDLE.items():
        if value := OmegaConf.select(cfg, key):
            _note_unread(key, value, reason)
    for key in _TOLD:
        if value := OmegaConf.select(cfg, key):
            _note_unread(key, value, "the data set and the augmentations tell")
            OmegaConf.update(cfg, key, None)
    if cfg.checkpoint.dir != Checkpoint.dir:
        _note_unread("checkpoint.dir", cfg.checkpoint.dir, "checkpoints lie in the run's folder")
    if cfg.wandb.entity == "None":
        cfg.wandb.entity = None
    if cfg.precision in (16, "16"):
        cfg.precision = "16-mixed"  # main's linear files still have lightning 1's spelling
