"""Frames of a video as thumbnails, and how the maps of two of them are tied to each other."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]

FARTHEST = 1 / 3
"""Of the rows, and of the columns: what moved by more leaves two frames too little in common."""

_LONGEST = 96  # pixels of a thumbnail: a map of 768 pixels is shrunk 8 times
_STILL = 8  # levels of 255: a pixel whose colour changed less did not move
_KEPT = 0.7  # of those, the share whose residuals are smallest


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
        position = self.rgb[::2, ::2].reshape(-1, 3, 1).astype(np.float64) / 85  # 0..3
        share = np.maximum(1 - np.abs(position - np.arange(4)), 0)  # of each of 4, by pixel
        pairs = share[:, 0, :, None] * share[:, 1, None, :]
        histogram: Floats = (pairs.reshape(-1, 16).T @ share[:, 2]).ravel() / len(position)
        return histogram


def shrink(values: NDArray[np.float32], rgb: NDArray[np.uint8], time: float) -> Thumbnail:
    """A map [H,W] and its picture uint8 [H',W',3], which may be of another size, as means over
    blocks.
    """
    height, width = values.shape
    step = max(1, math.ceil(max(height, width) / _LONGEST))
    rows, columns = max(1, height // step), max(1, width // step)
    tall, wide = min(step, height), min(step, width)
    cut = values[: rows * tall, : columns * wide]
    # The rows of a block first: sums of long rows are fast, and of float32 exact enough.
    lines = np.add.reduce(cut.reshape(rows, tall, -1), axis=1)
    means = lines.reshape(rows, columns, wide).sum(2, dtype=np.float64) / (tall * wide)
    small = Image.fromarray(rgb)
    least = min(small.width // columns, small.height // rows)
    if least > 1:  # in whole steps: several times as fast
        small = small.reduce(least)
    small = small.resize((columns, rows), Image.Resampling.BOX)
    return Thumbnail(
        values=means.astype(np.float32),
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
    turned; `near` is a guess of that, within FARTHEST of both edges.

    Over pixels whose colour changed little, and of those the ones that agree best. The scale is the
    ratio of the standard deviations: least squares would make it too small by what the frames
    differ, again and again at each frame.
    """
    move = _find_move(_grey(first), _grey(second), near)
    place, colors = _overlap(first.rgb.astype(np.float32), move)
    changes = np.abs(colors - second.rgb[place])
    changed = np.maximum(np.maximum(changes[..., 0], changes[..., 1]), changes[..., 2])
    still = changed <= max(_STILL, float(np.median(changed)))
    target = _overlap(first.values, move)[1][still].astype(np.float64)
    values = second.values[place][still].astype(np.float64)
    scale, shift = _spreads(values, target)
    for _ in range(2):
        off = np.abs(scale * values + shift - target)
        most = int(_KEPT * (off.size - 1))
        kept = off <= np.partition(off, most)[most]
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
    return np.asarray(frame.rgb @ np.full(3, 1 / 3, np.float32))


def _find_move(
    first: NDArray[np.float32], second: NDArray[np.float32], near: tuple[float, float]
) -> tuple[float, float]:
    """Rows and columns by which the second picture lies farther on in the first: the one motion of
    all that fits best, by the gradients (Lucas and Kanade 1981). `near` where none does.
    """
    if min(second.shape) < 8:
        return (0.0, 0.0)
    move, most = np.array(near), np.array(second.shape) * FARTHEST
    for _ in range(5):
        place, seen = _overlap(first, (float(move[0]), float(move[1])))
        down, right = _slope(seen), _slope(seen.T).T
        left = second[place] - seen
        weight = 1 / (1 + (left * left) / 400)  # 20 levels: what differs more moved by itself
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


def _slope(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Differences along the first axis, central ones within."""
    slope = np.empty(picture.shape, np.float32)
    np.subtract(picture[2:], picture[:-2], out=slope[1:-1])
    slope[1:-1] *= np.float32(0.5)
    slope[0], slope[-1] = picture[1] - picture[0], picture[-1] - picture[-2]
    return slope


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
    middle, goal = float(values.mean()), float(target.mean())
    own, wanted = (
        math.sqrt(float(each @ each) / each.size) for each in (values - middle, target - goal)
    )
    scale = wanted / own if min(own, wanted) > 1e-6 else 1.0
    return scale, goal - scale * middle


def color_distance(first: Thumbnail, second: Thumbnail) -> float:
    """The share of the pixels by which the colours of two frames differ, wherever these are: 0 for
    the same, 1 for none in common.
    """
    return float(np.abs(first.histogram - second.histogram).sum() / 2)
