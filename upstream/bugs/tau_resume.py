"""The first update of a resumed BYOL (MoCo, DINO, ...) is at `base_tau`, however late it is.

    PYTHONPATH=CHECKOUT python tau_resume.py

The momentum coefficient lives in `MomentumUpdater.cur_tau`, which no checkpoint holds: late in
training, where it is near 1, the first step after resuming moves the momentum network as far as the
first step of all.
"""

import math
import tempfile
from pathlib import Path

import lightning.pytorch as pl
from resuming import SaveFirstEpoch, fit

KWARGS = {"proj_hidden_dim": 32, "proj_output_dim": 16, "pred_hidden_dim": 32}


class Taus(pl.Callback):
    """The coefficient of each update of the momentum network."""

    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        self.values.append(model.momentum_updater.cur_tau)


if __name__ == "__main__":
    whole, resumed = Taus(), Taus()
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Path(name) / "first.ckpt"
        fit("byol", KWARGS, whole, SaveFirstEpoch(checkpoint))
        fit("byol", KWARGS, resumed, resume=checkpoint)
    expected = whole.values[len(whole.values) // 2 :]
    print("tau in epoch 2, uninterrupted", [f"{tau:.4f}" for tau in expected])
    print("                      resumed", [f"{tau:.4f}" for tau in resumed.values])
    assert all(math.isclose(a, b) for a, b in zip(expected, resumed.values))
