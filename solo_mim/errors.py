"""Errors that speak to the person at the keyboard; commands print them as one line, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration key is missing, misspelt or has an impossible value."""


class RunError(RuntimeError):
    """A run cannot go on: it has diverged, its disk is full, or one of its processes died.

    Commands print it as one line too, but with exit code 1.
    """


class MissingHostError(ImportError):
    """solo-learn, whose training loop and baselines solo-mim extends, cannot be imported."""


def install_extra(name: str) -> str:
    """How to install one of the package's optional parts."""
    return f"pip install '.[{name}]' in the checkout of solo-mim"


def nearest(name: str, options: Iterable[str]) -> str:
    """`"; did you mean 'x'?"`, or all the options where nothing comes near."""
    known = sorted(str(option) for option in options)
    lower = {option.lower(): option for option in known}
    match = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.6)
    if match:
        return f"; did you mean '{lower[match[0]]}'?"
    return f"; known: {', '.join(known)}" if known else ""
