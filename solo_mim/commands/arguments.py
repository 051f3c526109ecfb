"""Arguments that several commands take, and help that needs no import of what it is about."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import yaml

from solo_mim.installed import CONFIG_FOLDER, recipe_folders

# Groups below which what belongs to the data set and the method is chosen without being asked for,
# and the recipes of the studies in docs/results.
_UNLISTED = ("augmentations/", "data/", "study")


def is_override(argument: str) -> bool:
    """Whether an argument is Hydra's `key=value`, and no path."""
    return re.match(r"[+~]*[\w.@\[\]]+=", argument) is not None and not Path(argument).exists()


_KEYS = (
    "as of solo-mim pretrain: data=..., data.val_path=..., optimizer.batch_size=...; a file "
    "without a configuration beside it needs its backbone=... and data=..."
)


def parser_of(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    """One whose help shows the texts in the lines that they have."""
    raw = argparse.RawDescriptionHelpFormatter
    prog = f"solo-mim {command}"
    return argparse.ArgumentParser(prog, None, description, examples, formatter_class=raw)


def of_a_network(
    command: str, description: str, examples: str, file: str | None = None, keys: str = _KEYS
) -> argparse.ArgumentParser:
    """Of a command that takes a network, a `file` to write where one is named, and overrides, of
    which `keys` says what they are."""
    parser = parser_of(command, description, examples)
    parser.add_argument(
        "run",
        metavar="RUN",
        help="folder of a run, a checkpoint (ours or solo-learn's), or a state dict of torchvision "
        "or timm",
    )
    if file:
        parser.add_argument("file", metavar=file, help="to write")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=keys)
    return parser


def helped(command: str, arguments: list[str]) -> bool:
    """Prints what `configs/COMMAND.yaml` has for Hydra's help, without Hydra, where it is asked
    for."""
    if not {"--help", "-h"} & set(arguments):
        return False
    said = yaml.safe_load((CONFIG_FOLDER / f"{command}.yaml").read_text())["hydra"]["help"]
    groups: dict[str, set[str]] = {}
    for folder in (CONFIG_FOLDER, *recipe_folders().values()):
        for path in folder.rglob("*/*.yaml"):
            group = path.parent.relative_to(folder).as_posix()
            if not group.startswith(_UNLISTED):
                groups.setdefault(group, set()).add(path.stem)
    listed = "".join(f"{name}: {', '.join(sorted(groups[name]))}\n" for name in sorted(groups))
    text = said["template"].replace("${hydra.help.header}", said["header"].rstrip())
    print(text.replace("$APP_CONFIG_GROUPS", listed))
    return True
