"""Embeddings looked at: in a plane, by their spectrum, by the information that two views share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor, nn

TSNE_POINTS = 2_000  # of more it takes minutes
_SEED = 0


def principal_plane(features: np.ndarray) -> np.ndarray:
    """The first two principal components of N x D features, N x 2."""
    return PCA(2, random_state=_SEED).fit_transform(features)


def neighbour_plane(features: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
    """A plane that keeps neighbours together: UMAP where umap-learn is installed, elsewhere t-SNE
    of at most `TSNE_POINTS` of the N x D features, drawn at random.

    Returns:
        What it is, indexes of the features in it, and their points.
    """
    everything = np.arange(len(features))
    try:
        from umap import UMAP
    except ModuleNotFoundError:
        drawn = np.random.default_rng(_SEED).permutation(everything)[:TSNE_POINTS]
        perplexity = min(30.0, (len(drawn) - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=_SEED)
        return f"t-SNE of {len(drawn):,} images", drawn, tsne.fit_transform(features[drawn])
    points = UMAP(n_components=2, random_state=_SEED).fit_transform(features)
    return f"UMAP of {len(features):,} images", everything, points


def covariance_spectrum(features: Tensor) -> np.ndarray:
    """Eigenvalues, falling, of the covariance of N x D features: min(N, D) numbers."""
    centred = features.double() - features.double().mean(0)
    return (torch.linalg.svdvals(centred).square() / len(features)).numpy()


class FeaturesAsZ(LightningModule):
    """A backbone whose features stand where a method's projected ones would."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> dict[str, Any]:
        """`z`, N x D."""
        return {"z": self.backbone(images).flatten(1)}
