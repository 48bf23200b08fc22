"""No network at all: answers a fixed function of the image, so that everything around a network is
testable. Opened only where the environment says so (`FOR_TESTS`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.backends.session import Arrays, Session, Tensor, Tensors
from runtime.tasks import TASKS, Task


class BackendSession(Session):
    """Answers the image itself, scaled to each task's range.

    Three channels are those of the image, one channel is their mean. Noise (mode G) shifts each
    image by the mean of its own first; one image with several noises is shifted by each.
    """

    def _open(self) -> Tensors:
        shapes = self.input_shapes | self.output_shapes
        return {name: Tensor("float32", shape) for name, shape in shapes.items()}

    def _run(self, runner: None, inputs: Arrays) -> Arrays:
        image = inputs["image"]
        if "noise" in inputs:
            shift = inputs["noise"].mean(axis=(1, 2, 3), keepdims=True)
            image = np.clip(image + shift, -1, 1)
        return {name: _answer(image, TASKS[name]) for name in self.output_shapes}

    def _close(self) -> None:
        pass


def _answer(image: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    """Images [N,3,H,W], in [-1,1], as the task's [N,C,H,W] in [low, high]."""
    groups = np.array_split(image, task.channels, axis=1)
    planes = np.concatenate([group.mean(axis=1, keepdims=True) for group in groups], axis=1)
    middle, half = (task.high + task.low) / 2, (task.high - task.low) / 2
    answer: NDArray[np.float32] = planes * np.float32(half) + np.float32(middle)
    return answer
