"""Weighted nearest neighbours: online as solo-learn has them, and offline on frozen features with
settings chosen on training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from tqdm import tqdm

Features = tuple[Tensor, Tensor]  # of images, N x D, and their N targets

TEMPERATURE = 0.07
EPSILON = 1e-5
MAX_DISTANCE_MATRIX_SIZE = int(5e6)


class OnlineKNN(Metric):
    """Weighted kNN over the features seen in an epoch, the protocol of solo-learn's online
    evaluation.

    Neighbours are weighted by `1 / (distance + epsilon)` (euclidean) or `exp(similarity / T)`
    (cosine). Stands in for the host's `WeightedKNNClassifier`, which in both generations passes a
    keyword that torchmetrics dropped in 0.12, and counts the classes of the *test* labels: a class
    that is missing there crashes the scatter or, worse, shifts labels. In 1.0.2 its cosine lacks
    the normalisation.

    Args:
        k: number of neighbours; at most the number of stored training features is used.
        distance_fx: `euclidean` (the host's default) or `cosine`.
        T: temperature of the cosine weights.
        max_distance_matrix_size: elements of the distance matrix held at once.
    """

    full_state_update = False
    train_features: list[Tensor]
    train_targets: list[Tensor]
    test_features: list[Tensor]
    test_targets: list[Tensor]

    def __init__(
        self,
        k: int = 20,
        distance_fx: str = "euclidean",
        T: float = TEMPERATURE,
        max_distance_matrix_size: int = MAX_DISTANCE_MATRIX_SIZE,
    ):
        super().__init__(compute_with_cache=False)  # compute empties the bank
        if distance_fx not in ("euclidean", "cosine"):
            raise ValueError(f"distance_fx must be 'euclidean' or 'cosine', not '{distance_fx}'")
        self.k, self.T, self.distance_fx = k, T, distance_fx
        self.max_distance_matrix_size = max_distance_matrix_size
        for name in ("train_features", "train_targets", "test_features", "test_targets"):
            self.add_state(name, default=[], dist_reduce_fx="cat", persistent=False)

    def update(
        self,
        train_features: Tensor | None = None,
        train_targets: Tensor | None = None,
        test_features: Tensor | None = None,
        test_targets: Tensor | None = None,
    ) -> None:
        """Stores N x D features and their N integer targets; unlabelled (-1) training rows are left
        out."""
        if train_features is not None and train_targets is not None:
            labelled = train_targets >= 0
            self.train_features.append(train_features[labelled].detach().float())
            self.train_targets.append(train_targets[labelled].detach())
        if test_features is not None and test_targets is not None:
            self.test_features.append(test_features.detach().float())
            self.test_targets.append(test_targets.detach())

    def forward(self, *args: Tensor, **kwargs: Tensor) -> None:
        """Stores only: `Metric.forward` would compute a value and reset the bank at every batch."""
        self.update(*args, **kwargs)

    def _wrap_compute(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        # torchmetrics' wrapper joins the banks of several processes and takes them apart again
        # afterwards: only then can they be emptied.
        computed = super()._wrap_compute(compute)

        def emptying() -> Any:
            found = computed()
            self.reset()
            return found

        return emptying

    @torch.no_grad()
    def compute(self) -> tuple[float, float]:
        """Top-1 and top-5 accuracy in percent, (-1, -1) of nothing; empties the bank."""
        banks = (self.train_features, self.train_targets, self.test_features, self.test_targets)
        if any(len(bank) == 0 for bank in banks):
            return -1.0, -1.0
        # Where processes were synchronised torchmetrics has joined them already.
        train, train_targets, test, test_targets = map(dim_zero_cat, banks)
        if len(train) == 0 or len(test) == 0:
            return -1.0, -1.0
        ranked = knn_predictions(
            *(train, train_targets, test, self.k, self.distance_fx, self.T),
            max_distance_matrix_size=self.max_distance_matrix_size,
        )
        hits = (ranked == test_targets[:, None]).double()
        return 100 * hits[:, 0].mean().item(), 100 * hits.sum(1).mean().item()


def knn_predictions(
    train: Tensor,
    train_targets: Tensor,
    test: Tensor,
    k: int = 20,
    distance_fx: str = "euclidean",
    T: float = TEMPERATURE,
    max_distance_matrix_size: int = MAX_DISTANCE_MATRIX_SIZE,
) -> Tensor:
    """The classes of N test features by falling weight of their neighbours: N x 5, or x fewer
    classes; -100 where no neighbour is of a further class.

    Arguments are those of `OnlineKNN`, of M x D and N x D features and M targets from 0 on.
    """
    num_classes = int(train_targets.max()) + 1
    ranked = []
    for closeness, neighbours in nearest_neighbours(
        train, test, k, distance_fx, max_distance_matrix_size
    ):
        scores = closeness.new_zeros(len(closeness), num_classes)
        weights = vote_weights(closeness, distance_fx, T)
        scores.scatter_add_(1, train_targets[neighbours], weights)
        most = scores.topk(min(5, num_classes))
        ranked.append(most.indices.masked_fill(most.values <= 0, -100))
    return torch.cat(ranked)


def nearest_neighbours(
    train: Tensor,
    test: Tensor,
    k: int,
    distance_fx: str,
    max_distance_matrix_size: int,
    own: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k nearest of M x D training features, or all there are, of a few of N x D test features
    at a time, as in `OnlineKNN`; one row of the distance matrix is held at least.

    Args:
        own: N indexes; of each test feature the training feature that is itself, to be passed over.

    Yields:
        Closeness (cosine similarity, or the distance times -1) and index of each neighbour, nearest
        first: n x k each, test features in order.
    """
    if distance_fx == "cosine":
        train, test = F.normalize(train), F.normalize(test)
    k = min(k, len(train) if own is None else len(train) - 1)
    rows = max(1, max_distance_matrix_size // len(train))
    for start in range(0, len(test), rows):
        features = test[start : start + rows]
        if distance_fx == "cosine":
            closeness = features @ train.T
        else:
            closeness = torch.cdist(features, train).neg_()
        if own is not None:
            closeness.scatter_(1, own[start : start + rows, None], -torch.inf)
        yield closeness.topk(k)


def vote_weights(closeness: Tensor, distance_fx: str, T: float) -> Tensor:
    """Weights of neighbours by the closeness that `nearest_neighbours` gives."""
    return (closeness / T).exp() if distance_fx == "cosine" else 1 / (EPSILON - closeness)


# Offline: k and temperature chosen on training images

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
    """Those to choose from, few neighbours first; a k of more than there are takes all, once."""
    temperatures = TEMPERATURES if distance == "cosine" else (None,)
    ks = dict.fromkeys(min(k, images) for k in KS)
    return [Setting(distance, k, temperature) for k in ks for temperature in temperatures]


def leave_one_out(
    features: Tensor, targets: Tensor, queries: Tensor, distance: str, progress: bool = False
) -> dict[Setting, float]:
    """Top-1 accuracy (%) of training images, each predicted from all others, for every setting.

    Args:
        features, targets: M x D and M classes from 0 on.
        queries: indexes of the training images that are predicted.
        distance: one of `DISTANCES`.
    """
    hits = dict.fromkeys(settings(distance, len(features) - 1), 0)
    num_classes = int(targets.max()) + 1
    found = nearest_neighbours(features, features[queries], max(KS), distance, MATRIX, own=queries)
    done = 0
    bar = tqdm(found, desc=f"choosing, {distance}", leave=False, disable=not progress)
    for closeness, neighbours in bar:
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


def sample(targets: Tensor) -> Tensor:
    """Indexes of at most `QUERIES` images, in order, stratified by class where classes allow."""
    everything = torch.arange(len(targets))
    if len(targets) <= QUERIES:
        return everything
    counts = targets.bincount()
    counts = counts[counts > 0]
    of_each = min(QUERIES, len(targets) - QUERIES) >= len(counts)  # drawn, and left
    stratified = targets.numpy() if int(counts.min()) > 1 and of_each else None
    from sklearn.model_selection import train_test_split  # a second to import, rarely needed

    drawn, _ = train_test_split(
        everything.numpy(), train_size=QUERIES, stratify=stratified, random_state=0
    )
    return torch.from_numpy(drawn).sort().values


@dataclass(frozen=True)
class Neighbours:
    """Of one distance: the setting chosen, by what, and what it gives, in percent."""

    setting: Setting
    candidates: dict[Setting, float]  # top-1 of training images, each from all others
    top1: float  # of the images to evaluate
    top5: float | None  # None of five classes or fewer, or of fewer than five votes


def chosen_neighbours(
    train: Features,
    test: Features,
    num_classes: int,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> tuple[dict[str, Neighbours], int]:
    """Chooses k and temperature for each distance on training images, and evaluates once.

    Args:
        train, test: N x D features and N targets each; two training images or more.

    Returns:
        By distance what it gives, and how many training images each was chosen on.
    """
    features, targets = (part.to(device) for part in train)
    queries = sample(train[1]).to(device)
    found = {}
    for distance in DISTANCES:
        candidates = leave_one_out(features, targets, queries, distance, progress)
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
