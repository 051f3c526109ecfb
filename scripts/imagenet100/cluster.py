"""The jobs of a campaign on SLURM, by submitit: pre-trainings as an array, what evaluates a run
after that run, the report after all."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import page
from campaign import Campaign, Job, NotReady
from local import Child, outcome, started

HERE = Path(__file__).resolve().parent
_RESUMED = ("prepare", "pretrain")  # stages that keep what they have done
_AT_ONCE = 256  # elements of an array
_DELAY = 180  # seconds before the time limit at which a job is told
_REQUEUES = 100  # of a job, at the most


def parameters(campaign: Campaign, job: Job, asked: Namespace) -> dict[str, Any]:
    """What is asked of SLURM for a job, in submitit's words."""
    gpus = campaign.gpus_of(job)
    cpus = asked.cpus * max(1, gpus)
    others = dict(one.partition("=")[::2] for one in asked.sbatch)
    if not gpus:
        others.pop("gres", None)
    # Where prepare has failed, what waits for it would wait for ever.
    more = {"requeue": True, "kill-on-invalid-dep": "yes"}
    return {
        "name": f"{job.stage}-imagenet100" if job.stage == "pretrain" else job.name,
        "timeout_min": int(60 * asked.hours),
        "cpus_per_task": cpus,
        "tasks_per_node": 1,
        "stderr_to_stdout": True,
        "gpus_per_node": gpus if gpus and "gres" not in others else None,
        "slurm_partition": asked.partition,
        "slurm_array_parallelism": asked.jobs or _AT_ONCE,
        "slurm_signal_delay_s": _DELAY,
        "slurm_srun_args": [f"--cpus-per-task={cpus}"],  # which srun does not take over from sbatch
        "slurm_additional_parameters": {**others, **more},
        "slurm_setup": [f"export PYTHONPATH={shlex.quote(str(HERE))}${{PYTHONPATH:+:$PYTHONPATH}}"],
    }


@dataclass
class Work:
    """A job, as it is done on its node."""

    campaign: Campaign
    job: Job
    _child: Child | None = None

    def __call__(self) -> None:
        """Runs its command.

        Raises:
            RuntimeError: it has failed; from this SLURM knows.
        """
        said = ""
        try:
            child = self._child = started(self.campaign, self.job, "slurm")
            with _asked_to_end(child):
                code = child.wait()
            said = outcome(self.campaign, self.job, code, child).said
        except (NotReady, OSError) as error:
            said = str(error)
            with contextlib.suppress(OSError):
                self.campaign.write_note(self.job, said=said)
        with contextlib.suppress(OSError):
            page.write(self.campaign)
        if said:
            raise RuntimeError(f"{self.job.name}: {said}")

    def checkpoint(self) -> Any:
        """Of submitit, in its handler of the signal before the limit: ends the command, and gives
        what is requeued; None where nothing would be kept."""
        from submitit.helpers import DelayedSubmission

        if self._child:
            self._child.ask()
            with contextlib.suppress(ChildProcessError):  # no wait() here: it is what we interrupt
                os.waitid(os.P_PID, self._child.process.pid, os.WEXITED | os.WNOWAIT)
        resumes = self.job.stage in _RESUMED
        return DelayedSubmission(Work(self.campaign, self.job)) if resumes else None


@contextlib.contextmanager
def _asked_to_end(child: Child) -> Iterator[None]:
    """SIGTERM, as of scancel, reaches a command; submitit would pass over it."""
    before = signal.signal(signal.SIGTERM, lambda *_: child.ask())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def submit(campaign: Campaign, asked: Namespace, cluster: str = "slurm") -> dict[Job, str]:
    """Submits what is not finished and not in the queue already; the id of each job.

    Args:
        asked: options of the driver: partition, hours, cpus, jobs, sbatch.
        cluster: of submitit's AutoExecutor; those that know no dependencies are waited for.

    Raises:
        ImportError: submitit is not installed.
        NotReady, RuntimeError: SLURM does not answer, or refuses.
        OSError: the folder for logs cannot be written.
    """
    ids = in_queue(campaign)
    new = [job for job in campaign.jobs() if job not in ids and not _is_done(campaign, job)]
    submitted: dict[Job, Any] = {}
    # Those of an array have one dependency.
    for _, of in groupby(new, lambda job: "array" if job.stage == "pretrain" else job.name):
        group = list(of)
        if cluster != "slurm":
            for other in campaign.before(group[0]):
                if other in submitted:
                    submitted[other].wait()
        submitted |= _submitted(campaign, asked, cluster, group, ids)
        for job in group:
            ids[job] = str(submitted[job].job_id)
            if cluster == "slurm":
                campaign.write_note(job, slurm=ids[job])
    if cluster != "slurm":
        for one in submitted.values():
            one.wait()
    return ids


def _is_done(campaign: Campaign, job: Job) -> bool:
    return job.method in campaign.refused or campaign.state(job).word == "finished"


def _submitted(
    campaign: Campaign, asked: Namespace, cluster: str, group: list[Job], ids: dict[Job, str]
) -> dict[Job, Any]:
    """Submits jobs of one stage, several as one array."""
    import submitit

    executor = submitit.AutoExecutor(
        campaign.output / "slurm" / "submitit",
        cluster=cluster,
        slurm_max_num_timeout=_REQUEUES,
    )
    before = [ids[other] for other in campaign.before(group[0]) if other in ids]
    # Nothing can be trained on what was not prepared; else a failure stops nobody.
    word = "afterok" if group[0].stage == "pretrain" else "afterany"
    dependency = ":".join([word, *before]) if before else None
    executor.update_parameters(**parameters(campaign, group[0], asked), slurm_dependency=dependency)
    with executor.batch():
        jobs = [executor.submit(Work(campaign, job)) for job in group]
    return dict(zip(group, jobs, strict=True))


def in_queue(campaign: Campaign) -> dict[Job, str]:
    """Jobs of an earlier call that SLURM still has, and their ids.

    Raises:
        NotReady: SLURM does not answer; they may be there.
    """
    noted = {job: campaign.note(job).get("slurm") for job in campaign.jobs()}
    ids = {job: number for job, number in noted.items() if number}
    wanted = ",".join(dict.fromkeys(number.partition("_")[0] for number in ids.values()))
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={wanted}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True) if ids else None
    except FileNotFoundError:  # no SLURM here
        done = None
    if done and done.returncode and "Invalid job id" not in done.stderr:  # as of one that is over
        raise NotReady(f"squeue: {done.stderr.strip()}; try again once SLURM answers")
    there = done.stdout.split() if done else []
    return {job: number for job, number in ids.items() if number in there}
