"""Image files of every kind that Pillow writes, read as RGB of 8 bits."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from solo_mim.data import DataError, SSLDataModule
from solo_mim.data.images import Files

pytestmark = pytest.mark.filterwarnings("ignore:.*holds one class")

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
NOISE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def read(path: Path) -> np.ndarray:
    """H x W x 3."""
    image = Files(np.array([os.fsencode(path)]))[0]
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, axis=-1)


# Depth


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("it.png", np.uint16),
        ("it.tif", np.uint16),
        ("big-endian.tif", ">u2"),
        ("it.pgm", np.uint16),
    ],
)
def test_sixteen_bit_grey_is_scaled_and_not_clipped(name: str, stored: Any, tmp_path: Path) -> None:
    Image.fromarray((RAMP.astype(np.uint16) * 257).astype(stored)).save(tmp_path / name)
    assert np.array_equal(read(tmp_path / name), grey(RAMP))


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_numbers_of_32_bits_are_refused_by_name(dtype: Any, mode: str, tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "depth.tif")
    with pytest.raises(DataError, match=rf"mode {mode}\) have no known range") as raised:
        read(tmp_path / "depth.tif")
    assert raised.value.path == tmp_path / "depth.tif"


def test_refused_image_can_be_skipped(
    image_folder: Callable[..., Path], make_cfg: Callable[..., Any]
) -> None:
    root = image_folder("train", cat=3)
    Image.fromarray(RAMP.astype(np.float32)).save(root / "cat" / "depth.tif")
    cfg = make_cfg(4, dataset="custom", train_path=str(root), on_corrupt="skip")
    module = SSLDataModule(cfg)
    assert sum(len(y) for _, y in module.plain_dataloader("train")) == 3
    assert [Path(path).name for path in module.corrupt_images] == ["depth.tif"]


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    pattern = RAMP % 3 == 0
    Image.fromarray(pattern).save(tmp_path / "it.png")
    assert np.array_equal(read(tmp_path / "it.png"), grey(np.uint8(255) * pattern))


# Colour


@pytest.mark.parametrize("transparency", [3, bytes(range(256))], ids=["one colour", "all colours"])
def test_transparent_palette_gives_its_colours_quietly(transparency: Any, tmp_path: Path) -> None:
    image = Image.fromarray(RAMP, "P")
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "it.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read(tmp_path / "it.png"), colours[RAMP])


def test_transparency_is_dropped(tmp_path: Path) -> None:
    alpha = RAMP[:5, :7, None]
    Image.fromarray(np.concatenate([NOISE, alpha], axis=2), "RGBA").save(tmp_path / "rgba.png")
    assert np.array_equal(read(tmp_path / "rgba.png"), NOISE)
    Image.fromarray(np.stack([RAMP, RAMP.T], axis=2), "LA").save(tmp_path / "la.png")
    assert np.array_equal(read(tmp_path / "la.png"), grey(RAMP))


def test_grey_is_repeated(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "it.png")
    assert np.array_equal(read(tmp_path / "it.png"), grey(RAMP))


@pytest.mark.parametrize(
    ("ink", "shown"),
    [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), (255,) * 3)],
)
def test_cmyk_jpeg_shows_its_colours(ink: Any, shown: Any, tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), ink).save(tmp_path / "it.jpg", quality=95)
    with Image.open(tmp_path / "it.jpg") as file:
        assert file.mode == "CMYK"
    assert np.abs(read(tmp_path / "it.jpg").astype(int) - shown).max() <= 3


def test_ycbcr_shows_its_colours(tmp_path: Path) -> None:
    Image.fromarray(NOISE).convert("YCbCr").save(tmp_path / "it.tif")
    with Image.open(tmp_path / "it.tif") as file:
        assert file.mode == "YCbCr"
    assert np.abs(read(tmp_path / "it.tif").astype(int) - NOISE).max() <= 3


# Orientation

# How a camera that was held so stores an upright image, by its EXIF number.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_image_is_turned_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"it.{suffix}"
    stored = np.ascontiguousarray(STORED[orientation](NOISE))
    Image.fromarray(stored).save(
        path, exif=exif, **({"lossless": True} if suffix == "webp" else {})
    )
    assert np.array_equal(read(path), NOISE)


def test_photograph_of_a_phone_held_upright_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "IMG_0001.JPG", exif=exif)
    assert read(tmp_path / "IMG_0001.JPG").shape == (40, 30, 3)


@pytest.mark.parametrize("block", [b"Exif\0\0MM\0*\xff", b"Exif\0\0garbage", b"Exif\0\0"])
def test_broken_exif_is_no_broken_image(block: bytes, tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "plain.jpg")
    Image.fromarray(NOISE).save(tmp_path / "broken.jpg", exif=block)
    assert np.array_equal(read(tmp_path / "broken.jpg"), read(tmp_path / "plain.jpg"))


def test_image_is_turned_upright_whatever_else_its_exif_block_holds(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    date_as_a_fraction = exif.tobytes().replace(b"\x01\x1a\0\x05", b"\x01\x32\0\x05")
    assert date_as_a_fraction != exif.tobytes()
    Image.new("RGB", (40, 30)).save(tmp_path / "it.jpg", exif=date_as_a_fraction)
    assert read(tmp_path / "it.jpg").shape == (40, 30, 3)


# Several frames


@pytest.mark.parametrize("writer", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several_is_taken(writer: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    options: dict[str, Any] = {"lossless": True} if writer == "WEBP" else {}
    path = tmp_path / "moving.png"  # Pillow goes by the content
    frames[0].save(path, writer, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as file:
        assert file.n_frames == 3
    assert np.array_equal(read(path), np.broadcast_to((255, 0, 0), (4, 6, 3)))


# Damage


@pytest.mark.parametrize("damage", ["truncated", "no image at all", "empty", "broken chunk"])
def test_corrupt_image_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    Image.fromarray(np.tile(NOISE, (9, 9, 1))).save(path)
    intact = path.read_bytes()
    path.write_bytes(
        {
            "truncated": intact[: len(intact) // 2],
            "no image at all": b"<html>not found</html>",
            "empty": b"",
            "broken chunk": intact[:40] + b"\xff" * 40 + intact[80:],
        }[damage]
    )
    with pytest.raises(DataError, match=r"cannot be read .*1\.png") as raised:
        read(path)
    assert raised.value.path == path
