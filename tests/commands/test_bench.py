"""The benchmark measures what it says: every loss, with its gradient, and its memory."""

import json

import pytest
import torch

from solo_mim import benchmarks as bench
from solo_mim.commands import main


def test_bench_writes_table_data_and_picture(tmp_path, capsys):
    arguments = ["bench", "loss", "-N", "8", "16", "-D", "4", "32", "--repeats", "3"]
    assert main([*arguments, "--threads", "1", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "loss.json").read_text())
    names = {row["loss"] for row in found["rows"]}
    assert names == {*bench.losses(4), "matrix products"}
    assert {"explicit_mim", "vicreg", "barlow_twins", "simclr", "corinfomax", "lejepa"} <= names
    assert len(found["rows"]) == 4 * len(names)
    for row in found["rows"]:
        assert 0 < row["ms_low"] <= row["ms"] <= row["ms_high"]
        if row["loss"] == "explicit_mim":
            assert row["explicit_mim_over_this"] == 1
    table = (tmp_path / "loss.md").read_text()
    assert table in capsys.readouterr().out
    assert len(table.splitlines()) == 2 + 4
    assert (tmp_path / "loss.png").stat().st_size > 5000


def test_bench_step_compares_whole_steps_with_one_of_a_trivial_loss(tmp_path, capsys):
    arguments = ["bench", "step", "-N", "8", "-D", "4", "--repeats", "3"]
    arguments += ["--backbones", "small_cnn", "--threads", "1", "--output", str(tmp_path)]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert {row["loss"] for row in rows} == {*bench.losses(4), bench.TRIVIAL}
    capsys.readouterr()
    assert main([*arguments, "--precision", "bf16-mixed", "--losses", "vicreg"]) == 0
    half = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [(row["loss"], row["precision"]) for row in half] == [
        (bench.TRIVIAL, "bf16-mixed"),
        ("vicreg", "bf16-mixed"),
    ]
    for row in [*rows, *half]:
        assert row["peak_mib"] > 0
        assert 0 < row["low"] <= row["over_trivial"] <= row["high"]
        if row["loss"] == bench.TRIVIAL:
            assert row["over_trivial"] == 1
    assert (tmp_path / "step.md").read_text() in capsys.readouterr().out


def test_bench_data_compares_both_pipelines(tmp_path, capsys):
    arguments = ["bench", "data", "--crop-sizes", "32", "--repeats", "2", "--threads", "1"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "data.json").read_text())["rows"]
    beside_host = [row["augmentations"] for row in rows if row["beside"] == "the host"]
    assert beside_host == bench.DATA_PIPELINES
    try:
        import nvidia.dali  # noqa: F401
    except ModuleNotFoundError:
        expected = 0
    else:
        expected = 1
    assert sum(row["beside"].startswith("DALI") for row in rows) == expected
    assert sum(row["beside"].startswith("torch") for row in rows) == 1
    for row in rows:
        assert row["low"] <= row["faster"] <= row["high"]
        assert row["ours_views_per_second"] > 100
        assert row["host_views_per_second"] > 100
    assert (tmp_path / "data.md").read_text() in capsys.readouterr().out


def test_median_ratio_is_within_its_interval_and_knows_no_doubt_of_constants():
    assert bench.median_ratio([2.0, 4.0], [1.0, 2.0]) == (2.0, 2.0, 2.0)
    middle, low, high = bench.median_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert (middle, low, high) == (3.0, pytest.approx(1.5, abs=0.5), pytest.approx(4.5, abs=0.5))


def test_peak_memory_is_that_of_the_largest_moment():
    def step():
        for _ in range(3):  # freed again each time
            torch.ones(1024, 1024) + 1

    assert bench.peak_memory(step, torch.device("cpu")) == pytest.approx(8, abs=0.1)  # two of 4 MiB


@pytest.mark.parametrize("name", bench.losses(4))
def test_every_measured_loss_has_a_gradient_in_both_views(name):
    views = bench._views(16, 4, torch.device("cpu"))
    bench._step(bench.losses(4)[name], views)()
    assert all(view.grad.abs().sum() > 0 for view in views)


@pytest.mark.parametrize("wrong", [["-N", "1"], ["--repeats", "0"], ["-D", "0"]])
def test_bench_refuses_sizes_without_a_loss(wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "loss", *wrong])
    assert stopped.value.code == 2
    assert "must be at least" in capsys.readouterr().err


def test_a_step_that_does_not_fit_is_said_and_left_out(monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(bench, "measure_steps", full)
    found = bench.Benchmark("step", 1, 1, "cpu")
    found.run([32], [8], [4], ["32-true"], ["small_cnn"], [])
    assert found.rows == []
    said = "small_cnn, 32 px, N = 8, D = 4, 32-true: does not fit into memory"
    assert said in capsys.readouterr().out


def test_an_unknown_loss_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "step", "--losses", "vicregg"])
    assert "--losses: unknown loss 'vicregg'; did you mean 'vicreg'" in capsys.readouterr().err
