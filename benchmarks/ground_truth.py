"""The kinds of ground truth that a prediction is measured with: what a file and a rendered scene
say, and which errors are counted.

A task names its kind (`Task.truth`), a data set too (`Dataset.kind`). A new kind is one entry of
GROUND_TRUTHS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.metrics import (
    SPACES,
    DepthAccuracy,
    Map,
    Mask,
    NormalAccuracy,
    angle_between,
    fit_depth,
)
from runtime.tasks import Task
from tiny.render import LOTUS_AXES, Rendered

_LEAST_DEPTH = 1e-6  # metres; pixels that do not count may hold zero


class Accuracy(Protocol):
    """Metrics of a data set, image by image; see benchmarks/metrics.py."""

    def update(self, prediction: Map, truth: Map, mask: Mask | None = None) -> dict[str, float]:
        """Add one image; its metrics, by name."""

    def compute(self) -> dict[str, float]:
        """The metrics of all images so far, by name."""


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """One kind of ground truth.

    `pixel` is the shape of one pixel, so that a map is [H,W,*pixel]. `ranked_by` names the metric
    that tells the better of two images; small is good. The functions:

    - `from_file(raw, from_picture, scale)`: the map, float32, of what a file holds; `from_picture`
      is true for a PNG and false for an array, `scale` is the unit of `raw` in metres.
    - `from_scene(rendered)`: the map of a rendered scene.
    - `accuracy(task, nearest, farthest)`: an empty measurement; the depth that counts is between
      `nearest` and `farthest`, in metres.
    - `pixel_errors(task, prediction, truth, mask)`: float64 [H,W]; what the mask leaves out may
      hold anything finite.
    - `as_prediction(task, truth, mask)`: the map in the space that the task predicts, ready for
      its colours.
    """

    pixel: tuple[int, ...]
    ranked_by: str
    from_file: Callable[[NDArray[np.generic], bool, float], NDArray[np.float32]]
    from_scene: Callable[[Rendered], NDArray[np.float32]]
    accuracy: Callable[[Task, float, float], Accuracy]
    pixel_errors: Callable[[Task, Map, Map, Mask], Map]
    as_prediction: Callable[[Task, Map, Mask], Map]


def _depth_from_file(
    raw: NDArray[np.generic], from_picture: bool, scale: float
) -> NDArray[np.float32]:
    return raw.astype(np.float32) * np.float32(scale)


def _normals_from_file(
    raw: NDArray[np.generic], from_picture: bool, scale: float
) -> NDArray[np.float32]:
    values = raw.astype(np.float32)
    return values / np.float32(127.5) - 1 if from_picture else values


def _space_of(task: Task) -> str:
    if task.space is None:
        raise ValueError(f"{task.name} is measured with depth, but has no space to be aligned in")
    return task.space


def _depth_errors(task: Task, prediction: Map, truth: Map, mask: Mask) -> Map:
    """|d - d*| of the aligned prediction, in the task's space; zero where the mask is."""
    space = _space_of(task)
    of_depth = SPACES[space].of_depth
    counted = truth[mask]
    aligned = fit_depth(prediction[mask].astype(np.float64), counted.astype(np.float64), space)
    errors = np.zeros(truth.shape)
    errors[mask] = np.abs(of_depth(aligned) - of_depth(counted))
    return errors


def _depth_as_prediction(task: Task, truth: Map, mask: Mask) -> Map:
    """Clipped to the values that count, which the colours then span."""
    values = SPACES[_space_of(task)].of_depth(np.maximum(truth, _LEAST_DEPTH))
    counted = values[mask]
    return np.clip(values, counted.min(), counted.max()) if counted.size else values


GROUND_TRUTHS = {
    "depth": GroundTruth(
        pixel=(),
        ranked_by="abs_rel",
        from_file=_depth_from_file,
        from_scene=lambda scene: scene.depth,
        accuracy=lambda task, nearest, farthest: DepthAccuracy(
            space=_space_of(task), nearest=nearest, farthest=farthest
        ),
        pixel_errors=_depth_errors,
        as_prediction=_depth_as_prediction,
    ),
    "normal": GroundTruth(
        pixel=(3,),
        ranked_by="mean",
        from_file=_normals_from_file,
        from_scene=lambda scene: scene.normals * LOTUS_AXES,
        accuracy=lambda task, nearest, farthest: NormalAccuracy(),
        pixel_errors=lambda task, prediction, truth, mask: angle_between(prediction, truth),
        as_prediction=lambda task, truth, mask: truth,
    ),
}
