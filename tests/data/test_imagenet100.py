"""ImageNet-100 out of archives and trees of ImageNet: which files, resumed, verified."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets.imagenet import ARCHIVE_META
from torchvision.datasets.utils import calculate_md5

from solo_mim.commands import main
from solo_mim.data import DataError, imagenet100
from solo_mim.data.datasets import load_splits
from solo_mim.data.folders import IMAGENET100

OTHERS = ("n00000001", "n99999999")  # of the 900 classes that are left out
CLASSES = (*IMAGENET100, *OTHERS)
SPLITS = {"train": 2, "val": 1}  # images of a class


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def archived(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return file.getvalue()


def devkit(path: Path, val_classes: list[int]) -> None:
    """As the official one: classes are numbered in an order of its own, groups of them follow."""
    columns = [("ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("children", "O")]
    synsets = [(i + 1, name, f"word {i}", "", 0) for i, name in enumerate(CLASSES)]
    synsets.append((len(CLASSES) + 1, "n00000002", "a group", "", 2))
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(synsets, dtype=columns)})
    truth = "".join(f"{number + 1}\n" for number in val_classes).encode()
    folder = "ILSVRC2012_devkit_t12"
    with tarfile.open(path, "w:gz") as archive:
        add(archive, f"{folder}/data/meta.mat", meta.getvalue())
        add(archive, f"{folder}/data/ILSVRC2012_validation_ground_truth.txt", truth)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``tree/train/<wnid>/<wnid>_<n>.JPEG`` and ``tree/val/<wnid>/ILSVRC2012_val_<n>.JPEG``."""
    root = tmp_path / "tree"
    order = np.random.default_rng(0).permutation(len(CLASSES))
    for i, name in enumerate(CLASSES):
        for split in SPLITS:
            (root / split / name).mkdir(parents=True)
        for n in range(SPLITS["train"]):
            (root / "train" / name / f"{name}_{n}.JPEG").write_bytes(jpeg(2 * i + n))
        number = int(np.flatnonzero(order == i)[0]) + 1
        path = root / "val" / name / f"ILSVRC2012_val_{number:08d}.JPEG"
        path.write_bytes(jpeg(1000 + i))
    return root


@pytest.fixture
def archives(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three official archives with the images of the tree."""
    root = tmp_path / "archives"
    root.mkdir()
    inner = {
        f"{name}.tar": archived({f.name: f.read_bytes() for f in (tree / "train" / name).iterdir()})
        for name in CLASSES
    }
    (root / imagenet100.TRAIN_ARCHIVE).write_bytes(archived(inner))
    val = sorted((tree / "val").rglob("*.JPEG"), key=lambda file: file.name)
    (root / imagenet100.VAL_ARCHIVE).write_bytes(archived({f.name: f.read_bytes() for f in val}))
    devkit(root / imagenet100.DEVKIT, [CLASSES.index(file.parent.name) for file in val])
    made_up = imagenet100.DEVKIT, calculate_md5(root / imagenet100.DEVKIT)
    monkeypatch.setitem(ARCHIVE_META, "devkit", made_up)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Every file below the class folders, linked ones too."""
    return {
        f"{split}/{folder.name}/{file.name}": file.read_bytes()
        for split in SPLITS
        for folder in sorted((root / split).iterdir())
        for file in folder.iterdir()
    }


def wanted(tree: Path) -> dict[str, bytes]:
    return {k: v for k, v in contents(tree).items() if k.split("/")[1] in IMAGENET100}


def prepared(source: Path, target: Path, copy: bool = False) -> int:
    """Prepares and gives the number of images that were told of."""
    ticks: list[None] = []
    imagenet100.prepare(source, target, copy, lambda: ticks.append(None))
    return len(ticks)


def test_archives_give_the_listed_classes_with_the_classes_of_validation_images(
    archives: Path, tree: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    assert prepared(archives, target) == 300
    assert contents(target) == wanted(tree)
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest == imagenet100.read_manifest(target)
    assert manifest["how"] == {"train": "extracted", "val": "extracted"}
    assert manifest["source"] == str(archives)
    sizes = {
        f"{split}/{name}/{file}": size
        for split, classes in manifest["images"].items()
        for name, files in classes.items()
        for file, size in files.items()
    }
    assert sizes == {path: len(content) for path, content in wanted(tree).items()}


@pytest.mark.parametrize("copy", [False, True])
def test_tree_is_linked_or_copied_and_loads(tree: Path, tmp_path: Path, copy: bool) -> None:
    target = tmp_path / "target"
    prepared(tree, target, copy)
    assert contents(target) == wanted(tree)
    assert {folder.is_symlink() for folder in (target / "train").iterdir()} == {not copy}
    splits = load_splits(
        {
            "dataset": "imagenet100",
            "train_path": str(target / "train"),
            "val_path": str(target / "val"),
        }
    )
    assert splits.test is not None
    assert (len(splits.train), len(splits.test), splits.num_classes) == (200, 100, 100)


def test_a_copy_replaces_links_and_leaves_the_source_alone(tree: Path, tmp_path: Path) -> None:
    before = contents(tree)
    prepared(tree, tmp_path / "target")
    prepared(tree, tmp_path / "target", copy=True)
    assert not any((tmp_path / "target" / "val" / name).is_symlink() for name in IMAGENET100)
    assert contents(tmp_path / "target") == wanted(tree)
    assert contents(tree) == before


def test_splits_come_from_an_archive_and_a_tree(archives: Path, tree: Path, tmp_path: Path) -> None:
    (archives / imagenet100.VAL_ARCHIVE).unlink()
    shutil.copytree(tree / "val", archives / "val")
    prepared(archives, tmp_path / "target")
    assert contents(tmp_path / "target") == wanted(tree)


def test_what_was_killed_goes_on_without_cut_files(
    archives: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, copied = tmp_path / "target", shutil.copyfileobj
    left = iter(range(50))

    def killed_at_last(source: Any, file: Any) -> None:
        if next(left, None) is None:
            file.write(source.read(100))
            raise KeyboardInterrupt
        copied(source, file)

    monkeypatch.setattr(shutil, "copyfileobj", killed_at_last)
    with pytest.raises(KeyboardInterrupt):
        prepared(archives, target)
    assert not (target / "manifest.json").exists()
    whole = {path: path.stat().st_ino for path in target.rglob("*.JPEG")}
    assert len(whole) == 50
    assert all(p.read_bytes() == wanted(tree)[str(p.relative_to(target))] for p in whole)
    monkeypatch.setattr(shutil, "copyfileobj", copied)
    prepared(archives, target)
    assert contents(target) == wanted(tree)
    assert {path: path.stat().st_ino for path in whole} == whole, "whole files are not written anew"


def shrunk(source: Path, target: Path, size: int = 6) -> dict[str, Any]:
    return imagenet100.prepare(source, target, False, lambda: None, size)


def test_smaller_images_have_the_size_that_is_asked_for_and_hashes(
    archives: Path, tree: Path, tmp_path: Path
) -> None:
    upright = tree / "train" / IMAGENET100[0] / f"{IMAGENET100[0]}_0.JPEG"
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.new("CMYK", (8, 20)).save(upright, "JPEG", exif=exif)
    small = tree / "train" / IMAGENET100[1] / f"{IMAGENET100[1]}_0.JPEG"
    Image.new("L", (5, 9)).save(small, "JPEG")
    target = tmp_path / "target"
    manifest = shrunk(tree, target)
    assert manifest == imagenet100.read_manifest(target)
    assert manifest["how"]["train"] == "shorter side at most 6 px"
    for path, content in contents(target).items():
        split, name, file = path.split("/")
        assert manifest["images"][split][name][file] == len(content)
        assert hashlib.sha256(content).hexdigest().startswith(manifest["sha256"][split][name][file])
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.mode) == ("JPEG", "L" if path.endswith(small.name) else "RGB")
        sizes = {upright.name: (15, 6), small.name: (5, 9)}
        assert image.size == sizes.get(file, (7, 6)), path
    found = imagenet100.verify(target, manifest, lambda: None)
    assert found == imagenet100.Findings([], [], [], [], [])
    of_archives = shrunk(archives, tmp_path / "other")
    changed = {upright.name, small.name}  # the archives are of the tree as it was
    for split, classes in of_archives["sha256"].items():
        for name, files in classes.items():
            for file in files.keys() - changed:
                assert files[file] == manifest["sha256"][split][name][file]


def test_smaller_images_go_on_and_are_verified_by_their_bytes(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    shrunk(tree, target)
    whole = {path: path.stat().st_mtime_ns for path in target.rglob("*.JPEG")}
    first, second, *_ = whole
    first.unlink()
    manifest = shrunk(tree, target)
    assert {path for path, at in whole.items() if path.stat().st_mtime_ns != at} == {first}
    content = bytearray(second.read_bytes())
    content[-3] ^= 1
    second.write_bytes(content)
    found = imagenet100.verify(target, manifest, lambda: None)
    assert found.unreadable == [str(second.relative_to(target))]


def test_smaller_images_are_not_mixed_with_others(tree: Path, tmp_path: Path) -> None:
    shrunk(tree, tmp_path / "target")
    with pytest.raises(DataError, match="prepared with --size 6"):
        shrunk(tree, tmp_path / "target", 7)
    with pytest.raises(DataError, match="prepared with --size 6"):
        prepared(tree, tmp_path / "target", copy=True)
    prepared(tree, tmp_path / "linked")
    with pytest.raises(DataError, match="prepared without --size"):
        shrunk(tree, tmp_path / "linked")
    cut = tree / "val" / IMAGENET100[3] / "cut.JPEG"
    cut.write_bytes(jpeg(1)[:200])
    with pytest.raises(DataError, match=rf"an image cannot be read.*{IMAGENET100[3]}/cut.JPEG"):
        shrunk(tree, tmp_path / "third")


def test_verification_names_what_is_wrong(tree: Path, tmp_path: Path) -> None:
    train = tree / "train" / IMAGENET100[0]
    Image.new("CMYK", (8, 8)).save(train / f"{IMAGENET100[0]}_1.JPEG", "JPEG")
    png = tree / "val" / IMAGENET100[1] / "png.JPEG"
    Image.new("RGB", (8, 8)).save(png, "PNG")
    whole = jpeg(7) + bytes(50)
    cut = tree / "train" / IMAGENET100[2] / "cut.JPEG"
    cut.write_bytes(whole[: len(whole) // 2])
    target = tmp_path / "target"
    prepared(tree, target, copy=True)
    shorter = target / "train" / IMAGENET100[3] / f"{IMAGENET100[3]}_0.JPEG"
    shorter.write_bytes(shorter.read_bytes()[:-1])
    (target / "train" / IMAGENET100[4] / f"{IMAGENET100[4]}_1.JPEG").unlink()
    (target / "train" / IMAGENET100[5] / "late.JPEG").write_bytes(jpeg(1))
    ticks: list[None] = []
    found = imagenet100.verify(
        target, imagenet100.read_manifest(target), lambda: ticks.append(None)
    )
    assert found == imagenet100.Findings(
        missing=[f"train/{IMAGENET100[4]}/{IMAGENET100[4]}_1.JPEG"],
        unreadable=[
            f"train/{IMAGENET100[2]}/cut.JPEG",
            f"train/{IMAGENET100[3]}/{IMAGENET100[3]}_0.JPEG",
        ],
        foreign=[f"train/{IMAGENET100[5]}/late.JPEG"],
        not_jpeg=[f"val/{IMAGENET100[1]}/png.JPEG"],
        cmyk=[f"train/{IMAGENET100[0]}/{IMAGENET100[0]}_1.JPEG"],
    )
    assert len(ticks) == 302


# The command


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["prepare", "imagenet100", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_command_prepares_and_verifies(tree: Path, tmp_path: Path, command: Any) -> None:
    target = tmp_path / "target"
    code, out, err = command(target, "--from", tree, "--verify")
    assert (code, err) == (0, "")
    assert "  train     200 images of 100 classes, 2 to 2 each" in out
    assert "(ImageNet has 126,689)" in out
    assert "300 images decoded" in out
    next((tree / "train" / IMAGENET100[0]).iterdir()).unlink()
    code, out, _ = command(target, "--verify")
    assert code == 1
    assert f"missing: 1\n  train/{IMAGENET100[0]}/" in out
    command(target, "--from", tree)
    late = target / "train" / IMAGENET100[5] / "late.JPEG"
    Image.new("RGB", (8, 8)).save(late)
    assert command(target, "--verify")[0] == 1, "it would be trained on"


def break_archive(root: Path) -> None:
    archive = root / imagenet100.TRAIN_ARCHIVE
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2 + 300])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / imagenet100.DEVKIT).unlink(), "what class each validation image has"),
        (lambda root: (root / imagenet100.DEVKIT).write_bytes(b"1"), "not the official file"),
        (lambda root: (root / imagenet100.VAL_ARCHIVE).unlink(), "neither class folders val/"),
        (lambda root: shutil.rmtree(root), "there is no such folder"),
        (break_archive, "the archive is broken"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(
    archives: Path, tmp_path: Path, command: Any, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(archives)
    code, _, err = command(tmp_path / "target", "--from", archives)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_missing_classes_and_folders_in_the_way_are_named(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "target" / "train" / IMAGENET100[0]).mkdir(parents=True)
    with pytest.raises(DataError, match=r"in the way of a link.*give --copy"):
        prepared(tree, tmp_path / "target")
    shutil.rmtree(tree / "val" / IMAGENET100[8])
    with pytest.raises(DataError, match=f"1 of the 100 classes have no val.*: {IMAGENET100[8]}"):
        prepared(tree, tmp_path / "other")
    with pytest.raises(DataError, match=r"source and target.* are one"):
        prepared(tree, tree)


def test_a_target_that_is_a_link_to_the_source_is_left_alone(tree: Path, tmp_path: Path) -> None:
    farm, target = tmp_path / "farm", tmp_path / "target"
    for split in SPLITS:  # class folders that are links themselves
        (farm / split).mkdir(parents=True)
        for folder in (tree / split).iterdir():
            (farm / split / folder.name).symlink_to(folder)
    target.mkdir()
    (target / "train").symlink_to(farm / "train")
    with pytest.raises(DataError, match=r"source and target.* are one"):
        prepared(farm, target)
    assert contents(farm) == contents(tree)


def test_a_manifest_goes_where_preparing_begins_again(tree: Path, tmp_path: Path) -> None:
    prepared(tree, tmp_path / "target")
    shutil.rmtree(tree / "val" / IMAGENET100[8])
    with pytest.raises(DataError, match="have no val image"):
        prepared(tree, tmp_path / "target")
    with pytest.raises(DataError, match="not to its end"):
        imagenet100.read_manifest(tmp_path / "target")


@pytest.mark.parametrize("text", ["[]", "{}", '{"source": 1, "how": {}, "images": []}', "{"])
def test_a_manifest_of_another_kind_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / imagenet100.MANIFEST).write_text(text)
    with pytest.raises(DataError, match="the manifest cannot be read"):
        imagenet100.read_manifest(tmp_path)


def test_hundred_real_photographs_are_extracted_and_decoded(
    hundred_photographs: Path, tmp_path: Path
) -> None:
    inner = {}
    for folder in (hundred_photographs / "train").iterdir():
        inner[f"{folder.name}.tar"] = archived({f.name: f.read_bytes() for f in folder.iterdir()})
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / imagenet100.TRAIN_ARCHIVE).write_bytes(archived(inner))
    shutil.copytree(hundred_photographs / "train", source / "val")
    prepared(source, target)
    found = imagenet100.verify(target, imagenet100.read_manifest(target), lambda: None)
    assert found == imagenet100.Findings([], [], [], [], [])
    assert {k: v for k, v in contents(target).items() if k.startswith("train")} == {
        f"train/{file.parent.name}/{file.name}": file.read_bytes()
        for file in (hundred_photographs / "train").rglob("*.JPEG")
    }
