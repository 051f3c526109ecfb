"""Mutual information and spectrum of embeddings, in nats and in float64: what to log and to report.

The training loss holds floors that shape its gradient; its value is no measurement. Here every term
has one equal floor, or none, so that values are informations in nats. Each function works on the
samples of this process: gather first where several share a data set.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solo_mim.losses.explicit_mim import (
    NORMALISATIONS,
    READINGS,
    check_choice,
    checked_views,
    view_entropies,
)
from solo_mim.losses.logdet import NonFiniteEmbeddingError, NotPositiveDefiniteError, logdet
from solo_mim.losses.statistics import with_unit_mean_square

# First and last rank, from 1 on, of the eigenvalues to which alpha-ReQ's line is fitted: those of
# its authors' code.
ALPHA_REQ_RANKS = (4, 100)
# Of so many, the bias is 0.03 (infomax) to 0.07 nats (two_view) a dimension.
IMAGES_PER_DIMENSION = 4


def mutual_information_from_covariances(c1: Tensor, c2: Tensor, c12: Tensor) -> Tensor:
    """I(Y; Y') of jointly Gaussian variables, in nats: 1/2 log [det C1 det C2 / det C_joint].

    Theorem 1 of arXiv 2409.04747 for the covariances of the Gaussianised pair; invariant to
    invertible linear maps of each variable, not to other homeomorphisms.

    Args:
        c1, c2: covariances, D1 x D1 and D2 x D2.
        c12: cross-covariance, D1 x D2.

    Raises:
        NotPositiveDefiniteError: one of them or the joint is singular.
    """
    c1, c2, c12 = c1.double(), c2.double(), c12.double()
    joint = torch.cat((torch.cat((c1, c12), 1), torch.cat((c12.mT, c2), 1)))
    entropies = logdet(c1, name="the first covariance") + logdet(c2, name="the second covariance")
    return (entropies - logdet(joint, name="the joint covariance")) / 2


def mutual_information(z1: Tensor, z2: Tensor, noise: float = 0.0) -> Tensor:
    """Plug-in Gaussian information of paired samples, N x D1 and N x D2, in nats.

    `noise` is the power of an independent Gaussian noise added to each coordinate, in its units.

    Raises:
        ValueError: unequal N; a noise that is no power; none, and no more samples than D1 + D2.
        NonFiniteEmbeddingError, NotPositiveDefiniteError: a covariance is not finite, or singular.
    """
    _check_noise(noise)
    _check_paired(z1, z2)
    num_samples, dim = len(z1), z1.shape[1] + z2.shape[1]
    if noise == 0 and num_samples <= dim:
        raise ValueError(
            f"{num_samples} samples leave the covariance of {dim} coordinates singular: "
            "use more samples or a noise"
        )
    z1, z2 = _centred(z1), _centred(z2)
    c1, c2, c12 = (a.mT @ b / num_samples for a, b in ((z1, z1), (z2, z2), (z1, z2)))
    c1.diagonal().add_(noise)
    c2.diagonal().add_(noise)
    return mutual_information_from_covariances(c1, c2, c12)


def view_information(
    views: Sequence[Tensor] | Tensor,
    reading: str = "infomax",
    noise: float = 0.01,
    normalisation: str = "standardise",
) -> Tensor:
    """The objective's information of V views, in nats, through one noise channel of fixed power.

    "infomax": 1/2 [log det(A + noise I) - log det(W + noise I)], for Gaussian Z a lower bound of
    I(Z; image) through the channel. "two_view": 1/2 [V log det(A + noise I) - log det(B + noise I)
    - (V-1) log det(W + noise I)], Theorem 1 for two views and the total correlation of more. A, W
    and B are those of `solo_mim.losses.statistics`. A plug-in value: see `small_sample_bias`.

    Args:
        views: V tensors N x D, or one V x N x D; V >= 2.
        noise: in units of the normalised variance, the same for every term. Compare runs at one.
        normalisation: "standardise" or "l2", as in the loss.

    Raises:
        TypeError, ValueError: as the loss does; a negative noise; none where a term is singular.
        NonFiniteEmbeddingError, NotPositiveDefiniteError: a determinant could not be computed.
    """
    check_choice("reading", reading, READINGS)
    check_choice("normalisation", normalisation, NORMALISATIONS)
    views = checked_views(views)
    num_views, (num_samples, dim) = len(views), views[0].shape
    _check_noise(noise)
    if noise == 0 and dim > _degrees_of_freedom(num_samples, num_views, reading):
        raise ValueError(
            f"{num_samples} samples of {num_views} views leave a covariance of {dim} coordinates "
            "singular: use more samples or a noise"
        )
    doubles = [view.double() for view in views]
    of_between = noise if reading == "two_view" else None
    total, within, between = view_entropies(doubles, noise, noise, of_between, normalisation)
    if between is None:
        return dim * (total - within)
    return dim * (num_views * total - between - (num_views - 1) * within)


def shuffled_information(
    views: Sequence[Tensor] | Tensor,
    reading: str = "infomax",
    noise: float = 0.01,
    normalisation: str = "standardise",
    generator: torch.Generator | None = None,
) -> Tensor:
    """`view_information` in nats with every pair broken up: what these samples show by chance.

    The cross-check of `small_sample_bias` where embeddings are not Gaussian or noise is not small.

    Raises:
        ValueError: fewer samples than views, and as `view_information`.
    """
    views = checked_views(views)
    num_samples = len(views[0])
    if num_samples < len(views):
        raise ValueError(f"{len(views)} views of {num_samples} samples cannot all be separated")
    device = "cpu" if generator is None else generator.device
    order = torch.randperm(num_samples, generator=generator, device=device).to(views[0].device)
    shuffled = [view[order.roll(shift)] for shift, view in enumerate(views)]
    return view_information(shuffled, reading, noise, normalisation)


def small_sample_bias(
    num_samples: int, dim: int, num_views: int = 2, reading: str = "infomax"
) -> float:
    """Expected `view_information` of INDEPENDENT Gaussian views at noise 0, in nats; truth is 0.

    N B, N (V-1) W and N V A are then Wishart matrices of one S, with N - 1 (the mean takes one),
    N (V-1) and N V - 1 degrees of freedom, and E log det Wishart_nu(S) = log det S + D log 2
    + sum_{i<D} digamma((nu - i) / 2); S cancels. Dependence of the views and a noise only lower it.
    inf where a covariance is singular: D > N (V-1) (infomax) or D > N - 1 (two_view).
    """
    check_choice("reading", reading, READINGS)
    if num_samples < 2 or dim < 1 or num_views < 2:
        raise ValueError(
            "a bias needs num_samples >= 2, dim >= 1 and num_views >= 2, got "
            f"{num_samples}, {dim}, {num_views}"
        )
    if dim > _degrees_of_freedom(num_samples, num_views, reading):
        return math.inf

    def expected_logdet(degrees: int, divisor: int) -> float:
        halves = (degrees - torch.arange(dim, dtype=torch.float64)) / 2
        return torch.digamma(halves).sum().item() + dim * math.log(2 / divisor)

    images, pairs = num_samples, num_samples * (num_views - 1)
    total = expected_logdet(images + pairs - 1, images + pairs)
    within = expected_logdet(pairs, pairs)
    if reading == "infomax":
        return (total - within) / 2
    between = expected_logdet(images - 1, images)
    return (num_views * total - between - (num_views - 1) * within) / 2


def generalised_gaussian_offset(beta: float, dim: int) -> float:
    """What Theorem 2 of arXiv 2409.04747 adds to 1/2 log [det C1 det C2 / det C_joint], in nats.

    The difference 2 phi(dim) - phi(2 dim) of entropies at unit covariance, with both variables and
    their joint taken as generalised Gaussians of one shape (density exp(-u^beta / 2), u the squared
    Mahalanobis distance). No covariance enters. 0 at beta = 1, the Gaussian; else negative, as the
    marginals of such a joint are not of that family: no mutual information by itself.

    Raises:
        ValueError: beta not positive or dim below 1.
    """
    if not beta > 0 or dim < 1:
        raise ValueError(f"beta must be positive and dim 1 or more, got {beta} and {dim}")
    lgamma, n = math.lgamma, dim
    spread = lgamma((n + 1) / beta) + lgamma(n / (2 * beta)) - math.log(2)
    spread -= lgamma(n / beta) + lgamma((n + 2) / (2 * beta))
    shape = lgamma(n) - 2 * lgamma(n / 2) - lgamma(n / beta) + 2 * lgamma(n / (2 * beta))
    return shape - math.log(beta) + n * spread


def gaussian_copula(z: Tensor) -> Tensor:
    """N x D samples with each coordinate mapped to normal scores of its ranks; ties share a rank.

    A diagnostic of the marginals: compare an information before and after. Gaussian marginals do
    not make a joint Gaussian: for D > 1 the result is no case of Theorem 1.

    Raises:
        NonFiniteEmbeddingError: NaN or inf in z.
    """
    columns = _samples(z).mT.contiguous()
    ordered = columns.sort().values
    below = torch.searchsorted(ordered, columns)
    up_to = torch.searchsorted(ordered, columns, right=True)
    mean_rank = (below + up_to + 1).double() / 2
    return torch.special.ndtri(mean_rank / (len(z) + 1)).mT


def canonical_correlations(z1: Tensor, z2: Tensor) -> Tensor:
    """Canonical correlations, falling, of paired samples N x D1 and N x D2 (Hotelling 1936).

    As many as the lower rank of the two. -1/2 sum log(1 - rho^2) is `mutual_information` without
    noise. Where D1 + D2 > N - 1 some are 1 whatever the data.

    Raises:
        ValueError: unequal N.
        NonFiniteEmbeddingError: NaN or inf in the samples.
    """
    _check_paired(z1, z2)
    return torch.linalg.svdvals(_principal_scores(z1).mT @ _principal_scores(z2)).clamp(max=1)


def effective_rank(z: Tensor) -> Tensor:
    """Effective rank of N x D embeddings: exp of the entropy of the normalised singular values.

    Roy & Vetterli (EUSIPCO 2007), applied to the centred N x D matrix, so the weights are standard
    deviations along principal axes, not variances. Between 1 and min(N - 1, D); 0 if z is constant.

    Raises:
        NonFiniteEmbeddingError: NaN or inf in z.
    """
    return _exponential_entropy(torch.linalg.svdvals(_centred(z)), 0)


def rankme(z: Tensor, epsilon: float = 1e-7) -> Tensor:
    """RankMe of N x D embeddings: exp(-sum p_k log p_k), p_k = sigma_k / ||sigma||_1 + epsilon.

    Garrido et al. (ICML 2023, arXiv 2210.02885). The min(N, D) singular values sigma are those of
    the matrix as it is: unlike in `effective_rank` the mean counts, as one dimension. They are the
    roots of the eigenvalues of z'z or zz', whose round-off, 1e-8 of the largest, is below epsilon.
    Between 1 and min(N, D), and over 1 by about 1.6e-6 a dimension for epsilon; 0 if z is 0.

    Raises:
        NonFiniteEmbeddingError: NaN or inf in z.
    """
    z = _samples(z)
    gram = z.mT @ z if z.shape[1] <= len(z) else z @ z.mT
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    return _exponential_entropy(singular, epsilon)


def alpha_req(z: Tensor, ranks: tuple[int, int] = ALPHA_REQ_RANKS) -> Tensor:
    """Exponent alpha of the power law lambda_i ~ i^-alpha in the spectrum of N x D embeddings.

    alpha-ReQ: Agrawal et al. (NeurIPS 2022). The lambda_i fall and are the eigenvalues of the
    covariance; alpha is minus the slope of the least-squares line of log lambda_i over log i, with
    weights 1/i as in the authors' code and in Stringer et al. (Nature 2019), which its fit is of.
    0 of a white spectrum.

    Args:
        ranks: first and last i of the fit, counted from 1; eigenvalues that are round-off, of more
            dimensions than z spans, are left out.

    Returns:
        alpha, nan where fewer than three eigenvalues are left.

    Raises:
        NonFiniteEmbeddingError: NaN or inf in z.
    """
    z = _centred(z)
    values = torch.linalg.eigvalsh(z.mT @ z / len(z)).flip(0)
    spanned = int((values > max(z.shape) * torch.finfo(values.dtype).eps * values[0]).sum())
    first, last = ranks[0], min(ranks[1], spanned)
    if last - first < 2:
        return values.new_tensor(math.nan)
    rank = torch.arange(first, last + 1, dtype=values.dtype, device=values.device)
    weights = 1 / rank / (1 / rank).sum()
    x, y = rank.log(), values[first - 1 : last].log()
    x, y = x - weights @ x, y - weights @ y
    return -(weights @ (x * y)) / (weights @ x.square())


def lidar(views: Sequence[Tensor] | Tensor, delta: float = 1e-4, epsilon: float = 1e-7) -> Tensor:
    """LiDAR of V views: effective rank of the linear discriminant matrix with images as classes.

    Thilak et al. (ICLR 2024, arXiv 2312.04000): exp(-sum p_k log p_k), p_k = lambda_k /
    ||lambda||_1 + epsilon, of the eigenvalues lambda of S_w^-1/2 S_b S_w^-1/2. S_b is the
    covariance of the N images' mean views, S_w = delta I + the covariance of views about them, over
    N (V - 1). The means of V views keep 1/V of the noise: independent views have lambda near 1/V
    each and a LiDAR near D. The paper has V = 50. Between 1 and min(N - 1, D); 0 if z is constant.

    Args:
        views: V tensors N x D, or one V x N x D; V >= 2.
        delta: regulariser of S_w, in units of z squared: it alone counts where views are equal.

    Raises:
        TypeError, ValueError: as the loss does; a delta that is no power.
        NonFiniteEmbeddingError: NaN or inf in the views.
        NotPositiveDefiniteError: S_w is singular, which a delta prevents.
    """
    _check_noise(delta)
    stacked = torch.stack([_samples(view) for view in checked_views(views)])
    means = stacked.mean(0)
    apart = (stacked - means).flatten(0, 1)
    within = apart.mT @ apart / (len(apart) - len(means))
    within.diagonal().add_(delta)
    factor, failed = torch.linalg.cholesky_ex(within)
    if failed:
        raise NotPositiveDefiniteError("the covariance of views is singular: use a larger delta")
    # L^-1 S_b L^-T has the same eigenvalues.
    whitened = torch.linalg.solve_triangular(factor, _centred(means).mT, upper=False)
    values = torch.linalg.eigvalsh(whitened @ whitened.mT / len(means)).clamp_min(0)
    return _exponential_entropy(values, epsilon)


def total_spectrum(views: Sequence[Tensor] | Tensor) -> Tensor:
    """Eigenvalues, falling, of the total covariance A of V views on standardised coordinates.

    Of V tensors N x D, or one V x N x D: D numbers with mean 1 (less where a coordinate is
    constant), all 1 for decorrelated coordinates, (D, 0, 0 ...) for a z of one dimension.

    Raises:
        TypeError, ValueError: as the loss does.
        NonFiniteEmbeddingError: NaN or inf in the views, or their squares overflow.
    """
    z = _centred(torch.cat(list(checked_views(views))))
    z = _samples(with_unit_mean_square(z, 0, len(z)))
    return torch.linalg.eigvalsh(z.mT @ z / len(z)).clamp_min(0).flip(0)


@dataclass(frozen=True)
class HeldOutInformation:
    """Nats, except what the spectrum gives, `images` and `dimensions`.

    Attributes:
        infomax: plug-in estimate of J through the reference channel, a lower bound of I(z; image)
            if z is Gaussian.
        infomax_bias: `small_sample_bias`, which dependence and the channel only lower; `inf` where
            images are too few.
        infomax_shuffled: the same estimate with the pairs broken up.
        two_view, two_view_bias, two_view_shuffled: likewise I(z; z'), if both are jointly Gaussian.
        effective_rank: exponential entropy of the spectrum of z, at most its dimension.
        eigenvalue_max, eigenvalue_min: of `total_spectrum`: both 1 at best, the dimension and 0
            in full collapse.
        images: held-out images used, two views each.
        dimensions: of z.
        non_gaussianity: `solo_mim.losses.non_gaussianity` of one view's z.
        radial_distance: Wasserstein-1 distance of the norms of one view's whitened z from those of
            a Gaussian, chi of `dimensions` degrees (arXiv 2602.14272); None of fewer than four
            images a dimension.
        rankme, alpha_req, lidar: as the functions of these names, of all views; None of a result
            that does not say, where there are not three eigenvalues to fit an exponent to, and
            where views spread so widely that the regulariser is round-off.
    """

    infomax: float
    infomax_bias: float
    infomax_shuffled: float
    two_view: float
    two_view_bias: float
    two_view_shuffled: float
    effective_rank: float
    eigenvalue_max: float
    eigenvalue_min: float
    images: int
    dimensions: int = 0  # 0 of a result that does not say
    non_gaussianity: float | None = None
    radial_distance: float | None = None
    rankme: float | None = None
    alpha_req: float | None = None
    lidar: float | None = None

    def less_chance(self, reading: str) -> float | None:
        """Nats of `infomax` or `two_view` less what chance gives; None where that tells nothing.

        Chance is the larger of bias and shuffled pairs. The rest must be as much again, as neither
        is exact where z is not Gaussian, and three times sqrt(D / N), which to first order no
        standard error of the estimate exceeds.
        """
        value = getattr(self, reading)
        chance = max(getattr(self, f"{reading}_{kind}") for kind in ("bias", "shuffled"))
        clear = max(chance, 3 * math.sqrt(self.dimensions / self.images))
        return value - chance if value - chance >= clear else None

    def lines(self, of: str = "z") -> list[str]:
        """What is said of both readings of `of`: nats, or that none are told, and what it takes."""
        said = []
        for reading, other in (("infomax", "image"), ("two_view", f"{of}'")):
            nats = self.less_chance(reading)
            found = "not told from chance" if nats is None else f"{nats:.2f} nats"
            value, bias, shuffled = (getattr(self, reading + s) for s in ("", "_bias", "_shuffled"))
            line = (
                f"Gaussian I({of}; {other}) {found} on two views of {self.images:,} images "
                f"(measured {value:.2f}, bias {bias:.2f}, shuffled pairs {shuffled:.2f})"
            )
            enough = IMAGES_PER_DIMENSION * self.dimensions
            if nats is None and self.images < enough:
                line += (
                    f": {self.dimensions:,} dimensions want {enough:,} images, "
                    f"{self.images:,} suffice for {self.images // IMAGES_PER_DIMENSION:,}"
                )
            said.append(line)
        return said


def _degrees_of_freedom(num_samples: int, num_views: int, reading: str) -> int:
    """Highest rank of the covariance that runs out of samples first."""
    within = num_samples * (num_views - 1)
    return within if reading == "infomax" else min(within, num_samples - 1)


def _exponential_entropy(weights: Tensor, epsilon: float) -> Tensor:
    """exp(-sum p log p), p = weights / their sum + epsilon, of weights from 0 on; 0 if all are."""
    shares = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny) + epsilon
    return torch.special.entr(shares).sum().exp() * (weights.sum() > 0)


def _check_noise(noise: float) -> None:
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise is a power, 0 or more and finite, got {noise}")


def _check_paired(z1: Tensor, z2: Tensor) -> None:
    if len(z1) != len(z2):
        raise ValueError(f"samples come in pairs, got {len(z1)} and {len(z2)} of them")


def _samples(z: Tensor) -> Tensor:
    if z.dim() != 2:
        raise ValueError(f"samples must be N x D, got {tuple(z.shape)}")
    if not z.isfinite().all():
        raise NonFiniteEmbeddingError("the samples hold NaN or inf, or overflow when squared")
    return z.double()


def _centred(z: Tensor) -> Tensor:
    z = _samples(z)
    if len(z) < 2 or z.shape[1] == 0:
        raise ValueError(
            f"a covariance needs 2 samples and 1 dimension or more, got {tuple(z.shape)}"
        )
    return z - z.mean(0)


def _principal_scores(z: Tensor) -> Tensor:
    """Orthonormal basis (N x rank) of the centred samples' columns."""
    left, singular, _ = torch.linalg.svd(_centred(z), full_matrices=False)
    tolerance = max(z.shape) * torch.finfo(singular.dtype).eps * singular[0]
    return left[:, singular > tolerance]
