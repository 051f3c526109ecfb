"""Log-determinants of covariance matrices: one Cholesky factor each, and a loud failure.

`torch.logdet` may return finite garbage for a singular CUDA matrix, and the autograd of a Cholesky
factor costs several times the factorisation. Here the value is read off the factor's diagonal and
the gradient is the inverse made from that same factor. A matrix that cannot be factorised is an
error with a cause, never a silent jitter: the floor is part of the objective, the caller's choice.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

_NON_FINITE = -1  # a status beside LAPACK's: 0 is success, k > 0 the leading minor that failed


class ExplicitMIMError(RuntimeError):
    """A log-determinant could not be computed."""


class NonFiniteEmbeddingError(ExplicitMIMError):
    """The embeddings hold NaN or inf, or overflow when squared."""


class NotPositiveDefiniteError(ExplicitMIMError):
    """A finite matrix plus its floor is not positive definite in the precision used."""


def logdet(
    matrix: Tensor,
    floor: float = 0.0,
    variance: Tensor | None = None,
    name: str = "matrix",
    deferred: dict[str, Tensor] | None = None,
) -> Tensor:
    """log det(S^-1/2 C S^-1/2 + floor I) in nats, S = diag(variance); differentiable in both, once.

    Args:
        matrix: C, n x n, symmetric positive semi-definite, float32 or float64.
        floor: power of the noise added to each rescaled coordinate.
        variance: n positive numbers that rescale the coordinates; None is ones.
        name: what an error calls the matrix.
        deferred: for CUDA, where reading a flag at once would stall the step: the status is left
            here under `name`, for `check_deferred`. A failed value and its gradient are NaN.

    Raises:
        NonFiniteEmbeddingError: the matrix holds NaN or inf.
        NotPositiveDefiniteError: the Cholesky factorisation fails.
        RuntimeError: in a backward with `create_graph`.
    """
    value, status = _CholeskyLogDet.apply(matrix, floor, variance)
    if deferred is not None and status.is_cuda:
        deferred[name] = status
    else:
        _raise_if_failed(int(status), name)
    return value


def finite(loss: Tensor) -> Tensor:
    """The scalar loss itself; raises NonFiniteEmbeddingError where it is NaN or inf.

    On CUDA it is returned as it is: to read it would stall the step.
    """
    if not loss.is_cuda and not math.isfinite(loss.item()):
        _raise_if_failed(_NON_FINITE, "the loss")
    return loss


class _CholeskyLogDet(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, matrix: Tensor, floor: float, variance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # Cholesky does not care about the units of the coordinates, so it is the floor that is
        # rescaled: log det(C + floor S) - log det S, with one pass over the matrix less.
        shifted = matrix.clone()
        shifted.diagonal().add_(floor if variance is None else floor * variance)
        # The upper factor takes two thirds of the lower one's time (MKL, 128 x 128).
        factor, status = torch.linalg.cholesky_ex(shifted, upper=True)
        logs = 2 * factor.diagonal().log()
        value = (logs if variance is None else logs - variance.log()).sum()
        if status.device.type != "cpu" or status.item() != 0 or not math.isfinite(value.item()):
            status = torch.where(shifted.sum().isfinite(), status, _NON_FINITE)
            # A status read late must not let a step be taken on half a factor.
            failed = status != 0
            value = value.masked_fill(failed, math.nan)
            factor = factor.masked_fill(failed, math.nan)
        ctx.save_for_backward(factor, variance)
        ctx.floor = floor
        ctx.mark_non_differentiable(status)
        return value, status

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, Tensor | None]:
        # `once_differentiable` would return a constant to a gradient penalty, without a word.
        if torch.is_grad_enabled():
            raise RuntimeError("the log-determinant is differentiable once: no create_graph=True")
        factor, variance = ctx.saved_tensors
        inverse = torch.cholesky_inverse(factor, upper=True).mul_(grad)
        if not ctx.needs_input_grad[2]:
            return inverse, None, None
        return inverse, None, ctx.floor * inverse.diagonal() - grad / variance


class _DeferredCheck:
    """Reads the statuses of one step at the next, when they have long arrived on the host."""

    def __init__(self) -> None:
        self.step = 0
        self.pending: tuple[int, tuple[str, ...], Tensor, torch.cuda.Event] | None = None

    def settle(self, noticed: str) -> None:
        """Raises for the statuses on their way, if there are any."""
        pending, self.pending = self.pending, None
        if pending is not None:
            step, names, flags, arrived = pending
            arrived.synchronize()
            for name, status in zip(names, flags.tolist(), strict=True):
                _raise_if_failed(status, name, f" at call {step}, noticed {noticed}")

    def __call__(self, statuses: dict[str, Tensor]) -> None:
        self.step += 1
        self.settle("one call later")
        flags = torch.stack(tuple(statuses.values()))
        # The copy lands in pinned memory and waits for nobody.
        host = flags.to("cpu", non_blocking=True)
        arrived = torch.cuda.current_stream(flags.device).record_event()
        self.pending = (self.step, tuple(statuses), host, arrived)


_checks: defaultdict[torch.device, _DeferredCheck] = defaultdict(_DeferredCheck)


def check_deferred(statuses: dict[str, Tensor]) -> None:
    """Raise for the previous call's statuses on this CUDA device; send these on their way.

    `statuses` is what `logdet` left in `deferred`. The error names the call that failed, counted
    per device from 1.
    """
    if statuses:
        device = next(iter(statuses.values())).device
        _checks[device](statuses)


def settle_deferred() -> None:
    """Raise for statuses that no further call has read; afterwards calls are counted anew."""
    checks = list(_checks.values())
    _checks.clear()
    for check in checks:
        check.settle("at the end")


def _raise_if_failed(status: int, name: str, when: str = "") -> None:
    if status == _NON_FINITE:
        raise NonFiniteEmbeddingError(
            f"{name} is not finite{when}: the embeddings hold NaN or inf, or overflow when "
            "squared. Look at the learning rate, the images and the gradient scaler."
        )
    if status > 0:
        raise NotPositiveDefiniteError(
            f"{name} plus its floor is not positive definite{when} (leading minor of order "
            f"{status}): raise the floor (1e-4 is safe in float32), or compute float32 in double."
        )
