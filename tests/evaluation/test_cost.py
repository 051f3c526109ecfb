"""Counts of operations against torch's counter and by hand."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from solo_mim import host
from solo_mim.evaluation.cost import LOSS_COSTS, step_cost
from solo_mim.losses import explicit_mim_loss_func


class TwoLayers(pl.LightningModule):
    """192 -> 10 -> 4 of each of two views, with a loss that costs 4 x 4 products whatever N is."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.Linear(10, 4))
        self.frozen = nn.Linear(3, 1).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(5, 2))

    def training_step(self, batch, batch_idx):
        _, views, _ = batch
        square = self.network[2].weight @ self.network[2].weight.T
        return sum(self.network(view).sum() for view in views) + square.sum()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.network.parameters())


def test_a_step_is_counted_by_what_grows_with_the_batch_and_what_does_not(capfd):
    cost = step_cost(TwoLayers(), images=4, crop_sizes=[8, 8], num_classes=2)
    assert capfd.readouterr() == ("", "")
    weights = 192 * 10 + 10 + 10 * 4 + 4
    assert (cost.parameters, cost.trained) == (weights + 4, weights)
    # Two views; products forward, for the weights' gradient, and for the hidden layer's.
    assert cost.flops == 2 * 2 * (2 * 192 * 10 + 3 * 10 * 4)
    assert cost.fixed_flops == 3 * 2 * 4 * 10 * 4
    # The images as they are and flat are one storage; the first layer's output is the second's
    # input.
    assert cost.activations == 4 * 2 * (192 + 10)
    assert cost.buffer_bytes == 4 * 5 * 2
    assert cost.optimizer_bytes == pytest.approx(2 * 4 * weights, rel=0.02)


@pytest.mark.parametrize(("samples", "dim"), [(64, 32), (48, 256)])
@pytest.mark.parametrize("name", LOSS_COSTS)
def test_products_of_the_losses_are_those_that_torch_counts(name, samples, dim):
    losses = {"explicit_mim": lambda a, b: explicit_mim_loss_func(a, b), **host.LOSSES}
    views = [torch.randn(samples, dim, requires_grad=True) for _ in range(2)]
    with FlopCounterMode(display=False) as counter:
        losses[name](*views).backward()
    assert LOSS_COSTS[name](samples, dim, 1).products == counter.get_total_flops()


def test_one_process_sends_nothing_and_more_send_what_a_ring_does():
    for cost in LOSS_COSTS.values():
        assert cost(64, 128, 1).sent == 0
    # Two covariances there, their gradients back; each all-reduce sends 2 (W - 1) / W of it.
    assert LOSS_COSTS["explicit_mim"](64, 128, 4).sent == 2 * (2 * 3 / 4) * 4 * 2 * 128**2
    # The cross-correlation there, its gradient back.
    assert LOSS_COSTS["barlow_twins"](64, 128, 4).sent == 2 * (2 * 3 / 4) * 4 * 128**2
    # Both views of all processes are gathered; their gradients are summed.
    assert LOSS_COSTS["vicreg"](64, 128, 4).sent == (3 / 4 + 2 * 3 / 4) * 4 * 2 * 256 * 128


def test_only_vicreg_works_on_the_samples_of_all_processes():
    alone, shared = ({n: c(64, 128, w).products for n, c in LOSS_COSTS.items()} for w in (1, 4))
    assert shared == {**alone, "vicreg": 4 * alone["vicreg"]}
