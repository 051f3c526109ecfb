"""`solo-mim prepare`: data sets that nobody can download for the user, in the layout that training
reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from solo_mim.commands.arguments import parser_of

DESCRIPTION = """ImageNet-100 out of ImageNet: the 100 classes of CMC's and solo-learn's list.

SOURCE holds, for each split, either class folders (train/<wnid>/, val/<wnid>/) or the official
archive (ILSVRC2012_img_train.tar; ILSVRC2012_img_val.tar beside ILSVRC2012_devkit_t12.tar.gz).
Of archives 16 GB are written; class folders are linked. After a kill the same command goes on."""
EXAMPLES = """examples:
  solo-mim prepare imagenet100 --from /data/ILSVRC2012
  solo-mim prepare imagenet100 /scratch/imagenet-100 --from /data/ILSVRC2012 --copy --verify
  solo-mim prepare imagenet100 --from /data/ILSVRC2012 --size 256     smaller files, read faster
  solo-mim prepare imagenet100 --verify         what was prepared before, each image decoded
"""
# What a finding means to the person who reads it.
NAMES = {
    "missing": "missing",
    "unreadable": "truncated or unreadable",
    "foreign": "not of the manifest",
    "not_jpeg": "no JPEG inside (Pillow reads it, fine to train on)",
    "cmyk": "CMYK (read as RGB, fine to train on)",
}


def summary(manifest: dict[str, Any], target: Path) -> str:
    """A line for each split: images, bytes, images of a class, and what is odd about them."""
    from solo_mim.data import imagenet100

    lines = [f"ImageNet-100 in {target}, from {manifest['source']}"]
    for split, classes in manifest["images"].items():
        counts = [len(files) for files in classes.values()]
        size = sum(sum(files.values()) for files in classes.values())
        line = (
            f"  {split:<5} {sum(counts):>7,} images of {len(counts)} classes, {min(counts)} to "
            f"{max(counts)} each, {size / 1e9:.2f} GB, {manifest['how'][split]}"
        )
        if sum(counts) != imagenet100.IMAGES[split]:
            line += f" (ImageNet has {imagenet100.IMAGES[split]:,})"
        lines.append(line)
    lines.append(f"  images and bytes of each file: {target / imagenet100.MANIFEST}")
    return "\n".join(lines)


def report(findings: Any) -> str:
    lines = []
    for kind, paths in findings._asdict().items():
        lines.append(f"{NAMES[kind]}: {len(paths)}")
        lines += [f"  {path}" for path in paths]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = parser_of("prepare", DESCRIPTION, EXAMPLES)
    parser.add_argument("what", choices=["imagenet100"])
    parser.add_argument(
        "target",
        metavar="TARGET",
        type=Path,
        nargs="?",
        default=Path("datasets/imagenet-100"),
        help="folder to write: %(default)s, which data=imagenet100 reads",
    )
    parser.add_argument("--from", dest="source", metavar="SOURCE", type=Path)
    parser.add_argument("--copy", action="store_true", help="class folders, rather than link them")
    parser.add_argument(
        "--size",
        metavar="PIXELS",
        type=int,
        help="write images with a shorter side of so many pixels, where they have more: JPEG of "
        "quality 95, Lanczos",
    )
    parser.add_argument("--verify", action="store_true", help="decode every prepared image")
    return parser


def run(arguments: list[str]) -> int:
    given = parser().parse_args(arguments)
    if given.source is None and not given.verify:
        parser().error("give --from SOURCE, or --verify for what is there")
    if given.size is not None and given.size < 32:
        parser().error(f"--size {given.size}: give 32 pixels or more")
    from tqdm import tqdm

    from solo_mim.data import DataError, imagenet100

    target: Path = given.target.expanduser()
    try:
        if given.source is not None:
            images = sum(imagenet100.IMAGES.values())
            with tqdm(total=images, desc="preparing", unit=" images", disable=None) as bar:
                source = given.source.expanduser()
                manifest = imagenet100.prepare(source, target, given.copy, bar.update, given.size)
            print(summary(manifest, target))
        if not given.verify:
            return 0
        manifest = imagenet100.read_manifest(target)
        images = sum(len(f) for split in manifest["images"].values() for f in split.values())
        with tqdm(total=images, desc="verifying", unit=" images", disable=None) as bar:
            findings = imagenet100.verify(target, manifest, bar.update)
        print(f"{images:,} images decoded\n{report(findings)}")
        return 1 if findings.missing or findings.unreadable or findings.foreign else 0
    except OSError as error:  # no space, no permission
        raise DataError(
            error.strerror or str(error),
            path=error.filename or target,
            remedy="The same command goes on from there",
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what was prepared is kept") from None
