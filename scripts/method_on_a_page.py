"""The method on a page, as pictures: `python scripts/method_on_a_page.py [--output docs/results]`.

1. Mutual information of Gaussian views of known information: plug-in estimate, less its bias, and
   truth, at three sample sizes; and of their cubes, which are homeomorphic and so have the same
   information, before and after a Gaussian copula brings them back (Theorem 1).
2. Collapse and its cure: three short runs on photo_patches, `two_view` with floors that reward
   collapse, with the default floors, and `infomax`.

Ten minutes on two cores. Runs go to runs/page; finished ones are skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import torch

from solo_mim.information import (
    gaussian_copula,
    mutual_information,
    small_sample_bias,
    view_information,
)

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DIM, SIZES = 16, (64, 256, 4096)
RUNS = {
    "two_view, floors 3": ("reading=two_view", "total_noise=3.0", "within_noise=3.0"),
    "two_view": ("reading=two_view",),
    "infomax": (),
}


def gaussian_views(correlation: float, samples: int, seed: int) -> torch.Tensor:
    """Two views, samples x DIM each, of unit variance and the same correlation everywhere."""
    generator = torch.Generator().manual_seed(seed)
    shared, *own = torch.randn(3, samples, DIM, generator=generator).double()
    return torch.stack(
        [math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * noise for noise in own]
    )


def recovery(panels: list) -> None:
    """Estimates against the truth, -D/2 log(1 - rho^2), at each sample size, and of cubes."""
    truths = torch.linspace(0, 20, 21)
    correlations = (1 - (-2 * truths / DIM).exp()).sqrt().tolist()
    for panel, samples in zip(panels, SIZES, strict=False):
        views = [gaussian_views(rho, samples, seed) for seed, rho in enumerate(correlations)]
        plugin = torch.stack([view_information(pair, "two_view", noise=0.0) for pair in views])
        bias = small_sample_bias(samples, DIM, reading="two_view")
        panel.plot(truths, truths, "k:", label="truth")
        panel.plot(truths, plugin, ".", label="plug-in")
        panel.plot(truths, plugin - bias, ".", label=f"less its bias, {bias:.2f} nats")
        panel.set(title=f"N = {samples:,}", xlabel="true I(z; z'), nats", ylabel="estimate")
        panel.legend()
    cubes = [gaussian_views(rho, SIZES[-1], seed) ** 3 for seed, rho in enumerate(correlations)]
    before = [mutual_information(*pair) for pair in cubes]
    after = [mutual_information(*map(gaussian_copula, pair)) for pair in cubes]
    panels[-1].plot(truths, truths, "k:", label="truth")
    panels[-1].plot(truths, before, ".", label="plug-in on the cubes")
    panels[-1].plot(truths, after, ".", label="after a Gaussian copula")
    panels[-1].set(title=f"cubes, N = {SIZES[-1]:,}", xlabel="true I(z; z'), nats")
    panels[-1].legend()


def trained(label: str, options: tuple[str, ...], epochs: int, output: Path) -> Path:
    """The folder of a run on photo_patches."""
    name = "page-" + "-".join(part for part in label.replace(",", "").split())
    subprocess.run(
        [
            *(sys.executable, "-m", "solo_mim", "pretrain", f"name={name}", f"max_epochs={epochs}"),
            *(f"method_kwargs.{option}" for option in options),
            "evaluation.information_every_n_epochs=1",
            f"output_dir={output}",
        ],
        check=True,
    )
    found = list(output.glob(f"{name}-seed*/result.json"))
    if len(found) != 1:
        raise SystemExit(f"{output} holds {len(found)} runs {name}: give another --runs")
    return found[0].parent


def main() -> None:
    """Draws both pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--runs", type=Path, default=Path("runs/page"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    figure, panels = plt.subplots(1, len(SIZES) + 1, figsize=(4.2 * (len(SIZES) + 1), 4))
    recovery(list(panels))
    figure.tight_layout()
    figure.savefig(arguments.output / "recovery.png", dpi=100)

    columns = {
        "val_information_effective_rank": "effective rank of z",
        "val_information_infomax": "I(z; image) >=, nats",
        "val_knn_acc1": "online kNN, top-1 (%)",
    }
    figure, panels = plt.subplots(1, len(columns), figsize=(4.6 * len(columns), 4))
    kept = ("seed", "epochs", "offline", "information", "versions", "commit")
    results = {}
    for label, options in RUNS.items():
        run = trained(label, options, arguments.epochs, arguments.runs)
        result = json.loads((run / "result.json").read_text())
        results[label] = {key: result[key] for key in kept}
        metrics = pd.read_csv(run / "metrics.csv")
        for panel, column in zip(panels, columns, strict=True):
            if column in metrics:  # an information not told from chance is not logged
                panel.plot(metrics["epoch"] + 1, metrics[column], marker=".", label=label)
    for panel, title in zip(panels, columns.values(), strict=True):
        panel.set(xlabel="epoch", ylabel=title)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(arguments.output / "collapse.png", dpi=100)
    (arguments.output / "collapse.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
