"""Embeddings in a plane, and their spectrum."""

import sys
import types

import numpy as np
import pytest
import torch

from solo_mim.evaluation import embedding
from solo_mim.evaluation.plots import plot_planes, plot_spectra
from solo_mim.information import effective_rank


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([3.0, 2.0, 1.0, 0.0])
    return torch.randn(400, 4, generator=generator) * scales + 5


def test_the_spectrum_is_of_the_covariance_and_has_the_effective_rank(features):
    found = embedding.covariance_spectrum(features)
    expected = np.linalg.eigvalsh(np.cov(features.double().numpy().T, bias=True))[::-1]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    weights = np.sqrt(found) / np.sqrt(found).sum()
    entropy = -(weights[:3] * np.log(weights[:3])).sum()
    assert float(effective_rank(features)) == pytest.approx(np.exp(entropy))


def test_the_principal_plane_has_the_first_two_eigenvalues(features):
    plane = embedding.principal_plane(features.numpy())
    spectrum = embedding.covariance_spectrum(features)
    np.testing.assert_allclose(plane.var(0), spectrum[:2], rtol=1e-4)


def test_without_umap_there_is_t_sne_of_a_part(features, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setattr(embedding, "TSNE_POINTS", 60)
    label, rows, points = embedding.neighbour_plane(features.numpy())
    assert label == "t-SNE of 60 images"
    assert len(set(rows)) == 60
    assert points.shape == (60, 2)
    assert np.isfinite(points).all()


def test_umap_takes_them_all(features, monkeypatch):
    class UMAP:
        def __init__(self, n_components, random_state):
            self.dimensions = n_components

        def fit_transform(self, values):
            return values[:, : self.dimensions]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    label, rows, points = embedding.neighbour_plane(features.numpy())
    assert label == "UMAP of 400 images"
    np.testing.assert_array_equal(rows, np.arange(400))
    np.testing.assert_array_equal(points, features.numpy()[:, :2])


@pytest.mark.parametrize("classes", [3, 40])
def test_pictures_are_drawn_of_few_and_many_classes_and_of_none(classes, features, tmp_path):
    targets = np.arange(400) % classes
    targets[:5] = -1
    plane = embedding.principal_plane(features.numpy())
    names = [str(number) for number in range(classes)]
    plot_planes({"PCA": (plane, targets)}, names, tmp_path / "planes.png")
    spectrum = embedding.covariance_spectrum(features)
    plot_spectra({"features": spectrum}, tmp_path / "spectra.png")
    for name in ("planes.png", "spectra.png"):
        assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_the_spectrum_of_a_collapsed_network_can_be_drawn(value, tmp_path):
    spectrum = embedding.covariance_spectrum(torch.full((50, 4), value))
    plot_spectra({"backbone": spectrum}, tmp_path / "spectra.png")
    assert (tmp_path / "spectra.png").stat().st_size > 1000
