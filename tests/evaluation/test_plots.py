"""Pictures show what was measured, and are left out where nothing was."""

import subprocess
import sys

import pandas as pd
import pytest

from solo_mim.evaluation import plots

FRAME = pd.DataFrame(
    {
        "epoch": [0, 1, 2],
        "train_explicit_mim_total_epoch": [0.1, 0.2, 0.3],
        "train_class_loss_epoch": [2.0, 1.0, 0.5],
        "val_acc1": [10.0, None, 30.0],
    }
)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """plot_curves, and the figure that it would have saved."""
    figures = []
    monkeypatch.setattr(plots.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))

    def draw(metrics):
        plots.plot_curves(metrics, tmp_path / "curves.png")
        return figures[0] if figures else None

    return draw


def test_import_leaves_the_callers_backend_and_figures_alone():
    script = (
        "import sys, matplotlib; matplotlib.use('svg'); import solo_mim.evaluation.report; "
        "print(matplotlib.get_backend(), 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["svg", "False"]


def test_loss_terms_and_each_measured_epoch_are_shown(drawn):
    terms, accuracy = drawn(FRAME).axes
    assert [line.get_label() for line in terms.lines] == ["explicit_mim_total"]
    assert accuracy.get_ylabel() == "online probe, top-1 (%)"
    (line,) = accuracy.lines
    assert line.get_xdata().tolist() == [1, 3]
    assert line.get_ydata().tolist() == [10.0, 30.0]


def test_nothing_measured_draws_nothing(drawn, tmp_path):
    assert drawn(pd.DataFrame({"epoch": [0]})) is None
    assert not (tmp_path / "curves.png").exists()
