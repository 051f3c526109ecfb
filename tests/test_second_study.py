"""scripts/second_study.py: what it tries beyond a range, chooses, leaves out and makes no second
time; scripts/second_study_report.py: what it says of that."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from toys import completed

from solo_mim.methods import METHODS
from solo_mim.protocols.figures import offline_split
from solo_mim.recipe.checks import checked

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "second_study.py"


@pytest.fixture
def study(load_script):
    return load_script(SCRIPT)


@pytest.fixture
def report(study, load_script):
    return load_script(SCRIPT.with_name("second_study_report.py"))


@pytest.fixture
def records(study, tmp_path):
    """Takes figures as if runs had finished elsewhere: `records.finish(runs, accuracy_of)`."""

    class Finishing(study.Records):
        def finish(self, runs, accuracy_of):
            for run in runs:
                accuracy = accuracy_of(run)
                offline = {"probe": accuracy, "knn": accuracy / 2}
                record = {"command": run.line(), "offline": offline, "code": "c0de"}
                record |= {"commit": "0123abcd", "information": {"effective_rank": 7.0}}
                if run.stage in ("tuned", "again"):  # of the final images the first ones
                    right = np.packbits(np.arange(10_000) < 100 * accuracy)
                    record["right"] = base64.b64encode(right).decode()
                self.found[run.line()] = record

        def sweep(self, arm, accuracy_of):
            """Finishes what is tried of an arm, and what that asks for, to its end."""
            while [run for run in study.tried(arm, self) if not self.of(run)]:
                self.finish(study.tried(arm, self), accuracy_of)
            return study.tried(arm, self)

    return Finishing(tmp_path / "runs.jsonl")


def finish_folder(folder, run, predicted, target, evaluated_on="validation split"):
    """As training leaves it."""
    folder = folder / f"{run.name}-seed{run.seed}-0123abcd"
    folder.mkdir(parents=True)
    result = {
        **{"name": run.name, "seed": run.seed, "epochs": 40, "data": "custom"},
        **{"online": {}, "information": None, "versions": {}, "commit": "c", "code": "0"},
        "offline_evaluated_on": evaluated_on,
    }
    (folder / "result.json").write_text(json.dumps(result))
    table = {"target": target, "probe": predicted, "knn": target}
    pd.DataFrame(table).to_csv(folder / "predictions.csv", index=False)


def test_every_swept_arm_has_as_many_settings_and_rates(study):
    assert {len(study.ARMS[name].settings()) for name in set(study.ARMS) - {"vicreg"}} == {3}
    assert study.ARMS["vicreg"].settings() == ["25", "10", "scaled", "eb_jepa"]
    assert all([run.rate for run in study.sweep(name)] == list(study.RATES) for name in study.ARMS)
    names = [run.name for name in study.ARMS for run in study.sweep(name)]
    assert len(set(names)) == len(names)


def test_rates_are_tried_at_one_setting_and_the_others_at_the_best_of_them(study, records):
    tried = records.sweep("simclr", lambda run: 50 + (run.setting == "0.1") - abs(run.rate - 3e-3))
    assert [(run.rate, run.setting) for run in tried] == [
        *((1.5e-3, "0.2"), (3e-3, "0.2"), (6e-3, "0.2")),
        *((3e-3, "0.05"), (3e-3, "0.1")),
        *((1.5e-3, "0.1"), (6e-3, "0.1")),
    ]
    best = study.chosen(records)["simclr"]
    assert (best.setting, best.rate) == ("0.1", 3e-3)


@pytest.mark.parametrize(("sign", "settings"), [(1, ["1000", "4000"]), (-1, ["64", "16.4"])])
def test_beyond_an_end_the_next_value_is_tried_once(study, records, sign, settings):
    tried = records.sweep(
        "corinfomax", lambda run: 50 + sign * np.log(float(run.setting)) - abs(run.rate - 3e-3)
    )
    assert [(run.rate, run.setting) for run in tried[5:]] == [
        *((1.5e-3, settings[0]), (6e-3, settings[0])),
        (3e-3, settings[1]),
    ]
    assert study.chosen(records)["corinfomax"].setting == settings[-1]


@pytest.mark.parametrize(("sign", "rates"), [(1, [0.012]), (-1, [7.5e-4])])
def test_beyond_the_last_rate_the_next_is_tried_once(study, records, sign, rates):
    tried = records.sweep(
        "simclr", lambda run: 50 + sign * np.log(run.rate) + (run.setting == "0.1")
    )
    inner = [(3e-3, "0.1")]  # next to the best
    assert [(run.rate, run.setting) for run in tried[5:]] == inner + [(r, "0.1") for r in rates]


def test_no_value_leaves_what_the_loss_takes(study, records):
    tried = records.sweep("infomax", lambda run: 50 - float(run.setting) - abs(run.rate - 3e-3))
    settings = [run.setting for run in tried if run.rate == 3e-3]
    assert settings == ["0.1", "0.03", "0.3"], "0.009 is under total_noise"


def test_shares_go_on_by_their_odds(study, records):
    tried = records.sweep("visreg", lambda run: float(run.setting) - abs(run.rate - 3e-3))
    assert [run.setting for run in tried if run.rate == 3e-3] == ["0.6", "0.3", "0.9", "0.982"]
    tried = records.sweep("byol", lambda run: -float(run.setting) - abs(run.rate - 3e-3))
    assert [run.setting for run in tried if run.rate == 3e-3] == ["0.99", "0.9", "0.97", "0.715"]


def test_a_setting_of_another_kind_can_be_chosen_and_has_no_next(study, records):
    tried = records.sweep(
        "vicreg", lambda run: 50 + (run.setting == "eb_jepa") - abs(run.rate - 3e-3)
    )
    assert [run.setting for run in tried[3:]] == ["10", "scaled", "eb_jepa", "eb_jepa", "eb_jepa"]
    command = study.chosen(records)["vicreg"].line()
    assert "method_kwargs.proj_output_dim=1024" in command
    assert "method_kwargs.cov_loss_weight=0.0978" in command


def test_an_arm_whose_sweep_is_not_finished_is_left_out_and_named(study, report, records, capsys):
    records.finish(study.sweep("vicreg")[1:], lambda run: 50.0)
    records.sweep("simclr", lambda run: 50 + (run.setting == "0.1") - abs(run.rate - 3e-3))
    tuned = study.expected("tuned", records)
    assert {run.arm for run in tuned} == {"simclr"}
    assert [run.seed for run in tuned] == list(study.SEEDS)
    assert "the sweep of vicreg is not finished" in capsys.readouterr().out
    report.report(records)
    said = capsys.readouterr().out
    assert "| simclr | 0.003 | 0.2: 50.0, 0.05: 50.0, **0.1: 51.0** |" in said
    assert "## Untuned\n\nThe sweep has not finished what this stage depends on." in said


def test_one_rate_serves_all_untuned_methods_in_9_conditions_without_the_studys_own(study, records):
    assert study.expected("untuned", records) == []
    fast = {"vicreg", "simclr"}
    records.finish(study.defaults(), lambda run: 50 + (1000 if run.arm in fast else 100) * run.rate)
    runs = study.expected("untuned", records)
    assert {run.rate for run in runs} == {6e-3}
    conditions = {run.condition for run in runs}
    assert len(conditions) == len({(c.data, c.augmentation) for c in conditions}) == 9
    assert study.STUDY_CELL not in conditions
    assert len(runs) == 9 * len(study.UNTUNED)
    assert len({run.line() for run in runs}) == len(runs)
    settings = {(run.arm, run.setting) for run in runs}
    assert {("isotropic", "0.001"), ("vicreg", "25"), ("simclr", "0.2")} <= settings


def test_regret_is_the_distance_to_the_best_of_each_condition(study, report, records):
    records.finish(study.defaults(), lambda run: 50 - run.rate)
    runs = study.expected("untuned", records)
    lead = {report.REFERENCE: 0.0, "vicreg": -1.0}
    records.finish(runs, lambda run: 60 + run.condition.batch / 100 + lead.get(run.arm, -3.0))
    table = report.regrets(report.untuned_scores(runs, records))
    assert table.shape == (9, len(study.UNTUNED))
    means = report.mean_regrets(table, draws=200)
    assert means.index[0] == report.REFERENCE
    assert means.loc[report.REFERENCE, ["regret", "best in"]].tolist() == [0.0, 9]
    assert means.loc["vicreg", "regret"] == pytest.approx(1.0)
    assert means.loc[
        "vicreg", ["minus explicit MIM's low", "minus explicit MIM's high"]
    ].tolist() == (pytest.approx([1.0, 1.0]))


def test_what_depends_on_the_batch_is_adapted_to_it_beside_the_untuned_figures(
    study, report, records, capsys
):
    records.finish(study.defaults(), lambda run: 50 - run.rate)
    untuned, adapted = (study.expected(stage, records) for stage in ("untuned", "adapted"))
    assert {(run.condition.batch, run.arm, run.setting) for run in adapted} == {
        *((128, "isotropic", "half"), (128, "byol", "0.995"), (128, "frossl", "2")),
        *((128, "lejepa", "0.0198"), (512, "byol", "0.98"), (512, "frossl", "8")),
        (512, "lejepa", "0.00503"),
    }
    assert len(adapted) == 3 * 4 + 2 * 3, "three conditions of 128 and two of 512"
    half = next(run for run in adapted if run.arm == "isotropic").line().split()
    assert {"method_kwargs.proj_output_dim=64", "optimizer.batch_size=128"} <= set(half)
    assert "method_kwargs.within_noise=0.001" in half
    records.finish(untuned, lambda run: 61.0 if run.arm == "vicreg" else 60.0)
    report.report(records)
    without = capsys.readouterr().out.split("## Untuned")[1]
    records.finish(adapted, lambda run: 64.0 if run.arm == "isotropic" else 59.0)
    report.report(records)
    said = capsys.readouterr().out.split("## Untuned")
    assert without == said[1]
    worse, better = "60.00 → 59.00", "60.00 → 64.00"
    for condition, ours in {"symmetric_weak-128": better, "asymmetric-512": ""}.items():
        assert f"| cifar10-{condition} | {worse} | {worse} | {ours} | {worse} |" in said[2]
    assert "| 30.00 → 29.50 | 30.00 → 29.50 | 30.00 → 32.00 | 30.00 → 29.50 |" in said[2], "kNN"
    found = json.loads((records.path.parent / "study2.json").read_text())
    assert found["untuned"]["mean"]["isotropic"]["regret"] == pytest.approx(1.0)
    assert found["adapted"]["mean"]["isotropic"]["regret"] == pytest.approx(6 / 9)
    assert found["adapted"]["mean"]["lejepa"]["regret"] == pytest.approx((3 * 5 + 2 * 2 + 4) / 9)
    page = (records.path.parent / "study2.html").read_text()
    assert page.count("batch_size=128") == 3 * (len(study.UNTUNED) + 4)


def test_regrets_are_told_by_part_by_measure_and_without_the_studys_own_data(report):
    names = [str(condition) for condition in report.CONDITIONS]
    probes = pd.DataFrame({"isotropic": 60.0, "vicreg": 60.0, "simclr": 58.0}, index=names)
    probes.loc[probes.index.str.startswith("cifar10"), "vicreg"] = 54.0
    probes.loc["photo_patches-symmetric-128", "isotropic"] = 57.0
    knn = probes[["vicreg", "isotropic", "simclr"]].set_axis(probes.columns, axis=1)
    means = report.all_regrets(probes, knn)
    regret = {name: of["regret"].round(2).to_dict() for name, of in means.items()}
    assert regret == {
        "mean": {"isotropic": 0.33, "vicreg": 2.0, "simclr": 2.0},
        "without cifar10": {"isotropic": 0.5, "vicreg": 0.0, "simclr": 2.0},
        "by kNN": {"isotropic": 2.0, "vicreg": 0.33, "simclr": 2.0},
    }
    lead = means["mean"].loc["vicreg", ["minus explicit MIM's low", "minus explicit MIM's high"]]
    # One draw in 27 has the first data set alone, with its six points, and one the last alone.
    assert lead.tolist() == pytest.approx([-1.0, 6.0], abs=0.35)
    table = report.regrets_by_part(report.regrets(probes)).splitlines()
    assert "| cifar10 | 0.00 | 6.00 | 2.00 |" in table
    assert "| 128 | 1.00 | 2.00 | 2.00 |" in table


def test_a_finished_stage_is_tested_by_seed(study, report, records, capsys):
    def chosen(run):
        return 50.0 - abs(run.rate - 3e-3) + (run.setting == study.ARMS[run.arm].settings()[0])

    for arm in ("isotropic", "vicreg"):
        records.sweep(arm, chosen)
    lead = {"vicreg": [6, 6, 6, 6, 7], "isotropic": 5 * [0]}
    tuned = study.expected("tuned", records)
    records.finish(tuned, lambda run: 50.0 + run.seed + lead[run.arm][run.seed - 1])
    report.report(records)
    said = capsys.readouterr().out
    probe = "59.20 ± 1.92 | -6.20 [-6.76, -5.64] | < 0.001 | 0.20"
    knn = "29.60 ± 0.96 | -3.10 [-3.38, -2.82] | < 0.001"
    assert f"| vicreg | 0.003, 25 | {probe} | {knn} |" in said
    assert "| isotropic | 0.003, 0.001 | 53.00 ± 1.58 |  |  |  | 26.50 ± 0.79 |  |  |" in said
    written = json.loads((records.path.parent / "study2.json").read_text())
    assert written["tuned"]["vicreg"]["probe mean"] == pytest.approx(-6.2)


def test_rivals_that_are_tried_again_stand_beside_the_chosen_settings_in_a_table_of_their_own(
    study, report, records, capsys
):
    for arm in ("isotropic", "vicreg", "simclr", "frossl"):
        records.sweep(arm, lambda run: 50.0 - abs(run.rate - 3e-3))
    tuned, again = (study.expected(stage, records) for stage in ("tuned", "again"))
    assert {run.line() for run in tuned}.isdisjoint(run.line() for run in again)
    records.finish(tuned, lambda run: 50.0 + run.seed + len(run.arm) + (run.arm == "vicreg"))
    before = len(records.found)
    report.report(records)
    without = capsys.readouterr().out
    records.finish(
        again,
        lambda run: 60 + run.seed + (run.seed == 5) + 1000 * run.rate + float(run.setting) / 100,
    )
    assert len(records.found) == before + 5 * len(study.AGAIN)
    report.report(records)
    said = capsys.readouterr().out
    begin, end = "40 epochs, tuned", "rivals again, after the figures"
    assert without.split(begin)[1].split(end)[0] == said.split(begin)[1].split(end)[0]
    table = said.split(end)[1].split("## ")[0]
    assert [line[:20] for line in table.splitlines() if line.startswith(("| v", "| f", "| i"))] == [
        "| vicreg | 0.006, 10",
        "| vicreg | 0.003, 10",
        "| frossl | 0.003, 4 ",
        "| isotropic | 0.003,",
        "| vicreg | 0.003, 25",
        "| frossl | 0.003, 4 ",
    ]
    assert "| vicreg | 0.006, 10 | 69.30 ± 1.92 | -7.30 [" in table
    assert (records.path.parent / "study2-again.png").exists()


def test_one_seed_is_compared_without_a_test(study, report, records, capsys):
    for arm in study.LARGER:
        records.sweep(
            arm,
            lambda run: (
                50.0 - abs(run.rate - 3e-3) + (run.setting == study.ARMS[run.arm].settings()[0])
            ),
        )
    larger = study.expected("larger", records)
    assert len(larger) == len(study.LARGER)
    records.finish(larger, lambda run: {"isotropic": 60.0, "vicreg": 61.5}.get(run.arm, 59.0))
    report.report(records)
    said = capsys.readouterr().out
    assert "| vicreg | 0.003, 25 | 61.50 | -1.50 | one seed |  | 30.75 | -0.75 | one seed |" in said


def test_the_page_has_every_table_picture_and_counted_run(study, report, records, capsys):
    for arm in study.ARMS:
        records.sweep(arm, lambda run: 50 - abs(run.rate - 3e-3) + 0.1 * len(run.arm))
    stages = ("tuned", "untuned")
    for stage in stages:
        runs = study.expected(stage, records)
        records.finish(runs, lambda run: 40 + 2 * len(run.arm) + run.seed * (run.arm != "byol"))
    report.report(records)
    folder = records.path.parent
    page = (folder / "study2.html").read_text()
    runs = [run for stage in ("sweep", *stages) for run in study.expected(stage, records)]
    assert page.count("<td><code>solo-mim pretrain ") == len(runs) == len(set(runs))
    assert page.count('<img src="data:image/png;base64,') == 3
    assert 'src="h' not in page
    names = {path.name for path in folder.glob("study2-*.png")}
    assert names == {"study2-sweep.png", "study2-tuned.png", "study2-untuned.png"}
    found = json.loads((folder / "study2.json").read_text())
    regrets = found["untuned"]["mean"]
    assert regrets["corinfomax"]["regret"] == 0
    assert regrets["byol"]["regret"] == pytest.approx(12)  # 10 letters against 4
    assert found["chosen"]["byol"] == study.chosen(records)["byol"].line()
    assert "| **60.00** |" in capsys.readouterr().out


def test_figures_in_the_file_are_not_made_again_and_those_of_another_command_are(
    study, tmp_path, monkeypatch
):
    started = []

    def no_process(command, **_):
        started.append(command)
        return type("Done", (), {"returncode": 1})()

    monkeypatch.setattr(study.subprocess, "run", no_process)
    run, other = study.sweep("simclr")[:2]
    target = np.arange(20) % 10
    finish_folder(tmp_path / "out", run, np.where(np.arange(20) < 15, target, -1), target)
    records = study.Records(tmp_path / "runs.jsonl")
    study.train([run], Path("D"), tmp_path / "out", 1, records)
    assert started == []
    assert records.of(run)["offline"] == {"probe": 75.0, "knn": 100.0}
    again = study.Records(tmp_path / "runs.jsonl")
    (tmp_path / "elsewhere").mkdir()
    study.train([run, other], Path("D"), tmp_path / "elsewhere", 1, again)
    assert [command[-4] for command in started] == [f"name={other.name}"]


@pytest.mark.parametrize("stage", ["tuned", "long", "larger"])
def test_final_and_official_images_are_told_apart(study, tmp_path, monkeypatch, compose_cfg, stage):
    monkeypatch.setattr(study, "FINAL_IMAGES", 20)
    run = study.replace(study.sweep("simclr")[0], stage=stage)
    recipe = checked(compose_cfg(*run.command(Path("D"), Path("O"))[1:]))
    labelled = SimpleNamespace(splits=SimpleNamespace(test=SimpleNamespace(labelled=True)))
    _, evaluated_on = offline_split(recipe, labelled)
    # In order of class, and in each the final images first: all of them right, of the others none.
    target = np.repeat(np.arange(10), 4)
    predicted = np.where(np.arange(40) % 4 < 2, target, -1)
    finish_folder(tmp_path, run, predicted, target, evaluated_on)
    record = study.Records(tmp_path / "runs.jsonl").take(run, tmp_path)
    assert (record["offline"]["probe"], record["test"]["probe"]) == (100.0, 0.0)
    assert study.right(record).tolist() == [1] * 20


def test_two_results_of_one_run_are_named(study, tmp_path):
    run, target = study.sweep("simclr")[0], np.zeros(4)
    finish_folder(tmp_path, run, target, target)
    (tmp_path / f"{run.name}-seed0-0123abcd").rename(tmp_path / f"{run.name}-seed0-other")
    finish_folder(tmp_path, run, target, target)
    with pytest.raises(
        SystemExit, match=r"seed0-0123abcd.*seed0-other|seed0-other.*seed0-0123abcd"
    ):
        study.Records(tmp_path / "runs.jsonl").take(run, tmp_path)


def test_final_images_are_none_that_the_first_study_used(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FINAL_IMAGES", 20)
    data = tmp_path / "cifar10-jpeg"
    for part, count in (("train", 20), ("test", 3)):
        for name in map(str, range(10)):
            (data / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (4, 4)).save(data / part / name / f"{i:02}.png")
    study.draw_images(tmp_path, tmp_path / "out")
    images = tmp_path / "out" / "images"
    known = {"dataset": "custom", "train_path": str(data / "train"), "fraction": study.ROUND_ONE}
    train = study.load_splits(known).train
    used = {Path(train.source.paths[row].decode()) for row in train.rows}
    final = {path.resolve() for path in images.glob("held-out/*/final-*")}
    larger = {path.resolve() for path in images.glob("larger/*/*")}
    assert len(used) == 60
    assert len(final) == 20
    assert not final & used
    assert not final & larger
    assert len(final | larger) == 200
    assert len(list(images.glob("held-out/*/test-*"))) == 30


@pytest.mark.parametrize("place", range(4))
def test_every_command_of_the_protocol_composes(study, records, compose_cfg, place):
    """Each arm under the study's budget, and the untuned methods in four conditions."""
    condition = [*study.CONDITIONS[::3], study.CONDITIONS[2]][place]
    arms = list(study.UNTUNED.items())[place::4]  # each in one of the four conditions
    runs = [study.Run("untuned", name, 3e-3, setting, 0, condition) for name, setting in arms]
    adapted = study.ADAPTED[condition.batch].items()
    runs += [study.Run("adapted", name, 3e-3, own, 0, condition) for name, own in adapted]
    if place == 0:
        runs += [study.sweep(name)[-1] for name in study.ARMS]
        runs += [
            study.Run(stage, "simclr", 3e-3, "0.1", 1) for stage in ("tuned", "long", "larger")
        ]
    for run in runs:
        cfg = compose_cfg(*run.command(Path("D"), Path("O"))[1:])
        epochs = {"long": 120, "larger": 60}.get(run.stage, 40)
        assert (cfg.max_epochs, cfg.optimizer.name, cfg.optimizer.weight_decay) == (
            epochs,
            "adamw",
            1e-4,
        )
        assert cfg.method_kwargs.proj_hidden_dim == (1024 if run.arm == "byol" else 512)
        assert cfg.optimizer.batch_size == run.condition.batch
        METHODS[cfg.method].add_and_assert_specific_cfg(completed(cfg, 10, 2, 0))
