"""`solo-mim plan`: the counts' way into hours and gibibytes."""

import re

import pytest

from solo_mim.commands import main

SMALL = ["+backbone.kwargs.widths=[8,16,32,64]", "method_kwargs.proj_hidden_dim=16"]


@pytest.fixture
def planned(monkeypatch, capsys):
    """The printed plan: `planned("--gpu", "T4", "devices=2")`."""

    def run(*arguments, code=0):
        words = ["plan", *arguments]
        monkeypatch.setattr("sys.argv", ["solo-mim", *words])
        assert main(words) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return run


def _number(text, label):
    return float(re.search(rf"{label}\s+([\d.,]+)", text)[1].replace(",", ""))


def test_time_is_operations_over_what_the_gpu_reaches(planned):
    text = planned(*SMALL, "--gpu", "V100", "--images", "1000000", "--utilisation", "0.1")
    operations = _number(text, "operations") * 1e12
    steps = 16 * (1_000_000 // 128)
    hours = steps * operations / (15.7e12 * 0.1) / 3600
    assert _number(text, "time") == pytest.approx(hours, abs=0.06)
    assert "128 x 1 = 128 images: 7,812 steps an epoch" in text
    assert "fits" in text
    half = planned(*SMALL, "--gpu", "V100", "--images", "1000000", "precision=16-mixed")
    assert "125 x 10^12 operations" in half
    assert "activations kept       half of" in half


def test_processes_share_the_batch_and_send_gradients(planned):
    several = ("devices=2", "num_nodes=2", "strategy=ddp", "sync_batchnorm=true")
    text = planned(*SMALL, *several, "precision=16-mixed")
    assert "128 x 4 = 512 images" in text
    trained = _number(text, "of which trained") * 1e6
    assert _number(text, "gradients sent") == pytest.approx(4 * trained * 1.5 / 1e6, abs=0.6)


def test_what_does_not_fit_says_so(planned):
    text = planned(*SMALL, "optimizer.batch_size=300000", "--images", "1000000", "--gpu", "T4")
    assert "DOES NOT FIT: lower the batch" in text


def test_user_errors_are_one_line(planned):
    assert "--gpu A10 is not known; did you mean 'A100'?" in planned("--gpu", "A10", code=2)
    assert "--utilisation 2" in planned("--utilisation", "2", code=2)
    custom = ["data=image_folder", "data.train_path=x", "data.val_path=y"]
    said = planned(*custom, code=2)
    assert "data.train_path: there is no such folder (x)" in said
    assert "or add --images N" in said
    assert "exceeds the 100 training images" in planned("--images", "100", *SMALL, code=2)
    assert "--images -5" in planned("--images", "-5", code=2)
    assert "data.validation_split: the value" in planned("data.validation_split=abc", code=2)
    assert "data.validation_split: the value" in planned("data.validation_split=60000", code=2)
    assert "data.fraction: the value" in planned("data.fraction=2", code=2)
    assert "its steps cannot be counted" in planned("method=deepclusterv2", *SMALL[:1], code=2)


@pytest.mark.parametrize(
    ("arguments", "images"),
    [
        (["data=stl10", "data.validation_split=0.1"], 105_000 - 500),  # of the labelled ones
        (["data.fraction=0.5", "data.validation_split=50"], 2_550 - 50),
    ],
)
def test_images_are_those_that_training_would_have(arguments, images, planned):
    assert _number(planned(*SMALL, "backbone=small_cnn", *arguments), "images") == images


def test_speed_is_of_whole_batches(planned):
    said = [planned(*SMALL, "--images", images) for images in ("255", "128")]
    assert all("1 steps an epoch" in text for text in said)
    odd, even = (re.search(r"hours at ([\d.,]+) images/s", text)[1] for text in said)
    assert odd == even


def test_memory_and_disk_are_of_weights_buffers_and_the_optimisers_state(planned):
    queue = ["data=cifar10", "method=mocov2plus", "+budget=cpu"]
    checkpoints = {}
    for frequency, keep in ((1, False), (1, True), (5, True), (5, False)):
        settings = [f"checkpoint.frequency={frequency}", f"checkpoint.keep_prev={keep}"]
        checkpoints[frequency, keep] = _number(planned(*SMALL, *queue, *settings), "checkpoints")
    one = checkpoints[1, False]
    assert one > 4 * 2 * 256 * 32768 / 1e6, "both queues of 256 dimensions are in it"
    kept = {key: round(size / one) for key, size in checkpoints.items()}
    assert kept == {(1, False): 1, (1, True): 16, (5, True): 4, (5, False): 2}
    assert _number(planned(*SMALL, "checkpoint.enabled=false"), "checkpoints") == 0


def test_images_of_a_folder_are_counted_and_cores_told_by_measured_rates(planned, image_folders):
    text = planned(
        *SMALL, "data=image_folder", *image_folders, "+budget=cpu", "optimizer.batch_size=8"
    )
    assert _number(text, "images") == 24
    speed = float(re.search(r"hours at ([\d.,]+) images/s", text)[1].replace(",", ""))
    # 3,312 views of 32 px a second and core: docs/data.md
    assert _number(text, "CPU cores") == pytest.approx(speed * 2 / 3312, abs=1)
