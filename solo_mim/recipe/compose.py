"""Hydra: from files, groups and overrides to a configuration, and where in them a key was set."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from solo_mim import installed
from solo_mim.errors import ConfigError, RunError, nearest
from solo_mim.installed import CONFIG_FOLDER, OUR_BACKBONES, recipe_folders
from solo_mim.recipe.schema import LinearRecipe, PretrainRecipe, Recipe, node
from solo_mim.runs.identity import settings_of

# Where a key was set


def _position(key: str) -> list[str]:
    """A dotted key in its parts: `augmentations[0].crop_size` has three."""
    return re.sub(r"\[(\d+)\]", r".\1", key).split(".")


def _holds(section: Any, position: list[str]) -> bool:
    for part in position:
        try:
            section = section[int(part) if isinstance(section, list) else part]
        except (LookupError, TypeError, ValueError):
            return False
    return True


def on_command_line(key: str) -> bool:
    """Whether an override sets a dotted key, a part of it, or the section around it."""
    if not HydraConfig.initialized():
        return False
    hydra, position = HydraConfig.get(), _position(key)
    for override in hydra.overrides.task:
        name = re.split("[@=]", override.lstrip("+~"))[0]
        is_group = name in hydra.runtime.choices
        if not is_group and all(a == b for a, b in zip(_position(name), position, strict=False)):
            return True
    return False


def place(key: str) -> str:
    """What Hydra took a dotted key from: "the command line", or the path of the file; empty where
    nothing sets it, or the configuration is not Hydra's."""
    if not HydraConfig.initialized():
        return ""
    if on_command_line(key):
        return "the command line"
    hydra, position = HydraConfig.get(), _position(key)
    folders = [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file"]
    loader = GlobalHydra.instance().config_loader()
    name, overrides = hydra.job.config_name, list(hydra.overrides.task)
    defaults = loader.compute_defaults_list(name, overrides, RunMode.RUN).defaults
    for default in reversed(defaults):  # the last one wins
        package = [part for part in (default.package or "").split(".") if part]
        file = _file_of(default.config_path or "", folders)
        if file is None or position[: len(package)] != package:
            continue
        if _holds(OmegaConf.to_container(OmegaConf.load(file)), position[len(package) :]):
            return str(file)
    return ""


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's options that say where configuration files are, and the remaining arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names = {"cfg": "c", "config-dir": "cd", "config-path": "cp", "config-name": "cn"}
    for option, short in names.items():
        parser.add_argument(f"--{option}", f"-{short}")
    return parser.parse_known_args(arguments)


def _file_of(config: str, folders: list[Path]) -> Path | None:
    """The file behind one of Hydra's config names, in the first folder that has it."""
    name = config if config.endswith(".yaml") else f"{config}.yaml"
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    return _COPIES.get(found, found) if found else None


def located(error: ConfigError, source: str | None = None) -> ConfigError:
    """The same error, its cause included, with the place of its key, which is looked up where no
    `source` is given. Its words are "unknown key 'a.b' ..." or "a.b ..." where it has one."""
    named = re.match(r"(?:unknown key ')?([a-z]\w*(?:[.[][\w.\[\]]+|(?=[:=']| must)))", str(error))
    source = place(named[1]) if source is None and named else source
    suffix = f" (set {'on' if source == 'the command line' else 'in'} {source})"
    if source and suffix not in str(error):
        error.args = (f"{error}{suffix}",)
    return error


def refusal(error: OmegaConfBaseException, of: type[Recipe] = PretrainRecipe) -> ConfigError:
    """OmegaConf's error in our words: the key, and the nearest of those that its section has."""
    key = str(error.full_key or error.key or "configuration")
    if not isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return ConfigError(f"{key}: {str(error).splitlines()[0]}")
    *parents, name = _position(key)
    schema: Any = node(of)
    while parents and OmegaConf.select(schema, ".".join(parents), throw_on_missing=False) is None:
        *parents, name = parents  # a whole section is unknown: its name is the mistake
    where = ".".join([*parents, name])
    known = set(OmegaConf.select(schema, ".".join(parents)) if parents else schema)
    if not parents:  # +budgt=cpu is a group's name misspelt
        known |= {folder.name for folder in CONFIG_FOLDER.iterdir() if folder.is_dir()}
    if name not in known:
        return ConfigError(f"unknown key '{where}'{nearest(name, known)}")
    # To the schema, but not to the file that Hydra was given.
    return ConfigError(f"no file here sets '{where}'; write +{where}=... to add it")


# Composing


def store(name: str, content: Any) -> None:
    """Keeps a configuration for `composed` and for defaults lists to find by a name."""
    ConfigStore.instance().store(name=name, node=content)


store("schema", node(PretrainRecipe))
store("linear_schema", node(LinearRecipe))
store("trained_with", {})  # of `configs/linear.yaml`, until a network is named


class _MoreFolders(SearchPathPlugin):
    """Hydra finds the recipes that installed plug-ins bring, and copies, after the shipped ones."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        copies = {f"copy of {file}": copy.parent for copy, file in _COPIES.items()}
        for provider, folder in {**recipe_folders(), **copies}.items():
            search_path.append(provider=provider, path=f"file://{folder}")


# Copy -> file. Hydra reads nothing but .yaml, and one of main's files is called all4one.yml.
_COPIES: dict[Path, Path] = {}


def _readable(name: str, folder: Path) -> str:
    """The name of a file in a folder as Hydra finds it, where need be by a copy."""
    stem = name.removesuffix(".yml").removesuffix(".yaml")
    file = folder / f"{stem}.yml"
    if (folder / f"{stem}.yaml").is_file() or not file.is_file():
        return name
    elsewhere = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, elsewhere, ignore_errors=True)
    _COPIES[Path(shutil.copy(file, elsewhere / f"{stem}.yaml"))] = file
    return stem


def _explained(error: BaseException, schema: type[Recipe], arguments: list[str]) -> ConfigError:
    """Hydra's and OmegaConf's errors in our words: the key, what sets it, what comes nearest."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, wanted = (error.missing_cfg_file or "").rpartition("/")
        if group == "backbone" and wanted in {*installed.host_backbones(), *OUR_BACKBONES}:
            return ConfigError(f"backbone={wanted}: it has no file; write backbone.name={wanted}")
        near = nearest(wanted, error.options)
        return ConfigError(f"{error.missing_cfg_file}: no such config{near}")
    cause = error.__cause__ or error.__context__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        source = "the command line"
        if config := re.match(r"In '(.+?)': ", str(error)):  # as in 'method/vicreg'
            given, _ = _options(arguments)
            named = [Path(folder) for folder in (given.config_path, given.config_dir) if folder]
            folders = [*named, CONFIG_FOLDER, *(copy.parent for copy in _COPIES)]
            source = str(_file_of(config[1], folders) or config[1])
        return located(refusal(cause, schema), source)
    override = getattr(error, "override", None)  # of one that does not parse
    return ConfigError(" ".join([*([f"{override}:"] if override else []), *str(error).split()]))


@contextlib.contextmanager
def _in_our_words(name: str, arguments: list[str]) -> Iterator[None]:
    """Hydra's errors of a configuration that it cannot compose are ConfigErrors in here."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        schema = LinearRecipe if name == "linear" else PretrainRecipe
        raise _explained(error, schema, arguments) from error
    except (YAMLError, UnicodeDecodeError) as error:
        # Hydra's frame that has opened the file names it.
        frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
        file = next((names["full_path"] for names in frames if "full_path" in names), "a file")
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} cannot be read, as YAML in UTF-8: {reason}") from error
    except ValueError as error:
        if not str(error).startswith("Config group override"):
            raise
        groups = [a for a in arguments if (CONFIG_FOLDER / a.lstrip("+").split("=")[0]).is_dir()]
        raise ConfigError(f"{' '.join(groups)}: a group takes the name of a file in it") from error


def composed(name: str, overrides: list[str], folder: Path = CONFIG_FOLDER) -> DictConfig:
    """The configuration of a name, in a folder or stored, with overrides.

    Raises:
        ConfigError: an override that does not parse, or of a key or group that does not exist.
    """
    Plugins.instance().register(_MoreFolders)
    name = _readable(name, folder)
    with (
        _in_our_words(name, overrides),
        initialize_config_dir(str(folder.absolute()), version_base="1.3"),
    ):
        return compose(name, overrides=[_added(_quoted(override)) for override in overrides])


# Sections whose keys are not the schema's: the method, the backbone or the optimiser checks them.
_OPEN = ("method_kwargs.", "backbone.kwargs.", "optimizer.kwargs.")


@functools.cache
def _schema_keys() -> set[str]:
    """Dotted keys of the schemas that hold no section, and are no group's name either."""
    both = [OmegaConf.to_container(node(of)) for of in (PretrainRecipe, LinearRecipe)]
    flat = {key: value for of in both for key, value in settings_of(of, ()).items()}
    groups = {folder.name for folder in CONFIG_FOLDER.iterdir()}
    return {key for key, value in flat.items() if not isinstance(value, dict)} - groups


def _added(argument: str) -> str:
    """`++` before a key of the schema or of an open section: whether the recipe's files set it is
    of no importance."""
    known = argument.startswith(_OPEN) or argument.split("=")[0] in _schema_keys()
    return f"++{argument}" if known and "=" in argument else argument


# Checkpoints are called `epoch=N.ckpt`, and folders anything.
_PATHS = (
    *("pretrained_feature_extractor", "resume_from_checkpoint", "backbone.weights"),
    *("data.train_path", "data.val_path", "output_dir"),
)
_SWEEP = re.compile(r"(choice|shuffle|sort|glob)\(")


def _quoted(argument: str) -> str:
    """With quotes around a path, or those of a sweep: Hydra's grammar takes `=`, quotes and
    parentheses in it amiss."""
    key, equals, value = argument.partition("=")
    is_path = value and value[0] not in "'\"" and value != "null" and not _SWEEP.match(value)
    if key.lstrip("+") not in _PATHS or not equals or not is_path:
        return argument
    paths = [value] if os.path.lexists(value) else value.split(",")
    return f"{key}={','.join(map(literal, paths))}"


def literal(value: Any) -> str:
    """A value in Hydra's grammar; text and paths in quotes."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(literal, value)) + "]"
    escaped = str(value).replace("'", r"\'")
    return f"'{escaped}'"


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """`key=value` of values by dotted key."""
    return [f"{key}={literal(value)}" for key, value in settings.items()]


# Hydra's own logs and folders, of which the shipped files want none; those of others do not say so.
_LEAVES_NOTHING = [
    *("hydra.run.dir=.", "hydra.sweep.dir=.", "hydra.sweep.subdir=.", "hydra.output_subdir=null"),
    *("hydra/job_logging=disabled", "hydra/hydra_logging=disabled"),
]


def _for_hydra(arguments: list[str]) -> list[str]:
    """Paths of checkpoints quoted, keys of open sections added, overrides before options, and
    --config-path absolute, for Hydra takes it as relative to a file."""
    found = [_added(_quoted(argument)) for argument in arguments]
    # Its parser does not take overrides on both sides of an option.
    found.sort(key=lambda argument: not re.match(r"~|\+*[\w./@\[\]]+=", argument))
    given, others = _options(found)
    options = {"cfg": given.cfg, "config-dir": given.config_dir}
    if given.config_path or given.config_name:
        others = [*_LEAVES_NOTHING, *others]
        folder = Path(given.config_path or CONFIG_FOLDER).absolute()
        options["config-path"] = given.config_path and str(folder)
        options["config-name"] = given.config_name and _readable(given.config_name, folder)
    return [*others, *(f"--{option}={value}" for option, value in options.items() if value)]


def run_by_hydra(
    command: str,
    job: Callable[[DictConfig], Any],
    arguments: list[str],
    line: list[str] | None = None,
) -> int:
    """Has Hydra compose `configs/COMMAND.yaml` with `arguments`, and calls `job` on what comes out.

    Args:
        line: the command's arguments, where they are not `arguments`: lightning starts further
            processes by it.

    Raises:
        ConfigError, RunError: of `job`; where it is a sweep's, the last of them, once it is done.
    """
    refused: list[ConfigError | RunError] = []
    broken: list[Exception] = []  # an error of another kind, which ends a sweep

    @hydra.main(config_path=str(CONFIG_FOLDER), config_name=command, version_base="1.3")
    def main(cfg: DictConfig) -> Any:
        if sys.argv[1:2] != [command]:
            sys.argv[1:] = [command, *(sys.argv[1:] if line is None else line)]
        OmegaConf.set_struct(cfg, False)
        try:
            return job(cfg)
        # To be raised below: here Hydra would print a line of its own and give a sweep's rest up.
        except (ConfigError, RunError) as error:
            refused.append(located(error) if isinstance(error, ConfigError) else error)
        except Exception as error:
            broken.append(error)
            raise
        return None

    Plugins.instance().register(_MoreFolders)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here and not as Hydra's printout
    sys.argv = [sys.argv[0], *_for_hydra(arguments)]
    try:
        with _in_our_words(command, sys.argv[1:]):
            main()
        last = refused.pop() if refused else None
    except ConfigError:
        if broken:
            raise broken[0] from None
        raise
    finally:
        HydraConfig.instance().cfg = None  # Hydra leaves it to the next run in this process
        for earlier in refused:  # of a sweep
            print(f"solo-mim: {earlier}", file=sys.stderr)
    if last:
        raise last
    return 0
