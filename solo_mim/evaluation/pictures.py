"""Pictures of a report: panels, side by side in files and one by one in its page."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from solo_mim.evaluation.compare import Reference, Row, Table
from solo_mim.evaluation.plots import LABELS, loss_terms, panels

GREY = "#808080"  # of what is no method: seen on white and on black
CAPTIONS = {
    "scores": "Every seed a dot, every mean a bar; bold as in the table. Grey are references, an "
    "arrow for one beyond the edge.",
    "curves": "Over epochs, the mean and the range of the seeds; dotted: chance.",
    "losses": "What each method logs of its loss: scales and terms are its own.",
    "time": "Of runs that had their machine to themselves and were not interrupted.",
}


@dataclass(frozen=True)
class Panel:
    """One picture: what it is of, how it is drawn, and its size in inches."""

    of: str
    draw: Callable[[Any], None]
    height: float = 3.4
    width: float = 4.4


def panels_of(table: Table) -> dict[str, list[Panel]]:
    """Kind of picture -> its panels, of those that there is something to show of."""
    rows = table.rows
    *_, height = _edges(table)
    logged = [c for c in LABELS if any(c in run.metrics for row in rows for run in row.runs)]
    terms = [(row, terms) for row in rows if (terms := loss_terms(row.runs[0].metrics))]
    scores, curves = partial(_draw_scores, table=table), partial(_draw_curves, table=table)
    found = {
        "scores": [
            Panel(f"{measure} of each row", partial(scores, measure=measure), height + 0.7, 5.2)
            for measure in table.main
        ],
        "curves": [
            Panel(f"{LABELS[column]} over epochs", partial(curves, column=column), 3.1)
            for column in logged
        ],
        "losses": [
            Panel(f"loss of {row.label}", partial(_draw_losses, row=row, terms=of), 2.6, 3.4)
            for row, of in terms
        ],
        "time": [Panel("accuracy by time", partial(_draw_time, table=table))],
    }
    if len(_timed(table)) < 2:
        del found["time"]
    return {kind: of for kind, of in found.items() if of}


def figures_of(table: Table) -> dict[str, Figure]:
    """Kind -> its panels side by side, with the legend that they share."""
    figures = {}
    for kind, of in panels_of(table).items():
        columns = min(4, len(of))
        lines = -(-len(of) // columns)
        size = columns * of[0].width, lines * of[0].height
        figures[kind], axes = panels(columns, *size, lines)
        for axis in axes[len(of) :]:
            axis.remove()
        for axis, panel in zip(axes, of, strict=False):
            panel.draw(axis)
        if kind in ("curves", "time"):
            _legend(figures[kind], axes)
    return figures


def _legend(figure: Figure, axes: list[Any]) -> None:
    """Each row once, beside the panels."""
    handles: dict[str, Any] = {}
    for axis in axes:
        lines, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    names = list(map(_wrapped, handles))
    at = (1.0, 0.5)
    figure.legend(
        list(handles.values()), names, fontsize="small", loc="center left", bbox_to_anchor=at
    )


def _labels(table: Table) -> list[str]:
    """Of rows and references."""
    return [*(row.label for row in table.rows), *(one.label for one in table.references)]


def _edges(table: Table) -> list[float]:
    """Inches from the top at which each row of the picture begins, and at which the last ends."""
    lines = [_wrapped(label).count("\n") + 1 for label in _labels(table)]
    return [0.0, *accumulate(0.16 + 0.15 * count for count in lines)]


def _draw_scores(axis: Any, table: Table, measure: str) -> None:
    """Each seed a dot, each mean a bar, rows as in the table; below them the references."""
    edges = _edges(table)
    places = [(first + last) / 2 for first, last in pairwise(edges)]
    scores = {n: row.scores[measure] for n, row in enumerate(table.rows) if measure in row.scores}
    values = [value for score in scores.values() for value in score.by_seed.values()]
    span = max(max(values) - min(values), 1.0)
    low, high = min(values) - 0.1 * span, max(values) + 0.1 * span
    for number, score in scores.items():
        dots, at = list(score.by_seed.values()), places[number]
        axis.plot(dots, [at] * len(dots), "o", alpha=0.75, color=colour(number))
        axis.plot(score.mean, at, "k|", markersize=14, markeredgewidth=1.5)
    shown = [one.scores[measure].mean for one in table.references if measure in one.scores]
    near = [value for value in shown if low - span <= value <= high + span]
    low, high = min([low, *near]), max([high, *near])
    axis.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    for number, reference in enumerate(table.references, start=len(table.rows)):
        _draw_reference(axis, reference, measure, places[number])
    _name_rows(axis, table, places, edges)
    axis.set(xlabel=f"{textwrap.fill(measure, 44)}, top-1 (%)")
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.grid(alpha=0.3, axis="x")


def _draw_reference(axis: Any, reference: Reference, measure: str, place: float) -> None:
    """A grey diamond; an arrow with its value where it lies beyond an edge."""
    score = reference.scores.get(measure)
    if score is None:
        return
    low, high = axis.get_xlim()
    if low <= score.mean <= high:
        axis.plot(score.mean, place, "D", color=GREY, markersize=5)
        return
    below = score.mean < low
    text = f"\u25c2 {score.mean:.1f}" if below else f"{score.mean:.1f} \u25b8"
    at = {"transform": axis.get_yaxis_transform(), "ha": "left" if below else "right"}
    axis.text(0.01 if below else 0.99, place, text, va="center", color=GREY, **at)


def _name_rows(axis: Any, table: Table, places: list[float], edges: list[float]) -> None:
    """Names at the left, those that lead in bold, references below a line and in italics."""
    axis.set_yticks(places, list(map(_wrapped, _labels(table))), fontsize="small")
    axis.set_ylim(edges[-1], 0)
    ticks = axis.get_yticklabels()
    for row, tick in zip(table.rows, ticks, strict=False):
        tick.set_fontweight("bold" if row.leading else "normal")
    for tick in ticks[len(table.rows) :]:
        tick.set(fontstyle="italic", color=GREY)
    if table.references:
        axis.axhline(edges[len(table.rows)], color=GREY, linewidth=0.8)


def _draw_curves(axis: Any, table: Table, column: str) -> None:
    """Mean over seeds and range of what was logged while training."""
    for place, row in enumerate(table.rows):
        _draw_band(axis, row, column, row.label, colour(place))
    chance = next((r for r in table.references if r.label.startswith("chance")), None)
    if chance and "%" in LABELS[column]:
        value = next(iter(chance.scores.values())).mean
        axis.axhline(value, color=GREY, linestyle=":")
    axis.set(xlabel="epoch", ylabel=LABELS[column])
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.grid(alpha=0.3)


def _draw_band(axis: Any, row: Row, column: str, label: str, of: Any) -> None:
    """Mean over the seeds and their range, of those that logged the column."""
    series = [
        run.metrics.set_index("epoch")[column].dropna() for run in row.runs if column in run.metrics
    ]
    if series:
        curve = pd.concat(series, axis=1)
        epochs = curve.index + 1
        # A line of one point is none.
        axis.plot(
            epochs, curve.mean(axis=1), "o" if len(curve) == 1 else "-", label=label, color=of
        )
        axis.fill_between(epochs, curve.min(axis=1), curve.max(axis=1), color=of, alpha=0.15)


def _draw_losses(axis: Any, row: Row, terms: dict[str, str]) -> None:
    """Each term that the row logs of its loss."""
    for place, (name, column) in enumerate(terms.items()):
        _draw_band(axis, row, column, name, colour(place))
    axis.set_title(textwrap.fill(row.label, 40), fontsize="small")
    axis.set(xlabel="epoch")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small", frameon=False)


def _timed(table: Table) -> dict[int, list[tuple[float, float]]]:
    """Place of a row -> seconds of training and the first measure, of runs in one session that had
    their machine to themselves."""
    measure = table.measures[0]
    points = {
        place: [
            (run.result["training_seconds_of_last_sitting"], run.values()[measure][1])
            for run in row.runs
            if run.result.get("shared_machine") is False
            and len(run.provenance) == 1
            and not run.config.get("resume_from_checkpoint")
            and not run.result.get("start")
            and measure in run.values()
        ]
        for place, row in enumerate(table.rows)
    }
    return {place: of for place, of in points.items() if of}


def _draw_time(axis: Any, table: Table) -> None:
    """The first measure against seconds of training."""
    for place, points in _timed(table).items():
        label = table.rows[place].label
        axis.plot(*zip(*points, strict=True), "o", alpha=0.7, color=colour(place), label=label)
    axis.set(xlabel="training, s", ylabel=f"{textwrap.fill(table.measures[0], 34)}, top-1 (%)")
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.grid(alpha=0.3)


def colour(place: int) -> str:
    """Ten strong colours, then their light halves."""
    found = matplotlib.colormaps["tab20"]((2 * place + place // 10) % 20)
    return matplotlib.colors.to_hex(found)


def _wrapped(label: str) -> str:
    """In lines that leave a panel its room."""
    return textwrap.fill(label, 30, break_long_words=False)


def save(figure: Figure, target: Path | io.StringIO, ending: str, **how: Any) -> None:
    """Without a date or random names: the same runs give the same file."""
    with matplotlib.rc_context({"svg.hashsalt": "solo-mim"}):
        figure.savefig(target, format=ending, dpi=120, metadata={"Date": None}, **how)


def svg(panel: Panel) -> str:
    """An element for a page, without a background and in the page's own colour and letters."""
    figure, (axis,) = panels(1, panel.width, panel.height)
    panel.draw(axis)
    target = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # as paths, letters are half of the page
        save(figure, target, "svg", transparent=True)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"(font: [^;\"]*px|font-family:) '[^;\"]*", r"\1 system-ui, sans-serif", text)
    text = text.replace("#000000", "currentColor")
    label = panel.of.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}" fill="currentColor"', 1)
