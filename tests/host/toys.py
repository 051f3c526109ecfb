"""Methods and data small enough to train in a second."""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Dataset

NUM_CLASSES = 4

PROJECTOR = {"proj_hidden_dim": 32, "proj_output_dim": 16}
PREDICTOR = {**PROJECTOR, "pred_hidden_dim": 32}
# Every method of both hosts at toy size: queues hold four batches of 16.
SMALL: dict[str, dict[str, Any]] = {
    "all4one": {**PREDICTOR, "temperature": 0.2, "queue_size": 64},
    "barlow_twins": {**PROJECTOR, "scale_loss": 0.1},
    "byol": PREDICTOR,
    "corinfomax": {**PROJECTOR, "proj_output_dim": 8},
    "deepclusterv2": {**PROJECTOR, "num_prototypes": [12, 12], "kmeans_iters": 3},
    "dino": {**PROJECTOR, "num_prototypes": 24, "clip_grad": 0.3},
    "explicit_mim": {"proj_hidden_dim": 32, "proj_output_dim": 8},
    "frossl": PROJECTOR,
    "lejepa": {**PROJECTOR, "num_slices": 16},
    "mae": {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 4},
    "mec": PREDICTOR,
    "mocov2plus": {**PROJECTOR, "temperature": 0.2, "queue_size": 64},
    "mocov3": {**PREDICTOR, "temperature": 0.2},
    "nnbyol": {**PREDICTOR, "queue_size": 64},
    "nnclr": {**PREDICTOR, "temperature": 0.2, "queue_size": 64},
    "nnsiam": {**PREDICTOR, "queue_size": 64},
    "ressl": {**PROJECTOR, "temperature_q": 0.1, "temperature_k": 0.04, "queue_size": 64},
    "simclr": {**PROJECTOR, "temperature": 0.2},
    "simsiam": PREDICTOR,
    "supcon": {**PROJECTOR, "temperature": 0.2},
    "swav": {
        **PROJECTOR,
        **{"temperature": 0.1, "num_prototypes": 12, "queue_size": 32, "epoch_queue_starts": 1},
    },
    "vibcreg": {**PROJECTOR, "iternorm": True},
    "vicreg": PROJECTOR,
    "visreg": {**PROJECTOR, "num_projections": 16},
    "wmse": {"proj_hidden_dim": 32, "proj_output_dim": 4, "whitening_size": 8},
}


def small_cfg(cfg: DictConfig, method: str, *overrides: str) -> DictConfig:
    """The toy configuration of a method: `overrides` are `key=value` on top of it."""
    cfg = OmegaConf.merge(
        cfg,
        {
            "optimizer": {"batch_size": 16},
            "scheduler": {"warmup_epochs": 1},
            "max_epochs": 2,
            "knn_eval": {"k": 5},
        },
    )
    cfg.method, cfg.method_kwargs = method, SMALL[method]
    cfg.backbone.kwargs = {"widths": [8, 16, 32, 64]}
    if method == "mae":
        cfg.backbone = {"name": "vit_tiny", "kwargs": {"patch_size": 16}}
    if any(override.startswith("backbone.name=") for override in overrides):
        cfg.backbone.kwargs = {}
    cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(cfg, DictConfig)
    return cfg


def completed(
    cfg: DictConfig, num_classes: int, num_large_crops: int, num_small_crops: int
) -> DictConfig:
    """What the host's classes take of a configuration, checked."""
    from solo_mim.recipe.checks import checked
    from solo_mim.recipe.schema import host_config

    return host_config(checked(cfg), num_classes, num_large_crops, num_small_crops)


class TwoViews(Dataset):
    """Noisy copies of one pattern per class: learnable, and every value reproducible."""

    def __init__(self, size: int = 64, train: bool = True):
        generator = torch.Generator().manual_seed(0)
        patterns = torch.randn(NUM_CLASSES, 3, 32, 32, generator=generator)
        self.targets = torch.arange(size) % NUM_CLASSES
        generator.manual_seed(1 if train else 2)
        noise = torch.randn(3, size, 3, 32, 32, generator=generator)
        self.views = patterns[self.targets] + 0.5 * noise
        self.train = train

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        target = int(self.targets[index])
        if self.train:
            return index, [self.views[0, index], self.views[1, index]], target
        return self.views[2, index], target
