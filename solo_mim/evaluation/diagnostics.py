"""The collapse watch: information and spectrum of the views of held-out images.

The information stands beside its bias and a baseline of no information.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from scipy import stats
from torch import Tensor

from solo_mim.information import (
    IMAGES_PER_DIMENSION,
    READINGS,
    HeldOutInformation,
    alpha_req,
    effective_rank,
    lidar,
    rankme,
    shuffled_information,
    small_sample_bias,
    total_spectrum,
    view_information,
)
from solo_mim.losses import NotPositiveDefiniteError, non_gaussianity

# Power of the noise channel on each standardised coordinate, the same for every method and run.
# Small beside unit variance, large beside fp64 round-off; the value caps what a perfectly invariant
# coordinate can count for, 1/2 log(1 + 1/eps) = 3.5 nats.
REFERENCE_NOISE = 1e-3
MAX_IMAGES = 4096
# Determinants of more cost longer than an epoch of a small data set, and so few images say nothing
# of them: DINO's z has 4096.
MAX_DIM = 2048
# z has collapsed where its effective rank is under this share of its dimensions.
COLLAPSED = 0.1
# Random directions along which z is compared with a Gaussian.
SLICES = 256


@torch.no_grad()
def project_views(model: LightningModule, loader: Iterable[Any]) -> Tensor | None:
    """Projected features of every view, V x N x D on the CPU.

    None for a method whose `forward` gives no `z`, or one of more than `MAX_DIM` dimensions, and of
    a single image.
    """
    was_training = model.training
    model.eval()
    batches = []
    for _, views, _ in loader:
        outputs = [model(x.to(model.device)) for x in views]
        if "z" not in outputs[0] or outputs[0]["z"].shape[1] > MAX_DIM:
            break
        batches.append(torch.stack([out["z"].float().cpu() for out in outputs]))
    model.train(was_training)
    views = torch.cat(batches, dim=1) if batches else None
    return None if views is None or views.shape[1] < 2 else views


def held_out_information(views: Tensor) -> HeldOutInformation:
    """Information of V x N x D projected features at the reference noise."""
    num_views, images, dim = views.shape
    numbers: dict[str, float] = {}
    for reading in READINGS:
        generator = torch.Generator().manual_seed(0)
        numbers[reading] = float(view_information(views, reading=reading, noise=REFERENCE_NOISE))
        numbers[f"{reading}_bias"] = float(
            small_sample_bias(images, dim, num_views=num_views, reading=reading)
        )
        numbers[f"{reading}_shuffled"] = float(
            shuffled_information(views, reading=reading, noise=REFERENCE_NOISE, generator=generator)
        )
    spectrum = total_spectrum(views)
    z = views.flatten(0, 1)
    return HeldOutInformation(
        **numbers,
        effective_rank=float(effective_rank(z)),
        eigenvalue_max=float(spectrum[0]),
        eigenvalue_min=float(spectrum[-1]),
        images=images,
        dimensions=dim,
        non_gaussianity=float(non_gaussianity(views[0], num_slices=SLICES)),
        radial_distance=_radial_distance(views[0]),
        rankme=float(rankme(z)),
        alpha_req=exponent(z),
        lidar=_lidar(views),
    )


def exponent(z: Tensor) -> float | None:
    """`alpha_req` of N x D samples; None of too few eigenvalues, for JSON has no nan."""
    alpha = float(alpha_req(z))
    return None if math.isnan(alpha) else alpha


def _lidar(views: Tensor) -> float | None:
    """None where the regulariser is round-off beside z, as where a network diverges."""
    try:
        return float(lidar(views))
    except NotPositiveDefiniteError:
        return None


def _radial_distance(z: Tensor) -> float | None:
    """Of N x D samples; None where they are few, or their covariance is singular."""
    if len(z) < IMAGES_PER_DIMENSION * z.shape[1]:
        return None
    z = z.double() - z.double().mean(0)
    factor, failed = torch.linalg.cholesky_ex(z.mT @ z / len(z))
    if failed:
        return None
    whitened = torch.linalg.solve_triangular(factor, z.mT, upper=False)
    norms = torch.linalg.vector_norm(whitened, dim=0).sort().values
    levels = (torch.arange(len(z), dtype=torch.float64) + 0.5) / len(z)
    expected = torch.from_numpy(stats.chi.ppf(levels.numpy(), z.shape[1]))
    return float((norms - expected).abs().mean())


class InformationCallback(Callback):
    """Logs `val_information_*` every few epochs, and warns, once, of a collapsed z.

    An information that is not told from chance is not logged; its bias and shuffled pairs are.

    The warning, that of a method that says what to do about it in `collapse_remedy`, comes where
    the effective rank is under a tenth of the dimension. A method that has no such attribute may
    live with a low rank, as VICReg does in 2048 dimensions.

    Args:
        loader: batches `[indexes, [views], targets]` of held-out images under training
            augmentation.
        every_n_epochs: 0 switches it off.
    """

    def __init__(self, loader: Iterable[Any], every_n_epochs: int):
        self.loader, self.every_n_epochs = loader, every_n_epochs
        self._measured: tuple[int, HeldOutInformation | None] | None = None  # after which update
        self._warned = False

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> HeldOutInformation | None:
        """Information on the views by the weights as they are: at most once for each update.

        None for a method whose `forward` gives no `z`, or too large a one. Training's random state
        is left untouched.
        """
        if self._measured is not None and self._measured[0] == trainer.global_step:
            return self._measured[1]
        device = torch.device(pl_module.device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            views = project_views(pl_module, self.loader)
        if views is not None and not views.isfinite().all():
            rank_zero_warn("z of held-out images is not finite: no information is measured")
            views = None
        found = None if views is None else held_out_information(views)
        self._measured = trainer.global_step, found
        remedy = None if self._warned else getattr(pl_module, "collapse_remedy", None)
        if found and remedy and found.effective_rank < COLLAPSED * found.dimensions:
            self._warned = True
            rank_zero_warn(
                f"z has collapsed: on held-out images the effective rank of its {found.dimensions} "
                f"dimensions is {found.effective_rank:.1f}. {remedy}"
            )
        return found

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.sanity_checking and (found := self.measure(trainer, pl_module)):
            metrics = {
                f"val_information_{name}": float(x)
                for name, x in asdict(found).items()
                if x is not None and (name not in READINGS or found.less_chance(name) is not None)
            }
            pl_module.log_dict(metrics, sync_dist=False, rank_zero_only=True)
