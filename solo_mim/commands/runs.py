"""`solo-mim runs`: what runs there are, and what has become of each."""

from __future__ import annotations

import argparse
from pathlib import Path

from solo_mim.commands.arguments import is_override, parser_of
from solo_mim.errors import ConfigError

DESCRIPTION = """A table of the runs below folders: method, data, seed, epochs done, state (running,
finished, failed, stopped, damaged), top-1 of probe and kNN (offline, or online where there is no
offline figure), space on disk. A stopped run goes on by the command that began it."""
EXAMPLES = """examples:
  solo-mim runs                                 those below ./runs
  solo-mim runs runs other/runs state=failed    of several folders; failed ones, with the reason
  solo-mim runs method=vicreg optimizer.lr=0.3  any key of the configuration
"""


def parser() -> argparse.ArgumentParser:
    parser = parser_of("runs", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "arguments", metavar="FOLDER | key=value", nargs="*", help="folders, and filters"
    )
    return parser


def run(arguments: list[str]) -> None:
    given = parser().parse_args(arguments).arguments
    filters = [argument for argument in given if is_override(argument)]
    folders = [Path(argument) for argument in given if argument not in filters] or [Path("runs")]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder")
    from solo_mim.runs.listing import filtered, listed, table

    runs = filtered(listed(folders), filters)
    where = " and ".join(map(str, folders))
    print(table(runs) if runs else f"no run{' of these' if filters else ''} in {where}")
