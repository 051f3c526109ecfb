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
    from solo_mim.methods import METHODS

    recipes = {path.stem for path in (CONFIG_FOLDER / "method").glob("*.yaml")}
    origin = f"solo-learn {host.host_version()}"
    print(f"{'method':<16}{'from':<20}recipe")
    for name in sorted(METHODS):
        source = origin if name in host.METHODS else "solo-mim"
        print(f"{name:<16}{source:<20}{f'method={name}' if name in recipes else '-'}")
    print("\nrecipe -: takes a YAML of your own, and is not tested here")
    print(f"backbones: {', '.join(host.BACKBONES)}")
    return 0
