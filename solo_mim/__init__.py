"""Explicit mutual information maximisation beside the solo-learn baselines."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solo_mim.api import knn, linear, pretrain, report

__version__ = "0.1.0"
__all__ = ["knn", "linear", "pretrain", "report"]


def __getattr__(name: str) -> Any:
    """The functions of `solo_mim.api`, imported once they are asked for: they take seconds."""
    if name in __all__:
        from solo_mim import api

        return getattr(api, name)
    raise AttributeError(f"module 'solo_mim' has no attribute {name!r}")
