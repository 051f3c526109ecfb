"""The seam to solo-learn: the only folder that imports `solo`.

Two generations of solo-learn are in use and both stand behind one contract, that of its main
branch: `BaseMethod(cfg)` with `backbone`, `features_dim`, `learnable_params`, `forward(X) -> dict`
and `training_step`, and `METHODS[name](cfg)`.

- `released`: solo-learn 1.0.2, what the package registry has; adapted at import.
- `current`: a checkout of solo-learn main; imported as it is, only what is broken is mended.

Which of them is found on the import path decides. Checkpoint keys are main's in both.
"""

from __future__ import annotations

from solo_mim.installed import host_generation

GENERATION = host_generation()

if GENERATION == "current":
    from solo_mim.host.current import (
        BACKBONES,
        LOSSES,
        METHODS,
        BaseMethod,
        BaseMomentumMethod,
        build_backbone,
    )
else:
    from solo_mim.host.released import (
        BACKBONES,
        LOSSES,
        METHODS,
        BaseMethod,
        BaseMomentumMethod,
        build_backbone,
    )

__all__ = [
    "BACKBONES",
    "GENERATION",
    "LOSSES",
    "METHODS",
    "BaseMethod",
    "BaseMomentumMethod",
    "build_backbone",
]
