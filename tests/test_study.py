"""scripts/study.py: what it tries beyond a range, chooses and leaves out; and the preset of its
final runs."""

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from solo_mim.installed import CONFIG_FOLDER
from solo_mim.runs.collect import settings_of

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "study.py"
PRESET = "cifar10-small"


@pytest.fixture
def study(load_script):
    return load_script(SCRIPT)


@pytest.fixture
def finish(tmp_path):
    """Leaves runs as training elsewhere does: `finish(runs, accuracy_of)`."""

    def left(runs, accuracy_of):
        for run in runs:
            folder = tmp_path / f"{run.name}-seed{run.seed}-0123abcd"
            folder.mkdir(exist_ok=True)
            accuracy = accuracy_of(run)
            data = {"dataset": "custom", "train_path": "/photographs/train"}
            own = {"rate": run.rate, "value": run.value}
            config = {"name": run.name, "method": run.arm, "data": data, "optimizer": own}
            config["output_dir"] = "/elsewhere"
            result = {
                **{"name": run.name, "method": run.arm, "seed": run.seed, "data": "custom"},
                **{"evaluated_on": "validation split", "offline_evaluated_on": "test images"},
                **{"online": {"probe_top1": 40.0}, "information": None, "versions": {}},
                "commit": "c",
                "offline": {"trained": {"probe_top1": accuracy, "knn_top1": accuracy / 2}},
            }
            right = round(10 * accuracy)
            predicted = right * [1] + (1000 - right) * [2]
            predictions = pd.DataFrame({"target": 1000 * [1], "probe": predicted})
            (folder / "config.yaml").write_text(json.dumps(config))
            (folder / "result.json").write_text(json.dumps(result))
            (folder / "provenance.json").write_text("[{}]")
            predictions.to_csv(folder / "predictions.csv")
            pd.DataFrame({"epoch": [0], "val_acc1": [40.0]}).to_csv(folder / "metrics.csv")

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


def test_a_finished_stage_is_a_table_a_page_and_pictures_without_paths(
    study, finish, tmp_path, capsys
):
    for arm in ("infomax", "vicreg"):
        finish(of(study, arm), lambda run: 50.0 + (run.value == study.ARMS[run.arm].values[1]))
    lead = {"vicreg": [6, 6, 6, 6, 7], "infomax": 5 * [0]}
    finals = study.finals("final", tmp_path)
    finish(finals, lambda run: 50.0 + run.seed + lead[run.arm][run.seed - 1])
    study.report(Path("/photographs"), tmp_path, tmp_path / "report")
    said = capsys.readouterr().out
    probe = "59.20 ± 1.92 | -6.20 [-6.76, -5.64] | < 0.001"
    knn = "29.60 ± 0.96 | -3.10 [-3.38, -2.82] | < 0.001"
    assert f"| vicreg | lr0.001-25 | {probe} | {knn} | 0 for, 5 against |" in said
    assert "| infomax | lr0.001-0.1 | 53.00 ± 1.58 |  |  | 26.50 ± 0.79 |  |  |  |" in said
    names = {"study.json", "study.html", "study-final-scores.png", "study-final-curves.png"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names
    page = (tmp_path / "report" / "study.html").read_text()
    study.report(Path("/photographs"), tmp_path, tmp_path / "again")
    assert (tmp_path / "again" / "study.html").read_text() == page, "same runs, same page"
    assert "OUT/final-vicreg-lr0.001-25-seed1" in page
    assert "DATA/train" in page
    assert str(tmp_path) not in page
    assert "/elsewhere" not in page
    assert "/photographs" not in page


def test_finals_of_an_earlier_choice_in_the_same_folder_do_not_count(
    study, finish, tmp_path, capsys
):
    def choose(values):
        for arm, value in values.items():
            finish(of(study, arm), lambda run, value=value: 50.0 + (run.value == value))

    choose({"infomax": 0.1, "vicreg": 25})
    finish(study.finals("final", tmp_path), lambda run: 50.0 + run.seed - 4 * (run.arm == "vicreg"))
    choose({"vicreg": 50})
    finish([study.Run("sweep", "vicreg", 1e-3, 100, 0)], lambda run: 40.0)
    again = [run for run in study.finals("final", tmp_path) if run.arm == "vicreg"]
    assert {run.value for run in again} == {50}
    finish(again, lambda run: 50.0 + run.seed + 6 + run.seed / 10)
    study.report(tmp_path, tmp_path, tmp_path / "report")
    assert "| vicreg | lr0.001-50 | 59.30 ± 1.74 | -6.30 [" in capsys.readouterr().out
    content = json.loads((tmp_path / "report" / "study.json").read_text())
    names = {run["name"] for run in content["runs"] if run["name"].startswith("final-vicreg")}
    assert names == {"final-vicreg-lr0.001-50"}


def test_an_arm_in_two_rows_is_an_error_that_names_both_folders(study, finish, tmp_path):
    for arm in ("infomax", "vicreg"):
        finish(of(study, arm), lambda run: 50.0 + (run.value == study.ARMS[run.arm].values[1]))
    finals = study.finals("final", tmp_path)
    finish(finals, lambda run: 50.0 + run.seed)
    (odd,) = tmp_path.glob("final-vicreg-*-seed3-*")
    config = json.loads((odd / "config.yaml").read_text()) | {"precision": "bf16-mixed"}
    (odd / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"vicreg has two rows: .*-seed1-.* and .*-seed3-.*"):
        study.report(tmp_path, tmp_path, tmp_path / "report")


def test_a_finished_run_of_other_code_is_kept_with_a_line(study, finish, tmp_path, capsys):
    first, second = of(study, "vicreg")[:2]
    finish([first, second], lambda run: 50.0)
    here = study.digest("vicreg")
    for run, code in ((first, here), (second, "0123456789ab")):
        path = run.folder(tmp_path) / "provenance.json"
        path.write_text(json.dumps([{"code": code}]))
    study.train([first, second], tmp_path, tmp_path, jobs=1)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"{second.name} seed 0: kept, made by code 0123456789ab, here it is {here}"
    )


def test_the_preset_trains_what_the_study_chose(compose_cfg):
    commands = json.loads((ROOT / "docs" / "results" / "study.json").read_text())["commands"]
    # The commands as they were run, with version 0.1.0's name of an option.
    commands = [line.replace("reading=first_order", "within=linear") for line in commands]
    finals = [shlex.split(line)[2:] for line in commands if " name=final-" in line]
    for line in finals:  # and with what was the default then
        if any(option.startswith("name=final-infomax-") for option in line):
            line.append("method_kwargs.within=full")
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
