"""A run's folder: what it was made with, its checkpoints, its metrics and its result.

Every file in it is there whole or not at all: it is written under another name and then renamed.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import solo_mim
from solo_mim import host
from solo_mim.commands import sources, stopping
from solo_mim.commands.configuration import PACKAGE, folder_by_identity
from solo_mim.errors import ConfigError
from solo_mim.evaluation.collect import codes_of, settings_of
from solo_mim.evaluation.offline import Predictions
from solo_mim.methods import METHODS, origins

CONFIGURATION = "config.yaml"
PROVENANCE = "provenance.json"
RESULT = "result.json"
METRICS = "metrics.csv"
PREDICTIONS = "predictions.csv"
YARDSTICKS = "yardsticks.json"
FAILURE = "failure.txt"
CHECKPOINTS = "checkpoints"
_SESSIONS = "log"
_PARTIAL = ".partial"
_LOCK = ".lock"

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "timm", "numpy")


def folder_of(cfg: DictConfig, images: str, weights: str | None = None) -> Path:
    """`output_dir/name-seedS-HASH`: the hash is of configuration, images (their fingerprint),
    version and host; of the plug-in's version where the method is of one, and of the checkpoint
    that it resumes from or the weights (their digest) that it starts from."""
    made_with = [host.GENERATION, host.host_version(), *_plugin(cfg.method)]
    start = Path(cfg.resume_from_checkpoint or "")
    if start.is_file():
        made_with.append(hashlib.sha256(start.read_bytes()).hexdigest())
    if weights:
        made_with.append(weights)
    folder = Path(cfg.output_dir) / f"{cfg.name}-seed{cfg.seed}"
    return folder_by_identity(folder, cfg, " ".join(made_with), images)


def _plugin(method: str) -> list[str]:
    return [] if method in METHODS else origins().get(method, [])


def commit() -> str | None:
    """Commit of the checkout that the package is imported from, `+` appended when it has
    changes."""
    return host.commit_of(PACKAGE.parent)


def versions(method: str | None = None) -> dict[str, str]:
    """Versions of Python, of the packages that matter, of the host, of solo-mim and, where the
    method is a plug-in's, of that."""
    found = {"python": platform.python_version(), "solo-mim": solo_mim.__version__}
    found["solo-learn"] = f"{host.host_version()} ({host.GENERATION})"
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if method is not None:
        for package in _plugin(method):
            name, _, version = package.rpartition(" ")
            found[name] = version
    return found


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its own name once it is written, and goes if that fails."""
    partial = path.with_name(f"{path.name}{_PARTIAL}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write(path: Path, content: str | bytes) -> None:
    """Writes a file that is there whole or not at all."""
    with whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """`write` of JSON."""
    write(path, json.dumps(content, indent=2) + "\n")


def write_predictions(folder: Path, predictions: Predictions) -> None:
    """One row for each image that was evaluated offline, in the data set's order."""
    columns = {
        name: column.tolist() for name, column in vars(predictions).items() if column is not None
    }
    write(folder / PREDICTIONS, pd.DataFrame(columns).to_csv(index=False))


class FolderLock:
    """One process at a time in a run's folder; given back at the end, or by the system at a kill.

    Use as a context manager; `acquire` inside of it makes the folder. The file has a byte for as
    long as it is held, and keeps it where the holder is killed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = False
        self._file: Any = None

    def __enter__(self) -> FolderLock:
        return self

    def acquire(self) -> None:
        """Raises ConfigError where another process holds it, or the folder cannot be made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / _LOCK).open("a")
        except OSError as error:
            raise ConfigError(
                f"output_dir: {self.folder} cannot be written ({error.strerror})"
            ) from error
        try:
            import fcntl
        except ImportError:  # Windows
            self._hold()
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is at work on this run, in {self.folder}; wait for it or stop it"
            ) from error
        except OSError:  # a file system without locks
            pass
        self._hold()

    def _hold(self) -> None:
        self.held = True
        self._file.truncate(1)

    def __exit__(self, *_: object) -> None:
        if self.held:
            self._file.truncate(0)
        if self._file is not None:
            self._file.close()


def is_held(folder: Path) -> bool:
    """Whether a process has the folder's lock, or was killed with it."""
    lock = folder / _LOCK
    return lock.exists() and lock.stat().st_size > 0


def prepare(folder: Path, cfg: DictConfig, images: str, weights: str | None = None) -> None:
    """Writes the configuration, and this sitting's provenance, into it; the last one's failure
    goes, and so do sittings of which no checkpoint is left and what a kill has left half-written.
    """
    (folder / FAILURE).unlink(missing_ok=True)
    for place in (folder, folder / CHECKPOINTS):
        for partial in place.glob(f"*{_PARTIAL}"):
            partial.unlink()
    write(folder / CONFIGURATION, OmegaConf.to_yaml(cfg, resolve=True))
    sittings = read_json(folder / PROVENANCE, list) if newest_checkpoint(folder) else None
    method = cfg.get("method")
    sitting = {
        **{"versions": versions(method), "commit": commit(), "code": sources.digest(method)},
        **{"fingerprint": images, "seed": cfg.seed},
        **({"weights": weights} if weights else {}),
    }
    write_json(folder / PROVENANCE, [*(sittings or []), sitting])


def note_failure(folder: Path, error: Exception) -> None:
    """Leaves the reason in a run's folder, for `solo-mim report`, unless the disk is full."""
    with contextlib.suppress(OSError):
        write(folder / FAILURE, " ".join(str(error).split()) or type(error).__name__)


def read_json(path: Path, kind: type) -> Any:
    """The list or the mapping in a file of a run's folder; None where there is no such file.

    Raises:
        ConfigError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise damaged(path, error) from error
    if not isinstance(content, kind) or not content:
        raise damaged(path, f"no {kind.__name__} of anything is in it")
    return content


def damaged(path: Path, reason: object) -> ConfigError:
    """Of a file in a run's folder, which the same command can do without."""
    return ConfigError(
        f"{path} is damaged ({' '.join(str(reason).split())}); delete it, and the same command "
        "goes on from what else is there"
    )


def refuse_foreign(folder: Path, cfg: DictConfig) -> None:
    """Raises ConfigError where the configuration in the folder is not the one it is named after."""
    path = folder / CONFIGURATION
    if not path.exists():
        return
    try:
        changes = _changes(_settings(OmegaConf.load(path)), _settings(cfg))
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        changes = " ".join(f"unreadable: {error}".split())
    if changes:
        raise ConfigError(
            f"{path} was changed or copied here: it is not the configuration that this folder is "
            f"named after ({changes}); delete the file if the rest of the folder is this "
            "run's, or else move the folder away"
        )


def other_code(folder: Path, cfg: DictConfig) -> list[str]:
    """Digests of the sources that made what is in a folder, other than those that run here.

    Those of its sittings; where they are lost, of its result.
    """
    here = sources.digest(cfg.get("method"))
    sittings = read_json(folder / PROVENANCE, list)
    if sittings is None:
        sittings = [read_json(folder / RESULT, dict) or {}]
    return [code for code in codes_of(sittings) if code != here]


def departure(folder: Path, cfg: DictConfig, images: str, weights: str | None = None) -> str | None:
    """One line on how a new run differs from the latest of its name and seed beside it, or a
    resumed one from its sittings before, if it does."""
    if folder.exists():
        begun_by = other_code(folder, cfg) if newest_checkpoint(folder) else []
        here = sources.digest(cfg.get("method"))
        return (
            f"begun by other code: {', '.join(begun_by)}; here it is {here}" if begun_by else None
        )
    others = [
        path
        for path in folder.parent.glob(f"{glob.escape(folder.name[:-8])}*/{CONFIGURATION}")
        if re.fullmatch("[0-9a-f]{8}", path.parent.name[len(folder.name) - 8 :])
    ]
    if not others:
        return None
    latest = max(others, key=lambda path: path.stat().st_mtime)
    try:
        changes = _changes(_settings(OmegaConf.load(latest)), _settings(cfg))
        sittings = read_json(latest.parent / PROVENANCE, list)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError):
        return None  # of no use, and no obstacle: the run goes in a folder of its own
    if not changes and sittings:
        keys = {"images": "fingerprint", "backbone.weights": "weights"}
        there = sittings[-1]["versions"] | {key: sittings[-1].get(of) for key, of in keys.items()}
        made_from = {"images": images, "backbone.weights": weights}
        changes = _changes(there, {**versions(cfg.get("method")), **made_from})
    return f"differs from the run in {latest.parent}: {changes}" if changes else None


def _settings(cfg: Any) -> dict[str, Any]:
    """What of a configuration counts for a run's identity, by dotted key."""
    return settings_of(OmegaConf.to_container(cfg, resolve=True))


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """`key old -> new` of the first three that differ and how many more do; empty where none."""
    changes = [
        f"{key} {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in {**new, **old}
        if key not in old or key not in new or old[key] != new[key]
    ]
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return ", ".join(changes[:3]) + more


class WholeCheckpoints(TorchCheckpointIO):
    """Files that are there whole or not at all, written beside their place: lightning's own pass
    through memory and the folder for temporary files, which may be on another disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """`torch.save`, in a folder that is made where there is none."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(Path(path)) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


class EpochEnd(Checkpoint):
    """Writes metrics.csv and the state after every finished epoch.

    A state carries the metrics of all epochs up to its own, so that a resumed run's are without gap
    or repetition wherever it was killed. Its file gets its name when it is whole, and only then the
    one before it goes. Beside the latest stay the multiples of `frequency`: all of them with
    `keep_prev`, otherwise the last.
    """

    def __init__(self, folder: Path, enabled: bool, frequency: int, keep_prev: bool) -> None:
        self.folder, self.enabled = folder, enabled
        self.frequency, self.keep_prev = frequency, keep_prev
        self.rows: list[dict[str, float]] = []

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per epoch and a column for whatever was logged; `step` counts updates."""
        return pd.DataFrame(self.rows or {"epoch": []})

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The rows."""
        self.rows = state_dict["rows"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes what a kill has left between a checkpoint and the removal of the one before, and
        writes the metrics that a checkpoint brings."""
        if self.rows and trainer.is_global_zero:
            write(self.folder / METRICS, self.metrics.to_csv(index=False))
        newest = _newest(self.folder)
        if self.enabled and newest is not None and trainer.is_global_zero:
            self._remove_all_but(newest[0])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the epoch before: validation, or a part of it, may be rarer than an epoch."""
        trainer.logged_metrics.clear()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sees what all others have logged, for lightning calls a Checkpoint last."""
        epoch = trainer.current_epoch
        logged = {k: float(v) for k, v in trainer.logged_metrics.items() if not k.endswith("_step")}
        self.rows.append({"epoch": epoch, "step": trainer.global_step, **logged})
        with stopping.put_off():
            if trainer.is_global_zero:
                write(self.folder / METRICS, self.metrics.to_csv(index=False))
            if self.enabled:
                trainer.save_checkpoint(self.folder / CHECKPOINTS / f"epoch={epoch}.ckpt")
                if trainer.is_global_zero:
                    self._remove_all_but(epoch)

    def _remove_all_but(self, epoch: int) -> None:
        """But that one's checkpoint and the multiples that are kept."""
        epochs = sorted(e for e, _ in _numbered(self.folder))
        multiples = [e for e in epochs if self.frequency > 0 and (e + 1) % self.frequency == 0]
        kept = {epoch, *(multiples if self.keep_prev else multiples[-1:])}
        names = {f"epoch={e}.ckpt" for e in kept}
        for _, other in _numbered(self.folder):
            if other.name not in names:
                other.unlink()


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """Epoch, counted from 0, and file of every checkpoint."""
    found = (folder / CHECKPOINTS).glob("epoch=*.ckpt")
    return [(int(m.group(1)), p) for p in found if (m := re.fullmatch(r"epoch=(\d+)", p.stem))]


def _newest(folder: Path) -> tuple[int, Path] | None:
    """Epoch and file of the latest whole checkpoint.

    A file that was copied here can be cut short. A zip archive has its directory at its end, so a
    cut one is told by that.
    """
    return max((one for one in _numbered(folder) if zipfile.is_zipfile(one[1])), default=None)


def cut_checkpoints(folder: Path) -> list[Path]:
    """Those of which a part is missing."""
    return [path for _, path in sorted(_numbered(folder)) if not zipfile.is_zipfile(path)]


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the latest epoch."""
    newest = _newest(folder)
    return newest[1] if newest else None


def standing(folder: Path, cfg: DictConfig) -> str:
    """What an interrupted run leaves, and how it goes on: one line."""
    if not cfg.checkpoint.enabled:
        return "checkpoint.enabled=false keeps no checkpoint; the same command starts again"
    newest = _newest(folder)
    if newest is None:
        return "no epoch was finished yet; the same command starts again"
    return (
        f"the checkpoint of epoch {newest[0] + 1} of {cfg.max_epochs} is kept; "
        "the same command resumes from it"
    )


def next_session(folder: Path) -> str:
    """Folder name for the step-wise CSV log of this sitting: lightning's logger deletes what it
    finds."""
    return f"{_SESSIONS}/{len(list((folder / _SESSIONS).glob('*'))):03d}"
