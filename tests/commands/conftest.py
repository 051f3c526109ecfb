"""One toy run for all commands that evaluate a trained network, and a few images in folders."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from solo_mim.commands import main
from solo_mim.data.photo_patches import photo_patches

TOY = [
    *("max_epochs=1", "limit_train_batches=2", "limit_val_batches=1", "data.num_workers=0"),
    *("data.fraction=0.1", "data.validation_split=0.2", "optimizer.batch_size=64", "seed=3"),
    *("method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=8"),
    *("evaluation.offline=false", "evaluation.information_every_n_epochs=0"),
    "+backbone.kwargs.widths=[8,16,32,64]",
]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory) -> Path:
    """Folder of a run of one epoch on a tenth of photo_patches, with a validation split: 408
    training, 102 validation and 4,250 test images of 17 classes."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["solo-mim"])
        assert main(["pretrain", *TOY, f"output_dir={folder}/runs"]) == 0
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.fixture(scope="module")
def own_run(toy_run, tmp_path_factory) -> Path:
    """A copy of the toy run, so that a module finds its own results in it."""
    return shutil.copytree(toy_run, tmp_path_factory.mktemp("own") / toy_run.name)


@pytest.fixture(scope="module")
def image_folders(tmp_path_factory) -> list[str]:
    """Overrides that name training and validation folders: 8 and 4 patches of three photographs."""
    root = tmp_path_factory.mktemp("images")
    for half, part, count in zip(photo_patches(), ("train", "val"), (8, 4), strict=True):
        for label in range(3):
            folder = root / part / f"photograph{label}"
            folder.mkdir(parents=True)
            for number, pixels in enumerate(half.images[half.labels == label][:count]):
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return [f"data.{part}_path={root / part}" for part in ("train", "val")]


@pytest.fixture
def solo_mim(monkeypatch, capsys) -> Callable[..., Said]:
    """Runs a command in this process: `solo_mim("knn", run)`."""

    def run(*arguments: object) -> Said:
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["solo-mim", *words])
        capsys.readouterr()
        code = main(words)
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(solo_mim) -> Callable[..., str]:
    """The one line on stderr of a command that ends with exit code 2."""

    def run(*arguments: object) -> str:
        said = solo_mim(*arguments)
        assert said.code == 2, said
        (line,) = [line for line in said.err.splitlines() if line.startswith("solo-mim: ")]
        return line

    return run
