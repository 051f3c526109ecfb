"""Every method that can be trained: solo-learn's, as its host generation offers them, and ours."""

from __future__ import annotations

from solo_mim import host
from solo_mim.methods.explicit_mim import ExplicitMIM

METHODS: dict[str, type] = {**host.METHODS, "explicit_mim": ExplicitMIM}

__all__ = ["METHODS", "ExplicitMIM"]
