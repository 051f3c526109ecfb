"""A method's options as a dataclass: names, types, ranges, defaults, and a line on each.

A method has it as its class attribute `Options`::

    @dataclass(frozen=True, kw_only=True)
    class Options(ProjectorOptions):
        \"\"\"`method_kwargs` of the method.

        Attributes:
            weight: of the uniformity.
        \"\"\"

        weight: Weight = 1.0

From it come the refusal of what is misspelt, missing or impossible (`checked_options`), and the
table that `solo-mim methods NAME` prints (`described`).
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from itertools import chain
from typing import Annotated, Any, Literal, TypeVar

from solo_mim.errors import ConfigError, nearest

SECTION = "method_kwargs"
_Options = TypeVar("_Options")


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; all are finite. `above`: `least` itself is none of them."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        more = value > self.least if self.above else value >= self.least
        return math.isfinite(value) and more and value <= self.most

    def __str__(self) -> str:
        if self.most < math.inf:
            return f" {'above' if self.above else 'from'} {self.least:g} to {self.most:g}"
        if self.least == -math.inf:
            return ""
        return f" above {self.least:g}" if self.above else f" of {self.least:g} or more"


Size = Annotated[int, Range(0, above=True)]
Count = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Weight = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True, kw_only=True)
class ProjectorOptions:
    """Of a method with a projector.

    Attributes:
        proj_hidden_dim: neurons in the hidden layers of the projector.
        proj_output_dim: dimensions of the projected features.
    """

    proj_hidden_dim: Size
    proj_output_dim: Size


def checked_options(
    declared: type[_Options], given: Mapping[str, Any], method: str = ""
) -> _Options:
    """An instance of options of what a configuration gives; None asks for the default.

    Args:
        declared: a dataclass. Its static method `renamed`, where it has one, brings older names and
            values to today's, and warns of them.
        method: whose they are, for the error.

    Raises:
        ConfigError: naming the key, and of an unknown one the nearest that is known.
    """
    known = {field.name: field for field in fields(declared)}  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as older:
        warnings.simplefilter("always")
        given = getattr(declared, "renamed", dict)(given)
    for warning in older:
        warnings.warn(f"{SECTION}: {warning.message}", FutureWarning, stacklevel=1)
    for key in given:
        if key not in known:
            raise ConfigError(f"unknown key '{SECTION}.{key}'{nearest(str(key), known)}")
    hints = typing.get_type_hints(declared, include_extras=True)
    values = {key: value for key, value in given.items() if value not in (None, "???")}
    for key, value in values.items():
        _check(f"{SECTION}.{key}", hints[key], value)
    needed = [
        f"{SECTION}.{key}"
        for key, field in known.items()
        if key not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if needed:
        raise ConfigError(f"method={method} needs {', '.join(needed)}")
    try:
        return declared(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{SECTION}: {error}") from error


def _check(key: str, hint: Any, value: Any) -> None:
    kinds, choices, ranges = _parts(hint)
    if choices:
        if value not in choices:
            raise ConfigError(f"{key}: unknown value '{value}'{nearest(str(value), choices)}")
        return
    if not {int, float, bool, list} & set(kinds):
        return
    whole = float not in kinds
    for one in value if isinstance(value, list | tuple) and list in kinds else [value]:
        if isinstance(one, bool) and bool in kinds:
            continue
        if isinstance(one, bool) or not isinstance(one, int if whole else int | float):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"{key}: {kind} is needed, not {one!r}")
        (allowed,) = ranges or (Range(),)
        if one not in allowed:
            raise ConfigError(f"{key}: a finite number{allowed} is needed, not {one}")


def _parts(hint: Any) -> tuple[list[Any], list[Any], list[Range]]:
    """The types that a value may have, `list` for lists of numbers; its choices; its range."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return [], list(arguments), []
    if origin is Annotated:
        kinds, choices, _ = _parts(arguments[0])
        return kinds, choices, [one for one in arguments if isinstance(one, Range)]
    if origin not in (list, typing.Union, types.UnionType):
        return [hint], [], []
    kinds, choices, ranges = (list(chain(*of)) for of in zip(*map(_parts, arguments), strict=True))
    return [list, *kinds] if origin is list else kinds, choices, ranges


def described(declared: type) -> list[tuple[str, str, str, str]]:
    """Of each option its name, its type and range, its default, and what it is."""
    hints = typing.get_type_hints(declared, include_extras=True)
    lines: dict[str, str] = {}
    for cls in reversed(declared.__mro__):
        lines |= _attributes(cls.__doc__ or "")
    rows = []
    for field in fields(declared):
        kinds, choices, ranges = _parts(hints[field.name])
        names = [getattr(kind, "__name__", str(kind)) for kind in kinds if kind is not type(None)]
        what = " | ".join(map(str, choices) if choices else dict.fromkeys(names)) + str(*ranges)
        default = field.default
        if default is MISSING and field.default_factory is not MISSING:
            default = field.default_factory()
        said = "required" if default is MISSING else "null" if default is None else str(default)
        rows.append((field.name, what, said, lines.get(field.name, "")))
    return rows


def _attributes(docstring: str) -> dict[str, str]:
    """The section `Attributes` of a docstring: name -> its text in one line."""
    _, _, section = inspect.cleandoc(docstring).partition("Attributes:\n")
    found: dict[str, str] = {}
    for line in section.splitlines():
        if start := re.match(r"    (\w+): (.*)", line):
            name = start[1]
            found[name] = start[2]
        elif found and line.startswith("        "):
            found[name] += f" {line.strip()}"
        elif line.strip():
            break
    return found
