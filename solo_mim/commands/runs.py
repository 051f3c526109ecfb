"""A run's folder: what it was made with, its checkpoints, its metrics and its result."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

import solo_mim
from solo_mim import host
from solo_mim.commands.configuration import PACKAGE, identity

RESULT = "result.json"
METRICS = "metrics.csv"
CHECKPOINTS = "checkpoints"
_SESSIONS = "log"

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "timm", "numpy")


def folder_of(cfg: DictConfig) -> Path:
    """`output_dir/name-seedS-HASH`: the hash is of configuration, code version and host."""
    digest = identity(cfg, f"{host.GENERATION} {host.host_version()}")
    return Path(cfg.output_dir) / f"{cfg.name}-seed{cfg.seed}-{digest}"


def commit() -> str | None:
    """Commit of the checkout that the package is imported from, `+` appended when it has
    changes."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    git = ["git", "-C", str(PACKAGE.parent)]
    try:
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that matter, of the host and of solo-mim."""
    found = {"python": platform.python_version(), "solo-mim": solo_mim.__version__}
    found["solo-learn"] = f"{host.host_version()} ({host.GENERATION})"
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: Path, content: Any) -> None:
    """Writes a file that is there whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def prepare(folder: Path, cfg: DictConfig) -> None:
    """Makes the folder and writes the configuration, and this sitting's provenance, into it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    path = folder / "provenance.json"
    sittings = json.loads(path.read_text()) if path.exists() else []
    sitting = {"versions": versions(), "commit": commit(), "seed": cfg.seed}
    write_json(path, [*sittings, sitting])


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the latest epoch.

    lightning moves a finished file into place; across file systems that is a copy, which a kill can
    cut short. A zip archive has its directory at its end, so a cut one is told by that.
    """
    found = (folder / CHECKPOINTS).glob("epoch=*.ckpt")
    numbered = [(int(m.group(1)), p) for p in found if (m := re.match(r"epoch=(\d+)", p.name))]
    return max(((n, p) for n, p in numbered if zipfile.is_zipfile(p)), default=(0, None))[1]


def next_session(folder: Path) -> str:
    """Folder name for the CSV log of this sitting.

    lightning's CSV logger deletes the log it finds, so every sitting has its own and
    `collect_metrics` joins them.
    """
    return f"{_SESSIONS}/{len(list((folder / _SESSIONS).glob('*'))):03d}"


def collect_metrics(folder: Path) -> pd.DataFrame:
    """One row per epoch from the logs of all sittings, later sittings first; written to
    metrics.csv."""
    logs = sorted((folder / _SESSIONS).glob(f"*/{METRICS}"))
    frames = [pd.read_csv(log) for log in logs if log.stat().st_size]
    frames = [frame for frame in frames if "epoch" in frame]  # not a sitting's that ended at once
    if not frames:
        return pd.DataFrame(columns=["epoch"])
    # A logged epoch is spread over several rows (training, validation): the last value of each
    # column.
    epochs = [frame.groupby("epoch").last() for frame in frames]
    joined = epochs[0]
    for frame in epochs[1:]:
        joined = frame.combine_first(joined[joined.index < frame.index.min()])
    joined = (
        joined.drop(columns=[c for c in joined if c.endswith("_step")]).sort_index().reset_index()
    )
    partial = folder / f"{METRICS}.partial"
    joined.to_csv(partial, index=False)
    os.replace(partial, folder / METRICS)
    return joined
