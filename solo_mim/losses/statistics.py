"""Second-order statistics of V views: total, within and between covariance, over all processes.

The views of an image are exchangeable draws of one augmentation, so the joint covariance of V views
has one block A on its diagonal and one block C off it. An orthogonal change of basis across the
views (Helmert contrasts) takes it apart, and no V D x V D matrix is formed:

    between  B = A + (V-1) C       covariance of sqrt(V) times the mean view,   N rows
    within   W = A - C             covariance of the V - 1 contrasts of views,  N (V-1) rows
    total    A = (B + (V-1) W) / V

These are the scatter matrices of a multivariate analysis of variance whose classes are the images.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

# A coordinate ("standardise") or a sample ("l2") of smaller mean square is scaled as if it had this
# one. The value is BatchNorm's: above the rounding noise of 16-bit embeddings of size one, which
# scaling to unit variance would present as signal, and it bounds the gain on gradients by 316. A
# clamp, not a summand: everything above it is normalised exactly, and so tr A = D in any units.
MEAN_SQUARE_FLOOR = 1e-5


class ViewCovariances(NamedTuple):
    """Covariances of normalised views, on one side of the determinant.

    The D side holds D x D matrices C of embeddings not yet scaled: the scaled ones' covariance is
    S^-1/2 C S^-1/2 with S = diag(`variance`), where None stands for ones. The Gram side holds X X^T
    instead of X^T X, for X of V N - 1, N (V-1) and N - 1 rows, scaled already. `within_powers` is
    the diagonal of the D x D matrix W of scaled embeddings, on either side.
    """

    total: Tensor
    within: Tensor
    between: Tensor
    variance: Tensor | None
    within_powers: Tensor


def view_covariances(
    views: Sequence[Tensor], normalisation: str, group: dist.ProcessGroup | None
) -> ViewCovariances:
    """Covariances of V views, each N x D, in float32 or float64 and outside autocast.

    "standardise" divides each coordinate by its standard deviation over all views together (divisor
    V N), "l2" scales each sample to norm sqrt(D); both centre over all views together. With a
    `group`, N counts the samples of all its processes, whose shares may differ, and every process
    returns the same matrices.

    Raises:
        ValueError: fewer than two samples in all.
    """
    num_views, (num_local, dim) = len(views), views[0].shape
    if normalisation == "l2":
        views = [with_unit_mean_square(view, 1, dim) for view in views]
    (between_rows, _), *contrasts = helmert_contrasts(views)
    counts, mean = _counts_and_mean(between_rows.detach(), group)
    between_rows = between_rows - mean  # a constant: in all that follows its gradient is zero
    # Over several processes the count is a tensor. On CUDA the host waits for it only where its own
    # share leaves a question open.
    count = counts.sum() if isinstance(counts, Tensor) else counts
    if num_local < 2 and count < 2:
        raise ValueError(
            f"a covariance needs 2 samples or more over all processes, got {int(count)}"
        )

    if num_views * num_local >= dim or num_views * count >= dim:
        return _of_moments(between_rows, contrasts, count, normalisation, group)
    # Fewer rows than coordinates: the rows of all processes travel, not D x D matrices.
    orthonormal = [between_rows / math.sqrt(num_views)]
    orthonormal += [rows / math.sqrt(norm) for rows, norm in contrasts]
    return _of_rows(_gather_samples(orthonormal, counts, group), normalisation)


def _of_moments(
    between_rows: Tensor,
    contrasts: list[tuple[Tensor, int]],
    count: Tensor | int,
    normalisation: str,
    group: dist.ProcessGroup | None,
) -> ViewCovariances:
    """D x D matrices of N x D sums and contrasts of the views, of `count` samples in all."""
    num_views = 1 + len(contrasts)
    divisor = 1 if isinstance(count, Tensor) else count
    between = self_product(between_rows, 1 / (num_views * divisor))
    within = reduce(
        torch.add,
        [self_product(rows, 1 / (norm * (num_views - 1) * divisor)) for rows, norm in contrasts],
    )
    if group is not None:
        between, within = sum_over_processes(torch.stack((between, within)), group) / count
    total = torch.lerp(within, between, 1 / num_views)
    variance, powers = None, within.diagonal()
    if normalisation == "standardise":
        variance = total.diagonal().clamp_min(MEAN_SQUARE_FLOOR)
        powers = powers / variance
    return ViewCovariances(total, within, between, variance, powers)


def _of_rows(orthonormal: Sequence[Tensor], normalisation: str) -> ViewCovariances:
    """Gram matrices of the orthonormal combinations of V views, N x D each, fewer than D."""
    between_rows, *within_rows = orthonormal
    num_views, num_samples = len(orthonormal), len(between_rows)
    joined = torch.cat((_without_mean(between_rows), *within_rows))
    if normalisation == "standardise":
        joined = with_unit_mean_square(joined, 0, num_views * num_samples)
    gram = self_product(joined.mT, 1 / num_samples)
    divisor = num_samples * (num_views - 1)
    return ViewCovariances(
        total=gram / num_views,
        within=gram[num_samples - 1 :, num_samples - 1 :] / (num_views - 1),
        between=gram[: num_samples - 1, : num_samples - 1],
        variance=None,
        within_powers=joined[num_samples - 1 :].square().sum(0) / divisor,
    )


def helmert_contrasts(views: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
    """V orthogonal combinations of V views, each N x D, with their coefficients' squared norms.

    First the sum of the views, then V - 1 contrasts: for two views, the sum and the difference.
    """
    running = views[0]
    contrasts = []
    for k, view in enumerate(views[1:], start=1):
        contrasts.append((torch.sub(running, view, alpha=k), k * (k + 1)))
        running = running + view
    return [(running, len(views)), *contrasts]


def _without_mean(rows: Tensor) -> Tensor:
    """N - 1 rows with the X^T X of N centred ones: a Householder reflection, its first row dropped.

    The Gram matrix of N centred rows is singular in one direction, where its inverse is one over
    the floor: in float32 that leaves rounding of 3 % in the gradient at N = 2, D = 2048.
    """
    root = math.sqrt(len(rows))
    return rows[1:] + (rows[0] - rows.sum(0) / root) / (root - 1)


def self_product(rows: Tensor, scale: float) -> Tensor:
    """scale X^T X (D x D) of N x D rows; the backward is one product where autograd takes two."""
    return _SelfProduct.apply(rows, scale)


def sum_over_processes(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum of a tensor, of equal shape in each, over the processes of a group; differentiable. The
    tensor itself where this process is alone.

    The gradient is summed over the processes too: when DistributedDataParallel then averages the
    parameters' gradients, a loss of this sum has the gradient of one process with all samples.
    """
    return tensor if group is None else _SumOverProcesses.apply(tensor, group)


def several_processes(group: dist.ProcessGroup | None = None) -> dist.ProcessGroup | None:
    """The group to compute over, all processes unless given; None where this process is alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def gathered(z: Tensor) -> Tensor:
    """N x D samples of all processes, in rank order, from this one's share; differentiable."""
    group = several_processes()
    if group is None:
        return z
    (rows,) = _gather_samples([z], _counts_and_mean(z.detach(), group)[0], group)
    return rows


class _SelfProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.scale = scale
        return (rows.mT @ rows).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        # A backward called inside autocast would multiply in 16 bits.
        with torch.autocast(rows.device.type, enabled=False):
            return rows @ (grad + grad.mT).mul_(ctx.scale), None


class _SumOverProcesses(torch.autograd.Function):
    # torch.distributed.nn.functional.all_reduce does the same and is deprecated (torch 2.15).
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_reduced(tensor, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduced(grad, ctx.group), None


def _all_reduced(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _counts_and_mean(rows: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor | int, Tensor]:
    """Number of rows of each process and the mean row of all of them, by one small all-reduce."""
    if group is None:
        return rows.shape[0], rows.mean(0)
    num_processes = dist.get_world_size(group)
    summary = rows.new_zeros(num_processes + rows.shape[1])
    summary[dist.get_rank(group)] = rows.shape[0]
    summary[num_processes:] = rows.sum(0)
    dist.all_reduce(summary, group=group)
    counts = summary[:num_processes]
    return counts, summary[num_processes:] / counts.sum()


def _gather_samples(
    blocks: list[Tensor], counts: Tensor | int, group: dist.ProcessGroup | None
) -> Sequence[Tensor]:
    """V blocks of N x D rows of all processes from this one's share of N, differentiable.

    Each process lays its samples between zeros at its own place and the sum joins them, so that
    shares of any size, none included, are exact.
    """
    if group is None or isinstance(counts, int):
        return blocks
    rank, sizes = dist.get_rank(group), [int(size) for size in counts.tolist()]
    place = (0, 0, sum(sizes[:rank]), sum(sizes[rank + 1 :]))
    return sum_over_processes(pad(torch.stack(blocks), place), group).unbind()


def with_unit_mean_square(z: Tensor, dim: int, divisor: int) -> Tensor:
    """z by the root of its mean square along `dim`, at least MEAN_SQUARE_FLOOR; NaN of overflow."""
    root = norms(z, dim) / math.sqrt(divisor)
    return z * root.clamp_min(math.sqrt(MEAN_SQUARE_FLOOR)).reciprocal()


def with_unit_norm(z: Tensor, dim: int = 1) -> Tensor:
    """`torch.nn.functional.normalize`, but NaN where the squares overflow."""
    return z / norms(z, dim).clamp_min(1e-12)


def norms(z: Tensor, dim: int) -> Tensor:
    """Norms along `dim`, which is kept; NaN where the squares overflow.

    Dividing by inf would turn a vector that has overflowed into zeros, without a word.
    """
    found = torch.linalg.vector_norm(z, dim=dim, keepdim=True)
    return found.masked_fill(found.isinf(), math.nan)
