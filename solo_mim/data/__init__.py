"""Images: data sets, augmentation in solo-learn's schema, and the loaders of a run.

datasets         configuration to training, validation and test images
images           sources of Pillow images, sets of them with labels, what file formats are read
photo_patches    real images that are already installed
archives         CIFAR, Fashion-MNIST, STL-10
folders, h5      images in classes
imagenet100      its preparation out of ImageNet
transforms       image to views
sampler          the order of images, by seed and epoch
batches          views to batches, and unreadable images
dali             views by NVIDIA DALI
module           the loaders of a run
errors           the one error of all
"""

from solo_mim.data.errors import DataError
from solo_mim.data.module import SSLDataModule

__all__ = ["DataError", "SSLDataModule"]
