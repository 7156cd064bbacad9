"""experiments/significance.py against Demsar's example, other libraries' numbers and scipy."""

import itertools

import numpy as np
import pytest
from scipy import stats

from experiments.rank_diagram import Panel, groups_of
from experiments.significance import (
    average_ranks,
    critical_difference,
    friedman_p,
    holm,
    least_p,
    shown,
    signed_rank_p,
)

# Demsar, JMLR 7 (2006), Table 6: AUC of C4.5 with m, cf and both tuned on 14 data sets. Two equal
# ones of the last but one row are ranked as different in the paper, so the last is a little lower.
C45 = np.array(
    [
        *([0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569]),
        *([0.954, 0.971, 0.968, 0.967], [0.628, 0.661, 0.654, 0.657]),
        *([0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931]),
        *([0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625]),
        *([0.775, 0.838, 0.866, 0.875], [1.000, 1.000, 1.000, 1.000]),
        *([0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669]),
        *([0.972, 0.981, 0.975, 0.9749], [0.957, 0.978, 0.946, 0.970]),
    ]
)
# Five methods on eleven datasets, without ties.
FIVE = np.array(
    [
        *([70.55, 71.17, 70.61, 72.47, 76.05], [70.37, 72.7, 71.54, 72.96, 74.63]),
        *([67.45, 66.91, 70.21, 70.54, 72.53], [59.1, 63.07, 64.8, 65.55, 65.58]),
        *([65.65, 65.89, 67.15, 70.45, 70.15], [62.02, 64.39, 63.19, 64.4, 67.23]),
        *([70.58, 69.64, 72.6, 75.02, 73.16], [82.01, 81.9, 81.76, 86.22, 86.87]),
        *([64.26, 67.17, 68.93, 68.28, 72.09], [64.94, 67.04, 69.19, 66.52, 70.34]),
        [73.22, 75.11, 74.14, 75.55, 78.62],
    ]
)


def test_demsars_example():
    ranks = average_ranks(C45)
    assert ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    # F = 3.69 with 3 and 39 degrees of freedom
    assert friedman_p(ranks, 14) == pytest.approx(stats.f.sf(3.69, 3, 39), rel=0.01)
    # Section 3.1.3: T = 12 is below 21, the critical value of 14 data sets at 0.05
    p = signed_rank_p(C45[:, 1] - C45[:, 0])
    assert p is not None and p < 0.05
    assert stats.wilcoxon(C45[:, 1] - C45[:, 0], zero_method="zsplit").statistic == 12


@pytest.mark.parametrize(
    ("k", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)]
)
def test_demsars_table_of_critical_values(k, quantile):
    assert critical_difference(k, 1) / np.sqrt(k * (k + 1) / 6) == pytest.approx(quantile, abs=1e-3)


def test_groups_of_a_diagram_are_those_of_demsars_figure():
    ranks = dict(zip(("C4.5", "m", "cf", "m+cf"), average_ranks(C45).tolist(), strict=True))
    # Figure 1 (a), at 10%: C4.5 is worse than m and m+cf; cf belongs to both groups
    found = groups_of(Panel(ranks, 0.02, 1.12))
    assert found == [(ranks["m+cf"], ranks["cf"]), (ranks["cf"], ranks["C4.5"])]
    assert groups_of(Panel(ranks, 0.02, 1.25)) == [(ranks["m+cf"], ranks["C4.5"])]  # at 5%
    assert groups_of(Panel(ranks, 0.02, 0.01)) == []


def test_autorank_has_the_same_ranks_and_critical_differences():
    # autorank 1.3.0: autorank(frame, force_mode="nonparametric", order="descending")
    assert critical_difference(4, 14) == pytest.approx(1.2535512603486423, rel=1e-4)
    assert critical_difference(5, 11) == pytest.approx(1.839049270738493, rel=1e-4)
    assert average_ranks(FIVE) * 11 == pytest.approx([51, 41, 37, 23, 13])


def test_scikit_posthocs_has_the_same_corrected_p_values():
    # scikit-posthocs 0.17.1: posthoc_wilcoxon(columns, p_adjust="holm")
    expected = [
        *(0.0966796875, 0.017578125, 0.009765625, 0.009765625, 0.123046875),
        *(0.0341796875, 0.009765625, 0.107421875, 0.009765625, 0.07421875),
    ]
    pairs = itertools.combinations(FIVE.T, 2)
    assert holm([signed_rank_p(a - b) for a, b in pairs]) == pytest.approx(expected)
    # posthoc_nemenyi_friedman: p-values below 0.05 are where ranks differ by more than critical
    p = [0.660777, 0.323858, 0.001501, 3e-06, 0.983236, 0.108083, 0.001501, 0.323858, 0.010639]
    ranks, critical = average_ranks(FIVE), critical_difference(5, 11)
    differ = [abs(a - b) > critical for a, b in itertools.combinations(ranks, 2)]
    assert differ == [value < 0.05 for value in [*p, 0.660777]]


def test_friedmans_chi_square_is_scipys_without_ties():
    chi_square = stats.friedmanchisquare(*FIVE.T).statistic
    f = 10 * chi_square / (11 * 4 - chi_square)
    assert friedman_p(average_ranks(FIVE), 11) == pytest.approx(stats.f.sf(f, 4, 40))
    assert friedman_p(np.array([1.0, 2.0, 3.0]), 6) == 0.0  # the same order everywhere


def test_the_signed_rank_test_is_exact_with_ties_and_zeros():
    random = np.random.default_rng(1)
    for n in (6, 9, 13, 20):
        differences = random.normal(0.5, 1, n)
        expected = stats.wilcoxon(differences, method="exact").pvalue
        assert signed_rank_p(differences) == pytest.approx(expected)
    # |1 + 1 + ... + 1| of six equal differences: 2 of 64 signs; a zero changes nothing
    assert signed_rank_p([1.0] * 6) == pytest.approx(2 / 64)
    assert signed_rank_p([0.0, *[1.0] * 6]) == pytest.approx(2 / 64)
    # 0.1 + 0.2 - 0.3 is no difference, and two differences of 0.1 are tied
    almost = [0.1 + 0.2 - 0.3, 0.3 - 0.2, 0.1, 1.0, 1.0, 1.0, -1.0]
    exact = [0.0, 0.1, 0.1, 1.0, 1.0, 1.0, -1.0]
    assert signed_rank_p(almost) == signed_rank_p(exact)


def test_no_p_where_none_can_be_small():
    assert least_p(5) == 0.0625 and least_p(6) == 0.03125
    assert signed_rank_p([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert signed_rank_p([1.0, 2.0, 3.0, 4.0, 5.0, 0.0]) is None  # five of six differ
    assert signed_rank_p([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == 0.03125


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_false_alarms_of_the_signed_rank_test():
    random = np.random.default_rng(2)
    n_trials = 400
    p = [signed_rank_p(random.standard_t(3, 7)) for _ in range(n_trials)]
    alarms = sum(value <= 0.05 for value in p if value is not None)
    # of 128 orders of signs, 6 have a p of at most 0.05
    low, high = stats.binom.interval(0.999, n_trials, 6 / 128)
    assert low <= alarms <= high


def test_p_values_in_words():
    assert [shown(p) for p in (0.03125, 0.0001, 0.00009, 0.0)] == [
        *("p = 0.0312", "p = 0.0001", "p < 0.0001", "p < 0.0001"),
    ]
