"""What a campaign consists of: its jobs, what each comes after, its command, and how it stands.

The dry run, the jobs on one machine and those of SLURM are all made from this.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
EPOCHS, GLOBAL_BATCH, LINEAR_EPOCHS = 400, 256, 100
SOLO_MIM = (sys.executable, "-m", "solo_mim")
# A look at whether everything runs; its figures mean nothing. kNN goes through all images.
_FEW = ("max_epochs=2", "optimizer.batch_size=16", "limit_train_batches=2", "limit_val_batches=2")
# Of a classifier, unless its command says otherwise.
_PLAIN = ("limit_train_batches=null", "limit_val_batches=null", "fast=false", "finetune=false")
_CPU = ("accelerator=cpu", "precision=32-true")


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


# The best comes first where a job has several folders.
STATES = ("running", "finished", "stopped", "failed", "damaged")


@dataclass(frozen=True)
class State:
    """How a job stands.

    Attributes:
        word: one of `STATES`, or not begun.
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
        gpus, linear_gpus: of each pre-training, 0 is the CPU; of each linear classifier.
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
    linear_gpus: int = 1
    format: str = "dali"
    settings: tuple[str, ...] = ()
    toy: bool = False
    workers: int | None = None
    refused: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = SOLO_MIM

    # Its jobs

    def jobs(self) -> list[Job]:
        """In the order of the stages; of one stage all methods of the first seed come first."""
        of_all = [(method, seed) for seed in self.seeds for method in self.methods]
        return [
            Job(stage, *of)
            for stage in STAGES
            if stage in self.stages
            for of in ([()] if stage in ("prepare", "report") else of_all)
        ]

    def before(self, job: Job) -> list[Job]:
        """The jobs that have to end first."""
        jobs = self.jobs()
        if job.stage == "report":
            return [other for other in jobs if other != job]
        needs = {"pretrain": Job("prepare")}
        needed = needs.get(job.stage, Job("pretrain", job.method, job.seed))
        return [needed] if needed in jobs and job.stage != "prepare" else []

    def gpus_of(self, job: Job) -> int:
        """Neighbours take one at the most."""
        most = {"pretrain": self.gpus, "linear": self.linear_gpus, "knn": 1}
        return min(self.gpus, most.get(job.stage, 0))

    def words(self, job: Job, run: str = "") -> list[str]:
        """The arguments of `solo-mim`; `run` is what is evaluated, the job's own unless given.

        Raises:
            NotReady: there is no finished run to evaluate, or more than one.
        """
        if job.stage == "prepare":
            return ["prepare", "imagenet100", str(self.data), "--from", str(self.imagenet)]
        if job.stage == "report":
            return ["report", str(self.output), "--title", "ImageNet-100", "--latex"]
        if job.stage == "pretrain":
            return self._pretrain(job)
        words = [job.stage, run or str(self._pretrained(job))]
        return [*words, *(self._linear(job) if job.stage == "linear" else ()), *self._workers()]

    def _pretrain(self, job: Job) -> list[str]:
        ending = ".h5" if self.format == "h5" else ""
        several = ("sync_batchnorm=true",) if self.gpus > 1 else ()
        return [
            *("pretrain", f"method={job.method}", "data=imagenet100"),
            f"data.format={FORMATS[self.format]}",
            *(f"data.{split}_path={self.data / split}{ending}" for split in ("train", "val")),
            *("evaluation.offline=false", f"seed={job.seed}", f"output_dir={self.output}"),
            *(*self._precision(), *_devices(self.gpus), *several),
            *(_FEW if self.toy else ()),
            *self._workers(),
            *self.settings,
        ]

    def _linear(self, job: Job) -> list[str]:
        return [
            *(f"optimizer.lr={METHODS[job.method]}", *self._precision()),
            *_devices(self.gpus_of(job)),
            *("scheduler.name=step", "scheduler.lr_decay_steps=[60,80]"),
            *(_FEW if self.toy else (f"max_epochs={LINEAR_EPOCHS}",)),
        ]

    def _precision(self) -> tuple[str, ...]:
        return ("precision=16-mixed",) if self.gpus else _CPU

    def _workers(self) -> list[str]:
        return [] if self.workers is None else [f"data.num_workers={self.workers}"]

    def recipe(self, method: str) -> Any:
        """The configuration of a method's pre-trainings as they record it, but for their seed.

        Raises:
            ConfigError: a key or a value is refused.
        """
        alike = replace(self, workers=None)  # composed once
        return _composed(tuple(alike._pretrain(Job("pretrain", method))))

    # How they stand

    @property
    def notes(self) -> Path:
        """A file for each job that has ended badly or is in a queue; the lock of the campaign."""
        return self.output / "jobs"

    def note(self, job: Job) -> dict[str, Any]:
        """What was noted of a job; empty where nothing was."""
        try:
            found: dict[str, Any] = json.loads((self.notes / f"{job.name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def write_note(self, job: Job, **what: Any) -> None:
        """Notes something of a job in place of what was noted before, but for its SLURM id.

        Raises:
            OSError: the note cannot be written.
        """
        from solo_mim.runs import files

        self.notes.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in self.note(job).items() if key == "slurm"}
        files.write_json(self.notes / f"{job.name}.json", kept | what)

    def state(self, job: Job) -> State:
        """By what lies in the folders; where nothing does, by what was noted."""
        from solo_mim.data.imagenet100 import MANIFEST

        if job.stage == "prepare" and (self.data / MANIFEST).is_file():
            return State("finished", folder=self.data)
        rows = self._rows(job)
        if sum(row.state == "finished" for row in rows) > 1:
            return State("damaged", f"{len(rows)} runs of this job: keep the one that counts")
        for row in sorted(rows, key=lambda row: STATES.index(row.state)):
            going = job.stage == "pretrain" and row.state in ("running", "stopped") and row.epochs
            said = f"{row.epochs[0]} of {row.epochs[1]} epochs" if going else row.reason
            return State(row.state, said, row.folder)
        note = self.note(job)
        refused = self.refused.get(job.method) if job.stage == "pretrain" else None
        if failure := refused or note.get("said"):
            return State("failed", failure)
        return State("not begun", f"SLURM job {note['slurm']}" if "slurm" in note else "")

    def _pretrained(self, job: Job) -> Path:
        rows = self._rows(Job("pretrain", job.method, job.seed))
        found = [row.folder for row in rows if row.state == "finished"]
        if len(found) == 1:
            return found[0]
        raise NotReady(
            f"{self.output} holds {len(found)} finished runs of {job.method}, seed {job.seed}, in "
            f"this configuration, not one: "
            + ("keep the one that counts" if found else "the stage pretrain makes it")
        )

    def _rows(self, job: Job) -> list[Any]:
        """Runs of a method and seed, or evaluations of its run, whose configuration is the
        campaign's."""
        from solo_mim.runs.listing import row_of

        if job.stage == "pretrain":
            pattern = f"{job.method}-imagenet100-seed{job.seed}-{'[0-9a-f]' * 8}"
            rows = map(row_of, sorted(self.output.glob(pattern)))
            return [row for row in rows if self._is_of(row.settings, job)]
        if job.stage not in ("linear", "knn"):
            return []
        try:
            run = self._pretrained(job)
        except NotReady:
            return []
        wanted = _evaluated(tuple(self._linear(job)) if job.stage == "linear" else ())
        rows = map(row_of, sorted((run / job.stage).glob("*/")))
        return [r for r in rows if all(r.settings.get(k, v) == v for k, v in wanted.items())]

    def _is_of(self, settings: dict[str, Any], job: Job) -> bool:
        """Whether these are what the job's command composes."""
        from solo_mim.errors import ConfigError
        from solo_mim.runs.identity import changes, settings_of

        try:
            wanted = self.recipe(job.method).plain
        except ConfigError:
            return False
        return not changes(settings_of(settings), settings_of({**wanted, "seed": job.seed}))


def _devices(gpus: int) -> tuple[str, ...]:
    """Of a training on so many, which share the batch."""
    one = (f"devices={max(1, gpus)}", f"optimizer.batch_size={GLOBAL_BATCH // max(1, gpus)}")
    return (*one, "strategy=ddp") if gpus > 1 else one


@functools.cache
def _composed(words: tuple[str, ...]) -> Any:
    from solo_mim.recipe.checks import checked
    from solo_mim.recipe.compose import composed as compose
    from solo_mim.trained import start_of

    _, recipe = start_of(checked(compose("pretrain", list(words[1:]))))
    return recipe


@functools.cache
def _evaluated(words: tuple[str, ...]) -> dict[str, Any]:
    """By dotted key, what tells the evaluation that a command makes from others of the run."""
    from omegaconf import OmegaConf

    from solo_mim.runs.identity import settings_of

    given = OmegaConf.from_dotlist(["data.dataset=imagenet100", *(_PLAIN if words else ()), *words])
    return settings_of(OmegaConf.to_container(given))
