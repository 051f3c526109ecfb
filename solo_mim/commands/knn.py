"""`solo-mim knn`: what the neighbours of an image say of its class, by frozen features."""

from __future__ import annotations

import argparse

from solo_mim.commands.arguments import of_a_network

DESCRIPTION = """Weighted k nearest neighbours on features of un-augmented images.

For cosine and euclidean distance each, k and temperature are chosen by predicting training images
from all others; the images to evaluate are used once, with what was chosen."""
EXAMPLES = """examples:
  solo-mim knn runs/explicit_mim-photo_patches-seed5-1a2b3c4d
  solo-mim knn RUN evaluation.test=true              test images, of a run with a validation split
  solo-mim knn RUN data=cifar10 data.train_path=D    other data than it was trained on
  solo-mim knn weights.pth backbone=resnet18 data=cifar10 data.train_path=D
"""


def parser() -> argparse.ArgumentParser:
    return of_a_network("knn", DESCRIPTION, EXAMPLES)


def run(arguments: list[str]) -> None:
    given = parser().parse_intermixed_args(arguments)
    from solo_mim.protocols.knn import knn

    knn(given.run, given.overrides)
