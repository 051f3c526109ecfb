"""The study of docs/results/study.md: which method, under one budget, and with what certainty.

    python scripts/study.py DATA [--output runs/study] [--jobs N] [STAGE ...]

DATA holds cifar10-jpeg/{train,test}/CLASS/*.jpg and FashionMNIST/raw/*. Stages, in order:

sweep    every arm of ARMS on CIFAR-10 (JPEG): two rates x three values of one parameter of its
         own, seed 0. Chosen by the offline probe on the 10,000 validation images.
final    what was chosen, seeds 1 to 5, on the test images.
confirm  the same settings and seeds on Fashion-MNIST, where nothing was chosen.
report   tables, tests and picture of what is finished, to --report.

A run is one `solo-mim pretrain` command, printed to its log. Finished runs are skipped, broken ones
resumed, and one that fails stops no other; the report says which are missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from solo_mim.evaluation.significance import holm, mcnemar, paired_difference

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RATES = (1e-3, 3e-3)
SEEDS = (1, 2, 3, 4, 5)
SWEEP_SEED = 0


@dataclass(frozen=True)
class Arm:
    """A method, what it is fixed to, and the parameter of its own that is swept."""

    method: str
    output_dim: int
    own: tuple[str, ...]
    values: tuple[float, ...]
    fixed: tuple[str, ...] = ()

    def overrides(self, value: float) -> list[str]:
        return [
            f"method={self.method}",
            f"method_kwargs.proj_output_dim={self.output_dim}",
            *self.fixed,
            *(f"{key}={value:g}" for key in self.own),
        ]


# Output dimension: a quarter of the recipe's, as the hidden width is (512 of 2048), but no less
# than 128 or, where that is less, the recipe's. Values: the recipe's in the middle, with three
# exceptions. Barlow's lambda weighs D - 1 products against one: 0.02 is 0.0051 at a quarter of D.
# FroSSL's invariance grows with D: from the recipe's 1 to 4, the same at a quarter of D. MEC's 64
# gives the 1 / lambda of its authors, 32. CorInfoMax: the paper's 250 between alpha = D, which is 1
# on standardised coordinates, and 1000. The ranges of this project's three are the exploration's.
ARMS = {
    "infomax": Arm("explicit_mim", 128, ("method_kwargs.within_noise",), (0.03, 0.1, 0.3)),
    "two_view": Arm(
        "explicit_mim",
        128,
        ("method_kwargs.within_noise", "method_kwargs.total_noise"),
        (0.03, 0.1, 0.3),
        ("method_kwargs.reading=two_view",),
    ),
    "first_order": Arm(
        "explicit_mim",
        128,
        ("method_kwargs.within_noise",),
        (0.1, 0.3, 1.0),
        ("method_kwargs.reading=first_order",),
    ),
    "vicreg": Arm("vicreg", 512, ("method_kwargs.sim_loss_weight",), (10, 25, 50)),
    "barlow_twins": Arm("barlow_twins", 512, ("method_kwargs.lamb",), (0.0051, 0.02, 0.08)),
    "corinfomax": Arm("corinfomax", 64, ("method_kwargs.alpha",), (64, 250, 1000)),
    "mec": Arm("mec", 512, ("method_kwargs.eps",), (32, 64, 128)),
    "frossl": Arm("frossl", 256, ("method_kwargs.invariance_weight",), (1, 2, 4)),
    "simclr": Arm("simclr", 128, ("method_kwargs.temperature",), (0.1, 0.2, 0.5)),
}


@dataclass(frozen=True)
class Run:
    """One training: `stage` tells its data and what it is evaluated on."""

    stage: str
    arm: str
    rate: float
    value: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.arm}-lr{self.rate:g}-{self.value:g}"

    def result(self, output: Path) -> dict | None:
        """What it left, if it has finished."""
        found = list(output.glob(f"{self.name}-seed{self.seed}-*/result.json"))
        if len(found) > 1:
            raise SystemExit(
                f"{output} holds {len(found)} results of {self}: give another --output"
            )
        return json.loads(found[0].read_text()) if found else None

    def command(self, data: Path, output: Path) -> list[str]:
        """Its command line, after `solo-mim`."""
        images = {
            "confirm": ["+study=fashion_mnist", f"data.train_path={data}"],
        }.get(
            self.stage,
            [
                "+study=cifar10_jpeg",
                *(f"data.{key}_path={data / 'cifar10-jpeg' / part}" for key, part in PARTS.items()),
            ],
        )
        return [
            "pretrain",
            *images,
            *ARMS[self.arm].overrides(self.value),
            f"optimizer.lr={self.rate:g}",
            f"seed={self.seed}",
            f"name={self.name}",
            f"evaluation.test={str(self.stage != 'sweep').lower()}",
            f"output_dir={output}",
            "progress_bar=false",
        ]


PARTS = {"train": "train", "val": "test"}


def train(runs: list[Run], data: Path, output: Path, jobs: int) -> None:
    """Those not finished yet, `jobs` at a time, one thread each."""

    def one(run: Run) -> None:
        if run.result(output):
            return
        command = [sys.executable, "-m", "solo_mim", *run.command(data, output)]
        with (output / f"{run.name}-seed{run.seed}.log").open("a") as log:
            print(shlex.join(["solo-mim", *command[3:]]), file=log, flush=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        result = run.result(output)
        said = f"{probe(result):.2f}" if result else f"FAILED ({done.returncode}), see {log.name}"
        print(f"{run.name} seed {run.seed}: {said}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, runs))


def probe(result: dict) -> float:
    """Offline probe, top-1 in percent: on validation images in the sweep, else on test images."""
    return result["offline"]["trained"]["probe_top1"]


def sweep() -> list[Run]:
    return [
        Run("sweep", name, rate, value, SWEEP_SEED)
        for rate, position in itertools.product(RATES, range(3))
        for name, arm in ARMS.items()
        for value in [arm.values[position]]
    ]


def chosen(output: Path) -> dict[str, Run]:
    """The best of each arm's sweep, of those whose sweep has finished."""
    best = {}
    for name in ARMS:
        results = {run: run.result(output) for run in sweep() if run.arm == name}
        if all(results.values()):
            best[name] = max(results, key=lambda run: probe(results[run]))
    return best


def finals(stage: str, output: Path) -> list[Run]:
    best = chosen(output)
    if missing := set(ARMS) - set(best):
        raise SystemExit(f"{stage}: the sweep of {', '.join(sorted(missing))} is not finished")
    return [
        Run(stage, name, run.rate, run.value, seed) for seed in SEEDS for name, run in best.items()
    ]


STAGES = {"final": "CIFAR-10 (JPEG)", "confirm": "Fashion-MNIST"}
REFERENCE = "infomax"


def right(run: Run, output: Path) -> np.ndarray:
    """Which test images the run's probe has right."""
    predictions = pd.read_csv(run.result(output)["folder"] / "predictions.csv")
    return (predictions["probe"] == predictions["target"]).to_numpy()


def compared(stage: str, output: Path) -> list[dict]:
    """One row for each arm whose five seeds have finished, best first."""
    finished: dict[str, list[Run]] = {}
    for run in finals(stage, output):
        if run.result(output):
            finished.setdefault(run.arm, []).append(run)
    rows, scores = [], {}
    for arm, runs in finished.items():
        if len(runs) < len(SEEDS):
            print(f"{stage}: {arm} has {len(runs)} of {len(SEEDS)} seeds, left out")
            continue
        trained = [run.result(output)["offline"]["trained"] for run in runs]
        scores[arm] = np.array([one["probe_top1"] for one in trained])
        knn = np.array([one["knn_top1"] for one in trained])
        rows.append(
            {
                "arm": arm,
                "lr": runs[0].rate,
                "own": runs[0].value,
                "probe": scores[arm].mean(),
                "probe_sd": scores[arm].std(ddof=1),
                "knn": knn.mean(),
                "knn_sd": knn.std(ddof=1),
                "probe_by_seed": scores[arm].tolist(),
                "knn_by_seed": knn.tolist(),
            }
        )
    rivals = [row for row in rows if row["arm"] != REFERENCE]
    if REFERENCE in scores and rivals:
        found = [paired_difference(scores[REFERENCE], scores[row["arm"]]) for row in rivals]
        for row, difference, p in zip(rivals, found, holm([d.p for d in found]), strict=True):
            pairs = zip(finished[REFERENCE], finished[row["arm"]], strict=True)
            row["ahead"], row["p_holm"] = difference._asdict(), p
            row["mcnemar"] = [
                mcnemar(right(ours, output), right(theirs, output))._asdict()
                for ours, theirs in pairs
            ]
    return sorted(rows, key=lambda row: -row["probe"])


def markdown(rows: list[dict]) -> str:
    """The table of one data set."""
    lines = [
        f"| arm | lr | own | probe | kNN | {REFERENCE} ahead by | p (Holm) | McNemar p < .05 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["arm"],
            f"{row['lr']:g}",
            f"{row['own']:g}",
            *(f"{row[key]:.2f} ± {row[key + '_sd']:.2f}" for key in ("probe", "knn")),
        ]
        if "ahead" in row:
            sure = [test for test in row["mcnemar"] if test["p"] < 0.05]
            for_us = sum(test["only_first"] > test["only_second"] for test in sure)
            cells += [
                "{mean:+.2f} [{low:+.2f}, {high:+.2f}]".format(**row["ahead"]),
                f"{row['p_holm']:.3f}",
                f"{for_us} for, {len(sure) - for_us} against",
            ]
        else:
            cells += ["-", "-", "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(tables: dict[str, list[dict]], runs: dict[str, list[Run]], output: Path, path: Path):
    """Above, the probe of every seed; below, the online probe over epochs, mean and range."""
    figure, panels = plt.subplots(2, len(tables), figsize=(6.5 * len(tables), 8), squeeze=False)
    for column, (stage, rows) in enumerate(tables.items()):
        top, bottom = panels[:, column]
        for position, row in enumerate(reversed(rows)):
            top.plot(row["probe_by_seed"], [position] * len(SEEDS), "o", alpha=0.5)
            top.plot(row["probe"], position, "k|", markersize=16)
        top.set_yticks(range(len(rows)), [row["arm"] for row in reversed(rows)])
        top.set(xlabel="offline probe on test images, top-1 (%)", title=STAGES[stage])
        top.grid(alpha=0.3, axis="x")
        for row in rows:
            curves = [
                pd.read_csv(run.result(output)["folder"] / "metrics.csv")
                .set_index("epoch")["val_acc1"]
                .dropna()
                for run in runs[stage]
                if run.arm == row["arm"]
            ]
            curve = pd.concat(curves, axis=1)
            (line,) = bottom.plot(curve.index + 1, curve.mean(axis=1), label=row["arm"])
            bottom.fill_between(
                curve.index + 1,
                curve.min(axis=1),
                curve.max(axis=1),
                color=line.get_color(),
                alpha=0.15,
            )
        bottom.set(xlabel="epoch", ylabel="online probe, validation images, top-1 (%)")
        bottom.grid(alpha=0.3)
        bottom.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(output: Path, folder: Path) -> None:
    """Prints the tables; writes study.json, with every run of every stage, and study.png."""
    tables, runs = {}, {}
    for stage in STAGES:
        runs[stage] = [run for run in finals(stage, output) if run.result(output)]
        tables[stage] = compared(stage, output)
        print(f"\n{STAGES[stage]}\n\n{markdown(tables[stage])}")
    everything = [*sweep(), *runs["final"], *runs["confirm"]]
    kept = ("online", "offline", "information", "training_seconds_of_last_sitting", "versions")
    records = []
    for run in everything:
        if result := run.result(output):
            values = {key: result[key] for key in (*kept, "commit")}
            records.append(
                {**asdict(run), "command": run.command(Path("DATA"), Path("OUT")), **values}
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps({"tables": tables, "runs": records}, indent=1))
    picture(tables, runs, output, folder / "study.png")


def main() -> None:
    """Runs the stages asked for, all of them by default."""
    stages = ("sweep", "final", "confirm", "report")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(stages))
    parser.add_argument("--output", type=Path, default=Path("runs/study"))
    parser.add_argument("--report", type=Path, default=Path("docs/results"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(stages):
        parser.error(f"unknown stage {', '.join(unknown)}; there are {', '.join(stages)}")
    data, output = arguments.data.resolve(), arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for stage in arguments.stages or stages:
        if stage == "report":
            report(output, arguments.report)
        else:
            runs = sweep() if stage == "sweep" else finals(stage, output)
            train(runs, data, output, arguments.jobs)


if __name__ == "__main__":
    main()
