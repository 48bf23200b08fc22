"""From an affine map to depth: scale and shift out of known distances, robustly.

In the space of its task (runtime/spaces.py) a map is affine to depth:

    depth ** power = scale * value + shift        scale > 0; power 1 (depth) or -1 (disparity)

`Alignment` is such a pair with how it was found. `align` fits it to known distances;
runtime/calibration.py finds it without any.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from runtime.errors import GeometryError
from runtime.geometry import Map, Mask
from runtime.robust import Floats, fit_line, fit_ratio
from runtime.spaces import find_space

RELATIVE = "median depth = 1"
"""The unit of depth where nothing metric is known."""
GUESSED_RATIO = 4.0
"""Farthest to nearest depth (percentiles 99 and 1) where nothing at all is known."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How a map becomes depth.

    `space` is that of the task ("depth", "disparity"). `unit` is "m", another unit of the known
    distances, or RELATIVE. `method` says in words how scale and shift were found. `residual` is the
    median relative error of what was fitted, over the `inliers` of `candidates` that count; NaN
    where nothing was fitted. `turned` is the median angle in degrees between given normals and
    those of the depth; NaN where normals did not serve. `fallback` says why nothing better was
    possible; None otherwise.
    """

    space: str
    scale: float
    shift: float
    unit: str
    method: str
    residual: float
    inliers: int
    candidates: int
    turned: float = float("nan")
    fallback: str | None = None

    def depth(self, values: Map) -> NDArray[np.float32]:
        """Depth float32 [H,W] in `unit`; NaN where it is not positive: infinitely far."""
        affine = self.scale * np.asarray(values, np.float64) + self.shift
        return find_space(self.space).to_depth(affine).astype(np.float32)

    @property
    def metric(self) -> bool:
        """Whether depth is in a unit of length."""
        return self.unit != RELATIVE

    @property
    def offset(self) -> float:
        """shift / scale: what a value lacks to be proportional. It alone bends planes."""
        return self.shift / self.scale

    def scaled(self, factor: float, unit: str, method: str) -> Alignment:
        """With every depth times `factor`, then in `unit`. Raises: GeometryError."""
        if not (np.isfinite(factor) and factor > 0):
            raise GeometryError(f"depth cannot be scaled by {factor}")
        by = float(factor) ** find_space(self.space).power
        return replace(self, scale=self.scale * by, shift=self.shift * by, unit=unit, method=method)


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """Known depth at some pixels: u, v and depth, each [N], in pixels (the centre of the first
    pixel is at 0.5) and in `unit`. Depth is along the camera's axis, as a depth camera gives it.

    Depth that is NaN or zero is left out. Raises: GeometryError for shapes that differ, and for
    negative or infinite depth.
    """

    u: Map
    v: Map
    depth: Map
    unit: str = "m"

    def __post_init__(self) -> None:
        arrays = []
        for name in ("u", "v", "depth"):
            try:
                arrays.append(np.asarray(getattr(self, name), np.float64).reshape(-1))
            except (TypeError, ValueError) as error:
                raise GeometryError(f"anchors are numbers: {error}") from error
        if len({len(array) for array in arrays}) != 1:
            raise GeometryError(
                f"anchors need as many u and v as depths, found {[len(array) for array in arrays]}"
            )
        bad = (arrays[2] < 0) | np.isinf(arrays[2])
        if bad.any():
            raise GeometryError(
                f"the depth of an anchor is positive, found {arrays[2][bad][0]:g}; anchors behind "
                "the camera, or in another axis convention?"
            )
        with np.errstate(invalid="ignore"):
            kept = np.isfinite(arrays[0]) & np.isfinite(arrays[1]) & (arrays[2] > 0)
        for name, array in zip(("u", "v", "depth"), arrays, strict=True):
            object.__setattr__(self, name, array[kept])

    @classmethod
    def from_map(cls, depth: Map, mask: Mask | None = None, unit: str = "m") -> Anchors:
        """From a depth map [H,W] of the same picture; what is not positive is not known."""
        depth = np.asarray(depth, np.float64)
        with np.errstate(invalid="ignore"):
            kept = np.isfinite(depth) & (depth > 0)
        if mask is not None:
            kept &= np.asarray(mask, np.bool_)
        rows, columns = np.nonzero(kept)
        return cls(u=columns + 0.5, v=rows + 0.5, depth=depth[kept], unit=unit)


def align(
    values: Map,
    space: str,
    anchors: Anchors,
    *,
    offset: float | None = None,
    scale: float | None = None,
) -> Alignment:
    """Scale and shift of a map [H,W] from known distances, with up to half of them wrong.

    A start by the least median of squares, then iteratively reweighted least squares (Huber, at 1.5
    times the MAD) over what lies near it. With `offset` (shift / scale, as `calibrate` finds it)
    only the scale is fitted, for which one anchor is enough; with `scale` only the shift.

    Raises: GeometryError for too few anchors on the picture, anchors that do not determine the
    answer (all on one depth), and anchors that contradict the map (near where it says far).
    """
    seen, depth = _seen(values, anchors, 2 if offset is None and scale is None else 1)
    target = find_space(space).of_depth(depth)
    if offset is not None:
        fit = fit_ratio(seen + offset, target)
        found = (fit.slope, fit.slope * offset)
    elif scale is not None:
        fit = fit_ratio(np.ones_like(seen), target - scale * seen)
        found = (scale, fit.slope)
    else:
        if np.ptp(seen) < 1e-6 or np.ptp(target) < 1e-9 * np.abs(target).max():
            raise GeometryError(
                f"all {len(seen)} known distances lie at one depth: they give no scale and shift. "
                "Add one that is nearer or farther"
            )
        fit = fit_line(seen, target)
        found = (fit.slope, fit.intercept)
    if not (np.isfinite(found).all() and found[0] > 0):
        raise GeometryError(
            f"the known distances contradict the map: by them what it says is near would be far "
            f"(scale {found[0]:.3g}). Are they of this picture, as (u, v, depth)?"
        )
    what = "scale" if offset is not None else "shift" if scale is not None else "scale and shift"
    answer = Alignment(
        space=space,
        scale=found[0],
        shift=found[1],
        unit=anchors.unit,
        method=f"{what} from {len(seen)} known distance{'s' if len(seen) > 1 else ''}",
        residual=np.nan,
        inliers=int(fit.inliers.sum()),
        candidates=len(seen),
    )
    fitted = answer.depth(seen[fit.inliers])
    off = np.abs(fitted / depth[fit.inliers] - 1)
    return replace(answer, residual=float(np.nanmedian(off)) if np.isfinite(off).any() else np.nan)


def _seen(values: Map, anchors: Anchors, least: int) -> tuple[Floats, Floats]:
    """The map's values at the anchors and their depth, both [N], of those on the picture."""
    height, width = values.shape
    inside = (anchors.u >= 0) & (anchors.u < width) & (anchors.v >= 0) & (anchors.v < height)
    rows, columns = (
        np.floor(numbers[inside]).astype(np.intp) for numbers in (anchors.v, anchors.u)
    )
    seen = np.asarray(values, np.float64)[rows, columns]
    depth = np.asarray(anchors.depth[inside][np.isfinite(seen)], np.float64)
    seen = seen[np.isfinite(seen)]
    if len(seen) < least:
        raise GeometryError(
            f"{least} known distance(s) on the picture are needed, found {len(seen)} of "
            f"{len(anchors.depth)} on its {width}x{height} pixels"
        )
    return seen, depth


def guess(values: Map, space: str, ratio: float = GUESSED_RATIO, reason: str = "") -> Alignment:
    """The shift that puts the farthest 1 % of a map at `ratio` times the nearest. A picture, not a
    measurement, and labelled so: `fallback` is set. Raises: GeometryError for a flat map.
    """
    if not ratio > 1:
        raise GeometryError(f"the farthest is more than 1 times as far as the nearest, not {ratio}")
    low, high = _percentiles(values)
    # (high + offset) / (low + offset) = ratio
    offset = (high - ratio * low) / (ratio - 1)
    return relative(
        values,
        Alignment(
            space=space,
            scale=1.0,
            shift=offset,
            unit=RELATIVE,
            method=f"guess: farthest {ratio:g} times as far as nearest",
            residual=float("nan"),
            inliers=0,
            candidates=0,
            fallback=reason or "neither distances nor normals were given",
        ),
    )


def relative(values: Map, alignment: Alignment) -> Alignment:
    """Scaled so that the median depth of the map is 1."""
    middle = float(np.nanmedian(alignment.depth(values)))
    return alignment.scaled(1 / middle, RELATIVE, alignment.method)


def _percentiles(values: Map) -> tuple[float, float]:
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 0.0)
    if not high - low > 1e-6:
        raise GeometryError("the map says the same everywhere: there is no shape in it")
    return float(low), float(high)
