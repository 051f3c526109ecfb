"""Log-determinants: value, gradient, and failures that name their cause."""

from types import SimpleNamespace

import pytest
import torch

from solo_mim.losses import (
    ExplicitMIMError,
    ExplicitMIMLoss,
    NonFiniteEmbeddingError,
    NotPositiveDefiniteError,
)
from solo_mim.losses.logdet import _DeferredCheck, check_deferred, logdet, settle_deferred


def spd(dim: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(
        3 * dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return rows.mT @ rows / len(rows)


def test_value_and_gradient_equal_slogdet_of_the_rescaled_matrix():
    matrix, variance = spd(5).requires_grad_(), torch.rand(5, dtype=torch.float64).add(0.5)
    variance.requires_grad_()
    value = logdet(matrix, 0.3, variance)
    scale = variance.rsqrt()
    expected = torch.linalg.slogdet(
        scale[:, None] * matrix * scale + 0.3 * torch.eye(5, dtype=torch.float64)
    ).logabsdet
    torch.testing.assert_close(value, expected)
    ours = torch.autograd.grad(value, (matrix, variance))
    torch.testing.assert_close(ours, torch.autograd.grad(expected, (matrix, variance)))


def test_diagonal_matrix_has_the_sum_of_logs():
    diagonal = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    assert logdet(torch.diag(diagonal), 0.25).item() == pytest.approx(
        (diagonal + 0.25).log().sum().item()
    )


def test_matrix_is_left_as_it_was():
    matrix = spd(4)
    before = matrix.clone()
    logdet(matrix, 1.0)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(1, 1), (0, 2)])
def test_non_finite_matrix_raises_its_own_error(bad, place):
    matrix = spd(4)
    matrix[place] = matrix[place[::-1]] = bad
    with pytest.raises(NonFiniteEmbeddingError, match="the within covariance is not finite"):
        logdet(matrix, 1.0, name="the within covariance")


def test_indefinite_matrix_raises_and_names_the_minor_and_no_jitter_hides_it():
    matrix = torch.diag(torch.tensor([1.0, -1e-9, 1.0], dtype=torch.float64))
    with pytest.raises(NotPositiveDefiniteError, match=r"order 2.*raise the floor"):
        logdet(matrix)
    assert issubclass(NotPositiveDefiniteError, ExplicitMIMError)
    assert logdet(matrix, 1e-6).isfinite()


def test_second_derivative_is_refused():
    matrix = spd(3).requires_grad_()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(logdet(matrix), matrix, create_graph=True)


@pytest.fixture
def stream(monkeypatch):
    """Stands in for CUDA's: what is copied has arrived."""
    event = SimpleNamespace(synchronize=lambda: None)
    stream = SimpleNamespace(record_event=lambda: event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)


@pytest.mark.usefixtures("stream")
def test_status_of_the_last_call_is_read_at_the_end_and_not_in_the_next_run():
    check_deferred({"the total covariance": torch.tensor(0)})
    settle_deferred()
    check_deferred({"the total covariance": torch.tensor(-1)})
    with pytest.raises(NonFiniteEmbeddingError, match=r"at call 1, noticed at the end"):
        settle_deferred()
    check_deferred({"the total covariance": torch.tensor(0)})
    settle_deferred()


@pytest.mark.usefixtures("stream")
def test_deferred_status_is_read_at_the_next_call_and_names_the_failed_one():
    check = _DeferredCheck()
    fine = {"the total covariance": torch.tensor(0), "the within covariance": torch.tensor(0)}
    check(fine)
    check({**fine, "the within covariance": torch.tensor(7)})
    with pytest.raises(
        NotPositiveDefiniteError, match=r"the within covariance.*at call 2.*order 7"
    ):
        check(fine)
    check({**fine, "the total covariance": torch.tensor(-1)})
    with pytest.raises(NonFiniteEmbeddingError, match=r"the total covariance.*at call 4"):
        check(fine)
    check(fine)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_failure_is_nan_at_once_and_an_error_one_call_later():
    loss = ExplicitMIMLoss()
    views = torch.randn(2, 64, 16, device="cuda")
    assert loss(views).isfinite()
    broken = views.clone()
    broken[0, 3, 2] = float("nan")
    broken.requires_grad_()
    value = loss(broken)
    value.backward()
    assert value.isnan()
    assert broken.grad.isnan().all()
    with pytest.raises(NonFiniteEmbeddingError, match=r"at call \d+, noticed one call later"):
        loss(views)
    assert loss(views).isfinite()
    torch.cuda.synchronize()
