"""Recursive least squares with drift, a prior and bounds on the coefficients.

The textbook recursion for coefficients that wander (Ljung, System Identification, 2nd ed., section 11.2: a Kalman
filter for the coefficients), with three guards that an estimator left alone for months needs: no coefficient becomes
less certain than it was before the first sample, an outlier pulls only as far as a believable error would, and a
coefficient that leaves its bounds is projected back along the covariance for those who ask, while the recursion goes on
from where it was: a projection that fed back would pull all others after it. Exponential forgetting is not used: in a
steady state it forgets what the steady state does not show.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from policies.strict import limits

MOST_COEFFICIENTS = 8
OUTLIER_ERRORS = 4.0
"""An error beyond so many standard deviations counts as this many (Huber's estimator)."""
SURPRISE = 4.0
"""Above this mean of the squared errors over the expected ones (1 is expected) the board is not what it was."""
SURPRISED_DRIFT = 300.0
"""Factor on the drift then, so that minutes teach what hours would."""
SURPRISE_WEIGHT = 0.05  # of the latest sample in that mean
MOST_SAMPLES = 1_000_000_000

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed before the first sample: independent coefficients."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    least: tuple[float, ...]
    """No coefficient is ever below; -inf: any value."""
    drift: tuple[float, ...]
    """Standard deviation that a sample adds to each coefficient, as a share of `deviation`."""

    def start(self) -> Estimate:
        """The estimate that has seen nothing."""
        return Estimate(self.mean, diagonal(self.deviation), self.mean)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Coefficients and how well they are known."""

    mean: tuple[float, ...] = field(metadata=limits(longest=MOST_COEFFICIENTS))
    covariance: Matrix = field(metadata=limits(longest=MOST_COEFFICIENTS))
    free: tuple[float, ...] = field(metadata=limits(longest=MOST_COEFFICIENTS))
    """The mean as it would be without bounds."""
    samples: int = field(default=0, metadata=limits(0, MOST_SAMPLES))
    surprise: float = field(default=1.0, metadata=limits(0.0, OUTLIER_ERRORS**2))
    """Smoothed squared error over the expected one; about 1 or less when all is well."""

    def predict(self, regressors: Sequence[float]) -> tuple[float, float]:
        """(value, standard error) at `regressors`, of as many entries as there are coefficients."""
        value = sum(a * x for a, x in zip(self.mean, regressors, strict=True))
        return value, math.sqrt(max(quadratic(self.covariance, regressors), 0.0))

    def fits(self, prior: Prior) -> bool:
        """Whether an update can have left it: of the prior's shape, in its bounds, and no less certain."""
        size = len(prior.mean)
        return (
            len(self.mean) == len(self.free) == len(self.covariance) == size
            and all(len(row) == size for row in self.covariance)
            and all(a >= least for a, least in zip(self.mean, prior.least, strict=True))
            and all(0.0 < self.covariance[i][i] <= 1.001 * prior.deviation[i] ** 2 for i in range(size))
            and all(_correlated(self.covariance, i, j) for i in range(size) for j in range(i))
        )


def widened(estimate: Estimate, prior: Prior, places: Sequence[int]) -> Estimate:
    """The estimate with the coefficients at `places` as uncertain as before the first sample."""
    old, size = estimate.covariance, range(len(estimate.mean))
    scale = [prior.deviation[i] / math.sqrt(old[i][i]) if i in places else 1.0 for i in size]
    # Rows and columns alike: the matrix stays positive definite.
    rows = tuple(tuple(old[i][j] * (scale[i] * scale[j]) for j in size) for i in size)
    return dataclasses.replace(estimate, covariance=rows)


def diagonal(deviation: Sequence[float]) -> Matrix:
    """Covariance of independent quantities with these standard deviations."""
    size = range(len(deviation))
    return tuple(tuple(deviation[i] ** 2 if i == j else 0.0 for j in size) for i in size)


def quadratic(matrix: Matrix, vector: Sequence[float]) -> float:
    """The quadratic form v' M v."""
    total = 0.0
    for row, x in zip(matrix, vector, strict=True):
        if x != 0.0:
            total += x * sum(a * y for a, y in zip(row, vector, strict=True))
    return total


def update(estimate: Estimate, prior: Prior, regressors: Sequence[float], value: float, noise: float) -> Estimate:
    """The estimate after one sample `value` = coefficients x `regressors` + noise.

    Args:
        estimate: what was known.
        prior: bounds and drift.
        regressors: finite, one for each coefficient.
        value: finite.
        noise: standard deviation of `value`, above 0.

    Returns:
        The new estimate, within the prior's bounds; the old one where the arithmetic overflows.
    """
    gains = [sum(a * x for a, x in zip(row, regressors, strict=True)) for row in estimate.covariance]
    spread = noise * noise + sum(a * x for a, x in zip(gains, regressors, strict=True))
    if not (math.isfinite(spread) and spread > 0.0 and math.isfinite(value)):
        return estimate
    bound = OUTLIER_ERRORS * math.sqrt(spread)
    error = value - sum(a * x for a, x in zip(estimate.free, regressors, strict=True))
    error = min(max(error, -bound), bound)
    free = tuple(a + gain * error / spread for a, gain in zip(estimate.free, gains, strict=True))
    covariance = _drifted(estimate, prior, gains, spread)
    mean = _projected(free, covariance, prior.least)
    if not all(map(math.isfinite, (*free, *mean))) or not all(covariance[i][i] > 0.0 for i in range(len(mean))):
        return estimate
    surprise = estimate.surprise + SURPRISE_WEIGHT * (error * error / spread - estimate.surprise)
    samples = min(estimate.samples + 1, MOST_SAMPLES)
    return Estimate(mean, covariance, free, samples, max(surprise, 0.0))


def _drifted(estimate: Estimate, prior: Prior, gains: list[float], spread: float) -> Matrix:
    old, size = estimate.covariance, range(len(gains))
    factor = SURPRISED_DRIFT if estimate.surprise > SURPRISE else 1.0
    rows = [[old[i][j] - gains[i] * gains[j] / spread for j in size] for i in size]
    scale = []
    for i in size:
        rows[i][i] += factor * (prior.drift[i] * prior.deviation[i]) ** 2
        most = prior.deviation[i] ** 2
        scale.append(math.sqrt(most / rows[i][i]) if rows[i][i] > most else 1.0)
    if min(scale) == 1.0:
        return tuple(map(tuple, rows))
    # Scaling rows and columns alike keeps the matrix positive definite.
    return tuple(tuple(rows[i][j] * (scale[i] * scale[j]) for j in size) for i in size)


def _projected(free: tuple[float, ...], covariance: Matrix, least: Sequence[float]) -> tuple[float, ...]:
    """The most likely coefficients given that those below their bound lie on it (a Gaussian, conditioned)."""
    if all(a >= low for a, low in zip(free, least, strict=True)):
        return free
    mean, rows, size = list(free), [list(row) for row in covariance], range(len(free))
    for _ in size:  # one more is set on its bound in each round
        below = [i for i in size if mean[i] < least[i] and rows[i][i] > 0.0]
        if not below:
            break
        i = max(below, key=lambda k: (least[k] - mean[k]) / math.sqrt(rows[k][k]))
        column = [row[i] / rows[i][i] for row in rows]
        shift = least[i] - mean[i]
        mean = [a + share * shift for a, share in zip(mean, column, strict=True)]
        old = rows[i]
        rows = [[a - share * b for a, b in zip(row, old, strict=True)] for row, share in zip(rows, column, strict=True)]
        mean[i], rows[i][i] = least[i], 0.0
    return tuple(max(a, low) for a, low in zip(mean, least, strict=True))


def _correlated(covariance: Matrix, i: int, j: int) -> bool:
    both = covariance[i][i] * covariance[j][j]
    return covariance[i][j] == covariance[j][i] and covariance[i][j] ** 2 <= 1.001 * both
