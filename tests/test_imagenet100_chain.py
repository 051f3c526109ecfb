"""scripts/imagenet100/reproduce.py: what it starts and goes on with, and the whole chain."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

SCRIPT = Path(__file__).parents[1] / "scripts" / "imagenet100" / "reproduce.py"


@pytest.fixture
def started(load_script, monkeypatch, tmp_path):
    """Exit code of the script, and the commands that it gave, of which those with a word of
    `failing` end badly: `started("linear", failing="byol")`."""
    script = load_script(SCRIPT)

    def run(*arguments, failing="nothing"):
        commands = []

        def command(*words):
            commands.append(words)
            if any(failing in word for word in words):
                return False
            if words[0] == "pretrain":
                method = words[1].removeprefix("method=")
                folder = tmp_path / f"{method}-imagenet100-seed5-0123abcd"
                folder.mkdir(exist_ok=True)
                (folder / "result.json").write_text("{}")
            return True

        monkeypatch.setattr(script, "solo_mim", command)
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments, "--output", str(tmp_path)])
        return script.main(), commands

    return run


def test_every_method_goes_through_every_stage(started):
    code, commands = started("--imagenet", "there")
    assert code == 0
    assert [words[0] for words in commands] == (
        ["prepare", *["pretrain"] * 7, *["linear"] * 7, *["knn"] * 7, "report"]
    )
    assert {"devices=2", "strategy=ddp", "optimizer.batch_size=128"} <= set(commands[1])


def test_what_the_commands_are_given_is_a_configuration(started, compose_cfg):
    _, commands = started()
    for words in commands:
        if words[0] == "pretrain":
            cfg = compose_cfg(*words[1:])
            assert (cfg.max_epochs, cfg.data.format) == (400, "dali")
            assert cfg.optimizer.batch_size * 2 == 256


def test_classifiers_have_the_rates_and_steps_of_solo_learns_files(started, solo_learn_main):
    folder = solo_learn_main / "scripts" / "linear" / "imagenet-100"
    files = {"barlow_twins": "barlow", "explicit_mim": "vicreg"}
    _, commands = started()
    compared = 0
    for words in commands:
        if words[0] != "linear":
            continue
        method = Path(words[1]).name.partition("-")[0]
        theirs = OmegaConf.load(folder / f"{files.get(method, method)}.yaml")
        given = dict(word.partition("=")[::2] for word in words[2:])
        assert float(given["optimizer.lr"]) == theirs.optimizer.lr, method
        assert given["scheduler.name"] == theirs.scheduler.name == "step"
        assert given["scheduler.lr_decay_steps"] == "[60,80]"
        assert list(theirs.scheduler.lr_decay_steps) == [60, 80]
        assert (theirs.precision, given["precision"]) == (16, "16-mixed")
        compared += 1
    assert compared == 7


def test_a_method_that_fails_stops_no_other(started, capsys):
    code, commands = started("--methods", "byol", "vicreg", failing="method=byol")
    assert code == 1
    assert [words[0] for words in commands] == ["pretrain", "pretrain", "linear", "knn", "report"]
    assert "linear of byol" in capsys.readouterr().err


def test_single_stages_go_on_from_what_is_there(started):
    started("pretrain", "--methods", "vicreg")
    code, commands = started("knn", "report", "--methods", "vicreg")
    assert (code, [words[0] for words in commands]) == (0, ["knn", "report"])
    with pytest.raises(SystemExit):
        started("prepare")
    with pytest.raises(SystemExit):
        started("nonsense")


@pytest.mark.slow
def test_the_whole_chain_runs_on_photographs_with_dali_on_the_cpu(hundred_photographs, tmp_path):
    pytest.importorskip("nvidia.dali", reason="nvidia-dali is not installed")
    source = tmp_path / "imagenet"
    source.mkdir()
    for split in ("train", "val"):  # validated on what it is trained on: nothing is measured here
        (source / split).symlink_to(hundred_photographs / "train")
    command = [sys.executable, SCRIPT, "--imagenet", source, "--data", tmp_path / "data"]
    command += ["--output", tmp_path / "runs", "--gpus", "0", "--toy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    rows = pd.read_csv(tmp_path / "runs" / "report" / "report.csv")
    assert len(rows) == 7
    measured = [column for column in rows if re.search(r"\(held-out images.*\)$", column)]
    assert len(measured) == 3, rows.columns  # linear layer, and kNN by two distances
    assert rows[measured].notna().all(axis=None)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-5000:]
    assert again.stdout.count("finished before, nothing to do") == 21
