"""`solo-mim pretrain`: trains one method on one data set and says what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from solo_mim.commands.arguments import helped
from solo_mim.errors import ConfigError


def prolonged(arguments: list[str]) -> list[str]:
    """With the configuration and the last checkpoint of a finished run in the place of
    `--prolong RUN`.

    Raises:
        ConfigError: none is named, or it is not finished.
    """
    if "--prolong" not in arguments:
        return arguments
    at = arguments.index("--prolong")
    if not any(argument.startswith("max_epochs=") for argument in arguments) or at + 1 == len(
        arguments
    ):
        raise ConfigError("--prolong takes a run and its new length: --prolong RUN max_epochs=200")
    from solo_mim.runs import files

    run = Path(arguments[at + 1])
    newest = files.newest_checkpoint(run)
    if newest is None or not (run / files.RESULT).exists():
        remedy = "the command that began it goes on" if run.is_dir() else "there is no such folder"
        raise ConfigError(f"--prolong {run}: no finished run with a checkpoint; {remedy}")
    own = ["--config-path", str(run), "--config-name", files.CONFIGURATION]
    state = [f"resume_from_checkpoint={newest[1]}", "backbone.weights=null"]
    return [*own, *state, *arguments[:at], *arguments[at + 2 :]]


def run(arguments: list[str]) -> int:
    """The command: `arguments` are Hydra's."""
    if helped("pretrain", arguments):
        return 0
    from solo_mim.recipe.checks import checked
    from solo_mim.recipe.compose import run_by_hydra
    from solo_mim.training import pretrain

    def job(cfg: Any) -> Any:
        return pretrain(checked(cfg))["online"]["knn_top1"]  # Hydra's sweepers' objective, in %

    return run_by_hydra("pretrain", job, prolonged(arguments))
