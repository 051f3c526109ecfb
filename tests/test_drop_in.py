"""The loss in loops that are not ours, and the signatures that those who use it rely on."""

import inspect
from pathlib import Path

import pytest

from solo_mim import information, losses

EXAMPLES = Path(__file__).parents[1] / "examples"

LOSS_OPTIONS = (
    "reading='infomax', within=None, within_noise=None, total_noise=None, between_noise=None, "
    "normalisation='standardise', gaussianity=0.0)"
)
VIEW_OPTIONS = "(views, reading='infomax', noise=0.01, normalisation='standardise'"
# A parameter less, renamed or with another default breaks code that calls it: not without saying so
# in the version.
SIGNATURES = {
    "information.alpha_req": "(z, ranks=(4, 100))",
    "information.canonical_correlations": "(z1, z2)",
    "information.effective_rank": "(z)",
    "information.gaussian_copula": "(z)",
    "information.generalised_gaussian_offset": "(beta, dim)",
    "information.lidar": "(views, delta=0.0001, epsilon=1e-07)",
    "information.mutual_information": "(z1, z2, noise=0.0)",
    "information.mutual_information_from_covariances": "(c1, c2, c12)",
    "information.rankme": "(z, epsilon=1e-07)",
    "information.shuffled_information": f"{VIEW_OPTIONS}, generator=None)",
    "information.small_sample_bias": "(num_samples, dim, num_views=2, reading='infomax')",
    "information.total_spectrum": "(views)",
    "information.view_information": f"{VIEW_OPTIONS})",
    "losses.CorInfoMaxLoss": "(dim, alpha=250.0, eps=1e-08, forgetting=0.01, normalisation='l2')",
    "losses.CorInfoMaxLoss.forward": "(self, z1, z2)",
    "losses.ExplicitMIMError": "RuntimeError",
    "losses.ExplicitMIMLoss": f"(*, process_group=None, {LOSS_OPTIONS}",
    "losses.ExplicitMIMLoss.forward": "(self, *views)",
    "losses.ExplicitMIMOptions": f"(*, {LOSS_OPTIONS}",
    "losses.ExplicitMIMTerms": "(loss, total, within, between, non_gaussianity=None)",
    "losses.NonFiniteEmbeddingError": "ExplicitMIMError",
    "losses.NotPositiveDefiniteError": "ExplicitMIMError",
    "losses.explicit_mim_loss_func": f"(*views, process_group=None, seed=0, {LOSS_OPTIONS}",
    "losses.explicit_mim_terms": f"(*views, process_group=None, seed=0, {LOSS_OPTIONS}",
    "losses.frossl_loss_func": "(views, invariance_weight=1.0)",
    "losses.lejepa_loss_func": (
        "(views, lamb=0.05, num_slices=1024, t_max=5.0, n_points=17, seed=0)"
    ),
    "losses.mec_loss_func": "(predictions, targets, inverse_lambda, order=4)",
    "losses.non_gaussianity": "(z, num_slices=1024, n_points=33, seed=0, group=None)",
    "losses.rewards_collapse": "(total_noise, within_noise, between_noise=None, num_views=2)",
    "losses.sliced_epps_pulley": (
        "(z, num_slices=1024, t_max=5.0, n_points=17, seed=0, group=None)"
    ),
    "losses.visreg_loss_func": "(views, lamb=0.9, num_projections=4096, seed=0)",
}


def public():
    """Everything public of the loss floor: of modules, of the losses' `forward`."""
    found = {f"losses.{name}": getattr(losses, name) for name in losses.__all__}
    for name, value in vars(information).items():
        own = inspect.isfunction(value) and value.__module__ == information.__name__
        if own and not name.startswith("_"):
            found[f"information.{name}"] = value
    forwards = {f"{n}.forward": v.forward for n, v in found.items() if hasattr(v, "forward")}
    return found | forwards


def shown(value):
    """Parameters with their defaults, without annotations; of an error, what it is one of."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return value.__base__.__name__
    signature = inspect.signature(value)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def test_public_signatures():
    assert {name: shown(value) for name, value in public().items()} == SIGNATURES


def test_plain_torch_learns(load_script):
    untrained, trained = load_script(EXAMPLES / "plain_torch.py").main(epochs=1)
    assert trained > untrained + 3


def test_lightly_learns(load_script):
    pytest.importorskip("lightly", reason="lightly is not installed")
    first, second = load_script(EXAMPLES / "lightly_vicreg.py").main(epochs=2)
    assert second < first
