"""A trained network from whatever it lies in: a run's folder, a checkpoint, a plain state dict."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError

from solo_mim import host
from solo_mim.backbones import fitted_to_weights
from solo_mim.errors import ConfigError
from solo_mim.host.lifecycle import LATE_STATE
from solo_mim.methods import find_method
from solo_mim.options import checked_options
from solo_mim.recipe.checks import checked
from solo_mim.recipe.compose import composed, refusal, store
from solo_mim.recipe.schema import Backbone, PretrainRecipe, host_config, node
from solo_mim.runs import checkpoints, files
from solo_mim.runs.folder import RunFolder
from solo_mim.runs.identity import folder_by_identity
from solo_mim.runs.identity import host as host_identity

START = "backbone.weights"
# Where a part of them does not fit.
_REMEDIES = {
    "backbone": "name the backbone that it is of, with its backbone.kwargs and backbone.stem",
    "projector": "set its sizes in method_kwargs, or name a state dict of the backbone alone",
}
# Results on weights that are no run's.
ELSEWHERE = Path("evaluations")
# What training leaves in a checkpoint beside numbers; all of it is read as inert objects.
_TRAINING = re.compile(
    r"(torch|torchmetrics|numpy|lightning\w*|pytorch_lightning|solo|solo_mim|omegaconf|functools|"
    r"collections|argparse|pathlib|typing)\..*|(builtins|__builtin__)\.getattr"
)
# Of a network that was trained on classes; a backbone has none.
_HEAD = re.compile(r"(fc|head|classifier)\.(.*\.)?(weight|bias)")


@dataclass(frozen=True)
class Source:
    """Where a network comes from."""

    path: Path  # of the file with its weights
    run: Path | None  # folder of the run that it belongs to
    cfg: DictConfig | None  # as it lies beside it, as far as its keys are ours


def find(given: str | Path) -> Source:
    """A run's newest whole checkpoint, or a file with the configuration that belongs to it: that of
    the run around it, or solo-learn's `args.json` beside it.

    Raises:
        ConfigError: there is nothing, or the configuration cannot be read.
    """
    path = Path(given)
    if path.is_file() and not path.parent.name:  # called by its name alone
        path = path.absolute()
    run = path if path.is_dir() else path.parent.parent
    if path.is_dir():
        newest = files.newest_checkpoint(path)
        if newest is None:
            raise ConfigError(f"{path} holds no checkpoint of a run; name its folder, or a file")
        _, path = newest
    elif not path.is_file():
        raise ConfigError(f"{path} is not there; name the folder of a run, or a checkpoint")
    if path.parent.name == files.CHECKPOINTS and (run / files.CONFIGURATION).is_file():
        return Source(path, run, _configuration_in(run / files.CONFIGURATION))
    return Source(path, None, _configuration_in(path.parent / "args.json"))


def _configuration_in(path: Path) -> DictConfig | None:
    """What of a file are keys of ours; None where it is not there, or none of pre-training."""
    if not path.is_file():
        return None
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not {"backbone", "augmentations", "data"} <= set(content):
        return None
    content.pop("other_code", None)  # what was accepted of the run says nothing of evaluations
    known: Any = _known(content, OmegaConf.to_container(node(PretrainRecipe)))
    return OmegaConf.create(known)


def _known(node: Any, schema: Any) -> Any:
    """Without the keys that a section of the schema lacks; an empty one takes any."""
    if not isinstance(node, dict) or not isinstance(schema, dict) or not schema:
        return node
    return {key: _known(value, schema[key]) for key, value in node.items() if key in schema}


def split(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The groups `data` and `backbone` that overrides choose, and the other overrides."""
    chosen = [re.fullmatch(r"\+*(data|backbone)=(.*)", argument) for argument in arguments]
    groups = {group[1]: group[2] for group in chosen if group}
    others = [argument for argument, group in zip(arguments, chosen, strict=True) if not group]
    return groups, others


def recipe_of(source: Source, overrides: list[str], needs_data: bool = True) -> PretrainRecipe:
    """The recipe of pre-training that a network is evaluated under.

    It is the network's own, with another data set or backbone where `overrides` choose one; the
    images keep the size that it was trained on. Without one it is the shipped one of the chosen
    backbone and data set, which has to be named where it `needs_data`.

    Args:
        overrides: `group=option` and `key=value`, as of `solo-mim pretrain`.

    Raises:
        ConfigError: an override is refused, or backbone or data has to be named.
    """
    groups, keys = split(overrides)
    if source.cfg is None:
        named = "backbone" in groups or any(k.startswith("backbone.name=") for k in keys)
        if not named or (needs_data and "data" not in groups):
            raise nameless(source.path, needs_data)
        return checked(composed("pretrain", overrides))
    cfg = source.cfg.copy()
    if groups:
        shipped = composed("pretrain", [f"{name}={option}" for name, option in groups.items()])
        cfg.update({name: shipped[name] for name in groups})
    try:
        complete = OmegaConf.merge(node(PretrainRecipe), cfg)
    except OmegaConfBaseException as error:
        raise refusal(error) from error
    store("trained", OmegaConf.to_container(complete))
    return checked(composed("trained", keys))


def nameless(path: Path, needs_data: bool = True) -> ConfigError:
    """Of a file without a configuration."""
    data = " data=cifar10 data.train_path=FOLDER" if needs_data else ""
    what = "its backbone and the data" if needs_data else "its backbone"
    return ConfigError(
        f"{path} has no configuration beside it: name {what}, as in backbone=resnet18{data}"
    )


@dataclass(frozen=True)
class Weights:
    """What of a file is weights: state dicts, and what is known of them."""

    backbone: dict[str, Tensor]
    model: dict[str, Tensor] | None  # where the file is a checkpoint of a training run
    epochs: int | None  # that it was trained for, where the file says
    digest: str  # of the backbone's, twelve hex digits

    @property
    def projector(self) -> dict[str, Tensor]:
        """Empty where the file has none."""
        return _part(self.model or {}, "projector.")


def weights(path: Path) -> Weights:
    """Reads the weights of a file; no code in it is run.

    Raises:
        ConfigError: it is no file of torch's, holds what could run code, or no weights.
    """
    content, _ = checkpoints.load(path, lambda name: _TRAINING.fullmatch(name) is not None)
    state, epoch = content, None
    if isinstance(content, dict):
        state = content.get("state_dict", content.get("model", content))
        epoch = content.get("epoch")
    given = state if isinstance(state, Mapping) else {}
    tensors = {str(key): value for key, value in given.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ConfigError(f"{path} holds no weights; give a checkpoint or a state dict")
    of_a_model = _part(tensors, "backbone.") or _part(tensors, "encoder.")  # main's; 1.0.2's
    backbone = of_a_model or tensors
    epochs = epoch + 1 if isinstance(epoch, int) else None
    return Weights(backbone, tensors if of_a_model else None, epochs, _digest(backbone))


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _digest(state: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for key in sorted(state):
        found.update(key.encode())
        found.update(bytes(state[key].detach().contiguous().flatten().view(torch.uint8).numpy()))
    return found.hexdigest()[:12]


def with_weights(
    backbone: Backbone, crop_sizes: list[int], found: Weights, path: Path, method: str | None
) -> tuple[nn.Module, Backbone]:
    """A backbone with the weights of a file, in evaluation mode, and its recipe, completed: the
    weights decide on the stem where it does not.

    Args:
        backbone, found, path: the recipe, the weights, and where they lie.
        crop_sizes: of the images that it is to take, in pixels, large ones first.
        method: that trained it; MAE and MoCo v3 of main have vision transformers of their own.

    Raises:
        ConfigError: they do not fit, naming keys; or the configuration cannot be built.
    """
    backbone = fitted_to_weights(backbone, found.backbone)
    cfg = OmegaConf.create(  # as the host's builder reads it
        {
            "backbone": asdict(backbone),
            "augmentations": [{"crop_size": size} for size in crop_sizes],
            "data": {"num_small_crops": sum(size != crop_sizes[0] for size in crop_sizes)},
        }
    )
    module = host.build_backbone(cfg, method)
    if wrong := _give(found.backbone, module):
        stem = "" if backbone.stem == "auto" else f" with backbone.stem={backbone.stem}"
        raise ConfigError(
            f"{path} does not fit {backbone.name}{stem}; {wrong}; name the backbone that it is of"
        )
    kwargs: Any = OmegaConf.to_container(cfg.backbone.kwargs)
    return module.eval(), replace(backbone, kwargs=kwargs)


def _give(state: Mapping[str, Tensor], module: nn.Module) -> str:
    """Loads weights, but for the head of a network that was trained on classes; or says which of
    them do not fit, and loads none."""
    ours = module.state_dict()
    theirs = {k: v for k, v in state.items() if k in ours or not _HEAD.fullmatch(k)}
    wrong = checkpoints.misfit(theirs, ours)
    if not wrong:
        module.load_state_dict(theirs, strict=False)  # but for counts of batches all keys are there
    return wrong


@dataclass(frozen=True)
class Start:
    """Trained weights that a new run starts from."""

    source: Source
    weights: Weights

    @functools.cached_property
    def digest(self) -> str:
        """Of backbone and projector, twelve hex digits."""
        projector = {f"projector.{key}": value for key, value in self.weights.projector.items()}
        return _digest({**self.weights.backbone, **projector})

    def give(self, model: Any) -> list[str]:
        """Loads them into a new model and, where it has one, its momentum network; the names of
        the parts that took them: the projector where its layers have the names of the model's.

        Raises:
            ConfigError: they do not fit, naming keys.
        """
        parts, projector = {"backbone": self.weights.backbone}, self.weights.projector
        if projector and projector.keys() == _part(model.state_dict(), "projector.").keys():
            parts["projector"] = projector
        for part, state in parts.items():
            for name in (part, f"momentum_{part}"):
                if hasattr(model, name) and (wrong := _give(state, getattr(model, name))):
                    raise ConfigError(
                        f"{START}: {self.source.path} does not fit the {name}; {wrong}; "
                        f"{_REMEDIES[part]}"
                    )
        return list(parts)

    def record(self, taken: list[str]) -> dict[str, Any]:
        """What a run's result says of them."""
        return {**origin(self.source, self.weights), "weights": self.digest, "taken": taken}


def start_of(recipe: PretrainRecipe) -> tuple[Start | None, PretrainRecipe]:
    """What `backbone.weights` names, None where it names nothing, and the recipe as its run records
    it: options of the method have the defaults that the others choose, also where these change
    later, and the weights decide on the stem where it does not.

    Raises:
        ConfigError: the method or an option is refused, there are no weights, or the run resumes
            from others.
    """
    method = find_method(recipe.method)
    if method.Options is not None:
        options = checked_options(method.Options, recipe.method_kwargs, recipe.method)
        settled = {
            key: getattr(options, key, None) if value is None else value
            for key, value in recipe.method_kwargs.items()
        }
        recipe = replace(recipe, method_kwargs=settled)
    if recipe.backbone.weights is None:
        return None, recipe
    if recipe.resume_from_checkpoint:
        raise ConfigError(
            f"{START}: {checkpoints.KEY} brings weights of its own; set one of the two to null"
        )
    try:
        source = find(recipe.backbone.weights)
        found = weights(source.path)
    except ConfigError as error:
        raise ConfigError(f"{START}: {error}") from error
    backbone = fitted_to_weights(recipe.backbone, found.backbone)
    return Start(source, found), replace(recipe, backbone=backbone)


@dataclass(frozen=True)
class Opened:
    """A network to evaluate: its backbone in evaluation mode and what it is evaluated under."""

    source: Source
    weights: Weights
    recipe: PretrainRecipe
    backbone: nn.Module

    @property
    def origin(self) -> dict[str, Any]:
        return origin(self.source, self.weights)

    def folder(self, command: str, name: str, images: str, **settings: Any) -> RunFolder:
        """Of a command's results; `settings` are those that the recipe lacks."""
        plain = {**self.recipe.plain, **settings}
        path = folder_for(command, name, plain, self.source, self.weights.digest, images)
        return RunFolder(path, plain, images)


def opened(given: str | Path, overrides: list[str], needs_data: bool = True) -> Opened:
    """Opens a run's folder, a checkpoint of ours or of solo-learn's, or a plain state dict.

    Raises:
        ConfigError: of `find`, `recipe_of`, `weights` and `with_weights`.
    """
    source = find(given)
    recipe = recipe_of(source, overrides, needs_data)
    found = weights(source.path)
    backbone, completed = with_weights(
        recipe.backbone, recipe.crop_sizes, found, source.path, recipe.method
    )
    recipe = replace(recipe, backbone=completed)  # type: ignore[arg-type]
    return Opened(source, found, recipe, backbone)


def whole_model(network: Opened, large_crops: int, small_crops: int) -> Any:
    """The model of the method that trained a network, in evaluation mode.

    Raises:
        ConfigError: the file has no such model, the method is not known here, or does not fit.
    """
    state = network.weights.model
    if network.source.cfg is None or state is None or "classifier.weight" not in state:
        raise ConfigError("no method's checkpoint")
    method = find_method(network.recipe.method)
    classes = len(state["classifier.weight"])
    model = method(host_config(network.recipe, classes, large_crops, small_crops))
    if wrong := checkpoints.misfit(state, model.state_dict(), LATE_STATE):
        what = f"method={network.recipe.method}"
        raise ConfigError(f"{network.source.path} does not fit {what}; {wrong}")
    model.load_state_dict(state, strict=False)  # what appears late is not needed
    return model.eval()


def origin(source: Source, found: Weights) -> dict[str, Any]:
    """What a result says of the network that it is of."""
    hashed = re.search(r"-([0-9a-f]{8})$", source.run.resolve().name) if source.run else None
    cfg: Any = source.cfg or {}
    return {
        "checkpoint": str(source.path),
        "epochs": found.epochs,
        "weights": found.digest,
        "run": str(source.run) if source.run else None,
        "config_hash": hashed[1] if hashed else None,
        "seed": cfg.get("seed"),
        "method": cfg.get("method"),
    }


def folder_for(
    command: str, name: str, config: dict[str, Any], source: Source, digest: str, images: str
) -> Path:
    """Where the results of a command go: `RUN/COMMAND/NAME-HASH`, in `evaluations` instead of `RUN`
    where the weights are no run's, in `output_dir` where that is not the run's own.

    The hash is of configuration, weights, fingerprint of the images, version and host.
    """
    own: Any = source.cfg or {}
    usual = own.get("output_dir") or "runs"  # solo-learn's args.json has none
    elsewhere = config["output_dir"] not in (None, usual)
    parent = Path(config["output_dir"]) if elsewhere else source.run or ELSEWHERE
    made_with = f"{command} {host_identity()} {digest}"
    return folder_by_identity(parent / command / name, config, made_with, images)
