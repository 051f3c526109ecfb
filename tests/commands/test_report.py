"""The report: known runs, what is broken, and the page in a real browser."""

import json
import re
import shutil
import subprocess
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import yaml

from solo_mim.commands import main
from solo_mim.evaluation import names
from solo_mim.evaluation.compare import tables
from solo_mim.evaluation.pictures import figures_of, panels_of, svg
from solo_mim.evaluation.report import _escaped, latex, markdown, page
from solo_mim.installed import CONFIG_FOLDER, OUR_METHODS, host_methods
from solo_mim.runs.collect import LINEAR_LAYER, collect, missing

SPLIT = "test images"


def write_run(
    folder,
    name,
    seed,
    probe,
    kNN=50.0,
    shared=True,
    version="1",
    split=SPLIT,
    code=None,
    path=None,
    fingerprint=None,
    **settings,
):
    """A finished run's folder with the files that `solo-mim pretrain` leaves."""
    run = folder / f"{name}-seed{seed}-0123abcd"
    run.mkdir(parents=True)
    config = {
        **{"name": name, "method": name.split("-")[0], "seed": seed},
        "data": {"dataset": settings.pop("dataset", "cifar10"), "train_path": path},
        "optimizer": {"lr": 0.1, **settings},
    }
    result = {
        **{"name": name, "method": config["method"], "data": config["data"]["dataset"]},
        **{"seed": seed, "evaluated_on": "validation split", "offline_evaluated_on": split},
        "epochs": 2,
        "fingerprint": fingerprint,
        "online": {"probe_top1": probe - 5, "knn_top1": None},
        "offline": {"trained": {"probe_top1": probe, "knn_top1": kNN}},
        **{"versions": {"torch": "2", "solo-mim": version}, "commit": "abc123"},
        **{"training_seconds_of_last_sitting": 10.0 * seed, "shared_machine": shared},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "result.json").write_text(json.dumps(result))
    (run / "provenance.json").write_text(json.dumps([{"code": code} if code else {}]))
    epochs = pd.DataFrame({"epoch": [0, 1], "val_acc1": [probe - 10, probe - 5]})
    epochs.to_csv(run / "metrics.csv", index=False)
    return run


def amend(folder, **more):
    """Sets keys of the result in a folder."""
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


@pytest.fixture
def study(tmp_path):
    """Three methods, five seeds: `close` is `best` but for noise, `worse` is two points behind."""
    noise = np.random.default_rng(0).normal(size=(3, 5)) * 0.2
    for i, (name, mean) in enumerate([("worse", 58.0), ("best", 60.1), ("close", 60.0)]):
        for seed in range(5):
            write_run(tmp_path, name, seed, mean + seed + noise[i, seed])
    return tmp_path


def test_rows_are_ranked_with_mean_deviation_and_verdict(study):
    (table,) = tables(collect(study)[0])
    assert [row.label for row in table.rows] == ["best", "close", "worse"]
    best, close, worse = table.rows
    values = [json.loads(p.read_text()) for p in study.glob("best-*/result.json")]
    probes = [value["offline"]["trained"]["probe_top1"] for value in values]
    assert best.scores["offline probe"].mean == pytest.approx(np.mean(probes))
    assert best.scores["offline probe"].deviation == pytest.approx(np.std(probes, ddof=1))
    assert best.verdict == "highest, not distinguishable from 1 other"
    assert close.verdict.startswith("not distinguishable from the highest")
    assert re.match(r"behind by 2\.\d\d \(p [=<] 0\.00\d\)", worse.verdict)
    assert len(table.pairs) == 3
    assert table.split["offline probe"] == SPLIT
    assert table.split["online probe"] == "validation split"
    assert "online kNN" not in table.measures


def test_projected_features_have_a_table_of_their_own(tmp_path, capsys):
    information = {
        **{"infomax": 20.0, "infomax_bias": 0.5, "infomax_shuffled": 0.4},
        **{"two_view": 1.2, "two_view_bias": 1.0, "two_view_shuffled": 1.1},
        **{"effective_rank": 60.0, "eigenvalue_max": 2.0, "eigenvalue_min": 0.5},
        **{"images": 4096, "dimensions": 64},
    }
    gaussianity = {"non_gaussianity": 8e-4, "radial_distance": 0.75}
    gaussianity |= {"rankme": 55.0, "alpha_req": 0.4, "lidar": 50.0}
    for seed, more in ((1, gaussianity), (2, {})):
        run = write_run(tmp_path, "infomax", seed, 50.0)
        result = json.loads((run / "result.json").read_text())
        result["information"] = {**information, "infomax": 20.0 + seed, **more}
        (run / "result.json").write_text(json.dumps(result))
    write_run(tmp_path, "byol", 1, 48.0)  # whose forward gives no z, say
    (table,) = tables(collect(tmp_path)[0])
    infomax, byol = table.rows
    assert {name: score.mean for name, score in infomax.diagnostics.items()} == {
        "Gaussian I(z; image), nats": 21.0,  # less chance; that of two views is not told from it
        **{"effective rank": 60.0, "RankMe": 55.0, "LiDAR": 50.0, "alpha-ReQ": 0.4},
        "dimensions": 64.0,
        **{"distance from a Gaussian": 8e-4, "radial distance": 0.75},
    }
    assert not byol.diagnostics
    of_one = " | ".join(f"{value} (n = 1)" for value in (55, 50, 0.4))
    line = f"| infomax | 21 | 60 | {of_one} | 64 | 0.0008 (n = 1) | 0.75 (n = 1) |"
    assert line in markdown([table], [])
    assert f"| BYOL |{8 * ' - |'}" in markdown([table], [])
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert (
        '<td class="number">0.0008 (n = 1)</td>' in (tmp_path / "out" / "report.html").read_text()
    )
    records = json.loads((tmp_path / "out" / "report.json").read_text())["tables"][0]["rows"]
    assert [record["z: radial distance"] for record in records] == [0.75, None]


def test_runs_of_other_settings_are_rows_of_their_own_that_name_them(tmp_path):
    for lr in (0.1, 0.2):
        write_run(tmp_path / str(lr), "vicreg", 1, 50 + lr, lr=lr)
    (table,) = tables(collect(tmp_path)[0])
    assert [row.label for row in table.rows] == [
        "VICReg (lr=0.2)",
        "VICReg (lr=0.1)",
    ]
    assert [row.verdict for row in table.rows] == [
        "highest",
        "not tested: fewer than two seeds shared with the first",
    ]


def test_runs_of_two_versions_are_two_rows(tmp_path):
    for version in ("1", "2"):
        for seed in (1, 2, 3):
            probe = 50.0 + float(version) + seed
            write_run(tmp_path / version, "a", seed, probe, version=version)
    runs, problems = collect(tmp_path)
    (table,) = tables(runs)
    assert [(row.label, row.seeds) for row in table.rows] == [
        ("a (solo-mim=2)", [1, 2, 3]),
        ("a (solo-mim=1)", [1, 2, 3]),
    ]
    assert problems == []


def test_runs_of_other_code_are_rows_of_their_own_and_the_table_says_whose(tmp_path, capsys):
    for code in ("aaa", "bbb", None):
        for seed in (1, 2):
            write_run(tmp_path / str(code), "a", seed, 50.0 + seed + (code == "aaa"), code=code)
    resumed = write_run(tmp_path, "b", 1, 40.0)
    (resumed / "provenance.json").write_text('[{"code": "aaa"}, {"code": "bbb"}]')
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Code: aaa, bbb, mixed (aaa, bbb), unknown." in printed
    assert "| a (code=aaa) | 2 |" in printed
    assert "| a (code=bbb) | 2 |" in printed
    assert "| a (code=unknown) | 2 |" in printed
    assert "Not in the tables" not in printed
    page = (tmp_path / "report" / "report.html").read_text()
    assert "code <code>mixed (aaa, bbb)</code>" in page


def test_runs_of_unknown_code_are_read_and_marked(tmp_path, capsys):
    write_run(tmp_path, "a", 1, 50.0)
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Code: unknown." in printed
    assert "| a | 1 | 50.00 |" in printed


def test_evaluations_by_other_code_than_the_runs_are_named(tmp_path):
    for seed, code in ((1, "aaa"), (2, "bbb")):
        run = write_run(tmp_path, "a", seed, 60.0, code="aaa")
        amend(write_evaluation(run, "knn/x-1", {"kNN, cosine": 55.0}), code=code)
    ((table,), _) = _of(tmp_path)
    assert table.code == "aaa; kNN, cosine (test images) by aaa, bbb"


def test_what_does_not_change_a_run_splits_no_row(tmp_path):
    for seed, more in ((1, "wandb: {enabled: true}\n"), (2, "profiler: null\n"), (3, "")):
        run = write_run(tmp_path, "a", seed, 50.0)
        with (run / "config.yaml").open("a") as config:
            config.write(more)
    (table,) = tables(collect(tmp_path)[0])
    assert [row.seeds for row in table.rows] == [[1, 2, 3]]


def test_a_verdict_goes_by_the_seeds_that_are_shared(tmp_path):
    for seed, a, b in ((1, 50.0, 51.01), (2, 51.0, 52.0), (3, 52.0, 53.02)):
        write_run(tmp_path, "a", seed, a)
        write_run(tmp_path, "b", seed, b)
    write_run(tmp_path, "b", 4, 30.0)
    (table,) = tables(collect(tmp_path)[0])
    assert [row.label for row in table.rows] == ["a", "b"]
    assert table.rows[1].verdict.startswith("ahead by 1.01 (p <")
    assert table.rows[1].verdict.endswith("3 seeds shared)")
    assert table.rows[0].verdict == "highest"
    assert [row.leading for row in table.rows] == [True, True], (
        "b is behind by its fourth seed only"
    )


def test_the_first_is_best_only_where_every_other_row_was_tested(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path, "a", seed, 60.0 + seed)
        write_run(tmp_path, "b", seed, 50.0 + 2 * seed)
    ((table,), _) = _of(tmp_path)
    assert [row.verdict.partition(" ")[0] for row in table.rows] == ["best", "behind"]
    assert "too few seeds" not in table.certainty
    write_run(tmp_path, "c", 1, 40.0)
    ((table,), _) = _of(tmp_path)
    assert [row.verdict.partition(" ")[0] for row in table.rows] == ["highest", "behind", "not"]
    assert table.certainty.endswith("too few seeds with it to be tested: 1.")


def test_a_mean_of_fewer_seeds_than_the_row_has_says_so(tmp_path, capsys):
    for seed in (1, 2):
        write_run(tmp_path, "a", seed, 60.0, kNN=40.0 if seed == 1 else None)
    assert main(["report", str(tmp_path)]) == 0
    assert "| a | 2 | 60.00 ± 0.00 | 40.00 (n = 1) |" in capsys.readouterr().out


def test_a_measure_less_is_no_other_table_and_another_split_is(tmp_path):
    write_run(tmp_path, "a", 1, 60.0)
    write_run(tmp_path, "b", 1, 60.0, kNN=None)
    write_run(tmp_path / "on validation", "a", 1, 60.0, split="validation split")
    runs, problems = collect(tmp_path)
    assert problems == []
    assert [[row.label for row in table.rows] for table in tables(runs)] == [["a", "b"], ["a"]]


def test_a_configuration_above_the_runs_hides_none(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    write_run(tmp_path / "runs", "a", 1, 60.0)
    assert len(collect(tmp_path / "runs")[0]) == 1
    assert len(collect(tmp_path)[0]) == 1


def test_runs_on_other_images_share_no_table(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path, name, 1, 50.0)
    write_run(tmp_path, "c", 1, 90.0, dataset="fashion_mnist")
    first, second = tables(collect(tmp_path)[0])
    assert ([row.label for row in first.rows], first.title) == (["a", "b"], "CIFAR-10")
    assert ([row.label for row in second.rows], second.title) == (["c"], "Fashion-MNIST")


def test_runs_on_the_same_images_share_a_row_wherever_those_lie(tmp_path):
    write_run(tmp_path, "a", 1, 50.0, path="/one", fingerprint="f")
    write_run(tmp_path, "a", 2, 50.0, path="/two", fingerprint="f")
    write_run(tmp_path, "a", 3, 50.0, path="/two")
    write_run(tmp_path, "b", 1, 50.0, path="/one", fingerprint="g")
    first, second = tables(collect(tmp_path)[0])
    assert [(row.label, row.seeds) for row in first.rows] == [("a", [1, 2, 3])], "3 is by its path"
    assert [(row.label, row.seeds) for row in second.rows] == [("b", [1])]


def test_an_evaluation_on_the_runs_images_elsewhere_is_no_other_measure(tmp_path):
    run = write_run(tmp_path, "a", 1, 60.0, path="/one", fingerprint="f")
    for name, fingerprint in (("cosine", "f"), ("euclidean", "g")):
        folder = write_evaluation(run, f"knn/{name}", {f"kNN, {name}": 50.0}, train_path="/two")
        amend(folder, fingerprint=fingerprint)
    ((table,), _) = _of(tmp_path)
    assert table.measures[2:4] == [
        "kNN, cosine (test images)",
        "kNN, euclidean (test images, images=g)",
    ]


def test_folders_that_are_named_make_one_report_each_run_once(tmp_path, monkeypatch, capsys):
    for name in "abc":
        write_run(tmp_path / "runs", name, 1, 60.0)
    monkeypatch.chdir(tmp_path)
    first, second, _ = sorted((tmp_path / "runs").iterdir())
    (tmp_path / "link").symlink_to(first)
    (tmp_path / "runs" / "a.log").touch()
    assert main(["report", *map(str, (first, "link", "runs/a.log", second))]) == 0
    said = capsys.readouterr().out
    assert "Not in the tables" not in said
    assert [line.split()[1] for line in said.splitlines() if " 60.00 " in line] == ["a", "b"]
    assert "written: report/report.md" in said


def _damage(run, kind):
    result = run / "result.json"
    if kind == "unfinished":
        result.unlink()
    elif kind == "failed":
        result.unlink()
        (run / "failure.txt").write_text("method=a has diverged in epoch 2\n")
    elif kind == "half-written":
        result.write_text(result.read_text()[:100])
    elif kind == "not a number":
        result.write_text(result.read_text().replace("50.0", "NaN"))
    elif kind == "nothing measured":
        result.write_text(re.sub(r"\d\d\.\d", "null", result.read_text()))
    elif kind == "no metrics":
        (run / "metrics.csv").unlink()
    elif kind == "empty":
        (run / "config.yaml").write_text("")
    elif kind == "no versions":
        result.write_text(result.read_text().replace('"versions": {', '"versions": null, "x": {'))
    elif kind == "elsewhere":
        write_evaluation(run, "../evaluations/linear", {"logistic regression": 50.0})
    elif kind == "copied":
        shutil.copytree(run, run.with_name("copy"))
    elif kind == "evaluated copy":
        other = shutil.copytree(run, run.with_name("other"))
        write_evaluation(other, "linear/x-1", {"logistic regression": 50.0})
    elif kind == "repeated":
        other = shutil.copytree(run, run.with_name("other")) / "result.json"
        other.write_text(other.read_text().replace("61.0", "61.5"))
    elif kind == "repeated online":
        amend(shutil.copytree(run, run.with_name("other")), offline=None)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("unfinished", "not finished: 2 epochs are done"),
        ("failed", "failed: method=a has diverged in epoch 2"),
        ("half-written", "a file is cut short"),
        ("not a number", "offline kNN: not a number"),
        ("nothing measured", "nothing was measured"),
        ("no metrics", "metrics.csv is missing"),
        ("empty", "a file is cut short"),
        ("no versions", "a file is cut short"),
        ("elsewhere", "an evaluation of weights that are of no run here"),
        ("copied", "a copy of "),
        ("evaluated copy", "other: left out"),
        ("repeated", ", with other figures: left out"),
        ("repeated online", "a copy of "),
    ],
)
def test_what_gives_no_figure_is_listed_with_its_reason_and_the_rest_stands(kind, reason, tmp_path):
    _damage(write_run(tmp_path, "a", 1, 61.0), kind)
    write_run(tmp_path, "b", 1, 62.0)
    found = _of(tmp_path)
    text = markdown(*found)
    assert "| b | 1 | 62.00 |" in text
    assert reason in text
    assert reason in page(*found, "")
    assert ("| a | 1 |" in text) == (
        kind in ("elsewhere", "copied", "evaluated copy", "repeated", "repeated online")
    )


def test_a_folder_without_runs_is_an_error_in_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_every_form_of_the_report_says_the_same(study, capsys):
    assert main(["report", str(study), "--latex", "--title", "Ours & theirs"]) == 0
    printed = capsys.readouterr().out
    folder = study / "report"
    assert (folder / "report.md").read_text().endswith(markdown(*_of(study)))
    assert markdown(*_of(study)).strip() in printed
    (rows,) = [
        table["rows"] for table in json.loads((folder / "report.json").read_text())["tables"]
    ]
    assert [row["label"] for row in rows] == ["best", "close", "worse"]
    spreadsheet = pd.read_csv(folder / "report.csv")
    assert spreadsheet["offline probe"].tolist() == pytest.approx(
        [r["offline probe"] for r in rows]
    )
    tex = (folder / "report.tex").read_text()
    assert tex.count(r"\toprule") == 1
    assert rf"best & 5 & \textbf{{{rows[0]['offline probe']:.2f} $\pm$" in tex
    assert "<title>Ours &amp; theirs</title>" in (folder / "report.html").read_text()
    for picture in ("scores-1", "curves-1"):
        assert (folder / f"{picture}.png").stat().st_size > 5000
        assert "<svg" in (folder / f"{picture}.svg").read_text()
    # A second report does not take the first for a run.
    assert main(["report", str(study)]) == 0


def _of(folder):
    runs, problems = collect(folder)
    return tables(runs), problems


def test_time_is_drawn_of_runs_alone_on_their_machine_only(tmp_path):
    write_run(tmp_path, "a", 1, 50.0, shared=False)
    write_run(tmp_path, "b", 1, 51.0, shared=True)
    resumed = write_run(tmp_path, "c", 1, 52.0, shared=False)
    (resumed / "provenance.json").write_text("[{}, {}]")
    ((table,), _) = _of(tmp_path)
    assert "time" not in figures_of(table)
    write_run(tmp_path, "b", 3, 53.0, shared=False)
    ((table,), _) = _of(tmp_path)
    (axis,) = figures_of(table)["time"].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn == {"a": [[10.0, 50.0]], "b": [[30.0, 53.0]]}


def test_published_rows_stand_beside_whole_data_sets_marked_as_such(tmp_path, capsys):
    write_run(tmp_path / "whole", "vicreg", 1, 95.0)
    shown = markdown(*_of(tmp_path / "whole"))
    assert "published, not run" not in shown, "their figures are online ones"
    assert "Not shown (`--all-measures`): online probe, published rows." in shown
    assert main(["report", str(tmp_path / "whole"), "--all-measures"]) == 0
    row = "| VICReg, ResNet-18, 1000 epochs | - | - | - | 92.07 | published, not run here:"
    assert row in capsys.readouterr().out
    page = (tmp_path / "whole" / "report" / "report.html").read_text()
    assert page.count('<tr class="published"') == 16
    part = write_run(tmp_path / "part", "vicreg", 1, 95.0)
    config = (part / "config.yaml").read_text().replace("dataset:", "fraction: 0.1\n  dataset:")
    (part / "config.yaml").write_text(config)
    assert "published, not run" not in markdown(*_of(tmp_path / "part"), all_measures=True)


def write_evaluation(run, name, rows, epochs=2, rate=0.3, length=100, **data):
    """What `solo-mim linear` or `knn` leaves in a run's folder, of the network after so many
    epochs; `length` are those of the classifier."""
    folder = run / name
    folder.mkdir(parents=True)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= data
    config["pretrain_method"] = config.pop("method")
    measured = [{"classifier": of, "split": SPLIT, "top1": top1} for of, top1 in rows.items()]
    config["max_epochs"] = length
    config["optimizer"] = {"lr": rate}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    result = {"measured": measured, "trained": {"epochs": epochs}}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_evaluations_of_a_run_are_columns_of_their_own(tmp_path, capsys):
    for name, linear in (("a", 70.0), ("b", 71.0)):
        run = write_run(tmp_path, name, 1, 60.0)
        write_evaluation(run, "knn/x-1", {"kNN, cosine": 55.0})
        write_evaluation(run, "linear/x-1", {"logistic regression": linear})
        write_evaluation(run, "linear/other-1", {"logistic regression": 12.0}, dataset="stl10")
    assert main(["report", str(tmp_path), "--all-measures"]) == 0
    (table,) = _of(tmp_path)[0]
    assert table.measures == [
        *("offline probe", "offline kNN", "kNN, cosine (test images)"),
        *("logistic regression (test images)", "logistic regression (test images, dataset=stl10)"),
        "online probe",
    ]
    assert "| a | 1 | 60.00 | 50.00 | 55.00 | 70.00 | 12.00 | 55.00 |" in capsys.readouterr().out
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("evaluation: <code>") == 6


def test_evaluations_that_cannot_be_told_apart_or_read_are_listed(tmp_path):
    run = write_run(tmp_path, "a", 1, 60.0)
    for name, top1 in (("linear/one-1", 70.0), ("linear/two-1", 71.0)):
        write_evaluation(run, name, {"logistic regression": top1})
    (write_evaluation(run, "knn/x-1", {"kNN, cosine": 50.0}) / "result.json").write_text("{")
    (write_evaluation(run, "knn/y-1", {"kNN, cosine": 50.0}) / "result.json").unlink()
    write_evaluation(run, "knn/z-1", {"kNN, euclidean": float("nan")})
    write_evaluation(run, "knn/early-1", {"kNN, early": 50.0}, epochs=1)
    (table,), problems = _of(tmp_path)
    assert table.measures == ["offline probe", "offline kNN", "online probe"]
    reasons = {problem.folder.name: problem.reason for problem in problems}
    assert "is there 2 times; keep one folder" in reasons["one-1"]
    assert "is there 2 times; keep one folder" in reasons["two-1"]
    assert "cut short" in reasons["x-1"]
    assert "not finished" in reasons["y-1"]
    assert "kNN, euclidean (test images): not a number" in reasons["z-1"]
    assert reasons["early-1"] == "of the network after 1 epoch, not 2"


def test_a_sweep_of_linear_layers_names_its_rates_and_ranks_nothing(tmp_path, capsys):
    linear, of = LINEAR_LAYER, "test images, 100 epochs"
    for name, offset in (("a", 0.0), ("b", 1.0)):
        run = write_run(tmp_path, name, 1, 60.0 - offset)
        for rate in (0.1, 0.3) if name == "a" else (0.3,):
            write_evaluation(run, f"linear/{rate}", {linear: 70.0 + rate + offset}, rate=rate)
    assert main(["report", str(tmp_path), "--all-measures"]) == 0
    (table,), problems = _of(tmp_path)
    assert not problems
    assert table.measures == [
        *("offline probe", "offline kNN"),
        *(f"{linear} ({of}, optimizer.lr={rate})" for rate in (0.1, 0.3)),
        "online probe",
    ]
    assert "| a | 1 | 60.00 | 50.00 | 70.10 | 70.30 | 55.00 |" in capsys.readouterr().out


def test_a_sweep_of_linear_layers_leaves_another_table_as_it_was(tmp_path):
    for data in ("cifar10", "cifar100"):
        run = write_run(tmp_path / data, "a", 1, 60.0, dataset=data)
        for rate in (0.1, 0.3) if data == "cifar10" else (0.3,):
            write_evaluation(run, f"linear/{rate}", {LINEAR_LAYER: 70.0 + rate}, rate=rate)
    of = {table.rows[0].runs[0].config["data"]["dataset"]: table for table in _of(tmp_path)[0]}
    assert of["cifar100"].measures[0] == f"{LINEAR_LAYER} (test images, 100 epochs)"
    assert of["cifar10"].measures[0] == "offline probe"


def test_linear_layers_of_two_lengths_do_not_rank(tmp_path):
    run = write_run(tmp_path, "a", 1, 60.0)
    for length in (50, 200):
        write_evaluation(run, f"linear/{length}", {LINEAR_LAYER: 70.0}, length=length)
    (table,), _ = _of(tmp_path)
    assert table.measures[0] == "offline probe"
    lengths = {f"{LINEAR_LAYER} (test images, {length} epochs)" for length in (50, 200)}
    assert lengths < set(table.measures)


def test_linear_layers_of_several_settings_are_said_to_be(tmp_path):
    for name, rate in (("a", 0.1), ("b", 0.1)):
        run = write_run(tmp_path, name, 1, 60.0)
        write_evaluation(run, "linear/x", {LINEAR_LAYER: 70.0}, rate=rate)
    assert "not all" not in _of(tmp_path)[0][0].cite
    run = write_run(tmp_path, "c", 1, 60.0)
    write_evaluation(run, "linear/x", {LINEAR_LAYER: 70.0}, rate=3.0)
    assert "row and seed, not all with the same optimizer.lr; " in _of(tmp_path)[0][0].cite
    crops = {"augmentations": {"crop_size": 64}}
    write_evaluation(write_run(tmp_path, "d", 1, 6.0), "linear/x", {LINEAR_LAYER: 70.0}, **crops)
    keys = "data.augmentations.crop_size, optimizer.lr"
    assert f"not all with the same {keys}; " in _of(tmp_path)[0][0].cite


@pytest.mark.parametrize("split", ["dataset", "rate"])
def test_published_linear_figures_stand_in_no_column_of_another_protocol(tmp_path, split):
    run = write_run(tmp_path, "vicreg", 1, 60.0, dataset="imagenet100")
    amend(run, classes=100)
    for rate in (0.1, 0.3):
        data = {"dataset": "stl10"} if split == "dataset" else {}
        write_evaluation(run, f"linear/{rate}", {LINEAR_LAYER: 70.0 + rate}, rate=rate, **data)
    (table,), _ = _of(tmp_path)
    assert {measure for row in table.published.values() for measure in row} == {"online probe"}
    (chance,) = [one for one in table.references if one.label.startswith("chance")]
    columns = [measure for measure in table.measures if LINEAR_LAYER in measure]
    assert len(columns) == 2
    assert [m in chance.scores for m in columns] == [split == "rate"] * 2


def test_a_figure_that_two_evaluations_give_alike_is_one(tmp_path):
    run = write_run(tmp_path, "a", 1, 60.0)
    for rate in (0.1, 0.3):
        write_evaluation(run, f"linear/{rate}", {"logistic regression": 70.0}, rate=rate)
    (table,), problems = _of(tmp_path)
    assert not problems
    assert table.rows[0].scores["logistic regression (test images)"].mean == 70.0


def test_linear_layers_stand_beside_the_published_ones_of_as_many_epochs(tmp_path, capsys):
    run = write_run(tmp_path, "vicreg", 1, 60.0, dataset="imagenet100")
    write_evaluation(run, "linear/x-1", {"linear layer on augmented images": 70.0})
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "linear layer on augmented images (test images, 100 epochs)" in printed
    assert "| VICReg, ResNet-18, 400 epochs | - | 79.40 | - | - | published" in printed


def test_a_trial_run_is_not_set_beside_published_rows(tmp_path):
    run = write_run(tmp_path, "vicreg", 1, 60.0)
    assert _of(tmp_path)[0][0].published
    with (run / "config.yaml").open("a") as config:
        config.write("limit_train_batches: 10\n")
    assert not _of(tmp_path)[0][0].published


def test_page_holds_the_pictures_of_embeddings(tmp_path):
    run = write_run(tmp_path, "a", 1, 60.0)
    (run / "embed" / "x-1").mkdir(parents=True)
    (run / "embed" / "x-1" / "planes.png").write_bytes(b"picture")
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert 'src="data:image/png;base64,cGljdHVyZQ=="' in page


def test_loss_terms_are_drawn_for_each_row_with_the_range_of_its_seeds(tmp_path):
    for seed in (1, 2):
        for name, terms in (("vicreg", ("sim", "var")), ("simclr", ("nce",))):
            metrics = write_run(tmp_path, name, seed, 50.0) / "metrics.csv"
            frame = pd.read_csv(metrics)
            for term in terms:
                frame[f"train_{term}_loss_epoch"] = [3.0 + seed, 1.0 + seed]
            frame.to_csv(metrics, index=False)
    ((table,), _) = _of(tmp_path)
    drawn = {
        axis.get_title(): {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
        for axis in figures_of(table)["losses"].axes
    }
    assert drawn == {
        "SimCLR": {"nce_loss": [4.5, 2.5]},
        "VICReg": {"sim_loss": [4.5, 2.5], "var_loss": [4.5, 2.5]},
    }


def test_latex_escapes_names(tmp_path):
    write_run(tmp_path, "my_method", 1, 50.0)
    ((table,), _) = _of(tmp_path)
    assert r"my\_method & 1" in latex(table)
    assert _escaped(r"a{b}^~\c") == r"a\{b\}\textasciicircum{}\textasciitilde{}\textbackslash{}c"


# References, the leading rows, names and facts


def add_references(run, untrained, raw=30.0, targets=(0, 1, 2, 3)):
    """What an offline evaluation leaves of the network as it starts and of raw pixels, and of the
    classes of the images."""
    result = json.loads((run / "result.json").read_text())
    result["offline"] |= {
        "untrained": {"probe_top1": untrained, "knn_top1": untrained - 1},
        "raw_pixels": {"probe_top1": None, "knn_top1": raw},
    }
    (run / "result.json").write_text(json.dumps(result))
    pd.DataFrame({"target": targets}).to_csv(run / "predictions.csv", index=False)


def test_references_stand_below_the_rows_and_are_not_ranked(tmp_path):
    for method, probe in (("vicreg", 60.0), ("simclr", 20.0)):
        for seed in (1, 2):  # the network starts alike, whatever trains it
            add_references(write_run(tmp_path, method, seed, probe + seed), 40.0 + seed)
    ((table,), _) = _of(tmp_path)
    assert [row.label for row in table.rows] == ["VICReg", "SimCLR"]
    start, raw, chance = table.references
    assert (start.label, start.seeds) == ("untrained network", 2)
    assert start.scores["offline probe"].by_seed == {1: 41.0, 2: 42.0}
    assert (raw.scores["offline kNN"].mean, raw.scores["offline kNN"].deviation) == (30.0, None)
    assert {m: score.mean for m, score in chance.scores.items()} == dict.fromkeys(
        ("offline probe", "offline kNN", "online probe"), 25.0
    )
    text = markdown([table], [])
    assert "| *untrained network* | 2 | 41.50 ± 0.71 | 40.50 ± 0.71 | reference, not" in text
    assert "| *raw pixels* | - | - | 30.00 | reference, not ranked |" in text
    assert "| *chance, 4 classes* | - | 25.00 | 25.00 | reference, not ranked |" in text
    assert text.index("| SimCLR") < text.index("untrained"), "below a row that is worse"
    _, below = latex(table).split("SimCLR")
    assert below.index(r"\midrule") < below.index("untrained network & 2 & 41.50")
    html = page([table], [], "")
    references = html[html.index('<tbody class="references">') :].split("</tbody>")[0]
    assert re.findall(r"<td>([\w ,]+)</td>", references) == [r.label for r in table.references]


def test_references_stand_in_the_picture_with_an_arrow_where_they_are_far(tmp_path):
    for seed in (1, 2):
        add_references(write_run(tmp_path, "vicreg", seed, 60.0 + seed), 60.0)
    ((table,), _) = _of(tmp_path)
    probe, kNN = figures_of(table)["scores"].axes
    labels = [label.get_text() for label in probe.get_yticklabels()]
    assert labels == ["VICReg", "untrained network", "raw pixels", "chance, 4 classes"]
    (diamond,) = (line for line in probe.lines if line.get_marker() == "D")
    assert diamond.get_xdata().tolist() == [60.0]
    assert [text.get_text() for text in probe.texts] == ["◂ 25.0"]
    assert [text.get_text() for text in kNN.texts] == ["59.0 ▸", "◂ 30.0", "◂ 25.0"]


def test_chance_on_uneven_classes_is_the_most_frequent_one(tmp_path):
    add_references(write_run(tmp_path, "vicreg", 1, 60.0), 40.0, targets=[0] * 8 + [1, 2])
    ((table,), _) = _of(tmp_path)
    chance = table.references[-1]
    assert chance.label == "always the most frequent class"
    assert chance.scores["offline probe"].mean == 80.0


def test_every_backbone_has_its_untrained_network(tmp_path):
    for width in (32, 64):
        run = write_run(tmp_path / str(width), "vicreg", 1, 60.0)
        add_references(run, float(width))
        with (run / "config.yaml").open("a") as config:
            config.write(f"backbone: {{name: small_cnn, kwargs: {{widths: [16, {width}]}}}}\n")
    ((table,), _) = _of(tmp_path)
    found = {one.label: one.scores.get("offline probe") for one in table.references}
    assert found["untrained network (widths[1]=32)"].mean == 32.0
    assert found["untrained network (widths[1]=64)"].mean == 64.0


def test_what_the_test_does_not_tell_from_the_highest_is_marked_in_every_form(study):
    ((table,), problems) = _of(study)
    assert [row.leading for row in table.rows] == [True, True, False]
    *first, worse = (f"{row.scores['offline probe'].mean:.2f}" for row in table.rows)
    leading = list(zip(("best", "close"), first, strict=True))
    text = markdown([table], problems)
    assert re.findall(r"\| (\w+) \| 5 \| \*\*(\S+) ±", text) == leading
    assert f"| worse | 5 | {worse} ±" in text
    tex = latex(table)
    assert re.findall(r"(\w+) & 5 & \\textbf{(\S+) ", tex) == leading
    marked = re.findall(r'<tr class="row leading" data-text="(\w+)', page([table], [], ""))
    assert marked == ["best", "close"]
    said = "Bold: the highest mean and every row that the test does not find behind it"
    assert said in text
    assert said in tex.split(r"\caption")[1].split(r"\label{tab:cifar-10}")[0]
    assert "Holm for 3 pairs tested" in tex
    assert "best & 5 &" in tex
    assert re.search(r"worse & 5 & .* & \$<\$ 0\.001 \\\\\n", tex), "its p"
    (axis, _) = figures_of(table)["scores"].axes
    weights = {label.get_text(): label.get_fontweight() for label in axis.get_yticklabels()}
    assert weights == {"best": "bold", "close": "bold", "worse": "normal"}


def test_nothing_is_marked_where_nothing_is_tested(tmp_path):
    for method in ("vicreg", "simclr"):
        write_run(tmp_path, method, 1, 60.0)
    ((table,), problems) = _of(tmp_path)
    for text in (markdown([table], problems), latex(table), page([table], problems, "")):
        assert "Nothing is bold: no row shares two seeds" in text
    assert "**" not in markdown([table], problems)
    assert "textbf" not in latex(table)
    assert '"row leading"' not in page([table], problems, "")


@pytest.mark.parametrize("complete", [True, False])
def test_a_linear_layer_ranks_where_every_run_has_it(tmp_path, complete):
    linear = "linear layer on augmented images"
    for method, probe, top1 in (("vicreg", 60.0, 70.0), ("simclr", 61.0, 65.0)):
        for seed in (1, 2):
            run = write_run(tmp_path, method, seed, probe)
            if complete or seed == 1:
                write_evaluation(run, "linear/x-1", {linear: top1})
    ((table,), _) = _of(tmp_path)
    of_protocol = ["offline probe", "offline kNN"]
    name = f"{linear} (test images, 100 epochs)"
    assert table.main == ([name, *of_protocol] if complete else of_protocol)
    assert [row.label for row in table.rows] == sorted(["VICReg", "SimCLR"], reverse=complete)
    assert name in table.measures
    assert f"Cite the {table.main[0]}, by which rows are ranked" in markdown([table], [])


def test_hidden_figures_on_another_data_set_are_named_together(tmp_path):
    run = write_run(tmp_path, "vicreg", 1, 60.0)
    shares = (f"transfer to flowers, {share} % of labels: kNN" for share in (1, 10, 100))
    write_evaluation(run, "transfer/x-1", dict.fromkeys(shares, 55.0))
    ((table,), _) = _of(tmp_path)
    said = "(`--all-measures`): online probe, transfer to flowers, published rows."
    assert said in markdown([table], [])
    assert "1 % of labels" in markdown([table], [], all_measures=True)


def test_figures_that_are_not_the_protocols_are_behind_a_switch(tmp_path):
    run = write_run(tmp_path, "vicreg", 1, 60.0)
    write_evaluation(run, "knn/x-1", {"kNN, cosine": 55.0})
    ((table,), _) = _of(tmp_path)
    others = ("kNN, cosine (test images)", "online probe")
    assert "| row | seeds | offline probe | offline kNN | verdict |" in markdown([table], [])
    assert f"(`--all-measures`): {', '.join(others)}, published rows." in markdown([table], [])
    html = page([table], [], "")
    before, behind = html.split('<details class="all">')
    for other in others:
        assert f"| {other} |" in markdown([table], [], all_measures=True)
        assert f"& {other} &" in latex(table, all_measures=True)
        assert f"& {other} &" not in latex(table)
        assert f"<button>{other}</button>" not in before
        assert f"<button>{other}</button>" in behind.split("</details>")[0]


def test_every_method_that_ships_has_its_name():
    recipes = {path.stem for path in (CONFIG_FOLDER / "method").glob("*.yaml")}
    assert {*recipes, *OUR_METHODS, *host_methods()} <= set(names.METHODS)


def test_a_row_is_its_method_and_what_tells_it_from_others_of_that(tmp_path):
    for lr, name in ((0.1, "vicreg-custom"), (0.2, "mine")):
        write_run(tmp_path / name, "vicreg", 1, 50 + lr, lr=lr, momentum=None)
    write_run(tmp_path, "simclr", 1, 40.0, lr=0.3)
    ((table,), _) = _of(tmp_path)
    assert [row.label for row in table.rows] == ["VICReg (lr=0.2)", "VICReg (lr=0.1)", "SimCLR"]
    settings = [{"optimizer.name": "sgd", "a.lr": 1}, {"optimizer.name": "lars", "b.lr": 1}]
    assert names.told_apart(["x", "x"], settings) == [
        "x (a.lr=1, optimizer.name=sgd)",
        "x (b.lr=1, optimizer.name=lars)",
    ]


def test_what_most_namesakes_share_is_said_of_the_others_alone():
    settings = [{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 3}, {"b": 4}, {"a": 1, "b": 5}]
    assert names.told_apart(["x"] * 5, settings) == [
        *("x (b=1)", "x (b=2)", "x (a=2, b=3)", "x (a=None, b=4)", "x (b=5)")
    ]


def test_what_not_all_rows_share_of_network_and_epochs_is_said_of_every_row(tmp_path):
    for method, backbone in (("vicreg", "resnet18"), ("simclr", "resnet50")):
        with (write_run(tmp_path, method, 1, 50.0) / "config.yaml").open("a") as config:
            config.write(f"backbone: {{name: {backbone}}}\nmax_epochs: 2\n")
    ((table,), _) = _of(tmp_path)
    assert {row.label for row in table.rows} == {
        "VICReg (backbone.name=resnet18)",
        "SimCLR (backbone.name=resnet50)",
    }
    assert table.facts["Backbone"] == "ResNet-18, ResNet-50"


def test_a_table_says_of_what_it_is_and_no_path(tmp_path):
    path = "/somewhere/birds/train"
    for seed in (1, 2, 3, 7):
        run = write_run(tmp_path, "vicreg", seed, 50.0, dataset="custom", path=path)
        add_references(run, 40.0)
        commit = f"{'0123456789abcdef' * 3}"[:40] + "+" * (seed == 7)
        amend(run, training_images=12345, classes=5, commit=commit)
    ((table,), problems) = _of(tmp_path)
    assert table.title == "birds"
    assert table.facts == {
        "Images": "12,345 for training, 4 evaluated (test images)",
        **{"Classes": "5", "Epochs": "2", "Seeds": "1\u20133, 7"},
        "Commit": "0123456789, 0123456789+",
    }
    for text in (markdown([table], problems), latex(table), page([table], problems, "")):
        assert "12,345 for training, 4 evaluated (test images)" in text
    assert path not in markdown([table], problems)
    assert path not in re.sub(r"<pre>.*?</pre>", "", page([table], problems, ""), flags=re.S)


def test_titles_are_never_alike(tmp_path):
    for place in ("/one/birds", "/two/birds"):
        name = place.strip("/").replace("/", "-")
        write_run(tmp_path, name, 1, 50.0, dataset="custom", path=place)
        write_run(tmp_path, name, 2, 50.0, dataset="custom", path=place, fingerprint=name)
        write_run(tmp_path, name, 3, 50.0, dataset="custom", path=place, split="validation split")
    found = [table.title for table in _of(tmp_path)[0]]
    assert len(set(found)) == len(found) == 4
    assert all(title.startswith("birds") and "/" not in title for title in found)


def test_what_is_expected_and_has_not_finished_is_named(tmp_path, capsys):
    write_run(tmp_path, "vicreg", 1, 50.0, lr=1e-3)
    failed = write_run(tmp_path, "simclr", 1, 50.0, lr=1e-3)
    _damage(failed, "failed")
    runs, _ = collect(tmp_path)
    assert missing(["vicreg", "simclr"], runs) == ["method=simclr"]
    assert missing(["method=vicreg,simclr", "optimizer.lr=1e-3", "seed=1,2"], runs) == [
        "method=vicreg optimizer.lr=1e-3 seed=2",
        "method=simclr optimizer.lr=1e-3 seed=1",
        "method=simclr optimizer.lr=1e-3 seed=2",
    ]
    assert missing(["data=cifar10,stl10"], runs) == ["data=stl10"]
    assert missing(["data.train_path=null"], runs) == []
    assert main(["report", str(tmp_path), "--expect", "vicreg", "byol"]) == 0
    assert "without a finished run\n\n- method=byol\n" in capsys.readouterr().out
    folder = tmp_path / "report"
    assert json.loads((folder / "report.json").read_text())["missing"] == ["method=byol"]
    assert "<code>method=byol</code>" in (folder / "report.html").read_text()
    assert main(["report", str(tmp_path), "--expect", "sed=1"]) == 2
    assert (
        "--expect: no run has the key sed; give keys of its config.yaml" in capsys.readouterr().err
    )


def test_a_folder_with_a_failure_alone_is_listed_with_it(tmp_path):
    (tmp_path / "byol-seed1-0123abcd").mkdir()
    (tmp_path / "byol-seed1-0123abcd" / "failure.txt").write_text("no space left\n")
    assert [problem.reason for problem in collect(tmp_path)[1]] == ["failed: no space left"]


def test_figures_of_runs_from_before_there_were_references_are_read(tmp_path):
    run = write_run(tmp_path, "vicreg", 1, 50.0)
    for offline in ({}, {"untrained": None, "raw_pixels": {"knn_top1": float("nan")}}):
        result = json.loads((run / "result.json").read_text())
        result["offline"] = {"trained": result["offline"]["trained"], **offline}
        (run / "result.json").write_text(json.dumps(result))
        ((table,), problems) = _of(tmp_path)
        assert (table.references, problems) == ([], [])


def test_pictures_of_the_page_take_its_colours_and_epochs_are_whole(tmp_path):
    run = write_run(tmp_path, "vicreg", 1, 50.0)
    add_references(run, 40.0)
    ((table,), _) = _of(tmp_path)
    (panel,) = panels_of(table)["curves"]
    picture = svg(panel)
    assert 'fill="currentColor"' in picture.split(">")[0]
    assert not re.search(r"#000000|#ffffff|DejaVu|<text[^>]*fill: #", picture)
    (axis,) = figures_of(table)["curves"].axes
    low, high = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
    assert ticks == [1, 2]


def test_names_of_rows_do_not_collide_in_a_picture(tmp_path):
    long = {f"option_{number}": 1.0 for number in range(8)}
    for row in range(4):
        settings = {key: value + row for key, value in long.items()}
        write_run(tmp_path / str(row), "vicreg", 1, 50.0 + row, **settings)
    ((table,), _) = _of(tmp_path)
    figure = figures_of(table)["scores"]
    figure.canvas.draw()
    for axis in figure.axes:
        for labels in (axis.get_yticklabels(), axis.get_xticklabels()):
            boxes = [label.get_window_extent() for label in labels if label.get_visible()]
            apart = [not a.overlaps(b) for a, b in pairwise(boxes)]
            assert all(apart)


def test_the_same_runs_give_the_same_bytes(tmp_path):
    for method in ("vicreg", "simclr"):
        add_references(write_run(tmp_path / "runs", method, 1, 60.0, shared=False), 40.0)
    contents = []
    for output in ("one", "two"):
        folder = tmp_path / output
        assert main(["report", str(tmp_path / "runs"), "--output", str(folder), "--latex"]) == 0
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    assert {"report.html", "time-1.svg", "curves-1.png"} <= set(contents[0])


# In a browser

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture
def browse(study):
    """The page's DOM as a browser without network has it after its scripts ran, by address."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    assert main(["report", str(study)]) == 0
    page = study / "report" / "report.html"

    def dom(state="", page=page, width=800):
        done = subprocess.run(
            [
                *(
                    CHROMIUM,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--virtual-time-budget=2000",
                ),
                *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--dump-dom"),
                f"--window-size={width},900",
                f"file://{page}{state}",
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Uncaught" not in done.stderr, done.stderr
        return done.stdout

    return dom


def _rows(dom):
    """(label, hidden) of the rows in the order in which they are shown."""
    return [
        (re.search(r'data-text="(\w+)', tag)[1], "hidden" in tag)
        for tag in re.findall(r'<tr class="row[^>]*>', dom)
    ]


def test_page_shows_the_ranking_and_needs_no_network(browse, study):
    dom = browse()
    assert _rows(dom) == [("best", False), ("close", False), ("worse", False)]
    page = (study / "report" / "report.html").read_text()
    assert not re.search(
        r'(src|href)="?(https?:)?//', re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    )
    assert dom.count("<svg") == 3  # two measures, one curve
    assert "commit <code>abc123</code>" in dom


def test_page_sorts_and_filters_by_its_address(browse):
    assert [label for label, _ in _rows(browse("#s1=2"))] == ["worse", "close", "best"]
    assert [label for label, _ in _rows(browse("#s1=-0"))] == ["worse", "close", "best"]
    assert _rows(browse("#f1=clo")) == [("best", True), ("close", False), ("worse", True)]


def test_page_of_500_pixels_scrolls_its_tables_and_not_itself(browse, study):
    page = study / "report" / "report.html"
    script = (
        "<script>document.querySelectorAll('details').forEach(one => one.open = true);"
        "const of = one => `${one.scrollWidth - one.clientWidth} `;"
        "document.title = of(document.documentElement) +"
        "[...document.querySelectorAll('.scroll')].map(of).join('')</script>"
    )
    probe = page.with_name("probe.html")
    probe.write_text(page.read_text() + script)
    (beyond,) = re.findall("<title>(.*?) </title>", browse(page=probe, width=500))
    whole, *boxes = map(int, beyond.split())
    assert whole == 0
    assert max(boxes) > 0, "what is wide is in a box of its own"
