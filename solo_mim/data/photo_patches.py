"""``photo_patches``: a small set of real images that is already on the machine.

Every class is one photograph that ships inside the wheels of scikit-image (8 in colour, 7 in grey,
all handled as RGB) or scikit-learn (2 in colour); every image is a 32 x 32 patch of it. Training
and test patches come from the two colours of a chequerboard of 64-pixel blocks and never share a
pixel. Inside a block a patch may lie anywhere, and patches of one split may overlap.

5,100 training and 4,250 test patches, balanced. Nearest neighbours (k = 5) on raw pixels get 52.3 %
of the test patches right, chance is 5.9 %.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from solo_mim.data.errors import DataError

SCIKIT_IMAGE = ("scikit-image", "skimage", "data")
SCIKIT_LEARN = ("scikit-learn", "sklearn", "datasets/images")

# Read as files: the packages' own loaders may go to the network (pooch) or import half of scipy.
PHOTOGRAPHS = {
    "astronaut": (SCIKIT_IMAGE, "astronaut.png"),
    "brick": (SCIKIT_IMAGE, "brick.png"),
    "camera": (SCIKIT_IMAGE, "camera.png"),
    "cat": (SCIKIT_IMAGE, "chelsea.png"),
    "clock": (SCIKIT_IMAGE, "clock_motion.png"),
    "coffee": (SCIKIT_IMAGE, "coffee.png"),
    "coins": (SCIKIT_IMAGE, "coins.png"),
    "grass": (SCIKIT_IMAGE, "grass.png"),
    "gravel": (SCIKIT_IMAGE, "gravel.png"),
    "hubble": (SCIKIT_IMAGE, "hubble_deep_field.jpg"),
    "moon": (SCIKIT_IMAGE, "moon.png"),
    "motorcycle": (SCIKIT_IMAGE, "motorcycle_left.png"),
    "retina": (SCIKIT_IMAGE, "retina.jpg"),
    "rocket": (SCIKIT_IMAGE, "rocket.jpg"),
    "tissue": (SCIKIT_IMAGE, "ihc.png"),
    "china": (SCIKIT_LEARN, "china.jpg"),
    "flower": (SCIKIT_LEARN, "flower.jpg"),
}

PATCH = 32
BLOCK = 64
SHORT_SIDE = 384
TRAIN_PATCHES = 300
TEST_PATCHES = 250
FLAT = 8  # grey levels; a patch that spans fewer in every channel (a black rim) is left out
SEED = 0

# Of the training patches, in [0, 1].
MEAN = (0.4650, 0.4041, 0.3787)
STD = (0.2729, 0.2325, 0.2401)


class Patches(NamedTuple):
    """One split: uint8 N x 32 x 32 x 3, int64 N positions in PHOTOGRAPHS, and int64 N x 2 corners.

    A corner is the (row, column) of a patch in its photograph at short side 384.
    """

    images: np.ndarray
    labels: np.ndarray
    corners: np.ndarray


@cache
def photo_patches() -> tuple[Patches, Patches]:
    """Training and test patches, the same arrays (read-only) at every call.

    Raises DataError naming the wheel when a photograph is not installed.
    """
    # numpy froze this stream for ever; those of its newer generators may change (NEP 19).
    rng = np.random.RandomState(SEED)
    train, test = [], []
    for name in PHOTOGRAPHS:
        pixels = photograph(name)
        train.append(_patches(pixels, 0, TRAIN_PATCHES, rng))
        test.append(_patches(pixels, 1, TEST_PATCHES, rng))
    return _joined(train), _joined(test)


def photograph(name: str) -> np.ndarray:
    """uint8 H x W x 3 with short side 384.

    Pillow resizes 8-bit images (anti-aliased) in fixed-point arithmetic: the same on any machine.
    """
    (distribution, package, folder), filename = PHOTOGRAPHS[name]
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    path = Path(locations[0] if locations else package, folder, filename)
    if not path.is_file():
        raise DataError(
            f"the photograph {name!r} is not installed",
            key="data.dataset",
            path=path,
            remedy=f"Install {distribution} from its wheel, which holds the file",
        )
    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _patches(
    photograph: np.ndarray, colour: int, count: int, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` distinct patches from the blocks of one colour of the chequerboard, and corners."""
    rows, columns = np.indices((photograph.shape[0] // BLOCK, photograph.shape[1] // BLOCK))
    blocks = BLOCK * np.argwhere((rows + columns) % 2 == colour)
    offsets = np.argwhere(np.ones((BLOCK - PATCH + 1,) * 2))
    corners = rng.permutation((blocks[:, None] + offsets).reshape(-1, 2))[: 4 * count]
    # Colour planes first: rows of a patch are then contiguous and the span 80 times faster.
    planes = np.ascontiguousarray(photograph.transpose(2, 0, 1))
    windows = np.lib.stride_tricks.sliding_window_view(planes, (PATCH, PATCH), axis=(1, 2))
    candidates = windows[:, corners[:, 0], corners[:, 1]]  # 3 x N x 32 x 32
    span = np.ptp(candidates, axis=(2, 3)).max(axis=0)
    textured = np.flatnonzero(span >= FLAT)[:count]
    return candidates[:, textured].transpose(1, 2, 3, 0), corners[textured]


def _joined(classes: list[tuple[np.ndarray, np.ndarray]]) -> Patches:
    """The patches of all classes, protected against writes since every caller shares them."""
    patches, corners = zip(*classes, strict=True)
    labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in patches])
    images = np.ascontiguousarray(np.concatenate(patches))
    joined = Patches(images, labels, np.concatenate(corners))
    for array in joined:
        array.setflags(write=False)
    return joined
