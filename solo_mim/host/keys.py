"""The `method_kwargs` that a method class reads, found in its source.

solo-learn main names its keys in docstrings only and never looks at the others: a misspelt key
trains with the default. The source says what is read.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from solo_mim.errors import ConfigError, nearest

SECTION = "method_kwargs"
# By their names, sizes and divisors, of which zero would be NaN; and what must not be negative.
_POSITIVE = re.compile(r"\w+_(dim|heads|depth|prototypes|iters|epsilon)|(\w+_)?temperature(_\w)?")
_NOT_NEGATIVE = re.compile(r"lamb|scale_loss|clip_grad|\w+_(loss_weight|epochs|starts|eps|size)")
_LIBRARIES = ("builtins", "abc", "typing", "torch", "lightning", "lightning_fabric")


def method_keys(cls: type) -> dict[str, bool] | None:
    """The keys of `cfg.method_kwargs` that a method class reads -> whether it needs them.

    A key is read by `cfg.method_kwargs.x` or `cfg.method_kwargs["x"]`, which need it, or by
    anything that has a default for it: `omegaconf_select(cfg, "method_kwargs.x", 1)`,
    `cfg.method_kwargs.get("x")`. `is_missing(cfg, "method_kwargs.x")`, as main asserts, needs it.
    The methods of the class and of its parents are read, functions that they call are not.

    Returns:
        None where the section is handed on as a whole or the source is not there: the class then
        has to check its keys in `add_and_assert_specific_cfg`.
    """
    reads = _reads(cls)
    if reads.whole:
        return None
    optional = dict.fromkeys(reads.optional, False)
    return dict(sorted({**dict.fromkeys(reads.needed, True), **optional}.items()))


def numeric_keys(cls: type) -> dict[str, str]:
    """Those keys that a method class takes for numbers, `t: float = cfg.method_kwargs.t`, and the
    type that it says."""
    return _reads(cls).numeric


def check_method_kwargs(
    cfg: DictConfig, keys: Mapping[str, bool] | None, numeric: Mapping[str, str]
) -> None:
    """Refuses unknown, missing, mistyped and impossible `method_kwargs` of the run's configuration.

    Args:
        cfg: main's schema; read are `method` and `method_kwargs`.
        keys: known key -> required, of `method_keys`; with None only types are checked.
        numeric: keys whose value has to be a number or a truth value, and "int" where it has to be
            whole. The host's annotations say no more: DINO's `clip_grad: bool` is a norm.

    Raises:
        ConfigError: naming the key, and the nearest known one.
    """
    given: Any = OmegaConf.to_container(cfg.get(SECTION) or OmegaConf.create())
    for key in given:
        if keys is not None and key not in keys:
            raise ConfigError(f"unknown key '{SECTION}.{key}'{nearest(key, keys)}")
    required = [key for key, needed in (keys or {}).items() if needed]
    if missing := [key for key in required if given.get(key) in (None, "???")]:
        named = ", ".join(f"{SECTION}.{key}" for key in missing)
        raise ConfigError(f"method={cfg.method} needs {named}")
    for key, kind in sorted(numeric.items()):
        value = given.get(key)
        fits = isinstance(value, int if kind == "int" else (int, float))
        if value is not None and (not fits or (isinstance(value, bool) and kind != "bool")):
            needed = "a whole number" if kind == "int" else "a number"
            raise ConfigError(f"{SECTION}.{key}: {needed} is needed, not {value!r}")
    for key, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, (int, float)):
                continue
            positive, least = _POSITIVE.fullmatch(key), _NOT_NEGATIVE.fullmatch(key)
            if not math.isfinite(one) or (positive and one <= 0) or (least and one < 0):
                above = " above 0" if positive else " of 0 or more" if least else ""
                raise ConfigError(f"{SECTION}.{key}: a finite number{above} is needed, not {one}")


@functools.cache
def _reads(cls: type) -> _Reads:
    reads = _Reads()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in _LIBRARIES:
            continue
        for member in vars(base).values():
            member = member.fget if isinstance(member, property) else member
            member = getattr(member, "__func__", member)  # of static and class methods
            if not inspect.isfunction(member):
                continue
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(member)))
            except (OSError, SyntaxError):  # typed at a prompt; with text at the margin
                reads.whole = True
                continue
            reads.aliases = set()
            reads.visit(tree)
    return reads


class _Reads(ast.NodeVisitor):
    """Collects what a function does with `<anything>.method_kwargs`."""

    def __init__(self) -> None:
        self.needed: set[str] = set()
        self.optional: set[str] = set()
        self.numeric: dict[str, str] = {}
        self.whole = False
        self.aliases: set[str] = set()  # local names of the section

    def _is_section(self, node: ast.expr | None) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr == SECTION
        return isinstance(node, ast.Name) and node.id in self.aliases

    def _found(self, key: str, context: ast.expr_context) -> None:
        (self.needed if isinstance(context, ast.Load) else self.optional).add(key)

    def visit_Assign(self, node: ast.Assign) -> None:
        if self._is_section(node.value) and isinstance(node.targets[0], ast.Name):
            self.aliases.add(node.targets[0].id)
        else:
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        annotation = node.annotation.id if isinstance(node.annotation, ast.Name) else ""
        if annotation in ("int", "float", "bool") and (key := self._read(node.value)):
            self.numeric[key] = annotation
        self.generic_visit(node)

    def _read(self, node: ast.expr | None) -> str | None:
        """The key of `cfg.method_kwargs.x` and of `cfg.method_kwargs.get("x", ...)`."""
        if isinstance(node, ast.Attribute) and self._is_section(node.value):
            return node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            first = node.args[0] if node.args else None
            of_section = node.func.attr == "get" and self._is_section(node.func.value)
            if of_section and isinstance(first, ast.Constant):
                return str(first.value)
        return None

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
        dotted = [t for t in texts if isinstance(t, str) and re.fullmatch(rf"{SECTION}(\.\w+)+", t)]
        for key in dotted:
            found = self.needed if name == "is_missing" else self.optional
            found.add(key.split(".")[1])
        owner: ast.expr | None = None
        if isinstance(node.func, ast.Attribute) and name in ("get", "pop", "setdefault"):
            owner = node.func.value
        elif name in ("getattr", "hasattr") and node.args:
            owner = node.args[0]
        if self._is_section(owner) and texts:
            self.optional.add(str(texts[0]))
            for argument in (*node.args, *node.keywords):
                if argument is not owner:
                    self.visit(argument)
        elif isinstance(node.func, ast.Attribute) and self._is_section(node.func.value):
            self.whole = True  # .items(), .copy() and the like
        else:
            self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        left, right = node.left, node.comparators[0]
        if isinstance(left, ast.Constant) and self._is_section(right):  # "x" in cfg.method_kwargs
            self.optional.add(str(left.value))
        else:
            self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self._is_section(node.value) and isinstance(node.slice, ast.Constant):
            self._found(str(node.slice.value), node.ctx)
        else:
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self._is_section(node.value):
            self._found(node.attr, node.ctx)
        elif self._is_section(node):
            self.whole |= isinstance(node.ctx, ast.Load)
        else:
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self.whole |= self._is_section(node) and isinstance(node.ctx, ast.Load)
