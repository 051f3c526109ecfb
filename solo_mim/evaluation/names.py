"""What the rows and tables of a report are called: names as papers have them, and what differs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from solo_mim.runs.collect import Run
from solo_mim.runs.identity import differing, images_of

METHODS = {
    "all4one": "All4One",
    "barlow_twins": "Barlow Twins",
    "byol": "BYOL",
    "corinfomax": "CorInfoMax",
    "deepclusterv2": "DeepCluster v2",
    "dino": "DINO",
    "explicit_mim": "Explicit MIM",
    "frossl": "FroSSL",
    "lejepa": "LeJEPA",
    "mae": "MAE",
    "mec": "MEC",
    "mocov2plus": "MoCo v2+",
    "mocov3": "MoCo v3",
    "nnbyol": "NNBYOL",
    "nnclr": "NNCLR",
    "nnsiam": "NNSiam",
    "ressl": "ReSSL",
    "simclr": "SimCLR",
    "simsiam": "SimSiam",
    "supcon": "SupCon",
    "swav": "SwAV",
    "vibcreg": "VIbCReg",
    "vicreg": "VICReg",
    "visreg": "VISReg",
    "wmse": "W-MSE",
}
BACKBONES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "small_cnn": "small CNN",
    "vit_tiny": "ViT-Tiny",
}
DATA_SETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "imagenet": "ImageNet",
    "imagenet100": "ImageNet-100",
    "photo_patches": "photo patches",
    "stl10": "STL-10",
}
# What every row of a table says where not all are alike in it, of whatever method.
_OF_ALL_ROWS = ("backbone.name", "max_epochs")


def backbone_of(run: Run) -> str:
    """Its name; empty where the configuration has none."""
    name = str((run.config.get("backbone") or {}).get("name") or "")
    return BACKBONES.get(name, name)


def labels(runs: Sequence[Run]) -> list[str]:
    """Of the first run of each row: its method and what tells it from others of that."""
    names = [METHODS.get(run.result["method"], run.result["method"]) for run in runs]
    return told_apart(names, [run.settings for run in runs], _OF_ALL_ROWS)


def told_apart(
    names: Sequence[str], settings: Sequence[dict[str, Any]], of_all: Collection[str] = ()
) -> list[str]:
    """Each name; where several share one, with the settings in which they differ, less those that
    most of them have. What is `of_all` is said of each where not all names are alike in it."""
    keys = sorted({key for one in settings for key in one})
    usual = {
        name: _usual([s for n, s in zip(names, settings, strict=True) if n == name])
        for name in set(names)
    }
    general = set(differing(settings)) & set(of_all)
    found = []
    for name, own in zip(names, settings, strict=True):
        shown = [
            f"{_short(key, keys)}={own.get(key)}"
            for key in keys
            if key in general or (key in usual[name] and usual[name][key] != _text(own.get(key)))
            if own.get(key) is not None or usual[name].get(key)
        ]
        found.append(f"{name} ({', '.join(shown)})" if shown else name)
    return found


def _usual(settings: Sequence[dict[str, Any]]) -> dict[str, str | None]:
    """Keys that differ -> the value that more than half of the settings have, if any."""
    found = {}
    for key in differing(settings):
        ((value, count),) = Counter(_text(one.get(key)) for one in settings).most_common(1)
        found[key] = value if 2 * count > len(settings) else None
    return found


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


def _short(key: str, keys: Sequence[str]) -> str:
    """The shortest end of a key that no other has: `lr` of optimizer.lr, but `backbone.name`, for
    a name alone says nothing."""
    parts = key.split(".")
    ends = [".".join(parts[-n:]) for n in range(1, len(parts)) if parts[-n:] != ["name"]]
    for end in ends:
        if not any(other.endswith(f".{end}") or other == end for other in keys if other != key):
            return end
    return key


def titles(firsts: Sequence[Run]) -> list[str]:
    """Of a run of each table: its data set, and what of it; no two alike."""
    images = [images_of(run.config, run.fingerprint or "unknown") for run in firsts]
    for own, run in zip(images, firsts, strict=True):
        own["evaluated on"] = run.result.get("offline_evaluated_on")
        own["online on"] = run.result.get("evaluated_on")
    names = told_apart([_title(run) for run in firsts], images)
    counted = [f"{name}, {names[: place + 1].count(name)}" for place, name in enumerate(names)]
    return [c if names.count(name) > 1 else name for name, c in zip(names, counted, strict=True)]


def _title(run: Run) -> str:
    data = run.config.get("data") or {}
    name = str(run.result["data"])
    parts = [DATA_SETS.get(name) or _folder_name(data.get("train_path")) or name]
    if data.get("fraction") not in (None, -1):
        parts.append(f"{100 * data['fraction']:g} % of the training images")
    if data.get("validation_split"):
        parts.append(str(run.result.get("offline_evaluated_on")))
    return ", ".join(parts)


def _folder_name(path: str | None) -> str:
    """`birds` of /data/birds/train: images of one's own have no other name."""
    parts = [part for part in Path(path or "").parts if part not in ("/", "train", "images")]
    return parts[-1] if parts else ""


def facts(runs: Sequence[Run]) -> dict[str, str]:
    """What stands above a table, by what it is: of all of its runs."""
    first = next((run for run in runs if run.classes), runs[0])
    trained = [run.result["training_images"] for run in runs if run.result.get("training_images")]
    evaluated = sum(first.evaluated.values()) or first.result.get("held_out_images")
    on = first.result.get("offline_evaluated_on") or first.result.get("evaluated_on")
    images = [
        f"{trained[0]:,} for training" if trained else "training images not counted",
        f"{evaluated:,} evaluated ({on})" if evaluated else f"evaluated on {on or 'others'}",
    ]
    commits = sorted({_commit(run) for run in runs})
    more = f" and {len(commits) - 3} more" if len(commits) > 3 else ""
    found = {
        "Images": ", ".join(images),
        "Classes": str(first.classes or ""),
        "Backbone": ", ".join(sorted({backbone_of(run) for run in runs} - {""})),
        "Epochs": ranges(run.result["epochs"] for run in runs if run.result.get("epochs")),
        "Seeds": ranges(run.seed for run in runs),
        "Commit": ", ".join(commits[:3]) + more,
    }
    return {name: text for name, text in found.items() if text}


def _commit(run: Run) -> str:
    """Ten digits; + stands for changes that were not committed."""
    commit = str(run.result.get("commit") or "unknown")
    return commit[:10] + ("+" if commit.endswith("+") else "")


def ranges(numbers: Iterable[int]) -> str:
    """`1-3, 5` of 1, 2, 3 and 5."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}\u2013{b}" for a, b in spans)
