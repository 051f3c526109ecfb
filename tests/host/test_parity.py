"""The two generations side by side, each in a process of its own: same weights, same batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("parity_worker.py")


def _run(out, *arguments, pythonpath=None):
    environment = dict(os.environ)
    if pythonpath:
        environment["PYTHONPATH"] = str(pythonpath)
    command = [sys.executable, str(WORKER), str(out), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out, weights_only=True)


def test_both_hosts_train_alike(solo_learn_main, tmp_path):
    released = _run(tmp_path / "released.pt")
    current = _run(tmp_path / "current.pt", tmp_path / "released.pt", pythonpath=solo_learn_main)
    assert (released["generation"], current["generation"]) == ("released", "current")
    keys = [key for key in released if key not in ("generation", "start")]
    assert len(keys) == 5 * 3
    for key in keys:
        ours, theirs = released[key], current[key]
        assert ours["steps"] == theirs["steps"] == 20
        assert ours["loss"][0] == pytest.approx(theirs["loss"][0], rel=1e-5, abs=1e-5), key
        assert len(ours["rates"]) == 20
        for step, (a, b) in enumerate(zip(ours["rates"], theirs["rates"], strict=True)):
            assert a == pytest.approx(b, rel=1e-6), f"{key}: learning rate at step {step}"
        assert ours["weights"].keys() == theirs["weights"].keys()
        for name, weight in ours["weights"].items():
            torch.testing.assert_close(
                weight,
                theirs["weights"][name],
                rtol=1e-5,
                atol=1e-6,
                msg=lambda m, n=name, k=key: f"{k} {n}: {m}",
            )
