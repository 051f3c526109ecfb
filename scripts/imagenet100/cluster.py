"""The jobs of a campaign on SLURM, by submitit: pre-trainings as an array, what evaluates a run
after that run, the report after all."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import page
from campaign import Campaign, Job, NotReady
from local import Child, outcome, say, started

HERE = Path(__file__).resolve().parent
_RESTARTS = "SLURM_RESTART_COUNT"


@dataclass(frozen=True)
class Queue:
    """What is asked of SLURM for each job.

    Attributes:
        hours: its time limit; a pre-training that needs more is requeued before it.
        delay: seconds before the limit at which the job is told.
        requeues: that a job has at the most.
        others: of sbatch, by name: account, qos, gres, mem, constraint.
    """

    partition: str | None = None
    hours: float = 24.0
    cpus: int = 8
    at_once: int = 256
    delay: int = 180
    requeues: int = 100
    others: dict[str, str] = field(default_factory=dict)

    def parameters(self, campaign: Campaign, job: Job) -> dict[str, Any]:
        """submitit's, of a job."""
        gpus, quoted = campaign.gpus_of(job), shlex.quote(str(HERE))
        by_gres = "gres" in self.others and gpus
        others: dict[str, Any] = {k: v for k, v in self.others.items() if gpus or k != "gres"}
        # SIGUSR1 is what solo-mim answers by keeping the epoch and requeueing; submitit's is USR2.
        others |= {"signal": f"USR1@{self.delay}", "requeue": True}
        return {
            "name": f"{job.stage}-imagenet100" if job.stage == "pretrain" else job.name,
            "timeout_min": int(60 * self.hours),
            "cpus_per_task": self.cpus * max(1, gpus),
            "tasks_per_node": 1,
            "stderr_to_stdout": True,
            "gpus_per_node": None if by_gres or not gpus else gpus,
            "slurm_partition": self.partition,
            "slurm_array_parallelism": self.at_once,
            "slurm_additional_parameters": others,
            "slurm_setup": [f"export PYTHONPATH={quoted}${{PYTHONPATH:+:$PYTHONPATH}}"],
        }


@dataclass(frozen=True)
class Work:
    """A job, as it is done on its node."""

    campaign: Campaign
    job: Job
    requeues: int

    def __call__(self) -> int:
        """Runs its command; the exit code. On SLURM a bad one is raised, so that SLURM knows."""
        try:
            child = started(self.campaign, self.job, self.campaign.output / "slurm")
        except (NotReady, OSError) as error:
            code, said = 1, str(error)
            with contextlib.suppress(OSError):
                self.campaign.write_note(self.job, code=code, said=said)
        else:
            code, said = self._watched(child) if child else (1, "there is no run to report on")
        with contextlib.suppress(OSError):
            page.write(self.campaign)
        if code and "SLURM_JOB_ID" in os.environ:
            raise RuntimeError(f"{self.job.name}: {said}")
        return code

    def _watched(self, child: Child) -> tuple[int, str]:
        with self._forwarded(child):
            while (code := child.ended()) is None:
                time.sleep(0.2)
        said = child.said()
        if code != 128 + signal.SIGUSR1:  # which goes on in the queue
            outcome(self.campaign, self.job, code, child)
        return code, said

    @contextlib.contextmanager
    def _forwarded(self, child: Child) -> Iterator[None]:
        """Signals of SLURM reach the command; the time's, as often as the job may be requeued."""

        def forward(number: int, _frame: Any) -> None:
            spent = int(os.environ.get(_RESTARTS, "0")) >= self.requeues
            child.ask(signal.SIGTERM if spent else number)

        numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, forward) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def submit(campaign: Campaign, queue: Queue, cluster: str = "slurm") -> dict[Job, str]:
    """Submits what is not finished and not in the queue already; the id of each job.

    Args:
        cluster: of submitit's AutoExecutor; those that know no dependencies are waited for.

    Raises:
        ImportError: submitit is not installed.
        RuntimeError: SLURM refuses.
        OSError: the folder for logs cannot be written.
    """
    ids = in_queue(campaign)
    new = [job for job in campaign.jobs() if job not in ids and not _is_done(campaign, job)]
    waiting: dict[Job, Any] = {}
    for stage in dict.fromkeys(job.stage for job in new):
        of_stage = [job for job in new if job.stage == stage]
        for group in [of_stage] if stage == "pretrain" else [[job] for job in of_stage]:
            if cluster != "slurm":
                for other in (other for job in group for other in campaign.before(job)):
                    if other in waiting:
                        waiting[other].wait()
            waiting |= _submitted(campaign, queue, cluster, group, ids)
            ids |= {job: str(waiting[job].job_id) for job in group}
            for job in group if cluster == "slurm" else ():
                campaign.write_note(job, slurm=ids[job])
    if cluster != "slurm":
        for submitted in waiting.values():
            submitted.wait()
    return ids


def _is_done(campaign: Campaign, job: Job) -> bool:
    if job.method in campaign.refused:
        return True
    return campaign.state(job).word == "finished"


def _submitted(
    campaign: Campaign, queue: Queue, cluster: str, group: list[Job], ids: dict[Job, str]
) -> dict[Job, Any]:
    """Submits jobs of one stage, several as one array."""
    import submitit

    executor = submitit.AutoExecutor(campaign.output / "slurm" / "submitit", cluster=cluster)
    before = [ids[other] for other in campaign.before(group[0]) if other in ids]
    # Nothing can be trained on what was not prepared; else a failure stops nobody.
    word = "afterok" if group[0].stage == "pretrain" else "afterany"
    dependency = ":".join([word, *before]) if before else None
    executor.update_parameters(**queue.parameters(campaign, group[0]), slurm_dependency=dependency)
    with executor.batch():
        jobs = [executor.submit(Work(campaign, job, queue.requeues)) for job in group]
    return dict(zip(group, jobs, strict=True))


def in_queue(campaign: Campaign) -> dict[Job, str]:
    """Jobs of an earlier call that SLURM still has, and their ids."""
    noted = {job: campaign.note(job).get("slurm") for job in campaign.jobs()}
    noted = {job: number for job, number in noted.items() if number}
    if not noted:
        return {}
    wanted = ",".join(dict.fromkeys(number.partition("_")[0] for number in noted.values()))
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={wanted}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return {}
    there = set(done.stdout.split())
    return {job: number for job, number in noted.items() if number in there}


def tell(campaign: Campaign, ids: dict[Job, str]) -> None:
    """Says which jobs are where, and where their logs are."""
    for job, number in ids.items():
        say(f"{job.name}: job {number}, log {campaign.output / 'slurm' / f'{job.name}.log'}")
    if not ids:
        say("nothing is left to submit")
