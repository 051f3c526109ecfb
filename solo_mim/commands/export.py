"""`solo-mim export`: the weights of a backbone for torchvision, timm or the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from solo_mim.commands.arguments import of_a_network

DESCRIPTION = """The backbone as a state dict that a model of torchvision or timm loads, and beside
it a JSON file with the lines of Python that do. Features are compared before anything is written.

timm-hub writes a folder as timm has it on the Hugging Face Hub, config.json and model.safetensors,
which timm.create_model("local-dir:FOLDER", pretrained=True) loads."""
EXAMPLES = """examples:
  solo-mim export RUN --to torchvision resnet18.pth
  solo-mim export RUN --to timm vit.pth
  solo-mim export RUN --to timm-hub FOLDER
  solo-mim export trained.ckpt --to timm resnet18.pth backbone=resnet18
"""


def parser() -> argparse.ArgumentParser:
    parser = of_a_network("export", DESCRIPTION, EXAMPLES, file="OUT.pth|FOLDER")
    parser.add_argument(
        "--to",
        choices=("torchvision", "timm", "timm-hub"),
        required=True,
        help="the library, or timm's layout of the Hub",
    )
    return parser


def run(arguments: list[str]) -> None:
    given = parser().parse_intermixed_args(arguments)
    from solo_mim.protocols.export import export

    export(given.run, given.to, Path(given.file), given.overrides)
