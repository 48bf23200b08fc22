"""The protocol for depth, which follows Marigold: aligned by least squares, clipped to the set's
range, measured for each picture, averaged over pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.protocol import Fed, Keys, Map, Mask, Measured, Record, resize_planes
from benchmarks.metrics import LEAST_DISPARITY, least_squares
from runtime.spaces import find_space
from runtime.tasks import Task

METRICS = (
    "abs_rel",
    "sq_rel",
    "rmse",
    "rmse_log",
    "log10",
    "delta1",
    "delta2",
    "delta3",
    "i_rmse",
    "silog",
)
_LEAST_DEPTH = 1e-6
_BLOCK = 1 << 20  # pixels that are measured at once
_SHOWN_ERROR = 0.3  # relative; the end of the sheet's scale


@dataclass(frozen=True, kw_only=True)
class DepthProtocol:
    """Depth counts between `nearest` and `farthest`, in metres, as the set's mask says, and
    aligned predictions are clipped to them.

    `longer_edge`: the size at which pictures go in, None for their own. `alignment_edge`: scale and
    shift are fitted on maps of at most this many columns, None for all of them.
    """

    nearest: float
    farthest: float
    longer_edge: int | None = None
    alignment_edge: int | None = None

    ranked_by = "abs_rel"
    headline = {"abs_rel": 100.0, "delta1": 100.0}
    titles = {"abs_rel": "AbsRel, %", "delta1": "delta1, %"}
    edges = np.geomspace(1e-4, 10, 51)
    error_name = "|d - d*| / d* of a pixel"
    shown_error = f"{_SHOWN_ERROR:.0%}"

    def inside(self, depth: Map) -> Mask:
        """Pixels [H,W] whose depth lies between `nearest` and `farthest`."""
        return np.asarray((depth > self.nearest) & (depth < self.farthest))

    def feed(self, image: NDArray[np.uint8]) -> Fed:
        """The picture at its own size, or with its longer edge at `longer_edge`."""
        height, width = image.shape[:2]
        if self.longer_edge is None:
            return Fed(picture=image, height=height, width=width, restore=lambda values: values)
        factor = min(self.longer_edge / width, self.longer_edge / height)
        inner = max(1, int(height * factor)), max(1, int(width * factor))
        resized = np.rint(resize_planes(image, *inner)).astype(np.uint8)
        return Fed(
            picture=resized,
            height=inner[0],
            width=inner[1],
            restore=lambda values: resize_planes(values, height, width),
        )

    def measure(self, task: Task, values: Map, truth: Map, mask: Mask) -> Measured:
        """All of METRICS, of an affine map [H,W] in the task's space."""
        scale, shift = self._fit(task, values, truth, mask)
        counted = _usable(truth, mask)
        guesses, depths = values[counted], truth[counted]
        sums, counts = np.zeros(len(METRICS) + 1), np.zeros(len(self.edges) - 1, np.int64)
        for start in range(0, len(depths), _BLOCK):
            block = slice(start, start + _BLOCK)
            depth = depths[block].astype(np.float64)
            aligned = self._to_depth(task, guesses[block], scale, shift)
            sums += _sums(aligned, depth)
            errors = np.clip(np.abs(aligned - depth) / depth, self.edges[0], self.edges[-1])
            counts += np.histogram(errors, self.edges)[0]
        return Measured(metrics=_metrics(sums, len(depths)), pixels=len(depths), counts=counts)

    def pool(self, records: Sequence[Record], load: Callable[[Record], Keys]) -> dict[str, float]:
        """The mean over the pictures."""
        counted = [record["metrics"] for record in records if record["pixels"]]
        return {
            name: float(np.mean([metrics[name] for metrics in counted])) if counted else math.nan
            for name in METRICS
        }

    def resample(
        self, metric: str, records: Sequence[Record], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Means over the pictures of each set."""
        values = np.array([record["metrics"][metric] for record in records])
        means: NDArray[np.float64] = weights @ values / weights.sum(axis=1)
        return means

    def show(self, task: Task, values: Map, truth: Map, mask: Mask) -> tuple[Map, Map, Map]:
        """Both in the task's space, clipped to the truth's range."""
        counted = _usable(truth, mask)
        space = find_space(task.space)
        aligned = self._to_depth(task, values, *self._fit(task, values, truth, mask))
        low, high = (truth[counted].min(), truth[counted].max()) if counted.any() else (1.0, 2.0)
        depth = np.where(counted, truth, high)
        errors = np.abs(aligned - depth) / depth / _SHOWN_ERROR
        shown = [space.of_depth(np.clip(each, low, high)) for each in (depth, aligned)]
        return shown[0].astype(np.float32), shown[1].astype(np.float32), errors.astype(np.float32)

    def _fit(self, task: Task, values: Map, truth: Map, mask: Mask) -> tuple[float, float]:
        """Scale and shift that bring values into the task's space."""
        space = find_space(task.space)
        if self.alignment_edge is not None:
            columns = nearest_columns(*truth.shape, self.alignment_edge)
            values, truth, mask = values[:, columns], truth[:, columns], mask[:, columns]
        fitted = _usable(truth, mask)
        if space.power < 0:
            fitted &= values > 0
        return least_squares(values[fitted].astype(np.float64), space.of_depth(truth[fitted]))

    def _to_depth(self, task: Task, values: Map, scale: float, shift: float) -> NDArray[np.float64]:
        aligned = scale * values.astype(np.float64) + shift
        if find_space(task.space).power < 0:
            aligned = 1 / np.maximum(aligned, LEAST_DISPARITY)
        return np.maximum(np.clip(aligned, self.nearest, self.farthest), _LEAST_DEPTH)


def nearest_columns(height: int, width: int, edge: int) -> NDArray[np.intp]:
    """The columns on which the authors' code aligns a map larger than `edge`.

    It shrinks with PyTorch's nearest `Upsample`, which takes the rows of a [1,H,W] for channels: so
    columns alone are left out, by a factor that the longer edge decides.
    """
    factor = min(edge / height, edge / width)
    if factor >= 1:
        return np.arange(width)
    position = np.arange(math.floor(width * factor), dtype=np.float32) * np.float32(1 / factor)
    return np.minimum(position.astype(np.intp), width - 1)


def _usable(truth: Map, mask: Mask) -> Mask:
    usable: Mask = mask & (truth > 0) & np.isfinite(truth)
    return usable


def _sums(depth: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of which `_metrics` makes the metrics, in their order, and last the sum of log errors."""
    error, log = np.abs(depth - true), np.log(depth / true)
    log_squares = (log**2).sum()
    ratio = np.maximum(depth / true, true / depth)
    return np.array(
        [
            (error / true).sum(),
            (error**2 / true).sum(),
            (error**2).sum(),
            log_squares,
            np.abs(log).sum() / math.log(10),
            *((ratio < 1.25**power).sum() for power in (1, 2, 3)),
            ((1 / depth - 1 / true) ** 2).sum(),
            log_squares,
            log.sum(),
        ]
    )


def _metrics(sums: NDArray[np.float64], pixels: int) -> dict[str, float]:
    if not pixels:
        return dict.fromkeys(METRICS, math.nan)
    *means, log = (float(each) for each in sums / pixels)
    metrics = dict(zip(METRICS, means, strict=True))
    metrics["silog"] = 100 * math.sqrt(max(metrics["silog"] - log**2, 0.0))
    return metrics | {name: math.sqrt(metrics[name]) for name in ("rmse", "rmse_log", "i_rmse")}
