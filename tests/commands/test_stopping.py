"""Runs that are stopped, or lose a process or their disk: what they say, and what they leave."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from solo_mim import commands, stopping, training
from solo_mim.errors import ConfigError, RunError
from solo_mim.runs import checkpoints
from solo_mim.runs.folder import RunFolder

SMALL = [
    *("limit_train_batches=2", "limit_val_batches=1", "data.num_workers=0"),
    *("method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=8"),
    *("data.validation_split=0.2", "data.fraction=0.03", "optimizer.batch_size=16"),
    *("evaluation.information_every_n_epochs=0", "+backbone.kwargs.widths=[8,16,32,64]"),
]
WORKER = Path(__file__).parent / "stopped_worker.py"
STOPS = {
    "SIGTERM to the first in a save": 1,
    "SIGTERM to all in a save": 2,
    "SIGTERM to the first in a batch": 3,
    "several to all in a batch": 4,
}
DEATHS = {"SIGKILL to the last in a batch": 5, "SIGKILL to the first in a batch": 6}

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker forks")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """The folder of one run of three processes, and what each of its sessions gave, by moment."""
    folder = tmp_path_factory.mktemp("stopped")
    done = subprocess.run(
        [sys.executable, WORKER, folder, "max_epochs=8", *SMALL],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return folder, {session["moment"]: session for session in found}


def kept(epoch):
    return f"the checkpoint of epoch {epoch} of 8 is kept; the same command resumes from it"


def said_in(session):
    """What the command said; all else on stderr are warnings, with the line that they come from."""
    said = [line for line in session["stderr"] if line.startswith("solo-mim: ")]
    assert "Traceback" not in "".join(session["stderr"])
    assert len(session["stderr"]) < len(said) + 6, session["stderr"]
    return said


@forks
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("moment", "epoch"), STOPS.items())
def test_signals_end_three_processes_within_seconds_and_say_once_what_is_kept(
    sessions, moment, epoch
):
    session = sessions[1][moment]
    assert said_in(session) == [f"solo-mim: interrupted; {kept(epoch)}"]
    assert session["codes"] == [128 + signal.SIGTERM, 1, 1]
    assert session["seconds"] < 15
    assert session["epochs"] == [epoch - 1]
    assert not session["failure"]


@forks
@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("moment", "epoch"), DEATHS.items())
def test_a_process_that_dies_ends_the_others_with_one_line(sessions, moment, epoch):
    session = sessions[1][moment]
    assert said_in(session) == [f"solo-mim: a process of this run died; {kept(epoch)}"]
    assert sorted(session["codes"]) == [-signal.SIGKILL, 1, 1]
    assert session["seconds"] < 15
    assert session["epochs"] == [epoch - 1]
    assert session["failure"]


@forks
@pytest.mark.slow
@pytest.mark.distributed
def test_a_disk_that_is_full_at_a_checkpoint_is_said_in_one_line_and_nothing_half_is_left(sessions):
    session = sessions[1]["full disk"]
    (line,) = said_in(session)
    begun = "no epoch was finished yet; the same command starts again"
    assert re.fullmatch(
        rf"solo-mim: .*/explicit_mim-\S+: {os.strerror(errno.EFBIG)}; {begun}", line
    )
    assert session["codes"] == [1, 1, 1]
    assert (session["epochs"], session["partial"]) == ([], [])
    assert session["failure"]


@forks
@pytest.mark.slow
@pytest.mark.distributed
def test_only_the_first_process_evaluates_and_what_is_measured_once_is_kept(sessions):
    folder, by_moment = sessions
    once = ["0 offline evaluation: train", "0 offline evaluation: val"]
    killed = by_moment["SIGKILL to the first in the evaluation"]
    assert killed["codes"] == [-signal.SIGKILL, 0, 0]
    assert killed["extracted"] == 3 * once, "untrained, raw pixels, trained"
    assert by_moment["none"]["extracted"] == once
    assert by_moment["none"]["codes"] == [0, 0, 0]
    (run,) = (folder / "runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert list(result["offline"]) == ["untrained", "raw_pixels", "trained"]
    yardsticks = json.loads((run / "yardsticks.json").read_text())
    assert yardsticks == {key: result["offline"][key] for key in ("untrained", "raw_pixels")}
    for session in by_moment.values():
        if session not in (killed, by_moment["none"]):
            assert session["extracted"] == [], "training comes first"


@pytest.mark.distributed
@pytest.mark.slow
def test_a_started_process_that_dies_is_noticed_though_the_first_waits_for_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys, time\n"
        "from solo_mim import progress\n"
        "from solo_mim.commands import main\n"
        "def stop(*_):\n"
        "    if 'LOCAL_RANK' in os.environ and os.environ['LOCAL_RANK'] != '0':\n"
        "        print('dies', time.time(), file=sys.stderr, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    time.sleep(300)\n"  # as NCCL may
        "progress.EpochLines.on_train_batch_end = stop\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    several = ("devices=2", "strategy=ddp", "accelerator=cpu")
    done = subprocess.run(
        [sys.executable, program, "pretrain", "max_epochs=8", *SMALL, *several],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    (died,) = re.findall(r"^dies ([\d.]+)$", done.stderr, re.MULTILINE)
    assert time.time() - float(died) < 60
    begun = "no epoch was finished yet; the same command starts again"
    said = [line for line in done.stderr.splitlines() if line.startswith("solo-mim: ")]
    assert said == [f"solo-mim: a process of this run died; {begun}"]
    assert done.returncode == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert "a process of this run died" in (run / "failure.txt").read_text()


def test_a_disk_that_is_full_at_any_file_is_one_line_and_the_next_sitting_goes_on(
    tmp_path, monkeypatch, solo_mim
):
    arguments = ["pretrain", "max_epochs=1", *SMALL, f"output_dir={tmp_path}"]
    write = Path.write_bytes
    for name in ("metrics.csv", "yardsticks.json", "predictions.csv", "curves.png", "result.json"):

        def full(path, content, name=name):
            write(path, content[: len(content) // 2])
            if path.name.startswith((name, "failure.txt")):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return write(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            said = solo_mim(*arguments)
        (run,) = tmp_path.iterdir()
        assert said.code == 1, said
        begun = "no epoch was finished yet; the same command starts again"
        resumes = "the checkpoint of epoch 1 of 1 is kept; the same command resumes from it"
        standing = begun if name == "metrics.csv" else resumes
        (line,) = [line for line in said.err.splitlines() if line.startswith("solo-mim: ")]
        assert line == f"solo-mim: {run}: No space left on device; {standing}"
        assert not (run / name).exists()
        assert not list(run.rglob("*.partial"))
        assert not (run / "failure.txt").exists()
    assert solo_mim(*arguments).code == 0


def test_a_checkpoint_needs_no_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    path = tmp_path / "checkpoints" / "epoch=0.ckpt"
    checkpoints.WholeCheckpoints().save_checkpoint({"epoch": 0}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 0}
    assert [found.name for found in path.parent.iterdir()] == ["epoch=0.ckpt"]


def test_what_a_kill_leaves_goes_when_the_run_goes_on(tmp_path, compose_cfg):
    for epoch in range(4):
        with contextlib.closing(zipfile.ZipFile(tmp_path / f"epoch={epoch}.ckpt", "w")):
            pass
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for epoch in (1, 2, 3):
        os.replace(tmp_path / f"epoch={epoch}.ckpt", folder / "checkpoints" / f"epoch={epoch}.ckpt")
    halves = [folder / "checkpoints" / "epoch=4.ckpt.partial", folder / "result.json.partial"]
    for half in halves:
        half.write_text("half")
    config = OmegaConf.to_container(compose_cfg())
    run = RunFolder(folder, config, "0123456789ab", resumes=True)
    run.begin(run.newest_checkpoint())
    epochs = checkpoints.EpochEnd(folder, enabled=True, frequency=2, keep_prev=False)
    epochs.on_fit_start(SimpleNamespace(is_global_zero=True), None)
    left = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert left == [".lock", "config.yaml", "epoch=3.ckpt", "provenance.json"]


def test_what_another_process_has_finished_meanwhile_is_not_done_again(tmp_path, compose_cfg):
    folder = RunFolder(tmp_path / "run", OmegaConf.to_container(compose_cfg()), "0123")

    def work():
        folder.path.mkdir()
        (folder.path / "result.json").write_text('{"of": "another process"}')
        folder.begin()

    with pytest.raises(ConfigError, match=r"has finished this run meanwhile, in .*/run; the same"):
        folder.once(work, str)
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "result.json"]


def test_what_another_process_has_gone_on_with_meanwhile_is_not_begun(tmp_path, compose_cfg):
    folder = RunFolder(tmp_path / "run", OmegaConf.to_container(compose_cfg()), "0123")
    (folder.path / "checkpoints").mkdir(parents=True)
    for epoch in (3, 4):
        chosen = folder.newest_checkpoint()
        with zipfile.ZipFile(folder.path / "checkpoints" / f"epoch={epoch}.ckpt", "w"):
            pass
    (folder.path / "failure.txt").write_text("of the other")
    with pytest.raises(ConfigError, match=r"has gone on with this run meanwhile, in .*/run; the"):
        folder.once(lambda: folder.begin(chosen), str)
    assert not (folder.path / "config.yaml").exists()
    assert (folder.path / "failure.txt").read_text() == "of the other"
    folder.once(lambda: folder.begin(folder.newest_checkpoint()), str)


def test_a_missing_file_is_a_vanished_folder_only_where_that_was_made(tmp_path, compose_cfg):
    folder = RunFolder(tmp_path / "run", OmegaConf.to_container(compose_cfg()), "0123")

    def work(begins):
        if begins:
            folder.begin()
            shutil.rmtree(folder.path)
        (tmp_path / "gone").read_text()

    with pytest.raises(FileNotFoundError, match="gone"):
        folder.once(lambda: work(begins=False), str)
    with pytest.raises(RunError, match=r"run: No such file or directory; nothing is kept"):
        folder.once(lambda: work(begins=True), str)


def test_the_plain_copy_of_a_foreign_checkpoint_goes_however_training_ends(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", interrupted)
    copy = tmp_path / "resumed_from.ckpt"
    copy.touch()
    run = SimpleNamespace(
        recipe=SimpleNamespace(seed=5),
        trainer=SimpleNamespace(is_global_zero=True),
        plain_copy=copy,
        model=None,
        data=None,
    )
    with pytest.raises(KeyboardInterrupt):
        training._Run._trained(run, copy)
    assert not copy.exists()


def test_logs_of_a_session_are_numbered_after_the_last(tmp_path, compose_cfg):
    folder = RunFolder(tmp_path, OmegaConf.to_container(compose_cfg()), "0123")
    assert folder.next_log() == "log/000"
    (tmp_path / "log" / "001").mkdir(parents=True)  # 000 was deleted
    assert folder.next_log() == "log/002"


def test_damaged_yardsticks_are_measured_again(tmp_path, monkeypatch, capsys, compose_cfg):
    path = tmp_path / "yardsticks.json"
    path.write_text('{"untrained": ')
    run = SimpleNamespace(
        folder=RunFolder(tmp_path, OmegaConf.to_container(compose_cfg()), "0123"),
        trainer=SimpleNamespace(strategy=SimpleNamespace(root_device="cpu")),
        data=SimpleNamespace(
            splits=SimpleNamespace(train=SimpleNamespace(evaluable=[0])), crop_size=2
        ),
        _offline=lambda *_: SimpleNamespace(accuracies=lambda: {"probe_top1": 1.0}),
    )
    found = training._Run._baselines(run, torch.nn.Identity())
    assert found == {name: {"probe_top1": 1.0} for name in ("untrained", "raw_pixels")}
    assert json.loads(path.read_text()) == found
    assert f"{path} is damaged" in capsys.readouterr().out


def test_a_signal_that_a_library_makes_another_error_of_is_still_an_interruption(
    monkeypatch, capsys
):
    def interrupted(name):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise RecursionError("amid an import") from None

    monkeypatch.setattr(commands.importlib, "import_module", interrupted)
    assert commands.main(["methods"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "\nsolo-mim: interrupted; nothing was begun\n"


def test_a_signal_amid_a_save_is_acted_upon_at_its_end():
    done = []

    def save():
        with stopping.put_off():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("saved")
        done.append("never")

    before = signal.getsignal(signal.SIGTERM)
    with stopping.interruptible() as noted, pytest.raises(KeyboardInterrupt):
        save()
    assert done == ["saved"]
    assert noted == [signal.SIGTERM, signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before
