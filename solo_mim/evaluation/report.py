"""A comparison as Markdown, CSV, JSON, LaTeX, pictures and one page that needs no network."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Collection, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import pandas as pd
import yaml
from matplotlib.figure import Figure

from solo_mim.evaluation.compare import PUBLISHED_SOURCE, Row, Table, as_records, p_text
from solo_mim.evaluation.plots import LABELS, loss_terms, panels
from solo_mim.runs.collect import Problem, Run
from solo_mim.runs.files import write

DIAGNOSTICS = "Projected features z of held-out images, mean over seeds"


def markdown_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], text: Collection[str]
) -> str:
    """Columns are aligned to the right but for those whose heads are in `text`."""
    alignment = "|".join("---" if head in text else "---:" for head in heads)
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], f"|{alignment}|", *lines[1:]])


def markdown(tables: list[Table], problems: list[Problem]) -> str:
    """Every table, and what is not in one."""
    parts = []
    for table in tables:
        splits = "; ".join(f"{measure}: {split}" for measure, split in table.split.items())
        rows = [
            [row.label, str(len(row.seeds)), *(_cell(row, m) for m in table.measures), row.verdict]
            for row in table.rows
        ]
        for label, scores in table.published.items():
            cells = [f"{scores[m]:.2f}" if m in scores else "-" for m in table.measures]
            rows.append([label, "-", *cells, PUBLISHED_SOURCE])
        heads = ["row", "seeds", *table.measures, "verdict"]
        parts += [
            f"## {table.title}",
            "Top-1 in percent, mean ± standard deviation over seeds. "
            f"{splits}. Code: {table.code}.",
            markdown_table(heads, rows, ("row", "verdict")),
        ]
        if names := table.diagnostics:
            rows = [[row.label, *(_diagnostic(row, name) for name in names)] for row in table.rows]
            parts += [f"{DIAGNOSTICS}:", markdown_table(["row", *names], rows, ("row",))]
    if problems:
        reasons = [f"- `{problem.folder}`: {problem.reason}" for problem in problems]
        parts += ["## Not in the tables", "\n".join(reasons)]
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
    figure, axes = panels(count, 3.6 * count + 1.5, 0.35 * len(table.rows) + 1.4, sharey=True)
    for axis, measure in zip(axes, table.measures, strict=True):
        for place, row in enumerate(table.rows):
            if measure in row.scores:
                values = list(row.scores[measure].by_seed.values())
                axis.plot(values, [place] * len(values), "o", alpha=0.5, color=_colour(place))
                axis.plot(row.scores[measure].mean, place, "k|", markersize=14)
        axis.set(xlabel=f"{measure}, top-1 (%)")
        axis.grid(alpha=0.3, axis="x")
    axes[0].set_yticks(range(len(table.rows)), [row.label for row in table.rows])
    axes[0].invert_yaxis()
    return figure


def curves_figure(table: Table) -> Figure | None:
    """Mean over seeds and range of what was logged while training; None where nothing was."""
    columns = [c for c in LABELS if any(c in run.metrics for row in table.rows for run in row.runs)]
    if not columns:
        return None
    figure, axes = panels(len(columns), 4.8 * len(columns), 3.8)
    for axis, column in zip(axes, columns, strict=True):
        for place, row in enumerate(table.rows):
            _draw_band(axis, row, column, row.label, _colour(place))
        axis.set(xlabel="epoch", ylabel=LABELS[column])
        axis.grid(alpha=0.3)
    lines, labels = axes[0].get_legend_handles_labels()
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
    shown = [(row, terms) for row in table.rows if (terms := loss_terms(row.runs[0].metrics))]
    if not shown:
        return None
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = panels(columns, 3.6 * columns, 2.8 * lines, lines)
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis, (row, terms) in zip(axes, shown, strict=False):
        for place, (name, column) in enumerate(terms.items()):
            _draw_band(axis, row, column, name, _colour(place))
        axis.set_title(row.label, fontsize="small")
        axis.set(xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    return figure


def time_figure(table: Table) -> Figure | None:
    """The first measure against seconds of training, of runs in one session that had their machine
    to themselves; None where not two rows have such runs."""
    measure = table.measures[0]
    figure, (axis,) = panels(1, 6, 4)
    for place, row in enumerate(table.rows):
        points = [
            (run.result["training_seconds_of_last_sitting"], run.values()[measure][1])
            for run in row.runs
            if run.result.get("shared_machine") is False
            and len(run.provenance) == 1
            and not run.config.get("resume_from_checkpoint")
            and not run.result.get("start")
            and measure in run.values()
        ]
        if points:
            axis.plot(
                *zip(*points, strict=True), "o", alpha=0.7, color=_colour(place), label=row.label
            )
    if len(axis.lines) < 2:
        return None
    axis.set(xlabel="training, s (runs alone on their machine)", ylabel=f"{measure}, top-1 (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure


def figures_of(table: Table) -> dict[str, Figure]:
    """Name -> picture, of those that there is something to show of."""
    drawn = {
        "scores": scores_figure(table),
        "curves": curves_figure(table),
        "losses": losses_figure(table),
        "time": time_figure(table),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


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


def _command(run: Run) -> str:
    """What repeats a run from the configuration that lies in its folder."""
    place = ["--config-path", str(run.folder.resolve()), "--config-name", "config"]
    return shlex.join(["solo-mim", "pretrain", *place])


def _matrix(table: Table) -> list[list[str]]:
    """The p of each pair of rows."""
    cells = [[""] * len(table.rows) for _ in table.rows]
    for pair in table.pairs:
        cells[pair.better][pair.worse] = cells[pair.worse][pair.better] = p_text(pair.p_holm)
    return cells


def _data_uri(png: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}"


def page(tables: list[Table], problems: list[Problem], title: str) -> str:
    """One HTML page with everything in it: no network, no other file."""
    template = files("solo_mim.evaluation").joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=title,
        tables=tables,
        problems=problems,
        runs=sum(len(row.runs) for table in tables for row in table.rows),
        source=PUBLISHED_SOURCE,
        diagnostics_title=DIAGNOSTICS,
        diagnostic=_diagnostic,
        figures=lambda table: [_svg(figure) for figure in figures_of(table).values()],
        matrix=_matrix,
        command=_command,
        data_uri=_data_uri,
        yaml=lambda config: yaml.safe_dump(config, sort_keys=False),
    )


def _plain(table: Table) -> dict[str, Any]:
    """All numbers, for programs; rows are counted from 1."""
    pairs = [
        {"better": p.better + 1, "worse": p.worse + 1, "p_holm": p.p_holm, **p.difference._asdict()}
        for p in table.pairs
    ]
    return {"title": table.title, "split": table.split, "rows": as_records(table), "pairs": pairs}


def write_all(
    tables: list[Table], problems: list[Problem], output: Path, title: str, with_latex: bool
) -> list[Path]:
    """Every form of the report into a folder; the files that were written."""
    output.mkdir(parents=True, exist_ok=True)
    records = [{"table": table.title, **row} for table in tables for row in as_records(table)]
    reasons = [{"folder": str(p.folder), "reason": p.reason} for p in problems]
    content = {"tables": [_plain(table) for table in tables], "problems": reasons}
    texts = {
        "report.md": f"# {title}\n\n{markdown(tables, problems)}",
        "report.csv": pd.DataFrame(records).to_csv(index=False),
        "report.json": json.dumps(content, indent=1),
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
                written.append(output / f"{kind}-{number}.{ending}")
                _save(figure, written[-1], ending)
    return written
