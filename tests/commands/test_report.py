"""The report: known runs, what is broken, and the page in a real browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import yaml

from solo_mim.commands import main
from solo_mim.evaluation.compare import tables
from solo_mim.evaluation.report import _escaped, figures_of, latex, markdown
from solo_mim.runs.collect import collect

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
    assert best.verdict == "best"
    assert close.verdict.startswith("not distinguishable from the best")
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
        "I(z; image) >=, nats": 21.0,  # less chance; that of two views is not told from it
        **{"effective rank": 60.0, "RankMe": 55.0, "LiDAR": 50.0, "alpha-ReQ": 0.4},
        "dimensions": 64.0,
        **{"distance from a Gaussian": 8e-4, "radial distance": 0.75},
    }
    assert not byol.diagnostics
    assert "| infomax | 21 | 60 | 55 | 50 | 0.4 | 64 | 0.0008 | 0.75 |" in markdown([table], [])
    assert f"| byol |{8 * ' - |'}" in markdown([table], [])
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert '<td class="number">0.0008</td>' in (tmp_path / "out" / "report.html").read_text()
    records = json.loads((tmp_path / "out" / "report.json").read_text())["tables"][0]["rows"]
    assert [record["z: radial distance"] for record in records] == [0.75, None]


def test_runs_of_other_settings_are_rows_of_their_own_that_name_them(tmp_path):
    for lr in (0.1, 0.2):
        write_run(tmp_path / str(lr), "vicreg", 1, 50 + lr, lr=lr)
    (table,) = tables(collect(tmp_path)[0])
    assert [row.label for row in table.rows] == [
        "vicreg (optimizer.lr=0.2)",
        "vicreg (optimizer.lr=0.1)",
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
        path = write_evaluation(run, "knn/x-1", {"kNN, cosine": 55.0}) / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "code": code}))
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


def test_the_first_is_best_only_where_every_other_row_was_tested(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path, "a", seed, 60.0 + seed)
        write_run(tmp_path, "b", seed, 50.0 + 2 * seed)
    write_run(tmp_path, "c", 1, 40.0)
    (table,) = tables(collect(tmp_path)[0])
    assert [row.verdict.partition(" ")[0] for row in table.rows] == ["highest", "behind", "not"]


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
    assert ([row.label for row in first.rows], first.title) == (["a", "b"], "cifar10")
    assert ([row.label for row in second.rows], second.title) == (["c"], "fashion_mnist")


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
        path = folder / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": fingerprint}))
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
    elif kind == "repeated":
        other = shutil.copytree(run, run.with_name("other")) / "result.json"
        other.write_text(other.read_text().replace("61.0", "61.5"))


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
        ("repeated", ", with other figures: left out"),
    ],
)
def test_what_gives_no_figure_is_listed_with_its_reason_and_the_rest_stands(
    kind, reason, tmp_path, capsys
):
    _damage(write_run(tmp_path, "a", 1, 61.0), kind)
    write_run(tmp_path, "b", 1, 62.0)
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| b | 1 | 62.00 |" in printed
    assert reason in printed
    assert reason in (tmp_path / "report" / "report.html").read_text()
    assert ("| a | 1 |" in printed) == (kind in ("elsewhere", "copied", "repeated"))


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
    assert rf"best & \textbf{{{rows[0]['offline probe']:.2f} $\pm$" in tex
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
    assert main(["report", str(tmp_path / "whole")]) == 0
    row = "| vicreg, resnet18, 1000 epochs | - | - | - | 92.07 | published, not run here:"
    assert row in capsys.readouterr().out
    page = (tmp_path / "whole" / "report" / "report.html").read_text()
    assert page.count('<tr class="published"') == 16
    part = write_run(tmp_path / "part", "vicreg", 1, 95.0)
    config = (part / "config.yaml").read_text().replace("dataset:", "fraction: 0.1\n  dataset:")
    (part / "config.yaml").write_text(config)
    assert main(["report", str(tmp_path / "part")]) == 0
    assert "published, not run" not in capsys.readouterr().out


def write_evaluation(run, name, rows, epochs=2, **data):
    """What `solo-mim linear` or `knn` leaves in a run's folder, of the network after so many
    epochs."""
    folder = run / name
    folder.mkdir(parents=True)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= data
    measured = [{"classifier": of, "split": SPLIT, "top1": top1} for of, top1 in rows.items()]
    config["max_epochs"] = 100
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
    assert main(["report", str(tmp_path)]) == 0
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


def test_linear_layers_stand_beside_the_published_ones_of_as_many_epochs(tmp_path, capsys):
    run = write_run(tmp_path, "vicreg", 1, 60.0, dataset="imagenet100")
    write_evaluation(run, "linear/x-1", {"linear layer on augmented images": 70.0})
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "linear layer on augmented images (test images, 100 epochs)" in printed
    assert "| vicreg, resnet18, 400 epochs | - | - | - | 79.40 | 79.22 |" in printed


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
        "simclr": {"nce_loss": [4.5, 2.5]},
        "vicreg": {"sim_loss": [4.5, 2.5], "var_loss": [4.5, 2.5]},
    }


def test_latex_escapes_names(tmp_path):
    write_run(tmp_path, "barlow_twins", 1, 50.0)
    ((table,), _) = _of(tmp_path)
    assert r"barlow\_twins" in latex(table)
    assert _escaped(r"a{b}^~\c") == r"a\{b\}\textasciicircum{}\textasciitilde{}\textbackslash{}c"


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

    def dom(state=""):
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
    assert dom.count("<svg") == 2
    assert "commit <code>abc123</code>" in dom


def test_page_sorts_and_filters_by_its_address(browse):
    assert [label for label, _ in _rows(browse("#s1=2"))] == ["worse", "close", "best"]
    assert [label for label, _ in _rows(browse("#s1=-0"))] == ["worse", "close", "best"]
    assert _rows(browse("#f1=clo")) == [("best", True), ("close", False), ("worse", True)]
