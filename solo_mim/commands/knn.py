"""`solo-mim knn`: what the neighbours of an image say of its class, by frozen features."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from solo_mim.commands import jobs, runs, trained
from solo_mim.data import SSLDataModule
from solo_mim.errors import ConfigError
from solo_mim.evaluation.knn import chosen_neighbours

DESCRIPTION = """Weighted k nearest neighbours on features of un-augmented images.

For cosine and euclidean distance each, k and temperature are chosen by predicting training images
from all others; the images to evaluate are used once, with what was chosen."""
EXAMPLES = """examples:
  solo-mim knn runs/explicit_mim-photo_patches-seed5-1a2b3c4d
  solo-mim knn RUN evaluation.test=true              test images, of a run with a validation split
  solo-mim knn RUN data=cifar10 data.train_path=D    other data than it was trained on
  solo-mim knn weights.pth backbone=resnet18 data=cifar10 data.train_path=D
"""


def knn(run: str, overrides: list[str]) -> dict[str, Any]:
    """Evaluates one network; the result, also of one that was evaluated before.

    Raises:
        ConfigError: the network, a key, or a value is wrong; the message names it.
    """
    network = trained.opened(run, overrides)
    cfg = network.cfg
    data = SSLDataModule(cfg)
    images = data.splits.fingerprint
    folder = trained.folder_for(
        "knn", cfg.data.dataset, cfg, network.source, network.weights.digest, images
    )

    def work(lock: runs.FolderLock) -> dict[str, Any]:
        split, where = jobs.offline_split(cfg)
        if data.num_val_images == 0:
            raise ConfigError(
                f"data.dataset={cfg.data.dataset}: there are no labelled images to evaluate on; "
                "name them in data.val_path, or set data.validation_split"
            )
        lock.acquire()
        runs.prepare(folder, cfg, images)
        started = time.perf_counter()
        device = jobs.device(cfg)
        train, test = (
            jobs.plain_features(cfg, data, part, network.backbone.to(device), device)
            for part in ("train", split)
        )
        if len(train[1]) < 2:
            raise ConfigError("data.train_path: neighbours need two training images")
        found, queries = chosen_neighbours(
            train, test, data.num_classes, device, jobs.shows_progress(cfg)
        )
        chosen_on = f"{queries:,} training images, each from all others"
        measured, chosen = [], {}
        for distance, of in found.items():
            setting = f"k = {of.setting.k}"
            setting += f", T = {of.setting.temperature:g}" if of.setting.temperature else ""
            figures = {"setting": setting, "top1": of.top1, "top5": of.top5}
            measured.append(jobs.measured(f"kNN, {distance}", where, len(test[1]), figures))
            chosen[distance] = {
                **asdict(of.setting),
                "chosen_on": chosen_on,
                "candidates": [
                    {"k": setting.k, "temperature": setting.temperature, "top1": top1}
                    for setting, top1 in of.candidates.items()
                ],
            }
        result = {
            "data": cfg.data.dataset,
            "backbone": cfg.backbone.name,
            "measured": measured,
            "chosen": chosen,
            "seconds": time.perf_counter() - started,
            "corrupt_images": data.corrupt_images,
            "peak_memory_mib": jobs.peak_memory_mib(),
            **jobs.provenance(cfg, folder, trained.origin(network.source, network.weights), images),
        }
        runs.write_json(folder / runs.RESULT, result)
        print(summary(result))
        return result

    return jobs.done_once(folder, cfg, summary, work)


def summary(result: dict[str, Any]) -> str:
    """The closing lines, from the result."""
    on = next(iter(result["chosen"].values()))["chosen_on"]
    return "\n".join(
        [
            f"{result['backbone']} of {result['trained']['checkpoint']} on {result['data']}",
            *(jobs.measured_line(row) for row in result["measured"]),
            f"  k and T chosen on {on}",
            f"  results: {result['folder']}",
        ]
    )


def parser() -> argparse.ArgumentParser:
    """Of the command."""
    return jobs.evaluation_parser("knn", DESCRIPTION, EXAMPLES)


def run(arguments: list[str]) -> int:
    """The command: the network, and overrides."""
    given = parser().parse_intermixed_args(arguments)
    knn(given.run, given.overrides)
    return 0
