"""Every method that can be trained: solo-learn's, as its host generation offers them, ours, and
those of installed plug-ins (docs/plugins.md)."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from solo_mim import host
from solo_mim.errors import ConfigError, nearest
from solo_mim.methods.explicit_mim import ExplicitMIM
from solo_mim.methods.rivals import MEC, CorInfoMax, FroSSL, LeJEPA, VISReg

METHODS: dict[str, type] = {
    **host.METHODS,
    "corinfomax": CorInfoMax,
    "explicit_mim": ExplicitMIM,
    "frossl": FroSSL,
    "lejepa": LeJEPA,
    "mec": MEC,
    "visreg": VISReg,
}

GROUP = "solo_mim.methods"


def plugins() -> dict[str, list[EntryPoint]]:
    """What installed packages register under `GROUP`, by name; none of it is imported."""
    found: dict[str, list[EntryPoint]] = {}
    for plugin in entry_points(group=GROUP):
        found.setdefault(plugin.name, []).append(plugin)
    return found


def _package(plugin: EntryPoint) -> str:
    return f"{plugin.dist.name} {plugin.dist.version}" if plugin.dist else plugin.value


def origins() -> dict[str, list[str]]:
    """Name of each method -> the packages, with their versions, that offer it; one of them each,
    where names do not clash."""
    found = {
        name: [f"solo-learn {host.host_version()}" if method is theirs else "solo-mim"]
        for name, method in METHODS.items()
        for theirs in [host.METHODS.get(name)]
    }
    for name, claims in plugins().items():
        found.setdefault(name, []).extend(map(_package, claims))
    return found


def find_method(name: str) -> Any:
    """The class that `method=name` trains; only the plug-in that is asked for is imported.

    Raises:
        ConfigError: no package offers the name or several do; or the plug-in of that name cannot be
            imported, or is no subclass of the host's base classes.
    """
    sources = origins()
    if name not in sources:
        raise ConfigError(f"method: unknown method '{name}'{nearest(name, sources)}")
    if len(sources[name]) > 1:
        raise ConfigError(
            f"method={name} is offered by {' and by '.join(sources[name])}; "
            "uninstall one of them or have it renamed"
        )
    if name in METHODS:
        return METHODS[name]
    (plugin,) = plugins()[name]
    what = f"method={name}: {plugin.value} of {_package(plugin)}"
    try:
        method = plugin.load()
    # Whatever the package raises while it is imported is the package's mistake.
    except (Exception, SystemExit) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{what} cannot be imported ({cause}); mend or uninstall it") from error
    bases = (host.BaseMethod, host.BaseMomentumMethod)
    if not (isinstance(method, type) and issubclass(method, bases)):
        raise ConfigError(
            f"{what} is no method: it has to be a class that inherits solo_mim.host.BaseMethod or "
            "BaseMomentumMethod"
        )
    return method


def _locations(plugin: EntryPoint) -> list[Path]:
    """Folders of a plug-in's outermost package, or its file where it is a module alone.

    Of the outermost, for finding one further in would import those around it.
    """
    try:
        spec = find_spec(plugin.value.partition(":")[0].partition(".")[0])
    except ValueError:  # no name of a module; `find_method` says so
        return []
    if spec is None:
        return []
    return [Path(place) for place in spec.submodule_search_locations or filter(None, [spec.origin])]


def plugin_sources(method: str | None) -> list[Path]:
    """Where the package of a plug-in's method lies, as folders and files; empty for any other, and
    where it is not installed."""
    claims = [] if method is None or method in METHODS else plugins().get(method, [])
    return [place for plugin in claims for place in _locations(plugin)]


def recipe_folders() -> dict[str, Path]:
    """Package -> the folder `configs` inside it, where that has a recipe of one of its methods."""
    found = {}
    for name, claims in plugins().items():
        for plugin in claims:
            for location in _locations(plugin):
                folder = location / "configs"
                if (folder / "method" / f"{name}.yaml").is_file():
                    found[_package(plugin)] = folder
    return found


__all__ = [
    "GROUP",
    "MEC",
    "METHODS",
    "CorInfoMax",
    "ExplicitMIM",
    "FroSSL",
    "LeJEPA",
    "VISReg",
    "find_method",
    "origins",
    "plugin_sources",
    "plugins",
    "recipe_folders",
]
