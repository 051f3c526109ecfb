"""Pictures of runs: accuracy over epochs."""

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
}


def plot_accuracy_curves(runs: Mapping[str, pd.DataFrame], path: Path, title: str = "") -> None:
    """One panel for each online accuracy, one line for each run; nothing where none was measured.

    Args:
        runs: label -> metrics with the columns `epoch` and, where measured, `val_acc1`,
        `val_knn_acc1`.
        path: picture to write; its ending gives the format.
        title: above the panels.
    """
    present = [m for m in LABELS if any(m in frame for frame in runs.values())]
    if not present:
        return
    figure, panels = plt.subplots(1, len(present), figsize=(5 * len(present), 3.6), squeeze=False)
    for panel, metric in zip(panels[0], present, strict=True):
        for label, frame in runs.items():
            if metric in frame:
                points = frame[["epoch", metric]].dropna()
                panel.plot(points["epoch"] + 1, points[metric], marker=".", label=label)
        panel.set(xlabel="epoch", ylabel=LABELS[metric])
        panel.grid(alpha=0.3)
        if len(runs) > 1:
            panel.legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
