"""Weighted nearest neighbours on frozen features, with settings chosen on training images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from tqdm import tqdm

from solo_mim.host.knn import knn_predictions, nearest_neighbours, vote_weights

KS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.02, 0.07, 0.2, 0.5, 1.0)
DISTANCES = ("cosine", "euclidean")
# Training images whose class is predicted from all the others, to choose by.
QUERIES = 10_000
# Elements of the distance matrix that are held at once: 256 MiB.
MATRIX = 2**26


@dataclass(frozen=True)
class Setting:
    """Neighbours, and how they are weighted: `exp(similarity / temperature)` by cosine, the inverse
    of the distance, without a temperature, by euclidean."""

    distance: str
    k: int
    temperature: float | None


def settings(distance: str, images: int) -> list[Setting]:
    """Those to choose from where there are so many neighbours, few first.

    A k larger than that takes all there are, once.
    """
    temperatures = TEMPERATURES if distance == "cosine" else (None,)
    ks = dict.fromkeys(min(k, images) for k in KS)
    return [Setting(distance, k, temperature) for k in ks for temperature in temperatures]


def peak_bytes(train: int, dim: int, queries: int, classes: int) -> int:
    """Bytes that `leave_one_out` and `predictions` hold at most beyond their arguments.

    Of each part that this sums no more is alive at once than counted: features normalised or laid
    out for a product, in 32 bits; distances of a chunk, and what sorting them takes; neighbours,
    their weights and the votes of a chunk.
    """
    rows = min(queries, max(1, MATRIX // train))
    features = 2 * (train + queries) * (dim + 2) * 4
    distances = 3 * rows * train * 4
    neighbours = rows * max(KS) * (8 + 4 + 4 + 8)
    return features + distances + neighbours + 3 * rows * classes * 4 + queries * (5 + 1) * 8


def leave_one_out(
    features: Tensor,
    targets: Tensor,
    queries: Tensor,
    distance: str,
    watched: Callable[[Iterable], Iterable] = iter,
) -> dict[Setting, float]:
    """Top-1 accuracy (%) of training images, each predicted from all others, for every setting.

    Args:
        features, targets: M x D and M classes from 0 on.
        queries: indexes of the training images that are predicted.
        distance: one of `DISTANCES`.
        watched: put around what is iterated over, for a progress bar.
    """
    hits = dict.fromkeys(settings(distance, len(features) - 1), 0)
    num_classes = int(targets.max()) + 1
    found = nearest_neighbours(features, features[queries], max(KS), distance, MATRIX, own=queries)
    done = 0
    for closeness, neighbours in watched(found):
        truth = targets[queries[done : done + len(closeness)]]
        done += len(closeness)
        votes = targets[neighbours]
        for temperature in dict.fromkeys(setting.temperature for setting in hits):
            weights = vote_weights(closeness, distance, temperature or 1.0)
            scores = closeness.new_zeros(len(closeness), num_classes)
            counted = 0
            for setting in hits:
                if setting.temperature == temperature:
                    part = slice(counted, setting.k)
                    scores.scatter_add_(1, votes[:, part], weights[:, part])
                    counted = setting.k
                    hits[setting] += int((scores.argmax(1) == truth).sum())
    return {setting: 100 * count / len(queries) for setting, count in hits.items()}


def sample(targets: Tensor, seed: int = 0) -> Tensor:
    """Indexes of at most `QUERIES` images, in order, stratified by class where classes allow."""
    everything = torch.arange(len(targets))
    if len(targets) <= QUERIES:
        return everything
    counts = targets.bincount()
    stratified = targets.numpy() if int(counts[counts > 0].min()) > 1 else None
    drawn, _ = train_test_split(
        everything.numpy(), train_size=QUERIES, stratify=stratified, random_state=seed
    )
    return torch.from_numpy(drawn).sort().values


@dataclass(frozen=True)
class Neighbours:
    """Of one distance: the setting chosen, by what, and what it gives.

    Attributes:
        candidates: top-1 accuracy (%) of training images, each from all others, by setting.
        top1, top5: of the images to evaluate, in percent; top-5 None of five classes or fewer, or
            of fewer than five votes.
    """

    setting: Setting
    candidates: dict[Setting, float]
    top1: float
    top5: float | None


def chosen_neighbours(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
    device: torch.device | str = "cpu",
    progress: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Neighbours], int]:
    """Chooses k and temperature for each distance on training images, and evaluates once.

    Args:
        train, test: N x D features and N targets each; two training images or more.
        num_classes: that targets count.
        device: where distances are computed.
        progress: whether bars are drawn.
        seed: of the training images that are predicted, where there are more than `QUERIES`.

    Returns:
        By distance what it gives, and how many training images each was chosen on.
    """
    features, targets = (part.to(device) for part in train)
    queries = sample(train[1], seed).to(device)
    found = {}
    for distance in DISTANCES:

        def watched(chunks: Iterable, distance: str = distance) -> Iterable:
            return tqdm(chunks, desc=f"choosing, {distance}", leave=False, disable=not progress)

        candidates = leave_one_out(features, targets, queries, distance, watched)
        best = max(candidates, key=lambda setting: candidates[setting])  # of equals the first
        ranked = knn_predictions(
            *(features, targets, test[0].to(device), best.k, distance, best.temperature or 1.0),
            max_distance_matrix_size=MATRIX,
        ).cpu()
        right = ranked == test[1][:, None]
        votes_for_five = num_classes > 5 and best.k >= 5
        top5 = 100 * right.any(1).double().mean().item() if votes_for_five else None
        top1 = 100 * right[:, 0].double().mean().item()
        found[distance] = Neighbours(best, candidates, top1, top5)
    return found, len(queries)
