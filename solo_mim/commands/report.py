"""`solo-mim report`: finished runs as ranked tables, pictures and one page."""

from __future__ import annotations

import argparse
from pathlib import Path

from solo_mim.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="solo-mim report",
        description="Tables of the finished runs below folders: mean and deviation over seeds, "
        "ranking, pairwise significance; as Markdown, CSV, JSON, PNG, SVG, and one HTML page "
        "without network. Runs on other images stand in tables of their own; what is not "
        "finished or broken is listed with its reason.",
        epilog="example: solo-mim report runs --latex --expect method=vicreg,simclr seed=1,2,3",
    )
    parser.add_argument("folder", type=Path, nargs="+", help="of runs at any depth, or a run's")
    parser.add_argument("--output", type=Path, help="FOLDER/report, of several: report")
    parser.add_argument("--title", default="Head to head")
    parser.add_argument("--latex", action="store_true", help="also booktabs tables, report.tex")
    parser.add_argument(
        "--all-measures",
        action="store_true",
        help="in Markdown and LaTeX every measure, and published rows; the page has them anyway",
    )
    parser.add_argument(
        "--expect",
        nargs="+",
        default=[],
        metavar="KEY=VALUES",
        help="the words of a sweep, as method=vicreg,simclr seed=1,2; a name alone is a method's. "
        "Combinations without a finished run are named",
    )
    return parser


def run(arguments: list[str]) -> None:
    given = parser().parse_args(arguments)
    folders = [folder for folder in given.folder if not folder.is_file()]  # logs lie beside runs
    for folder in folders or given.folder:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder")
    from solo_mim.evaluation.compare import tables
    from solo_mim.evaluation.report import markdown, write_all
    from solo_mim.runs.collect import collect, missing

    runs, problems = collect(*folders)
    first, *others = folders
    if not runs and not problems:
        where = " and ".join(map(str, folders))
        raise ConfigError(f"no run in {where}; `solo-mim pretrain output_dir={first}` makes some")
    absent = missing(given.expect, runs) if given.expect else []
    found, everything = tables(runs), given.all_measures
    print(markdown(found, problems, everything, absent))
    output = given.output or (Path("report") if others else first / "report")
    try:
        written = write_all(found, problems, output, given.title, given.latex, everything, absent)
    except OSError as error:
        reason = f"{output} cannot be written ({error.strerror})"
        raise ConfigError(f"--output: {reason}; name another folder") from error
    print(f"written: {output}/{', '.join(path.name for path in written)}")
