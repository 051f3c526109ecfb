"""`solo-mim transfer`: frozen features on several data sets, with few and with all labels."""

from __future__ import annotations

import argparse

from solo_mim.commands.arguments import of_a_network

DESCRIPTION = """One trained network on several data sets: logistic regression and nearest
neighbours on frozen features of un-augmented images, resized and normalised as those of its
training.

Features are extracted once for each data set. Penalty, distance, k and temperature are chosen on
the training images of each subset of the labels; held-out images are used once, with these."""
EXAMPLES = """examples:
  solo-mim transfer RUN --data photo_patches
  solo-mim transfer RUN --data cifar10=datasets stl10=datasets flowers=FOLDER
  solo-mim transfer RUN --data flowers=FOLDER --shares 0.1 1 --seeds 5
  solo-mim transfer RUN data.on_corrupt=skip --data flowers=FOLDER
  solo-mim transfer weights.pth backbone=resnet50 augmentations.0.crop_size=224 --data pets=FOLDER

FOLDER of images of your own holds train/ and val/ (or test/), and each of these a folder for each
class; that of a built-in set is the one which holds its archive."""


def parser() -> argparse.ArgumentParser:
    keys = (
        "as of solo-mim pretrain: optimizer.batch_size=..., accelerator=cpu, data.on_corrupt=skip"
    )
    parser = of_a_network("transfer", DESCRIPTION, EXAMPLES, keys=keys)
    parser.add_argument(
        "--data",
        metavar="NAME[=FOLDER]",
        nargs="+",
        action="extend",
        default=[],
        help="photo_patches, cifar10, cifar100, fashion_mnist, stl10, "
        "imagenet, imagenet100, or any other name of images in folders",
    )
    parser.add_argument(
        "--shares",
        metavar="SHARE",
        nargs="+",
        help="of the training labels, by class (default: 0.01 0.1 1, as far as they hold an image "
        "of each class)",
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        default="3",
        help="subsets drawn for each share below 1 (default: 3)",
    )
    return parser


def run(arguments: list[str]) -> None:
    given = parser().parse_intermixed_args(arguments)
    from solo_mim.protocols.transfer import transfer

    transfer(given.run, given.data, given.overrides, given.shares, given.seeds)
