"""A checkpoint that solo-learn main's own `main_pretrain.py` has written goes on in both hosts."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from solo_mim.data.photo_patches import photo_patches

CONFIG = """
defaults: [_self_, override hydra/hydra_logging: disabled, override hydra/job_logging: disabled]
hydra: {{output_subdir: null, run: {{dir: .}}}}
name: mini
method: {method}
backbone: {{name: resnet18}}
method_kwargs: {{proj_hidden_dim: 16, proj_output_dim: 8, pred_hidden_dim: 16}}
momentum: {{base_tau: 0.99, final_tau: 1.0}}
data:
  dataset: custom
  train_path: {folder}/train
  val_path: {folder}/val
  format: image_folder
  num_workers: 0
augmentations:
  - rrc: {{enabled: true, crop_min_scale: 0.2, crop_max_scale: 1.0}}
    color_jitter: {{prob: 0.8, brightness: 0.4, contrast: 0.4, saturation: 0.2, hue: 0.1}}
    grayscale: {{prob: 0.2}}
    gaussian_blur: {{prob: 0.0}}
    solarization: {{prob: 0.0}}
    equalization: {{prob: 0.0}}
    horizontal_flip: {{prob: 0.5}}
    crop_size: 32
    num_crops: 2
optimizer:
  name: {optimizer}
  batch_size: 16
  lr: 0.01
  classifier_lr: 0.01
  weight_decay: 1e-4
  kwargs: {kwargs}
scheduler: {{name: warmup_cosine, warmup_epochs: 1}}
checkpoint: {{enabled: true, dir: {folder}/trained, frequency: 1, keep_prev: true}}
auto_resume: {{enabled: false}}
wandb: {{enabled: false}}
max_epochs: 3
devices: "1"
accelerator: cpu
strategy: auto
precision: 32
"""


def _python(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(
    ("method", "optimizer", "kwargs"),
    [
        ("byol", "lars", "{eta: 0.02, clip_lr: true}"),
        ("simsiam", "adamw", "{betas: [0.9, 0.95]}"),  # a function in the state of its schedule
    ],
)
def test_a_checkpoint_of_main_pretrain_goes_on_in_both_hosts(
    method, optimizer, kwargs, solo_learn_main, tmp_path
):
    for half, name in zip(photo_patches(), ("train", "val"), strict=True):
        for label in range(3):
            folder = tmp_path / name / str(label)
            folder.mkdir(parents=True)
            for index in (half.labels == label).nonzero()[0][:12]:
                Image.fromarray(half.images[index]).save(folder / f"{index}.png")
    config = CONFIG.format(folder=tmp_path, method=method, optimizer=optimizer, kwargs=kwargs)
    (tmp_path / "mini.yaml").write_text(config)
    where = ["--config-path", tmp_path, "--config-name", "mini.yaml"]
    main = str(solo_learn_main)
    _python(solo_learn_main / "main_pretrain.py", *where, PYTHONPATH=main)
    (checkpoint,) = (tmp_path / "trained").rglob("*ep=1.ckpt")
    for path in ("", main):
        output = tmp_path / ("current" if path else "released")
        ours = [f"output_dir={output}", "evaluation.offline=false", "backbone.stem=imagenet"]
        resume = f"resume_from_checkpoint='{checkpoint}'"
        pretrain = ["-m", "solo_mim", "pretrain", *where, *(f"+{key}" for key in ours)]
        said = _python(*pretrain, f"+{resume}", PYTHONPATH=path)
        assert f"resuming from {checkpoint}" in said
        assert "epoch 3/3" in said
        assert "epoch 2/3" not in said
        (result,) = output.glob("*/result.json")
        assert json.loads(result.read_text())["epochs"] == 3
