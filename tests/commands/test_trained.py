"""Networks from whatever file they lie in."""

import copy
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from omegaconf import OmegaConf

from solo_mim import trained
from solo_mim.errors import ConfigError

PLAIN = ["backbone=resnet18", "data=photo_patches"]


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


def checkpoint_of(run: Path) -> Path:
    (path,) = (run / "checkpoints").iterdir()
    return path


def same_features(one, other, size=32):
    images = torch.randn(4, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(one(images).flatten(1), other(images).flatten(1))


def test_a_runs_folder_and_its_checkpoint_are_one_network(toy_run):
    by_folder = trained.opened(toy_run, [])
    by_file = trained.opened(checkpoint_of(toy_run), [])
    assert by_folder.weights.digest == by_file.weights.digest
    assert by_folder.source.run == by_file.source.run == toy_run
    assert not by_folder.backbone.training
    assert by_folder.recipe.data.validation_split == 0.2
    saved = torch.load(checkpoint_of(toy_run), weights_only=True)["state_dict"]
    for key, value in by_folder.backbone.state_dict().items():
        assert torch.equal(value, saved[f"backbone.{key}"])
    origin = trained.origin(by_folder.source, by_folder.weights)
    assert origin["config_hash"] == toy_run.name[-8:]
    assert (origin["seed"], origin["epochs"], origin["method"]) == (3, 1, "explicit_mim")


def test_the_newest_whole_checkpoint_is_taken(toy_run, tmp_path):
    run = shutil.copytree(toy_run, tmp_path / "run")
    (run / "checkpoints" / "epoch=7.ckpt").write_bytes(b"PK cut short")
    assert trained.find(run).path.name == "epoch=0.ckpt"


def test_overrides_change_the_runs_configuration(toy_run):
    source = trained.find(toy_run)
    cfg = trained.recipe_of(source, ["data.validation_split=null", "optimizer.batch_size=32"])
    assert cfg.data.validation_split is None
    assert cfg.optimizer.batch_size == 32
    assert cfg.data.fraction == 0.1
    other = trained.recipe_of(source, ["data=cifar10", "data.train_path=/d"])
    assert (other.data.dataset, other.data.train_path) == ("cifar10", "/d")
    assert other.data.fraction == -1, "the other data set's own"
    assert other.backbone.name == "small_cnn"
    with pytest.raises(ConfigError, match=r"unknown key 'data.val_pat'; did you mean 'val_path'"):
        trained.recipe_of(source, ["data.val_pat=x"])


def test_solo_learn_mains_checkpoint_brings_its_args(toy_run, tmp_path):
    path = tmp_path / "simclr-x-ep=0.ckpt"
    shutil.copy(checkpoint_of(toy_run), path)
    args = OmegaConf.to_container(OmegaConf.load(toy_run / "config.yaml"))
    del args["evaluation"], args["backbone"]["stem"], args["data"]["validation_split"]
    args |= {"wandb_run_id": "abc", "num_large_crops": 2}
    args["data"]["somewhere"] = "else"
    (tmp_path / "args.json").write_text(json.dumps(args))
    network = trained.opened(path, ["data.validation_split=0.1"])
    assert network.source.run is None
    assert network.recipe.data.validation_split == 0.1
    same_features(network.backbone, trained.opened(toy_run, []).backbone)


def test_results_on_a_foreign_checkpoint_go_to_evaluations(toy_run, tmp_path):
    path = shutil.copy(checkpoint_of(toy_run), tmp_path / "simclr.ckpt")
    args = OmegaConf.to_container(OmegaConf.load(toy_run / "config.yaml"))
    del args["output_dir"]
    for beside in ([], PLAIN):
        if not beside:
            (tmp_path / "args.json").write_text(json.dumps(args))
        else:
            (tmp_path / "args.json").unlink()
        source = trained.find(path)
        cfg = trained.recipe_of(source, beside)
        folder = trained.folder_for("knn", "photo_patches", cfg.plain, source, "d", "0123")
        assert folder.parent == Path("evaluations/knn")
        cfg = trained.recipe_of(source, [*beside, "output_dir=there"])
        folder = trained.folder_for("knn", "photo_patches", cfg.plain, source, "d", "0123")
        assert folder.parent == Path("there/knn")


@pytest.mark.parametrize(
    ("wrap", "stem"),
    [
        *(("plain", "imagenet"), ("without fc", "small"), ("model", "small")),
        *(("encoder", "small"), ("backbone", "imagenet")),
    ],
)
def test_any_state_dict_of_a_resnet_is_read_with_the_stem_of_its_weights(
    wrap, stem, resnet, tmp_path
):
    resnet = copy.deepcopy(resnet)
    if stem == "small":
        resnet.conv1 = torch.nn.Conv2d(3, 64, 3, padding=2, bias=False)
        resnet.maxpool = torch.nn.Identity()
    state = dict(resnet.state_dict())
    if wrap == "without fc":
        state = {k: v for k, v in state.items() if not k.startswith("fc.")}
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if wrap in ("encoder", "backbone"):
        prefixed = {f"{wrap}.{k}": v for k, v in state.items() if not k.startswith("fc.")}
        momentum = {f"momentum_{k}": v + 1 for k, v in prefixed.items()}
        state = {"state_dict": {**momentum, **prefixed, "classifier.weight": torch.ones(3, 512)}}
    if wrap == "model":
        state = {"model": state}
    torch.save(state, tmp_path / "weights.pth")
    network = trained.opened(tmp_path / "weights.pth", PLAIN)
    assert network.recipe.backbone.stem == stem
    resnet.fc = torch.nn.Identity()
    same_features(network.backbone, resnet)


def test_a_transformer_of_timm_is_read_with_its_patches(tmp_path):
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8).eval()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    network = trained.opened(tmp_path / "vit.pth", ["backbone.name=vit_tiny", "data=photo_patches"])
    model.head = torch.nn.Identity()
    same_features(network.backbone, model)


def test_a_file_without_a_configuration_asks_for_what_it_needs(resnet, tmp_path):
    torch.save(resnet.state_dict(), tmp_path / "w.pth")
    for overrides in ([], ["data=photo_patches"], ["backbone=resnet18"]):
        with pytest.raises(ConfigError, match="name its backbone and the data, as in backbone="):
            trained.opened(tmp_path / "w.pth", overrides)
    with pytest.raises(ConfigError, match=r"name its backbone, as in backbone=resnet18$"):
        trained.opened(tmp_path / "w.pth", [], needs_data=False)


def test_weights_that_do_not_fit_are_named(resnet, tmp_path):
    state = {k: v for k, v in resnet.state_dict().items() if k != "bn1.bias"}
    state["layer1.0.conv1.weight"] = torch.ones(1)
    torch.save({**state, "odd": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ConfigError) as error:
        trained.opened(tmp_path / "w.pth", PLAIN)
    for named in (
        "1 weights are missing: bn1.bias;",
        "1 weights are unknown: odd;",
        "of another shape: layer1.0.conv1.weight ((1,) there, (64, 64, 3, 3) here)",
    ):
        assert named in str(error.value)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_is_refused_and_not_run(legacy, tmp_path):
    content = {"state_dict": {"backbone.w": torch.ones(1)}, "callbacks": Evil(tmp_path / "ran")}
    path = tmp_path / "evil.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConfigError, match=r"is not opened: it holds \w+\.mkdir, which no check"):
        trained.weights(path)
    assert not (tmp_path / "ran").exists()


def test_what_training_leaves_in_a_checkpoint_is_passed_over(tmp_path):
    import functools
    import pathlib

    content = {
        "state_dict": {"backbone.w": torch.ones(1)},
        "hyper_parameters": {"path": pathlib.PurePosixPath("x")},
        "lr_schedulers": [{"get_lr": functools.partial(torch.nn.Linear(1, 1).state_dict)}],
        "epoch": 4,
    }
    torch.save(content, tmp_path / "simsiam.ckpt")
    found = trained.weights(tmp_path / "simsiam.ckpt")
    assert list(found.backbone) == ["w"]
    assert found.epochs == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hello", "cut short, or not of torch.save"),
        (b"PK\x03\x04 cut", "cut short, or not of torch.save"),
        (pickle.dumps({"w": 1}), "x.ckpt is a pickle, but none of torch.save; give a checkpoint"),
        (pickle.dumps({"w": np.zeros(3)}), "x.ckpt is a pickle, but none of torch.save; give"),
        ({"a": 1}, "holds no weights"),
        (3, "holds no weights"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content, said, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ConfigError, match=said):
        trained.weights(path)


def test_a_torchscript_program_is_refused_without_advice_to_run_it(tmp_path):
    images = torch.zeros(1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(torch.nn.Linear(2, 2), images).save(tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"is a TorchScript program.*; give the") as e:
        trained.weights(tmp_path / "x.pt")
    assert "weights_only" not in str(e.value)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match="is not there; name the folder of a run"):
        trained.find(tmp_path / "x")
    with pytest.raises(ConfigError, match="holds no checkpoint of a run"):
        trained.find(tmp_path)


def test_the_whole_model_of_a_method_gives_z(toy_run):
    network = trained.opened(toy_run, [])
    model = trained.whole_model(network, 2, 0)
    images = torch.randn(3, 3, 32, 32)
    out = model(images)
    assert out["z"].shape == (3, 8)
    torch.testing.assert_close(out["feats"], network.backbone(images))


@pytest.mark.parametrize("command", ["pretrain", "knn", "linear", "embed"])
def test_test_images_that_are_not_there_are_refused_before_anything_is_done(
    command, toy_run, image_folders, refused, tmp_path
):
    images = ["data=image_folder", image_folders[0], "data.validation_split=6"]
    network = [] if command == "pretrain" else [toy_run]
    said = refused(command, *network, *images, "evaluation.test=true", f"output_dir={tmp_path}/x")
    assert "data.dataset=custom has no labelled test images; name them in data.val_path" in said
    assert not list(tmp_path.iterdir())


def test_this_file_passes_on_solo_learn_main(passes_on_main):
    passes_on_main(Path(__file__))


@pytest.mark.parametrize("prefix", ["", "+", "++"])
@pytest.mark.parametrize("words", [["linear"], ["knn"], ["embed"], ["export", "--to", "timm"]])
def test_an_unknown_key_is_refused_whatever_its_prefix(words, prefix, toy_run, refused, tmp_path):
    command, *options = words
    file = [tmp_path / "out.pth"] if command == "export" else []
    said = refused(command, toy_run, *file, f"{prefix}optimizer.lrr=0.5", *options)
    assert "unknown key 'optimizer.lrr'; did you mean 'lr'?" in said
