"""The comparison of docs/results/first-run.md: `python scripts/first_run.py CIFAR_FOLDER`.

CIFAR_FOLDER holds train/CLASS/*.jpg and test/CLASS/*.jpg. Every method gets the same images,
network, optimiser, epochs (configs/budget/cpu.yaml) and augmentation (symmetric_weak), its own loss
settings as solo-learn ships them, and a projector scaled down by one rule: hidden width 512, output
a quarter of the shipped width but at least 128. Nothing was tuned on CIFAR. Finished runs are
skipped, broken ones resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from solo_mim.evaluation.plots import plot_curves

OUTPUT_DIM = {"explicit_mim": 128, "vicreg": 512, "barlow_twins": 512, "simclr": 128}


def run(method: str, images: Path, epochs: int, output: Path) -> dict:
    """Trains one method through the command line; its result."""
    overrides = [
        f"method={method}",
        "data=image_folder",
        "+budget=cpu",
        f"name={method}-cifar10-jpeg",
        f"data.train_path={images / 'train'}",
        f"data.val_path={images / 'test'}",
        "data.fraction=0.2",
        "data.validation_split=2000",
        "evaluation.test=true",
        "augmentations=symmetric_weak",
        "method_kwargs.proj_hidden_dim=512",
        f"method_kwargs.proj_output_dim={OUTPUT_DIM[method]}",
        f"max_epochs={epochs}",
        "data.num_workers=0",
        f"output_dir={output}",
    ]
    with (output / f"{method}.log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", "solo_mim", "pretrain", *overrides],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    found = list(output.glob(f"{method}-cifar10-jpeg-*/result.json"))
    if len(found) != 1:
        raise SystemExit(f"{output} holds {len(found)} results of {method}: give another --output")
    return json.loads(found[0].read_text())


def main() -> None:
    """Runs every method, prints the table as Markdown, writes the picture beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder with train/ and test/")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    images = arguments.images.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    # One thread a run, as many runs as cores: faster than one run on all of them.
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = pool.map(
            lambda method: run(method, images, arguments.epochs, arguments.output), OUTPUT_DIM
        )
        results = dict(zip(OUTPUT_DIM, found, strict=True))

    first = next(iter(results.values()))
    print("\n| | test probe | test kNN | online probe, validation | online kNN, validation | s |")
    print("|---|---|---|---|---|---|")
    for method, result in results.items():
        test, online = result["offline"]["trained"], result["online"]
        print(
            f"| {method} | {test['probe_top1']:.1f} | {test['knn_top1']:.1f} "
            f"| {online['probe_top1']:.1f} | {online['knn_top1']:.1f} "
            f"| {result['training_seconds_of_last_sitting']:.0f} |"
        )
    for label in ("untrained", "raw_pixels"):
        test = first["offline"][label]
        probe = f"{test['probe_top1']:.1f}" if test["probe_top1"] is not None else "-"
        print(f"| {label.replace('_', ' ')} | {probe} | {test['knn_top1']:.1f} | - | - | - |")
    print("\n" + ", ".join(f"{k} {v}" for k, v in first["versions"].items()))
    curves = {m: pd.read_csv(Path(r["folder"]) / "metrics.csv") for m, r in results.items()}
    picture = arguments.output / "first-run.png"
    plot_curves(curves, picture, "CIFAR-10 (JPEG), 8,000 images, validation split, seed 5")
    print(f"picture: {picture}")


if __name__ == "__main__":
    main()
