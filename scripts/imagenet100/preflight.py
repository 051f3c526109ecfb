"""What is looked at before anything is written: everything that is wrong is found at once."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign import EPOCHS, GLOBAL_BATCH, OWN, Campaign, Job, NotReady, composed
from local import Child, environment, say

# Of ImageNet's archives: bytes, and MD5 as torchvision has it.
SIZES = {"train": 147_897_477_120, "val": 6_744_924_160, "devkit": 2_568_145}
EXTRACTED = 17e9  # bytes, of the 100 classes
_SPARE = 1e9  # bytes for logs, tables and what is half-written
# Of a classifier in the operations of a pre-training: one view forward an image, of 100 epochs,
# where two are taken forward and backward in each of 400.
_OF_LINEAR = 100 / (6 * EPOCHS)


@dataclass
class Findings:
    """What is wrong, what is worth a remark, and what a method's pre-training takes."""

    wrong: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # method -> why it cannot be trained
    hours: dict[str, float] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)  # images a second
    disk: dict[str, int] = field(default_factory=dict)  # bytes


@dataclass(frozen=True)
class Asked:
    """Which of the looks are taken.

    Attributes:
        devices: GPUs that are here, by the names that CUDA_VISIBLE_DEVICES takes.
        card: by whose data sheet hours are told.
        here: whether the jobs run on this machine, and not on those of a cluster.
        trial, checksums, any_images: one step of each method; MD5 of the archives, 150 GB; and
            whether other images than ImageNet's are none of the errors.
    """

    devices: tuple[str, ...]
    card: str = "A100"
    here: bool = True
    trial: bool = True
    checksums: bool = False
    any_images: bool = False


def check(campaign: Campaign, asked: Asked) -> Findings:
    """Looks at everything; nothing is written but in the folder for temporary files."""
    found = Findings()
    _software(campaign, found)
    _machine(campaign, asked, found)
    _settings(campaign, found)
    _folders(campaign, found)
    _images(campaign, asked, found)
    if "pretrain" in campaign.stages and not found.wrong:
        _methods(campaign, asked, found)
    _disk(campaign, found)
    if asked.trial and "pretrain" in campaign.stages and not found.wrong:
        _trials(campaign, asked, found)
    return found


def _present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _software(campaign: Campaign, found: Findings) -> None:
    from solo_mim.errors import install_extra

    reads = set(campaign.stages) & {"pretrain", "linear", "knn"}
    if reads and campaign.format == "dali" and not _present("nvidia.dali"):
        found.wrong.append(
            f"--format dali needs nvidia-dali: {install_extra('dali')}; or --format pillow"
        )
    if reads and campaign.format == "h5" and not _present("h5py"):
        found.wrong.append(f"--format h5 needs h5py: {install_extra('h5')}")
    if campaign.format == "h5" and "prepare" in campaign.stages:
        found.wrong.append(
            "--format h5 reads DATA/train.h5 and DATA/val.h5, which prepare does not write: leave "
            "prepare out of the stages, or take --format pillow"
        )


def _machine(campaign: Campaign, asked: Asked, found: Findings) -> None:
    needed = max((campaign.gpus_of(job) for job in campaign.jobs()), default=0)
    if asked.here and needed > len(asked.devices):
        there = ", ".join(asked.devices) or "none"
        found.wrong.append(f"--gpus {campaign.gpus}: GPUs here: {there}")


def _settings(campaign: Campaign, found: Findings) -> None:
    for setting in campaign.settings:
        key, equals, _ = setting.partition("=")
        if not equals or not re.fullmatch(r"[+~]*[\w.@\[\]]+", key):
            found.wrong.append(f"--set {setting}: write key=value")
        elif key.lstrip("+~") in OWN:
            found.wrong.append(f"--set {setting}: {key} is the campaign's own; it has an option")


def _folders(campaign: Campaign, found: Findings) -> None:
    """Whether output and, where something is prepared, data can be written."""
    names = {"--output": campaign.output}
    if _prepares(campaign):
        names["--data"] = campaign.data
    for name, folder in names.items():
        there = existing(folder)
        if not there.is_dir():
            found.wrong.append(f"{name} {folder}: {there} is a file")
        elif not os.access(there, os.W_OK | os.X_OK):
            found.wrong.append(f"{name} {folder}: {there} cannot be written")


def existing(folder: Path) -> Path:
    """The folder, or what of its path is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _prepares(campaign: Campaign) -> bool:
    stage = Job("prepare")
    return "prepare" in campaign.stages and campaign.state(stage).word != "finished"


# The images


def _images(campaign: Campaign, asked: Asked, found: Findings) -> None:
    if set(campaign.stages) <= {"report"}:
        return
    if campaign.format == "h5":
        for split in ("train", "val"):
            if not (path := campaign.data / f"{split}.h5").is_file():
                found.wrong.append(f"{path} is not there")
    elif _prepares(campaign):
        assert campaign.imagenet is not None
        for split in ("train", "val"):
            _source(campaign.imagenet, split, asked, found)
    else:
        for split in ("train", "val"):
            _counted(campaign.data / split, split, asked, found)


def _source(imagenet: Path, split: str, asked: Asked, found: Findings) -> None:
    """What a split is prepared from: class folders, or an archive."""
    from solo_mim.data.imagenet100 import DEVKIT, TRAIN_ARCHIVE, VAL_ARCHIVE

    if (imagenet / split).is_dir():
        _counted(imagenet / split, split, asked, found)
        return
    names = {"train": TRAIN_ARCHIVE} if split == "train" else {"val": VAL_ARCHIVE, "devkit": DEVKIT}
    for key, name in names.items():
        path = imagenet / name
        if not path.is_file():
            found.wrong.append(
                f"--imagenet {imagenet}: neither {split}/<wnid>/ nor {name} is there"
            )
            return
        _archive(path, key, asked, found)


def _archive(path: Path, key: str, asked: Asked, found: Findings) -> None:
    from torchvision.datasets.imagenet import ARCHIVE_META
    from torchvision.datasets.utils import check_md5

    amiss = found.remarks if asked.any_images else found.wrong
    size = path.stat().st_size
    if size != SIZES[key]:
        amiss.append(f"{path} has {size:,} bytes, the official one {SIZES[key]:,}: get it again")
    elif asked.checksums and not check_md5(path, ARCHIVE_META[key][1]):
        found.wrong.append(f"{path} is not the official file, by its MD5: get it again")
    if key != "devkit" and not tarfile.is_tarfile(path):
        found.wrong.append(f"{path} is no archive")


def _counted(folder: Path, split: str, asked: Asked, found: Findings) -> None:
    """Class folders: every class of the list, and as many images as ImageNet has."""
    from solo_mim.data.folders import IMAGENET100
    from solo_mim.data.imagenet100 import IMAGES

    if not folder.is_dir():
        found.wrong.append(f"{folder} is not there: give --imagenet, to prepare it from")
        return
    counts = {name: _files_in(folder / name) for name in IMAGENET100}
    if absent := [name for name, count in counts.items() if not count]:
        found.wrong.append(f"{folder}: {len(absent)} of the 100 classes have no image: {absent[0]}")
    elif (images := sum(counts.values())) != IMAGES[split]:
        amiss = found.remarks if asked.any_images else found.wrong
        amiss.append(
            f"{folder} has {images:,} images, ImageNet {IMAGES[split]:,} of these classes: look "
            "for what is missing, or give --any-images"
        )


def _files_in(folder: Path) -> int:
    """Images, by their names."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    return sum(name.lower().endswith(IMG_EXTENSIONS) for name in names)


# The methods


def to_do(campaign: Campaign) -> list[Job]:
    """The pre-trainings that are not finished."""
    jobs = [job for job in campaign.jobs() if job.stage == "pretrain"]
    return [job for job in jobs if campaign.state(job).word != "finished"]


def _methods(campaign: Campaign, asked: Asked, found: Findings) -> None:
    """Composes and builds each method that has something to do; says what it takes."""
    from solo_mim.errors import ConfigError
    from solo_mim.evaluation.gpus import GPUS, UTILISATION

    for method in dict.fromkeys(job.method for job in to_do(campaign)):
        say(f"{method}: built, and its operations counted")
        job = Job("pretrain", method, campaign.seeds[0])
        try:
            plan = planned(composed(tuple(campaign.words(job))), asked.card, UTILISATION)
        except ConfigError as error:
            found.refused[method] = f"cannot be built: {error}"
            continue
        found.hours[method] = 0.0 if campaign.toy else plan.hours
        found.disk[method], found.speed[method] = plan.disk, plan.images_per_second
        if campaign.gpus and plan.memory > GPUS[asked.card].memory:
            found.remarks.append(
                f"{method} takes about {plan.memory:.0f} GiB of the {GPUS[asked.card].memory} of "
                f"an {asked.card}"
            )


def planned(recipe: Any, card: str, utilisation: float) -> Any:
    """What `solo-mim plan` counts."""
    from solo_mim.planning import plan

    return plan(recipe, card, None, utilisation)


def _disk(campaign: Campaign, found: Findings) -> None:
    """Whether what is still to be written fits where it goes; one file system may hold both."""
    needed: dict[Path, float] = {campaign.output: _SPARE if not campaign.toy else 0}
    for job in to_do(campaign) if found.disk else []:
        # While the last checkpoint is written, the one before is still there.
        needed[campaign.output] += 1.5 * found.disk.get(job.method, 0)
    if _prepares(campaign) and campaign.imagenet and not found.wrong:
        trees = [(campaign.imagenet / split).is_dir() for split in ("train", "val")]
        there = sum(f.stat().st_size for f in campaign.data.rglob("*") if f.is_file())
        needed[campaign.data] = 0 if all(trees) else max(0, EXTRACTED - there)
    by_device: dict[int, list[Path]] = {}
    for folder in (folder for folder, size in needed.items() if size):
        by_device.setdefault(existing(folder).stat().st_dev, []).append(folder)
    for folders in by_device.values():
        size, free = sum(map(needed.__getitem__, folders)), _free(folders[0])
        if size > free:
            where = " and ".join(map(str, folders))
            found.wrong.append(
                f"{where}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free"
            )


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is, or is to be."""
    return shutil.disk_usage(existing(folder)).free


# A trial


def _trials(campaign: Campaign, asked: Asked, found: Findings) -> None:
    """One training step and one validation batch of each method that has not begun, by the command
    itself: real shape, batch, precision, loader and GPUs, on images of noise in a temporary folder.
    """
    if not asked.here and len(asked.devices) < campaign.gpus:
        found.remarks.append(
            "no trial steps: they need the GPUs of a node, as in srun --gpus-per-node="
            f"{campaign.gpus} python {sys.argv[0]} ... --dry-run"
        )
        return
    begun = {job.method for job in to_do(campaign) if campaign.state(job).word == "stopped"}
    methods = {job.method for job in to_do(campaign)} - begun - set(found.refused)
    if campaign.format == "h5":
        found.remarks.append("the trial steps are on image files: of HDF5 files there are none yet")
    with tempfile.TemporaryDirectory() as scratch:
        noise(Path(scratch) / "data")
        for method in (method for method in campaign.methods if method in methods):
            say(f"{method}: a training step and a validation batch")
            if reason := _tried(campaign, method, Path(scratch), asked.devices):
                found.refused[method] = f"its trial step failed: {reason}"


def trial_of(campaign: Campaign, method: str, scratch: Path) -> list[str]:
    """The arguments of a method's trial."""
    words = campaign.words(Job("pretrain", method, campaign.seeds[0]))
    few = (
        "max_epochs=1",
        "limit_train_batches=1",
        "limit_val_batches=1",
        "checkpoint.enabled=false",
    )
    paths = [f"data.{split}_path={scratch / 'data'}" for split in ("train", "val")]
    formats = ["data.format=image_folder"] if campaign.format == "h5" else []
    others = [*few, "evaluation.information_every_n_epochs=0", "data.num_workers=1", *formats]
    return [*words, *others, *paths, f"output_dir={scratch / 'runs'}"]


def _tried(campaign: Campaign, method: str, scratch: Path, devices: tuple[str, ...]) -> str:
    """Why a method's trial failed; empty where it did not."""
    command = [*campaign.command, *trial_of(campaign, method, scratch)]
    child = Child(command, scratch / f"{method}.log", environment(devices[: campaign.gpus]))
    try:
        while (code := child.ended()) is None:
            time.sleep(0.1)
    finally:
        child.ask()
        child.wait(time.monotonic() + 20)
    return (child.said() or f"ended with {code}") if code else ""


def noise(folder: Path, images: int = GLOBAL_BATCH) -> None:
    """Images of noise in the 100 classes, enough for a batch."""
    import numpy as np
    from PIL import Image

    from solo_mim.data.folders import IMAGENET100

    generator = np.random.default_rng(0)
    for number in range(max(images, 2 * len(IMAGENET100))):
        place = folder / IMAGENET100[number % len(IMAGENET100)]
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((256, 256))
        image.save(place / f"{number}.JPEG")


# What is said


def hours_of(found: Findings, campaign: Campaign, job: Job) -> float:
    """About how long a job takes on the card that was named; 0 where that is not known."""
    hours = found.hours.get(job.method, 0.0)
    if job.stage == "linear":
        return hours * max(1, campaign.gpus) * _OF_LINEAR
    return hours if job.stage == "pretrain" else 0.0


def lines(found: Findings, campaign: Campaign, asked: Asked, at_once: int) -> Iterator[str]:
    """What is said of a campaign before it begins: jobs, commands, remarks, and what is wrong."""
    total = 0.0
    for job in campaign.jobs():
        state = campaign.state(job)
        hours = 0.0 if state.word == "finished" else hours_of(found, campaign, job)
        total += hours
        takes = [f"about {hours:.1f} h"] if hours and campaign.gpus else []
        if job.stage == "pretrain" and state.word != "finished" and job.method in found.disk:
            takes += [f"{found.speed[job.method]:,.0f} images/s"] if takes else []
            takes.append(f"{found.disk[job.method] / 1e9:.2f} GB")
        yield f"{job.name}: {', '.join([str(state), *takes])}"
        yield f"  $ {_shown(campaign, job)}"
    yield ""
    yield (
        f"GPUs here: {', '.join(asked.devices) or 'none'}; free in {existing(campaign.output)}: "
        f"{_free(campaign.output) / 1e9:.0f} GB"
    )
    if total and campaign.gpus:
        yield (
            f"about {total:.0f} hours of jobs by the data sheet of an {asked.card} (--card), "
            f"{total / at_once:.0f} with {at_once} at once; loading images is left out, and kNN"
        )
    yield from (f"remark: {remark}" for remark in found.remarks)
    yield from (f"wrong: {method} {reason}" for method, reason in found.refused.items())
    yield from (f"wrong: {reason}" for reason in found.wrong)


def _shown(campaign: Campaign, job: Job) -> str:
    try:
        words = campaign.words(job)
    except NotReady:
        words = campaign.evaluation(job, "RUN")
    return shlex.join(["solo-mim", *words])


def guessed_card(names: Callable[[], list[str]]) -> str:
    """The card of `GPUS` that the machine's GPUs are of, by their names; A100 where none fits."""
    from solo_mim.evaluation.gpus import GPUS

    plain = [re.sub(r"\W", "", name) for name in names()]
    fits = [card for card in GPUS if any(re.sub(r"\W", "", card) in name for name in plain)]
    return max(fits, key=len, default="A100")
