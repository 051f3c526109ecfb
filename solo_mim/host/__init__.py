"""The seam to solo-learn: the only folder that imports `solo`.

Two generations of solo-learn are in use and both stand behind one contract, that of its main
branch: `BaseMethod(cfg)` with `backbone`, `features_dim`, `learnable_params`, `forward(X) -> dict`
and `training_step`, and `METHODS[name](cfg)`.

- `released`: solo-learn 1.0.2, what the package registry has; adapted at import.
- `current`: a checkout of solo-learn main; imported as it is, only what is broken is mended.

Which of them is found on the import path decides. Checkpoint keys are main's in both.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import subprocess
from pathlib import Path

from solo_mim.errors import MissingHostError


def _find_host() -> Path:
    spec = importlib.util.find_spec("solo")
    if spec is None or not spec.submodule_search_locations:
        raise MissingHostError(
            "solo-learn is not installed (no module `solo`). Install it without its outdated pins: "
            'pip install --no-deps "solo-learn==1.0.2"'
        )
    return Path(next(iter(spec.submodule_search_locations)))


LOCATION = _find_host()
# solo/backbones appeared with main's move to Hydra; 1.0.2 keeps them in solo/utils/backbones.py.
GENERATION = "current" if (LOCATION / "backbones").is_dir() else "released"


def commit_of(folder: Path) -> str | None:
    """Commit of a checkout, `+` appended when it has changes; None of a folder that is none."""
    if not (folder / ".git").exists():
        return None
    found = []
    # A kill amid a refresh of the index would leave its lock.
    for command in (["rev-parse", "HEAD"], ["--no-optional-locks", "status", "--porcelain"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        found.append(done.stdout.strip())
    revision, changes = found
    return revision + ("+" if changes else "")


@functools.cache
def host_version() -> str:
    """solo-learn's version; of main, whose number stands still, `main` and the commit."""
    if GENERATION == "current":
        return " ".join(filter(None, ["main", (commit_of(LOCATION.parent) or "")[:7]]))
    try:
        return importlib.metadata.version("solo-learn")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


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
    "LOCATION",
    "LOSSES",
    "METHODS",
    "BaseMethod",
    "BaseMomentumMethod",
    "build_backbone",
    "commit_of",
    "host_version",
]
