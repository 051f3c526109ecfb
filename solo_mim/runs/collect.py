"""Finished runs below a folder as tables, and what is wrong with the others."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml

from solo_mim.errors import ConfigError, epochs
from solo_mim.information import HeldOutInformation
from solo_mim.runs import files
from solo_mim.runs.identity import NOT_IDENTITY, differing, images_of, is_value, settings_of
from solo_mim.runs.sources import UNKNOWN_CODE, codes_of

# What a result can hold: measure -> where it lies, and which key says on what it was measured. An
# online figure is of augmented views while training, an offline one of a frozen network.
MEASURES = {
    "offline probe": (("offline", "trained", "probe_top1"), "offline_evaluated_on"),
    "offline kNN": (("offline", "trained", "knn_top1"), "offline_evaluated_on"),
    "online probe": (("online", "probe_top1"), "evaluated_on"),
    "online kNN": (("online", "knn_top1"), "evaluated_on"),
}
# What no method has trained, in a result's `offline`.
UNTRAINED, RAW_PIXELS = YARDSTICKS = ("untrained", "raw_pixels")
# What `solo-mim linear` calls what it trains by gradient steps.
LINEAR_LAYER, FINE_TUNED = TRAINED_CLASSIFIERS = (
    "linear layer on augmented images",
    "fine-tuned network",
)
# What the measures of `solo-mim transfer` begin with, before the data set's name.
TRANSFER = "transfer to "
# What does not make another method of it.
_NOT_THE_METHOD = (*NOT_IDENTITY, "name", "seed", "evaluation")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Evaluation:
    """What `solo-mim linear`, `knn` or `transfer` left in a run's folder: measure -> split and
    top-1 (%), and its settings by dotted key."""

    folder: Path
    values: dict[str, tuple[str, float]]
    code: str = UNKNOWN_CODE
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A finished run: what is in its folder."""

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]
    provenance: list[dict[str, Any]]
    metrics: pd.DataFrame
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return int(self.result["seed"])

    @property
    def code(self) -> str:
        """Digest of the sources that made it; of sessions under several, all of them."""
        found = codes_of(self.provenance)
        return found[0] if len(found) == 1 else f"mixed ({', '.join(found)})"

    @property
    def settings(self) -> dict[str, Any]:
        """What makes a method of it, by dotted key: the configuration, the versions of solo-mim and
        solo-learn, the code, and the weights that it starts from."""
        found = settings_of(self.config, _NOT_THE_METHOD)
        versions = self.result.get("versions", {})
        found |= {package: versions.get(package) for package in ("solo-mim", "solo-learn")}
        found["code"] = self.code
        found["backbone.weights"] = (self.result.get("start") or {}).get("weights")
        return {key: value for key, value in found.items() if value is not None}

    @property
    def data(self) -> str:
        """The images: two runs that differ here share no table."""
        return json.dumps(images_of(self.config, self.fingerprint))

    @property
    def comparable(self) -> str:
        """The images, and which of them were evaluated: runs alike in it share a table."""
        splits = [self.result.get(key) for key in ("evaluated_on", "offline_evaluated_on")]
        return json.dumps([self.data, splits])

    @property
    def fingerprint(self) -> str | None:
        """Of the images, wherever they lay; None of a run from before there was one."""
        return self.result.get("fingerprint")

    def values(self) -> dict[str, tuple[str, float]]:
        """Measure -> what it was measured on and the top-1 in percent, of those it has."""
        found = {}
        for measure, (path, split) in MEASURES.items():
            value: Any = self.result
            for key in path:
                value = (value or {}).get(key)
            if value is not None:
                found[measure] = (self.result.get(split) or "held-out images", float(value))
        for evaluation in self.evaluations:
            found |= evaluation.values
        return found

    @property
    def yardsticks(self) -> dict[str, dict[str, float]]:
        """Measure -> top-1 in percent of the network as it starts, and of raw pixels."""
        found: dict[str, dict[str, float]] = {}
        for name in YARDSTICKS:
            figures = (self.result.get("offline") or {}).get(name) or {}
            for measure, ((_, trained, *key), _) in MEASURES.items():
                value = figures.get(key[0]) if trained == "trained" else None
                if value is not None and math.isfinite(value):
                    found.setdefault(name, {})[measure] = float(value)
        return found

    @cached_property
    def evaluated(self) -> Counter[int]:
        """How many images of each class were evaluated offline, as far as its files tell."""
        try:
            targets = pd.read_csv(self.folder / files.PREDICTIONS)["target"]
        except (OSError, ValueError, KeyError):
            return Counter()
        return Counter(targets[targets >= 0].tolist())

    @property
    def classes(self) -> int | None:
        """Of its images; None where neither the result nor what was evaluated tells."""
        largest = max(self.evaluated, default=0)
        return self.result.get("classes") or (largest + 1 if largest else None)

    @property
    def diagnostics(self) -> dict[str, float]:
        """What was measured of the projected features of held-out images: the information that
        a Gaussian has, less chance, the spectrum, and distances from a Gaussian."""
        if not self.result.get("information"):
            return {}
        found = HeldOutInformation(**self.result["information"])
        values = {
            "Gaussian I(z; image), nats": found.less_chance("infomax"),
            "Gaussian I(z; z'), nats": found.less_chance("two_view"),
            "effective rank": found.effective_rank,
            "RankMe": found.rankme,
            "LiDAR": found.lidar,
            "alpha-ReQ": found.alpha_req,
            "dimensions": float(found.dimensions) or None,
            "distance from a Gaussian": found.non_gaussianity,
            "radial distance": found.radial_distance,
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def embeddings(self) -> list[Path]:
        """Pictures that `solo-mim embed` left in its folder."""
        return sorted(self.folder.glob(f"embed/*/{files.PLANES}"))


@dataclass(frozen=True)
class Problem:
    """A folder that gives no figure, and why, in one line."""

    folder: Path
    reason: str


class _Unusable(Exception):
    """Why a folder gives no figure."""


def collect(*roots: Path) -> tuple[list[Run], list[Problem]]:
    """Every run folder at or below one of `roots`, in the order of their paths, each once."""
    runs: list[Run] = []
    problems: list[Problem] = []
    folders: dict[Path, Path] = {}  # by where it really is
    for root in roots:
        names = (files.CONFIGURATION, files.RESULT, files.FAILURE)
        for folder in {path.parent for path in files.below(root, *names)}:
            around = (parent for parent in folder.parents if parent.is_relative_to(root))
            # Otherwise it is an evaluation of a run, in its folder.
            if not any((parent / files.PROVENANCE).exists() for parent in around):
                folders.setdefault(folder.resolve(), folder)
    for folder in sorted(folders.values()):
        if run := _tried(problems, _run_in, folder):
            runs.append(replace(run, evaluations=_evaluations(run, problems)))
    return _without_copies(_told_apart(_with_fingerprints(runs), problems), problems)


def _tried(
    problems: list[Problem], read: Callable[..., _Found], folder: Path, *more: Any
) -> _Found | None:
    """What `read` makes of a folder; None, and a problem more, where that gives no figure."""
    try:
        return read(folder, *more)
    except _Unusable as error:
        reason = str(error)
    except FileNotFoundError as error:
        reason = f"{Path(error.filename).name} is missing"
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        reason = f"a file is cut short or was changed ({' '.join(str(error).split())})"
    problems.append(Problem(folder, reason))
    return None


def _with_fingerprints(runs: list[Run]) -> list[Run]:
    """A run from before there were fingerprints has the one of the runs under the same paths, where
    they have one."""
    paths = [json.dumps(images_of(run.config, None)) for run in runs]
    found = []
    for run, key in zip(runs, paths, strict=True):
        known = {r.fingerprint for r, at in zip(runs, paths, strict=True) if at == key} - {None}
        if not run.fingerprint and len(known) == 1:
            run = replace(run, result={**run.result, "fingerprint": known.pop()})
        found.append(run)
    return found


def _run_in(folder: Path) -> Run:
    result = _result_in(folder)
    if "measured" in result:
        raise _Unusable("an evaluation of weights that are of no run here")
    config = files.read_yaml(folder / files.CONFIGURATION)
    provenance = json.loads((folder / files.PROVENANCE).read_text())
    run = Run(folder, config, result, provenance, pd.read_csv(folder / files.METRICS))
    values, _ = run.values(), (run.seed, run.data, run.settings, run.diagnostics)
    result["method"], result["data"], dict(result.get("versions", {}))
    if not values:
        raise _Unusable("nothing was measured: no held-out images with labels")
    _refuse_broken(values)
    return run


def _result_in(folder: Path) -> Any:
    if (folder / files.RESULT).exists():
        return json.loads((folder / files.RESULT).read_text())
    with contextlib.suppress(FileNotFoundError):
        raise _Unusable(f"failed: {(folder / files.FAILURE).read_text().strip()}")
    done = files.epochs_done(folder)
    verb = "is" if done == 1 else "are"
    raise _Unusable(f"not finished: {epochs(done)} {verb} done; the command that began it goes on")


def _refuse_broken(values: dict[str, tuple[str, float]]) -> None:
    if broken := [measure for measure, (_, value) in values.items() if not math.isfinite(value)]:
        raise _Unusable(f"{', '.join(broken)}: not a number")


def _evaluations(run: Run, problems: list[Problem]) -> list[Evaluation]:
    folders = sorted(path.parent for path in run.folder.glob(f"*/*/{files.CONFIGURATION}"))
    tried = [_tried(problems, _evaluation_in, folder, run) for folder in folders]
    return [evaluation for evaluation in tried if evaluation and evaluation.values]


def _told_apart(runs: list[Run], problems: list[Problem]) -> list[Run]:
    """With evaluations of which each says which it is. Where those of one run have several values
    of a measure, the settings in which they differ are part of its name, in every run of the table;
    those that have several even so are left out, for nothing says which of them counts."""
    keys: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        for measure, several in _disputed(run.evaluations).items():
            keys[run.comparable, measure].update(differing([one.settings for one in several]))

    def named(table: str, evaluation: Evaluation) -> Evaluation:
        values = {}
        for measure, value in evaluation.values.items():
            differ = sorted(keys[table, measure])
            more = [f"{key}={evaluation.settings.get(key)}" for key in differ]
            values[f"{', '.join([measure[:-1], *more])})"] = value
        return replace(evaluation, values=values)

    found = []
    for run in runs:
        evaluations = [named(run.comparable, one) for one in run.evaluations]
        for measure, several in _disputed(evaluations).items():
            reason = f"{measure} of this run is there {len(several)} times; keep one folder"
            problems += [Problem(one.folder, reason) for one in several if one in evaluations]
            evaluations = [one for one in evaluations if one not in several]
        found.append(replace(run, evaluations=evaluations))
    return found


def _disputed(evaluations: list[Evaluation]) -> dict[str, list[Evaluation]]:
    """Measures that have several values, and whose they are."""
    by: dict[str, list[Evaluation]] = defaultdict(list)
    for evaluation in evaluations:
        for measure in evaluation.values:
            by[measure].append(evaluation)
    return {m: of for m, of in by.items() if len({one.values[m] for one in of}) > 1}


def _evaluation_in(folder: Path, run: Run) -> Evaluation:
    result = _result_in(folder)
    config = files.read_yaml(folder / files.CONFIGURATION)
    values = {
        _measure(run, config, result, row): (row["split"], float(row["top1"]))
        for row in result.get("measured", [])
    }
    _refuse_broken(values)
    trained, of_the_run = result["trained"]["epochs"] if values else 0, run.result.get("epochs")
    if values and trained != of_the_run:
        raise _Unusable(f"of the network after {epochs(trained)}, not {of_the_run}")
    settings = settings_of(config, (*NOT_IDENTITY, "name"))
    return Evaluation(folder, values, result.get("code") or UNKNOWN_CODE, settings)


def _measure(run: Run, config: dict[str, Any], result: dict[str, Any], row: dict[str, Any]) -> str:
    """Classifier and split; how long it was trained, and what of its images is not the run's and
    not in the name of a transfer."""
    # By paths where one of the two has no fingerprint.
    fingerprint = result.get("fingerprint") if run.fingerprint else None
    own = images_of(run.config, run.fingerprint if fingerprint else None)
    data = images_of(config, fingerprint)
    trained = [epochs(config["max_epochs"])] if row["classifier"] in TRAINED_CLASSIFIERS else []
    named = ("dataset", "fraction", "validation_split") if "share" in row else ()
    others = [f"{k}={value}" for k, value in data.items() if value != own[k] and k not in named]
    return f"{row['classifier']} ({', '.join([row['split'], *trained, *others])})"


def _without_copies(runs: list[Run], problems: list[Problem]) -> tuple[list[Run], list[Problem]]:
    """One run of each configuration, seed and images: of several that with the most figures, for
    only one of them may have been evaluated later."""
    kept: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: -len(run.values())):
        key = json.dumps([run.settings, run.comparable, run.seed], default=str)
        first = kept.setdefault(key, run)
        if first is not run:
            same = run.values().items() <= first.values().items()
            what = "a copy of {}" if same else "another run as {}, with other figures"
            problems.append(Problem(run.folder, f"{what.format(first.folder)}: left out"))
    folders = {run.folder for run in kept.values()}
    return [run for run in runs if run.folder in folders], problems


def missing(expected: Sequence[str], runs: list[Run]) -> list[str]:
    """Combinations of what is expected that no finished run has.

    Args:
        expected: words as a sweep takes them, `method=vicreg,simclr seed=1,2`; one without `=` is
            a method.

    Raises:
        ConfigError: no run has such a key.
    """
    values: dict[str, list[str]] = {}
    for word in expected:
        key, _, listed = word.partition("=") if "=" in word else ("method", "", word)
        values.setdefault(key, []).extend(listed.split(","))
    there = [settings_of(run.config, ()) for run in runs]
    for key in values:
        if runs and not any(_has(settings, key) for settings in there):
            raise ConfigError(f"--expect: no run has the key {key}; give keys of its config.yaml")
    combined = [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]
    return [
        " ".join(f"{key}={value}" for key, value in one.items())
        for one in combined
        if not any(all(_has(run, *pair) for pair in one.items()) for run in there)
    ]


def _has(settings: dict[str, Any], key: str, wanted: str | None = None) -> bool:
    """Whether there is such a setting, `backbone` being the name of one and `data` of a data set;
    with the value that is wanted, if one is."""
    found = [settings[k] for k in (key, f"{key}.name", f"{key}.dataset") if k in settings]
    return any(wanted is None or is_value(value, wanted) for value in found)
