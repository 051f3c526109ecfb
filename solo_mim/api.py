"""The commands as functions, for scripts and notebooks: `from solo_mim import pretrain, report`.

They do what the commands of the same names do, leave the same folders, and skip what is finished.
What they print is the commands' too.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from solo_mim import training
from solo_mim.commands.linear import hydra_arguments
from solo_mim.errors import ConfigError
from solo_mim.evaluation import compare
from solo_mim.evaluation.report import write_all
from solo_mim.protocols import knn as nearest_neighbours
from solo_mim.protocols import linear as classifiers
from solo_mim.recipe.checks import checked
from solo_mim.recipe.compose import composed, overrides
from solo_mim.runs import files
from solo_mim.runs.collect import Problem, collect

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run of pre-training.

    Attributes:
        folder: with its checkpoints, metrics and result.
        result: as in `result.json`.
    """

    folder: Path
    result: dict[str, Any]

    @property
    def online(self) -> dict[str, float | None]:
        """Top-1 and top-5 (%) of probe and kNN while training, at the last validation."""
        found: dict[str, float | None] = self.result["online"]
        return found

    @property
    def offline(self) -> dict[str, dict[str, float]]:
        """Accuracies (%) of frozen features: `trained`, `untrained` and `raw_pixels`."""
        found: dict[str, dict[str, float]] = self.result["offline"]
        return found

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per epoch: loss terms, online accuracies, information, learning rate."""
        return pd.read_csv(self.folder / files.METRICS)

    def __str__(self) -> str:
        return training.summary(self.result)


@dataclass(frozen=True)
class Evaluation:
    """Accuracies of one frozen network.

    Attributes:
        folder: with the result.
        result: as in `result.json`.
    """

    folder: Path
    result: dict[str, Any]

    @property
    def measured(self) -> pd.DataFrame:
        """A row for each classifier: what it is of, top-1 and top-5 (%), what was chosen."""
        return pd.DataFrame(self.result["measured"])


@dataclass(frozen=True)
class Report:
    """Finished runs in rows.

    Attributes:
        tables: title -> one row for each method as it was configured, best first: mean, standard
            deviation and number of seeds of each measure.
        problems: folders that give no figure, with the reason.
        written: files, where an output folder was named.
    """

    tables: dict[str, pd.DataFrame]
    problems: list[Problem]
    written: list[Path]

    def _repr_html_(self) -> str:
        """What a notebook shows: labels, measures with their deviations, and verdicts."""
        parts = []
        for title, table in self.tables.items():
            hidden = table.filter(regex="^(place|code|z: .*|.* n)$").columns
            shown = table.drop(columns=hidden).round(2).to_html(index=False, na_rep="")
            parts.append(f"<h4>{html.escape(title)}</h4>{shown}")
        return "\n".join(parts)


def pretrain(
    method: str = "explicit_mim",
    data: str = "photo_patches",
    *,
    train_path: str | Path | None = None,
    val_path: str | Path | None = None,
    backbone: str | None = None,
    budget: str | None = None,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 5,
    method_kwargs: Settings | None = None,
    output_dir: str | Path = "runs",
    settings: Settings | None = None,
) -> Run:
    """Trains and evaluates one method on one data set, or takes the run that is there already.

    Args:
        method, data, backbone, budget: names of recipes, as `solo-mim pretrain --help` lists them.
        train_path, val_path: folders of images, where the data set is one of folders.
        max_epochs, batch_size, lr: the recipe's where they are None; `lr` is for a batch of 256.
        method_kwargs: of the method; `solo-mim methods METHOD` lists them.
        settings: any other key of the recipe by its dotted name, as in
            `{"evaluation.offline": False}`.

    Raises:
        ConfigError: a name, key, value or path is wrong; the message names it.
        RunError: the run cannot go on, since it has diverged for instance.
    """
    groups = {"method": method, "data": data, "backbone": backbone, "+budget": budget}
    keys = {
        "data.train_path": train_path,
        "data.val_path": val_path,
        "max_epochs": max_epochs,
        "optimizer.batch_size": batch_size,
        "optimizer.lr": lr,
    }
    given = {key: value for key, value in keys.items() if value is not None}
    given |= {"seed": seed, "output_dir": output_dir, **(settings or {})}
    given |= {f"method_kwargs.{key}": value for key, value in (method_kwargs or {}).items()}
    chosen = [f"{group}={name}" for group, name in groups.items() if name is not None]
    result = training.pretrain(checked(composed("pretrain", [*chosen, *overrides(given)])))
    return Run(Path(result["folder"]).absolute(), result)


def linear(run: Run | str | Path, settings: Settings | None = None) -> Evaluation:
    """A linear classifier on a frozen network, as `solo-mim linear` trains it.

    Args:
        run: a run, its folder, a checkpoint, or a state dict of torchvision or timm.
        settings: keys of `solo-mim linear` by dotted name, as in `{"max_epochs": 20}`; `{"fast":
            True}` is logistic regression.

    Raises:
        ConfigError: the network, a key or a value is wrong; the message names it.
    """
    arguments = hydra_arguments([_path(run), *overrides(settings or {})])
    result = classifiers.linear(composed("linear", arguments))
    return Evaluation(Path(result["folder"]).absolute(), result)


def knn(run: Run | str | Path, settings: Settings | None = None) -> Evaluation:
    """Weighted nearest neighbours by frozen features, with k and temperature chosen on training
    images.

    Args:
        run: as of `linear`.
        settings: keys of `solo-mim pretrain` by dotted name, where others are wanted than the
            network was trained with; `data` and `backbone` choose recipes.

    Raises:
        ConfigError: the network, a key or a value is wrong; the message names it.
    """
    result = nearest_neighbours.knn(_path(run), overrides(settings or {}))
    return Evaluation(Path(result["folder"]).absolute(), result)


def report(
    *runs: Run | str | Path, output: str | Path | None = None, title: str = "Head to head"
) -> Report:
    """Ranks finished runs: mean over seeds, deviation, and what a paired test tells apart.

    Args:
        runs: runs, or folders of runs at any depth; ./runs without any.
        output: where to write the report's files and its HTML page; None writes nothing.

    Raises:
        ConfigError: a folder is not there, or cannot be written to.
    """
    folders = [Path(_path(run)) for run in runs] or [Path("runs")]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder")
    found, problems = collect(*folders)
    tables = compare.tables(found)
    frames = {table.title: pd.DataFrame(compare.as_records(table)) for table in tables}
    if output is None:
        return Report(frames, problems, [])
    try:
        written = write_all(tables, problems, Path(output), title, with_latex=True)
    except OSError as error:
        raise ConfigError(f"output: {output} cannot be written ({error.strerror})") from error
    return Report(frames, problems, written)


def _path(run: Run | str | Path) -> str:
    return str(run.folder if isinstance(run, Run) else run)
