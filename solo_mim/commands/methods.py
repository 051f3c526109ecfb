"""`solo-mim methods`: what can be trained here, and by which options."""

from __future__ import annotations

import argparse
import textwrap

from solo_mim import installed


def _listed() -> None:
    """Every method with where it comes from and whether a recipe ships for it."""
    folders = [installed.CONFIG_FOLDER, *installed.recipe_folders().values()]
    recipes = {path.stem for folder in folders for path in (folder / "method").glob("*.yaml")}
    found = installed.origins()
    print(f"{'method':<16}{'from':<26}recipe")
    for name, packages in sorted(found.items()):
        recipe = f"method={name}" if name in recipes else "-"
        print(f"{name:<16}{' and '.join(packages):<26}{recipe}")
    print("\nrecipe -: takes a YAML of your own, and is not tested here")
    if absent := sorted(recipes - set(found)):
        print(f"recipes for methods that only solo-learn main has: {', '.join(absent)}")
    backbones = sorted([*installed.host_backbones(), *installed.OUR_BACKBONES])
    print(f"backbones: {', '.join(backbones)}")
    print("solo-mim methods NAME: its method_kwargs")


def _described(name: str) -> None:
    from solo_mim.methods import find_method
    from solo_mim.options import described

    declared = getattr(find_method(name), "Options", None)
    if declared is None:
        print(f"{name} declares no options: its method_kwargs are not checked")
        return
    rows = [("method_kwargs", "type", "default", ""), *described(declared)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for key, kind, default, what in rows:
        first, *more = textwrap.wrap(what, 60) or [""]
        cells = zip((key, kind, default), widths, strict=True)
        print("  ".join([*(f"{cell:<{width}}" for cell, width in cells), first]).rstrip())
        for line in more:
            print(" " * (sum(widths) + 6) + line)


def run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="solo-mim methods",
        description="List methods and backbones, and which of them have a recipe; or the options "
        "of one method, with their defaults.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="of a method")
    name = parser.parse_args(arguments).name
    _described(name) if name else _listed()
