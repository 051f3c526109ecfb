"""The explicit mutual information loss, and rivals of it. Imports torch alone."""

from solo_mim.losses.explicit_mim import (
    ExplicitMIMLoss,
    ExplicitMIMOptions,
    ExplicitMIMTerms,
    explicit_mim_loss_func,
    explicit_mim_terms,
    rewards_collapse,
)
from solo_mim.losses.gaussianity import non_gaussianity, sliced_epps_pulley
from solo_mim.losses.logdet import (
    ExplicitMIMError,
    NonFiniteEmbeddingError,
    NotPositiveDefiniteError,
)
from solo_mim.losses.rivals import (
    CorInfoMaxLoss,
    frossl_loss_func,
    lejepa_loss_func,
    mec_loss_func,
    visreg_loss_func,
)

__all__ = [
    "CorInfoMaxLoss",
    "ExplicitMIMError",
    "ExplicitMIMLoss",
    "ExplicitMIMOptions",
    "ExplicitMIMTerms",
    "NonFiniteEmbeddingError",
    "NotPositiveDefiniteError",
    "explicit_mim_loss_func",
    "explicit_mim_terms",
    "frossl_loss_func",
    "lejepa_loss_func",
    "mec_loss_func",
    "non_gaussianity",
    "rewards_collapse",
    "sliced_epps_pulley",
    "visreg_loss_func",
]
