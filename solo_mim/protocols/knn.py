"""What the neighbours of an image say of its class, by frozen features."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from solo_mim import trained
from solo_mim.data import SSLDataModule
from solo_mim.errors import ConfigError
from solo_mim.evaluation.knn import Neighbours, chosen_neighbours
from solo_mim.protocols import figures
from solo_mim.runs.folder import Result, RunFolder
from solo_mim.trainer import peak_memory_mib, shows_progress


def knn(run: str, overrides: list[str]) -> Result:
    """Evaluates one network; the result, also of one that was evaluated before.

    Raises:
        ConfigError: the network, a key, or a value is wrong; the message names it.
    """
    network = trained.opened(run, overrides)
    data = SSLDataModule(network.recipe.plain)
    folder = network.folder("knn", network.recipe.data.dataset, data.splits.fingerprint)
    return folder.once(lambda: _evaluated(network, data, folder), summary)


def _evaluated(network: trained.Opened, data: SSLDataModule, folder: RunFolder) -> Result:
    recipe = network.recipe
    if data.num_val_images == 0:
        raise ConfigError(
            f"data.dataset={recipe.data.dataset}: there are no labelled images to evaluate on; "
            "name them in data.val_path, or set data.validation_split"
        )
    where = figures.offline_split(recipe, data)[1]
    folder.begin()
    started = time.perf_counter()
    device = figures.device(recipe)
    train, test = figures.train_and_test(recipe, data, network.backbone.to(device), device)
    if len(train[1]) < 2:
        raise ConfigError("data.train_path: neighbours need two training images")
    found, queries = chosen_neighbours(
        train, test, data.num_classes, device, shows_progress(recipe)
    )
    chosen_on = f"{queries:,} training images, each from all others"
    chosen = {}
    for distance, of in found.items():
        tried = [
            {"k": s.k, "temperature": s.temperature, "top1": t} for s, t in of.candidates.items()
        ]
        chosen[distance] = {**asdict(of.setting), "chosen_on": chosen_on, "candidates": tried}
    result = {
        "data": recipe.data.dataset,
        "backbone": recipe.backbone.name,
        "measured": [_row(distance, of, where, len(test[1])) for distance, of in found.items()],
        "chosen": chosen,
        "seconds": time.perf_counter() - started,
        "corrupt_images": data.corrupt_images,
        "peak_memory_mib": peak_memory_mib(),
        "trained": network.origin,
        **figures.provenance(folder, recipe.method, data.splits.fingerprint),
    }
    folder.finish(result)
    print(summary(result))
    return result


def _row(distance: str, of: Neighbours, split: str, images: int) -> dict[str, Any]:
    temperature = of.setting.temperature
    setting = f"k = {of.setting.k}" + (f", T = {temperature:g}" if temperature else "")
    scores = {"setting": setting, "top1": of.top1, "top5": of.top5}
    return figures.measured(f"kNN, {distance}", split, images, scores)


def summary(result: Result) -> str:
    """The closing lines, from the result."""
    on = next(iter(result["chosen"].values()))["chosen_on"]
    return "\n".join(
        [
            f"{result['backbone']} of {result['trained']['checkpoint']} on {result['data']}",
            *(figures.measured_line(row) for row in result["measured"]),
            f"  k and T chosen on {on}",
            *figures.skipped_images(result),
            f"  results: {result['folder']}",
        ]
    )
