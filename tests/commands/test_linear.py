"""`solo-mim linear`: the protocol, the logistic regression, solo-learn's own files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir

from solo_mim.commands.linear import hydra_arguments
from solo_mim.protocols import figures, linear
from solo_mim.recipe.checks import checked
from solo_mim.recipe.compose import composed
from solo_mim.recipe.schema import LinearRecipe

SHORT = ["max_epochs=2", "limit_train_batches=3", "limit_val_batches=1", "optimizer.batch_size=64"]
CHECKOUT = os.environ.get("SOLO_LEARN_MAIN")
FILES = [
    pytest.param(file, id=str(file.relative_to(Path(CHECKOUT or "") / "scripts")))
    for kind in ("linear", "finetune")
    for file in sorted((Path(CHECKOUT or "") / "scripts" / kind).glob("*/*.yaml"))
    if CHECKOUT
] or [pytest.param(None, marks=pytest.mark.skip("SOLO_LEARN_MAIN names no checkout"))]


def result_in(folder):
    return json.loads((folder / "result.json").read_text())


def test_the_protocol_leaves_its_files_and_a_tagged_result(own_run, solo_mim):
    said = solo_mim("linear", own_run, *SHORT)
    assert said.code == 0, said.err
    (folder,) = (own_run / "linear").iterdir()
    assert folder.name.startswith("photo_patches-")
    result = result_in(folder)
    (measured,) = result["measured"]
    assert measured["protocol"] == "offline"
    assert measured["classifier"] == "linear layer on augmented images"
    assert (measured["split"], measured["images"]) == ("validation split", 64), "limit_val_batches"
    assert 0 <= measured["top1"] <= measured["top5"] <= 100
    assert measured["nll"] > 0
    trained = result["trained"]
    assert (trained["seed"], trained["config_hash"]) == (3, own_run.name[-8:])
    assert result["versions"]["torch"]
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["epoch"].tolist() == [0, 1]
    assert metrics["val_acc1"].iloc[-1] == pytest.approx(measured["top1"])
    assert metrics["val_loss"].iloc[-1] == pytest.approx(measured["nll"])
    (checkpoint,) = (folder / "checkpoints").iterdir()
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    (before,) = (own_run / "checkpoints").iterdir()
    for key, value in torch.load(before, weights_only=True)["state_dict"].items():
        if key.startswith("backbone."):
            assert torch.equal(saved[key], value), "frozen, its batch statistics too"
    again = solo_mim("linear", own_run, *SHORT)
    assert "finished before" in again.out
    assert "epoch 1/2" not in again.out


def test_an_interrupted_one_resumes_to_the_same_weights(own_run, solo_mim, monkeypatch, tmp_path):
    import lightning.pytorch as pl

    class Press(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    mixed = [*SHORT, "finetune=true", "mixup=0.8", "cutmix=1.0", "name=mixed"]
    make = linear.trainer_of
    with monkeypatch.context() as patch:
        patch.setattr(linear, "trainer_of", lambda *of: make(*of[:-1], [*of[-1], Press()]))
        stopped = solo_mim("linear", own_run, *mixed, f"output_dir={tmp_path}/stopped")
    assert stopped.code == 130
    assert "the checkpoint of epoch 1 of 2 is kept; the same command resumes" in stopped.err
    resumed = solo_mim("linear", own_run, *mixed, f"output_dir={tmp_path}/stopped")
    assert "resuming from" in resumed.out
    assert "epoch 1/2" not in resumed.out
    solo_mim("linear", own_run, *mixed, f"output_dir={tmp_path}/whole")
    one, other = (
        next((tmp_path / kind / "linear").glob("mixed-*")) for kind in ("stopped", "whole")
    )
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    assert result_in(one)["measured"] == result_in(other)["measured"]
    assert result_in(one)["measured"][0]["classifier"] == "fine-tuned network"
    left, right = (
        torch.load(folder / "checkpoints" / "epoch=1.ckpt", weights_only=True)["state_dict"]
        for folder in (one, other)
    )
    torch.testing.assert_close(left, right, rtol=0, atol=0)
    (before,) = (own_run / "checkpoints").iterdir()
    start = torch.load(before, weights_only=True)["state_dict"]
    assert not torch.equal(left["backbone.0.weight"], start["backbone.0.weight"]), "fine-tuned"


def test_the_logistic_regression_says_how_its_penalty_was_chosen(own_run, solo_mim):
    said = solo_mim("linear", own_run, "fast=true", "name=fast", "evaluation.test=true")
    assert said.code == 0, said.err
    (folder,) = (own_run / "linear").glob("fast-*")
    result = result_in(folder)
    (measured,) = result["measured"]
    assert measured["classifier"] == "logistic regression"
    assert (measured["split"], measured["images"]) == ("test images", 4250)
    assert measured["top1"] > 100 / 17
    probe = result["probe"]
    assert probe["chosen_on"] == (
        "top-1 of 82 training images held out by class; then refitted on all 408"
    )
    assert probe["C"] == float(max(probe["candidates"], key=probe["candidates"].get))
    assert "82 training images held out" in said.out


def test_an_interrupted_regression_keeps_nothing_and_says_so(own_run, solo_mim, monkeypatch):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "plain_features", pressed)
    said = solo_mim("linear", own_run, "fast=true", "name=stopped")
    assert said.code == 130
    assert "interrupted; nothing is kept; the same command starts again" in said.err


def test_help_has_examples(solo_mim):
    assert "solo-mim linear RUN fast=true" in solo_mim("linear", "--help").out


def test_a_sweep_leaves_nothing_beside_its_results(own_run, solo_mim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = solo_mim(
        *("linear", "--multirun", own_run, "fast=true", "name=swept", "data.fraction=0.1,0.2")
    )
    assert said.code == 0, said.err
    assert len(list((own_run / "linear").glob("swept-*/result.json"))) == 2
    assert not list(tmp_path.iterdir())


def test_a_plain_file_is_evaluated_on_named_data(solo_mim, image_folders, tmp_path, monkeypatch):
    import torchvision

    monkeypatch.chdir(tmp_path)
    torch.save(torchvision.models.resnet18().state_dict(), "weights=18.pth")
    named = ["backbone=resnet18", "data=image_folder", *image_folders, "data.num_workers=0"]
    said = solo_mim(
        *("linear", "weights=18.pth", *named, "max_epochs=1", "optimizer.batch_size=8"),
        *("scheduler.name=step", "scheduler.lr_decay_steps=[1]", "label_smoothing=0.1"),
    )
    assert said.code == 0, said.err
    (folder,) = Path("evaluations/linear").iterdir()
    (measured,) = result_in(folder)["measured"]
    assert (measured["split"], measured["images"]) == ("held-out images", 12)
    assert measured["top5"] is None, "three classes"
    assert "images of 32 px" in said.out


MAIN_SHAPED = """
name: "simclr-linear"
pretrained_feature_extractor: None
backbone:
  name: "resnet18"
pretrain_method: "simclr"
data:
  dataset: custom
  train_path: "./train"
  val_path: "./val"
  format: "dali"
  num_workers: 4
optimizer:
  name: "sgd"
  batch_size: 8
  lr: 1.0
  weight_decay: 0
scheduler:
  name: "step"
  lr_decay_steps: [60, 80]
checkpoint:
  enabled: True
  dir: "trained_models"
  frequency: 1
auto_resume:
  enabled: True
max_epochs: 1
devices: [0]
sync_batchnorm: True
accelerator: "cpu"
strategy: "ddp"
precision: 32
"""


@pytest.fixture(scope="module")
def small_stem(tmp_path_factory):
    """A checkpoint as main leaves it of a ResNet with CIFAR's stem, and no configuration."""
    from torchvision.models import resnet18

    model = resnet18()
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=2, bias=False)
    state = {f"backbone.{k}": v for k, v in model.state_dict().items() if k[:3] != "fc."}
    path = tmp_path_factory.mktemp("main") / "simclr-ep=9.ckpt"
    torch.save({"state_dict": state, "epoch": 9}, path)
    return path


def test_a_file_in_the_shape_of_mains_runs(
    solo_mim, image_folders, tmp_path, monkeypatch, small_stem
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text(MAIN_SHAPED)
    said = solo_mim(
        *("linear", "--config-path", "conf", "--config-name", "mine.yaml", *image_folders),
        *(f"pretrained_feature_extractor={small_stem}", "data.num_workers=0"),
        *("+data.augmentations.crop_size=32", "data.format=image_folder"),
    )
    assert said.code == 0, said.err
    (folder,) = Path("evaluations/linear").iterdir()
    assert folder.name.startswith("simclr-linear-")
    assert result_in(folder)["trained"]["epochs"] == 10
    assert "stem: small" in (folder / "config.yaml").read_text(), "as the weights are"
    saved = torch.load(folder / "checkpoints" / "epoch=0.ckpt", weights_only=True)
    assert saved["lr_schedulers"][0]["base_lrs"] == [1.0 * 8 / 256]


@pytest.mark.skipif(not CHECKOUT, reason="SOLO_LEARN_MAIN names no checkout")
def test_mains_own_file_runs(solo_mim, image_folders, tmp_path, monkeypatch, small_stem):
    monkeypatch.chdir(tmp_path)
    folder = Path(str(CHECKOUT)) / "scripts" / "linear" / "imagenet-100"
    said = solo_mim(
        *("linear", "--config-path", folder, "--config-name", "simclr.yaml", *image_folders),
        *(
            f"pretrained_feature_extractor={small_stem}",
            "data.dataset=custom",
            "data.num_workers=0",
        ),
        *("accelerator=cpu", "precision=32", "wandb.enabled=false", "optimizer.batch_size=8"),
        *("+limit_train_batches=1", "+limit_val_batches=1", "max_epochs=1"),
        *("+data.augmentations.crop_size=64", "data.format=image_folder"),
    )
    assert said.code == 0, said.err
    assert (
        len(list(Path("evaluations/linear").glob("simclr-imagenet100-linear-*/result.json"))) == 1
    )


@pytest.mark.parametrize("file", FILES)
def test_mains_file_composes_and_its_keys_are_known(file, capsys):
    with initialize_config_dir(str(file.parent), version_base="1.3"):
        cfg = checked(compose(file.name), LinearRecipe)
    noted = [line for line in capsys.readouterr().out.splitlines() if "nothing reads" in line]
    assert noted == []
    assert cfg.precision == "16-mixed"
    assert cfg.data.format in ("dali", "image_folder")
    assert cfg.finetune == ("finetune" in file.parts)


def test_the_whole_configuration_is_shown_and_nothing_is_run(own_run, solo_mim):
    before = sorted(own_run.rglob("*"))
    shown = solo_mim("linear", own_run, "--cfg", "job", "optimizer.lr=0.7").out
    assert "lr: 0.7" in shown
    assert "name: small_cnn" in shown
    assert "validation_split: 0.2" in shown
    assert sorted(own_run.rglob("*")) == before


def test_other_weights_in_a_runs_folder_get_results_of_their_own(own_run, solo_mim, tmp_path):
    run = shutil.copytree(own_run, tmp_path / own_run.name)
    arguments = ["fast=true", "name=again"]
    assert solo_mim("linear", run, *arguments).code == 0
    (path,) = (run / "checkpoints").iterdir()
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["backbone.0.weight"] += 0.1
    torch.save(saved, path.with_name("epoch=1.ckpt"))
    assert "finished before" not in solo_mim("linear", run, *arguments).out
    assert len(list((run / "linear").glob("again-*"))) == 2


def test_two_processes_train_as_one_does_and_each_image_counts_once(own_run, solo_mim, tmp_path):
    words = ["linear", str(own_run), "data=photo_patches", "accelerator=cpu", "data.num_workers=0"]
    words += ["max_epochs=1", "limit_train_batches=2", "data.validation_split=0.01"]
    assert solo_mim(*words, f"output_dir={tmp_path / '1'}", "optimizer.batch_size=32").code == 0
    several = ["devices=2", "strategy=ddp", "optimizer.batch_size=16"]
    command = [sys.executable, "-m", "solo_mim", *words, f"output_dir={tmp_path / '2'}", *several]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sync_dist" not in done.stderr
    one, two = (next((tmp_path / n / "linear").glob("*/")) for n in ("1", "2"))
    (first,), (second,) = (result_in(folder)["measured"] for folder in (one, two))
    assert first["images"] % 2 == 1
    assert second == {**first, "nll": pytest.approx(first["nll"])}
    states = [
        torch.load(folder / "checkpoints" / "epoch=0.ckpt", weights_only=True)["state_dict"]
        for folder in (one, two)
    ]
    assert states[0]["classifier.weight"].abs().max() > 0
    torch.testing.assert_close(states[1], states[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["max_epoch=3"], "unknown key 'max_epoch'; did you mean 'max_epochs'?"),
        (["optimizer.layer_deca=1"], "did you mean 'layer_decay'?"),
        (["optimizer.layer_decay=0.5"], "set finetune=true"),
        (["optimizer.layer_decay=0.5", "finetune=true"], "layers of small_cnn are not known"),
        (["data.vall_path=x"], "did you mean 'val_path'?"),
        (["optimizer.name=lasr"], "did you mean 'lars'?"),
        (["scheduler.name=reduce"], "unknown value 'reduce'"),
        (["scheduler.name=step"], "needs scheduler.lr_decay_steps"),
        (["devices=2", "fast=true", "accelerator=cpu"], "set devices=1"),
        (["auto_augment=true"], "no RandAugment"),
        (["mixup=0.5", "optimizer.batch_size=63"], "need an even number"),
        (["scheduler.warmup_epochs=200"], "is more than max_epochs=100: optimizer.lr is never"),
        (["name=../evil"], "name='../evil' must be fit for a folder"),
        (["label_smoothing=2"], "label_smoothing must be at least 0 and at most 1"),
        (["optimizer.batch_size=4096"], "optimizer.batch_size"),
        (["data=cifar1"], "did you mean 'cifar10'?"),
        (["max_epochs=[1"], "max_epochs=[1"),
    ],
)
def test_user_errors_are_one_line(arguments, message, own_run, refused):
    before = sorted(own_run.rglob("*"))
    assert message in refused("linear", own_run, *arguments)
    assert sorted(own_run.rglob("*")) == before, "nothing is left behind"


def test_a_network_has_to_be_named(refused, tmp_path):
    assert "no network is named, as in solo-mim linear RUN" in refused("linear")
    assert "is not there" in refused("linear", tmp_path / "no" / "run=3.ckpt")
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    assert "name its backbone and the data" in refused("linear", tmp_path / "a.pth")


def test_a_data_set_without_labels_cannot_be_classified(own_run, refused, image_folders):
    said = refused(*("linear", own_run, "data=image_folder", *image_folders, "data.no_labels=true"))
    assert "a classifier needs two classes and labelled images" in said


def test_images_are_cropped_and_resized_as_mains_classification_does(own_run):
    cfg, _ = linear.prepared(checked_composition(own_run))
    data = linear.images_of(cfg)
    (augmentation,) = data.augmentations
    assert augmentation.crop_scale == (0.08, 1.0)
    assert augmentation.interpolation.name == "BILINEAR"
    assert (augmentation.horizontal_flip, augmentation.color_jitter) == (0.5, None)


def checked_composition(run):
    others = hydra_arguments([str(run), "data.num_workers=0"])
    others = [argument for argument in others if not argument.startswith("hydra.")]
    return composed("linear", others)


def test_this_file_passes_on_solo_learn_main(passes_on_main):
    passes_on_main(Path(__file__))
