"""Offline kNN and probe on features whose accuracies are known."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from solo_mim.errors import ConfigError
from solo_mim.evaluation.offline import (
    PROBE_C,
    chosen_probe,
    evaluate_features,
    extract_features,
)


def _clusters(per_class, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(3).repeat_interleave(per_class)
    centres = 10 * torch.eye(3, 5)
    return centres[targets] + spread * torch.randn(3 * per_class, 5, generator=generator), targets


def test_separated_clusters_get_the_labels_of_the_training_features():
    train, test = _clusters(60, 1.0, 0), _clusters(40, 1.0, 1)
    found = evaluate_features(train, test, k=5)
    assert found.accuracies() == {"knn_top1": 100.0, "probe_top1": 100.0}
    wrong = evaluate_features((train[0], (train[1] + 1) % 3), test, k=5)
    assert wrong.accuracies() == {"knn_top1": 0.0, "probe_top1": 0.0}
    assert wrong.probe.tolist() == ((test[1] + 1) % 3).tolist()


def test_unlabelled_training_rows_do_not_vote():
    (features, targets), test = _clusters(60, 1.0, 0), _clusters(40, 1.0, 1)
    noise = torch.cat((features, test[0]))
    labels = torch.cat((targets, torch.full((120,), -1)))
    found = evaluate_features((noise, labels), test, k=5)
    assert found.accuracies() == {"knn_top1": 100.0, "probe_top1": 100.0}


def test_probe_is_left_out_on_request():
    train = _clusters(20, 1.0, 0)
    found = evaluate_features(train, train, k=5, probe=False)
    assert found.accuracies() == {"knn_top1": 100.0, "probe_top1": None}


@pytest.mark.parametrize("training", [True, False])
def test_features_are_of_evaluation_mode_and_the_mode_is_given_back(training):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    backbone.train(training)
    batches = [(torch.randn(6, 3, 2, 2) + 5, torch.arange(6)) for _ in range(3)]
    features, targets = extract_features(backbone, batches)
    assert backbone.training == training
    backbone.eval()
    torch.testing.assert_close(features, torch.cat([backbone(x) for x, _ in batches]))
    assert targets.tolist() == 3 * list(range(6))
    assert backbone[2].num_batches_tracked == 0, "running statistics are untouched"


def spread(images, classes=7, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    targets = torch.arange(images) % classes
    return centres[targets] + torch.randn(images, dim, generator=generator), targets


def test_the_probes_penalty_is_chosen_on_training_images_and_the_probe_refitted_on_all():
    train, test = spread(210), spread(140, seed=1)
    found = chosen_probe(train, test, 7)
    features, targets = (part.numpy() for part in train)
    fit, held_out = next(
        StratifiedShuffleSplit(1, test_size=0.2, random_state=0).split(features, targets)
    )
    assert found.held_out == len(held_out) == 42

    def fitted(C, rows):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))
        return probe.fit(features[rows], targets[rows])

    for C, top1 in found.candidates.items():
        assert top1 == 100 * fitted(C, fit).score(features[held_out], targets[held_out])
    best = max(found.candidates.values())
    assert min(C for C, top1 in found.candidates.items() if top1 == best) == found.C
    probe = fitted(found.C, np.arange(210))
    assert found.top1 == pytest.approx(100 * probe.score(*(part.numpy() for part in test)))
    probabilities = torch.from_numpy(probe.predict_proba(test[0].numpy())).double()
    nll = torch.nn.functional.nll_loss(probabilities.log(), test[1]).item()
    assert found.nll == pytest.approx(nll, rel=1e-4)
    top5 = (probabilities.topk(5).indices == test[1][:, None]).any(1).double().mean()
    assert found.top5 == pytest.approx(100 * top5.item())
    assert found.converged
    other = chosen_probe(train, (test[0], test[1].roll(1)), 7)
    assert (other.C, other.candidates) == (found.C, found.candidates)
    assert other.top1 < found.top1


def test_a_class_without_training_images_is_never_right_and_costs_much():
    features, targets = spread(60, classes=3)
    found = chosen_probe((features, targets), (features[:30], torch.full((30,), 3)), 4)
    assert found.top1 == 0
    assert found.nll > 10
    assert found.top5 is None


def test_unlabelled_and_too_few_training_images():
    features, targets = spread(60, classes=3)
    hidden = torch.cat([targets, torch.full((20,), -1)])
    more = torch.cat([features, torch.full((20, 6), 100.0)])
    with_them = chosen_probe((more, hidden), (features, targets), 3)
    assert with_them == chosen_probe((features, targets), (features, targets), 3)
    with pytest.raises(ConfigError, match="cannot be chosen on 3 training images"):
        chosen_probe((features[:3], targets[:3]), (features, targets), 3)


@pytest.mark.parametrize("factor", [float("nan"), 1e20])
def test_features_of_a_diverged_network_are_refused(factor):
    loader = [(torch.randn(4, 3), torch.zeros(4))]
    with pytest.raises(ConfigError, match="it has diverged"):
        extract_features(lambda images: images * factor, loader, "cpu")


def test_a_given_penalty_serves_where_none_can_be_chosen():
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(4, 6, generator=generator)
    targets = torch.arange(3).repeat_interleave(4)
    one_each = centres[:3], torch.arange(3)
    noise = torch.randn(12, 6, generator=generator)
    test = centres[targets] + noise, targets
    with pytest.raises(ConfigError, match="two of each class"):
        chosen_probe(one_each, test, 4)
    found = chosen_probe(one_each, test, 4, or_given=True)
    assert (found.C, found.candidates, found.held_out) == (PROBE_C, {}, 0)
    expected = evaluate_features(one_each, test).accuracies()["probe_top1"]
    assert found.top1 == pytest.approx(expected)
