"""Barlow Twins over two processes: the gradient of one loss over both shares of the batch.

The file is also their program: `python test_barlow_distributed.py FOLDER`.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

PROCESSES, SAMPLES, INPUTS, DIM = 2, 12, 6, 5

pytestmark = pytest.mark.distributed


def _network():
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(INPUTS, DIM).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=generator)
    return network


def _views(rank):
    generator = torch.Generator().manual_seed(rank + 1)
    return torch.randn(2, SAMPLES, INPUTS, generator=generator).double()


def _correlation(network, views):
    z1, z2 = (network(view) for view in views)
    z1, z2 = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z1, z2))
    return z1.T @ z2 / SAMPLES


def run_rank(barlow_loss_func, folder):
    rank = int(os.environ["RANK"])
    nn.BatchNorm1d = type("Double", (nn.BatchNorm1d,), {"to": lambda self, _: self.double()})
    dist.init_process_group(
        "gloo", init_method=(folder / "rendezvous").as_uri(), rank=rank, world_size=PROCESSES
    )
    network = _network()
    z1, z2 = (network(view) for view in _views(rank))
    loss = barlow_loss_func(z1, z2, lamb=0.01, scale_loss=1.0)
    loss.backward()
    for parameter in network.parameters():  # as DistributedDataParallel does
        dist.all_reduce(parameter.grad)
        parameter.grad /= PROCESSES
    if rank == 0:
        gradient = [parameter.grad for parameter in network.parameters()]
        torch.save({"loss": loss.detach(), "gradient": gradient}, folder / "found.pt")
    dist.destroy_process_group()


def test_gradient_is_that_of_one_process_with_both_shares(tmp_path):
    done = subprocess.run(
        [sys.executable, __file__, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)

    network = _network()
    correlation = sum(_correlation(network, _views(rank)) for rank in range(PROCESSES)) / PROCESSES
    difference = (correlation - torch.eye(DIM, dtype=torch.float64)).pow(2)
    loss = difference.diagonal().sum() + 0.01 * (difference.sum() - difference.diagonal().sum())
    loss.backward()
    torch.testing.assert_close(found["loss"], loss.detach())
    for gradient, parameter in zip(found["gradient"], network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


if __name__ == "__main__":
    from forked import forked

    importlib.import_module("solo_mim.host")  # mends the loss
    mended = importlib.import_module("solo.losses.barlow").barlow_loss_func
    forked(PROCESSES, lambda: run_rank(mended, Path(sys.argv[1])))
