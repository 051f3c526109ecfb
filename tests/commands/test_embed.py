"""`solo-mim embed`: arrays, pictures and information of a split."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from solo_mim import trained
from solo_mim.data import SSLDataModule
from solo_mim.information import alpha_req, effective_rank, rankme
from solo_mim.protocols import embed


def test_features_z_pictures_and_information_of_the_held_out_images(own_run, solo_mim):
    said = solo_mim("embed", own_run)
    assert said.code == 0, said.err
    (folder,) = (own_run / "embed").iterdir()
    assert folder.name.startswith("photo_patches-val-")
    arrays = np.load(folder / "embeddings.npz")
    network = trained.opened(own_run, [])
    data = SSLDataModule(network.recipe.plain)
    images, targets = next(iter(data.plain_dataloader("val")))
    with torch.no_grad():
        out = trained.whole_model(network, 2, 0)(images)
    rows = len(images)
    np.testing.assert_allclose(arrays["features"][:rows], out["feats"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(arrays["z"][:rows], out["z"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(arrays["targets"][:rows], targets)
    assert arrays["features"].shape == (102, 64)
    assert tuple(arrays["class_names"]) == data.class_names
    for picture in ("planes.png", "spectra.png"):
        assert (folder / picture).stat().st_size > 5000
    result = json.loads((folder / "result.json").read_text())
    assert result["split"] == "validation split"
    assert result["information_of"] == "z"
    assert {"infomax_bias", "infomax_shuffled", "two_view_bias"} <= set(result["information"])
    assert result["information"]["images"] == 102
    rank = float(effective_rank(torch.from_numpy(arrays["features"])))
    assert result["effective_rank"]["features"] == pytest.approx(rank)
    features = torch.from_numpy(arrays["features"])
    assert result["rankme"]["features"] == pytest.approx(float(rankme(features)))
    alpha = result["alpha_req"]["features"]
    assert alpha == pytest.approx(float(alpha_req(features)))
    rank = result["rankme"]["features"]
    assert f"  features: RankMe {rank:.1f}, alpha-ReQ {alpha:.2f} (eigenvalues 4 to 64)" in said.out
    assert "  LiDAR of z " in said.out
    assert "  Gaussian I(z; z') " in said.out
    assert "shuffled pairs" in said.out


def test_a_result_from_before_there_were_these_ranks_is_still_shown(own_run, solo_mim):
    solo_mim("embed", own_run)
    (folder,) = (own_run / "embed").iterdir()
    result = json.loads((folder / "result.json").read_text())
    for name in ("rankme", "alpha_req"):
        del result[name], result["information"][name]
    del result["information"]["lidar"]
    (folder / "result.json").write_text(json.dumps(result))
    said = solo_mim("embed", own_run)
    assert said.code == 0, said.err
    assert "finished before" in said.out
    assert "effective rank" in said.out
    assert "RankMe" not in said.out


def test_without_a_projector_the_information_is_of_the_features(solo_mim, tmp_path, monkeypatch):
    import torchvision

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embed, "MAX_IMAGES", 60)
    torch.save(torchvision.models.resnet18().state_dict(), "w.pth")
    said = solo_mim(
        *("embed", "w.pth", "--split", "train", "backbone=resnet18", "data=photo_patches"),
        *("data.fraction=0.02", "augmentations.0.crop_size=16"),
    )
    assert said.code == 0, said.err
    (folder,) = Path("evaluations/embed").iterdir()
    assert folder.name.startswith("photo_patches-train-")
    arrays = np.load(folder / "embeddings.npz")
    assert arrays["features"].shape == (102, 512)
    assert "z" not in arrays
    result = json.loads((folder / "result.json").read_text())
    assert (result["split"], result["information_of"]) == ("training images", "features")
    assert result["information"]["images"] == 60
    assert result["no_z"] == "no method's checkpoint"
    assert "Gaussian I(features; image) not told from chance on two views of 60 images" in said.out
    assert "512 dimensions want 2,048 images, 60 suffice for 15" in said.out


def test_a_split_that_is_not_there_is_refused(own_run, refused, tmp_path):
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "train" / label / "0.png")
    folder = ["data=image_folder", f"data.train_path={tmp_path / 'train'}"]
    assert "has no test images" in refused("embed", own_run, "--split", "test", *folder)


def test_this_file_passes_on_solo_learn_main(passes_on_main):
    passes_on_main(Path(__file__))
