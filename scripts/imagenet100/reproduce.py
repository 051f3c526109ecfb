"""ImageNet-100 by solo-learn's protocol: seven methods, one command that goes on where it stopped.

    python scripts/imagenet100/reproduce.py --imagenet ILSVRC2012 [--gpus 2] [STAGE ...]

Stages, in order: `prepare` the 100 classes out of ImageNet; `pretrain` every method (ResNet-18, 400
epochs, 256 images a step, DALI, 16-mixed); `linear` (100 epochs on frozen features, rates as
published); `knn`; `report`. Finished work is skipped and broken work resumed; a method that fails
stops no other, and the report names it. What is done is one `solo-mim` command each, printed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

STAGES = ("prepare", "pretrain", "linear", "knn", "report")
# Method -> rate of its linear classifier in solo-learn main's scripts/linear/imagenet-100;
# explicit MIM has VICReg's.
METHODS = {
    "explicit_mim": 0.3,
    "barlow_twins": 0.1,
    "vicreg": 0.3,
    "simclr": 1.0,
    "byol": 0.3,
    "mocov2plus": 3.0,
    "simsiam": 30.0,
}
GLOBAL_BATCH = 256
# A look at whether everything runs; its figures mean nothing. kNN goes through all images.
_FEW = ("max_epochs=2", "optimizer.batch_size=16", "limit_train_batches=2", "limit_val_batches=2")


def machine(gpus: int) -> list[str]:
    """Overrides for so many GPUs; none is the CPU."""
    if gpus == 0:
        batch = f"optimizer.batch_size={GLOBAL_BATCH}"
        return ["accelerator=cpu", "devices=1", "precision=32-true", batch]
    one = [f"devices={gpus}", "precision=16-mixed", f"optimizer.batch_size={GLOBAL_BATCH // gpus}"]
    return one if gpus == 1 else [*one, "strategy=ddp", "sync_batchnorm=true"]


def solo_mim(*arguments: str) -> bool:
    """Runs a command; whether it ended well."""
    print(f"\n$ {shlex.join(['solo-mim', *arguments])}", flush=True)
    return subprocess.run([sys.executable, "-m", "solo_mim", *arguments]).returncode == 0


def pretrained(method: str, given: argparse.Namespace) -> Path:
    """The folder of a method's finished run.

    Raises:
        FileNotFoundError: there is none, or more than one.
    """
    name = f"{method}-imagenet100-seed{given.seed}-*"
    found = [path.parent for path in given.output.glob(f"{name}/result.json")]
    if len(found) != 1:
        raise FileNotFoundError(
            f"{given.output} holds {len(found)} finished runs {name}, not one: "
            + ("keep the one that counts" if found else "run the stage pretrain")
        )
    return found[0]


def run(stage: str, method: str, given: argparse.Namespace) -> bool:
    """One stage of one method; whether it ended well."""
    toy = _FEW if given.toy else []
    if stage == "pretrain":
        return solo_mim(
            *("pretrain", f"method={method}", "data=imagenet100", "data.format=dali"),
            *(f"data.train_path={given.data / 'train'}", f"data.val_path={given.data / 'val'}"),
            *("evaluation.offline=false", f"seed={given.seed}", f"output_dir={given.output}"),
            *(*machine(given.gpus), *toy),
        )
    try:
        folder = str(pretrained(method, given))
    except FileNotFoundError as error:
        print(f"{stage} of {method}: {error}", file=sys.stderr)
        return False
    if stage == "knn":
        return solo_mim("knn", folder)
    precision = ["precision=16-mixed"] if given.gpus else ["accelerator=cpu", "precision=32-true"]
    return solo_mim(
        *("linear", folder, f"optimizer.lr={METHODS[method]}", "devices=1", *precision),
        *("scheduler.name=step", "scheduler.lr_decay_steps=[60,80]", *toy),
    )


def main() -> int:
    """Every stage for every method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--imagenet", type=Path, help="its folders or archives, to prepare from")
    parser.add_argument("--data", type=Path, default=Path("datasets/imagenet-100"))
    parser.add_argument("--output", type=Path, default=Path("runs/imagenet100"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--gpus", type=int, default=2, choices=(0, 1, 2, 4, 8))
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="two epochs of two batches, and kNN")
    given = parser.parse_args()
    stages = given.stages or STAGES[given.imagenet is None :]
    if unknown := set(stages) - set(STAGES):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}")
    if "prepare" in stages:
        if given.imagenet is None:
            parser.error("prepare needs --imagenet")
        if not solo_mim("prepare", "imagenet100", str(given.data), "--from", str(given.imagenet)):
            return 1
    well = True
    for stage in (s for s in ("pretrain", "linear", "knn") if s in stages):
        for method in given.methods:
            well = run(stage, method, given) and well
    if "report" in stages:
        well = solo_mim("report", str(given.output), "--title", "ImageNet-100", "--latex") and well
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
