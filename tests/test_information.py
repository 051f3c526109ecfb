"""Information in nats: closed forms, bounds on models whose truth is known, and sampling bias."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, special, stats

from solo_mim.information import (
    alpha_req,
    canonical_correlations,
    effective_rank,
    gaussian_copula,
    generalised_gaussian_offset,
    lidar,
    mutual_information,
    mutual_information_from_covariances,
    rankme,
    shuffled_information,
    small_sample_bias,
    total_spectrum,
    view_information,
)
from solo_mim.losses import (
    NonFiniteEmbeddingError,
    NotPositiveDefiniteError,
    explicit_mim_loss_func,
)

READINGS = ("infomax", "two_view")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def test_scalar_correlation_gives_minus_half_log_one_minus_rho_squared():
    rho = torch.tensor([[0.8]])
    one = torch.ones(1, 1)
    information = mutual_information_from_covariances(4 * one, one, 2 * rho)
    assert information.item() == pytest.approx(-0.5 * math.log(1 - 0.8**2))
    assert information.dtype == torch.float64


def test_information_of_covariances_is_invariant_to_linear_maps_of_each_variable():
    z = normal(50, 5)
    joint = z.mT @ z / 50
    c1, c2, c12 = joint[:3, :3], joint[3:, 3:], joint[:3, 3:]
    expected = mutual_information_from_covariances(c1, c2, c12)
    m1, m2 = normal(3, 3, seed=1), normal(2, 2, seed=2)
    mapped = mutual_information_from_covariances(m1 @ c1 @ m1.mT, m2 @ c2 @ m2.mT, m1 @ c12 @ m2.mT)
    torch.testing.assert_close(mapped, expected)
    assert expected > 0


def test_perfectly_correlated_covariances_raise():
    eye = torch.eye(2)
    with pytest.raises(NotPositiveDefiniteError, match="joint covariance"):
        mutual_information_from_covariances(eye, eye, eye)


def test_information_of_samples_equals_that_of_their_canonical_correlations():
    z1 = normal(300, 4) + 5
    z2 = z1[:, :3] @ normal(3, 3, seed=1) + 2 * normal(300, 3, seed=2) - 3
    rho = canonical_correlations(z1, z2)
    assert rho.shape == (3,)
    assert (rho.diff() <= 0).all()
    information = mutual_information(z1, z2)
    torch.testing.assert_close(information, -0.5 * torch.log1p(-rho.square()).sum())
    assert mutual_information(z1, z2, noise=0.5) < information


def test_samples_too_few_for_the_joint_covariance_are_refused():
    with pytest.raises(
        ValueError, match="6 samples leave the covariance of 6 coordinates singular"
    ):
        mutual_information(normal(6, 3), normal(6, 3, seed=1))
    assert mutual_information(normal(6, 3), normal(6, 3, seed=1), noise=0.1).isfinite()


def test_two_view_information_is_that_of_the_symmetrised_pair():
    image = normal(100, 4)
    views = image + 0.6 * normal(2, 100, 4, seed=1)
    symmetrised = mutual_information(
        torch.cat((views[0], views[1])), torch.cat((views[1], views[0]))
    )
    # Both orders share one mean, as the views do in the estimator.
    torch.testing.assert_close(view_information(views, "two_view", 0.0), symmetrised)


@pytest.mark.parametrize("normalisation", ["standardise", "l2"])
@pytest.mark.parametrize("reading", READINGS)
def test_view_information_is_the_loss_at_one_floor_without_its_normalisation(
    reading, normalisation
):
    views = normal(20, 5) + 0.5 * normal(3, 20, 5, seed=1)
    loss = explicit_mim_loss_func(
        views,
        reading=reading,
        within="full",
        within_noise=0.2,
        total_noise=0.2,
        normalisation=normalisation,
    )
    pairs = 1 if reading == "infomax" else 2
    information = view_information(views.float(), reading, 0.2, normalisation)
    torch.testing.assert_close(information, -5 * pairs * loss, rtol=1e-5, atol=0)
    assert information.dtype == torch.float64


@pytest.mark.parametrize("reading", READINGS)
def test_view_information_is_invariant_to_linear_maps_at_noise_zero(reading):
    views = normal(60, 5) + 0.5 * normal(3, 60, 5, seed=1)
    mapped = views @ normal(5, 5, seed=2) + 7
    torch.testing.assert_close(
        view_information(mapped, reading, 0.0), view_information(views, reading, 0.0)
    )


@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(("num_samples", "dim"), [(40, 6), (5, 24)])
def test_view_information_falls_with_noise_and_is_positive(num_samples, dim, reading, num_views):
    views = normal(num_samples, dim) + 0.5 * normal(num_views, num_samples, dim, seed=1)
    information = [
        view_information(views, reading, noise).item() for noise in (1e-3, 0.01, 0.1, 0.5, 1, 10)
    ]
    assert information == sorted(information, reverse=True)
    assert information[-1] > 0


@pytest.mark.parametrize("reading", READINGS)
def test_view_information_refuses_a_singular_covariance_without_noise(reading):
    views = normal(2, 8, 9)
    with pytest.raises(
        ValueError, match="8 samples of 2 views leave a covariance of 9 coordinates"
    ):
        view_information(views, reading, 0.0)
    assert view_information(views, reading, 0.1).isfinite()
    with pytest.raises(ValueError, match="noise is a power"):
        view_information(views, reading, -0.1)


def test_infomax_is_the_information_about_the_image_for_a_homoscedastic_gaussian():
    samples, dim = 40_000, 3
    signal, distortion = normal(dim, dim, seed=1), 0.7 * normal(dim, dim, seed=2)
    views = normal(samples, dim, seed=3) @ signal + normal(2, samples, dim, seed=4) @ distortion
    c, w = signal.mT @ signal, distortion.mT @ distortion
    truth = 0.5 * (torch.logdet(c + w) - torch.logdet(w)).item()
    information = view_information(views, noise=0.0).item()
    assert information == pytest.approx(truth, abs=0.03)
    # Two views know less of each other than of the image: I(Z; Z') <= I(Z; image).
    two_view = view_information(views, "two_view", 0.0).item()
    assert two_view == pytest.approx(
        mutual_information_from_covariances(c + w, c + w, c).item(), abs=0.03
    )
    assert two_view < information
    # And a noise channel only loses: J_eps <= J.
    assert view_information(views, noise=0.1).item() < truth


def test_infomax_is_a_lower_bound_where_the_spread_of_an_image_varies():
    # z | image ~ N(x, s^2) with x ~ N(0, 1 - s^2): Z is N(0, 1) exactly, whatever the law of s^2,
    # so I(Z; image) = -1/2 E log s^2 per coordinate, and J is -1/2 log E s^2.
    samples, dim = 40_000, 3
    variances = torch.tensor([0.02, 0.9]).double()
    variance = variances[(normal(samples, 1, seed=1) > 0).long()]
    image = normal(samples, dim, seed=2) * (1 - variance).sqrt()
    views = image + normal(2, samples, dim, seed=3) * variance.sqrt()
    truth = -0.5 * dim * variances.log().mean().item()
    information = view_information(views, noise=0.0).item()
    assert information == pytest.approx(-0.5 * dim * math.log(variances.mean().item()), abs=0.03)
    assert information < truth - 1


@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("reading", READINGS)
def test_bias_formula_equals_simulation_of_independent_views(reading, num_views):
    num_samples, dim, draws = 40, 16, 200
    mixing = normal(dim, dim, seed=9)
    values = torch.stack(
        [
            view_information(normal(num_views, num_samples, dim, seed=s) @ mixing, reading, 0.0)
            for s in range(draws)
        ]
    )
    error = values.std().item() / math.sqrt(draws)
    bias = small_sample_bias(num_samples, dim, num_views, reading)
    assert values.mean().item() == pytest.approx(bias, abs=4 * error)
    assert bias > 10 * error


@pytest.mark.parametrize(
    ("dim", "two_view", "infomax"),
    [(32, 1.1, 0.5), (64, 4.7, 2.3), (100, 12.4, 6.1), (128, 22.0, 10.8)],
)
def test_bias_at_a_batch_of_256(dim, two_view, infomax):
    assert small_sample_bias(256, dim, reading="two_view") == pytest.approx(two_view, abs=0.05)
    assert small_sample_bias(256, dim) == pytest.approx(infomax, abs=0.05)


def test_bias_is_infinite_exactly_where_a_covariance_is_singular():
    assert math.isfinite(small_sample_bias(10, 9, reading="two_view"))
    assert small_sample_bias(10, 10, reading="two_view") == math.inf
    assert math.isfinite(small_sample_bias(10, 10))
    assert small_sample_bias(10, 11) == math.inf
    assert math.isfinite(small_sample_bias(10, 20, num_views=3))
    assert small_sample_bias(10, 10, num_views=3, reading="two_view") == math.inf
    with pytest.raises(ValueError, match="num_samples >= 2"):
        small_sample_bias(1, 1)


@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("reading", READINGS)
def test_shuffling_leaves_the_bias_alone(reading, num_views):
    views = normal(400, 20) + 0.3 * normal(num_views, 400, 20, seed=1)
    generator = torch.Generator().manual_seed(0)
    shuffled = shuffled_information(views, reading, 0.0, generator=generator).item()
    bias = small_sample_bias(400, 20, num_views, reading)
    assert shuffled == pytest.approx(bias, abs=0.5)
    assert view_information(views, reading, 0.0).item() > 10 * bias
    again = shuffled_information(views, reading, 0.0, generator=torch.Generator().manual_seed(0))
    assert again.item() == shuffled


def test_shuffling_leaves_no_pair_together():
    # Samples are unit vectors, all alike: what is left depends only on which pairs stay together.
    views = torch.eye(5).double().expand(3, 5, 5)
    together = view_information(views, noise=0.1)
    draws = {round(shuffled_information(views, noise=0.1).item(), 9) for _ in range(20)}
    assert len(draws) == 1
    assert draws.pop() < together.item()
    with pytest.raises(ValueError, match="3 views of 2 samples"):
        shuffled_information(views[:, :2])


def entropy_of_generalised_gaussian(beta: float, dim: int) -> float:
    """phi: entropy at unit covariance, by quadrature over the radius; no formula of the package."""
    # Density exp(-r^(2 beta) / 2) / Z against the surface of the sphere in `dim` dimensions.
    surface = 2 * math.pi ** (dim / 2) / special.gamma(dim / 2)

    def moment(function):
        def density(r):
            return surface * r ** (dim - 1) * math.exp(-(r ** (2 * beta)) / 2)

        return integrate.quad(lambda r: function(r) * density(r), 0, np.inf, limit=500)[0]

    normaliser = moment(lambda r: 1)
    entropy = math.log(normaliser) + moment(lambda r: r ** (2 * beta) / 2) / normaliser
    variance = moment(lambda r: r**2) / normaliser / dim
    return entropy - dim / 2 * math.log(variance)


@pytest.mark.parametrize("beta", [0.5, 0.8, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_offset_is_the_difference_of_entropies(beta, dim):
    expected = 2 * entropy_of_generalised_gaussian(beta, dim)
    expected -= entropy_of_generalised_gaussian(beta, 2 * dim)
    assert generalised_gaussian_offset(beta, dim) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("beta", [0.6, 2.0])
def test_entropy_behind_the_offset_agrees_with_monte_carlo(beta):
    dim, samples = 2, 400_000
    rng = np.random.default_rng(0)
    # u^beta is Gamma(dim / (2 beta), scale 2); the direction is uniform.
    radius = rng.gamma(dim / (2 * beta), 2, samples) ** (1 / (2 * beta))
    angle = rng.uniform(0, 2 * np.pi, samples)
    x = radius * np.cos(angle)
    # The density in two dimensions, at its own covariance; then scaled to unit covariance.
    log_density = np.log(beta) - np.log(np.pi) - special.gammaln(1 / beta) - np.log(2) / beta
    log_density = log_density - radius ** (2 * beta) / 2
    entropy = -log_density.mean() - np.log(x.var())
    assert entropy_of_generalised_gaussian(beta, dim) == pytest.approx(entropy, abs=0.01)
    gennorm = stats.gennorm(2 * beta)
    scalar = gennorm.entropy() - np.log(gennorm.std())
    assert entropy_of_generalised_gaussian(beta, 1) == pytest.approx(scalar, abs=1e-6)


def test_offset_vanishes_for_gaussians_and_takes_no_negative_shape():
    for dim in (1, 2, 64, 2048):
        assert generalised_gaussian_offset(1.0, dim) == pytest.approx(0, abs=1e-7)
    assert generalised_gaussian_offset(0.5, 64) == pytest.approx(-0.1496, abs=1e-4)
    for beta, dim in ((0.0, 2), (-1.0, 2), (1.0, 0)):
        with pytest.raises(ValueError, match="beta must be positive"):
            generalised_gaussian_offset(beta, dim)


def test_copula_has_normal_scores_and_ignores_monotone_maps_of_coordinates():
    z = normal(101, 3)
    scores = gaussian_copula(z)
    torch.testing.assert_close(gaussian_copula(z.exp()), scores)
    expected = stats.norm.ppf(stats.rankdata(z.numpy(), axis=0) / 102)
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-12)


def test_copula_gives_ties_one_score_and_a_constant_column_zero():
    z = torch.tensor([[1.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    scores = gaussian_copula(z)
    assert scores[0, 0] == scores[1, 0] < scores[2, 0]
    torch.testing.assert_close(scores[:, 1], torch.zeros(3).double())


def test_canonical_correlations_ignore_linear_maps_and_dead_coordinates():
    z1, z2 = normal(80, 3), normal(80, 3, seed=1)
    z2[:, 0] = z1[:, 1]
    rho = canonical_correlations(z1, z2)
    assert rho[0].item() == pytest.approx(1)
    assert rho[1] < 0.6
    mapped = torch.cat((z1 @ normal(3, 3, seed=2), torch.ones(80, 2)), 1)
    torch.testing.assert_close(canonical_correlations(mapped, z2), rho)


def test_effective_rank_of_known_spectra():
    # Orthogonal, centred columns: signs of a Hadamard matrix without its constant column.
    columns = torch.tensor(np.array(linalg.hadamard(16))[:, 1:6]).double()
    assert effective_rank(columns + 3).item() == pytest.approx(5)
    assert effective_rank(columns[:, :1] @ normal(1, 4)).item() == pytest.approx(1)
    weights = torch.tensor([0.5, 0.25, 0.25]).double()
    expected = math.exp(-(weights * weights.log()).sum().item())
    assert effective_rank(columns[:, :3] * weights * 40).item() == pytest.approx(expected)
    assert effective_rank(torch.ones(5, 3)).item() == 0


def hadamard(dim: int) -> torch.Tensor:
    """256 x D: orthogonal, centred columns of unit variance."""
    return torch.tensor(linalg.hadamard(256)[:, 1 : 1 + dim]).double()


@pytest.mark.parametrize("shape", [(40, 12), (9, 30)])
def test_rankme_is_its_formula_on_the_matrix_as_it_is(shape):
    z = normal(*shape) @ normal(shape[1], shape[1], seed=1) + 2
    singular = np.linalg.svd(z.numpy(), compute_uv=False)
    p = singular / np.linalg.norm(singular, 1) + 1e-7
    assert rankme(z).item() == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-9)
    assert rankme(7 * z).item() == pytest.approx(rankme(z).item())


def test_rankme_of_known_spectra_counts_the_mean_which_effective_rank_leaves_out():
    white = hadamard(64)
    assert rankme(white).item() == pytest.approx(64, rel=1e-4)
    assert rankme(white[:, :1] @ normal(1, 64)).item() == pytest.approx(1, rel=1e-3)
    assert rankme(torch.zeros(5, 3)).item() == 0
    assert rankme(torch.ones(5, 3)).item() == pytest.approx(1, rel=1e-4)
    assert effective_rank(torch.ones(5, 3)).item() == 0
    assert rankme(white + 1e4).item() < 3
    assert effective_rank(white + 1e4).item() == pytest.approx(64)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.5])
def test_alpha_req_of_an_exact_power_law_is_its_exponent(alpha):
    ranks = torch.arange(1, 129).double()
    z = hadamard(128) * ranks ** (-alpha / 2) + 5
    assert alpha_req(z).item() == pytest.approx(alpha, abs=1e-9)
    rotated = z @ torch.linalg.qr(normal(128, 128)).Q
    assert alpha_req(10 * rotated, (1, 128)).item() == pytest.approx(alpha, abs=1e-9)


@pytest.mark.parametrize(("ranks", "dim"), [((4, 100), 120), ((11, 50), 120), ((4, 100), 20)])
def test_alpha_req_is_a_weighted_line_over_the_stated_ranks(ranks, dim):
    z = normal(200, dim) @ normal(dim, dim, seed=1)
    spectrum = np.linalg.eigvalsh(np.cov(z.numpy(), rowvar=False))[::-1]
    i = np.arange(ranks[0], min(ranks[1], dim) + 1)
    slope, _ = np.polyfit(np.log(i), np.log(spectrum[i - 1]), 1, w=i**-0.5)  # w of the residual
    assert alpha_req(z, ranks).item() == pytest.approx(-slope)


def test_alpha_req_fits_no_round_off_and_nothing_to_two_eigenvalues():
    ranks = torch.arange(1, 21).double()
    z = hadamard(20) / ranks
    more = z @ normal(20, 60)
    alone = alpha_req(z @ torch.linalg.qr(normal(60, 60)).Q[:20])
    assert alone.item() == pytest.approx(2, abs=1e-6)
    assert alpha_req(more).item() < 5, "the 40 eigenvalues that are round-off would make it 30"
    for dim, fitted in ((1, False), (5, False), (6, True)):
        assert alpha_req(z[:, :dim] @ normal(dim, 30)).isfinite().item() == fitted
    assert alpha_req(torch.ones(9, 7)).isnan()


@pytest.mark.parametrize("num_views", [2, 5])
@pytest.mark.parametrize(("images", "dim"), [(60, 8), (10, 24)])
def test_lidar_is_the_rank_of_the_discriminant_matrix(num_views, images, dim):
    mixing = normal(dim, dim, seed=1)
    views = (normal(images, dim) + 0.4 * normal(num_views, images, dim, seed=2)) @ mixing
    z = views.numpy()
    means = z.mean(0)
    between = np.cov(means, rowvar=False)
    within = sum(np.cov(z[:, n], rowvar=False) for n in range(images)) / images
    values = linalg.eigvalsh(between, within + 0.01 * np.eye(dim)).clip(0)
    p = values / values.sum() + 1e-7
    expected = np.exp(-np.sum(p * np.log(p)))
    assert lidar(views, delta=0.01).item() == pytest.approx(expected, rel=1e-6)


def test_lidar_of_limiting_cases():
    white = hadamard(16)
    noise = torch.tensor(linalg.hadamard(256)[:, 17:33]).double()
    views = torch.stack([white + noise, white - noise])
    assert lidar(views).item() == pytest.approx(16, rel=1e-4)
    # What tells images apart has one dimension, though z has 16 and is white.
    line = white[:, :1] @ torch.eye(1, 16).double()
    views = torch.stack([1e3 * line + noise, 1e3 * line - noise])
    assert lidar(views).item() == pytest.approx(1, rel=1e-3)
    # Of equal views the regulariser is left: the entropy of the variances.
    scales = torch.tensor([0.5, 0.25, 0.25]).double()
    equal = (white[:, :3] * scales.sqrt()).expand(2, -1, -1)
    assert lidar(equal).item() == pytest.approx(2**1.5, rel=1e-4)
    assert lidar(torch.ones(2, 9, 3)).item() == 0
    with pytest.raises(NotPositiveDefiniteError, match="larger delta"):
        lidar(equal, delta=0.0)
    # Two views that share nothing have 1/2 for each eigenvalue, and a LiDAR near D.
    assert lidar(normal(2, 4000, 16)).item() > 15.5


@pytest.mark.parametrize(
    "function",
    [
        gaussian_copula,
        effective_rank,
        rankme,
        alpha_req,
        lambda z: lidar((z, z)),
        lambda z: canonical_correlations(z, z),
        lambda z: mutual_information(z, z, 0.1),
        lambda z: view_information((z, z)),
    ],
)
def test_non_finite_samples_raise_the_typed_error(function):
    z = normal(10, 3)
    z[2, 1] = float("nan")
    with pytest.raises(NonFiniteEmbeddingError):
        function(z)


def test_overflow_raises_the_typed_error():
    z = normal(10, 3) * 1e160
    for function in (total_spectrum, view_information):
        with pytest.raises(NonFiniteEmbeddingError, match="overflow when squared"):
            function((z, z))


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (4, 0)])
def test_too_little_to_measure_is_named(shape):
    z = torch.zeros(shape)
    for function in (effective_rank, lambda z: canonical_correlations(z, z)):
        with pytest.raises(ValueError, match="2 samples and 1 dimension or more"):
            function(z)
    with pytest.raises(ValueError, match=r"2 samples or more|0 dimensions"):
        view_information((z, z))


def test_spectrum_is_that_of_the_correlation_matrix_of_all_views():
    views = 3 + normal(2, 50, 6) @ normal(6, 6, seed=1)
    expected = np.linalg.eigvalsh(np.corrcoef(views.flatten(0, 1).numpy(), rowvar=False))[::-1]
    np.testing.assert_allclose(total_spectrum(views).numpy(), expected, atol=1e-12)
    assert total_spectrum(views).mean().item() == pytest.approx(1)
    constant = torch.cat((views, torch.ones(2, 50, 1)), 2)
    assert total_spectrum(constant)[-1].item() == 0


@pytest.mark.parametrize("noise", [-0.2, float("nan"), float("inf")])
def test_a_noise_that_is_no_power_is_refused(noise):
    z = torch.randn(40, 3)
    for measure in (mutual_information, lambda a, b, noise: view_information((a, b), noise=noise)):
        with pytest.raises(ValueError, match="noise is a power"):
            measure(z, z.flip(0), noise=noise)


@pytest.mark.parametrize("measure", [mutual_information, canonical_correlations])
def test_samples_that_are_no_pairs_are_refused(measure):
    with pytest.raises(ValueError, match="samples come in pairs, got 40 and 39"):
        measure(torch.randn(40, 3), torch.randn(39, 2))
