"""`solo-mim methods`: what can be trained here."""

from __future__ import annotations

import argparse

from solo_mim.commands.configuration import CONFIG_FOLDER


def run(arguments: list[str]) -> int:
    """Prints every method with where it comes from and whether a recipe ships for it."""
    parser = argparse.ArgumentParser(
        prog="solo-mim methods",
        description="List methods and backbones, and which of them have a recipe.",
    )
    parser.parse_args(arguments)
    from solo_mim import host
    from solo_mim.methods import origins, recipe_folders

    folders = [CONFIG_FOLDER, *recipe_folders().values()]
    recipes = {path.stem for folder in folders for path in (folder / "method").glob("*.yaml")}
    found = origins()
    print(f"{'method':<16}{'from':<26}recipe")
    for name, packages in sorted(found.items()):
        recipe = f"method={name}" if name in recipes else "-"
        print(f"{name:<16}{' and '.join(packages):<26}{recipe}")
    print("\nrecipe -: takes a YAML of your own, and is not tested here")
    if absent := sorted(recipes - set(found)):
        print(f"recipes for methods that only solo-learn main has: {', '.join(absent)}")
    print(f"backbones: {', '.join(host.BACKBONES)}")
    return 0
