"""The commands as a person runs them: processes, exit codes, files."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

from solo_mim import progress, trainer, training
from solo_mim.commands import COMMANDS, main
from solo_mim.data.photo_patches import photo_patches
from solo_mim.errors import ConfigError
from solo_mim.installed import PACKAGE
from solo_mim.protocols import linear
from solo_mim.recipe.checks import checked
from solo_mim.runs import sources
from solo_mim.runs.collect import collect
from solo_mim.runs.folder import RunFolder

TINY = [
    "max_epochs=2",
    "limit_train_batches=2",
    "limit_val_batches=2",
    "method_kwargs.proj_hidden_dim=32",
    "method_kwargs.proj_output_dim=16",
    "evaluation.offline=false",
    "data.num_workers=0",
    "+backbone.kwargs.widths=[8,16,32,64]",
]


# 122 training images and 31 held-out ones.
FEW = [
    *("data.validation_split=0.2", "data.fraction=0.03", "optimizer.batch_size=16"),
    "evaluation.information_every_n_epochs=0",
]

KEPT = "the checkpoint of epoch 1 of 2 is kept; the same command resumes from it"
NOTHING_KEPT = "no epoch was finished yet; the same command starts again"


def installed(*arguments, cwd=None, **environment):
    """Runs `python -m solo_mim` in a process of its own; stdout and stderr as text."""
    return subprocess.run(
        [sys.executable, "-m", "solo_mim", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with one finished two-epoch run, made from a folder that is not the checkout."""
    folder = tmp_path_factory.mktemp("somewhere")
    done = installed("pretrain", *TINY, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


@pytest.fixture
def small_images(tmp_path):
    """A folder with `train` and `val`: 12 patches of each of two photographs."""
    for part, images in zip(("train", "val"), photo_patches(), strict=True):
        for label in (0, 1):
            folder = tmp_path / part / str(label)
            folder.mkdir(parents=True)
            for number, image in enumerate(images.images[images.labels == label][:12]):
                Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path


def test_a_run_leaves_result_metrics_curves_and_checkpoint(finished):
    folder, printed = finished
    (run,) = (folder / "runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert result["method"] == "explicit_mim"
    assert result["epochs"] == 2
    assert 0 <= result["online"]["knn_top1"] <= 100
    assert result["information"]["images"] == 4096  # of 4,250
    assert result["versions"]["torch"]
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["epoch"].tolist() == [0, 1]
    assert metrics["train_explicit_mim_loss_epoch"].notna().all()
    assert metrics["val_knn_acc1"].notna().all()
    assert result["information"]["eigenvalue_max"] >= 1
    assert (run / "curves.png").stat().st_size > 5000
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert checkpoint.name == "epoch=1.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["epoch"] == 1
    assert any(key.startswith("backbone.") for key in saved["state_dict"])
    for line in (
        "trained, online",
        "nats",
        "images/s",
        "peak memory",
        "solo-mim methods",
    ):
        assert line in printed
    first, last = re.findall(r"^epoch ./2 .*", printed, re.M)
    assert re.search(r"images/s  \d+ s an epoch  \d+ s left$", first)
    assert re.search(r"images/s  \d+ s an epoch$", last)
    assert "logging interval" not in printed  # of 10 steps, in epochs of 2


def test_overrides_may_stand_on_both_sides_of_an_option(solo_mim):
    said = solo_mim("pretrain", "seed=3", "--cfg", "job", "max_epochs=7")
    assert said.code == 0
    assert "seed: 3" in said.out
    assert "max_epochs: 7" in said.out


def test_the_same_command_again_skips_the_finished_run(finished, monkeypatch, solo_mim):
    monkeypatch.chdir(finished[0])
    again = solo_mim("pretrain", *TINY)
    assert again.code == 0
    assert "finished before" in again.out
    assert "epoch 1/2" not in again.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], "unknown command 'pretrian'; did you mean 'pretrain'?"),
        (["pretrain", "max_epoch=3"], "unknown key 'max_epoch'; did you mean 'max_epochs'?"),
        (
            ["pretrain", "optimizer.leraning_rate=3"],
            "unknown key 'optimizer.leraning_rate'",
        ),
        (["pretrain", "method=vicrge"], "did you mean 'vicreg'?"),
        (["pretrain", "method_kwargs.within_noise=5e-4"], "no less than total_noise (0.001)"),
        (
            ["pretrain", "method_kwargs.reading=twoview"],
            "method_kwargs.reading: unknown value 'twoview'; did you mean 'two_view'?",
        ),
        (["pretrain", "+method_kwargs.within_nois=0.5"], "did you mean 'within_noise'?"),
        (["pretrain", "method=vicreg", "+method_kwargs.lamb=1"], "method_kwargs.lamb"),
        (["pretrain", "method_kwargs.within_nois=1"], "did you mean 'within_noise'? (set on"),
        (["pretrain", "method_kwargs.lamb=1"], "unknown key 'method_kwargs.lamb'; known: "),
        (["pretrain", "++optimzer.lr=0.5"], "unknown key 'optimzer'; did you mean 'optimizer'?"),
        (["pretrain", "+optimizer.lrr=0.5"], "unknown key 'optimizer.lrr'; did you mean 'lr'?"),
        (["pretrain", "++backbone.kwargz.x=1"], "unknown key 'backbone.kwargz'; did you mean"),
        (["pretrain", "+budgt=cpu"], "unknown key 'budgt'; did you mean 'budget'?"),
        (["plan", "++optimzer.lr=0.5"], "unknown key 'optimzer'; did you mean 'optimizer'?"),
        (["pretrain", "+optimizer.kwargs.beta=1"], "did you mean 'betas'?"),
        (["pretrain", "optimizer.name=adamv"], "did you mean 'adam"),
        (["pretrain", "knn_eval.distance_func=l2"], "knn_eval.distance_func"),
        (["pretrain", "devices=two"], "devices=two"),
        (["pretrain", "precision=17"], "Trainer refuses"),
        (["pretrain", "accelerator=tpu"], "Trainer refuses its settings: Requirement 'torch_xla"),
        (["pretrain", "+backbone.kwargs.depth=3"], "backbone.kwargs"),
        (["pretrain", "data=image_folder"], "data.train_path"),
        (
            ["pretrain", "data=image_folder", "data.train_path=/nowhere/at/all"],
            "data.train_path",
        ),
        (["pretrain", "optimizer.batch_size=100000"], "optimizer.batch_size"),
        (["pretrain", "backbone=vit_tiny"], "it has no file; write backbone.name=vit_tiny"),
        (["pretrain", "backbone.name=resnet81"], "did you mean 'resnet18'?"),
        (["pretrain", "optimizer.lr=fast"], "optimizer.lr"),
        (["pretrain", "data=null"], "data=null: a group takes the name of a file in it"),
        (
            ["pretrain", "scheduler.name=step", "scheduler.lr_decay_steps=[-5]"],
            "needs scheduler.lr_decay_steps, epochs from 1 on",
        ),
        (["pretrain", "max_epochs=[1"], "max_epochs=[1"),
        (["pretrain", "optimizer.name=LARS"], "did you mean 'lars'?"),
        (
            ["pretrain", "optimizer.name=lars", "+optimizer.kwargs.betas=[0.9,0.95]"],
            "lars takes no",
        ),
        (["pretrain", "knn_eval.k=0"], "knn_eval.k must be at least 1, not 0"),
        (["pretrain", "momentum.base_tau=2"], "momentum.base_tau must be at least 0 and at most 1"),
        (["pretrain", "seed=-1"], "seed must be at least 0"),
        (["pretrain", "max_epochs=0"], "max_epochs must be at least 1"),
        (["pretrain", "scheduler.warmup_start_lr=-1"], "scheduler.warmup_start_lr must be"),
        (
            ["pretrain", "scheduler.warmup_epochs=99"],
            "=99 is more than max_epochs=16: optimizer.lr",
        ),
        (["plan", "scheduler.warmup_epochs=99"], "is more than max_epochs=16: optimizer.lr is"),
        (["pretrain", "name=../../evil", "output_dir=a/b"], "name='../../evil' must be fit for a"),
        (["pretrain", "accumulate_grad_batches=0"], "accumulate_grad_batches must be"),
        (["pretrain", "limit_train_batches=0"], "a trial run is max_epochs=1"),
        (["pretrain", "max_steps=0"], "max_steps=0: a trial run is max_epochs=1"),
        (["pretrain", "gradient_clip_val=-1"], "gradient_clip_val must be at least 0, not -1"),
        (["pretrain", "gradient_clip_val=a"], "gradient_clip_val must be at least 0, not a"),
        (["pretrain", "fast_dev_run=true"], "a trial run is max_epochs=1"),
        (["pretrain", "method_kwargs.proj_hidden_dim=-5"], "a finite number above 0"),
        (["pretrain", "method=vicreg", "method_kwargs.proj_output_dim=0"], "above 0 is needed"),
        (
            ["pretrain", "method_kwargs.total_noise=.nan"],
            "method_kwargs.total_noise: a number is needed, not '.nan'",
        ),
        (["pretrain", "method=corinfomax", "method_kwargs.alpha=a"], "method_kwargs.alpha: a num"),
        (["pretrain", "method=vicreg", "method_kwargs.proj_hidden_dim=1.5"], "a whole number"),
        (["pretrain", "method=nnclr", "method_kwargs.queue_size=0"], "queue_size=0 must be a mul"),
        (["pretrain", "method=wmse", "method_kwargs.whitening_size=0"], "whitening_size=0 must"),
        (["pretrain", "method=deepclusterv2", "method_kwargs.num_prototypes=300"], "give a list"),
        (
            ["pretrain", "data.no_labels=true"],
            "data.no_labels: photo_patches has labels",
        ),
        (["pretrain", "+backbone.kwargs.widths=[]"], "backbone.kwargs: small_cnn refuses them"),
        (
            [
                "pretrain",
                "backbone=resnet18",
                "backbone.name=vit_tiny",
                "+backbone.kwargs.img_size=224",
            ],
            "backbone.kwargs: vit_tiny refuses them at [32] pixels",
        ),
        (["pretrain", "+resume_from_checkpoint=/nowhere/x.ckpt"], "/nowhere/x.ckpt is not there"),
        (["pretrain", "+resume_from_checkpoint=/etc/passwd"], "/etc/passwd is no checkpoint"),
        (["pretrain", "overfit_batches=2", "data.format=tensor"], "not with data.format=tensor"),
        (
            ["pretrain", "optimizer.batch_size=2000", "devices=3", "accelerator=cpu"],
            "Set it to 1700 or less",
        ),
        (["pretrain", "output_dir=/etc/passwd/x"], "output_dir: /etc/passwd/x"),
        (["pretrain", "--config-path", "nowhere", "--config-name", "x"], "nowhere"),
        (["pretrain", "--prolong", "nowhere"], "--prolong RUN max_epochs=200"),
        (["pretrain", "--prolong", "nowhere", "max_epochs=3"], "there is no such folder"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    arguments, message, tmp_path, monkeypatch, refused
):
    # In this process: a new one takes seconds to import torch, and there are many errors.
    monkeypatch.chdir(tmp_path)
    assert message in refused(*arguments)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("variable", ["SOLO_MIM_DEBUG", "HYDRA_FULL_ERROR"])
def test_an_errors_cause_is_shown_where_it_is_asked_for(variable, solo_mim, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # of Hydra's runs before, and no wish of anybody's
    monkeypatch.setenv("SOLO_MIM_DEBUG", "0")
    arguments = ["pretrain", "+optimizer.kwargs.betas=[0.9]"]
    assert "Traceback" not in solo_mim(*arguments).err
    for name in ("SOLO_MIM_DEBUG", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name)
    monkeypatch.setenv(variable, "1")
    said = solo_mim(*arguments)
    assert said.code == 2
    assert "torch/optim/adam" in said.err, "where it comes from"
    assert said.err.splitlines()[-1].startswith("solo-mim: optimizer.kwargs: adamw refuses")


def _fails_with(error):
    def fails(*_, **__):
        raise error

    return fails


def test_a_loader_that_runs_out_of_memory_in_training_is_named_as_such(
    refused, monkeypatch, tmp_path
):
    error = RuntimeError("Caught RuntimeError in worker 0.\nDefaultCPUAllocator: can't allocate")
    error.args = (f"{error} memory: you tried to allocate 4096 bytes.",)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "fit", _fails_with(error))
    said = refused("pretrain", *TINY)
    assert "out of memory (4096 bytes more were needed): lower optimizer.batch_size" in said


def test_a_model_too_large_for_the_memory_is_named_as_such(refused):
    said = refused("pretrain", "method_kwargs.proj_hidden_dim=1000000000000")  # 2 PB at once
    assert "out of memory (2048000000000000 bytes more were needed): lower" in said
    assert "the dimensions in method_kwargs and backbone" in said


def test_a_user_error_of_the_installed_command_is_no_traceback(tmp_path):
    done = installed("pretrain", "max_epoch=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "solo-mim: unknown key 'max_epoch'; did you mean 'max_epochs'? (set on the command line)"
    ]


def test_a_run_that_ended_before_its_first_epoch_starts_anew(
    finished, tmp_path, monkeypatch, solo_mim
):
    monkeypatch.chdir(tmp_path)
    folder, _ = finished
    (run,) = (folder / "runs").iterdir()
    early = tmp_path / "runs" / run.name / "log" / "000"
    early.mkdir(parents=True)
    (early / "metrics.csv").write_text("lr,step\n0.1,0\n")
    (early.parents[1] / "checkpoints").mkdir()
    (early.parents[1] / "checkpoints" / "epoch=0.ckpt").write_bytes(b"PK cut short")
    done = solo_mim("pretrain", *TINY)
    assert done.code == 0, done.err
    assert "epoch 1/2" in done.out
    assert "resuming" not in done.out
    assert "epoch=0.ckpt is missing: nothing resumes from it" in done.out


def test_offline_evaluation_opens_the_test_set_only_when_asked(tmp_path, monkeypatch, solo_mim):
    monkeypatch.chdir(tmp_path)
    arguments = [
        *(a for a in TINY if a != "evaluation.offline=false"),
        "data.validation_split=0.2",
        "data.fraction=0.1",
        "optimizer.batch_size=64",
        "evaluation.information_every_n_epochs=0",
        "output_dir=out",
    ]
    for test in ("false", "true"):
        done = solo_mim("pretrain", *arguments, f"evaluation.test={test}")
        assert done.code == 0, done.err
    results = [json.loads(p.read_text()) for p in (tmp_path / "out").glob("*/result.json")]
    by_part = {result["offline_evaluated_on"]: result for result in results}
    assert set(by_part) == {"validation split", "test images"}
    for result in results:
        assert result["evaluated_on"] == "validation split"
        counts = [result[key] for key in ("training_images", "held_out_images", "classes")]
        assert counts == [408, 102, 17]
        assert set(result["offline"]) == {"untrained", "raw_pixels", "trained"}
        assert result["offline"]["raw_pixels"]["probe_top1"] is None
        assert result["offline"]["trained"]["knn_top1"] > 100 / 17
        predictions = pd.read_csv(Path(tmp_path, result["folder"], "predictions.csv"))
        for predicted in ("knn", "probe"):
            accuracy = 100 * (predictions[predicted] == predictions["target"]).mean()
            assert accuracy == pytest.approx(result["offline"]["trained"][f"{predicted}_top1"])
    knn = [r["offline"]["untrained"]["knn_top1"] for r in results]
    assert knn[0] != knn[1], "4,250 test images are not the 102 of the split"


def test_tensorboard_and_offline_wandb_get_every_term(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = ("tensorboard.enabled=true", "wandb.enabled=true", "wandb.offline=true")
    done = installed("pretrain", *TINY, *loggers, "log_every_n_steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(run / "log" / "000")).Reload()
    steps = [event.step for event in events.Scalars("train_explicit_mim_loss_step")]
    assert steps == [0, 1, 2, 3]
    assert "val_acc1" in events.Tags()["scalars"]
    result = json.loads((run / "result.json").read_text())
    (measured,) = events.Scalars("information/infomax")
    assert (measured.step, measured.value) == (4, pytest.approx(result["information"]["infomax"]))
    assert len(list(run.glob("wandb/offline-run-*/run-*.wandb"))) == 1


@pytest.mark.parametrize("name", ["TensorBoardLogger", "WandbLogger"])
def test_a_logger_that_is_not_installed_names_its_extra(name, tmp_path, monkeypatch, compose_cfg):
    def absent(*_, **__):
        raise ModuleNotFoundError

    monkeypatch.setattr(trainer, name, absent)
    extra = name.removesuffix("Logger").lower()
    recipe = checked(compose_cfg(f"{extra}.enabled=true"))
    folder = RunFolder(tmp_path, recipe.plain, "0123")
    with pytest.raises(ConfigError, match=rf"pip install '\.\[{extra}\]'"):
        trainer.loggers(recipe, folder)


def test_two_processes_train_and_say_what_they_could_not_read_or_share(small_images):
    (small_images / "val" / "0" / "0.png").unlink()
    # Two steps of twelve images: all 24 are read in each epoch, by one process or the other.
    broken = [f"train/{label}/{number}.png" for label in (0, 1) for number in (1, 5, 9)]
    for path in broken:
        (small_images / path).write_bytes((small_images / path).read_bytes()[:99])
    done = installed(
        *("pretrain", "data=image_folder", "+budget=cpu", *TINY, "data.on_corrupt=skip"),
        *("data.train_path=train", "data.val_path=val", "optimizer.batch_size=6"),
        *("devices=2", "strategy=ddp", "accelerator=cpu"),
        cwd=small_images,
    )
    assert done.returncode == 0, done.stderr
    (run,) = (small_images / "runs").iterdir()
    assert pd.read_csv(run / "metrics.csv")["step"].tolist() == [2, 4]
    result = json.loads((run / "result.json").read_text())
    assert sorted(result["corrupt_images"]) == broken
    assert re.search(r"process [01]: \d unreadable images? skipped: train/", done.stdout)
    assert result["online_left_out"] == 1
    assert "online figures leave out 1 of the held-out images" in done.stdout


def test_a_diverged_run_says_so_and_leaves_the_reason_until_it_is_run_again(
    tmp_path, monkeypatch, solo_mim
):
    monkeypatch.chdir(tmp_path)
    too_fast = ("optimizer.lr=1e30", "optimizer.name=sgd", "scheduler.name=none")
    done = solo_mim("pretrain", *TINY, *too_fast)
    assert done.code == 1
    assert "has diverged in epoch 1, step 2" in done.err
    assert "Traceback" not in done.err
    (run,) = (tmp_path / "runs").iterdir()
    assert "has diverged in epoch 1" in (run / "failure.txt").read_text()
    reported = solo_mim("report", "runs")
    assert "failed: optimizer.lr=1e+30: explicit_mim has diverged in epoch 1" in reported.out


def test_a_default_that_other_options_choose_stands_in_the_runs_configuration(finished):
    from omegaconf import OmegaConf

    (config,) = finished[0].glob("runs/*/config.yaml")
    kwargs = OmegaConf.load(config).method_kwargs
    assert (kwargs.within, kwargs.within_noise, kwargs.total_noise) == ("isotropic", 0.001, 0.001)


def test_figures_of_a_validation_before_the_last_epoch_are_told_as_such(finished):
    folder, printed = finished
    told = "online figures are of epoch"
    assert told not in printed
    rows = {"epoch": [0, 1, 2], "val_acc1": [None, 40.0, None], "val_knn_acc1": [None, 30.0, None]}
    found = training._online(pd.DataFrame(rows))
    assert found["online"] == {"probe_top1": 40, "probe_top5": None, "knn_top1": 30}
    (result,) = folder.glob("runs/*/result.json")
    result = {**json.loads(result.read_text()), **found, "epochs": 3}
    assert f"{told} 2, the last one with a validation" in training.summary(result)
    assert training._online(pd.DataFrame({"epoch": [0]}))["online_after_epochs"] is None


@pytest.mark.parametrize("method", ["vicreg", "byol"])
def test_a_baseline_that_diverges_ends_in_one_line_and_is_no_result(method, tmp_path, solo_mim):
    too_fast = ("optimizer.lr=1e25", "optimizer.name=sgd", "scheduler.name=none")
    arguments = [*TINY, *FEW, f"method={method}", *too_fast, f"output_dir={tmp_path}"]
    said = solo_mim("pretrain", *arguments, "limit_train_batches=6")
    assert said.code == 1, said
    (line,) = [line for line in said.err.splitlines() if line.startswith("solo-mim: ")]
    found = rf"{method} has diverged in epoch 1, step [1-6]: the loss is not finite; lower it"
    assert re.search(found, line)
    (run,) = tmp_path.iterdir()
    assert re.search(found, (run / "failure.txt").read_text())
    left = {path.name for path in run.iterdir()}
    assert left == {".lock", "config.yaml", "failure.txt", "log", "provenance.json"}


@pytest.mark.parametrize("command", ["pretrain", "linear"])
def test_weights_that_are_not_finite_are_never_saved_though_the_loss_is(
    command, own_run, tmp_path, monkeypatch, solo_mim
):
    import lightning.pytorch as pl

    class Break(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.current_epoch == 1 and trainer.is_last_batch:
                next(module.parameters()).data[0] = torch.inf

    for module in (training, linear):
        monkeypatch.setattr(
            module, "trainer_of", lambda *of: trainer.trainer_of(*of[:-1], [Break(), *of[-1]])
        )
    epochs = [*TINY[:3], "data.num_workers=0", f"output_dir={tmp_path}"]
    of = [own_run, FEW[2]] if command == "linear" else [*TINY[3:], *FEW]
    said = solo_mim(command, *of, *epochs)
    assert said.code == 1, said
    what = "the classifier" if command == "linear" else "explicit_mim"
    assert f"{what} has diverged in epoch 2, step 2: the weights are not finite" in said.err
    (checkpoint,) = tmp_path.rglob("checkpoints/*")
    assert checkpoint.name == "epoch=0.ckpt"
    run = checkpoint.parents[1]
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + 1
    assert not (run / "result.json").exists()


@pytest.mark.parametrize("schedule", ["warmup_cosine", "none"])
def test_a_finished_run_is_prolonged_in_a_folder_of_its_own(
    schedule, toy_run, tmp_path, monkeypatch, solo_mim
):
    monkeypatch.chdir(tmp_path)
    arguments = ["max_epochs=2", f"scheduler.name={schedule}", f"output_dir={tmp_path}/it's=here"]
    said = solo_mim("pretrain", "--prolong", toy_run, *arguments)
    assert said.code == 0, said.err
    (checkpoint,) = (toy_run / "checkpoints").iterdir()
    assert f"resuming from {checkpoint}" in said.out
    assert "epoch 2/2" in said.out
    assert "epoch 1/2" not in said.out
    note = (
        "note: from here on the rate follows the cosine of 2 epochs, after that of 1: another run"
    )
    assert (note in said.out) == (schedule == "warmup_cosine")
    (run,) = (tmp_path / "it's=here").iterdir()
    assert pd.read_csv(run / "metrics.csv")["epoch"].tolist() == [0, 1]
    assert solo_mim("pretrain", "--prolong", toy_run, *arguments).out.startswith("finished before")


def test_training_for_hours_on_a_cpu_is_said_once_with_the_remedy(capsys, monkeypatch):
    seconds = iter(range(0, 1000, 9))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(seconds))

    def train(steps, epochs):
        of = SimpleNamespace(
            is_global_zero=True, max_epochs=epochs, current_epoch=0, num_training_batches=steps
        )
        note = progress.CPUNote()
        for step in range(5):
            note.on_train_batch_end(of, None, None, None, step)
        return capsys.readouterr().out

    assert train(1000, 2) == (
        "note: there is no GPU, and 9 s a step make 5.0 h; +budget=cpu trains a small network for "
        "a few epochs\n"
    )
    assert train(100, 2) == ""


def test_a_multirun_trains_each_job(tmp_path, monkeypatch, solo_mim):
    monkeypatch.chdir(tmp_path)
    done = solo_mim("pretrain", "--multirun", *TINY, "seed=1,2")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("number", "hook", "epoch", "standing"),
    [
        (signal.SIGINT, "on_train_epoch_start", 1, KEPT),
        (signal.SIGTERM, "on_train_batch_end", 1, KEPT),
        (signal.SIGTERM, "on_validation_epoch_start", 0, NOTHING_KEPT),
    ],
)
def test_ctrl_c_and_sigterm_say_in_one_line_what_is_kept(tmp_path, number, hook, epoch, standing):
    done = pressed(tmp_path, number, hook, epoch)
    assert done.returncode == 128 + number, done.stderr
    said = [line for line in done.stderr.splitlines() if "interrupted" in line]
    assert said == [f"solo-mim: interrupted; {standing}"]
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no SIGUSR1")
def test_sigusr1_requeues_the_slurm_job_and_the_epochs_done_are_kept(tmp_path):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/said"\n')
    scontrol.chmod(0o755)
    environment = {
        **{"PATH": f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "17"},
        # What srun sets for the one task of a job; lightning looks for it.
        **{"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
        **{"SLURM_NODELIST": "localhost", "SLURM_JOB_NAME": "pretrain"},
    }
    done = pressed(tmp_path, signal.SIGUSR1, "on_train_batch_end", 1, **environment)
    assert f"solo-mim: interrupted; {KEPT}; job 17 is requeued" in done.stderr.splitlines()
    assert done.returncode == 128 + signal.SIGUSR1
    assert (scontrol.parent / "said").read_text() == "requeue 17\n"
    (run,) = (tmp_path / "runs").iterdir()
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["epoch=0.ckpt"]


def pressed(folder, number, hook, epoch, **environment):
    """A run that gets a signal in a hook of an epoch."""
    code = (
        "import lightning.pytorch as pl, os, signal, sys\n"
        "from solo_mim import training\n"
        "from solo_mim.commands import main\n"
        # A shell starts background jobs with the signal ignored, and Python then leaves it so.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Press(pl.Callback):\n"
        f"    def {hook}(self, trainer, module, *_):\n"
        f"        if trainer.current_epoch == {epoch}: os.kill(os.getpid(), signal.{number.name})\n"
        "make = training.trainer_of\n"
        "training.trainer_of = lambda *of: make(*of[:-1], [*of[-1], Press()])\n"
        "sys.exit(main(['pretrain', *sys.argv[1:]]))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *TINY],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker forks")
def test_a_run_killed_at_any_moment_loses_no_finished_epoch_and_ends_equal(tmp_path):
    arguments = [
        *("max_epochs=5", "limit_train_batches=3", "limit_val_batches=2", "data.num_workers=0"),
        *("method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=8"),
        *("data.validation_split=0.2", "data.fraction=0.03", "optimizer.batch_size=16"),
        *("evaluation.information_every_n_epochs=0", "checkpoint.frequency=4"),
    ]
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "killed_worker.py", tmp_path, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # sums of more threads differ by run
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    sessions = [json.loads(line) for line in done.stdout.splitlines()]
    assert {signal_ for _, signal_, _ in sessions} == {-signal.SIGKILL}
    newest = [max(left, default=-1) for _, _, left in sessions]
    assert newest == sorted(newest), sessions
    assert set(newest) == {-1, 0, 1, 2, 4}, sessions

    def outcome(folder):
        (run,) = (tmp_path / folder).iterdir()
        saved = torch.load(run / "checkpoints" / "epoch=4.ckpt", weights_only=True)
        result = json.loads((run / "result.json").read_text())
        assert sorted(p.name for p in run.glob("checkpoints/*")) == ["epoch=3.ckpt", "epoch=4.ckpt"]
        assert not list(run.rglob("*.partial"))
        same = {key: result[key] for key in ("epochs", "online", "offline", "information")}
        return saved, same, (run / "metrics.csv").read_text(), result["images_per_second"]

    saved, result, metrics, speed = outcome("whole")
    assert len(metrics.splitlines()) == 1 + 5
    assert speed > 0
    for folder in ("killed", "timed"):
        again, result_again, metrics_again, speed_again = outcome(folder)
        assert metrics_again == metrics
        assert result_again == result
        assert again["lr_schedulers"] == saved["lr_schedulers"]
        for part in (lambda c: c["state_dict"], lambda c: c["optimizer_states"][0]["state"]):
            torch.testing.assert_close(part(again), part(saved), rtol=0, atol=0)
        if folder == "killed":
            assert speed_again is None, "the last session only evaluates"


def test_corrupt_images_stop_a_run_or_are_skipped_and_listed(small_images):
    for path in ("train/0/3.png", "val/1/5.png"):
        (small_images / path).write_bytes((small_images / path).read_bytes()[:99])
    arguments = [
        *("pretrain", "data=image_folder", "+budget=cpu", "max_epochs=1"),
        *("data.train_path=train", "data.val_path=val", "data.num_workers=1"),
        *("optimizer.batch_size=8", "method_kwargs.proj_hidden_dim=16"),
        *("evaluation.offline=false", "+backbone.kwargs.widths=[8,16,32,64]"),
    ]
    (small_images / "train/0/drawing.svg").touch()
    stopped = installed(*arguments, cwd=small_images)
    assert "note: data.train_path: 1 file .svg not read: train/0/drawing.svg" in stopped.stdout
    assert stopped.returncode == 2
    (said,) = [line for line in stopped.stderr.splitlines() if line.startswith("solo-mim: ")]
    assert "train/0/3.png" in said
    assert "data.on_corrupt: skip" in said
    assert "Traceback" not in stopped.stderr
    done = installed(*arguments, "data.on_corrupt=skip", cwd=small_images)
    assert done.returncode == 0, done.stderr
    assert "data.on_corrupt fail -> skip" in done.stdout
    assert "2 unreadable images skipped" in done.stdout
    (result,) = (small_images / "runs").glob("*/result.json")
    corrupt = json.loads(result.read_text())["corrupt_images"]
    assert sorted(corrupt) == ["train/0/3.png", "val/1/5.png"]
    for path in corrupt:
        assert len(re.findall(re.escape(path), done.stdout)) == 1, done.stdout
    assert "no readable image" not in done.stderr


def test_a_run_goes_on_where_its_images_were_moved_to_and_not_on_others(
    small_images, tmp_path, monkeypatch, solo_mim
):
    monkeypatch.chdir(tmp_path)

    def pretrain(folder, epochs=1):
        return solo_mim(
            *("pretrain", "data=image_folder", "+budget=cpu", f"max_epochs={epochs}"),
            *(f"data.train_path={folder}/train", f"data.val_path={folder}/val"),
            *("data.num_workers=0", "optimizer.batch_size=8", "evaluation.offline=false"),
            *("method_kwargs.proj_hidden_dim=16", "+backbone.kwargs.widths=[8,16,32,64]"),
        )

    first = pretrain(".")
    assert first.code == 0, first.err
    (run,) = (tmp_path / "runs").iterdir()
    scratch = tmp_path / "scratch"
    for part in ("train", "val"):
        shutil.copytree(small_images / part, scratch / part)
    assert f"finished before, nothing to do: runs/{run.name}" in pretrain("scratch").out
    (run / "result.json").unlink()
    assert f"resuming from runs/{run.name}/checkpoints/epoch=0.ckpt" in pretrain("scratch").out
    recorded = json.loads((run / "provenance.json").read_text())[-1]["fingerprint"]
    assert json.loads((run / "result.json").read_text())["fingerprint"] == recorded
    assert "train_path: scratch/train" in (run / "config.yaml").read_text()

    image = Image.open(scratch / "train" / "0" / "0.png")
    image.rotate(90).save(scratch / "train" / "0" / "0.png", compress_level=0)
    other = pretrain("scratch")
    assert f"differs from the run in runs/{run.name}: images {recorded} -> " in other.out
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_run_from_before_there_were_fingerprints_is_found_by_its_paths(own_copy, solo_mim):
    from omegaconf import OmegaConf

    from solo_mim.runs import identity

    config = OmegaConf.to_container(OmegaConf.load(own_copy / "config.yaml"))
    by_paths = identity.identity(config, identity.host(), None)
    older = own_copy.rename(own_copy.with_name(f"{own_copy.name[:-8]}{by_paths}"))
    assert older.name != own_copy.name
    said = solo_mim("pretrain", *TINY).out
    assert f"finished before, nothing to do: runs/{older.name}" in said
    assert f"run: runs/{older.name}\n" in said, "not where it lay when it finished"


def test_a_run_of_another_configuration_is_named_with_what_differs(
    finished, tmp_path, monkeypatch, solo_mim
):
    monkeypatch.chdir(tmp_path)
    (run,) = (finished[0] / "runs").iterdir()
    older = tmp_path / "runs" / run.name
    older.mkdir(parents=True)
    for name in ("config.yaml", "provenance.json"):
        (older / name).write_text((run / name).read_text())
    arguments = [*TINY[1:], "max_epochs=1", "optimizer.weight_decay=0.5"]
    code, out, _ = solo_mim("pretrain", *arguments)
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("differs from")]
    assert line.startswith(f"differs from the run in runs/{run.name}: ")
    assert "max_epochs 2 -> 1" in line
    assert "optimizer.weight_decay 0.0001 -> 0.5" in line
    assert len(list((tmp_path / "runs").iterdir())) == 2
    again = solo_mim("pretrain", *arguments)
    assert "differs from" not in again.out, "said when the run begins"


@pytest.fixture
def own_copy(finished, tmp_path, monkeypatch):
    """A copy of the finished run, in a folder to work in."""
    monkeypatch.chdir(tmp_path)
    (run,) = (finished[0] / "runs").iterdir()
    return shutil.copytree(run, tmp_path / "runs" / run.name)


def test_a_runs_own_configuration_repeats_it_with_another_seed_and_leaves_nothing_else(
    own_copy, tmp_path, solo_mim
):
    (own_copy / "result.json").unlink()
    place = ("--config-path", own_copy, "--config-name", "config")
    cut_short = ("max_epochs=1", "scheduler.warmup_epochs=1")  # of a recipe's two, which is noted
    assert solo_mim("pretrain", *place, "seed=9", *cut_short).code == 0
    short = next((tmp_path / "runs").glob("*-seed9-*"))
    text = (short / "config.yaml").read_text()
    (short / "config.yaml").write_text(text.replace("warmup_epochs: 1", "warmup_epochs: 2"))
    again = solo_mim("pretrain", "--config-path", short, "--config-name", "config", "seed=10")
    assert again.code == 0, again.err
    assert "scheduler.warmup_epochs=2 is more than max_epochs=1" in again.out
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_finished_run_of_other_code_is_not_passed_off(own_copy, tmp_path):
    copy = shutil.copytree(PACKAGE, tmp_path / "copy" / "solo_mim").parent
    shutil.copytree(PACKAGE.parent / "configs", copy / "configs")
    loss = copy / "solo_mim" / "losses" / "explicit_mim.py"
    edited = loss.read_text().replace("loss = within - total", "loss = total - within")
    assert edited != loss.read_text()
    loss.write_text(edited)
    again = installed("pretrain", *TINY, PYTHONPATH=str(copy))
    assert again.returncode == 2, again.stderr
    assert "finished before" not in again.stdout
    (line,) = [line for line in again.stderr.splitlines() if line.startswith("solo-mim: ")]
    there = json.loads((own_copy / "result.json").read_text())["code"]
    said = re.search(rf"{own_copy.name} was made by code {there}, here it is (\w{{12}}); ", line)
    assert said, line
    assert said[1] != there
    assert "move that folder away" in line
    assert "other_code=accept" in line


def test_a_damaged_file_of_a_run_is_named_and_none_is_needed(own_copy, solo_mim, monkeypatch):
    for name in ("result.json", "provenance.json"):
        path = own_copy / name
        whole = path.read_text()
        for content in (whole[: len(whole) // 2], "", "[]", "{}"):
            path.write_text(content)
            again = solo_mim("pretrain", *TINY)
            assert again.code == 2, content
            assert f"{own_copy.name}/{name} is damaged" in again.err
            assert "delete it" in again.err
        path.write_text(whole)
    (own_copy / "provenance.json").unlink()
    assert solo_mim("pretrain", *TINY).code == 0
    with monkeypatch.context() as patched:
        patched.setattr(sources, "digest", lambda method=None: "0123456789ab")
        assert "was made by code" in solo_mim("pretrain", *TINY).err, "the result says it too"
    metrics = own_copy / "metrics.csv"
    whole = metrics.read_text()
    metrics.write_text(whole[: len(whole) // 2])
    (own_copy / "result.json").unlink()
    again = solo_mim("pretrain", *TINY)
    assert again.code == 0, again.err
    assert "resuming from" in again.out
    assert metrics.read_text() == whole
    written = solo_mim("report", str(own_copy.parent), "--output", str(metrics / "report"))
    assert written.code == 2
    assert "metrics.csv/report cannot be written" in written.err


def test_other_code_is_accepted_on_request_and_stops_no_sweep(own_copy, monkeypatch, solo_mim):
    monkeypatch.setattr(sources, "digest", lambda method=None: "0123456789ab")
    accepted = solo_mim("pretrain", *TINY, "other_code=accept")
    assert accepted.code == 0, accepted.err
    made_by = json.loads((own_copy / "result.json").read_text())["code"]
    assert f"{own_copy.name} (made by code {made_by}; here it is 0123456789ab)" in accepted.out
    swept = solo_mim("pretrain", "--multirun", "seed=5,6", *TINY)
    assert swept.code == 2
    assert f"{own_copy.name} was made by code" in swept.err
    (other,) = [run for run in own_copy.parent.glob("*-seed6-*") if run != own_copy]
    assert json.loads((other / "result.json").read_text())["code"] == "0123456789ab"
    assert "other_code: unknown value 'acept'" in solo_mim("pretrain", "other_code=acept").err


def test_a_run_from_before_there_were_digests_is_taken_with_a_remark(own_copy, solo_mim):
    for name in ("provenance.json", "result.json"):
        path = own_copy / name
        path.write_text(re.sub(r',\s*"code": "[0-9a-f]{12}"', "", path.read_text()))
    said = solo_mim("pretrain", *TINY)
    assert said.code == 0, said.err
    assert f"{own_copy.name} (made by code unknown; here it is " in said.out
    (run,), problems = collect(own_copy.parent)
    assert (run.code, problems) == ("unknown", [])


def test_a_resume_under_other_code_says_so_and_counts_as_mixed(own_copy, monkeypatch, solo_mim):
    made_by = json.loads((own_copy / "result.json").read_text())["code"]
    (own_copy / "result.json").unlink()
    monkeypatch.setattr(sources, "digest", lambda method=None: "0123456789ab")
    said = solo_mim("pretrain", *TINY)
    assert said.code == 0, said.err
    assert f"begun by other code: {made_by}; here it is 0123456789ab" in said.out
    sessions = json.loads((own_copy / "provenance.json").read_text())
    assert [session["code"] for session in sessions] == [made_by, "0123456789ab"]
    (run,), _ = collect(own_copy.parent)
    assert run.code == f"mixed ({made_by}, 0123456789ab)"
    assert solo_mim("pretrain", *TINY).code == 2, "it is not all this code's"


def test_sittings_that_left_nothing_made_nothing(own_copy, monkeypatch, solo_mim):
    (own_copy / "result.json").unlink()
    shutil.rmtree(own_copy / "checkpoints")
    monkeypatch.setattr(sources, "digest", lambda method=None: "0123456789ab")
    said = solo_mim("pretrain", *TINY)
    assert "begun by other code" not in said.out
    assert len(json.loads((own_copy / "provenance.json").read_text())) == 1
    assert solo_mim("pretrain", *TINY).code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [(("max_epochs: 2", "max_epochs: 7"), "max_epochs 7 -> 2"), (None, "unreadable: ")],
)
def test_a_folder_with_another_configuration_in_it_is_refused(
    finished, tmp_path, monkeypatch, refused, change, said
):
    monkeypatch.chdir(tmp_path)
    (run,) = (finished[0] / "runs").iterdir()
    edited = tmp_path / "runs" / run.name / "config.yaml"
    edited.parent.mkdir(parents=True)
    text = (run / "config.yaml").read_text()
    edited.write_text(text.replace(*change) if change else "a: [1,")
    err = refused("pretrain", *TINY)
    assert f"runs/{run.name}/config.yaml was changed or copied here" in err
    assert said in err
    assert "move the folder away" in err
    assert [p.name for p in edited.parent.iterdir()] == ["config.yaml"]


def test_a_checkpoint_that_does_not_fit_is_refused_with_the_weights(finished, tmp_path, refused):
    folder, _ = finished
    (checkpoint,) = folder.glob("runs/*/checkpoints/*.ckpt")
    resume = [f"+resume_from_checkpoint={checkpoint}", f"output_dir={tmp_path}/runs"]
    for overrides, what in (
        (
            ["method_kwargs.proj_output_dim=12"],
            "projector.6.weight ((16, 32) there, (12, 32) here)",
        ),
        (["method=byol", "method_kwargs.pred_hidden_dim=8"], "are missing: momentum_backbone"),
        ([], "max_epochs=2: "),
    ):
        assert what in refused("pretrain", *TINY, "seed=7", *overrides, *resume)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_runs_no_code_and_loses_what_is_not_plain(tmp_path):
    import functools

    from solo_mim.runs import checkpoints

    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    content = {
        "state_dict": {"w": torch.ones(2)},
        "optimizer_states": [],
        "lr_schedulers": [{"last_epoch": 3, "get_lr": functools.partial(print, Evil())}],
        "loops": {},
        "epoch": 0,
        "global_step": 7,
    }
    torch.save(content, tmp_path / "foreign.ckpt")
    found, is_plain = checkpoints.read(tmp_path / "foreign.ckpt")
    assert not is_plain
    assert found["lr_schedulers"] == [{"last_epoch": 3}]
    assert torch.equal(found["state_dict"]["w"], torch.ones(2))
    assert not (tmp_path / "ran").exists()


def test_two_processes_do_not_work_on_one_run(finished, tmp_path, solo_mim, monkeypatch):
    from solo_mim.runs import lock
    from solo_mim.runs.lock import FolderLock

    folder, _ = finished
    (run,) = (folder / "runs").iterdir()
    arguments = ["pretrain", *TINY, f"output_dir={tmp_path}"]
    monkeypatch.setattr(lock, "_LOOKED_AT", float("inf"))  # it is not waited for
    with FolderLock(tmp_path / run.name) as held:
        held.acquire()
        said = solo_mim(*arguments)
    assert said.code == 2
    assert "another process is at work on this run" in said.err
    assert solo_mim(*arguments).code == 0, "the lock is given back"


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    import fcntl

    from solo_mim.runs.lock import FolderLock

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with FolderLock(tmp_path / "run") as lock:
        lock.acquire()
        assert lock.held


def test_missing_solo_learn_is_said_with_the_command_that_installs_it(tmp_path):
    code = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'solo' else find(name, *a)\n"
        "from solo_mim.commands import main\n"
        "sys.exit(main(['pretrain']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert 'pip install --no-deps "solo-learn==1.0.2"' in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_readable_everywhere(monkeypatch, capsys):
    assert main(["--help"]) == 0
    top = capsys.readouterr().out
    for command in COMMANDS:
        assert command in top
        monkeypatch.setattr(sys, "argv", ["solo-mim", command, "--help"])
        with contextlib.suppress(SystemExit):  # argparse's and Hydra's way to end a --help
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert "usage" in shown.lower()
        if command != "pretrain":  # whose groups are a line each
            assert max(map(len, shown.splitlines())) <= 120
        else:
            assert re.search("method: .*barlow_twins, .*explicit_mim, .*vicreg", shown)
            assert "== Config ==" not in shown
            assert not re.search("^(data|augmentations)/", shown, re.M), "chosen by data and method"
            assert not re.search("^study", shown, re.M), "of docs/results"


def test_a_reader_who_has_gone_ends_a_command_in_silence():
    code = (
        "import os, sys\n"
        "from solo_mim.commands import main\n"
        "reader, writer = os.pipe()\n"
        "os.close(reader), os.dup2(writer, 1)\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_elsewhere_is_an_error_as_any_other(monkeypatch):
    from solo_mim.commands import doctor

    def broken(arguments):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(doctor, "run", broken)
    with pytest.raises(BrokenPipeError):
        main(["doctor"])


def test_doctor_and_methods_fit_one_screen(capsys):
    assert main(["doctor"]) == 0
    doctor = capsys.readouterr().out
    for word in ("generation 'released'", "torch", "cores", "wandb", "device"):
        assert word in doctor
    assert len(doctor.splitlines()) <= 24
    assert main(["methods"]) == 0
    methods = capsys.readouterr().out
    for method in ("explicit_mim", "vicreg", "barlow_twins", "simclr", "byol"):
        assert f"method={method}" in methods
    assert len(methods.splitlines()) <= 40
