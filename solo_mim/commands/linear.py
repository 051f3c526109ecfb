"""`solo-mim linear`: a linear classifier on a trained backbone, or a logistic regression on its
features."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from solo_mim.commands.arguments import helped, is_override

# Hydra's options that the next argument belongs to.
_TAKE_A_VALUE = {
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--cfg", "-c", "--package", "-p"),
}


def hydra_arguments(arguments: list[str]) -> list[str]:
    """Those of the command as Hydra takes them; what the network was trained with is put where
    `configs/linear.yaml` finds it.

    Raises:
        ConfigError: the network that is named is not there, or its data cannot be told.
    """
    from solo_mim import trained
    from solo_mim.protocols.linear import KEY, trained_with
    from solo_mim.recipe.compose import literal, store

    found: list[str] = []
    options: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        is_option = argument.startswith("-") or before in _TAKE_A_VALUE
        (options if is_option else found).append(argument)
    if found and not is_override(found[0]):
        found[0] = f"{KEY}={found[0]}"
    given = [a.partition("=")[2] for a in found if a.startswith(f"{KEY}=")]
    named = [path.strip("'").replace(r"\'", "'") for path in given]
    groups, others = trained.split(found)
    base: dict[str, Any] = {}
    if named:
        source = trained.find(named[-1])
        # Where Hydra leaves the list of a sweep.
        place = (source.run or trained.ELSEWHERE) / "linear"
        others.append(f"hydra.sweep.dir={literal(place)}")
        if source.cfg is not None or groups:
            chosen = [f"{group}={option}" for group, option in groups.items()]
            chosen += [argument for argument in others if argument.startswith("backbone.")]
            base = trained_with(trained.recipe_of(source, chosen).plain)
    store("trained_with", base)
    return [*others, *options]


def run(arguments: list[str]) -> int:
    """The command: the network, and Hydra's arguments."""
    if helped("linear", arguments):
        return 0
    from solo_mim.protocols.linear import linear
    from solo_mim.recipe.compose import run_by_hydra

    def job(cfg: Any) -> Any:
        return linear(cfg)["measured"][0]["top1"]  # Hydra's sweepers' objective, in percent

    return run_by_hydra("linear", job, hydra_arguments(arguments), arguments)
