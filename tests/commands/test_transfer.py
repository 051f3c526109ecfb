"""`solo-mim transfer`: what it leaves, what its figures are of, what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from solo_mim import trained
from solo_mim.data import SSLDataModule
from solo_mim.data.photo_patches import MEAN, STD
from solo_mim.errors import ConfigError
from solo_mim.evaluation.compare import tables
from solo_mim.evaluation.knn import knn_predictions
from solo_mim.evaluation.offline import extract_features
from solo_mim.protocols import figures, transfer
from solo_mim.runs.collect import collect


@pytest.fixture(scope="module")
def folder(image_folders) -> Path:
    """Of train/ and val/: 24 and 12 patches of three photographs."""
    return Path(image_folders[0].partition("=")[2]).parent


@pytest.fixture(scope="module")
def renamed(folder, tmp_path_factory) -> Path:
    """The same images in train/ and test/."""
    root = tmp_path_factory.mktemp("renamed")
    for part, name in (("train", "train"), ("val", "test")):
        shutil.copytree(folder / part, root / name)
    return root


def result_of(run: Path, name: str) -> dict:
    (found,) = (run / "transfer").glob(f"{name}-*/result.json")
    return json.loads(found.read_text())


def features_of(run: Path, folder: Path) -> list:
    """Of training and held-out images, in the size and under the constants of photo_patches."""
    paths = [f"data.{part}_path={folder / part}" for part in ("train", "val")]
    constants = [
        f"++augmentations.0.{key}={list(of)}" for key, of in (("mean", MEAN), ("std", STD))
    ]
    network = trained.opened(run, ["data=image_folder", *paths, *constants])
    data = SSLDataModule(network.recipe.plain)
    assert data.crop_size == 32
    return [extract_features(network.backbone, data.plain_dataloader(p)) for p in ("train", "val")]


def test_a_table_of_all_sets_and_a_result_of_each(own_run, folder, renamed, solo_mim, monkeypatch):
    extracted = []
    monkeypatch.setattr(
        figures,
        "extract_features",
        lambda *args, **more: extracted.append(1) or extract_features(*args, **more),
    )
    sets = ["--data", f"flowers={folder}", f"again={renamed}"]
    said = solo_mim("transfer", own_run, *sets, "--shares", "1", "0.25", "--seeds", "2")
    assert said.code == 0, said.err
    assert len(extracted) == 4, "training and held-out images of each set, once"
    flowers, again = (result_of(own_run, name) for name in ("flowers", "again"))
    train, test = features_of(own_run, folder)
    assert [(s["share"], s["seed"], s["images"]) for s in flowers["subsets"]] == [
        *((0.25, 0, 6), (0.25, 1, 6)),
        (1.0, 0, 24),
    ]
    for one in flowers["subsets"]:
        drawn = transfer.subset(train[1], one["share"], one["seed"])
        of = train[0][drawn], train[1][drawn]
        assert one["linear"]["chosen"] == (one["share"] == 1)
        model = LogisticRegression(C=one["linear"]["C"], max_iter=1000)
        probe = make_pipeline(StandardScaler(), model).fit(of[0].numpy(), of[1].numpy())
        top1 = 100 * probe.score(test[0].numpy(), test[1].numpy())
        assert one["linear"]["top1"] == pytest.approx(top1)
        setting = one["knn"]["k"], one["knn"]["distance"], one["knn"]["temperature"] or 1.0
        right = knn_predictions(*of, test[0], *setting)[:, 0] == test[1]
        assert one["knn"]["top1"] == pytest.approx(100 * right.double().mean().item())
    rows = {(row["share"], row["by"]): row for row in flowers["measured"]}
    few = [s["linear"]["top1"] for s in flowers["subsets"][:2]]
    row = rows[0.25, "linear"]
    assert row["classifier"] == "transfer to flowers, 25 % of labels: logistic regression"
    assert (row["split"], row["images"], row["subsets"]) == ("held-out images", 12, 2)
    assert (row["top1"], row["top1_sd"]) == pytest.approx((np.mean(few), np.std(few, ddof=1)))
    assert rows[1.0, "knn"]["top1_sd"] is None
    assert again["subsets"] == flowers["subsets"]
    assert again["images"] == {"size": 32, "mean": list(MEAN), "std": list(STD)}
    heads, names, first, second = said.out.splitlines()[-7:-3]
    assert heads.split() == ["labels", "25", "%", "100", "%"]
    assert names.split() == ["linear", "kNN"] * 2
    assert first.split()[:2] == ["flowers", f"{row['top1']:.1f}"]
    assert f"± {row['top1_sd']:.1f}*" in first
    assert second.split()[1:] == first.split()[1:]
    assert "  * C = 0.1, not chosen: " in said.out

    shutil.rmtree(next((own_run / "transfer").glob("again-*")))
    more = solo_mim("transfer", own_run, *sets, "--shares", "0.25", "1", "--seeds", "2")
    assert more.out.count("finished before, nothing to do") == 1
    assert more.out.splitlines()[-9:] == said.out.splitlines()[-9:]
    assert len(extracted) == 6

    (evaluated,), _ = collect(own_run)
    values = evaluated.values()
    held_out = f"held-out images, images={flowers['fingerprint']}"
    assert values[f"{row['classifier']} ({held_out})"] == (row["split"], row["top1"])
    assert len([name for name in values if name.startswith("transfer to flowers")]) == 4
    (ranked,) = tables([evaluated])
    assert ranked.measures[:2] == ["online probe", "online kNN"], "no transfer ranks"
    assert len(ranked.measures) == 2 + 8


def test_shares_without_an_image_of_each_class_are_left_out_and_said(
    toy_run, folder, solo_mim, tmp_path
):
    said = solo_mim("transfer", toy_run, f"output_dir={tmp_path}", "--data", f"few={folder}")
    assert said.code == 0, said.err
    for share in ("1 %", "10 %"):
        assert f"few: {share} of 24 images is fewer than one of each of 3 classes" in said.out
    assert {row["share"] for row in result_of(tmp_path, "few")["measured"]} == {1.0}


def test_images_that_cannot_be_read_fail_or_are_skipped(
    toy_run, folder, solo_mim, refused, tmp_path
):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "train" / "photograph0" / "0.png").write_text("no image")
    words = ["transfer", toy_run, f"output_dir={tmp_path}", "--data", f"broken={broken}"]
    said = refused(*words, "--shares", "1")
    assert "photograph0/0.png" in said
    assert "data.on_corrupt: skip" in said
    said = solo_mim(*words, "--shares", "1", "--", "data.on_corrupt=skip")
    assert said.code == 0, said.err
    assert "  broken: 1 unreadable images skipped" in said.out
    assert result_of(tmp_path, "broken")["subsets"][0]["images"] == 23


def test_subsets_are_stratified_nested_and_hold_each_class():
    targets = torch.tensor([0] * 200 + [1] * 100 + [2] * 3)
    for seed in range(3):
        small, large = (transfer.subset(targets, share, seed) for share in (0.01, 0.1))
        assert targets[small].bincount().tolist() == [2, 1, 1]
        assert targets[large].bincount().tolist() == [20, 10, 1]
        assert set(small.tolist()) < set(large.tolist())
        assert torch.equal(small, small.sort().values)
        assert torch.equal(transfer.subset(targets, 1.0, seed), torch.arange(303))
    seeds = {tuple(transfer.subset(targets, 0.1, seed).tolist()) for seed in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data: name a data set, as in photo_patches or flowers=FOLDER"),
        (["--data", "cifra10"], "unknown data set 'cifra10'; did you mean 'cifar10'?"),
        (["--data", "x y=F"], "--data x y=F: write NAME or NAME=FOLDER"),
        (["--data", "a=F", "--data", "a=G"], "--data a=G: a is named twice"),
        (["--data", "a=/nowhere"], "--data a=/nowhere: there is no such folder"),
        (["--data", "a=IMAGES", "seed=3"], "--data seed=3: there is no such folder"),
        (["--data", "a=IMAGES", "data.x=3"], "no such folder; keys of the recipe stand before"),
        (["--data", "a=EMPTY"], "the folder has no train/; put a folder of images"),
        (["--data", "stl01=EMPTY"], "in train/ and in val/ or test/; did you mean 'stl10'?"),
        (["--data", "a=TRAIN"], "the folder has no val/ and no test/"),
        (["--data", "cifar10=IMAGES"], "another name, as in my-cifar10="),
        (["--data", "cifar10=EMPTY", "--", "data.download=false"], "CIFAR10 is not there"),
        (["--data", "photo_patches=EMPTY"], "photo_patches are in the packages"),
        (["--data", "a=IMAGES", "--shares", "0.1", "1"], "0.1 of the 24 training images of a is"),
        (["--data", "a=IMAGES", "--shares", "2"], "--shares: '2' is no share of the training"),
        (["--data", "a=IMAGES", "--shares", "1", "x=1"], "'x=1' is no share"),
        (["--data", "a=IMAGES", "--seeds", "0"], "--seeds: '0' is no number of subsets"),
        (["data.fraction=0.1", "--data", "a=IMAGES"], "data.fraction: which images they are, say"),
        (["data=cifar10", "--data", "a=IMAGES"], "data: which images they are, say --data"),
        (["optimizer.batch_siz=9", "--data", "a=IMAGES"], "did you mean 'batch_size'?"),
    ],
)
def test_user_errors_are_one_line(arguments, message, toy_run, folder, refused, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "TRAIN": tmp_path, "IMAGES": folder}
    for name, place in places.items():
        arguments = [argument.replace(f"={name}", f"={place}") for argument in arguments]
    before = sorted(toy_run.rglob("*"))
    assert message in refused("transfer", toy_run, *arguments)
    assert sorted(toy_run.rglob("*")) == before


def test_of_a_set_that_cannot_be_used_nothing_is_computed_of_any(
    toy_run, folder, refused, tmp_path
):
    sets = ["--data", f"good={folder}", "--data", f"bad={tmp_path}"]
    assert "--data bad=" in refused("transfer", toy_run, f"output_dir={tmp_path / 'out'}", *sets)
    assert not (tmp_path / "out").exists()


def test_where_there_are_val_and_test_the_latter_is_taken_on_request(folder, tmp_path):
    for part in ("train", "val", "test"):
        (tmp_path / part).mkdir()
    one = transfer.Wanted("own", tmp_path)
    assert one.paths(test=False)["val_path"] == str(tmp_path / "val")
    assert one.paths(test=True)["val_path"] == str(tmp_path / "test")
    assert transfer.Wanted("own", folder).paths(test=True)["val_path"] == str(folder / "val")
    assert transfer.Wanted("imagenet100", folder).paths(test=False)["train_path"].endswith("train")


def test_a_file_without_a_configuration_has_to_say_the_size_of_its_images(tmp_path):
    source = trained.Source(tmp_path / "w.pth", None, None)
    one = transfer.Wanted("photo_patches", None)
    with pytest.raises(ConfigError, match=r"as in augmentations\.0\.crop_size=224"):
        one.recipe(source, ["backbone=resnet18"])
    overrides = ["backbone=resnet18", "augmentations.0.crop_size=64"]
    recipe = one.recipe(source, [*overrides, "++augmentations.0.std=[0.5,0.5,0.5]"])
    (pipeline,) = recipe.augmentations
    assert pipeline["crop_size"] == 64
    assert pipeline["mean"] == [0.485, 0.456, 0.406]
    assert pipeline["std"] == [0.5, 0.5, 0.5]


def test_this_file_passes_on_solo_learn_main(passes_on_main):
    passes_on_main(Path(__file__))
