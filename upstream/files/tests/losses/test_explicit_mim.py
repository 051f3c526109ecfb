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

import pytest
import torch
from solo.losses import explicit_mim_loss_func


@pytest.mark.parametrize("reading", ["infomax", "two_view"])
@pytest.mark.parametrize("num_views", [2, 3])
def test_explicit_mim_loss(reading, num_views):
    b, f = 32, 128
    views = [torch.randn(b, f).requires_grad_() for _ in range(num_views)]

    loss = explicit_mim_loss_func(views, reading=reading)["loss"]
    initial_loss = loss.item()
    assert loss != 0

    for _ in range(20):
        loss = explicit_mim_loss_func(views, reading=reading)["loss"]
        loss.backward()
        for z in views:
            z.data.add_(-0.5 * z.grad)
            z.grad = None

    assert loss < initial_loss


def test_explicit_mim_loss_of_known_correlation():
    # mutual information of Gaussian pairs with correlation rho: -1/2 log(1 - rho^2) per dimension
    n, f, rho = 20000, 4, 0.9
    generator = torch.Generator().manual_seed(0)
    z1, noise = torch.randn(2, n, f, generator=generator, dtype=torch.float64)
    z2 = rho * z1 + math.sqrt(1 - rho**2) * noise

    kwargs = {"within_noise": 1e-9, "total_noise": 1e-9}
    terms = explicit_mim_loss_func([z1, z2], reading="two_view", **kwargs)
    assert terms["loss"].item() == pytest.approx(0.5 * math.log(1 - rho**2), abs=0.01)

    terms = explicit_mim_loss_func([z1, z2], **kwargs)
    assert terms["loss"].item() == pytest.approx(0.5 * math.log(1 - rho), abs=0.01)
    assert terms["loss"] == terms["within"] - terms["total"]


def test_explicit_mim_loss_sides():
    # coordinates without variance add log det (noise I) to each term, and more of them than samples
    # have the determinants computed from the samples' products instead of the covariances
    b, f, extra = 16, 8, 100
    views = [torch.randn(b, f, dtype=torch.float64) for _ in range(2)]
    wide = [torch.cat([z, torch.zeros(b, extra, dtype=torch.float64)], dim=1) for z in views]

    terms, wide_terms = (explicit_mim_loss_func(z, reading="two_view") for z in (views, wide))
    for name, noise in [("within", 0.1), ("between", 0.1), ("total", 0.01)]:
        expected = f * terms[name] + extra * math.log(noise) / 2
        assert torch.allclose((f + extra) * wide_terms[name], expected)


def test_explicit_mim_loss_under_autocast():
    views = [torch.randn(64, 32) for _ in range(2)]
    expected = explicit_mim_loss_func(views)["loss"]
    with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
        assert torch.equal(explicit_mim_loss_func(views)["loss"], expected)
