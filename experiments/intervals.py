"""95% intervals of accuracies that come from a finite test set, and from few seeds.

All seeds are tested on the same pictures, so averaging over seeds does not make them narrower.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

NORMAL_95 = 1.96  # standard errors


def shares_right(seeds: Iterable[Mapping[str, bool]]) -> dict[str, float]:
    """Return {picture: share of the seeds that are right} from {picture: right} of each seed."""
    answers: dict[str, list[bool]] = {}
    for seed in seeds:
        for picture, right in seed.items():
            answers.setdefault(picture, []).append(right)
    return {picture: sum(rights) / len(rights) for picture, rights in answers.items()}


def mean_and_half_width(values: Collection[float]) -> tuple[float, float]:
    """Return the mean over the test pictures and the half-width of its interval, in percent.

    Args:
        values: for each picture, such as the share of seeds that are right or a difference of two.
            The interval of fewer than two is infinite.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return 100 * mean, math.inf
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return 100 * mean, 100 * NORMAL_95 * math.sqrt(variance / n)


def half_width_of_counts(counts: Sequence[tuple[int, int]]) -> float | None:
    """Return the half-width of the mean over seeds, from how many pictures each is right about.

    It is that of seeds that are right about the same pictures, the widest there is with these
    counts; ``mean_and_half_width`` of the pictures' shares is narrower where seeds differ.

    Args:
        counts: pictures that each seed is right about, and all pictures. Seeds of test sets that
            differ in size have no common one: None.
    """
    totals = {total for _, total in counts}
    if len(totals) != 1 or (n := totals.pop()) < 2:
        return None
    share = math.fsum(correct for correct, _ in counts) / (n * len(counts))
    return 100 * NORMAL_95 * math.sqrt(share * (1 - share) / (n - 1))


def half_width_over_seeds(values: Sequence[float]) -> float:
    """Return the half-width of the mean of several seeds by Student's t; 0 for one seed."""
    n = len(values)
    if n < 2:
        return 0.0
    from scipy.special import stdtrit  # takes a while

    return float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)


def half_width_of_mean(half_widths: Sequence[float | None]) -> float | None:
    """Return that of the mean over several test sets; None where one is not known."""
    known = [half_width for half_width in half_widths if half_width is not None]
    return math.hypot(*known) / len(known) if len(known) == len(half_widths) else None


def mean_difference(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[float, float]:
    """Return the mean of first - second over the pictures that both have, and its half-width."""
    return mean_and_half_width([first[p] - second[p] for p in first.keys() & second.keys()])


def propagated(
    function: Callable[[Sequence[float]], float],
    means: Sequence[float],
    half_widths: Sequence[float],
    step: float = 1e-3,
) -> float:
    """Return the half-width of a smooth function of independent means, by the delta method.

    Args:
        function: of as many values as there are means.
        means: in percent.
        half_widths: theirs.
        step: of the central differences that give the derivatives.
    """
    parts = []
    for i, (mean, half_width) in enumerate(zip(means, half_widths, strict=True)):
        above, below = (
            function([*means[:i], value, *means[i + 1 :]]) for value in (mean + step, mean - step)
        )
        parts.append((above - below) / (2 * step) * half_width)
    return math.hypot(*parts)
