"""What makes probabilities trustworthy: a temperature, and sets that have the true class.

Logits are (n, K) for n images and K classes, labels (n,).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from torch import Tensor

from dassl.engine.run_folder import CALIBRATION_FILE
from dassl.errors import UserError, shown
from dassl.metrics import nll
from dassl.utils.tools import read_json, write_json

FORMAT = 1
BOUNDS = (0.01, 100.0)  # of a temperature that is fitted


@dataclass(frozen=True)
class Calibration:
    """What calibration.json of a run holds, next to the number of its format.

    Attributes:
        temperature: what logits are divided by before the softmax.
        thresholds: by coverage, the probability from which on a class belongs to the set.
        images: number of validation images that these were fitted to; 0 without calibration.
        test: nll and ece of the run's test images at the temperature, where they were measured.
    """

    temperature: float = 1.0
    thresholds: dict[float, float] = field(default_factory=dict)
    images: int = 0
    test: dict[str, float] = field(default_factory=dict)


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Return the temperature T at which softmax(logits / T) has the lowest NLL (Guo et al. 2017).

    The NLL is convex in 1/T and so has one minimum at most. There is none within ``BOUNDS``, and
    the result is None, where all images are recognized (the lower T the better), or where
    logits say less than nothing about the labels (the higher T the better).
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return nll(logits.double() / math.exp(log_temperature), labels)

    ends = [math.log(bound) for bound in BOUNDS]
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6})
    return None if min(map(loss, ends)) <= found.fun else math.exp(found.x)


def rank(coverage: float, count: int) -> int:
    """Return ceil((count + 1) coverage), in whole numbers: 0.07 of 100 is 7."""
    return math.ceil(Fraction(str(coverage)) * (count + 1))


def check_coverages(coverages: Iterable[float], count: int) -> None:
    """Raise ``UserError`` for a coverage that so many validation images cannot give."""
    for coverage in coverages:
        if rank(coverage, count) > count:
            most = math.floor(1000 * count / (count + 1)) / 1000
            raise UserError(
                f"--coverage: expected at most {most}, as there are {count} validation images, "
                f"got {coverage}"
            )


def threshold(probabilities: Tensor, labels: Tensor, coverage: float) -> float:
    """Return the probability from which on a class belongs to a set of a coverage.

    This is split conformal prediction (Sadinle et al. 2019) with the score 1 - p_label: of the n
    probabilities of true classes it is the ceil((n + 1) coverage)-th highest. The set of another
    image from where these came from has the true class with at least the coverage.

    Args:
        probabilities: (n, K), of images that nothing was fitted to.
        labels: theirs.
        coverage: one that ``check_coverages`` accepts.
    """
    own = probabilities.gather(1, labels.view(-1, 1)).squeeze(1)
    return float(own.sort(descending=True).values[rank(coverage, len(own)) - 1])


def set_sizes(probabilities: Tensor, least: float) -> Tensor:
    """Return how many classes, the most probable ones, are in the sets of images, (n,).

    Where no class reaches the probability ``least``, it is the most probable one.
    """
    return (probabilities >= least).sum(dim=1).clamp(min=1)


def write_calibration(calibration: Calibration, folder: str) -> None:
    """Write calibration.json into the folder of a run."""
    content = {"format": FORMAT, **asdict(calibration)}
    write_json(content, os.path.join(folder, CALIBRATION_FILE))


def read_calibration(folder: str) -> Calibration:
    """Return the calibration of a run, one that changes nothing where there is none.

    Raises:
        UserError: the file is damaged, or of a newer format.
    """
    path = os.path.join(folder, CALIBRATION_FILE)
    return calibration_in(read_json(path), path) if os.path.lexists(path) else Calibration()


def calibration_in(content: Any, path: str) -> Calibration:
    """Return what JSON says, such as {"temperature": 2}, which leaves the rest out.

    Args:
        content: of the file.
        path: of the file, for error messages.

    Raises:
        UserError: it is damaged, or of a newer format.
    """
    found = content if isinstance(content, dict) else {"temperature": content}
    version = found.get("format", FORMAT)
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise UserError(f"'{path}': expected format {FORMAT} or less, got {shown(version)}")
    temperature: Any = found.get("temperature")
    if not _is_number(temperature) or temperature <= 0:
        got = shown(temperature)
        raise UserError(f"'{path}': temperature: expected a number above 0, got {got}")
    images = found.get("images", 0)
    if type(images) is not int or images < 0:
        raise UserError(f"'{path}': images: expected a number of images, got {shown(images)}")
    thresholds, test = (found.get(name, {}) for name in ("thresholds", "test"))
    if not isinstance(test, dict) or not all(map(_is_number, test.values())):
        raise UserError(f"'{path}': test: expected {{figure: number}}, got {shown(test)}")
    try:
        by_coverage = {float(coverage): least for coverage, least in thresholds.items()}
        is_usable = all(0 < c < 1 and _is_number(p) and 0 <= p <= 1 for c, p in by_coverage.items())
    except (AttributeError, ValueError):
        is_usable = False
    if not is_usable:
        got = shown(thresholds)
        raise UserError(f"'{path}': thresholds: expected {{coverage: probability}}, got {got}")
    return Calibration(float(temperature), by_coverage, images, test)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
