"""What each task's output means, and all that depends on it: decoding, colours, error, blending.

Code asks the task; it never tests a task's name or number of channels. A new task is one entry of
`TASKS`, with a subclass of `Task` only where its maps behave in a new way.

A *map* is what the network answers, float32 [C,H,W]. *Values* are what a user gets, float32 [H,W]
for one channel and [H,W,C] for several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Resize: TypeAlias = Literal["bilinear", "nearest"]

# ColorBrewer's 11-class Spectral, the anchors of matplotlib's map of that name (the reference's
# colours), red first.
_SPECTRAL = np.array(
    [
        [158, 1, 66],
        [213, 62, 79],
        [244, 109, 67],
        [253, 174, 97],
        [254, 224, 139],
        [255, 255, 191],
        [230, 245, 152],
        [171, 221, 164],
        [102, 194, 165],
        [50, 136, 189],
        [94, 79, 162],
    ],
    dtype=np.float64,
)
_FLOOR = 0.1  # AbsRel divides by the exact value: one below this counts as this large


@dataclass(frozen=True, kw_only=True)
class Task:
    """A map whose values lie in [low, high].

    `channels` is 1 or 3. `near` says which values are close to the camera ("small", "large", or
    None where they say nothing about distance). `meaning` states in words what a value is.
    `space` is the space in which a prediction is aligned to ground truth in scale and shift
    ("depth", "disparity"; None: it needs no alignment). `truth` is the kind of ground truth that
    measures it ("depth", "normal"; None: there is none). `error_unit` is the unit of `error`,
    and `max_error` the largest error that an int8 build accepts by default. `axes`: what
    multiplies directions into the camera's frame (x right, y down, z forward); None for what is
    no direction.
    """

    name: str
    channels: int
    low: float
    high: float
    near: str | None
    meaning: str
    space: str | None = None
    truth: str | None = None
    error_unit: str = "of the range"
    max_error: float = 0.01
    axes: tuple[int, int, int] | None = None

    def decode(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values of a map: [C,H,W] -> [H,W] or [H,W,C]. Nothing is clipped."""
        if self.channels == 1:
            plane: NDArray[np.float32] = output[0]
            return plane
        return np.ascontiguousarray(output.transpose(1, 2, 0))

    def colorize(
        self, values: NDArray[np.float32], bounds: tuple[float, float] | None = None
    ) -> NDArray[np.uint8]:
        """RGB uint8 [H,W,3].

        Three channels become red, green and blue, from `low` (0) to `high` (255). One channel is
        shown in Spectral from the image's smallest to its largest value, or between `bounds`, as
        the frames of a video need it; what is near is red.
        """
        if self.channels == 1:
            return self._spectral(values, bounds)
        levels = (values - np.float32(self.low)) * np.float32(255 / (self.high - self.low))
        colors: NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return colors

    def encode16(self, values: NDArray[np.float32]) -> NDArray[np.uint16]:
        """The values as uint16 of the same shape: 0 is `low`, 65535 is `high`."""
        levels = (values.astype(np.float64) - self.low) / (self.high - self.low) * 65535
        return np.rint(levels).clip(0, 65535).astype(np.uint16)

    def error(self, prediction: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
        """How far the map `prediction` is from the map `exact`, both [C,H,W], in `error_unit`.

        Here: the mean absolute difference as a share of the range.
        """
        difference = np.abs(prediction.astype(np.float64) - exact.astype(np.float64))
        return float(difference.mean() / (self.high - self.low))

    def resize(
        self, output: NDArray[np.float32], height: int, width: int, method: Resize
    ) -> NDArray[np.float32]:
        """The map [C,H,W] at another size, each channel alone. Decode afterwards. Needs Pillow."""
        from PIL import Image

        filters = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
        planes = [
            np.asarray(Image.fromarray(plane).resize((width, height), filters[method]))
            for plane in output
        ]
        return np.stack(planes).astype(np.float32, copy=False)

    def blend(
        self, maps: Sequence[NDArray[np.float32]], weights: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """One map [C,H,W] out of several of the same pixels: the mean by `weights`, each [H,W].

        A pixel that a map does not cover has weight 0 there. Decode afterwards, which also brings
        vectors back to unit length. Maps that are known up to scale and shift must be aligned to
        each other first.

        Raises: ValueError where a pixel's weights do not add up to a positive number, or where
        maps and weights differ in number.
        """
        total = np.sum(weights, axis=0, dtype=np.float64)
        if not (total > 0).all():
            raise ValueError("the weights of each pixel must add up to a positive number")
        mean = np.zeros(maps[0].shape, np.float64)
        for output, weight in zip(maps, weights, strict=True):
            mean += output * (weight / total)
        return mean.astype(np.float32)

    def _spectral(
        self, values: NDArray[np.float32], bounds: tuple[float, float] | None
    ) -> NDArray[np.uint8]:
        low, high = bounds or (float(values.min()), float(values.max()))
        unit = np.clip((values.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
        index = np.rint((1 - unit if self.near == "large" else unit) * 255).astype(np.intp)
        return spectral_table()[index]


@dataclass(frozen=True, kw_only=True)
class AffineTask(Task):
    """A map that is known up to scale and shift, as depth and disparity from one picture are."""

    error_unit: str = "AbsRel"
    max_error: float = 0.01

    def error(self, prediction: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
        """AbsRel after the prediction is aligned to `exact` by least squares, both [1,H,W].

        Exact values below 0.1 count as 0.1: AbsRel has no bound at 0.
        """
        values, wanted = prediction.astype(np.float64).ravel(), exact.astype(np.float64).ravel()
        design = np.stack([values, np.ones_like(values)], axis=1)
        solution = np.linalg.lstsq(design, wanted, rcond=None)[0]
        return float((np.abs(design @ solution - wanted) / np.maximum(wanted, _FLOOR)).mean())


@dataclass(frozen=True, kw_only=True)
class NormalTask(Task):
    """Unit vectors."""

    error_unit: str = "degrees"
    max_error: float = 1.0
    axes: tuple[int, int, int] | None = (1, -1, -1)

    def decode(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """[3,H,W] -> unit vectors [H,W,3]; a zero vector stays zero."""
        return unit_vectors(output.transpose(1, 2, 0))

    def error(self, prediction: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
        """The mean angle between the vectors of two maps [3,H,W], in degrees."""
        first, second = (self.decode(output).astype(np.float64) for output in (prediction, exact))
        sine, cosine = np.linalg.norm(np.cross(first, second), axis=-1), (first * second).sum(-1)
        return float(np.degrees(np.arctan2(sine, cosine)).mean())


@dataclass(frozen=True, kw_only=True)
class ShareTask(Task):
    """How much of a pixel belongs to the subject, shown in grey."""

    def colorize(
        self, values: NDArray[np.float32], bounds: tuple[float, float] | None = None
    ) -> NDArray[np.uint8]:
        """RGB uint8 [H,W,3]: black is `low` and white is `high`, in every image alike."""
        share = (values.astype(np.float64) - self.low) / (self.high - self.low)
        grey = np.clip(np.rint(share * 255), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)


# Source of the ranges and of the colour map's direction: the Lotus paper (arXiv 2409.18124) and its
# published code.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        AffineTask(
            name="depth",
            channels=1,
            low=0.0,
            high=1.0,
            near="small",
            meaning="affine-invariant depth: metric depth is a*value + b with unknown a > 0 and b",
            space="depth",
            truth="depth",
        ),
        AffineTask(
            name="disparity",
            channels=1,
            low=0.0,
            high=1.0,
            near="large",
            meaning="affine-invariant disparity: 1 / metric depth is a*value + b with "
            "unknown a > 0 and b",
            space="disparity",
            truth="depth",
        ),
        NormalTask(
            name="normal",
            channels=3,
            low=-1.0,
            high=1.0,
            near=None,
            meaning="surface normal in the camera frame, unit length; colours are 255 - those of "
            "Omnidata and Metric3D",
            truth="normal",
        ),
        ShareTask(
            name="matting",
            channels=1,
            low=0.0,
            high=1.0,
            near=None,
            meaning="opacity of the subject: 1 is the subject, 0 the background, between them hair "
            "and blur",
        ),
        ShareTask(
            name="segmentation",
            channels=1,
            low=0.0,
            high=1.0,
            near=None,
            meaning="dichotomous segmentation: 1 is the subject, 0 the background; 0.5 is the "
            "threshold of a mask",
        ),
    )
}


def unit_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """[H,W,3] scaled to unit length; a zero vector stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, np.float32(1e-6)), dtype=np.float32)


def spectral_table() -> NDArray[np.uint8]:
    """256 colours RGB uint8 [256,3], linear between the anchors of Spectral, red first."""
    position = np.linspace(0, len(_SPECTRAL) - 1, 256)
    channels = [
        np.interp(position, np.arange(len(_SPECTRAL)), _SPECTRAL[:, channel])
        for channel in range(3)
    ]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)
