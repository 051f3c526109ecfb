"""The command line: `solo-mim COMMAND ...`."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from solo_mim.errors import ConfigError, MissingHostError, nearest

COMMANDS = {
    "pretrain": "train any method on any data set; resumes or skips a run that is already there",
    "prepare": "ImageNet-100 out of ImageNet's archives or folders, and its verification",
    "linear": "linear classifier, or logistic regression, on a trained backbone",
    "knn": "weighted nearest neighbours by the features of a trained backbone",
    "embed": "features of a split, with pictures of them, spectrum and information",
    "export": "weights of a backbone for torchvision or timm",
    "report": "rank finished runs: tables, significance, pictures, one HTML page",
    "methods": "list methods and backbones, and which of them have a recipe",
    "bench": "measure time and memory of the losses beside those of the baselines",
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


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[list[int]]:
    """SIGTERM raises KeyboardInterrupt in here and is noted in what this gives.

    lightning's own handler keeps calling this one. By itself it would only take notice, and stop
    after the batch; outside of training there would be none.
    """
    noted: list[int] = []

    def interrupt(signum: int, _frame: Any) -> None:
        noted.append(signum)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    User errors are one line on stderr and exit code 2; so are Ctrl-C, with exit code 130, and
    SIGTERM, with 143.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    command, *rest = arguments
    with _terminated_like_interrupted() as terminated:
        try:
            if command not in COMMANDS:
                raise ConfigError(f"unknown command '{command}'{nearest(command, COMMANDS)}")
            # Imported here: torch and lightning take seconds that `--help` should not.
            return importlib.import_module(f"solo_mim.commands.{command}").run(rest)
        except (ConfigError, MissingHostError) as error:
            print(f"solo-mim: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stopped:
            standing = str(stopped) or "nothing was begun"
            print(f"\nsolo-mim: interrupted; {standing}", file=sys.stderr)
            return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
