"""Small models and a real training loop through the seam; they run on whichever host is on the
path."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

NUM_CLASSES = 4

SMALL = {
    "explicit_mim": {"proj_hidden_dim": 32, "proj_output_dim": 8},
    "vicreg": {"proj_hidden_dim": 32, "proj_output_dim": 16},
    "barlow_twins": {"proj_hidden_dim": 32, "proj_output_dim": 16},
    "simclr": {"proj_hidden_dim": 32, "proj_output_dim": 16},
    "byol": {"proj_hidden_dim": 32, "proj_output_dim": 16, "pred_hidden_dim": 32},
}


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


@pytest.fixture
def make_model(compose_cfg) -> Callable[..., Any]:
    """Builds a method from the shipped configuration at toy size."""
    from solo_mim.commands.configuration import completed
    from solo_mim.methods import METHODS

    def make(method: str, *overrides: str, epochs: int = 2) -> Any:
        sizes = [f"method_kwargs.{key}={value}" for key, value in SMALL[method].items()]
        cfg = compose_cfg(
            f"method={method}",
            *sizes,
            "optimizer.batch_size=16",
            "scheduler.warmup_epochs=1",
            f"max_epochs={epochs}",
            "knn_eval.k=5",
            *overrides,
        )
        pl.seed_everything(0, verbose=False)
        return METHODS[method](completed(cfg, NUM_CLASSES, 2, 0))

    return make


@pytest.fixture
def fit(tmp_path) -> Callable[..., pl.Trainer]:
    """Trains a model for its `max_epochs` with a real Trainer."""

    def run(model: Any, epochs: int | None = None, **kwargs: Any) -> pl.Trainer:
        loaders = (
            DataLoader(TwoViews(), batch_size=16, drop_last=True),
            DataLoader(TwoViews(train=False), batch_size=24),
        )
        ckpt_path = kwargs.pop("ckpt_path", None)
        trainer = pl.Trainer(
            max_epochs=epochs or model.max_epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            num_sanity_val_steps=0,
            **kwargs,
        )
        trainer.fit(model, *loaders, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run
