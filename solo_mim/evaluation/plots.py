"""Pictures of runs over epochs, and of embeddings.

Without pyplot, whose backend and open figures are those of whoever imports this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

_ROUND_OFF = 1e-14  # of features in 32 bits, squared
LABELS = {
    "val_acc1": "online probe, top-1 (%)",
    "val_knn_acc1": "online kNN, top-1 (%)",
    "val_information_effective_rank": "effective rank of z",
}


def panels(
    count: int, width: float, height: float, lines: int = 1, sharey: bool = False
) -> tuple[Figure, list[Any]]:
    """A figure of so many inches with so many axes in each line, and the axes."""
    figure = Figure(figsize=(width, height), layout="tight")
    return figure, list(figure.subplots(lines, count, squeeze=False, sharey=sharey).flat)


def loss_terms(metrics: pd.DataFrame) -> dict[str, str]:
    """Name -> column of what a method logs of its loss, by epoch; the probe's is another matter."""
    others = ("class_loss", "acc", "n_positives")
    return {
        column.removeprefix("train_").removesuffix("_epoch"): column
        for column in metrics
        if column.endswith("_epoch") and not any(other in column for other in others)
    }


def plot_curves(metrics: pd.DataFrame, path: Path | IO[bytes], title: str = "") -> None:
    """A panel of the loss terms, and one for each measured column of `LABELS`.

    Args:
        metrics: of one run, with the column `epoch` and whatever was logged.
        path: picture to write; its ending gives the format, which is PNG of an open file. None is
            written of nothing.
    """
    terms = loss_terms(metrics)
    shown = {"loss terms": terms} if terms else {}  # y label -> line -> column
    shown |= {label: {label: name} for name, label in LABELS.items() if name in metrics}
    if not shown:
        return
    figure, axes = panels(len(shown), 4.6 * len(shown), 3.6)
    for axis, (label, lines) in zip(axes, shown.items(), strict=True):
        for line, column in lines.items():
            points = metrics[["epoch", column]].dropna()
            axis.plot(points["epoch"] + 1, points[column], marker=".", label=line)
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def plot_planes(
    planes: Mapping[str, tuple[np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    path: Path,
    title: str = "",
) -> None:
    """Points in planes, a panel each, coloured by class.

    Args:
        planes: label -> N x 2 points and their N classes, -1 of none.
        class_names: of the classes from 0 on; up to twenty are named.
        path: as in `plot_curves`.
    """
    figure, axes = panels(len(planes), 5 * len(planes), 4.6)
    colours = matplotlib.colormaps["tab20" if len(class_names) <= 20 else "nipy_spectral"]
    for axis, (label, (points, targets)) in zip(axes, planes.items(), strict=True):
        for number in np.unique(targets):
            chosen = points[targets == number]
            colour = "lightgrey" if number < 0 else colours(number / max(1, len(class_names) - 1))
            name = "no label" if number < 0 else class_names[number]
            axis.scatter(*chosen.T, s=4, linewidths=0, color=colour, label=name)
        axis.set(title=label, xticks=[], yticks=[])
    if len(class_names) <= 20:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="center right", fontsize="x-small", markerscale=3)
        figure.set_layout_engine("tight", rect=(0, 0, 0.86, 1))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def plot_spectra(spectra: Mapping[str, np.ndarray], path: Path, title: str = "") -> None:
    """Falling eigenvalues on a logarithmic scale, each as a share of the first, a line for each.

    Args:
        spectra: label -> eigenvalues; those of round-off are left out.
        path: as in `plot_curves`.
    """
    figure, (axis,) = panels(1, 5.4, 4)
    for label, values in spectra.items():
        positive = values[values > _ROUND_OFF * values.max()]
        if not len(positive):  # constant features
            continue
        axis.semilogy(np.arange(1, len(positive) + 1), positive / positive.max(), label=label)
    axis.set(xlabel="dimension", ylabel="eigenvalue of the covariance, first = 1")
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
