"""Frozen features of one network on several data sets, with few and with all training labels."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from solo_mim import trained
from solo_mim.data import SSLDataModule
from solo_mim.data.archives import ARCHIVES
from solo_mim.data.datasets import DATA_SETS
from solo_mim.errors import ConfigError, nearest
from solo_mim.evaluation.knn import Features, Neighbours, chosen_neighbours
from solo_mim.evaluation.offline import PROBE_C, chosen_probe
from solo_mim.protocols import figures
from solo_mim.recipe.schema import PretrainRecipe
from solo_mim.runs.collect import TRANSFER
from solo_mim.runs.folder import Result, RunFolder
from solo_mim.trainer import peak_memory_mib, shows_progress

# Of the training labels; of these by default, those that hold an image of each class.
SHARES = (0.01, 0.1, 1.0)
SEEDS = 3  # subsets of a share below 1
BUILT_IN = [name for name in DATA_SETS if name != "custom"]
# Keys of `data` that say how images are read, not which.
_READING = ("on_corrupt", "num_workers", "download")
_CLASSIFIERS = {"linear": "logistic regression", "knn": "kNN"}


@dataclass(frozen=True)
class Wanted:
    """A data set: a built-in one by its name, or images in folders by a name of their own."""

    name: str
    folder: Path | None

    def paths(self, test: bool) -> dict[str, str]:
        """`train_path` and, of image folders, `val_path`; empty where the recipe's own hold.

        Args:
            test: take test/ before val/, where images in folders have both.

        Raises:
            ConfigError: the folder is not there, or holds something else.
        """
        if self.folder is None:
            return {}
        what = f"--data {self.name}={self.folder}"
        if self.name == "photo_patches":
            raise ConfigError(f"{what}: photo_patches are in the packages; leave the folder out")
        if not self.folder.is_dir():
            keys = "; keys of the recipe stand before --data" if "." in self.name else ""
            raise ConfigError(f"{what}: there is no such folder{keys}")
        train = self.folder / "train"
        if self.name in ARCHIVES:
            if train.is_dir():
                raise ConfigError(
                    f"{what}: the folder holds train/, and {self.name} is torchvision's archive; "
                    f"give images in folders another name, as in my-{self.name}={self.folder}"
                )
            return {"train_path": str(self.folder)}
        parts = ("test", "val") if test else ("val", "test")
        held_out = next((p for p in parts if (self.folder / p).is_dir()), None)
        if not train.is_dir() or held_out is None:
            lacks = "train/" if not train.is_dir() else "val/ and no test/"
            guess = nearest(self.name, BUILT_IN)
            meant = guess if "did you mean" in guess and self.name not in BUILT_IN else ""
            raise ConfigError(
                f"{what}: the folder has no {lacks}; put a folder of images for each class in "
                f"train/ and in val/ or test/{meant}"
            )
        return {"train_path": str(train), "val_path": str(self.folder / held_out)}

    def recipe(self, source: trained.Source, overrides: list[str]) -> PretrainRecipe:
        """Under which the network is evaluated: these images in the size and under the constants
        of those that it was trained on.

        Raises:
            ConfigError: as `paths`, `trained.recipe_of` and `figures.images_of_training`.
        """
        group = self.name if self.name in BUILT_IN else "image_folder"
        recipe = trained.recipe_of(source, [*overrides, f"data={group}"])
        images = figures.images_of_training(source, recipe, overrides)
        constants = {"mean": list(images.mean), "std": list(images.std)}
        return replace(
            recipe,
            augmentations=[{**pipeline, **constants} for pipeline in recipe.augmentations],
            data=replace(recipe.data, **self.paths(recipe.evaluation.test)),  # type: ignore[arg-type]
        )


def wanted(given: list[str]) -> list[Wanted]:
    """Of arguments `NAME` and `NAME=FOLDER`.

    Raises:
        ConfigError: none, an unknown name without a folder, or one name twice.
    """
    if not given:
        raise ConfigError("--data: name a data set, as in photo_patches or flowers=FOLDER")
    found: dict[str, Wanted] = {}
    for one in given:
        name, _, folder = one.partition("=")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(
                f"--data {one}: write NAME or NAME=FOLDER, a name of letters, digits, '.', '_', '-'"
            )
        if name in found:
            raise ConfigError(f"--data {one}: {name} is named twice; give one another name")
        if not folder and name not in BUILT_IN:
            raise ConfigError(
                f"--data {one}: unknown data set '{name}'{nearest(name, BUILT_IN)}; images of your "
                f"own are {name}=FOLDER"
            )
        found[name] = Wanted(name, Path(folder).expanduser() if folder else None)
    return list(found.values())


def shares_of(given: list[str] | None) -> list[float] | None:
    """Of the training labels, rising; None where none are given.

    Raises:
        ConfigError: one is no number above 0 and up to 1.
    """
    if given is None:
        return None
    for one in given:
        try:
            valid = 0 < float(one) <= 1
        except ValueError:
            valid = False
        if not valid:
            raise ConfigError(
                f"--shares: '{one}' is no share of the training labels, above 0 and up to 1; name "
                "RUN and keys before the option"
            )
    return sorted({float(one) for one in given})


def _seeds_of(given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"--seeds: '{given}' is no number of subsets, 1 or more")
    return int(given)


def subset(targets: Tensor, share: float, seed: int) -> Tensor:
    """Indexes, rising, of a share of N images, stratified: of each class the nearest number to its
    share, one at least. Of one seed a smaller share is part of a larger one.

    Args:
        targets: N classes, int64, from 0 on.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for label in targets.unique():
        of_class = torch.nonzero(targets == label)[:, 0].numpy()
        count = max(1, int(share * len(of_class) + 0.5))
        drawn.append(rng.permutation(of_class)[:count])
    return torch.from_numpy(np.sort(np.concatenate(drawn)))


def transfer(
    run: str,
    data: list[str],
    overrides: list[str],
    shares: list[str] | None = None,
    seeds: str = str(SEEDS),
) -> list[Result]:
    """Evaluates one network on each data set; the results, also of those that are finished.

    Args:
        run, overrides: as in `trained.opened`.
        data, shares, seeds: as of the command line; shares None takes those of `SHARES` that hold
            an image of each class.

    Raises:
        ConfigError: the network, an argument, or a value is wrong; the message names it. Nothing
            is computed before all data sets have been opened.
    """
    sets, given, count = wanted(data), shares_of(shares), _seeds_of(seeds)
    _refuse_keys(overrides)
    source = trained.find(run)
    recipes = [one.recipe(source, overrides) for one in sets]
    weights = trained.weights(source.path)
    backbone, completed = trained.with_weights(
        recipes[0].backbone, recipes[0].crop_sizes, weights, source.path, recipes[0].method
    )
    tasks = []
    for one, recipe in zip(sets, recipes, strict=True):
        recipe = replace(recipe, backbone=completed)  # type: ignore[arg-type]
        tasks.append(_Task(one.name, trained.Opened(source, weights, recipe, backbone)))
    kept = [task.shares_of(given) for task in tasks]  # refuses before anything is computed
    results = [task.result(of, count) for task, of in zip(tasks, kept, strict=True)]
    print("\n" + table(results))
    return results


def _refuse_keys(overrides: list[str]) -> None:
    """Raises ConfigError of what would choose images beside --data and --shares."""
    for override in overrides:
        key = re.match(r"[+~]*(data(?:\.(\w+))?)\b", override)
        if key and key[2] not in _READING:
            raise ConfigError(
                f"{key[1]}: which images they are, say --data and --shares; of data only "
                f"{', '.join(_READING)} can be set"
            )


class _Task:
    """One data set, opened, under one network."""

    def __init__(self, name: str, network: trained.Opened) -> None:
        self.name, self.network = name, network
        self.data = SSLDataModule(network.recipe.plain)
        self.asked: tuple[float, ...] = SHARES
        train = self.data.splits.train
        self.labels = train.labels[train.evaluable]
        if self.data.num_classes < 2 or self.data.num_val_images == 0:
            raise ConfigError(
                f"--data {name}: a classifier needs two classes and labelled images to evaluate on"
            )

    def shares_of(self, given: list[float] | None) -> list[float]:
        """Those that hold as many images as there are classes.

        Raises:
            ConfigError: one that was given does not.
        """
        classes, images = len(np.unique(self.labels)), len(self.labels)
        self.asked = tuple(given or SHARES)
        kept = [share for share in self.asked if int(share * images + 0.5) >= classes]
        if given and len(kept) < len(given):
            raise ConfigError(
                f"--shares: {given[0]:g} of the {images:,} training images of {self.name} is fewer "
                f"than one of each of {classes} classes; leave it out, or raise it to "
                f"{classes / images:.2g}"
            )
        return kept

    def result(self, shares: list[float], seeds: int) -> Result:
        """Of this data set, also one that is already finished."""
        settings = {"shares": shares, "seeds": seeds}
        images = self.data.splits.fingerprint
        folder = self.network.folder("transfer", self.name, images, transfer=settings)
        return folder.once(lambda: self._evaluated(folder, shares, seeds), summary)

    def _evaluated(self, folder: RunFolder, shares: list[float], seeds: int) -> Result:
        recipe, data = self.network.recipe, self.data
        where = figures.offline_split(recipe, data)[1]
        differs = folder.begin()
        images = figures.Images(
            data.crop_size, data.augmentations[0].mean, data.augmentations[0].std
        )
        result = {
            "data": self.name,
            "backbone": recipe.backbone.name,
            "images": asdict(images),
            "training_images": len(self.labels),
            "held_out_images": data.num_val_images,
            "classes": data.num_classes,
            "left_out": [share for share in self.asked if share not in shares],
        }
        print("\n".join([_heading(result), *(f"  {line}" for line in differs)]))
        started = time.perf_counter()
        device = figures.device(recipe)
        train, test = figures.train_and_test(recipe, data, self.network.backbone.to(device), device)
        if len(train[1].unique()) < 2:
            raise ConfigError(f"--data {self.name}: images of two classes have to be readable")
        subsets = list(self._subsets(train, test, shares, seeds, device))
        result |= {
            "seeds": seeds,
            "measured": list(_rows(self.name, subsets, where, len(test[1]))),
            "subsets": subsets,
            "seconds": time.perf_counter() - started,
            "corrupt_images": data.corrupt_images,
            "peak_memory_mib": peak_memory_mib(),
            "trained": self.network.origin,
            **figures.provenance(folder, recipe.method, data.splits.fingerprint),
        }
        folder.finish(result)
        return result

    def _subsets(
        self,
        train: Features,
        test: Features,
        shares: list[float],
        seeds: int,
        device: torch.device,
    ) -> Iterator[dict[str, Any]]:
        """What each subset of the training images gives: one of all of them, several of a share."""
        planned = [(share, seed) for share in shares for seed in range(1 if share == 1 else seeds)]
        hidden = not shows_progress(self.network.recipe)
        for share, seed in tqdm(planned, f"{self.name}: subsets", leave=False, disable=hidden):
            drawn = subset(train[1], share, seed)
            part = train[0][drawn], train[1][drawn]
            probe = chosen_probe(part, test, self.data.num_classes, or_given=True)
            neighbours, _ = chosen_neighbours(part, test, self.data.num_classes, device)
            yield {
                "share": share,
                "seed": seed,
                "images": len(drawn),
                "linear": {"chosen": bool(probe.candidates), **asdict(probe)},
                "knn": _neighbours_record(neighbours),
            }


def _neighbours_record(found: dict[str, Neighbours]) -> dict[str, Any]:
    """Of the distance that predicts training images best, each from all others; of equals the
    first."""
    best = max(found.values(), key=lambda of: of.candidates[of.setting])
    chosen_by = best.candidates[best.setting]
    return {**asdict(best.setting), "chosen_by": chosen_by, "top1": best.top1, "top5": best.top5}


def _rows(
    name: str, subsets: list[dict[str, Any]], where: str, images: int
) -> Iterator[dict[str, Any]]:
    """A row for each share and classifier: mean and standard deviation (n - 1) over subsets, in
    percent."""
    for share in dict.fromkeys(one["share"] for one in subsets):
        of_share = [one for one in subsets if one["share"] == share]
        for key, classifier in _CLASSIFIERS.items():
            top1 = [one[key]["top1"] for one in of_share]
            scores = {
                "share": share,
                "by": key,
                "training_images": of_share[0]["images"],
                "subsets": len(top1),
                "top1": statistics.fmean(top1),
                "top1_sd": statistics.stdev(top1) if len(top1) > 1 else None,
            }
            what = f"{TRANSFER}{name}, {100 * share:g} % of labels: {classifier}"
            yield figures.measured(what, where, images, scores)


def _heading(result: Result) -> str:
    return (
        f"{result['data']}: {result['training_images']:,} labelled training and "
        f"{result['held_out_images']:,} held-out images of {result['images']['size']} px, "
        f"{result['classes']} classes"
    )


def summary(result: Result) -> str:
    """Of a data set that was finished before, from its result; the table has its figures."""
    table([result])  # what it lacks is of a damaged file
    return _heading(result)


def table(results: list[Result]) -> str:
    """The closing table of all data sets: a row for each, columns by share and classifier."""
    shares = sorted({row["share"] for result in results for row in result["measured"]})
    cells = [["labels", ""]]
    for share in shares:
        cells += [[f"{100 * share:g} %", "linear"], ["", "kNN"]]
    for result in results:
        row = [result["data"], *(_cell(result, s, key) for s in shares for key in _CLASSIFIERS)]
        for column, cell in zip(cells, row, strict=True):
            column.append(cell)
    aligned = [[cell.ljust(max(map(len, column))) for cell in column] for column in cells]
    lines = [f"  {'   '.join(row).rstrip()}" for row in zip(*aligned, strict=True)]
    first = results[0]
    return "\n".join(
        [
            f"frozen {first['backbone']} of {first['trained']['checkpoint']}",
            "  offline, top-1 (%): mean ± standard deviation over subsets of the training labels",
            *lines,
            *_remarks(results),
            *(f"  results: {result['folder']}" for result in results),
        ]
    )


def _cell(result: Result, share: float, key: str) -> str:
    """`52.1 ± 0.4`, with a star where a penalty was not chosen; `-` of a share left out."""
    row = next((r for r in result["measured"] if (r["share"], r["by"]) == (share, key)), None)
    if row is None:
        return "-"
    spread = "" if row["top1_sd"] is None else f" ± {row['top1_sd']:.1f}"
    star = "*" if key == "linear" and _given(result, share) else ""
    return f"{row['top1']:.1f}{spread}{star}"


def _given(result: Result, share: float) -> bool:
    """Whether the penalty of a subset of a share was not chosen."""
    of_share = (one for one in result["subsets"] if one["share"] == share)
    return any(not one["linear"]["chosen"] for one in of_share)


def _remarks(results: list[Result]) -> list[str]:
    """On what the table has stars and dashes for, and on images that could not be read."""
    said = []
    if any(_given(result, one["share"]) for result in results for one in result["subsets"]):
        said.append(
            f"  * C = {PROBE_C:g}, not chosen: a class has one image, or a fifth of the subset "
            "fewer images than there are classes"
        )
    for result in results:
        for share in result["left_out"]:
            said.append(
                f"  {result['data']}: {100 * share:g} % of {result['training_images']:,} images is "
                f"fewer than one of each of {result['classes']} classes, left out"
            )
        said += [f"  {result['data']}:{line[1:]}" for line in figures.skipped_images(result)]
    return said
