"""What scripts/imagenet100 looks at before anything is written: all that is wrong, at once."""

import os
import re
import shlex
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import preflight
import pytest
import reproduce
from campaign import Campaign, Job
from driven import asked_for

from solo_mim import installed
from solo_mim.data.folders import IMAGENET100
from solo_mim.data.imagenet100 import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE


def check(campaign, *options, devices=()):
    """What is found; no step is tried."""
    return preflight.check(campaign, asked_for("--no-trial", *options)[1], devices)


@pytest.fixture
def campaign(tmp_path, toy_imagenet, monkeypatch):
    """Nothing is wrong with it under `any_images`."""
    plan = SimpleNamespace(hours=24.0, disk=100_000_000, memory=5.0, images_per_second=1e3)
    monkeypatch.setattr(preflight, "planned", lambda *_: plan)
    return Campaign(
        tmp_path / "data",
        tmp_path / "runs",
        toy_imagenet,
        methods=("byol", "vicreg"),
        gpus=0,
        format="pillow",
    )


def test_nothing_is_wrong_with_what_can_be_done(campaign):
    found = check(campaign, "--any-images")
    assert (found.wrong, found.refused) == ([], {})
    assert set(found.plans) == {"byol", "vicreg"}
    assert len(found.remarks) == 2, "train and val have a hundred images each"
    assert not campaign.output.exists()
    assert not campaign.data.exists()


def test_everything_that_is_wrong_is_listed_at_once(campaign, monkeypatch, tmp_path):
    monkeypatch.setattr(installed, "present", lambda module: False)
    (tmp_path / "file").touch()
    bad = replace(
        campaign,
        output=tmp_path / "file" / "runs",
        gpus=2,
        format="dali",
        settings=("max_epochs", "seed=3", "output_dir=there"),
    )
    wrong = check(bad, devices=("0",)).wrong
    for reason in (
        "--format dali needs nvidia-dali: pip install '.[dali]'",
        "--gpus 2: GPUs here: 0",
        "--set max_epochs: write key=value",
        "--set seed=3: seed is the campaign's own; it has an option",
        "--set output_dir=there: output_dir is the campaign's own",
        f"--output {tmp_path}/file/runs: {tmp_path}/file is a file",
        "train has 100 images, ImageNet 126,689 of these classes",
        "val has 100 images, ImageNet 5,000 of these classes",
    ):
        assert any(reason in one for one in wrong), (reason, wrong)
    assert len(wrong) == 8


def test_keys_that_are_not_known_are_named_for_each_method(campaign):
    found = check(replace(campaign, settings=("optimizer.lrr=3",)), "--any-images")
    assert set(found.refused) == {"byol", "vicreg"}
    assert "unknown key 'optimizer.lrr'; did you mean 'lr'?" in found.refused["byol"]


def test_a_method_that_cannot_be_built_is_refused_and_the_others_go_on_where_asked(
    campaign, monkeypatch
):
    from solo_mim.errors import ConfigError

    def planned(recipe, *_):
        if recipe.method == "byol":
            raise ConfigError("method_kwargs: byol refuses them")
        return SimpleNamespace(hours=1.0, disk=1, memory=1.0, images_per_second=1e3)

    monkeypatch.setattr(preflight, "planned", planned)
    found = check(campaign, "--any-images")
    assert found.refused == {"byol": "cannot be built: method_kwargs: byol refuses them"}
    refused = replace(campaign, refused=found.refused)
    assert refused.state(Job("pretrain", "byol", 5)).word == "failed"
    said = "\n".join(preflight.lines(found, refused, asked_for()[1], ()))
    assert "wrong: byol cannot be built" in said


def test_methods_are_really_built(campaign, monkeypatch):
    """By what `solo-mim plan` does."""
    monkeypatch.undo()
    bad = replace(campaign, settings=("method_kwargs.proj_output_dim=-1",), methods=("vicreg",))
    found = check(bad)  # and the wrong images beside it
    assert "cannot be built" in found.refused["vicreg"]
    assert len(found.wrong) == 2


def test_a_disk_that_is_too_small_is_said_with_what_is_needed(campaign, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1.2e9))
    found = check(campaign, "--any-images")
    assert found.wrong == [
        f"{campaign.output}: 1.3 GB are needed, 1.2 are free; make room, or name another folder"
    ]


def test_archives_are_told_by_their_size_and_where_asked_by_their_checksum(
    campaign, tmp_path, monkeypatch
):
    source = tmp_path / "archives"
    source.mkdir()
    of_archives = replace(campaign, imagenet=source)
    wrong = check(of_archives).wrong
    for split, name in (("train", TRAIN_ARCHIVE), ("val", VAL_ARCHIVE), ("val", DEVKIT)):
        assert any(f"neither {split}/<wnid>/ nor {name} is there" in one for one in wrong)
    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT):
        (source / name).write_bytes(b"no archive")
    wrong = check(of_archives).wrong
    assert any("has 10 bytes, the official one 147,897,477,120" in one for one in wrong)
    assert sum("is no archive" in one for one in wrong) == 3
    monkeypatch.setattr(preflight, "SIZES", dict.fromkeys(preflight.SIZES, 10))
    wrong = check(of_archives, "--checksums").wrong
    assert sum("is not the official file, by its MD5" in one for one in wrong) == 3


def test_a_class_without_an_image_is_wrong_even_of_a_toy(campaign, toy_imagenet, tmp_path):
    shutil.copytree(toy_imagenet, tmp_path / "less")
    shutil.rmtree(tmp_path / "less" / "val" / IMAGENET100[7])
    wrong = check(replace(campaign, imagenet=tmp_path / "less"), "--any-images").wrong
    assert wrong == [
        f"{tmp_path}/less/val: 1 of the 100 classes have no image, {IMAGENET100[7]} first: get them"
    ]


def test_h5_needs_files_and_no_stage_that_prepares(campaign, tmp_path):
    of_h5 = replace(campaign, format="h5")
    wrong = check(of_h5).wrong
    assert "leave prepare out of the stages" in wrong[0]
    assert len(wrong) == 3
    assert all(f"{tmp_path}/data/{s}.h5 is not there" in "".join(wrong) for s in ("train", "val"))
    assert f"data.val_path={tmp_path}/data/val.h5" in of_h5.words(Job("pretrain", "byol", 5))


def test_a_report_alone_needs_no_images(campaign):
    assert check(replace(campaign, stages=("report",))).wrong == []


def test_a_step_of_each_method_is_tried_and_what_fails_is_said(campaign, tmp_path):
    """By the command itself, here a program that notes what it is given."""
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib, sys\n"
        f"with open({str(tmp_path / 'given')!r}, 'a') as f: print(*sys.argv[1:], file=f)\n"
        "given = dict(w.split('=', 1) for w in sys.argv[2:])\n"
        "paths = list(pathlib.Path(given['data.train_path']).glob('*/*.JPEG'))\n"
        "assert len(paths) >= 256 and len({p.parent for p in paths}) == 100\n"
        "if given['method'] == 'byol': sys.exit('solo-mim: out of memory: lower the batch')\n"
    )
    tried = replace(campaign, command=(sys.executable, str(program)))
    found = preflight.check(tried, asked_for("--any-images")[1], ())
    assert found.refused == {"byol": "its trial step failed: out of memory: lower the batch"}
    lines = (tmp_path / "given").read_text().splitlines()
    assert len(lines) == 2
    for line in lines:
        words = line.split()
        assert {"limit_train_batches=1", "limit_val_batches=1", "max_epochs=1"} <= set(words)
        assert "optimizer.batch_size=256" in words
        assert str(campaign.output) not in line.rpartition("output_dir=")[2]


def test_on_a_login_node_without_gpus_no_step_is_tried(campaign):
    asked = asked_for("--any-images", "--slurm")[1]
    found = preflight.check(replace(campaign, gpus=2), asked, ())
    assert found.wrong == []
    assert any("no trial steps: they need the GPUs of a node" in one for one in found.remarks)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(campaign, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    closed = replace(campaign, output=tmp_path / "closed" / "runs")
    wrong = check(closed, "--any-images").wrong
    assert wrong == [
        f"--output {closed.output}: {tmp_path}/closed cannot be written; name another folder"
    ]


def refused(*arguments):
    with pytest.raises(SystemExit) as error:
        reproduce.main(list(arguments))
    return error.value.code


def test_arguments_that_ask_for_nothing_are_refused(capsys):
    wrong = (
        ("--stages", "nonsense"),
        ("--stages", "prepare"),
        ("--jobs", "0"),
        ("--local", "--slurm"),
        ("--card", "Voodoo"),
        ("--sbatch", "account"),
    )
    assert {refused(*arguments) for arguments in wrong} == {2}
    said = capsys.readouterr().err
    assert "invalid choice: 'nonsense'" in said
    assert "prepare needs --imagenet" in said
    assert "--sbatch account: write NAME=VALUE" in said


def test_exit_codes_are_in_the_help(capsys):
    assert refused("--help") == 0
    said = capsys.readouterr().out
    assert "128+n" in said


def test_what_is_asked_for_is_once_and_in_order():
    stages = asked_for("--stages", "report", "knn")[0].stages
    assert stages == ("knn", "report")
    assert asked_for()[0].stages == ("pretrain", "linear", "knn", "report")
    assert asked_for("--imagenet", "there")[0].stages[0] == "prepare"
    assert asked_for("--seeds", "1", "2", "1")[0].seeds == (1, 2)
    assert asked_for("--output", "there")[0].output == Path("there").absolute()


def test_every_command_of_the_documentation_is_one_of_the_driver():
    text = (Path(__file__).parents[2] / "docs" / "imagenet100.md").read_text()
    commands = re.findall(r"^.*?reproduce\.py (.*?)(?: [>&].*)?$", text, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        campaign, _ = asked_for(*shlex.split(command))
        assert campaign.stages[0] == "prepare"
