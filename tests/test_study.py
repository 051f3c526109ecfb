"""scripts/study.py: what it tries beyond a range, chooses and leaves out; and the preset of its
final runs."""

import json
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from solo_mim.commands.configuration import CONFIG_FOLDER
from solo_mim.evaluation.collect import settings_of

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "study.py"
PRESET = "cifar10-small"


@pytest.fixture
def study(load_script):
    return load_script(SCRIPT)


@pytest.fixture
def finish(tmp_path):
    """Leaves results of runs, as training does: `finish(runs, accuracy_of)`."""

    def left(runs, accuracy_of):
        for run in runs:
            folder = tmp_path / f"{run.name}-seed{run.seed}-0123abcd"
            folder.mkdir(exist_ok=True)
            offline = {"trained": {"probe_top1": accuracy_of(run)}}
            (folder / "result.json").write_text(json.dumps({"offline": offline}))

    return left


def of(study, arm):
    return [run for run in study.sweep() if run.arm == arm]


def test_every_arm_is_tried_as_often(study):
    counts = {name: len(of(study, name)) for name in study.ARMS}
    assert set(counts.values()) == {6}
    assert len({run.name for run in study.sweep()}) == 6 * len(counts)


def test_a_best_in_the_middle_ends_the_sweep(study, finish, tmp_path):
    finish(of(study, "vicreg"), lambda run: 50 + (run.value == 25) + run.rate)
    assert study.tried("vicreg", tmp_path) == of(study, "vicreg")
    best = study.chosen(tmp_path)["vicreg"]
    assert (best.value, best.rate) == (25, 3e-3)


@pytest.mark.parametrize(("sign", "values"), [(1, [128, 256, 512]), (-1, [32, 16, 8])])
def test_beyond_an_end_the_next_is_tried_at_its_rate_twice_at_most(
    study, finish, tmp_path, sign, values
):
    runs = of(study, "mec")
    for tried in values[1:]:
        finish(runs, lambda run: 50 + sign * run.value / 1000 - run.rate)
        *_, last = runs = study.tried("mec", tmp_path)
        assert (last.value, last.rate) == (tried, 1e-3)
    finish(runs, lambda run: 50 + sign * run.value / 1000 - run.rate)
    assert study.tried("mec", tmp_path) == runs
    assert study.chosen(tmp_path)["mec"].value == values[-1]


def test_no_floor_goes_below_what_the_loss_takes(study, finish, tmp_path):
    finish(of(study, "infomax"), lambda run: 50 - run.value)
    assert study.tried("infomax", tmp_path) == of(study, "infomax"), "0.009 is under total_noise"


def test_an_arm_whose_sweep_broke_off_is_left_out_and_named(study, finish, tmp_path, capsys):
    finish(of(study, "vicreg")[1:], lambda run: 50.0)
    finish(of(study, "simclr"), lambda run: 50 + (run.value == 0.2))
    finals = study.finals("final", tmp_path)
    assert {run.arm for run in finals} == {"simclr"}
    assert [run.seed for run in finals] == list(study.SEEDS)
    said = capsys.readouterr().out
    assert "the sweep of vicreg is not finished" in said
    study.report(tmp_path, tmp_path, tmp_path / "report")
    said = capsys.readouterr().out
    assert "| simclr | 0.001 | 0.1: 50.0, **0.2: 51.0**, 0.5: 50.0 |" in said
    assert "| vicreg | 0.001 | 25: 50.0, 50: 50.0 |" in said
    assert "Fashion-MNIST: 5 of 5 runs are missing" in said


def test_the_preset_trains_what_the_study_chose(compose_cfg):
    commands = json.loads((ROOT / "docs" / "results" / "study.json").read_text())["commands"]
    finals = [shlex.split(line)[2:] for line in commands if " name=final-" in line]
    preset = OmegaConf.load(CONFIG_FOLDER / "benchmark" / f"{PRESET}.yaml")
    (group, arms), (_, seeds) = preset.hydra.sweeper.params.items()
    assert len(finals) == len(arms.split(",")) * len(seeds.split(","))
    for arm in arms.split(","):
        final, *_ = [run for run in finals if any(o.startswith(f"name=final-{arm}-") for o in run)]
        own = (f"+benchmark={PRESET}", f"{group}={arm}")
        places = [option for option in final if option.startswith(("data.", "seed="))]
        expected, found = (
            settings_of(OmegaConf.to_container(compose_cfg(*overrides)))
            for overrides in (final, (*own, *places))
        )
        assert found == {**expected, "name": arm}
