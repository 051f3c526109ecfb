"""The schema: what is refused and how, what main's files mean, what makes two runs the same."""

import pytest
from omegaconf import OmegaConf

from solo_mim.commands.configuration import checked, completed, identity, num_devices
from solo_mim.errors import ConfigError


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"max_epoch": 3}, r"unknown key 'max_epoch'; did you mean 'max_epochs'"),
        (
            {"optimizer": {"wieght_decay": 0.1}},
            r"unknown key 'optimizer.wieght_decay'; did you mean 'weight_decay'",
        ),
        ({"optimiser": {"lr": 0.1}}, r"unknown key 'optimiser'; did you mean 'optimizer'"),
        (
            {"backbone": {"stemm": "small"}},
            r"unknown key 'backbone.stemm'; did you mean 'stem'",
        ),
        ({"max_epochs": "many"}, r"max_epochs: .*many"),
        ({"knn_eval": {"k": "a"}}, r"knn_eval.k: "),
    ],
)
def test_wrong_keys_and_types_are_refused_with_their_place(section, message, compose_cfg):
    cfg = OmegaConf.merge(compose_cfg(), OmegaConf.create(section))
    with pytest.raises(ConfigError, match=message):
        checked(cfg)


def test_missing_values_are_named():
    with pytest.raises(ConfigError, match=r"required: .*backbone.name, data.dataset, max_epochs"):
        checked(OmegaConf.create({"method": "vicreg"}))


def test_trainer_arguments_are_taken_at_the_top_level_as_on_main(compose_cfg):
    cfg = compose_cfg("gradient_clip_val=0.5", "limit_train_batches=3")
    assert (cfg.gradient_clip_val, cfg.limit_train_batches) == (0.5, 3)


def test_rates_scale_with_batch_and_devices(compose_cfg):
    cfg = compose_cfg("optimizer.batch_size=64", "optimizer.lr=0.8", "devices=[0,1]")
    cfg = completed(cfg, num_classes=10, num_large_crops=2, num_small_crops=0)
    assert cfg.optimizer.lr == pytest.approx(0.8 * 64 * 2 / 256)
    assert cfg.data.num_classes == 10


@pytest.mark.parametrize(
    ("devices", "count"), [("2", 2), ("[0,3]", 2), ("'0,1,2'", 3), ("[0]", 1), ("1", 1)]
)
def test_devices_are_counted_in_every_spelling(devices, count, compose_cfg):
    assert num_devices(compose_cfg(f"devices={devices}")) == count


@pytest.mark.parametrize("method", ["explicit_mim", "vicreg", "barlow_twins", "simclr", "byol"])
@pytest.mark.parametrize("data", ["photo_patches", "cifar10", "image_folder"])
def test_every_shipped_recipe_composes(method, data, compose_cfg):
    cfg = compose_cfg(f"method={method}", f"data={data}", "data.train_path=somewhere")
    assert cfg.method == method
    expected = "adamw" if data == "photo_patches" else "lars"
    assert cfg.optimizer.name == expected
    assert ("eta" in cfg.optimizer.kwargs) == (expected == "lars"), "no LARS settings for AdamW"


def test_identity_follows_what_changes_the_result_and_nothing_else(compose_cfg):
    base = identity(compose_cfg(), "released 1.0.2")
    same = (
        "output_dir=elsewhere",
        "data.num_workers=3",
        "wandb.enabled=true",
        "progress_bar=false",
    )
    for override in same:
        assert identity(compose_cfg(override), "released 1.0.2") == base, override
    for override in (
        "seed=6",
        "max_epochs=3",
        "method_kwargs.within_noise=0.5",
        "backbone.stem=small",
    ):
        assert identity(compose_cfg(override), "released 1.0.2") != base, override
    assert identity(compose_cfg(), "current main") != base


def test_batch_of_one_is_refused(compose_cfg):
    with pytest.raises(ConfigError, match=r"optimizer.batch_size must be at least 2"):
        compose_cfg("optimizer.batch_size=1")
