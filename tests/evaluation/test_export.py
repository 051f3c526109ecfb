"""Backbones in torchvision and timm: the same features from the lines that are printed."""

import pytest
import torch
from omegaconf import OmegaConf

from solo_mim import host
from solo_mim.errors import ConfigError
from solo_mim.evaluation.export import TOLERANCE, difference, target


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
