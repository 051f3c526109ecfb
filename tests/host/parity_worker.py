"""One side of the parity test, in a process of its own: `parity_worker.py OUT WAY [FROM]`.

Trains each shared method and writes losses, rates and final weights to OUT. WAY is

- `seam`: through solo_mim.host, from fresh weights or those of FROM, an earlier OUT; leaves a
  checkpoint of the second epoch in the folder OUT without its suffix;
- `raw`: the same with solo-learn main's own classes, none of them mended;
- `resume`: through the seam, from the checkpoints in the folder FROM.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
from toys import NUM_CLASSES, TwoViews, completed, small_cfg

SHARED = (
    *("barlow_twins", "byol", "deepclusterv2", "dino", "mocov2plus", "nnbyol", "nnclr", "nnsiam"),
    *("ressl", "simclr", "simsiam", "swav", "vicreg", "wmse"),
)
OPTIMIZERS = {
    "lars": "{eta: 0.02, clip_lr: true, exclude_bias_n_norm: true}",
    "sgd": "{}",
    "adamw": "{}",
}
# Beside the default, a warm-up and cosine per step.
SCHEDULES = {
    "sgd": ("scheduler.name=step", "scheduler.lr_decay_steps=[1,3]"),
    "adamw": ("scheduler.interval=epoch", "optimizer.exclude_bias_n_norm_wd=true"),
}
EPOCHS, STEPS_PER_EPOCH = 5, 4


class Trace(pl.Callback):
    """Every step's loss and rates; seeds each epoch, which main itself leaves to chance."""

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        self.losses: list[float] = []
        self.rates: list[list[float]] = []

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        torch.manual_seed(trainer.current_epoch)  # DeepClusterV2 draws here

    def on_train_batch_start(self, trainer: Any, _: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            torch.manual_seed(trainer.current_epoch)
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        if self.checkpoint and trainer.current_epoch == 1:
            trainer.save_checkpoint(self.checkpoint)


def _raw_methods() -> Any:
    """Main's own classes, and its modules as they were before solo_mim.host came."""
    whitening = importlib.import_module("solo.utils.whitening").Whitening2d
    barlow = importlib.import_module("solo.losses.barlow")
    deepcluster = importlib.import_module("solo.methods.deepclusterv2")
    untouched = whitening.forward, barlow.dist, deepcluster.deepclusterv2_loss_func
    from solo_mim import host  # noqa: F401  it mends them
    from solo_mim.backbones import SmallCNN

    whitening.forward, barlow.dist, deepcluster.deepclusterv2_loss_func = untouched
    base = importlib.import_module("solo.methods.base").BaseMethod
    base._BACKBONES["small_cnn"] = lambda method, **kwargs: SmallCNN(**kwargs)
    return importlib.import_module("solo.methods").METHODS


def _seam_methods() -> Any:
    from solo_mim.host import lifecycle
    from solo_mim.methods import METHODS

    lifecycle.Lifecycle._seed = lambda self: torch.manual_seed(self.trainer.current_epoch)
    return METHODS


def main(out: Path, way: str, origin: Path | None) -> None:
    torch.set_default_dtype(torch.float64)  # SwAV makes its queue without asking for a type
    methods = _raw_methods() if way == "raw" else _seam_methods()
    from solo_mim import host
    from solo_mim.recipe.compose import composed

    base = composed("pretrain", ["optimizer.kwargs={}"])
    resume = origin if way == "resume" else None
    start = torch.load(origin, weights_only=True)["start"] if origin and not resume else {}
    found: dict[str, Any] = {"generation": host.GENERATION, "start": {}}
    for method in SHARED if way == "raw" else (*SHARED, "explicit_mim"):
        for optimizer, kwargs in OPTIMIZERS.items():
            cfg = small_cfg(
                base,
                method,
                f"max_epochs={EPOCHS}",
                f"optimizer.name={optimizer}",
                f"optimizer.kwargs={kwargs}",
                *SCHEDULES.get(optimizer, ()),
                f"optimizer.lr={0.3 if optimizer == 'lars' else 0.03}",
                "knn_eval.enabled=false",  # main's own does not construct
            )
            torch.manual_seed(0)
            model = methods[method](completed(cfg, NUM_CLASSES, 2, 0))
            key = f"{method} {optimizer}"
            if key in start:
                model.load_state_dict(start[key], strict=True)
            found["start"][key] = {k: v.clone() for k, v in model.state_dict().items()}
            trace = Trace(out.with_suffix("") / f"{key}.ckpt" if way == "seam" else None)
            trainer = pl.Trainer(
                max_epochs=EPOCHS,
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
            trainer.fit(
                model,
                DataLoader(TwoViews(), batch_size=16, drop_last=True),
                ckpt_path=resume / f"{key}.ckpt" if resume else None,
                weights_only=True,
            )
            found[key] = {
                "loss": trace.losses,
                "rates": trace.rates,
                "weights": {k: v.clone() for k, v in model.state_dict().items()},
                "steps": trainer.global_step,
            }
    torch.save(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None)
