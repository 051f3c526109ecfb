"""The explicit mutual information loss: log-determinants of the covariances of augmented views.

Implements the Theorem-1 objective of "Explicit Mutual Information Maximization for Self-Supervised
Learning" (Chang, Liu, Guo, Wen, https://arxiv.org/abs/2409.04747): where homeomorphisms make the
embeddings of two views jointly Gaussian, their mutual information is half the log-ratio of the
determinants of their covariances. The estimator (exchangeable views, floors, the `infomax` reading)
is this project's: the published practical loss could not be consulted. docs/method.md derives it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from solo_mim.losses.logdet import check_deferred, logdet
from solo_mim.losses.statistics import several_processes, view_covariances

READINGS = ("infomax", "two_view")
OBJECTIVES = (*READINGS, "first_order")
NORMALISATIONS = ("standardise", "l2")


class ExplicitMIMTerms(NamedTuple):
    """The loss and the entropies it is made of, in nats per dimension, all differentiable.

    `total` is 1/2 log det(A + total_noise I) / D: the Gaussian entropy of an embedding, up to a
    constant. `within` is the same of W, the views of one image; `between` of B, `two_view` only.
    """

    loss: Tensor
    total: Tensor
    within: Tensor
    between: Tensor | None


def explicit_mim_loss_func(
    views: Sequence[Tensor] | Tensor,
    reading: str = "infomax",
    within_noise: float = 0.1,
    total_noise: float = 0.01,
    between_noise: float | None = None,
    normalisation: str = "standardise",
    double_precision: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> ExplicitMIMTerms:
    """Negative mutual information of V augmented views, in nats per dimension; lower is better.

    `infomax`: loss = within - total. Its negative, times D, bounds I(Z; image) from below.
    `two_view`: loss = -(V total - between - (V-1) within) / (V-1). Its negative, times D (V-1), is
    the information of Theorem 1 between two views, and the total correlation of more than two.
    `first_order`: `infomax` with `within` to first order in W, tr W for log det: what the logarithm
    is compared with.

    Args:
        views: V tensors N x D, or one V x N x D; V >= 2. Row n of each belongs to image n. Of any
            floating dtype, in or out of autocast; computed in float32, or float64 if one is.
        reading: "infomax", "two_view" or "first_order".
        within_noise: floor of W, the power of a Gaussian noise on coordinates of unit variance.
        total_noise: floor of A, at most `within_noise`. The lower it is, the stronger the barrier
            against dimensional collapse.
        between_noise: floor of B, `two_view` only; None is `within_noise`. Any less, and views that
            correlate by less than half the difference of the two are driven apart.
        normalisation: "standardise" gives each coordinate unit variance over all views together,
            "l2" each sample norm sqrt(D); both are centred over all views together.
        double_precision: compute in float64 whatever the dtype.
        process_group: the processes whose samples make up N; None is all of them where
            `torch.distributed` is initialised. Their shares may differ. Averaging parameter
            gradients over the processes, as DistributedDataParallel does, then gives the gradient
            of one process with all the samples.

    Raises:
        TypeError: a view is no floating-point tensor.
        ValueError: fewer than 2 views or samples, views not N x D, of no dimension or of unequal
            shape, an unknown reading or normalisation, floors out of order.
        NonFiniteEmbeddingError: NaN or inf in the views, or squares beyond the precision computed
            in: of 1e19 in float32, and of less where many are summed.
        NotPositiveDefiniteError: a determinant could not be computed. On CUDA either error comes
            one call late, as reading a flag would stall every step; the loss is NaN at once.

    Example:
        >>> import torch
        >>> image = torch.randn(256, 32)
        >>> views = [image + 0.1 * torch.randn(256, 32) for _ in range(2)]
        >>> strangers = [views[0], views[1].flip(0)]
        >>> bool(explicit_mim_loss_func(views).loss < explicit_mim_loss_func(strangers).loss)
        True
    """
    _check_options(reading, within_noise, total_noise, between_noise, normalisation)
    views = checked_views(views)
    in_double = double_precision or any(view.dtype == torch.float64 for view in views)
    statuses: dict[str, Tensor] = {}
    total, within, between = view_entropies(
        [view.to(torch.float64 if in_double else torch.float32) for view in views],
        total_noise,
        within_noise,
        (between_noise or within_noise) if reading == "two_view" else None,
        normalisation,
        several_processes(process_group),
        statuses,
        linear_within=reading == "first_order",
    )
    check_deferred(statuses)
    if between is None:
        return ExplicitMIMTerms(within - total, total, within, None)
    loss = within + (between - len(views) * total) / (len(views) - 1)
    return ExplicitMIMTerms(loss, total, within, between)


class ExplicitMIMLoss(nn.Module):
    """`explicit_mim_loss_func` with its options held: `ExplicitMIMLoss()(z1, z2)` is its loss.

    It is called on V tensors N x D, or on one V x N x D.
    """

    def __init__(
        self,
        reading: str = "infomax",
        within_noise: float = 0.1,
        total_noise: float = 0.01,
        between_noise: float | None = None,
        normalisation: str = "standardise",
        double_precision: bool = False,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        _check_options(reading, within_noise, total_noise, between_noise, normalisation)
        self.reading = reading
        self.within_noise = within_noise
        self.total_noise = total_noise
        self.between_noise = between_noise
        self.normalisation = normalisation
        self.double_precision = double_precision
        self.process_group = process_group

    def forward(self, *views: Tensor) -> Tensor:
        return explicit_mim_loss_func(
            views[0] if len(views) == 1 else views,
            reading=self.reading,
            within_noise=self.within_noise,
            total_noise=self.total_noise,
            between_noise=self.between_noise,
            normalisation=self.normalisation,
            double_precision=self.double_precision,
            process_group=self.process_group,
        ).loss

    def extra_repr(self) -> str:
        return (
            f"reading={self.reading!r}, within_noise={self.within_noise}, "
            f"total_noise={self.total_noise}, between_noise={self.between_noise}, "
            f"normalisation={self.normalisation!r}, double_precision={self.double_precision}"
        )


def rewards_collapse(
    total_noise: float, within_noise: float, between_noise: float | None = None, num_views: int = 2
) -> bool:
    """Whether `two_view` with these floors gains by emptying a direction into the others.

    Of views that agree perfectly, a direction of power p has the information
    f(p) = 1/2 [V log(p + ea) - log(V p + eb) - (V-1) log ew], so emptying one of power 1 costs
    f(1) - f(0), and what the others gain of its power is f'(1). With equal floors the reward starts
    at 0.65 for two views, 0.79 for three, 0.91 for four. `infomax` never rewards it.
    """
    floor = between_noise or within_noise
    cost = num_views * math.log1p(1 / total_noise) - math.log1p(num_views / floor)
    return cost < num_views / (1 + total_noise) - num_views / (num_views + floor)


def view_entropies(
    views: Sequence[Tensor],
    total_noise: float,
    within_noise: float,
    between_noise: float | None,
    normalisation: str,
    group: dist.ProcessGroup | None = None,
    deferred: dict[str, Tensor] | None = None,
    linear_within: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """1/2 log det(C + noise I) / D of the total, within and between covariance of V views.

    In nats per dimension, of N x D views in float32 or float64. Without a `group` this process is
    alone, even where `torch.distributed` is initialised. `between_noise` None leaves that term out;
    `deferred` is that of `logdet`. `linear_within` takes the within term to first order in W,
    1/2 [log noise + tr W / (D noise)], its upper bound.
    """
    dim = views[0].shape[1]
    # Inside autocast a cast to float32 is not enough: the next matrix product casts it down again.
    with torch.autocast(views[0].device.type, enabled=False):
        total, within, between, variance = view_covariances(views, normalisation, group)

        def entropy(matrix: Tensor, noise: float, name: str) -> Tensor:
            value = logdet(matrix, noise, variance, f"the {name} covariance", deferred)
            # log det(X^T X + noise I_D) = (D - M) log noise + log det(X X^T + noise I_M), M rows.
            if missing := dim - matrix.shape[0]:
                value = value + missing * math.log(noise)
            return value / (2 * dim)

        def expanded(matrix: Tensor, noise: float) -> Tensor:
            powers = matrix.diagonal() if variance is None else matrix.diagonal() / variance
            return (math.log(noise) + powers.sum() / (dim * noise)) / 2

        return (
            entropy(total, total_noise, "total"),
            expanded(within, within_noise)
            if linear_within
            else entropy(within, within_noise, "within"),
            None if between_noise is None else entropy(between, between_noise, "between"),
        )


def checked_views(views: Sequence[Tensor] | Tensor) -> Sequence[Tensor]:
    """V views N x D as a sequence, or a TypeError or ValueError that says what they are instead."""
    if isinstance(views, Tensor):
        if views.dim() != 3:
            raise ValueError(
                f"one tensor of views must be V x N x D, got {tuple(views.shape)}; "
                "pass several views as a sequence of N x D tensors"
            )
        views = views.unbind()
    if len(views) < 2:
        raise ValueError(
            f"mutual information needs 2 or more views of each image, got {len(views)}"
        )
    for view in views:
        if not isinstance(view, Tensor) or not view.is_floating_point():
            kind = view.dtype if isinstance(view, Tensor) else type(view).__name__
            raise TypeError(f"views must be floating-point tensors, got {kind}")
        if view.dim() != 2 or view.shape != views[0].shape:
            shapes = ", ".join(str(tuple(other.shape)) for other in views)
            raise ValueError(f"views must be N x D, all of one shape, got {shapes}")
    if views[0].shape[1] == 0:
        raise ValueError("views of 0 dimensions carry no information: D must be 1 or more")
    return views


def check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}")


def _check_options(
    reading: str,
    within_noise: float,
    total_noise: float,
    between_noise: float | None,
    normalisation: str,
) -> None:
    check_choice("reading", reading, OBJECTIVES)
    check_choice("normalisation", normalisation, NORMALISATIONS)
    if not total_noise > 0:
        raise ValueError(f"total_noise must be positive, got {total_noise}; 0.01 is the default")
    if not total_noise <= within_noise < math.inf:
        raise ValueError(
            f"within_noise must be finite and no less than total_noise ({total_noise}), got "
            f"{within_noise}: raise it or lower total_noise, else the floors reward collapse"
        )
    if between_noise is None:
        return
    if reading != "two_view":
        raise ValueError("between_noise is for reading two_view alone: leave it None for others")
    if not 0 < between_noise < math.inf:
        raise ValueError(f"between_noise must be positive and finite, got {between_noise}")
