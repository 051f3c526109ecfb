"""One host's half of the parity test: run in a process of its own, `parity_worker.py OUT
[WEIGHTS]`.

Trains each shared method from given (or fresh) weights and writes first loss, rates and final
weights.
"""

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
from conftest import NUM_CLASSES, SMALL, TwoViews
from hydra import compose, initialize_config_dir

from solo_mim import host
from solo_mim.commands.configuration import CONFIG_FOLDER, checked, completed
from solo_mim.methods import METHODS

OPTIMIZERS = {
    "lars": "{eta: 0.02, clip_lr: true, exclude_bias_n_norm: true}",
    "sgd": "{}",
    "adamw": "{}",
}


class Trace(pl.Callback):
    """First loss and every step's rates."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[list[float]] = []

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def _model(method: str, optimizer: str) -> Any:
    sizes = [f"method_kwargs.{key}={value}" for key, value in SMALL[method].items()]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose(
            "pretrain",
            overrides=[
                f"method={method}",
                *sizes,
                "optimizer.batch_size=16",
                f"optimizer.name={optimizer}",
                f"optimizer.kwargs={OPTIMIZERS[optimizer]}",
                "optimizer.lr=0.3",
                "scheduler.warmup_epochs=1",
                "max_epochs=5",
            ],
        )
    torch.manual_seed(0)
    return METHODS[method](completed(checked(cfg), NUM_CLASSES, 2, 0))


def main(out: Path, weights: Path | None) -> None:
    start = torch.load(weights, weights_only=True)["start"] if weights else {}
    found: dict[str, Any] = {"generation": host.GENERATION, "start": {}}
    for method in SMALL:
        for optimizer in OPTIMIZERS:
            key = f"{method} {optimizer}"
            model = _model(method, optimizer)
            if key in start:
                model.load_state_dict(start[key], strict=True)
            found["start"][key] = {k: v.clone() for k, v in model.state_dict().items()}
            trace = Trace()
            trainer = pl.Trainer(
                max_epochs=5,
                accelerator="cpu",
                # VICReg's early steps amplify the rounding of different convolution kernels a
                # millionfold; in float64 there is room for that.
                precision="64-true",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
                callbacks=[trace],
            )
            trainer.fit(model, DataLoader(TwoViews(), batch_size=16, drop_last=True))
            found[key] = {
                "loss": trace.losses,
                "rates": trace.rates,
                "weights": {k: v.clone() for k, v in model.state_dict().items()},
                "steps": trainer.global_step,
            }
    torch.save(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
