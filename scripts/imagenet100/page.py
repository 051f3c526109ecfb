"""campaign.md: every method and seed with its state, and the figures beside the published ones."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from campaign import EPOCHS, Campaign, Job, State

IMAGES = 5_000  # of validation
# Column -> what a measure begins with; the first ranks.
_SHOWN = {"linear": "linear layer on augmented", "online probe": "online probe", "kNN": "kNN, cos"}
_PUBLISHED = ("linear", "online probe")
# Keys that make no other protocol.
_FREE = ("data.num_workers", "data.on_corrupt", "checkpoint.", "wandb.", "tensorboard.")
Figures = dict[str, Any]  # column -> Score
EXPLAINED = (
    "Top-1 in percent on the validation images, mean ± standard deviation over seeds where there "
    "are several, ranked by the linear layer. Published: solo-learn's README, one seed.",
    f"A standard error is that of one figure on {IMAGES:,} images drawn at random, which more "
    "seeds do not lower. A difference beyond it may still be the seeds': their spread is beside "
    "it, and report.md tests what two or more of them share.",
)


def explained(value: float, other: float, images: int = IMAGES) -> str:
    """A difference of two accuracies in percent, and whether one standard error of the second on
    so many images, drawn at random, explains it."""
    difference, error = value - other, math.sqrt(other * (100 - other) / images)
    if abs(difference) <= error:
        return f"{difference:+.2f}, within one standard error ({error:.2f})"
    times = f"{abs(difference) / error:.1f} standard errors" if error else "beyond a standard error"
    return f"{difference:+.2f}, {times} ({error:.2f})"


def place(campaign: Campaign) -> Path:
    """Where the page lies."""
    return campaign.output / "report" / "campaign.md"


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
    """The page: of each method and seed all three stages, whichever this call is of."""
    from solo_mim.evaluation.report import markdown_table

    stages = ("pretrain", "linear", "knn")
    of_all = [(method, seed) for method in campaign.methods for seed in campaign.seeds]
    states = {job: campaign.state(job) for of in of_all for job in (Job(s, *of) for s in stages)}
    done = sum(state.word == "finished" for state in states.values())
    rows: dict[tuple[str, int], list[str]] = defaultdict(list)
    for job, state in states.items():
        known = state.word in ("running", "stopped")
        rows[job.method, job.seed].append(str(state) if known else state.word)
    heads = ["method", "seed", *stages]
    cells = [[method, str(seed), *of] for (method, seed), of in rows.items()]
    figures, problems = _scores(states)
    wrong = [f"{j.name}: {s.said}" for j, s in states.items() if s.word in ("failed", "damaged")]
    wrong += [f"`{problem.folder}`: {problem.reason}" for problem in problems]
    parts = [
        "# ImageNet-100: the campaign",
        f"{done} of {len(states)} jobs are finished. A state is that of the folders when this was "
        "written; the same command goes on with what is not finished.",
        markdown_table(heads, cells, heads),
        *(["## What went wrong", "\n".join(f"- {one}" for one in wrong)] if wrong else []),
        "## Figures",
        *(_ranked(campaign, figures) if figures else ["No pre-training is finished."]),
    ]
    return "\n\n".join(parts) + "\n"


def _scores(states: dict[Job, State]) -> tuple[dict[str, Figures], list[Any]]:
    """The figures of each method that has a finished pre-training, and folders that give none."""
    from solo_mim.evaluation.compare import Score
    from solo_mim.runs.collect import collect

    folders = {}
    for job, state in states.items():
        if job.stage == "pretrain" and state.word == "finished" and state.folder:
            folders[state.folder.resolve()] = job
    runs, problems = collect(*folders)
    found: dict[str, Figures] = defaultdict(dict)
    for run in runs:
        job = folders[run.folder.resolve()]
        for measure, (_, top1) in run.values().items():
            for column, beginning in _SHOWN.items():
                if measure.startswith(beginning):
                    of = found[job.method].setdefault(column, Score({}))
                    of.by_seed[job.seed] = top1
    return found, problems


def _published() -> dict[str, dict[str, float]]:
    """Method -> column -> top-1 in percent, of the same network and length."""
    from solo_mim.evaluation.compare import published

    rows: dict[str, dict[str, float]] = defaultdict(dict)
    for line in published():
        of = (line["data"], line["backbone"], line["epochs"])
        if of == ("imagenet100", "resnet18", str(EPOCHS)):
            rows[line["method"]][line["measure"]] = float(line["top1"])
    return rows


def _ranked(campaign: Campaign, found: dict[str, Figures]) -> list[str]:
    """The table by the linear figure, the published rows below, and what the numbers are."""
    from solo_mim.evaluation.report import markdown_table

    theirs = _published()
    linear = {m: of["linear"].mean if "linear" in of else -1.0 for m, of in found.items()}
    ranked = sorted(found, key=lambda method: -linear[method])
    same = not campaign.toy and all(setting.startswith(_FREE) for setting in campaign.settings)
    rows = []
    for method in ranked:
        ours, known = found[method], theirs.get(method, {})
        behind = explained(linear[method], linear[ranked[0]]) if "linear" in ours else "-"
        cells = [_cell(ours.get(column)) for column in _SHOWN]
        cells += ["first" if behind != "-" and method == ranked[0] else behind]
        cells += [f"{known[column]:.2f}" if column in known else "-" for column in _PUBLISHED]
        for column in _PUBLISHED:
            both = same and column in ours and column in known
            cells.append(explained(ours[column].mean, known[column]) if both else "-")
        rows.append([method, *cells])
    for method, known in theirs.items():
        if method not in found:
            cells = [f"{known[column]:.2f}" if column in known else "-" for column in _PUBLISHED]
            none = ["-"] * (len(_SHOWN) + 1)
            rows.append([f"{method} (published, not run here)", *none, *cells, "-", "-"])
    heads = ["method", *_SHOWN, "less the first, linear"]
    heads += [f"{what}{column}" for what in ("published: ", "less it: ") for column in _PUBLISHED]
    other = "These runs are of another protocol (--toy, or --set) than the published ones: a "
    other += "difference from them would say nothing."
    first, last = EXPLAINED
    return [*([] if same else [other]), first, markdown_table(heads, rows, heads), last]


def _cell(score: Any) -> str:
    if score is None:
        return "-"
    n = len(score.by_seed)
    return f"{score.mean:.2f}" + (f" ± {score.deviation:.2f} (n = {n})" if n > 1 else "")
