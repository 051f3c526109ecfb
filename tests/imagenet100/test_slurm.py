"""The campaign on SLURM: the scripts that are written, and the graph by submitit's executors."""

import os
import re
import signal
import sys
from pathlib import Path

import cluster
import pytest
from campaign import Campaign, Job
from cluster import Work
from driven import asked_for, wait_until
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmJobEnvironment

ONE = ("--methods", "vicreg")
TWO = ("--methods", "byol", "vicreg", "--seeds", "1", "2")
SBATCH = """#!/bin/sh
# Numbers jobs from 100 on and keeps their scripts.
cd {folder}
n=$((100 + $(ls | grep -c '[.]sh$')))
cp "$1" $n.sh
echo "Submitted batch job $n"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with the scripts that were submitted, by number; `squeue` prints its `queue`."""
    folder, programs = tmp_path / "scripts", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    (folder / "queue").touch()
    texts = {"sbatch": SBATCH.format(folder=folder), "srun": "#!/bin/sh\n"}
    texts["squeue"] = f"#!/bin/sh\ncat {folder}/queue\n"
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return folder


def options_of(script: Path) -> dict[str, str]:
    """Of its #SBATCH lines."""
    found = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text(), re.MULTILINE)
    return {name: value.strip("'") for name, value in found}


def scripts(folder: Path) -> dict[str, dict[str, str]]:
    return {path.stem: options_of(path) for path in sorted(folder.glob("*.sh"))}


def on_gpus(driver, *more):
    """The campaign on two GPUs each, and what is asked for."""
    return asked_for(*driver.arguments(*TWO, "--slurm", "--gpus", "2", *more))


def test_a_classifier_on_several_gpus_shares_its_batch(driver):
    (campaign, _), job = on_gpus(driver, "--linear-gpus", "2"), Job("linear", "byol", 1)
    assert campaign.gpus_of(job) == 2
    shared = {"devices=2", "strategy=ddp", "optimizer.batch_size=128"}
    assert shared <= set(campaign.words(job, "RUN"))
    with pytest.raises(SystemExit):
        on_gpus(driver, "--linear-gpus", "4")


def test_what_sbatch_is_given(driver, slurm):
    more = ("--partition", "gpu", "--hours", "10", "--cpus", "6", "--jobs", "3")
    ids = cluster.submit(*on_gpus(driver, *more, "--sbatch", "account=us"))
    prepare, pretrain, *evaluations, report = scripts(slurm).values()
    assert len(evaluations) == 8, "of two methods and seeds"
    assert prepare["job-name"] == "prepare"
    assert "gpus-per-node" not in prepare
    expected = {"partition": "gpu", "account": "us", "time": "600", "gpus-per-node": "2"}
    expected |= {"cpus-per-task": "12", "ntasks-per-node": "1", "array": "0-3%3"}
    expected |= {
        "signal": "USR2@180",
        "requeue": "",
        "kill-on-invalid-dep": "yes",
        "open-mode": "append",
    }
    expected |= {"dependency": "afterok:100", "job-name": "pretrain-imagenet100"}
    assert pretrain | expected == pretrain
    for number, evaluation in enumerate(evaluations):
        expected = {"gpus-per-node": "1", "cpus-per-task": "6", "partition": "gpu", "requeue": ""}
        expected["dependency"] = f"afterany:101_{number % 4}"
        assert evaluation | expected == evaluation
        assert "array" not in evaluation
    assert evaluations[0]["job-name"] == "linear-byol-seed1"
    others = ["100", *(f"101_{i}" for i in range(4)), *map(str, range(102, 110))]
    assert report["dependency"] == "afterany:" + ":".join(others)
    assert "gpus-per-node" not in report
    assert ids[Job("pretrain", "vicreg", 2)] == "101_3"
    text = (slurm / "101.sh").read_text()
    assert f"export PYTHONPATH={cluster.HERE}" in text
    assert re.search(r"^srun .* --cpus-per-task=12 ", text, re.MULTILINE)


def test_gres_takes_the_place_of_the_number_of_gpus(driver, slurm):
    cluster.submit(*on_gpus(driver, "--sbatch", "gres=gpu:a100:2", "--sbatch", "qos=long"))
    prepare, pretrain, *_ = scripts(slurm).values()
    assert (pretrain["gres"], pretrain["qos"]) == ("gpu:a100:2", "long")
    assert "gpus-per-node" not in pretrain
    assert "gres" not in prepare


def test_what_is_queued_is_not_submitted_twice_and_what_is_finished_not_at_all(driver, slurm):
    driver.run("--stages", "prepare", "pretrain", "--methods", "byol", "--seeds", "1")
    campaign = driver.campaign(*TWO)
    queue = asked_for()[1]
    cluster.submit(campaign, queue)
    first = scripts(slurm)
    assert first["100"]["job-name"] == "pretrain-imagenet100"
    assert first["100"]["array"].startswith("0-2%")
    assert "dependency" not in first["100"], "the images are there"
    assert "dependency" not in first["101"], "and so is the first run"
    everything = ["100_0", "100_1", "100_2", *map(str, range(101, 110))]
    (slurm / "queue").write_text("\n".join(everything))
    assert set(cluster.submit(campaign, queue).values()) == set(everything)
    assert len(scripts(slurm)) == len(first)
    (slurm / "queue").write_text("\n".join(everything[1:-1]))  # one has failed, and the report
    cluster.submit(campaign, queue)
    *_, again, report = scripts(slurm).values()
    assert again["job-name"] == "pretrain-imagenet100"
    assert "array" not in again
    assert report["dependency"].startswith(f"afterany:{100 + len(first)}:100_1:100_2:")


def test_a_refused_method_is_not_submitted(driver, slurm):
    campaign = driver.campaign("--stages", "pretrain", *TWO)
    campaign.refused["byol"] = "cannot be built"
    ids = cluster.submit(campaign, asked_for()[1])
    assert {job.method for job in ids} == {"vicreg"}


def test_the_driver_submits_says_where_and_locally_refuses_what_is_queued(driver, slurm):
    code, said = driver.run(*ONE, "--slurm", "--partition", "gpu", "--sbatch", "account=us")
    assert code == 0, said
    assert re.search(
        r"pretrain-vicreg-seed5: job 101, log .*/slurm/pretrain-vicreg-seed5.log", said
    )
    assert scripts(slurm)["101"]["account"] == "us"
    assert not driver.journal(), "nothing runs here"
    (slurm / "queue").write_text("101\n102\n")
    code, said = driver.run(*ONE)
    assert code == 2
    assert "SLURM still has pretrain-vicreg-seed5 (101), linear-vicreg-seed5 (102)" in said


def test_an_sbatch_that_refuses_is_one_line(driver, slurm):
    (slurm.parent / "programs" / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n"
    )
    code, said = driver.run(*ONE, "--slurm")
    assert code == 1
    assert "invalid partition" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("executor", ["debug", pytest.param("local", marks=pytest.mark.slow)])
def test_submitits_own_executors_run_the_graph(driver, executor, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(cluster.HERE))
    campaign = driver.campaign(*ONE)
    cluster.submit(campaign, asked_for()[1], cluster=executor)
    begun = [line[1] for line in driver.journal() if line[2] == "begins"]
    assert begun[:2] == ["prepare", "pretrain"]
    assert sorted(begun[2:4]) == ["knn", "linear"], "side by side"
    assert begun[4:] == ["report"]
    assert all(campaign.state(job).word == "finished" for job in campaign.jobs()[:-1])
    log = driver.output / "slurm" / "linear-vicreg-seed5.log"
    assert " linear " in log.read_text()


OBEDIENT = """
import os, signal, sys, time
def stopped(number, _):
    print("solo-mim: interrupted; an epoch is kept", "SLURM_NTASKS" in os.environ, flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stopped)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


@pytest.fixture
def at_work(driver, tmp_path, monkeypatch):
    """Begins a job as submitit does on a node, and says where `scontrol` is asked to requeue it."""
    begun, program = tmp_path / "begun", tmp_path / "program.py"
    program.write_text(OBEDIENT)
    campaign = driver.campaign(*ONE, "--command", f"{sys.executable} -S {program} {begun}")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setattr(
        SlurmJobEnvironment, "_requeue", lambda *_: print("asked scontrol", flush=True)
    )
    monkeypatch.setattr(Campaign, "_pretrained", lambda *_: tmp_path)

    def begin(job):
        delayed = DelayedSubmission(Work(campaign, job))
        delayed.set_timeout(0, 1)

        def work():
            environment, paths = SlurmJobEnvironment(), JobPaths(tmp_path, job_id="7")
            environment._handle_signals(paths, delayed)
            delayed.result()
            return 0

        call = driver.forked(work)
        wait_until(begun.exists)
        return campaign, call

    return begin


@pytest.mark.parametrize(
    ("stage", "number", "requeued"),
    [
        ("pretrain", signal.SIGUSR2, True),  # the limit is near
        ("linear", signal.SIGUSR2, False),  # which would begin anew, and never end
        ("pretrain", signal.SIGTERM, False),  # scancel
    ],
)
def test_signals_of_slurm_reach_the_command(driver, at_work, stage, number, requeued):
    job = Job(stage, "vicreg", 5)
    campaign, call = at_work(job)
    os.kill(call.pid, number)
    assert call.code() != 0
    log = campaign.output / "slurm" / f"{job.name}.log"
    assert "interrupted; an epoch is kept False" in log.read_text(), "lightning counts no tasks"
    assert ("asked scontrol" in call.said()) == requeued, call.said()


def test_on_slurm_a_job_that_fails_is_known_to_have_failed(driver):
    (driver.folder / "broken").write_text("vicreg")
    campaign = driver.campaign(*ONE)
    with pytest.raises(RuntimeError, match=r"pretrain-vicreg-seed5: .* refuses them"):
        Work(campaign, Job("pretrain", "vicreg", 5))()
    assert campaign.state(Job("pretrain", "vicreg", 5)).word == "failed"
    with pytest.raises(RuntimeError, match="holds 0 finished runs of vicreg, seed 5"):
        Work(campaign, Job("linear", "vicreg", 5))()


def test_a_slurm_that_does_not_answer_is_no_empty_queue(driver, slurm):
    campaign = driver.campaign(*ONE)
    cluster.submit(campaign, asked_for()[1])
    squeue = slurm.parent / "programs" / "squeue"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: timed out' >&2; exit 1\n")
    code, said = driver.run(*ONE, "--slurm")
    assert code == 1
    assert "timed out; try again once SLURM answers" in said
    assert driver.run(*ONE)[0] == 2
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id' >&2; exit 1\n")
    assert cluster.in_queue(campaign) == {}
