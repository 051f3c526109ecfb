"""Whether methods differ: paired over seeds, corrected for how many comparisons are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

# Below a fortieth of an image in 50,000, above what float32 leaves of equal percentages.
_ROUNDING = 5e-5


class Difference(NamedTuple):
    """Mean of first minus second over paired runs, its 95 % interval, and the two-sided p."""

    mean: float
    low: float
    high: float
    p: float


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Student's t of the differences of runs that share seed and data; two runs of each or more,
    figures in percent.

    Where all n differ by the same, for which t is infinite, p is that of the signs, 2^(1 - n).

    Raises:
        ValueError: unequal numbers of runs, or fewer than two.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"a paired test needs as many runs of both and two or more, got {len(first)} and "
            f"{len(second)}"
        )
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    mean = float(differences.mean())
    if np.ptp(differences) < _ROUNDING:
        p = 2.0 ** (1 - len(differences)) if abs(mean) >= _ROUNDING else 1.0
        return Difference(mean, mean, mean, p)
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval()
    return Difference(mean, float(interval.low), float(interval.high), float(test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in their order (Holm 1979, step-down)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    found = np.empty_like(p)
    found[order] = np.minimum(adjusted, 1)
    return found.tolist()


class McNemar(NamedTuple):
    """Images that only the first or only the second model has right, and the exact two-sided p."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """McNemar's exact test of two models on the same N images, N booleans each.

    It is about these two sets of weights: it knows nothing of other seeds.
    """
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    discordant = only_first + only_second
    p = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return McNemar(only_first, only_second, float(p))
