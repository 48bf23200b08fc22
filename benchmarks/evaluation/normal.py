"""The protocol for normals, which follows DSINE: angles of all pixels of a set are pooled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.protocol import Fed, Keys, Map, Mask, Measured, Record
from benchmarks.metrics import ANGLES
from runtime.image import Levels
from runtime.tasks import Task

BELOW = {f"below_{angle:g}": angle for angle in ANGLES}
METRICS = ("mean", "median", "rmse", *BELOW)
_CELL = 32
# The padding of each channel, in [-1, 1]: what ImageNet's mean and deviation make of black.
_PADDING = np.array([(0 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0 - 0.406) / 0.225])
_SHIFT = 8  # bits of an angle's float32 that a key leaves out: keys are 3e-5 apart
_SHOWN_ERROR = 60.0  # degrees; the end of the sheet's scale
_LEAST_NORM = np.float32(1e-8)


@dataclass(frozen=True, kw_only=True)
class NormalProtocol:
    """Normals in the axes of the files, which are those of Lotus's maps."""

    ranked_by = "mean"
    headline = {"mean": 1.0, "below_11.25": 1.0}
    titles = {"mean": "mean angle, degrees", "below_11.25": "below 11.25 degrees, %"}
    edges = np.linspace(0, 180, 361)
    error_name = "angle between a pixel's normals, degrees"
    shown_error = f"{_SHOWN_ERROR:g} degrees"

    def feed(self, image: NDArray[np.uint8]) -> Fed:
        """The picture padded to multiples of 32, left and top by the smaller half."""
        height, width = image.shape[:2]
        below, right = -height % _CELL, -width % _CELL
        top, left = below // 2, right // 2
        if not (below or right):
            return Fed(picture=image, height=height, width=width, restore=lambda values: values)
        levels = np.empty((height + below, width + right, 3), np.float32)
        levels[:] = (_PADDING + 1) * 127.5
        levels[top : top + height, left : left + width] = image
        return Fed(
            picture=Levels(values=levels),
            height=height + below,
            width=width + right,
            restore=lambda values: values[top : top + height, left : left + width],
        )

    def measure(self, task: Task, values: Map, truth: Map, mask: Mask) -> Measured:
        """All of METRICS, of vectors [H,W,3] of any length; a zero vector is 90 degrees off."""
        angles = angles_between(values[mask], truth[mask])
        keys, key_counts = np.unique(angles.view(np.uint32) >> _SHIFT, return_counts=True)
        return Measured(
            metrics=_metrics(angles),
            pixels=len(angles),
            counts=np.histogram(angles, self.edges)[0].astype(np.int64),
            keys=keys.astype(np.uint32),
            key_counts=key_counts.astype(np.uint32),
        )

    def pool(self, records: Sequence[Record], load: Callable[[Record], Keys]) -> dict[str, float]:
        """Over all pixels of all pictures; the median is known to 3e-5 of itself."""
        counted = [record for record in records if record["pixels"]]
        pixels = np.array([record["pixels"] for record in counted], np.float64)
        if not counted:
            return dict.fromkeys(METRICS, math.nan)

        def mean(name: str, power: int = 1) -> float:
            values = np.array([record["metrics"][name] for record in counted]) ** power
            return float((pixels * values).sum() / pixels.sum())

        return {
            "mean": mean("mean"),
            "median": pooled_median(map(load, counted)),
            "rmse": math.sqrt(mean("rmse", 2)),
            **{name: mean(name) for name in BELOW},
        }

    def resample(
        self, metric: str, records: Sequence[Record], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Over the pixels of each set; medians are interpolated within bins of half a degree."""
        if metric == "median":
            return self._medians(weights @ np.array([record["counts"] for record in records]))
        power = 2 if metric == "rmse" else 1
        values = np.array([record["metrics"][metric] for record in records]) ** power
        pixels = np.array([record["pixels"] for record in records], np.float64)
        means: NDArray[np.float64] = weights @ (pixels * values) / (weights @ pixels)
        return means ** (1 / power)

    def _medians(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the angles that each row counts by bin."""
        ends = counts.cumsum(axis=1)
        half = ends[:, -1:] / 2
        bins = (ends < half).sum(axis=1)
        rows = np.arange(len(counts))
        inside = 1 - (ends[rows, bins] - half[:, 0]) / counts[rows, bins]
        return self.edges[bins] + inside * np.diff(self.edges)[bins]

    def show(self, task: Task, values: Map, truth: Map, mask: Mask) -> tuple[Map, Map, Map]:
        """Both as they are."""
        return truth, values, angles_between(values, truth) / np.float32(_SHOWN_ERROR)


def angles_between(first: Map, second: Map) -> Map:
    """Degrees between vectors [...,3], float32, by the arc cosine as the authors' code has it: in
    float32, so that angles below 0.1 degrees are rough alike.
    """
    units = [
        vectors / np.maximum(np.sqrt((vectors**2).sum(axis=-1, keepdims=True)), _LEAST_NORM)
        for vectors in (first.astype(np.float32), second.astype(np.float32))
    ]
    cosine = np.clip((units[0] * units[1]).sum(axis=-1), np.float32(-1), np.float32(1))
    return np.arccos(cosine) * np.float32(180) / np.float32(np.pi)


def pooled_median(keys: Iterable[Keys]) -> float:
    """The median of angles of which the keys are counted."""
    total = np.zeros((np.array([180.0], np.float32).view(np.uint32)[0] >> _SHIFT) + 2, np.int64)
    for present, counts in keys:
        total[present] += counts
    ends = total.cumsum()
    middle = (int(ends[-1]) - 1) // 2, int(ends[-1]) // 2
    return sum(_at_rank(total, ends, rank) for rank in middle) / 2


def _at_rank(total: NDArray[np.int64], ends: NDArray[np.int64], rank: int) -> float:
    """The angle of a rank, as if angles with one key lay evenly between its bounds."""
    key = int(np.searchsorted(ends, rank, side="right"))
    low, high = (
        float(np.array([bound << _SHIFT], np.uint32).view(np.float32)[0])
        for bound in (key, key + 1)
    )
    before = int(ends[key] - total[key])
    return low + (high - low) * (rank - before + 0.5) / int(total[key])


def _metrics(angles: Map) -> dict[str, float]:
    if not len(angles):
        return dict.fromkeys(METRICS, math.nan)
    exact = angles.astype(np.float64)
    return {
        "mean": float(exact.mean()),
        "median": float(np.median(angles)),
        "rmse": float(np.sqrt((exact**2).mean())),
        **{name: float(100 * (angles < limit).mean()) for name, limit in BELOW.items()},
    }
