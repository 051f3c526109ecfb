"""`solo-mim check`: what is wrong with a data set, before a training is started on it."""

from __future__ import annotations

import argparse
from typing import Any

from solo_mim.commands.arguments import parser_of

DESCRIPTION = """Images by class, files that are not read, sizes, mean and deviation of the
channels, of the listing and a sample of the images. Further arguments are those of solo-mim
pretrain."""
EXAMPLES = """examples:
  solo-mim check data=image_folder data.train_path=D/train data.val_path=D/val
  solo-mim check data=image_folder data.train_path=D/train data.val_path=D/val --all

The exit code is 1 where a training would break or its figures would be false."""


def parser() -> argparse.ArgumentParser:
    """The command's own options; the rest is Hydra's."""
    parser = parser_of("check", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--all",
        action="store_true",
        help="decode every image, on all cores, name all that cannot be read, and find images of "
        "equal content in training and validation",
    )
    return parser


def run(arguments: list[str]) -> int:
    given, overrides = parser().parse_known_args(arguments)
    from solo_mim.data.check import check
    from solo_mim.recipe.checks import checked
    from solo_mim.recipe.compose import run_by_hydra

    wrong = False

    def job(cfg: Any) -> None:
        nonlocal wrong
        report = check(checked(cfg).plain["data"], given.all)
        wrong = wrong or report.wrong
        print(*report.lines, sep="\n")
        for note in report.notes:
            print(f"{'WRONG' if note.wrong else 'note'}: {note.text}")
        if not report.notes:
            print("nothing is wrong" + ("" if given.all else " with what was looked at"))

    code = run_by_hydra("pretrain", job, overrides)
    return code or int(wrong)
