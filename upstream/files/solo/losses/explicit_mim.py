# Copyright 2023 solo-learn development team.

# Permission is hereby granted, free of charge, to any person obtaining a copy of
# this software and associated documentation files (the "Software"), to deal in
# the Software without restriction, including without limitation the rights to use,
# copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
# Software, and to permit persons to whom the Software is furnished to do so,
# subject to the following conditions:

# The above copyright notice and this permission notice shall be included in all copies
# or substantial portions of the Software.

# THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED,
# INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR
# PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE
# FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
# OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
# DEALINGS IN THE SOFTWARE.


import math
from typing import Dict, Optional, Sequence

import torch
from scipy.linalg import helmert
from solo.utils.misc import gather


def entropy(rows: torch.Tensor, noise: float) -> torch.Tensor:
    """Computes the Gaussian entropy of a covariance plus noise, up to a constant, as
    1/2 log det(rows^T rows + noise I) / D, from whichever of rows^T rows and rows rows^T is smaller.

    Args:
        rows (torch.Tensor): MxD Tensor whose second moments are the covariance.
        noise (float): power of the noise added to each of the D coordinates.

    Returns:
        torch.Tensor: entropy in nats per dimension.
    """

    M, D = rows.size()

    moments = rows @ rows.T if M < D else rows.T @ rows
    diag = torch.eye(len(moments), dtype=rows.dtype, device=rows.device)
    factor = torch.linalg.cholesky(moments + noise * diag)
    log_det = 2 * factor.diagonal().log().sum() + max(D - M, 0) * math.log(noise)
    return log_det / (2 * D)


def explicit_mim_loss_func(
    views: Sequence[torch.Tensor],
    reading: str = "infomax",
    within_noise: Optional[float] = None,
    total_noise: Optional[float] = None,
) -> Dict[str, torch.Tensor]:
    """Computes the explicit MIM loss given V batches of projected features, one for each view.
    With A the covariance of the features over images and views, W that of the views of an image
    around their mean, and B = V A - (V - 1) W that of the means, all of standardized features:

        infomax:  -1/2 [log det(A + total_noise I) / D - log(tr W / D + within_noise)], the negative
            of a lower bound of the information between Gaussian features and their image, over D.
        two_view: -1/2 [V log det(A + total_noise I) - log det(B + within_noise I)
            - (V - 1) log det(W + within_noise I)] / (D (V - 1)), the negative of the information
            between two views (Theorem 1 of https://arxiv.org/abs/2409.04747).

    Args:
        views (Sequence[torch.Tensor]): V >= 2 NxD Tensors containing projected features.
        reading (str): "infomax" or "two_view". Defaults to "infomax".
        within_noise (Optional[float]): floor of W and B, in units of the features' variance.
            Defaults to None, which is 0.001 for infomax and 0.1 for two_view.
        total_noise (Optional[float]): floor of A, at most within_noise: the lower it is, the
            stronger the barrier against dimensional collapse. Defaults to None, which is 0.001 for
            infomax and 0.01 for two_view.

    Returns:
        Dict[str, torch.Tensor]: "loss", and the entropies that it is made of in nats per dimension:
            "total", "within" and, for two_view, "between".
    """

    assert len(views) > 1
    assert reading in ["infomax", "two_view"]
    if within_noise is None:
        within_noise = 0.001 if reading == "infomax" else 0.1
    if total_noise is None:
        total_noise = 0.001 if reading == "infomax" else 0.01
    assert 0 < total_noise <= within_noise

    # autocast would take the covariances in 16 bits, however precise the features are
    with torch.autocast(device_type=views[0].device.type, enabled=False):
        z = torch.stack([view if view.dtype == torch.float64 else view.float() for view in views])
        z = gather(z, dim=1)
        V, N, D = z.size()
        assert N > 1 and D > 0

        # orthogonal combinations of the views: their mean times sqrt(V) and V - 1 differences
        basis = torch.as_tensor(helmert(V, full=True), dtype=z.dtype, device=z.device)
        means, *differences = torch.einsum("wv,vnd->wnd", basis, z - z.mean(dim=(0, 1)))

        # and of the images: N - 1 of the means' N rows, as the N centered ones are linearly
        # dependent, which would amplify rounding errors when N < D
        means = means[1:] + (means[0] - means.sum(dim=0) / math.sqrt(N)) / (math.sqrt(N) - 1)

        # standardize each coordinate over all views together; dividing by a norm that overflowed
        # would silently make zeros of it, while NaN fails loudly
        rows = torch.cat([means, *differences]) / math.sqrt(V * N)
        norms = rows.norm(dim=0).clamp_min(math.sqrt(1e-5))
        rows = rows / norms.masked_fill(norms.isinf(), math.nan)

        total = entropy(rows, total_noise)
        within_rows = rows[N - 1 :] * math.sqrt(V / (V - 1))
        if reading == "infomax":
            within = (within_rows.square().sum() / D + within_noise).log() / 2
            return {"loss": within - total, "total": total, "within": within}

        within = entropy(within_rows, within_noise)
        between = entropy(rows[: N - 1] * math.sqrt(V), within_noise)
        loss = within + (between - V * total) / (V - 1)
        return {"loss": loss, "total": total, "within": within, "between": between}
