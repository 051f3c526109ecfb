"""The study of docs/results/study.md: which method, under one budget, and with what certainty.

    python scripts/study.py DATA [--output runs/study] [--jobs N] [STAGE ...]

DATA holds cifar10-jpeg/{train,test}/CLASS/*.jpg and FashionMNIST/raw/*. Stages, in order:

sweep    every arm of ARMS on CIFAR-10 (JPEG): two rates x three values of one parameter of its
         own, seed 0. Chosen by the offline probe on the 10,000 validation images. Where the best
         value lies at an end of the range, the next one beyond it, twice at most.
final    what was chosen, seeds 1 to 5, on the test images.
confirm  the same settings and seeds on Fashion-MNIST, where nothing was chosen.
report   tables and tests of what is finished; study.json, study.html and pictures go to --report.

A run is one `solo-mim pretrain` command, printed to its log. Finished runs are skipped, with a line
where other code made them, broken ones resumed, and one that fails stops no other; the report says
which are missing.
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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from solo_mim.evaluation.compare import Table, as_records, p_text, tables
from solo_mim.evaluation.pictures import figures_of
from solo_mim.evaluation.report import page
from solo_mim.evaluation.significance import holm, mcnemar, paired_difference
from solo_mim.runs.collect import Run as Finished
from solo_mim.runs.collect import codes_of, collect
from solo_mim.runs.sources import digest

RATES = (1e-3, 3e-3)
SEEDS = (1, 2, 3, 4, 5)
SWEEP_SEED = 0
BEYOND = 2  # values tried past an end of an arm's range, at most
TOTAL_NOISE = 0.01  # explicit MIM's, which `within_noise` is not to go below


@dataclass(frozen=True)
class Arm:
    """A method, what it is fixed to, and the parameter of its own that is swept."""

    method: str
    output_dim: int
    own: tuple[str, ...]
    values: tuple[float, ...]
    fixed: tuple[str, ...] = ()
    least: float = 0.0  # that the parameter can be

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
    "infomax": Arm(
        "explicit_mim",
        128,
        ("method_kwargs.within_noise",),
        (0.03, 0.1, 0.3),
        ("method_kwargs.within=full",),
        least=TOTAL_NOISE,
    ),
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
        ("method_kwargs.within=linear",),
        least=TOTAL_NOISE,
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

    def folder(self, output: Path) -> Path | None:
        """Where it lies, if it has finished."""
        found = list(output.glob(f"{self.name}-seed{self.seed}-*/result.json"))
        if len(found) > 1:
            folders = " and ".join(str(path.parent) for path in found)
            raise SystemExit(
                f"{folders} are of one run; keep one of them, or give another --output"
            )
        return found[0].parent if found else None

    def result(self, output: Path) -> dict | None:
        """What it left, if it has finished."""
        folder = self.folder(output)
        return json.loads((folder / "result.json").read_text()) if folder else None

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
    """Those not finished yet, `jobs` at a time, one thread each; says which of the others were made
    by other code."""

    def one(run: Run) -> None:
        if folder := run.folder(output):
            made_by = codes_of(json.loads((folder / "provenance.json").read_text()))
            here = digest(ARMS[run.arm].method)
            if made_by != [here]:
                print(
                    f"{run.name} seed {run.seed}: kept, made by code {', '.join(made_by)}, here it "
                    f"is {here}; move {folder} away to have it again"
                )
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


def best_of(runs: list[Run], output: Path) -> Run | None:
    """The best by probe, once all have finished."""
    results = {run: run.result(output) for run in runs}
    return max(results, key=lambda run: probe(results[run])) if all(results.values()) else None


def tried(name: str, output: Path) -> list[Run]:
    """An arm's grid and, as long as the best so far lies at an end of its values, the next beyond
    that end, in the range's own ratio and at the best one's rate."""
    runs = [run for run in sweep() if run.arm == name]
    for _ in range(BEYOND):
        best = best_of(runs, output)
        values = sorted({run.value for run in runs})
        if best is None or best.value not in (values[0], values[-1]):
            break
        end, inner = values[:2] if best.value == values[0] else values[:-3:-1]
        value = float(f"{end**2 / inner:.3g}")
        if value < ARMS[name].least:
            break
        runs.append(replace(best, value=value))
    return runs


def chosen(output: Path) -> dict[str, Run]:
    """The best of what each arm tried, of those that have finished."""
    found = {name: best_of(tried(name, output), output) for name in ARMS}
    return {name: best for name, best in found.items() if best}


def finals(stage: str, output: Path) -> list[Run]:
    best = chosen(output)
    for name in sorted(set(ARMS) - set(best)):
        print(f"{stage}: the sweep of {name} is not finished, it is left out")
    return [
        Run(stage, name, run.rate, run.value, seed) for seed in SEEDS for name, run in best.items()
    ]


def swept(output: Path) -> str:
    """What each arm tried, as a table: each value and its probe on validation images."""
    best = chosen(output).values()
    lines = ["| arm | rate | value: probe |", "|---|---|---|"]
    for name in ARMS:
        cells: dict[float, list[str]] = {rate: [] for rate in RATES}
        for run in sorted(tried(name, output), key=lambda run: run.value):
            if result := run.result(output):
                cell = f"{run.value:g}: {probe(result):.1f}"
                cells[run.rate].append(f"**{cell}**" if run in best else cell)
        lines += [f"| {name} | {rate:g} | {', '.join(found)} |" for rate, found in cells.items()]
    return "\n".join(lines)


STAGES = {"final": "CIFAR-10 (JPEG)", "confirm": "Fashion-MNIST"}
REFERENCE = "infomax"
MEASURES = {"probe": "offline probe", "kNN": "offline kNN"}  # the probe decides


def of_protocol(expected: list[Run], finished: list[Finished]) -> list[Finished]:
    """Those of the finished runs that the protocol expects, not what an earlier choice left."""
    names = {(run.name, run.seed) for run in expected}
    return [run for run in finished if (run.config["name"], run.seed) in names]


def table_of(runs: list[Finished]) -> Table:
    """The ranking of a stage's runs, its rows named after the arms.

    Raises:
        SystemExit: an arm stands in two rows, or not all are of the same images.
    """
    found = tables(runs)
    first: dict[str, Finished] = {}
    for row in (row for table in found for row in table.rows):
        row.label = row.runs[0].config["name"].split("-")[1]
        if first.setdefault(row.label, row.runs[0]) is not row.runs[0]:
            raise SystemExit(
                f"{row.label} has two rows: {first[row.label].folder} and {row.runs[0].folder} "
                "differ in more than their seed; keep the runs of one kind"
            )
    if len(found) > 1:
        one, other = (table.rows[0].runs[0].folder for table in found[:2])
        raise SystemExit(f"{one} and {other} are of other images: they share no table")
    return found[0]


def planned(table: Table) -> list[dict]:
    """The comparisons that the protocol names, the reference against each: rows of the table.

    By probe and by kNN, p-values after Holm for the rows of one measure; McNemar's test of the
    probes of each pair of runs that share a seed.
    """
    (ours,) = (row for row in table.rows if row.label == REFERENCE)
    others = [row for row in table.rows if row is not ours]
    records = {record["label"]: record for record in as_records(table)}
    for row in table.rows:
        records[row.label]["own"] = row.runs[0].config["name"].split("-", 2)[2]
    ours_right = [right(run) for run in ours.runs]
    for row in others:
        pairs = zip(ours_right, map(right, row.runs), strict=True)
        tests = [mcnemar(first, second)._asdict() for first, second in pairs]
        records[row.label] |= {"ahead": {}, "mcnemar": tests}
    for short, measure in MEASURES.items():
        first, *scores = (list(row.scores[measure].by_seed.values()) for row in [ours, *others])
        found = [paired_difference(first, second) for second in scores]
        for row, difference, p in zip(others, found, holm([d.p for d in found]), strict=True):
            records[row.label]["ahead"][short] = {**difference._asdict(), "p_holm": p}
    return list(records.values())


def right(run: Finished) -> np.ndarray:
    """Which test images the run's probe has right."""
    predictions = pd.read_csv(run.folder / "predictions.csv")
    return (predictions["probe"] == predictions["target"]).to_numpy()


def difference_cells(found: dict) -> list[str]:
    """Mean with interval, and p."""
    return ["{mean:+.2f} [{low:+.2f}, {high:+.2f}]".format(**found), p_text(found["p_holm"])]


def mcnemar_cell(tests: list[dict]) -> str:
    """How many of the tests are sure, either way."""
    sure = [test for test in tests if test["p"] < 0.05]
    for_us = sum(test["only_first"] > test["only_second"] for test in sure)
    return f"{for_us} for, {len(sure) - for_us} against"


def markdown(records: list[dict]) -> str:
    """The table of one data set."""
    heads = ["arm", "rate, own"]
    for short in MEASURES:
        heads += [short, f"{REFERENCE} minus it", "p (Holm)"]
    heads += ["McNemar p < .05"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for record in records:
        compared = "ahead" in record  # the reference is not, with itself
        cells = [record["label"], record["own"]]
        for short, measure in MEASURES.items():
            cells += [f"{record[measure]:.2f} ± {record[measure + ' sd']:.2f}"]
            cells += difference_cells(record["ahead"][short]) if compared else ["", ""]
        cells += [mcnemar_cell(record["mcnemar"]) if compared else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(data: Path, output: Path, folder: Path) -> None:
    """Prints the tables; writes study.json, with every run of the sweep and of the stages that are
    complete, the page study.html and pictures."""
    runs, problems = collect(output)
    for problem in problems:
        print(f"left out: {problem.folder}: {problem.reason}")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\nSweep, validation images\n\n{swept(output)}")
    comparisons, finished = {}, []
    expected = {stage: finals(stage, output) for stage in STAGES}
    tries = [run for name in ARMS for run in tried(name, output)]
    counted = of_protocol(tries, runs)
    for stage, images in STAGES.items():
        of_stage = of_protocol(expected[stage], runs)
        there = {(run.config["name"], run.seed) for run in of_stage}
        missing = [run.name for run in expected[stage] if (run.name, run.seed) not in there]
        if missing or not any(run.arm == REFERENCE for run in expected[stage]):
            first = f", {missing[0]} the first of them" if missing else ""
            print(f"\n{images}: {len(missing)} of {len(expected[stage])} runs are missing{first}")
            continue
        table = table_of(of_stage)
        counted += of_stage
        finished.append(table)
        comparisons[stage] = planned(table)
        print(f"\n{images}, code {table.code}\n\n{markdown(comparisons[stage])}")
        figures = figures_of(table)
        for kind in ("scores", "curves"):
            path = folder / f"study-{stage}-{kind}.png"
            figures[kind].savefig(path, dpi=100, bbox_inches="tight")
        plt.close("all")
    if finished:
        shown = page(finished, [], "The study")
        # Where the runs lie and, should they have been moved, where they lay.
        for place in {str(output), *(run.config["output_dir"] for run in runs)}:
            shown = shown.replace(place, "OUT")
        (folder / "study.html").write_text(shown.replace(str(data), "DATA"))
    kept = ("name", "seed", "online", "offline", "information", "versions", "commit", "code")
    records = [{key: run.result.get(key) for key in kept} for run in counted]
    commands = [
        shlex.join(["solo-mim", *run.command(Path("DATA"), Path("OUT"))])
        for run in [*tries, *expected["final"], *expected["confirm"]]
    ]
    content = {"comparisons": comparisons, "runs": records, "commands": commands}
    (folder / "study.json").write_text(json.dumps(content, indent=1))


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
            report(data, output, arguments.report)
            continue
        runs = sweep() if stage == "sweep" else finals(stage, output)
        train(runs, data, output, arguments.jobs)
        if stage == "sweep":
            for _ in range(BEYOND):
                runs = [run for name in ARMS for run in tried(name, output)]
                train(runs, data, output, arguments.jobs)


if __name__ == "__main__":
    main()
