"""`solo-mim export`: files that torchvision and timm load."""

import json
from pathlib import Path

import pytest
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
