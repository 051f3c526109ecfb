"""A comparison as Markdown, CSV, JSON, LaTeX, pictures and one page that needs no network."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import pandas as pd
import yaml
from matplotlib.figure import Figure

from solo_mim.evaluation.compare import PUBLISHED_SOURCE, Pair, Row, Table, as_records, p_text
from solo_mim.evaluation.plots import LABELS, loss_terms
from solo_mim.runs.collect import Problem, Run

DIAGNOSTICS = "Projected features z of held-out images, mean over seeds"


def markdown(tables: list[Table], problems: list[Problem]) -> str:
    """Every table, and what is not in one."""
    parts = []
    for table in tables:
        splits = "; ".join(f"{measure}: {split}" for measure, split in table.split.items())
        lines = [
            f"## {table.title}",
            "",
            "Top-1 in percent, mean ± standard deviation over seeds. "
            f"{splits}. Code: {table.code}.",
            "",
            f"| row | seeds | {' | '.join(table.measures)} | verdict |",
            f"|---|---:|{'---:|' * len(table.measures)}---|",
        ]
        for row in table.rows:
            cells = [row.label, str(len(row.seeds)), *(_cell(row, m) for m in table.measures)]
            lines.append(f"| {' | '.join([*cells, row.verdict])} |")
        for published in table.published:
            known = (published.scores.get(measure) for measure in table.measures)
            cells = [published.label, "-", *("-" if x is None else f"{x:.2f}" for x in known)]
            lines.append(f"| {' | '.join([*cells, PUBLISHED_SOURCE])} |")
        parts.append("\n".join(lines))
        if names := table.diagnostics:
            lines = [f"{DIAGNOSTICS}:", "", f"| row | {' | '.join(names)} |"]
            lines.append(f"|---|{'---:|' * len(names)}")
            for row in table.rows:
                cells = [row.label, *(_diagnostic(row, name) for name in names)]
                lines.append(f"| {' | '.join(cells)} |")
            parts.append("\n".join(lines))
    if problems:
        lines = [f"- `{problem.folder}`: {problem.reason}" for problem in problems]
        parts.append("\n".join(["## Not in the tables", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _cell(row: Row, measure: str) -> str:
    score = row.scores.get(measure)
    if score is None:
        return "-"
    spread = "" if score.deviation is None else f" ± {score.deviation:.2f}"
    count = len(score.by_seed)
    return f"{score.mean:.2f}{spread}" + (f" (n = {count})" if count < len(row.seeds) else "")


def _diagnostic(row: Row, name: str) -> str:
    return f"{row.diagnostics[name].mean:.4g}" if name in row.diagnostics else "-"


def frame(tables: list[Table]) -> pd.DataFrame:
    """All rows of all tables, numbers as they are."""
    return pd.DataFrame(
        [{"table": table.title, **record} for table in tables for record in as_records(table)]
    )


def latex(table: Table) -> str:
    """A booktabs table; the best mean of each measure is bold."""
    best = {
        m: max(row.scores[m].mean for row in table.rows if m in row.scores) for m in table.measures
    }

    def cell(row: Row, measure: str) -> str:
        text = _cell(row, measure).replace(" ± ", r" $\pm$ ").replace("-", "--")
        is_best = measure in row.scores and row.scores[measure].mean == best[measure]
        return rf"\textbf{{{text}}}" if is_best else text

    shown = pd.DataFrame(
        [
            {"method": _escaped(row.label), **{_escaped(m): cell(row, m) for m in table.measures}}
            for row in table.rows
        ]
    )
    alignment = "l" + "r" * len(table.measures)
    return shown.style.hide(axis="index").to_latex(
        hrules=True, column_format=alignment, caption=_escaped(table.title), position="t"
    )


def _escaped(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(named.get(c, f"\\{c}" if c in "_%&#${}" else c) for c in text)


def scores_figure(table: Table) -> Figure:
    """Each seed a dot, each mean a bar: one panel for each measure, rows as in the table."""
    count = len(table.measures)
    figure = Figure(figsize=(3.6 * count + 1.5, 0.35 * len(table.rows) + 1.4))
    axes = figure.subplots(1, count, squeeze=False, sharey=True)
    for axis, measure in zip(axes[0], table.measures, strict=True):
        for place, row in enumerate(table.rows):
            if measure in row.scores:
                values = list(row.scores[measure].by_seed.values())
                axis.plot(values, [place] * len(values), "o", alpha=0.5, color=_colour(place))
                axis.plot(row.scores[measure].mean, place, "k|", markersize=14)
        axis.set(xlabel=f"{measure}, top-1 (%)")
        axis.grid(alpha=0.3, axis="x")
    axes[0][0].set_yticks(range(len(table.rows)), [row.label for row in table.rows])
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    return figure


def curves_figure(table: Table) -> Figure | None:
    """Mean over seeds and range of what was logged while training; None where nothing was."""
    columns = [c for c in LABELS if any(c in run.metrics for row in table.rows for run in row.runs)]
    if not columns:
        return None
    figure = Figure(figsize=(4.8 * len(columns), 3.8))
    axes = figure.subplots(1, len(columns), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        for place, row in enumerate(table.rows):
            _draw_band(axis, row, column, row.label, _colour(place))
        axis.set(xlabel="epoch", ylabel=LABELS[column])
        axis.grid(alpha=0.3)
    lines, labels = axes[0][0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(lines, labels, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _draw_band(axis: Any, row: Row, column: str, label: str, colour: Any) -> None:
    """Mean over the seeds and their range, of those that logged the column."""
    series = [
        run.metrics.set_index("epoch")[column].dropna() for run in row.runs if column in run.metrics
    ]
    if series:
        curve = pd.concat(series, axis=1)
        epochs = curve.index + 1
        axis.plot(epochs, curve.mean(axis=1), label=label, color=colour)
        axis.fill_between(epochs, curve.min(axis=1), curve.max(axis=1), color=colour, alpha=0.15)


def losses_figure(table: Table) -> Figure | None:
    """What each method logs of its loss, a panel for each row: scales and terms are its own."""
    terms = [loss_terms(row.runs[0].metrics) for row in table.rows]
    shown = [(row, found) for row, found in zip(table.rows, terms, strict=True) if found]
    if not shown:
        return None
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.8 * lines))
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    for axis, (row, found) in zip(axes.flat, shown, strict=False):
        for place, (name, column) in enumerate(found.items()):
            _draw_band(axis, row, column, name, _colour(place))
        axis.set_title(row.label, fontsize="small")
        axis.set(xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    figure.tight_layout()
    return figure


def time_figure(table: Table) -> Figure | None:
    """The first measure against seconds of training, of runs in one session that had their machine
    to themselves; None where not two rows have such runs."""
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
    if sum(map(bool, points.values())) < 2:
        return None
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    for place, found in points.items():
        if found:
            seconds, values = zip(*found, strict=True)
            label = table.rows[place].label
            axis.plot(seconds, values, "o", alpha=0.7, color=_colour(place), label=label)
    axis.set(xlabel="training, s (runs alone on their machine)", ylabel=f"{measure}, top-1 (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.tight_layout()
    return figure


def figures_of(table: Table) -> dict[str, Figure]:
    """Name -> picture, of those that there is something to show of."""
    every = {
        "scores": scores_figure(table),
        "curves": curves_figure(table),
        "losses": losses_figure(table),
        "time": time_figure(table),
    }
    return {name: figure for name, figure in every.items() if figure is not None}


def _colour(place: int) -> Any:
    """Ten strong colours, then their light halves."""
    return matplotlib.colormaps["tab20"]((2 * place + place // 10) % 20)


def _save(figure: Figure, target: Path | io.StringIO, ending: str) -> None:
    """Without a date or random names: the same runs give the same file."""
    with matplotlib.rc_context({"svg.hashsalt": "solo-mim"}):
        figure.savefig(target, format=ending, dpi=120, bbox_inches="tight", metadata={"Date": None})


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # as paths, letters are half of the page
        _save(figure, text, "svg")
    return text.getvalue().split("?>\n", 1)[1].split("\n", 2)[2]  # without XML and DOCTYPE lines


def command_of(run: Run) -> str:
    """What repeats a run from the configuration that lies in its folder."""
    return shlex.join(
        [
            "solo-mim",
            "pretrain",
            "--config-path",
            str(run.folder.resolve()),
            "--config-name",
            "config",
        ]
    )


def page(tables: list[Table], problems: list[Problem], title: str) -> str:
    """One HTML page with everything in it: no network, no other file."""
    template = files("solo_mim.evaluation").joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    shown = []
    for table in tables:
        shown.append(
            {
                "title": table.title,
                "measures": table.measures,
                "split": table.split,
                "code": table.code,
                "rows": [_row_for_page(row) for row in table.rows],
                "pairs": table.pairs,
                "matrix": _matrix(table),
                "figures": [_svg(figure) for figure in figures_of(table).values()],
                "published": table.published,
                "diagnostics": {
                    "title": DIAGNOSTICS,
                    "names": table.diagnostics,
                    "rows": [
                        [row.label, *(_diagnostic(row, name) for name in table.diagnostics)]
                        for row in table.rows
                    ],
                },
                "source": PUBLISHED_SOURCE,
            }
        )
    runs = sum(len(row.runs) for table in tables for row in table.rows)
    return environment.from_string(template).render(
        title=title, runs=runs, tables=shown, problems=problems
    )


def _row_for_page(row: Row) -> dict[str, Any]:
    runs = []
    for run in row.runs:
        versions = run.result.get("versions", {})
        runs.append(
            {
                "seed": run.seed,
                "accuracies": [(measure, value) for measure, (_, value) in run.values().items()],
                "commit": run.result.get("commit") or "unknown",
                "code": run.code,
                "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
                "command": command_of(run),
                "evaluations": [str(evaluation.folder) for evaluation in run.evaluations],
                "embeddings": [_data_uri(picture) for picture in run.embeddings],
            }
        )
    return {
        "label": row.label,
        "seeds": row.seeds,
        "scores": row.scores,
        "verdict": row.verdict,
        "method": row.runs[0].result["method"],
        "runs": runs,
        "config": yaml.safe_dump(row.runs[0].config, sort_keys=False),
    }


def _data_uri(png: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}"


def _matrix(table: Table) -> list[dict[str, Any]]:
    tested: dict[tuple[int, int], Pair] = {}
    for pair in table.pairs:
        tested[pair.better, pair.worse] = tested[pair.worse, pair.better] = pair
    places = range(len(table.rows))
    return [
        {
            "label": row.label,
            "cells": [p_text(tested[i, j].p_holm) if (i, j) in tested else "" for j in places],
        }
        for i, row in enumerate(table.rows)
    ]


def _plain(tables: list[Table], problems: list[Problem]) -> dict[str, Any]:
    """All numbers, for programs."""
    shown = []
    for table in tables:
        pairs = [
            {"better": p.better + 1, "worse": p.worse + 1, "p_holm": p.p_holm}
            | p.difference._asdict()
            for p in table.pairs
        ]
        shown.append(
            {
                "title": table.title,
                "split": table.split,
                "rows": as_records(table),
                "pairs": pairs,
            }
        )
    reasons = [{"folder": str(p.folder), "reason": p.reason} for p in problems]
    return {"tables": shown, "problems": reasons}


def write_all(
    tables: list[Table],
    problems: list[Problem],
    output: Path,
    title: str,
    write: Callable[[Path, str], None],
    with_latex: bool = False,
) -> list[Path]:
    """Every form of the report into a folder; the files that were written.

    Args:
        write: writes a text file whole or not at all.
    """
    output.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.md": f"# {title}\n\n{markdown(tables, problems)}",
        "report.csv": frame(tables).to_csv(index=False),
        "report.json": json.dumps(_plain(tables, problems), indent=1),
        "report.html": page(tables, problems, title),
    }
    if with_latex:
        texts["report.tex"] = "\n".join(map(latex, tables))
    for name, text in texts.items():
        write(output / name, text)
    written = [output / name for name in texts]
    for number, table in enumerate(tables, start=1):
        for kind, figure in figures_of(table).items():
            for ending in ("png", "svg"):
                path = output / f"{kind}-{number}.{ending}"
                _save(figure, path, ending)
                written.append(path)
    return written
