"""Barlow Twins over 2 processes has half the gradient: `dist.all_reduce` is not differentiable.

    PYTHONPATH=CHECKOUT python barlow_gradient.py

The value agrees, which hides it. Over R processes the gradient is 1/R of the one of a single
process with all the samples, so that the learning rate falls with the number of GPUs.
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PROCESSES, SAMPLES, INPUTS, DIM = 2, 64, 16, 8


def images(rank):
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(SAMPLES, INPUTS, generator=generator)
    return x, x + 0.5 * torch.randn(SAMPLES, INPUTS, generator=generator)


def initial_weight():
    return torch.randn(INPUTS, DIM, generator=torch.Generator().manual_seed(9)).requires_grad_()


def run(rank, folder):
    from solo.losses import barlow_loss_func

    dist.init_process_group(
        "gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=PROCESSES
    )
    weight = initial_weight()
    x1, x2 = images(rank)
    loss = barlow_loss_func(x1 @ weight, x2 @ weight)
    loss.backward()
    dist.all_reduce(weight.grad)  # and the mean, as DistributedDataParallel takes it
    if rank == 0:
        torch.save((loss.detach(), weight.grad / PROCESSES), folder / "found.pt")
    dist.destroy_process_group()


def of_one_process():
    """The same loss written out: batch norm on each share, one correlation over both."""
    weight = initial_weight()
    corr = 0
    for rank in range(PROCESSES):
        z1, z2 = (x @ weight for x in images(rank))
        z1, z2 = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z1, z2))
        corr = corr + z1.T @ z2 / (SAMPLES * PROCESSES)
    cdif = (corr - torch.eye(DIM)).pow(2)
    loss = 0.025 * (cdif.diagonal().sum() + 5e-3 * (cdif.sum() - cdif.diagonal().sum()))
    loss.backward()
    return loss.detach(), weight.grad


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mp.spawn(run, (folder,), nprocs=PROCESSES)
        loss, gradient = torch.load(folder / "found.pt")
    expected_loss, expected = of_one_process()
    ratio = (gradient.norm() / expected.norm()).item()
    print(f"loss {loss:.6f}, of one process {expected_loss:.6f}; gradient {ratio:.3f} of its norm")
    sys.exit(0 if torch.allclose(gradient, expected, rtol=1e-3, atol=1e-6) else 1)
