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

import functools
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]

_LONGEST = 96  # pixels of a thumbnail: a map of 768 pixels is shrunk 8 times
_STILL = 8  # levels of 255: a pixel whose colour changed less did not move
_KEPT = 0.7  # of those, the share whose residuals are smallest
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Thumbnail:
    """A frame, shrunk: `values` float32 [h,w] of its map and `rgb` uint8 [h,w,3]. `time` is in
    seconds.
    """

    values: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    time: float

    @functools.cached_property
    def histogram(self) -> Floats:
        """The share of each of 4 x 4 x 4 colours, of every second row and column; a colour between
        two counts for both.
        """
        position = self.rgb[::2, ::2].reshape(-1, 3).astype(np.float64) / 85  # 0..3
        floor = np.minimum(position.astype(np.intp), 2)
        above = position - floor
        histogram = np.zeros(64)
        for corner in np.ndindex(2, 2, 2):
            weight = np.where(np.array(corner, bool), above, 1 - above).prod(1)
            index = (floor + corner) @ np.array([16, 4, 1])
            histogram += np.bincount(index, weight, minlength=64)
        return histogram / len(position)


def shrink(values: NDArray[np.float32], rgb: NDArray[np.uint8], time: float) -> Thumbnail:
    """A map [H,W] and its picture uint8 [H',W',3], which may be of another size, as means over
    blocks.
    """
    height, width = values.shape
    step = max(1, math.ceil(max(height, width) / _LONGEST))
    rows, columns = max(1, height // step), max(1, width // step)
    cut = values[: rows * step, : columns * step]
    blocks = cut.reshape(rows, cut.shape[0] // rows, columns, cut.shape[1] // columns)
    small = Image.fromarray(rgb).resize((columns, rows), Image.Resampling.BOX, reducing_gap=2.0)
    return Thumbnail(
        values=blocks.mean((1, 3), dtype=np.float64).astype(np.float32),
        rgb=np.asarray(small, np.uint8),
        time=time,
    )


@dataclass(frozen=True, kw_only=True)
class Tie:
    """`first` = `scale` * `second` + `shift`, for what stands still between two frames. `residual`
    is the root mean square of what is left, as a share of the first's spread. `move`: how many rows
    and columns of the thumbnail farther on the first shows what the second does.
    """

    scale: float
    shift: float
    residual: float
    move: tuple[float, float] = (0.0, 0.0)


def tie(first: Thumbnail, second: Thumbnail, near: tuple[float, float] = (0.0, 0.0)) -> Tie:
    """Fit the map of the second frame to that of the first, the whole picture moved as the camera
    turned; `near` is a guess of that.

    Over pixels whose colour changed little, and of those the ones that agree best. The scale is the
    ratio of the standard deviations: least squares would make it too small by what the frames
    differ, again and again at each frame.
    """
    move = _find_move(_grey(first), _grey(second), near)
    place, colors = _overlap(first.rgb.astype(np.float32), move)
    changed = np.abs(colors - second.rgb[place]).max(-1)
    still = changed <= max(_STILL, float(np.median(changed)))
    target = _overlap(first.values, move)[1][still].astype(np.float64)
    values = second.values[place][still].astype(np.float64)
    scale, shift = _spreads(values, target)
    for _ in range(2):
        off = np.abs(scale * values + shift - target)
        kept = off <= np.quantile(off, _KEPT)
        scale, shift = _spreads(values[kept], target[kept])
    left = scale * values[kept] + shift - target[kept]
    spread = max(float(first.values.std()), 1e-6)
    return Tie(
        scale=scale,
        shift=shift,
        residual=float(np.sqrt((left * left).mean())) / spread,
        move=move,
    )


def _grey(frame: Thumbnail) -> NDArray[np.float32]:
    return np.asarray(frame.rgb.mean(-1, dtype=np.float32))


def _find_move(
    first: NDArray[np.float32], second: NDArray[np.float32], near: tuple[float, float]
) -> tuple[float, float]:
    """Rows and columns by which the second picture lies farther on in the first: the one motion of
    all that fits best, by the gradients (Lucas and Kanade 1981). `near` where none does.
    """
    if min(second.shape) < 8:
        return (0.0, 0.0)
    move, most = np.array(near), np.array(second.shape) / 3
    for _ in range(5):
        place, seen = _overlap(first, (float(move[0]), float(move[1])))
        down, right = np.gradient(seen)
        left = second[place] - seen
        weight = 1 / (1 + (left / 20) ** 2)  # levels: what differs more moved by itself
        gradients = np.stack([down.ravel(), right.ravel()])
        weighted = gradients * weight.ravel()
        matrix = weighted @ gradients.T
        size = float(np.trace(matrix))
        if size < second.size:  # gradients below one level a pixel: nothing to hold on to
            return near
        # Along stripes nothing tells the motion: there it stays as it is.
        step = np.linalg.solve(matrix + 0.01 * size * np.eye(2), weighted @ left.ravel())
        move = move + np.clip(step, -1, 1)
        if (np.abs(move) > most).any():
            return near
        if np.abs(step).max() < 0.01:
            break
    return float(move[0]), float(move[1])


def _overlap(
    array: NDArray[np.float32], move: tuple[float, float]
) -> tuple[tuple[slice, slice], NDArray[np.float32]]:
    """Where the array [h,w,...], moved back by `move`, covers the picture, and what it has there,
    bilinearly.
    """
    slices, answer = [], array
    for axis, by in enumerate(move):
        whole = math.floor(by)
        part = np.float32(by - whole)
        size = array.shape[axis]
        start, stop = max(0, -whole), min(size, size - 1 - whole)
        if whole == by:
            stop = min(size, size - whole)
        lower = answer.take(range(start + whole, stop + whole), axis)
        if part:
            upper = answer.take(range(start + whole + 1, stop + whole + 1), axis)
            lower = lower * (1 - part) + upper * part
        slices.append(slice(start, stop))
        answer = lower
    return (slices[0], slices[1]), answer


def _spreads(values: Floats, target: Floats) -> tuple[float, float]:
    """Scale and shift that give `values` the mean and the standard deviation of `target`."""
    own, wanted = float(values.std()), float(target.std())
    scale = wanted / own if min(own, wanted) > 1e-6 else 1.0
    return scale, float(target.mean() - scale * values.mean())


def color_distance(first: Thumbnail, second: Thumbnail) -> float:
    """The share of the pixels by which the colours of two frames differ, wherever these are: 0 for
    the same, 1 for none in common.
    """
    return float(np.abs(first.histogram - second.histogram).sum() / 2)


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

    Frames 1, 10 and 25 apart are tied to each other, within a shot. The scales solve the ties in
    the least-squares sense (their logarithms do: a clip cannot collapse), then the shifts. Ties
    that fit badly count less, by Huber's weights. One range of colours holds for a shot: in none of
    its frames more than 2 % of the pixels lie beyond either end of it. Of the frames no more than
    the last 25 are held.
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
        for span in _SPANS:
            if span <= len(self.recent):
                known = before if span == 1 else None
                found = known or tie(self.recent[-span], thumbnail, self._moved_since(span))
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
    return Thumbnail(values=values, rgb=thumbnail.rgb, time=thumbnail.time)
