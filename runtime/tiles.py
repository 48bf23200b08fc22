"""Large pictures: the whole picture once for its structure, then overlapping tiles for its detail.

Each tile is a crop of the picture, at the picture's own resolution. Its map is brought to that of
the whole picture by the task's `align`, over its own pixels at the resolution that both have, since
scale and shift differ from crop to crop. What changes slowly, over more than a quarter of a tile,
is that of the whole picture: a crop does not show how its parts stand to the rest. Tiles are
blended with raised-cosine weights that add up to 1 at each pixel:

    aligned = scale * tile + shift
    detailed = aligned + low(whole - aligned)
    result = sum over tiles of weight * detailed

A tile whose map does not agree with that of the whole picture is refused, and the latter takes its
place there. Beside the result, memory is that of one row of tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.tasks import TASKS, Answer, Box, Resize, Task

Predict: TypeAlias = Callable[[list[NDArray[np.uint8]]], list[dict[str, Answer]]]
"""Pictures uint8 [h,w,3] to the answers for each task. A map has the size of its picture where that
fits into the bucket; else the size to which the picture was scaled down."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of tiles that are done, and of all."""

_OVERLAP = 0.25  # of a tile's edge, at least
_LEAST_R_SQUARED = 0.5  # of a tile whose map is believed
_CELLS = 4  # along a tile's edge, over which the whole picture's map has its way


@dataclass(frozen=True, kw_only=True)
class Tiled:
    """How a map came out of tiles: their number (0 for a picture that fits the bucket), and for
    each task how many were refused, where the map of the whole picture stands.
    """

    tiles: int
    refused: dict[str, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledAnswer:
    """Values [H,W] or [H,W,C] by task; for an ensemble the uncertainty [H,W] too."""

    values: dict[str, NDArray[np.float32]]
    uncertainty: dict[str, NDArray[np.float32]]
    tiled: Tiled


def predict_tiles(
    rgb: NDArray[np.uint8],
    size: tuple[int, int],
    predict: Predict,
    *,
    resize: Resize = "bilinear",
    at_once: int = 1,
    progress: Progress = lambda done, total: None,
) -> TiledAnswer:
    """The values of a picture uint8 [H,W,3] of any size, at its own resolution.

    `size` is the height and width of a tile, `resize` how the map of the whole picture is enlarged,
    `at_once` the number of tiles that `predict` is given at once.
    """
    height, width = rgb.shape[:2]
    rows, columns = Axis.cover(height, size[0]), Axis.cover(width, size[1])
    (whole,) = predict([rgb])
    canvases = {
        name: _Canvas(TASKS[name], answer, (height, width), rows.tile, resize)
        for name, answer in whole.items()
    }
    several = len(rows) * len(columns) > 1
    places = [(y, x) for y in range(len(rows)) for x in range(len(columns))] if several else []
    for at in range(0, len(places), at_once):
        group = places[at : at + at_once]
        crops = [rgb[rows.at(y), columns.at(x)] for y, x in group]
        for (y, x), answers in zip(group, predict(crops), strict=True):
            weight = rows.weights[y][:, None] * columns.weights[x]
            for name, answer in answers.items():
                canvases[name].add(answer, rows.starts[y], columns.starts[x], weight)
        progress(at + len(group), len(places))
    for canvas in canvases.values():
        canvas.finish(blank=not several)
    return TiledAnswer(
        values={name: canvas.values for name, canvas in canvases.items()},
        uncertainty={
            name: canvas.uncertainty
            for name, canvas in canvases.items()
            if canvas.uncertainty is not None
        },
        tiled=Tiled(
            tiles=len(places),
            refused={name: canvas.refused for name, canvas in canvases.items()},
        ),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Axis:
    """How tiles cover one axis: they start at `starts`, are `tile` pixels long, and each has
    `weights` float32 [tile] that add up to 1 at every pixel.
    """

    tile: int
    starts: list[int]
    weights: list[NDArray[np.float32]]

    @classmethod
    def cover(cls, length: int, tile: int) -> Axis:
        """The fewest tiles that overlap by a quarter at least, spread evenly."""
        tile = min(tile, length)
        step = max(1, math.floor(tile * (1 - _OVERLAP)))
        count = 1 + math.ceil((length - tile) / step)
        starts = [round(number * (length - tile) / max(1, count - 1)) for number in range(count)]
        raised = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
        total = np.zeros(length)
        for start in starts:
            total[start : start + tile] += raised
        weights = [np.asarray(raised / total[start : start + tile], np.float32) for start in starts]
        return cls(tile=tile, starts=starts, weights=weights)

    def __len__(self) -> int:
        return len(self.starts)

    def at(self, number: int) -> slice:
        """The pixels of a tile."""
        return slice(self.starts[number], self.starts[number] + self.tile)


class _Canvas:
    """One task's result: rows of it that tiles still add to, and above them finished values."""

    def __init__(
        self, task: Task, whole: Answer, size: tuple[int, int], rows: int, resize: Resize
    ) -> None:
        self._task, self._whole, self._size, self._resize = task, whole, size, resize
        self._top = 0  # the picture's row at which the open ones begin
        self._map = np.zeros((task.channels, rows, size[1]), np.float32)
        of_values = size if task.channels == 1 else (*size, task.channels)
        self.values = np.zeros(of_values, np.float32)
        self._spread = self.uncertainty = None
        if whole.spread is not None:
            self._spread = np.zeros((1, rows, size[1]), np.float32)
            self.uncertainty = np.zeros(size, np.float32)
        self.refused = 0

    def add(self, tile: Answer, top: int, left: int, weight: NDArray[np.float32]) -> None:
        """Add a tile's answer, or that of the whole picture where the tile is refused. Tiles come
        row by row.
        """
        if top > self._top:
            self._move_to(top)
        task, where = self._task, (top, left, *weight.shape)
        reference = task.canonical(self._enlarged(self._whole.map, *where))
        found = task.canonical(tile.map)
        alignment = task.align(self._coarse(found), self._coarse(reference))
        believed = alignment.scale > 0 and alignment.r_squared >= _LEAST_R_SQUARED
        self.refused += not believed
        columns = slice(left, left + weight.shape[1])
        if believed:
            found = alignment.apply(found)
            reference = found + self._low(reference - found)
        self._map[:, :, columns] += weight * reference
        if self._spread is None or self._whole.spread is None or tile.spread is None:
            return
        self._spread[:, :, columns] += weight * (
            tile.spread * np.float32(alignment.scale)
            if believed
            else self._enlarged(self._whole.spread, *where)
        )

    def finish(self, *, blank: bool) -> None:
        """Bring the last rows into the values. `blank`: there were no tiles."""
        height, width = self._size
        if blank:
            self._map = self._enlarged(self._whole.map, 0, 0, height, width)
            if self._whole.spread is not None:
                self._spread = self._enlarged(self._whole.spread, 0, 0, height, width)
        self._move_to(height)

    def _move_to(self, top: int) -> None:
        """Finish the rows above `top`: no tile adds to them any more."""
        done, at = top - self._top, slice(self._top, top)
        self.values[at] = self._task.decode(self._map[:, :done])
        _shift(self._map, done)
        if self._spread is not None and self.uncertainty is not None:
            values, spread = self.values[at], self._spread[0, :done]
            self.uncertainty[at] = self._task.uncertainty(values, spread)
            _shift(self._spread, done)
        self._top = top

    def _coarse(self, tile: NDArray[np.float32]) -> NDArray[np.float32]:
        """A tile's map at the resolution of the whole picture's, which knows no more detail: the
        tile's own would count as noise, and lower its scale.
        """
        height, width = (
            max(2, round(edge * known / size))
            for edge, known, size in zip(
                tile.shape[1:], self._whole.map.shape[1:], self._size, strict=True
            )
        )
        small = self._task.resize(tile, height, width, "bilinear")
        return self._task.canonical(small)

    def _low(self, difference: NDArray[np.float32]) -> NDArray[np.float32]:
        """What changes slowly in a map."""
        height, width = difference.shape[1:]
        small = self._task.resize(difference, min(_CELLS, height), min(_CELLS, width), "bilinear")
        return self._task.resize(small, height, width, "bilinear")

    def _enlarged(
        self, plane: NDArray[np.float32], top: int, left: int, height: int, width: int
    ) -> NDArray[np.float32]:
        """What the map of the whole picture says of these pixels of the picture."""
        down, right = (plane.shape[1 + axis] / self._size[axis] for axis in (0, 1))
        # No further than the map by rounding.
        bottom = min((top + height) * down, plane.shape[1])
        box: Box = (left * right, top * down, min((left + width) * right, plane.shape[2]), bottom)
        return self._task.resize(plane, height, width, self._resize, box)


def _shift(rows: NDArray[np.float32], count: int) -> None:
    """Move rows [C,H,W] up by `count`; empty ones follow."""
    left = rows.shape[1] - count
    rows[:, :left] = rows[:, count:]
    rows[:, left:] = 0
