"""Every method of the host that is on the import path: trained on real images, resumed, crossed."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from sklearn.neighbors import KNeighborsClassifier
from toys import NUM_CLASSES, TwoViews, completed, small_cfg

from solo_mim.errors import ConfigError
from solo_mim.methods import METHODS

# By design, until their schedule lets them move (`freeze_...`), or never.
FROZEN = {
    "deepclusterv2": "prototypes.",
    "simsiam": "projector.6.bias",
    "nnsiam": "projector.6.bias",
}


class _StopAfter(Callback):
    """Ends training after some epochs of a run that was planned for more."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


class _MomentumSteps:
    """Stands in for the host's update and compares what it did with what tau says."""

    def __init__(self, model):
        self.updater, self.original = model.momentum_updater, model.momentum_updater.update
        self.updater.update = self
        self.taus, self.errors = [], []

    @torch.no_grad()
    def __call__(self, online, momentum):
        tau = self.updater.cur_tau
        pairs = zip(online.parameters(), momentum.parameters(), strict=True)
        expected = [tau * m + (1 - tau) * o for o, m in pairs]
        self.original(online, momentum)
        differences = [
            (e - m).abs().max().item() for e, m in zip(expected, momentum.parameters(), strict=True)
        ]
        self.errors.append(max(differences))
        self.taus.append(tau)


@pytest.mark.parametrize("method", METHODS)
def test_two_epochs_on_real_images(method, compose_cfg, tmp_path):
    from solo_mim.data import SSLDataModule

    cfg = small_cfg(
        compose_cfg("data.fraction=0.05", "data.validation_split=51", "data.num_workers=0"),
        method,
        "knn_eval.distance_func=euclidean",
    )
    data = SSLDataModule(cfg)
    seed_everything(0, verbose=False)
    cfg = completed(cfg, data.num_classes, data.num_large_crops, data.num_small_crops)
    model = METHODS[method](cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    momentum = _MomentumSteps(model) if hasattr(model, "momentum_updater") else None

    reference = []
    compute = model.knn.compute

    def compare():
        bank = {
            name: torch.cat(getattr(model.knn, name)).double().numpy()
            for name in ("train_features", "train_targets", "test_features", "test_targets")
        }
        knn = KNeighborsClassifier(5, weights=lambda d: 1 / (d + 1e-5))
        knn.fit(bank["train_features"], bank["train_targets"])
        found = compute()
        reference.append((found[0], 100 * knn.score(bank["test_features"], bank["test_targets"])))
        return found

    model.knn.compute = compare
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=data)

    steps = 204 // 16 * 2
    assert trainer.global_step == steps
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    after = model.state_dict()
    unmoved = [name for name in trainable if torch.equal(before[name], after[name])]
    assert not unmoved
    frozen = FROZEN.get(method)
    assert not [name for name in trainable if frozen and name.startswith(frozen)]
    if "queue" in after:
        assert not torch.equal(
            before.get("queue", torch.zeros_like(after["queue"])), after["queue"]
        )
    if momentum is not None:
        assert len(momentum.errors) % steps == 0
        assert len(momentum.errors) >= steps
        assert max(momentum.errors) < 1e-6
        pairs = len(momentum.taus) // steps
        base, final = cfg.momentum.base_tau, cfg.momentum.final_tau
        for step in range(steps):
            tau = final - (final - base) * (math.cos(math.pi * step / steps) + 1) / 2
            assert momentum.taus[step * pairs] == pytest.approx(tau), step
        assert not torch.equal(
            torch.cat([p.flatten() for p in model.momentum_backbone.parameters()]),
            torch.cat(
                [
                    before[f"momentum_backbone.{n}"].flatten()
                    for n, _ in model.momentum_backbone.named_parameters()
                ]
            ),
        )
    metrics = trainer.callback_metrics
    assert len([name for name in metrics if name.endswith("_epoch")]) >= 4, "probe and own loss"
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    assert len(reference) == 2
    for found, expected in reference:
        # Float32 distances may break a tie of votes the other way: one image of 51.
        assert found == pytest.approx(expected, abs=100 / 51 + 1e-6)
    assert metrics["val_knn_acc1"] == pytest.approx(reference[-1][0])
    assert np.mean([found for found, _ in reference]) > 100 / 17, "better than chance"


@pytest.mark.parametrize("method", METHODS)
def test_two_epochs_resumed_for_two_equal_four_straight(method, make_model, fit, tmp_path):
    def make():
        model = make_model(method, epochs=4)
        if isinstance(getattr(model, "projector", None), torch.nn.Sequential):
            model.projector.append(torch.nn.Dropout(0.2))  # draws numbers, which must go on too
        return model

    straight = make()
    fit(straight)
    trainer = fit(make(), callbacks=[_StopAfter(2)])
    path = tmp_path / "half.ckpt"
    trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    resumed = make()
    trainer = fit(resumed, ckpt_path=path)
    assert trainer.current_epoch == 4
    found = resumed.state_dict()
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("method", ["byol", "mocov2plus"])
def test_resuming_with_accumulated_gradients_moves_the_momentum_network_by_steps(
    method, make_model, fit, tmp_path
):
    def run(epochs_first):
        model = make_model(method, "accumulate_grad_batches=2", epochs=2)
        stop = [_StopAfter(epochs_first)] if epochs_first else []
        return model, fit(model, callbacks=stop, accumulate_grad_batches=2)

    straight, trainer = run(None)
    assert trainer.global_step == 4
    _, trainer = run(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = make_model(method, "accumulate_grad_batches=2", epochs=2)
    fit(resumed, ckpt_path=tmp_path / "half.ckpt", accumulate_grad_batches=2)
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_momentum_probe_takes_fewer_than_five_classes(make_model, fit):
    model = make_model("byol", "momentum.classifier=true", epochs=1)
    metrics = fit(model).callback_metrics
    assert metrics["momentum_val_acc5"] == 100, "of 4 classes"
    assert 0 < metrics["momentum_val_acc1"] <= 100


def test_supervised_simclr_draws_images_of_a_class_together(make_model, fit):
    from solo_mim import host

    if host.GENERATION == "current":
        supervised = make_model("supcon", epochs=4)
    else:
        supervised = make_model("simclr", "method_kwargs.supervised=true", epochs=4)
    plain = make_model("simclr", epochs=4)
    losses = [fit(model).callback_metrics["train_nce_loss_epoch"] for model in (supervised, plain)]
    assert losses[0] != losses[1]

    def spread(model):
        """Mean squared distance of z to its class mean, as a share of the distance to the mean."""
        images = TwoViews()
        model.eval()
        with torch.no_grad():
            z = torch.nn.functional.normalize(model(images.views[0])["z"])
        within = sum(
            (z[images.targets == c] - z[images.targets == c].mean(0)).pow(2).sum()
            for c in range(NUM_CLASSES)
        )
        return within / (z - z.mean(0)).pow(2).sum()

    assert spread(supervised) < spread(plain)


@pytest.mark.parametrize("precision_scale", [1.0, 65536.0])
def test_dino_clips_unscaled_gradients(precision_scale, make_model):
    """As in 16-mixed: backward sees scaled gradients, the optimiser step unscaled ones."""
    model = make_model("dino", "method_kwargs.clip_grad=0.5")
    weight = model.backbone[0].weight
    weight.grad = torch.full_like(weight, precision_scale)
    model._trainer = type("T", (), {"current_epoch": 5})()  # no freezing any more
    model.on_after_backward()
    assert torch.equal(weight.grad, torch.full_like(weight, precision_scale))
    weight.grad /= precision_scale
    model.on_before_optimizer_step(None)
    torch.testing.assert_close(weight.grad.norm(), torch.tensor(0.5), rtol=1e-4, atol=0)
    assert model.clip_grad == 0.5


def test_trainer_clips_dino_too(make_model, fit):
    model = make_model("dino", "optimizer.name=sgd", "optimizer.weight_decay=0", epochs=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    fit(model, gradient_clip_val=1e-12, limit_val_batches=0)
    moved = {name: p for name, p in model.named_parameters() if name in before}
    assert all((p - before[name]).abs().max() < 1e-9 for name, p in moved.items())


def test_deepclusterv2_refuses_an_epoch_that_is_cut(make_model, fit):
    with pytest.raises(ConfigError, match="whole epoch"):
        fit(make_model("deepclusterv2"), limit_train_batches=2)


def test_whitening_has_unit_covariance_and_a_triangular_map():
    from solo_mim.host.mended import whiten

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=generator, dtype=torch.float64) @ torch.rand(
        5, 5, generator=generator, dtype=torch.float64
    )
    layer = type("Layer", (), {"output_dim": 5, "eps": 0.0})()
    white = whiten(layer, x)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(5, dtype=torch.float64))
    centred = (x - x.mean(0)).numpy()
    mapping = np.linalg.lstsq(centred, white.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(np.triu(mapping, 1), 0, atol=1e-10)
    with pytest.raises(ConfigError, match=r"method=wmse.*singular.*proj_output_dim"):
        whiten(layer, x[:4])
