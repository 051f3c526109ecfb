"""explicit MIM on several processes against one with the joined batch, under lightning's DDP.

The file is also their program, started by torchrun: `test_processes.py FOLDER`.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

STEPS, EPOCHS, BATCH = 20, 5, 24  # of four steps each
NORMS = ("joined", "none")

pytestmark = pytest.mark.distributed


def _joined_forward(self, x):
    """Batch norm of all processes' samples: on CPUs torch has none (SyncBatchNorm)."""
    from solo_mim.losses.statistics import sum_over_processes

    if not self.training:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
    dims = [0, *range(2, x.ndim)]
    moments = torch.stack((x.mean(dims), x.square().mean(dims)))
    if dist.is_initialized():
        moments = sum_over_processes(moments, None) / dist.get_world_size()
    shape = (1, -1, *(1 for _ in dims[1:]))
    mean, square = (moment.view(shape) for moment in moments)
    scaled = (x - mean) * (square - mean**2 + self.eps).rsqrt()
    if self.affine:
        scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
    return scaled


def _without_norm(self, x):
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    return x * self.weight.view(shape) + self.bias.view(shape)


def run(folder, norm):
    """Trains on this process's share of each batch; rank 0 saves the weights."""
    import lightning.pytorch as pl
    from hydra import compose, initialize_config_dir
    from torch.utils.data import DataLoader, DistributedSampler
    from toys import NUM_CLASSES, TwoViews, small_cfg

    from solo_mim.commands.configuration import CONFIG_FOLDER, checked, completed
    from solo_mim.methods import METHODS

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    batch_norm = nn.modules.batchnorm
    forward = _joined_forward if norm == "joined" else _without_norm
    batch_norm.BatchNorm1d.forward = batch_norm.BatchNorm2d.forward = forward
    world = int(os.environ["WORLD_SIZE"])
    overrides = [
        f"devices={world}",
        "optimizer.name=sgd",
        "optimizer.lr=0.2",
        f"max_epochs={EPOCHS}",
    ]
    overrides.append(f"optimizer.batch_size={BATCH // world}")
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = small_cfg(checked(compose("pretrain")), "explicit_mim", *overrides)
    pl.seed_everything(0, verbose=False)
    model = METHODS["explicit_mim"](completed(cfg, NUM_CLASSES, 2, 0))
    before = [p.detach().clone() for p in model.backbone.parameters()]
    images = TwoViews(BATCH * STEPS // EPOCHS)
    # Rank r has every W-th image from the r-th on: the shares of a step join to one of BATCH.
    sampler = DistributedSampler(images, world, int(os.environ["RANK"]), shuffle=False)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=world,
        strategy="ddp",
        precision="64-true",  # in float32 twenty steps carry rounding to 1e-3
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    trainer.fit(model, DataLoader(images, batch_size=BATCH // world, sampler=sampler))
    assert trainer.global_step == STEPS
    if trainer.is_global_zero:
        networks = {"backbone": model.backbone, "projector": model.projector}
        state = {n: list(m.parameters()) for n, m in networks.items()}
        pairs = zip(before, state["backbone"], strict=True)
        state["moved"] = max(float((a - b).abs().max()) for a, b in pairs)
        torch.save(state, Path(folder) / f"{norm}-{world}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Parameters after 20 steps by batch norm, over all processes or none at all, and by their
    number."""
    folder = tmp_path_factory.mktemp("processes")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    for world in (1, 2, 3):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *(f"--nproc-per-node={world}", __file__, folder),
            ],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    return {
        (norm, world): torch.load(folder / f"{norm}-{world}.pt", weights_only=False)
        for norm in NORMS
        for world in (1, 2, 3)
    }


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_twenty_steps_equal_those_of_one_process_with_the_joined_batch(trained, norm, world):
    alone, several = trained[norm, 1], trained[norm, world]
    assert alone["moved"] > 0.01
    for part in ("backbone", "projector"):
        for ours, expected in zip(several[part], alone[part], strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


if __name__ == "__main__":
    for each in NORMS:
        run(sys.argv[1], each)
