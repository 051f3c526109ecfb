"""Epps-Pulley statistics against closed forms, and as a measure of how Gaussian embeddings are."""

import math

import numpy as np
import pytest
import torch

from solo_mim.losses import non_gaussianity, sliced_epps_pulley
from solo_mim.losses.gaussianity import epps_pulley, random_directions

STANDARD = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))  # its mean under N(0, 1)
STANDARDISED = math.sqrt(2 * math.pi) * (1 - math.sqrt(3) / 2)  # of projections brought to N(0, 1)


def _normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def _closed_form(x):
    """The integral over the whole line, as a sum over pairs of samples."""
    pairs = np.exp(-(np.subtract.outer(x, x) ** 2) / 2).sum() / len(x)
    crossed = math.sqrt(2) * np.exp(-(x**2) / 4).sum()
    return math.sqrt(2 * math.pi) * (pairs - crossed + len(x) / math.sqrt(3))


@pytest.mark.parametrize(
    ("transform", "rel"),
    [(lambda x: x, 1e-4), (torch.sign, 1e-4), (lambda x: 3 * x + 1, 0.1), (torch.exp, 0.1)],
)
def test_epps_pulley_is_its_closed_form_and_near_it_at_the_default_points(transform, rel):
    x = transform(_normal(3, 50))
    expected = [_closed_form(row.numpy()) for row in x]
    assert epps_pulley(x, t_max=8.0, n_points=1001).tolist() == pytest.approx(expected, rel=1e-9)
    assert epps_pulley(x).tolist() == pytest.approx(expected, rel=rel)


def test_sliced_statistic_is_the_mean_over_directions_and_leading_dimensions():
    z = _normal(2, 40, 5)
    directions = random_directions(5, 7, 3, z)
    assert directions.norm(dim=1).tolist() == pytest.approx([1.0] * 7)
    expected = np.mean([_closed_form((view @ d).numpy()) for view in z for d in directions])
    assert sliced_epps_pulley(z, 7, seed=3).item() == pytest.approx(expected, rel=1e-4)


def test_directions_are_uniform_on_the_sphere():
    directions = random_directions(3, 100_000, 0, torch.zeros(()))
    assert directions.mean(0).abs().max() < 0.01
    torch.testing.assert_close(
        directions.T @ directions / 100_000, torch.eye(3) / 3, atol=0.01, rtol=0
    )


def test_statistics_of_gaussians_have_the_means_of_theory():
    mixing = _normal(8, 8, seed=99)
    for samples in (64, 512):
        draws = [_normal(samples, 8, seed=seed) for seed in range(60)]
        standard = np.mean([sliced_epps_pulley(z, 64).item() for z in draws])
        mixed = samples * np.mean([non_gaussianity(z @ mixing + 5, 64).item() for z in draws])
        assert standard == pytest.approx(STANDARD, rel=0.15)
        assert mixed == pytest.approx(STANDARDISED, rel=0.15)


@pytest.mark.parametrize("kind", ["clusters", "sphere", "heavy tails"])
def test_what_is_not_gaussian_is_measured_alike_of_few_and_many_samples(kind):
    def drawn(samples):
        z = _normal(samples, 3)
        if kind == "clusters":
            return z * 0.2 + _normal(samples, 3, seed=1).sign()
        if kind == "sphere":
            return z / z.norm(dim=1, keepdim=True)
        return z / _normal(samples, 1, seed=1).abs()

    few, many = non_gaussianity(drawn(500)), non_gaussianity(drawn(2000))
    assert few > 4 * STANDARDISED / 500
    assert many / few == pytest.approx(1, rel=0.4)


def test_location_and_scale_do_not_count_as_shape():
    z = _normal(100, 4).exp()
    expected = non_gaussianity(z).item()
    assert non_gaussianity(1e-3 * z + 7).item() == pytest.approx(expected)
    assert sliced_epps_pulley(z + 7) > 2 * sliced_epps_pulley(z)


@pytest.mark.parametrize("statistic", [sliced_epps_pulley, non_gaussianity])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sixteen_bits_and_autocast_are_computed_in_float32(statistic, dtype):
    z = _normal(32, 4).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = statistic(z)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found, statistic(z.to(found.dtype)))


def test_impossible_arguments_are_refused_by_name():
    z = _normal(8, 3)
    with pytest.raises(ValueError, match="num_slices must be 1 or more"):
        sliced_epps_pulley(z, 0)
    for options in ({"t_max": -1.0}, {"n_points": 4}, {"n_points": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            epps_pulley(z.T, **options)
    with pytest.raises(ValueError, match="2 samples or more, got 1"):
        non_gaussianity(z[:1])


def test_gradient_of_non_gaussianity_and_its_finite_end():
    z = _normal(12, 3).exp().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: non_gaussianity(z, 5), z)
    collapsed = torch.ones(12, 3).double().requires_grad_()
    non_gaussianity(collapsed, 5).backward()
    assert collapsed.grad.isfinite().all()
    one_left = torch.cat((_normal(12, 1), torch.ones(12, 2)), 1).double().requires_grad_()
    non_gaussianity(one_left, 5).backward()
    assert one_left.grad.isfinite().all()


def test_descent_makes_embeddings_gaussian_and_leaves_their_covariance():
    z = _normal(300, 2).exp().requires_grad_()
    covariance, before = torch.cov(z.detach().T), non_gaussianity(z, 64).item()
    optimiser = torch.optim.Adam([z], lr=0.02)
    for step in range(150):
        optimiser.zero_grad()
        non_gaussianity(z, 16, seed=step).backward()
        optimiser.step()
    assert non_gaussianity(z, 64).item() < before / 5
    assert torch.cov(z.detach().T).trace() == pytest.approx(covariance.trace(), rel=0.5)
