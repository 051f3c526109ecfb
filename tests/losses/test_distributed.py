"""Processes with uneven shares of a batch against one process with all of it.

Three processes are spawned once; the first two of them are the group of two. The file is also their
program: `python test_distributed.py RANK FOLDER`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from solo_mim.information import view_information
from solo_mim.losses import (
    CorInfoMaxLoss,
    NonFiniteEmbeddingError,
    explicit_mim_terms,
    frossl_loss_func,
    lejepa_loss_func,
    mec_loss_func,
    visreg_loss_func,
)

INPUTS = 7
# Samples of each rank, and D, with 2 and with 3 processes. N over all ranks, D x D moments travel
# where V N >= D, and rows where V N < D.
SHARES = {
    2: {"moments": ((9, 4), 6), "gather": ((3, 1), 17), "empty share": ((8, 0), 5)},
    3: {"moments": ((2, 11, 5), 6), "gather": ((1, 4, 2), 40), "empty share": ((3, 0, 1), 40)},
}
OPTIONS = {
    f"{reading}-{normalisation}": {"reading": reading, "normalisation": normalisation}
    for reading in ("infomax", "two_view")
    for normalisation in ("standardise", "l2")
}
OPTIONS["gaussian"] = {"gaussianity": 2.0}
OPTIONS |= {within: {"within": within} for within in ("diagonal", "isotropic", "linear")}
CASES = [
    (processes, share, option, num_views)
    for processes, shares in SHARES.items()
    for share in shares
    for option in OPTIONS
    for num_views in (2, 3)
]

pytestmark = pytest.mark.distributed


def batch_of(num_views: int, num_samples: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_views)
    shape = (num_views, num_samples, INPUTS)
    images = torch.randn(shape[1:], generator=generator)
    return (images + torch.randn(shape, generator=generator)).double()


def network_of(dim: int) -> nn.Module:
    # Not torch.manual_seed: its first call imports the compiler, seconds in each process.
    generator = torch.Generator().manual_seed(dim)
    network = nn.Sequential(nn.Linear(INPUTS, 12), nn.Tanh(), nn.Linear(12, dim)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network


def terms_and_gradient(network: nn.Module, batch: torch.Tensor, **options) -> dict:
    num_views, num_samples, _ = batch.shape
    z = network(batch.flatten(0, 1)).unflatten(0, (num_views, num_samples))
    terms = explicit_mim_terms(z, **options)
    terms.loss.backward()
    return {
        "terms": [term.detach() for term in terms if term is not None],
        "gradient": [parameter.grad for parameter in network.parameters()],
    }


def rivals(z1: torch.Tensor, z2: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "corinfomax": CorInfoMaxLoss(z1.shape[1])(z1, z2).loss,
        "frossl": frossl_loss_func((z1, z2)).loss,
        "lejepa": lejepa_loss_func((z1, z2), num_slices=16).loss,
        "mec": mec_loss_func((z1, z2), (z2, z1), 40.0),
        "visreg": visreg_loss_func((z1, z2), num_projections=16).loss,
    }


def rivals_and_gradients(network: nn.Module, batch: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    z1, z2 = network(batch.flatten(0, 1)).unflatten(0, batch.shape[:2])
    found = {}
    for name, loss in rivals(z1, z2).items():
        gradient = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        found[name] = [loss.detach(), *gradient]
    return found


def run_rank(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=(folder / "rendezvous").as_uri(), rank=rank, world_size=3
    )
    groups = {2: dist.new_group([0, 1]), 3: None}
    results = {}
    for processes in (2, 3) if rank < 2 else (3,):
        group = groups[processes]
        for share, (sizes, dim) in SHARES[processes].items():
            own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
            for option, options in OPTIONS.items():
                for num_views in (2, 3):
                    result = terms_and_gradient(
                        network_of(dim),
                        batch_of(num_views, sum(sizes))[:, own],
                        process_group=group,
                        **options,
                    )
                    for gradient in result["gradient"]:  # as DistributedDataParallel does
                        dist.all_reduce(gradient, group=group)
                        gradient /= processes
                    results[processes, share, option, num_views] = result

    network, batch = network_of(6), batch_of(2, 15)
    results["rivals"] = rivals_and_gradients(network, batch[:, (0, 4, 9)[rank] : (4, 9, 15)[rank]])
    for _, *gradients in results["rivals"].values():
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient /= 3

    # 16 bits do not hold the count of the first rank's samples.
    batch = batch_of(2, 306)[:, (0, 301, 303)[rank] : (301, 303, 306)[rank]]
    results["bfloat16"] = rivals(
        *network(batch.flatten(0, 1)).unflatten(0, batch.shape[:2]).bfloat16()
    )

    # A NaN on one rank is an error on all of them, and no rank is left waiting.
    z = torch.randn(2, 4, 3)
    z[0, 0, 0] = float("nan") if rank == 0 else 0.0
    try:
        explicit_mim_terms(z)
    except NonFiniteEmbeddingError:
        results["nan"] = "raised"
    try:
        explicit_mim_terms(torch.randn(2, 1 if rank == 0 else 0, 3))
    except ValueError as error:
        results["one sample"] = str(error)
    if rank == 0:
        results["alone"] = view_information(batch_of(2, 12))
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """Results of the three ranks, or an error with the traceback of every rank that failed."""
    folder = tmp_path_factory.mktemp("gloo")
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [
        f"rank {rank}:\n{error}"
        for rank, (process, error) in enumerate(zip(processes, errors, strict=True))
        if process.returncode
    ]
    assert not failed, "\n".join(failed)
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


@pytest.mark.parametrize(("processes", "share", "option", "num_views"), CASES)
def test_value_and_averaged_gradient_equal_one_process(ranks, processes, share, option, num_views):
    sizes, dim = SHARES[processes][share]
    batch = batch_of(num_views, sum(sizes))
    expected = terms_and_gradient(network_of(dim), batch, **OPTIONS[option])
    for rank, results in enumerate(ranks[:processes]):
        result = results[processes, share, option, num_views]
        for kind in ("terms", "gradient"):
            for ours, theirs in zip(result[kind], expected[kind], strict=True):
                torch.testing.assert_close(
                    ours, theirs, rtol=1e-9, atol=1e-12, msg=lambda m, r=rank: f"rank {r}: {m}"
                )


@pytest.mark.parametrize("name", ["corinfomax", "frossl", "lejepa", "mec", "visreg"])
def test_rivals_are_of_the_samples_of_all_processes(ranks, name):
    expected = rivals_and_gradients(network_of(6), batch_of(2, 15))[name]
    for results in ranks:
        for ours, theirs in zip(results["rivals"][name], expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_rivals_count_samples_exactly_in_16_bits(ranks):
    z = network_of(6)(batch_of(2, 306).flatten(0, 1)).unflatten(0, (2, 306)).bfloat16()
    for results in ranks:
        for name, expected in rivals(*z).items():
            torch.testing.assert_close(results["bfloat16"][name], expected, rtol=1e-4, atol=1e-6)


def test_error_on_one_rank_is_raised_on_all(ranks):
    for result in ranks:
        assert result["nan"] == "raised"
        assert "2 samples or more over all processes, got 1" in result["one sample"]


def test_information_of_one_rank_waits_for_no_other(ranks):
    torch.testing.assert_close(ranks[0]["alone"], view_information(batch_of(2, 12)))


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
