"""The options that methods declare: against what their sources read, and what is refused."""

import ast
import inspect
import re
import textwrap
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Literal

import pytest
from omegaconf import OmegaConf

from solo_mim import host
from solo_mim.errors import ConfigError
from solo_mim.host.baselines import OPTIONS
from solo_mim.installed import CONFIG_FOLDER
from solo_mim.methods import METHODS, OURS
from solo_mim.options import (
    Positive,
    ProjectorOptions,
    Share,
    Size,
    Weight,
    checked_options,
    described,
)

RECIPES = {path.stem for path in (CONFIG_FOLDER / "method").glob("*.yaml")}


@dataclass(frozen=True, kw_only=True)
class Toy(ProjectorOptions):
    """Of a toy.

    Attributes:
        depth: of the
            network.
        weight: of a term.
    """

    depth: Size
    mode: Literal["slow", "fast"]
    weight: Weight = 1.0
    rate: Positive | None = None
    share: Share = 0.5
    flag: bool = False
    sizes: list[Size] | None = None
    name: str = "toy"

    @staticmethod
    def renamed(options):
        found = dict(options)
        if "old" in found:
            import warnings

            warnings.warn("old is weight", FutureWarning, stacklevel=2)
            found["weight"] = found.pop("old")
        return found


GIVEN = {"depth": 2, "mode": "slow", "proj_hidden_dim": 8, "proj_output_dim": 4}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dept": 3}, r"unknown key 'method_kwargs.dept'; did you mean 'depth'"),
        ({"mode": None, "depth": "???"}, r"method=toy needs method_kwargs.depth, .*\.mode$"),
        ({"depth": "deep"}, r"method_kwargs.depth: a whole number is needed, not 'deep'"),
        ({"depth": 1.5}, r"method_kwargs.depth: a whole number is needed, not 1.5"),
        ({"depth": True}, r"method_kwargs.depth: a whole number is needed, not True"),
        ({"depth": 0}, r"method_kwargs.depth: a finite number above 0 is needed, not 0"),
        ({"mode": "fats"}, r"method_kwargs.mode: unknown value 'fats'; did you mean 'fast'"),
        ({"weight": -1}, r"method_kwargs.weight: a finite number of 0 or more is needed, not -1"),
        ({"weight": float("inf")}, r"method_kwargs.weight: a finite number .* not inf"),
        ({"rate": 0}, r"method_kwargs.rate: a finite number above 0 is needed, not 0"),
        ({"share": 1.1}, r"method_kwargs.share: a finite number from 0 to 1 is needed, not 1.1"),
        ({"flag": "yes"}, r"method_kwargs.flag: a whole number is needed, not 'yes'"),
        ({"sizes": [3, 0]}, r"method_kwargs.sizes: a finite number above 0 is needed, not 0"),
    ],
)
def test_what_is_misspelt_missing_or_impossible_is_refused_by_name(changed, message):
    with pytest.raises(ConfigError, match=message):
        checked_options(Toy, {**GIVEN, **changed}, "toy")


def test_null_asks_for_the_default_and_old_names_are_told_of():
    found = checked_options(Toy, {**GIVEN, "weight": None, "flag": True, "sizes": [1, 2]})
    assert found == Toy(**GIVEN, flag=True, sizes=[1, 2])
    with pytest.warns(FutureWarning, match="^method_kwargs: old is weight"):
        assert checked_options(Toy, {**GIVEN, "old": 3}).weight == 3


def test_options_are_described_with_types_ranges_defaults_and_a_line_each():
    rows = {name: row for name, *row in described(Toy)}
    assert rows["proj_hidden_dim"] == [
        *("int above 0", "required", "neurons in the hidden layers of the projector.")
    ]
    assert rows["depth"] == ["int above 0", "required", "of the network."]
    assert rows["mode"] == ["slow | fast", "required", ""]
    assert rows["rate"] == ["float above 0", "null", ""]
    assert rows["share"] == ["float from 0 to 1", "0.5", ""]


@pytest.mark.parametrize("method", OURS)
def test_every_option_of_ours_has_a_line(method):
    rows = described(OURS[method].Options)
    assert [name for name, *_, line in rows if not line] == []


@pytest.mark.parametrize("method", sorted(RECIPES & set(host.METHODS)))
def test_no_number_of_a_recipe_may_be_negative_and_no_size_or_divisor_zero(method, compose_cfg):
    given = OmegaConf.to_container(compose_cfg(f"method={method}").method_kwargs)
    numbers = [key for key, value in given.items() if type(value) in (int, float, list)]
    for key in numbers:
        divides = re.search("_dim|depth|prototypes$|iters|epsilon|temperature(?!_epochs)", key)
        for value in (-3, [-3], float("nan"), float("inf"), *([0] if divides else [])):
            with pytest.raises(ConfigError, match=rf"method_kwargs.{key}: a .*number"):
                checked_options(METHODS[method].Options, {**given, key: value}, method)


# What solo-learn's own classes read


def test_baselines_of_the_released_host_take_what_is_declared():
    if host.GENERATION != "released":
        pytest.skip("solo-learn main has no constructors of options")
    from solo_mim.host.baselines import RELEASED_OPTIONS
    from solo_mim.host.released import host_methods

    for name in host.METHODS:
        signature = inspect.signature(host_methods.METHODS[name].__init__).parameters
        own = [p.name for p in signature.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert {f.name for f in fields(RELEASED_OPTIONS[name])} == set(own) - {"self"}, name


def test_baselines_of_main_read_what_is_declared_with_those_defaults():
    if host.GENERATION != "current":
        pytest.skip("solo-learn 1.0.2 reads no method_kwargs")
    from solo_mim.host.current import host_methods

    assert set(OPTIONS) == set(host.METHODS)
    for name in host.METHODS:
        needed, defaults = reads_of(host_methods.METHODS[name])
        declared = {f.name: f for f in fields(OPTIONS[name])}
        assert needed | set(defaults) == set(declared), name
        for key, value in defaults.items():
            field = declared[key]
            made = field.default if field.default is not MISSING else field.default_factory()
            assert made == value, (name, key)


def test_this_file_passes_on_solo_learn_main(passes_on_main):
    passes_on_main(Path(__file__))


def reads_of(cls):
    """The keys of `cfg.method_kwargs` that a class of main reads without a default, and those with
    one, `omegaconf_select(cfg, "method_kwargs.x", 1)`."""
    needed, defaults = set(), {}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] != "solo":
            continue
        for member in vars(base).values():
            member = getattr(getattr(member, "fget", member), "__func__", member)
            if not inspect.isfunction(member):
                continue
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(member)))):
                if (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "id", "") == "omegaconf_select"
                ):
                    _, key, value = (*node.args, None)[:3]
                    if key.value.startswith("method_kwargs."):
                        defaults[key.value.split(".")[1]] = ast.literal_eval(value)
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    owner = node.value
                    if isinstance(owner, ast.Attribute) and owner.attr == "method_kwargs":
                        needed.add(node.attr)
    return needed - set(defaults), defaults
