"""One process at a time in a run's folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, Any

from solo_mim.errors import ConfigError
from solo_mim.runs import files

_LOOKED_AT = 10.0  # seconds: whoever looks whether it is held shares it, for a moment


class FolderLock:
    """One process at a time in a run's folder; given back at the end, or by the system at a kill.

    The file has a byte for as long as it is held, and keeps it where the holder is killed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = False
        self._file: Any = None

    def __enter__(self) -> FolderLock:
        return self

    def acquire(self) -> None:
        """Makes the folder; ConfigError where that fails, or another process holds it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / files.LOCK).open("a")
        except OSError as error:
            raise ConfigError(
                f"output_dir: {self.folder} cannot be written ({error.strerror})"
            ) from error
        until = time.monotonic() + _LOOKED_AT
        while _is_taken(self._file, exclusively=True):
            if self.is_held(self.folder) or time.monotonic() > until:
                raise ConfigError(
                    f"another process is at work on this run, in {self.folder}; wait for it or "
                    "stop it"
                )
            time.sleep(0.01)
        self.held = True
        self._file.truncate(1)

    def __exit__(self, *_: object) -> None:
        if self.held:
            self._file.truncate(0)
        if self._file is not None:
            self._file.close()

    @staticmethod
    def is_held(folder: Path) -> bool:
        """Whether a process is at work there; by the byte where files cannot be locked."""
        path = folder / files.LOCK
        try:
            with path.open() as file:
                if (taken := _is_taken(file)) is not None:
                    return taken
        except OSError:  # it may be another user's
            pass
        try:
            return path.stat().st_size > 0
        except OSError:
            return False


def _is_taken(file: IO[str], exclusively: bool = False) -> bool | None:
    """Whether another process has locked a file, which is locked here if not; None where files
    cannot be locked: on Windows, on some file systems."""
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return None
    return False
