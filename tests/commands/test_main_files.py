"""solo-learn main's own YAML files, as they are, on the host that is on the import path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from solo_mim.methods import METHODS
from solo_mim.options import checked_options
from solo_mim.recipe.checks import checked
from solo_mim.recipe.compose import composed

CHECKOUT = os.environ.get("SOLO_LEARN_MAIN")
SCRIPTS = Path(CHECKOUT or "") / "scripts" / "pretrain"
FILES = [
    pytest.param(file, id=str(file.relative_to(SCRIPTS)))
    for folder in ("cifar", "imagenet-100")
    for file in sorted(SCRIPTS.glob(f"{folder}/*.y*ml"))
] or [pytest.param(None, marks=pytest.mark.skip("SOLO_LEARN_MAIN names no checkout"))]

# Keys that nothing on main reads, in its own files.
RESSL = [
    f"method_kwargs.{key}"
    for key in ("base_tau_momentum", "final_tau_momentum", "momentum_classifier")
]
NOTES = {
    "imagenet-100/deepclusterv2.yaml": ["dali.encode_indexes_into_labels"],
    "cifar/simsiam.yaml": ["method_kwargs.temperature"],
    "imagenet-100/simsiam.yaml": ["method_kwargs.temperature", "augmentations_cfg", "wandb_cfg"],
    "cifar/ressl.yaml": RESSL,
    "imagenet-100/ressl.yaml": RESSL,
}


@pytest.mark.parametrize("file", FILES)
def test_file_composes_and_its_keys_are_known(file, capsys):
    cfg = checked(composed(file.name, [], folder=file.parent))
    said = capsys.readouterr().out.splitlines()
    name = str(file.relative_to(SCRIPTS))
    noted = [line.removeprefix("note: nothing reads ").partition("=")[0] for line in said]
    assert noted == NOTES.get(name, [])
    assert cfg.wandb.entity is None, "main writes None, which YAML takes for a text"
    assert cfg.optimizer.kwargs.get("eta") == (0.02 if cfg.optimizer.name == "lars" else None)
    if cfg.method not in METHODS:
        pytest.skip(f"this host has no {cfg.method}")
    checked_options(METHODS[cfg.method].Options, cfg.method_kwargs, cfg.method)


SMALL = [
    *("data.dataset=custom", "data.num_workers=0", "accelerator=cpu", "precision=32"),
    *("wandb.enabled=false", "max_epochs=1", "optimizer.batch_size=8"),
    *("+limit_train_batches=2", "+evaluation.offline=false", "+progress_bar=false"),
    "+evaluation.information_every_n_epochs=0",
]
TRAINED = [
    ("cifar/barlow.yaml", ["method_kwargs.proj_output_dim=64"]),
    pytest.param("cifar/simsiam.yaml", [], marks=pytest.mark.slow),
    pytest.param("cifar/ressl.yaml", ["+method_kwargs.queue_size=64"], marks=pytest.mark.slow),
    pytest.param(
        "cifar/wmse.yaml",
        ["method_kwargs.whitening_size=8", "method_kwargs.proj_output_dim=4"],
        marks=pytest.mark.slow,
    ),
    pytest.param("cifar/mae.yaml", ["backbone.name=vit_tiny"], marks=pytest.mark.slow),
    pytest.param("cifar/all4one.yaml", ["method_kwargs.queue_size=64"], marks=pytest.mark.slow),
    pytest.param(
        "imagenet-100/vicreg.yaml",
        ["data.format=image_folder", "devices=1", "method_kwargs.proj_output_dim=64"],
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.skipif(not CHECKOUT, reason="SOLO_LEARN_MAIN names no checkout")
@pytest.mark.parametrize(("file", "overrides"), TRAINED)
def test_file_trains_through_the_command(file, overrides, image_folders, tmp_path):
    folder, name = (SCRIPTS / file).parent, Path(file).name
    method = name.partition(".")[0].replace("barlow", "barlow_twins")
    if method not in METHODS:
        pytest.skip(f"this host has no {method}")
    place = ["--config-path", str(folder), "--config-name", name]
    done = subprocess.run(
        [sys.executable, "-m", "solo_mim", "pretrain", *place, *image_folders, *SMALL, *overrides],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stdout
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_this_file_passes_on_solo_learn_main(which, passes_on_main):
    passes_on_main("-m", which, Path(__file__))
