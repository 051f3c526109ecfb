"""Mixed precision: the network in 16 bits, the loss in float32."""

import math

import pytest
import torch

from solo_mim.methods import explicit_mim


@pytest.fixture
def seen(monkeypatch):
    """(dtype of z, whether autocast is on, dtype of the loss) of every call of the loss."""
    calls = []
    terms_of = explicit_mim.explicit_mim_terms

    def watched(views, **options):
        terms = terms_of(views, **options)
        calls.append((views[0].dtype, torch.is_autocast_enabled(views[0].device.type), terms.loss))
        return terms

    monkeypatch.setattr(explicit_mim, "explicit_mim_terms", watched)
    return calls


def _trained(make_model, fit, precision, **kwargs):
    torch.manual_seed(0)
    model = make_model("explicit_mim", epochs=2)
    fit(model, precision=precision, **kwargs)
    return model


def test_loss_of_a_16_bit_network_is_float32_and_near_that_of_32_bits(make_model, fit, seen):
    _trained(make_model, fit, "32-true")
    full = [float(loss.detach()) for *_, loss in seen]
    assert {(z, autocast) for z, autocast, _ in seen} == {(torch.float32, False)}
    seen.clear()
    model = _trained(make_model, fit, "bf16-mixed")  # on CPUs lightning takes it for 16-mixed too
    assert {autocast for _, autocast, _ in seen} == {True}
    assert {z for z, *_ in seen} == {torch.bfloat16}
    assert {loss.dtype for *_, loss in seen} == {torch.float32}
    mixed = [float(loss.detach()) for *_, loss in seen]
    assert mixed[0] == pytest.approx(full[0], abs=5e-3)
    assert all(map(math.isfinite, mixed))
    assert min(mixed) < mixed[0], "it learns"
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_cuda_training_in_16_bits_keeps_the_loss_in_float32(precision, make_model, fit, seen):
    model = _trained(make_model, fit, precision, accelerator="gpu", devices=1)
    assert {z for z, *_ in seen} == {
        {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    }
    assert {loss.dtype for *_, loss in seen} == {torch.float32}
    assert all(p.isfinite().all() for p in model.parameters())
