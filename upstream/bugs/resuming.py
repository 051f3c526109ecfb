"""What the reproductions that resume a run share: two epochs over 32 random images on the CPU."""

import lightning.pytorch as pl
import torch
from omegaconf import OmegaConf
from solo.methods import METHODS


class SaveFirstEpoch(pl.Callback):
    """Saves the state after the first epoch, where solo-learn's Checkpointer does."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, model):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


class Images(torch.utils.data.Dataset):
    """Pairs of views with an index and a label, as solo-learn's data loaders give them."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return index, list(torch.randn(2, 3, 32, 32, generator=generator)), index % 4


def fit(method, method_kwargs, *callbacks, resume=None):
    """Trains the method for two epochs of four steps, or for what is left of them."""
    cfg = OmegaConf.create(
        {
            "name": "bug",
            "method": method,
            "backbone": {"name": "resnet18"},
            "method_kwargs": method_kwargs,
            "momentum": {"base_tau": 0.9, "final_tau": 1.0},
            "data": {
                "dataset": "custom",
                "num_classes": 5,
                "num_large_crops": 2,
                "num_small_crops": 0,
            },
            "optimizer": {
                "name": "sgd",
                "batch_size": 8,
                "lr": 0.01,
                "classifier_lr": 0.01,
                "weight_decay": 0,
            },
            "scheduler": {"name": "warmup_cosine", "warmup_epochs": 1},
            "max_epochs": 2,
        }
    )
    pl.seed_everything(5)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=list(callbacks),
    )
    loader = torch.utils.data.DataLoader(Images(), batch_size=8, drop_last=True)
    trainer.fit(METHODS[method](cfg), loader, ckpt_path=resume)
