"""Accuracy of depth, disparity and normals against ground truth, in NumPy.

Depth: Lotus predicts up to scale and shift. So a prediction is first fitted to the truth by least
squares, in the space that the model predicts (Lotus, section on evaluation): depth models in depth,
disparity models in disparity, clipped at 1e-3 and inverted. Then it is clipped to the data set's
range. The result for a data set is the mean over images.

Normals: errors are pooled over all pixels of the data set, as DSINE and Lotus report them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.floating]
Mask = NDArray[np.bool_]

LEAST_DISPARITY = 1e-3
ANGLES = (5.0, 7.5, 11.25, 22.5, 30.0)


@dataclass(kw_only=True)
class DepthAccuracy:
    """AbsRel, delta1-3, RMSE, log10 and SILog of aligned predictions.

    `space` is a key of SPACES: what the predictions are. `nearest` and `farthest` bound the
    truth that counts and clip the aligned prediction (the unit of the truth, metres as a rule).
    """

    space: str
    nearest: float
    farthest: float
    images: list[dict[str, float]] = field(default_factory=list)

    def update(self, prediction: Map, depth: Map, mask: Mask | None = None) -> dict[str, float]:
        """Add one image: prediction [H,W] in any scale, true depth [H,W], mask [H,W] of pixels that
        count.

        Returns the image's metrics; all are NaN when no pixel counts. Raises: ValueError for shapes
        that differ.
        """
        counted = (
            _valid(prediction, depth, mask) & (depth >= self.nearest) & (depth <= self.farthest)
        )
        truth = depth[counted].astype(np.float64)
        aligned = fit_depth(prediction[counted].astype(np.float64), truth, self.space)
        self.images.append(_depth_errors(np.clip(aligned, self.nearest, self.farthest), truth))
        return self.images[-1]

    def compute(self) -> dict[str, float]:
        """The mean over images; images without a valid pixel do not count."""
        names = list(self.images[0]) if self.images else []
        return {name: _mean_of_finite([image[name] for image in self.images]) for name in names}


def angle_between(first: Map, second: Map) -> Map:
    """Degrees between vectors [...,3] of any length."""
    # atan2 of cross and dot keeps its digits near 0 and 180 degrees, where arccos of the dot loses
    # them.
    sine = np.linalg.norm(np.cross(first, second), axis=-1)
    return np.degrees(np.arctan2(sine, (first * second).sum(axis=-1)))


def fit_depth(prediction: Map, truth: Map, space: str) -> Map:
    """Depth [N] of a prediction [N] in a space (a key of SPACES), where it is scaled and shifted to
    the true depth [N].
    """
    return SPACES[space].fit(prediction, truth)


@dataclass(frozen=True, kw_only=True)
class Space:
    """A space in which predictions are affine to the truth. `of_depth` brings depth (positive)
    there; `fit(prediction, depth)` gives the depth of an aligned prediction, all [N].
    """

    of_depth: Callable[[Map], Map]
    fit: Callable[[Map, Map], Map]


def _fit_in_depth(prediction: Map, depth: Map) -> Map:
    scale, shift = least_squares(prediction, depth)
    return scale * prediction + shift


def _fit_in_disparity(prediction: Map, depth: Map) -> Map:
    """Fitted where the prediction is positive; zero is "as far as can be said"."""
    near = prediction > 0
    scale, shift = least_squares(prediction[near], 1 / depth[near])
    return 1 / np.maximum(scale * prediction + shift, LEAST_DISPARITY)


SPACES = {
    "depth": Space(of_depth=lambda depth: depth, fit=_fit_in_depth),
    "disparity": Space(of_depth=lambda depth: 1 / depth, fit=_fit_in_disparity),
}
"""By `Task.space`."""


@dataclass(kw_only=True)
class NormalAccuracy:
    """Mean, median and RMSE of the angle in degrees, and the percentage of pixels below 5, 7.5,
    11.25, 22.5, 30.
    """

    angles: list[Map] = field(default_factory=list)

    def update(self, prediction: Map, truth: Map, mask: Mask | None = None) -> dict[str, float]:
        """Add one image: normals [H,W,3] of any length, mask [H,W]. Zero-length vectors do not
        count.

        Returns the image's metrics, NaN when no pixel counts. Raises: ValueError for shapes that
        differ.
        """
        lengths = np.linalg.norm(prediction, axis=-1), np.linalg.norm(truth, axis=-1)
        counted = _valid(lengths[0], lengths[1], mask) & (lengths[0] > 0) & (lengths[1] > 0)
        first, second = (vectors[counted].astype(np.float64) for vectors in (prediction, truth))
        self.angles.append(angle_between(first, second))
        return _angle_errors(self.angles[-1])

    def compute(self) -> dict[str, float]:
        """Over all pixels of all images."""
        return _angle_errors(np.concatenate([np.empty(0), *self.angles]))


def _valid(prediction: Map, truth: Map, mask: Mask | None) -> Mask:
    if prediction.shape != truth.shape or (mask is not None and mask.shape != truth.shape):
        shapes = [list(given.shape) for given in (prediction, truth, mask) if given is not None]
        raise ValueError(
            f"prediction, truth and mask must agree in height and width, found {shapes}"
        )
    finite = np.isfinite(prediction) & np.isfinite(truth)
    return finite if mask is None else finite & mask.astype(bool)


def least_squares(x: Map, y: Map) -> tuple[float, float]:
    """Scale and shift that minimise |scale * x + shift - y|^2; a constant x gives (0, mean of
    y).
    """
    if not len(x):
        return 0.0, 0.0
    spread = x - x.mean()
    variance = float(spread @ spread)
    scale = float(spread @ (y - y.mean())) / variance if variance > 1e-12 * len(x) else 0.0
    return scale, float(y.mean() - scale * x.mean())


def _depth_errors(prediction: Map, truth: Map) -> dict[str, float]:
    names = ("abs_rel", "delta1", "delta2", "delta3", "rmse", "log10", "silog")
    if not len(truth):
        return dict.fromkeys(names, float("nan"))
    ratio = np.maximum(prediction / truth, truth / prediction)
    logs = np.log(prediction) - np.log(truth)
    values = (
        np.mean(np.abs(prediction - truth) / truth),
        *(np.mean(ratio < 1.25**power) for power in (1, 2, 3)),
        np.sqrt(np.mean((prediction - truth) ** 2)),
        np.mean(np.abs(logs)) / np.log(10),
        100 * np.sqrt(max(np.mean(logs**2) - np.mean(logs) ** 2, 0.0)),
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _angle_errors(angles: Map) -> dict[str, float]:
    names = ("mean", "median", "rmse", *(f"below_{angle:g}" for angle in ANGLES))
    if not len(angles):
        return dict.fromkeys(names, float("nan"))
    values = (
        angles.mean(),
        np.median(angles),
        np.sqrt(np.mean(angles**2)),
        *(100 * np.mean(angles < angle) for angle in ANGLES),
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _mean_of_finite(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
