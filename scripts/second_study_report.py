"""The tables, tests, pictures and page of the second study, from the figures of its runs.

    python scripts/second_study_report.py [--records FILE]

Prints the tables of what is finished and says how many runs a stage still lacks. Beside the records
it writes study2.json with the comparisons, pictures, and study2.html with all of it and every run
that counts. Run folders are no part of it: `second_study.py` takes their figures into the records.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markdown_it import MarkdownIt
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from second_study import (
    AGAIN,
    ARMS,
    CONDITIONS,
    STUDY_CELL,
    Records,
    Run,
    chosen,
    defaults,
    expected,
    probe,
    right,
    tried,
    untuned_rate,
)

from solo_mim.evaluation.compare import p_text
from solo_mim.evaluation.pictures import GREY, save
from solo_mim.evaluation.plots import panels
from solo_mim.evaluation.report import markdown_table
from solo_mim.evaluation.significance import Difference, holm, paired_difference

REFERENCE = "isotropic"  # the explicit MIM that is compared with the others
MINUS = {"minus explicit MIM's": REFERENCE, "minus the first's": None}  # differences of regret
STAGES = {
    "tuned": "CIFAR-10 (JPEG), 40 epochs, tuned",
    "again": "CIFAR-10 (JPEG), 40 epochs, rivals again, after the figures",
    "long": "CIFAR-10 (JPEG), 120 epochs",
    "larger": "CIFAR-10 (JPEG), 40,000 images, 60 epochs",
}


def swept(records: Records) -> str:
    """What each arm tried, as a table: each setting and its probe on validation images."""
    best = chosen(records).values()
    rows = []
    for name in ARMS:
        runs = tried(name, records)
        for rate in sorted({run.rate for run in runs}):
            cells = [
                _bold(f"{run.setting}: {probe(record):.1f}", run in best)
                for run in runs
                if run.rate == rate and (record := records.of(run))
            ]
            rows.append([name, f"{rate:g}", ", ".join(cells)])
    heads = ["arm", "rate", "setting: probe"]
    return markdown_table(heads, rows, heads)


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def by_row(runs: list[Run]) -> dict[str, list[Run]]:
    """By the name of their row: the arm, with its setting where a rival is tried again."""
    rows: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.arm):
        again = f" ({run.rate:g}, {run.setting})" if run.stage == "again" else ""
        rows.setdefault(f"{run.arm}{again}", []).append(run)
    return rows


def compared(runs: list[Run], records: Records) -> pd.DataFrame:
    """A row of each in `by_row`, best first: mean and deviation over seeds, the reference minus it
    paired by seed, p after Holm for the rows of one measure, probe and kNN each; of the probe also
    the standard error that this difference has of the final images alone, which the seeds share."""
    grouped = by_row(runs)
    scores = {
        (measure, part): pd.DataFrame(
            {
                arm: {run.seed: records.found[run.line()][part][measure] for run in of_arm}
                for arm, of_arm in grouped.items()
            }
        )
        for measure in ("probe", "knn")
        for part in ("offline", "test")
        if part in records.found[runs[0].line()]
    }
    rows = {}
    for (measure, part), table in scores.items():
        name = measure if part == "offline" else f"{measure} ({part})"
        rows[name] = table.mean()
        rows[f"{name} sd"] = table.std()
        if part == "offline":
            others = [arm for arm in table if arm != REFERENCE]
            found = [_difference(table[REFERENCE], table[arm]) for arm in others]
            for key in ("mean", "low", "high"):
                rows[f"{measure} {key}"] = pd.Series(
                    {arm: getattr(d, key) for arm, d in zip(others, found, strict=True)}
                )
            rows[f"{measure} p"] = pd.Series(
                dict(zip(others, holm([d.p for d in found]), strict=True))
            )
    rights = {
        arm: np.mean([right(records.found[run.line()]) for run in of_arm], axis=0)
        for arm, of_arm in grouped.items()
    }
    rows["probe images"] = pd.Series(
        {
            arm: 100 * (rights[REFERENCE] - of).std() / math.sqrt(of.size)
            for arm, of in rights.items()
            if arm != REFERENCE
        }
    )
    return pd.DataFrame(rows).sort_values("probe", ascending=False)


def _difference(first: pd.Series, second: pd.Series) -> Difference:
    """Paired by seed; of one seed the difference alone, without a test."""
    if len(first) > 1:
        return paired_difference(first.tolist(), second.tolist())
    return Difference(float((first - second).iloc[0]), math.nan, math.nan, math.nan)


def seeds_table(table: pd.DataFrame, runs: list[Run]) -> str:
    """`compared` as it stands in the documents."""
    opened = [column for column in ("probe (test)", "knn (test)") if column in table]
    heads = ["arm", "rate, own"]
    for measure in ("probe", "knn"):
        heads += [measure, f"{REFERENCE} minus it ({measure})", f"p, Holm ({measure})"]
        heads += ["standard error of the images"] if measure == "probe" else []
    heads += [f"{column}, opened a second time" for column in opened]
    rows = []
    grouped = by_row(runs)
    for arm, row in table.iterrows():
        run = grouped[str(arm)][0]
        cells = [run.arm, f"{run.rate:g}, {run.setting}"]
        for measure in ("probe", "knn"):
            mean, low, high, p = (row[f"{measure} {key}"] for key in ("mean", "low", "high", "p"))
            against = [interval(mean, low, high), p_text(p)]
            if math.isnan(p):
                against = ["", ""] if arm == REFERENCE else [f"{mean:+.2f}", "one seed"]
            if measure == "probe":
                of_images = row["probe images"]
                against.append("" if math.isnan(of_images) else f"{of_images:.2f}")
            cells += [_score(row, measure), *against]
        rows.append([*cells, *(_score(row, column) for column in opened)])
    return markdown_table(heads, rows, heads[:2])


def interval(mean: float, low: float, high: float) -> str:
    """Of a difference, in points."""
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _score(row: pd.Series, measure: str) -> str:
    deviation = row[f"{measure} sd"]
    spread = "" if math.isnan(deviation) else f" ± {deviation:.2f}"
    return f"{row[measure]:.2f}{spread}"


def untuned_scores(runs: list[Run], records: Records, measure: str = "probe") -> pd.DataFrame:
    """Condition x method: offline probe or kNN, top-1 in percent."""
    rows = [
        (str(run.condition), run.arm, records.found[run.line()]["offline"][measure]) for run in runs
    ]
    frame = pd.DataFrame(rows, columns=["condition", "arm", measure])
    return frame.pivot(index="condition", columns="arm", values=measure)


def cells_table(cells: pd.DataFrame, head: str = "condition") -> str:
    """Text by row and method."""
    heads = [head, *map(str, cells)]
    return markdown_table(heads, [[str(name), *row] for name, row in cells.iterrows()], heads[:1])


def adapted_table(probes: pd.DataFrame, adapted: pd.DataFrame) -> str:
    """Of the conditions with adapted settings: the untuned figure and, after an arrow, theirs."""
    before = probes.loc[adapted.index, adapted.columns]
    cells = before.map("{:.2f} → ".format) + adapted.map("{:.2f}".format)
    return cells_table(cells.where(adapted.notna(), ""))


def regrets(probes: pd.DataFrame) -> pd.DataFrame:
    """Condition x method: points of probe behind the best method of the condition."""
    return probes.rsub(probes.max(axis=1), axis=0)


def regrets_by_part(table: pd.DataFrame) -> str:
    """Mean regret over the conditions of each data set, of each augmentation and of each batch."""
    parts = table.index.str.split("-")
    means = pd.concat([table.groupby(parts.str[place]).mean() for place in range(3)])
    return cells_table(means.map("{:.2f}".format), "conditions with")


def probes_table(probes: pd.DataFrame) -> str:
    """Those of each condition, the best in bold."""
    best = probes.eq(probes.max(axis=1), axis=0)
    return cells_table(probes.map("{:.2f}".format).mask(best, probes.map("**{:.2f}**".format)))


def regrets_table(means: pd.DataFrame) -> str:
    """`mean_regrets` as it stands in the documents."""
    heads = ["arm", "mean regret", *MINUS, "best in"]
    rows = []
    for arm, row in means.iterrows():
        minus = [
            "" if (reference or means.index[0]) == arm else interval(*row[_ends(name)])
            for name, reference in MINUS.items()
        ]
        regret, low, high = row[_ends("regret")]
        mean = f"{regret:.2f} [{low:.2f}, {high:.2f}]"
        rows.append([str(arm), mean, *minus, f"{row['best in']:.0f}"])
    return markdown_table(heads, rows, heads[:1])


def _ends(name: str) -> list[str]:
    return [name, f"{name} low", f"{name} high"]


def mean_regrets(table: pd.DataFrame, draws: int = 100_000) -> pd.DataFrame:
    """Mean regret of each method, best first, with the 95 % interval of a bootstrap clustered by
    data set: data sets are drawn, and conditions within each, as many as it has, once for each time
    that it was drawn. Beside it the differences of MINUS."""
    generator = np.random.default_rng(0)
    data = table.index.str.split("-").str[0]
    groups = [np.flatnonzero(data == name) for name in data.unique()]
    times = generator.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), draws)
    weights = np.zeros((draws, len(table)))
    for group, of_group in zip(groups, times.T, strict=True):
        even = np.full(len(group), 1 / len(group))
        weights[:, group] = generator.multinomial(len(group) * of_group, even)
    means = weights @ table.to_numpy() / weights.sum(1, keepdims=True)
    mean = table.mean()
    found = pd.DataFrame({"regret": mean})
    found["regret low"], found["regret high"] = np.quantile(means, (0.025, 0.975), axis=0)
    for name, reference in MINUS.items():
        ours = table.columns.get_loc(reference or mean.idxmin())
        found[name] = mean - mean.iloc[ours]
        low, high = np.quantile(means - means[:, [ours]], (0.025, 0.975), axis=0)
        found[f"{name} low"], found[f"{name} high"] = low, high
    found["best in"] = (table == 0).sum()
    return found.sort_values("regret")


def all_regrets(probes: pd.DataFrame, knn: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`mean_regrets` by name: by probe, without the data of the study's own cell, by kNN."""
    others = probes[~probes.index.str.startswith(STUDY_CELL.data)]
    tables = {"mean": probes, f"without {STUDY_CELL.data}": others, "by kNN": knn}
    return {name: mean_regrets(regrets(table)) for name, table in tables.items()}


COLOURS = dict(zip(dict.fromkeys(c.data for c in CONDITIONS), TABLEAU_COLORS, strict=False))


def _named(axis: Any, arms: Iterable[str], label: str) -> None:
    """A row for each arm, the first at the top."""
    names = list(arms)
    axis.set_yticks(range(len(names)), names, fontsize="small")
    for tick in axis.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() == REFERENCE else "normal")
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(label)
    axis.grid(alpha=0.3, axis="x")


def _dots(axis: Any, place: int, values: Any, colour: str = "tab:blue", label: str = "") -> None:
    axis.plot(values, [place] * len(values), "o", alpha=0.6, color=colour, label=label)


def _bar(axis: Any, place: int, value: float) -> None:
    axis.plot(value, place, "k|", markersize=14)


def _differences(axis: Any, found: pd.DataFrame) -> None:
    """Rows of mean, low and high; NaN is not drawn."""
    mean, low, high = (found.iloc[:, i].to_numpy() for i in range(3))
    axis.errorbar(mean, range(len(found)), xerr=(mean - low, high - mean), fmt="ko", capsize=3)
    axis.axvline(0, color=GREY, linewidth=0.8)


def draw_sweep(records: Records) -> Figure:
    """What each arm tried, what of it was chosen, and its untuned setting at the untuned rate."""
    best = chosen(records)
    arms = sorted(best, key=lambda name: -probe(records.found[best[name].line()]))
    figure, (axis,) = panels(1, 6.5, 0.6 + 0.3 * len(arms))
    rate = untuned_rate(records)
    for place, name in enumerate(arms):
        _dots(axis, place, [probe(records.found[r.line()]) for r in tried(name, records)])
        _bar(axis, place, probe(records.found[best[name].line()]))
        untuned = [r for r in defaults() if (r.arm, r.rate) == (name, rate)]
        axis.plot([probe(records.found[r.line()]) for r in untuned], [place] * len(untuned), "kx")
    _named(axis, arms, "probe, validation images (%); bar: chosen, cross: untuned")
    return figure


def draw_seeds(table: pd.DataFrame, runs: list[Run], records: Records) -> Figure:
    """Each seed a dot, each mean a bar, and the differences from the reference by probe."""
    figure, axes = panels(3, 12, 0.6 + 0.3 * len(table))
    grouped = by_row(runs)
    for axis, measure in zip(axes, ("probe", "knn"), strict=False):
        for place, arm in enumerate(table.index):
            found = [records.found[run.line()] for run in grouped[arm]]
            _dots(axis, place, [record["offline"][measure] for record in found])
            _bar(axis, place, table.loc[arm, measure])
        _named(axis, table.index, f"{'kNN' if measure == 'knn' else measure}, final images (%)")
    _differences(axes[2], table[["probe mean", "probe low", "probe high"]])
    _named(axes[2], table.index, f"{REFERENCE} minus it, points of probe")
    return figure


def draw_untuned(table: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """The regret in each condition, its mean a bar, and the distance from explicit MIM."""
    figure, axes = panels(2, 9.5, 0.6 + 0.3 * len(means))
    data = table.index.str.split("-").str[0]
    for place, arm in enumerate(means.index):
        for name, colour in COLOURS.items():
            label = "" if place else name
            _dots(axes[0], place, table.loc[data == name, arm], colour, label)
        _bar(axes[0], place, means.loc[arm, "regret"])
    axes[0].legend(fontsize="small")
    _named(axes[0], means.index, "points of probe behind the best of the condition")
    _differences(axes[1], means[_ends("minus explicit MIM's")])
    _named(axes[1], means.index, "mean regret minus explicit MIM's")
    return figure


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>The second study</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: auto; padding: 1rem; }}
  table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
  th, td {{ border-bottom: 1px solid #8885; padding: 0.2rem 0.6rem; }}
  td {{ white-space: nowrap; }}
  img {{ max-width: 100%; background: white; }}
</style>
{}"""


def report(records: Records) -> None:
    """Prints the tables. Beside the records it writes study2.json, the comparisons, pictures, and
    study2.html, a page of both and of every run that counts."""
    best = chosen(records)
    found: dict[str, Any] = {"chosen": {name: run.line() for name, run in best.items()}}
    parts = ["## Sweep, validation images", swept(records)]
    figures = {"sweep": draw_sweep(records)} if best else {}
    counted = expected("sweep", records)
    of_stage = {stage: expected(stage, records) for stage in STAGES}
    beside = {REFERENCE, *(arm for arm, *_ in AGAIN)}
    of_stage["again"] += [run for run in of_stage["tuned"] if run.arm in beside]
    for stage, images in STAGES.items():
        runs = of_stage[stage]
        parts += [f"## {images}"]
        if lacking := _lacking(runs, records):
            parts += [lacking]
            continue
        table = compared(runs, records)
        found[stage] = _plain(table)
        figures[stage] = draw_seeds(table, runs, records)
        parts += [seeds_table(table, runs)]
        counted += runs
    of_untuned, runs = untuned(records, found, figures)
    parts += of_untuned
    counted += runs
    codes = {str(record["code"]) for record in records.found.values() if "code" in record}
    if len(codes) > 1:
        parts += [f"The runs were made by code {', '.join(sorted(codes))}."]
    print("\n\n".join(["", *parts]))
    records.path.with_name("study2.json").write_text(json.dumps(found, indent=1))
    pictures = {name: records.path.with_name(f"study2-{name}.png") for name in figures}
    for name, path in pictures.items():
        save(figures[name], path, "png")
    made = [(run, record) for run in dict.fromkeys(counted) if (record := records.of(run))]
    records.path.with_name("study2.html").write_text(page(parts, pictures, made))


def untuned(
    records: Records, found: dict[str, Any], figures: dict[str, Figure]
) -> tuple[list[str], list[Run]]:
    """Tables of the untuned methods, once these are there also with adapted settings, and the runs
    that they are of. Comparisons and the picture are added to `found` and `figures`."""
    runs = expected("untuned", records)
    parts = ["## Untuned"]
    if lacking := _lacking(runs, records):
        return [*parts, lacking], []
    scores = [untuned_scores(runs, records, measure) for measure in ("probe", "knn")]
    table, means = regrets(scores[0]), all_regrets(*scores)
    figures["untuned"] = draw_untuned(table, means["mean"])
    found["untuned"] = {"rate": runs[0].rate, "probe": _plain(scores[0])}
    found["untuned"] |= {name: _plain(of) for name, of in means.items()}
    parts += [f"Rate {runs[0].rate:g}, top-1 by probe", probes_table(scores[0]), *_titled(means)]
    parts += ["Regret, by part of the condition", regrets_by_part(table)]

    again = expected("adapted", records)
    parts += ["## Untuned, adapted to the batch, after the figures"]
    if lacking := _lacking(again, records):
        return [*parts, lacking], runs
    adapted = [untuned_scores(again, records, measure) for measure in ("probe", "knn")]
    merged = [new.combine_first(old) for new, old in zip(adapted, scores, strict=True)]
    means = all_regrets(*merged)
    found["adapted"] = {"probe": _plain(adapted[0]), "knn": _plain(adapted[1])}
    found["adapted"] |= {name: _plain(of) for name, of in means.items()}
    for measure, old, new in zip(("probe", "kNN"), scores, adapted, strict=True):
        parts += [f"By {measure}", adapted_table(old, new)]
    return parts + _titled(means), runs + again


def _lacking(runs: list[Run], records: Records) -> str:
    """Why a stage has no table yet, if it has none."""
    missing = [run for run in runs if not records.of(run)]
    if missing:
        return f"{len(missing)} of {len(runs)} runs are missing, {missing[0].name} the first."
    there = {run.arm for run in runs}
    return "" if REFERENCE in there else "The sweep has not finished what this stage depends on."


def _titled(means: dict[str, pd.DataFrame]) -> list[str]:
    return [part for name, of in means.items() for part in (f"Regret, {name}", regrets_table(of))]


def _plain(table: pd.DataFrame) -> dict[str, Any]:
    return json.loads(table.to_json(orient="index"))


def page(
    parts: list[str], pictures: dict[str, Path], made: list[tuple[Run, dict[str, Any]]]
) -> str:
    """The tables, the pictures and the runs; no network, no other file."""
    shown = [
        f"![{name}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"
        for name, path in pictures.items()
    ]
    heads = ["run", "seed", "probe", "kNN", "effective rank", "code", "command"]
    rows = [
        [
            run.name,
            str(run.seed),
            f"{probe(record):.2f}",
            f"{record['offline']['knn']:.2f}",
            f"{record['information']['effective_rank']:.1f}" if record["information"] else "",
            f"{record['code']} ({(record['commit'] or 'none')[:7]})",
            f"`{run.line()}`",
        ]
        for run, record in made
    ]
    runs = ["## Runs", markdown_table(heads, rows, (heads[0], heads[-2], heads[-1]))]
    text = "\n\n".join(["# The second study", *parts, "## Pictures", *shown, *runs])
    return PAGE.format(MarkdownIt("commonmark").enable("table").render(text))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=Path, default=Path("docs/results/study2-runs.jsonl"))
    report(Records(parser.parse_args().records))


if __name__ == "__main__":
    main()
