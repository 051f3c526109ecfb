"""Every backbone of the host at 32 and 224 pixels, and what `backbone.stem` means to each."""

import pytest
import torch

from solo_mim import host
from solo_mim.errors import ConfigError


def _cfg(compose_cfg, name, crop_size, *overrides):
    cfg = compose_cfg(f"backbone.name={name}", *overrides)
    cfg.method = "vicreg"
    cfg.method_kwargs = {"proj_hidden_dim": 8, "proj_output_dim": 8}
    for augmentation in cfg.augmentations:
        augmentation.crop_size = crop_size
    cfg.data.num_classes, cfg.data.num_large_crops, cfg.data.num_small_crops = 4, 2, 0
    return cfg


@pytest.mark.parametrize("crop_size", [32, 224])
@pytest.mark.parametrize("name", host.BACKBONES)
def test_every_backbone_maps_images_of_either_size_to_its_features(name, crop_size, compose_cfg):
    with torch.device("meta"):  # shapes alone: the largest would take gigabytes
        model = host.METHODS["vicreg"](_cfg(compose_cfg, name, crop_size)).eval()
        feats = model(torch.empty(2, 3, crop_size, crop_size))["feats"]
    assert feats.shape == (2, model.features_dim)


@pytest.mark.parametrize(
    "name",
    ["vit_tiny", "swin_tiny"]
    + (
        ["convnext_tiny", "wide_resnet28w2", "poolformer_s12"]
        if host.GENERATION == "current"
        else []
    ),
)
@pytest.mark.parametrize("method", ["vicreg", "byol"])
def test_backbones_train_at_32_pixels(name, method, make_model, fit):
    model = make_model(method, f"backbone.name={name}", epochs=1)
    before = next(model.backbone.parameters()).clone()
    fit(model, limit_train_batches=1, limit_val_batches=1)
    assert not torch.equal(before, next(model.backbone.parameters()))


@pytest.mark.parametrize("name", sorted({"resnet18", "resnet50", "vit_tiny", "vit_small"}))
@pytest.mark.parametrize(("stem", "stride"), [("small", 1), ("imagenet", 2), ("auto", 1)])
@pytest.mark.parametrize("dataset", ["cifar10", "custom"])
def test_stem_decides_whatever_the_data_set_is_called(name, stem, stride, dataset, compose_cfg):
    cfg = _cfg(compose_cfg, name, 32, f"backbone.stem={stem}", f"data.dataset={dataset}")
    with torch.device("meta"):
        model = host.METHODS["byol"](_with_predictor(cfg))
    for backbone in (model.backbone, model.momentum_backbone):
        if name.startswith("resnet"):
            assert backbone.conv1.stride == (stride, stride)
            assert isinstance(backbone.maxpool, torch.nn.Identity) == (stride == 1)
        else:
            assert backbone.patch_embed.patch_size == ((4, 4) if stride == 1 else (16, 16))


def _with_predictor(cfg):
    cfg.method = "byol"
    cfg.method_kwargs.pred_hidden_dim = 8
    return cfg


def test_what_the_user_says_of_a_transformer_stays(compose_cfg):
    cfg = _cfg(compose_cfg, "vit_tiny", 32, "+backbone.kwargs={patch_size: 8, drop_rate: 0.25}")
    with torch.device("meta"):
        model = host.METHODS["vicreg"](cfg)
    assert model.backbone.patch_embed.patch_size == (8, 8)
    assert model.backbone.head_drop.p == 0.25


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "vit_tiny",
            "{patch_sise: 4}",
            r"backbone.kwargs.patch_sise' of vit_tiny; did you mean 'patch_size'",
        ),
        ("swin_tiny", "{window: 4}", r"backbone.kwargs.window' of swin_tiny"),
        ("resnet18", "{zero_init_residuals: true}", r"did you mean 'zero_init_residual'"),
        ("small_cnn", "{depth: 3}", r"backbone.kwargs.depth' of small_cnn; known: widths"),
        ("vit_tiny", "{depth: 1}", r"backbone.kwargs: vit_tiny refuses them"),
    ],
)
def test_unknown_and_impossible_kwargs_are_refused(name, kwargs, message, compose_cfg):
    cfg = _cfg(compose_cfg, name, 32, f"+backbone.kwargs={kwargs}")
    with pytest.raises(ConfigError, match=message):
        host.METHODS["vicreg"](cfg)


@pytest.mark.parametrize("name", ["swin_tiny", "small_cnn"])
def test_a_stem_is_refused_where_there_is_none(name, compose_cfg):
    cfg = _cfg(compose_cfg, name, 32, "backbone.stem=small")
    with pytest.raises(ConfigError, match=r"only resnet18, resnet50 and the vision transformers"):
        host.METHODS["vicreg"](cfg)
