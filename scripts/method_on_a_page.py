"""The method on a page, as pictures: `python scripts/method_on_a_page.py [--output docs/results]`.

1. Mutual information of Gaussian views of known information: plug-in estimate, less its bias, and
   truth, at three sample sizes; and of their cubes, which are homeomorphic and so have the same
   information, before and after a Gaussian copula brings them back (Theorem 1).
2. The bound and its assumption: J of Gaussian views of known information behind an invertible
   network that is trained to raise it, without and with the term `gaussianity`.
3. Collapse and its cure: three short runs on photo_patches, `two_view` with floors that reward
   collapse, with the default floors, and `infomax`, both readings with the full W.
4. Canonical correlations of the views of held-out images in two of these runs, over training.

Twenty minutes on two cores. Runs go to runs/page; finished ones are skipped.
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
from scipy.linalg import eigvalsh
from torch import nn

from solo_mim import trained as networks
from solo_mim.data import SSLDataModule
from solo_mim.evaluation.diagnostics import MAX_IMAGES, project_views
from solo_mim.information import (
    gaussian_copula,
    mutual_information,
    small_sample_bias,
    view_information,
)
from solo_mim.losses import explicit_mim_loss_func, non_gaussianity
from solo_mim.losses.statistics import view_covariances

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DIM, SIZES = 16, (64, 256, 4096)
RUNS = {
    "two_view, floors 3": ("reading=two_view", "total_noise=3.0", "within_noise=3.0"),
    "two_view": ("reading=two_view",),
    "infomax": ("within=full",),
}
# Four coordinates that views share and four that they hardly do.
CORRELATIONS = torch.tensor([0.95] * 4 + [0.1] * 4)
WEIGHTS = (0, 1, 3, 10)


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


class Coupling(nn.Module):
    """An affine coupling layer (arXiv 1605.08803): half of the coordinates, scaled and shifted by a
    function of the other half. Invertible whatever its weights are; the identity at first."""

    def __init__(self, dim: int, second_half: bool, width: int = 64) -> None:
        super().__init__()
        self.second_half = second_half
        self.net = nn.Sequential(
            *(nn.Linear(dim // 2, width), nn.GELU()),
            *(nn.Linear(width, width), nn.GELU()),
            nn.Linear(width, dim),
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, moved = reversed(x.chunk(2, 1)) if self.second_half else x.chunk(2, 1)
        scale, shift = self.net(kept).chunk(2, 1)
        moved = moved * (2 * torch.tanh(scale / 2)).exp() + shift
        return torch.cat((moved, kept) if self.second_half else (kept, moved), 1)


def pushed(weight: float, steps: int, batch: int = 512) -> pd.DataFrame:
    """J, in nats, and the distance from a Gaussian of 20,000 held-out pairs of views, while an
    invertible network of four layers is trained on J with the weight `gaussianity`."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    def draw(samples: int, generator: torch.Generator) -> torch.Tensor:
        shared, *own = torch.randn(3, samples, len(CORRELATIONS), generator=generator)
        return torch.stack(
            [CORRELATIONS.sqrt() * shared + (1 - CORRELATIONS).sqrt() * noise for noise in own]
        )

    network = nn.Sequential(*(Coupling(len(CORRELATIONS), i % 2 == 1) for i in range(4)))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    held_out = draw(20_000, torch.Generator().manual_seed(1))
    rows = []
    for step in range(steps + 1):
        if step % 100 == 0:
            with torch.no_grad():
                z = torch.stack([network(view) for view in held_out])
            information = view_information(z, noise=0.0)
            distance = non_gaussianity(z[0, :4096], num_slices=256)
            rows.append((step, float(information), float(distance)))
        loss = explicit_mim_loss_func(
            *(network(view) for view in draw(batch, generator)),
            within="full",
            within_noise=0.01,
            gaussianity=weight,
            seed=step,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return pd.DataFrame(rows, columns=["step", "nats", "non_gaussianity"])


def assumption(panels: list, steps: int) -> dict[str, list[float]]:
    """J beside the information, which no invertible network changes; the last of each weight."""
    known = float(-(1 - CORRELATIONS).log().sum() / 2)
    last = {}
    for weight in WEIGHTS:
        found = pushed(weight, steps)
        panels[0].plot(found["step"], found["nats"], label=f"gaussianity {weight}")
        panels[1].semilogy(found["step"], found["non_gaussianity"])
        last[f"gaussianity {weight}"] = found.iloc[-1, 1:].tolist()
    panels[0].axhline(known, color="k", linestyle=":", label="I(z; image)")
    panels[0].set(xlabel="step", ylabel="J, nats")
    panels[1].set(xlabel="step", ylabel="distance from a Gaussian")
    panels[0].legend()
    return {"known": [known], **last}


def canonical_correlations(checkpoint: Path) -> list[float]:
    """Of two views of held-out images, taken for exchangeable, the largest first."""
    network = networks.opened(checkpoint, [])
    views = SSLDataModule(network.recipe.plain).views_dataloader("val", max_images=MAX_IMAGES)
    z = project_views(networks.whole_model(network, 2, 0), views)
    assert z is not None
    covariances = view_covariances(list(z.double()), "standardise", None)
    return (1 - eigvalsh(covariances.within, covariances.total)).tolist()


def trained(label: str, options: tuple[str, ...], epochs: int, output: Path) -> Path:
    """The folder of a run on photo_patches."""
    name = "page-" + "-".join(part for part in label.replace(",", "").split())
    subprocess.run(
        [
            *(sys.executable, "-m", "solo_mim", "pretrain", f"name={name}", f"max_epochs={epochs}"),
            *(f"method_kwargs.{option}" for option in options),
            *("evaluation.information_every_n_epochs=1", "checkpoint.keep_prev=true"),
            f"output_dir={output}",
        ],
        check=True,
    )
    found = list(output.glob(f"{name}-seed*/result.json"))
    if len(found) != 1:
        raise SystemExit(f"{output} holds {len(found)} runs {name}: give another --runs")
    return found[0].parent


def main() -> None:
    """Draws the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1500, help="of the invertible networks")
    parser.add_argument("--runs", type=Path, default=Path("runs/page"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    figure, panels = plt.subplots(1, len(SIZES) + 1, figsize=(4.2 * (len(SIZES) + 1), 4))
    recovery(list(panels))
    figure.tight_layout()
    figure.savefig(arguments.output / "recovery.png", dpi=100)

    figure, panels = plt.subplots(1, 2, figsize=(9, 4))
    found = assumption(list(panels), arguments.steps)
    figure.tight_layout()
    figure.savefig(arguments.output / "assumption.png", dpi=100)
    (arguments.output / "assumption.json").write_text(json.dumps(found, indent=1) + "\n")

    columns = {
        "val_information_effective_rank": "effective rank of z",
        "val_information_infomax": "Gaussian I(z; image), nats",
        "val_knn_acc1": "online kNN, top-1 (%)",
    }
    figure, panels = plt.subplots(1, len(columns), figsize=(4.6 * len(columns), 4))
    kept = ("seed", "epochs", "offline", "information", "versions", "commit")
    results: dict[str, dict] = {}
    runs = {}
    for label, options in RUNS.items():
        runs[label] = run = trained(label, options, arguments.epochs, arguments.runs)
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

    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    for panel, label in zip(panels, ("two_view", "infomax"), strict=True):
        for epoch in sorted({1, 2, arguments.epochs // 2, arguments.epochs}):
            checkpoint = runs[label] / "checkpoints" / f"epoch={epoch - 1}.ckpt"
            correlations = canonical_correlations(checkpoint)
            panel.plot(range(1, len(correlations) + 1), correlations, label=f"epoch {epoch}")
            results[label][f"canonical correlations, epoch {epoch}"] = correlations
        panel.set(title=label, xlabel="direction", ylabel="canonical correlation of views")
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(arguments.output / "correlations.png", dpi=100)
    (arguments.output / "collapse.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
