"""The call that measures on a GPU: its time, what fails in it, its page and its pack."""

import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_evidence.py"


@pytest.fixture
def evidence(load_script, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    return load_script(SCRIPT)


def stages(evidence, monkeypatch, **measures):
    """Replaces the stages: half of the time for the first, and so on."""
    share = 1 / len(measures)
    found = {
        name: evidence.Stage(share, measure, lambda found: [f"value {found['value']}"])
        for name, measure in measures.items()
    }
    monkeypatch.setattr(evidence, "STAGES", found)


def test_a_stage_that_fails_is_recorded_and_stops_no_other(evidence, monkeypatch, tmp_path, capsys):
    def fails(job):
        raise evidence.Failed("no such thing")

    def breaks(job):
        raise KeyError("nothing")

    stages(evidence, monkeypatch, one=fails, two=breaks, three=lambda job: {"value": 3})
    evidence.measure(tmp_path, "cpu", None, 0.1, "")
    page = (tmp_path / "gpu.md").read_text()
    assert "Failed: no such thing" in page
    assert "Failed: KeyError: 'nothing'" in page
    assert "value 3" in page
    assert "one: FAILED: no such thing" in capsys.readouterr().out


def test_what_is_done_is_kept_and_what_failed_is_tried_again(evidence, monkeypatch, tmp_path):
    calls = []

    def fails(job):
        calls.append("two")
        raise evidence.Failed("once")

    stages(evidence, monkeypatch, one=lambda job: calls.append("one") or {"value": 1}, two=fails)
    evidence.measure(tmp_path, "cpu", None, 0.1, "")
    evidence.measure(tmp_path, "cpu", None, 0.1, "")
    assert calls == ["one", "two", "two"]


def test_each_stage_has_its_share_and_what_was_left_over(evidence, monkeypatch, tmp_path, capsys):
    """The later ones have theirs however long one takes; one is passed over where it has none."""
    limits = {}

    def note(name, seconds=0.0):
        def measure(job):
            limits[name] = job.left()
            time.sleep(seconds)
            return {"value": 0}

        return measure

    stages(evidence, monkeypatch, a=note("a"), b=note("b", 4.5), c=note("c"), d=note("d"))
    evidence.measure(tmp_path, "cpu", None, 4 / 60, "")  # a second each
    assert limits["a"] == pytest.approx(1, abs=0.5)
    assert limits["b"] == pytest.approx(2, abs=0.5)
    assert set(limits) == {"a", "b"}
    assert "c: passed over" in capsys.readouterr().out


def test_a_command_that_takes_too_long_or_fails_is_named_with_its_log(evidence, tmp_path):
    job = evidence.Job(tmp_path, "cpu", None, time.monotonic() + 2, {})
    with pytest.raises(evidence.Failed, match=r"slow: its time was up; logs/slow\.log"):
        job.call("slow", sys.executable, "-c", "import time; time.sleep(60)")
    job.end = time.monotonic() + 30
    with pytest.raises(evidence.Failed, match=r"bad: ended with 3: at last .*logs/bad\.log"):
        job.call("bad", sys.executable, "-c", "print('at last'); raise SystemExit(3)")
    assert job.call("good", sys.executable, "-c", "print(5)").endswith("5\n")


def test_the_tests_of_a_gpu_are_counted(evidence, monkeypatch, tmp_path):
    """Without a GPU each says that it is skipped."""
    job = evidence.Job(tmp_path, "cpu", None, time.monotonic() + 300, {"CUDA_VISIBLE_DEVICES": ""})
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs one\n")
    (tmp_path / "tests" / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.gpu\ndef test_right(): pass\n"
        "@pytest.mark.gpu\ndef test_wrong(): assert False\n"
        "@pytest.mark.gpu\n@pytest.mark.skip\ndef test_absent(): pass\n"
        "def test_of_a_cpu(): pass\n"
    )
    found = evidence.tests(job)
    assert {key: found[key] for key in ("passed", "failed", "skipped")} == {
        **{"passed": 1, "failed": 1, "skipped": 1}
    }
    assert any("test_wrong" in line for line in evidence.tests_lines(found))


def test_predicted_and_measured_stand_side_by_side(evidence):
    row = {"network": "n", "images_per_second": 1000.0, "gib": 2.0, "planned_gib": 2.5}
    row |= {"planned_images_per_second": 2000.0, "operations_per_image": 1e9, "peak": 1e13}
    assert evidence.plan_lines({"rows": [row]})[-1] == "| n | 2.5 | 2.0 | 2,000 | 1,000 | 10.0% |"


def test_a_pack_is_unpacked_once_and_is_refused_without_images(evidence, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="--pack needs --data FOLDER"):
        evidence.pack(tmp_path / "pack", tmp_path)
    with pytest.raises(SystemExit, match="is no folder of --pack"):
        evidence.unpack(tmp_path, tmp_path / "work")
    for part in ("train", "test"):
        (tmp_path / "images" / part / "cat").mkdir(parents=True)
        (tmp_path / "images" / part / "cat" / "0.jpg").write_bytes(b"0")
    made = []
    monkeypatch.setattr(evidence.subprocess, "run", lambda command, check: made.append(command))
    evidence.pack(tmp_path / "pack", tmp_path / "images")
    assert f"solo-learn=={evidence.importlib.metadata.version('solo-learn')}" in made[0]
    (tmp_path / "pack" / "a.whl").write_bytes(b"")
    _, images = evidence.unpack(tmp_path / "pack", tmp_path / "work")
    assert (images / "train" / "cat" / "0.jpg").read_bytes() == b"0"
    assert "--no-index" in made[1]
    monkeypatch.setattr(evidence, "MOST", 10)
    with pytest.raises(SystemExit, match="give images of fewer bytes"):
        evidence.pack(tmp_path / "pack", tmp_path / "images")


def test_stages_take_the_whole_time(evidence):
    assert sum(stage.share for stage in evidence.STAGES.values()) == pytest.approx(1)
