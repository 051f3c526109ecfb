"""`backbone.weights`: a new run starts from trained weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from omegaconf import OmegaConf

from solo_mim import trained
from solo_mim.errors import ConfigError
from solo_mim.methods import find_method
from solo_mim.recipe.checks import checked
from solo_mim.recipe.schema import host_config
from solo_mim.runs.collect import collect
from solo_mim.runs.identity import identity

SMALL = ["+backbone.kwargs.widths=[8,16,32,64]", "method_kwargs.proj_hidden_dim=16"]
BYOL = ["method=byol", "method_kwargs.pred_hidden_dim=8"]


@pytest.fixture
def new_model(compose_cfg):
    """A new model and what it starts from: `new_model(path, *overrides)`."""

    def build(weights, *overrides):
        cfg = compose_cfg(*overrides)
        cfg.backbone.weights = str(weights) if weights else None
        start, recipe = trained.start_of(checked(cfg))
        return find_method(recipe.method)(host_config(recipe, 17, 2, 0)), start

    return build


@pytest.fixture
def byol_file(new_model, tmp_path):
    """A checkpoint of BYOL whose momentum network differs from the other."""
    model, _ = new_model(None, *BYOL, *SMALL)
    for part in (model.backbone, model.projector):
        for value in part.state_dict().values():
            value.add_(1)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "byol.ckpt")
    return tmp_path / "byol.ckpt"


@pytest.mark.parametrize(
    ("recipe", "taken"),
    [
        (BYOL, ["backbone", "projector"]),
        ([], ["backbone"]),  # three layers, not two
    ],
)
def test_backbone_projector_and_their_momentum_copies_arrive_bit_for_bit(
    recipe, taken, byol_file, new_model
):
    theirs = torch.load(byol_file, weights_only=True)["state_dict"]
    model, start = new_model(byol_file, *recipe, *SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert start.give(model) == taken
    for key, value in model.state_dict().items():
        online = key.removeprefix("momentum_")
        expected = theirs[online] if online.split(".")[0] in taken else before[key]
        assert torch.equal(value, expected), key
    parts = {key.split(".")[0] for key in before}
    assert ({"momentum_backbone", "momentum_projector"} <= parts) == (recipe == BYOL)


def test_a_plain_state_dict_gives_the_backbone_and_its_stem(new_model, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().state_dict()
    torch.save(theirs, tmp_path / "resnet18.pth")
    model, start = new_model(tmp_path / "resnet18.pth", "method=simclr", "backbone=resnet18")
    assert start.give(model) == ["backbone"]
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["+backbone.kwargs.widths=[8,16,32,16]", SMALL[1]],
            "of another shape: 9.weight ((64, 32, 3, 3) there, (16, 32, 3, 3) here), ",
        ),
        (
            ["+backbone.kwargs.widths=[8,16,32,64,64]", SMALL[1]],
            "weights are missing: 12.weight, ",
        ),
        (["+backbone.kwargs.widths=[8,16,32]", SMALL[1]], "weights are unknown: 9.weight, "),
        (
            [*SMALL, "method_kwargs.proj_output_dim=12"],
            "fit the projector; 2 weights are of another shape: 3.weight ((256, 16) there, (12, 16)"
            " here), 3.bias ((256,) there, (12,) here); set its sizes in method_kwargs, or name a ",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(overrides, said, byol_file, new_model):
    model, start = new_model(byol_file, *BYOL, *overrides)
    with pytest.raises(ConfigError) as error:
        start.give(model)
    assert str(error.value).startswith(f"backbone.weights: {byol_file} does not fit the ")
    assert said in str(error.value)
    if "backbone; " in str(error.value):
        assert "name the backbone that it is of, with its backbone.kwargs" in str(error.value)


def test_a_file_that_gives_no_weights_is_refused_in_one_line(tmp_path, toy_run, refused):
    (tmp_path / "text").write_text("hello")
    for path, said in (
        (tmp_path / "x", f"{tmp_path}/x is not there"),
        (tmp_path, f"{tmp_path} holds no checkpoint of a run"),
        (tmp_path / "text", f"{tmp_path}/text is cut short, or not of torch.save"),
    ):
        assert f"backbone.weights: {said}" in refused("pretrain", f"backbone.weights={path}")
    both = [f"backbone.weights={toy_run}", "resume_from_checkpoint=x.ckpt"]
    assert "resume_from_checkpoint brings weights of its own" in refused("pretrain", *both)
    assert "unknown key 'backbone.weights'" in refused("linear", toy_run, both[0])


def test_runs_without_given_weights_keep_their_identity(compose_cfg):
    cfg = compose_cfg()
    older = cfg.copy()
    del older.backbone["weights"]
    assert cfg.backbone.weights is None
    one, other = (OmegaConf.to_container(found) for found in (cfg, older))
    assert identity(one, "host", "0123") == identity(other, "host", "0123")


@pytest.fixture
def pretrained(toy_run, tmp_path, solo_mim, monkeypatch):
    """What the toy run says that starts from weights: `pretrained(weights, *overrides)`."""
    monkeypatch.chdir(tmp_path)  # where Hydra leaves a folder

    def run(weights, *more):
        toy = ["--config-path", toy_run, "--config-name", "config", f"output_dir={tmp_path}/runs"]
        said = solo_mim("pretrain", *toy, f"backbone.weights={weights}", *more)
        assert said.code == 0, said.err
        return said.out

    return run


def test_a_run_starts_from_weights_wherever_they_lie(toy_run, tmp_path, solo_mim, pretrained):
    (checkpoint,) = (toy_run / "checkpoints").iterdir()
    file = shutil.copy(checkpoint, tmp_path / "epoch=7.ckpt")
    output = tmp_path / "runs"
    still = ["optimizer.lr=0", "scheduler.name=none", "evaluation.offline=true"]
    out = pretrained(file, *still)
    assert f"starts from {file}: backbone and projector\n" in out
    assert "at the start, offline" in out
    assert "untrained" not in out
    (run,) = output.iterdir()
    (ours,) = (run / "checkpoints").iterdir()
    theirs, ours = (torch.load(p, weights_only=True)["state_dict"] for p in (checkpoint, ours))
    for key in theirs:
        trained_part = key.startswith(("backbone", "projector"))
        if trained_part and not ("running_" in key or key.endswith("num_batches_tracked")):
            assert torch.equal(ours[key], theirs[key]), key
    start = json.loads((run / "result.json").read_text())["start"]
    (session,) = json.loads((run / "provenance.json").read_text())
    assert start["weights"] == session["weights"]
    assert (start["checkpoint"], start["taken"]) == (str(file), ["backbone", "projector"])

    # As the folder of a run, these are the same weights.
    assert "finished before" in pretrained(toy_run, *still)
    changed = torch.load(file, weights_only=True)
    changed["state_dict"]["projector.6.bias"] += 1
    torch.save(changed, file)
    out = pretrained(file, *still)
    assert f"differs from the run in {run}: backbone.weights {start['weights']} -> " in out
    runs, _ = collect(output)
    assert len({one.settings["backbone.weights"] for one in runs}) == 2, "rows of their own"

    # What is made of the run does not ask for them.
    file.unlink()
    for command in (["knn", run], ["linear", run, "fast=true"]):
        assert solo_mim(*command).code == 0


def test_a_resumed_run_goes_on_from_its_own_checkpoint(toy_run, tmp_path, pretrained):
    more = ["max_epochs=2", "checkpoint.keep_prev=true", "evaluation.offline=true"]
    pretrained(toy_run, *more)
    (run,) = (tmp_path / "runs").iterdir()
    last = run / "checkpoints" / "epoch=1.ckpt"
    whole = torch.load(last, weights_only=True)["state_dict"]
    offline = json.loads((run / "result.json").read_text())["offline"]
    for path in (last, run / "result.json", run / "yardsticks.json"):
        path.unlink()
    out = pretrained(toy_run, *more)
    assert f"resuming from {run}/checkpoints/epoch=0.ckpt" in out
    assert "starts from" not in out
    for key, value in torch.load(last, weights_only=True)["state_dict"].items():
        assert torch.equal(value, whole[key]), key
    # That of the start included.
    assert json.loads((run / "result.json").read_text())["offline"] == offline


def test_this_file_passes_on_solo_learn_main(passes_on_main):
    passes_on_main(Path(__file__))
