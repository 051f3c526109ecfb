"""`solo-mim pretrain`: trains one method on one data set and says what came of it."""

from __future__ import annotations

from typing import Any

from solo_mim.commands.arguments import helped


def run(arguments: list[str]) -> int:
    """The command: `arguments` are Hydra's."""
    if helped("pretrain", arguments):
        return 0
    from solo_mim.recipe.checks import checked
    from solo_mim.recipe.compose import run_by_hydra
    from solo_mim.recipe.schema import PretrainRecipe
    from solo_mim.training import pretrain

    def job(cfg: Any) -> float | None:
        objective: float | None = pretrain(checked(cfg))["online"]["knn_top1"]
        return objective  # of Hydra's sweepers, in percent

    return run_by_hydra("pretrain", job, arguments, PretrainRecipe)
