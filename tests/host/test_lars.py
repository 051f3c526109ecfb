"""LARS through the seam against one written here from its paper."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ETA, LR, MOMENTUM, DECAY = 0.02, 0.3, 0.9, 1e-2


def _network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def _paper_lars(network, batches, clip, exclude):
    """Algorithm 1 of arXiv 1708.03888: v <- m v + lr * local * (g + wd w); w <- w - v.

    The velocity holds the global rate, as in the paper; at a constant rate that equals torch's
    convention. `clip` and `exclude` are solo-learn's: min(local / lr, 1), and plain SGD for
    one-dimensional weights.
    """
    velocity = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for x, y in batches:
        loss = nn.functional.cross_entropy(network(x), y)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for (name, w), g in zip(network.named_parameters(), gradients, strict=True):
                w_norm, g_norm = w.square().sum().sqrt(), g.square().sum().sqrt()
                if (exclude and w.ndim == 1) or w_norm == 0 or g_norm == 0:
                    update = g
                else:
                    local = ETA * w_norm / (g_norm + DECAY * w_norm)
                    local = min(float(local / LR), 1.0) if clip else float(local)
                    update = local * (g + DECAY * w)
                velocity[name] = MOMENTUM * velocity[name] + LR * update
                w -= velocity[name]
    return network


class _Module(pl.LightningModule):
    def __init__(self, network, optimizer):
        super().__init__()
        self.network, self._optimizer = network, optimizer

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        return self._optimizer(self.network.parameters())


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_twenty_steps_under_lightning_equal_lars_from_its_paper(clip, exclude, make_model):
    torch.manual_seed(0)
    x, y = torch.randn(160, 6), torch.randint(0, 3, (160,))
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    expected = _paper_lars(_network(), list(loader), clip, exclude)

    # The class that a method on this host would use.
    kwargs = (
        f"{{momentum: {MOMENTUM}, eta: {ETA}, clip_lr: {clip}, exclude_bias_n_norm: {exclude}}}"
    )
    model = make_model(
        "vicreg", "optimizer.name=lars", f"optimizer.kwargs={kwargs}", "scheduler.name=none"
    )
    lars = type(model.configure_optimizers())

    def build(params):
        return lars(
            params,
            lr=LR,
            momentum=MOMENTUM,
            weight_decay=DECAY,
            eta=ETA,
            clip_lr=clip,
            exclude_bias_n_norm=exclude,
        )

    module = _Module(_network(), build)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    assert trainer.global_step == 20
    # The trap of solo-learn 1.0.2's wrapper under lightning 2: bit-equal to SGD without weight
    # decay.
    sgd = _network()
    optimizer = torch.optim.SGD(sgd.parameters(), lr=LR, momentum=MOMENTUM)
    for inputs, targets in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(sgd(inputs), targets).backward()
        optimizer.step()
    assert (sgd[0].weight - module.network[0].weight).abs().max() > 1e-2
    for (name, a), b in zip(module.network.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
