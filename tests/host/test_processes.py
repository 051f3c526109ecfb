"""explicit MIM on several processes against one with the joined batch, under lightning's DDP.

The file is also their program: `test_processes.py FOLDER`.
"""

import functools
import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from solo_mim.errors import ConfigError

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
        moments = sum_over_processes(moments, dist.group.WORLD) / dist.get_world_size()
    shape = (1, -1, *(1 for _ in dims[1:]))
    mean, square = (moment.view(shape) for moment in moments)
    scaled = (x - mean) * (square - mean**2 + self.eps).rsqrt()
    if self.affine:
        scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
    return scaled


def _without_norm(self, x):
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    return x * self.weight.view(shape) + self.bias.view(shape)


def toy(method, *overrides):
    """A builder of the method at toy size, for as many processes as there are."""
    from toys import NUM_CLASSES, completed, small_cfg

    from solo_mim.methods import METHODS
    from solo_mim.recipe.compose import composed

    overrides = (f"devices={os.environ['WORLD_SIZE']}", *overrides)
    cfg = small_cfg(composed("pretrain", []), method, *overrides)
    return lambda: METHODS[method](completed(cfg, NUM_CLASSES, 2, 0))


def fitted(model, images, batch_size, folder, ckpt_path=None, **settings):
    """The trainer that has trained on this process's share: of W, every W-th image."""
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, DistributedSampler

    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
        **settings,
    )
    sampler = DistributedSampler(images, world, rank, shuffle=False)
    loader = DataLoader(images, batch_size=batch_size, sampler=sampler)
    trainer.fit(model, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def run(folder, norm):
    """Trains on this process's share of each batch; rank 0 saves the weights."""
    import lightning.pytorch as pl
    from toys import TwoViews

    batch_norm = nn.modules.batchnorm
    forward = _joined_forward if norm == "joined" else _without_norm
    batch_norm.BatchNorm1d.forward = batch_norm.BatchNorm2d.forward = forward
    world = int(os.environ["WORLD_SIZE"])
    settings = ("optimizer.name=sgd", "optimizer.lr=0.2", f"max_epochs={EPOCHS}")
    build = toy("explicit_mim", *settings, f"optimizer.batch_size={BATCH // world}")
    pl.seed_everything(0, verbose=False)
    model = build()
    before = [p.detach().clone() for p in model.backbone.parameters()]
    # The shares of a step join to one of BATCH.
    images = TwoViews(BATCH * STEPS // EPOCHS)
    # In float32 twenty steps carry rounding to 1e-3.
    precise = {"max_epochs": EPOCHS, "strategy": "ddp", "precision": "64-true"}
    trainer = fitted(model, images, BATCH // world, folder, **precise)
    assert trainer.global_step == STEPS
    if trainer.is_global_zero:
        networks = {"backbone": model.backbone, "projector": model.projector}
        state = {n: list(m.parameters()) for n, m in networks.items()}
        pairs = zip(before, state["backbone"], strict=True)
        state["moved"] = max(float((a - b).abs().max()) for a, b in pairs)
        torch.save(state, folder / f"{norm}-{world}.pt")


def resume(folder):
    """Trains SwAV on this process's share, saves, and notes the queue that a second model begins
    with."""
    import lightning.pytorch as pl
    from toys import TwoViews

    build = toy("swav", "knn_eval.enabled=false")
    images, checkpoint = TwoViews(64), folder / "swav.ckpt"
    found = []

    class Note(pl.Callback):
        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            if batch_idx == 0:
                found.append(model.queue.clone())

    settings = {"strategy": "ddp_find_unused_parameters_true", "callbacks": [Note()]}
    model = build()
    trainer = fitted(model, images, 16, folder, max_epochs=2, **settings)
    trainer.save_checkpoint(checkpoint)
    left = model.queue.clone()
    fitted(build(), images, 16, folder, ckpt_path=checkpoint, max_epochs=3, **settings)
    assert dist.is_initialized()
    rank, world = dist.get_rank(), dist.get_world_size()
    result = {"left": left, "found": found[-1], "knn": neighbours(rank, world)}
    torch.save(result, folder / f"{rank}.pt")


def neighbours(rank=0, world=1):
    """Online kNN accuracies of this process's share of 61 features, about which 31 are asked."""
    from solo_mim.evaluation.knn import OnlineKNN

    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(92) % 7
    features = torch.randn(92, 5, generator=generator) + targets[:, None] / 4
    knn = OnlineKNN(k=9)
    bank, asked = (slice(start + rank, end, world) for start, end in ((0, 61), (61, 92)))
    knn(train_features=features[bank], train_targets=targets[bank])
    knn(test_features=features[asked], test_targets=targets[asked])
    return knn.compute()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the processes have left."""
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, __file__, folder], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """Parameters after 20 steps by batch norm, over all processes or none at all, and by their
    number."""
    return {
        (norm, world): torch.load(folder / f"{norm}-{world}.pt", weights_only=False)
        for norm in NORMS
        for world in (1, 3)
    }


@pytest.mark.parametrize("norm", NORMS)
def test_twenty_steps_equal_those_of_one_process_with_the_joined_batch(trained, norm):
    alone, several = trained[norm, 1], trained[norm, 3]
    assert alone["moved"] > 0.01
    for part in ("backbone", "projector"):
        for ours, expected in zip(several[part], alone[part], strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def two_processes(folder):
    """The folder of `resume` on two of them, and what each has left."""
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_each_process_resumes_with_its_own_queue(two_processes, make_model, fit):
    folder, results = two_processes
    for result in results:
        assert torch.equal(result["left"], result["found"])
    assert not torch.equal(results[0]["left"], results[1]["left"])
    with pytest.raises(ConfigError, match=r"devices: .*method=swav.* has 2 of them"):
        fit(make_model("swav", epochs=3), ckpt_path=folder / "swav.ckpt")


def test_online_knn_pools_the_features_of_all_processes(two_processes):
    for result in two_processes[1]:
        assert result["knn"] == pytest.approx(neighbours())


if __name__ == "__main__":
    from forked import forked

    for name in ("lightning.pytorch", "toys", "solo_mim.methods", "solo_mim.recipe.compose"):
        importlib.import_module(name)  # before the forks
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    for each in NORMS:
        for number in (1, 3):
            forked(number, functools.partial(run, target, each))
    forked(2, functools.partial(resume, target))
