"""95% intervals of differences of methods that are tested on the same images, over several seeds.

The images are resampled, the same ones for both methods and all seeds. The seeds are not: two or
three of them, resampled, vary by a third or a half too little, and the tails of so few values are
unknown. How much they vary is measured between them, and Student's t allows for their number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.intervals import NORMAL_95

RESAMPLES = 10_000
CHUNK = 1_000  # resamples at a time: bounds the memory


class Interval(NamedTuple):
    """A mean with its interval.

    Attributes:
        mean: in points.
        half_width: of the interval, in points.
        seeds: over which the mean is.
    """

    mean: float
    half_width: float
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval has this sign, 0 where it holds 0."""
        return int(math.copysign(abs(self.mean) > self.half_width, self.mean))

    def __str__(self) -> str:
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{self.mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def resampled_accuracies(
    right: np.ndarray, random: np.random.Generator, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return accuracies in percent (1 + resamples, runs): the measured ones, then resampled ones.

    Images that the same runs are right about are drawn together, by a multinomial count: that is
    the same distribution as drawing one by one, and fast. n - 1 images are drawn of n, which makes
    the variance unbiased.

    Args:
        right: whether each run is right about each image (runs, n >= 2).
        random: source of the draws.
        resamples: how often to resample the images.
    """
    n = right.shape[1]
    patterns, counts = np.unique(right, axis=1, return_counts=True)
    found = [right.mean(axis=1, keepdims=True).T]
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        drawn = random.multinomial(n - 1, counts / n, size=size)
        found.append(drawn @ patterns.T.astype(float) / (n - 1))
    return 100 * np.concatenate(found)


def interval_over_seeds(values: np.ndarray) -> Interval:
    """Return the mean over the seeds and its interval over images and, if several, over seeds.

    A seed's value v_s = mean + a_s + b + e_s has an error a_s of the seed, an error b of the images
    that all seeds share, and the rest e_s of the images' error. The variance of a_s + e_s is
    measured between the seeds, with few degrees of freedom: Student's t. That of b is the
    covariance of the seeds over the resampled images. The two half-widths are added in quadrature;
    seeds that agree by chance do not make the interval narrower than that of the images alone.
    Where there is no difference, about 1 in 20 intervals excludes 0 if the seeds decide, and fewer
    do if the images decide (``tests/experiments/test_bootstrap.py``).

    Args:
        values: of each seed (1 + resamples, seeds), the first row measured, the others with
            resampled images. With one seed the interval says nothing about other seeds.
    """
    measured, n = values[0], values.shape[1]
    covariance = np.cov(values[1:], rowvar=False).reshape(n, n)
    half_width = NORMAL_95 * math.sqrt(max(0.0, covariance.mean()))
    if n > 1:
        shared = max(0.0, (covariance.sum() - covariance.trace()) / (n * (n - 1)))
        of_seeds = stats.t.ppf(0.975, n - 1) * measured.std(ddof=1) / math.sqrt(n)
        half_width = max(half_width, math.hypot(NORMAL_95 * math.sqrt(shared), of_seeds))
    return Interval(float(measured.mean()), float(half_width), n)
