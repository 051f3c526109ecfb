"""Images: data sets, augmentation in solo-learn's schema, and the loaders of a run."""

from solo_mim.data.errors import DataError
from solo_mim.data.module import SSLDataModule

__all__ = ["DataError", "SSLDataModule"]
