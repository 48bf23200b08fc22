"""What goes from predicting to writing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.steady import Step
from runtime.tasks import TASKS

MARGIN = 0.5
"""Ranges of a task that 16-bit files have room for on either side, where maps are made steady."""

NO_STEP = Step(scale=1.0, shift=0.0, low=0.0, high=1.0, cut=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """The maps of one frame: `maps` by task, values float32 [h,w] or [h,w,C] at the size that the
    network gives, not made steady; what makes them so is in `steps`. `smoothed`: what they are then
    along motion, where that is asked for. `size` is the frame's own height and width. `picture` is
    the frame, as one of a film, where it is needed, `thumb` uint8 [h,w,3] a small one where a later
    pass needs it, `grey` uint8 [h,w] one of the maps' size where they are smoothed. `state` is what
    the steps and the smoothing remember after this frame, by task (or "smooth") and name.
    """

    number: int
    time: float
    pts: int
    size: tuple[int, int]
    maps: dict[str, NDArray[np.float32]]
    steps: dict[str, Step]
    picture: Any = None
    thumb: NDArray[np.uint8] | None = None
    grey: NDArray[np.uint8] | None = None
    smoothed: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    state: dict[str, NDArray[Any]] = field(default_factory=dict)

    def steady(self, task: str) -> NDArray[np.float32]:
        """The steady values at the network's size, smoothed where that was asked for."""
        if task in self.smoothed:
            return self.smoothed[task]
        return self.steps.get(task, NO_STEP)(self.maps[task])

    def colors(self, task: str) -> NDArray[np.uint8]:
        """RGB uint8 [h,w,3] at the network's size, in the step's range."""
        step = self.steps.get(task, NO_STEP)
        return TASKS[task].colorize(self.steady(task), (step.low, step.high))

    def values(self, task: str) -> NDArray[np.float32]:
        """The steady values at the frame's size."""
        return at_size(task, self.steady(task), *self.size)

    def deep(self, task: str, steady: bool) -> NDArray[np.uint16]:
        """The steady values at the frame's size as uint16, over `deep_range`."""
        low, high = deep_range(task, steady)
        levels = (self.values(task) - np.float32(low)) * np.float32(65535 / (high - low))
        return np.asarray(np.rint(levels).clip(0, 65535), np.uint16)


def at_size(task: str, values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Values at another size, bilinearly, as a prediction has them at the picture's."""
    if values.shape[:2] == (height, width):
        return values
    each = TASKS[task]
    planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return each.decode(each.resize(np.ascontiguousarray(planes), height, width, "bilinear"))


def deep_range(task: str, steady: bool) -> tuple[float, float]:
    """The values of 0 and 65535. Steady maps of a task that is affine go beyond its range."""
    each = TASKS[task]
    room = MARGIN * (each.high - each.low) if steady and each.space is not None else 0.0
    return each.low - room, each.high + room
