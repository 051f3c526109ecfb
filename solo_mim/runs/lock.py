"""One process at a time in a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from solo_mim.errors import ConfigError
from solo_mim.runs import files


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
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is at work on this run, in {self.folder}; wait for it or stop it"
            ) from error
        except (ImportError, OSError):  # Windows; a file system without locks
            pass
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
        try:
            import fcntl

            with (folder / files.LOCK).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except (ImportError, OSError):
            return (folder / files.LOCK).stat().st_size > 0
        return False
