"""Information on held-out images: of embeddings whose information is known, and through a model."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from solo_mim.evaluation.diagnostics import (
    MAX_DIM,
    REFERENCE_NOISE,
    HeldOutInformation,
    InformationCallback,
    held_out_information,
    project_views,
)
from solo_mim.information import lidar, rankme


def _pairs(correlation, samples=4000, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared, *own = torch.randn(3, samples, dim, generator=generator)
    weights = math.sqrt(correlation), math.sqrt(1 - correlation)
    return torch.stack([weights[0] * shared + weights[1] * noise for noise in own])


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_information_of_gaussian_views_is_their_closed_form(correlation):
    found = held_out_information(_pairs(correlation))
    total, within = 1 + REFERENCE_NOISE, 1 - correlation + REFERENCE_NOISE
    between = 1 + correlation + REFERENCE_NOISE
    infomax = 8 / 2 * math.log(total / within)
    two_view = 8 / 2 * math.log(total**2 / (between * within))
    assert found.infomax == pytest.approx(infomax + found.infomax_bias, abs=0.1)
    assert found.two_view == pytest.approx(two_view + found.two_view_bias, abs=0.1)
    assert found.infomax_shuffled < 0.1
    assert found.two_view_shuffled < 0.1
    assert found.effective_rank == pytest.approx(8, abs=0.1)
    assert found.eigenvalue_max == pytest.approx(1, abs=0.1)
    assert found.eigenvalue_min == pytest.approx(1, abs=0.1)
    assert found.images == 4000


def test_bias_agrees_with_shuffled_pairs_of_few_independent_samples():
    found = held_out_information(_pairs(0.0, samples=200, dim=32))
    assert found.infomax_shuffled == pytest.approx(found.infomax_bias, rel=0.3)
    assert found.two_view_shuffled == pytest.approx(found.two_view_bias, rel=0.3)
    assert found.two_view_bias > 1


@pytest.mark.parametrize(
    ("samples", "dim", "told"),
    [(180, 8, True), (180, 64, True), (180, 512, False), (4096, 64, True)],
)
def test_nats_are_under_the_information_and_none_where_images_are_too_few(samples, dim, told):
    for seed in range(1 if dim > 64 else 5):
        found = held_out_information(_pairs(0.8, samples, dim, seed))
        true = {"infomax": -dim / 2 * math.log(0.2), "two_view": -dim / 2 * math.log(1 - 0.8**2)}
        assert (found.infomax > found.two_view) == told  # else they contradict each other
        for reading, line in zip(true, found.lines(), strict=True):
            assert line.startswith("Gaussian I(z; ")
            nats = found.less_chance(reading)
            if not told:
                assert nats is None
                assert "not told from chance on two views of 180 images" in line
                assert "512 dimensions want 2,048 images, 180 suffice for 45" in line
                continue
            assert 0.6 * true[reading] < nats < true[reading] + 3 * math.sqrt(dim / samples)
            assert f" {nats:.2f} nats on two views of {samples:,} images (measured" in line
            assert "want" not in line


@pytest.mark.parametrize("samples", [180, 4096])
@pytest.mark.parametrize("dim", [1, 8, 64])
def test_views_that_share_nothing_have_no_nats(samples, dim):
    for seed in range(5):
        found = held_out_information(_pairs(0.0, samples, dim, seed))
        assert (found.less_chance("infomax"), found.less_chance("two_view")) == (None, None)
    assert all("not told from chance" in line for line in found.lines())


def test_a_result_without_dimensions_is_still_told_from_chance():
    found = {"infomax": 315.7, "infomax_bias": math.inf, "infomax_shuffled": 307.48}
    found |= {"two_view": 13.56, "two_view_bias": 0.26, "two_view_shuffled": 0.25}
    found |= {"effective_rank": 60.0, "eigenvalue_max": 2.0, "eigenvalue_min": 0.5, "images": 180}
    infomax, two_view = HeldOutInformation(**found).lines("features")
    assert infomax.startswith("Gaussian I(features; image) not told from chance")
    assert infomax.endswith("(measured 315.70, bias inf, shuffled pairs 307.48)")
    assert two_view.startswith("Gaussian I(features; features') 13.30 nats")


@pytest.mark.parametrize(("samples", "logged"), [(20, False), (640, True)])
def test_an_information_not_told_from_chance_is_not_logged(samples, logged):
    callback = InformationCallback([(None, list(_pairs(0.9, samples, dim=32)), None)], 1)
    model, metrics = _Model("z"), {}
    model.log_dict = lambda values, **_: metrics.update(values)
    callback.on_validation_epoch_end(
        SimpleNamespace(global_step=1, current_epoch=0, sanity_checking=False), model
    )
    for reading in ("infomax", "two_view"):
        assert (f"val_information_{reading}" in metrics) == logged
        assert f"val_information_{reading}_bias" in metrics


def test_a_single_image_has_no_information():
    assert project_views(_Model("z"), [(None, list(torch.zeros(2, 1, 3)), None)]) is None


class _Model(torch.nn.Module):
    device = "cpu"

    def __init__(self, key):
        super().__init__()
        self.key = key
        self.dropout = torch.nn.Dropout(0.9)

    def forward(self, x):
        return {self.key: self.dropout(x)}


def test_views_are_projected_in_order_and_evaluation_mode():
    views = torch.arange(60.0).reshape(2, 10, 3)
    loader = [(None, list(views[:, i : i + 4]), None) for i in range(0, 10, 4)]
    model = _Model("z").train()
    torch.testing.assert_close(project_views(model, loader), views)
    assert model.training


@pytest.mark.parametrize(("key", "dim"), [("q", 3), ("z", MAX_DIM + 1)])
def test_a_method_without_projection_or_with_a_huge_one_has_no_information(key, dim):
    views = torch.zeros(2, 4, dim)
    assert project_views(_Model(key), [(None, list(views), None)]) is None


def test_information_is_measured_once_for_each_update_of_the_weights():
    passes = []

    class Loader:
        def __iter__(self):
            passes.append(1)
            return iter([(None, list(_pairs(0.5, samples=64)), None)])

    callback, trainer = InformationCallback(Loader(), 1), SimpleNamespace(global_step=3)
    state = torch.get_rng_state()
    first = callback.measure(trainer, _Model("z"))
    assert torch.equal(torch.get_rng_state(), state)
    assert callback.measure(trainer, _Model("z")) is first
    assert len(passes) == 1
    trainer.global_step = 4
    callback.measure(trainer, _Model("z"))
    assert len(passes) == 2


def test_only_the_random_state_of_the_models_device_is_kept(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # of which it would warn, and fork
    callback = InformationCallback([(None, list(_pairs(0.5, samples=64)), None)], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.measure(SimpleNamespace(global_step=1), _Model("z"))


def test_a_collapsed_z_is_warned_of_once_with_the_methods_remedy():
    views = _pairs(0.9, samples=64, dim=1).expand(2, 64, 40) + 1e-6 * _pairs(0.0, 64, 40)
    callback = InformationCallback([(None, list(views), None)], 1)
    model = _Model("z")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.measure(SimpleNamespace(global_step=1), model)  # may live with it
        model.collapse_remedy = "Do something."
        callback.measure(SimpleNamespace(global_step=1), model)
    message = r"effective rank of its 40 dimensions is 1\.0. Do something\."
    with pytest.warns(UserWarning, match=message):
        found = callback.measure(SimpleNamespace(global_step=2), model)
    assert found.eigenvalue_max == pytest.approx(40, rel=1e-3)
    assert found.eigenvalue_min == pytest.approx(0, abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.measure(SimpleNamespace(global_step=3), model)


def test_what_the_nats_take_for_granted_is_measured_beside_them():
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, 2000, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    gaussian, cubed = held_out_information(views + 3), held_out_information(views**3)
    assert gaussian.non_gaussianity == pytest.approx(0.34 / 2000, rel=0.5)
    assert cubed.non_gaussianity > 20 * gaussian.non_gaussianity
    assert gaussian.radial_distance < 0.03
    assert cubed.radial_distance > 0.3
    directions = torch.randn(2, 4000, 6, generator=generator)
    sphere = held_out_information(directions / directions.norm(dim=2, keepdim=True))
    expected = float((math.sqrt(6) - directions[0].norm(dim=1)).abs().mean())
    assert sphere.radial_distance == pytest.approx(expected, rel=0.05)
    assert held_out_information(views[:, :20]).radial_distance is None


def test_ranks_that_papers_cite_are_of_the_same_views_and_logged():
    ranks = torch.arange(1, 41) ** -0.5
    views = _pairs(0.9, samples=500, dim=40) * ranks
    callback = InformationCallback([(None, list(views), None)], 1)
    model, metrics = _Model("z"), {}
    model.log_dict = lambda values, **_: metrics.update(values)
    trainer = SimpleNamespace(global_step=1, current_epoch=0, sanity_checking=False)
    callback.on_validation_epoch_end(trainer, model)
    assert metrics["val_information_rankme"] == pytest.approx(
        float(rankme(views.flatten(0, 1))), rel=1e-6
    )
    assert metrics["val_information_alpha_req"] == pytest.approx(1, abs=0.1)
    assert metrics["val_information_lidar"] == pytest.approx(float(lidar(views)), rel=1e-6)


def test_what_cannot_be_ranked_is_left_out():
    found = held_out_information(_pairs(0.5, samples=50, dim=4))
    assert found.alpha_req is None
    assert found.lidar is not None
    flat = _pairs(0.5, samples=50, dim=1).double() * torch.ones(12)
    assert held_out_information(1e12 * flat).lidar is None
