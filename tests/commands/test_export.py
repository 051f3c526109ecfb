"""`solo-mim export`: files that torchvision and timm load."""

import json
from pathlib import Path

import pytest
import timm
import torch

from solo_mim import trained


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    """A checkpoint, as main's keys are, of a ResNet with the stem for small images."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18()
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=2, bias=False)
    state = {f"backbone.{k}": v for k, v in model.state_dict().items() if k[:3] != "fc."}
    path = tmp_path_factory.mktemp("export") / "trained.ckpt"
    torch.save({"state_dict": state, "epoch": 2}, path)
    return path


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_printed_lines_load_the_same_network(
    library, resnet_file, solo_mim, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = solo_mim("export", resnet_file, "--to", library, "out.pth", "backbone=resnet18")
    assert said.code == 0, said.err
    written = json.loads(Path("out.json").read_text())
    assert "\n".join(written["lines"]) in said.out
    assert any("model.conv1" in line for line in written["lines"])
    assert written["stem"] == "small"
    assert written["difference"] <= 1e-5
    assert written["trained"]["epochs"] == 3
    names = {}
    exec("\n".join(written["lines"]), names)
    ours = trained.opened(resnet_file, ["backbone=resnet18"], needs_data=False).backbone
    images = torch.randn(4, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(
            names["model"].eval()(images), ours(images), rtol=1e-5, atol=1e-5
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.pth"]


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    """A state dict of a vision transformer for small images, shaken."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=16, patch_size=4)
    for value in model.state_dict().values():
        value.add_(0.01 * torch.randn_like(value))
    path = tmp_path_factory.mktemp("vit") / "vit.pth"
    torch.save(model.state_dict(), path)
    return path


VIT = ["backbone.name=vit_tiny", "augmentations.0.crop_size=16"]


def test_a_folder_for_the_hub_loads_in_both_ways(vit_file, solo_mim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mean = "++augmentations.0.mean=[0.5,0.4,0.3]"
    said = solo_mim("export", vit_file, "--to", "timm-hub", "hub", *VIT, mean)
    assert said.code == 0, said.err
    assert [p.name for p in tmp_path.iterdir()] == ["hub"], "nothing else is left"
    there = sorted(p.name for p in Path("hub").iterdir())
    assert there == ["config.json", "model.safetensors", "solo-mim.json"]
    lines = json.loads(Path("hub/solo-mim.json").read_text())["lines"]
    assert "\n".join(lines) in said.out
    names = {}
    exec("\n".join(lines), names)
    other = eval(lines[-1].removeprefix("# or: "), names)
    ours = trained.opened(vit_file, VIT, needs_data=False).backbone
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        for model in (names["model"], other):
            torch.testing.assert_close(model.eval()(images), ours(images), rtol=1e-5, atol=1e-5)
    config = json.loads(Path("hub/config.json").read_text())
    found = config["pretrained_cfg"]
    assert (found["input_size"], found["mean"]) == ([3, 16, 16], [0.5, 0.4, 0.3])
    assert found["std"] == [0.229, 0.224, 0.225], "ImageNet's, of a file that does not say"


def test_what_the_hub_cannot_name_is_refused(resnet_file, vit_file, refused, tmp_path):
    to = ["--to", "timm-hub", tmp_path / "hub"]
    said = refused("export", resnet_file, *to, "backbone=resnet18")
    assert "timm has no name for a resnet18 with the stem for small images" in said
    assert "--to timm writes its weights" in said
    said = refused("export", vit_file, "--to", "timm-hub", tmp_path / "no" / "hub", *VIT)
    assert "cannot be written" in said
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_and_nothing_written(
    toy_run, resnet_file, refused, tmp_path
):
    out = tmp_path / "out.pth"
    assert "torchvision has no small_cnn" in refused("export", toy_run, "--to", "torchvision", out)
    assert "timm has no small_cnn" in refused("export", toy_run, out, "--to", "timm")
    said = refused("export", resnet_file, "--to", "timm", out)
    assert "name its backbone, as in backbone=resnet18" in said
    said = refused(
        *("export", resnet_file, "--to", "timm", tmp_path / "no" / "out.pth", "backbone=resnet18")
    )
    assert "cannot be written" in said
    assert not list(tmp_path.iterdir())


def test_this_file_passes_on_solo_learn_main(passes_on_main):
    passes_on_main(Path(__file__))
