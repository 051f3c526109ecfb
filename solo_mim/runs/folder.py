"""A run's folder, from its beginning to its result; one process at a time works in it."""

from __future__ import annotations

import contextlib
import errno
import glob
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from solo_mim import processes, stopping
from solo_mim.errors import ConfigError, RunError
from solo_mim.runs import files, sources
from solo_mim.runs.identity import changes, commit, settings_of, versions
from solo_mim.runs.lock import FolderLock

Result = dict[str, Any]


class RunFolder:
    """The folder of a run, or of an evaluation.

    Args:
        path, config: as `runs.identity` names it after a plain, checked configuration.
        images, weights: their fingerprint, and the digest of those that the run starts from.
        resumes: whether the work leaves checkpoints to resume from.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        images: str,
        weights: str | None = None,
        resumes: bool = False,
    ) -> None:
        self.path, self.config, self.resumes = path, config, resumes
        self._images, self._weights = images, weights
        self._lock, self._begun = FolderLock(path), False
        self._method: str | None = config.get("method")
        self._code = sources.digest(self._method)

    def __str__(self) -> str:
        return str(self.path)

    # Once

    def once(self, work: Callable[[], Result], summary: Callable[[Result], str]) -> Result:
        """The result of `work`, which calls `begin`, or of an earlier run that finished; `summary`
        is its closing table.

        Raises:
            ConfigError: what is in the folder belongs to another configuration, or other code made
                it and the configuration does not accept that.
            KeyboardInterrupt: Ctrl-C or SIGTERM, with what is left of the run.
        """
        with self._lock:
            self._refuse_foreign()
            if (self.path / files.RESULT).exists():
                return self._finished_before(summary)
            try:
                with processes.together(self._last_words):
                    return work()
            except (Exception, KeyboardInterrupt) as error:
                ended = self._ended(error)
                if ended is error:
                    raise
                asked = isinstance(ended, KeyboardInterrupt) or stopping.asked()
                raise ended from (None if asked else error)

    def _finished_before(self, summary: Callable[[Result], str]) -> Result:
        result: Result = files.read_json(self.path / files.RESULT, dict)
        result["folder"] = str(self.path)  # it may have been moved
        others = self._other_code()
        said = f"made by code {', '.join(others)}"
        # Code that nobody recorded may be this one: it is remarked upon, not refused.
        if set(others) - {sources.UNKNOWN_CODE} and self.config["other_code"] == "refuse":
            raise ConfigError(
                f"other_code: {self.path} was {said}, here it is {self._code}; move that folder "
                "away to have it again, or set other_code=accept to take it as it is"
            )
        try:
            table = summary(result)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise files.damaged(self.path / files.RESULT, f"no closing table: {error!r}") from error
        remark = f" ({said}; here it is {self._code})" if others else ""
        print(f"finished before, nothing to do: {self.path}{remark}\n\n{table}")
        return result

    def _ended(self, error: BaseException) -> BaseException:
        """What the end of the work by an error is to the user; notes it in the folder."""
        # What else fails while a command ends because it was asked to is no news.
        if isinstance(error, KeyboardInterrupt) or stopping.asked():
            return SystemExit(1) if processes.rank() > 0 else KeyboardInterrupt(self.standing())
        if any(_is_of_a_lost_process(cause) for cause in _causes(error)):
            return self._lost() or SystemExit(1)
        if isinstance(error, RunError) and processes.rank() > 0:
            return SystemExit(1)
        gone = self._lock.held and not self.path.exists()
        full = next((cause for cause in _causes(error) if _is_of_a_disk(cause, gone)), None)
        ended = RunError(f"{self.path}: {full.strerror}; {self.standing()}") if full else error
        begun = self._begun and not (self.path / files.RESULT).exists()
        return self._noted(ended) if begun else ended

    def _lost(self) -> BaseException | None:
        """Error of a peer process that died; None where another process, of the ranks that are
        alive a lower one, reports it."""
        lock = self.path / files.LOCK
        latest = time.monotonic() + processes.rank()
        while time.monotonic() < latest:
            time.sleep(0.1)
            # No byte in it: the first process has come to its own end.
            held = lock.exists() and lock.stat().st_size > 0
            if not held or (self.path / files.FAILURE).exists():
                return None
        return self._noted(RunError(f"a process of this run died; {self.standing()}"))

    def _last_words(self) -> None:
        if error := self._lost():
            print(f"solo-mim: {error}", file=sys.stderr, flush=True)

    def _noted(self, error: BaseException) -> BaseException:
        """The same error; its reason is left for `solo-mim report`, unless the disk is full."""
        with contextlib.suppress(OSError):
            said = " ".join(str(error).split()) or type(error).__name__
            files.write(self.path / files.FAILURE, said)
        return error

    # Its beginning

    def begin(self, checkpoint: Path | None = None) -> list[str]:
        """Takes the lock, writes the configuration and this session's provenance.

        The last session's failure goes, and so do sessions of which no checkpoint is left and what
        a kill has left half-written.

        Args:
            checkpoint: that the run resumes from: the newest in its folder, where there is one.

        Returns:
            Lines to print: what the run differs in from an earlier one, which checkpoints in its
            folder are of no use, and which `checkpoint` it resumes from.

        Raises:
            ConfigError: another process is at work in the folder, or was meanwhile.
        """
        lines = self._departure()
        self._lock.acquire()
        if (self.path / files.RESULT).exists():
            raise ConfigError(
                f"another process has finished this run meanwhile, in {self.path}; the same "
                "command shows its result"
            )
        if (newest := self.newest_checkpoint()) and newest != checkpoint:
            raise ConfigError(
                f"another process has gone on with this run meanwhile, in {self.path}; the same "
                "command goes on from there"
            )
        self._begun = True
        (self.path / files.FAILURE).unlink(missing_ok=True)
        for place in (self.path, self.path / files.CHECKPOINTS):
            for partial in place.glob(f"*{files.PARTIAL}"):
                partial.unlink()
        configuration = OmegaConf.to_yaml(OmegaConf.create(self.config))
        files.write(self.path / files.CONFIGURATION, configuration)
        provenance = self.path / files.PROVENANCE
        sessions = files.read_json(provenance, list) if self.newest_checkpoint() else None
        session = {
            "versions": versions(self._method),
            "commit": commit(),
            "code": self._code,
            "fingerprint": self._images,
            "seed": self.config["seed"],
            **({"weights": self._weights} if self._weights else {}),
        }
        files.write_json(provenance, [*(sessions or []), session])
        cut = (p for p in files.checkpoints(self.path).values() if not zipfile.is_zipfile(p))
        lines += [f"a part of {path} is missing: nothing resumes from it" for path in cut]
        return [*lines, *([f"resuming from {checkpoint}"] if checkpoint else [])]

    def _refuse_foreign(self) -> None:
        path = self.path / files.CONFIGURATION
        if not path.exists():
            return
        try:
            changed = changes(_settings_in(path), settings_of(self.config))
        except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
            changed = " ".join(f"unreadable: {error}".split())
        if changed:
            raise ConfigError(
                f"{path} was changed or copied here: it is not the configuration that this folder "
                f"is named after ({changed}); delete the file if the rest of the folder is this "
                "run's, or else move the folder away"
            )

    def _other_code(self) -> list[str]:
        """Digests of the sources that made its sessions or, where those are lost, its result, other
        than those that run here."""
        sessions = files.read_json(self.path / files.PROVENANCE, list)
        if sessions is None:
            sessions = [files.read_json(self.path / files.RESULT, dict) or {}]
        return [code for code in sources.codes_of(sessions) if code != self._code]

    def _departure(self) -> list[str]:
        """A line on how a new run differs from the latest of its name and seed beside it, or a
        resumed one from its sessions before, if it does."""
        if self.path.exists():
            begun_by = self._other_code() if self.newest_checkpoint() else []
            said = f"begun by other code: {', '.join(begun_by)}; here it is {self._code}"
            return [said] if begun_by else []
        name = self.path.name[: -len("01234567")]
        others = [
            path
            for path in self.path.parent.glob(f"{glob.escape(name)}*/{files.CONFIGURATION}")
            if re.fullmatch("[0-9a-f]{8}", path.parent.name[len(name) :])
        ]
        if not others:
            return []
        try:
            latest = max(others, key=lambda path: path.stat().st_mtime)
            changed = changes(_settings_in(latest), settings_of(self.config))
            sessions = files.read_json(latest.parent / files.PROVENANCE, list)
        except (YAMLError, OmegaConfBaseException, OSError, ValueError):
            return []  # of no use, and no obstacle: the run goes in a folder of its own
        if not changed and sessions:
            last, here = sessions[-1], versions(self._method)
            images, weights = last.get("fingerprint"), last.get("weights")
            changed = changes(
                {**last["versions"], "images": images, "backbone.weights": weights},
                {**here, "images": self._images, "backbone.weights": self._weights},
            )
        return [f"differs from the run in {latest.parent}: {changed}"] if changed else []

    # What is in it

    def newest_checkpoint(self) -> Path | None:
        newest = files.newest_checkpoint(self.path)
        return newest[1] if newest else None

    def standing(self) -> str:
        """What an interrupted run leaves, and how it goes on: one line."""
        if not self.resumes:
            return "nothing is kept; the same command starts again"
        if not self.config["checkpoint"]["enabled"]:
            return "checkpoint.enabled=false keeps no checkpoint; the same command starts again"
        newest = files.newest_checkpoint(self.path)
        if newest is None:
            return "no epoch was finished yet; the same command starts again"
        return (
            f"the checkpoint of epoch {newest[0] + 1} of {self.config['max_epochs']} is kept; "
            "the same command resumes from it"
        )

    def next_log(self) -> str:
        """Where the step-wise logs of this session go: lightning's logger deletes what it finds."""
        earlier = [p.name for p in (self.path / files.LOGS).glob("*") if p.name.isdecimal()]
        return f"{files.LOGS}/{max(map(int, earlier), default=-1) + 1:03d}"

    def yardsticks(self) -> Result:
        """Accuracies of what is not trained, by name; a damaged file is as none."""
        path = self.path / files.YARDSTICKS
        try:
            return files.read_json(path, dict) or {}
        except ConfigError:
            print(f"note: {path} is damaged, its figures are measured again")
            return {}

    def finish(self, result: Result) -> None:
        """Writes the result, the last of all: it says that the work is done."""
        files.write_json(self.path / files.RESULT, result)


def _settings_in(path: Path) -> dict[str, Any]:
    """What counts for a run's identity, of a file."""
    return settings_of(OmegaConf.to_container(OmegaConf.load(path), resolve=True))


def _causes(error: BaseException | None) -> Iterator[Any]:
    """An error and what it came of, the last first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_of_a_disk(error: BaseException, gone: bool) -> bool:
    """Whether a disk is full, or a file is missed of a run's folder that is gone."""
    kinds = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} | ({errno.ENOENT} if gone else set())
    return isinstance(error, OSError) and error.errno in kinds


def _is_of_a_lost_process(error: BaseException) -> bool:
    """By the words of gloo and of NCCL, which have no error of their own for it."""
    words = "closed by peer|reset by peer|Broken pipe|closed by remote peer|remote process exit"
    return isinstance(error, RuntimeError) and re.search(words, str(error)) is not None
