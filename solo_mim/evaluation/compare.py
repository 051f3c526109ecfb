"""Runs in rows: one for each method as it was configured, over its seeds, ranked and tested.

Beside them stand published rows of the same data set, from `published.csv`: the tables of
solo-learn's README (main, 2026-04-22), one seed each: CIFAR after 1000 epochs, ImageNet-100 after
400, batches of 256, online top-1 on the test or validation images.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import combinations
from typing import Any

from solo_mim.evaluation.significance import Difference, holm, paired_difference
from solo_mim.runs.collect import LINEAR_LAYER, MEASURES, TRANSFER, Run

LEVEL = 0.05  # of significance, corrected for all pairs of a table
PUBLISHED_SOURCE = "published, not run here: solo-learn's README, one seed"


@dataclass(frozen=True)
class Score:
    """One measure of one row by seed; top-1 in percent where it is an accuracy."""

    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None of one."""
        values = list(self.by_seed.values())
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass
class Row:
    """The runs of one configuration, by rising seed, in which alone they differ."""

    label: str
    runs: list[Run]
    scores: dict[str, Score]
    diagnostics: dict[str, Score]
    verdict: str = ""

    @property
    def seeds(self) -> list[int]:
        """In rising order."""
        return [run.seed for run in self.runs]


@dataclass(frozen=True)
class Pair:
    """Two rows of a table by place, the better one first, and the difference of the two over the
    `seeds` that they share."""

    better: int
    worse: int
    difference: Difference
    seeds: int
    p_holm: float = 1.0


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: one data set, one choice of evaluated images; best row first."""

    title: str  # data set and images
    measures: list[str]  # columns, of which the first ranks
    split: dict[str, str]  # measure -> what it was measured on, where its name does not say so
    code: str  # digests of the sources that made the runs
    rows: list[Row]
    pairs: list[Pair]  # all that share two seeds or more, tested on the first measure
    # Label -> measure -> top-1 (%) that solo-learn reports, where all of the data was trained on.
    published: dict[str, dict[str, float]]

    @property
    def diagnostics(self) -> list[str]:
        """Names of what was measured of the projected features of any row."""
        return list(dict.fromkeys(name for row in self.rows for name in row.diagnostics))


def tables(runs: list[Run]) -> list[Table]:
    """A table for each data set and choice of evaluated images; the larger first."""
    apart: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        splits = [run.result.get(key) for key in ("evaluated_on", "offline_evaluated_on")]
        apart[json.dumps([run.data, splits])].append(run)
    return sorted(map(_table, apart.values()), key=lambda table: -len(table.rows))


def _table(runs: list[Run]) -> Table:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(run.settings, sort_keys=True, default=str)].append(run)
    rows = []
    for label, members in zip(_labels(list(groups.values())), groups.values(), strict=True):
        ordered = sorted(members, key=lambda run: run.seed)
        values = [{name: top1 for name, (_, top1) in run.values().items()} for run in ordered]
        diagnostics = _scores(ordered, [run.diagnostics for run in ordered])
        rows.append(Row(label, ordered, _scores(ordered, values), diagnostics))
    present = _in_order({measure for run in runs for measure in run.values()})
    ranks = present[0]
    rows.sort(key=lambda row: -row.scores[ranks].mean if ranks in row.scores else math.inf)
    pairs = _tested(rows, ranks)
    _judge(rows, pairs, ranks)
    first = runs[0]
    data = first.config.get("data", {})
    part = [str(data["train_path"])] if data.get("train_path") else []
    part += [f"fraction {data['fraction']}"] if data.get("fraction") not in (None, -1) else []
    if held_out := data.get("validation_split"):
        part += [f"validation split {held_out}", str(first.result.get("offline_evaluated_on"))]
    title = str(first.result["data"]) + (f" ({', '.join(part)})" if part else "")
    split = {m: split for run in runs for m, (split, _) in run.values().items() if m in MEASURES}
    return Table(title, present, split, _code(runs), rows, pairs, _published(first, present))


def _scores(runs: list[Run], values: list[dict[str, float]]) -> dict[str, Score]:
    """By name, of what each run has of them."""
    found: dict[str, dict[int, float]] = {}
    for run, of_run in zip(runs, values, strict=True):
        for name, value in of_run.items():
            found.setdefault(name, {})[run.seed] = value
    return {name: Score(by_seed) for name, by_seed in found.items()}


def _code(runs: list[Run]) -> str:
    """Of the runs, and of each measure that was evaluated by other code than they or by several."""
    codes = sorted({run.code for run in runs})
    by: dict[str, set[str]] = defaultdict(set)
    for evaluation in (evaluation for run in runs for evaluation in run.evaluations):
        for measure in evaluation.values:
            by[measure].add(evaluation.code)
    others = [f"{m} by {', '.join(sorted(of))}" for m, of in by.items() if sorted(of) != codes]
    return "; ".join([", ".join(codes), *sorted(others)])


def _in_order(present: set[str]) -> list[str]:
    """The frozen network before training; evaluations that were made later between them, and those
    on other data sets, which are not to rank, last."""
    shipped = [measure for measure in MEASURES if measure in present]
    offline = [measure for measure in shipped if measure.startswith("offline")]
    online = [measure for measure in shipped if measure not in offline]
    later = sorted(present - set(shipped))
    transfers = [measure for measure in later if measure.startswith(TRANSFER)]
    own = [measure for measure in later if measure not in transfers]
    return [*offline, *own, *online, *transfers]


def _published(run: Run, measures: list[str]) -> dict[str, dict[str, float]]:
    """Rows for the data set of a run that trains on all of it and is evaluated on its test set."""
    data = run.config.get("data", {})
    limited = any(run.config.get(f"limit_{part}_batches") for part in ("train", "val"))
    if limited or data.get("fraction") not in (None, -1) or data.get("validation_split"):
        return {}
    linear = next((measure for measure in measures if measure.startswith(LINEAR_LAYER)), "")
    rows: dict[str, dict[str, float]] = {}
    with files("solo_mim.evaluation").joinpath("published.csv").open() as file:
        for line in csv.DictReader(file):
            measure = linear if line["measure"] == "linear" else line["measure"]
            if line["data"] == data.get("dataset") and measure in measures:
                label = f"{line['method']}, {line['backbone']}, {line['epochs']} epochs"
                rows.setdefault(label, {})[measure] = float(line["top1"])
    return rows


def _labels(groups: list[list[Run]]) -> list[str]:
    """The runs' name; where several groups share one, with the settings in which they differ."""
    names = [group[0].config.get("name") or group[0].result["method"] for group in groups]
    labels = []
    for name, group in zip(names, groups, strict=True):
        namesakes = [g[0].settings for n, g in zip(names, groups, strict=True) if n == name]
        keys = sorted({key for settings in namesakes for key in settings})
        differing = [
            key for key in keys if len({json.dumps(s.get(key), default=str) for s in namesakes}) > 1
        ]
        shown = ", ".join(f"{key}={group[0].settings.get(key)}" for key in differing)
        labels.append(f"{name} ({shown})" if shown else str(name))
    return labels


def _tested(ranked: list[Row], measure: str) -> list[Pair]:
    scores = [row.scores.get(measure, Score({})).by_seed for row in ranked]
    pairs = []
    for better, worse in combinations(range(len(ranked)), 2):
        common = sorted(scores[better].keys() & scores[worse].keys())
        if len(common) > 1:
            first, second = ([scores[i][seed] for seed in common] for i in (better, worse))
            pairs.append(Pair(better, worse, paired_difference(first, second), len(common)))
    adjusted = holm([pair.difference.p for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, adjusted, strict=True)]


def _judge(ranked: list[Row], pairs: list[Pair], measure: str) -> None:
    against_best = {pair.worse: pair for pair in pairs if pair.better == 0}
    for place, row in enumerate(ranked):
        pair = against_best.get(place)
        if place == 0:
            row.verdict = "best" if 0 < len(against_best) == len(ranked) - 1 else "highest"
        elif measure not in row.scores:
            row.verdict = "not measured"
        elif pair is None:
            row.verdict = "not tested: fewer than two seeds shared with the first"
        else:
            value = p_text(pair.p_holm)
            certain = f"p {value}" if value.startswith("<") else f"p = {value}"
            if pair.seeds < max(len(ranked[0].scores[measure].by_seed), len(row.seeds)):
                certain += f", {pair.seeds} seeds shared"
            mean, first = pair.difference.mean, ranked[0].verdict
            if pair.p_holm >= LEVEL:
                row.verdict = f"not distinguishable from the {first} ({certain})"
            else:
                row.verdict = f"{'behind' if mean > 0 else 'ahead'} by {abs(mean):.2f} ({certain})"


def p_text(p: float) -> str:
    """`0.012`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def as_records(table: Table) -> list[dict[str, Any]]:
    """Plain numbers of a table: one dictionary for each row, in order."""
    records = []
    for place, row in enumerate(table.rows, start=1):
        record: dict[str, Any] = {"place": place, "label": row.label, "seeds": row.seeds}
        record["code"] = row.runs[0].code
        for measure in table.measures:
            score = row.scores.get(measure)
            record[measure] = score.mean if score else None
            record[f"{measure} sd"] = score.deviation if score else None
            record[f"{measure} n"] = len(score.by_seed) if score else 0
        for name in table.diagnostics:
            score = row.diagnostics.get(name)
            record[f"z: {name}"] = score.mean if score else None
        records.append({**record, "verdict": row.verdict})
    return records
