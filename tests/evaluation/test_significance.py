"""Significance against hand-worked cases and simulation."""

import numpy as np
import pytest
from scipy import stats

from solo_mim.evaluation.significance import holm, mcnemar, paired_difference


def test_paired_difference_is_students_on_the_differences():
    found = paired_difference([3.0, 5.0, 4.0, 6.0], [1.0, 2.0, 3.0, 2.0])
    # differences 2, 3, 1, 4: mean 2.5, standard error sqrt(5/3)/2, t(.975, 3) = 3.18245
    assert found.mean == 2.5
    assert found.high - found.mean == pytest.approx(3.182446 * np.sqrt(5 / 3) / 2, rel=1e-5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert found.p == pytest.approx(2 * stats.t.sf(2.5 / (np.sqrt(5 / 3) / 2), 3))


def test_what_the_seeds_share_does_not_count_against_a_difference():
    seeds = np.array([0.0, 30.0, 60.0, 90.0])
    first, second = seeds + np.array([1.0, 1.1, 0.9, 1.0]), seeds
    assert paired_difference(first, second).p < 0.001
    assert stats.ttest_ind(first, second).pvalue > 0.9


def test_constant_differences_need_no_deviation():
    assert paired_difference([1, 2], [1, 2]) == (0, 0, 0, 1)
    assert paired_difference([2, 3], [1, 2]) == (1, 1, 1, 0.5)
    assert paired_difference([2, 3, 4, 5, 6], [1, 2, 3, 4, 5]) == (1, 1, 1, 0.0625)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_what_rounding_leaves_of_equal_differences_is_no_deviation(kind):
    right = np.array([5301, 4713, 6120, 5882])
    first, second = (100 * (right + more) / np.asarray(10_000, kind) for more in (1, 0))
    assert np.ptp(first - second) > 0
    assert paired_difference(first, second).p == 0.125
    assert paired_difference(first, second + first - second).p == 1


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0]), ([1.0, 2.0], [1.0])])
def test_too_few_or_unpaired_runs_are_refused(first, second):
    with pytest.raises(ValueError, match="as many runs of both and two or more"):
        paired_difference(first, second)


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, made monotone
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_finding_under_its_level():
    p = np.random.default_rng(0).uniform(size=(2000, 8))
    rejected = sum(min(holm(row)) < 0.05 for row in p.tolist())
    assert 0.035 < rejected / 2000 < 0.06


def test_mcnemar_counts_what_only_one_has_right():
    first = np.array([True] * 9 + [False] * 1 + [True] * 50 + [False] * 5)
    second = np.array([False] * 9 + [True] * 1 + [True] * 50 + [False] * 5)
    # 9 of 10: 2 (C(10,0) + C(10,1)) / 2^10
    assert mcnemar(first, second) == (9, 1, pytest.approx(22 / 1024))
    assert mcnemar(first, first).p == 1
