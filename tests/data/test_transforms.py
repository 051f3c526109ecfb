import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as reference
from torchvision.transforms import InterpolationMode, v2

from solo_mim.data import DataError, transforms
from solo_mim.data.photo_patches import photo_patches
from solo_mim.data.transforms import Augmentation, evaluation_transform, normalise

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CONFIGS = Path(__file__).parents[2] / "configs"

Build = Callable[..., dict[str, Any]]


def parse(*pipelines: dict[str, Any]) -> tuple[Augmentation, ...]:
    return transforms.parse_augmentations(list(pipelines), MEAN, STD)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(photo_patches()[0].images[7])


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def views(augment: Augmentation, image: Image.Image, count: int) -> list[np.ndarray]:
    rng = random.Random(0)
    return [pixels(augment(image, rng)) for _ in range(count)]


# Each step alone


def test_pipeline_without_blocks_leaves_an_image_of_its_size_alone(
    pipeline: Build, image: Image.Image
) -> None:
    (augment,) = parse(pipeline())
    assert np.array_equal(views(augment, image, 1)[0], pixels(image))


def test_crop_area_and_aspect_ratio_stay_in_range_and_are_torchvisions(
    image: Image.Image,
) -> None:
    scale, size = (0.2, 0.6), (200, 300)
    rng = random.Random(0)
    ours = []
    for _ in range(2000):
        left, top, right, bottom = transforms._random_crop_box(*size, scale, rng)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        ours.append((right - left, bottom - top))
    crop = v2.RandomResizedCrop(32, scale=scale)
    canvas = Image.new("RGB", size)
    torch.manual_seed(0)
    theirs = [crop.make_params([canvas]) for _ in range(2000)]
    share = np.array([w * h / (size[0] * size[1]) for w, h in ours])
    log_ratio = np.array([math.log(w / h) for w, h in ours])
    assert share.min() >= 0.2 * 0.97  # sides are whole pixels
    assert share.max() <= 0.6 * 1.03
    assert abs(log_ratio).max() <= math.log(4 / 3) + 0.03
    their_share = np.array([p["width"] * p["height"] / (size[0] * size[1]) for p in theirs])
    their_ratio = np.array([math.log(p["width"] / p["height"]) for p in theirs])
    for quantile in (0.1, 0.5, 0.9):
        assert np.quantile(share, quantile) == pytest.approx(
            np.quantile(their_share, quantile), abs=0.02
        )
        assert np.quantile(log_ratio, quantile) == pytest.approx(
            np.quantile(their_ratio, quantile), abs=0.03
        )


@pytest.mark.parametrize("size", [(1000, 20), (20, 1000)])
def test_crop_of_a_strip_falls_back_to_its_centre_as_torchvisions(size: tuple[int, int]) -> None:
    box = transforms._random_crop_box(*size, (0.9, 1.0), random.Random(0))
    theirs = v2.RandomResizedCrop(32, scale=(0.9, 1.0)).make_params([Image.new("RGB", size)])
    left, top = theirs["left"], theirs["top"]
    assert box == (left, top, left + theirs["width"], top + theirs["height"])


def test_crop_is_resized_to_crop_size(pipeline: Build, image: Image.Image) -> None:
    scales = {"crop_min_scale": 0.08, "crop_max_scale": 1.0}
    (augment,) = parse(pipeline(rrc=scales, crop_size=24))
    drawn = views(augment, image, 20)
    assert {view.shape for view in drawn} == {(24, 24, 3)}
    assert len({view.tobytes() for view in drawn}) == 20


def test_without_crop_the_whole_image_is_resized_bicubically(pipeline: Build) -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8))
    (augment,) = parse(pipeline())
    resize = reference.Resize(32, interpolation=InterpolationMode.BICUBIC)
    assert np.array_equal(views(augment, large, 1)[0], pixels(resize(large)))


JITTER = {"prob": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def luminance(view: np.ndarray) -> np.ndarray:
    return view @ [0.299, 0.587, 0.114]


def chroma(view: np.ndarray) -> float:
    return float(np.ptp(view, axis=-1).mean())


def test_brightness_scales_the_image_within_its_strength(pipeline: Build) -> None:
    grey = Image.new("RGB", (32, 32), (100, 100, 100))
    (augment,) = parse(pipeline(color_jitter={**JITTER, "brightness": 0.4}))
    levels = np.array([view.mean() for view in views(augment, grey, 300)])
    assert 59 <= levels.min() < 65
    assert 135 < levels.max() <= 141


def test_contrast_moves_values_about_their_mean(pipeline: Build, image: Image.Image) -> None:
    (augment,) = parse(pipeline(color_jitter={**JITTER, "contrast": 0.4}))
    original = luminance(pixels(image))
    for view in views(augment, image, 50):
        seen = luminance(view)
        assert seen.mean() == pytest.approx(original.mean(), abs=4)
        assert 0.55 <= seen.std() / original.std() <= 1.45


def test_saturation_moves_colour_and_not_luminance(pipeline: Build, image: Image.Image) -> None:
    (augment,) = parse(pipeline(color_jitter={**JITTER, "saturation": 0.5}))
    drawn = views(augment, image, 50)
    for view in drawn:
        assert luminance(view).mean() == pytest.approx(luminance(pixels(image)).mean(), abs=3)
    chromas = np.array([chroma(view) for view in drawn]) / chroma(pixels(image))
    assert 0.45 <= chromas.min() < 0.7
    assert 1.2 < chromas.max() <= 1.55


def test_hue_turns_the_colour_circle_within_its_strength(pipeline: Build) -> None:
    red = Image.new("RGB", (32, 32), (255, 0, 0))
    (augment,) = parse(pipeline(color_jitter={**JITTER, "hue": 0.1}))
    turned = []
    rng = random.Random(0)
    for _ in range(200):
        hue, saturation, value = augment(red, rng).convert("HSV").getpixel((0, 0))
        assert (saturation, value) == (255, 255)
        turned.append((hue + 128) % 256 - 128)
    assert -27 <= min(turned) < -20
    assert 20 < max(turned) <= 27


def test_colour_steps_come_in_every_order(
    pipeline: Build, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: set[tuple[str, ...]] = set()
    seen: list[str] = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        monkeypatch.setitem(
            transforms._ADJUST, name, lambda x, factor, name=name: seen.append(name) or x
        )
    strengths = {"prob": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    (augment,) = parse(pipeline(color_jitter=strengths))
    for view in range(400):
        seen.clear()
        augment(image, random.Random(view))
        orders.add(tuple(seen))
    assert len(orders) == 24


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colour_steps_are_torchvisions_to_the_bit(name: str) -> None:
    rng = random.Random(0)
    low, high = (-0.5, 0.5) if name == "hue" else (0.0, 2.0)
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    for values in (*photo_patches()[0].images[::200], noise):
        image, factor = Image.fromarray(values), rng.uniform(low, high)
        ours = getattr(transforms, f"_adjust_{name}")(image, factor)
        theirs = getattr(v2.functional, f"adjust_{name}")(image, factor)
        assert np.array_equal(pixels(ours), pixels(theirs))


def test_zero_strengths_leave_the_image_alone(pipeline: Build, image: Image.Image) -> None:
    (augment,) = parse(pipeline(color_jitter=JITTER))
    assert np.array_equal(views(augment, image, 1)[0], pixels(image))


def test_grey_views_have_equal_channels(pipeline: Build, image: Image.Image) -> None:
    (augment,) = parse(pipeline(grayscale={"prob": 1.0}))
    (view,) = views(augment, image, 1)
    assert (np.ptp(view, axis=-1) == 0).all()
    assert np.array_equal(view[..., 0], pixels(image.convert("L")))


def test_blur_is_gaussian_with_sigma_from_a_tenth_to_two_pixels(
    pipeline: Build, image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    sigmas: list[float] = []
    gaussian = ImageFilter.GaussianBlur
    monkeypatch.setattr(
        transforms.ImageFilter,
        "GaussianBlur",
        lambda sigma: sigmas.append(sigma) or gaussian(sigma),
    )
    (augment,) = parse(pipeline(gaussian_blur={"prob": 1.0}))
    (view,) = views(augment, image, 1)
    assert np.array_equal(view, pixels(image.filter(gaussian(sigmas[0]))))
    views(augment, image, 300)
    assert 0.1 <= min(sigmas) < 0.2
    assert 1.9 < max(sigmas) <= 2.0


def test_solarisation_inverts_the_bright_half(pipeline: Build, image: Image.Image) -> None:
    (augment,) = parse(pipeline(solarization={"prob": 1.0}))
    original = pixels(image)
    inverted = np.where(original >= 128, 255 - original, original)
    assert np.array_equal(views(augment, image, 1)[0], inverted)


def test_equalisation_is_pillows(pipeline: Build, image: Image.Image) -> None:
    (augment,) = parse(pipeline(equalization={"prob": 1.0}))
    assert np.array_equal(views(augment, image, 1)[0], pixels(ImageOps.equalize(image)))


def test_flip_mirrors_left_and_right(pipeline: Build, image: Image.Image) -> None:
    (augment,) = parse(pipeline(horizontal_flip={"prob": 1.0}))
    assert np.array_equal(views(augment, image, 1)[0], pixels(image)[:, ::-1])


@pytest.mark.parametrize(
    "block",
    ["grayscale", "gaussian_blur", "solarization", "equalization", "horizontal_flip"],
)
def test_step_happens_with_its_probability(block: str, pipeline: Build, image: Image.Image) -> None:
    (augment,) = parse(pipeline(**{block: {"prob": 0.3}}))
    changed = [not np.array_equal(view, pixels(image)) for view in views(augment, image, 1000)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.06)  # four standard errors


def test_steps_come_in_solo_learns_order(pipeline: Build, image: Image.Image) -> None:
    always = {"prob": 1.0}
    (augment,) = parse(
        pipeline(grayscale=always, solarization=always, equalization=always, horizontal_flip=always)
    )
    grey = image.convert("L").convert("RGB")
    expected = ImageOps.mirror(ImageOps.equalize(ImageOps.solarize(grey)))
    swapped = ImageOps.mirror(ImageOps.solarize(ImageOps.equalize(grey)))
    assert np.array_equal(views(augment, image, 1)[0], pixels(expected))
    assert not np.array_equal(pixels(expected), pixels(swapped))


# Purity, normalisation, evaluation


def test_view_depends_on_the_generator_given_and_on_no_global_one(
    image: Image.Image,
) -> None:
    (augment,) = parse(*shipped("symmetric"))
    before = random.getstate(), torch.get_rng_state()
    first = augment(image, random.Random(3))
    random.seed(99)
    torch.manual_seed(99)
    again = augment(image, random.Random(3))
    assert np.array_equal(pixels(first), pixels(again))
    random.setstate(before[0])
    torch.set_rng_state(before[1])
    augment(image, random.Random(4))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_normalisation_is_torchvisions(image: Image.Image) -> None:
    flipped = ImageOps.mirror(image)
    one = reference.Compose([reference.ToTensor(), reference.Normalize(MEAN, STD)])
    expected = torch.stack([one(image), one(flipped)])
    batch = normalise([image, flipped], MEAN, STD)
    assert batch.is_contiguous()
    torch.testing.assert_close(batch, expected, atol=1e-5, rtol=0)


def test_small_images_are_evaluated_as_they_are(image: Image.Image) -> None:
    assert np.array_equal(pixels(evaluation_transform(image, 32)), pixels(image))


def test_large_images_are_evaluated_with_the_imagenet_margin() -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    expected = reference.Compose([reference.Resize(256), reference.CenterCrop(224)])(large)
    assert np.array_equal(pixels(evaluation_transform(large, 224)), pixels(expected))


def test_large_images_at_a_small_crop_size_are_evaluated_without_a_margin() -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    expected = reference.Compose([reference.Resize(64), reference.CenterCrop(64)])(large)
    assert np.array_equal(pixels(evaluation_transform(large, 64)), pixels(expected))


# The schema


def shipped(name: str) -> list[dict[str, Any]]:
    plain = OmegaConf.to_container(OmegaConf.load(CONFIGS / "augmentations" / f"{name}.yaml"))
    assert isinstance(plain, list)
    return plain


@pytest.mark.parametrize("name", ["symmetric", "symmetric_weak", "asymmetric"])
def test_shipped_file_composes_as_a_list_and_parses_to_two_views(name: str, tmp_path: Path) -> None:
    (tmp_path / "main.yaml").write_text(f"defaults:\n  - augmentations: {name}.yaml\n  - _self_\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = compose("main", [f"hydra.searchpath=[file://{CONFIGS}]"])
    parsed = parse(*OmegaConf.to_container(cfg.augmentations))
    assert sum(augment.num_crops for augment in parsed) == 2
    assert {augment.crop_size for augment in parsed} == {32}
    assert {augment.crop_scale for augment in parsed} == {(0.08, 1.0)}


def test_shipped_strengths_are_solo_learns() -> None:
    (symmetric,), (weak,) = parse(*shipped("symmetric")), parse(*shipped("symmetric_weak"))
    assert symmetric.color_jitter == (0.8, 0.8, 0.8, 0.8, 0.2)
    assert weak.color_jitter == (0.8, 0.4, 0.4, 0.4, 0.1)
    assert symmetric.gaussian_blur == weak.gaussian_blur == 0.5
    first, second = parse(*shipped("asymmetric"))
    assert first.color_jitter == second.color_jitter == (0.8, 0.4, 0.4, 0.2, 0.1)
    assert (first.solarization, second.solarization) == (0.0, 0.2)
    assert first.gaussian_blur == second.gaussian_blur == 0.0


def test_blocks_may_say_enabled(pipeline: Build) -> None:
    on, off = {"enabled": True, "prob": 0.3}, {"enabled": False, "prob": 0.3}
    (augment,) = parse(pipeline(grayscale=on, solarization=off))
    assert augment.grayscale == 0.3
    assert augment.solarization == 0.0


def test_switched_off_jitter_needs_no_strengths(pipeline: Build) -> None:
    (augment,) = parse(pipeline(color_jitter={"prob": 0.0}))
    assert augment.color_jitter is None


def test_large_crops_come_first(pipeline: Build) -> None:
    parsed = parse(
        pipeline(num_crops=1), pipeline(crop_size=24, num_crops=4), pipeline(num_crops=1)
    )
    assert [augment.crop_size for augment in parsed] == [32, 32, 24]


def test_pipeline_may_set_its_own_normalisation(pipeline: Build) -> None:
    own, inherited = parse(pipeline(mean=[0.1, 0.2, 0.3]), pipeline())
    assert (own.mean, own.std) == ((0.1, 0.2, 0.3), STD)
    assert inherited.mean == MEAN


FULL_JITTER = {"prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"solarisation": {"prob": 0.1}}, "[1].solarisation", "mean 'solarization'"),
        (
            {"color_jitter": {**FULL_JITTER, "brigthness": 0.4}},
            "[1].color_jitter.brigthness",
            "mean 'brightness'",
        ),
        ({"grayscale": {"prob": 1.2}}, "[1].grayscale.prob", "from 0 to 1"),
        ({"grayscale": {"prob": True}}, "[1].grayscale.prob", "cannot be True"),
        ({"grayscale": {}}, "[1].grayscale.prob", "is missing"),
        ({"grayscale": 0.2}, "[1].grayscale", "Give it prob"),
        ({"color_jitter": {**FULL_JITTER, "hue": 0.6}}, "[1].color_jitter.hue", "from 0 to 0.5"),
        (
            {"color_jitter": {**FULL_JITTER, "contrast": -1}},
            "[1].color_jitter.contrast",
            "of at least 0",
        ),
        ({"color_jitter": {"prob": 0.8}}, "[1].color_jitter.brightness", "is missing"),
        ({"rrc": {"enabled": True}}, "[1].rrc.crop_min_scale", "is missing"),
        (
            {"rrc": {"crop_min_scale": 0.5, "crop_max_scale": 0.2}},
            "[1].rrc",
            "crop_min_scale <= crop_max_scale",
        ),
        ({"crop_size": None}, "[1].crop_size", "is missing"),
        ({"crop_size": 32.5}, "[1].crop_size", "cannot be 32.5"),
        ({"num_crops": 0}, "[1].num_crops", "cannot be 0"),
        ({"mean": 0.5}, "[1].mean", "three numbers"),
        ({"mean": 0}, "[1].mean", "three numbers"),
        ({"std": [0.2, 0.0, 0.2]}, "[1].std", "three numbers above 0"),
    ],
)
def test_impossible_pipeline_is_refused_at_its_place(
    keys: dict[str, Any], key: str, message: str, pipeline: Build
) -> None:
    with pytest.raises(DataError) as raised:
        parse(pipeline(), pipeline(**keys))
    assert raised.value.key == f"augmentations{key}"
    assert message in str(raised.value)


@pytest.mark.parametrize("section", [[], {}, {"rrc": {}}, "symmetric.yaml", ["symmetric.yaml"]])
def test_section_that_is_no_list_of_pipelines_is_refused(section: Any) -> None:
    with pytest.raises(DataError, match="augmentations"):
        transforms.parse_augmentations(section, MEAN, STD)
