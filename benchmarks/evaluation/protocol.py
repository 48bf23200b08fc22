"""What a protocol of evaluation decides: what goes into the network, and which numbers come out."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.image import ImageLike
from runtime.tasks import Task

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
Record = dict[str, Any]
"""What is kept of a picture: see `benchmarks.evaluation.journal`."""


@dataclass(frozen=True, kw_only=True)
class Fed:
    """A picture as the protocol feeds it, `height` x `width`, and the way back: `restore` brings
    values [height,width] or [height,width,C] to the pixels of the truth.
    """

    picture: ImageLike
    height: int
    width: int
    restore: Callable[[Map], Map]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The errors of one picture. `metrics` are NaN where no pixel counts; `counts` is how many of
    the `pixels` lie in each bin of `Protocol.edges`; `keys` and `key_counts` are for `pool`.
    """

    metrics: dict[str, float]
    pixels: int
    counts: NDArray[np.int64]
    keys: NDArray[np.uint32] | None = None
    key_counts: NDArray[np.uint32] | None = None


class Protocol(typing.Protocol):
    """How pictures of a kind of truth are fed and measured.

    `ranked_by` names the metric that orders pictures, small is good. `headline` are the metrics of
    the paper's table, by what multiplies them there, and `titles` their names there. `edges` are
    those of the bins of pixel errors, `error_name` says in words what such an error is, and
    `shown_error` the largest on a sheet.
    """

    @property
    def ranked_by(self) -> str: ...
    @property
    def headline(self) -> dict[str, float]: ...
    @property
    def titles(self) -> dict[str, str]: ...
    @property
    def edges(self) -> NDArray[np.float64]: ...
    @property
    def error_name(self) -> str: ...
    @property
    def shown_error(self) -> str: ...

    def feed(self, image: NDArray[np.uint8]) -> Fed:
        """What goes into the network for a picture [H,W,3]."""

    def measure(self, task: Task, values: Map, truth: Map, mask: Mask) -> Measured:
        """The errors of values of a task at the truth's pixels."""

    def pool(self, records: Sequence[Record], load: Callable[[Record], Keys]) -> dict[str, float]:
        """The numbers of a set. Pictures without a pixel that counts do not count."""

    def resample(
        self, metric: str, records: Sequence[Record], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """A metric [R] of R sets, in which each of the N records counts `weights` [R,N] times."""

    def show(self, task: Task, values: Map, truth: Map, mask: Mask) -> tuple[Map, Map, Map]:
        """For a sheet: the truth and the prediction as values that the task colours alike, and the
        error of each pixel [H,W] as a share of what is shown as the largest.
        """


Keys = tuple[NDArray[np.uint32], NDArray[np.uint32]]


def resize_planes(planes: NDArray[Any], height: int, width: int) -> Map:
    """[H,W] or [H,W,C] at another size, bilinear with antialias, float32. Pillow's filter for
    floats and torchvision's `resize(antialias=True)` are the same.
    """
    bands = np.moveaxis(np.atleast_3d(planes), -1, 0)
    resized = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(band, np.float32)).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for band in bands
    ]
    return np.stack(resized, axis=-1).reshape(height, width, *planes.shape[2:])
