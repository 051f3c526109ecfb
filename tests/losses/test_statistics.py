"""Covariances of views: the identities they stand on, and that both sides hold the same thing."""

import math

import pytest
import torch

from solo_mim.losses.statistics import helmert_contrasts, self_product, view_covariances


def views_of(num_views: int, num_samples: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(num_samples, dim, dtype=torch.float64, generator=generator)
    noise = torch.randn(num_views, num_samples, dim, dtype=torch.float64, generator=generator)
    return 0.7 * image + 0.5 * noise + torch.arange(dim)


@pytest.mark.parametrize("num_views", [2, 3, 4, 7])
def test_contrasts_are_an_orthogonal_change_of_basis_across_views(num_views):
    identity = torch.eye(num_views, dtype=torch.float64)
    # The coefficients are what the contrasts of the unit "views" are, one sample, V coordinates.
    contrasts = helmert_contrasts([row[None] for row in identity])
    basis = torch.cat([rows / math.sqrt(norm) for rows, norm in contrasts])
    torch.testing.assert_close(basis @ basis.mT, identity)
    torch.testing.assert_close(basis[0], torch.full_like(basis[0], num_views**-0.5))


@pytest.mark.parametrize("num_views", [2, 3, 4])
def test_covariances_equal_their_definitions(num_views):
    z = views_of(num_views, 20, 5)
    total, within, between, variance, powers = view_covariances(z.unbind(), "standardise", None)
    z = z - z.mean((0, 1))
    mean = z.mean(0)
    deviation = z - mean
    torch.testing.assert_close(between, num_views * mean.mT @ mean / 20)
    expected = torch.einsum("vni,vnj->ij", deviation, deviation) / (20 * (num_views - 1))
    torch.testing.assert_close(within, expected)
    torch.testing.assert_close(total, torch.einsum("vni,vnj->ij", z, z) / (20 * num_views))
    torch.testing.assert_close(variance, z.square().mean((0, 1)))
    torch.testing.assert_close(powers, expected.diagonal() / variance)


@pytest.mark.parametrize("num_views", [2, 3, 5])
def test_determinants_multiply_to_that_of_the_explicit_joint_covariance(num_views):
    dim, num_samples = 3, 40
    z = views_of(num_views, num_samples, dim)
    _, within, between, *_ = view_covariances(z.unbind(), "l2", None)
    z = z * math.sqrt(dim) / z.norm(dim=2, keepdim=True)
    z = z - z.mean((0, 1))
    # The VD x VD covariance of all views in a row, symmetrised over the order of the views.
    total = torch.einsum("vni,vnj->ij", z, z) / (num_views * num_samples)
    summed = z.sum(0)
    cross = (summed.mT @ summed / num_samples - num_views * total) / (num_views * (num_views - 1))
    eye, ones = torch.eye(num_views).double(), torch.ones(num_views, num_views).double()
    joint = torch.kron(eye, total - cross) + torch.kron(ones, cross)
    assert torch.logdet(joint).item() == pytest.approx(
        (torch.logdet(between) + (num_views - 1) * torch.logdet(within)).item(), rel=1e-12
    )


@pytest.mark.parametrize("normalisation", ["standardise", "l2"])
@pytest.mark.parametrize("num_views", [2, 3])
def test_gram_side_has_the_spectrum_of_the_d_side(normalisation, num_views):
    num_samples, dim = 4, 13
    z = views_of(num_views, num_samples, dim)
    gram = view_covariances(z.unbind(), normalisation, None)
    assert gram.total.shape == (num_views * num_samples - 1,) * 2
    # Each sample eight times over has the same covariances, and rows enough for the D side.
    full = view_covariances(z.repeat(1, 8, 1).unbind(), normalisation, None)
    assert full.total.shape == (dim, dim)
    scale = torch.ones(dim).double() if full.variance is None else full.variance.rsqrt()
    for name in ("total", "within", "between"):
        small, large = getattr(gram, name), scale[:, None] * getattr(full, name) * scale
        assert small.shape != large.shape
        rank = min(len(small), dim)
        torch.testing.assert_close(
            torch.linalg.eigvalsh(small)[-rank:], torch.linalg.eigvalsh(large)[-rank:]
        )


@pytest.mark.parametrize("normalisation", ["standardise", "l2"])
def test_spread_is_that_of_the_normalised_samples_whatever_the_units(normalisation):
    z = views_of(2, 50, 6) * 300
    total, _, _, variance, _ = view_covariances(z.unbind(), normalisation, None)
    if normalisation == "l2":
        assert variance is None
        z = z * math.sqrt(6) / z.norm(dim=2, keepdim=True)
    spread = z.sub(z.mean((0, 1))).square().mean((0, 1))
    torch.testing.assert_close(total.diagonal(), spread)
    if normalisation == "standardise":
        torch.testing.assert_close(variance, spread)


def test_self_product_gradient():
    rows = views_of(2, 4, 3)[0].requires_grad_()
    weight = torch.arange(9.0).double().view(3, 3)  # a function that is not symmetric

    def function(x):
        return (self_product(x, 0.3) * weight).sum()

    assert torch.autograd.gradcheck(function, rows)
    assert torch.autograd.gradgradcheck(function, rows)
