"""The command line: `solo-mim pretrain | doctor | methods`."""

from __future__ import annotations

import importlib
import sys

from solo_mim.errors import ConfigError, MissingHostError, nearest

COMMANDS = {
    "pretrain": "train any method on any data set; resumes or skips a run that is already there",
    "methods": "list methods and backbones, and which of them have a recipe",
    "doctor": "tell what is installed: host, versions, devices, optional parts",
}

USAGE = "\n".join(
    [
        "solo-mim: explicit mutual information maximisation beside the solo-learn baselines",
        "",
        "usage: solo-mim COMMAND [--help] ...",
        "",
        *(f"  {name:<10} {what}" for name, what in COMMANDS.items()),
        "",
        "example: solo-mim pretrain method=vicreg data=photo_patches max_epochs=5",
    ]
)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; user errors are one line on stderr and exit code 2."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    command, *rest = arguments
    try:
        if command not in COMMANDS:
            raise ConfigError(f"unknown command '{command}'{nearest(command, COMMANDS)}")
        # Imported here: torch and lightning take seconds that `--help` should not.
        return importlib.import_module(f"solo_mim.commands.{command}").run(rest)
    except (ConfigError, MissingHostError) as error:
        print(f"solo-mim: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
