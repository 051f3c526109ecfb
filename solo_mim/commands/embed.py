"""`solo-mim embed`: the features of a split, and what they look like."""

from __future__ import annotations

import argparse

from solo_mim.commands.arguments import of_a_network
from solo_mim.runs.files import ARRAYS, PLANES, RESULT, SPECTRA

DESCRIPTION = f"""The features of a split's un-augmented images, and z where the checkpoint has a
projector of a method that is known: {ARRAYS} (features, z, targets, class_names), {PLANES} (PCA
beside UMAP, or beside t-SNE where umap-learn is not installed), {SPECTRA} (spectrum of the
covariance), and in {RESULT} effective rank, RankMe, alpha-ReQ and LiDAR, and the information that
two fresh augmentations of an image share, beside its bias and what shuffled pairs give."""
EXAMPLES = """examples:
  solo-mim embed runs/explicit_mim-photo_patches-seed5-1a2b3c4d
  solo-mim embed RUN --split train
  solo-mim embed weights.pth backbone=resnet18 data=cifar10 data.train_path=D
"""


def parser() -> argparse.ArgumentParser:
    parser = of_a_network("embed", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="default: val, or test where evaluation.test=true opens it",
    )
    return parser


def run(arguments: list[str]) -> None:
    given = parser().parse_intermixed_args(arguments)
    from solo_mim.protocols.embed import embed

    embed(given.run, given.overrides, given.split)
