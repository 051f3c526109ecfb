"""Every method through the seam, end to end, on the host that is on the import path."""

import math
import os
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from sklearn.neighbors import KNeighborsClassifier

from solo_mim import host
from solo_mim.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_state_dict_has_the_names_of_solo_learn_main(method, make_model):
    model = make_model(method)
    children = dict(model.named_children())
    assert "backbone" in children
    assert not {"encoder", "momentum_encoder"} & set(children)
    assert ("momentum_backbone" in children) == hasattr(model, "momentum_updater")


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"all4one", "dino", "mae"}))
def test_projector_runs_once_per_view(method, make_model, fit):
    model = make_model(method, epochs=1)
    calls = []
    model.projector.register_forward_hook(lambda module, *_: calls.append(module.training))
    fit(model, limit_val_batches=0)
    views = 1 if method == "ressl" and host.GENERATION == "released" else 2  # it uses one alone
    assert sum(calls) == 4 * views, "four batches"


def test_explicit_mim_logs_its_terms_and_its_loss_falls(make_model, fit):
    model = make_model("explicit_mim", epochs=6)
    first = fit(make_model("explicit_mim", epochs=1)).callback_metrics
    last = fit(model).callback_metrics
    loss, total, within = (
        last[f"train_explicit_mim_{name}_epoch"] for name in ("loss", "total", "within")
    )
    torch.testing.assert_close(loss, within - total)
    assert loss < first["train_explicit_mim_loss_epoch"]


def test_momentum_backbone_starts_as_a_copy(make_model):
    model = make_model("byol", "backbone.name=resnet18")
    pairs = zip(model.backbone.parameters(), model.momentum_backbone.parameters(), strict=True)
    assert all(torch.equal(online, momentum) for online, momentum in pairs)


def test_unknown_backbone_and_stem_name_the_nearest(make_model):
    from solo_mim.errors import ConfigError

    with pytest.raises(
        ConfigError, match=r"backbone.name: unknown backbone 'resnet81'; did you mean 'resnet18'"
    ):
        make_model("vicreg", "backbone.name=resnet81")
    with pytest.raises(
        ConfigError, match=r"backbone.stem: unknown stem 'smal'; did you mean 'small'"
    ):
        make_model("vicreg", "backbone.name=resnet18", "backbone.stem=smal")
    with pytest.raises(ConfigError, match=r"only resnet18, resnet50 and the vision"):
        make_model("vicreg", "backbone.stem=small")


@pytest.mark.parametrize(
    ("batch_size", "devices", "dim"),
    [
        *((16, 1, 8), (128, "auto", 64), (512, 1, 128), (16, 4, 32)),
        *((16, "[0,1]", 16), (16, "'0,1'", 16)),
    ],
)
def test_explicit_mim_takes_at_most_half_the_global_batch_for_its_dimension(
    batch_size, devices, dim, make_model
):
    model = make_model(
        "explicit_mim",
        *(f"optimizer.batch_size={batch_size}", f"devices={devices}"),
        "method_kwargs.proj_output_dim=null",
    )
    assert model.projector[-1].out_features == dim


def test_explicit_mim_warns_of_more_dimensions_than_half_the_batch(make_model, fit):
    model = make_model("explicit_mim", "method_kwargs.proj_output_dim=12", epochs=1)
    with pytest.warns(UserWarning, match=r"proj_output_dim=12 .* batch of 16.* set it to 8"):
        fit(model, limit_train_batches=1, limit_val_batches=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*proj_output_dim.*")
        fit(make_model("explicit_mim", epochs=1), limit_train_batches=1, limit_val_batches=0)


def test_explicit_mim_says_what_helps_against_collapse(make_model):
    remedies = [
        make_model("explicit_mim", f"method_kwargs.reading={reading}").collapse_remedy
        for reading in ("infomax", "two_view")
    ]
    for remedy, floor in zip(remedies, ("0.001", "0.01"), strict=True):
        assert remedy.startswith(f"Lower method_kwargs.total_noise (now {floor})")
    assert ["reading: infomax" in remedy for remedy in remedies] == [False, True]


def test_the_recipe_of_explicit_mim_has_the_defaults_of_the_loss(compose_cfg):
    from solo_mim.losses import ExplicitMIMOptions

    recipe = dict(compose_cfg("data=cifar10").method_kwargs)
    defaults = {option.name: option.default for option in fields(ExplicitMIMOptions)}
    assert {key: recipe[key] for key in defaults} == defaults


@pytest.mark.parametrize(
    ("method", "kwargs", "message"),
    [
        ("mec", "eps=0", "eps: a finite number above 0"),
        ("mec", "order=0", "order: a finite number above 0"),
        ("mec", "eps=abc", "method_kwargs.eps: a number is needed"),
        ("frossl", "invariance_weight=-1", "invariance_weight: a finite number of 0 or more"),
        ("frossl", "invariance_weight=abc", "invariance_weight: a number is needed"),
        ("lejepa", "lamb=1.5", "lamb: a finite number from 0 to 1"),
        ("lejepa", "n_points=16", "n_points must be odd"),
        ("lejepa", "num_slices=abc", "num_slices: a whole number is needed"),
        ("visreg", "lamb=abc", "lamb: a number is needed"),
        ("visreg", "num_projections=0", "num_projections: a finite number above 0"),
        ("explicit_mim", "proj_hidden_dim=abc", "proj_hidden_dim: a whole number is needed"),
    ],
)
def test_impossible_options_of_ours_are_refused_by_name(method, kwargs, message, make_model):
    from solo_mim.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        make_model(method, f"method_kwargs.{kwargs}")


@pytest.mark.parametrize("method", ["lejepa", "visreg"])
def test_directions_are_drawn_anew_at_every_step_and_come_again_in_a_resumed_run(
    method, make_model, fit, tmp_path, monkeypatch
):
    from solo_mim.methods import rivals

    # solo-learn main's schedule keeps the length of the run that saved it.
    half, whole = (make_model(method, "scheduler.name=none", epochs=epochs) for epochs in (1, 2))
    loss, seeds = getattr(rivals, f"{method}_loss_func"), []
    monkeypatch.setattr(
        rivals, f"{method}_loss_func", lambda z, **o: seeds.append(o["seed"]) or loss(z, **o)
    )
    fit(half, limit_val_batches=0).save_checkpoint(tmp_path / "half.ckpt")
    fit(whole, ckpt_path=tmp_path / "half.ckpt", limit_val_batches=0)
    assert seeds == list(range(8))


def test_explicit_mim_warns_of_floors_that_reward_collapse(make_model, fit):
    floors = ("method_kwargs.total_noise=1.0", "method_kwargs.within_noise=1.0")
    few = {"limit_train_batches": 1, "limit_val_batches": 0}
    with pytest.warns(UserWarning, match=r"total_noise=1 and within_noise=1 reward .* collapse"):
        fit(make_model("explicit_mim", "method_kwargs.reading=two_view", *floors, epochs=1), **few)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapse.*")
        fit(make_model("explicit_mim", *floors, epochs=1), **few)
        fit(make_model("explicit_mim", "method_kwargs.reading=two_view", epochs=1), **few)


def test_explicit_mim_refuses_what_its_estimator_does_not_cover(make_model):
    from solo_mim.errors import ConfigError

    with pytest.raises(ConfigError, match=r"no less than total_noise \(2.0\)"):
        make_model("explicit_mim", "method_kwargs.total_noise=2.0")


@pytest.mark.parametrize("accumulated", [1, 2])
def test_learning_rate_warms_up_per_step_then_follows_a_cosine(accumulated, make_model, fit):
    model = make_model(
        *("vicreg", "optimizer.lr=0.64", "optimizer.classifier_lr=0.32"),
        *("scheduler.min_lr=0.001", f"accumulate_grad_batches={accumulated}"),
        epochs=4,
    )
    rates = []

    class Record(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            groups = trainer.optimizers[0].param_groups
            rates.append((groups[0]["lr"], groups[1]["lr"]))

    fit(model, callbacks=[Record()], accumulate_grad_batches=accumulated)
    # main scales every rate by the batches that are accumulated, and the first two by 16 / 256.
    *bases, start, least = (accumulated * rate for rate in (0.04, 0.02, 3e-5, 0.001))
    warmup, steps = 4 // accumulated, 16 // accumulated
    for group, base in enumerate(bases):
        for step in range(steps):
            if step < warmup:
                expected = start + step * (base - start) / (warmup - 1)
            else:
                down = (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
                expected = least + (base - least) * down
            found = rates[step * accumulated][group]
            assert found == pytest.approx(expected, rel=1e-6), (group, step)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_online_knn_equals_scikit_learn_with_classes_missing_on_either_side(distance):
    from solo_mim.evaluation.knn import OnlineKNN

    generator = torch.Generator().manual_seed(3)
    train, test = torch.randn(200, 6, generator=generator), torch.randn(90, 6, generator=generator)
    train_targets = torch.randint(0, 7, (200,), generator=generator)
    test_targets = torch.randint(2, 6, (90,), generator=generator)  # 0, 1 and 6 are missing here
    train_targets[train_targets == 4] = 5  # and 4 is missing there
    ours = OnlineKNN(k=9, distance_fx=distance, max_distance_matrix_size=1000)
    for rows in range(0, 200, 64):
        ours(train_features=train[rows : rows + 64], train_targets=train_targets[rows : rows + 64])
    ours(test_features=test, test_targets=test_targets)
    if distance == "euclidean":
        weights, x, y = (lambda d: 1 / (d + 1e-5)), train, test
    else:
        x, y = (torch.nn.functional.normalize(t) for t in (train, test))
        weights = lambda d: np.exp((1 - d**2 / 2) / 0.07)  # noqa: E731
    theirs = KNeighborsClassifier(9, weights=weights).fit(x.numpy(), train_targets.numpy())
    votes = theirs.predict_proba(y.numpy())
    five = theirs.classes_[np.argsort(-votes, axis=1, kind="stable")[:, :5]]
    hits = five == test_targets.numpy()[:, None]
    assert (np.sort(votes)[:, -5] > 0).any(), "the fifth counts"
    top1, top5 = ours.compute()
    assert top1 == pytest.approx(100 * hits[:, 0].mean())
    voted = np.take_along_axis(votes, np.argsort(-votes, axis=1)[:, :5], 1) > 0
    assert top5 == pytest.approx(100 * (hits & voted).any(1).mean())
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert ours.compute() == (-1.0, -1.0), "the bank is empty afterwards"


def test_online_knn_of_training_sees_every_view_of_the_epoch_once(make_model, fit):
    model = make_model("vicreg", epochs=2)
    seen = []
    compute = model.knn.compute
    model.knn.compute = lambda: seen.append(sum(map(len, model.knn.train_features))) or compute()
    fit(model, check_val_every_n_epoch=2)
    assert seen == [2 * 64], "one epoch of two views, though validation came after two epochs"


MAIN_TOO = (
    *("contract", "methods", "backbones", "checks", "lars", "barlow_distributed"),
    *("pipelines", "precision"),
)


def test_this_folder_passes_on_solo_learn_main(passes_on_main):
    passes_on_main(*(Path(__file__).with_name(f"test_{part}.py") for part in MAIN_TOO))


def test_host_is_the_one_expected():
    from solo_mim import host

    expected = "current" if os.environ.get("SOLO_MIM_HOST_IS_MAIN") else "released"
    assert expected == host.GENERATION


@pytest.mark.parametrize(
    ("arguments", "step"),
    [
        (["explicit_mim"], "_base_shared_step"),
        (["byol", "momentum.classifier=true"], "_shared_step_momentum"),
    ],
)
def test_probe_is_of_the_labelled_images_alone(arguments, step, make_model):
    step = getattr(make_model(*arguments).eval(), step)
    images, targets = torch.randn(12, 3, 32, 32), torch.arange(12) % 4
    few = step(images[:4], targets[:4])
    mixed = step(images, torch.where(torch.arange(12) < 4, targets, -1))
    for key in ("loss", "acc1", "acc5"):
        torch.testing.assert_close(mixed[key].squeeze(), few[key].squeeze())
    none = step(images, torch.full((12,), -1))
    assert [float(none[key].detach()) for key in ("loss", "acc1", "acc5")] == [0, 0, 0]


def test_online_knn_of_no_labelled_image_has_no_accuracy():
    from solo_mim.evaluation.knn import OnlineKNN

    knn = OnlineKNN(k=2)
    knn(train_features=torch.randn(4, 3), train_targets=torch.full((4,), -1))
    knn(test_features=torch.randn(2, 3), test_targets=torch.tensor([0, 1]))
    assert knn.compute() == (-1, -1)
    assert knn.train_features == [], "computing empties the bank"
