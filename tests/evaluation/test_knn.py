"""kNN and its choices against scikit-learn's, and the memory that it may take."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from solo_mim.benchmarks import peak_memory
from solo_mim.evaluation import knn
from solo_mim.evaluation.knn import (
    Setting,
    chosen_neighbours,
    knn_predictions,
    leave_one_out,
    sample,
    settings,
)


def clusters(images, classes=4, dim=8, seed=0, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    targets = torch.randint(classes, (images,), generator=generator)
    return centres[targets] + spread * torch.randn(images, dim, generator=generator), targets


def sklearns(setting, features, targets):
    """The same votes by scikit-learn, in 64 bits."""
    if setting.distance == "cosine":
        weigh = lambda d: np.exp((1 - d) / setting.temperature)  # noqa: E731
    else:
        weigh = lambda d: 1 / (d + 1e-5)  # noqa: E731
    model = KNeighborsClassifier(
        setting.k, metric=setting.distance, weights=weigh, algorithm="brute"
    )
    return model.fit(features.double().numpy(), targets.numpy())


CHOSEN = [
    Setting("cosine", 1, 0.07),
    Setting("cosine", 20, 0.02),
    Setting("cosine", 50, 1.0),
    Setting("euclidean", 5, None),
    Setting("euclidean", 200, None),
]


@pytest.mark.parametrize("setting", CHOSEN)
@pytest.mark.parametrize("matrix", [1, 1000, 10**6])
def test_predictions_are_scikit_learns_in_chunks_of_any_size(setting, matrix):
    (train, targets), (test, _) = clusters(300), clusters(97, seed=1)
    ours = knn_predictions(
        *(train, targets, test, setting.k, setting.distance, setting.temperature or 1.0),
        max_distance_matrix_size=matrix,
    )[:, 0]
    theirs = sklearns(setting, train, targets).predict(test.double().numpy())
    assert (ours.numpy() == theirs).all()


@pytest.mark.parametrize("setting", CHOSEN)
def test_leaving_one_out_is_scikit_learn_fitted_without_it(setting, monkeypatch):
    monkeypatch.setattr(knn, "MATRIX", 2000)
    features, targets = clusters(250)
    queries = torch.arange(0, 250, 5)
    found = leave_one_out(features, targets, queries, setting.distance)
    right = 0
    for query in queries:
        rest = torch.arange(250) != query
        model = sklearns(setting, features[rest], targets[rest])
        right += model.predict(features[query : query + 1].double().numpy())[0] == targets[query]
    assert found[setting] == pytest.approx(100 * right / len(queries))
    assert list(found) == settings(setting.distance, 249)


def test_the_choice_is_of_the_training_images_alone():
    train, test = clusters(200, classes=7), clusters(80, classes=7, seed=1)
    once, images = chosen_neighbours(train, test, 7)
    shuffled = (test[0], test[1].roll(1))
    again, _ = chosen_neighbours(train, shuffled, 7)
    assert images == 200
    for distance, found in once.items():
        assert found.setting == again[distance].setting
        assert found.candidates == again[distance].candidates
        best = max(found.candidates.values())
        assert found.candidates[found.setting] == best
        first = next(s for s, top1 in found.candidates.items() if top1 == best)
        assert found.setting == first, "of equals the first"
        theirs = sklearns(found.setting, *train).predict(test[0].double().numpy())
        assert found.top1 == pytest.approx(100 * (theirs == test[1].numpy()).mean())
        assert again[distance].top1 < found.top1


def test_top_five_is_said_where_it_says_something():
    train, test = clusters(60, classes=6), clusters(40, classes=6, seed=1)
    found, _ = chosen_neighbours(train, test, 6)
    for one in found.values():
        assert (one.top5 is None) == (one.setting.k < 5)
    few, _ = chosen_neighbours(clusters(60), clusters(40, seed=1), 4)
    assert all(one.top5 is None for one in few.values())


def test_a_class_without_a_vote_is_no_hit_however_classes_are_numbered():
    train, test = clusters(60, classes=9), clusters(40, classes=9, seed=1)
    for distance in ("euclidean", "cosine"):
        hits = [
            (knn_predictions(train[0], targets, test[0], 2, distance) == truth[:, None]).any(1)
            for targets, truth in ((train[1], test[1]), (8 - train[1], 8 - test[1]))
        ]
        assert torch.equal(*hits)
        votes = train[1][torch.cdist(test[0], train[0]).topk(2, largest=False).indices]
        if distance == "euclidean":
            assert torch.equal(hits[0], (votes == test[1][:, None]).any(1))


def test_a_k_of_more_than_all_neighbours_is_all_of_them_once():
    assert [s.k for s in settings("euclidean", 30)] == [1, 5, 10, 20, 30]
    assert len(settings("cosine", 10**6)) == 7 * 5


def test_those_to_choose_by_are_stratified_and_the_same_again(monkeypatch):
    monkeypatch.setattr(knn, "QUERIES", 50)
    targets = torch.tensor([0] * 300 + [1] * 100)
    drawn = sample(targets)
    assert targets[drawn].bincount().tolist() in ([37, 13], [38, 12])
    assert torch.equal(drawn, sample(targets))
    assert torch.equal(sample(targets[:50]), torch.arange(50))
    assert len(sample(torch.cat([targets, torch.tensor([2])]))) == 50, "a class of one image"
    assert len(sample(torch.tensor([0, 1] * 25 + [1]))) == 50, "fewer are left than classes"


def peak_bytes(train: int, dim: int, queries: int, classes: int) -> int:
    """Bytes that `leave_one_out` and `predictions` hold at most beyond their arguments.

    Of each part that this sums no more is alive at once than counted: features normalised or laid
    out for a product, in 32 bits; distances of a chunk, and what sorting them takes; neighbours,
    their weights and the votes of a chunk.
    """
    rows = min(queries, max(1, knn.MATRIX // train))
    features = 2 * (train + queries) * (dim + 2) * 4
    distances = 3 * rows * train * 4
    neighbours = rows * max(knn.KS) * (8 + 4 + 4 + 8)
    return features + distances + neighbours + 3 * rows * classes * 4 + queries * (5 + 1) * 8


@pytest.mark.parametrize("distance", knn.DISTANCES)
def test_memory_stays_within_its_bound(distance, monkeypatch):
    monkeypatch.setattr(knn, "MATRIX", 2**19)
    (features, targets), (test, _) = clusters(8000, dim=64), clusters(900, dim=64, seed=1)
    bound = peak_bytes(8000, 64, 900, 4) / 2**20
    assert bound < 900 * 8000 * 4 / 2**20, "the whole distance matrix would not fit"
    queries = torch.arange(900)
    device = torch.device("cpu")
    chosen = peak_memory(lambda: leave_one_out(features, targets, queries, distance), device)
    predicted = peak_memory(
        lambda: knn_predictions(
            features, targets, test, 200, distance, 0.07, max_distance_matrix_size=knn.MATRIX
        ),
        device,
    )
    assert 0.2 * bound < chosen < bound
    assert predicted < bound


def test_an_imagenet_100_fits_in_two_gib():
    features = (126_000 + 5_000) * 512 * 4
    assert features + peak_bytes(126_000, 512, 10_000, 100) < 2 * 2**30
