"""Lines through points of which many may be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_HUBER = 1.5  # times the MAD: beyond it a point's weight falls
_TO_SIGMA = 1.4826  # the MAD of a normal distribution to its standard deviation
_STARTS = 500  # with half of the points wrong, 1 - 0.75^500 find two right ones
_SCORED = 2000  # points at most that a start is scored with
_STEPS = 50
_EXACT = 1e-9  # of the targets' size: below it residuals are rounding

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Line:
    """y = slope * x + intercept, and which points [N] count."""

    slope: float
    intercept: float
    inliers: NDArray[np.bool_]


def fit_line(x: Floats, y: Floats) -> Line:
    """A line through points [N], N >= 2, of which up to half may be wrong.

    The line through two points with the least median of squares (Rousseeuw 1984) is the start.
    Points within 2.5 robust standard deviations of it are fitted by `reweighted`.
    """
    random = np.random.default_rng(0)
    pairs = random.integers(len(x), size=(_STARTS, 2))
    pairs = pairs[x[pairs[:, 0]] != x[pairs[:, 1]]]
    if not len(pairs):  # few points
        first, second = np.triu_indices(len(x), 1)
        pairs = np.stack([first, second], axis=1)
        pairs = pairs[x[first] != x[second]]
    run = x[pairs[:, 1]] - x[pairs[:, 0]]
    slopes = (y[pairs[:, 1]] - y[pairs[:, 0]]) / run
    intercepts = y[pairs[:, 0]] - slopes * x[pairs[:, 0]]
    some = random.permutation(len(x))[:_SCORED]
    off = np.abs(slopes[:, None] * x[some] + intercepts[:, None] - y[some])
    best = int(np.median(off, axis=1).argmin())

    def solve(weights: Floats) -> Floats:
        root = np.sqrt(weights)
        design = np.stack([x * root, root], axis=1)
        return np.asarray(np.linalg.lstsq(design, y * root, rcond=None)[0])

    def residual(line: Floats) -> Floats:
        return np.asarray(line[0] * x + line[1] - y)

    start = np.array([slopes[best], intercepts[best]])
    line, inliers = reweighted(start, solve, residual, _EXACT * float(np.abs(y).max()))
    return Line(slope=float(line[0]), intercept=float(line[1]), inliers=inliers)


def fit_ratio(x: Floats, y: Floats) -> Line:
    """y = slope * x through points [N], N >= 1, of which up to half may be wrong."""
    with np.errstate(divide="ignore", invalid="ignore"):
        start = np.array([np.nanmedian(y / x)])

    def solve(weights: Floats) -> Floats:
        return np.array([(weights * x * y).sum() / max((weights * x * x).sum(), 1e-300)])

    def residual(line: Floats) -> Floats:
        return np.asarray(line[0] * x - y)

    line, inliers = reweighted(start, solve, residual, _EXACT * float(np.abs(y).max()))
    return Line(slope=float(line[0]), intercept=0.0, inliers=inliers)


def reweighted(
    start: Floats,
    solve: Callable[[Floats], Floats],
    residual: Callable[[Floats], Floats],
    exact: float,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Iteratively reweighted least squares from a robust start; the solution and its inliers [N].

    What is farther off than 2.5 standard deviations (by the MAD, at least `exact`) does not count,
    the rest by Huber's weights.
    """
    solution, inliers = start, np.ones(len(residual(start)), np.bool_)
    for _ in range(_STEPS):
        off = np.abs(residual(solution))
        mad = float(np.median(off))
        inliers = off <= max(2.5 * _TO_SIGMA * mad, exact)
        weights = np.minimum(1, max(_HUBER * mad, exact) / np.maximum(off, 1e-300)) * inliers
        before, solution = solution, solve(weights)
        if np.abs(solution - before).max() <= 1e-12 * np.abs(solution).max():
            break
    return solution, inliers
