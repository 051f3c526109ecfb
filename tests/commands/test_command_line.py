"""The commands as a person runs them: processes, exit codes, files."""

import contextlib
import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from solo_mim.commands import main

TINY = [
    "max_epochs=2",
    "limit_train_batches=2",
    "limit_val_batches=2",
    "method_kwargs.proj_hidden_dim=32",
    "method_kwargs.proj_output_dim=16",
    "evaluation.offline=false",
    "data.num_workers=0",
]


def solo_mim(*arguments, cwd=None, **environment):
    """Runs `python -m solo_mim`; stdout and stderr as text."""
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
    done = solo_mim("pretrain", *TINY, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run_leaves_result_metrics_curves_and_checkpoint(finished):
    folder, printed = finished
    (run,) = (folder / "runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert result["method"] == "explicit_mim"
    assert result["epochs"] == 2
    assert 0 <= result["online"]["knn_top1"] <= 100
    assert result["information"]["images"] > 0
    assert result["versions"]["torch"]
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["epoch"].tolist() == [0, 1]
    assert metrics["train_explicit_mim_loss_epoch"].notna().all()
    assert metrics["val_knn_acc1"].notna().all()
    assert (run / "curves.png").stat().st_size > 5000
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["epoch=1.ckpt"]
    for line in (
        "trained, online",
        "nats",
        "images/s",
        "peak memory",
        "solo-mim pretrain method=vicreg",
    ):
        assert line in printed
    assert "epoch 2/2" in printed


def test_the_same_command_again_skips_the_finished_run(finished):
    folder, _ = finished
    again = solo_mim("pretrain", *TINY, cwd=folder)
    assert again.returncode == 0
    assert "finished before" in again.stdout
    assert "epoch 1/2" not in again.stdout


def test_a_broken_run_is_resumed_and_keeps_its_log(finished, tmp_path):
    folder, _ = finished
    (run,) = (folder / "runs").iterdir()
    # As after a kill between the first epoch and the second: another run stops there by itself.
    code = (
        "import solo_mim.commands.pretrain as p, lightning.pytorch as pl, os, sys\n"
        "class Die(pl.Callback):\n"
        "    def on_train_epoch_start(self, trainer, module):\n"
        "        if trainer.current_epoch == 1: os._exit(9)\n"
        "make = p._trainer\n"
        "p._trainer = lambda cfg, folder, callbacks: make(cfg, folder, [*callbacks, Die()])\n"
        "sys.exit(p.run(sys.argv[1:]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, *TINY], cwd=tmp_path, capture_output=True)
    assert killed.returncode == 9
    (broken,) = (tmp_path / "runs").iterdir()
    assert broken.name == run.name
    assert not (broken / "result.json").exists()
    resumed = solo_mim("pretrain", *TINY, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from" in resumed.stdout
    assert "epoch 1/2" not in resumed.stdout
    straight = pd.read_csv(run / "metrics.csv")
    joined = pd.read_csv(broken / "metrics.csv")
    assert joined["epoch"].tolist() == [0, 1]
    for column in ("train_explicit_mim_loss_epoch", "val_acc1", "val_knn_acc1"):
        assert joined[column].tolist() == pytest.approx(straight[column].tolist(), rel=1e-5), column


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
        (["pretrain", "method_kwargs.within_noise=0.001"], "no less than total_noise (0.01)"),
        (["pretrain", "method_kwargs.reading=twoview"], "reading must be one of infomax"),
        (["pretrain", "+method_kwargs.within_nois=0.5"], "did you mean 'within_noise'?"),
        (["pretrain", "method=vicreg", "+method_kwargs.lamb=1"], "method_kwargs.lamb"),
        (["pretrain", "method_kwargs.lamb=1"], "write +method_kwargs.lamb=..."),
        (["pretrain", "+optimizer.kwargs.beta=1"], "did you mean 'betas'?"),
        (["pretrain", "optimizer.name=adamv"], "did you mean 'adam"),
        (["pretrain", "knn_eval.distance_func=l2"], "knn_eval.distance_func"),
        (["pretrain", "devices=two"], "devices=two"),
        (["pretrain", "precision=17"], "Trainer refuses"),
        (["pretrain", "+backbone.kwargs.depth=3"], "backbone.kwargs"),
        (["pretrain", "data=image_folder"], "data.train_path"),
        (
            ["pretrain", "data=image_folder", "data.train_path=/nowhere/at/all"],
            "data.train_path",
        ),
        (["pretrain", "optimizer.batch_size=100000"], "optimizer.batch_size"),
        (["pretrain", "backbone.name=resnet81"], "did you mean 'resnet18'?"),
        (["pretrain", "optimizer.lr=fast"], "optimizer.lr"),
        (["pretrain", "max_epochs=[1"], "max_epochs=[1"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    arguments, message, tmp_path, monkeypatch, capsys
):
    # In this process: a new one takes seconds to import torch, and there are many errors.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["solo-mim", *arguments])
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    lines = [line for line in said.splitlines() if line.startswith("solo-mim: ")]
    assert len(lines) == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_user_error_of_the_installed_command_is_no_traceback(tmp_path):
    done = solo_mim("pretrain", "max_epoch=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "solo-mim: unknown key 'max_epoch'; did you mean 'max_epochs'?"
    ]


def test_a_run_that_ended_before_its_first_epoch_is_resumed(finished, tmp_path):
    folder, _ = finished
    (run,) = (folder / "runs").iterdir()
    early = tmp_path / "runs" / run.name / "log" / "000"
    early.mkdir(parents=True)
    (early / "metrics.csv").write_text("lr,step\n0.1,0\n")
    (early.parents[1] / "checkpoints").mkdir()
    (early.parents[1] / "checkpoints" / "epoch=0.ckpt").write_bytes(b"PK cut short")
    done = solo_mim("pretrain", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/2" in done.stdout
    assert "resuming" not in done.stdout


def test_offline_evaluation_opens_the_test_set_only_when_asked(tmp_path):
    arguments = [
        *(a for a in TINY if a != "evaluation.offline=false"),
        "data.validation_split=0.2",
        "data.fraction=0.1",
        "optimizer.batch_size=64",
        "evaluation.information_every_n_epochs=0",
        "output_dir=out",
    ]
    for test in ("false", "true"):
        done = solo_mim("pretrain", *arguments, f"evaluation.test={test}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    results = [json.loads(p.read_text()) for p in (tmp_path / "out").glob("*/result.json")]
    by_part = {result["offline_evaluated_on"]: result for result in results}
    assert set(by_part) == {"validation split", "test images"}
    for result in results:
        assert result["evaluated_on"] == "validation split"
        assert set(result["offline"]) == {"untrained", "raw_pixels", "trained"}
        assert result["offline"]["raw_pixels"]["probe_top1"] is None
        assert result["offline"]["trained"]["knn_top1"] > 100 / 17
    knn = [r["offline"]["untrained"]["knn_top1"] for r in results]
    assert knn[0] != knn[1], "4,250 test images are not the 102 of the split"


def test_a_multirun_trains_each_job(tmp_path):
    done = solo_mim("pretrain", "--multirun", *TINY, "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_ctrl_c_says_how_to_go_on(tmp_path):
    code = (
        "import lightning.pytorch as pl, os, signal, sys\n"
        "import solo_mim.commands.pretrain as p\n"
        # A shell starts background jobs with the signal ignored, and Python then leaves it so.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Press(pl.Callback):\n"
        "    def on_train_epoch_start(self, trainer, module):\n"
        "        if trainer.current_epoch == 1: os.kill(os.getpid(), signal.SIGINT)\n"
        "make = p._trainer\n"
        "p._trainer = lambda cfg, folder, callbacks: make(cfg, folder, [*callbacks, Press()])\n"
        "sys.exit(p.run(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *TINY], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 130, done.stderr
    assert "the same command resumes" in done.stderr
    assert "Traceback" not in done.stderr
    again = solo_mim("pretrain", *TINY, cwd=tmp_path)
    assert "resuming from" in again.stdout


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
    for command in ("pretrain", "methods", "doctor"):
        assert command in top
        monkeypatch.setattr(sys, "argv", ["solo-mim", command, "--help"])
        with contextlib.suppress(SystemExit):  # argparse's and Hydra's way to end a --help
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert "usage" in shown.lower()
        if command == "pretrain":
            assert "method: barlow_twins, byol, explicit_mim, simclr, vicreg" in shown
            assert "== Config ==" not in shown


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
