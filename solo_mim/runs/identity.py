"""What makes a run another run: its configuration, its images, the code and the weights that it
starts from."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

import solo_mim
from solo_mim import installed

# Where images lie, which a fingerprint of them stands for.
DATA_PATHS = ("data.train_path", "data.val_path")
# Where results go and how they are shown does not change them.
NOT_IDENTITY = (
    *DATA_PATHS,
    # Of these three the weights count, not where they lie.
    *("backbone.weights", "pretrained_feature_extractor", "resume_from_checkpoint"),
    *("output_dir", "other_code", "progress_bar", "wandb", "tensorboard", "checkpoint"),
    *("auto_resume", "auto_umap", "debug_augmentations", "data.num_workers"),
)

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "timm", "numpy")


def settings_of(config: Any, without: Iterable[str] = NOT_IDENTITY) -> dict[str, Any]:
    """Plain configuration by dotted key, `augmentations[0].crop_size`, less some sections or
    keys."""
    ignored = tuple(f"{key}." for key in without)
    flat = _flat(config, "")
    return {key: value for key, value in flat.items() if not f"{key}.".startswith(ignored)}


def _flat(node: Any, key: str) -> dict[str, Any]:
    if isinstance(node, dict) and node:
        parts = [(f"{key}.{name}" if key else str(name), value) for name, value in node.items()]
    elif isinstance(node, list) and node:
        parts = [(f"{key}[{index}]", value) for index, value in enumerate(node)]
    else:
        return {key: node}
    return dict(leaf for name, value in parts for leaf in _flat(value, name).items())


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Keys, sorted, in which not all settings are alike; one that is absent is None."""

    def values(key: str) -> set[str]:
        return {json.dumps(one.get(key), default=str) for one in settings}

    keys = sorted({key for one in settings for key in one})
    return [key for key in keys if len(values(key)) > 1]


def is_value(value: Any, wanted: str) -> bool:
    """Whether a setting has the value that is written on a command line: 1e-3 is 0.001, false is
    False."""
    if str(value) == wanted:
        return True
    with contextlib.suppress(yaml.YAMLError, TypeError, ValueError):
        return value == yaml.safe_load(wanted) or float(value) == float(wanted)
    return False


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """`key old -> new` of the first three that differ and how many more do; empty where none."""
    found = [
        f"{key} {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in {**new, **old}
        if key not in old or key not in new or old[key] != new[key]
    ]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


def images_of(config: dict[str, Any], fingerprint: str | None) -> dict[str, Any]:
    """What tells the images of a configuration from others: by their paths where there is no
    fingerprint."""
    paths = () if fingerprint else ("train_path", "val_path")
    keys = ("dataset", "fraction", "validation_split", *paths)
    found = {key: config.get("data", {}).get(key) for key in keys}
    return {**found, "images": fingerprint} if fingerprint else found


def identity(config: dict[str, Any], made_with: str, images: str | None) -> str:
    """Eight hex digits of the checked configuration, our version, the fingerprint of the images and
    what else made the result: the host, a plug-in, weights that it starts from.

    None for the images gives the identity by paths, of runs from before there were fingerprints.
    """
    without = NOT_IDENTITY if images else [key for key in NOT_IDENTITY if key not in DATA_PATHS]
    settings = settings_of(config, without)
    parts = [settings, solo_mim.__version__, made_with, *([images] if images else [])]
    content = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def folder_by_identity(start: Path, config: dict[str, Any], made_with: str, images: str) -> Path:
    """`START-HASH`, the hash being the identity; that by paths where there is such a folder and
    none of the other."""
    new, old = (
        start.with_name(f"{start.name}-{identity(config, made_with, by)}") for by in (images, None)
    )
    return old if old.exists() and not new.exists() else new


def folder_of(config: dict[str, Any], images: str, weights: str | None = None) -> Path:
    """`output_dir/name-seedS-HASH`: the hash is of configuration, images (their fingerprint),
    version and host; of the plug-in's version where the method is of one, and of the checkpoint
    that it resumes from or the weights (their digest) that it starts from."""
    made_with = [host(), *installed.plugin_packages(config["method"])]
    start = Path(config["resume_from_checkpoint"] or "")
    made_with += [hashlib.sha256(start.read_bytes()).hexdigest()] if start.is_file() else []
    made_with += [weights] if weights else []
    folder = Path(config["output_dir"]) / f"{config['name']}-seed{config['seed']}"
    return folder_by_identity(folder, config, " ".join(made_with), images)


def host() -> str:
    """Generation and version of solo-learn."""
    return f"{installed.host_generation()} {installed.host_version()}"


def commit() -> str | None:
    """As `installed.commit_of`, of the checkout that the package is imported from."""
    return installed.commit_of(installed.PACKAGE.parent)


def versions(method: str | None = None) -> dict[str, str]:
    """Versions of Python, of the packages that matter, of the host, of solo-mim and, where the
    method is a plug-in's, of that."""
    found = {"python": platform.python_version(), "solo-mim": solo_mim.__version__}
    found["solo-learn"] = f"{installed.host_version()} ({installed.host_generation()})"
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    for package in installed.plugin_packages(method):
        name, _, version = package.rpartition(" ")
        found[name] = version
    return found
