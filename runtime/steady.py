"""Steady maps of a video: one scale, one shift and one range of colours that hold from frame to
frame, without retraining.

A network that answers one picture at a time gives each frame a scale and a shift of its own, and
they wander: a wall that stands still flickers. `Causal` looks back only, for cameras. `plan_clip`
looks at a whole file. Both see the frames as thumbnails and answer a `Step` for each:

    steady = step.scale * values + step.shift

An affine change of each frame is all that is done, so a frame's own shape, and its accuracy after
an alignment of its own, stay as they are. Maps that are not affine to depth, as normals, need none.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.thumbnails import FARTHEST, Floats, Thumbnail, Tie, color_distance, shrink, tie

__all__ = [
    "Causal",
    "Step",
    "Thumbnail",
    "is_other_scene",
    "plan_clip",
    "shrink",
    "solve_chain",
]

_SCALES = (0.5, 2.0)  # a change of scale beyond these is no fit
_PULL = 0.02  # of the way back to what the network said, at each frame
_SPANS = (1, 10, 25)  # frames between which a clip is tied together
_WEAK = 1e-5  # of a tie's weight: keeps a clip where the network put it
_EXACT = 2e-3  # below it what ties say of each other is rounding
_CUT = 0.5  # of the pixels have another colour
_MAYBE_CUT = 0.2  # and then also a residual that is an order above those before
_FADE = 0.9  # of the range of colours stays, at 30 frames a second
_PERCENTILES = (2.0, 98.0)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one frame's map needs: `scale` and `shift`, and `low` and `high`, the values between
    which colours run, after them. `cut`: the first frame of a shot.
    """

    scale: float
    shift: float
    low: float
    high: float
    cut: bool

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The steady map, float32 of the same shape."""
        if self.scale == 1 and self.shift == 0:
            return values
        steady: NDArray[np.float32] = values * np.float32(self.scale) + np.float32(self.shift)
        return steady


@dataclass(kw_only=True)
class Causal:
    """Steps one frame after the other, from what came before: for cameras.

    `fit=False` leaves the maps as they are; cuts and the range of colours are found all the same.
    """

    fit: bool = True
    _before: Thumbnail | None = None
    _step: Step = field(
        default_factory=lambda: Step(scale=1.0, shift=0.0, low=0.0, high=1.0, cut=True)
    )
    _residuals: list[float] = field(default_factory=list)

    def __call__(self, thumbnail: Thumbnail) -> Step:
        """The step of the next frame."""
        scale, shift, cut = self._fit(thumbnail)
        low, high = (scale * bound + shift for bound in _range(thumbnail.values))
        if not cut and self._before is not None:
            seconds = min(max(thumbnail.time - self._before.time, 0.0), 1.0)
            stays = _FADE ** (30 * seconds)
            low = stays * self._step.low + (1 - stays) * low
            high = stays * self._step.high + (1 - stays) * high
        self._step = Step(scale=scale, shift=shift, low=low, high=high, cut=cut)
        self._before = _moved(thumbnail, scale, shift)
        return self._step

    def _fit(self, thumbnail: Thumbnail) -> tuple[float, float, bool]:
        before = self._before
        if before is None or before.values.shape != thumbnail.values.shape:
            return 1.0, 0.0, True
        found = tie(before, thumbnail)
        if _is_cut(before, thumbnail, found, self._residuals):
            self._residuals.clear()
            return 1.0, 0.0, True
        self._residuals.append(found.residual)
        del self._residuals[:-30]
        if not self.fit:
            return 1.0, 0.0, False
        if not _SCALES[0] <= found.scale <= _SCALES[1]:
            return self._step.scale, self._step.shift, False
        return found.scale ** (1 - _PULL), found.shift * (1 - _PULL), False

    def state(self) -> dict[str, NDArray[Any]]:
        """All that is remembered, as arrays by name, so that another process can go on."""
        arrays: dict[str, NDArray[Any]] = {
            "step": np.array([*asdict(self._step).values()], np.float64),
            "residuals": np.array(self._residuals, np.float64),
        }
        if self._before is not None:
            before = self._before
            arrays |= {"values": before.values, "rgb": before.rgb, "time": np.array(before.time)}
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` gave."""
        scale, shift, low, high, cut = map(float, arrays["step"])
        self._step = Step(scale=scale, shift=shift, low=low, high=high, cut=bool(cut))
        self._residuals = [*map(float, arrays["residuals"])]
        self._before = None
        if "values" in arrays:
            self._before = Thumbnail(
                values=arrays["values"], rgb=arrays["rgb"], time=float(arrays["time"])
            )


def plan_clip(thumbnails: Iterable[Thumbnail]) -> list[Step]:
    """The steps of all frames of a file, each found with those before and after it.

    Frames 1, 10 and 25 apart are tied to each other, within a shot and while a camera that turns
    leaves two thirds of what they show in common. The scales solve the ties in the least-squares
    sense (their logarithms do: a clip cannot collapse), then the shifts. Ties that fit badly count
    less, by Huber's weights. One range of colours holds for a shot: in none of its frames more than
    2 % of the pixels lie beyond either end of it. Of the frames no more than the last 25 are held.
    """
    shots: list[_Shot] = []
    residuals: list[float] = []
    for thumbnail in thumbnails:
        before = shots[-1].recent[-1] if shots else None
        found = None
        if before is not None and before.values.shape == thumbnail.values.shape:
            found = tie(before, thumbnail)
            if _is_cut(before, thumbnail, found, residuals):
                found = None
        if found is None:
            if shots:
                shots[-1].recent.clear()
            shots.append(_Shot())
            residuals.clear()
        else:
            residuals.append(found.residual)
            del residuals[:-30]
        shots[-1].add(thumbnail, found)
    return [step for shot in shots for step in shot.solve()]


@dataclass(kw_only=True)
class _Shot:
    """The ties between the frames of a shot, and each frame's own range of values."""

    recent: deque[Thumbnail] = field(default_factory=lambda: deque(maxlen=max(_SPANS)))
    ranges: list[tuple[float, float]] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)
    moves: list[tuple[float, float]] = field(default_factory=list)

    def add(self, thumbnail: Thumbnail, before: Tie | None) -> None:
        """The next frame; `before` ties it to the one before."""
        number = len(self.ranges)
        self.moves.append(before.move if before else (0.0, 0.0))
        most = np.array(thumbnail.values.shape) * FARTHEST
        for span in _SPANS:
            moved = self._moved_since(span)
            if span > len(self.recent) or (np.abs(moved) > most).any():
                continue
            known = before if span == 1 else None
            found = known or tie(self.recent[-span], thumbnail, moved)
            if _SCALES[0] <= found.scale <= _SCALES[1]:
                self.pairs.append((number - span, number))
                self.ties.append(found)
        self.ranges.append(_range(thumbnail.values))
        self.recent.append(thumbnail)

    def _moved_since(self, span: int) -> tuple[float, float]:
        """How far the picture moved since so many frames ago, by the moves from frame to frame."""
        rows, columns = np.array(self.moves[-span:]).sum(0)
        return float(rows), float(columns)

    def solve(self) -> list[Step]:
        count = len(self.ranges)
        pairs = np.array(self.pairs, np.intp).reshape(-1, 2)
        trust = np.array([1 / max(each.residual, 1e-3) ** 2 for each in self.ties])
        trust /= trust.mean() if len(trust) else 1.0
        ratios = np.log([each.scale for each in self.ties])
        scales = np.exp(solve_chain(count, pairs, ratios, trust))
        steps = scales[pairs[:, 0]] * np.array([each.shift for each in self.ties])
        shifts = solve_chain(count, pairs, steps, trust)
        bounds = np.array(self.ranges) * scales[:, None] + shifts[:, None]
        low, high = float(bounds[:, 0].min()), float(bounds[:, 1].max())
        return [
            Step(scale=float(scale), shift=float(shift), low=low, high=high, cut=number == 0)
            for number, (scale, shift) in enumerate(zip(scales, shifts, strict=True))
        ]


def solve_chain(count: int, pairs: NDArray[np.intp], differences: Floats, trust: Floats) -> Floats:
    """Numbers x [count] with x[j] - x[i] = difference for each pair (i, j) [P,2], i < j, in the
    least-squares sense with Huber's weights, and all of them weakly pulled to 0.

    The matrix is banded; time and memory grow with `count`.
    """
    x = np.zeros(count)
    if not len(pairs):
        return x
    first, second = pairs.T
    width = int((second - first).max()) + 1
    for _ in range(10):
        off = np.abs(x[second] - x[first] - differences)
        limit = max(1.5 * float(np.median(off)), _EXACT)
        weight = trust * np.minimum(1, limit / np.maximum(off, 1e-12))
        bands = np.zeros((count, width))  # bands[i, d] is the matrix at (i, i + d)
        right = np.zeros(count)
        bands[:, 0] = _WEAK
        np.add.at(bands, (first, 0), weight)
        np.add.at(bands, (second, 0), weight)
        np.add.at(bands, (first, second - first), -weight)
        np.add.at(right, second, weight * differences)
        np.add.at(right, first, -weight * differences)
        before, x = x, _solve_banded(bands, right)
        if np.abs(x - before).max() < 1e-9:
            break
    return x


def _solve_banded(bands: Floats, right: Floats) -> Floats:
    """Solve a symmetric, positive definite, banded system; `bands[i, d]` is at (i, i + d)."""
    count, width = bands.shape
    upper = np.zeros((count + width, width))
    upper[:count] = bands
    flat = upper.reshape(-1)
    x = np.concatenate([right, np.zeros(width)])
    # Row i changes the elements (i + down, i + to) below it, of which the upper half is stored.
    down, to = np.triu_indices(width - 1)
    down, to = down + 1, to + 1
    places = down * width + to - down
    for i in range(count):  # Gaussian elimination
        row = upper[i, 1:] / upper[i, 0]
        flat[i * width + places] -= row[down - 1] * upper[i, to]
        x[i + 1 : i + width] -= row * x[i]
    for i in range(count - 1, -1, -1):
        x[i] = (x[i] - upper[i, 1:] @ x[i + 1 : i + width]) / upper[i, 0]
    return x[:count]


def is_other_scene(before: Thumbnail, after: Thumbnail) -> bool:
    """Whether the colours alone tell that a cut lies between two frames."""
    return color_distance(before, after) > _CUT


def _is_cut(before: Thumbnail, after: Thumbnail, found: Tie, residuals: Sequence[float]) -> bool:
    distance = color_distance(before, after)
    if distance > _CUT:
        return True
    usual = float(np.median(residuals)) if len(residuals) >= 5 else math.inf
    return distance > _MAYBE_CUT and found.residual > 10 * max(usual, 0.01)


def _range(values: NDArray[np.float32]) -> tuple[float, float]:
    low, high = np.percentile(values, _PERCENTILES)
    return float(low), float(high)


def _moved(thumbnail: Thumbnail, scale: float, shift: float) -> Thumbnail:
    values = thumbnail.values * np.float32(scale) + np.float32(shift)
    moved = replace(thumbnail, values=values)
    moved.__dict__["histogram"] = thumbnail.histogram  # the colours are the same
    return moved
