"""DALI's views beside Pillow's of the same draws: pixels, distributions, epochs, corrupt files."""

import gc
import importlib.util
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import view_statistics
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torchvision.transforms import InterpolationMode
from view_statistics import STEPS, assert_alike, epochs, pixels, summaries

from solo_mim.data import DataError, SSLDataModule
from solo_mim.installed import CONFIG_FOLDER

try:
    HAS_DALI = importlib.util.find_spec("nvidia.dali") is not None
except ModuleNotFoundError:  # no package of NVIDIA's at all
    HAS_DALI = False
needs_dali = pytest.mark.skipif(not HAS_DALI, reason="nvidia-dali is not installed (extra dali)")

# Grey levels of 255 between the two views of a draw, mean over pixels: on average over the views,
# and in the worst of them. Pillow's blur is three box filters, its hue has 8 bits.
assert_same_views = partial(view_statistics.assert_same_views, limits=(1.2, 5.0))

MakeCfg = Callable[..., DictConfig]


@pytest.fixture(scope="session")
def photographs(
    tmp_path_factory: pytest.TempPathFactory, write_photographs: Callable[..., Path]
) -> Path:
    """The 17 installed photographs as JPEGs, two classes."""
    return write_photographs(tmp_path_factory.mktemp("photographs"))


@needs_dali
@pytest.mark.parametrize("step", STEPS)
def test_views_are_pillows_of_the_same_draws(
    step: str, photographs: Path, module: Callable[..., SSLDataModule]
) -> None:
    augmentations = [pixels(**STEPS[step])]
    ours, dalis, others = (
        epochs(module(photographs, format, augmentations, seed=seed), 0, 1)
        for format, seed in (("image_folder", 5), ("dali", 5), ("dali", 6))
    )
    assert_same_views(ours, dalis)
    if step != "no_crop":  # the comparison tells other draws apart
        pairs = zip(ours, others, strict=True)
        with pytest.raises(AssertionError):
            assert_same_views(ours, [[a[0], b[1], a[2]] for a, b in pairs])


@needs_dali
@pytest.mark.parametrize("step", ["crop", "no_crop"])
def test_views_of_the_linear_classifier_are_bilinear(
    step: str, photographs: Path, module: Callable[..., SSLDataModule]
) -> None:
    def made(format: str) -> SSLDataModule:
        found = module(photographs, format, [pixels(**STEPS[step])])
        (one,) = found.augmentations
        found.augmentations = (replace(one, interpolation=InterpolationMode.BILINEAR),)
        return found

    cubic = epochs(module(photographs, "dali", [pixels(**STEPS[step])]), 0)
    linear = epochs(made("dali"), 0)
    assert_same_views(epochs(made("image_folder"), 0), linear)
    assert not torch.allclose(cubic[0][1][0], linear[0][1][0], atol=20)


@needs_dali
def test_views_of_real_photographs_are_pillows(
    hundred_photographs: Path, module: Callable[..., SSLDataModule]
) -> None:
    augmentations = [
        pixels(crop_size=224, num_crops=1, **{k: v for s in STEPS.values() for k, v in s.items()})
        | {"rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0}}
    ]
    ours, dalis = (
        epochs(module(hundred_photographs / "train", format, augmentations, 20), 0)
        for format in ("image_folder", "dali")
    )
    assert_same_views(ours, dalis)


@needs_dali
@pytest.mark.parametrize("name", ["symmetric", "asymmetric"])
def test_shipped_pipelines_have_pillows_distribution(
    name: str, hundred_photographs: Path, module: Callable[..., SSLDataModule]
) -> None:
    """1,200 views of 100 photographs each, of other seeds: Kolmogorov-Smirnov on seven numbers of a
    view, among them brightness, contrast, colour, hue and sharpness."""
    shipped: Any = OmegaConf.to_container(
        OmegaConf.load(CONFIG_FOLDER / "augmentations" / f"{name}.yaml")
    )
    pipeline = shipped[-1] | {"num_crops": 2, "mean": [0.0] * 3, "std": [1.0] * 3}

    def found(format: str, seed: int) -> dict[str, np.ndarray]:
        made = module(hundred_photographs / "train", format, [pipeline], 50, seed=seed)
        batches = epochs(made, *range(6))
        return summaries(torch.cat([x for _, X, _ in batches for x in X]))

    ours, dalis = found("image_folder", 5), found("dali", 6)
    assert len(ours["hue"]) == len(dalis["hue"]) == 1200
    assert_alike(ours, dalis)


@needs_dali
@pytest.mark.parametrize("num_workers", [0, 2])
def test_epochs_are_those_of_the_image_folder(
    num_workers: int, photographs: Path, module: Callable[..., SSLDataModule]
) -> None:
    """Length, indexes, targets, order; small crops behind; also resumed, and after a cut epoch."""
    augmentations = [
        pixels(num_crops=1, crop_size=24),
        pixels(num_crops=1, crop_size=24, solarization={"prob": 0.5}),
        pixels(num_crops=2, crop_size=16),
    ]

    def made(format: str) -> SSLDataModule:
        return module(photographs, format, augmentations, 5, num_workers=num_workers)

    loader = made("dali").train_dataloader()
    assert len(loader) == 3
    assert len(loader.dataset) == 17
    next(iter(loader))
    loader.sampler.set_epoch(1)
    after_a_cut = list(loader)
    loader.sampler.set_epoch(2)
    then = list(loader)
    ours = epochs(made("image_folder"), 1, 2)
    assert len(ours) == 6
    assert_same_views(ours, after_a_cut + then)
    assert_same_views(ours[3:], epochs(made("dali"), 2))
    assert [x.shape[-1] for x in then[0][1]] == [24, 24, 16, 16]


@needs_dali
def test_files_of_any_kind_are_read_as_pillow_does(
    photographs: Path, tmp_path: Path, module: Callable[..., SSLDataModule]
) -> None:
    image = Image.open(photographs / "a" / "astronaut.jpg").resize((90, 60))
    folder = tmp_path / "odd" / "a"
    folder.mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    image.save(folder / "progressive.jpg", progressive=True)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "grey.jpg")
    image.quantize(16).save(folder / "palette.png")
    image.save(folder / "a_png.jpg", "PNG")
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 256
    Image.fromarray(deep).save(folder / "sixteen_bits.png")
    image.save(folder / "image.webp", lossless=True)
    (folder / "behind_the_end.jpg").write_bytes((folder / "grey.jpg").read_bytes() + bytes(9))
    with pytest.warns(UserWarning, match="holds one class"):
        ours, dalis = (
            epochs(module(folder.parent, format, [pixels()], 9), 0)
            for format in ("image_folder", "dali")
        )
    assert_same_views(ours, dalis)


def broken(photographs: Path, how: str) -> bytes:
    content = (photographs / "a" / "astronaut.jpg").read_bytes()
    if how == "truncated":
        return content[: len(content) // 2]
    spoilt = bytearray(content)  # a marker that no scan has: DALI by itself would pass over it
    spoilt[len(content) // 2 : len(content) // 2 + 2] = b"\xff\x5b"
    return bytes(spoilt)


@needs_dali
@pytest.mark.parametrize("how", ["truncated", "spoilt"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrupt_file_is_named_or_replaced(
    how: str,
    num_workers: int,
    photographs: Path,
    tmp_path: Path,
    module: Callable[..., SSLDataModule],
) -> None:
    for file in photographs.rglob("*.jpg"):
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        (tmp_path / file.parent.name / file.name).write_bytes(file.read_bytes())
    bad = tmp_path / "b" / "bad.jpg"
    bad.write_bytes(broken(photographs, how))
    with pytest.raises(DataError, match="the image cannot be read") as said:
        epochs(module(tmp_path, "dali", [pixels()], 9, num_workers=num_workers), 0)
    assert str(bad) in str(said.value)
    lenient = module(tmp_path, "dali", [pixels()], 9, num_workers=num_workers, on_corrupt="skip")
    batches = epochs(lenient, 0)
    assert [len(x) for _, X, _ in batches for x in X] == [9] * 4
    assert lenient.corrupt_images == [str(bad)]


@needs_dali
def test_what_only_dali_cannot_decode_is_named(
    photographs: Path,
    tmp_path: Path,
    module: Callable[..., SSLDataModule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from solo_mim.data import dali

    for number in range(6):
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        content = (photographs / "a" / "astronaut.jpg").read_bytes()
        (folder / f"{number}.jpg").write_bytes(content if number != 3 else content[:9000])
    monkeypatch.setattr(dali, "_is_whole", lambda content, start: True)
    with pytest.raises(DataError, match="DALI cannot decode the image") as said:
        epochs(module(tmp_path, "dali", [pixels()], 2), 0)
    assert said.value.path == tmp_path / "class1" / "3.jpg"


@needs_dali
def test_a_forked_process_does_not_wait_for_dalis_threads(
    photographs: Path, module: Callable[..., SSLDataModule]
) -> None:
    loader = module(photographs, "dali", [pixels()]).train_dataloader()
    list(loader)
    loader.itself = loader  # garbage that waits for its collector
    gc.disable()
    try:
        del loader
        process = multiprocessing.get_context("fork").Process(target=gc.collect)
        process.start()
        process.join(30)
        process.kill()
    finally:
        gc.enable()
    assert process.exitcode == 0


@needs_dali
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("step", STEPS)
def test_views_on_the_gpu_are_pillows_of_the_same_draws(
    step: str, photographs: Path, module: Callable[..., SSLDataModule]
) -> None:
    augmentations = [pixels(**STEPS[step])]
    dalis = epochs(module(photographs, "dali", augmentations), 0, 1)
    assert all(x.device.type == "cuda" for _, X, _ in dalis for x in X)
    assert_same_views(epochs(module(photographs, "image_folder", augmentations), 0, 1), dalis)


# Refused


@needs_dali
def test_equalisation_is_refused(photographs: Path, module: Callable[..., SSLDataModule]) -> None:
    made = module(photographs, "dali", [pixels(equalization={"prob": 0.1})])
    with pytest.raises(DataError, match=r"equalization\.prob: the equalisation of DALI is another"):
        made.train_dataloader()


def test_a_missing_dali_is_named_with_its_extra(
    photographs: Path,
    module: Callable[..., SSLDataModule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "solo_mim.data.dali", raising=False)
    made = module(photographs, "dali", [pixels()])
    assert len(list(made.plain_dataloader("train"))) == 3, "evaluation needs none"
    with pytest.raises(DataError, match=r"data\.format: dali needs.*pip install .*\[dali\]"):
        made.train_dataloader()


def test_data_that_are_no_files_are_refused(make_cfg: MakeCfg) -> None:
    with pytest.raises(DataError, match=r"data\.format: DALI reads folders of image files"):
        SSLDataModule(make_cfg(format="dali"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@needs_dali
def test_a_gpu_that_is_not_there_is_refused(photographs: Path, make_cfg: MakeCfg) -> None:
    cfg = make_cfg(8, dataset="custom", train_path=str(photographs), format="dali")
    cfg.dali = {"device": "gpu"}
    with pytest.raises(DataError, match=r"dali\.device: training does not run on a GPU"):
        SSLDataModule(cfg).train_dataloader()
    cfg.dali.device = "gqu"
    with pytest.raises(DataError, match=r"dali\.device: unknown value 'gqu'; did you mean 'gpu'"):
        SSLDataModule(cfg)
