"""The loss: against its definition, its direction and invariances, hard inputs, precision."""

import doctest
import inspect
import math
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise

import pytest
import torch

from solo_mim.losses import (
    ExplicitMIMLoss,
    ExplicitMIMOptions,
    NonFiniteEmbeddingError,
    explicit_mim,
    explicit_mim_loss_func,
    explicit_mim_terms,
    non_gaussianity,
    rewards_collapse,
)
from solo_mim.losses.logdet import settle_deferred

READINGS = ("infomax", "two_view")
WITHIN = ("full", "diagonal", "isotropic", "linear")
EVERY_LOSS = [
    pytest.param(
        {"reading": reading, "within": within, "normalisation": normalisation},
        id=f"{reading}-{within}-{normalisation}",
    )
    for reading, within, normalisation in [
        *(("infomax", within, "standardise") for within in WITHIN),
        ("infomax", "full", "l2"),
        ("infomax", "isotropic", "l2"),
        ("two_view", "full", "standardise"),
        ("two_view", "isotropic", "standardise"),
        ("two_view", "full", "l2"),
    ]
]
# Floors of W and of A where none are given.
FLOORS = {
    "full": (0.1, 0.01),
    "diagonal": (0.1, 0.01),
    "isotropic": (0.001, 0.001),
    "linear": (0.3, 0.01),
}
# V N >= D works on D x D matrices, V N < D on Gram matrices.
SIDES = [pytest.param(7, 4, id="d-side"), pytest.param(3, 14, id="gram-side")]


def views_of(num_views, num_samples, dim, spread=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(num_samples, dim, dtype=torch.float64, generator=generator)
    noise = torch.randn(num_views, num_samples, dim, dtype=torch.float64, generator=generator)
    return image + spread * noise


def reference_terms(
    z,
    reading="infomax",
    within="isotropic",
    within_noise=None,
    total_noise=None,
    between_noise=None,
    normalisation="",
):
    """The definition, D x D and left to autograd: loss, total, within, between."""
    within_noise, total_noise = within_noise or FLOORS[within][0], total_noise or FLOORS[within][1]
    num_views, num_samples, dim = z.shape
    if normalisation == "l2":
        z = math.sqrt(dim) * z / z.norm(dim=2, keepdim=True)
    z = z - z.mean((0, 1))
    if normalisation == "standardise":
        z = z / z.square().mean((0, 1)).sqrt()
    mean = z.mean(0)
    deviation = z - mean
    a = torch.einsum("vni,vnj->ij", z, z) / (num_views * num_samples)
    b = num_views * mean.mT @ mean / num_samples
    w = torch.einsum("vni,vnj->ij", deviation, deviation) / (num_samples * (num_views - 1))
    floors = (total_noise, within_noise, between_noise or within_noise)
    total, full, between = (
        torch.linalg.slogdet(c + floor * torch.eye(dim).double()).logabsdet / (2 * dim)
        for c, floor in zip((a, w, b), floors, strict=True)
    )
    within = {
        "full": full,
        "diagonal": sum((p + within_noise).log() for p in w.diagonal()) / (2 * dim),
        "isotropic": torch.log(w.trace() / dim + within_noise) / 2,
        "linear": (math.log(within_noise) + w.trace() / (dim * within_noise)) / 2,
    }[within]
    if reading != "two_view":
        return within - total, total, within
    pairs = num_views - 1
    return -(num_views * total - between - pairs * within) / pairs, total, within, between


@pytest.mark.parametrize("options", EVERY_LOSS)
@pytest.mark.parametrize(("num_samples", "dim"), SIDES)
@pytest.mark.parametrize("num_views", [2, 3, 4])
def test_terms_and_gradient_equal_the_definition(num_views, num_samples, dim, options):
    z = views_of(num_views, num_samples, dim).requires_grad_()
    if options["reading"] == "two_view":
        options = {**options, "within_noise": 0.6, "between_noise": 0.2}
    expected = reference_terms(z, **options)
    terms = explicit_mim_terms(z.unbind(), **options)
    for ours, theirs in zip(terms, expected, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    (ours,) = torch.autograd.grad(terms.loss, z)
    (theirs,) = torch.autograd.grad(expected[0], z)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("options", EVERY_LOSS)
@pytest.mark.parametrize(("num_samples", "dim"), [(5, 3), (2, 9)], ids=["d-side", "gram-side"])
@pytest.mark.parametrize("num_views", [2, 3, 4])
def test_gradcheck(num_views, num_samples, dim, options):
    views = [z.requires_grad_() for z in views_of(num_views, num_samples, dim).unbind()]

    def terms(*views):
        terms = explicit_mim_terms(*views, **options)
        return tuple(term for term in terms if term is not None)

    assert torch.autograd.gradcheck(terms, views)


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("reading", READINGS)
def test_floors_not_given_are_those_of_the_within_structure(reading, within):
    within_noise, total_noise = FLOORS[within]
    options = ExplicitMIMOptions(reading=reading, within=within)
    assert (options.within_noise, options.total_noise) == (within_noise, total_noise)
    options = ExplicitMIMOptions(within=within, within_noise=0.5)
    assert (options.within_noise, options.total_noise) == (0.5, total_noise)


def test_within_structure_not_given_is_that_of_the_reading():
    z = views_of(3, 20, 6)
    for reading, within in (("infomax", "isotropic"), ("two_view", "full")):
        assert ExplicitMIMOptions(reading=reading).within == within
        loss = explicit_mim_loss_func(z, reading=reading)
        torch.testing.assert_close(
            loss, reference_terms(z, reading, within, normalisation="standardise")[0]
        )


def test_views_come_as_arguments_as_a_sequence_or_as_one_tensor_to_function_and_module():
    z = views_of(3, 20, 4)
    terms = explicit_mim_terms(*z)
    assert terms.between is None
    for call in (explicit_mim_loss_func, ExplicitMIMLoss()):
        for arguments in (z.unbind(), (list(z),), (z,)):
            assert torch.equal(call(*arguments), terms.loss)
    options = {
        "reading": "two_view",
        "within": "diagonal",
        "within_noise": 0.7,
        "total_noise": 0.2,
        "between_noise": 0.5,
        "normalisation": "l2",
    }
    module = ExplicitMIMLoss(**options)
    assert torch.equal(module(z), explicit_mim_loss_func(z, **options))
    assert all(f"{name}={value!r}" in repr(module) for name, value in options.items())


@pytest.mark.parametrize(("num_samples", "dim"), SIDES)
@pytest.mark.parametrize("normalisation", ["standardise", "l2"])
@pytest.mark.parametrize("num_views", [2, 3, 4])
@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
def test_simpler_structures_of_the_within_covariance_bound_the_term_from_above(
    num_samples, dim, normalisation, num_views, noise
):
    for seed in range(5):
        spread = torch.linspace(0.1, 1.5, dim).double()
        z = views_of(num_views, num_samples, dim, spread=spread, seed=seed)
        options = {"within_noise": noise, "total_noise": 0.01, "normalisation": normalisation}
        terms = [explicit_mim_terms(z, within=within, **options) for within in WITHIN]
        assert len({term.total.item() for term in terms}) == 1
        for simpler, tighter in pairwise(reversed(terms)):
            assert simpler.within > tighter.within


def test_structures_agree_where_the_within_covariance_has_them():
    # Codes of +-1 are uncorrelated exactly: W is diagonal, of equal powers a multiple of I.
    codes = torch.tensor([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]).double()
    signal, noise = codes.tile(8, 1), codes.repeat_interleave(8, 0)

    def within(powers, structure, within_noise=0.1):
        views = [signal + sign * powers.sqrt() * noise for sign in (1, -1)]
        options = {"within": structure, "within_noise": within_noise, "total_noise": 1e-6}
        return explicit_mim_terms(*views, **options).within.item()

    unequal, equal = torch.tensor([0.1, 0.5, 2.0]).double(), torch.full((3,), 0.5).double()
    assert within(unequal, "diagonal") == pytest.approx(within(unequal, "full"), abs=1e-12)
    assert within(unequal, "isotropic") > within(unequal, "full") + 0.01
    assert within(equal, "isotropic") == pytest.approx(within(equal, "full"), abs=1e-12)
    assert within(equal, "linear") > within(equal, "isotropic") + 0.1
    tiny = torch.full((3,), 1e-4).double()
    assert within(tiny, "linear") == pytest.approx(within(tiny, "isotropic"), abs=1e-6)


def test_isotropic_finds_the_weight_that_linear_is_given():
    # log(p) is at p = ew what log ew + p / ew is: the same gradient, up to the size of the floor.
    z = views_of(2, 64, 8).requires_grad_()
    floor = 1e-6
    isotropic = explicit_mim_terms(z, within="isotropic", within_noise=floor, total_noise=floor)
    (found,) = torch.autograd.grad(isotropic.within, z)
    power = math.exp(2 * isotropic.within.item())
    linear = explicit_mim_terms(z, within="linear", within_noise=power, total_noise=floor)
    (given,) = torch.autograd.grad(linear.within, z)
    torch.testing.assert_close(found, given)


@pytest.mark.parametrize("reading", READINGS)
def test_gaussianity_adds_its_weight_times_the_distance_of_all_views(reading):
    z = views_of(2, 50, 4).exp()
    plain = explicit_mim_terms(z, reading=reading)
    assert plain.non_gaussianity is None
    terms = explicit_mim_terms(z, reading=reading, gaussianity=3.0, seed=7)
    expected = non_gaussianity(z.flatten(0, 1), 256, 17, seed=7)
    torch.testing.assert_close(terms.non_gaussianity, expected)
    torch.testing.assert_close(terms.loss, plain.loss + 3 * expected)
    assert terms.loss != explicit_mim_terms(z, reading=reading, gaussianity=3.0, seed=8).loss
    module = ExplicitMIMLoss(reading=reading, gaussianity=3.0)
    assert module(z) != module(z), "other directions at each step"
    module.eval()
    assert module(z) == module(z)


def test_names_of_version_0_1_0_are_understood_and_said():
    z = views_of(2, 20, 4).float()
    with pytest.warns(FutureWarning, match='within="linear"'):
        old = explicit_mim_loss_func(z, reading="first_order")
    assert torch.equal(old, explicit_mim_loss_func(z, within="linear"))
    with pytest.warns(FutureWarning, match="float64 embeddings"):
        module = ExplicitMIMLoss(double_precision=True)
    assert torch.equal(module(z), explicit_mim_loss_func(z))


def test_options_are_shown_where_help_looks():
    for signature in map(inspect.signature, (explicit_mim_loss_func, ExplicitMIMLoss)):
        shown = {n: p.default for n, p in signature.parameters.items() if p.kind == p.KEYWORD_ONLY}
        assert shown.pop("seed", 0) == 0  # the module counts its steps instead
        defaults = {option.name: option.default for option in fields(ExplicitMIMOptions)}
        assert shown == {"process_group": None, **defaults}


def test_known_correlations_give_the_closed_form():
    # Four points per coordinate: signal +-1 in both views, noise +-s of opposite sign, all
    # combinations, so that the sample covariances are exact: A = 1 + s^2, W = 2 s^2, B = 2.
    signs = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]).double()
    spreads = torch.tensor([0.3, 0.9, 1.5]).double()
    # Coordinates on orthogonal codes of 64 samples: index digits in base 4.
    digits = torch.cartesian_prod(*[torch.arange(4)] * 3)
    signal, noise = signs[digits, 0], signs[digits, 1] * spreads
    views = (signal + noise, signal - noise)
    rho = (1 - spreads**2) / (1 + spreads**2)
    floors = {"within_noise": 1e-12, "total_noise": 1e-12}
    loss = explicit_mim_loss_func(views, reading="two_view", **floors)
    assert loss.item() == pytest.approx((0.5 * torch.log1p(-(rho**2))).mean().item())
    loss = explicit_mim_loss_func(views, within="full", **floors)
    assert loss.item() == pytest.approx((0.5 * torch.log1p(-rho)).mean().item())
    loss = explicit_mim_loss_func(views, **floors)
    assert loss.item() == pytest.approx(0.5 * (1 - rho).mean().log().item())
    floors = {"within_noise": 0.5, "total_noise": 0.1}
    loss = explicit_mim_loss_func(views, within="full", **floors)
    expected = 0.5 * (torch.log(1 - rho + 0.5) - math.log(1.1)).mean().item()
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("options", EVERY_LOSS)
def test_aligned_is_better_than_independent_and_collapse_is_worse(options):
    def loss(z):
        return explicit_mim_loss_func(z, **options).item()

    z = views_of(2, 256, 16, spread=0.1)
    aligned = loss(z)
    noisy = loss(views_of(2, 256, 16, spread=1.0))
    independent = loss(torch.stack((z[0], z[1].roll(1, 0))))
    assert aligned < noisy < independent
    # Dimensional collapse: the same agreement on two directions only, whatever the scale.
    collapsed = (
        z[:, :, :2] @ torch.randn(2, 16, generator=torch.Generator().manual_seed(1)).double()
    )
    assert loss(collapsed) > aligned + 0.1
    # Complete collapse carries nothing: worse than any agreement and, where the bound is not too
    # loose for that, than the dimensional one.
    nothing = loss(torch.ones_like(z))
    assert nothing > noisy
    assert nothing > loss(collapsed) or options["within"] == "isotropic"


@pytest.mark.parametrize("options", EVERY_LOSS)
@pytest.mark.parametrize(("num_samples", "dim"), SIDES)
def test_order_of_samples_and_of_views_is_immaterial(num_samples, dim, options):
    z = views_of(3, num_samples, dim)
    loss = explicit_mim_loss_func(z, **options)
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(explicit_mim_loss_func(z[:, order], **options), loss)
    torch.testing.assert_close(explicit_mim_loss_func(z[[2, 0, 1]], **options), loss)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(("num_samples", "dim"), SIDES)
def test_standardised_loss_ignores_units_and_offsets_of_coordinates(num_samples, dim, reading):
    z = views_of(2, num_samples, dim)
    scale, offset = torch.logspace(-1, 3, dim).double(), torch.linspace(-100, 100, dim).double()
    loss = explicit_mim_loss_func(z, reading=reading)
    moved = explicit_mim_loss_func(z * scale + offset, reading=reading)
    torch.testing.assert_close(moved, loss, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reading", ["infomax", "two_view"])
def test_invertible_linear_map_is_immaterial_as_floors_vanish(reading):
    z = views_of(3, 200, 5)
    mixing = torch.randn(5, 5, generator=torch.Generator().manual_seed(3)).double()
    differences = []
    for noise in (1e-2, 1e-4, 1e-8):
        options = {"reading": reading, "within_noise": noise, "total_noise": noise}
        options["within"] = "full"  # the others depend on the coordinates
        moved = explicit_mim_loss_func(z @ mixing, **options)
        differences.append((moved - explicit_mim_loss_func(z, **options)).abs().item())
    assert differences[0] > 100 * differences[2]
    assert differences[2] < 1e-6


@pytest.mark.parametrize("reading", READINGS)
def test_two_identical_views_and_more_of_them_are_consistent(reading):
    # Each further view of the same law adds no D x D block; duplicates of both views change nothing
    # but the divisor of W, which counts V - 1 contrasts.
    z = views_of(2, 30, 4)
    two = explicit_mim_terms(z, reading=reading)
    four = explicit_mim_terms(z.repeat(2, 1, 1), reading=reading)
    torch.testing.assert_close(four.total, two.total)
    assert four.within < two.within


@pytest.mark.parametrize("within_noise", [0.1, 1.0])
@pytest.mark.parametrize(("reading", "barriers", "pairs"), [("infomax", 1, 1), ("two_view", 3, 2)])
def test_separate_floors_are_the_equal_floor_information_less_a_barrier(
    reading, barriers, pairs, within_noise
):
    z, low, dim = views_of(3, 40, 6), 0.02, 6
    options = {"reading": reading, "within_noise": within_noise}
    information = explicit_mim_loss_func(z, total_noise=within_noise, **options) * -dim * pairs
    objective = explicit_mim_loss_func(z, total_noise=low, **options) * -dim * pairs
    z = z - z.mean((0, 1))
    z = (z / z.square().mean((0, 1)).sqrt()).flatten(0, 1)
    eye = torch.eye(dim).double()
    a = z.mT @ z / len(z)
    barrier = 0.5 * torch.logdet(eye + (within_noise - low) * torch.linalg.inv(a + low * eye))
    assert barrier > 0
    torch.testing.assert_close(objective, information - barriers * barrier)


@pytest.mark.parametrize("rho", [0.02, 0.3, 0.9])
def test_default_floors_reward_correlation_from_the_start(rho):
    # One coordinate of exact correlation: the loss falls as rho grows, for both readings.
    code = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()

    def loss(rho, **options):
        noise = math.sqrt((1 - rho) / (1 + rho))
        views = [code[:, :1] + sign * noise * code[:, 1:] for sign in (1, -1)]
        return explicit_mim_loss_func(views, **options).item()

    for reading in READINGS:
        assert loss(rho + 0.01, reading=reading) < loss(rho, reading=reading)
    # What docs/method.md says of a lower floor for B: (1 - 0.01) / 2 is where it turns.
    low = {"reading": "two_view", "within_noise": 1.0, "between_noise": 0.01}
    assert (loss(rho + 0.01, **low) < loss(rho, **low)) == (rho > 0.495)


@pytest.mark.parametrize("options", EVERY_LOSS)
@pytest.mark.parametrize(
    ("num_views", "num_samples", "dim"), [(2, 2, 3), (2, 2, 2048), (3, 2, 4), (2, 32, 128)]
)
def test_few_samples_have_finite_loss_and_gradient(num_views, num_samples, dim, options):
    exact = views_of(num_views, num_samples, dim)
    z = exact.float().requires_grad_()
    loss = explicit_mim_loss_func(z, **options)
    loss.backward()
    assert z.grad.isfinite().all()
    expected = exact.clone().requires_grad_()
    reference = explicit_mim_loss_func(expected, **options)
    reference.backward()
    rounding = 1e-7 / FLOORS[options["within"]][1]
    assert loss.item() == pytest.approx(reference.item(), abs=rounding)
    scale = expected.grad.abs().max()
    apart = (z.grad.double() - expected.grad).abs().max() / scale
    assert apart < 10 * rounding


DEGENERATE = {
    "duplicate samples": lambda z: z[:, :1].expand_as(z),
    "constant column": lambda z: torch.cat((z[..., 1:], torch.full_like(z[..., :1], 1e3)), 2),
    "duplicate column": lambda z: torch.cat((z[..., 1:], z[..., 1:2]), 2),
    "equal views": lambda z: z[:1].expand_as(z),
    "all zero": torch.zeros_like,
    "tiny": lambda z: 1e-18 * z,
    "huge": lambda z: 1e12 * z,
}


@pytest.mark.parametrize("options", EVERY_LOSS)
@pytest.mark.parametrize(("num_samples", "dim"), [(24, 12), (3, 30)], ids=["d-side", "gram-side"])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_embeddings_have_finite_loss_and_bounded_gradient(
    kind, num_samples, dim, options
):
    z = DEGENERATE[kind](views_of(2, num_samples, dim).float()).clone().requires_grad_()
    loss = explicit_mim_loss_func(z, **options)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    # 316 bounds the gain of the normalisation, 1 / total_noise that of a log-determinant.
    assert z.grad.abs().max() < 316 / FLOORS[options["within"]][1]


def test_sgd_at_a_high_rate_with_fewer_samples_than_dimensions_decreases_the_loss():
    z = views_of(2, 32, 128).float().requires_grad_()
    losses = []
    for _ in range(21):
        loss = explicit_mim_loss_func(z)
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, z)
        z = (z - 0.5 * gradient).detach().requires_grad_()
    assert all(after < before for before, after in pairwise(losses)), losses


@pytest.mark.parametrize("options", EVERY_LOSS)
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float16, None),
        (torch.bfloat16, None),
        (torch.float32, None),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
    ],
)
@pytest.mark.parametrize(("num_samples", "dim"), [(64, 16), (8, 40)], ids=["d-side", "gram-side"])
def test_low_precision_in_and_out_of_autocast_equals_double(
    num_samples, dim, dtype, autocast, options
):
    z = views_of(2, num_samples, dim).to(dtype).requires_grad_()
    exact = z.detach().double().requires_grad_()
    reference = explicit_mim_loss_func(exact, **options)
    reference.backward()
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        loss = explicit_mim_loss_func(z, **options)
        loss.backward()  # inside on purpose: a matrix product of the backward is at risk as well
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference.item(), abs=2e-5)
    assert z.grad.dtype == dtype
    scale = exact.grad.abs().max()
    rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-4}[dtype]
    torch.testing.assert_close(
        z.grad.double() / scale, exact.grad / scale, rtol=rounding, atol=rounding
    )


def test_float64_embeddings_are_computed_in_float64():
    z = views_of(2, 20, 4)
    assert explicit_mim_loss_func(z).dtype == torch.float64
    assert explicit_mim_loss_func(z[0].float(), z[1]).dtype == torch.float64
    assert explicit_mim_loss_func(z.float()).dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", EVERY_LOSS)
@pytest.mark.parametrize(("num_samples", "dim"), SIDES)
def test_non_finite_embedding_raises_the_typed_error(num_samples, dim, options, bad):
    z = views_of(2, num_samples, dim)
    z[1, 2, 3] = bad
    with pytest.raises(NonFiniteEmbeddingError, match="NaN or inf"):
        explicit_mim_loss_func(z, **options)


@pytest.mark.parametrize("place", [..., (1, 2, 3)], ids=["everywhere", "in one entry"])
@pytest.mark.parametrize("options", EVERY_LOSS)
@pytest.mark.parametrize(("num_samples", "dim"), [(7, 4), (3, 40)], ids=["d-side", "gram-side"])
@pytest.mark.parametrize(
    ("dtype", "big"), [(torch.float32, 1e20), (torch.bfloat16, 1e20), (torch.float64, 1e160)]
)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_overflow_raises_the_typed_error(autocast, dtype, big, num_samples, dim, options, place):
    z = views_of(2, num_samples, dim)
    z[place] *= big
    z = z.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with pytest.raises(NonFiniteEmbeddingError, match="overflow when squared"):
            explicit_mim_loss_func(z, **options)
        if dtype != torch.float64:
            z.requires_grad_()
            explicit_mim_loss_func(z.double(), **options).backward()
            assert z.grad.isfinite().all()


@pytest.mark.parametrize("options", EVERY_LOSS)
@pytest.mark.parametrize(("num_samples", "dim"), [(64, 16), (4, 40)], ids=["d-side", "gram-side"])
def test_gradient_is_right_or_an_error_up_to_the_largest_numbers(num_samples, dim, options):
    raised = 0
    for exponent in range(16, 38):
        z = (views_of(2, num_samples, dim) * 10.0**exponent).float().requires_grad_()
        exact = z.detach().double().requires_grad_()
        explicit_mim_loss_func(exact, **options).backward()
        try:
            explicit_mim_loss_func(z, **options).backward()
        except NonFiniteEmbeddingError:
            raised += 1
            continue
        scale = exact.grad.abs().max()
        torch.testing.assert_close(z.grad.double() / scale, exact.grad / scale, rtol=0, atol=1e-3)
    assert raised >= 18


def test_largest_numbers_of_float16_are_computed():
    z = views_of(2, 20, 4).half()
    z[1, 2, 3] = torch.finfo(torch.float16).max
    for normalisation in ("standardise", "l2"):
        loss = explicit_mim_loss_func(z, normalisation=normalisation)
        expected = explicit_mim_loss_func(z.double(), normalisation=normalisation)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


Z = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("views", "options", "error", "message"),
    [
        ([Z], {}, ValueError, "2 or more views"),
        (Z, {}, ValueError, "V x N x D"),
        ([Z, Z[:3]], {}, ValueError, r"one shape, got \(4, 3\), \(3, 3\)"),
        ([Z[0], Z[0]], {}, ValueError, "N x D"),
        ([Z[:1], Z[:1]], {}, ValueError, "2 samples or more"),
        ([Z[:0], Z[:0]], {}, ValueError, "2 samples or more"),
        ([Z[:, :0], Z[:, :0]], {}, ValueError, "of 0 dimensions"),
        ([], {}, ValueError, "2 or more views"),
        ([Z.int(), Z.int()], {}, TypeError, r"floating-point tensors, got torch.int32"),
        ([Z, Z.tolist()], {}, TypeError, "floating-point tensors, got list"),
        ([Z, Z], {"reading": "info"}, ValueError, "reading must be one of infomax, two_view"),
        ([Z, Z], {"normalisation": "none"}, ValueError, "normalisation must be one of"),
        ([Z, Z], {"total_noise": 0.0}, ValueError, "total_noise must be positive"),
        ([Z, Z], {"total_noise": float("nan")}, ValueError, "total_noise must be positive"),
        ([Z, Z], {"total_noise": ".nan"}, TypeError, "total_noise must be a number, got '.nan'"),
        ([Z, Z], {"total_noise": 2.0}, ValueError, "raise it or lower total_noise"),
        ([Z, Z], {"within_noise": float("inf")}, ValueError, "within_noise must be finite"),
        ([Z, Z], {"gaussianity": -1.0}, ValueError, "gaussianity must be finite and not negative"),
        ([Z, Z], {"between_noise": 1.0}, ValueError, "leave it None for others"),
        (
            [Z, Z],
            {"reading": "two_view", "between_noise": 0.0},
            ValueError,
            "between_noise must be positive",
        ),
    ],
)
def test_wrong_input_is_named(views, options, error, message):
    with pytest.raises(error, match=message):
        explicit_mim_loss_func(views, **options)


@pytest.mark.parametrize("options", [{"total_noise": 2.0}, {"reading": "mim"}])
def test_wrong_option_is_refused_when_the_module_is_made(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ExplicitMIMLoss(**options)


@pytest.mark.parametrize(("num_views", "threshold"), [(2, 0.65), (3, 0.79), (4, 0.91)])
def test_equal_floors_of_two_view_reward_collapse_from_where_the_loss_does(num_views, threshold):
    """Perfectly agreeing views of 64 dimensions; a hundredth of the power of one to the others."""
    image = torch.linalg.qr(torch.randn(1000, 64).double()).Q * math.sqrt(1000 * 64 / 63)
    even = torch.ones(64).double()
    emptied = torch.full((64,), 1 / 63).double() + 1
    emptied[0] = 0.0

    def information(powers, floor):
        return -explicit_mim_loss_func(
            (image * powers.sqrt()).expand(num_views, -1, -1),
            reading="two_view",
            within_noise=floor,
            total_noise=floor,
            normalisation="l2",
        )

    for floor in (threshold - 0.05, threshold + 0.05):
        rewarded = bool(information(emptied, floor) > information(even, floor))
        assert rewards_collapse(floor, floor, num_views=num_views) == rewarded
    assert not rewards_collapse(0.01, 1.0, num_views=num_views)


def test_docstring_example_holds():
    result = doctest.testmod(explicit_mim)
    assert (result.failed, result.attempted >= 4) == (0, True)


def test_import_loads_torch_alone():
    script = (
        "import sys, solo_mim.losses, solo_mim.information; "
        "print([name for name in ('solo', 'lightning', 'pytorch_lightning', 'torchvision', 'scipy',"
        " 'solo_mim.host') if name in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout.strip() == "[]"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", EVERY_LOSS)
@pytest.mark.parametrize(("num_samples", "dim"), [(64, 16), (8, 40)], ids=["d-side", "gram-side"])
def test_cuda_autocast_equals_double_on_the_cpu(num_samples, dim, options, dtype):
    z = views_of(2, num_samples, dim).to("cuda", dtype).requires_grad_()
    exact = z.detach().double().cpu().requires_grad_()
    reference = explicit_mim_loss_func(exact, **options)
    reference.backward()
    with torch.autocast("cuda", dtype):
        loss = explicit_mim_loss_func(z, **options)
        loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference.item(), abs=5e-5)
    scale = exact.grad.abs().max()
    torch.testing.assert_close(
        z.grad.double().cpu() / scale, exact.grad / scale, rtol=1e-2, atol=1e-2
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", EVERY_LOSS)
@pytest.mark.parametrize(("num_samples", "dim"), [(64, 16), (8, 40)], ids=["d-side", "gram-side"])
def test_cuda_overflow_is_nan_at_once_and_the_error_later(num_samples, dim, options):
    z = views_of(2, num_samples, dim).to("cuda", torch.float32)
    z[1, 2, 3] = 1e20
    z.requires_grad_()
    loss = explicit_mim_loss_func(z, **options)
    loss.backward()
    assert loss.isnan()
    assert z.grad.isnan().any()
    with pytest.raises(NonFiniteEmbeddingError, match="overflow when squared"):
        settle_deferred()
