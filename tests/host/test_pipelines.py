"""Our views have the distribution of the host's: every step alone, and the shipped pipelines."""

import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats
from view_statistics import assert_alike, summaries

from solo_mim.data.photo_patches import photo_patches
from solo_mim.data.transforms import normalise, parse_augmentations
from solo_mim.host.pipelines import host_transform
from solo_mim.installed import CONFIG_FOLDER

DRAWS = 1500
OFF = {
    "rrc": {"enabled": True, "crop_min_scale": 1.0, "crop_max_scale": 1.0},
    "color_jitter": {
        "prob": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
    },
    "grayscale": {"prob": 0.0},
    "gaussian_blur": {"prob": 0.0},
    "solarization": {"prob": 0.0},
    "equalization": {"prob": 0.0},
    "horizontal_flip": {"prob": 0.0},
    "crop_size": 32,
    "num_crops": 1,
}
JITTER = OFF["color_jitter"] | {"prob": 1.0}
STEPS = {
    "crop": {"rrc": {"enabled": True, "crop_min_scale": 0.08, "crop_max_scale": 0.5}},
    "brightness": {"color_jitter": JITTER | {"brightness": 0.4}},
    "contrast": {"color_jitter": JITTER | {"contrast": 0.4}},
    "saturation": {"color_jitter": JITTER | {"saturation": 0.4}},
    "hue": {"color_jitter": JITTER | {"hue": 0.1}},
    "grayscale": {"grayscale": {"prob": 0.3}},
    "blur": {"gaussian_blur": {"prob": 0.7}},
    "solarisation": {"solarization": {"prob": 0.3}},
    "flip": {"horizontal_flip": {"prob": 0.3}},
}


def both(pipeline: dict, image: Image.Image) -> tuple[dict, dict]:
    """Summaries of ours and of the host's views of one image."""
    (augment,) = parse_augmentations([pipeline], (0, 0, 0), (1, 1, 1))
    rng = random.Random(0)
    ours = normalise([augment(image, rng) for _ in range(DRAWS)], (0, 0, 0), (1, 1, 1))
    transform = host_transform(pipeline)
    random.seed(1)
    torch.manual_seed(1)
    theirs = torch.stack([transform(image) for _ in range(DRAWS)])
    scale = transform.transforms[-1] if hasattr(transform, "transforms") else None
    scale = scale or transform.transform.transforms[-1]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (scale.mean, scale.std))
    return summaries(ours), summaries(theirs * std + mean)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """A patch with colour, edges and unequal sides."""
    return Image.fromarray(photo_patches()[0].images[1510])


@pytest.mark.parametrize("step", STEPS)
def test_step_has_the_hosts_distribution(step, image):
    ours, theirs = both(OFF | STEPS[step], image)
    assert_alike(ours, theirs)
    moved = [name for name in ours if np.ptp(ours[name]) > 0.02]
    assert moved, "the step changes something that is compared"


@pytest.mark.parametrize("name", ["symmetric", "symmetric_weak", "asymmetric"])
def test_shipped_pipelines_have_the_hosts_distribution(name, image):
    shipped = OmegaConf.to_container(
        OmegaConf.load(CONFIG_FOLDER / "augmentations" / f"{name}.yaml")
    )
    for pipeline in shipped:
        assert_alike(*both(pipeline, image))


def test_another_strength_is_told_apart(image):
    ours, _ = both(OFF | STEPS["brightness"], image)
    weaker, _ = both(OFF | {"color_jitter": JITTER | {"brightness": 0.3}}, image)
    assert stats.ks_2samp(ours["brightness"], weaker["brightness"]).pvalue < 1e-4
