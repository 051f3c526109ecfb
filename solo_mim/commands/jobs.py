"""What the commands share: Hydra's arguments, lightning's trainer, one process and one result to a
folder."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import lightning.pytorch as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from solo_mim.commands import processes, runs, sources, stopping
from solo_mim.commands.configuration import (
    CONFIG_FOLDER,
    TRAINER_KEYS,
    PretrainConfig,
    composed_from,
    located,
    refusal,
)
from solo_mim.commands.progress import LossBar
from solo_mim.data import SSLDataModule
from solo_mim.errors import ConfigError, RunError, install_extra, nearest
from solo_mim.evaluation.collect import UNKNOWN_CODE
from solo_mim.evaluation.offline import extract_features
from solo_mim.methods import recipe_folders


def done_once(
    folder: Path,
    cfg: DictConfig,
    summary: Callable[[dict[str, Any]], str],
    work: Callable[[runs.FolderLock], dict[str, Any]],
    standing: Callable[[], str] = lambda: "nothing is kept; the same command starts again",
) -> dict[str, Any]:
    """The result in a folder: of `work`, which takes the lock, or of an earlier run that finished.

    Raises:
        ConfigError: what is in the folder belongs to another configuration, or other code made it
            and the configuration does not accept that.
        KeyboardInterrupt: Ctrl-C or SIGTERM, with what `standing` says of it.
    """

    def lost() -> RunError | None:
        if not _speaks(folder):
            return None
        error = RunError(f"a process of this run died; {standing()}")
        runs.note_failure(folder, error)
        return error

    def last_words() -> None:
        if error := lost():
            print(f"solo-mim: {error}", file=sys.stderr, flush=True)

    with runs.FolderLock(folder) as lock:
        runs.refuse_foreign(folder, cfg)
        if (folder / runs.RESULT).exists():
            result: dict[str, Any] = runs.read_json(folder / runs.RESULT, dict)
            result["folder"] = str(folder)  # it may have been moved
            remark = _made_by(folder, cfg)
            try:
                table = summary(result)
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                raise runs.damaged(folder / runs.RESULT, f"no closing table: {error!r}") from error
            print(f"finished before, nothing to do: {folder}{remark}\n\n{table}")
            return result
        try:
            with processes.together(last_words):
                return work(lock)
        except (Exception, KeyboardInterrupt) as error:
            # What else fails while a command ends because it was asked to is no news.
            if isinstance(error, KeyboardInterrupt) or stopping.asked():
                if processes.rank() > 0:
                    raise SystemExit(1) from None
                raise KeyboardInterrupt(standing()) from None
            if any(_is_of_a_lost_process(cause) for cause in _causes(error)):
                raise (lost() or SystemExit(1)) from error
            if isinstance(error, RunError) and processes.rank() > 0:
                raise SystemExit(1) from None
            full = next((cause for cause in _causes(error) if _is_of_a_disk(cause, folder)), None)
            ended = RunError(f"{folder}: {full.strerror}; {standing()}") if full else error
            if lock.held:
                runs.note_failure(folder, ended)
            if ended is error:
                raise
            raise ended from error


def _causes(error: BaseException | None) -> Iterator[Any]:
    """An error and what it came of, the last first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_a_disk(error: BaseException, folder: Path) -> bool:
    """Whether a disk is full, or the folder was taken from the run."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, OSError) and (
        error.errno in full or (error.errno == errno.ENOENT and not folder.exists())
    )


def _is_of_a_lost_process(error: BaseException) -> bool:
    """By the words of gloo and of NCCL, which have no error of their own for it."""
    words = "closed by peer|reset by peer|Broken pipe|closed by remote peer|remote process exit"
    return isinstance(error, RuntimeError) and re.search(words, str(error)) is not None


def _speaks(folder: Path) -> bool:
    """Whether it is this process that says of another that it died: the first, or, where that one
    was killed, the next."""
    latest = time.monotonic() + processes.rank()
    while time.monotonic() < latest:
        time.sleep(0.1)
        if not runs.is_held(folder) or (folder / runs.FAILURE).exists():
            return False
    return True


def _made_by(folder: Path, cfg: DictConfig) -> str:
    """The remark on a finished run that it was made by other code; empty where it was not.

    Code that nobody recorded may be this one: it is remarked upon, not refused.
    """
    others, here = runs.other_code(folder, cfg), sources.digest(cfg.get("method"))
    if set(others) - {UNKNOWN_CODE} and cfg.other_code == "refuse":
        raise ConfigError(
            f"other_code: {folder} was made by code {', '.join(others)}, here it is {here}; move "
            "that folder away to have it again, or set other_code=accept to take it as it is"
        )
    return f" (made by code {', '.join(others)}; here it is {here})" if others else ""


# Training


def loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """A step-wise CSV log and what else the configuration asks for."""
    sitting = runs.next_session(folder)
    found: list[Logger] = [CSVLogger(folder, name=None, version=sitting)]
    wanted: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(
            folder, name=None, version=sitting, default_hp_metric=False
        ),
        "wandb": lambda: WandbLogger(
            name=cfg.name,
            project=cfg.wandb.project,
            entity=cfg.wandb.entity,
            offline=cfg.wandb.offline,
            save_dir=folder,
            id=folder.name,
            resume="allow",
        ),
    }
    for name, make in wanted.items():
        if cfg[name].enabled:
            try:
                found.append(make())
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"{name}.enabled=true needs {name}: {install_extra(name)}, "
                    f"or set {name}.enabled=false"
                ) from error
    return found


def trainer_of(cfg: DictConfig, folder: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """lightning's, from the configuration's top level; one of `callbacks` is an `EpochEnd`."""
    arguments: dict[str, Any] = {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for key, value in cfg.items()
        if key in TRAINER_KEYS and value is not None
    }
    arguments["strategy"] = (
        DDPStrategy(find_unused_parameters=False)
        if cfg.strategy == "ddp"
        else cfg.strategy or "auto"
    )
    arguments.setdefault("log_every_n_steps", 10)
    arguments.setdefault("enable_model_summary", False)
    arguments.setdefault("num_sanity_val_steps", 0)
    if shows_progress(cfg):
        callbacks = [*callbacks, LossBar(leave=False)]
    arguments["enable_progress_bar"] = any(isinstance(c, LossBar) for c in callbacks)
    kept = loggers(cfg, folder)
    try:
        trainer = pl.Trainer(
            **arguments,
            logger=kept,
            callbacks=callbacks,
            default_root_dir=folder,
            plugins=[runs.WholeCheckpoints()],
        )
    # ImportError: accelerators and strategies that want a package which is not there.
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"lightning's Trainer refuses its settings: {error}") from error
    # Its handler of SIGTERM broadcasts from wherever the process is, so that those of several wait
    # for each other in different places; that of SIGUSR1, for SLURM, saves a checkpoint amid an
    # epoch. What `stopping` has set stands.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def fit(
    trainer: pl.Trainer, model: pl.LightningModule, data: SSLDataModule, checkpoint: Path | None
) -> None:
    """`trainer.fit` from a checkpoint on, with Ctrl-C and SIGTERM as KeyboardInterrupt.

    Raises:
        ConfigError: lightning refuses its settings once it sees the data, or the checkpoint.
    """
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        raise KeyboardInterrupt from None  # lightning makes the one of the other
    except (MisconfigurationException, ValueError) as error:
        if isinstance(error, ValueError) and "val_check_interval" not in str(error):
            raise
        raise ConfigError(f"lightning refuses to train: {' '.join(str(error).split())}") from error


def goes_on(folder: Path, departure: str | None, checkpoint: Path | None) -> list[str]:
    """Lines, where there is something to say, of what a run differs in from an earlier one, what it
    resumes from, and which checkpoints in its folder are of no use."""
    lines = [departure] if departure else []
    for cut in runs.cut_checkpoints(folder):
        lines.append(f"a part of {cut} is missing: nothing resumes from it")
    return [*lines, f"resuming from {checkpoint}"] if checkpoint else lines


def skipped_images(result: dict[str, Any]) -> list[str]:
    """The closing table's line on unreadable images, where there were any."""
    count = len(result["corrupt_images"])
    return [f"  {count} unreadable images skipped: result.json"] if count else []


def peak_memory_mib() -> dict[str, float]:
    """Peak resident memory of this process, and allocated on the GPU where there is one, in MiB."""
    peak = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 2**20
    return peak


# Evaluation


def shows_progress(cfg: DictConfig) -> bool:
    """Whether bars are drawn: not where nobody would see them."""
    return bool(cfg.progress_bar) and sys.stderr.isatty()


def plain_features(
    cfg: DictConfig, data: SSLDataModule, split: str, backbone: Any, device: Any
) -> tuple[Tensor, Tensor]:
    """Features of a split's un-augmented images, N x D, and their classes."""
    return extract_features(
        backbone,
        data.plain_dataloader(split),
        device,
        description=f"offline evaluation: {split}",
        progress=shows_progress(cfg),
    )


def evaluated_on(cfg: DictConfig) -> str:
    """What the split `val` is called in results."""
    return "validation split" if cfg.data.validation_split else "held-out images"


def offline_split(cfg: DictConfig) -> tuple[str, str]:
    """The split that offline figures are of, and what it is called in results.

    `evaluation.test` opens the test images where `val` is a share of the training images; elsewhere
    `val` is those images.
    """
    if cfg.evaluation.test and cfg.data.validation_split:
        return "test", "test images"
    return "val", evaluated_on(cfg)


def evaluation_parser(
    command: str, description: str, examples: str, file: str | None = None
) -> argparse.ArgumentParser:
    """Of a command that takes a network, a `file` to write where one is named, and overrides."""
    parser = argparse.ArgumentParser(
        prog=f"solo-mim {command}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="folder of a run, a checkpoint (ours or solo-learn's), or a state dict of torchvision "
        "or timm",
    )
    if file:
        parser.add_argument("file", metavar=file, help="to write")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="as of solo-mim pretrain: data=..., data.val_path=..., optimizer.batch_size=...; a "
        "file without a configuration beside it needs its backbone=... and data=...",
    )
    return parser


def device(cfg: DictConfig) -> torch.device:
    """The GPU, where there is one and the configuration does not ask for the CPU: the first that
    `devices` names."""
    if cfg.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    named = cfg.devices[0] if isinstance(cfg.devices, list | ListConfig) else 0
    return torch.device("cuda", named)


def measured(classifier: str, split: str, images: int, figures: dict[str, Any]) -> dict[str, Any]:
    """Accuracies (%), losses (nats) and what was chosen for them, with what they are of, so that
    no table mixes them."""
    return {
        **{"protocol": "offline", "classifier": classifier, "split": split, "images": images},
        **figures,
    }


def measured_line(row: dict[str, Any]) -> str:
    """One of a closing table, of what `measured` gives."""
    figures = [f"top-1 {row['top1']:.1f} %"]
    if row.get("top5") is not None:
        figures.append(f"top-5 {row['top5']:.1f} %")
    if row.get("nll") is not None:
        figures.append(f"{row['nll']:.3f} nats")
    of = ", ".join(filter(None, [row["classifier"], row.get("setting")]))
    return f"  offline, {of}, {row['images']:,} {row['split']}: {', '.join(figures)}"


def provenance(
    cfg: DictConfig, folder: Path, origin: dict[str, Any], images: str | None = None
) -> dict[str, Any]:
    """The end of an evaluation's result: the network, where all lies, what it was made with."""
    return {
        "trained": origin,
        "folder": str(folder),
        "versions": runs.versions(),
        "commit": runs.commit(),
        "code": sources.digest(cfg.get("method")),
        "fingerprint": images,
    }


# Hydra


def is_override(argument: str) -> bool:
    """Whether an argument is Hydra's `key=value`, and no path."""
    return re.match(r"[+~]*[\w.@\[\]]+=", argument) is not None and not Path(argument).exists()


class _PluginRecipes(SearchPathPlugin):
    """Hydra finds the recipes that installed plug-ins bring, after the shipped ones."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for package, folder in recipe_folders().items():
            search_path.append(provider=package, path=f"file://{folder}")


def _quiet() -> None:
    """Silences what a user can do nothing about."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
        ".*Experiment logs directory .* exists.*",
        ".*in eval mode at the start of training.*",
        ".*is smaller than the logging interval.*",  # what is shown and drawn is logged by epoch
    ):
        warnings.filterwarnings("ignore", message=message)


def _explained(error: BaseException, schema: Any, arguments: list[str]) -> ConfigError:
    """Hydra's and OmegaConf's errors in our words: the key, what sets it, what comes nearest."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        wanted = (error.missing_cfg_file or "").split("/")[-1]
        return ConfigError(
            f"{error.missing_cfg_file}: no such config{nearest(wanted, error.options)}"
        )
    cause = error.__cause__ or error.__context__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        return located(refusal(cause, schema), composed_from(str(error), arguments))
    override = getattr(error, "override", None)  # of one that does not parse
    return ConfigError(" ".join([*([f"{override}:"] if override else []), *str(error).split()]))


def _unreadable(error: Exception) -> ConfigError:
    """Of a file that is no YAML, or none in UTF-8, which Hydra's frame that has opened it names."""
    frames = (frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__))
    file = next((names["full_path"] for names in frames if "full_path" in names), "a file")
    reason = " ".join(str(error).split())
    return ConfigError(f"{file} cannot be read, as YAML in UTF-8: {reason}")


@contextlib.contextmanager
def _in_our_words(schema: Any, arguments: list[str]) -> Iterator[None]:
    """Hydra's errors of a configuration that it cannot compose are ConfigErrors in here."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error, schema, arguments) from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(error) from error
    except ValueError as error:
        if not str(error).startswith("Config group override"):
            raise
        groups = [a for a in arguments if (CONFIG_FOLDER / a.lstrip("+").split("=")[0]).is_dir()]
        raise ConfigError(f"{' '.join(groups)}: a group takes the name of a file in it") from error


def composed(name: str, overrides: list[str], schema: Any = PretrainConfig) -> DictConfig:
    """The configuration of a name, shipped or stored, with overrides.

    Raises:
        ConfigError: an override that does not parse, or of a key or group that does not exist.
    """
    Plugins.instance().register(_PluginRecipes)
    with (
        _in_our_words(schema, overrides),
        initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"),
    ):
        return compose(name, overrides=[_added(override) for override in overrides])


# Sections whose keys are not the schema's: the method, the backbone or the optimiser checks them.
_OPEN = ("method_kwargs.", "backbone.kwargs.", "optimizer.kwargs.")


def _added(argument: str) -> str:
    """`++` before a key of an open section: whether the recipe sets it is of no importance."""
    return f"++{argument}" if argument.startswith(_OPEN) else argument


# Checkpoints, which are called `epoch=N.ckpt`.
_FILES = ("pretrained_feature_extractor", "resume_from_checkpoint", "backbone.weights")


def _quoted(argument: str) -> str:
    """With quotes around a checkpoint's path: Hydra's grammar takes an `=` in it amiss."""
    key, equals, path = argument.partition("=")
    if key.lstrip("+") not in _FILES or not equals or path[:1] in ("'", '"') or "," in path:
        return argument
    return f"{key}='{path}'"


# Hydra's own logs and folders, of which the shipped files want none; those of others do not say so.
_LEAVES_NOTHING = [
    *("hydra.run.dir=.", "hydra.sweep.dir=.", "hydra.sweep.subdir=.", "hydra.output_subdir=null"),
    *("hydra/job_logging=disabled", "hydra/hydra_logging=disabled"),
]


def _for_hydra(arguments: list[str]) -> list[str]:
    """Paths of checkpoints quoted, keys of open sections added, overrides before options, and
    --config-path absolute: Hydra takes a relative one as relative to a file, not to where the user
    is."""
    found = [_added(_quoted(argument)) for argument in arguments]
    # Its parser does not take overrides on both sides of an option.
    found.sort(key=lambda argument: not re.match(r"~|\+*[\w./@\[\]]+=", argument))
    for i, argument in enumerate(found):
        option, equals, value = argument.partition("=")
        if option not in ("--config-path", "-cp"):
            continue
        if equals:
            found[i] = f"{option}={os.path.abspath(value)}"
        elif i + 1 < len(found):
            found[i + 1] = os.path.abspath(found[i + 1])
    names = ("--config-path", "-cp", "--config-name", "-cn")
    is_elsewhere = any(argument.partition("=")[0] in names for argument in found)
    return [*_LEAVES_NOTHING, *found] if is_elsewhere else found


def run_by_hydra(
    command: str, job: Callable[[DictConfig], Any], arguments: list[str], schema: Any
) -> int:
    """Has Hydra compose `configs/COMMAND.yaml` with `arguments`, and calls `job` on what comes out.

    Args:
        command: of the command line.
        job: raises ConfigError where it refuses the configuration, RunError where it cannot go on.
        arguments: Hydra's.
        schema: of the configuration, for the nearest key to an unknown one.
    """
    refused: list[ConfigError | RunError] = []

    @hydra.main(config_path=str(CONFIG_FOLDER), config_name=command, version_base="1.3")
    def main(cfg: DictConfig) -> Any:
        # Hydra has read its arguments; lightning starts further processes by the whole command
        # line.
        if sys.argv[1:2] != [command]:
            sys.argv.insert(1, command)
        OmegaConf.set_struct(cfg, False)
        try:
            return job(cfg)
        except ConfigError as error:
            # To be raised below: here Hydra would print a line of its own and give a sweep's rest
            # up.
            refused.append(located(error))
        except RunError as error:  # likewise
            refused.append(error)
        return None

    _quiet()
    Plugins.instance().register(_PluginRecipes)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors arrive here and not as Hydra's printout
    sys.argv = [sys.argv[0], *_for_hydra(arguments)]
    try:
        with _in_our_words(schema, sys.argv[1:]):
            main()
    finally:
        HydraConfig.instance().cfg = None  # Hydra leaves it to the next run in this process
    for earlier in refused[:-1]:  # of a sweep
        print(f"solo-mim: {earlier}", file=sys.stderr)
    if refused:
        raise refused[-1]
    return 0
