"""The commands as functions, and the notebook that shows them."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

import solo_mim
from solo_mim.errors import ConfigError

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "examples" / "head_to_head.ipynb").read_text())
SMALL = {
    **{"limit_train_batches": 2, "limit_val_batches": 1, "data.num_workers": 0},
    **{"data.fraction": 0.1, "data.validation_split": 0.2, "optimizer.batch_size": 64},
    **{"method_kwargs.proj_hidden_dim": 16, "method_kwargs.proj_output_dim": 8},
    **{"backbone.kwargs.widths": [8, 16, 32, 64]},
}


def test_the_package_is_imported_without_what_trains():
    code = "import sys, solo_mim; print(sorted({'torch', 'pandas', 'hydra'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert set(solo_mim.__all__) == {"knn", "linear", "pretrain", "report"}
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        solo_mim.pretrian  # noqa: B018


@pytest.fixture(scope="module")
def notebook(tmp_path_factory) -> dict:
    """The names of the notebook after all its cells, run in small; what each cell shows under
    `shown`."""
    settings = {"EPOCHS = 16": "EPOCHS = 1", "SETTINGS = {}": f"SETTINGS = {SMALL!r}"}
    names: dict = {"shown": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("it's a=notebook"))
        patch.setattr(sys, "argv", ["ipykernel"])
        matplotlib.use("agg")
        for cell in NOTEBOOK["cells"]:
            if cell["cell_type"] != "code":
                continue
            source = "".join(cell["source"])
            for written, small in settings.items():
                source = source.replace(written, small)
            *body, last = ast.parse(source).body
            if not isinstance(last, ast.Expr):
                body, last = [*body, last], None
            exec(compile(ast.Module(body, []), "notebook", "exec"), names)
            if last is not None:
                shown = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
                names["shown"].append(shown)
    return names


def test_the_notebook_is_kept_without_outputs():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert [cell["outputs"] for cell in cells] == [[]] * len(cells)
    assert {cell["execution_count"] for cell in cells} == {None}


def test_the_notebook_trains_compares_and_evaluates(notebook):
    accuracies, report, _, linear, knn = notebook["shown"]
    runs = notebook["runs"]
    assert {method for method, _ in runs} == {"explicit_mim", "vicreg", "simclr"}
    assert all(0 < of["probe_top1"] <= 100 for of in accuracies.values())
    for run in runs.values():
        assert str(run).startswith(run.result["method"])
        assert run.online["knn_top1"] == pytest.approx(run.metrics["val_knn_acc1"].iloc[-1])
    (table,) = report.tables.values()
    assert len(table) == 3
    assert table["offline probe n"].tolist() == [2, 2, 2]
    page = report._repr_html_()
    assert "offline probe sd" in page
    assert "code" not in page
    assert linear["classifier"].tolist() == ["logistic regression"]
    assert knn["classifier"].tolist() == ["kNN, cosine", "kNN, euclidean"]


def test_every_setting_arrives(notebook, tmp_path):
    run = next(iter(notebook["runs"].values()))
    with pytest.raises(ConfigError, match=r"data\.train_path: "):
        solo_mim.pretrain(data="image_folder", train_path=tmp_path / "it's=here", settings=SMALL)
    with pytest.raises(ConfigError, match=r"unknown key 'method_kwargs\.within'"):
        solo_mim.pretrain("vicreg", method_kwargs={"within": None}, settings=SMALL)
    with pytest.raises(ConfigError, match="there is no such folder"):
        solo_mim.report(tmp_path / "x")
    report = solo_mim.report(run, output=tmp_path / "report")
    assert tmp_path / "report" / "report.html" in report.written
