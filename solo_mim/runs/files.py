"""The files of a run's folder. Each is there whole or not at all: it is written under another name
and then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from solo_mim.errors import ConfigError

CONFIGURATION = "config.yaml"
PROVENANCE = "provenance.json"  # of each session: versions, commit, code, images, seed
RESULT = "result.json"  # written last: it says that the run is finished
METRICS = "metrics.csv"
PREDICTIONS = "predictions.csv"  # of each image evaluated offline, in the data set's order
YARDSTICKS = "yardsticks.json"
CURVES = "curves.png"
# Of `solo-mim embed`.
ARRAYS = "embeddings.npz"
PLANES = "planes.png"
SPECTRA = "spectra.png"
FAILURE = "failure.txt"
CHECKPOINTS = "checkpoints"
RESUMED_FROM = "resumed_from.ckpt"  # while training: what of a foreign checkpoint is plain
LOGS = "log"
LOCK = ".lock"
PARTIAL = ".partial"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its own name once it is written, and goes if that fails."""
    partial = path.with_name(f"{path.name}{PARTIAL}")
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
    write(path, json.dumps(content, indent=2) + "\n")


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


def read_yaml(path: Path) -> Any:
    """What is in a file of YAML, by libyaml where there is one: Python's own takes ten times as
    long.

    Raises:
        OSError, yaml.YAMLError: it cannot be read.
    """
    return yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def epochs_done(folder: Path) -> int:
    """By the rows of its metrics."""
    try:
        return max(0, len((folder / METRICS).read_text().splitlines()) - 1)
    except FileNotFoundError:
        return 0


def below(folder: Path, *names: str) -> Iterator[Path]:
    """Every file below a folder, of these names if some are given. What is removed meanwhile, as a
    run at work does, is passed over."""
    for at, _, there in os.walk(folder):
        yield from (Path(at, name) for name in there if not names or name in names)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    count = 0
    for path in below(folder):
        with contextlib.suppress(OSError):
            count += path.stat().st_size
    return count


def damaged(path: Path, reason: object) -> ConfigError:
    """Of a file in a run's folder, which the same command can do without."""
    return ConfigError(
        f"{path} is damaged ({' '.join(str(reason).split())}); delete it, and the same command "
        "goes on from what else is there"
    )


def checkpoint_file(folder: Path, epoch: int) -> Path:
    """Of an epoch, counted from 0."""
    return folder / CHECKPOINTS / f"epoch={epoch}.ckpt"


def checkpoints(folder: Path) -> dict[int, Path]:
    """Epoch, counted from 0, -> file of every checkpoint, in order."""
    files = (folder / CHECKPOINTS).glob("epoch=*.ckpt")
    found = {int(m[1]): path for path in files if (m := re.fullmatch(r"epoch=(\d+)", path.stem))}
    return dict(sorted(found.items()))


def newest_checkpoint(folder: Path) -> tuple[int, Path] | None:
    """Epoch, counted from 0, and file of the latest checkpoint that is whole: a zip archive, whose
    directory is at its end, is none where it was cut short."""
    found = checkpoints(folder).items()
    return max(((e, path) for e, path in found if zipfile.is_zipfile(path)), default=None)
