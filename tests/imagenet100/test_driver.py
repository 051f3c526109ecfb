"""The driver of scripts/imagenet100 on one machine: what it runs, stops, goes on with and reports.

`solo-mim` is a stand-in (standin.py), the driver itself a fork of this process.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import local
import page
import pytest
from campaign import Campaign, Job
from driven import Driver, wait_until, without_costs
from local import Local

ONE = ("--methods", "vicreg")
TWO = ("--methods", "byol", "vicreg", "--seeds", "1", "2", "--jobs", "4")
TRAINED = [f"vicreg-seed5 {epoch}" for epoch in range(3)]
pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="forks, and /proc")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, toy_imagenet):
    """A campaign that is finished, of two methods and two seeds; not to be changed."""
    done = Driver(tmp_path_factory.mktemp("finished"), toy_imagenet)
    with pytest.MonkeyPatch.context() as patch:
        without_costs(patch)
        done.first = done.run(*TWO)
    return done


def begun(driver):
    """Commands that were started, without their arguments."""
    return [line[1] for line in driver.journal() if line[2] == "begins"]


def alive(driver):
    """Processes of the stand-in that have not come to an end."""
    found = []
    for pid in {line[0] for line in driver.journal()}:
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def test_every_stage_of_every_method_and_seed_once_and_again_nothing(finished):
    code, said = finished.first
    assert code == 0, said
    every = ["knn"] * 4 + ["linear"] * 4 + ["prepare"] + ["pretrain"] * 4 + ["report"]
    first = begun(finished)[:14]
    assert sorted(first) == every
    assert (first[0], first[-1]) == ("prepare", "report")
    text = (finished.output / "report" / "campaign.md").read_text()
    assert "12 of 12 jobs are finished" in text
    assert text in said
    code, said = finished.run(*TWO)
    assert code == 0
    assert begun(finished)[14:] == ["report"]
    assert said.count("finished: before") == 13
    assert (finished.output / "logs" / "linear-byol-seed1.log").read_text().startswith("\n$ ")


def test_a_dry_run_says_what_would_be_run_and_leaves_nothing(driver):
    driver.campaign(*ONE)
    before = sorted(driver.folder.rglob("*"))
    code, said = driver.run(*ONE, "--dry-run")
    assert code == 0, said
    after = [path for path in sorted(driver.folder.rglob("*")) if "said-" not in path.name]
    assert after == before
    assert "pretrain-vicreg-seed5: not begun" in said
    assert "$ solo-mim pretrain method=vicreg data=imagenet100 data.format=image_folder" in said
    assert "$ solo-mim linear RUN optimizer.lr=0.3 accelerator=cpu" in said


STOPS = {
    "prepare": signal.SIGTERM,
    "pretrain": signal.SIGINT,
    "linear": signal.SIGTERM,
    "knn": signal.SIGTERM,
    "report": signal.SIGINT,
}


def test_a_signal_stops_what_is_at_work_at_any_stage_and_the_next_call_goes_on(driver):
    for stage, number in STOPS.items():
        call = driver.begin(*ONE)
        driver.wait_for(stage, "begins")
        os.kill(call.pid, number)
        asked = time.monotonic()
        assert call.code() == 128 + number, call.said()
        assert time.monotonic() - asked < 10
        assert not alive(driver)
        assert "interrupted; the last epoch is kept" in call.said()
        assert "the same command goes on" in call.said()
    code, said = driver.run(*ONE)
    assert code == 0, said
    assert driver.epochs() == TRAINED


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_no_job_outlives_the_driver(driver, number):
    call = driver.begin("--stages", "prepare", "pretrain", *ONE)
    driver.wait_for("epoch")
    os.kill(call.pid, number)
    assert call.code() == -number
    code, said = driver.run("--stages", "prepare", "pretrain", *ONE)
    assert code == 0, said
    assert not alive(driver)
    assert driver.epochs() == TRAINED


@pytest.mark.parametrize("late", [False, True])
def test_a_run_of_another_process_is_waited_for(driver, late):
    """And where that process has begun it while the driver's own was starting."""
    driver.run("--stages", "prepare", *ONE)
    campaign = driver.campaign(*ONE)
    words = [*campaign.command, *campaign.words(Job("pretrain", "vicreg", 5))]
    if late:
        (driver.folder / "late").touch()
        call = driver.begin("--stages", "pretrain", *ONE)
        wait_until((driver.folder / "waits").exists)
    (driver.folder / "hold").touch()
    other = subprocess.Popen(words)
    wait_until(lambda: list(driver.output.glob("vicreg*/provenance.json")))
    if late:
        (driver.folder / "waits").unlink()
    else:
        call = driver.begin("--stages", "pretrain", *ONE)
    wait_until(lambda: "vicreg-seed5: another process is at work on this run, in " in call.said())
    (driver.folder / "hold").unlink()
    assert other.wait() == 0
    assert call.code() == 0, call.said()
    assert "pretrain-vicreg-seed5: finished: before" in call.said()
    assert driver.epochs() == TRAINED


def test_a_second_call_on_the_same_output_is_refused(driver):
    (driver.folder / "hold").touch()
    call = driver.begin(*ONE)
    driver.wait_for("pretrain", "begins")
    code, said = driver.run(*ONE)
    assert code == 2
    assert f"another call is at work in {driver.output}" in said
    os.kill(call.pid, signal.SIGTERM)
    assert call.code() == 143


def test_what_cannot_end_is_killed_after_its_grace_and_with_it_its_group(driver, tmp_path):
    program = tmp_path / "deaf.py"
    program.write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"f = open({str(tmp_path / 'journal')!r}, 'a')\n"
        "other = os.fork()\n"
        "print(os.getpid(), 'prepare', 'begins', file=f, flush=True)\n"
        "time.sleep(60)\n"
    )
    call = driver.begin(*ONE, "--grace", "0.3", "--command", f"python3 {program}")
    wait_until(lambda: len(driver.journal()) == 2)
    os.kill(call.pid, signal.SIGTERM)
    assert call.code() == 143
    assert "killed after 0.3 seconds" in call.said()
    wait_until(lambda: not alive(driver))


def test_a_full_disk_is_named_and_what_is_kept_goes_on(driver):
    (driver.folder / "full").write_text("vicreg-seed5")
    code, said = driver.run("--stages", "prepare", "pretrain", *ONE)
    assert code == 1
    assert "No space left on device; the checkpoint of epoch 1 is kept" in said
    assert "| vicreg | 5 | failed |" in (driver.output / "report" / "campaign.md").read_text()
    (driver.folder / "full").unlink()
    assert driver.run("--stages", "pretrain", *ONE)[0] == 0
    assert driver.epochs() == TRAINED


def test_another_configuration_in_the_same_output_is_another_campaign(finished):
    job = Job("pretrain", "byol", 1)
    words = [
        finished.campaign("--methods", "byol", *setting).state(job).word
        for setting in ((), ("--set", "max_epochs=7"), ("--set", "data.num_workers=1"), ("--toy",))
    ]
    assert words == ["finished", "not begun", "finished", "not begun"]


def test_an_evaluation_of_another_rate_is_not_the_campaigns(finished, driver):
    shutil.copytree(finished.output, driver.output)
    campaign, job = driver.campaign("--methods", "byol"), Job("linear", "byol", 1)
    folder = campaign.state(job).folder
    assert campaign.state(job).word == "finished"
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace('"lr": 0.3', '"lr": 0.7'))
    assert campaign.state(job).word == "not begun"


class Fake:
    """A job that ends when it is told to."""

    log, code = "log", None

    def ended(self):
        return self.code


def test_jobs_share_the_gpus_of_the_machine(driver, monkeypatch):
    """Two pre-trainings on two GPUs each, then classifiers on one each; no GPU has two."""
    monkeypatch.setattr(local, "started", lambda *_: Fake())
    monkeypatch.setattr(page, "write", lambda _: None)
    campaign = replace(driver.campaign(*TWO), gpus=2)
    work = Local(campaign, ["0", "1", "4", "7"], 4, 10)

    def after(stage):
        for job, (child, _) in work.at_work.items():
            child.code = 0 if job.stage == stage else None
        work._look()
        for job in campaign.jobs():
            if job not in work.states and job not in work.at_work:
                work._begin(job)
        return [(job.stage, devices) for job, (_, devices) in work.at_work.items()]

    assert after("") == [("prepare", [])]
    two = [("pretrain", ["0", "1"]), ("pretrain", ["4", "7"])]
    assert after("prepare") == after("pretrain") == two
    assert after("pretrain") == [("linear", [device]) for device in ("0", "1", "4", "7")]


def test_three_methods_two_seeds_a_kill_a_full_disk_and_a_method_that_cannot_be_built(driver):
    """At the end of the second call everything that can be done is done, and once."""
    more = ("--methods", "byol", "vicreg", "simsiam", "--seeds", "1", "2", "--jobs", "2")
    (driver.folder / "broken").write_text("simsiam")
    (driver.folder / "full").write_text("vicreg-seed1")
    call = driver.begin(*more)
    moment, number = random.uniform(0.0, 2.0), random.choice([signal.SIGTERM, signal.SIGKILL])
    time.sleep(moment)
    os.kill(call.pid, number)
    assert call.code() in (143, -number), (moment, call.said())
    (driver.folder / "full").unlink()
    code, said = driver.run(*more)
    assert code == 1, (moment, number, said)
    epochs = [f"{m}-seed{s} {e}" for m in ("byol", "vicreg") for s in (1, 2) for e in range(3)]
    assert sorted(driver.epochs()) == epochs, (moment, number)
    done = [(line[1], line[3]) for line in driver.journal() if line[2] == "done"]
    assert len(done) == len(set(done)) == 8, (moment, number)
    assert "pretrain-simsiam-seed1: FAILED: method_kwargs: simsiam refuses them" in said
    assert "linear-simsiam-seed1: left out: pretrain-simsiam-seed1 has not finished" in said
    text = (driver.output / "report" / "campaign.md").read_text()
    assert "12 of 18 jobs are finished" in text
    for seed in ("1", "2"):
        assert f"| vicreg | {seed} | finished | finished | finished |" in text
        assert f"| simsiam | {seed} | failed | not begun | not begun |" in text
    assert "- pretrain-simsiam-seed1: method_kwargs: simsiam refuses them (no such thing)" in text


# The page


def test_a_standard_error_is_that_of_so_many_draws():
    error = 100 * (0.8 * 0.2 / 5000) ** 0.5
    assert page.explained(79.44, 80.0) == f"-0.56, within one standard error ({error:.2f})"
    assert page.explained(81.2, 80.0) == f"+1.20, {1.2 / error:.1f} standard errors ({error:.2f})"


def test_the_page_ranks_by_the_linear_figure_beside_the_published_rows(finished):
    text = page.text(finished.campaign(*TWO))
    rows = [line for line in text.splitlines() if "±" in line and line.startswith("| ")]
    # Of the stand-in: 70 + letters + seed / 10; the linear layer has a point more.
    assert rows[0].startswith("| vicreg | 77.15 ± 0.07 (n = 2) | 76.15 ± 0.07 (n = 2) | 77.15")
    assert "| first | 79.40 | 79.22 | -2.25, 3.9 standard errors (0.57) |" in rows[0]
    assert rows[1].startswith("| byol | 75.15 ± 0.07 (n = 2)")
    assert "| -2.00, 3.4 standard errors (0.59) | 80.32 | 80.16 |" in rows[1]
    assert "| simsiam (published, not run here) | - | - | - | - | 78.72 | 74.54 | - | - |" in text
    assert "another protocol" not in text


def test_from_another_protocol_no_difference_is_taken(finished, monkeypatch):
    campaign = finished.campaign(*TWO, "--set", "max_epochs=3")
    monkeypatch.setattr(Campaign, "_is_of", lambda *_: True)
    text = page.text(campaign)
    assert "another protocol (--toy, or --set) than the published ones" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| vicreg | 77")]
    assert row.endswith("| first | 79.40 | 79.22 | - | - |")


def test_a_broken_result_is_no_figure_and_is_named(finished, driver):
    shutil.copytree(finished.output, driver.output)
    campaign = driver.campaign(*TWO, "--seeds", "1")
    run = campaign.state(Job("pretrain", "byol", 1)).folder
    (run / "metrics.csv").unlink()
    text = page.text(campaign)
    assert "byol (published, not run here)" in text
    assert f"- `{run}`: metrics.csv is missing" in text
    assert "| vicreg | 77.10 |" in text
