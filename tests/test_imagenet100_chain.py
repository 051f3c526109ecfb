"""scripts/imagenet100: the commands that it gives, and the whole chain on photographs."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import preflight
import pytest
from campaign import METHODS, Job
from driven import asked_for
from omegaconf import OmegaConf

from solo_mim import training
from solo_mim.recipe.checks import checked
from solo_mim.recipe.compose import composed
from solo_mim.runs.folder import RunFolder

SCRIPT = Path(__file__).parents[1] / "scripts" / "imagenet100" / "reproduce.py"


@pytest.fixture
def commands():
    """Arguments of every `solo-mim` of a call, by job: `commands("--gpus", "1")`."""

    def given(*arguments):
        campaign, _ = asked_for(*arguments)
        return {job: campaign.words(job, "RUN") for job in campaign.jobs()}

    return given


def test_every_method_goes_through_every_stage(commands):
    given = commands("--imagenet", "there")
    assert [words[0] for words in given.values()] == (
        ["prepare", *["pretrain"] * 7, *["linear"] * 7, *["knn"] * 7, "report"]
    )
    words = given[Job("pretrain", "vicreg", 5)]
    assert {"devices=2", "strategy=ddp", "optimizer.batch_size=128"} <= set(words)


def test_each_job_comes_after_what_it_needs():
    campaign = asked_for(
        *("--imagenet", "there", "--seeds", "1", "2", "--methods", "byol", "vicreg")
    )[0]
    pretrain = Job("pretrain", "vicreg", 2)
    assert campaign.before(pretrain) == [Job("prepare")]
    assert campaign.before(Job("linear", "vicreg", 2)) == [pretrain]
    assert campaign.before(Job("knn", "vicreg", 2)) == [pretrain]
    assert campaign.before(Job("report")) == campaign.jobs()[:-1]
    assert [job.seed for job in campaign.jobs() if job.stage == "pretrain"] == [1, 1, 2, 2]
    assert asked_for("--stages", "knn")[0].before(Job("knn", "vicreg", 5)) == []


@pytest.mark.parametrize(("gpus", "methods"), [("2", METHODS), ("0", ["byol"]), ("8", ["byol"])])
def test_what_the_commands_are_given_is_a_configuration(commands, compose_cfg, gpus, methods):
    more = (
        "--methods",
        *methods,
        "--set",
        "data.on_corrupt=skip",
        "--set",
        "optimizer.weight_decay=0.5",
    )
    for job, words in commands("--gpus", gpus, "--seeds", "3", *more).items():
        if job.stage == "pretrain":
            cfg = compose_cfg(*words[1:])
            assert (cfg.max_epochs, cfg.data.format, cfg.seed) == (400, "dali", 3)
            assert cfg.optimizer.batch_size * max(1, int(gpus)) == 256
            assert (cfg.data.on_corrupt, cfg.optimizer.weight_decay) == ("skip", 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_known_by_what_it_records(method, tmp_path, monkeypatch):
    given = ("--imagenet", "there", "--output", str(tmp_path), "--methods", method)
    campaign, job = asked_for(*given)[0], Job("pretrain", method, 5)
    data = SimpleNamespace(splits=SimpleNamespace(fingerprint="0123"))
    monkeypatch.setattr(training, "SSLDataModule", lambda _: data)
    monkeypatch.setattr(RunFolder, "once", lambda folder, *_: folder.begin())
    training.pretrain(checked(composed("pretrain", campaign.words(job)[1:])))
    (folder,) = tmp_path.glob(f"{method}-imagenet100-seed5-*")
    assert campaign.state(job).folder == folder
    other = asked_for(*given, "--set", "max_epochs=7")[0]
    assert other.state(job).word == "not begun"


def test_images_are_read_as_asked_for(commands, compose_cfg):
    formats = {"pillow": "image_folder", "dali": "dali", "h5": "h5"}
    for name, theirs in formats.items():
        given = commands("--format", name, "--methods", "vicreg")
        assert compose_cfg(*given[Job("pretrain", "vicreg", 5)][1:]).data.format == theirs


def test_classifiers_have_the_rates_and_steps_of_solo_learns_files(commands, solo_learn_main):
    folder = solo_learn_main / "scripts" / "linear" / "imagenet-100"
    files = {"barlow_twins": "barlow", "explicit_mim": "vicreg"}
    compared = 0
    for job, words in commands().items():
        if job.stage != "linear":
            continue
        theirs = OmegaConf.load(folder / f"{files.get(job.method, job.method)}.yaml")
        given = dict(word.partition("=")[::2] for word in words[2:])
        assert float(given["optimizer.lr"]) == theirs.optimizer.lr, job.method
        assert given["scheduler.name"] == theirs.scheduler.name == "step"
        assert given["scheduler.lr_decay_steps"] == "[60,80]"
        assert list(theirs.scheduler.lr_decay_steps) == [60, 80]
        assert int(given["max_epochs"]) == theirs.max_epochs == 100
        assert (theirs.precision, given["precision"]) == (16, "16-mixed")
        compared += 1
    assert compared == 7


def toy(photographs, tmp_path, *more):
    """A toy ImageNet, validated on what it is trained on, and the command; nothing is measured."""
    source = tmp_path / "imagenet"
    source.mkdir()
    for split in ("train", "val"):
        (source / split).symlink_to(photographs)
    command = [sys.executable, SCRIPT, "--imagenet", source, "--data", tmp_path / "data"]
    return [*command, "--output", tmp_path / "runs", "--gpus", "0", "--toy", *more]


def measured(folder):
    """Columns of the report that a linear layer and kNN by two distances have filled."""
    rows = pd.read_csv(folder / "report" / "report.csv")
    found = [column for column in rows if re.search(r"\(held-out images.*\)$", column)]
    assert len(found) == 3, rows.columns
    return rows[found]


@pytest.mark.slow
def test_the_whole_chain_runs_on_photographs_with_dali_on_the_cpu(hundred_photographs, tmp_path):
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed")
    command = toy(hundred_photographs / "train", tmp_path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    found = measured(tmp_path / "runs")
    assert len(found) == 7
    assert found.notna().all(axis=None)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-5000:]
    assert again.stdout.count("finished: before") == 22


def at_work_in(folder):
    """Processes with the folder in their command."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_text(errors="replace").replace("\0", " "))
    return [line for line in lines if str(folder) in line]


@pytest.mark.slow
def test_a_stop_a_broken_file_and_a_method_that_cannot_be_built(hundred_photographs, tmp_path):
    """The real chain, by Pillow: at the end of the second call all that can be done is done."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for folder in (hundred_photographs / "train").iterdir():
        (photographs / folder.name).mkdir()
        for file in folder.iterdir():
            (photographs / folder.name / file.name).symlink_to(file)
    broken = photographs / folder.name / "broken.JPEG"
    broken.write_bytes(file.read_bytes()[:2000])
    methods = ("explicit_mim", "simsiam", "barlow_twins")
    more = ("--format", "pillow", "--methods", *methods, "--no-trial")
    more += ("--set", "data.on_corrupt=skip", "--set", "data.num_workers=1", "--go-on")
    # Of these three explicit MIM alone has it.
    command = [*toy(photographs, tmp_path, *more), "--set", "method_kwargs.within_noise=0.01"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    runs = tmp_path / "runs"
    while not list(runs.glob("explicit_mim-*/checkpoints/epoch=0.ckpt")):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    said = first.communicate()[0]
    assert first.returncode == 128 + signal.SIGTERM, said
    assert "is kept" in said
    (run,) = runs.glob("explicit_mim-*")
    assert not at_work_in(runs)
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 1, second.stdout[-5000:] + second.stderr[-5000:]
    result = json.loads((run / "result.json").read_text())
    assert [Path(path).name for path in result["corrupt_images"]] == ["broken.JPEG"]
    text = (runs / "report" / "campaign.md").read_text()
    assert "| explicit_mim | 5 | finished | finished | finished |" in text
    for method in ("simsiam", "barlow_twins"):
        assert f"| {method} | 5 | failed | not begun | not begun |" in text
    assert "within_noise" in text
    assert measured(runs).notna().all(axis=None)


@pytest.mark.slow
def test_a_trial_step_is_a_real_one(tmp_path):
    more = ("--methods", "vicreg", "--gpus", "0", "--format", "pillow", "--toy")
    more += ("--set", "scheduler.warmup_epochs=3", "--set", "data.fraction=0.1")
    preflight.noise(tmp_path / "data", 256)
    good, _ = asked_for("--output", str(tmp_path / "runs"), *more)
    assert preflight.tried(good, "vicreg", tmp_path, ()) == ""
    bad, _ = asked_for(*more, "--set", "optimizer.batch_size=5000")
    assert "optimizer.batch_size" in preflight.tried(bad, "vicreg", tmp_path, ())
