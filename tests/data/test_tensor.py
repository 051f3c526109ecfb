"""Views by torch of images in memory beside Pillow's of the same draws: pixels, epochs, files."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import view_statistics
from omegaconf import DictConfig
from PIL import Image
from torchvision.transforms import InterpolationMode
from view_statistics import STEPS, epochs, pixels

from solo_mim.data import DataError, SSLDataModule

ALL_STEPS = STEPS | {
    "equalisation": {"equalization": {"prob": 0.5}},
    "all": {
        **{key: value for step in STEPS.values() for key, value in step.items() if key != "rrc"},
        "equalization": {"prob": 0.5},
    },
}
# Grey levels of 255 between the two views of a draw, mean over pixels: on average over the views,
# and in the worst of them. Equalisation multiplies what rounds differently before it.
LIMITS, EQUALISED = (0.05, 0.5), (0.5, 16.0)
assert_same_views = partial(view_statistics.assert_same_views, limits=LIMITS)

Module = Callable[..., SSLDataModule]


@pytest.fixture(scope="session")
def cut_photographs(
    tmp_path_factory: pytest.TempPathFactory, write_photographs: Callable[..., Path]
) -> Path:
    """The 17 installed photographs as JPEGs of 96 x 80 pixels, two classes."""
    return write_photographs(tmp_path_factory.mktemp("cut"), size=(96, 80))


@pytest.mark.parametrize("crop_size", [32, 96])
@pytest.mark.parametrize("step", ALL_STEPS)
def test_views_are_pillows_of_the_same_draws(
    step: str, crop_size: int, cut_photographs: Path, module: Module
) -> None:
    augmentations = [pixels(**ALL_STEPS[step], crop_size=crop_size)]
    ours, tensors, others = (
        epochs(module(cut_photographs, format, augmentations, seed=seed), 0, 1, 2)
        for format, seed in (("image_folder", 5), ("tensor", 5), ("tensor", 6))
    )
    limits = EQUALISED if step in ("equalisation", "all") else LIMITS
    assert_same_views(ours, tensors, limits=limits)
    if step != "no_crop":  # the comparison tells other draws apart
        pairs = zip(ours, others, strict=True)
        with pytest.raises(AssertionError):
            assert_same_views(ours, [[a[0], b[1], a[2]] for a, b in pairs], limits=limits)


@pytest.mark.parametrize("step", ["crop", "no_crop"])
def test_views_of_the_linear_classifier_are_bilinear(
    step: str, cut_photographs: Path, module: Module
) -> None:
    def made(format: str) -> list[list[Any]]:
        found = module(cut_photographs, format, [pixels(**STEPS[step])])
        (one,) = found.augmentations
        found.augmentations = (replace(one, interpolation=InterpolationMode.BILINEAR),)
        return epochs(found, 0)

    cubic = epochs(module(cut_photographs, "tensor", [pixels(**STEPS[step])]), 0)
    linear = made("tensor")
    assert_same_views(made("image_folder"), linear)
    assert not torch.allclose(cubic[0][1][0], linear[0][1][0], atol=20)


@pytest.mark.parametrize(
    ("num_workers", "data"),
    [(2, {"fraction": 0.2}), (0, {"fraction": 0.2}), (0, {"validation_split": 0.9})],
)
def test_arrays_give_the_epochs_of_pillow(
    num_workers: int, data: dict[str, Any], make_cfg: Callable[..., DictConfig]
) -> None:
    """Order, indexes, targets, small crops behind, normalisation; also resumed."""
    augmentations = [
        pixels(num_crops=1, crop_size=32) | {"mean": None, "std": None},
        pixels(num_crops=2, crop_size=16, gaussian_blur={"prob": 0.5}),
    ]

    def made(format: str) -> SSLDataModule:
        options = {"format": format, "num_workers": num_workers, **data}
        return SSLDataModule(make_cfg(100, 5, augmentations, **options))

    pillow, tensor = made("image_folder"), made("tensor")
    ours, found = epochs(pillow, 1, 2), epochs(tensor, 1, 2)
    assert_same_views(ours, found)
    assert [x.shape[-1] for x in found[0][1]] == [32, 16, 16]
    assert found[0][1][0].std() == pytest.approx(1, abs=0.3)  # of the data set's own constants
    assert_same_views(ours[len(ours) // 2 :], epochs(made("tensor"), 2))
    for split in ("train", "val"):
        batches = zip(pillow.plain_dataloader(split), tensor.plain_dataloader(split), strict=True)
        assert all(torch.equal(a, b) for pair in batches for a, b in zip(*pair, strict=True))


def test_images_in_memory_are_those_of_the_files(cut_photographs: Path, module: Module) -> None:
    """For evaluation as for training, under the same fingerprint."""
    tensor, folder = (
        module(cut_photographs, format, [pixels()], 5) for format in ("tensor", "image_folder")
    )
    assert tensor.splits.fingerprint == folder.splits.fingerprint
    batches = zip(tensor.plain_dataloader("train"), folder.plain_dataloader("train"), strict=True)
    assert all(torch.equal(a, b) for pair in batches for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_file_is_named_or_replaced(
    num_workers: int, cut_photographs: Path, tmp_path: Path, module: Module
) -> None:
    for file in cut_photographs.rglob("*.jpg"):
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        (tmp_path / file.parent.name / file.name).write_bytes(file.read_bytes())
    bad = tmp_path / "b" / "bad.jpg"
    bad.write_bytes((cut_photographs / "a" / "astronaut.jpg").read_bytes()[:900])
    with pytest.raises(DataError, match="the image cannot be read") as said:
        module(tmp_path, "tensor", [pixels()], 9, num_workers=num_workers).train_dataloader()
    assert str(bad) in str(said.value)
    ours, found = (
        module(tmp_path, format, [pixels()], 9, num_workers=num_workers, on_corrupt="skip")
        for format in ("image_folder", "tensor")
    )
    assert_same_views(epochs(ours, 0), epochs(found, 0))
    assert ours.corrupt_images == found.corrupt_images == [str(bad)]
    assert sum(len(x) for x, _ in found.plain_dataloader("train")) == 17


def test_images_of_several_sizes_are_refused_by_name(tmp_path: Path, module: Module) -> None:
    for name, size in {"a": (40, 30), "b": (30, 40)}.items():
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((*size[::-1], 3), np.uint8)).save(tmp_path / name / "0.png")
    with pytest.raises(DataError, match=r"30 x 40 pixels here, 40 x 30 in .*a.0\.png") as said:
        module(tmp_path, "tensor", [pixels()], 2).train_dataloader()
    assert said.value.path == tmp_path / "b" / "0.png"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("step", ALL_STEPS)
def test_views_on_the_gpu_are_pillows_of_the_same_draws(
    step: str, cut_photographs: Path, module: Module
) -> None:
    augmentations = [pixels(**ALL_STEPS[step])]
    found = epochs(module(cut_photographs, "tensor", augmentations), 0, 1)
    assert all(x.device.type == "cuda" for _, X, _ in found for x in X)
    ours = epochs(module(cut_photographs, "image_folder", augmentations), 0, 1)
    assert_same_views(ours, found, limits=EQUALISED)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_view_waits_for_the_gpu(cut_photographs: Path, module: Module) -> None:
    loader = module(cut_photographs, "tensor", [pixels(**ALL_STEPS["all"])]).train_dataloader()
    list(loader)
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")
