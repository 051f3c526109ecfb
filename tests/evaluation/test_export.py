"""Backbones in torchvision and timm: the same features from the lines that are printed."""

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image

from solo_mim import host
from solo_mim.data.transforms import evaluation_transform, normalise, short_side
from solo_mim.errors import ConfigError
from solo_mim.evaluation.export import HUB, TOLERANCE, difference, hub_configuration, target


def backbone(name, stem="auto", size=32):
    torch.manual_seed(0)
    cfg = OmegaConf.create(
        {
            "backbone": {"name": name, "stem": stem},
            "augmentations": [{"crop_size": size}],
            "data": {"num_small_crops": 0},
        }
    )
    made = host.build_backbone(cfg, None)
    for module in made.modules():  # statistics that are not those of the first state
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return made, OmegaConf.to_container(cfg.backbone.kwargs)


@pytest.mark.parametrize(
    ("library", "name", "stem"),
    [
        *(("torchvision", "resnet18", "small"), ("torchvision", "resnet18", "imagenet")),
        *(("timm", "resnet18", "small"), ("timm", "resnet18", "imagenet")),
        *(("torchvision", "resnet50", "small"), ("timm", "resnet50", "imagenet")),
        *(("timm", "vit_tiny", "small"), ("timm", "vit_tiny", "imagenet")),
        ("timm", "swin_tiny", "auto"),
    ],
)
def test_the_librarys_model_gives_the_same_features(library, name, stem, tmp_path):
    ours, kwargs = backbone(name, stem)
    wanted = target(library, name, stem, kwargs)
    path = tmp_path / "w.pth"
    torch.save(ours.state_dict(), path)
    names = {}
    exec("\n".join(wanted.lines(str(path))), names)
    assert difference(ours, names["model"], 32) <= TOLERANCE
    with torch.device("meta"):  # costs no time
        assert str(wanted.build()) == str(names["model"])


def test_other_weights_are_a_difference():
    ours, kwargs = backbone("resnet18", "small")
    other = target("torchvision", "resnet18", "small", kwargs).build()
    assert difference(ours, other, 32) > 0.1


@pytest.mark.parametrize(
    ("library", "name"), [("torchvision", "vit_tiny"), ("timm", "small_cnn"), ("timm", "resnet81")]
)
def test_what_a_library_lacks_is_refused_by_name(library, name):
    with pytest.raises(ConfigError, match=f"{library} has no {name}"):
        target(library, name, "auto", {})


MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.mark.parametrize("size", [32, 96, 97, 160, 224])
def test_timm_prepares_images_as_they_are_evaluated_here(size):
    wanted = target(HUB, "resnet18", "imagenet", {})
    images = hub_configuration(wanted, size, MEAN, STD)["pretrained_cfg"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config(images))
    assert transform.transforms[0].size == short_side(size)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 110, 3), np.uint8)
    image = Image.fromarray(pixels).resize((330, 210))
    ours = normalise([evaluation_transform(image, size)], MEAN, STD)[0]
    torch.testing.assert_close(transform(image), ours, rtol=1e-5, atol=1e-5)


def test_the_configuration_of_a_transformer_has_its_arguments():
    wanted = target(HUB, "vit_tiny", "small", {"img_size": 32, "patch_size": 4})
    found = hub_configuration(wanted, 32, MEAN, STD)
    assert found["architecture"] == "vit_tiny_patch16_224"
    assert found["model_args"] == {"img_size": 32, "patch_size": 4}
    assert (found["num_classes"], found["num_features"]) == (0, 192)
    assert found["pretrained_cfg"]["fixed_input_size"]


def test_the_stem_for_small_images_has_no_name_on_the_hub():
    with pytest.raises(ConfigError, match=r"stem for small images, .* --to timm writes"):
        target(HUB, "resnet50", "small", {})
