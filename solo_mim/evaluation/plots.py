"""Pictures of runs over epochs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LABELS = {
    "val_acc1": "online probe, top-1 (%)",
    "val_knn_acc1": "online kNN, top-1 (%)",
    "val_information_effective_rank": "effective rank of z",
}


def plot_curves(runs: Mapping[str, pd.DataFrame], path: Path, title: str = "") -> None:
    """A panel for each measured column of `LABELS`, a line for each run; of one run its losses too.

    Args:
        runs: label -> metrics with the column `epoch` and whatever was logged.
        path: picture to write; its ending gives the format. None is written of nothing.
        title: above the panels.
    """
    panels: list[tuple[str, dict[str, tuple[str, str]]]] = []  # y label, line -> run and column
    if len(runs) == 1:
        ((run, frame),) = runs.items()
        # What a method logs of its loss, by epoch; the probe's is another matter.
        terms = {
            column.removeprefix("train_").removesuffix("_epoch"): (run, column)
            for column in frame
            if column.endswith("_epoch") and "class_loss" not in column and "acc" not in column
        }
        panels += [("loss terms", terms)] if terms else []
    for column, label in LABELS.items():
        lines = {run: (run, column) for run, frame in runs.items() if column in frame}
        panels += [(label, lines)] if lines else []
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.6), squeeze=False)
    for axis, (label, lines) in zip(axes[0], panels, strict=True):
        for line, (run, column) in lines.items():
            points = runs[run][["epoch", column]].dropna()
            axis.plot(points["epoch"] + 1, points[column], marker=".", label=line)
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(fontsize="small")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
