"""The second study, docs/results/study2.md: which method, tuned and untuned, and how certainly.

    python scripts/second_study.py DATA [--output FOLDER] [--jobs N] [--records FILE] [STAGE ...]
    python scripts/second_study_report.py [--records FILE]

DATA holds cifar10-jpeg/{train,test}/CLASS/*.jpg and FashionMNIST/raw/*. Stages, in order:

sweep     every arm of ARMS on CIFAR-10 (JPEG), seed 0, on the 10,000 validation images: three rates
          at one setting, its other settings at the best of these, the best of these at the rates
          next to that, and where the best so far lies at an end of the values or of the rates, the
          next one beyond it, once of each.
tuned     what was chosen, seeds 1 to 5, on images that no one has opened.
again     settings of rivals that a reader missed when the tuned figures stood, the same seeds.
untuned   every method at one published setting and one rate for all, in each of CONDITIONS.
adapted   what of these settings depends on the batch, adapted to it, after the figures.

Made only where they are named:

long      the chosen settings of the arms of LONG, 120 epochs, seeds 1 to 3.
larger    the arms of LARGER on 40,000 images, 60 epochs, seed 1.

A run is one `solo-mim pretrain` command, printed to its log. Broken runs are resumed, one that
fails stops no other, and the figures of each finished one are a line of --records: a run of the
same command that stands there is not made again, wherever it was made. The report is of that file.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from solo_mim.data.datasets import load_splits

RATES = (1.5e-3, 3e-3, 6e-3)
SEEDS = (1, 2, 3, 4, 5)
SWEEP_SEED = 0
BEYOND = 1  # values, and rates, tried past an end of an arm's range, at most
FINAL_IMAGES = 10_000
ROUND_ONE = 0.3  # of the training images, which the first study took
DRAW_SEED = 2


@dataclass(frozen=True)
class Arm:
    """A method, what it is fixed to, and the parameter of its own that is swept.

    `published`, one of the values, is the setting of the untuned runs, ours the default that it is
    to have; `others` are settings beside the values, by name, and `later` those that no sweep
    tries; the parameter is from `least` to `most`, and a share, whose steps are of its odds, where
    `most` is 1.
    """

    method: str
    fixed: dict[str, Any]
    own: str
    values: tuple[float, ...]
    published: str | None = None
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    later: dict[str, dict[str, Any]] = field(default_factory=dict)
    least: float = 0.0
    most: float = float("inf")

    def overrides(self, setting: str) -> list[str]:
        chosen = (self.others | self.later).get(setting) or {self.own: setting}
        return [f"method={self.method}", *(f"{k}={v}" for k, v in {**self.fixed, **chosen}.items())]

    def settings(self) -> list[str]:
        """The published value, or the middle one, first."""
        values = [f"{value:g}" for value in self.values]
        middle = f"{sorted(self.values)[len(values) // 2]:g}"
        first = self.published or middle
        return [first, *(value for value in values if value != first), *self.others]


DIM, HIDDEN = "method_kwargs.proj_output_dim", "method_kwargs.pred_hidden_dim"
WITHIN, FLOOR = "method_kwargs.within", "method_kwargs.within_noise"
LAMB = "method_kwargs.lamb"
INVARIANCE, VARIANCE, COVARIANCE = (
    f"method_kwargs.{name}_loss_weight" for name in ("sim", "var", "cov")
)

# Output dimension: a quarter of the published one, as the hidden width is (512 of 2048), but no
# less than 128 or, where that is less, the published one. Values: the published one, scaled where
# it depends on D, and its neighbours. solo-learn divides VICReg's squared covariances by D, so that
# its 1 at D = 2048 is 4 at 512, "scaled", which at the rate 6e-3 collapses; and eb_jepa's 100 on
# their mean is 100 / (D - 1), with which it was best on CIFAR-10.
ARMS = {
    "isotropic": Arm(
        "explicit_mim",
        {DIM: 128, WITHIN: "isotropic", "method_kwargs.total_noise": 0.001},
        FLOOR,
        (0.001, 0.01, 0.1),
        published="0.001",
        later={"half": {DIM: 64, FLOOR: 0.001}},
        least=0.001,
    ),
    "infomax": Arm("explicit_mim", {DIM: 128, WITHIN: "full"}, FLOOR, (0.03, 0.1, 0.3), least=0.01),
    "vicreg": Arm(
        "vicreg",
        {DIM: 512},
        INVARIANCE,
        (10, 25),
        published="25",
        others={
            "scaled": {INVARIANCE: 25, COVARIANCE: 4},
            "eb_jepa": {DIM: 1024, INVARIANCE: 1, VARIANCE: 1, COVARIANCE: 0.0978},
        },
    ),
    "simclr": Arm(
        "simclr", {DIM: 128}, "method_kwargs.temperature", (0.05, 0.1, 0.2), published="0.2"
    ),
    "byol": Arm(
        "byol",
        {DIM: 128, "method_kwargs.proj_hidden_dim": 1024, HIDDEN: 1024},
        "momentum.base_tau",
        (0.9, 0.97, 0.99),
        published="0.99",
        most=1,
    ),
    "corinfomax": Arm(
        "corinfomax", {DIM: 64}, "method_kwargs.alpha", (64, 250, 1000), published="250"
    ),
    "frossl": Arm(
        "frossl", {DIM: 256}, "method_kwargs.invariance_weight", (2, 4, 8), published="4"
    ),
    "lejepa": Arm("lejepa", {DIM: 128}, LAMB, (0.01, 0.02, 0.05), published="0.01", most=1),
    "visreg": Arm("visreg", {DIM: 128}, LAMB, (0.3, 0.6, 0.9), published="0.6", most=1),
}
# Better than the rival's chosen setting in the first study (five seeds, the official test images)
# or in its exploration (VICReg at 6e-3, one seed).
AGAIN = (("vicreg", 3e-3, "10"), ("vicreg", 6e-3, "10"), ("frossl", 3e-3, "4"))
LONG = ("isotropic", "vicreg", "simclr", "lejepa")
LARGER = ("isotropic", "vicreg", "simclr")
UNTUNED = {name: arm.published for name, arm in ARMS.items() if arm.published is not None}

WEAK, STRONG, UNLIKE = "symmetric_weak", "symmetric", "asymmetric"


@dataclass(frozen=True)
class Condition:
    """Where all methods run untuned: data, augmentation and batch."""

    data: str = "cifar10"
    augmentation: str = WEAK
    batch: int = 256

    def __str__(self) -> str:
        return f"{self.data}-{self.augmentation}-{self.batch}"


STUDY_CELL = Condition()
# Each data set with each augmentation, batches as in a Latin square; but photo_patches at 256 where
# it would have 512.
CONDITIONS = [
    Condition("cifar10", WEAK, 128),
    Condition("cifar10", STRONG, 256),
    Condition("cifar10", UNLIKE, 512),
    Condition("fashion_mnist", WEAK, 256),
    Condition("fashion_mnist", STRONG, 512),
    Condition("fashion_mnist", UNLIKE, 128),
    Condition("photo_patches", WEAK, 256),
    Condition("photo_patches", STRONG, 128),
    Condition("photo_patches", UNLIKE, 256),
]
# By batch: the untuned settings there if what they are at 256 followed it. D is half of the batch,
# the default of explicit_mim; BYOL's target network keeps as much over as many images; FroSSL's
# weight, which its loss multiplies by D / N, and the odds of LeJEPA's lamb, whose statistic is a
# multiple of N, are held against N.
ADAPTED = {
    128: {"isotropic": "half", "byol": "0.995", "frossl": "2", "lejepa": "0.0198"},
    256: {},
    512: {"byol": "0.98", "frossl": "8", "lejepa": "0.00503"},
}


@dataclass(frozen=True)
class Run:
    """One training; `stage` tells its images and its epochs."""

    stage: str
    arm: str
    rate: float
    setting: str
    seed: int
    condition: Condition = STUDY_CELL

    @property
    def name(self) -> str:
        place = f"-{self.condition}" if self.condition != STUDY_CELL else ""
        return f"{self.stage}-{self.arm}{place}-lr{self.rate:g}-{self.setting}"

    def command(self, data: Path, output: Path) -> list[str]:
        """Its command line, after `solo-mim`."""
        held_out = output / "images" / "held-out"
        cifar = ["+study=cifar10_jpeg", f"data.train_path={data / 'cifar10-jpeg' / 'train'}"]
        images = {
            "cifar10": [*cifar, f"data.val_path={held_out}"],
            "fashion_mnist": ["+study=fashion_mnist", f"data.train_path={data}"],
            "photo_patches": ["+study=photo_patches"],
        }[self.condition.data]
        options = [f"augmentations={self.condition.augmentation}"]
        if self.stage == "long":
            options += ["max_epochs=120"]
        if self.stage == "larger":
            images = [
                "+study=cifar10_jpeg",
                f"data.train_path={output / 'images' / 'larger'}",
                f"data.val_path={held_out}",
                "data.fraction=-1",
                "data.validation_split=null",
            ]
            options += ["max_epochs=60"]
        if self.condition != STUDY_CELL:
            options += [f"optimizer.batch_size={self.condition.batch}"]
        return [
            "pretrain",
            *images,
            *ARMS[self.arm].overrides(self.setting),
            *options,
            "data.format=tensor",
            f"optimizer.lr={self.rate:g}",
            "optimizer.weight_decay=1e-4",  # the same for all, whatever a method's recipe has
            f"seed={self.seed}",
            "check_val_every_n_epoch=20",  # of 10,000 images; nothing here goes by online figures
            f"name={self.name}",
            f"evaluation.test={str(self.stage != 'sweep').lower()}",
            f"output_dir={output}",
            "progress_bar=false",
        ]

    def line(self) -> str:
        """The command without the places of this machine."""
        return shlex.join(["solo-mim", *self.command(Path("DATA"), Path("OUT"))])


class Records:
    """Figures of the finished runs, a line of JSON each, in a file and by command."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        lines = path.read_text().splitlines() if path.exists() else []
        self.found = {record["command"]: record for record in map(json.loads, lines)}

    def of(self, run: Run) -> dict[str, Any] | None:
        return self.found.get(run.line())

    def take(self, run: Run, output: Path) -> dict[str, Any] | None:
        """The figures of a run, from its folder if they are not here yet; None if it has none."""
        if record := self.of(run):
            return record
        folders = [path.parent for path in output.glob(f"{run.name}-seed{run.seed}-*/result.json")]
        if len(folders) > 1:
            raise SystemExit(
                f"{' and '.join(map(str, folders))} are of one run; keep one of them, or give "
                "another --output"
            )
        if not folders:
            return None
        record = {"command": run.line(), **figures(folders[0])}
        with self.lock:
            self.found[run.line()] = record
            with self.path.open("a") as file:
                print(json.dumps(record), file=file)
        return record


def figures(folder: Path) -> dict[str, Any]:
    """What of a finished run goes into the repository.

    `offline` are top-1 figures in percent of the images by which the run is judged; where the
    official test images of CIFAR-10 lie beside the final ones, theirs are `test`, and `right` says
    of which final images the probe was, as bits in base64.
    """
    result = json.loads((folder / "result.json").read_text())
    predictions = pd.read_csv(folder / "predictions.csv")
    parts = {"offline": predictions}
    if result["offline_evaluated_on"] != "validation split" and result["data"] == "custom":
        place = predictions.groupby("target").cumcount()
        final = place < FINAL_IMAGES // predictions["target"].nunique()
        parts = {"offline": predictions[final], "test": predictions[~final]}
    accuracies = {
        part: {
            measure: 100 * float((rows[measure] == rows["target"]).mean())
            for measure in ("probe", "knn")
        }
        for part, rows in parts.items()
    }
    kept = ("name", "seed", "epochs", "online", "information", "versions", "commit", "code")
    found = {**{key: result[key] for key in kept}, **accuracies}
    if "test" in parts:
        hits = parts["offline"]["probe"] == parts["offline"]["target"]
        found["right"] = base64.b64encode(np.packbits(hits)).decode()
    return found


def right(record: dict[str, Any]) -> np.ndarray:
    """Of each final image whether the probe was right; NaN where the record does not say."""
    if "right" not in record:
        return np.array([np.nan])
    return np.unpackbits(np.frombuffer(base64.b64decode(record["right"]), np.uint8))[:FINAL_IMAGES]


def draw_images(data: Path, output: Path) -> None:
    """Links to the images of the final runs, under `output`/images.

    held-out/CLASS: `final-*`, 10,000 of the training images that the first study did not use, and
    `test-*`, the official test images. larger/CLASS: all training images but those 10,000.
    """
    from sklearn.model_selection import train_test_split

    place = output / "images"
    if place.exists():
        return
    root = data / "cifar10-jpeg"
    known = {"dataset": "custom", "train_path": str(root / "train"), "fraction": ROUND_ONE}
    used = load_splits(known).train
    files: Any = used.source
    paths = [Path(os.fsdecode(path)) for path in files.paths]  # of all training images
    rows: Any = used.rows
    unused = np.delete(np.arange(len(paths)), rows)
    classes = [paths[i].parent.name for i in unused]
    final, _ = train_test_split(
        unused, train_size=FINAL_IMAGES, stratify=classes, random_state=DRAW_SEED
    )
    chosen = set(final.tolist())
    links = {
        place / "held-out" / path.parent.name / f"final-{path.name}": path
        for path in (paths[i] for i in sorted(chosen))
    }
    for path in sorted((root / "test").glob("*/*")):
        links[place / "held-out" / path.parent.name / f"test-{path.name}"] = path
    for i, path in enumerate(paths):
        if i not in chosen:
            links[place / "larger" / path.parent.name / path.name] = path
    partial = place.with_name("images.partial")
    for link, path in links.items():
        link = partial / link.relative_to(place)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path.absolute())
    partial.rename(place)


def train(runs: list[Run], data: Path, output: Path, jobs: int, records: Records) -> None:
    """Those without figures yet, `jobs` at a time, one thread each."""

    def one(run: Run) -> None:
        if records.take(run, output):
            return
        command = [sys.executable, "-m", "solo_mim", *run.command(data, output)]
        with (output / f"{run.name}-seed{run.seed}.log").open("a") as log:
            print(shlex.join(["solo-mim", *command[3:]]), file=log, flush=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        record = records.take(run, output)
        said = f"{probe(record):.2f}" if record else f"FAILED ({done.returncode}), see {log.name}"
        print(f"{run.name} seed {run.seed}: {said}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, runs))


def probe(record: dict[str, Any]) -> float:
    """Offline probe, top-1 in percent: of validation images in the sweep, else of final images."""
    return record["offline"]["probe"]


def sweep(name: str) -> list[Run]:
    """The start of an arm's sweep: its first setting at each rate."""
    first = ARMS[name].settings()[0]
    return [Run("sweep", name, rate, first, SWEEP_SEED) for rate in RATES]


def defaults() -> list[Run]:
    """The untuned settings at each rate, in the study's own cell."""
    return [run for name in UNTUNED for run in sweep(name)]


def best_of(runs: list[Run], records: Records) -> Run | None:
    """The best by probe, once all have figures."""
    probes = {run: probe(record) for run in runs if (record := records.of(run))}
    return max(probes, key=probes.__getitem__) if len(probes) == len(runs) else None


def beyond(values: list[float], best: float, of_odds: bool = False) -> float | None:
    """The next in the range's own ratio, or in that of the odds v / (1 - v), where the best lies at
    an end of it."""
    values = sorted(set(values))
    if len(values) < 2 or best not in (values[0], values[-1]):
        return None
    end, inner = values[:2] if best == values[0] else values[:-3:-1]
    if not of_odds:
        return float(f"{end**2 / inner:.3g}")
    odds = (end / (1 - end)) ** 2 * (1 - inner) / inner
    return float(f"{odds / (1 + odds):.3g}")


def tried(name: str, records: Records) -> list[Run]:
    """An arm's first setting at each rate, the others at the best rate, the best of these at the
    rates next to it and, as long as the best so far lies at an end of its values or of the rates,
    the next beyond that end, at the best one's rate or value."""
    runs, arm = sweep(name), ARMS[name]
    if fastest := best_of(runs, records):
        runs += [replace(fastest, setting=setting) for setting in arm.settings()[1:]]
        best = best_of(runs, records)
        if best and best.setting != fastest.setting:
            place = RATES.index(best.rate)
            rates = RATES[max(0, place - 1) : place + 2]
            runs += [replace(best, rate=rate) for rate in rates if rate != best.rate]
    for step in range(2 * BEYOND):
        best = best_of(runs, records)
        if best is None:
            break
        more: list[Run] = []
        if step < BEYOND and best.setting not in arm.others:
            values = [float(run.setting) for run in runs if run.setting not in arm.others]
            value = beyond(values, float(best.setting), arm.most == 1)
            if value is not None and arm.least <= value <= arm.most:
                more += [replace(best, setting=f"{value:g}")]
        if step < BEYOND:
            rate = beyond([run.rate for run in runs], best.rate)
            more += [] if rate is None else [replace(best, rate=rate)]
        more = [run for run in more if run not in runs]
        if not more:
            break
        runs += more
    return runs


def chosen(records: Records) -> dict[str, Run]:
    """The best of what each arm tried, of those that have finished."""
    found = {name: best_of(tried(name, records), records) for name in ARMS}
    return {name: best for name, best in found.items() if best}


def untuned_rate(records: Records) -> float | None:
    """The rate of all untuned runs: the best by the methods' mean probe in the study's own cell."""
    found: dict[float, list[float]] = {rate: [] for rate in RATES}
    for run in defaults():
        record = records.of(run)
        if record is None:
            return None
        found[run.rate].append(probe(record))
    return max(RATES, key=lambda rate: sum(found[rate]))


def expected(stage: str, records: Records) -> list[Run]:
    """The runs that the protocol asks for in a stage, as far as the sweep decides on them."""
    if stage == "sweep":
        return [run for name in ARMS for run in tried(name, records)]
    if stage == "again":
        return [Run(stage, *rival, seed) for seed in SEEDS for rival in AGAIN]
    if stage in ("untuned", "adapted"):
        rate = untuned_rate(records)
        if rate is None:
            print(f"{stage}: the published settings are not all finished in the sweep")
            return []
        settings = ADAPTED if stage == "adapted" else dict.fromkeys(ADAPTED, UNTUNED)
        return [
            Run(stage, name, rate, setting, SWEEP_SEED, condition)
            for condition in CONDITIONS
            for name, setting in settings[condition.batch].items()
        ]
    arms = {"long": LONG, "larger": LARGER}.get(stage, tuple(ARMS))
    best = chosen(records)
    for name in sorted(set(arms) - set(best)):
        print(f"{stage}: the sweep of {name} is not finished, it is left out")
    seeds = SEEDS[: {"long": 3, "larger": 1}.get(stage, len(SEEDS))]
    return [
        replace(best[name], stage=stage, seed=seed)
        for seed in seeds
        for name in arms
        if name in best
    ]


def main() -> None:
    """Runs the stages asked for."""
    default = ("sweep", "tuned", "again", "untuned", "adapted")
    names = (*default, "long", "larger")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("stages", nargs="*", metavar="STAGE", default=[], help=", ".join(names))
    parser.add_argument("--output", type=Path, default=Path("runs/second-study"))
    parser.add_argument("--records", type=Path, default=Path("docs/results/study2-runs.jsonl"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    given = parser.parse_args()
    if unknown := set(given.stages) - set(names):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    data, output = given.data.absolute(), given.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    records = Records(given.records)
    draw_images(data, output)
    for stage in given.stages or default:
        done: set[Run] = set()
        # What lies beyond an end is known once the grid has finished.
        while left := [run for run in expected(stage, records) if run not in done]:
            train(left, data, output, given.jobs, records)
            done |= set(left)


if __name__ == "__main__":
    main()
