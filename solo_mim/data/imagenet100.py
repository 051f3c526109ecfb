"""ImageNet-100 out of ImageNet: the 100 classes of the list in the layout that training reads.

Each split comes from an extracted tree (``train/<wnid>/``, ``val/<wnid>/``), whose class folders
are linked or copied, or from the official archive. Files can be written smaller. A file gets its
name once it is whole, and what lies there in full is passed over: after a kill the same call goes
on.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.imagenet import ARCHIVE_META, load_meta_file, parse_devkit_archive

from solo_mim.data.batches import usable_cores
from solo_mim.data.errors import DataError
from solo_mim.data.folders import IMAGENET100
from solo_mim.data.images import UNREADABLE, rgb

IMAGES = {"train": 126_689, "val": 5_000}
TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT = (ARCHIVE_META[key][0] for key in ("train", "val", "devkit"))
MANIFEST = "manifest.json"

Tick = Callable[[], object]  # called once for each image
# source, how: split -> a word, images: split -> class -> file -> bytes; of smaller images also size
# and sha256: split -> class -> file -> its first 32 hex digits
Manifest = dict[str, Any]

# Of smaller images.
FILTER, QUALITY = Image.Resampling.LANCZOS, 95
SIZE = ".size"  # a file with the shorter side that files are written in, in pixels


class _Member(NamedTuple):
    class_name: str
    file: str
    size: int  # bytes
    open: Callable[[], Any]  # a file of bytes


class _Written(NamedTuple):
    class_name: str
    file: str
    size: int
    sha256: str  # of smaller images


class Findings(NamedTuple):
    """Paths below the prepared folder. The last two can be trained on."""

    missing: list[str]
    unreadable: list[str]  # truncated, or other bytes than were prepared
    foreign: list[str]  # not of the manifest
    not_jpeg: list[str]
    cmyk: list[str]


def prepare(
    source: Path, target: Path, copy: bool, tick: Tick, size: int | None = None
) -> Manifest:
    """Fills ``target/train`` and ``target/val`` and gives the manifest, also written there.

    Class folders of a tree are linked unless ``copy`` or a ``size`` is given. With a size, images
    whose shorter side has more pixels are written with so many, upright and in RGB, as JPEG of
    ``QUALITY``, by ``FILTER``; the others as they are. Raises DataError where something is not
    there, broken, or in the way.
    """
    if not source.is_dir():
        raise DataError("there is no such folder", key="--from", path=source)
    # One may also be a link to the other; linking would then destroy what is linked to.
    if any((source / part).resolve() == (target / part).resolve() for part in ("", *IMAGES)):
        raise DataError(
            "source and target, or their folders of one split, are one",
            path=source,
            remedy="Name another target; data=imagenet100 also reads the classes out of all 1,000",
        )
    (target / MANIFEST).unlink(missing_ok=True)  # of what an earlier call has prepared
    _refuse_another_size(target, size)
    manifest: Manifest = {"source": str(source.resolve()), "how": {}, "images": {}}
    if size:
        manifest |= {"size": size, "sha256": {}}
    for split in IMAGES:
        how, written = _prepare_split(split, source, target / split, copy, tick, size)
        found, hashes = _by_class(written, "size"), _by_class(written, "sha256")
        if absent := [name for name in IMAGENET100 if not found.get(name)]:
            raise DataError(
                f"{len(absent)} of the 100 classes have no {split} image: {', '.join(absent)}",
                path=source,
                remedy="Get them, and give the same command again",
            )
        manifest["how"][split] = how
        manifest["images"][split] = found
        if size:
            manifest["sha256"][split] = hashes
    unfinished = target / f".{MANIFEST}.partial"
    unfinished.write_text(json.dumps(manifest, indent=1) + "\n")
    os.replace(unfinished, target / MANIFEST)
    return manifest


def _refuse_another_size(target: Path, size: int | None) -> None:
    """Of images that a target holds, for what lies there is passed over."""
    marker = target / SIZE
    there = f"with --size {marker.read_text().strip()}" if marker.is_file() else "without --size"
    begun = any((target / split).is_dir() for split in IMAGES)
    if begun and there != (f"with --size {size}" if size else "without --size"):
        raise DataError(
            f"what is there was prepared {there}",
            path=target,
            remedy="Name another target, or remove what is there",
        )
    if size:
        target.mkdir(parents=True, exist_ok=True)
        marker.write_text(f"{size}\n")


def read_manifest(target: Path) -> Manifest:
    """Raises DataError where there is none."""
    try:
        manifest: Manifest = json.loads((target / MANIFEST).read_text())
        manifest["source"], manifest["how"], manifest["images"].values()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            "the manifest cannot be read: nothing was prepared there, or not to its end",
            path=target / MANIFEST,
            remedy="Give the command with --from first",
        ) from error
    return manifest


def verify(target: Path, manifest: Manifest, tick: Tick) -> Findings:
    """Decodes every image of the manifest."""
    expected, hashes = _by_path(manifest["images"]), _by_path(manifest.get("sha256", {}))
    findings = Findings([], [], [], [], [])
    with ThreadPoolExecutor(usable_cores()) as threads:  # Pillow decodes without Python's lock
        try:
            digests = map(hashes.get, expected)
            paths = map(target.joinpath, expected)
            verdicts = threads.map(_judged, paths, expected.values(), digests)
            for path, verdict in zip(expected, verdicts, strict=True):
                tick()
                if verdict:
                    getattr(findings, verdict).append(path)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    for at in dict.fromkeys(os.path.dirname(path) for path in expected):
        here = (f"{at}/{file.name}" for file in images_in(target / at))
        findings.foreign.extend(path for path in here if path not in expected)
    return findings


def _by_path(splits: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """`split/class/file` -> what a part of the manifest has of it."""
    return {
        f"{split}/{name}/{file}": value
        for split, classes in splits.items()
        for name, files in classes.items()
        for file, value in files.items()
    }


def _judged(path: Path, size: int, sha256: str | None) -> str | None:
    """The field of Findings that a file belongs in, if any."""
    if not path.is_file():
        return "missing"
    try:
        if path.stat().st_size != size or (sha256 and sha256 != _digest(path.read_bytes())):
            return "unreadable"
        with Image.open(path) as image:
            image.load()
            if image.format != "JPEG":
                return "not_jpeg"
            return "cmyk" if image.mode == "CMYK" else None
    except UNREADABLE:
        return "unreadable"


def _prepare_split(
    split: str, source: Path, target: Path, copy: bool, tick: Tick, size: int | None
) -> tuple[str, list[_Written]]:
    """How a split was made, and its files."""
    tree, archive = source / split, source / (TRAIN_ARCHIVE if split == "train" else VAL_ARCHIVE)
    in_tree = tree.is_dir() and any((tree / name).is_dir() for name in IMAGENET100)
    if in_tree and not copy and not size:
        found = _listed(_in_tree(tree), tick)
        for name in dict.fromkeys(one.class_name for one in found):
            _link(tree / name, target / name)
        return "linked", found
    if not in_tree and not archive.is_file():
        raise DataError(
            f"neither class folders {split}/<wnid>/ nor {archive.name} is there",
            key="--from",
            path=source,
            remedy="Name the folder that holds one of them",
        )
    if in_tree:
        members = _in_tree(tree)
    else:
        members = _in_train(archive) if split == "train" else _in_val(archive)
    try:
        how = f"shorter side at most {size} px" if size else "copied" if in_tree else "extracted"
        return how, _written(members, tick, target, size)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"the {'folder' if in_tree else 'archive'} is broken ({error})",
            path=tree if in_tree else archive,
            remedy="Get it again; what was written is kept",
        ) from error


def _in_tree(tree: Path) -> Iterator[_Member]:
    for name in IMAGENET100:
        for file in images_in(tree / name):
            yield _Member(name, file.name, file.stat().st_size, partial(file.open, "rb"))


def _in_train(archive: Path) -> Iterator[_Member]:
    """Of an archive of one archive per class."""
    with tarfile.open(archive, "r:") as outer:
        for member in outer:
            name = Path(member.name).stem
            if name in IMAGENET100 and member.isfile():
                with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                    for image in inner:
                        if image.isfile():
                            yield _of_archive(name, image, inner)


def _in_val(archive: Path) -> Iterator[_Member]:
    """The images are numbered from 1; the development kit has the class of each."""
    classes = _validation_classes(archive.parent / DEVKIT)
    with tarfile.open(archive, "r:") as images:
        for image in images:
            if not image.isfile():
                continue
            number = Path(image.name).stem.rpartition("_")[2]
            if not number.isdigit() or not 1 <= int(number) <= len(classes):
                raise DataError(
                    f"{image.name!r} is none of the {len(classes)} validation images",
                    path=archive,
                    remedy=f"Name the official archive and {DEVKIT}",
                )
            if (name := classes[int(number) - 1]) in IMAGENET100:
                yield _of_archive(name, image, images)


def _of_archive(class_name: str, image: tarfile.TarInfo, archive: tarfile.TarFile) -> _Member:
    opened = partial(archive.extractfile, image)
    return _Member(class_name, Path(image.name).name, image.size, opened)


def _validation_classes(devkit: Path) -> list[str]:
    if not devkit.is_file():
        raise DataError(
            "what class each validation image has is not known",
            path=devkit,
            remedy="Put the development kit there, or the images in class folders val/<wnid>/",
        )
    with tempfile.TemporaryDirectory() as scratch:  # torchvision writes beside the kit
        (Path(scratch) / DEVKIT).symlink_to(devkit.resolve())
        try:
            parse_devkit_archive(scratch)
        except RuntimeError as error:  # by its checksum
            raise DataError(
                "the development kit is not the official file", path=devkit, remedy="Get it again"
            ) from error
        return load_meta_file(scratch)[1]


def images_in(folder: Path) -> list[Path]:
    """Images of a folder by their names, sorted; none where there is no such folder."""
    return sorted(
        file
        for file in (folder.iterdir() if folder.is_dir() else ())
        if file.suffix.lower() in IMG_EXTENSIONS and not file.name.startswith(".")
    )


def _listed(members: Iterator[_Member], tick: Tick, target: Path | None = None) -> list[_Written]:
    """Members as they are, once they are written below a target if any."""
    found = []
    for member in members:
        if target:
            _write(target / member.class_name / member.file, member.open, member.size)
        found.append(_Written(member.class_name, member.file, member.size, ""))
        tick()
    return found


def _written(
    members: Iterator[_Member], tick: Tick, target: Path, size: int | None
) -> list[_Written]:
    """Members as they lie below a target, once they are written there."""
    if size is None:
        return _listed(members, tick, target)
    workers = usable_cores()
    waiting: deque[Future[_Written]] = deque()
    found = []
    with ThreadPoolExecutor(workers) as threads:  # Pillow works without Python's lock
        try:
            for member in members:
                # Archives are read in order, and no further ahead than the threads are busy.
                content = _read(member, target)
                waiting.append(threads.submit(_shrunk, member, content, target, size))
                while len(waiting) > 4 * workers:
                    found.append(waiting.popleft().result())
                    tick()
            for future in waiting:
                found.append(future.result())
                tick()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return found


def _read(member: _Member, target: Path) -> bytes:
    """The file's bytes; none where its image lies in the target already."""
    if (target / member.class_name / member.file).is_file():
        return b""
    with member.open() as file:
        content: bytes = file.read()
    if len(content) != member.size:
        raise EOFError(f"{member.file} ends early")
    return content


def _shrunk(member: _Member, content: bytes, target: Path, size: int) -> _Written:
    path = target / member.class_name / member.file
    if content:
        content = _smaller_file(content, size, member)
        _write(path, lambda: io.BytesIO(content), len(content))
    content = content or path.read_bytes()
    return _Written(member.class_name, member.file, len(content), _digest(content))


def smaller(image: Image.Image, size: int) -> bytes:
    """A JPEG whose shorter side has so many pixels, of an image in RGB with more."""
    factor = size / min(image.size)
    width, height = (max(size, round(side * factor)) for side in image.size)
    file = io.BytesIO()
    image.resize((width, height), FILTER).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _smaller_file(content: bytes, size: int, member: _Member) -> bytes:
    """A JPEG whose shorter side has so many pixels; the file as it is where it has no more."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if min(opened.size) <= size:
                opened.load()
                return content
        image = rgb(io.BytesIO(content))
    except UNREADABLE as error:
        raise DataError(
            f"an image cannot be read ({error})",
            path=f"{member.class_name}/{member.file}",
            remedy="Get it again; what was written is kept",
        ) from error
    return smaller(image, size)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _by_class(written: list[_Written], what: str) -> dict[str, dict[str, Any]]:
    """Class -> file -> one of its attributes."""
    found: dict[str, dict[str, Any]] = {}
    for one in written:
        found.setdefault(one.class_name, {})[one.file] = getattr(one, what)
    return found


def _write(path: Path, opened: Callable[[], Any], size: int) -> None:
    """Of so many bytes; what lies there in full is left as it is."""
    folder = path.parent
    if folder.is_symlink():
        folder.unlink()  # from an earlier call: writing would go into the source
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size == size:
        return
    unfinished = folder / f".{path.name}.partial"
    with opened() as source, unfinished.open("wb") as file:
        shutil.copyfileobj(source, file)
    if unfinished.stat().st_size != size:
        unfinished.unlink()
        raise EOFError(f"{path.name} ends early")
    os.replace(unfinished, path)


def _link(folder: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise DataError(
            "a folder is in the way of a link", path=link, remedy="Remove it, or give --copy"
        )
    link.symlink_to(folder.resolve(), target_is_directory=True)
