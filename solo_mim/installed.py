"""What is installed, found without importing any of it: solo-learn, and plug-ins with methods."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import subprocess
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Any

from solo_mim.errors import MissingHostError

PACKAGE = Path(__file__).parent
# A wheel carries the configs inside the package, a checkout beside it.
_CARRIED = PACKAGE / "configs"
CONFIG_FOLDER = _CARRIED if _CARRIED.is_dir() else PACKAGE.parent / "configs"
PLUGIN_GROUP = "solo_mim.methods"


def present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is absent
        return False


# solo-learn


@functools.cache
def host_location() -> Path:
    """Folder of solo-learn's package, `solo`.

    Raises:
        MissingHostError: there is none.
    """
    spec = importlib.util.find_spec("solo")
    if spec is None or not spec.submodule_search_locations:
        raise MissingHostError(
            "solo-learn is not installed (no module `solo`). Install it without its outdated pins: "
            'pip install --no-deps "solo-learn==1.0.2"'
        )
    return Path(next(iter(spec.submodule_search_locations)))


def host_generation() -> str:
    """`current` of a checkout of solo-learn main, `released` of 1.0.2."""
    # solo/backbones appeared with main's move to Hydra; 1.0.2 has them in solo/utils/backbones.py.
    return "current" if (host_location() / "backbones").is_dir() else "released"


@functools.cache
def host_version() -> str:
    """solo-learn's version; of main, whose number stands still, `main` and the commit."""
    if host_generation() == "current":
        return " ".join(filter(None, ["main", (commit_of(host_location().parent) or "")[:7]]))
    try:
        return importlib.metadata.version("solo-learn")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def commit_of(folder: Path) -> str | None:
    """Commit of a checkout, `+` appended when it has changes; None of a folder that is none."""
    if not (folder / ".git").exists():
        return None
    # A kill amid a refresh of the index would leave its lock.
    git = ["git", "-C", str(folder), "--no-optional-locks"]
    try:
        revision, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.strip() + ("+" if changes.strip() else "")


# Plug-ins (docs/plugins.md)


def plugins(**of: Any) -> EntryPoints:
    """What installed packages register under `PLUGIN_GROUP`; `name=` of one method alone."""
    return entry_points(group=PLUGIN_GROUP, **of)


def package_of(plugin: EntryPoint) -> str:
    """The package that registers a plug-in, with its version."""
    return f"{plugin.dist.name} {plugin.dist.version}" if plugin.dist else plugin.value


def plugin_packages(method: str | None) -> list[str]:
    """The packages, with their versions, that register a method of this name."""
    return [package_of(plugin) for plugin in plugins(name=method)]


def _locations(plugin: EntryPoint) -> list[Path]:
    """Folders of a plug-in's outermost package, for to find one further in imports those around it;
    or its file where it is a module alone."""
    try:
        spec = importlib.util.find_spec(plugin.value.partition(":")[0].partition(".")[0])
    except ValueError:  # no name of a module; `find_method` says so
        return []
    places = spec and (spec.submodule_search_locations or filter(None, [spec.origin]))
    return [Path(place) for place in places or []]


def plugin_sources(method: str | None) -> list[Path]:
    """Folders and files of the packages that register a method of this name."""
    return [place for plugin in plugins(name=method) for place in _locations(plugin)]


def recipe_folders() -> dict[str, Path]:
    """Package -> the folder `configs` inside it, where that has a recipe of one of its methods."""
    return {
        package_of(plugin): place / "configs"
        for plugin in plugins()
        for place in _locations(plugin)
        if (place / "configs" / "method" / f"{plugin.name}.yaml").is_file()
    }


# Methods and backbones, by name

OUR_METHODS = ("corinfomax", "explicit_mim", "frossl", "lejepa", "mec", "visreg")
OUR_BACKBONES = ("small_cnn",)


def host_methods() -> list[str]:
    """Names of solo-learn's methods, read from its source."""
    names = _names_in(host_location() / "methods" / "__init__.py", "METHODS")
    return [name for name in names if name not in ("base", "linear")]


def host_backbones() -> list[str]:
    """Names of solo-learn's backbones, read from its source."""
    literal = "_BACKBONES" if host_generation() == "current" else "_SUPPORTED_ENCODERS"
    return _names_in(host_location() / "methods" / "base.py", literal)


def _names_in(file: Path, literal: str) -> list[str]:
    """The keys of a dictionary, or the entries of a list, that a module assigns to a name."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == literal:
            value: Any = node.value
            return [entry.value for entry in getattr(value, "keys", None) or value.elts]
    raise LookupError(f"{file} assigns no {literal}")


def origins() -> dict[str, list[str]]:
    """Name of each method -> the packages, with their versions, that offer it; one of them each,
    where names do not clash."""
    found = {name: [f"solo-learn {host_version()}"] for name in host_methods()}
    found |= {name: ["solo-mim"] for name in OUR_METHODS}
    for plugin in plugins():
        found.setdefault(plugin.name, []).append(package_of(plugin))
    return found
