"""From the decoded picture to a map: the ways that families share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor


def in_range(bounded: Tensor, task: Task) -> Tensor:
    """Values in [-1,1] as values in the task's range."""
    if (task.low, task.high) == (-1, 1):
        return bounded
    return bounded / (2 / (task.high - task.low)) + (task.low + task.high) / 2


def mean_then_clip(decoded: Tensor, task: Task) -> Tensor:
    """The decoded picture [N,3,H,W] as the task's map: the mean over channels where the task has
    one, then the clamp to [-1,1], then the task's range.
    """
    if task.channels < decoded.shape[1]:
        decoded = decoded.mean(dim=1, keepdim=True)
    return in_range(decoded.clamp(-1, 1), task)


def stretched(values: Tensor) -> Tensor:
    """[N,1,H,W] from the smallest (0) to the largest value (1) of each picture; a constant
    picture is 0.
    """
    low = values.amin(dim=(1, 2, 3), keepdim=True)
    high = values.amax(dim=(1, 2, 3), keepdim=True)
    return (values - low) / (high - low).clamp(min=_LEAST_RANGE)


_LEAST_RANGE = 1e-6  # of values in [0,1]; float32 has no smaller steps to speak of
