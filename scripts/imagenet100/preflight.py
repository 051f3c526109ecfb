"""What is looked at before anything is written: everything that is wrong is found at once."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tarfile
import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign import LINEAR_EPOCHS, Campaign, Job, NotReady
from local import Child, say

# Of ImageNet's archives, in bytes.
SIZES = {"train": 147_897_477_120, "val": 6_744_924_160, "devkit": 2_568_145}
EXTRACTED = 17e9  # bytes, of the 100 classes
_SPARE = 1e9  # bytes for logs, tables and what is half-written
# What the campaign says itself: its options, and that by which it finds its runs again.
_OWN = ("method", "data", "seed", "name", "output_dir", "devices", "accelerator")
_OWN_DATA = ("data.dataset", "data.format", "data.train_path", "data.val_path")
# Against every --set too: of few images, in one epoch.
_TRIAL = (
    *("max_epochs=1", "limit_train_batches=1", "limit_val_batches=1", "checkpoint.enabled=false"),
    *("evaluation.information_every_n_epochs=0", "data.num_workers=1", "data.fraction=-1"),
    *("data.validation_split=null", "scheduler.warmup_epochs=0", "check_val_every_n_epoch=1"),
)


@dataclass
class Findings:
    """What is wrong, what is worth a remark, and what a method's pre-training takes."""

    wrong: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # method -> why it cannot be trained
    plans: dict[str, Any] = field(default_factory=dict)  # method -> what `solo-mim plan` counts
    hours: dict[tuple[str, str], float] = field(default_factory=dict)  # of stage and method


def check(campaign: Campaign, asked: Namespace, devices: Sequence[str]) -> Findings:
    """Looks at everything; nothing is written but in the folder for temporary files.

    Args:
        asked: options of the driver, such as `no_trial`, `checksums` and `any_images`.
        devices: GPUs that are here, by the names that CUDA_VISIBLE_DEVICES takes.
    """
    found = Findings()
    trains = "pretrain" in campaign.stages
    _settings(campaign, found)
    if trains and not found.wrong:
        _methods(campaign, asked, found)
    _machine(campaign, asked, devices, found)
    can_train = trains and not found.wrong
    _folders(campaign, found)
    if set(campaign.stages) != {"report"}:
        _images(campaign, asked, found)
    _disk(campaign, found)
    if can_train and not asked.no_trial:
        try:
            _trials(campaign, asked, devices, found)
        except OSError as error:
            found.wrong.append(f"{tempfile.gettempdir()}: {error.strerror}; set TMPDIR")
    return found


def _settings(campaign: Campaign, found: Findings) -> None:
    for setting in campaign.settings:
        key, equals, _ = setting.partition("=")
        if not equals or not re.fullmatch(r"[+~]*[\w.@\[\]]+", key):
            found.wrong.append(f"--set {setting}: write key=value")
        elif key.lstrip("+~") in (*_OWN, *_OWN_DATA):
            found.wrong.append(f"--set {setting}: {key} is the campaign's own; it has an option")


def _machine(campaign: Campaign, asked: Namespace, devices: Sequence[str], found: Findings) -> None:
    """Packages that read the images, and GPUs."""
    from solo_mim.errors import install_extra
    from solo_mim.installed import present

    reads = set(campaign.stages) & {"pretrain", "linear", "knn"}
    if reads and campaign.format == "dali" and not present("nvidia.dali"):
        found.wrong.append(
            f"--format dali needs nvidia-dali: {install_extra('dali')}; or --format pillow"
        )
    if reads and campaign.format == "h5" and not present("h5py"):
        found.wrong.append(f"--format h5 needs h5py: {install_extra('h5')}")
    if campaign.format == "h5" and "prepare" in campaign.stages:
        found.wrong.append(
            "--format h5 reads DATA/train.h5 and DATA/val.h5, which prepare does not write: leave "
            "prepare out of the stages, or take --format pillow"
        )
    needed = max(map(campaign.gpus_of, campaign.jobs()))
    if not asked.slurm and needed > len(devices):
        there = ", ".join(devices) or "none"
        found.wrong.append(f"--gpus {campaign.gpus}: GPUs here: {there}; take fewer, or --slurm")


def _folders(campaign: Campaign, found: Findings) -> None:
    """Whether output and, where something is prepared, data can be written."""
    names = {"--output": campaign.output}
    if _prepares(campaign):
        names["--data"] = campaign.data
    for name, folder in names.items():
        there = existing(folder)
        if not there.is_dir():
            found.wrong.append(f"{name} {folder}: {there} is a file; name another folder")
        elif not os.access(there, os.W_OK | os.X_OK):
            found.wrong.append(f"{name} {folder}: {there} cannot be written; name another folder")


def existing(folder: Path) -> Path:
    """The folder, or what of its path is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _prepares(campaign: Campaign) -> bool:
    return "prepare" in campaign.stages and campaign.state(Job("prepare")).word != "finished"


# The images


def _images(campaign: Campaign, asked: Namespace, found: Findings) -> None:
    for split in ("train", "val"):
        if campaign.format == "h5":
            if not (path := campaign.data / f"{split}.h5").is_file():
                found.wrong.append(f"{path} is not there: write it, or take --format pillow")
        elif _prepares(campaign) and campaign.imagenet:
            _source(campaign.imagenet, split, asked, found)
        else:
            _counted(campaign.data / split, split, asked, found)


def _source(imagenet: Path, split: str, asked: Namespace, found: Findings) -> None:
    """What a split is prepared from: class folders, or archives."""
    from torchvision.datasets.imagenet import ARCHIVE_META
    from torchvision.datasets.utils import check_md5

    if (imagenet / split).is_dir():
        _counted(imagenet / split, split, asked, found)
        return
    amiss = found.remarks if asked.any_images else found.wrong
    for key in ("train",) if split == "train" else ("val", "devkit"):
        name, md5 = ARCHIVE_META[key]
        path = imagenet / name
        if not path.is_file():
            found.wrong.append(
                f"--imagenet {imagenet}: neither {split}/<wnid>/ nor {name} is there"
            )
            continue
        if (size := path.stat().st_size) != SIZES[key]:
            amiss.append(
                f"{path} has {size:,} bytes, the official one {SIZES[key]:,}: get it again"
            )
        elif asked.checksums and not check_md5(path, md5):
            found.wrong.append(f"{path} is not the official file, by its MD5: get it again")
        if not tarfile.is_tarfile(path):
            found.wrong.append(f"{path} is no archive: get it again")


def _counted(folder: Path, split: str, asked: Namespace, found: Findings) -> None:
    """Class folders: every class of the list, and as many images as ImageNet has."""
    from solo_mim.data.folders import IMAGENET100
    from solo_mim.data.imagenet100 import IMAGES, images_in

    if not folder.is_dir():
        found.wrong.append(f"{folder} is not there: give --imagenet, to prepare it from")
        return
    counts = {name: len(images_in(folder / name)) for name in IMAGENET100}
    if absent := [name for name, count in counts.items() if not count]:
        found.wrong.append(
            f"{folder}: {len(absent)} of the 100 classes have no image, {absent[0]} first: get them"
        )
    elif (images := sum(counts.values())) != IMAGES[split]:
        amiss = found.remarks if asked.any_images else found.wrong
        amiss.append(
            f"{folder} has {images:,} images, ImageNet {IMAGES[split]:,} of these classes: look "
            "for what is missing, or give --any-images"
        )


# The methods


def _to_do(campaign: Campaign, *words: str) -> list[Job]:
    """The pre-trainings that are not finished; of these the ones in certain states."""
    states = {job: campaign.state(job).word for job in campaign.jobs() if job.stage == "pretrain"}
    return [job for job, word in states.items() if word != "finished" and word in (words or word)]


def _methods(campaign: Campaign, asked: Namespace, found: Findings) -> None:
    """Composes and builds each method that has something to do; says what it takes."""
    from solo_mim.errors import ConfigError
    from solo_mim.evaluation.gpus import GPUS, UTILISATION

    for method in dict.fromkeys(job.method for job in _to_do(campaign)):
        say(f"{method}: built, and its operations counted")
        try:
            recipe = campaign.recipe(method)
            plan = found.plans[method] = planned(recipe, asked.card, UTILISATION)
        except ConfigError as error:
            found.refused[method] = f"cannot be built: {error}"
            continue
        if campaign.gpus and not campaign.toy:
            found.hours["pretrain", method] = plan.hours
            # One view forward an image where two are taken forward and backward.
            share = campaign.gpus * LINEAR_EPOCHS / (6 * recipe.max_epochs)
            found.hours["linear", method] = plan.hours * share / campaign.linear_gpus
        if campaign.gpus and plan.memory > GPUS[asked.card].memory:
            found.remarks.append(
                f"{method} takes about {plan.memory:.0f} GiB of the {GPUS[asked.card].memory} of "
                f"an {asked.card}"
            )


def planned(recipe: Any, card: str, utilisation: float) -> Any:
    """What `solo-mim plan` counts.

    Raises:
        ConfigError: a key or value is wrong, or the method cannot be built.
    """
    from solo_mim.planning import plan

    return plan(recipe, card, None, utilisation)


def _disk(campaign: Campaign, found: Findings) -> None:
    """Whether what is still to be written fits where it goes; one file system may hold both."""
    from solo_mim.runs.files import size_of

    needed = {campaign.output: 0 if campaign.toy else _SPARE}
    for job in _to_do(campaign) if found.plans else []:
        if job.method in found.plans:  # while a checkpoint is written, the one before is there
            needed[campaign.output] += 1.5 * found.plans[job.method].disk
    source = campaign.imagenet
    trees = source and all((source / split).is_dir() for split in ("train", "val"))
    if _prepares(campaign) and not trees:
        needed[campaign.data] = max(0, EXTRACTED - size_of(campaign.data))
    by_device: dict[int, list[Path]] = defaultdict(list)
    for folder in (folder for folder, size in needed.items() if size):
        by_device[existing(folder).stat().st_dev].append(folder)
    for folders in by_device.values():
        size, free = sum(map(needed.__getitem__, folders)), _free(folders[0])
        if size > free:
            found.wrong.append(
                f"{' and '.join(map(str, folders))}: {size / 1e9:.1f} GB are needed, "
                f"{free / 1e9:.1f} are free; make room, or name another folder"
            )


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or is to be."""
    return shutil.disk_usage(existing(folder)).free


# A trial


def _trials(campaign: Campaign, asked: Namespace, devices: Sequence[str], found: Findings) -> None:
    """One training step and one validation batch of each method that has not begun, by the command
    itself: real shape, batch, precision, loader and GPUs, on images of noise in a temporary folder.
    """
    methods = {job.method for job in _to_do(campaign, "not begun", "failed", "damaged")}
    methods -= set(found.refused) | {job.method for job in _to_do(campaign, "stopped", "running")}
    if len(devices) < campaign.gpus:  # as may be of --slurm
        found.remarks.append(
            "no trial steps: they need the GPUs of a node, as in srun --gpus-per-node="
            f"{campaign.gpus} python {sys.argv[0]} ... --dry-run"
        )
        return
    if campaign.format == "h5":
        found.remarks.append("the trial steps are on image files: of HDF5 files there are none yet")
    with tempfile.TemporaryDirectory() as scratch:
        batches = [campaign.recipe(method).global_batch for method in methods]
        noise(Path(scratch) / "data", max(batches, default=0))
        for method in (method for method in campaign.methods if method in methods):
            say(f"{method}: a training step and a validation batch")
            if reason := tried(campaign, method, Path(scratch), devices):
                found.refused[method] = f"its trial step failed: {reason}"


def tried(campaign: Campaign, method: str, scratch: Path, devices: Sequence[str]) -> str:
    """Why a method's trial failed, on the images of a folder; empty where it did not."""
    words = campaign.words(Job("pretrain", method, campaign.seeds[0]))
    words += [*_TRIAL, f"output_dir={scratch / 'runs'}"]
    words += [f"data.{split}_path={scratch / 'data'}" for split in ("train", "val")]
    words += ["data.format=image_folder"] if campaign.format == "h5" else []
    log = scratch / f"{method}.log"
    # Libraries leave folders behind among the temporary ones.
    command = ["env", f"TMPDIR={scratch}", *campaign.command, *words]
    child = Child(command, log, devices[: campaign.gpus])
    try:
        code = child.wait()
    except BaseException:
        child.ask()
        child.wait(0)
        raise
    return (child.said() or f"ended with {code}") if code else ""


def noise(folder: Path, images: int) -> None:
    """So many images of noise in the 100 classes."""
    import numpy as np
    from PIL import Image

    from solo_mim.data.folders import IMAGENET100

    generator = np.random.default_rng(0)
    for number in range(images):
        place = folder / IMAGENET100[number % len(IMAGENET100)]
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(place / f"{number}.JPEG")


# What is said


def lines(
    found: Findings, campaign: Campaign, asked: Namespace, devices: Sequence[str]
) -> Iterator[str]:
    """What is said of a campaign before it begins: jobs, commands, remarks, and what is wrong."""
    total = 0.0
    for job in campaign.jobs():
        state, takes = campaign.state(job), []
        if state.word != "finished" and (hours := found.hours.get((job.stage, job.method))):
            total += hours * campaign.gpus_of(job)
            takes += [f"about {hours:.1f} h"]
        if state.word != "finished" and job.stage == "pretrain" and job.method in found.plans:
            plan = found.plans[job.method]
            takes += [f"{plan.images_per_second:,.0f} images/s"] if takes else []
            takes += [f"{plan.disk / 1e9:.2f} GB"]
        yield f"{job.name}: {', '.join([str(state), *takes])}"
        yield f"  $ {_shown(campaign, job)}"
    there = ", ".join(devices) or "none"
    free = f"{_free(campaign.output) / 1e9:.0f} GB"
    yield f"\nGPUs here: {there}; free in {existing(campaign.output)}: {free}"
    if total:
        here = f", {total / len(devices):.0f} hours on those here" if devices else ""
        yield (
            f"about {total:.0f} GPU hours by the data sheet of an {asked.card} (--card){here}; "
            "loading images is left out, and kNN"
        )
    yield from (f"remark: {remark}" for remark in found.remarks)
    yield from (f"wrong: {method} {reason}" for method, reason in found.refused.items())
    yield from (f"wrong: {reason}" for reason in found.wrong)


def _shown(campaign: Campaign, job: Job) -> str:
    try:
        words = campaign.words(job)
    except NotReady:
        words = campaign.words(job, "RUN")
    return shlex.join(["solo-mim", *words])
