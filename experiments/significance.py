"""Tests over datasets: would the order of methods be the same on other datasets?

They are those that Demsar recommends (Statistical Comparisons of Classifiers over Multiple Data
Sets, JMLR 7, 2006): Wilcoxon's signed-rank test for two methods, the tests of Friedman and Nemenyi
for several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.05
LEAST_DATASETS = 6  # of which the least two-sided p, 2 / 2^n, is below the level
EXACT = 15  # datasets up to which all signs are tried
DIGITS = 9  # of a difference in points; beyond are rounding errors, which would break ties


def least_p(datasets: int) -> float:
    """Return the least two-sided p that a signed-rank test of so many datasets can have."""
    return min(1.0, 2.0 ** (1 - datasets))


def shown(p: float) -> str:
    """Format a p-value."""
    return f"p = {p:.4f}" if p >= 0.0001 else "p < 0.0001"


def signed_rank_p(differences: Sequence[float]) -> float | None:
    """Return Wilcoxon's two-sided p; None where too few datasets differ for it to be small.

    The ranks of zeros are shared out between the two sides, as Demsar does. Up to 15 datasets p is
    exact, with ties and zeros, too.
    """
    found = np.round(differences, DIGITS)
    if least_p(int(np.count_nonzero(found))) > LEVEL:
        return None
    if len(found) > EXACT:
        return float(stats.wilcoxon(found, zero_method="zsplit").pvalue)
    ranks = np.sign(found) * stats.rankdata(abs(found))
    exact = stats.permutation_test(
        (ranks,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    return float(exact.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down procedure."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def average_ranks(accuracies: np.ndarray) -> np.ndarray:
    """Return the mean over datasets of the methods' ranks (k,), 1 for the best.

    Args:
        accuracies: (datasets, k); equal ones share their ranks.
    """
    return stats.rankdata(-np.round(accuracies, DIGITS), axis=1).mean(axis=0)


def friedman_p(ranks: np.ndarray, datasets: int) -> float:
    """Return the p of Friedman's test in the form of Iman and Davenport, as Demsar recommends.

    Args:
        ranks: average ranks of k methods.
        datasets: over which they are averaged.
    """
    k = len(ranks)
    chi_square = 12 * datasets / (k * (k + 1)) * (np.sum(ranks**2) - k * (k + 1) ** 2 / 4)
    rest = datasets * (k - 1) - chi_square
    if rest < 1e-9:  # the same order on all datasets
        return 0.0
    return float(stats.f.sf((datasets - 1) * chi_square / rest, k - 1, (k - 1) * (datasets - 1)))


def critical_difference(k: int, datasets: int) -> float:
    """Return Nemenyi's critical difference of average ranks of k methods, at the 5% level."""
    quantile = stats.studentized_range.ppf(1 - LEVEL, k, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(k * (k + 1) / (6 * datasets)))
