"""What each task's output means. Depth, disparity and normals are data, not three pipelines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """Meaning of one output map.

    `channels` is 1 for a scalar map, 3 for a vector map; `low`/`high` bound every value; `near` says which values
    are close to the camera; `reverse_colors` turns the colour map round so that near is always warm.
    """

    name: str
    channels: int
    low: float
    high: float
    near: str | None
    reverse_colors: bool
    meaning: str


# Source of the ranges and of the colour map's direction: the Lotus paper (arXiv 2409.18124) and its published code.
TASKS = {
    task.name: task
    for task in (
        Task(
            name="depth",
            channels=1,
            low=0.0,
            high=1.0,
            near="small",
            reverse_colors=False,
            meaning="affine-invariant depth: metric depth is a*value + b with unknown a > 0 and b",
        ),
        Task(
            name="disparity",
            channels=1,
            low=0.0,
            high=1.0,
            near="large",
            reverse_colors=True,
            meaning="affine-invariant disparity: 1 / metric depth is a*value + b with unknown a > 0 and b",
        ),
        Task(
            name="normal",
            channels=3,
            low=-1.0,
            high=1.0,
            near=None,
            reverse_colors=False,
            meaning="surface normal in the camera frame, unit length; colours are 255 - those of Omnidata and Metric3D",
        ),
    )
}
