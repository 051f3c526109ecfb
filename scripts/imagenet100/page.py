"""campaign.md: every method and seed with its state, and the figures beside the published ones."""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from campaign import EPOCHS, Campaign, Job, State

IMAGES = 5_000  # of validation
LINEAR = "linear layer on augmented images"
# Column -> what a measure begins with; the first ranks.
_SHOWN = {"linear": LINEAR, "online probe": "online probe", "kNN": "kNN, cosine"}


def standard_error(top1: float, images: int = IMAGES) -> float:
    """Of an accuracy in percent, of images drawn at random."""
    share = top1 / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def explained(difference: float, top1: float) -> str:
    """Whether one standard error of the images explains a difference from an accuracy, in words."""
    error = standard_error(top1)
    if abs(difference) <= error:
        return f"within one standard error ({error:.2f})"
    return f"{abs(difference) / error:.1f} standard errors ({error:.2f})" if error else "beyond"


def place(campaign: Campaign) -> Path:
    """Where the page lies."""
    return campaign.output / "report" / "campaign.md"


def any_run(campaign: Campaign) -> bool:
    """Whether `solo-mim report` would find one."""
    from solo_mim.runs import files

    return any(campaign.output.rglob(files.CONFIGURATION))


def write(campaign: Campaign) -> None:
    """Writes the page.

    Raises:
        OSError: it cannot be written.
    """
    from solo_mim.runs import files

    path = place(campaign)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, text(campaign))


def text(campaign: Campaign) -> str:
    """The page."""
    states = {job: campaign.state(job) for job in _all_jobs(campaign)}
    done = sum(state.word == "finished" for state in states.values())
    parts = [
        "# ImageNet-100: the campaign",
        f"{done} of {len(states)} jobs are finished. A state is that of the folders when this was "
        "written; the same command goes on with what is not finished.",
        _states(states),
        *_reasons(states),
        "## Figures",
        *_figures(campaign, states),
    ]
    return "\n\n".join(parts) + "\n"


def _all_jobs(campaign: Campaign) -> list[Job]:
    """Of each method and seed all three, whichever stages this call is of."""
    stages = ("pretrain", "linear", "knn")
    return [Job(s, m, seed) for m in campaign.methods for seed in campaign.seeds for s in stages]


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines)


def _states(states: dict[Job, State]) -> str:
    rows: dict[tuple[str, int], list[str]] = defaultdict(list)
    for job, state in states.items():
        shown = str(state) if state.word in ("running", "stopped") else state.word
        rows[job.method, job.seed].append(shown)
    heads = ["method", "seed", "pretrain", "linear", "knn"]
    return _table(heads, [[method, str(seed), *cells] for (method, seed), cells in rows.items()])


def _reasons(states: dict[Job, State]) -> list[str]:
    bad = {job: state for job, state in states.items() if state.word in ("failed", "damaged")}
    lines = [f"- {job.name}: {state.said}" for job, state in bad.items()]
    return ["## What went wrong", "\n".join(lines)] if lines else []


def scores(states: dict[Job, State]) -> dict[str, dict[str, dict[int, float]]]:
    """Method -> column -> seed -> top-1 in percent, of the finished pre-trainings."""
    from solo_mim.runs.collect import collect

    folders = {}
    for job, state in states.items():
        if job.stage == "pretrain" and state.word == "finished" and state.folder:
            folders[state.folder.resolve()] = job
    runs, _ = collect(*folders)
    found: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        job = folders[run.folder.resolve()]
        columns = found.setdefault(job.method, {})
        for measure, (_, top1) in run.values().items():
            for column, beginning in _SHOWN.items():
                if measure.startswith(beginning):
                    columns.setdefault(column, {})[job.seed] = top1
    return found


def published() -> dict[str, dict[str, float]]:
    """Method -> column -> top-1 in percent of solo-learn's README."""
    rows: dict[str, dict[str, float]] = {}
    with resources("solo_mim.evaluation").joinpath("published.csv").open() as file:
        for line in csv.DictReader(file):
            of = (line["data"], line["backbone"], line["epochs"])
            if of == ("imagenet100", "resnet18", str(EPOCHS)):
                rows.setdefault(line["method"], {})[line["measure"]] = float(line["top1"])
    return rows


def _full_length(campaign: Campaign) -> bool:
    """Whether the published rows are of the same protocol: no key of it is set otherwise."""
    free = ("data.num_workers", "data.on_corrupt", "checkpoint.", "wandb.", "tensorboard.")
    return not campaign.toy and all(setting.startswith(free) for setting in campaign.settings)


def _figures(campaign: Campaign, states: dict[Job, State]) -> list[str]:
    found, theirs = scores(states), published()
    if not found:
        return ["No pre-training is finished."]
    ranked = sorted(found, key=lambda m: -_mean(found[m].get("linear", {}), -1.0))
    best, same = _mean(found[ranked[0]].get("linear", {})), _full_length(campaign)
    rows = [_row(method, found[method], theirs.get(method, {}), best, same) for method in ranked]
    heads = ["method", *_SHOWN, "behind the first, linear"]
    heads += [f"published: {column}" for column in ("linear", "online probe")]
    heads += [f"ours minus it: {column}" for column in ("linear", "online probe")]
    others = [method for method in theirs if method not in found]
    rows += [_absent(method, theirs[method]) for method in others]
    parts = [
        "Top-1 in percent on the validation images, mean ± standard deviation over seeds where "
        "there are several, ranked by the linear layer. Published: solo-learn's README, one seed.",
        _table(heads, rows),
        f"A standard error is that of one figure on {IMAGES:,} images drawn at random, which more "
        "seeds do not lower. A difference beyond it may still be the seeds': their spread is "
        "beside it, and report.md tests what two or more of them share.",
    ]
    if not same:
        said = "These runs are of another protocol (--toy, or --set) than the published ones"
        parts.insert(0, f"{said}: a difference from them would say nothing.")
    return parts


def _mean(by_seed: dict[int, float], otherwise: float = math.nan) -> float:
    return statistics.fmean(by_seed.values()) if by_seed else otherwise


def _cell(by_seed: dict[int, float]) -> str:
    if not by_seed:
        return "-"
    values = list(by_seed.values())
    spread = f" ± {statistics.stdev(values):.2f} (n = {len(values)})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _row(
    method: str,
    ours: dict[str, dict[int, float]],
    theirs: dict[str, float],
    best: float,
    same_protocol: bool,
) -> list[str]:
    linear = _mean(ours.get("linear", {}))
    behind = "-" if math.isnan(linear) else _difference(best, linear) if best != linear else "first"
    cells = [method, *(_cell(ours.get(column, {})) for column in _SHOWN), behind]
    measured = {column: _mean(ours.get(column, {})) for column in ("linear", "online probe")}
    cells += [f"{theirs[column]:.2f}" if column in theirs else "-" for column in measured]
    for column, value in measured.items():
        known = same_protocol and column in theirs and not math.isnan(value)
        cells.append(_difference(value, theirs[column]) if known else "-")
    return cells


def _difference(value: float, other: float) -> str:
    return f"{value - other:+.2f}, {explained(value - other, other)}"


def _absent(method: str, theirs: dict[str, Any]) -> list[str]:
    cells = [f"{theirs[c]:.2f}" if c in theirs else "-" for c in ("linear", "online probe")]
    return [f"{method} (published, not run here)", *["-"] * (len(_SHOWN) + 1), *cells, "-", "-"]
