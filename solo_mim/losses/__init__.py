"""The explicit mutual information loss. Imports torch alone.

statistics.py    covariances of V views, between, within and total, over all processes
logdet.py        log-determinants by one Cholesky factor each, and their typed errors
explicit_mim.py  the loss as a function that returns its terms, and as a module
"""

from solo_mim.losses.explicit_mim import (
    ExplicitMIMLoss,
    ExplicitMIMTerms,
    explicit_mim_loss_func,
)
from solo_mim.losses.logdet import (
    ExplicitMIMError,
    NonFiniteEmbeddingError,
    NotPositiveDefiniteError,
)

__all__ = [
    "ExplicitMIMError",
    "ExplicitMIMLoss",
    "ExplicitMIMTerms",
    "NonFiniteEmbeddingError",
    "NotPositiveDefiniteError",
    "explicit_mim_loss_func",
]
