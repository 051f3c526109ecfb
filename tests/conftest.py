"""Fixtures that every part of the suite uses."""

import importlib.util
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

# Two cores are what the suite's time limit is for: of two pytest workers each gets one, and so do
# the processes that it starts.
PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if PARALLEL:
    os.environ["OMP_NUM_THREADS"] = "1"


THREADS = 1 if PARALLEL else min(2, os.cpu_count() or 1)
torch.set_num_threads(THREADS)  # for fixtures of a session or a module too; more only contend


@pytest.fixture(autouse=True)
def _two_threads():
    """Whatever a test before it has set."""
    torch.set_num_threads(THREADS)


@pytest.fixture
def compose_cfg() -> Callable[..., DictConfig]:
    """Composes the shipped configuration with overrides and checks it, as the command does."""
    from solo_mim.installed import CONFIG_FOLDER
    from solo_mim.recipe.checks import checked

    def composed(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            recipe = checked(compose("pretrain", overrides=list(overrides)))
        return OmegaConf.create(recipe.plain)

    return composed


@pytest.fixture
def load_script(monkeypatch) -> Callable[[Path], ModuleType]:
    """Imports a file that belongs to no package, for one test: `load_script(path)`."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)  # where dataclasses look for it
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def passes_on_main(solo_learn_main) -> Callable[..., None]:
    """Runs tests again in a process whose host is solo-learn main: `passes_on_main(*arguments)`."""
    if os.environ.get("SOLO_MIM_HOST_IS_MAIN"):
        pytest.skip("running on solo-learn main already")
    environment = dict(os.environ, PYTHONPATH=str(solo_learn_main), SOLO_MIM_HOST_IS_MAIN="1")

    def run(*arguments: str | Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-6000:]

    return run


@pytest.fixture(scope="session")
def solo_learn_main() -> Path:
    """A checkout of solo-learn main, named by SOLO_LEARN_MAIN."""
    folder = os.environ.get("SOLO_LEARN_MAIN")
    if not folder:
        pytest.skip("SOLO_LEARN_MAIN names no checkout of solo-learn main")
    if not (Path(folder) / "solo" / "backbones").is_dir():
        pytest.fail(f"SOLO_LEARN_MAIN={folder} is no checkout of solo-learn main")
    return Path(folder)


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder with the archives of real images; the test is skipped where there is none."""
    folder = os.environ.get("SOLO_MIM_TEST_DATA")
    if not folder:
        pytest.skip("SOLO_MIM_TEST_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture(scope="session")
def hundred_photographs(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train/<class>/`: one photograph of each class of ImageNet-100."""
    root = tmp_path_factory.mktemp("hundred")
    with tarfile.open(real_images / "imagenet100-one-image-per-class.tar.gz") as archive:
        archive.extractall(root, filter="data")
    return root
