"""How far samples are from a Gaussian, measured along random directions.

The Epps-Pulley statistic compares the empirical characteristic function of scalar samples with that
of N(0, 1). A distribution of vectors is N(0, I) where its projections on all directions are N(0, 1)
(Cramer and Wold), which LeJEPA samples (https://arxiv.org/abs/2511.08544).
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from solo_mim.losses.statistics import MEAN_SQUARE_FLOOR, sum_over_processes


def random_directions(dim: int, number: int, seed: int, like: Tensor) -> Tensor:
    """Unit vectors, number x dim, uniform on the sphere, of the device and dtype of `like`.

    Processes that agree on a seed draw the same, and no other random state is touched.
    """
    generator = torch.Generator(like.device).manual_seed(seed)
    drawn = torch.randn(number, dim, generator=generator, device=like.device)
    return F.normalize(drawn, dim=1).to(like.dtype)


def epps_pulley(
    x: Tensor, t_max: float = 5.0, n_points: int = 17, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Epps-Pulley statistic against N(0, 1) of the samples along the last dimension, ... x N.

    `N * integral |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt`, phi the mean of `exp(i t x)` over
    the N samples, by the trapezoidal rule with `n_points` from -t_max to t_max. Of N(0, 1) its mean
    is sqrt(2 pi) (1 - 1 / sqrt 3) = 1.06 for every N; of anything else it grows as N.

    Args:
        x: of float32 or float64.
        t_max: where the integral is cut off; beyond 5 the weight is below 4e-6.
        n_points: odd, so that t = 0 is one of them.
        group: the processes whose samples make up N, of any share each; None is this one alone.

    Raises:
        ValueError: t_max not positive, or n_points even or below 3.
    """
    if not t_max > 0 or n_points < 3 or n_points % 2 == 0:
        raise ValueError(
            f"t_max must be positive and n_points odd and 3 or more, got {t_max} and {n_points}"
        )
    # The integrand is even: half of the points do, all but t = 0 counted twice.
    t = torch.linspace(0, t_max, n_points // 2 + 1, dtype=x.dtype, device=x.device)
    normal = (-t.square() / 2).exp()
    weight = 2 * t[1] * normal
    weight[[0, -1]] /= 2
    angle = x.unsqueeze(-2) * t.unsqueeze(-1)
    sums = sum_over_processes(torch.stack((angle.cos().sum(-1), angle.sin().sum(-1))), group)
    count = sums[0, ..., :1].detach()  # cos 0 = 1 of each sample, the other processes' too
    real, imaginary = sums / count
    squares = (real - normal).square() + imaginary.square()
    return (squares * weight * count).sum(-1)


def sliced_epps_pulley(
    z: Tensor,
    num_slices: int = 1024,
    t_max: float = 5.0,
    n_points: int = 17,
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """SIGReg: `epps_pulley` of the projections of z, ... x N x D, averaged over `num_slices` random
    directions and all leading dimensions.

    A distance of the samples from N(0, I), location and scale included. In float32, or float64 if z
    is, and outside autocast.

    Raises:
        ValueError: no slice, or as `epps_pulley`.
    """
    if num_slices < 1:
        raise ValueError(f"num_slices must be 1 or more, got {num_slices}")
    with torch.autocast(z.device.type, enabled=False):
        z = z if z.dtype == torch.float64 else z.float()
        directions = random_directions(z.shape[-1], num_slices, seed, z)
        return epps_pulley(directions @ z.mT, t_max, n_points, group).mean()


def non_gaussianity(
    z: Tensor,
    num_slices: int = 1024,
    n_points: int = 33,
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """How little N x D embeddings look Gaussian, of whatever mean and covariance; a scalar.

    The mean of `epps_pulley` / N along random directions of coordinates of unit variance, each
    projection brought to mean zero and variance one: a distance of characteristic functions, 0 of
    infinitely many samples of a Gaussian. Of N of them it is on average 0.34 / N, which is
    sqrt(2 pi) (1 - sqrt 3 / 2) / N. Differentiable; constant projections are finite.

    Args:
        z: of any floating dtype, computed in float32, or float64 if it is.
        num_slices, n_points, seed: of `sliced_epps_pulley`.
        group: the processes whose samples make up N, of any share each; None is this one alone.

    Raises:
        ValueError: fewer than two samples, no slice, or as `epps_pulley`.
    """
    if num_slices < 1:
        raise ValueError(f"num_slices must be 1 or more, got {num_slices}")
    if group is None and len(z) < 2:
        raise ValueError(f"a variance needs 2 samples or more, got {len(z)}")

    def with_unit_variance(x: Tensor) -> Tensor:
        """Of centred columns; of one that is all but constant beside the others, less."""
        power = sum_over_processes(x.square().sum(0), group) / count
        floor = MEAN_SQUARE_FLOOR * power.detach().mean() + torch.finfo(x.dtype).tiny
        return x * power.clamp_min(floor).rsqrt()

    with torch.autocast(z.device.type, enabled=False):
        z = z if z.dtype == torch.float64 else z.float()
        sums = sum_over_processes(torch.cat((z.sum(0), z.new_full((1,), len(z)))), group)
        count = sums[-1].detach()
        z = with_unit_variance(z - sums[:-1] / count)
        x = with_unit_variance(z @ random_directions(z.shape[1], num_slices, seed, z).mT)
        # A part at a time, for all samples and points at once would fill gigabytes.
        parts = [epps_pulley(part, n_points=n_points, group=group) for part in x.mT.split(64)]
        return torch.cat(parts).mean() / count
