"""Every method that can be trained: solo-learn's, as its host generation offers them, ours, and
those of installed plug-ins (docs/plugins.md)."""

from __future__ import annotations

from typing import Any

from solo_mim import host, installed
from solo_mim.errors import ConfigError, nearest
from solo_mim.methods.explicit_mim import ExplicitMIM
from solo_mim.methods.rivals import MEC, CorInfoMax, FroSSL, LeJEPA, VISReg

OURS: dict[str, type] = {
    "corinfomax": CorInfoMax,
    "explicit_mim": ExplicitMIM,
    "frossl": FroSSL,
    "lejepa": LeJEPA,
    "mec": MEC,
    "visreg": VISReg,
}
METHODS: dict[str, type] = {**host.METHODS, **OURS}


def find_method(name: str) -> Any:
    """The class that `method=name` trains; only the plug-in that is asked for is imported.

    Raises:
        ConfigError: no package offers the name or several do; or the plug-in of that name cannot be
            imported, or is no subclass of the host's base classes.
    """
    sources = installed.origins()
    if name not in sources:
        if (installed.CONFIG_FOLDER / "method" / f"{name}.yaml").is_file():
            raise ConfigError(
                f"method={name} needs a checkout of solo-learn main on the import path; here it is "
                f"solo-learn {installed.host_version()}"
            )
        raise ConfigError(f"method: unknown method '{name}'{nearest(name, sources)}")
    if len(sources[name]) > 1:
        raise ConfigError(
            f"method={name} is offered by {' and by '.join(sources[name])}; "
            "uninstall one of them or have it renamed"
        )
    if name in METHODS:
        return METHODS[name]
    (plugin,) = installed.plugins(name=name)
    what = f"method={name}: {plugin.value} of {installed.package_of(plugin)}"
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
