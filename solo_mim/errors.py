"""Errors that speak to the person at the keyboard; commands print them as one line, exit code 2."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence


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


# Of torch where it has no type of its own for them: on CPUs, in loaders' processes, in CUDA's
# libraries.
_OUT_OF_MEMORY = re.compile(r"out of memory|[Cc]an(not|'t) allocate memory|_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is the machine's memory, or a GPU's, that did not suffice."""
    return (
        isinstance(error, MemoryError)
        or getattr(error, "errno", None) == errno.ENOMEM
        or (isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error))))
    )


def out_of_memory(error: BaseException) -> str:
    """One line on such an error, with the remedy."""
    where = " of the GPU" if re.search("CUDA|CUBLAS|CUDNN", str(error)) else ""
    asked = re.search(r"allocate (\d[\d.]* ?\w+)", str(error))
    more = f" ({asked[1]} more were needed)" if asked else ""
    return (
        f"out of memory{where}{more}: lower optimizer.batch_size, or the dimensions in "
        "method_kwargs and backbone"
    )


def epochs(number: int) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{number} epoch{'' if number == 1 else 's'}"


def first(names: Sequence[str], count: int = 3) -> str:
    """The first few names of a list, `...` for others."""
    return ", ".join([*names[:count], *(["..."] if len(names) > count else [])])


def nearest(name: str, options: Iterable[str]) -> str:
    """`"; did you mean 'x'?"`, or all the options where nothing comes near."""
    known = sorted(str(option) for option in options)
    lower = {option.lower(): option for option in known}
    match = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.6)
    if match:
        return f"; did you mean '{lower[match[0]]}'?"
    return f"; known: {', '.join(known)}" if known else ""
