"""The recipes: the table and the commands of docs/recipes.md, and main's files key by key."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from omegaconf import DictConfig, OmegaConf
from toys import completed

from solo_mim.backbones import fill_backbone_kwargs
from solo_mim.installed import CONFIG_FOLDER
from solo_mim.methods import METHODS
from solo_mim.recipe import compose
from solo_mim.recipe.checks import checked
from solo_mim.recipe.schema import num_devices

DOCUMENT = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()

# Where recipes differ from main's files on purpose: key, or section, and why.
_MACHINE = "the machine's: given on the command line, and in the table"
DIFFERENT = {
    **dict.fromkeys(
        ("devices", "accelerator", "strategy", "precision", "sync_batchnorm"), _MACHINE
    ),
    "name": "made of method and data set",
    "data.train_path": "where the images lie is the user's",
    "data.val_path": "as data.train_path",
    "data.num_workers": "as many as there are cores",
    "wandb": "off unless asked for",
    "auto_resume": "runs resume by identity",
    "data.format": "image_folder; dali, main's for ImageNet, needs its package",
    "dali": "DALI runs where training does",
    "knn_eval": "an online kNN stands beside the probe where its bank fits",
    "evaluation": "no key of main's",
}
# The same for one method: main's value (None: not set) and why.
DIFFERENT_FOR: dict[str, dict[str, tuple[Any, str]]] = {
    "imagenet-100/all4one": {
        "method_kwargs.queue_size": (98340, "no multiple of the batch, which main asserts"),
    },
    "imagenet-100/wmse": {
        "augmentations.1": (6, "num_crops of small crops: the loss reads none of them"),
    },
    "imagenet/mae": {
        "momentum.base_tau": (0.9995, "MAE has no momentum network"),
    },
    **{
        f"{folder}/barlow": {"method_kwargs.lamb": (None, "main's default, which 1.0.2 lacks")}
        for folder in ("cifar", "imagenet-100")
    },
    "imagenet-100/dino_vit": {
        "method_kwargs.warmup_teacher_temperature_epochs": (None, "main's default; dino's is 50"),
    },
}


class Cell(NamedTuple):
    """One recipe of the table."""

    overrides: list[str]
    source: str  # main's file without its suffix, or ""
    epochs: int
    devices: int
    batch_size: int
    optimizer: str
    lr: float


def _rows() -> list[list[str]]:
    lines = (line for line in DOCUMENT.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _cells() -> list[Cell]:
    header, _, folders, *rows = _rows()
    cells = []
    for method, file, *values in rows:
        for groups, folder, value in zip(header[2:], folders[2:], values, strict=True):
            if not value:
                continue
            epochs, batch, optimizer = re.sub(r" \(.*\)", "", value).split(", ")
            name, lr = optimizer.split()
            devices, batch_size = batch.split(" x ")
            published = file != "ours" and "(" not in value
            for data in groups.split(", "):
                cells.append(
                    Cell(
                        [f"data={data}", *f"method={method}".split()],
                        folder.strip("`") + file if published else "",
                        int(epochs),
                        int(devices),
                        int(batch_size),
                        name,
                        float(lr),
                    )
                )
    return cells


CELLS = [pytest.param(cell, id=" ".join(cell.overrides)) for cell in _cells()]
PUBLISHED = [param for param in CELLS if param.values[0].source]


@pytest.fixture(scope="module")
def composed() -> dict[str, DictConfig]:
    """What is composed so far: two tests look at each cell, and two cells at many files of main."""
    return {}


@pytest.fixture
def recipe_of(compose_cfg, composed) -> Callable[[Cell], DictConfig]:
    def recipe(cell: Cell) -> DictConfig:
        key = " ".join(cell.overrides)
        if key not in composed:
            composed[key] = compose_cfg(*cell.overrides)
        return composed[key]

    return recipe


@pytest.fixture
def mains_of(solo_learn_main, composed) -> Callable[[Cell], DictConfig]:
    def mains(cell: Cell) -> DictConfig:
        if cell.source not in composed:
            (file,) = (solo_learn_main / "scripts" / "pretrain").glob(f"{cell.source}.y*ml")
            recipe = checked(compose.composed(file.name, [], folder=file.parent))
            composed[cell.source] = OmegaConf.create(recipe.plain)
        return composed[cell.source]

    return mains


@pytest.mark.parametrize("cell", CELLS)
def test_table_says_what_the_recipe_is(cell, recipe_of):
    cfg = recipe_of(cell)
    optimizer = cfg.optimizer
    assert (cfg.max_epochs, optimizer.batch_size) == (cell.epochs, cell.batch_size)
    assert (optimizer.name, optimizer.lr) == (cell.optimizer, cell.lr)
    size = 224 if "imagenet" in cfg.data.dataset else 32
    assert {augmentation.crop_size for augmentation in cfg.augmentations} == {size}
    if cfg.method in METHODS:  # queues and whitening that do not fit its batches are refused
        views = sum(augmentation.num_crops for augmentation in cfg.augmentations)
        METHODS[cfg.method].add_and_assert_specific_cfg(completed(cfg, 10, views, 0))


def test_table_has_every_file_of_main(solo_learn_main):
    scripts = solo_learn_main / "scripts" / "pretrain"
    folders = {cell.source.partition("/")[0] for (cell,) in (p.values for p in PUBLISHED)}
    there = {
        f"{folder}/{path.stem}" for folder in folders for path in (scripts / folder).glob("*.y*ml")
    }
    assert {param.values[0].source for param in PUBLISHED} == there


def _flat(node: Any, key: str = "") -> dict[str, Any]:
    """Dotted key -> value of everything that holds no further keys; empty sections are left out."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    flat: dict[str, Any] = {}
    for name, value in items:
        where = f"{key}.{name}" if key else str(name)
        flat |= _flat(value, where) if isinstance(value, dict | list) else {where: value}
    return flat


def _values(cfg: DictConfig) -> dict[str, Any]:
    cfg = cfg.copy()
    fill_backbone_kwargs(cfg)  # main's file of MAE gives image and patch size, ours does not
    for augmentation in cfg.augmentations:  # main's may say `enabled` of a block, ours do not
        for block in augmentation.values():
            if isinstance(block, DictConfig) and "prob" in block and not block.pop("enabled", True):
                block.prob = 0.0
    return _flat(OmegaConf.to_container(cfg))


def _under(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


@pytest.mark.parametrize("cell", PUBLISHED)
def test_recipe_is_mains(cell, recipe_of, mains_of):
    assert num_devices(mains_of(cell).devices, on_cpu=False) == cell.devices
    mains, ours = _values(mains_of(cell)), _values(recipe_of(cell))
    if "data=cifar" in cell.overrides[0]:  # "change here for cifar100"
        mains["data.dataset"] = ours["data.dataset"]
    differing = {key for key in mains.keys() | ours.keys() if mains.get(key) != ours.get(key)}
    known = DIFFERENT_FOR.get(cell.source, {})
    unexplained = {
        key: (mains.get(key), ours.get(key))
        for key in differing
        if not any(_under(key, section) for section in (*DIFFERENT, *known))
    }
    assert unexplained == {}, "key: (main's, ours)"
    for key, (value, _) in known.items():
        found = mains.get(f"{key}.num_crops" if key.startswith("augmentations") else key)
        assert found == value, f"{key} is listed as different, and is not what the list says"
        assert any(_under(d, key) for d in differing), f"{key} does not differ"


def test_every_kind_of_augmentation_has_every_size():
    folder = CONFIG_FOLDER / "augmentations"
    kinds = {path.stem for path in folder.glob("*.yaml")}
    for size in ("imagenet", "stl10"):
        assert {path.stem for path in (folder / size).glob("*.yaml")} == kinds


@pytest.mark.parametrize("kind", ["asymmetric", "simsiam", "wmse"])
def test_stl10_has_crops_of_its_size(kind, compose_cfg):
    cfg = compose_cfg("data=stl10", f"augmentations={kind}")
    assert {augmentation.crop_size for augmentation in cfg.augmentations} == {96}


def test_augmentations_of_ones_own_are_left_alone(compose_cfg):
    cfg = compose_cfg("data=imagenet100", "augmentations=stl10/vicreg")
    assert [augmentation.crop_size for augmentation in cfg.augmentations] == [96]


COMMANDS = re.findall(r"^solo-mim pretrain (.+)$", DOCUMENT, re.M)
MACHINES = [
    (command, data)
    for command in COMMANDS
    for data in ("cifar10", "stl10", "imagenet100", "imagenet")
    # A command that gives D is for its own batch.
    if "method=explicit_mim" in command
    and ("proj_output_dim" not in command or f"data={data} " in command)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_command_composes(command, compose_cfg):
    cfg = compose_cfg(*command.removesuffix(" --cfg job").split())
    assert f"method={cfg.method}" in command or "method=" not in command


@pytest.mark.parametrize(("command", "data"), MACHINES)
def test_explicit_mim_keeps_d_small_and_vicregs_optimiser(command, data, compose_cfg):
    # The tests' machine may have no GPU, and batch norm is synchronised on GPUs alone.
    command = re.sub(r"data=\w+", f"data={data}", command) + " accelerator=gpu"
    cfg = completed(compose_cfg(*command.split()), 10, 2, 0)
    METHODS["explicit_mim"].add_and_assert_specific_cfg(cfg)
    batch = cfg.optimizer.batch_size * num_devices(cfg.devices, on_cpu=False)
    assert cfg.method_kwargs.proj_output_dim <= batch / 2
    rival = re.sub(r"method=\w+| method_kwargs\S+", "", command).split()
    vicreg = completed(compose_cfg("method=vicreg", *rival), 10, 2, 0)
    for key in ("optimizer", "scheduler", "max_epochs", "backbone"):
        assert cfg[key] == vicreg[key], key


@pytest.mark.parametrize("data", ["cifar10", "imagenet100", "imagenet"])
def test_budget_and_command_line_win_over_the_pair(data, compose_cfg):
    cpu = compose_cfg(f"data={data}", "method=byol", "+budget=cpu")
    assert (cpu.backbone.name, cpu.optimizer.name, cpu.optimizer.lr) == ("small_cnn", "adamw", 2e-3)
    assert cpu.max_epochs == 16
    chosen = compose_cfg(f"data={data}", "method=byol", "backbone=resnet18", "optimizer.lr=0.7")
    assert (chosen.backbone.name, chosen.optimizer.lr) == ("resnet18", 0.7)


BENCHMARKS = sorted((CONFIG_FOLDER / "benchmark").glob("*.yaml"))


@pytest.mark.parametrize("preset", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmark_presets_sweep_over_methods_that_compose(preset, compose_cfg):
    params = dict(OmegaConf.load(preset).hydra.sweeper.params)
    assert params.pop("seed")
    ((group, options),) = params.items()
    composed = [
        compose_cfg(f"+benchmark={preset.stem}", f"{group}={option}")
        for option in options.split(",")
    ]
    assert len({cfg.name for cfg in composed}) >= 8
    assert {cfg.method for cfg in composed} <= set(METHODS)
    assert {cfg.output_dir for cfg in composed} == {f"runs/{preset.stem}"}
