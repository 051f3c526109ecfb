"""Losses that explicit MIM is compared with and solo-learn lacks, from their papers.

CorInfoMax, MEC and FroSSL are of log-determinants and entropies; LeJEPA and VISReg bring the
embeddings to a standard Gaussian along random directions. Each is computed in float32 or better,
outside autocast; with several processes, from the samples of all.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from solo_mim.losses.explicit_mim import (
    NORMALISATIONS,
    check_choice,
    checked_views,
    in_one_precision,
)
from solo_mim.losses.gaussianity import random_directions, sliced_epps_pulley
from solo_mim.losses.logdet import finite, logdet
from solo_mim.losses.statistics import (
    gathered,
    several_processes,
    sum_over_processes,
    with_unit_mean_square,
    with_unit_norm,
)


class EntropyTerms(NamedTuple):
    """The loss and its two terms: `loss = weight * invariance - entropy`."""

    loss: Tensor
    invariance: Tensor
    entropy: Tensor


class CorInfoMaxLoss(nn.Module):
    """Correlative information maximisation (Ozsoy et al. 2022, https://arxiv.org/abs/2209.07999).

    `alpha * mean (z1 - z2)^2 - [log det(R1 + eps I) + log det(R2 + eps I)] / D`, R1 and R2 the
    covariances of the views' embeddings, which forget: `R <- forgetting R + (1 - forgetting)
    R_batch`, and their means likewise. Gradients pass through the batch's part. In float64, as the
    paper's code.

    Args:
        dim: D.
        alpha: weight of the attraction; the paper's 250 to 2000 belong to `l2`, where coordinates
            have a variance of 1/D. On standardised ones the same weight is alpha / D.
        eps: ridge of the covariances.
        forgetting: share of the past, 0.01 in the paper's CIFAR runs.
        normalisation: "l2" (the paper's: each sample to norm one) or "standardise" (each
            coordinate of each view to unit variance over the batch).
    """

    mean: Tensor
    covariance: Tensor

    def __init__(
        self,
        dim: int,
        alpha: float = 250.0,
        eps: float = 1e-8,
        forgetting: float = 0.01,
        normalisation: str = "l2",
    ):
        super().__init__()
        check_choice("normalisation", normalisation, NORMALISATIONS)
        if not 0 <= forgetting < 1 or eps < 0 or alpha < 0:
            raise ValueError("forgetting must be in [0, 1), eps and alpha not negative")
        self.alpha, self.eps, self.forgetting = alpha, eps, forgetting
        self.normalisation = normalisation
        self.register_buffer("mean", torch.zeros(2, dim, dtype=torch.float64))
        self.register_buffer("covariance", torch.eye(dim, dtype=torch.float64).repeat(2, 1, 1))

    def forward(self, z1: Tensor, z2: Tensor) -> EntropyTerms:
        """N x D embeddings of two views; in training mode the moments move on.

        Raises:
            TypeError, ValueError: as `frossl_loss_func` does of views.
            NotPositiveDefiniteError, NonFiniteEmbeddingError: a determinant fails.
        """
        views = _gathered_views((z1, z2), torch.float64)
        with torch.autocast(z1.device.type, enabled=False):
            if self.normalisation == "l2":
                views = [with_unit_norm(z) for z in views]
            else:
                views = [with_unit_mean_square(z - z.mean(0), 0, len(z)) for z in views]
            samples, dim = views[0].shape
            keep, entropy = self.forgetting, views[0].new_zeros(())
            means, covariances = [], []
            for view, mean, covariance in zip(views, self.mean, self.covariance, strict=True):
                mean = keep * mean + (1 - keep) * view.mean(0)
                centred = view - mean
                covariance = keep * covariance + (1 - keep) * centred.T @ centred / samples
                value = logdet(covariance, self.eps, name="the CorInfoMax covariance")
                entropy = entropy + value / dim
                means.append(mean.detach())
                covariances.append(covariance.detach())
            if self.training:
                self.mean, self.covariance = torch.stack(means), torch.stack(covariances)
            invariance = (views[0] - views[1]).square().mean()
            return EntropyTerms(self.alpha * invariance - entropy, invariance, entropy)


def mec_loss_func(
    predictions: Sequence[Tensor], targets: Sequence[Tensor], inverse_lambda: float, order: int = 4
) -> Tensor:
    """Maximum entropy coding (Liu et al. 2022, https://arxiv.org/abs/2210.11464), by batch.

    `-inverse_lambda / N * tr log(I + P T^T / inverse_lambda)`, its Taylor series to `order`, for
    the predictions P of one view and the targets T of the other, both on the unit sphere; the mean
    of the two ways round.

    Args:
        predictions: of two views, N x D each.
        targets: of the momentum network for the same views, N x D each; detached.
        inverse_lambda: the paper's 1 / lambda = N eps_d; the series converges where it is above the
            largest singular value of P T^T, at most N.

    Raises:
        TypeError, ValueError, NonFiniteEmbeddingError: as `frossl_loss_func`; inverse_lambda not
            positive, or no order.
    """
    if not inverse_lambda > 0 or order < 1:
        raise ValueError(
            f"inverse_lambda must be positive and order 1 or more, got {inverse_lambda} and {order}"
        )
    p1, p2 = map(with_unit_norm, _gathered_views(predictions))
    t1, t2 = (with_unit_norm(t).detach() for t in _gathered_views(targets))
    with torch.autocast(p1.device.type, enabled=False):
        series = p1.new_zeros(())
        for p, t in ((p1, t2), (p2, t1)):
            matrix = p @ t.T / inverse_lambda
            power = matrix
            for k in range(1, order + 1):
                power = power @ matrix if k > 1 else power
                series = series + (-1) ** (k + 1) / k * power.trace()
        return finite(-inverse_lambda * series / (2 * len(p1)))


def frossl_loss_func(views: Sequence[Tensor], invariance_weight: float = 1.0) -> EntropyTerms:
    """FroSSL (Skean et al. 2023, https://arxiv.org/abs/2310.02903) of V views, N x D each.

    The entropy is Renyi's of order 2 of each view's covariance K with unit trace, `-log ||K||_F^2`,
    summed over views; the invariance is `V / N` times the squared distances of the views to their
    mean, for two views `||Z1 - Z2||_F^2 / N`. Both on coordinates that are centred and scaled to
    norm one over the batch, each view by itself.

    Raises:
        TypeError, ValueError: as `explicit_mim_loss_func` does of views.
        NonFiniteEmbeddingError: NaN or inf in the views, or their squares overflow. On CUDA the
            loss is NaN instead.
    """
    joined = _gathered_views(views)
    samples, dim = joined[0].shape
    with torch.autocast(joined[0].device.type, enabled=False):
        unit = torch.stack([with_unit_norm(z - z.mean(0), 0) for z in joined])
        entropy = unit.new_zeros(())
        for z in unit:
            product = z.T @ z if samples > dim else z @ z.T
            entropy = entropy - (product / product.trace()).square().sum().log()
        spread = (unit - unit.mean(0)).square().sum()
        invariance = len(views) * spread / samples
        loss = finite(invariance_weight * invariance - entropy)
        return EntropyTerms(loss, invariance, entropy)


class LeJEPATerms(NamedTuple):
    """The loss and its two terms: `loss = (1 - lamb) * invariance + lamb * sigreg`."""

    loss: Tensor
    invariance: Tensor
    sigreg: Tensor


def lejepa_loss_func(
    views: Sequence[Tensor],
    lamb: float = 0.05,
    num_slices: int = 1024,
    t_max: float = 5.0,
    n_points: int = 17,
    seed: int = 0,
) -> LeJEPATerms:
    """LeJEPA (Balestriero and LeCun 2025, https://arxiv.org/abs/2511.08544) of V views, N x D each.

    The invariance is the mean square of the views' distance to their mean, over samples, views and,
    as in the authors' code, coordinates; SIGReg is `sliced_epps_pulley` of each view by itself,
    averaged over the views. SIGReg has a factor N: at another batch size the same `lamb` weighs
    otherwise. All views are global ones.

    Args:
        views: V >= 2, row n of each of image n.
        lamb: the paper's lambda, from 0 to 1.
        num_slices, t_max, n_points: of `sliced_epps_pulley`; defaults are the paper's.
        seed: of the directions; give the number of the step, as `explicit_mim_loss_func`.

    Raises:
        TypeError, ValueError, NonFiniteEmbeddingError: as `frossl_loss_func`; options out of range.
    """
    z = torch.stack(in_one_precision(checked_views(views)))
    group = several_processes()
    with torch.autocast(z.device.type, enabled=False):
        sigreg = sliced_epps_pulley(z, num_slices, t_max, n_points, seed, group)
        squares = torch.stack(((z - z.mean(0)).square().sum(), z.new_tensor(z.numel())))
        squares = sum_over_processes(squares, group)
        if z.shape[1] < 2:
            _refuse_too_few(int(squares[1]) // (len(z) * z.shape[2]))
        invariance = squares[0] / squares[1]
        return LeJEPATerms(finite(_weighed(lamb, invariance, sigreg)), invariance, sigreg)


class VISRegTerms(NamedTuple):
    """`loss = (1 - lamb) * invariance + lamb * (scale + shape + centre)`, and these terms."""

    loss: Tensor
    invariance: Tensor
    scale: Tensor
    shape: Tensor
    centre: Tensor


def visreg_loss_func(
    views: Sequence[Tensor], lamb: float = 0.9, num_projections: int = 4096, seed: int = 0
) -> VISRegTerms:
    """VISReg (Wu et al. 2026, https://arxiv.org/abs/2606.02572) of V views, N x D each.

    Of each view by itself, then averaged: `scale` is the mean of (1 - sigma)^2 over coordinates,
    `centre` that of their squared means, and `shape` the squared distance (sliced Wasserstein-2) of
    the standardised embeddings' sorted projections from the quantiles i / (N + 1) of N(0, 1). The
    standard deviations that `shape` divides by get no gradient. Invariance as `lejepa_loss_func`.

    Args:
        views: V >= 2, row n of each of image n.
        lamb: weight from 0 to 1; the authors' 0.9 is for ImageNet, 0.6 for Imagenette.
        seed: of the directions, as `lejepa_loss_func`.

    Raises:
        TypeError, ValueError, NonFiniteEmbeddingError: as `frossl_loss_func`; options out of range.
    """
    if num_projections < 1:
        raise ValueError(f"num_projections must be 1 or more, got {num_projections}")
    z = torch.stack(in_one_precision(checked_views(views)))
    with torch.autocast(z.device.type, enabled=False):
        # Ranks are of the samples of all processes: their rows travel, all views' at once.
        z = gathered(z.transpose(0, 1).flatten(1)).unflatten(1, (len(z), -1)).transpose(0, 1)
        num_samples, dim = z.shape[1:]
        _refuse_too_few(num_samples)
        invariance = (z - z.mean(0)).square().mean()
        mean = z.mean(1, keepdim=True)
        centred = z - mean
        deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / math.sqrt(num_samples)
        deviation = deviation + 1e-6
        directions = random_directions(dim, num_projections, seed, z)
        projected = directions @ (centred / deviation.detach()).mT
        ranks = torch.arange(1, num_samples + 1, dtype=z.dtype, device=z.device)
        quantiles = torch.special.ndtri(ranks / (num_samples + 1))
        scale = (1 - deviation).square().mean()
        shape = (projected.sort(dim=-1).values - quantiles).square().mean()
        centre = mean.square().mean()
        loss = finite(_weighed(lamb, invariance, scale + shape + centre))
        return VISRegTerms(loss, invariance, scale, shape, centre)


def _weighed(lamb: float, invariance: Tensor, regularisation: Tensor) -> Tensor:
    if not 0 <= lamb <= 1:
        raise ValueError(f"lamb must be from 0 to 1, got {lamb}")
    return (1 - lamb) * invariance + lamb * regularisation


def _gathered_views(views: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Views, N x D each, of all processes in `dtype`."""
    # Cast first: 16 bits do not hold the counts that gathering exchanges.
    joined = [gathered(view.to(dtype)) for view in checked_views(views)]
    _refuse_too_few(len(joined[0]))
    return joined


def _refuse_too_few(samples: int) -> None:
    if samples < 2:
        raise ValueError(f"the loss needs 2 samples or more over all processes, got {samples}")
