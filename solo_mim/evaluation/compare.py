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

from solo_mim.evaluation import names
from solo_mim.evaluation.significance import Difference, holm, paired_difference
from solo_mim.runs.collect import LINEAR_LAYER, MEASURES, RAW_PIXELS, TRANSFER, UNTRAINED, Run
from solo_mim.runs.identity import differing, images_of, settings_of

LEVEL = 0.05  # of significance, corrected for all pairs of a table
PUBLISHED_SOURCE = "published, not run here: solo-learn's README, one seed"
REFERENCE = "reference, not ranked"
ONLINE = "of augmented views while training"
# What a ranking measure is; which of a network's figures to cite.
PROTOCOLS = {
    "offline probe": "a linear classifier of one fixed penalty on frozen features of un-augmented "
    "images, the same for every row",
    LINEAR_LAYER: "a linear layer that `solo-mim linear` trained on the frozen network, for every "
    "row and seed",
}


@dataclass(frozen=True)
class Score:
    """One measure of one row by seed; top-1 in percent where it is an accuracy."""

    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
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
    leading: bool = False  # the highest that is tested, or not shown to be behind it

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
class Reference:
    """A yardstick that no method has trained: it stands below the rows and is not ranked."""

    label: str
    scores: dict[str, Score]
    seeds: int | None = None  # None where none is drawn


@dataclass(frozen=True)
class Table:
    """Rows that may be compared: one data set, one choice of evaluated images; best row first."""

    title: str  # data set and images
    facts: dict[str, str]  # what stands above it: images, backbone, seeds and the like
    measures: list[str]  # columns, of which the first ranks
    main: list[str]  # those shown unless all are asked for: of the frozen network, of all rows
    split: dict[str, str]  # measure -> what it was measured on, where its name does not say so
    code: str  # digests of the sources that made the runs
    rows: list[Row]
    pairs: list[Pair]  # all that share two seeds or more, tested on the first measure
    # Label -> measure -> top-1 (%) that solo-learn reports, where all of the data was trained on.
    published: dict[str, dict[str, float]]
    references: list[Reference]

    def shown(self, all_measures: bool) -> list[str]:
        """Columns: the main ones or all."""
        return self.measures if all_measures else self.main

    def published_in(self, measures: list[str]) -> dict[str, dict[str, float]]:
        """Published rows that have a figure in one of these columns."""
        return {label: of for label, of in self.published.items() if of.keys() & set(measures)}

    @property
    def cite(self) -> str:
        """Which of a network's figures to cite, in one sentence."""
        ranks = self.measures[0]
        if ranks.startswith("online"):
            return (
                f"There are online figures alone, {ONLINE}, which do not compare with those of a "
                "frozen network."
            )
        what = next((text for start, text in PROTOCOLS.items() if ranks.startswith(start)), "")
        evaluations = [one for row in self.rows for run in row.runs for one in run.evaluations]
        settings = [one.settings for one in evaluations if ranks in one.values]
        if keys := list(filter(_is_chosen, differing(settings))):
            what += f", not all with the same {', '.join(keys)}"
        said = f"Cite the {ranks}, by which rows are ranked{f': {what}' if what else ''}"
        return f"{said}; other figures are of the same networks, online ones {ONLINE}."

    @property
    def certainty(self) -> str:
        """What is bold and what was tested; empty of a single row."""
        if len(self.rows) < 2:
            return ""
        if not any(row.leading for row in self.rows):
            return (
                "Nothing is bold: no row shares two seeds with the one of the highest mean, so "
                "that nothing can be tested against it."
            )
        left = len(self.rows) - 1 - sum(pair.better == 0 for pair in self.pairs)
        too_few = f" Rows that share too few seeds with it to be tested: {left}." if left else ""
        return (
            "Bold: the highest mean and every row that the test does not find behind it "
            f"(Student's paired t of the {self.measures[0]} over shared seeds, level "
            f"{100 * LEVEL:.0f} % after Holm for {len(self.pairs)} pairs tested).{too_few}"
        )

    @property
    def diagnostics(self) -> list[str]:
        """Names of what was measured of the projected features of any row."""
        return list(dict.fromkeys(name for row in self.rows for name in row.diagnostics))


def tables(runs: list[Run]) -> list[Table]:
    """A table for each data set and choice of evaluated images; the larger first."""
    apart: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        apart[run.comparable].append(run)
    titles = names.titles([of_table[0] for of_table in apart.values()])
    found = map(_table, titles, apart.values())
    return sorted(found, key=lambda table: -len(table.rows))


def _table(title: str, runs: list[Run]) -> Table:
    rows = _rows(runs)
    present = _in_order({measure for run in runs for measure in run.values()}, rows)
    ranks = present[0]
    rows.sort(key=lambda row: -row.scores[ranks].mean if ranks in row.scores else math.inf)
    pairs = _tested(rows, ranks)
    _judge(rows, pairs, ranks)
    split = {m: split for run in runs for m, (split, _) in run.values().items() if m in MEASURES}
    return Table(
        title=title,
        facts=names.facts(runs),
        measures=present,
        main=_main(present, rows),
        split=split,
        code=_code(runs),
        rows=rows,
        pairs=pairs,
        published=_published(runs[0], present),
        references=[*_yardsticks(runs), *_chance(runs, present)],
    )


def _rows(runs: list[Run]) -> list[Row]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(run.settings, sort_keys=True, default=str)].append(run)
    labels = names.labels([members[0] for members in groups.values()])
    rows = []
    for label, members in zip(labels, groups.values(), strict=True):
        ordered = sorted(members, key=lambda run: run.seed)
        values = [{name: top1 for name, (_, top1) in run.values().items()} for run in ordered]
        diagnostics = _scores(ordered, [run.diagnostics for run in ordered])
        rows.append(Row(label, ordered, _scores(ordered, values), diagnostics))
    return rows


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


def _in_order(present: set[str], rows: list[Row]) -> list[str]:
    """The frozen network before training; evaluations that were made later between them, but for
    the one linear layer by which rows are to rank, if every run has one. Those on other data sets
    are last, for they are not to rank."""
    shipped = [measure for measure in MEASURES if measure in present]
    offline = [measure for measure in shipped if measure.startswith("offline")]
    online = [measure for measure in shipped if measure not in offline]
    later = sorted(present - set(shipped))
    linear = [
        measure
        for measure in later
        if _is_the_protocol(measure)
        if all(measure in row.scores for row in rows)
        if all(len(row.scores[measure].by_seed) == len(row.seeds) for row in rows)
    ]
    linear = linear if len(linear) == 1 else []  # of two lengths neither
    transfers = [measure for measure in later if measure.startswith(TRANSFER)]
    own = [measure for measure in later if measure not in (*linear, *transfers)]
    return [*linear, *offline, *own, *online, *transfers]


def _is_chosen(key: str) -> bool:
    """Whether a setting of an evaluation is its own, or of the size and normalisation of its
    images: the others are its run's, `protocols.linear.trained_with`."""
    of_the_run = ("pretrain_method", "backbone.", "data.", "evaluation.", "seed")
    return key.startswith("data.augmentations") or not key.startswith(of_the_run)


def _is_the_protocol(measure: str) -> bool:
    """Whether it is of a linear layer of the run's own images, and the only one of its length: the
    name has nothing of other images or of settings (`collect._measure`, `collect._told_apart`)."""
    return measure.startswith(LINEAR_LAYER) and "=" not in measure


def _of_own_images(measure: str) -> bool:
    """Whether a measure's name has nothing of other images: `collect._measure`."""
    return not any(f"{key}=" in measure for key in (*images_of({}, None), "images"))


def _main(measures: list[str], rows: list[Row]) -> list[str]:
    """What ranks, and what all rows have of the evaluation that belongs to a run: of the frozen
    network, or of training where there is no other."""
    kind = "online" if measures[0].startswith("online") else "offline"
    of_all = [m for m in measures[1:] if all(m in row.scores for row in rows)]
    return [measures[0], *(m for m in of_all if m in MEASURES and m.startswith(kind))]


def _yardsticks(runs: list[Run]) -> list[Reference]:
    """The network as it starts, for each backbone that is trained, and raw pixels."""
    starts: dict[str, list[Run]] = defaultdict(list)
    for run in (run for run in runs if UNTRAINED in run.yardsticks):
        starts[json.dumps([run.config.get("backbone"), bool(run.result.get("start"))])].append(run)
    firsts = [members[0] for members in starts.values()]
    kinds = [
        "network at the start" if r.result.get("start") else "untrained network" for r in firsts
    ]
    backbones = [{"backbone": run.config.get("backbone")} for run in firsts]
    labels = names.told_apart(kinds, list(map(settings_of, backbones)))
    found = [
        Reference(label, scores, len({run.seed for run in members}))
        for label, members in zip(labels, starts.values(), strict=True)
        if (scores := _by_seed(members, UNTRAINED))
    ]
    raw = _by_seed(runs, RAW_PIXELS)
    # The same for every seed, where no seed draws the images.
    raw = {m: Score({0: s.mean}) if not s.deviation else s for m, s in raw.items()}
    return [*found, *([Reference("raw pixels", raw)] if raw else [])]


def _by_seed(runs: list[Run], yardstick: str) -> dict[str, Score]:
    """By measure; of several runs of one seed the mean."""
    found: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        for measure, value in run.yardsticks.get(yardstick, {}).items():
            found.setdefault(measure, {}).setdefault(run.seed, []).append(value)
    return {
        measure: Score({seed: statistics.fmean(by[seed]) for seed in sorted(by)})
        for measure, by in found.items()
    }


def _chance(runs: list[Run], measures: list[str]) -> list[Reference]:
    """What guessing gives; the share of the most frequent class where classes are uneven."""
    run = next((run for run in runs if run.classes), None)
    if run is None or not run.classes:
        return []
    label, value = f"chance, {run.classes} classes", 100 / run.classes
    largest = max(run.evaluated.values(), default=0) / (sum(run.evaluated.values()) or 1)
    if largest > 1.5 / run.classes:
        label, value = "always the most frequent class", 100 * largest
    return [Reference(label, {m: Score({0: value}) for m in measures if _of_own_images(m)})]


def _published(run: Run, measures: list[str]) -> dict[str, dict[str, float]]:
    """Rows for the data set of a run that trains on all of it and is evaluated on its test set."""
    data = run.config.get("data", {})
    limited = any(run.config.get(f"limit_{part}_batches") for part in ("train", "val"))
    if limited or data.get("fraction") not in (None, -1) or data.get("validation_split"):
        return {}
    found = [measure for measure in measures if _is_the_protocol(measure)]
    linear = found[0] if len(found) == 1 or measures[0] in found else ""
    rows: dict[str, dict[str, float]] = {}
    for line in published():
        measure = linear if line["measure"] == "linear" else line["measure"]
        if line["data"] == data.get("dataset") and measure in measures:
            method = names.METHODS.get(line["method"], line["method"])
            backbone = names.BACKBONES.get(line["backbone"], line["backbone"])
            label = f"{method}, {backbone}, {line['epochs']} epochs"
            rows.setdefault(label, {})[measure] = float(line["top1"])
    return rows


def published() -> list[dict[str, str]]:
    """Lines of `published.csv`."""
    with files("solo_mim.evaluation").joinpath("published.csv").open() as file:
        return list(csv.DictReader(file))


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
    """Verdicts, and which rows lead: the first and what is not shown to be behind it."""
    against_first = {pair.worse: pair for pair in pairs if pair.better == 0}
    for place, pair in against_first.items():
        ranked[place].leading = pair.p_holm >= LEVEL or pair.difference.mean <= 0
        ranked[place].verdict = _verdict(pair, ranked[0], ranked[place], measure)
    for row in ranked[1:]:
        if measure not in row.scores:
            row.verdict = "not measured"
        elif not row.verdict:
            row.verdict = "not tested: fewer than two seeds shared with the first"
    first, alike = ranked[0], sum(pair.p_holm >= LEVEL for pair in against_first.values())
    first.leading = bool(against_first)
    first.verdict = "highest"
    if alike:
        first.verdict = f"highest, not distinguishable from {alike} other{'s' * (alike > 1)}"
    elif len(against_first) == len(ranked) - 1 > 0 and not any(row.leading for row in ranked[1:]):
        first.verdict = "best"


def _verdict(pair: Pair, first: Row, row: Row, measure: str) -> str:
    """What the test of a row against the first says."""
    value = p_text(pair.p_holm)
    certain = f"p {value}" if value.startswith("<") else f"p = {value}"
    if pair.seeds < max(len(first.scores[measure].by_seed), len(row.seeds)):
        certain += f", {pair.seeds} seeds shared"
    mean = pair.difference.mean
    if pair.p_holm >= LEVEL:
        return f"not distinguishable from the highest ({certain})"
    return f"{'behind' if mean > 0 else 'ahead'} by {abs(mean):.2f} ({certain})"


def p_text(p: float) -> str:
    """`0.012`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def as_records(table: Table) -> list[dict[str, Any]]:
    """Plain numbers of a table: one dictionary for each row, in order."""
    records = []
    for place, row in enumerate(table.rows, start=1):
        record: dict[str, Any] = {"place": place, "label": row.label, "seeds": row.seeds}
        record |= {"method": row.runs[0].result["method"], "code": row.runs[0].code}
        for measure in table.measures:
            score = row.scores.get(measure)
            record[measure] = score.mean if score else None
            record[f"{measure} sd"] = score.deviation if score else None
            record[f"{measure} n"] = len(score.by_seed) if score else 0
        for name in table.diagnostics:
            score = row.diagnostics.get(name)
            record[f"z: {name}"] = score.mean if score else None
        records.append({**record, "verdict": row.verdict, "leading": row.leading})
    return records
