"""Images: data sets, augmentation in solo-learn's schema, and the loaders of a run.

photo_patches (real images that are already installed), datasets (configuration to images),
transforms (image to views), module (views to batches), errors (the one error of all four).
"""

from solo_mim.data.errors import DataError
from solo_mim.data.module import SSLDataModule

__all__ = ["DataError", "SSLDataModule"]
