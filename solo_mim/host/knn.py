"""The host's online weighted kNN classifier, mended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

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
        epsilon: keeps the inverse distance finite.
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
        epsilon: float = EPSILON,
    ):
        super().__init__(compute_with_cache=False)  # compute empties the bank
        if distance_fx not in ("euclidean", "cosine"):
            raise ValueError(f"distance_fx must be 'euclidean' or 'cosine', not '{distance_fx}'")
        self.k, self.T, self.distance_fx = k, T, distance_fx
        self.max_distance_matrix_size, self.epsilon = max_distance_matrix_size, epsilon
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
        train, train_targets = _joined(self.train_features), _joined(self.train_targets)
        test, test_targets = _joined(self.test_features), _joined(self.test_targets)
        if len(train) == 0 or len(test) == 0:
            return -1.0, -1.0
        ranked = knn_predictions(
            train,
            train_targets,
            test,
            self.k,
            self.distance_fx,
            self.T,
            self.max_distance_matrix_size,
            self.epsilon,
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
    epsilon: float = EPSILON,
) -> Tensor:
    """The classes of N test features by falling weight of their neighbours: N x 5, or x fewer
    classes.

    Arguments are those of `OnlineKNN`, of M x D and N x D features and M targets from 0 on.
    """
    num_classes = int(train_targets.max()) + 1
    ranked = []
    for closeness, neighbours in nearest_neighbours(
        train, test, k, distance_fx, max_distance_matrix_size
    ):
        scores = closeness.new_zeros(len(closeness), num_classes)
        weights = vote_weights(closeness, distance_fx, T, epsilon)
        scores.scatter_add_(1, train_targets[neighbours], weights)
        ranked.append(scores.topk(min(5, num_classes)).indices)
    return torch.cat(ranked)


def nearest_neighbours(
    train: Tensor,
    test: Tensor,
    k: int,
    distance_fx: str,
    max_distance_matrix_size: int,
    own: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k nearest of M training features, or all there are, of a few test features at a time.

    Args:
        train, test: M x D and N x D.
        k, distance_fx, max_distance_matrix_size: as in `OnlineKNN`; one row of the distance matrix
            is held at least.
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


def vote_weights(
    closeness: Tensor, distance_fx: str, T: float = TEMPERATURE, epsilon: float = EPSILON
) -> Tensor:
    """Weights of neighbours by the closeness that `nearest_neighbours` gives."""
    return (closeness / T).exp() if distance_fx == "cosine" else 1 / (epsilon - closeness)


def _joined(bank: list[Tensor] | Tensor) -> Tensor:
    """One tensor of the batches; torchmetrics leaves one where processes were synchronised."""
    if isinstance(bank, Tensor):
        return bank
    return torch.cat(bank) if bank else torch.empty(0)
