"""Every run below a folder, whatever has become of it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from solo_mim.errors import ConfigError, nearest
from solo_mim.runs import files
from solo_mim.runs.identity import is_value, settings_of
from solo_mim.runs.lock import FolderLock

STATES = ("running", "finished", "failed", "stopped", "damaged")


@dataclass(frozen=True)
class Listed:
    """A run's folder as a row of a table.

    Attributes:
        settings: its configuration by dotted key; empty where that cannot be read.
        epochs: that are done, and of how many; None where nothing says.
        state: one of `STATES`; a run that is stopped goes on by the command that began it.
        accuracies: top-1 in percent by name, of a finished run.
        size: bytes on disk, evaluations included.
        reason: of a failure or a damage, one line.
    """

    folder: Path
    settings: dict[str, Any]
    epochs: tuple[int, int] | None
    state: str
    accuracies: dict[str, float]
    size: int
    reason: str = ""

    @property
    def columns(self) -> dict[str, str]:
        """What a table shows, and a filter goes by."""
        of = self.settings
        row = {
            "method": str(of.get("method", "?")),
            "data": str(of.get("data.dataset", "?")),
            "seed": str(of.get("seed", "?")),
            "epochs": "/".join(map(str, self.epochs)) if self.epochs else "?",
            "state": self.state,
        }
        row |= {name: f"{self.accuracies[name]:.1f}" if self.accuracies else "" for name in _SHOWN}
        return {**row, "disk": _size(self.size), "folder": str(self.folder)}


# Column -> where it lies in a result; the offline figure, or the online one where there is none.
_SHOWN = {"probe": "probe_top1", "kNN": "knn_top1"}


def listed(roots: Iterable[Path]) -> list[Listed]:
    """Every run at or below folders, in the order of their paths, each once; evaluations of runs
    belong to these."""
    paths = [path.parent for root in roots for path in files.below(root, files.PROVENANCE)]
    found = {path.resolve(): path for path in paths}
    outer = sorted(path for at, path in found.items() if not found.keys() & set(at.parents))
    rows = [row_of(path) for path in outer if _is_a_run(path)]
    return [row for row in rows if "pretrained_feature_extractor" not in row.settings]


def filtered(runs: list[Listed], wanted: Iterable[str]) -> list[Listed]:
    """Those that have every `key=value`: of a column, or of a dotted key of the configuration.

    Raises:
        ConfigError: no run has such a key, or an argument is no filter.
    """
    for one in wanted:
        key, equals, value = one.partition("=")
        known = {name for run in runs for name in (*run.columns, *run.settings)}
        if not equals or (runs and key not in known):
            raise ConfigError(f"{one}: no filter; write KEY=VALUE{nearest(key, known)}")
        runs = [run for run in runs if is_value({**run.settings, **run.columns}.get(key), value)]
    return runs


def table(runs: list[Listed]) -> str:
    """Columns as wide as what is in them, and below them why what failed did."""
    rows = [run.columns for run in runs]
    heads = list(rows[0])
    widths = {head: max(len(head), *(len(row[head]) for row in rows)) for head in heads}
    lines = [{head: head for head in heads}, *rows]
    shown = ["  ".join(line[h].ljust(widths[h]) for h in heads).rstrip() for line in lines]
    reasons = [f"{run.folder}: {run.reason}" for run in runs if run.reason]
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    counted = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    size = _size(sum(run.size for run in runs))
    total = f"{len(runs)} run{'s' * (len(runs) > 1)} ({counted}), {size}"
    return "\n".join([*shown, *([""] * bool(reasons)), *reasons, "", total])


def _is_a_run(folder: Path) -> bool:
    """And no evaluation of weights that are no run's."""
    named = re.search(r"-seed\d+-[0-9a-f]{8}$", folder.name) is not None
    return named or (folder / files.METRICS).exists()


def row_of(folder: Path) -> Listed:
    """What the folder of a run or of an evaluation says, where a file of it is damaged too."""
    state, reason, result, settings = "stopped", "", None, {}
    # Before its files and after: a run may end meanwhile, which leaves a result, or begin.
    held = FolderLock.is_held(folder)
    try:
        settings = settings_of(files.read_yaml(folder / files.CONFIGURATION), ())
        result = files.read_json(folder / files.RESULT, dict)
    except (ConfigError, OSError, ValueError, yaml.YAMLError) as error:
        state, reason = "damaged", " ".join(str(error).split())
    if held or (not result and FolderLock.is_held(folder)):
        state, reason = "running", ""
    elif result:
        state = "finished"
    elif state != "damaged":
        with contextlib.suppress(FileNotFoundError):
            state, reason = "failed", (folder / files.FAILURE).read_text().strip()
    wanted = settings.get("max_epochs")
    done = (files.epochs_done(folder), wanted) if isinstance(wanted, int) else None
    accuracies, size = _accuracies(result or {}), files.size_of(folder)
    return Listed(folder, settings, done, state, accuracies, size, reason)


def _accuracies(result: dict[str, Any]) -> dict[str, float]:
    of = (result.get("offline") or {}).get("trained") or result.get("online") or {}
    found = {name: of.get(key) for name, key in _SHOWN.items()}
    return {name: value for name, value in found.items() if value is not None}


def _size(count: float) -> str:
    """`812 KB`, `1.3 GB`."""
    for unit in ("KB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.0f} {unit}"
    return f"{count / 1000:.1f} GB"
