"""Offline kNN and probe on features whose accuracies are known."""

import pytest
import torch
from torch import nn

from solo_mim.evaluation.offline import evaluate_features, extract_features


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
