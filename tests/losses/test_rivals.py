"""The rivals against their published formulas, computed otherwise in numpy."""

from statistics import NormalDist

import numpy as np
import pytest
import torch

from solo_mim.losses import (
    CorInfoMaxLoss,
    NonFiniteEmbeddingError,
    frossl_loss_func,
    lejepa_loss_func,
    mec_loss_func,
    sliced_epps_pulley,
    visreg_loss_func,
)
from solo_mim.losses.gaussianity import random_directions


def _views(samples=24, dim=6, views=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(views, samples, dim, generator=generator, dtype=torch.float64)
    return [(image + 0.5 * n) * torch.arange(1.0, dim + 1) for n in noise]


def test_corinfomax_is_its_published_formula_with_covariances_that_forget():
    loss = CorInfoMaxLoss(6, alpha=3.0, eps=1e-3, forgetting=0.2)
    means, covariances = np.zeros((2, 6)), np.stack([np.eye(6)] * 2)
    for step in range(3):
        views = _views(seed=step)
        terms = loss(*views)
        units = [(v / v.norm(dim=1, keepdim=True)).numpy() for v in views]
        entropy = 0.0
        for i, z in enumerate(units):
            means[i] = 0.2 * means[i] + 0.8 * z.mean(axis=0)
            outer = [np.outer(row - means[i], row - means[i]) for row in z]
            covariances[i] = 0.2 * covariances[i] + 0.8 * np.mean(outer, axis=0)
            entropy += np.log(np.linalg.eigvalsh(covariances[i]) + 1e-3).sum() / 6
        invariance = np.mean((units[0] - units[1]) ** 2)
        assert terms.invariance.item() == pytest.approx(invariance)
        assert terms.entropy.item() == pytest.approx(entropy)
        assert terms.loss.item() == pytest.approx(3.0 * invariance - entropy)


def test_corinfomax_forgets_in_training_only_and_saves_its_state():
    loss = CorInfoMaxLoss(6)
    loss(*_views())
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.eval()
    loss(*_views(seed=1))
    assert all(torch.equal(state[name], value) for name, value in loss.state_dict().items())
    resumed = CorInfoMaxLoss(6)
    resumed.load_state_dict(state)
    assert resumed(*_views(seed=2)).loss == loss.train()(*_views(seed=2)).loss


def test_corinfomax_standardised_with_weight_one_is_l2_with_weight_d_where_norms_are_equal():
    """The two conventions of alpha: coordinates of variance one, and of variance 1 / D."""
    generator = torch.Generator().manual_seed(0)
    signs = [torch.randint(0, 2, (4096, 8), generator=generator).double() * 2 - 1 for _ in range(2)]
    l2 = CorInfoMaxLoss(8, alpha=8.0, forgetting=0.0)(*signs)
    standardised = CorInfoMaxLoss(8, alpha=1.0, forgetting=0.0, normalisation="standardise")(*signs)
    assert 8 * l2.invariance == pytest.approx(standardised.invariance.item(), rel=1e-2)
    assert l2.entropy + 2 * np.log(8) == pytest.approx(standardised.entropy.item(), abs=1e-2)


def test_mec_is_the_series_of_its_log_determinant():
    predictions, targets = _views(seed=0), _views(seed=1)
    unit = lambda v: (v / v.norm(dim=1, keepdim=True)).numpy()  # noqa: E731
    p1, p2, t1, t2 = map(unit, (*predictions, *targets))
    inverse_lambda = 40.0  # above the largest singular value, at most 24

    def exact(p, t):
        return inverse_lambda * np.linalg.slogdet(np.eye(24) + p @ t.T / inverse_lambda)[1] / 24

    def taylor(p, t, order):
        matrix = p @ t.T / inverse_lambda
        powers = [np.linalg.matrix_power(matrix, k) for k in range(1, order + 1)]
        terms = [(-1) ** k / (k + 1) * np.trace(m) for k, m in enumerate(powers)]
        return inverse_lambda * sum(terms) / 24

    loss = mec_loss_func(predictions, targets, inverse_lambda).item()
    assert loss == pytest.approx(-(taylor(p1, t2, 4) + taylor(p2, t1, 4)) / 2, rel=1e-5)
    long = mec_loss_func(predictions, targets, inverse_lambda, order=40).item()
    assert long == pytest.approx(-(exact(p1, t2) + exact(p2, t1)) / 2, rel=1e-5)


@pytest.mark.parametrize(("samples", "dim"), [(24, 6), (6, 24)])
@pytest.mark.parametrize("num_views", [2, 3])
def test_frossl_is_its_published_formula_on_either_side(samples, dim, num_views):
    views = _views(samples, dim, num_views)
    found = frossl_loss_func(views, invariance_weight=1.4)
    unit = [v.numpy() - v.numpy().mean(axis=0) for v in views]
    unit = [z / np.linalg.norm(z, axis=0) for z in unit]
    entropy = 0.0
    for z in unit:
        eigenvalues = np.linalg.svd(z, compute_uv=False) ** 2
        entropy -= np.log(((eigenvalues / eigenvalues.sum()) ** 2).sum())
    centre = sum(unit) / num_views
    invariance = num_views / samples * sum(((z - centre) ** 2).sum() for z in unit)
    assert found.entropy.item() == pytest.approx(entropy, rel=1e-4)
    assert found.invariance.item() == pytest.approx(invariance, rel=1e-4)
    assert found.loss.item() == pytest.approx(1.4 * invariance - entropy, rel=1e-4)
    if num_views == 2:
        assert invariance == pytest.approx(((unit[0] - unit[1]) ** 2).sum() / samples)


@pytest.mark.parametrize("num_views", [2, 3])
def test_lejepa_is_its_published_formula(num_views):
    views = _views(views=num_views)
    found = lejepa_loss_func(views, lamb=0.3, num_slices=10, seed=4)
    z = torch.stack(views).numpy()
    invariance = np.mean((z - z.mean(axis=0)) ** 2)
    directions = random_directions(6, 10, 4, views[0]).numpy()
    t = np.linspace(-5, 5, 17)
    sigreg = []
    for view in z:
        for direction in directions:
            empirical = np.exp(1j * np.outer(view @ direction, t)).mean(axis=0)
            error = np.abs(empirical - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
            sigreg.append(len(view) * np.trapezoid(error, t))
    assert found.invariance.item() == pytest.approx(invariance)
    assert found.sigreg.item() == pytest.approx(np.mean(sigreg))
    assert found.loss.item() == pytest.approx(0.7 * invariance + 0.3 * np.mean(sigreg))


@pytest.mark.parametrize("num_views", [2, 3])
def test_visreg_is_its_published_formula_and_its_shape_gives_the_scale_no_gradient(num_views):
    views = [view.requires_grad_() for view in _views(views=num_views)]
    found = visreg_loss_func(views, lamb=0.3, num_projections=10, seed=4)
    z = torch.stack(views).detach().numpy()
    directions = random_directions(6, 10, 4, views[0]).numpy()
    quantiles = np.array([NormalDist().inv_cdf(i / 25) for i in range(1, 25)])
    scale, shape, centre, along_scale = [], [], [], 0.0
    for view in z:
        mean, deviation = view.mean(axis=0), view.std(axis=0) + 1e-6
        scale += list((1 - deviation) ** 2)
        centre += list(mean**2)
        for direction in directions:
            p = np.sort((view - mean) / deviation @ direction)
            shape += list((p - quantiles) ** 2)
            along_scale += 2 * ((p - quantiles) @ p) / (num_views * 10 * 24)
    invariance = np.mean((z - z.mean(axis=0)) ** 2)
    expected = [invariance, np.mean(scale), np.mean(shape), np.mean(centre)]
    assert [term.item() for term in found[1:]] == pytest.approx(expected)
    assert found.loss.item() == pytest.approx(0.7 * invariance + 0.3 * sum(expected[1:]))
    gradient = torch.autograd.grad(found.shape, views)
    # Along the scale of the embeddings: zero, were the deviations not cut off.
    sloped = sum((g * (v - v.mean(0))).sum().item() for g, v in zip(gradient, views, strict=True))
    assert sloped == pytest.approx(along_scale)
    assert abs(sloped) > 1e-3


SLICED = {"lejepa": lejepa_loss_func, "visreg": visreg_loss_func}


@pytest.mark.parametrize("name", SLICED)
def test_directions_are_of_the_seed_alone(name):
    state = torch.get_rng_state()
    losses = [SLICED[name](_views(), seed=seed).loss for seed in (7, 8, 7)]
    assert losses[0] == losses[2] != losses[1]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", SLICED)
def test_descent_brings_nearly_collapsed_views_to_a_standard_gaussian(name):
    """Of the regularisation alone, from embeddings near a line and of a twentieth of the scale."""
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(256, 1, generator=generator) * torch.ones(4)
    z = (0.05 * (line + 0.1 * torch.randn(2, 256, 4, generator=generator))).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    before = [SLICED[name](z.unbind()).loss.item(), sliced_epps_pulley(z.detach()).item()]
    for seed in range(300):
        optimizer.zero_grad()
        SLICED[name](z.unbind(), 1.0, 64, seed=seed).loss.backward()
        optimizer.step()
    after = [SLICED[name](z.unbind()).loss.item(), sliced_epps_pulley(z.detach()).item()]
    assert after[0] < before[0]
    assert after[1] < 1.2 < before[1] / 10
    for view in z.detach():
        torch.testing.assert_close(torch.cov(view.T), torch.eye(4), atol=0.15, rtol=0)


LOSSES = {
    "corinfomax": lambda views: CorInfoMaxLoss(6)(*views).loss,
    "frossl": lambda views: frossl_loss_func(views).loss,
    "lejepa": lambda views: lejepa_loss_func(views).loss,
    "mec": lambda views: mec_loss_func(views, views, 2.0 * len(views[0]) or 1.0),
    "visreg": lambda views: visreg_loss_func(views).loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_aligned_views_beat_strangers_and_spread_beats_collapse(name):
    views = [(v - v.mean(0)) / v.std(0) for v in _views(samples=64)]
    strangers = [views[0], views[1].flip(0)]
    line = [v[:, :1] * torch.ones(6) + 1e-3 * v for v in views]
    loss = LOSSES[name]
    assert loss(views) < loss(strangers)
    assert loss(views) < loss(line)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_it(name, dtype):
    views = [view.to(dtype).requires_grad_() for view in _views()]
    expected = LOSSES[name]([view.detach().float() for view in views])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LOSSES[name](views)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(torch.isfinite(view.grad).all() for view in views)


def test_mec_gives_the_targets_no_gradient():
    predictions = [view.requires_grad_() for view in _views()]
    targets = [view.requires_grad_() for view in _views(seed=1)]
    mec_loss_func(predictions, targets, 40.0).backward()
    assert all(target.grad is None for target in targets)
    assert all(prediction.grad.abs().sum() > 0 for prediction in predictions)


@pytest.mark.parametrize(
    "options", [{"normalisation": "none"}, {"forgetting": 1.0}, {"eps": -1.0}, {"alpha": -1.0}]
)
def test_corinfomax_refuses_impossible_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CorInfoMaxLoss(6, **options)


def test_corinfomax_names_a_nan():
    views = _views()
    views[0][3, 2] = float("nan")
    with pytest.raises(NonFiniteEmbeddingError):
        CorInfoMaxLoss(6)(*views)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("dtype", "big"),
    [
        (torch.float32, 1e20),
        (torch.bfloat16, 1e20),
        (torch.float64, 1e200),
        (torch.float32, np.nan),
    ],
)
def test_overflow_and_nan_are_errors_and_no_zeros(name, dtype, big):
    views = [view.to(dtype) for view in _views()]
    views[0][3, 2] = big
    try:
        found = LOSSES[name](views)
    except NonFiniteEmbeddingError:
        return
    # CorInfoMax computes in double precision, where 32 bits do not overflow.
    assert (name, dtype == torch.float64, big == big) == ("corinfomax", False, True)
    assert found == LOSSES[name]([view.double() for view in views])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("samples", "dim"), [(0, 6), (1, 6), (24, 0)])
def test_no_samples_or_dimensions_are_named(name, samples, dim):
    with pytest.raises(ValueError, match=r"2 samples or more|0 dimensions"):
        LOSSES[name](_views(samples, dim))


@pytest.mark.parametrize(("inverse_lambda", "order"), [(0.0, 4), (-3.0, 4), (40.0, 0)])
def test_mec_refuses_impossible_options(inverse_lambda, order):
    with pytest.raises(ValueError, match="inverse_lambda must be positive and order 1 or more"):
        mec_loss_func(_views(), _views(seed=1), inverse_lambda, order)


@pytest.mark.parametrize("loss", [frossl_loss_func, *SLICED.values()])
def test_one_view_is_refused(loss):
    with pytest.raises(ValueError, match="2 or more views"):
        loss(_views()[:1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {"lamb": lamb}) for name in SLICED for lamb in (-0.1, 1.1, float("nan"))],
        ("lejepa", {"num_slices": 0}),
        ("lejepa", {"t_max": 0.0}),
        ("lejepa", {"n_points": 16}),
        ("lejepa", {"n_points": 1}),
        ("visreg", {"num_projections": 0}),
    ],
)
def test_lejepa_and_visreg_refuse_impossible_options(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SLICED[name](_views(), **options)
