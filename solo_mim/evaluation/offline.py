"""Offline evaluation of a frozen backbone on un-augmented images: kNN and a linear probe.

Not to be mixed with the online figures of training, whose probe and bank see augmented views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm import tqdm

from solo_mim.host.knn import knn_predictions

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

        def top1(predicted: Tensor) -> float:
            return 100 * (predicted == self.target).double().mean().item()

        probe = None if self.probe is None else top1(self.probe)
        return {"knn_top1": top1(self.knn), "probe_top1": probe}


@torch.inference_mode()
def extract_features(
    backbone: Callable[[Tensor], Tensor],
    loader: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    description: str = "features",
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Features (images x dimensions, on the CPU) and targets of every image of a loader.

    A module is put into evaluation mode while it runs and back afterwards.
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
    return torch.cat(features), torch.cat(targets)


def evaluate_features(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    k: int = 20,
    distance: str = "euclidean",
    probe: bool = True,
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
