"""Small models in a real training loop, on whichever host is on the path."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader
from toys import NUM_CLASSES, TwoViews, completed, small_cfg


@pytest.fixture
def make_model(compose_cfg) -> Callable[..., Any]:
    """Builds a method at toy size on top of the shipped configuration."""
    from solo_mim.methods import METHODS

    def make(method: str, *overrides: str, epochs: int = 2) -> Any:
        cfg = small_cfg(compose_cfg(), method, f"max_epochs={epochs}", *overrides)
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
            **{"accelerator": "cpu", **kwargs},
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            num_sanity_val_steps=0,
        )
        trainer.fit(model, *loaders, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run
