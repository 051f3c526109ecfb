"""`solo-mim knn`: what it leaves, what its figures are of, what it refuses."""

import json
from pathlib import Path

import pytest

from solo_mim import trained
from solo_mim.data import SSLDataModule
from solo_mim.evaluation.knn import knn_predictions
from solo_mim.evaluation.offline import extract_features


def test_the_result_says_what_was_chosen_on_what_and_is_that_of_the_features(own_run, solo_mim):
    said = solo_mim("knn", own_run)
    assert said.code == 0, said.err
    (folder,) = (own_run / "knn").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["trained"]["config_hash"] == own_run.name[-8:]
    assert result["trained"]["seed"] == 3
    network = trained.opened(own_run, [])
    data = SSLDataModule(network.recipe.plain)
    train, val = (
        extract_features(network.backbone, data.plain_dataloader(part)) for part in ("train", "val")
    )
    for measured, (distance, chosen) in zip(
        result["measured"], result["chosen"].items(), strict=True
    ):
        assert measured["protocol"] == "offline"
        assert measured["classifier"] == f"kNN, {distance}"
        assert measured["setting"].startswith(f"k = {chosen['k']}")
        assert (measured["split"], measured["images"]) == ("validation split", 102)
        assert chosen["chosen_on"] == "408 training images, each from all others"
        best = max(row["top1"] for row in chosen["candidates"])
        assert best in [r["top1"] for r in chosen["candidates"] if r["k"] == chosen["k"]]
        ranked = knn_predictions(
            *(*train, val[0], chosen["k"], distance, chosen["temperature"] or 1.0)
        )
        top1 = 100 * (ranked[:, 0] == val[1]).double().mean().item()
        assert measured["top1"] == pytest.approx(top1)
        of = f"{measured['classifier']}, {measured['setting']}"
        assert f"{of}, 102 validation split: top-1 {top1:.1f} %" in said.out
    again = solo_mim("knn", own_run)
    assert "finished before" in again.out


def test_test_images_are_opened_on_request_alone(own_run, solo_mim):
    said = solo_mim("knn", own_run, "evaluation.test=true")
    assert said.out.count("4,250 test images") == 2


def test_overrides_come_before_or_after(own_run, solo_mim, tmp_path):
    said = solo_mim("knn", own_run, "data.fraction=0.05", f"output_dir={tmp_path}")
    assert said.code == 0, said.err
    assert "204 training images" in said.out
    (folder,) = (tmp_path / "knn").iterdir()
    assert folder.name.startswith("photo_patches-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.val_pat=x"], "unknown key 'data.val_pat'; did you mean 'val_path'?"),
        (["data=cifra10"], "did you mean 'cifar10'?"),
        (["data=image_folder", "data.train_path=/nowhere"], "data.train_path"),
        (["backbone=resnet18"], "does not fit resnet18"),
        (["data=null"], "data=null: a group takes the name of a file in it"),
        (["++data=cifar1"], "did you mean 'cifar10'?"),
        (["optimizer.batch_size=0"], "optimizer.batch_size must be at least 2"),
    ],
)
def test_user_errors_are_one_line(arguments, message, own_run, refused):
    before = sorted(own_run.rglob("*"))
    assert message in refused("knn", own_run, *arguments)
    assert sorted(own_run.rglob("*")) == before


def test_help_has_examples_and_a_network_is_needed(solo_mim, capsys):
    for arguments, code in ((["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as stopped:
            solo_mim("knn", *arguments)
        assert stopped.value.code == code
        said = capsys.readouterr()
        assert ("solo-mim knn RUN data=cifar10" in said.out) == (code == 0)
    assert "RUN" in said.err


def test_this_file_passes_on_solo_learn_main(passes_on_main):
    passes_on_main(Path(__file__))
