"""`solo-mim runs`: every run below a folder, whatever has become of it."""

import shutil
import threading

import pytest

from solo_mim.runs import files
from solo_mim.runs.listing import listed, row_of
from solo_mim.runs.lock import FolderLock


@pytest.fixture
def runs(toy_run, tmp_path):
    """Copies of the toy run in every state, by the state."""
    made = {}
    for state, seed in (("finished", 1), ("failed", 2), ("stopped", 3), ("damaged", 4)):
        folder = tmp_path / "runs" / f"toy-seed{seed}-0123456{seed}"
        made[state] = shutil.copytree(toy_run, folder)
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("seed: 3\n", f"seed: {seed}\n"))
    for state in ("failed", "stopped"):
        (made[state] / "result.json").unlink()
    (made["failed"] / "failure.txt").write_text("the loss is not finite")
    (made["damaged"] / "result.json").write_text('{"cut')
    (made["stopped"] / "metrics.csv").unlink()
    shutil.copytree(toy_run, made["finished"] / "knn" / "photo_patches-01234567")  # its evaluation
    shutil.copytree(toy_run, tmp_path / "evaluations" / "photo_patches-01234567")
    (tmp_path / "evaluations" / "photo_patches-01234567" / "metrics.csv").unlink()
    return made


def table(said):
    """State -> its row, by column."""
    assert said.code == 0, said
    head, *rows = [line.split() for line in said.out.split("\n\n")[0].splitlines()]
    return {row[4]: row for row in rows} | {"": head}


def test_every_run_is_a_row_with_its_state(runs, tmp_path, solo_mim):
    said = solo_mim("runs", tmp_path)
    shown = table(said)
    assert shown.pop("")[:7] == ["method", "data", "seed", "epochs", "state", "probe", "kNN"]
    assert set(shown) == set(runs)
    for state, row in shown.items():
        assert row[0:2] == ["explicit_mim", "photo_patches"]
        assert row[2] == str(runs[state])[-1]
        assert row[3] == ("0/1" if state == "stopped" else "1/1")
        assert row[-1] == str(runs[state])
    assert [0 <= float(value) <= 100 for value in shown["finished"][5:7]] == [True, True]
    assert f"{runs['failed']}: the loss is not finite" in said.out
    assert f"{runs['damaged']}: {runs['damaged']}/result.json is damaged" in said.out
    assert "4 runs (1 finished, 1 failed, 1 stopped, 1 damaged), " in said.out


def test_a_run_that_a_process_works_on_is_running(runs, tmp_path, solo_mim):
    with FolderLock(runs["stopped"]) as lock:
        lock.acquire()
        assert set(table(solo_mim("runs", tmp_path / "runs"))) == {*runs, "running", ""} - {
            "stopped"
        }
    assert "stopped" in table(solo_mim("runs", tmp_path / "runs"))


def test_a_run_that_begins_while_it_is_looked_at_is_running(runs, monkeypatch):
    read = files.read_yaml
    with FolderLock(runs["stopped"]) as lock:
        monkeypatch.setattr(files, "read_yaml", lambda path: lock.acquire() or read(path))
        assert row_of(runs["stopped"]).state == "running"


def test_a_run_that_ends_while_it_is_looked_at_is_finished_and_not_stopped(runs, monkeypatch):
    result = (runs["finished"] / "result.json").read_text()
    held = FolderLock.is_held

    def ends(folder):
        (folder / "result.json").write_text(result)
        return held(folder)

    monkeypatch.setattr(FolderLock, "is_held", ends)
    assert row_of(runs["stopped"]).state == "finished"


def test_files_and_folders_of_a_run_may_go_while_it_is_looked_at(runs, tmp_path):
    over = threading.Event()

    def comes_and_goes():
        while not over.is_set():
            (runs["stopped"] / "new" / "newer").mkdir(parents=True)
            (runs["stopped"] / "new" / "config.yaml.partial").write_text("")
            shutil.rmtree(runs["stopped"] / "new")

    thread = threading.Thread(target=comes_and_goes)
    thread.start()
    try:
        for _ in range(100):
            assert [row.folder for row in listed([tmp_path])] == sorted(runs.values())
    finally:
        over.set()
        thread.join()


def test_a_link_to_itself_is_no_obstacle_to_a_look(runs):
    size = row_of(runs["stopped"]).size
    (runs["stopped"] / "loop").symlink_to("loop")
    assert row_of(runs["stopped"]).size == size


def test_a_look_is_no_obstacle_to_a_run_that_begins(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / ".lock").touch()
    look = (tmp_path / ".lock").open()
    fcntl.flock(look, fcntl.LOCK_SH)
    threading.Timer(0.1, look.close).start()
    with FolderLock(tmp_path) as lock:
        lock.acquire()
        assert FolderLock.is_held(tmp_path)


@pytest.mark.parametrize(
    ("filters", "states"),
    [
        (["seed=2"], {"failed"}),
        (["state=finished"], {"finished"}),
        (["optimizer.batch_size=64", "state=stopped"], {"stopped"}),
        (["optimizer.batch_size=6.4e1", "evaluation.test=false", "seed=2"], {"failed"}),
    ],
)
def test_filters_go_by_columns_and_by_the_configuration(filters, states, runs, tmp_path, solo_mim):
    assert set(table(solo_mim("runs", tmp_path, *filters))) == {*states, ""}


def test_what_is_not_there_is_said(runs, tmp_path, solo_mim, refused):
    assert solo_mim("runs", tmp_path, "seed=9").out == f"no run of these in {tmp_path}\n"
    assert "did you mean 'seed'?" in refused("runs", tmp_path, "sed=9")
    assert "there is no such folder" in refused("runs", tmp_path / "x")
