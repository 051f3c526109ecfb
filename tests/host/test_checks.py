"""What a method of the host cannot take is refused before training, by name and with a remedy."""

import pytest
import toys
from toys import NUM_CLASSES, small_cfg

from solo_mim import host
from solo_mim.errors import ConfigError
from solo_mim.methods import METHODS

MULTI_CROP = {"released": {"simclr"}, "current": {"byol", "simclr", "supcon", "swav", "wmse"}}

OURS = {"explicit_mim", "frossl", "lejepa", "visreg"}
ANY_NUMBER = {*OURS, "byol", "mae", "simclr", "supcon", "wmse"}
TWO_VIEWS = {
    "released": set(METHODS) - {*OURS, "wmse"},  # its SimCLR needs small crops for more
    "current": set(METHODS) - ANY_NUMBER,
}


def _build(compose_cfg, method, *overrides, large=2, small=0):
    cfg = small_cfg(compose_cfg(), method, *overrides)
    cfg.data.num_classes, cfg.data.num_large_crops, cfg.data.num_small_crops = (
        NUM_CLASSES,
        large,
        small,
    )
    return METHODS[method](cfg)


@pytest.mark.parametrize("method", METHODS)
def test_small_crops_only_where_the_method_uses_them(method, compose_cfg):
    if method in MULTI_CROP[host.GENERATION]:
        assert _build(compose_cfg, method, small=2).num_crops == 4
    else:
        with pytest.raises(ConfigError, match=rf"method={method} .*crop_size"):
            _build(compose_cfg, method, small=2)


@pytest.mark.parametrize("method", METHODS)
def test_one_view_is_enough_for_mae_alone(method, compose_cfg):
    if method == "mae":
        assert _build(compose_cfg, method, large=1).num_crops == 1
    else:
        with pytest.raises(ConfigError, match=rf"method={method} .*num_crops"):
            _build(compose_cfg, method, large=1)


@pytest.mark.parametrize("method", METHODS)
def test_three_views_train_or_are_refused(method, compose_cfg, fit, monkeypatch):
    if method in TWO_VIEWS[host.GENERATION]:
        with pytest.raises(ConfigError, match="two views of an image, not 3"):
            _build(compose_cfg, method, large=3)
        return
    model = _build(compose_cfg, method, large=3)
    two = toys.TwoViews.__getitem__

    def three(self, index):
        item = two(self, index)
        return (item[0], [*item[1], self.views[2, index]], item[2]) if self.train else item

    monkeypatch.setattr(toys.TwoViews, "__getitem__", three)
    fit(model, epochs=1, limit_train_batches=2, limit_val_batches=1)


@pytest.mark.parametrize(
    ("method", "override", "message"),
    [
        (
            "mocov2plus",
            "method_kwargs.queue_size=40",
            r"queue_size=40 must be a multiple of the batch of 16",
        ),
        ("nnclr", "method_kwargs.queue_size=24", r"queue_size=24 must be a multiple"),
        ("swav", "method_kwargs.queue_size=8", r"queue_size=8 must hold a batch of 16"),
        (
            "wmse",
            "method_kwargs.whitening_size=12",
            r"whitening_size=12 must divide optimizer.batch_size=16",
        ),
        (
            "wmse",
            "method_kwargs.whitening_size=4",
            r"whitening_size=4 must be more than method_kwargs.proj_output_dim=4",
        ),
        (
            "dino",
            "method_kwargs.warmup_teacher_temperature_epochs=50",
            r"=50 is more than max_epochs=2",
        ),
        ("deepclusterv2", "method_kwargs.num_prototypes=[12,10]", r"must be equally many"),
    ],
)
def test_queues_whitening_and_warm_up_must_fit(method, override, message, compose_cfg):
    with pytest.raises(ConfigError, match=message):
        _build(compose_cfg, method, override)


def test_dino_trains_with_a_warm_up_as_long_as_the_run(compose_cfg, fit):
    fit(_build(compose_cfg, "dino", "method_kwargs.warmup_teacher_temperature_epochs=2"))


def test_more_prototypes_than_images_are_refused_when_training_starts(make_model, fit):
    model = make_model("deepclusterv2", "method_kwargs.num_prototypes=[100]")
    with pytest.raises(ConfigError, match=r"100 prototypes cannot be drawn from the 64 images"):
        fit(model)
