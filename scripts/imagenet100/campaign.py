"""What a campaign consists of: its jobs, what each comes after, its command, and how it stands.

The dry run, the jobs on one machine and those of SLURM are all made from this.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

STAGES = ("prepare", "pretrain", "linear", "knn", "report")
# Method -> rate of its linear classifier in solo-learn main's scripts/linear/imagenet-100;
# explicit MIM has VICReg's.
METHODS = {
    "explicit_mim": 0.3,
    "barlow_twins": 0.1,
    "vicreg": 0.3,
    "simclr": 1.0,
    "byol": 0.3,
    "mocov2plus": 3.0,
    "simsiam": 30.0,
}
FORMATS = {"dali": "dali", "pillow": "image_folder", "h5": "h5"}
PRECISE = "precision=32-true"
EPOCHS, GLOBAL_BATCH = 400, 256
SOLO_MIM = (sys.executable, "-m", "solo_mim")
# What the campaign says itself: it finds its runs again by these.
OWN = ("method", "data", "seed", "name", "output_dir", "data.train_path", "data.val_path")
# A look at whether everything runs; its figures mean nothing. kNN goes through all images.
_FEW = ("max_epochs=2", "optimizer.batch_size=16", "limit_train_batches=2", "limit_val_batches=2")
# Of a classifier, unless its command says otherwise.
_PLAIN = ("limit_train_batches=", "limit_val_batches=", "fast=false", "finetune=false")


class NotReady(Exception):
    """A job cannot start; the message says what it lacks."""


@dataclass(frozen=True)
class Job:
    """One command: a stage, of a method and seed where it is of one."""

    stage: str
    method: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """`pretrain-vicreg-seed5`, `report`."""
        return f"{self.stage}-{self.method}-seed{self.seed}" if self.method else self.stage


@dataclass(frozen=True)
class State:
    """How a job stands.

    Attributes:
        word: finished, running, stopped, failed, damaged or not begun.
        said: why it failed, or how far it is; one line.
        folder: of the run, or of the evaluation.
    """

    word: str
    said: str = ""
    folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.word}: {self.said}" if self.said else self.word


@dataclass(frozen=True)
class Campaign:
    """What was asked for.

    Attributes:
        data, output, imagenet: the prepared images, the runs, and what the former are made from.
        gpus: of each pre-training; 0 is the CPU.
        settings: `key=value` for every pre-training.
        workers: that load images, of each process; None leaves the number to the command.
        refused: method -> why it is left out.
        command: that is run, before its arguments.
    """

    data: Path
    output: Path
    imagenet: Path | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (5,)
    stages: tuple[str, ...] = STAGES
    gpus: int = 2
    format: str = "dali"
    settings: tuple[str, ...] = ()
    toy: bool = False
    workers: int | None = None
    refused: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = SOLO_MIM

    # Its jobs

    def jobs(self) -> list[Job]:
        """In the order of the stages; of one stage all methods of the first seed come first."""
        found: list[Job] = []
        for stage in (stage for stage in STAGES if stage in self.stages):
            if stage in ("prepare", "report"):
                found.append(Job(stage))
            else:
                found += [Job(stage, m, seed) for seed in self.seeds for m in self.methods]
        return found

    def before(self, job: Job) -> list[Job]:
        """The jobs that have to end first."""
        wanted = {
            "pretrain": [Job("prepare")],
            "linear": [Job("pretrain", job.method, job.seed)],
            "knn": [Job("pretrain", job.method, job.seed)],
            "report": [other for other in self.jobs() if other.stage != "report"],
        }.get(job.stage, [])
        return [other for other in wanted if other in self.jobs()]

    def gpus_of(self, job: Job) -> int:
        """A classifier and neighbours take one at the most."""
        most = {"pretrain": self.gpus, "linear": 1, "knn": 1}
        return min(self.gpus, most.get(job.stage, 0))

    def words(self, job: Job) -> list[str]:
        """The arguments of `solo-mim`.

        Raises:
            NotReady: there is no finished run to evaluate, or more than one.
        """
        if job.stage == "prepare":
            return ["prepare", "imagenet100", str(self.data), "--from", str(self.imagenet)]
        if job.stage == "pretrain":
            return self._pretrain(job)
        if job.stage == "report":
            return ["report", str(self.output), "--title", "ImageNet-100", "--latex"]
        return self.evaluation(job, str(self.pretrained(job)))

    def evaluation(self, job: Job, run: str) -> list[str]:
        """The arguments of `linear` or `knn` on a run."""
        workers = [] if self.workers is None else [f"data.num_workers={self.workers}"]
        if job.stage == "knn":
            return ["knn", run, *workers]
        precision = ["precision=16-mixed"] if self.gpus else ["accelerator=cpu", PRECISE]
        return [
            *("linear", run, f"optimizer.lr={METHODS[job.method]}", "devices=1", *precision),
            *("scheduler.name=step", "scheduler.lr_decay_steps=[60,80]"),
            *(_FEW if self.toy else ["max_epochs=100"]),
            *workers,
        ]

    def _pretrain(self, job: Job) -> list[str]:
        ending = ".h5" if self.format == "h5" else ""
        return [
            *("pretrain", f"method={job.method}", "data=imagenet100"),
            f"data.format={FORMATS[self.format]}",
            *(f"data.{split}_path={self.data / split}{ending}" for split in ("train", "val")),
            *("evaluation.offline=false", f"seed={job.seed}", f"output_dir={self.output}"),
            *machine(self.gpus),
            *(_FEW if self.toy else ()),
            *([] if self.workers is None else [f"data.num_workers={self.workers}"]),
            *self.settings,
        ]

    # How they stand

    @property
    def notes(self) -> Path:
        """A file for each job that has ended badly or is in a queue; the lock of the campaign."""
        return self.output / "jobs"

    def note(self, job: Job) -> dict[str, Any]:
        """What was noted of a job; empty where nothing was."""
        try:
            found = json.loads((self.notes / f"{job.name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_note(self, job: Job, **what: Any) -> None:
        """Notes something of a job in place of what was noted before, but for its SLURM id; nothing
        at all removes the note."""
        from solo_mim.runs import files

        path, before = self.notes / f"{job.name}.json", self.note(job)
        what = {**({"slurm": before["slurm"]} if "slurm" in before else {}), **what}
        if what:
            self.notes.mkdir(parents=True, exist_ok=True)
            files.write_json(path, what)
        else:
            path.unlink(missing_ok=True)

    def state(self, job: Job) -> State:
        """By what lies in the folders; where nothing does, by what was noted."""
        if job.stage == "prepare":
            found = _prepared(self.data)
        elif job.stage == "pretrain":
            found = self._of_runs(job)
        elif job.stage == "report":
            found = None
        else:
            found = self._of_evaluations(job)
        if found:
            return found
        if job.stage == "pretrain" and job.method in self.refused:
            return State("failed", self.refused[job.method])
        note = self.note(job)
        if note.get("said"):
            return State("failed", note["said"])
        return State("not begun", f"SLURM job {note['slurm']}" if "slurm" in note else "")

    def pretrained(self, job: Job) -> Path:
        """The folder of the finished run that a job evaluates.

        Raises:
            NotReady: there is none, or more than one.
        """
        found = [run.folder for run in self._runs(job) if run.state == "finished"]
        if len(found) == 1:
            return found[0]
        raise NotReady(
            f"{self.output} holds {len(found)} finished runs of {job.method}, seed {job.seed}, in "
            f"this configuration, not one: "
            + ("keep the one that counts" if found else "the stage pretrain makes it")
        )

    def _runs(self, job: Job) -> list[Any]:
        """Runs of a method and seed whose configuration is the campaign's."""
        from solo_mim.runs.listing import listed

        folders = self.output.glob(f"{job.method}-imagenet100-seed{job.seed}-*")
        named = [f for f in folders if re.search(r"-seed\d+-[0-9a-f]{8}$", f.name)]
        return [run for run in listed(sorted(named)) if self._is_of(run.settings, job)]

    def _is_of(self, settings: dict[str, Any], job: Job) -> bool:
        """Whether these are what the job's command composes."""
        from solo_mim.runs.identity import NOT_IDENTITY, changes, settings_of

        try:
            wanted = composed(tuple(self._pretrain(Job("pretrain", job.method)))).plain
        except ValueError:  # ConfigError
            return False
        ignored = tuple(f"{key}." for key in NOT_IDENTITY)
        there = {key: v for key, v in settings.items() if not f"{key}.".startswith(ignored)}
        return not changes(there, settings_of({**wanted, "seed": job.seed}))

    def _of_runs(self, job: Job) -> State | None:
        runs = self._runs(job)
        alive = [run for run in runs if run.state == "running"]
        finished = [run for run in runs if run.state == "finished"]
        if len(runs) > 1 and not alive and len(finished) != 1:
            return State("damaged", f"{len(runs)} runs of this job: keep the one that counts")
        for run in [*alive, *finished, *runs]:
            done = f"{run.epochs[0]} of {run.epochs[1]} epochs" if run.epochs else ""
            said = done if run.state in ("running", "stopped") else run.reason
            return State(run.state, said, run.folder)
        return None

    def _of_evaluations(self, job: Job) -> State | None:
        try:
            run = self.pretrained(job)
        except NotReady:
            return None
        words = [*_PLAIN, *self.evaluation(job, str(run))[2:]] if job.stage == "linear" else []
        found = [_evaluation(path) for path in sorted((run / job.stage).glob("*/"))]
        states = [state for state, config in found if _fits(config, words)]
        order = ("running", "finished", "stopped", "failed")
        return min(states, key=lambda state: order.index(state.word), default=None)


def machine(gpus: int) -> list[str]:
    """Overrides for so many GPUs; none is the CPU."""
    if gpus == 0:
        return ["accelerator=cpu", "devices=1", PRECISE, f"optimizer.batch_size={GLOBAL_BATCH}"]
    one = [f"devices={gpus}", "precision=16-mixed", f"optimizer.batch_size={GLOBAL_BATCH // gpus}"]
    return one if gpus == 1 else [*one, "strategy=ddp", "sync_batchnorm=true"]


@functools.cache
def composed(words: tuple[str, ...]) -> Any:
    """The recipe of a `solo-mim pretrain` of these arguments.

    Raises:
        ConfigError: a key or a value is refused.
    """
    from solo_mim.recipe.checks import checked
    from solo_mim.recipe.compose import composed as compose

    return checked(compose("pretrain", list(words[1:])))


def _prepared(data: Path) -> State | None:
    """By the manifest, which is written last."""
    from solo_mim.data.imagenet100 import MANIFEST

    return State("finished", folder=data) if (data / MANIFEST).is_file() else None


# Python's own is ten times as slow.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _evaluation(folder: Path) -> tuple[State, dict[str, Any]]:
    """How an evaluation stands, and its configuration; empty where that cannot be read."""
    from solo_mim.runs import files
    from solo_mim.runs.lock import FolderLock

    try:
        config = yaml.load((folder / files.CONFIGURATION).read_text(), _Loader)
    except (OSError, yaml.YAMLError):
        config = {}
    if FolderLock.is_held(folder):
        return State("running", folder=folder), config
    if (folder / files.RESULT).exists():
        return State("finished", folder=folder), config
    failure = folder / files.FAILURE
    if failure.exists():
        return State("failed", failure.read_text().strip(), folder), config
    return State("stopped", folder=folder), config


def _fits(config: dict[str, Any], words: Iterable[str]) -> bool:
    """Whether an evaluation is the one that a command makes: on ImageNet-100, and with its keys."""
    if not isinstance(config, dict) or not config:
        return False
    given = dict(word.partition("=")[::2] for word in ["data.dataset=imagenet100", *words])
    given.pop("data.num_workers", None)
    wanted = {key: yaml.safe_load(value) for key, value in given.items()}
    return all(_value(config, key, value) == value for key, value in wanted.items())


def _value(config: Any, key: str, otherwise: Any) -> Any:
    """Of a dotted key; `otherwise` where there is no such key."""
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return otherwise
        config = config[part]
    return config
