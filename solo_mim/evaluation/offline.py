"""Offline evaluation of a frozen backbone on un-augmented images: kNN and a linear probe.

Not to be mixed with the online figures of training, whose probe and bank see augmented views.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, top_k_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm import tqdm

from solo_mim.errors import ConfigError
from solo_mim.evaluation.knn import Features, knn_predictions

# Inverse L2 penalties to choose from, strongest first: of equals the first is taken.
PROBE_CS = (0.001, 0.01, 0.1, 1.0, 10.0)
HELD_OUT = 0.2  # of the training images, to choose on
# Inverse L2 penalty of the probe. On a held-out quarter of photo_patches' training images 1 and 0.1
# came out alike for trained and untrained features, 0.01 lower; 0.1 converges sooner.
PROBE_C = 0.1


@dataclass(frozen=True)
class Predictions:
    """Of N images: their classes and those predicted, int64 each; the probe's where asked for."""

    target: Tensor
    knn: Tensor
    probe: Tensor | None = None

    def accuracies(self) -> dict[str, float | None]:
        """`knn_top1` and `probe_top1` in percent; None of no probe."""
        predicted = {"knn_top1": self.knn, "probe_top1": self.probe}
        return {
            name: None if found is None else 100 * (found == self.target).double().mean().item()
            for name, found in predicted.items()
        }


@torch.inference_mode()
def extract_features(
    backbone: Callable[[Tensor], Tensor],
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    description: str = "features",
    progress: bool = False,
) -> Features:
    """Features (images x dimensions, on the CPU) and targets of every image of a loader.

    A module is put into evaluation mode while it runs and back afterwards.

    Raises:
        ConfigError: features that are not finite, or whose squared distances are not.
    """
    module = backbone if isinstance(backbone, nn.Module) else None
    was_training = module.training if module else False
    if module:
        module.eval()
    features, targets = [], []
    for images, labels in tqdm(loader, desc=description, leave=False, disable=not progress):
        features.append(backbone(images.to(device)).flatten(1).float().cpu())
        targets.append(labels.cpu())
    if module:
        module.train(was_training)
    found = torch.cat(features)
    # A vector whose square overflows is all zeros by cosine, and infinitely far from any other.
    if not (4 * torch.linalg.vector_norm(found, dim=1).square()).isfinite().all():
        raise ConfigError(
            "the network's features are not finite, or overflow when squared: it has diverged; "
            "lower its rate"
        )
    return found, torch.cat(targets)


def evaluate_features(
    train: Features, test: Features, k: int = 20, distance: str = "euclidean", probe: bool = True
) -> Predictions:
    """Weighted kNN and, on request, a linear probe from training features to test features.

    The probe is a multinomial logistic regression (scikit-learn, lbfgs) on features standardised by
    the training set, its L2 penalty the same for every run.

    Args:
        train, test: N x D features and N targets each; training rows with target -1 are left out.
        k, distance: of the kNN, as in `knn_eval`.
        probe: also fit the probe, where there are two classes or more.
    """
    labelled = train[1] >= 0
    features, targets = train[0][labelled], train[1][labelled]
    knn = knn_predictions(features, targets, test[0], k, distance)[:, 0]
    if not probe or len(targets.unique()) < 2:
        return Predictions(test[1], knn)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=PROBE_C, max_iter=1000))
    classifier.fit(features.numpy(), targets.numpy())
    return Predictions(test[1], knn, torch.from_numpy(classifier.predict(test[0].numpy())))


@dataclass(frozen=True)
class ChosenProbe:
    """A logistic regression whose penalty was chosen on training images alone, or was given.

    Attributes:
        C: inverse of its L2 penalty.
        candidates: C -> top-1 accuracy (%) on the held-out part of the training images; empty of
            one that was given.
        held_out: images of that part.
        top1, top5, nll: of the images to evaluate, in percent and in nats; top-5 None of five
            classes or fewer.
        converged: whether the last fit did.
    """

    C: float
    candidates: dict[float, float]
    held_out: int
    top1: float
    top5: float | None
    nll: float
    converged: bool


def chosen_probe(
    train: Features, test: Features, num_classes: int, or_given: bool = False
) -> ChosenProbe:
    """Fits probes of `PROBE_CS` on part of the training features, chooses by the rest of them,
    which are drawn by class, refits on all, and evaluates that once.

    Args:
        train, test: N x D features and N targets each; training rows with target -1 are left out.
        num_classes: that targets count.
        or_given: take the penalty `PROBE_C` where training images, of two classes or more, are too
            few to be split by class.

    Raises:
        ConfigError: they are too few, and none is given.
    """
    labelled = train[1] >= 0
    features, targets = train[0][labelled].numpy(), train[1][labelled].numpy()
    split = StratifiedShuffleSplit(1, test_size=HELD_OUT, random_state=0)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PROBE_C, max_iter=1000))
    search = GridSearchCV(probe, {"logisticregression__C": PROBE_CS}, cv=split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            ((_, held_out),) = split.split(features, targets)
            search.fit(features, targets)
        except ValueError as error:
            if or_given:
                return _measured_probe(probe.fit(features, targets), {}, 0, test, num_classes)
            raise ConfigError(
                f"the penalty cannot be chosen on {len(targets)} training images ({error}); the "
                "split needs two of each class, and as many in either part as there are classes"
            ) from error
    accuracies = map(float, 100 * search.cv_results_["mean_test_score"])
    candidates = dict(zip(PROBE_CS, accuracies, strict=True))
    return _measured_probe(search.best_estimator_, candidates, len(held_out), test, num_classes)


def _measured_probe(
    probe: Pipeline,
    candidates: dict[float, float],
    held_out: int,
    test: Features,
    num_classes: int,
) -> ChosenProbe:
    """A fitted probe on test features; it may have seen fewer classes than there are."""
    regression = probe[-1]
    probabilities = np.zeros((len(test[0]), num_classes))
    probabilities[:, regression.classes_] = probe.predict_proba(test[0].numpy())
    probabilities /= probabilities.sum(1, keepdims=True)  # 1 to 32 bits only
    truth, classes = test[1].numpy(), np.arange(num_classes)
    top5 = None
    if num_classes > 5:
        top5 = 100 * float(top_k_accuracy_score(truth, probabilities, k=5, labels=classes))
    return ChosenProbe(
        C=float(regression.C),
        candidates=candidates,
        held_out=held_out,
        top1=100 * float((probabilities.argmax(1) == truth).mean()),
        top5=top5,
        nll=float(log_loss(truth, probabilities, labels=classes)),
        converged=bool((regression.n_iter_ < regression.max_iter).all()),
    )
