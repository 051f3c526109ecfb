"""A comparison as Markdown, CSV, JSON, LaTeX, pictures and one page that needs no network."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from solo_mim.evaluation.compare import (
    PUBLISHED_SOURCE,
    REFERENCE,
    Row,
    Score,
    Table,
    as_records,
    p_text,
)
from solo_mim.evaluation.pictures import CAPTIONS, colour, figures_of, panels_of, save, svg
from solo_mim.runs.collect import TRANSFER, Problem, Run
from solo_mim.runs.files import write

DIAGNOSTICS = "Projected features z of held-out images, mean over seeds"
MISSING = "Expected, and without a finished run"
NO_FIGURE = "Not in the tables"


def markdown_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], text: Collection[str]
) -> str:
    """Columns are aligned to the right but for those whose heads are in `text`."""
    alignment = "|".join("---" if head in text else "---:" for head in heads)
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], f"|{alignment}|", *lines[1:]])


def markdown(
    tables: list[Table],
    problems: list[Problem],
    all_measures: bool = False,
    missing: Sequence[str] = (),
) -> str:
    """Every table, and what is not in one."""
    parts = []
    for table in tables:
        shown = table.shown(all_measures)
        about = ". ".join(f"{name}: {text}" for name, text in table.facts.items())
        about = f"{about}. Code: {table.code}."
        heads = ["row", "seeds", *shown, "verdict"]
        said = " ".join(filter(None, [_top1(table, all_measures), table.cite, table.certainty]))
        cells = markdown_table(heads, _cells(table, shown), ("row", "verdict"))
        parts += [f"## {table.title}", about, said, cells]
        hidden = [m for m in table.measures if m not in shown]
        hidden += ["published rows"] if table.published_in(shown) != table.published else []
        # Of the many figures on another data set, the first words of their names.
        named = dict.fromkeys(m.split(",")[0] if m.startswith(TRANSFER) else m for m in hidden)
        parts += [f"Not shown (`--all-measures`): {', '.join(named)}."] if named else []
        if names := table.diagnostics:
            rows = [[row.label, *(_diagnostic(row, name) for name in names)] for row in table.rows]
            parts += [f"{DIAGNOSTICS}:", markdown_table(["row", *names], rows, ("row",))]
    if missing:
        parts += [f"## {MISSING}", "\n".join(f"- {one}" for one in missing)]
    if problems:
        reasons = [f"- `{problem.folder}`: {problem.reason}" for problem in problems]
        parts += [f"## {NO_FIGURE}", "\n".join(reasons)]
    return "\n\n".join(parts) + "\n"


def _top1(table: Table, all_measures: bool) -> str:
    """What the numbers are; of all measures also of which images."""
    splits = "; ".join(f"{measure}: {split}" for measure, split in table.split.items())
    said = "Top-1 in percent, mean ± standard deviation over seeds"
    return f"{said} ({splits})." if all_measures and splits else f"{said}."


def _cells(table: Table, measures: list[str]) -> list[list[str]]:
    """Rows, references and published rows in Markdown."""
    found = []
    for row in table.rows:
        figures = [_cell(row, m) for m in measures]
        if row.leading:
            figures[0] = f"**{figures[0]}**"
        found.append([row.label, str(len(row.seeds)), *figures, row.verdict])
    for reference in table.references:
        figures = [_figure(reference.scores.get(m)) for m in measures]
        found.append([f"*{reference.label}*", str(reference.seeds or "-"), *figures, REFERENCE])
    for label, scores in table.published_in(measures).items():
        figures = [f"{scores[m]:.2f}" if m in scores else "-" for m in measures]
        found.append([label, "-", *figures, PUBLISHED_SOURCE])
    return found


def _cell(row: Row, measure: str) -> str:
    score = row.scores.get(measure)
    return _figure(score) + (_of_fewer(score, row) if score else "")


def _of_fewer(score: Score, row: Row) -> str:
    """How many of a row's seeds a mean is of, where these are not all."""
    return f" (n = {len(score.by_seed)})" if len(score.by_seed) < len(row.seeds) else ""


def _figure(score: Score | None) -> str:
    if score is None:
        return "-"
    spread = "" if score.deviation is None else f" ± {score.deviation:.2f}"
    return f"{score.mean:.2f}{spread}"


def _diagnostic(row: Row, name: str) -> str:
    score = row.diagnostics.get(name)
    return f"{score.mean:.4g}{_of_fewer(score, row)}" if score else "-"


def latex(table: Table, all_measures: bool = False) -> str:
    """A booktabs table with a caption that says what is bold and what was tested."""
    shown = table.shown(all_measures)
    about = "; ".join(f"{name.lower()}: {text}" for name, text in table.facts.items())
    caption = [f"{table.title} ({about}).", _top1(table, all_measures), table.certainty]
    if any(row.leading for row in table.rows):
        caption.append("p: of that test against the first row.")
    if table.references:
        caption.append("What stands below the second line is a reference and not ranked.")
    said = _escaped(" ".join(filter(None, caption))).replace("±", r"$\pm$")
    name = re.sub("[^a-z0-9]+", "-", table.title.lower()).strip("-")
    # A long label goes in lines.
    first = "l" if max(len(row.label) for row in table.rows) < 40 else r"p{0.4\linewidth}"
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{said}}}",
            rf"\label{{tab:{name}}}",
            rf"\begin{{tabular}}{{{first}r{'r' * len(shown)}r}}",
            r"\toprule",
            " & ".join(map(_escaped, ["method", "seeds", *shown, "p"])) + r" \\",
            r"\midrule",
            *_tex_lines(table, shown),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex_lines(table: Table, measures: list[str]) -> list[str]:
    """Rows and references; p is that of a row against the first."""
    p = {pair.worse: p_text(pair.p_holm) for pair in table.pairs if pair.better == 0}
    lines = []
    for place, row in enumerate(table.rows):
        figures = [_in_tex(_cell(row, m)) for m in measures]
        if row.leading:
            figures[0] = rf"\textbf{{{figures[0]}}}"
        certain = p.get(place, "--").replace("<", "$<$")
        lines.append([_escaped(row.label), str(len(row.seeds)), *figures, certain])
    for one in table.references:
        figures = [_in_tex(_figure(one.scores.get(m))) for m in measures]
        lines.append([_escaped(one.label), str(one.seeds or "--"), *figures, "--"])
    found = [" & ".join(cells) + r" \\" for cells in lines]
    if table.references:
        found.insert(len(table.rows), r"\midrule")
    return found


def _in_tex(cell: str) -> str:
    return cell.replace("±", r"$\pm$").replace("-", "--")


def _escaped(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    named["\u2013"] = "--"
    return "".join(named.get(c, f"\\{c}" if c in "_%&#${}" else c) for c in text)


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


def page(
    tables: list[Table], problems: list[Problem], title: str, missing: Sequence[str] = ()
) -> str:
    """One HTML page with everything in it: no network, no other file."""
    template = files("solo_mim.evaluation").joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        title=title,
        tables=tables,
        problems=problems,
        missing=missing,
        words={"missing": MISSING, "no_figure": NO_FIGURE, "diagnostics": DIAGNOSTICS},
        runs=sum(len(row.runs) for table in tables for row in table.rows),
        source=PUBLISHED_SOURCE,
        reference=REFERENCE,
        top1=_top1,
        diagnostic=_diagnostic,
        pictures=lambda table: {k: list(map(svg, of)) for k, of in panels_of(table).items()},
        captions=CAPTIONS,
        colour=colour,
        matrix=_matrix,
        command=_command,
        base64=lambda png: base64.b64encode(png.read_bytes()).decode(),
        yaml=lambda config: yaml.safe_dump(config, sort_keys=False),
    )


def _plain(table: Table) -> dict[str, Any]:
    """All numbers, for programs; rows are counted from 1."""
    pairs = [
        {"better": p.better + 1, "worse": p.worse + 1, "p_holm": p.p_holm, **p.difference._asdict()}
        for p in table.pairs
    ]
    references: list[dict[str, Any]] = []
    for one in table.references:
        means = {measure: score.mean for measure, score in one.scores.items()}
        deviations = {f"{measure} sd": score.deviation for measure, score in one.scores.items()}
        references.append({"label": one.label, "seeds": one.seeds, **means, **deviations})
    found = {"title": table.title, "facts": table.facts, "split": table.split, "main": table.main}
    return {**found, "rows": as_records(table), "references": references, "pairs": pairs}


def write_all(
    tables: list[Table],
    problems: list[Problem],
    output: Path,
    title: str,
    with_latex: bool,
    all_measures: bool = False,
    missing: Sequence[str] = (),
) -> list[Path]:
    """Every form of the report into a folder; the files that were written."""
    output.mkdir(parents=True, exist_ok=True)
    records = [{"table": table.title, **row} for table in tables for row in as_records(table)]
    reasons = [{"folder": str(p.folder), "reason": p.reason} for p in problems]
    content = {
        **{"tables": [_plain(table) for table in tables], "problems": reasons},
        "missing": list(missing),
    }
    texts = {
        "report.md": f"# {title}\n\n{markdown(tables, problems, all_measures, missing)}",
        "report.csv": pd.DataFrame(records).to_csv(index=False),
        "report.json": json.dumps(content, indent=1),
        "report.html": page(tables, problems, title, missing),
    }
    if with_latex:
        texts["report.tex"] = "\n".join(latex(table, all_measures) for table in tables)
    for name, text in texts.items():
        write(output / name, text)
    written = [output / name for name in texts]
    for number, table in enumerate(tables, start=1):
        for kind, figure in figures_of(table).items():
            for ending in ("png", "svg"):
                written.append(output / f"{kind}-{number}.{ending}")
                save(figure, written[-1], ending, bbox_inches="tight")
    return written
