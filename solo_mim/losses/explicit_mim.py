"""The explicit mutual information loss: log-determinants of the covariances of augmented views.

Implements the Theorem-1 objective of "Explicit Mutual Information Maximization for Self-Supervised
Learning" (Chang, Liu, Guo, Wen, https://arxiv.org/abs/2409.04747): where homeomorphisms make the
embeddings of two views jointly Gaussian, their mutual information is half the log-ratio of the
determinants of their covariances. The estimator (exchangeable views, floors, the `infomax` reading)
is this project's: the published practical loss could not be consulted. docs/method.md derives it.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from solo_mim.losses.gaussianity import non_gaussianity
from solo_mim.losses.logdet import check_deferred, logdet
from solo_mim.losses.statistics import several_processes, view_covariances
from solo_mim.options import Positive, Weight

Reading = Literal["infomax", "two_view"]
Within = Literal["full", "diagonal", "isotropic", "linear"]
Normalisation = Literal["standardise", "l2"]
READINGS, WITHIN, NORMALISATIONS = map(get_args, (Reading, Within, Normalisation))

# Floors where none are given, by `within`: of W, and of A (docs/method.md, Floors).
FLOORS: dict[str, tuple[float, float]] = {
    "full": (0.1, 0.01),
    "diagonal": (0.1, 0.01),
    "isotropic": (0.001, 0.001),
    "linear": (0.3, 0.01),
}

# Random directions and points of the integral of `gaussianity`, in each step.
SLICES, POINTS = 256, 17

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class ExplicitMIMOptions:
    """The options of the loss and their defaults.

    Attributes:
        reading: "infomax": loss = within - total, whose negative, times D, bounds I(Z; image) of
            Gaussian Z from below. "two_view": loss = -(V total - between - (V-1) within) / (V-1),
            whose negative, times D (V-1), is the information of Theorem 1 between two views, and
            the total correlation of more than two.
        within: what is assumed of W, the covariance of the views of one image. With each
            assumption the within term grows, so that the loss still bounds the information, and
            depends on fewer estimated numbers. "full": log det(W + ew I), D (D + 1) / 2 numbers.
            "diagonal": sum_j log(W_jj + ew), D numbers. "isotropic": D log(tr W / D + ew), one
            number. "linear": D log ew + tr W / ew, the tangent of "isotropic" at tr W = 0, where
            1 / ew is a fixed weight. None is "isotropic" for infomax, and for two_view "full".
        within_noise: ew, floor of W: the power of a Gaussian noise on coordinates of unit variance.
            None is 0.001 of "isotropic", 0.1 of "full" and "diagonal", 0.3 of "linear".
        total_noise: floor of A, at most `within_noise`. The lower it is, the stronger the barrier
            against dimensional collapse. None is 0.001 of "isotropic", else 0.01.
        between_noise: floor of B, "two_view" only; None is `within_noise`. Any less, and views that
            correlate by less than half the difference of the two are driven apart.
        normalisation: "standardise" gives each coordinate unit variance over all views together,
            "l2" each sample norm sqrt(D); both are centred over all views together.
        gaussianity: weight of a term that makes the embeddings Gaussian, which the bound assumes:
            `non_gaussianity` of all views together. 0 is off.

    Raises:
        TypeError: a floor is no number.
        ValueError: an unknown reading, assumption or normalisation, floors out of order.
    """

    reading: Reading = "infomax"
    # None is for `__post_init__` to settle: by the reading, and floors by the structure of W.
    within: Within = None  # type: ignore[assignment]
    within_noise: Positive = None  # type: ignore[assignment]
    total_noise: Positive = None  # type: ignore[assignment]
    between_noise: Positive | None = None
    normalisation: Normalisation = "standardise"
    gaussianity: Weight = 0.0

    def __post_init__(self) -> None:
        check_choice("reading", self.reading, READINGS)
        self._settle("within", "isotropic" if self.reading == "infomax" else "full")
        check_choice("within", self.within, WITHIN)
        within_noise, total_noise = FLOORS[self.within]
        self._settle("within_noise", within_noise)
        self._settle("total_noise", total_noise)
        check_choice("normalisation", self.normalisation, NORMALISATIONS)
        for name in ("within_noise", "total_noise", "between_noise", "gaussianity"):
            value = getattr(self, name)
            if not isinstance(value, Real) and (name, value) != ("between_noise", None):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 <= self.gaussianity < math.inf:
            raise ValueError(
                f"gaussianity must be finite and not negative, got {self.gaussianity}; 0 is off"
            )
        if not self.total_noise > 0:
            raise ValueError(
                f"total_noise must be positive, got {self.total_noise}; None takes the default"
            )
        if not self.total_noise <= self.within_noise < math.inf:
            raise ValueError(
                f"within_noise must be finite and no less than total_noise ({self.total_noise}), "
                f"got {self.within_noise} (within={self.within}): raise it or lower total_noise, "
                "else the floors reward collapse"
            )
        if self.between_noise is None:
            return
        if self.reading != "two_view":
            raise ValueError(
                "between_noise is for reading two_view alone: leave it None for others"
            )
        if not 0 < self.between_noise < math.inf:
            raise ValueError(f"between_noise must be positive and finite, got {self.between_noise}")

    def _settle(self, name: str, default: Any) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, default)

    @staticmethod
    def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
        """Options by today's names and values; those of 0.1.0 give a FutureWarning."""
        found = dict(options)
        if found.get("reading") == "first_order":
            found |= {"reading": "infomax", "within": "linear"}
            warnings.warn('reading="first_order" is within="linear"', FutureWarning, stacklevel=3)
        if found.pop("double_precision", None) is not None:
            warnings.warn(
                "double_precision is ignored: float64 embeddings are computed in float64",
                FutureWarning,
                stacklevel=3,
            )
        return found


class ExplicitMIMTerms(NamedTuple):
    """The loss and the entropies it is made of, in nats per dimension, all differentiable.

    `total` is 1/2 log det(A + total_noise I) / D: the Gaussian entropy of an embedding, up to a
    constant. `within` is that of the views of one image under the assumption `within`; `between`
    that of B, `two_view` only. `non_gaussianity` is the distance from a Gaussian; None where the
    option `gaussianity` is 0.
    """

    loss: Tensor
    total: Tensor
    within: Tensor
    between: Tensor | None
    non_gaussianity: Tensor | None = None


def _showing_options(function: _Function) -> _Function:
    """Shows the `**options` of a function in help() and documentation, by name and default."""
    signature = inspect.signature(function)
    *parameters, _ = signature.parameters.values()
    options = inspect.signature(ExplicitMIMOptions).parameters.values()
    function.__signature__ = signature.replace(parameters=[*parameters, *options])  # type: ignore[attr-defined]
    return function


@_showing_options
def explicit_mim_loss_func(
    *views: Tensor | Sequence[Tensor],
    process_group: dist.ProcessGroup | None = None,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Negative mutual information of V augmented views, in nats per dimension; lower is better.

    Args:
        views: V tensors N x D, V >= 2, or one sequence of them, or one tensor V x N x D. Row n of
            each belongs to image n. Of any floating dtype, in or out of autocast; computed in
            float32, or float64 if one is.
        process_group: the processes whose samples make up N; None is all of them where
            `torch.distributed` is initialised. Their shares may differ. Averaging parameter
            gradients over the processes, as DistributedDataParallel does, then gives the gradient
            of one process with all the samples.
        seed: of the random directions of `gaussianity`. Give the number of the step: they then
            change from step to step, are the same in all processes, and come again on resuming.
        options: those of `ExplicitMIMOptions`, by name.

    Raises:
        TypeError: a view is no floating-point tensor, or an option does not exist.
        ValueError: fewer than 2 views or samples, views not N x D, of no dimension or of unequal
            shape, options as `ExplicitMIMOptions` refuses them.
        NonFiniteEmbeddingError: NaN or inf in the views, or squares beyond the precision computed
            in: of 1e19 in float32, and of less where many are summed.
        NotPositiveDefiniteError: a determinant could not be computed. On CUDA either error comes
            one call late, as reading a flag would stall every step; the loss is NaN at once.

    Example:
        >>> import torch
        >>> image = torch.randn(256, 32)
        >>> z1, z2 = (image + 0.1 * torch.randn(256, 32) for _ in range(2))
        >>> bool(explicit_mim_loss_func(z1, z2) < explicit_mim_loss_func(z1, z2.flip(0)))
        True
    """
    return explicit_mim_terms(*views, process_group=process_group, seed=seed, **options).loss


@_showing_options
def explicit_mim_terms(
    *views: Tensor | Sequence[Tensor],
    process_group: dist.ProcessGroup | None = None,
    seed: int = 0,
    **options: Any,
) -> ExplicitMIMTerms:
    """`explicit_mim_loss_func` and the entropies that it is made of; arguments and errors as it."""
    chosen = ExplicitMIMOptions(**ExplicitMIMOptions.renamed(options))
    given = checked_views(views[0] if len(views) == 1 else views)  # type: ignore[arg-type]
    checked = in_one_precision(given)
    group = several_processes(process_group)
    floor = chosen.between_noise or chosen.within_noise
    statuses: dict[str, Tensor] = {}
    total, within, between = view_entropies(
        checked,
        chosen.total_noise,
        chosen.within_noise,
        floor if chosen.reading == "two_view" else None,
        chosen.normalisation,
        group,
        statuses,
        chosen.within,
    )
    check_deferred(statuses)
    if between is None:
        loss = within - total
    else:
        loss = within + (between - len(checked) * total) / (len(checked) - 1)
    if chosen.gaussianity == 0:
        return ExplicitMIMTerms(loss, total, within, between)
    apart = non_gaussianity(torch.cat(checked), SLICES, POINTS, seed, group)
    return ExplicitMIMTerms(loss + chosen.gaussianity * apart, total, within, between, apart)


class ExplicitMIMLoss(nn.Module):
    """`explicit_mim_loss_func` with its options held: `ExplicitMIMLoss()(z1, z2)`.

    The directions of `gaussianity` go by the number of calls in training mode.
    """

    @_showing_options
    def __init__(self, *, process_group: dist.ProcessGroup | None = None, **options: Any) -> None:
        super().__init__()
        self.options = ExplicitMIMOptions(**ExplicitMIMOptions.renamed(options))
        self.process_group = process_group
        self.calls = 0

    def forward(self, *views: Tensor | Sequence[Tensor]) -> Tensor:
        self.calls += self.training
        group, options = self.process_group, vars(self.options)
        return explicit_mim_loss_func(*views, process_group=group, seed=self.calls, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in vars(self.options).items())


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
    within: str = "full",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """1/2 log det(C + noise I) / D of the total, within and between covariance of V views.

    In nats per dimension, of N x D views in float32 or float64. Without a `group` this process is
    alone. `between_noise` None leaves that term out; `deferred` is that of `logdet`, `within` that
    of `ExplicitMIMOptions`: all but "full" bound the within term by the diagonal of W.
    """
    dim = views[0].shape[1]
    # Inside autocast a cast to float32 is not enough: the next matrix product casts it down again.
    with torch.autocast(views[0].device.type, enabled=False):
        covariances = view_covariances(views, normalisation, group)

        def entropy(matrix: Tensor, noise: float, name: str) -> Tensor:
            what = f"the {name} covariance"
            value = logdet(matrix, noise, covariances.variance, what, deferred)
            # log det(X^T X + noise I_D) = (D - M) log noise + log det(X X^T + noise I_M), M rows.
            if missing := dim - matrix.shape[0]:
                value = value + missing * math.log(noise)
            return value / (2 * dim)

        total = entropy(covariances.total, total_noise, "total")
        powers = covariances.within_powers
        if within == "full":
            of_within = entropy(covariances.within, within_noise, "within")
        elif within == "diagonal":
            of_within = (powers + within_noise).log().mean() / 2
        elif within == "isotropic":
            of_within = (powers.mean() + within_noise).log() / 2
        else:
            of_within = (math.log(within_noise) + powers.mean() / within_noise) / 2
        if between_noise is None:
            return total, of_within, None
        return total, of_within, entropy(covariances.between, between_noise, "between")


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


def in_one_precision(views: Sequence[Tensor]) -> list[Tensor]:
    """Views in float32, or float64 if one of them is."""
    in_double = any(view.dtype == torch.float64 for view in views)
    return [view.to(torch.float64 if in_double else torch.float32) for view in views]


def check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}")
